//! Every cap of the storage node, with its reason.

use std::time::Duration;

/// Bytes under one checksum: small enough that a page read verifies little beside itself, large
/// enough that the checksums of a segment are a few kilobytes.
pub const BLOCK_BYTES: usize = 64 * 1024;
/// Bytes of a segment at most; writers close segments at a quarter of it.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Bytes left free on the disk by uploads, so that epochs and checksums can still be written.
pub(crate) const DISK_RESERVE_BYTES: u64 = 16 << 20;
/// Bytes per message when a segment is read out.
pub(crate) const CHUNK_BYTES: u64 = 1 << 20;
/// Segments per page of a list: a description takes about a hundred bytes.
pub(crate) const LIST_PAGE_MAX: usize = 10_000;
/// Segments per page where the caller names no number.
pub(crate) const LIST_PAGE_DEFAULT: usize = 1_000;
/// Segments of one scan request.
pub(crate) const SCAN_SEGMENTS_MAX: usize = 10_000;
/// Ids of one delete request.
pub(crate) const DELETE_IDS_MAX: usize = 100_000;
/// Bytes of a segment's end that are fetched at first: the footer and the page index of most.
pub(crate) const FETCHED_FOOTER_BYTES: usize = 128 * 1024;
/// Bytes of a fragment whose results are kept: longer ones have lists of values that are hardly asked for twice.
pub(crate) const FRAGMENT_KEY_BYTES_MAX: usize = 64 * 1024;
/// Weight that a kept result has at least, for its place in the cache.
pub(crate) const RESULT_BYTES_MIN: usize = 256;
/// Ranges of one request for bytes of a segment: as many as a segment has columns in row groups, and more.
pub(crate) const RANGES_MAX: usize = 65_536;
/// Addresses of one replication request.
pub(crate) const SOURCES_MAX: usize = 64;
/// Rows per batch at most, whatever the caller would like: bounds the memory of a step.
pub(crate) const BATCH_ROWS_MAX: usize = 1 << 16;
/// Events that wait for the reader of a scan; each segment in flight holds at most one more.
pub(crate) const SCAN_QUEUE_EVENTS: usize = 4;
/// Rows of the arrays that decoded columns are kept in: as many as batches have where nobody says.
pub(crate) const DECODED_ROWS: usize = 8_192;
/// Bytes of a text that a view holds itself.
pub(crate) const INLINE_BYTES: u32 = 12;
/// Distinct texts of a column of a segment up to which it is kept in memory as a dictionary: the views of as many fit in
/// the first level of a processor's cache, or nearly so.
pub const DICTIONARY_TEXTS_MAX: usize = 4_096;
/// Rows per batch of a reduction where the caller names no number: the same at every node, since
/// where a reduction starts to send depends on it.
pub(crate) const REDUCTION_BATCH_ROWS: usize = 8_192;
/// Bytes that a reduction of one segment holds before it hands on what it has and starts again: room
/// for some hundred thousand groups, beyond which a segment is hardly made smaller. Not an option,
/// since a retry at another node has to get the same rows in the same order.
pub(crate) const REDUCTION_BYTES_MAX: usize = 16 << 20;
/// The same of a reduction that leaves out groups once it has seen all rows of them, which pays for a whole segment of
/// groups: afterwards all are sent.
pub(crate) const HAVING_BYTES_MAX: usize = 64 << 20;
/// Bytes of the rows of a segment that are sorted at once for an aggregate that takes rows in an order: half a million of
/// two numbers. While they are sorted they take three times as much. Not an option, for the same reason.
pub(crate) const SORTED_BYTES_MAX: usize = 8 << 20;
/// Bytes of a group and its states, about, with its place in a hash table: of which a segment has as many as rows at most.
pub(crate) const STATE_BYTES: u64 = 128;
/// Rows after which a partial aggregate is asked whether it is worth its while: a tenth of a segment.
pub(crate) const SKIP_AGGREGATION_ROWS: usize = 100_000;
/// Groups per row above which it is not: then rows pass as states of one row each.
pub(crate) const SKIP_AGGREGATION_RATIO: f64 = 0.8;
/// Groups up to which a partial aggregate of a segment finds them by tables of its own, which then have 128 KiB for each
/// key, and up to 256 KiB more for one of a dictionary. Not an option, for the reason of [`REDUCTION_BYTES_MAX`].
pub(crate) const FEW_GROUPS_MAX: usize = 1_024;
/// Integers between the smallest and the largest key of a segment up to which each can have 4 bytes of its own. Not an
/// option, for the same reason.
pub(crate) const PLACES_MAX: usize = 1 << 20;
/// Places for pairs of a group by the keys before and a key of a dictionary, of 4 bytes each: pairs beyond are looked up.
pub(crate) const PACKED_PLACES_MAX: usize = 1 << 16;
/// Reduced rows of a segment up to which they are merged with those of other segments: what is
/// larger has hardly been reduced, and sending it early is worth more.
pub(crate) const MERGE_ROWS_MAX: usize = 8_192;
/// Bytes of the same.
pub(crate) const MERGE_BYTES_MAX: usize = 1 << 20;
/// Rows of an order up to which segments learn from one another which rows cannot be among them: so
/// few are always merged, unless they are very wide.
pub(crate) const SHARED_BOUND_ROWS_MAX: usize = 1_024;
/// Bytes of merged rows at which they are sent, and merging starts again.
pub(crate) const MERGED_BYTES_MAX: usize = 8 << 20;
/// Weight that a footer has in the cache at least, for the open file that goes with it.
pub(crate) const FOOTER_BYTES_MIN: usize = 64 * 1024;
/// Bytes of all segments of a scan up to which it counts as short: some pieces of work for a thread.
pub(crate) const SHORT_SCAN_BYTES: u64 = 4 << 20;
/// How long a caller is told to wait when nothing is known of the load.
pub(crate) const RETRY_AFTER_MIN: Duration = Duration::from_millis(20);
/// How long a caller is told to wait at most.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

