//! A decorator whose answers to `create` follow a script: for tests of every way in which a store
//! can fail to say what happened.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use aubade_proto::{Error, ErrorCode, Result};
use bytes::Bytes;
use parking_lot::Mutex;

use super::{ManifestStore, PutOutcome};

/// What happens to one `create`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutScript {
    /// As the store itself does.
    Honest,
    /// The object is made, but the answer is lost (503, or a connection that broke).
    LostReply,
    /// The object is made, and the client below retried: it is told AlreadyExists of its own object.
    Twice,
    /// 409: told that it exists, though nothing was made.
    ConflictWithoutObject,
    /// 412: told that it exists, as an old name does; nothing was made by this call.
    PreconditionFailed,
    /// 503, and nothing was made.
    Unavailable,
    /// No answer now; the object is made after so many further calls to the store.
    Late(usize),
    /// Refused for good: no permission.
    Forbidden,
    /// Never answers. Nothing was made.
    Never,
}

#[derive(Debug)]
struct LatePut {
    calls_left: usize,
    name: String,
    bytes: Bytes,
}

#[derive(Debug, Default)]
struct State {
    puts: VecDeque<PutScript>,
    /// Once the script has run out.
    then: Option<PutScript>,
    failing_reads: usize,
    late: Vec<LatePut>,
    creates: Vec<String>,
    deletes: Vec<String>,
}

/// Another store with a script. Clones share it.
#[derive(Clone, Debug)]
pub struct ScriptedStore {
    inner: Arc<dyn ManifestStore>,
    state: Arc<Mutex<State>>,
}

impl ScriptedStore {
    /// Honest until told otherwise.
    pub fn new(inner: Arc<dyn ManifestStore>) -> Self {
        Self { inner, state: Arc::default() }
    }

    /// The next answers to `create`, one each; honest after them.
    pub fn script(&self, puts: impl IntoIterator<Item = PutScript>) {
        self.state.lock().puts = puts.into_iter().collect();
    }

    /// The answer to every `create` that has none of its own in the script; `None` is honest.
    pub fn always(&self, then: Option<PutScript>) {
        self.state.lock().then = then;
    }

    /// The next `count` reads and lists fail with `StoreUnavailable`.
    pub fn fail_reads(&self, count: usize) {
        self.state.lock().failing_reads = count;
    }

    /// The names of all calls to `create` so far.
    pub fn creates(&self) -> Vec<String> {
        self.state.lock().creates.clone()
    }

    /// The names of all calls to `delete` so far.
    pub fn deletes(&self) -> Vec<String> {
        self.state.lock().deletes.clone()
    }

    /// Lets late objects arrive.
    async fn tick(&self) {
        let due: Vec<LatePut> = {
            let mut state = self.state.lock();
            for late in &mut state.late {
                late.calls_left = late.calls_left.saturating_sub(1);
            }
            let (due, waiting) = state.late.drain(..).partition(|late| late.calls_left == 0);
            state.late = waiting;
            due
        };
        for late in due {
            // Nobody waits for the answer any more, whatever it is.
            let _ = self.inner.create(&late.name, late.bytes).await;
        }
    }

    fn check_read(&self, name: &str) -> Result<()> {
        let mut state = self.state.lock();
        if state.failing_reads == 0 {
            return Ok(());
        }
        state.failing_reads -= 1;
        Err(unavailable(name))
    }
}

fn unavailable(name: &str) -> Error {
    Error::new(ErrorCode::StoreUnavailable, format!("the store did not answer for {name} (scripted)"))
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ManifestStore for ScriptedStore {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn create(&self, name: &str, bytes: Bytes) -> PutOutcome {
        self.tick().await;
        let script = {
            let mut state = self.state.lock();
            state.creates.push(name.to_owned());
            let next = state.puts.pop_front();
            next.or(state.then).unwrap_or(PutScript::Honest)
        };
        match script {
            PutScript::Honest => self.inner.create(name, bytes).await,
            PutScript::LostReply => {
                let _ = self.inner.create(name, bytes).await;
                PutOutcome::Unknown(unavailable(name))
            }
            PutScript::Twice => {
                let _ = self.inner.create(name, bytes.clone()).await;
                self.inner.create(name, bytes).await
            }
            PutScript::ConflictWithoutObject | PutScript::PreconditionFailed => PutOutcome::AlreadyExists,
            PutScript::Unavailable => PutOutcome::Unknown(unavailable(name)),
            PutScript::Late(calls_left) => {
                self.state.lock().late.push(LatePut { calls_left, name: name.to_owned(), bytes });
                PutOutcome::Unknown(unavailable(name))
            }
            PutScript::Forbidden => {
                PutOutcome::Refused(Error::new(ErrorCode::PermissionDenied, format!("cannot create {name} (scripted)")))
            }
            PutScript::Never => std::future::pending().await,
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        self.tick().await;
        self.check_read(name)?;
        self.inner.get(name).await
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        self.tick().await;
        self.check_read(folder)?;
        self.inner.list(folder).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.state.lock().deletes.push(name.to_owned());
        self.inner.delete(name).await
    }

    async fn delete_all(&self, names: &[String]) -> Result<()> {
        self.state.lock().deletes.extend_from_slice(names);
        self.inner.delete_all(names).await
    }
}
