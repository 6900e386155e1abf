//! What each storage node chooses for itself.

use std::path::PathBuf;
use std::time::Duration;

/// Options of a [`crate::StorageNode`].
#[derive(Clone, Debug)]
pub struct StorageNodeOptions {
    /// The folder that the node owns; made if absent.
    pub data_dir: PathBuf,
    /// The availability zone that the node is in.
    pub zone: String,
    /// Threads that decode and filter, apart from those that serve the network. Default: the
    /// machine's parallelism.
    pub cpu_threads: usize,
    /// Decoded bytes that the segments of one scan may hold together; a scan works on fewer
    /// segments at a time to keep below it. One segment may always run. Default: 256 MiB.
    pub scan_memory_bytes: usize,
    /// Scans at a time; further ones are answered `BUSY`. Default: 64.
    pub max_concurrent_scans: usize,
    /// How long a step of a scan may have to wait for a CPU thread. A scan that would wait longer is handed back to a
    /// coordinator that can run it itself. Zero: every one is. Default: 500 ms.
    pub pushback_wait: Duration,
    /// Bytes of results of fragments over single segments that are kept; 0: none are. Default: 64 MiB.
    pub fragment_cache_bytes: u64,
    /// Bytes of footers kept decoded. Default: 64 MiB.
    pub footer_cache_bytes: u64,
    /// Rows per batch where the caller names no number. Default: 8192.
    pub batch_rows: usize,
    /// Bytes per second at most that are read to verify segments in the background; 0: none are. Default: 16 MiB.
    pub scrub_bytes_per_second: u64,
}

impl StorageNodeOptions {
    /// The defaults, for a folder and a zone.
    pub fn new(data_dir: impl Into<PathBuf>, zone: impl Into<String>) -> Self {
        Self {
            data_dir: data_dir.into(),
            zone: zone.into(),
            cpu_threads: std::thread::available_parallelism().map_or(1, usize::from),
            scan_memory_bytes: 256 << 20,
            max_concurrent_scans: 64,
            pushback_wait: Duration::from_millis(500),
            fragment_cache_bytes: 64 << 20,
            footer_cache_bytes: 64 << 20,
            batch_rows: 8_192,
            scrub_bytes_per_second: 16 << 20,
        }
    }
}
