//! The requests of one partition that are under way: who is heard next, and who has been silent for too long.
//!
//! A request that is slow beside its peers is sent to another replica too (Dean and Barroso, "The Tail at Scale", 2013).
//! The two are rivals: whichever is heard first goes on, and the other is dropped, which stops its node. Until then
//! neither has handed on anything of what both were asked, so that nothing can be doubled.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use aubade_proto::{NodeId, Result, ScanEvent};
use futures::StreamExt;

use crate::cluster::{ActiveRequest, Member};
use crate::limits::{HEDGE_AFTER_FACTOR, HEDGE_AFTER_MIN};
use crate::storage_client::ScanStream;

/// Names a request among those of its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestNumber(u64);

/// A request that is under way.
pub(super) struct Request {
    number: RequestNumber,
    pub(super) member: Arc<Member>,
    /// Indices into the segments of the scan, in the order of the request.
    pub(super) segments: Vec<usize>,
    /// Merged rows, kept until the node says which segments they stand for.
    pub(super) merged: Vec<RecordBatch>,
    pub(super) merged_bytes: usize,
    events: ScanStream,
    /// The request for the same segments at another replica.
    rival: Option<RequestNumber>,
    /// It was sent because another one was slow.
    pub(super) is_hedge: bool,
    /// It has, or has had, a rival.
    was_hedged: bool,
    /// Segments that it has said it cannot read: it does not answer for them any more.
    given_up: Vec<usize>,
    /// When it was sent or last heard.
    heard: Duration,
    /// How long the partition has listened to it since, up to the last event of another one.
    listened: Duration,
    _active: ActiveRequest,
}

impl Request {
    /// How long the partition has listened and not heard it, when it has listened since `listening`.
    pub(super) fn silence(&self, listening: Duration, now: Duration) -> Duration {
        self.listened.saturating_add(now.saturating_sub(self.heard.max(listening)))
    }

    /// It was heard: the next wait begins.
    pub(super) fn heard(&mut self, now: Duration) {
        self.heard = now;
        self.listened = Duration::ZERO;
    }

    /// It has said that it cannot read a segment.
    pub(super) fn give_up(&mut self, segment: usize) {
        self.given_up.push(segment);
    }

    /// The segments that it answers for, the complete ones too.
    pub(super) fn outstanding(&self) -> impl Iterator<Item = usize> {
        self.segments.iter().copied().filter(|segment| !self.given_up.contains(segment))
    }

    /// Whether it answers for a segment.
    pub(super) fn answers_for(&self, segment: usize) -> bool {
        self.outstanding().any(|outstanding| outstanding == segment)
    }

    /// Whether it has been silent for longer than its peers usually are, or than one whose node does not answer may be.
    fn is_slow(&self, silence: Duration, usual_wait: Option<Duration>) -> bool {
        if self.rival.is_some() || silence < HEDGE_AFTER_MIN || self.member.is_buffer_pool() {
            return false;
        }
        let outlier = usual_wait.is_some_and(|usual| silence > usual.saturating_mul(HEDGE_AFTER_FACTOR));
        self.member.is_stalled() || (outlier && !self.was_hedged)
    }
}

/// See the module's doc.
#[derive(Default)]
pub(super) struct Requests {
    open: Vec<Request>,
    /// Where to listen first, so that a busy request does not keep the others from being heard.
    turn: usize,
    sent: u64,
}

impl Requests {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// The nodes that are asked.
    pub(super) fn nodes(&self) -> BTreeSet<NodeId> {
        self.open.iter().map(|request| request.member.entry.id).collect()
    }

    pub(super) fn clear(&mut self) {
        self.open.clear();
    }

    /// Adds a request that was just sent for `segments`; a hedge has `rival`.
    pub(super) fn add(
        &mut self,
        member: &Arc<Member>,
        segments: Vec<usize>,
        events: ScanStream,
        rival: Option<RequestNumber>,
        now: Duration,
    ) {
        self.sent += 1;
        let number = RequestNumber(self.sent);
        if let Some(slow) = rival.and_then(|rival| self.open.iter_mut().find(|request| request.number == rival)) {
            slow.rival = Some(number);
            slow.was_hedged = true;
        }
        self.open.push(Request {
            number,
            member: Arc::clone(member),
            segments,
            merged: Vec::new(),
            merged_bytes: 0,
            events,
            rival,
            is_hedge: rival.is_some(),
            was_hedged: rival.is_some(),
            given_up: Vec::new(),
            heard: now,
            listened: Duration::ZERO,
            _active: member.begin_request(),
        });
    }

