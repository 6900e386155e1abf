//! The storage node of Aubade: segment files with block checksums, scans over them, replication and
//! the gRPC service.
//!
//! A [`StorageNode`] owns one data folder. It knows segments, fragments and its own cluster; it
//! never plans SQL and never looks at the manifest.
//!
//! ```text
//! DIR/LOCK                     held while the folder is in use
//! DIR/node.json                who the node is
//! DIR/epoch.json               the highest epoch sealed here
//! DIR/scrub.json               how far the round of scrubbing has come
//! DIR/segments/<id>.parquet    the stored bytes
//! DIR/segments/<id>.sum        what they are and the checksums of their blocks
//! DIR/incoming/                files that are still arriving; emptied at start
//! DIR/quarantine/              files that were found corrupt
//! ```

mod blocking;
mod cpu;
mod decoded;
mod fetched;
mod identity;
mod limits;
mod node;
mod options;
mod replicate;
mod scan;
mod scrub;
mod segment_store;
mod serve;
mod service;
#[cfg(test)]
mod testing;

pub use decoded::{DecodedColumn, DecodedSegment, DecodedSegments};
pub use fetched::{FetchedSegment, FragmentRunner, RangeReader, columns_read};
pub use limits::{BLOCK_BYTES, DICTIONARY_TEXTS_MAX};
pub use node::StorageNode;
pub use options::StorageNodeOptions;
pub use scan::FragmentKey;
pub use segment_store::Blocks;
pub use serve::serve;
