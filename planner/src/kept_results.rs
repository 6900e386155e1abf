//! What the reduction of a scan leaves of segments, kept on the coordinator for the next time.
//!
//! Segments never change, and what is left of some of them is merged with what is left of others by the operator above,
//! whoever sends it. So a scan that finds something for a part of its segments asks for the rest only, which is nothing
//! where the same query comes again, and the new segments after an append.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use aubade_proto::{Reduction, SegmentId};
use datafusion::common::utils::memory::get_record_batch_memory_size;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::Result;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::collect;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{FutureExt, StreamExt, future, stream};
use parking_lot::Mutex;

use crate::result_key::ResultKey;

/// Holds what was sent until it is known whether it is kept.
pub(crate) const CONSUMER: &str = "results to be kept";
/// Bytes of a result that is kept: of a larger one the operator above has more to do than what asking again takes.
const RESULT_BYTES_MAX: usize = 4 << 20;
/// The same before what was sent is merged: several nodes may have states of one group.
const SENT_BYTES_MAX: usize = 16 << 20;

/// What is left of some segments.
#[derive(Debug)]
pub struct KeptResult {
    /// Which these are.
    pub segments: BTreeSet<SegmentId>,
    /// The states of a partial aggregate, or the first rows of an order.
    pub batches: Vec<RecordBatch>,
}

impl KeptResult {
    /// The memory that it takes, bytes.
    pub fn bytes(&self) -> usize {
        let batches = self.batches.iter().map(get_record_batch_memory_size).fold(0, usize::saturating_add);
        batches.saturating_add(self.segments.len().saturating_mul(size_of::<SegmentId>()))
    }
}

/// Keeps results of fragments, as long as there is room.
pub trait ResultStore: Debug + Send + Sync {
    /// What is kept under a name.
    fn get(&self, key: &ResultKey) -> Option<Arc<KeptResult>>;

    /// Keeps a result instead of what was kept under its name.
    fn add(&self, key: ResultKey, result: KeptResult);

    /// Forgets what is kept under a name.
    fn remove(&self, key: &ResultKey);
}

/// One run of a scan, for all of its partitions.
#[derive(Debug)]
pub(crate) struct Keeping {
    store: Arc<dyn ResultStore>,
    key: ResultKey,
    /// All segments of the scan.
    segments: BTreeSet<SegmentId>,
    /// What there was when the run began, of some of them.
    kept: Option<Arc<KeptResult>>,
    /// Merges what was sent.
    reduction: Reduction,
    collected: Mutex<Collected>,
}

/// What was sent so far.
#[derive(Debug)]
struct Collected {
    /// Partitions that have not begun.
    waiting: BTreeSet<usize>,
    /// Partitions that have not ended.
    open: BTreeSet<usize>,
    /// `None` once it was too much.
    batches: Option<Vec<RecordBatch>>,
    reservation: MemoryReservation,
}

impl Keeping {
    /// For a scan of `segments` in so many partitions.
    pub(crate) fn new(
        store: Arc<dyn ResultStore>,
        key: ResultKey,
        segments: BTreeSet<SegmentId>,
        reduction: Reduction,
        partition_count: usize,
        memory: &Arc<dyn MemoryPool>,
    ) -> Self {
        // Of a segment that is not read any more, what is left cannot be told from that of the others.
        let kept = store.get(&key).filter(|kept| kept.segments.is_subset(&segments));
        let all: BTreeSet<usize> = (0..partition_count).collect();
        let collected = Collected {
            waiting: all.clone(),
            open: all,
            batches: Some(Vec::new()),
            reservation: MemoryConsumer::new(CONSUMER).register(memory),
        };
        Self { store, key, segments, kept, reduction, collected: Mutex::new(collected) }
    }

