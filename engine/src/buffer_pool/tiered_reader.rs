//! Reading a segment from the second tier, and what is not there from a node.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use aubade_proto::{Error, ErrorCode, Result, SegmentId};
use aubade_storage_node::{Blocks, RangeReader};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::disk::DiskTier;
use crate::limits::BUFFER_POOL_BLOCK_BYTES;
use crate::node_reader::NodeReader;

/// See the module's doc.
#[derive(Debug)]
pub(super) struct TieredReader {
    tier: Arc<DiskTier>,
    segment: SegmentId,
    /// Of the whole segment.
    length_bytes: u64,
    /// `None`: what is not in the tier is not to be had.
    node: Option<NodeReader>,
    /// What came from the node.
    fetched: Mutex<BTreeMap<u32, Bytes>>,
}

impl TieredReader {
    pub(super) fn new(tier: Arc<DiskTier>, segment: SegmentId, length_bytes: u64, node: Option<NodeReader>) -> Self {
        Self { tier, segment, length_bytes, node, fetched: Mutex::default() }
    }

    /// Keeps what came from the node, which was read for these columns: once it is known to be of use.
    pub(super) async fn keep(self, columns: &[Arc<str>]) {
        self.tier.write(self.segment, columns.to_vec(), self.fetched.into_inner()).await;
    }

    fn bytes_of(&self, blocks: &Range<u32>) -> Range<u64> {
        let at = |block: u32| (u64::from(block) * BUFFER_POOL_BLOCK_BYTES).min(self.length_bytes);
        at(blocks.start)..at(blocks.end)
    }

    /// Of `wanted`, what is at hand already and what is in the tier.
    async fn find(&self, wanted: &BTreeSet<u32>) -> BTreeMap<u32, Bytes> {
        let mut blocks: BTreeMap<u32, Bytes> = {
            let fetched = self.fetched.lock();
            wanted.iter().filter_map(|block| Some((*block, fetched.get(block)?.clone()))).collect()
        };
        let others = wanted.iter().filter(|block| !blocks.contains_key(block)).copied().collect();
        let kept = self.tier.read(self.segment, others, self.node.is_none()).await;
        if kept.iter().any(|(block, bytes)| bytes.len() as u64 != length(&self.bytes_of(&one(*block)))) {
            // Blocks of something else, whatever their checksums say.
            self.tier.forget(self.segment).await;
            return blocks;
        }
        blocks.extend(kept);
        blocks
    }

    /// Reads runs of blocks from the node.
    async fn fetch(&self, missing: &BTreeSet<u32>) -> Result<Vec<Blocks>> {
        let node = self.node.as_ref().ok_or_else(|| {
            let text = format!("blocks of segment {} are not on the disk of the buffer pool", self.segment);
            Error::new(ErrorCode::SegmentUnavailable, text)
        })?;
        let runs = runs(missing);
        let ranges: Vec<Range<u64>> = runs.iter().map(|run| self.bytes_of(run)).collect();
        let read = node.read(&ranges).await?;
        let mut fetched = self.fetched.lock();
        for ((run, range), bytes) in runs.into_iter().zip(&ranges).zip(&read) {
            if bytes.len() as u64 != length(range) {
                let text = format!("{} bytes of segment {} came instead of {range:?}", bytes.len(), self.segment);
                return Err(Error::internal(text));
            }
            let mut rest = bytes.clone();
            for block in run {
                let taken = usize::try_from(BUFFER_POOL_BLOCK_BYTES).unwrap_or(usize::MAX).min(rest.len());
                fetched.insert(block, rest.split_to(taken));
            }
        }
        Ok(ranges.iter().zip(read).map(|(range, bytes)| Blocks { start: range.start, bytes }).collect())
    }

    /// The bytes of a range of which all blocks are at hand.
    fn join(&self, range: &Range<u64>, blocks: &BTreeMap<u32, Bytes>) -> Result<Bytes> {
        let mut joined = BytesMut::with_capacity(usize::try_from(length(range)).unwrap_or_default());
        for (block, bytes) in blocks.range(blocks_of(range)?) {
            let start = self.bytes_of(&one(*block)).start;
            let from = usize::try_from(range.start.saturating_sub(start)).unwrap_or(usize::MAX);
            let to = usize::try_from(range.end.saturating_sub(start)).unwrap_or(usize::MAX).min(bytes.len());
            joined.extend_from_slice(bytes.get(from..to).unwrap_or_default());
        }
        if joined.len() as u64 != length(range) {
            let text = format!("bytes {range:?} of segment {} are not in {} bytes", self.segment, self.length_bytes);
            return Err(Error::internal(text));
        }
        Ok(joined.freeze())
    }
}

#[async_trait]
impl RangeReader for TieredReader {
    async fn read(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let mut wanted = BTreeSet::new();
        for range in ranges {
            wanted.extend(blocks_of(range)?);
        }
        let mut blocks = self.find(&wanted).await;
        wanted.retain(|block| !blocks.contains_key(block));
        let mut runs = Vec::new();
        if !wanted.is_empty() {
            runs = self.fetch(&wanted).await?;
            let fetched = self.fetched.lock();
            blocks.extend(wanted.iter().filter_map(|block| Some((*block, fetched.get(block)?.clone()))));
        }
        let of = |range: &Range<u64>| match runs.iter().find_map(|run| run.slice(range)) {
            Some(bytes) => Ok(bytes),
            None => self.join(range, &blocks),
        };
        ranges.iter().map(of).collect()
    }
}

fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

/// One block as a run of blocks.
fn one(block: u32) -> Range<u32> {
    block..block.saturating_add(1)
}

/// The blocks that cover a range.
fn blocks_of(range: &Range<u64>) -> Result<Range<u32>> {
    let block = |number: u64| {
        u32::try_from(number).map_err(|_| Error::internal(format!("bytes {range:?} are past the end of any segment")))
    };
    Ok(block(range.start / BUFFER_POOL_BLOCK_BYTES)?..block(range.end.div_ceil(BUFFER_POOL_BLOCK_BYTES))?)
}

/// Runs of blocks that follow one another.
fn runs(blocks: &BTreeSet<u32>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some(last) if last.end == *block => last.end = block.saturating_add(1),
            _ => runs.push(one(*block)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_blocks() {
        assert_eq!(blocks_of(&(0..1)).unwrap(), 0..1);
        assert_eq!(blocks_of(&(BUFFER_POOL_BLOCK_BYTES - 1..BUFFER_POOL_BLOCK_BYTES + 1)).unwrap(), 0..2);
        assert_eq!(blocks_of(&(BUFFER_POOL_BLOCK_BYTES..2 * BUFFER_POOL_BLOCK_BYTES)).unwrap(), 1..2);
        blocks_of(&(0..u64::MAX)).unwrap_err();
        assert_eq!(runs(&BTreeSet::from([1, 2, 3, 7, 9, 10])), [1..4, 7..8, 9..11]);
        assert!(runs(&BTreeSet::new()).is_empty());
    }
}
