//! Headers, scan requests and statistics.

use std::sync::Arc;
use std::time::Duration;

use datafusion::execution::TaskContext;

use super::fragment::{decode_fragment, encode_fragment};
use super::required;
use crate::STORAGE_PROTOCOL;
use crate::code::ErrorCode;
use crate::error::{Error, Result};
use crate::id::{ClusterId, Epoch, RequestId, SegmentId, Version};
use crate::scan::{CallHeader, ScanRequest, ScanStatistics, SegmentScan};
use crate::wire::storage as wire;

/// The wire form of a header.
pub fn encode_header(header: &CallHeader) -> wire::CallHeader {
    wire::CallHeader {
        protocol: STORAGE_PROTOCOL,
        request_id: header.request_id.to_wire(),
        cluster_id: header.cluster_id.to_wire(),
        epoch: header.epoch.0,
        snapshot_version: header.snapshot_version.0,
        timeout_millis: u64::try_from(header.timeout.as_millis()).unwrap_or(u64::MAX).max(1),
    }
}

/// The header in a message.
///
/// # Errors
/// [`ErrorCode::UnsupportedVersion`], [`ErrorCode::InvalidMessage`] or, for a caller that has no
/// time left, [`ErrorCode::DeadlineExceeded`].
pub fn decode_header(message: Option<&wire::CallHeader>) -> Result<CallHeader> {
    let message = required(message, "header")?;
    if message.protocol != STORAGE_PROTOCOL {
        let text = format!(
            "the caller speaks version {} of the storage protocol and this node {STORAGE_PROTOCOL}",
            message.protocol
        );
        return Err(
            Error::new(ErrorCode::UnsupportedVersion, text).hint("run the same release of aubade on both sides")
        );
    }
    if message.timeout_millis == 0 {
        return Err(Error::new(ErrorCode::DeadlineExceeded, "the request arrived with no time left"));
    }
    Ok(CallHeader {
        request_id: RequestId::from_wire(&message.request_id, "header.request_id")?,
        cluster_id: ClusterId::from_wire(&message.cluster_id, "header.cluster_id")?,
        epoch: Epoch(message.epoch),
        snapshot_version: Version(message.snapshot_version),
        timeout: Duration::from_millis(message.timeout_millis),
    })
}

/// The wire form of a scan request.
///
/// # Errors
/// When the fragment has no wire form.
pub fn encode_scan_request(request: &ScanRequest) -> Result<wire::ScanRequest> {
    let segments = request
        .segments
        .iter()
        .map(|segment| wire::SegmentScan { segment_id: segment.segment_id.to_wire(), skip_rows: segment.skip_rows });
    Ok(wire::ScanRequest {
        header: Some(encode_header(&request.header)),
        segments: segments.collect(),
        fragment: Some(encode_fragment(&request.fragment)?),
        batch_rows: u32::try_from(request.batch_rows).unwrap_or(u32::MAX),
        may_push_back: request.may_push_back,
        may_keep_results: request.may_keep_results,
        plain_columns: request.plain_columns,
    })
}

/// The scan request in a message.
///
/// # Errors
/// As [`decode_header`] and [`decode_fragment`].
pub fn decode_scan_request(message: &wire::ScanRequest, functions: &TaskContext) -> Result<ScanRequest> {
    let header = decode_header(message.header.as_ref())?;
    let segments = message.segments.iter().map(|segment| {
        let segment_id = SegmentId::from_wire(&segment.segment_id, "segments.segment_id")?;
        Ok(SegmentScan { segment_id, skip_rows: segment.skip_rows })
    });
    let segments = segments.collect::<Result<Vec<_>>>()?;
    let fragment = decode_fragment(required(message.fragment.as_ref(), "fragment")?, functions)?;
    let batch_rows = usize::try_from(message.batch_rows).unwrap_or(0);
    Ok(ScanRequest {
        header,
        segments,
        fragment: Arc::new(fragment),
        batch_rows,
        may_push_back: message.may_push_back,
        may_keep_results: message.may_keep_results,
        plain_columns: message.plain_columns,
    })
}

/// The wire form of statistics.
pub fn encode_statistics(statistics: &ScanStatistics) -> wire::ScanStatistics {
    let ScanStatistics {
        row_groups,
        row_groups_pruned_statistics,
        row_groups_pruned_bloom,
        rows_pruned_pages,
        pages_pruned,
        rows_in,
        rows_out,
        bytes_read,
        cpu_micros,
        kept_results,
    } = *statistics;
    wire::ScanStatistics {
        row_groups,
        row_groups_pruned_statistics,
        row_groups_pruned_bloom,
        rows_pruned_pages,
        pages_pruned,
        rows_in,
        rows_out,
        bytes_read,
        cpu_micros,
        kept_results,
    }
}

/// The statistics in a message.
pub fn decode_statistics(message: &wire::ScanStatistics) -> ScanStatistics {
    let wire::ScanStatistics {
        row_groups,
        row_groups_pruned_statistics,
        row_groups_pruned_bloom,
        rows_pruned_pages,
        pages_pruned,
        rows_in,
        rows_out,
        bytes_read,
        cpu_micros,
        kept_results,
    } = *message;
    ScanStatistics {
        row_groups,
        row_groups_pruned_statistics,
        row_groups_pruned_bloom,
        rows_pruned_pages,
        pages_pruned,
        rows_in,
        rows_out,
        bytes_read,
        cpu_micros,
        kept_results,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn header() -> CallHeader {
        CallHeader {
            request_id: RequestId(Uuid::from_u128(1)),
            cluster_id: ClusterId(Uuid::from_u128(2)),
            epoch: Epoch(3),
            snapshot_version: Version(4),
            timeout: Duration::from_millis(5),
        }
    }

    #[test]
    fn a_header_comes_back_from_the_wire() {
        let received = decode_header(Some(&encode_header(&header()))).unwrap();
        assert_eq!(format!("{received:?}"), format!("{:?}", header()));
    }

    #[test]
    fn another_protocol_version_is_refused() {
        let message = wire::CallHeader { protocol: STORAGE_PROTOCOL + 1, ..encode_header(&header()) };
        assert_eq!(decode_header(Some(&message)).unwrap_err().code(), ErrorCode::UnsupportedVersion);
    }

    #[test]
    fn a_missing_header_is_named() {
        assert!(decode_header(None).unwrap_err().message().contains("header"));
    }
}
