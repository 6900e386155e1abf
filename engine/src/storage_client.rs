//! How the coordinator talks to storage nodes: one trait with two implementations, gRPC and in
//! process. Both run the same storage-node code.

mod grpc;
mod loopback;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use aubade_catalog::NodeEntry;
use aubade_proto::{
    CallHeader, Epoch, Error, ErrorCode, NodeInfo, PutReceipt, Result, ScanEvent, ScanRequest, SegmentDescription,
    SegmentId,
};
use bytes::Bytes;
use futures::stream::BoxStream;
pub(crate) use grpc::GrpcClients;
pub(crate) use loopback::LoopbackClients;

/// The events of one scan; dropping it stops the work at the node.
pub(crate) type ScanStream = BoxStream<'static, Result<ScanEvent>>;

/// One storage node, as the coordinator calls it.
#[async_trait]
pub(crate) trait StorageClient: Debug + Send + Sync {
    /// Runs a fragment over segments.
    async fn scan(&self, request: ScanRequest) -> Result<ScanStream>;
    /// Who the node is and how it does.
    async fn info(&self, header: &CallHeader) -> Result<NodeInfo>;
    /// Stores a segment durably.
    async fn put_segment(
        &self,
        header: &CallHeader,
        description: &SegmentDescription,
        data: Bytes,
    ) -> Result<PutReceipt>;
    /// The bytes of ranges of a segment, in their order.
    async fn read_ranges(&self, header: &CallHeader, id: SegmentId, ranges: &[Range<u64>]) -> Result<Vec<Bytes>>;
    /// Makes the node copy a segment from another node.
    async fn replicate_segment(
        &self,
        header: &CallHeader,
        description: &SegmentDescription,
        sources: &[String],
    ) -> Result<PutReceipt>;
    /// A page of what the node holds, and whether there is more.
    async fn list_segments(
        &self,
        header: &CallHeader,
        after: Option<SegmentId>,
        limit: usize,
    ) -> Result<(Vec<SegmentDescription>, bool)>;
    /// Removes segments.
    async fn delete_segments(&self, header: &CallHeader, ids: &[SegmentId]) -> Result<u64>;
    /// Makes the node refuse older writers.
    async fn seal(&self, header: &CallHeader) -> Result<Epoch>;
}

/// Cuts the bytes of several ranges, which came one after the other, apart.
fn cut_apart(ranges: &[Range<u64>], mut bytes: Bytes) -> Result<Vec<Bytes>> {
    let mut parts = Vec::with_capacity(ranges.len());
    for range in ranges {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        if length > bytes.len() {
            return Err(Error::new(ErrorCode::InvalidMessage, "a storage node sent fewer bytes than it was asked for"));
        }
        parts.push(bytes.split_to(length));
    }
    Ok(parts)
}

/// Makes the client for a registered node.
pub(crate) trait StorageClients: Debug + Send + Sync {
    /// A client; connects when it is first used.
    fn client(&self, node: &NodeEntry) -> Result<Arc<dyn StorageClient>>;
}
