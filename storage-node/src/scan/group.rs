//! One row group: the stages of the filter, and then the other columns for the rows that passed.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, BooleanBufferBuilder, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::concat;
use aubade_proto::{Error, Result, ScanStatistics};
use parquet::arrow::arrow_reader::RowSelection;

use super::files::{ColumnReader, SegmentFiles};
use super::packed::batch_of;
use super::plan::FragmentPlan;
use super::prune::GroupAccess;
use super::selection::{filtered, mask_of, narrowed};
use super::stages::FilterStage;
use super::step::{StepError, StepResult, fragment, segment};

/// Share of rows that pass the filter above which the next row group is decoded in one pass: then
/// late materialisation saves little, and keeping columns apart costs copies.
const DENSE: f64 = 0.6;
/// Share of rows that pass a stage of best effort above which it is given up.
const USELESS: f64 = 0.95;
/// Rows after which that is decided.
const USELESS_ROWS: u64 = 8_192;
/// Pieces of a row group that such a stage is not asked about after one of which it has let that many rows pass: then it
/// is asked again, since rows that pass often lie together.
const USELESS_PIECES: usize = 3;

/// What the row groups read so far say about the next one. It starts anew with every segment, so
/// that the same rows come out at every node.
#[derive(Debug)]
pub(super) struct Course {
    /// Whether most rows passed the filter.
    dense: bool,
    /// Whether most rows passed the bound.
    bound_dense: bool,
    stages: Vec<StageCourse>,
}

#[derive(Clone, Debug, Default)]
struct StageCourse {
    asked: u64,
    passed: u64,
}

impl Course {
    pub(super) fn new(plan: &FragmentPlan) -> Self {
        Self { dense: false, bound_dense: false, stages: vec![StageCourse::default(); plan.stages.len()] }
    }

    fn count(&mut self, stage: usize, asked: usize, passed: usize) {
        if let Some(stage) = self.stages.get_mut(stage) {
            stage.asked += asked as u64;
            stage.passed += passed as u64;
        }
    }

    fn is_given_up(&self, stage: usize) -> bool {
        let useless = |stage: &StageCourse| stage.asked >= USELESS_ROWS && is_useless(stage.asked, stage.passed);
        self.stages.get(stage).is_some_and(useless)
    }

    /// The stages that are still worth it.
    fn live<'a>(&self, plan: &'a FragmentPlan) -> Vec<(usize, &'a FilterStage)> {
        let stages = plan.stages.iter().enumerate();
        stages.filter(|(index, stage)| !(stage.best_effort && self.is_given_up(*index))).collect()
    }
}

fn is_useless(asked: u64, passed: u64) -> bool {
    passed as f64 > USELESS * asked as f64
}

fn is_dense(asked: usize, passed: usize) -> bool {
    passed as f64 > DENSE * asked as f64
}

/// Columns decoded by the stages of the filter, for the rows that passed so far.
#[derive(Default)]
struct Kept {
    rows: usize,
    columns: Vec<(usize, ArrayRef)>,
}

impl Kept {
    fn has(&self, column: usize) -> bool {
        self.columns.iter().any(|(index, _)| *index == column)
    }
}

/// A row group whose stages are being run.
struct StagedGroup<'a> {
    files: &'a SegmentFiles,
    group: usize,
    selection: Option<RowSelection>,
    kept: Kept,
}

/// A row group in its last pass.
pub(super) struct GroupReading {
    /// `None` where the stages of the filter have left no column to read.
    reader: Option<ColumnReader>,
    /// Scan columns that `reader` yields, ascending.
    columns: Vec<usize>,
    kept: Kept,
    /// Rows of `kept` that were handed on.
    offset: usize,
    /// Stages that are still to be asked, by their index.
    stages: Vec<usize>,
    /// Whether the rows are counted as rows that the filter saw.
    counted: bool,
    /// Rows that `stages` were asked about, and that passed them.
    asked: usize,
    passed: usize,
}

