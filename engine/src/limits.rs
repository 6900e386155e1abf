//! Every cap of the coordinator's core, with its reason.

use std::time::Duration;

/// Rows of a segment at most. A million rows is large enough that per-segment costs vanish and
/// small enough to spread one table over all nodes.
pub(crate) const SEGMENT_ROWS_MAX: usize = 1 << 20;
/// Segments of a statement after which the next ones are twice as large, up to [`SEGMENT_ROWS_MAX`]. The first ones have
/// one row group: a small table is spread over nodes and threads like a large one, and a large one has few segments.
pub(crate) const SEGMENTS_OF_ONE_SIZE: usize = 4;
/// Bytes of a segment file after which it is closed, so that wide rows do not make huge segments.
pub(crate) const SEGMENT_BYTES_MAX: usize = 256 << 20;
/// Rows of a row group: the unit of pruning and of one encoding step.
pub(crate) const ROW_GROUP_ROWS_MAX: usize = 1 << 17;
/// Arrow bytes after which a row group is closed early, for wide rows.
pub(crate) const ROW_GROUP_MEMORY_BYTES_MAX: usize = 64 << 20;
/// Rows of a data page: the unit of the page index.
pub(crate) const PAGE_ROWS_MAX: usize = 20_000;
/// Segments of one statement that are on their way to nodes at a time: bounds memory.
pub(crate) const SEGMENTS_IN_FLIGHT_MAX: usize = 3;
/// Bytes per message of a segment upload.
pub(crate) const UPLOAD_CHUNK_BYTES: usize = 1 << 20;
/// Message size that the coordinator accepts of a node: nodes send about 1 MiB, but one row can be
/// larger.
pub(crate) const NODE_MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Segments per scan request: bounds the request's size and what one lost connection repeats.
pub(crate) const SEGMENTS_PER_REQUEST_MAX: usize = 32;
/// Bytes of the segments of a request up to which it may have more of them: to ask again costs more than they do.
pub(crate) const SMALL_REQUEST_BYTES: u64 = 4 << 20;
/// Segments per scan request where they are as small.
pub(crate) const SMALL_SEGMENTS_PER_REQUEST_MAX: usize = 1_024;
/// Requests that one partition of a scan has open at a time, each at another node.
pub(crate) const REQUESTS_PER_PARTITION_MAX: usize = 16;
/// The same where a limit may be met by the first of them.
pub(crate) const LIMITED_REQUESTS_MAX: usize = 4;
/// Time that a scan whose limit is met waits for what nodes have to say of it.
pub(crate) const LIMIT_STATISTICS_WAIT: Duration = Duration::from_millis(1);
/// Times that a segment is asked of all its replicas before the query fails. With the pause, the rounds last longer than
/// two looks at the manifest, so that a node that comes back at another address is found.
pub(crate) const SCAN_ROUNDS_MAX: usize = 8;
/// Pause between two such rounds.
pub(crate) const SCAN_ROUND_PAUSE: Duration = Duration::from_millis(300);
/// Silence of a request before it may be sent to another replica too: below it, a second request would cost more than
/// the wait.
pub(crate) const HEDGE_AFTER_MIN: Duration = Duration::from_millis(100);
/// How many times the 95th percentile of the waits of a scan is too long.
pub(crate) const HEDGE_AFTER_FACTOR: u32 = 2;
/// Pause between looks for slow requests.
pub(crate) const HEDGE_LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Requests that a node has to have before others are asked in its place: with fewer, what it keeps of a segment (its
/// footer, and results of fragments) is worth more than an idle CPU.
pub(crate) const BUSY_REQUESTS: usize = 4;
/// Time for which a node that was slower than another replica is asked after the others.
pub(crate) const SLOW_NODE_PENALTY: Duration = Duration::from_secs(5);
/// Time after which a node that was asked how it does, and has not answered, counts as stalled. The answer does not wait
/// for the CPU pool that scans run on.
pub(crate) const STALLED_AFTER: Duration = Duration::from_millis(500);
/// Segments that wait to be loaded into the buffer pool.
pub(crate) const BUFFER_POOL_QUEUE: usize = 1_024;
/// Segments of which nothing is in the buffer pool, and of which it is known what was wanted.
pub(crate) const BUFFER_POOL_PAST_MAX: u64 = 16_384;
/// Sets of columns, of all tables, of which it is known what their scans cost.
pub(crate) const BUFFER_POOL_SETS_MAX: u64 = 4_096;
/// Results of fragments over segments that nodes are thought to have kept.
pub(crate) const BUFFER_POOL_KEPT_MAX: u64 = 100_000;
/// Segments that CACHE TABLE loads at a time: bounds what is held beside the pool.
pub(crate) const BUFFER_POOL_LOADS_AT_A_TIME: usize = 2;
/// How many times as long as the last load took the next one waits for queries to end.
pub(crate) const BUFFER_POOL_PAUSE_FACTOR: u32 = 20;
/// The least that it waits: most queries end within it, so that the first load, too, begins after the one that caused it.
pub(crate) const BUFFER_POOL_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Time for one replica to give columns of a segment.
pub(crate) const BUFFER_POOL_LOAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a block of its second tier: those of the blocks of storage nodes, so that no more is fetched than is read.
pub(crate) const BUFFER_POOL_BLOCK_BYTES: u64 = aubade_storage_node::BLOCK_BYTES as u64;
/// Pieces of work on its files at a time.
pub(crate) const BUFFER_POOL_DISK_WORK: usize = 4;
/// How long the second tier writes nothing after a write that failed.
pub(crate) const BUFFER_POOL_DISK_PAUSE: Duration = Duration::from_secs(60);
/// Pause between two looks at whether they have.
pub(crate) const BUFFER_POOL_IDLE_LOOK: Duration = Duration::from_millis(20);
/// Memory for results of fragments, unless the options say otherwise.
pub(crate) const FRAGMENT_CACHE_BYTES: u64 = 64 << 20;
/// Weight that a kept result of a fragment has at least, for its place in the cache.
pub(crate) const FRAGMENT_RESULT_BYTES_MIN: usize = 256;
/// The part of the buffer pool that results of fragments over its columns may take.
pub(crate) const BUFFER_POOL_RESULTS_PART: usize = 16;
/// Bytes that cross a wire of 1 Gbit/s in a microsecond: what bytes cost beside time at storage.
pub(crate) const WIRE_BYTES_PER_MICRO: f64 = 125.0;
/// Plans that are kept where nobody says. That bounds their memory too, which is not counted in bytes: those of long
/// statements count as several.
pub(crate) const PLAN_CACHE_ENTRIES: u64 = 512;
/// Plans that may be kept at most: all of them are rows of `system.plan_cache`.
pub(crate) const PLAN_CACHE_ENTRIES_MAX: u64 = 16_384;
/// Words of a statement, names and signs, for each of which one more plan is counted: queries of TPC-H have 50 to 250.
pub(crate) const PLAN_CACHE_ENTRY_WORDS: usize = 512;
/// Bytes of the parameters of a statement for each of which one more plan is counted.
pub(crate) const PLAN_CACHE_ENTRY_PARAMETER_BYTES: usize = 16 << 10;
/// Time after which a plan that nobody asked for is forgotten, where nobody says.
pub(crate) const PLAN_CACHE_AGE: Duration = Duration::from_secs(3_600);
/// The longest such time: what nobody asks for in a year is of no use.
pub(crate) const PLAN_CACHE_AGE_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);
/// Plans in a row from which no plan for other values was learnt, after which none is compared any more.
pub(crate) const PLAN_CACHE_LESSONS_MAX: u32 = 8;
/// Bytes of a statement whose plan is kept: longer ones are written by programs, and hardly twice.
pub(crate) const PLAN_KEY_TEXT_BYTES_MAX: usize = 64 << 10;
/// Bytes of the parameters of such a statement.
pub(crate) const PLAN_KEY_BYTES_MAX: usize = 64 << 10;
/// Bytes of a statement that `system.plan_cache` shows, and of its normalised words.
pub(crate) const PLAN_CACHE_TEXT_BYTES_MAX: usize = 4 << 10;
/// The same of its parameters, and of its settings.
pub(crate) const PLAN_CACHE_DETAIL_BYTES_MAX: usize = 1 << 10;
/// Deadline of a scan for which nobody gave one.
pub(crate) const SCAN_TIMEOUT: Duration = Duration::from_secs(3600);
/// Time for one segment to reach one node.
pub(crate) const PUT_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for the remaining acknowledgements once the write quorum stands, at least.
pub(crate) const STRAGGLER_GRACE: Duration = Duration::from_millis(500);
/// Time for small calls to a node.
pub(crate) const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time to connect to a node.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between looks at nodes and manifest.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Pause between looks at the manifest at least, however often scans ask for one.
pub(crate) const LOOK_PAUSE_MIN: Duration = Duration::from_millis(100);
/// Looks at the nodes between two comparisons of all that they hold with the manifest, and collections of orphans.
pub(crate) const PROBES_PER_COLLECTION: u64 = 60;
/// Looks between two such comparisons of a node that scans find lacking: its list may be long, and the scans go on.
pub(crate) const PROBES_PER_SUSPICION: u64 = 10;
/// Nodes that are asked for their lists at a time.
pub(crate) const AUDITS_AT_A_TIME: usize = 4;
/// Segments that a node is told to delete at a time: each takes a few writes of its file system.
pub(crate) const ORPHANS_PER_CALL: usize = 1_000;
/// Copies begun per look, so that repair leaves room for queries; a segment that lacks several may add a few.
pub(crate) const REPAIRS_PER_PROBE_MAX: usize = 16;
/// Copies that are made at a time.
pub(crate) const REPAIRS_AT_A_TIME: usize = 4;
/// Pause after a copy failed; it doubles with every failure.
pub(crate) const REPAIR_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause for a node that takes no copies: it is soon noticed when its disk has room again.
pub(crate) const NODE_REPAIR_PAUSE_MAX: Duration = Duration::from_secs(8);
/// Longest pause for a segment that cannot be copied.
pub(crate) const SEGMENT_REPAIR_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Copies that failed and are remembered; a forgotten one is tried too early, and no more.
pub(crate) const REPAIR_WAITS_MAX: usize = 10_000;
/// Segments per page of a node's list.
pub(crate) const LIST_PAGE: usize = 1000;
