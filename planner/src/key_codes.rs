//! Group keys as numbers: what a scan gives of them is replaced by a code for each different combination, by which the
//! aggregates above it group, and at their end the keys come back.
//!
//! ```text
//! DecodeKeysExec           p_brand, p_type, p_size of each code
//!   AggregateExec          by the code
//!     RepartitionExec      by the code
//!       AggregateExec      by the code
//!         HashJoinExec
//!           CodeKeysExec   a code for p_brand, p_type, p_size ------ KeyCodes
//!             StorageScanExec part
//!           ... partsupp, many rows for each part ...
//! ```
//! So texts are hashed and compared once for each row of the scan, instead of in each aggregate for each row that the
//! joins make of it. Compare the late materialisation of group keys by dictionaries in column stores (Abadi, Madden,
//! Ferreira, "Integrating Compression and Execution in Column-Oriented Database Systems", SIGMOD 2006).

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, NullArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{concat, take};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, UInt32Type};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::utils::normalize_float_zero;
use datafusion::common::{Statistics, internal_datafusion_err};
use datafusion::error::Result;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use datafusion::physical_plan::execution_plan::{CardinalityEffect, ReplaceChildrenOptions};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet, RecordOutput};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use futures::StreamExt;
use parking_lot::Mutex;

use crate::pass_through::{has_child, has_no_expressions, only_child};

/// Holds the keys of a run.
const CONSUMER: &str = "coded group keys";

/// The codes of one scan's keys, in one run.
pub(crate) struct KeyCodes {
    /// Where the keys are in what the scan gives.
    columns: Vec<usize>,
    schema: SchemaRef,
    coded: Mutex<Option<Coded>>,
}

/// What has a code.
struct Coded {
    groups: Box<dyn GroupValues>,
    /// Of each key its values by code, in pieces.
    values: Vec<Vec<ArrayRef>>,
    count: usize,
    values_bytes: usize,
    /// The codes of a batch.
    numbers: Vec<usize>,
    reservation: MemoryReservation,
}

impl fmt::Debug for KeyCodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyCodes").field("columns", &self.columns).finish_non_exhaustive()
    }
}

impl KeyCodes {
    /// For keys that are at `columns` of what a scan gives.
    pub(crate) fn try_new(columns: Vec<usize>, scan: &Arc<dyn ExecutionPlan>) -> Result<Self> {
        let schema = Arc::new(scan.schema().project(&columns)?);
        Ok(Self { columns, schema, coded: Mutex::default() })
    }

    /// A place for keys, which the first batch of a run needs.
    fn begin(&self, context: &TaskContext) -> Result<()> {
        let mut coded = self.coded.lock();
        if coded.is_none() {
            *coded = Some(Coded {
                groups: new_group_values(Arc::clone(&self.schema), &GroupOrdering::None)?,
                values: vec![Vec::new(); self.columns.len()],
                count: 0,
                values_bytes: 0,
                numbers: Vec::new(),
                reservation: MemoryConsumer::new(CONSUMER).register(context.memory_pool()),
            });
        }
        Ok(())
    }

    /// The codes of the keys in a batch of the scan.
    fn encode(&self, batch: &RecordBatch) -> Result<UInt32Array> {
        let keys = self.columns.iter().map(|column| batch.columns().get(*column).map(Arc::clone));
        let keys = keys.collect::<Option<Vec<_>>>().ok_or_else(|| internal_datafusion_err!("a scan gives no key"))?;
        // As DataFusion groups them: both zeros are one.
        let keys: Vec<ArrayRef> = keys.iter().map(normalize_float_zero).collect();
        let mut coded = self.coded.lock();
        let coded = coded.as_mut().ok_or_else(|| internal_datafusion_err!("keys have no place"))?;
        coded.add(&keys)?;
        let codes = coded.numbers.iter().map(|number| u32::try_from(*number));
        let codes =
            codes.collect::<Result<Vec<_>, _>>().map_err(|_| internal_datafusion_err!("too many group keys"))?;
        Ok(codes.into())
    }

