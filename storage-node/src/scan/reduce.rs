//! The reduction of one segment: its projected rows go through one of DataFusion's operators, or first, for as long as
//! that does, through a [`Grouping`], and what comes out is kept as long as it may be merged with that of other segments.
//!
//! ```text
//! projected rows -> reducer -> held --(complete and small)--> merged with other segments
//!                                \--(more than that)-------> sent as it comes
//! ```
//! Rows that an aggregate takes in an order are sorted before, in [`SortedRuns`], each of which has states of its own.
//!
//! What comes out, and in which order, depends on nothing but the segment, the fragment and the rows
//! per batch, so that a retry at another node goes on where the first one ended.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, GenericByteViewArray, RecordBatch, RecordBatchOptions};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{ByteViewType, DataType};
use aubade_proto::{Reduction, ReductionKind, Result};
use datafusion::physical_expr::PhysicalExpr;

use super::faster::faster;
use super::grouping::{Grouping, GroupingPlan};
use super::operator::{InputProperties, Operator, OperatorSettings, Polled};
use super::output::{Progress, RowLimit};
use super::packed::plain_batch;
use super::sorted::{Next, SortedRuns};
use crate::limits::{
    HAVING_BYTES_MAX, MERGE_BYTES_MAX, MERGE_ROWS_MAX, REDUCTION_BYTES_MAX, SHARED_BOUND_ROWS_MAX, SORTED_BYTES_MAX,
};

/// How a request reduces its rows.
pub(crate) struct Reductions {
    pub(crate) reduction: Reduction,
    pub(crate) settings: OperatorSettings,
    grouping: Option<GroupingPlan>,
    input: InputProperties,
    batch_rows: usize,
}

impl Reductions {
    pub(crate) fn new(reduction: Reduction, batch_rows: usize) -> Result<Self> {
        let settings = OperatorSettings::new(batch_rows, reduction.having().is_some())?;
        let reduction = reduction.with_arguments(|argument, schema| Ok(faster(argument, schema)?))?;
        let grouping = GroupingPlan::of(&reduction);
        let input = match reduction.order() {
            Some(order) => InputProperties::ordered(reduction.input_schema(), order.clone()),
            None => InputProperties::below(reduction.plan())
                .unwrap_or_else(|| InputProperties::new(reduction.input_schema())),
        };
        Ok(Self { reduction, settings, grouping, input, batch_rows: batch_rows.max(1) })
    }

    /// Which columns of the input may be packed; none beyond the end.
    fn takes_packed(&self) -> &[bool] {
        self.grouping.as_ref().map_or(&[], GroupingPlan::takes_packed)
    }

    fn operator(&self) -> Result<Operator> {
        Operator::new(&self.settings, &self.input, |input| self.reduction.over_ordered(input))
    }

    /// Bytes that the reduction of one segment holds at most before it begins again.
    pub(crate) fn bytes_max(&self) -> usize {
        if self.reduction.having().is_some() { HAVING_BYTES_MAX } else { REDUCTION_BYTES_MAX }
    }

    /// The groups of `states`, each of them whole, that have to be sent.
    fn wanted(&self, states: RecordBatch) -> Result<RecordBatch> {
        let Some(having) = self.reduction.having() else { return Ok(states) };
        let wanted = having.evaluate(&states).and_then(|wanted| wanted.into_array(states.num_rows()));
        match wanted.as_ref().map(|wanted| wanted.as_boolean_opt()) {
            Ok(Some(wanted)) => Ok(filter_record_batch(&states, wanted)?),
            // Whoever wants the results asks about them again, and fails if that is an error of the query: the result of
            // a group need not be one where a state of it is.
            Ok(None) | Err(_) => Ok(states),
        }
    }

    /// Whether segments may leave out rows that cannot be among the first of those of the others.
    pub(crate) fn shares_bound(&self) -> bool {
        let fetch = self.reduction.plan().fetch();
        self.reduction.kind() == ReductionKind::TopK && fetch.is_some_and(|rows| rows <= SHARED_BOUND_ROWS_MAX)
    }

    /// The operator that merges reduced rows.
    pub(crate) fn merge_operator(&self) -> Result<Operator> {
        let reduced = InputProperties::new(self.reduction.schema());
        Operator::new(&self.settings, &reduced, |input| self.reduction.merge_over(input))
    }
}

