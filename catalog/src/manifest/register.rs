//! A storage node enters the manifest by itself.

use std::time::Duration;

use aubade_environment::Deadline;
use aubade_proto::{Error, ErrorCode, Result, Retry};

use super::{Commit, Manifest};
use crate::action::Action;
use crate::backoff::Backoff;
use crate::snapshot::NodeEntry;

/// Time after which a node that cannot enter the manifest gives up. Longer than a store takes to come
/// back from a restart: whoever starts a cluster starts all of it at once.
const REGISTER_PATIENCE: Duration = Duration::from_secs(30);

impl Manifest {
    /// Enters `entry`, unless it is there as it is. A store that does not answer, or does not say what
    /// became of the commit, is asked again for some 30 seconds.
    ///
    /// # Errors
    /// `InUse` when another node has the address, `StoreUnavailable` with the last cause when the
    /// patience is over; others as [`Manifest::commit`].
    pub async fn register(&self, entry: &NodeEntry) -> Result<()> {
        let deadline = Deadline::after(self.environment.clock.as_ref(), REGISTER_PATIENCE);
        let mut backoff = Backoff::new(&self.environment);
        loop {
            let Some(problem) = self.try_register(entry).await? else { return Ok(()) };
            if deadline.is_past(self.environment.clock.as_ref()) {
                let message =
                    format!("storage node {} cannot enter the manifest at {}", entry.id, self.store.location());
                return Err(Error::new(ErrorCode::StoreUnavailable, message)
                    .hint("check that the manifest's store can be read and written")
                    .source(problem));
            }
            tracing::warn!(node = %entry.id, error = %problem.chain(), "the node did not enter the manifest yet; trying again");
            backoff.pause().await;
        }
    }

    /// What was in the way, if it may pass.
    async fn try_register(&self, entry: &NodeEntry) -> Result<Option<Error>> {
        let passing = |error: Error| if error.retry() == Retry::Later { Ok(Some(error)) } else { Err(error) };
        match self.refresh().await {
            Ok(newest) if newest.nodes.get(&entry.id) == Some(entry) => return Ok(None),
            Ok(_) => {}
            Err(error) => return passing(error),
        }
        match self.commit(self.new_transaction(), vec![Action::RegisterNode(entry.clone())]).await {
            Ok(Commit::Committed(_)) => Ok(None),
            // The next look at the manifest tells whether it was committed.
            Ok(Commit::Unknown(error)) => Ok(Some(error)),
            Err(error) => passing(error),
        }
    }
}
