//! Commits of this process that are under way, or whose end is not known.

use std::collections::VecDeque;

use aubade_proto::{TransactionId, Version};

/// Entries kept; the oldest is forgotten, and [`super::Manifest::find`] then says "not known".
const ATTEMPTS_MAX: usize = 1024;

/// At which version each undecided transaction was last tried. Its fate is decided once that
/// version exists: the version is the transaction's, or another's and then never the transaction's.
#[derive(Debug, Default)]
pub(super) struct Attempts(VecDeque<(TransactionId, Version)>);

impl Attempts {
    /// Notes a try, before it is made.
    pub(super) fn note(&mut self, transaction: TransactionId, version: Version) {
        self.forget(transaction);
        if self.0.len() >= ATTEMPTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((transaction, version));
    }

    /// The transaction is decided.
    pub(super) fn forget(&mut self, transaction: TransactionId) {
        self.0.retain(|(known, _)| *known != transaction);
    }

    /// The version at which it was last tried.
    pub(super) fn version_of(&self, transaction: TransactionId) -> Option<Version> {
        self.0.iter().find(|(known, _)| *known == transaction).map(|(_, version)| *version)
    }
}
