//! Columns of texts that are in memory as dictionaries, with a type that nobody has declared: batches of them, and
//! expressions over them, which are asked of the texts of the dictionary where these are fewer than the rows of a batch.
//!
//! What a scan over such columns sends need not be, row by row, what a node sends for the segment: it is taken up nowhere
//! else where it ends early.

use std::sync::Arc;

use arrow::array::{
    AnyDictionaryArray, Array, ArrayRef, AsArray, BooleanArray, PrimitiveArray, RecordBatch, RecordBatchOptions,
    UInt32Array, new_null_array,
};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{cast, concat, take};
use arrow::datatypes::{
    ArrowDictionaryKeyType, ArrowNativeType, DataType, FieldRef, Schema, SchemaRef, UInt8Type, UInt16Type, UInt32Type,
};
use aubade_proto::Result;
use datafusion::common::internal_datafusion_err;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::{collect_columns, reassign_expr_columns};

use super::faster::faster;
use super::replaced::Evaluation;
use super::stages::cannot_fail_itself;

fn is_packed(array: &ArrayRef, declared: &DataType) -> bool {
    declared.is_string() && matches!(array.data_type(), DataType::Dictionary(_, _))
}

/// The texts that a packed array stands for.
pub(crate) fn unpacked(array: &ArrayRef) -> Result<ArrayRef> {
    match array.as_any_dictionary_opt() {
        Some(packed) => Ok(take(packed.values(), packed.keys(), None)?),
        None => Ok(Arc::clone(array)),
    }
}

/// The array as it was declared.
pub(super) fn plain(array: ArrayRef, declared: &DataType) -> Result<ArrayRef> {
    if is_packed(&array, declared) { unpacked(&array) } else { Ok(array) }
}

/// The batch as `schema` declares it.
pub(super) fn plain_batch(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if batch.columns().iter().zip(schema.fields()).all(|(column, field)| !is_packed(column, field.data_type())) {
        return Ok(batch);
    }
    let (_, columns, rows) = batch.into_parts();
    let columns = columns.into_iter().zip(schema.fields()).map(|(column, field)| plain(column, field.data_type()));
    batch_of(schema, columns.collect::<Result<_>>()?, rows)
}

/// A batch of columns that `schema` declares, of which some may be packed.
pub(crate) fn batch_of(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let mut found = columns.iter().zip(schema.fields());
    if found.all(|(column, field)| !is_packed(column, field.data_type())) {
        return Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?);
    }
    let as_found = |(field, column): (&FieldRef, &ArrayRef)| match is_packed(column, field.data_type()) {
        true => Arc::new(field.as_ref().clone().with_data_type(column.data_type().clone())),
        false => Arc::clone(field),
    };
    let fields: Vec<FieldRef> = schema.fields().iter().zip(&columns).map(as_found).collect();
    let schema = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
    Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
}

/// `expression` for batches in which columns that `schema` declares as texts may be packed. One that is nothing but a
/// column stays it, so that what it yields may be packed as well.
pub(super) fn over_packed(
    expression: Arc<dyn PhysicalExpr>,
    schema: &Schema,
) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
    if expression.is::<Column>() || !schema.fields().iter().any(|field| field.data_type().is_string()) {
        return faster(expression, schema);
    }
    faster(parts_over_packed(expression, schema)?.wrapped(schema)?, schema)
}

/// A part of an expression.
struct Part {
    expression: Arc<dyn PhysicalExpr>,
    reads: Reads,
    can_fail: bool,
}

/// Which columns a part reads that are not wrapped below it.
enum Reads {
    Nothing,
    Text(usize),
    More,
}

impl Part {
    /// The part with what reads nothing but one column of texts in a [`PerText`].
    fn wrapped(self, schema: &Schema) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
        match self.reads {
            Reads::Text(column) if !self.can_fail => {
                let per_text = PerText::new(&self.expression, column, schema)?;
                Ok(per_text.in_place_of(self.expression))
            }
            _ => Ok(self.expression),
        }
    }
}

/// The largest parts that read one column of texts and cannot fail, which may be asked of texts that no row has, are
/// wrapped; what is given back may be one itself.
#[recursive::recursive]
fn parts_over_packed(expression: Arc<dyn PhysicalExpr>, schema: &Schema) -> DataFusionResult<Part> {
    if let Some(column) = expression.downcast_ref::<Column>() {
        let field = schema.fields().get(column.index());
        let reads = match field.is_some_and(|field| field.data_type().is_string()) {
            true => Reads::Text(column.index()),
            false => Reads::More,
        };
        return Ok(Part { expression, reads, can_fail: false });
    }
    let children = expression.children().into_iter().map(|child| parts_over_packed(Arc::clone(child), schema));
    let children = children.collect::<DataFusionResult<Vec<_>>>()?;
    let reads = children.iter().fold(Reads::Nothing, |reads, child| match (reads, &child.reads) {
        (reads, Reads::Nothing) => reads,
        (Reads::Nothing, Reads::Text(column)) => Reads::Text(*column),
        (Reads::Text(one), Reads::Text(other)) if one == *other => Reads::Text(one),
        _ => Reads::More,
    });
    let can_fail = !cannot_fail_itself(&expression) || children.iter().any(|child| child.can_fail);
    if matches!(reads, Reads::Nothing) || (matches!(reads, Reads::Text(_)) && !can_fail) {
        return Ok(Part { expression, reads, can_fail });
    }
    let before: Vec<Arc<dyn PhysicalExpr>> = expression.children().into_iter().map(Arc::clone).collect();
    let wrapped = children.into_iter().map(|child| child.wrapped(schema)).collect::<DataFusionResult<Vec<_>>>()?;
    let same = before.iter().zip(&wrapped).all(|(before, wrapped)| Arc::ptr_eq(before, wrapped));
    let expression = if same { expression } else { expression.with_new_children(wrapped)? };
    Ok(Part { expression, reads: Reads::More, can_fail })
}

