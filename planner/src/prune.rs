//! Which segments cannot hold a row that a filter wants, and how the others are shared out.

use std::cmp::Reverse;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use aubade_catalog::SegmentStatistics;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;

/// Longer lists in `IN (...)` prune nothing: each value takes a pass over the statistics of all segments.
const IN_LIST_MAX: usize = 128;

/// Indices of the segments that may hold a row for which `filter` (over `schema`) is true. When statistics cannot tell,
/// a segment is kept: pruning never decides an answer.
pub fn prune_segments(
    statistics: &SegmentStatistics,
    schema: &SchemaRef,
    filter: Option<&Arc<dyn PhysicalExpr>>,
) -> Vec<usize> {
    let all = || (0..statistics.row_counts().len()).collect::<Vec<_>>();
    let Some(filter) = filter else { return all() };
    let predicate = PruningPredicateBuilder::new()
        .with_file_schema(Arc::clone(schema))
        .with_max_in_list_size(IN_LIST_MAX)
        .try_build(Arc::clone(filter));
    let keep = predicate.and_then(|predicate| predicate.prune(statistics));
    match keep {
        Ok(keep) => keep.into_iter().enumerate().filter_map(|(index, keep)| keep.then_some(index)).collect(),
        Err(error) => {
            tracing::debug!(%error, %filter, "segments cannot be pruned by this filter");
            all()
        }
    }
}

/// Shares `segments` out over at most `partitions_max` partitions (at least one, none of them empty unless there are no
/// segments), so that each gets about the same number of rows. Deterministic; each share is in ascending order.
pub fn share_segments(segments: &[usize], rows: impl Fn(usize) -> u64, partitions_max: usize) -> Vec<Vec<usize>> {
    let partition_count = partitions_max.min(segments.len()).max(1);
    let mut by_size = segments.to_vec();
    by_size.sort_by_key(|segment| (Reverse(rows(*segment)), *segment));
    let mut shares = vec![(0_u64, Vec::new()); partition_count];
    for segment in by_size {
        let lightest = shares.iter_mut().min_by_key(|(rows, share)| (*rows, share.len()));
        let Some((sum, share)) = lightest else { continue };
        *sum = sum.saturating_add(rows(segment));
        share.push(segment);
    }
    let sorted = shares.into_iter().map(|(_, mut share)| {
        share.sort_unstable();
        share
    });
    sorted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_about_the_same_number_of_rows() {
        let rows = [10, 1, 9, 1, 1];
        let shares = share_segments(&[0, 1, 2, 3, 4], |segment| rows[segment], 2);
        assert_eq!(shares, [vec![0, 3], vec![1, 2, 4]]);
    }

    #[test]
    fn there_is_one_share_even_without_segments() {
        assert_eq!(share_segments(&[], |_| 0, 8), [Vec::<usize>::new()]);
        assert_eq!(share_segments(&[3, 5], |_| 0, 8), [vec![3], vec![5]]);
    }
}