    /// Of each key its values by code. All codes of what an aggregate has given are among them.
    fn values(&self) -> Result<Vec<ArrayRef>> {
        match self.coded.lock().as_mut() {
            Some(coded) => coded.joined(),
            None => {
                Ok(self.schema.fields().iter().map(|field| arrow::array::new_empty_array(field.data_type())).collect())
            }
        }
    }
}

impl Coded {
    fn add(&mut self, keys: &[ArrayRef]) -> Result<()> {
        self.groups.intern(keys, &mut self.numbers)?;
        let count = self.groups.len();
        if count == self.count {
            return Ok(());
        }
        // Rows of one batch need not have new codes in their order.
        let mut rows = vec![None; count - self.count];
        for (row, number) in (0_u32..).zip(&self.numbers) {
            let place = number.checked_sub(self.count).and_then(|place| rows.get_mut(place));
            if let Some(place) = place {
                place.get_or_insert(row);
            }
        }
        let rows = UInt32Array::from_iter(rows);
        for (values, keys) in self.values.iter_mut().zip(keys) {
            let fresh = without_others(take(keys, &rows, None)?);
            self.values_bytes = self.values_bytes.saturating_add(fresh.get_array_memory_size());
            values.push(fresh);
        }
        self.count = count;
        // Values are there twice while they are joined.
        self.reservation.try_resize(self.values_bytes.saturating_mul(2).saturating_add(self.groups.size()))
    }

    fn joined(&mut self) -> Result<Vec<ArrayRef>> {
        for pieces in &mut self.values {
            if pieces.len() > 1 {
                *pieces = vec![concat(&pieces.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>())?];
            }
        }
        self.values.iter().map(|pieces| pieces.first().cloned()).collect::<Option<_>>().ok_or_else(no_codes)
    }
}

/// The same texts without all others that are in the same memory.
fn without_others(array: ArrayRef) -> ArrayRef {
    if let Some(views) = array.as_string_view_opt() {
        return Arc::new(views.gc());
    }
    match array.as_binary_view_opt() {
        Some(views) => Arc::new(views.gc()),
        None => array,
    }
}

fn no_codes() -> datafusion::error::DataFusionError {
    internal_datafusion_err!("there are codes of group keys that nobody has made")
}

/// Replaces keys of its input: the first one by a code for all of them, the others by nothing.
#[derive(Debug)]
pub(crate) struct CodeKeysExec {
    input: Arc<dyn ExecutionPlan>,
    codes: Arc<KeyCodes>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl CodeKeysExec {
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>, codes: Arc<KeyCodes>) -> Self {
        let given = input.schema();
        let coded = |(index, field): (usize, &FieldRef)| match codes.columns.iter().position(|column| *column == index)
        {
            Some(0) => Arc::new(Field::new(field.name(), DataType::UInt32, false)),
            Some(_) => Arc::new(Field::new(field.name(), DataType::Null, true)),
            None => Arc::clone(field),
        };
        let fields: Vec<FieldRef> = given.fields().iter().enumerate().map(coded).collect();
        let schema = Arc::new(Schema::new_with_metadata(fields, given.metadata().clone()));
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        Self { input, codes, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }
}

/// One column of what [`DecodeKeysExec`] yields.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Decoded {
    /// A column of the input.
    Column(usize),
    /// A key of the codes that are in a column of the input.
    Key { codes: usize, key: usize, column: usize },
}

/// Yields keys for their codes.
#[derive(Debug)]
pub(crate) struct DecodeKeysExec {
    input: Arc<dyn ExecutionPlan>,
    codes: Vec<Arc<KeyCodes>>,
    columns: Vec<Decoded>,
    /// Those of what would be in its place without codes: rows with the same keys are in the same partition as well.
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl DecodeKeysExec {
    pub(crate) fn new(
        input: Arc<dyn ExecutionPlan>,
        codes: Vec<Arc<KeyCodes>>,
        columns: Vec<Decoded>,
        properties: Arc<PlanProperties>,
    ) -> Self {
        Self { input, codes, columns, properties, metrics: ExecutionPlanMetricsSet::new() }
    }
}

fn decode(
    batch: &RecordBatch,
    codes: &[Arc<KeyCodes>],
    columns: &[Decoded],
    schema: &SchemaRef,
) -> Result<RecordBatch> {
    let values = codes.iter().map(|codes| codes.values()).collect::<Result<Vec<_>>>()?;
    let column_of = |column: &usize| batch.columns().get(*column).ok_or_else(no_codes);
    let columns = columns.iter().map(|decoded| match decoded {
        Decoded::Column(column) => column_of(column).map(Arc::clone),
        Decoded::Key { codes, key, column } => {
            let values = values.get(*codes).and_then(|values| values.get(*key)).ok_or_else(no_codes)?;
            let codes = column_of(column)?.as_primitive_opt::<UInt32Type>().ok_or_else(no_codes)?;
            Ok(without_others(take(values, codes, None)?))
        }
    });
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns.collect::<Result<_>>()?, &options)?)
}

