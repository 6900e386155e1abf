//! Reading bytes of a segment from a storage node.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use aubade_planner::ScanMetrics;
use aubade_proto::{CallHeader, Result, SegmentId};
use aubade_storage_node::RangeReader;
use bytes::Bytes;

use crate::cluster::Member;

/// Reads one segment from a node.
#[derive(Debug)]
pub(crate) struct NodeReader {
    pub(crate) member: Arc<Member>,
    pub(crate) header: CallHeader,
    pub(crate) id: SegmentId,
    /// Of the scan for which it reads.
    pub(crate) metrics: Option<ScanMetrics>,
}

#[async_trait]
impl RangeReader for NodeReader {
    async fn read(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let read = self.member.client.read_ranges(&self.header, self.id, ranges).await?;
        if let Some(metrics) = &self.metrics {
            metrics.add_wire(self.member.entry.id, read.iter().map(|bytes| bytes.len() as u64).sum());
        }
        Ok(read)
    }
}