/// The batch without the pages that its strings were read from, if these are most of it, and the
/// bytes of its rows.
pub(super) fn compact(batch: RecordBatch) -> Result<(RecordBatch, usize)> {
    let mut bytes = 0_usize;
    let (schema, columns, rows) = batch.into_parts();
    let columns = columns.into_iter().map(|column| {
        let (column, column_bytes) = match column.data_type() {
            DataType::Utf8View => compact_views(column.as_string_view()),
            DataType::BinaryView => compact_views(column.as_binary_view()),
            _ => {
                let bytes = column.to_data().get_slice_memory_size();
                let bytes = bytes.unwrap_or_else(|_| column.get_buffer_memory_size());
                (column, bytes)
            }
        };
        bytes = bytes.saturating_add(column_bytes);
        column
    });
    let columns = columns.collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok((RecordBatch::try_new_with_options(schema, columns, &options)?, bytes))
}

fn compact_views<T: ByteViewType>(views: &GenericByteViewArray<T>) -> (ArrayRef, usize) {
    let used = views.total_buffer_bytes_used();
    let held: usize = views.data_buffers().iter().map(|buffer| buffer.len()).sum();
    let bytes = used.saturating_add(views.len().saturating_mul(16));
    let column: ArrayRef = if held > used.saturating_mul(2) { Arc::new(views.gc()) } else { Arc::new(views.clone()) };
    (column, bytes)
}

/// Runs the operator. One that holds too much hands on what it has, and another one goes on: states
/// of one group may come several times, and so may more rows than an order keeps.
struct Reducer {
    reductions: Arc<Reductions>,
    /// Takes the rows before there is an operator, for as long as it can.
    grouping: Option<Grouping>,
    operator: Option<Operator>,
    /// Puts the rows in order before they go to the operator, where it needs one.
    sorted: Option<SortedRuns>,
    /// What the operator held before it had rows: the build sides of joins, which other processes count otherwise.
    base_bytes: usize,
    /// What the operator had to say before it had rows, and what was grouped without it.
    early: VecDeque<RecordBatch>,
    bytes_max: usize,
    closed: bool,
    /// Whether the operator wants no rows: nothing joins with an empty build side.
    wants_nothing: bool,
    /// Whether what comes out stands for all rows of its groups.
    whole: bool,
}

impl Reducer {
    fn new(reductions: Arc<Reductions>, bytes_max: usize) -> Result<Self> {
        let sorted = reductions
            .reduction
            .order()
            .map(|order| SortedRuns::new(order.clone(), bytes_max.min(SORTED_BYTES_MAX), reductions.batch_rows));
        let mut reducer = Self {
            grouping: reductions.grouping.as_ref().map(GroupingPlan::begin).transpose()?,
            operator: None,
            sorted,
            base_bytes: 0,
            early: VecDeque::new(),
            bytes_max,
            closed: false,
            wants_nothing: false,
            whole: true,
            reductions,
        };
        // Made before there are rows: some aggregates say something of none as well, if not by groups.
        if reducer.grouping.is_none() {
            reducer.begin()?;
        }
        Ok(reducer)
    }

    /// Makes an operator that has no rows yet.
    fn begin(&mut self) -> Result<()> {
        let mut operator = self.reductions.operator()?;
        loop {
            match operator.poll()? {
                Polled::Batch(batch) => self.early.push_back(batch),
                Polled::Hungry => break,
                Polled::Ended => {
                    self.wants_nothing = true;
                    return Ok(());
                }
            }
        }
        self.base_bytes = operator.memory_bytes();
        self.operator = Some(operator);
        Ok(())
    }

    /// Adds rows; only after [`Reducer::next`] has yielded nothing.
    fn push(&mut self, batch: RecordBatch) -> Result<()> {
        if let Some(grouping) = &mut self.grouping {
            if grouping.push(&batch)? {
                return Ok(());
            }
            self.whole = false;
            self.end_grouping()?;
        }
        if let Some(sorted) = &mut self.sorted {
            let is_part = sorted.push(plain_batch(batch, &self.reductions.reduction.input_schema())?)?;
            self.whole &= !is_part;
            return Ok(());
        }
        if self.operator.is_none() && !self.wants_nothing {
            self.begin()?;
        }
        let Some(operator) = &self.operator else { return Ok(()) };
        operator.push(plain_batch(batch, &self.reductions.reduction.input_schema())?)
    }

