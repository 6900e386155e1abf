//! Requests that are put together segment by segment before they are sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aubade_catalog::SegmentEntry;
use aubade_proto::NodeId;

use crate::cluster::Member;
use crate::limits::{SEGMENTS_PER_REQUEST_MAX, SMALL_REQUEST_BYTES, SMALL_SEGMENTS_PER_REQUEST_MAX};

/// What the segments of one request have in common.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RequestKey {
    pub(super) node: NodeId,
    /// The number of the fragment.
    pub(super) fragment: usize,
    /// Whether it runs on the coordinator.
    pub(super) fetched: bool,
}

/// See the module's doc.
pub(super) struct NewRequest {
    pub(super) member: Arc<Member>,
    /// Indices into the segments of the scan.
    pub(super) segments: Vec<usize>,
    /// Of the segments' files.
    bytes: u64,
}

impl NewRequest {
    fn begin(member: &Arc<Member>) -> Self {
        Self { member: Arc::clone(member), segments: Vec::new(), bytes: 0 }
    }

    /// Adds a segment, unless the request is full.
    fn add(&mut self, index: usize, bytes: u64, fetched: bool) -> bool {
        let bytes = self.bytes.saturating_add(bytes);
        // What is fetched is asked of its node segment by segment all the same.
        let may_have_many = bytes <= SMALL_REQUEST_BYTES && !fetched;
        let segments_max = if may_have_many { SMALL_SEGMENTS_PER_REQUEST_MAX } else { SEGMENTS_PER_REQUEST_MAX };
        if self.segments.len() >= segments_max {
            return false;
        }
        self.bytes = bytes;
        self.segments.push(index);
        true
    }
}

/// The requests that a scan is about to send, at most one for each key.
pub(super) struct NewRequests {
    requests: BTreeMap<RequestKey, NewRequest>,
    requests_max: usize,
    /// Nodes that are asked already.
    busy: BTreeSet<NodeId>,
}

impl NewRequests {
    /// None so far, `requests_max` at most, and none to `busy` nodes.
    pub(super) fn new(requests_max: usize, busy: BTreeSet<NodeId>) -> Self {
        Self { requests: BTreeMap::new(), requests_max, busy }
    }

    /// Adds a segment to the request of a key, or begins that; false where neither is possible.
    pub(super) fn put(&mut self, key: RequestKey, member: &Arc<Member>, index: usize, segment: &SegmentEntry) -> bool {
        let may_begin = self.requests.len() < self.requests_max && !self.busy.contains(&key.node);
        if !may_begin && !self.requests.contains_key(&key) {
            return false;
        }
        let request = self.requests.entry(key).or_insert_with(|| NewRequest::begin(member));
        request.add(index, segment.bytes, key.fetched)
    }

    /// The nodes that are asked, or will be.
    pub(super) fn nodes(&self) -> BTreeSet<NodeId> {
        self.requests.keys().map(|key| key.node).chain(self.busy.iter().copied()).collect()
    }

    pub(super) fn into_requests(self) -> impl Iterator<Item = NewRequest> {
        self.requests.into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::super::requests::tests::member;
    use super::*;

    #[tokio::test]
    async fn a_request_has_many_segments_where_they_are_small() {
        let member = member().await;
        let fill = |bytes, fetched| {
            let mut request = NewRequest::begin(&member);
            while request.add(0, bytes, fetched) {}
            request.segments.len()
        };
        let sizes = [1 << 30, SMALL_REQUEST_BYTES, SMALL_REQUEST_BYTES / 100, 1_000];
        let expected = [SEGMENTS_PER_REQUEST_MAX, SEGMENTS_PER_REQUEST_MAX, 100, SMALL_SEGMENTS_PER_REQUEST_MAX];
        assert_eq!(sizes.map(|bytes| fill(bytes, false)), expected);
        assert_eq!(fill(1_000, true), SEGMENTS_PER_REQUEST_MAX);
    }
}
