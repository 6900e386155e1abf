//! Storage nodes in this process: Arrow batches are handed over with no copy and no encoding.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use aubade_catalog::NodeEntry;
use aubade_proto::{
    CallHeader, Epoch, Error, ErrorCode, NodeId, NodeInfo, PutReceipt, Result, ScanRequest, SegmentDescription,
    SegmentId,
};
use aubade_storage_node::StorageNode;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};

use super::{ScanStream, StorageClient, StorageClients, cut_apart};

/// The nodes of this process.
#[derive(Debug)]
pub(crate) struct LoopbackClients(pub(crate) BTreeMap<NodeId, StorageNode>);

impl StorageClients for LoopbackClients {
    fn client(&self, node: &NodeEntry) -> Result<Arc<dyn StorageClient>> {
        let found = self.0.get(&node.id).cloned();
        let found = found.ok_or_else(|| {
            Error::new(ErrorCode::NodeUnavailable, format!("storage node {} is not part of this process", node.id))
        })?;
        Ok(Arc::new(LoopbackClient(found)))
    }
}

#[derive(Debug)]
struct LoopbackClient(StorageNode);

#[async_trait]
impl StorageClient for LoopbackClient {
    async fn scan(&self, request: ScanRequest) -> Result<ScanStream> {
        self.0.scan(request).await
    }

    async fn info(&self, _header: &CallHeader) -> Result<NodeInfo> {
        Ok(self.0.info())
    }

    async fn put_segment(
        &self,
        header: &CallHeader,
        description: &SegmentDescription,
        data: Bytes,
    ) -> Result<PutReceipt> {
        self.0.put_segment(header, description, stream::iter([Ok(data)]).boxed()).await
    }

    async fn read_ranges(&self, header: &CallHeader, id: SegmentId, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let (_, chunks) = self.0.get_segment(header, id, ranges).await?;
        let bytes: BytesMut = chunks.try_collect::<Vec<_>>().await?.iter().flatten().collect();
        cut_apart(ranges, bytes.freeze())
    }

    async fn replicate_segment(
        &self,
        header: &CallHeader,
        description: &SegmentDescription,
        sources: &[String],
    ) -> Result<PutReceipt> {
        self.0.replicate_segment(header, description, sources).await
    }

    async fn list_segments(
        &self,
        header: &CallHeader,
        after: Option<SegmentId>,
        limit: usize,
    ) -> Result<(Vec<SegmentDescription>, bool)> {
        self.0.list_segments(header, after, limit).await
    }

    async fn delete_segments(&self, header: &CallHeader, ids: &[SegmentId]) -> Result<u64> {
        self.0.delete_segments(header, ids).await
    }

    async fn seal(&self, header: &CallHeader) -> Result<Epoch> {
        self.0.seal(header).await
    }
}