    /// Hands on what was grouped without the operator, to which rows from now on are left.
    fn end_grouping(&mut self) -> Result<()> {
        let Some(states) = self.grouping.take().map(Grouping::finish).transpose()?.flatten() else { return Ok(()) };
        let batch_rows = self.reductions.batch_rows;
        for first in (0..states.num_rows()).step_by(batch_rows) {
            let batch = states.slice(first, batch_rows.min(states.num_rows() - first));
            let batch = if self.whole { self.reductions.wanted(batch)? } else { batch };
            if batch.num_rows() > 0 {
                self.early.push_back(batch);
            }
        }
        Ok(())
    }

    /// Says that there are no more rows.
    fn close(&mut self) {
        self.closed = true;
        // The last run of sorted rows is still to come.
        if let Some(operator) = self.operator.as_ref().filter(|_| self.sorted.is_none()) {
            operator.close();
        }
    }

    /// Gives a hungry operator sorted rows, or says that the run has ended; false where there is nothing to do.
    fn feed(&mut self) -> Result<bool> {
        let Some(sorted) = &mut self.sorted else { return Ok(false) };
        if self.closed && !sorted.is_ready() {
            sorted.sort()?;
        }
        if self.operator.is_none() && sorted.is_ready() {
            self.begin()?;
        }
        let (Some(sorted), Some(operator)) = (&mut self.sorted, &self.operator) else { return Ok(false) };
        match sorted.next() {
            Next::Rows(rows) => operator.push(rows)?,
            Next::End => operator.close(),
            Next::Hungry if self.closed => operator.close(),
            Next::Hungry => return Ok(false),
        }
        Ok(true)
    }

    /// Reduced rows, as far as the input allows.
    fn next(&mut self) -> Result<Option<RecordBatch>> {
        let is_full = self.grouping.as_ref().is_some_and(|grouping| grouping.memory_bytes() > self.bytes_max);
        if is_full || self.closed {
            self.whole &= !is_full;
            self.end_grouping()?;
        }
        if let Some(batch) = self.early.pop_front() {
            return Ok(Some(batch));
        }
        loop {
            let Some(operator) = &mut self.operator else {
                // Sorted rows that are left get an operator of their own.
                if self.feed()? {
                    continue;
                }
                return Ok(self.early.pop_front());
            };
            match operator.poll()? {
                Polled::Batch(batch) => {
                    let batch = if self.whole { self.reductions.wanted(batch)? } else { batch };
                    if batch.num_rows() > 0 {
                        return Ok(Some(batch));
                    }
                }
                Polled::Ended => self.operator = None,
                Polled::Hungry if operator.memory_bytes().saturating_sub(self.base_bytes) <= self.bytes_max => {
                    if !self.feed()? {
                        return Ok(None);
                    }
                }
                Polled::Hungry => {
                    operator.close();
                    self.whole = false;
                }
            }
        }
    }

    fn is_done(&self) -> bool {
        let has_rows = self.sorted.as_ref().is_some_and(SortedRuns::has_rows);
        self.closed && self.grouping.is_none() && self.operator.is_none() && self.early.is_empty() && !has_rows
    }
}

/// See the module's doc.
pub(crate) struct ReducedOutput {
    reducer: Reducer,
    held: VecDeque<RecordBatch>,
    held_rows: usize,
    held_bytes: usize,
    /// Whether nothing was sent, and what is held is small.
    mergeable: bool,
    /// Whether nothing may be sent for this segment alone.
    must_merge: bool,
}

impl ReducedOutput {
    /// For a segment of which the caller has `skip_rows` rows already.
    pub(crate) fn new(reductions: &Arc<Reductions>, skip_rows: u64) -> Result<Self> {
        Self::with_bytes_max(reductions, skip_rows, reductions.bytes_max())
    }

    fn with_bytes_max(reductions: &Arc<Reductions>, skip_rows: u64, bytes_max: usize) -> Result<Self> {
        let reducer = Reducer::new(Arc::clone(reductions), bytes_max)?;
        let mergeable = skip_rows == 0;
        Ok(Self { reducer, held: VecDeque::new(), held_rows: 0, held_bytes: 0, mergeable, must_merge: false })
    }

