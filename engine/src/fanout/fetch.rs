//! Fragments that a node has handed back: the coordinator reads the columns, and runs the fragment itself.

use std::sync::Arc;

use aubade_catalog::SegmentEntry;
use aubade_environment::{Clock, Deadline};
use aubade_planner::ScanMetrics;
use aubade_proto::{Error, ErrorCode, ScanEvent, ScanRequest};
use aubade_storage_node::{FetchedSegment, FragmentRunner, columns_read};
use datafusion::execution::memory_pool::MemoryReservation;
use futures::{StreamExt, TryStreamExt, stream};

use crate::cluster::Member;
use crate::node_reader::NodeReader;
use crate::storage_client::ScanStream;

/// Runs a request over columns that are read from `member`, one segment after the other. `entries` are the segments of
/// the request, in their order.
pub(super) fn fetch(
    runner: Arc<FragmentRunner>,
    member: Arc<Member>,
    request: ScanRequest,
    entries: Vec<Arc<SegmentEntry>>,
    metrics: ScanMetrics,
    until: (Arc<dyn Clock>, Deadline),
    reservation: &MemoryReservation,
) -> ScanStream {
    let columns: Arc<[_]> = match columns_read(&request.fragment) {
        Ok(columns) => columns.into(),
        Err(error) => return stream::iter([Err(error)]).boxed(),
    };
    let reservations = reservation.new_empty();
    let segments = stream::iter(entries.into_iter().enumerate());
    let scans = segments.then(move |(index, entry)| {
        let (runner, metrics, columns) = (Arc::clone(&runner), metrics.clone(), Arc::clone(&columns));
        let mut request = request.clone();
        // What is left of the time for all of them.
        request.header.timeout = until.1.remaining(until.0.as_ref());
        let reader = NodeReader {
            member: Arc::clone(&member),
            header: request.header.clone(),
            id: entry.id,
            metrics: Some(metrics.clone()),
        };
        let memory = reservations.new_empty();
        async move {
            let reserve =
                |bytes| memory.try_grow(usize::try_from(bytes).unwrap_or(usize::MAX)).map_err(Error::from_datafusion);
            let fetched = FetchedSegment::fetch(entry.id, entry.bytes, &columns, &reader, reserve).await;
            let events = match fetched.and_then(|segment| {
                metrics.segments_fetched.add(1);
                runner.scan(request, segment, memory)
            }) {
                Ok(events) => events,
                // One that this node cannot read says nothing about the others.
                Err(error) if concerns_segment(&error) => {
                    stream::iter([Ok(ScanEvent::SegmentFailed { segment_index: index, error })]).boxed()
                }
                Err(error) => return Err(error),
            };
            Ok::<_, Error>(events.map_ok(move |event| of_segment(event, index)))
        }
    });
    scans.try_flatten().boxed()
}

fn concerns_segment(error: &Error) -> bool {
    matches!(error.code(), ErrorCode::SegmentNotFound | ErrorCode::SegmentCorrupt | ErrorCode::Io)
}

/// The event of a scan of one segment as that of the one at `index`.
fn of_segment(event: ScanEvent, index: usize) -> ScanEvent {
    match event {
        ScanEvent::Batch { batch, rows_through, wire_bytes, .. } => {
            ScanEvent::Batch { segment_index: index, batch, rows_through, wire_bytes }
        }
        ScanEvent::Merged { batch, wire_bytes } => ScanEvent::Merged { batch, wire_bytes },
        ScanEvent::MergedDone { segments } => {
            let segments = segments.into_iter().map(|(_, statistics)| (index, statistics)).collect();
            ScanEvent::MergedDone { segments }
        }
        ScanEvent::SegmentDone { statistics, .. } => ScanEvent::SegmentDone { segment_index: index, statistics },
        ScanEvent::SegmentFailed { error, .. } => ScanEvent::SegmentFailed { segment_index: index, error },
    }
}
