//! Leaving out row groups and pages that cannot hold a row that passes: by statistics, Bloom
//! filters and the page index.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use aubade_proto::ScanStatistics;
use datafusion::common::Column as StatisticsColumn;
use datafusion::common::pruning::PruningStatistics;
use datafusion::datasource::physical_plan::parquet::{
    BloomFilterStatistics, PagePruningAccessPlanFilter, ParquetAccessPlan, ParquetFileMetrics, RowGroupAccess,
    RowGroupAccessPlanFilter,
};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};
use datafusion::physical_expr::utils::{collect_columns, conjunction};
use datafusion::physical_expr::{PhysicalExpr, split_conjunction};
use datafusion::physical_expr_adapter::{DefaultPhysicalExprAdapterFactory, PhysicalExprAdapterFactory};
use datafusion::physical_optimizer::pruning::{PruningPredicate, PruningPredicateBuilder};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::scalar::ScalarValue;
use parquet::arrow::arrow_reader::RowSelection;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::parquet_column;
use parquet::bloom_filter::Sbbf;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};

use super::reader::SegmentReader;
use super::selection::mask_of;

/// A row group to read, with the rows in it that may pass.
pub(crate) type GroupAccess = (usize, Option<RowSelection>);

/// Prunes segments of one schema.
#[derive(Debug)]
pub(crate) struct Pruner {
    /// `None` where the filter says nothing about statistics.
    predicate: Option<Arc<PruningPredicate>>,
    pages: Option<PagePruningAccessPlanFilter>,
    /// The columns that are read.
    columns: Vec<String>,
    metrics: ParquetFileMetrics,
}

impl Pruner {
    /// For `filter` over `scan_schema`, on files whose columns are `file_schema`. A filter that does
    /// not fit prunes nothing: pruning is never needed for the right answer.
    pub(crate) fn new(
        filter: Option<&Arc<dyn PhysicalExpr>>,
        scan_schema: &SchemaRef,
        file_schema: &SchemaRef,
    ) -> Self {
        let metrics = ParquetFileMetrics::new(0, "", &ExecutionPlanMetricsSet::new());
        let adapted = filter.and_then(|filter| {
            let factory = DefaultPhysicalExprAdapterFactory;
            let adapter = factory.create(Arc::clone(scan_schema), Arc::clone(file_schema)).ok()?;
            prunable(&adapter.rewrite(Arc::clone(filter)).ok()?, file_schema)
        });
        let columns = scan_schema.fields().iter().map(|field| field.name().clone()).collect();
        let Some(filter) = adapted else { return Self { predicate: None, pages: None, columns, metrics } };
        let predicate =
            PruningPredicateBuilder::new().with_file_schema(Arc::clone(file_schema)).build(Arc::clone(&filter));
        let pages = PagePruningAccessPlanFilter::new(&filter, Arc::clone(file_schema));
        Self { predicate, pages: Some(pages).filter(|pages| pages.filter_number() > 0), columns, metrics }
    }

    /// The row groups to read, in the order of the file.
    pub(crate) fn prune(
        &self,
        reader: &SegmentReader,
        metadata: &ParquetMetaData,
        file_schema: &Schema,
        statistics: &mut ScanStatistics,
    ) -> Vec<GroupAccess> {
        let groups = metadata.row_groups();
        statistics.row_groups = groups.len() as u64;
        let mut plan = ParquetAccessPlan::new_all(groups.len());
        let Some(predicate) = &self.predicate else { return accesses(plan) };
        let parquet_schema = metadata.file_metadata().schema_descr();
        let admitted = GroupStatistics { metadata, file_schema, groups: groups.iter().collect() }.admitted(predicate);
        (0..groups.len()).filter(|index| admitted.get(*index) == Some(&false)).for_each(|index| plan.skip(index));
        let mut filter = RowGroupAccessPlanFilter::new(plan);
        let kept = filter.remaining_row_group_count();
        statistics.row_groups_pruned_statistics = (groups.len() - kept) as u64;
        if kept > 0
            && let Some(blooms) = bloom_filters(&filter, predicate, reader, metadata, file_schema)
        {
            filter.prune_by_bloom_filters(predicate, &self.metrics, &blooms);
            statistics.row_groups_pruned_bloom = kept.saturating_sub(filter.remaining_row_group_count()) as u64;
        }
        let plan = filter.build();
        let Some(pages) = &self.pages else { return accesses(plan) };
        let before = plan.row_group_indexes();
        let plan = pages.prune_plan_with_page_index(plan, file_schema, parquet_schema, metadata, &self.metrics);
        let rows_of =
            |index: &usize| groups.get(*index).map_or(0, |group| u64::try_from(group.num_rows()).unwrap_or(0));
        let rows_before: u64 = before.iter().map(rows_of).sum();
        let kept = accesses(plan);
        let rows_kept: u64 = kept
            .iter()
            .map(|(index, selection)| selection.as_ref().map_or_else(|| rows_of(index), |rows| rows.row_count() as u64))
            .sum();
        statistics.rows_pruned_pages = rows_before.saturating_sub(rows_kept);
        if statistics.rows_pruned_pages > 0 {
            statistics.pages_pruned = self.pages_pruned(metadata, file_schema, &before, &kept);
        }
        kept
    }

