//! Footers of segments, kept decoded with the open file.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use aubade_proto::{Error, Result, SegmentId};
use moka::sync::Cache;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use super::reader::SegmentReader;
use crate::limits::FOOTER_BYTES_MIN;
use crate::segment_store::{SegmentBytes, SegmentStore};

/// What is needed to start reading a segment.
#[derive(Debug)]
pub(crate) struct Footer {
    pub(crate) file: Arc<dyn SegmentBytes>,
    /// With the page index, where the file has one.
    pub(crate) metadata: Arc<ParquetMetaData>,
    /// The same for a reader of columns as the file describes them.
    pub(crate) arrow: ArrowReaderMetadata,
}

impl Footer {
    pub(crate) fn new(file: Arc<dyn SegmentBytes>, metadata: Arc<ParquetMetaData>) -> Result<Self> {
        let arrow = ArrowReaderMetadata::try_new(Arc::clone(&metadata), ArrowReaderOptions::new())
            .map_err(|error| SegmentReader::new(Arc::clone(&file)).explain(error))?;
        Ok(Self { file, metadata, arrow })
    }

    /// The columns as the file describes them.
    pub(crate) fn schema(&self) -> &SchemaRef {
        self.arrow.schema()
    }
}

/// A cache of footers, bounded by their bytes.
#[derive(Debug)]
pub(crate) struct FooterCache {
    cache: Cache<SegmentId, Arc<Footer>>,
}

impl FooterCache {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let weigh = |_: &SegmentId, footer: &Arc<Footer>| {
            u32::try_from(footer.metadata.memory_size().max(FOOTER_BYTES_MIN)).unwrap_or(u32::MAX)
        };
        Self { cache: Cache::builder().max_capacity(bytes_max).weigher(weigh).build() }
    }

    /// The footer of a held segment and the bytes that were read to get it. Blocks.
    pub(crate) fn get(&self, store: &SegmentStore, id: SegmentId) -> Result<(Arc<Footer>, u64)> {
        let mut bytes_read = 0;
        let footer = self.cache.try_get_with(id, || {
            let (footer, read) = load(store, id)?;
            bytes_read = read;
            Ok::<_, Error>(Arc::new(footer))
        });
        match footer {
            Ok(footer) => Ok((footer, bytes_read)),
            Err(error) => Err(error.as_ref().clone()),
        }
    }

    /// Forgets a segment that is no longer held.
    pub(crate) fn remove(&self, id: SegmentId) {
        self.cache.invalidate(&id);
    }
}

fn load(store: &SegmentStore, id: SegmentId) -> Result<(Footer, u64)> {
    let file: Arc<dyn SegmentBytes> = Arc::new(store.open_segment(id)?);
    let reader = SegmentReader::new(Arc::clone(&file));
    let metadata = ParquetMetaDataReader::new()
        .with_page_index_policy(PageIndexPolicy::Optional)
        .parse_and_finish(&reader)
        .map_err(|error| reader.explain(error))?;
    Ok((Footer::new(file, Arc::new(metadata))?, reader.bytes_read()))
}