    /// Whether what is left of a segment is known.
    pub(crate) fn covers(&self, segment: &SegmentId) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.segments.contains(segment))
    }

    /// What there was when the run began, of some of the segments.
    pub(crate) fn kept(&self) -> Option<&Arc<KeptResult>> {
        self.kept.as_ref()
    }

    /// What is left of all segments, if that is known.
    pub(crate) fn whole(&self) -> Option<&Arc<KeptResult>> {
        self.kept.as_ref().filter(|kept| kept.segments.len() == self.segments.len())
    }

    /// What a partition yields that sends this of the segments that are not covered: what is kept comes with the first.
    /// Once all partitions have ended, what they have sent is kept as well.
    pub(crate) fn complete(
        self: &Arc<Self>,
        partition: usize,
        sent: SendableRecordBatchStream,
        context: Arc<TaskContext>,
    ) -> SendableRecordBatchStream {
        self.begin(partition);
        let (schema, of_batches, at_end) = (sent.schema(), Arc::clone(self), Arc::clone(self));
        let kept = if partition == 0 { self.kept_batches() } else { Vec::new() };
        let sent = sent.inspect(move |batch| match batch {
            Ok(batch) => of_batches.note(batch),
            // Whoever goes on after that may not take what comes for all.
            Err(_) => of_batches.collected.lock().give_up(),
        });
        let end = async move { at_end.end(partition, context).await };
        let end = stream::once(end.boxed()).filter_map(|()| future::ready(None));
        let all = stream::iter(kept.into_iter().map(Ok)).chain(sent).chain(end);
        Box::pin(RecordBatchStreamAdapter::new(schema, all))
    }

    fn kept_batches(&self) -> Vec<RecordBatch> {
        self.kept.as_ref().map(|kept| kept.batches.clone()).unwrap_or_default()
    }

    /// A partition that is read twice, as that of a shared scan which gives too much for it, would be kept twice.
    fn begin(&self, partition: usize) {
        let mut collected = self.collected.lock();
        if !collected.waiting.remove(&partition) {
            collected.give_up();
        }
    }

    fn note(&self, batch: &RecordBatch) {
        let bytes = get_record_batch_memory_size(batch);
        let mut collected = self.collected.lock();
        let is_too_much = collected.reservation.size().saturating_add(bytes) > SENT_BYTES_MAX;
        if is_too_much || collected.reservation.try_grow(bytes).is_err() {
            collected.give_up();
        }
        if let Some(batches) = &mut collected.batches {
            batches.push(batch.clone());
        }
    }

    /// A partition has ended, as it should.
    async fn end(&self, partition: usize, context: Arc<TaskContext>) {
        let sent = {
            let mut collected = self.collected.lock();
            let is_last = collected.open.remove(&partition) && collected.open.is_empty();
            if !is_last || self.whole().is_some() {
                return;
            }
            collected.batches.take()
        };
        let merged = match sent {
            Some(sent) => {
                let merged = self.merge([self.kept_batches(), sent].concat(), context).await;
                merged.inspect_err(|error| tracing::debug!(%error, "a result cannot be merged, and is not kept")).ok()
            }
            None => None,
        };
        let result = merged.map(|batches| KeptResult { segments: self.segments.clone(), batches });
        match result.filter(|result| result.bytes() <= RESULT_BYTES_MAX) {
            Some(result) => self.store.add(self.key, result),
            None => self.store.remove(&self.key),
        }
        self.collected.lock().give_up();
    }

    /// One state for each group, without the room that the batches which were sent may share with others.
    async fn merge(&self, mut sent: Vec<RecordBatch>, context: Arc<TaskContext>) -> Result<Vec<RecordBatch>> {
        sent.retain(|batch| batch.num_rows() > 0);
        let Some(schema) = sent.first().map(RecordBatch::schema) else { return Ok(Vec::new()) };
        let sent = MemorySourceConfig::try_new_exec(&[sent], schema, None)?;
        let merged = collect(self.reduction.merge_over(sent)?, context).await?;
        // They come as slices of one.
        Ok(vec![concat_batches(&self.reduction.schema(), &merged)?])
    }
}