    /// How many pages of the columns read have none of the rows that are `kept` of some row groups. DataFusion counts
    /// those of one column, whatever column was pruned by.
    fn pages_pruned(
        &self,
        metadata: &ParquetMetaData,
        file_schema: &Schema,
        groups: &[usize],
        kept: &[GroupAccess],
    ) -> u64 {
        let parquet_schema = metadata.file_metadata().schema_descr();
        let columns = self.columns.iter().filter_map(|name| parquet_column(parquet_schema, file_schema, name));
        let columns: Vec<usize> = columns.map(|(column, _)| column).collect();
        let pages = |group: usize, column: usize| {
            let index = metadata.offset_index()?.get(group)?.get(column)?;
            let starts = index.page_locations().iter().map(|page| usize::try_from(page.first_row_index).ok());
            starts.collect::<Option<Vec<_>>>()
        };
        let of_group = |group: &usize| {
            let rows =
                metadata.row_groups().get(*group).map_or(0, |group| usize::try_from(group.num_rows()).unwrap_or(0));
            let mask = match kept.iter().find(|(index, _)| index == group) {
                Some((_, None)) => return 0,
                Some((_, Some(selection))) => Some(mask_of(selection, rows)),
                None => None,
            };
            let is_left = |first: usize, end: usize| match &mask {
                Some(mask) if first < end && end <= mask.len() => mask.slice(first, end - first).count_set_bits() > 0,
                Some(_) => true,
                None => false,
            };
            let of_column = |column: &usize| {
                let starts = pages(*group, *column).unwrap_or_default();
                let ends = starts.iter().skip(1).copied().chain([rows]);
                starts.iter().zip(ends).filter(|(first, end)| !is_left(**first, *end)).count() as u64
            };
            columns.iter().map(of_column).sum()
        };
        groups.iter().map(of_group).sum()
    }

    /// Whether a row group may hold a row that passes, by its statistics alone.
    pub(crate) fn admits(&self, metadata: &ParquetMetaData, file_schema: &Schema, group: usize) -> bool {
        let Some(predicate) = &self.predicate else { return true };
        let groups = metadata.row_groups().get(group).into_iter().collect();
        GroupStatistics { metadata, file_schema, groups }.admitted(predicate).first() != Some(&false)
    }
}

/// The statistics of some row groups.
struct GroupStatistics<'a> {
    metadata: &'a ParquetMetaData,
    file_schema: &'a Schema,
    groups: Vec<&'a RowGroupMetaData>,
}

impl<'a> GroupStatistics<'a> {
    /// For each row group, whether it may hold a row that passes; empty where that cannot be told. DataFusion's
    /// `prune_by_statistics` also finds out which of them hold no other rows, for limits, and makes and simplifies the
    /// opposite predicate for that, anew for each file.
    fn admitted(&self, predicate: &PruningPredicate) -> Vec<bool> {
        predicate.prune(self).unwrap_or_else(|error| {
            tracing::debug!(%error, "row groups cannot be pruned by this filter");
            Vec::new()
        })
    }

    fn converter(&self, column: &StatisticsColumn) -> Option<StatisticsConverter<'a>> {
        let parquet_schema = self.metadata.file_metadata().schema_descr();
        StatisticsConverter::try_new(&column.name, self.file_schema, parquet_schema).ok()
    }
}

