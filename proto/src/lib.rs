//! The wire of Aubade: messages, the codecs between them and Arrow/DataFusion, and error codes.
//!
//! [`wire`] is generated from `proto/`. Beside it stands a stricter domain model ([`scan`],
//! [`segment`]): the receiver validates what arrived, the sender converts without failing.

pub mod bits;
pub mod bloom;
pub mod code;
pub mod convert;
pub mod error;
pub mod fragment;
pub mod id;
pub mod integer_groups;
pub mod membership;
pub mod reduction;
pub mod scan;
pub mod segment;
pub mod wire;

pub use code::{ErrorCode, Retry};
pub use error::{Error, Result, ResultExt, panic_text};
pub use fragment::{Fragment, ProjectionColumn};
pub use id::{ClusterId, Epoch, NodeId, RelationId, RequestId, SegmentId, TransactionId, Version};
pub use membership::{KeySet, Membership};
pub use reduction::{Reduction, ReductionKind, join_is_local, takes_ordered_rows_only};
pub use scan::{CallHeader, ScanEvent, ScanRequest, ScanStatistics, SegmentScan};
pub use segment::{NodeInfo, PutReceipt, ScrubProgress, SegmentDescription};

/// The version of the storage protocol that this build speaks. It is another one whenever nodes hand out the rows of a
/// fragment in another order or other pieces too: a scan goes on at another node where the first one ended.
pub const STORAGE_PROTOCOL: u32 = 7;
