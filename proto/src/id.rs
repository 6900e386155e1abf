//! Newtyped ids and coordinates.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::code::ErrorCode;
use crate::error::{Error, Result};

macro_rules! uuid_id {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The wire form: 16 bytes, big-endian.
            pub fn to_wire(self) -> Bytes {
                Bytes::copy_from_slice(self.0.as_bytes())
            }

            /// Reads the wire form; `field` names it in the error.
            ///
            /// # Errors
            /// [`ErrorCode::InvalidMessage`] unless there are 16 bytes.
            pub fn from_wire(bytes: &[u8], field: &str) -> Result<Self> {
                Uuid::from_slice(bytes).map(Self).map_err(|_| {
                    Error::new(ErrorCode::InvalidMessage, format!("field {field} has {} bytes instead of the 16 of an id", bytes.len()))
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
                Uuid::from_str(text).map(Self)
            }
        }
    )*};
}

uuid_id! {
    /// Names a cluster for good.
    ClusterId;
    /// Names a storage node; kept in its data folder.
    NodeId;
    /// Names a table, view or external table; a dropped and re-made one has another id.
    RelationId;
    /// Names one call, in logs on both sides.
    RequestId;
    /// Names an immutable segment (version 7, so ids sort by time).
    SegmentId;
    /// Names one attempt to change the cluster.
    TransactionId;
}

macro_rules! number_id {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The following one; saturates at the end of 64 bits.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

number_id! {
    /// Grows with every writer that takes over.
    Epoch;
    /// A version of the manifest; the first is 1.
    Version;
}