impl PruningStatistics for GroupStatistics<'_> {
    fn min_values(&self, column: &StatisticsColumn) -> Option<ArrayRef> {
        self.converter(column)?.row_group_mins(self.groups.iter().copied()).ok()
    }

    fn max_values(&self, column: &StatisticsColumn) -> Option<ArrayRef> {
        self.converter(column)?.row_group_maxes(self.groups.iter().copied()).ok()
    }

    fn num_containers(&self) -> usize {
        self.groups.len()
    }

    fn null_counts(&self, column: &StatisticsColumn) -> Option<ArrayRef> {
        let counts = self.converter(column)?.row_group_null_counts(self.groups.iter().copied()).ok()?;
        Some(Arc::new(counts))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        let counts = self.groups.iter().map(|group| u64::try_from(group.num_rows()).ok());
        Some(Arc::new(counts.collect::<UInt64Array>()))
    }

    fn contained(&self, _: &StatisticsColumn, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

fn accesses(plan: ParquetAccessPlan) -> Vec<GroupAccess> {
    let accesses = plan.into_inner().into_iter().enumerate().filter_map(|(index, access)| match access {
        RowGroupAccess::Skip => None,
        RowGroupAccess::Scan => Some((index, None)),
        RowGroupAccess::Selection(selection) => Some((index, Some(selection))),
    });
    accesses.collect()
}

/// The Bloom filters that the predicate can use, for every row group; `None` if there are none.
fn bloom_filters(
    filter: &RowGroupAccessPlanFilter,
    predicate: &PruningPredicate,
    reader: &SegmentReader,
    metadata: &ParquetMetaData,
    file_schema: &Schema,
) -> Option<Vec<BloomFilterStatistics>> {
    let parquet_schema = metadata.file_metadata().schema_descr();
    let columns: Vec<(String, usize)> = predicate
        .literal_columns()
        .into_iter()
        .filter_map(|name| parquet_column(parquet_schema, file_schema, &name).map(|(index, _)| (name, index)))
        .collect();
    let mut blooms = vec![BloomFilterStatistics::new(); metadata.num_row_groups()];
    let mut found = false;
    for index in filter.row_group_indexes() {
        for (name, column) in &columns {
            let chunk = metadata.row_groups().get(index)?.columns().get(*column)?;
            // A filter that cannot be read prunes nothing; a corrupt block is found again when the
            // data is read, or does not matter.
            if let Ok(Some(sbbf)) = Sbbf::read_from_column_chunk(chunk, reader) {
                let descriptor = chunk.column_descr();
                blooms.get_mut(index)?.insert(name, sbbf, descriptor.physical_type(), descriptor.type_length());
                found = true;
            }
        }
    }
    found.then_some(blooms)
}

/// The conjuncts for which statistics can be trusted. Parquet leaves NaN out of minimum and
/// maximum, and here NaN is greater than every number: a lower bound on a float column may only
/// prune where another conjunct rules NaN out.
fn prunable(filter: &Arc<dyn PhysicalExpr>, schema: &SchemaRef) -> Option<Arc<dyn PhysicalExpr>> {
    let conjuncts = split_conjunction(filter);
    let is_float =
        |column: &Column| schema.fields().get(column.index()).is_none_or(|field| holds_float(field.data_type()));
    let without_nan: BTreeSet<usize> = conjuncts.iter().filter_map(|conjunct| bounded_above(conjunct)).collect();
    let trusted = conjuncts.into_iter().filter(|conjunct| {
        collect_columns(conjunct).iter().all(|column| !is_float(column) || without_nan.contains(&column.index()))
    });
    let trusted: Vec<_> = trusted.cloned().collect();
    if trusted.is_empty() { None } else { Some(conjunction(trusted)) }
}

fn holds_float(data_type: &DataType) -> bool {
    data_type.is_floating() || data_type.is_nested() || matches!(data_type, DataType::Dictionary(..))
}

/// The column that a conjunct `column < literal`, `<=` or `=` keeps from being NaN.
fn bounded_above(conjunct: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    let binary = conjunct.downcast_ref::<BinaryExpr>()?;
    let column = |side: &Arc<dyn PhysicalExpr>| side.downcast_ref::<Column>().map(Column::index);
    let number = |side: &Arc<dyn PhysicalExpr>| {
        let literal = side.downcast_ref::<Literal>()?.value();
        let value = literal.cast_to(&DataType::Float64).ok()?;
        matches!(value, ScalarValue::Float64(Some(value)) if !value.is_nan()).then_some(())
    };
    match binary.op() {
        Operator::Lt | Operator::LtEq | Operator::Eq => number(binary.right()).and_then(|()| column(binary.left())),
        Operator::Gt | Operator::GtEq => number(binary.left()).and_then(|()| column(binary.right())),
        _ => None,
    }
}