/// Reads of scrubbing per second at least, so that its rate holds over parts of a second too; fewer only where the rate
/// is below one block at a time.
pub(crate) const SCRUB_STEPS_PER_SECOND: u64 = 8;
/// Time between the beginnings of two rounds of scrubbing at least: a node with few segments need not read them all day.
pub(crate) const SCRUB_ROUND_INTERVAL: Duration = Duration::from_secs(3_600);
/// Time between two writes of the place that scrubbing has come to: what a restart repeats.
pub(crate) const SCRUB_CURSOR_INTERVAL: Duration = Duration::from_secs(30);
/// Pause before a read that the device failed is tried again.
pub(crate) const SCRUB_READ_PAUSE: Duration = Duration::from_secs(1);

/// Connections at a time; further ones wait in the listener's backlog.
pub(crate) const CONNECTIONS_MAX: usize = 1_024;
/// Calls at a time on one connection.
pub(crate) const STREAMS_PER_CONNECTION_MAX: u32 = 200;
/// Streams that a peer opened and reset before they were accepted.
pub(crate) const PENDING_RESETS_MAX: usize = 20;
/// Bytes of all headers of a call.
pub(crate) const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Bytes of a message that is accepted: an upload chunk is 1 MiB, a fragment far less.
pub(crate) const DECODE_BYTES_MAX: usize = 16 << 20;
/// Bytes of a message that is sent: batches are about 1 MiB, but one row can be larger.
pub(crate) const ENCODE_BYTES_MAX: usize = 64 << 20;
/// Flow-control window of one call and of one connection.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// See [`STREAM_WINDOW_BYTES`].
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Bytes of an HTTP/2 frame: with the default of 16 KiB an upload is mostly the handling of frames.
pub(crate) const FRAME_BYTES: u32 = 1 << 20;
/// The longest that a call may take to answer; callers send shorter deadlines of their own.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(3_600);
/// Age at which a connection is replaced, so that load spreads again after a restart.
pub(crate) const CONNECTION_AGE_MAX: Duration = Duration::from_secs(3_600);
/// Time for the calls of a connection that has reached its age.
pub(crate) const CONNECTION_AGE_GRACE: Duration = Duration::from_secs(3_600);
/// Silence after which a peer is asked whether it is there.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// Time for the answer to that.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a failed accept (too many open files, as a rule).
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time to connect to another node.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for running scans when the server stops.
pub(crate) const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);

const _: () = assert!(SHARED_BOUND_ROWS_MAX <= MERGE_ROWS_MAX, "segments that learn from others must be merged");
const _: () = assert!(CHUNK_BYTES.is_multiple_of(BLOCK_BYTES as u64), "chunks must cover whole blocks");
