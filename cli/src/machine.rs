//! What the machine has, and what of it the coordinator takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aubade_engine::{BufferPoolDisk, BufferPoolPolicy, EngineOptions};
use aubade_proto::{Error, ErrorCode, Result};
use clap::{Args, ValueEnum};

use crate::size::ByteSize;

/// The part of the memory that the buffer pool has where nobody says.
const POOL_PART: u64 = 4;
/// The least that it may have: below that there is no room for a column.
const POOL_BYTES_MIN: u64 = 1 << 20;
/// The least that its folder on disk may have.
const POOL_DISK_BYTES_MIN: u64 = 64 << 20;
/// The least that queries may have: below that none with a sort or a join runs.
const QUERY_BYTES_MIN: u64 = 1 << 20;
/// What the pool has where the memory is not known.
const POOL_BYTES_UNKNOWN: u64 = 1 << 30;

/// Bytes of memory that this process may have: those of the machine, or of its control groups where these have fewer.
fn memory_bytes() -> Option<u64> {
    let machine =
        fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(|meminfo| bytes_of(meminfo, "MemTotal:"));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups).into_iter();
    let limits = limits.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    limits.chain(machine).min()
}

/// Bytes of this process that are resident; `None` where the system does not say.
pub(crate) fn resident_bytes() -> Option<u64> {
    bytes_of(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// What a file of /proc says of a name, there in kibibytes.
fn bytes_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The files with the limits of the control groups that a process is in, by its `/proc/self/cgroup`, and of those above
/// them. In a container the folder of the group itself is the root.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            controllers if controllers.split(',').any(|controller| controller == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = Path::new(path.trim_start_matches('/'));
        files.extend(group.ancestors().map(|group| Path::new(root).join(group).join(name)));
    }
    files
}

/// What a coordinator takes of the machine.
#[derive(Clone, Debug, Args)]
pub(crate) struct MachineArguments {
    /// Memory for sorts, joins and aggregates of all queries, like 8GiB; beyond it they spill to disk [default: 4GiB]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<ByteSize>,

    /// Memory for decoded columns of hot tables, like 8GiB, beside the memory limit; a sixteenth of it is for results of
    /// fragments over these columns; 0 for none [default: a quarter of the machine's memory]
    #[arg(long, value_name = "SIZE")]
    buffer_pool: Option<ByteSize>,

    /// A folder on a local disk for what the buffer pool has no room for; the pool fills from it after a restart
    #[arg(long, value_name = "DIR")]
    buffer_pool_disk: Option<PathBuf>,

    /// What that folder may take
    #[arg(long, value_name = "SIZE", default_value = "16GiB", requires = "buffer_pool_disk")]
    buffer_pool_disk_size: ByteSize,

    /// What the buffer pool keeps: what saves most for its bytes, or for comparison what was used most often
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = PolicyArgument::Weighted)]
    buffer_pool_policy: PolicyArgument,

    #[command(flatten)]
    caches: CacheArguments,
}

/// What a coordinator, or an embedded engine, keeps of one query for the next.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct CacheArguments {
    /// Plans of queries that are kept for the next time, at most, of which those of long statements count as several; 0 for
    /// none [default: 512]
    #[arg(long, value_name = "PLANS")]
    plan_cache_entries: Option<u64>,

    /// Time after which a plan that no query asked for is forgotten, seconds [default: 3600]
    #[arg(long, value_name = "SECONDS")]
    plan_cache_age: Option<u64>,

    /// Results of aggregates and first rows over the segments of a table that are kept, beside the memory limit; 0 for
    /// none [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    fragment_cache: Option<ByteSize>,
}