/// An expression over one column of texts, or that column.
#[derive(Debug)]
struct PerText {
    column: usize,
    /// Over a batch of `schema`, which has nothing but the column.
    over_texts: Arc<dyn PhysicalExpr>,
    schema: SchemaRef,
    /// What it yields: a batch may say of the column that it is packed.
    field: FieldRef,
}

impl PerText {
    fn new(expression: &Arc<dyn PhysicalExpr>, column: usize, schema: &Schema) -> DataFusionResult<Self> {
        let texts: SchemaRef = Arc::new(Schema::new(vec![schema.field(column).clone().with_nullable(true)]));
        let field = expression.return_field(schema)?;
        Self::over(expression, column, texts, field)
    }

    fn over(
        expression: &Arc<dyn PhysicalExpr>,
        column: usize,
        schema: SchemaRef,
        field: FieldRef,
    ) -> DataFusionResult<Self> {
        let over_texts = faster(reassign_expr_columns(Arc::clone(expression), &schema)?, &schema)?;
        Ok(Self { column, over_texts, schema, field })
    }

    fn ask(&self, texts: ArrayRef) -> DataFusionResult<ColumnarValue> {
        let rows = texts.len();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), vec![texts], &options)?;
        self.over_texts.evaluate(&batch)
    }

    fn ask_packed(&self, array: &ArrayRef, packed: &dyn AnyDictionaryArray) -> DataFusionResult<ColumnarValue> {
        let (texts, keys) = (packed.values(), packed.keys());
        if texts.len() > keys.len() || self.over_texts.is::<Column>() {
            let texts = unpacked(array).map_err(|error| internal_datafusion_err!("{error}"))?;
            return self.ask(texts);
        }
        // The answer for null comes last.
        let null = (keys.null_count() > 0).then_some(texts.len());
        let asked = match null {
            Some(_) => concat(&[texts.as_ref(), new_null_array(texts.data_type(), 1).as_ref()])?,
            None => Arc::clone(texts),
        };
        let answers = match self.ask(asked)? {
            ColumnarValue::Array(answers) => answers,
            constant @ ColumnarValue::Scalar(_) => return Ok(constant),
        };
        let yes_or_no = answers.as_boolean_opt().filter(|answers| answers.null_count() == 0);
        let of_rows: ArrayRef = match (yes_or_no, keys.data_type()) {
            (Some(answers), DataType::UInt8) => Arc::new(told::<UInt8Type>(answers, keys, null)),
            (Some(answers), DataType::UInt16) => Arc::new(told::<UInt16Type>(answers, keys, null)),
            _ => match null {
                None => take(&answers, keys, None)?,
                Some(null) => {
                    let keys = cast(keys, &DataType::UInt32)?;
                    let null = u32::try_from(null).ok();
                    let keys: UInt32Array = keys.as_primitive::<UInt32Type>().iter().map(|key| key.or(null)).collect();
                    take(&answers, &keys, None)?
                }
            },
        };
        Ok(ColumnarValue::Array(of_rows))
    }
}

/// The answer for the text of each row; that for null is at `null`.
fn told<K: ArrowDictionaryKeyType>(answers: &BooleanArray, keys: &dyn Array, null: Option<usize>) -> BooleanArray {
    let keys: &PrimitiveArray<K> = keys.as_primitive();
    let answers: Vec<bool> = answers.values().iter().collect();
    let told = |place: usize| answers.get(place).copied().unwrap_or(false);
    let told = match (keys.nulls(), null) {
        (Some(nulls), Some(null)) => {
            let of_null = told(null);
            let of_row = |(key, valid): (&K::Native, bool)| if valid { told(key.as_usize()) } else { of_null };
            BooleanBuffer::from_iter(keys.values().iter().zip(nulls).map(of_row))
        }
        _ => {
            let keys = keys.values();
            BooleanBuffer::collect_bool(keys.len(), |row| keys.get(row).is_some_and(|key| told(key.as_usize())))
        }
    };
    BooleanArray::new(told, None)
}

impl Evaluation for PerText {
    fn evaluate(&self, _exact: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> DataFusionResult<Option<ColumnarValue>> {
        let array = batch.columns().get(self.column);
        let packed = array.and_then(|array| Some((array, array.as_any_dictionary_opt()?)));
        packed.map(|(array, packed)| self.ask_packed(array, packed)).transpose()
    }

    fn of_other(&self, exact: &Arc<dyn PhysicalExpr>) -> DataFusionResult<Option<Self>> {
        let column = collect_columns(exact).into_iter().next().map(|column| column.index());
        let column = column.ok_or_else(|| internal_datafusion_err!("{exact} reads no column"))?;
        Self::over(exact, column, Arc::clone(&self.schema), Arc::clone(&self.field)).map(Some)
    }

    fn data_type(&self, _exact: &Arc<dyn PhysicalExpr>, _schema: &Schema) -> DataFusionResult<DataType> {
        Ok(self.field.data_type().clone())
    }

    fn nullable(&self, _exact: &Arc<dyn PhysicalExpr>, _schema: &Schema) -> DataFusionResult<bool> {
        Ok(self.field.is_nullable())
    }
}