    /// Goes on listening to a request that was heard.
    pub(super) fn put_back(&mut self, request: Request) {
        self.open.push(request);
    }

    /// The next event of any request, and the request; `None` when there is none.
    pub(super) async fn next(&mut self) -> Option<(Request, Option<Result<ScanEvent>>)> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Request, Option<Result<ScanEvent>>)>> {
        if self.open.is_empty() {
            return Poll::Ready(None);
        }
        self.turn = self.turn.wrapping_add(1);
        let (before, after) = (0..self.open.len(), self.turn % self.open.len());
        for index in before.clone().skip(after).chain(before.take(after)) {
            let Some(request) = self.open.get_mut(index) else { continue };
            if let Poll::Ready(event) = request.events.poll_next_unpin(cx) {
                return Poll::Ready(Some((self.open.swap_remove(index), event)));
            }
        }
        Poll::Pending
    }

    /// Ends the rivalry of a request that was heard: gives its rival, so that what only the rival covers can be asked
    /// again.
    pub(super) fn take_rival(&mut self, heard: &mut Request) -> Option<Request> {
        let number = heard.rival.take()?;
        let index = self.open.iter().position(|request| request.number == number)?;
        Some(self.open.swap_remove(index))
    }

    /// The rival of a request.
    pub(super) fn rival_of(&self, request: &Request) -> Option<&Request> {
        let number = request.rival?;
        self.open.iter().find(|request| request.number == number)
    }

    /// The rival of a request that ended goes on alone; gives the segments that it answers for.
    pub(super) fn leave_to_rival(&mut self, ended: &mut Request) -> Vec<usize> {
        let number = ended.rival.take();
        match self.open.iter_mut().find(|request| Some(request.number) == number) {
            Some(rival) => {
                rival.rival = None;
                rival.outstanding().collect()
            }
            None => Vec::new(),
        }
    }

    /// Adds what was listened between two times to the silence of all.
    pub(super) fn listened(&mut self, listening: Duration, now: Duration) {
        for request in &mut self.open {
            request.listened = request.silence(listening, now);
        }
    }

    /// When to look for slow requests next; `None`: there is nothing to look for.
    pub(super) fn next_look(&self, listening: Duration) -> Option<Duration> {
        let alone = self.open.iter().filter(|request| request.rival.is_none());
        alone
            .map(|request| {
                let left = HEDGE_AFTER_MIN.saturating_sub(request.listened);
                request.heard.max(listening).saturating_add(left)
            })
            .min()
    }

    /// The requests that should be sent to other replicas too, the most silent first. Past the budget these are only
    /// those whose node does not say how it does.
    pub(super) fn slow(
        &self,
        listening: Duration,
        now: Duration,
        usual_wait: Option<Duration>,
        in_budget: bool,
    ) -> Vec<(RequestNumber, &Request)> {
        let silence = |request: &Request| request.silence(listening, now);
        let slow = self.open.iter().filter(|request| request.is_slow(silence(request), usual_wait));
        let mut slow: Vec<_> = slow.filter(|request| in_budget || request.member.is_stalled()).collect();
        slow.sort_by_key(|request| std::cmp::Reverse(silence(request)));
        slow.into_iter().map(|request| (request.number, request)).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use aubade_catalog::NodeEntry;
    use aubade_environment::{Environment, MemoryFiles};
    use aubade_proto::ClusterId;
    use aubade_storage_node::{StorageNode, StorageNodeOptions};
    use futures::stream;

    use super::*;
    use crate::storage_client::{LoopbackClients, StorageClients};

    pub(in crate::fanout) async fn member() -> Arc<Member> {
        let environment = Environment::system().with_files(Arc::new(MemoryFiles::default()));
        let cluster = ClusterId(environment.new_uuid());
        let node = StorageNode::open(environment, cluster, StorageNodeOptions::new("/node", "az1")).await.unwrap();
        let entry = NodeEntry { id: node.id(), zone: "az1".to_owned(), address: "in-process".to_owned() };
        let client = LoopbackClients(BTreeMap::from([(node.id(), node)])).client(&entry).unwrap();
        Arc::new(Member::new(entry, client))
    }

    fn silent() -> ScanStream {
        stream::pending().boxed()
    }

    const ZERO: Duration = Duration::ZERO;

    fn number_of(slow: Vec<(RequestNumber, &Request)>) -> Option<RequestNumber> {
        slow.first().map(|(number, _)| *number)
    }

    #[tokio::test]
    async fn a_request_is_slow_beside_its_peers_and_only_once() {
        let member = member().await;
        let mut requests = Requests::default();
        requests.add(&member, vec![0, 1], silent(), None, ZERO);
        let usual = Some(HEDGE_AFTER_MIN);
        let slow_at = |requests: &Requests, now| number_of(requests.slow(ZERO, now, usual, true));
        assert_eq!(slow_at(&requests, HEDGE_AFTER_MIN * HEDGE_AFTER_FACTOR), None);
        let late = HEDGE_AFTER_MIN * HEDGE_AFTER_FACTOR + Duration::from_millis(1);
        let number = slow_at(&requests, late).unwrap();
        // With nothing to compare it with it is not slow, and neither is it if nobody listened.
        assert!(requests.slow(ZERO, late, None, true).is_empty());
        assert!(requests.slow(late, late, usual, true).is_empty());
        assert!(requests.slow(ZERO, late, usual, false).is_empty());
        requests.add(&member, vec![1], silent(), Some(number), late);
        assert_eq!(slow_at(&requests, late * 10), None);
    }

    #[tokio::test]
    async fn of_two_rivals_the_one_that_is_heard_goes_on() {
        let member = member().await;
        let mut requests = Requests::default();
        requests.add(&member, vec![0, 1], silent(), None, ZERO);
        let late = HEDGE_AFTER_MIN * 10;
        let number = number_of(requests.slow(ZERO, late, Some(HEDGE_AFTER_MIN), true)).unwrap();
        requests.add(&member, vec![1], stream::empty().boxed(), Some(number), late);
        let (mut hedge, event) = requests.next().await.unwrap();
        assert!(hedge.is_hedge && event.is_none());
        let lost = requests.take_rival(&mut hedge).unwrap();
        assert_eq!((lost.number, &lost.segments, requests.len()), (number, &vec![0, 1], 0));
        assert!(requests.take_rival(&mut hedge).is_none());
    }

    #[tokio::test]
    async fn the_rival_of_one_that_fails_goes_on_alone() {
        let member = member().await;
        let mut requests = Requests::default();
        requests.add(&member, vec![0, 1], stream::empty().boxed(), None, ZERO);
        let late = HEDGE_AFTER_MIN * 10;
        let number = number_of(requests.slow(ZERO, late, Some(HEDGE_AFTER_MIN), true)).unwrap();
        requests.add(&member, vec![1], silent(), Some(number), late);
        let (mut failed, _) = requests.next().await.unwrap();
        assert_eq!(requests.leave_to_rival(&mut failed), [1]);
        assert_eq!(requests.leave_to_rival(&mut failed), [0_usize; 0]);
        assert_eq!(requests.next_look(late), Some(late + HEDGE_AFTER_MIN));
    }

    #[tokio::test]
    async fn what_a_request_gave_up_is_not_its_own_any_more() {
        let member = member().await;
        let mut requests = Requests::default();
        requests.add(&member, vec![0, 1], stream::empty().boxed(), None, ZERO);
        let (mut request, _) = requests.next().await.unwrap();
        request.give_up(0);
        assert_eq!(request.outstanding().collect::<Vec<_>>(), [1]);
        assert!(request.answers_for(1) && !request.answers_for(0));
    }

    #[tokio::test]
    async fn silence_adds_up_while_others_are_heard() {
        let member = member().await;
        let mut requests = Requests::default();
        requests.add(&member, vec![0], silent(), None, ZERO);
        // Listened to from 0 to 60 and from 100 to 160 ms.
        let at = Duration::from_millis;
        requests.listened(ZERO, at(60));
        assert_eq!(requests.next_look(at(100)), Some(at(140)));
        assert_eq!(requests.open[0].silence(at(100), at(160)), at(120));
    }
}
