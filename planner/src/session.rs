//! DataFusion sessions: defaults, functions, rules, and the binding to one snapshot.

use std::sync::Arc;

use aubade_catalog::Snapshot;
use aubade_catalog::snapshot::DEFAULT_SCHEMA;
use datafusion::catalog::EmptyCatalogProviderList;
use datafusion::common::config::ConfigNonZeroUsize;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::prelude::SessionConfig;

use crate::access::TableAccess;
use crate::catalog::{CATALOG, SnapshotCatalog};
use crate::embedded::PlannerOptions;
use crate::options::AubadeOptions;
use crate::pipeline::{logical_optimizer_rules, physical_optimizer_rules};
use crate::rewrite::{MultisetOperations, SoundRelations};
use crate::temporal_operators::TemporalOperators;
use crate::window_shift::window_shifts;

/// The settings that sessions start with; `SET` changes them.
pub fn session_config(options: &PlannerOptions) -> SessionConfig {
    let mut config = SessionConfig::new()
        // The catalog has one of its own: a view that cannot be planned would hide all others in DataFusion's.
        .with_information_schema(false)
        .with_default_catalog_and_schema(CATALOG, DEFAULT_SCHEMA)
        .with_create_default_catalog_and_schema(false)
        .with_collect_statistics(true)
        .with_option_extension(AubadeOptions::default());
    if let Some(partitions) = options.target_partitions {
        config = config.with_target_partitions(partitions.max(1));
    }
    if let Some(rows) = options.batch_rows {
        config = config.with_batch_size(rows.max(1));
    }
    let settings = config.options_mut();
    settings.sql_parser.map_string_types_to_utf8view = true;
    settings.optimizer.prefer_hash_join = true;
    // DataFusion hashes a build side in one piece up to 1 MiB. Where it does, no rows are moved to the partitions of their
    // keys: neither its own nor those of the other side, which is mostly the larger one.
    settings.optimizer.hash_join_single_partition_threshold = 8 << 20;
    // Where a tenth of the keys between the smallest and the largest one of a build side is there, a place of 4 bytes for
    // each of them takes about as much as a hash table of its rows, and nothing is hashed or compared.
    settings.execution.perfect_hash_join_min_key_density = 0.1;
    // DataFusion 55 panics in it where a group key is NaN.
    settings.optimizer.enable_topk_aggregation = false;
    // Whether a value may be null is said more exactly in the one plan than in the other: DISTINCT over IS TRUE would fail.
    settings.execution.skip_physical_aggregate_schema_check = true;
    // A field of a struct is read below what computes a column in the place of one of the same name, whose old values are
    // then given (<https://github.com/apache/datafusion/issues/25414>).
    settings.optimizer.enable_leaf_expression_pushdown = false;
    // DataFusion gives a partial aggregate up where its first 100,000 rows have 0.8 groups each. About as many groups, drawn
    // evenly, make 0.97 for each of the first 16,384 rows, which smaller inputs reach as well.
    settings.execution.skip_partial_aggregation_probe_rows_threshold = 16_384;
    settings.execution.skip_partial_aggregation_probe_ratio_threshold = 0.97;
    // A file per batch that an exchange spills: where two of its inputs have files open, it waits for the older one while
    // the batch is in the newer one, for ever (<https://github.com/apache/datafusion/issues/24883>).
    if let Ok(least) = ConfigNonZeroUsize::try_new(1) {
        settings.execution.max_spill_file_size_bytes = least;
    }
    // Of external files. Row filters inside of the Parquet reader stay off: they can cost more than they save.
    settings.execution.parquet.pruning = true;
    settings.execution.parquet.enable_page_index = true;
    settings.execution.parquet.bloom_filter_on_read = true;
    config
}

/// The template of a session: functions, rules and settings, but no tables.
pub fn session_state(config: SessionConfig, runtime: Arc<RuntimeEnv>) -> SessionState {
    let builder = SessionStateBuilder::new()
        .with_config(config.with_create_default_catalog_and_schema(false))
        .with_runtime_env(runtime)
        .with_catalog_list(Arc::new(EmptyCatalogProviderList));
    sound(builder).with_physical_optimizer_rules(physical_optimizer_rules()).build()
}

/// DataFusion with what it needs to mean by a query what SQL means, and no more: without tables of a cluster it plans as it
/// does by itself.
pub fn sound(builder: SessionStateBuilder) -> SessionStateBuilder {
    let mut builder = builder.with_expr_planners(vec![Arc::new(TemporalOperators)]).with_default_features();
    builder.window_functions().get_or_insert_default().extend(window_shifts());
    builder
        .with_relation_planners(vec![Arc::new(SoundRelations)])
        .with_analyzer_rule(Arc::new(MultisetOperations))
        .with_optimizer_rules(logical_optimizer_rules())
}

/// The template bound to one snapshot: what a query is planned with. `now()` is the time of this call.
pub fn bind_snapshot(template: &SessionState, snapshot: Arc<Snapshot>, access: Arc<dyn TableAccess>) -> SessionState {
    let mut state = template.clone();
    state.mark_start_execution();
    let catalog = SnapshotCatalog::new(snapshot, access, state.clone());
    state.register_catalog_list(Arc::new(catalog));
    state
}
