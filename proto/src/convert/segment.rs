//! Descriptions, receipts and node information.

use crate::code::ErrorCode;
use crate::error::{Error, Result};
use crate::id::{ClusterId, Epoch, NodeId, SegmentId, TransactionId};
use crate::segment::{NodeInfo, PutReceipt, ScrubProgress, SegmentDescription};
use crate::wire::storage as wire;

fn decode_sha256(bytes: &[u8], field: &str) -> Result<[u8; 32]> {
    bytes.try_into().map_err(|_| {
        Error::new(
            ErrorCode::InvalidMessage,
            format!("field {field} has {} bytes instead of the 32 of a SHA-256", bytes.len()),
        )
    })
}

/// The wire form of a description.
pub fn encode_description(description: &SegmentDescription) -> wire::SegmentDescription {
    wire::SegmentDescription {
        segment_id: description.segment_id.to_wire(),
        epoch: description.epoch.0,
        transaction_id: description.transaction_id.to_wire(),
        bytes: description.bytes,
        sha256: description.sha256.to_vec().into(),
    }
}

/// The description in a message.
///
/// # Errors
/// [`ErrorCode::InvalidMessage`] when an id or checksum has another length.
pub fn decode_description(message: &wire::SegmentDescription) -> Result<SegmentDescription> {
    Ok(SegmentDescription {
        segment_id: SegmentId::from_wire(&message.segment_id, "description.segment_id")?,
        epoch: Epoch(message.epoch),
        transaction_id: TransactionId::from_wire(&message.transaction_id, "description.transaction_id")?,
        bytes: message.bytes,
        sha256: decode_sha256(&message.sha256, "description.sha256")?,
    })
}

/// The wire form of a receipt.
pub fn encode_receipt(receipt: &PutReceipt) -> wire::PutSegmentReply {
    wire::PutSegmentReply { sha256: receipt.sha256.to_vec().into(), bytes: receipt.bytes, epoch: receipt.epoch.0 }
}

/// The receipt in a message.
///
/// # Errors
/// [`ErrorCode::InvalidMessage`] when the checksum has another length.
pub fn decode_receipt(message: &wire::PutSegmentReply) -> Result<PutReceipt> {
    Ok(PutReceipt {
        sha256: decode_sha256(&message.sha256, "sha256")?,
        bytes: message.bytes,
        epoch: Epoch(message.epoch),
    })
}

/// The wire form of node information.
pub fn encode_node_info(info: &NodeInfo) -> wire::InfoReply {
    wire::InfoReply {
        node_id: info.node_id.to_wire(),
        cluster_id: info.cluster_id.to_wire(),
        zone: info.zone.clone(),
        epoch: info.epoch.0,
        segment_count: info.segment_count,
        segment_bytes: info.segment_bytes,
        quarantined_segment_ids: info.quarantined.iter().map(|id| id.to_wire()).collect(),
        active_scan_count: info.active_scan_count,
        scan_cpu_micros: info.scan_cpu_micros,
        instance: info.instance,
        scrub: info.scrub.map(|scrub| wire::ScrubProgress {
            rounds: scrub.rounds,
            round_bytes: scrub.round_bytes,
            damaged: scrub.damaged,
        }),
    }
}

/// The node information in a message.
///
/// # Errors
/// [`ErrorCode::InvalidMessage`] when an id has another length.
pub fn decode_node_info(message: &wire::InfoReply) -> Result<NodeInfo> {
    let quarantined = message.quarantined_segment_ids.iter();
    Ok(NodeInfo {
        node_id: NodeId::from_wire(&message.node_id, "node_id")?,
        cluster_id: ClusterId::from_wire(&message.cluster_id, "cluster_id")?,
        zone: message.zone.clone(),
        epoch: Epoch(message.epoch),
        segment_count: message.segment_count,
        segment_bytes: message.segment_bytes,
        quarantined: quarantined
            .map(|id| SegmentId::from_wire(id, "quarantined_segment_ids"))
            .collect::<Result<_>>()?,
        active_scan_count: message.active_scan_count,
        scan_cpu_micros: message.scan_cpu_micros,
        instance: message.instance,
        scrub: message.scrub.as_ref().map(|scrub| ScrubProgress {
            rounds: scrub.rounds,
            round_bytes: scrub.round_bytes,
            damaged: scrub.damaged,
        }),
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn node_information_survives_the_wire() {
        let info = NodeInfo {
            node_id: NodeId(Uuid::from_u128(1)),
            cluster_id: ClusterId(Uuid::from_u128(2)),
            zone: "az1".to_owned(),
            epoch: Epoch(3),
            segment_count: 4,
            segment_bytes: 5,
            quarantined: vec![SegmentId(Uuid::from_u128(6))],
            active_scan_count: 7,
            scan_cpu_micros: 99,
            instance: u64::MAX,
            scrub: Some(ScrubProgress { rounds: 8, round_bytes: 9, damaged: 10 }),
        };
        for info in [NodeInfo { scrub: None, ..info.clone() }, info] {
            assert_eq!(decode_node_info(&encode_node_info(&info)).unwrap(), info);
        }
    }
}