impl CacheArguments {
    /// `options` with these limits; the engine tells whether those of plans will do.
    ///
    /// # Errors
    /// `InvalidArgument` where the results alone would take more than the memory.
    pub(crate) fn set_in(&self, options: EngineOptions) -> Result<EngineOptions> {
        check_fragment_cache(self.fragment_cache)?;
        Ok(EngineOptions {
            plan_cache_entries: self.plan_cache_entries,
            plan_cache_age: self.plan_cache_age.map(Duration::from_secs),
            fragment_cache_bytes: self.fragment_cache.map(|size| size.0),
            ..options
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PolicyArgument {
    Weighted,
    Lfu,
}

impl MachineArguments {
    /// The folder for the buffer pool, if there is to be one.
    pub(crate) fn pool_folder(&self) -> Option<&Path> {
        self.buffer_pool_disk.as_deref()
    }

    /// Says in the log that a coordinator with these options has no buffer pool, and why.
    pub(crate) fn report_no_pool(&self, options: &EngineOptions) {
        let for_queries = u64::try_from(options.memory_limit_bytes()).unwrap_or(u64::MAX);
        if let Some(why) = why_no_pool(self.buffer_pool, options.buffer_pool_bytes, for_queries, memory_bytes()) {
            tracing::warn!("{why}");
        } else if options.buffer_pool_bytes == 0 {
            tracing::info!("the buffer pool is off, as --buffer-pool 0 says");
        }
    }

    /// The options of a coordinator that takes so much.
    ///
    /// # Errors
    /// `InvalidArgument` where that is more than there is.
    pub(crate) fn engine_options(&self) -> Result<EngineOptions> {
        let limit = memory_limit_bytes(self.memory_limit)?;
        let options = EngineOptions { memory_limit_bytes: limit, ..EngineOptions::default() };
        let options = self.caches.set_in(options)?;
        let others = Others {
            memory_limit: u64::try_from(options.memory_limit_bytes()).unwrap_or(u64::MAX),
            fragment_cache: options.fragment_cache_bytes.unwrap_or(0),
        };
        let disk = self.buffer_pool_disk.clone();
        if disk.is_some() && self.buffer_pool_disk_size.0 < POOL_DISK_BYTES_MIN {
            let text = format!("--buffer-pool-disk-size {} is too small to be of use", self.buffer_pool_disk_size);
            let hint = format!("give it at least {}", ByteSize(POOL_DISK_BYTES_MIN));
            return Err(Error::new(ErrorCode::InvalidArgument, text).hint(hint));
        }
        Ok(EngineOptions {
            buffer_pool_bytes: pool_bytes(self.buffer_pool, others, memory_bytes())?,
            buffer_pool_disk: disk.map(|dir| BufferPoolDisk { dir, bytes_max: self.buffer_pool_disk_size.0 }),
            buffer_pool_policy: match self.buffer_pool_policy {
                PolicyArgument::Weighted => BufferPoolPolicy::Weighted,
                PolicyArgument::Lfu => BufferPoolPolicy::LeastFrequentlyUsed,
            },
            ..options
        })
    }
}

/// Why there is no buffer pool, where nobody has switched it off.
fn why_no_pool(asked: Option<ByteSize>, pool_bytes: u64, for_queries: u64, memory: Option<u64>) -> Option<String> {
    let memory = memory.filter(|_| asked.is_none() && pool_bytes == 0)?;
    Some(format!(
        "the buffer pool is off: the {} of --memory-limit leave nothing of the memory of the machine, {}; lower it, or \
         give --buffer-pool 0",
        ByteSize(for_queries),
        ByteSize(memory)
    ))
}

/// Bytes for queries, where somebody says how many.
///
/// # Errors
/// `InvalidArgument` for fewer than are of use.
pub(crate) fn memory_limit_bytes(asked: Option<ByteSize>) -> Result<Option<u64>> {
    match asked {
        Some(asked) if asked.0 < QUERY_BYTES_MIN => {
            let text = format!("--memory-limit {asked} is too small to be of use");
            let hint = format!("give it at least {}", ByteSize(QUERY_BYTES_MIN));
            Err(Error::new(ErrorCode::InvalidArgument, text).hint(hint))
        }
        asked => Ok(asked.map(|asked| asked.0)),
    }
}

/// Refuses room for results that the machine has not got.
///
/// # Errors
/// `InvalidArgument`.
pub(crate) fn check_fragment_cache(asked: Option<ByteSize>) -> Result<()> {
    check_fits(asked, memory_bytes())
}

fn check_fits(asked: Option<ByteSize>, memory: Option<u64>) -> Result<()> {
    match (asked, memory) {
        (Some(asked), Some(memory)) if asked.0 > memory => {
            let text = format!("--fragment-cache {asked} is more than the memory of the machine, {}", ByteSize(memory));
            Err(Error::new(ErrorCode::InvalidArgument, text).hint("give it less: the results of a query are small"))
        }
        _ => Ok(()),
    }
}

/// Bytes that a coordinator has beside the buffer pool.
#[derive(Clone, Copy, Debug)]
struct Others {
    memory_limit: u64,
    /// None where nobody has said so: what it has then is little.
    fragment_cache: u64,
}

fn pool_bytes(asked: Option<ByteSize>, others: Others, memory: Option<u64>) -> Result<u64> {
    let for_others = others.memory_limit.saturating_add(others.fragment_cache);
    match (asked, memory) {
        (Some(asked), _) if asked.0 > 0 && asked.0 < POOL_BYTES_MIN => {
            let text = format!("--buffer-pool {asked} is too small to be of use");
            let hint = format!("give it at least {}, or 0 for none", ByteSize(POOL_BYTES_MIN));
            Err(Error::new(ErrorCode::InvalidArgument, text).hint(hint))
        }
        (Some(asked), Some(memory)) if asked.0 > 0 && asked.0.saturating_add(for_others) > memory => {
            let results = match others.fragment_cache {
                0 => String::new(),
                bytes => format!(" and the {} of --fragment-cache", ByteSize(bytes)),
            };
            let text = format!(
                "--buffer-pool {asked} and the {} of --memory-limit{results} are more than the memory of the machine, {}",
                ByteSize(others.memory_limit),
                ByteSize(memory)
            );
            Err(Error::new(ErrorCode::InvalidArgument, text).hint("lower one of them"))
        }
        (Some(asked), _) => Ok(asked.0),
        (None, Some(memory)) => Ok((memory / POOL_PART).min(memory.saturating_sub(for_others) / 2)),
        (None, None) => Ok(POOL_BYTES_UNKNOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_read() {
        let total_of = |text| bytes_of(text, "MemTotal:");
        assert_eq!(total_of("MemFree: 1 kB\nMemTotal:       16 kB\n"), Some(16 << 10));
        let beyond = "MemTotal: 99999999999999999999 kB";
        for text in ["", "MemFree: 1 kB\n", "MemTotal:\t 123 MB", "MemTotal: kB", beyond] {
            assert_eq!(total_of(text), None, "{text}");
        }
        assert!(!cfg!(target_os = "linux") || resident_bytes().is_some_and(|bytes| bytes > 0));
        let files = limit_files("12:cpu,memory:/a\n3:cpu:/b\n0::/c/d\nnonsense\n");
        let files: Vec<_> = files.iter().map(|file| file.to_str().unwrap()).collect();
        let expected = [
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/c/d/memory.max",
            "/sys/fs/cgroup/c/memory.max",
            "/sys/fs/cgroup/memory.max",
        ];
        assert_eq!(files, expected);
    }

    #[test]
    fn limits_of_plans_are_the_engine_s_where_nobody_says() {
        let options = CacheArguments::default().set_in(EngineOptions::default()).unwrap();
        assert_eq!((options.plan_cache_entries, options.plan_cache_age), (None, None));
        let arguments = CacheArguments { plan_cache_entries: Some(0), plan_cache_age: Some(90), fragment_cache: None };
        let options = EngineOptions { memory_limit_bytes: Some(1), ..EngineOptions::default() };
        let options = arguments.set_in(options).unwrap();
        assert_eq!((options.plan_cache_entries, options.plan_cache_age), (Some(0), Some(Duration::from_secs(90))));
        assert_eq!(options.memory_limit_bytes, Some(1));
    }

    #[test]
    fn the_pool_and_queries_fit_into_memory() {
        const MIB: u64 = 1 << 20;
        let pool = |asked: Option<u64>, memory_limit: u64, fragment_cache: u64| {
            let others = Others { memory_limit: memory_limit * MIB, fragment_cache: fragment_cache * MIB };
            let bytes = pool_bytes(asked.map(|asked| ByteSize(asked * MIB)), others, Some(100 * MIB));
            bytes.map(|bytes| bytes / MIB)
        };
        assert_eq!(pool(None, 10, 0).unwrap(), 25);
        assert_eq!(pool(None, 80, 0).unwrap(), 10);
        assert_eq!(pool(None, 80, 10).unwrap(), 5);
        assert_eq!(pool(None, 200, 0).unwrap(), 0);
        assert_eq!(pool(Some(90), 10, 0).unwrap(), 90);
        assert_eq!(pool(Some(0), 200, 0).unwrap(), 0);
        let error = pool(Some(91), 10, 0).unwrap_err();
        assert!(error.message().contains("--memory-limit") && !error.message().contains("--fragment"), "{error:?}");
        let error = pool(Some(90), 10, 1).unwrap_err();
        assert!(error.message().contains("--fragment-cache"), "{error:?}");
        let small = Others { memory_limit: 1, fragment_cache: 1 };
        assert!(pool_bytes(Some(ByteSize(1)), small, None).unwrap_err().message().contains("too small"));
        assert!(memory_limit_bytes(Some(ByteSize(0))).unwrap_err().message().contains("too small"));
        assert_eq!(memory_limit_bytes(Some(ByteSize(MIB))).unwrap(), Some(MIB));
        assert!(check_fits(Some(ByteSize(101)), Some(100)).unwrap_err().message().contains("--fragment-cache"));
        check_fits(Some(ByteSize(100)), Some(100)).unwrap();
        let why = why_no_pool(None, 0, 200, Some(100)).unwrap();
        assert!(why.contains("--memory-limit") && why.contains("--buffer-pool"), "{why}");
        assert_eq!(why_no_pool(None, 10, 80, Some(100)), None);
        assert_eq!(why_no_pool(Some(ByteSize(0)), 0, 200, Some(100)), None);
    }
}