impl SegmentFiles {
    /// Starts a row group; `None` when no row of it passes. Rows have to pass `bound` as well, unless
    /// it left out too few in the last one.
    pub(super) fn open_group(
        &self,
        (group, selection): GroupAccess,
        course: &mut Course,
        bound: Option<&FilterStage>,
        statistics: &mut ScanStatistics,
    ) -> StepResult<Option<GroupReading>> {
        let live = course.live(&self.plan);
        let (now, rest) = if self.plan.staged && !course.dense { (live, Vec::new()) } else { (Vec::new(), live) };
        let bound = bound.filter(|_| !std::mem::take(&mut course.bound_dense));
        let mut staged = StagedGroup { files: self, group, selection, kept: Kept::default() };
        let mut counted = false;
        let mut asked_first = 0;
        let stages =
            bound.iter().map(|bound| (None, *bound)).chain(now.iter().map(|(index, stage)| (Some(*index), *stage)));
        let stages: Vec<_> = stages.collect();
        for (position, (index, stage)) in stages.iter().enumerate() {
            let later =
                stages.iter().skip(position + 1).map(|(_, stage)| *stage).chain(rest.iter().map(|(_, stage)| *stage));
            let (asked, passed) = staged.run(stage, &self.needed(later))?;
            if !counted {
                statistics.rows_in += asked as u64;
                counted = true;
            }
            match index {
                None => course.bound_dense = is_dense(asked, passed),
                Some(index) => {
                    course.count(*index, asked, passed);
                    asked_first = if asked_first == 0 { asked } else { asked_first };
                    course.dense = is_dense(asked_first, passed);
                }
            }
            if passed == 0 {
                return Ok(None);
            }
        }
        staged.finish(&rest, counted).map(Some)
    }

    /// The columns that the output and `stages` need, ascending.
    fn needed<'a>(&self, stages: impl Iterator<Item = &'a FilterStage>) -> Vec<usize> {
        let mut columns = self.plan.output_columns.clone();
        columns.extend(stages.flat_map(|stage| &stage.columns));
        columns.sort_unstable();
        columns.dedup();
        columns
    }
}

impl StagedGroup<'_> {
    /// Runs a stage over the rows that are left, and keeps of their columns those in `needed` for the
    /// rows that pass. Returns the number of rows before and after.
    fn run(&mut self, stage: &FilterStage, needed: &[usize]) -> StepResult<(usize, usize)> {
        let kept = std::mem::take(&mut self.kept);
        let fresh: Vec<usize> = stage.columns.iter().copied().filter(|column| !kept.has(*column)).collect();
        let carried = kept.columns.iter().map(|(column, _)| *column).chain(fresh.iter().copied());
        let carried: Vec<usize> = carried.filter(|column| needed.binary_search(column).is_ok()).collect();
        let mut parts: Vec<Vec<ArrayRef>> = vec![Vec::new(); carried.len()];
        let mut mask = BooleanBufferBuilder::new(0);
        let (mut asked, mut passed, mut let_through) = (0, 0, 0);
        let mut source = self.source(fresh, kept)?;
        while let Some(piece) = source.next_piece(self.files)? {
            asked += piece.rows;
            let pass = if let_through > 0 {
                let_through -= 1;
                BooleanArray::new(BooleanBuffer::new_set(piece.rows), None)
            } else {
                let pass = fragment(stage.evaluate(fragment(piece.columns(&stage.columns))?, piece.rows))?;
                if stage.best_effort && is_useless(piece.rows as u64, pass.true_count() as u64) {
                    let_through = USELESS_PIECES;
                }
                pass
            };
            mask.append_buffer(pass.values());
            let survivors = pass.true_count();
            passed += survivors;
            if survivors == 0 {
                continue;
            }
            let columns = fragment(piece.columns(&carried))?;
            let columns = if survivors == pass.len() { columns } else { fragment(filtered(columns, &pass))? };
            for (part, array) in parts.iter_mut().zip(columns) {
                part.push(array);
            }
        }
        self.kept.rows = passed;
        if passed > 0 {
            for (column, part) in carried.into_iter().zip(parts) {
                self.kept.columns.push((column, fragment(joined(&part))?));
            }
            let passed = mask.finish();
            let mask = match self.selection.take() {
                Some(before) => {
                    let before = mask_of(&before, self.files.group_rows(self.group));
                    if before.count_set_bits() != passed.len() {
                        return Err(StepError::Fragment(Error::internal(
                            "a row group has other rows than were asked for",
                        )));
                    }
                    narrowed(&before, &passed)
                }
                None => passed,
            };
            self.selection = Some(RowSelection::from_boolean_buffer(mask));
        }
        Ok((asked, passed))
    }

    /// A reader of `columns` beside those that are kept, for the rows that are left.
    fn source(&self, columns: Vec<usize>, kept: Kept) -> StepResult<GroupReading> {
        let reader = match columns.is_empty() {
            true => None,
            false => Some(self.files.reader(self.group, &columns, self.selection.clone())?),
        };
        Ok(GroupReading { reader, columns, kept, offset: 0, stages: Vec::new(), counted: true, asked: 0, passed: 0 })
    }

    /// The last pass, in which `rest` is asked as well.
    fn finish(self, rest: &[(usize, &FilterStage)], counted: bool) -> StepResult<GroupReading> {
        let needed = self.files.needed(rest.iter().map(|(_, stage)| *stage));
        let columns: Vec<usize> = needed.into_iter().filter(|column| !self.kept.has(*column)).collect();
        // A reader of no columns yields rows as well, where no stage has yielded them.
        let reader = match counted && columns.is_empty() {
            true => None,
            false => Some(self.files.reader(self.group, &columns, self.selection)?),
        };
        let stages = rest.iter().map(|(index, _)| *index).collect();
        Ok(GroupReading { reader, columns, kept: self.kept, offset: 0, stages, counted, asked: 0, passed: 0 })
    }
}