impl DisplayAs for CodeKeysExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_keys(self.name(), std::slice::from_ref(&self.codes), format, f)
    }
}

impl DisplayAs for DecodeKeysExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_keys(self.name(), &self.codes, format, f)
    }
}

fn fmt_keys(name: &str, codes: &[Arc<KeyCodes>], format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let keys = codes.iter().flat_map(|codes| codes.schema.fields());
    let keys: Vec<_> = keys.map(|field| field.name().as_str()).collect();
    match format {
        DisplayFormatType::Default | DisplayFormatType::Verbose => write!(f, "{name}: keys=[{}]", keys.join(", ")),
        DisplayFormatType::TreeRender => writeln!(f, "keys={}", keys.join(", ")),
    }
}

/// The methods that both have in common.
macro_rules! maps_rows {
    () => {
        fn properties(&self) -> &Arc<PlanProperties> {
            &self.properties
        }

        has_child!(input);

        fn cardinality_effect(&self) -> CardinalityEffect {
            CardinalityEffect::Equal
        }

        fn metrics(&self) -> Option<MetricsSet> {
            Some(self.metrics.clone_inner())
        }

        fn statistics_from_inputs(
            &self,
            inputs: &[Arc<Statistics>],
            _args: &StatisticsArgs,
        ) -> Result<Arc<Statistics>> {
            // What is known of keys is not true of codes.
            let mut statistics = Statistics::new_unknown(&self.schema());
            if let Some(input) = inputs.first() {
                statistics.num_rows = input.num_rows;
            }
            Ok(Arc::new(statistics))
        }

        has_no_expressions!();
    };
}

impl ExecutionPlan for CodeKeysExec {
    fn name(&self) -> &'static str {
        "CodeKeysExec"
    }

    maps_rows!();

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self::new(only_child(self.name(), children)?, Arc::clone(&self.codes))))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.codes.begin(&context)?;
        let (codes, schema) = (Arc::clone(&self.codes), self.schema());
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let coded = self.input.execute(partition, context)?.map(move |batch| {
            let batch = batch?;
            let _timer = metrics.elapsed_compute().timer();
            let code: ArrayRef = Arc::new(codes.encode(&batch)?);
            let rows = batch.num_rows();
            let columns = batch.columns().iter().enumerate().map(|(index, column)| {
                match codes.columns.iter().position(|column| *column == index) {
                    Some(0) => Arc::clone(&code),
                    Some(_) => Arc::new(NullArray::new(rows)),
                    None => Arc::clone(column),
                }
            });
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), columns.collect(), &options)?;
            Ok(batch.record_output(&metrics))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), coded)))
    }
}

impl ExecutionPlan for DecodeKeysExec {
    fn name(&self) -> &'static str {
        "DecodeKeysExec"
    }

    maps_rows!();

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = only_child(self.name(), children)?;
        let properties = Arc::clone(&self.properties);
        Ok(Arc::new(Self::new(input, self.codes.clone(), self.columns.clone(), properties)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (codes, columns, schema) = (self.codes.clone(), self.columns.clone(), self.schema());
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let decoded = self.input.execute(partition, context)?.map(move |batch| {
            let batch = batch?;
            let _timer = metrics.elapsed_compute().timer();
            Ok(decode(&batch, &codes, &columns, &schema)?.record_output(&metrics))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), decoded)))
    }
}