    /// Which of the projected columns may be packed; none beyond the end.
    pub(crate) fn takes_packed(&self) -> &[bool] {
        self.reducer.reductions.takes_packed()
    }

    /// Adds projected rows; only after [`ReducedOutput::pop`] has yielded nothing.
    pub(crate) fn push(&mut self, batch: RecordBatch) -> Result<()> {
        self.reducer.push(batch)
    }

    /// Says that there are no more rows.
    pub(crate) fn close(&mut self) {
        self.reducer.close();
    }

    /// Forbids that anything is sent for this segment alone; false if it is too late for that.
    pub(crate) fn must_merge(&mut self) -> bool {
        self.must_merge = self.mergeable;
        self.must_merge
    }

    /// Whether it can neither be merged nor sent.
    pub(crate) fn is_spoiled(&self) -> bool {
        self.must_merge && !self.mergeable
    }

    /// The next batch to send.
    pub(crate) fn pop(&mut self, progress: &mut Progress, limit: &RowLimit) -> Result<Option<RecordBatch>> {
        loop {
            if self.is_spoiled() {
                return Ok(None);
            }
            while !self.mergeable
                && let Some(batch) = self.held.pop_front()
            {
                let batch = progress.cut(&batch, limit);
                if batch.num_rows() > 0 {
                    return Ok(Some(batch));
                }
            }
            let Some(batch) = self.reducer.next()? else { return Ok(None) };
            let (batch, bytes) = compact(batch)?;
            self.held_rows = self.held_rows.saturating_add(batch.num_rows());
            self.held_bytes = self.held_bytes.saturating_add(bytes);
            self.held.push_back(batch);
            self.mergeable &= self.held_rows <= MERGE_ROWS_MAX && self.held_bytes <= MERGE_BYTES_MAX;
        }
    }

    /// All reduced rows, if nothing of them was sent.
    pub(crate) fn take_mergeable(&mut self) -> Option<Vec<RecordBatch>> {
        (self.mergeable && self.reducer.is_done()).then(|| std::mem::take(&mut self.held).into())
    }

    /// For the first rows of an order: what a row has to pass to be among them, as far as is known;
    /// over the projected columns. Known from rows of this segment alone.
    pub(crate) fn bound(&self) -> Option<Arc<dyn PhysicalExpr>> {
        self.reducer.operator.as_ref()?.bound()
    }
}

#[cfg(test)]
mod tests {
    use arrow::compute::concat_batches;
    use arrow::datatypes::Int64Type;
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::{binary, col, lit};

    use super::*;
    use crate::testing::{Query, plain_result, rows};

    /// What a reduction of `batch`, a hundred rows at a time, sends to a caller that has `skip_rows`
    /// rows; `bytes_max` of nothing begins again after each time.
    fn send(query: &Query, batch: &RecordBatch, skip_rows: u64, bytes_max: usize) -> RecordBatch {
        let reduction = query.fragment.reduction().unwrap();
        let reductions = Arc::new(Reductions::new(reduction.clone(), 64).unwrap());
        let mut output = ReducedOutput::with_bytes_max(&reductions, skip_rows, bytes_max).unwrap();
        output.mergeable = false;
        let (mut progress, limit) = (Progress::new(skip_rows), RowLimit::new(None));
        let mut sent = Vec::new();
        let columns: Vec<usize> = reduction
            .input_schema()
            .fields()
            .iter()
            .map(|field| batch.schema().index_of(field.name()).unwrap())
            .collect();
        let projected = batch.project(&columns).unwrap();
        for offset in (0..batch.num_rows()).step_by(100) {
            output.push(projected.slice(offset, 100.min(batch.num_rows() - offset))).unwrap();
            while let Some(batch) = output.pop(&mut progress, &limit).unwrap() {
                sent.push(batch);
            }
        }
        output.close();
        while let Some(batch) = output.pop(&mut progress, &limit).unwrap() {
            sent.push(batch);
        }
        concat_batches(&reduction.schema(), &sent).unwrap()
    }

    #[tokio::test]
    async fn groups_are_left_out_as_long_as_they_are_whole() {
        // Integers that do not ascend and that do, and texts.
        for key in ["key", "id / 3", "kind"] {
            check_whole_groups(key).await;
        }
    }

