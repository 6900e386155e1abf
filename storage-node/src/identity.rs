//! Who the node is and which epoch it has sealed: small files in the data folder.

use std::io;
use std::path::{Path, PathBuf};

use aubade_environment::files::{create_durable, read_file, replace_durable};
use aubade_environment::{Environment, FileLock};
use aubade_proto::{ClusterId, Epoch, Error, ErrorCode, NodeId, Result, ResultExt};
use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct NodeFile {
    format: u32,
    node_id: NodeId,
    cluster_id: ClusterId,
}

#[derive(Serialize, Deserialize)]
struct EpochFile {
    format: u32,
    epoch: Epoch,
}

/// Makes the folder if absent and takes its lock.
pub(crate) fn lock_folder(env: &Environment, folder: &Path) -> Result<Box<dyn FileLock>> {
    let name = folder.display();
    env.files.create_dir_all(folder).context(ErrorCode::Io, || format!("data folder {name} cannot be made"))?;
    match env.files.lock(&folder.join("LOCK")) {
        Ok(lock) => Ok(lock),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(Error::new(ErrorCode::InUse, format!("data folder {name} is in use by another storage node"))
                .hint("stop that one, or choose another folder"))
        }
        Err(error) => Err(error).context(ErrorCode::Io, || format!("data folder {name} cannot be locked")),
    }
}

/// The node id in the folder; a new one is kept there if there is none.
pub(crate) fn load_or_create_id(env: &Environment, folder: &Path, cluster: ClusterId) -> Result<NodeId> {
    let path = folder.join("node.json");
    if let Some(file) = read_json::<NodeFile>(env, &path)? {
        check_format(file.format, &path)?;
        if file.cluster_id != cluster {
            let text =
                format!("data folder {} belongs to cluster {}, not to {cluster}", folder.display(), file.cluster_id);
            return Err(
                Error::new(ErrorCode::WrongCluster, text).hint("choose the cluster's own folder, or an empty one")
            );
        }
        return Ok(file.node_id);
    }
    let node_id = NodeId(env.new_uuid());
    let file = NodeFile { format: FORMAT, node_id, cluster_id: cluster };
    let bytes = serde_json::to_vec_pretty(&file).context(ErrorCode::Internal, || "the node file".to_owned())?;
    create_durable(env.files.as_ref(), &path, &bytes, env.random.next_u64())
        .context(ErrorCode::Io, || format!("{} cannot be written", path.display()))?;
    Ok(node_id)
}

/// The highest epoch sealed in the folder; 0 if none was.
pub(crate) fn load_epoch(env: &Environment, folder: &Path) -> Result<Epoch> {
    let path = epoch_path(folder);
    match read_json::<EpochFile>(env, &path)? {
        Some(file) => check_format(file.format, &path).map(|()| file.epoch),
        None => Ok(Epoch(0)),
    }
}

/// Puts the sealed epoch on stable storage.
pub(crate) fn store_epoch(env: &Environment, folder: &Path, epoch: Epoch) -> Result<()> {
    let path = epoch_path(folder);
    let bytes = serde_json::to_vec_pretty(&EpochFile { format: FORMAT, epoch })
        .context(ErrorCode::Internal, || "the epoch file".to_owned())?;
    replace_durable(env.files.as_ref(), &path, &bytes, env.random.next_u64())
        .context(ErrorCode::Io, || format!("{} cannot be written", path.display()))
}

fn epoch_path(folder: &Path) -> PathBuf {
    folder.join("epoch.json")
}

fn check_format(format: u32, path: &Path) -> Result<()> {
    if format == FORMAT {
        return Ok(());
    }
    let text = format!("{} has format {format} and this build knows {FORMAT}", path.display());
    Err(Error::new(ErrorCode::UnsupportedVersion, text).hint("start the folder with a newer release of aubade"))
}

fn read_json<T: serde::de::DeserializeOwned>(env: &Environment, path: &Path) -> Result<Option<T>> {
    let bytes = match read_file(env.files.as_ref(), path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(ErrorCode::Io, || format!("{} cannot be read", path.display())),
    };
    let value = serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(ErrorCode::Io, format!("{} is damaged", path.display()))
            .hint("move the data folder away and start the node with an empty one; it is repaired from other replicas")
            .source(error)
    })?;
    Ok(Some(value))
}
