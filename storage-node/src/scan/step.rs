//! What a step of a segment's scan comes to.

use arrow::array::RecordBatch;
use aubade_proto::{Error, Result, ScanStatistics};

/// What a step came to.
pub(crate) enum Step {
    /// The segment is open; about so many bytes will be held while it is read.
    Opened { memory_bytes: u64 },
    /// Rows to send, and the output rows up to their end.
    Batch { batch: RecordBatch, rows_through: u64 },
    /// All of the segment was read: these are its reduced rows, of which nothing was sent. `alone`: whatever other
    /// segments have, they would be the same.
    Reduced { batches: Vec<RecordBatch>, statistics: ScanStatistics, alone: bool },
    /// Nothing to send yet.
    Continue,
    /// All of the segment was read, or the limit is reached.
    Done(ScanStatistics),
}

/// Why a step failed.
pub(crate) enum StepError {
    /// The segment cannot be read here; another replica may serve it.
    Segment(Error),
    /// The fragment fails on the data, at every replica.
    Fragment(Error),
}

pub(crate) type StepResult<T> = Result<T, StepError>;

/// An error of reading is one of the segment.
pub(crate) fn segment<T>(result: Result<T>) -> StepResult<T> {
    result.map_err(StepError::Segment)
}

/// An error of computing is one of the fragment.
pub(crate) fn fragment<T>(result: Result<T>) -> StepResult<T> {
    result.map_err(StepError::Fragment)
}
