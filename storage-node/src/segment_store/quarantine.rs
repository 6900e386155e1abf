//! Segments that were found damaged: put aside, reported to the coordinator, and removed once a good copy is back or
//! nobody names the segment any more.

use std::collections::BTreeSet;
use std::io;

use aubade_proto::{Error, Result, SegmentId};

use super::{SegmentStore, data_path, id_of, sidecar_path};

impl SegmentStore {
    /// Takes note of what was put aside before the last start.
    pub(super) fn load_quarantine(&self) -> Result<()> {
        let folder = self.quarantine_folder();
        let names = self.list(&folder)?;
        let data: BTreeSet<SegmentId> = names.iter().filter_map(|name| id_of(name, ".parquet")).collect();
        for id in names.iter().filter_map(|name| id_of(name, ".sum")) {
            if !data.contains(&id) {
                // A crash between two removals, or the checksums of a segment whose data was lost.
                self.remove(&sidecar_path(&folder, id))?;
            }
        }
        self.state.write().quarantined = data;
        Ok(())
    }

    /// Puts a damaged segment aside, so that it is not served again and can be repaired. Blocks.
    pub(crate) fn quarantine(&self, id: SegmentId, reason: &Error) {
        // Against a deletion or a repair of the same segment at the same time.
        let _sealed = self.sealed.lock();
        let (from, to) = (self.segments(), self.quarantine_folder());
        {
            let mut state = self.state.write();
            let held = state.held.remove(&id);
            // Neither known nor there: it was deleted, or put aside already, while its reader still had it open.
            if held.is_none() && self.is_absent(&data_path(&from, id)) {
                return;
            }
            state.held_bytes = state.held_bytes.saturating_sub(held.map_or(0, |held| held.bytes));
            state.quarantined.insert(id);
        }
        tracing::error!(segment = %id, reason = %reason.chain(), "a segment is corrupt and was put into quarantine");
        let moved = self.env.files.rename(&data_path(&from, id), &data_path(&to, id));
        let _ = self.env.files.rename(&sidecar_path(&from, id), &sidecar_path(&to, id));
        let moved = match moved {
            // The data is lost: there is nothing to put aside.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            moved => moved,
        };
        let synced = moved.and_then(|()| self.env.files.sync_dir(&to)).and_then(|()| self.env.files.sync_dir(&from));
        if let Err(error) = synced {
            tracing::error!(segment = %id, %error, "a corrupt segment could not be moved");
        }
    }

    /// Removes what was put aside under an id; whether there was anything.
    pub(super) fn forget_quarantined(&self, id: SegmentId) -> bool {
        if !self.state.write().quarantined.remove(&id) {
            return false;
        }
        let folder = self.quarantine_folder();
        let removed = self.remove(&data_path(&folder, id)).and_then(|()| self.remove(&sidecar_path(&folder, id)));
        if let Err(error) = removed {
            tracing::warn!(segment = %id, error = %error.chain(), "a file in quarantine could not be removed");
        }
        true
    }

    fn is_absent(&self, path: &std::path::Path) -> bool {
        self.env.files.open(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}
