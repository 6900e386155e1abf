//! Results of fragments over single segments, kept for the next time: segments never change, so that what a fragment
//! makes of one is the same whenever it is asked.
//!
//! Only what a reduction leaves of a segment is kept, and only where that is little: it would have been merged with that
//! of other segments. The first rows of an order are not where other segments have told which rows cannot be among them;
//! nor is what the keys of a join cut down, which is hardly ever asked for twice.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use aubade_proto::convert::encode_fragment;
use aubade_proto::{Fragment, Membership, SegmentId};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::utils::memory::get_record_batch_memory_size;
use moka::sync::Cache;
use prost::Message;
use ring::digest::{SHA256, digest};

use crate::limits::{FRAGMENT_KEY_BYTES_MAX, RESULT_BYTES_MIN};

/// Names a fragment by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey([u8; 32]);

impl FragmentKey {
    /// The key of a fragment whose results may be kept, with batches of so many rows.
    pub fn of(fragment: &Fragment, batch_rows: usize) -> Option<Self> {
        let reduction = fragment.reduction()?;
        if fragment.limit().is_some() || has_join_keys(fragment) {
            return None;
        }
        let build_bytes: usize = reduction.builds().iter().map(get_record_batch_memory_size).sum();
        if build_bytes > FRAGMENT_KEY_BYTES_MAX {
            return None;
        }
        let mut bytes = encode_fragment(fragment).ok()?.encode_to_vec();
        if bytes.len() > FRAGMENT_KEY_BYTES_MAX {
            return None;
        }
        bytes.extend_from_slice(&batch_rows.to_le_bytes());
        digest(&SHA256, &bytes).as_ref().try_into().ok().map(Self)
    }
}

fn has_join_keys(fragment: &Fragment) -> bool {
    let mut found = false;
    if let Some(filter) = fragment.filter() {
        // The closure never fails, so neither does the walk.
        let _ = filter.apply(|part| {
            found |= part.is::<Membership>();
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        });
    }
    found
}

/// A cache of results, bounded by their bytes. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct ResultCache {
    cache: Cache<(SegmentId, FragmentKey), Arc<[RecordBatch]>>,
}

impl ResultCache {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let weigh = |_: &(SegmentId, FragmentKey), batches: &Arc<[RecordBatch]>| {
            let bytes: usize = batches.iter().map(get_record_batch_memory_size).sum();
            u32::try_from(bytes.saturating_add(RESULT_BYTES_MIN)).unwrap_or(u32::MAX)
        };
        Self { cache: Cache::builder().max_capacity(bytes_max).weigher(weigh).build() }
    }

    /// Forgets all of them.
    pub(crate) fn clear(&self) {
        self.cache.invalidate_all();
    }
}

/// The results of one fragment.
#[derive(Clone, Debug)]
pub(crate) struct FragmentResults {
    cache: ResultCache,
    key: FragmentKey,
}

impl FragmentResults {
    pub(crate) fn new(cache: &ResultCache, key: FragmentKey) -> Self {
        Self { cache: cache.clone(), key }
    }

    /// What the fragment made of a segment, if that is known.
    pub(crate) fn get(&self, segment: SegmentId) -> Option<Vec<RecordBatch>> {
        self.cache.cache.get(&(segment, self.key)).map(|batches| batches.to_vec())
    }

    /// Keeps what the fragment made of a segment.
    pub(crate) fn add(&self, segment: SegmentId, batches: &[RecordBatch]) {
        self.cache.cache.insert((segment, self.key), batches.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};
    use aubade_proto::convert::decode_fragment;
    use aubade_proto::{ProjectionColumn, Reduction};
    use datafusion::functions_aggregate::sum::sum_udaf;
    use datafusion::physical_expr::aggregate::AggregateExprBuilder;
    use datafusion::physical_expr::expressions::{BinaryExpr, Column, lit};
    use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
    use datafusion::physical_plan::empty::EmptyExec;
    use datafusion::physical_plan::expressions::col;
    use datafusion::prelude::SessionContext;

    use super::*;

    /// `SELECT b, sum(a) ... WHERE a > least GROUP BY b`.
    fn fragment(least: i64) -> Fragment {
        let schema = Arc::new(Schema::new(vec![
            Field::new("a", DataType::Int64, true),
            Field::new("b", DataType::Utf8View, true),
        ]));
        let column = |name: &str, index| ProjectionColumn {
            expression: Arc::new(Column::new(name, index)),
            name: name.to_owned(),
        };
        let filter = BinaryExpr::new(col("a", &schema).unwrap(), datafusion::logical_expr::Operator::Gt, lit(least));
        let fragment =
            Fragment::try_new(Arc::clone(&schema), Some(Arc::new(filter)), vec![column("a", 0), column("b", 1)], None)
                .unwrap();
        let total = AggregateExprBuilder::new(sum_udaf(), vec![col("a", &schema).unwrap()])
            .schema(Arc::clone(&schema))
            .alias("total")
            .build()
            .unwrap();
        let groups = PhysicalGroupBy::new_single(vec![(col("b", &schema).unwrap(), "b".to_owned())]);
        let input = Arc::new(EmptyExec::new(Arc::clone(&schema)));
        let aggregate =
            AggregateExec::try_new(AggregateMode::Partial, groups, vec![Arc::new(total)], vec![None], input, schema)
                .unwrap();
        fragment.with_reduction(Reduction::aggregate(&aggregate).unwrap()).unwrap()
    }

    fn received(fragment: &Fragment) -> Fragment {
        decode_fragment(&encode_fragment(fragment).unwrap(), &SessionContext::new().task_ctx()).unwrap()
    }

    #[test]
    fn the_key_of_a_fragment_is_the_same_whenever_it_arrives() {
        let key = FragmentKey::of(&received(&fragment(5)), 100).unwrap();
        assert_eq!(FragmentKey::of(&received(&fragment(5)), 100), Some(key));
        assert_ne!(FragmentKey::of(&received(&fragment(6)), 100), Some(key));
        assert_ne!(FragmentKey::of(&received(&fragment(5)), 101), Some(key));
    }
}