impl Collected {
    fn give_up(&mut self) {
        self.batches = None;
        self.reservation.free();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::array::{ArrayRef, Int64Array};
    use datafusion::error::DataFusionError;
    use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
    use datafusion::physical_plan::empty::EmptyExec;
    use datafusion::physical_plan::expressions::col;
    use uuid::Uuid;

    use super::*;

    #[derive(Debug, Default)]
    struct Kept(Mutex<HashMap<ResultKey, Arc<KeptResult>>>);

    impl ResultStore for Kept {
        fn get(&self, key: &ResultKey) -> Option<Arc<KeptResult>> {
            self.0.lock().get(key).cloned()
        }

        fn add(&self, key: ResultKey, result: KeptResult) {
            self.0.lock().insert(key, Arc::new(result));
        }

        fn remove(&self, key: &ResultKey) {
            self.0.lock().remove(key);
        }
    }

    type Sent = Vec<Result<RecordBatch, DataFusionError>>;

    fn batch(values: impl IntoIterator<Item = i64>) -> RecordBatch {
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
        RecordBatch::try_from_iter([("n", values)]).unwrap()
    }

    fn segments(numbers: impl IntoIterator<Item = u128>) -> BTreeSet<SegmentId> {
        numbers.into_iter().map(|number| SegmentId(Uuid::from_u128(number))).collect()
    }

    /// `SELECT DISTINCT n`.
    fn distinct() -> Reduction {
        let schema = batch([]).schema();
        let group = PhysicalGroupBy::new_single(vec![(col("n", &schema).unwrap(), "n".to_owned())]);
        let input = Arc::new(EmptyExec::new(Arc::clone(&schema)));
        let plan = AggregateExec::try_new(AggregateMode::Partial, group, vec![], vec![], input, schema).unwrap();
        Reduction::aggregate(&plan).unwrap()
    }

    fn keeping_of(store: &Arc<Kept>, segments: BTreeSet<SegmentId>, partition_count: usize) -> Arc<Keeping> {
        let (store, context) = (Arc::clone(store) as Arc<dyn ResultStore>, TaskContext::default());
        let memory = context.memory_pool();
        Arc::new(Keeping::new(store, ResultKey::for_tests(), segments, distinct(), partition_count, memory))
    }

    fn sent(batches: Sent) -> SendableRecordBatchStream {
        Box::pin(RecordBatchStreamAdapter::new(batch([]).schema(), stream::iter(batches)))
    }

    /// Runs a scan of `segments` whose partitions send this; the values that come out, and how many segments were covered.
    async fn run(store: &Arc<Kept>, segments: BTreeSet<SegmentId>, partitions: Vec<Sent>) -> (Vec<i64>, usize) {
        let keeping = keeping_of(store, segments, partitions.len());
        let covered = keeping.kept().map_or(0, |kept| kept.segments.len());
        let mut values = Vec::new();
        for (partition, batches) in partitions.into_iter().enumerate() {
            let batches: Vec<_> = keeping.complete(partition, sent(batches), Arc::default()).collect().await;
            for batch in batches.into_iter().flatten() {
                values.extend(batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values());
            }
        }
        values.sort_unstable();
        (values, covered)
    }

    #[tokio::test]
    async fn what_all_partitions_sent_is_there_the_next_time() {
        let store = Arc::new(Kept::default());
        let first = run(&store, segments([1, 2]), vec![vec![Ok(batch([1, 2]))], vec![Ok(batch([3])), Ok(batch([4]))]]);
        assert_eq!(first.await, (vec![1, 2, 3, 4], 0));
        assert_eq!(run(&store, segments([1, 2]), vec![vec![], vec![]]).await, (vec![1, 2, 3, 4], 2));
        // A new segment adds to it, and is there with the others.
        assert_eq!(run(&store, segments([1, 2, 3]), vec![vec![Ok(batch([9]))]]).await, (vec![1, 2, 3, 4, 9], 2));
        assert_eq!(run(&store, segments([1, 2, 3]), vec![vec![]]).await, (vec![1, 2, 3, 4, 9], 3));
    }

    #[tokio::test]
    async fn segments_that_give_nothing_are_known_to() {
        let store = Arc::new(Kept::default());
        run(&store, segments([1]), vec![vec![]]).await;
        assert_eq!(run(&store, segments([1]), vec![vec![]]).await, (vec![], 1));
    }

    #[tokio::test]
    async fn a_run_that_fails_or_ends_early_keeps_nothing() {
        let store = Arc::new(Kept::default());
        let keeping = keeping_of(&store, segments([1, 2]), 2);
        keeping.complete(0, sent(vec![Ok(batch([1]))]), Arc::default()).collect::<Vec<_>>().await;
        let failed = sent(vec![Ok(batch([2])), Err(DataFusionError::Internal("lost".to_owned()))]);
        // Even where somebody reads on.
        assert_eq!(keeping.complete(1, failed, Arc::default()).collect::<Vec<_>>().await.len(), 2);
        let early = keeping_of(&store, segments([1, 2]), 2);
        early.complete(0, sent(vec![Ok(batch([1]))]), Arc::default()).collect::<Vec<_>>().await;
        assert!(early.complete(1, sent(vec![Ok(batch([2])), Ok(batch([3]))]), Arc::default()).next().await.is_some());
        assert!(store.get(&ResultKey::for_tests()).is_none());
    }

    #[tokio::test]
    async fn a_partition_that_is_read_twice_is_not_kept_twice() {
        let store = Arc::new(Kept::default());
        let keeping = keeping_of(&store, segments([1]), 1);
        let sent = || sent(vec![Ok(batch([1])), Ok(batch([2]))]);
        keeping.complete(0, sent(), Arc::default()).next().await;
        assert_eq!(keeping.complete(0, sent(), Arc::default()).collect::<Vec<_>>().await.len(), 2);
        assert!(store.get(&ResultKey::for_tests()).is_none());
    }

    #[tokio::test]
    async fn results_over_segments_that_are_gone_are_not_used() {
        let store = Arc::new(Kept::default());
        run(&store, segments([1, 2]), vec![vec![Ok(batch([1, 2]))]]).await;
        let keeping = keeping_of(&store, segments([2, 3]), 1);
        assert!(keeping.kept().is_none() && !keeping.covers(&SegmentId(Uuid::from_u128(2))));
    }

    #[tokio::test]
    async fn what_has_grown_too_large_is_forgotten() {
        let store = Arc::new(Kept::default());
        // The same groups are merged, and others are not.
        let half = (RESULT_BYTES_MAX / 16 + 1024) as i64;
        for segment in [1, 2] {
            run(&store, segments(1..=segment), vec![vec![Ok(batch(0..half))]]).await;
            assert_eq!(store.get(&ResultKey::for_tests()).map(|kept| kept.segments.len()), Some(segment as usize));
        }
        run(&store, segments([1, 2, 3]), vec![vec![Ok(batch(half..half * 2))]]).await;
        assert!(store.get(&ResultKey::for_tests()).is_none());
    }
}
