//! What Aubade takes from outside: clock, randomness, files, network and tasks.
//!
//! Every other crate reaches the machine through an [`Environment`], so that the same code runs in
//! production, inside one test process, and later as a whole cluster simulated from one seed.
//! `clippy.toml` at the root of the workspace bans the direct calls.

pub mod clock;
pub mod files;
pub mod network;
pub mod random;
pub mod tasks;

use std::sync::Arc;

pub use clock::{Clock, Deadline, SystemClock};
pub use files::{FaultyFiles, FileFault, FileLock, FileSystem, MemoryFiles, ReadFile, SystemFiles, WriteFile};
pub use network::{Connection, Listener, Network, PeerInfo, TcpNetwork};
pub use random::{Random, SeededRandom, SystemRandom, uuid_v7};
pub use tasks::TaskGroup;

/// The components that a process takes from outside. Cheap to clone: every part is shared.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Time: monotonic, wall, and sleeping.
    pub clock: Arc<dyn Clock>,
    /// Random bits, for ids and jitter.
    pub random: Arc<dyn Random>,
    /// The local file system.
    pub files: Arc<dyn FileSystem>,
    /// Listeners and outgoing connections.
    pub network: Arc<dyn Network>,
}

impl Environment {
    /// The real machine.
    pub fn system() -> Self {
        Self {
            clock: Arc::new(SystemClock::default()),
            random: Arc::new(SystemRandom),
            files: Arc::new(SystemFiles),
            network: Arc::new(TcpNetwork),
        }
    }

    /// A new time-ordered id (UUID version 7).
    pub fn new_uuid(&self) -> uuid::Uuid {
        uuid_v7(self.clock.as_ref(), self.random.as_ref())
    }

    /// The same environment over another file system.
    pub fn with_files(mut self, files: Arc<dyn FileSystem>) -> Self {
        self.files = files;
        self
    }
}
