//! The pool as a scan sees it: a replica of what it holds.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use aubade_proto::{
    CallHeader, Epoch, Error, NodeInfo, PutReceipt, Result, ScanRequest, SegmentDescription, SegmentId,
};
use aubade_storage_node::{DecodedSegment, DecodedSegments, columns_read};
use bytes::Bytes;

use super::{BufferPool, ColumnSet};
use crate::storage_client::{ScanStream, StorageClient};

/// Runs scans over what the pool holds, and does nothing else that nodes do.
#[derive(Debug)]
pub(crate) struct BufferPoolClient(pub(crate) Arc<BufferPool>);

/// What a scan reads of the pool.
#[derive(Debug)]
struct Reading {
    pool: Arc<BufferPool>,
    columns: ColumnSet,
}

impl DecodedSegments for Reading {
    fn find(&self, id: SegmentId) -> Option<DecodedSegment> {
        self.pool.get(id, &self.columns)
    }
}

fn refused() -> Error {
    Error::internal("the buffer pool was asked for what only storage nodes do")
}

#[async_trait]
impl StorageClient for BufferPoolClient {
    async fn scan(&self, request: ScanRequest) -> Result<ScanStream> {
        let reading = Reading { pool: Arc::clone(&self.0), columns: columns_read(&request.fragment)?.into() };
        self.0.runner().scan_decoded(request, Arc::new(reading))
    }

    async fn info(&self, _header: &CallHeader) -> Result<NodeInfo> {
        Err(refused())
    }

    async fn put_segment(&self, _: &CallHeader, _: &SegmentDescription, _: Bytes) -> Result<PutReceipt> {
        Err(refused())
    }

    async fn read_ranges(&self, _: &CallHeader, _: SegmentId, _: &[Range<u64>]) -> Result<Vec<Bytes>> {
        Err(refused())
    }

    async fn replicate_segment(&self, _: &CallHeader, _: &SegmentDescription, _: &[String]) -> Result<PutReceipt> {
        Err(refused())
    }

    async fn list_segments(
        &self,
        _: &CallHeader,
        _: Option<SegmentId>,
        _: usize,
    ) -> Result<(Vec<SegmentDescription>, bool)> {
        Err(refused())
    }

    async fn delete_segments(&self, _: &CallHeader, _: &[SegmentId]) -> Result<u64> {
        Err(refused())
    }

    async fn seal(&self, _: &CallHeader) -> Result<Epoch> {
        Err(refused())
    }
}
