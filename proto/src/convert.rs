//! Between the wire and the domain model, both ways.

mod fragment;
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

/// A field that must be there.
pub fn required<T>(value: Option<T>, field: &str) -> Result<T> {
    value.ok_or_else(|| Error::new(ErrorCode::InvalidMessage, format!("field {field} is missing")))
}