fn joined(parts: &[ArrayRef]) -> Result<ArrayRef> {
    match parts {
        [single] => Ok(Arc::clone(single)),
        many => Ok(concat(&many.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>())?),
    }
}

/// Some rows of a row group, from the reader and from what was kept.
struct Piece {
    rows: usize,
    columns: Vec<(usize, ArrayRef)>,
}

impl Piece {
    fn columns(&self, wanted: &[usize]) -> Result<Vec<ArrayRef>> {
        let find =
            |column: &usize| self.columns.iter().find(|(index, _)| index == column).map(|(_, array)| Arc::clone(array));
        wanted
            .iter()
            .map(|column| find(column).ok_or_else(|| Error::internal(format!("scan column {column} was not decoded"))))
            .collect()
    }
}

fn lengths_differ() -> StepError {
    StepError::Fragment(Error::internal("columns of a row group have different lengths"))
}

impl GroupReading {
    fn next_piece(&mut self, files: &SegmentFiles) -> StepResult<Option<Piece>> {
        let (rows, mut columns) = match &mut self.reader {
            Some(reader) => {
                let Some(batch) = reader.next() else {
                    if !self.kept.columns.is_empty() && self.offset != self.kept.rows {
                        return Err(lengths_differ());
                    }
                    return Ok(None);
                };
                let batch = segment(batch.map_err(|error| files.reader.explain(error)))?;
                let arrays = fragment(files.columns.extract(&batch, &self.columns))?;
                (batch.num_rows(), self.columns.iter().copied().zip(arrays).collect::<Vec<_>>())
            }
            None => (files.batch_rows.min(self.kept.rows.saturating_sub(self.offset)), Vec::new()),
        };
        if rows == 0 {
            return Ok(None);
        }
        if !self.kept.columns.is_empty() {
            if self.offset.saturating_add(rows) > self.kept.rows {
                return Err(lengths_differ());
            }
            columns.extend(self.kept.columns.iter().map(|(index, array)| (*index, array.slice(self.offset, rows))));
        }
        self.offset += rows;
        Ok(Some(Piece { rows, columns }))
    }

    /// The next rows, as columns of the projection's input, and which of them pass.
    pub(super) fn next(
        &mut self,
        files: &SegmentFiles,
        course: &mut Course,
        statistics: &mut ScanStatistics,
    ) -> StepResult<Option<(RecordBatch, Option<BooleanArray>)>> {
        let Some(piece) = self.next_piece(files)? else {
            if !self.stages.is_empty() {
                course.dense = is_dense(self.asked, self.passed);
            }
            return Ok(None);
        };
        if !self.counted {
            statistics.rows_in += piece.rows as u64;
        }
        let mask = fragment(self.ask(&files.plan, &piece, course))?;
        let columns = fragment(piece.columns(&files.plan.output_columns))?;
        let batch = batch_of(&files.plan.input_schema, columns, piece.rows);
        Ok(Some((fragment(batch)?, mask)))
    }

    /// Asks the stages that are left.
    fn ask(&mut self, plan: &FragmentPlan, piece: &Piece, course: &mut Course) -> Result<Option<BooleanArray>> {
        let mut mask: Option<BooleanArray> = None;
        for index in &self.stages {
            let Some(stage) = plan.stages.get(*index) else { continue };
            let columns = piece.columns(&stage.columns)?;
            let asked = mask.as_ref().map_or(piece.rows, BooleanArray::true_count);
            let passed = match &mask {
                None => stage.evaluate(columns, piece.rows)?,
                Some(before) => stage.evaluate_after(columns, before)?,
            };
            course.count(*index, asked, passed.true_count());
            mask = Some(passed);
        }
        if let Some(mask) = &mask {
            self.asked += piece.rows;
            self.passed += mask.true_count();
        }
        Ok(mask)
    }
}
