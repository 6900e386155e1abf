//! The newest version that is known, with all that the next one has to name.

use std::collections::VecDeque;
use std::sync::Arc;

use aubade_proto::wire::manifest as wire;
use aubade_proto::{ClusterId, Epoch, Error, ErrorCode, Result, ResultExt, TransactionId, Version};
use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use super::codec::{decode_actions, decode_mark, decode_sha256, encode_actions, encode_mark};
use super::commit::Change;
use super::frame::{Framed, Kind, unwrap, wrap};
use super::{HISTORY_MAX, names};
use crate::action::Action;
use crate::quorum::Quorum;
use crate::snapshot::Snapshot;

/// That a transaction became a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) epoch: Epoch,
    pub(super) transaction: TransactionId,
    pub(super) version: Version,
}

/// See the module's doc. Immutable.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) snapshot: Arc<Snapshot>,
    /// Of the payload of its version object; `None` before version 1.
    sha256: Option<[u8; 32]>,
    /// The last transactions, newest last.
    pub(super) history: VecDeque<Mark>,
    /// Names of versions at or below it may have been collected, and are never used again.
    pub(super) gc_floor: Version,
}

/// A version that is ready to be created.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) head: Head,
    pub(super) name: String,
    pub(super) object: Bytes,
}

/// Wraps what is wrong with an object in an error that names it.
fn unreadable(object: &str, error: Error) -> Error {
    let code = match error.code() {
        ErrorCode::UnsupportedVersion => ErrorCode::UnsupportedVersion,
        _ => ErrorCode::ManifestCorrupt,
    };
    let wrapped = Error::new(code, format!("object {object} of the manifest cannot be read: {}", error.message()));
    let hint =
        error.hint_text().unwrap_or("restore the object from a backup or an older version of the bucket").to_owned();
    wrapped.hint(hint).source(error)
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::new(ErrorCode::ManifestCorrupt, what())) }
}

impl Head {
    /// The state from which version 1 is made.
    pub(super) fn before_everything(id: ClusterId, quorum: Quorum) -> Self {
        Self {
            snapshot: Arc::new(Snapshot::empty(id, quorum)),
            sha256: None,
            history: VecDeque::new(),
            gc_floor: Version(0),
        }
    }

    pub(super) fn version(&self) -> Version {
        self.snapshot.version
    }

    /// The mark of a transaction, if it is one of the last.
    pub(super) fn mark(&self, transaction: TransactionId) -> Option<Mark> {
        self.history.iter().rev().find(|mark| mark.transaction == transaction).copied()
    }

    fn history_with(&self, mark: Mark) -> VecDeque<Mark> {
        let mut history = self.history.clone();
        history.push_back(mark);
        while history.len() > HISTORY_MAX {
            history.pop_front();
        }
        history
    }

    /// The next version, made of `change`.
    ///
    /// # Errors
    /// Those of [`Snapshot::apply`].
    pub(super) fn prepare(&self, transaction: TransactionId, writer: Uuid, change: &Change) -> Result<Prepared> {
        let version = self.version().next();
        let snapshot = Arc::new(self.snapshot.apply(version, &change.actions)?);
        let gc_floor = self.gc_floor.max(change.gc_floor);
        if gc_floor >= version {
            return Err(Error::internal(format!("collection floor {gc_floor} does not fit version {version}")));
        }
        let history = self.history_with(Mark { epoch: snapshot.epoch, transaction, version });
        let message = wire::VersionObject {
            cluster_id: snapshot.cluster_id.to_wire(),
            version: version.0,
            parent_version: self.version().0,
            parent_sha256: self.parent_sha256(),
            epoch: snapshot.epoch.0,
            writer_id: Bytes::copy_from_slice(writer.as_bytes()),
            transaction_id: transaction.to_wire(),
            history: history.iter().map(encode_mark).collect(),
            gc_floor: gc_floor.0,
            actions: encode_actions(&change.actions)?,
        };
        let (object, sha256) = wrap(Kind::Version, &message.encode_to_vec());
        let head = Self { snapshot, sha256: Some(sha256), history, gc_floor };
        Ok(Prepared { head, name: names::version(version), object })
    }

    fn parent_sha256(&self) -> Bytes {
        self.sha256.map(|sha256| Bytes::copy_from_slice(&sha256)).unwrap_or_default()
    }

    /// The head after the version that `object` holds.
    ///
    /// # Errors
    /// `ManifestCorrupt` that names the object, when it cannot be read or does not follow `self`.
    pub(super) fn advance(&self, object: &Bytes) -> Result<Self> {
        let name = names::version(self.version().next());
        self.try_advance(object).map_err(|error| unreadable(&name, error))
    }

