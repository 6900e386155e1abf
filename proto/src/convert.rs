//! Between the wire and the domain model, both ways.

mod columns;
mod fragment;
mod narrow;
mod repeated;
mod reply;
mod scan;
mod segment;

pub use fragment::{decode_fragment, decode_schema, encode_fragment, encode_schema};
pub use reply::{ScanDecoder, ScanEncoder};
pub use scan::{
    decode_header, decode_scan_request, decode_statistics, encode_header, encode_scan_request, encode_statistics,
};
pub use segment::{
    decode_description, decode_node_info, decode_receipt, encode_description, encode_node_info, encode_receipt,
};

use crate::code::ErrorCode;
use crate::error::{Error, Result};
use crate::panic_text;

/// Runs what reads a message of Arrow, whose reader trusts the lengths and offsets in it and panics where these are wrong.
///
/// # Errors
/// [`ErrorCode::InvalidMessage`] with `what`.
pub(crate) fn guarded<T>(read: impl FnOnce() -> T, what: impl FnOnce() -> String) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read))
        .map_err(|panic| Error::new(ErrorCode::InvalidMessage, what()).source(panic_text(panic.as_ref())))
}

/// A field that must be there.
pub fn required<T>(value: Option<T>, field: &str) -> Result<T> {
    value.ok_or_else(|| Error::new(ErrorCode::InvalidMessage, format!("field {field} is missing")))
}