    async fn check_whole_groups(key: &str) {
        let batch = rows(0, 950);
        let groups = |sent: &RecordBatch| sent.num_rows();
        let query = Query::new(&format!("SELECT {key}, count(*) AS n FROM t GROUP BY {key}"), None).await;
        let all = send(&query, &batch, 0, usize::MAX);
        let having = |predicate: Arc<dyn PhysicalExpr>| {
            let reduction = query.fragment.reduction().unwrap().with_having(predicate).unwrap();
            let fragment = Arc::new(query.fragment.with_reduction(reduction).unwrap());
            Query { plan: Arc::clone(&query.plan), fragment }
        };
        let schema = all.schema();
        let count = col(schema.field(1).name(), &schema).unwrap();
        let counts = all.column(1).as_primitive::<Int64Type>();
        let most = counts.values().iter().copied().max().unwrap();
        let with_most = counts.values().iter().filter(|count| **count == most).count();
        assert!(with_most < groups(&all), "a predicate on the counts tells groups apart");
        let frequent = having(binary(Arc::clone(&count), Operator::GtEq, lit(most), &schema).unwrap());
        assert_eq!(groups(&send(&frequent, &batch, 0, usize::MAX)), with_most);
        // Of a hundred rows at a time no group is known to be whole.
        let restarted = send(&frequent, &batch, 0, 0);
        assert_eq!(restarted, send(&query, &batch, 0, 0));
        let none = having(binary(Arc::clone(&count), Operator::Gt, lit(most), &schema).unwrap());
        assert_eq!(groups(&send(&none, &batch, 0, usize::MAX)), 0);
        // What cannot be told of a state is not held against it.
        let quotient = binary(lit(1_i64), Operator::Divide, lit(0_i64), &schema).unwrap();
        let failing = having(binary(quotient, Operator::Gt, count, &schema).unwrap());
        assert_eq!(send(&failing, &batch, 0, usize::MAX), all);
    }

    #[tokio::test]
    async fn groups_beyond_the_few_are_left_to_the_operator() {
        let sql = "SELECT kind, id % 700, count(*), sum(price) FROM t GROUP BY kind, id % 700";
        let (query, batch) = (Query::new(sql, None).await, rows(0, 4_200));
        let all = send(&query, &batch, 0, usize::MAX);
        // Those of ten batches that were grouped as few come once more.
        assert_eq!(all.num_rows(), 1_000 + 2_100);
        for skip in [999, 1_000, 1_001] {
            assert_eq!(
                send(&query, &batch, skip, usize::MAX),
                all.slice(skip as usize, all.num_rows() - skip as usize)
            );
        }
        assert_eq!(query.finish(vec![all]).await, plain_result(sql, &batch).await);
    }

    #[tokio::test]
    async fn one_that_begins_again_sends_states_that_make_the_same_result() {
        let batch = rows(0, 950);
        for (sql, row_count) in [
            ("SELECT kind, count(*), sum(price), count(DISTINCT key) FROM t GROUP BY kind", None),
            ("SELECT count(DISTINCT key), array_sort(array_agg(kind)), min(comment) FROM t", Some(10)),
            ("SELECT kind, sum(price) FROM t GROUP BY kind", Some(30)),
            ("SELECT kind, sum(price) FROM t GROUP BY ROLLUP (kind)", Some(40)),
            ("SELECT id / 7, count(*) FROM t GROUP BY id / 7", None),
            ("SELECT id, comment FROM t ORDER BY id DESC LIMIT 7", Some(70)),
            // A run of a hundred sorted rows is two batches.
            ("SELECT nth_value(id, 2 ORDER BY price, id), count(*) FROM t", Some(19)),
            ("SELECT nth_value(comment, -2 ORDER BY id), string_agg(kind, '' ORDER BY id) FROM t GROUP BY kind", None),
        ] {
            let query = Query::new(sql, None).await;
            let all = send(&query, &batch, 0, 0);
            assert!(row_count.is_none_or(|count| count == all.num_rows()), "{sql}: {}", all.num_rows());
            for skip in 1..=all.num_rows() {
                let rest = all.slice(skip, all.num_rows() - skip);
                assert_eq!(send(&query, &batch, skip as u64, 0), rest, "{sql} from row {skip} on");
            }
            assert_eq!(query.finish(vec![all]).await, plain_result(sql, &batch).await, "{sql}");
        }
    }
}