    fn try_advance(&self, object: &Bytes) -> Result<Self> {
        let (message, sha256) = decode_version(object)?;
        let version = self.version().next();
        let state = &self.snapshot;
        check(message.version == version.0, || format!("it is version {} and not {version}", message.version))?;
        check(message.parent_version == state.version.0 && message.parent_sha256 == self.parent_sha256(), || {
            format!("its parent is not version {} as it stands here", state.version)
        })?;
        let cluster = ClusterId::from_wire(&message.cluster_id, "cluster_id")?;
        let actions = decode_actions(state, &message.actions)?;
        if state.version == Version(0) {
            let made = matches!(actions.first(), Some(Action::CreateCluster { id, .. }) if *id == cluster);
            check(made, || "the first version does not make the cluster".to_owned())?;
        } else {
            check(cluster == state.cluster_id, || {
                format!("it belongs to cluster {cluster}, not to {}", state.cluster_id)
            })?;
        }
        let snapshot = state.apply(version, &actions)?;
        check(message.epoch == snapshot.epoch.0, || {
            format!("its epoch is {} instead of {}", message.epoch, snapshot.epoch)
        })?;
        check(message.gc_floor >= self.gc_floor.0 && message.gc_floor < version.0, || {
            format!("its collection floor {} is out of range", message.gc_floor)
        })?;
        let transaction = TransactionId::from_wire(&message.transaction_id, "transaction_id")?;
        let history = self.history_with(Mark { epoch: snapshot.epoch, transaction, version });
        check(read_history(&message.history)? == history, || "its history is not that of its parent".to_owned())?;
        Ok(Self { snapshot: Arc::new(snapshot), sha256: Some(sha256), history, gc_floor: Version(message.gc_floor) })
    }

    /// The checkpoint object of this version.
    ///
    /// # Errors
    /// When a part of the state has no wire form.
    pub(super) fn to_checkpoint(&self) -> Result<Bytes> {
        let message = wire::CheckpointObject {
            cluster_id: self.snapshot.cluster_id.to_wire(),
            version: self.version().0,
            version_sha256: self.parent_sha256(),
            epoch: self.snapshot.epoch.0,
            history: self.history.iter().map(encode_mark).collect(),
            gc_floor: self.gc_floor.0,
            actions: encode_actions(&self.snapshot.to_actions())?,
        };
        Ok(wrap(Kind::Checkpoint, &message.encode_to_vec()).0)
    }

    /// The head at a checkpoint.
    ///
    /// # Errors
    /// `ManifestCorrupt` that names the object.
    pub(super) fn from_checkpoint(version: Version, object: &Bytes) -> Result<Self> {
        Self::try_from_checkpoint(version, object).map_err(|error| unreadable(&names::checkpoint(version), error))
    }

    fn try_from_checkpoint(version: Version, object: &Bytes) -> Result<Self> {
        let Framed { payload, .. } = unwrap(Kind::Checkpoint, object)?;
        let message = wire::CheckpointObject::decode(payload)
            .context(ErrorCode::ManifestCorrupt, || "its content is no checkpoint".to_owned())?;
        check(message.version == version.0, || format!("it is version {} and not {version}", message.version))?;
        let cluster = ClusterId::from_wire(&message.cluster_id, "cluster_id")?;
        // The first action brings the quorum.
        let empty = Snapshot::empty(cluster, Quorum::for_copies(1)?);
        let snapshot = empty.apply(version, &decode_actions(&empty, &message.actions)?)?;
        check(snapshot.cluster_id == cluster && snapshot.epoch.0 == message.epoch, || {
            "its cluster or epoch is not that of its actions".to_owned()
        })?;
        check(message.gc_floor < version.0, || format!("its collection floor {} is out of range", message.gc_floor))?;
        Ok(Self {
            snapshot: Arc::new(snapshot),
            sha256: Some(decode_sha256(&message.version_sha256, "version_sha256")?),
            history: read_history(&message.history)?,
            gc_floor: Version(message.gc_floor),
        })
    }

    /// Whether `object` is the version object of this very head.
    pub(super) fn is_of(&self, object: &Bytes) -> bool {
        unwrap(Kind::Version, object).is_ok_and(|framed| Some(framed.sha256) == self.sha256)
    }
}

fn decode_version(object: &Bytes) -> Result<(wire::VersionObject, [u8; 32])> {
    let Framed { payload, sha256 } = unwrap(Kind::Version, object)?;
    let message = wire::VersionObject::decode(payload)
        .context(ErrorCode::ManifestCorrupt, || "its content is no version".to_owned())?;
    Ok((message, sha256))
}

fn read_history(marks: &[wire::TransactionMark]) -> Result<VecDeque<Mark>> {
    check(marks.len() <= HISTORY_MAX, || format!("its history has {} entries", marks.len()))?;
    marks.iter().map(decode_mark).collect()
}

/// The history in the object of `version`, oldest first.
///
/// # Errors
/// `ManifestCorrupt` that names the object.
pub(super) fn history_of(version: Version, object: &Bytes) -> Result<VecDeque<Mark>> {
    let read = || read_history(&decode_version(object)?.0.history);
    read().map_err(|error| unreadable(&names::version(version), error))
}
