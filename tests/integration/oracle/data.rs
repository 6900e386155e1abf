//! Random tables: schemas, pools of values, and rows in segments.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;

use super::draw::Draw;
use super::values::{int_pool, pool, text_pool};

/// What can be done with a value in SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Int,
    Decimal,
    Float,
    Date,
    Timestamp,
    Bool,
    Text,
}

impl Kind {
    pub fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Decimal | Self::Float)
    }
}

/// A column and the values that its rows are drawn from.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub kind: Kind,
    pub data_type: DataType,
    /// Whether arithmetic on its values cannot fail, and sums do not depend on the order of rows.
    pub tame: bool,
    pub pool: Vec<ScalarValue>,
}

/// How the values of a column lie in the rows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Every segment has its own range: statistics of segments can prune.
    Clustered,
    /// Every segment is sorted by it: statistics of pages can prune.
    Sorted,
    Even,
    Skewed,
}

/// A table and its rows, one batch per segment.
#[derive(Clone, Debug)]
pub struct Table {
    pub name: &'static str,
    pub columns: Vec<Column>,
    pub schema: SchemaRef,
    pub segments: Vec<RecordBatch>,
}

/// Tables that can be joined by `k` (ints of several widths) and `s` (text).
#[derive(Clone, Debug)]
pub struct World {
    pub tables: Vec<Table>,
    /// Different values of `k`: what a join multiplies rows by depends on it.
    pub key_count: usize,
}

impl World {
    /// The world of that seed; one in four is large.
    pub fn generate(seed: u64) -> Self {
        let mut draw = Draw::new(seed);
        let large = seed % 4 == 3;
        let key_count = if large { 5000 } else { *draw.pick(&[5, 40, 400]) };
        let sizes: [(&'static str, &[usize]); 3] = if large {
            [("a", &[25_000, 12_000, 9000, 1]), ("b", &[3000, 900, 2]), ("c", &[30, 1])]
        } else {
            [("a", &[900, 500, 60, 1]), ("b", &[200, 80, 3]), ("c", &[12, 4, 1])]
        };
        let keys = Keys::generate(&mut draw, key_count);
        let tables = sizes.map(|(name, sizes)| Table::generate(&mut draw, name, sizes, &keys)).to_vec();
        Self { tables, key_count }
    }

    pub fn table(&self, name: &str) -> &Table {
        self.tables.iter().find(|table| table.name == name).unwrap()
    }
}

/// The values of the columns that tables are joined by.
struct Keys {
    numbers: Vec<i64>,
    texts: Vec<String>,
    /// A value that many rows have would make a large join endless.
    skew: bool,
}

impl Keys {
    fn generate(draw: &mut Draw, count: usize) -> Self {
        let first = *draw.pick(&[0, 1, -3]);
        let numbers = (first..).take(count).collect();
        let prefix = *draw.pick(&["", "key ", "a common prefix of the keys "]);
        let texts = (0..count).map(|index| format!("{prefix}{index}")).collect();
        Self { numbers, texts, skew: count <= 400 && draw.percent(40) }
    }
}

/// A column together with what decides its rows.
struct Plan {
    column: Column,
    layout: Layout,
    null_percent: u32,
}

impl Table {
    fn generate(draw: &mut Draw, name: &'static str, sizes: &[usize], keys: &Keys) -> Self {
        let mut plans = vec![Self::number_key(draw, keys), Self::text_key(draw, keys)];
        for index in 0..draw.between(4, 8) {
            plans.push(Self::column(draw, format!("c{index}")));
        }
        let fields = plans.iter().map(|plan| {
            let nullable = plan.null_percent > 0 || draw.percent(50);
            Field::new(&plan.column.name, plan.column.data_type.clone(), nullable)
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let segment_count = if draw.percent(4) { 0 } else { draw.between(1, 6) as usize };
        let segments = (0..segment_count).map(|segment| {
            let rows = *draw.pick(sizes);
            let arrays = plans.iter().map(|plan| plan.rows(draw, segment, segment_count, rows));
            RecordBatch::try_new(Arc::clone(&schema), arrays.collect()).unwrap()
        });
        let segments = segments.collect();
        Self { name, columns: plans.into_iter().map(|plan| plan.column).collect(), schema, segments }
    }

    fn number_key(draw: &mut Draw, keys: &Keys) -> Plan {
        let types = [DataType::Int16, DataType::Int32, DataType::Int64, DataType::Int64];
        let data_type = draw.pick(&types).clone();
        let pool = int_pool(&data_type, &keys.numbers);
        let column = Column { name: "k".to_owned(), kind: Kind::Int, data_type, tame: true, pool };
        Plan::of_key(draw, column, keys.skew)
    }

    fn text_key(draw: &mut Draw, keys: &Keys) -> Plan {
        let data_type = draw.pick(&[DataType::Utf8, DataType::Utf8View, DataType::Utf8View]).clone();
        let pool = text_pool(&data_type, &keys.texts);
        let column = Column { name: "s".to_owned(), kind: Kind::Text, data_type, tame: true, pool };
        Plan::of_key(draw, column, keys.skew)
    }

    fn column(draw: &mut Draw, name: String) -> Plan {
        let (kind, data_type) = any_type(draw);
        let tame = draw.percent(60);
        let mut pool = pool(draw, kind, &data_type, tame);
        let layout = *draw.pick(&[Layout::Clustered, Layout::Sorted, Layout::Even, Layout::Skewed]);
        if layout == Layout::Clustered {
            pool.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        }
        let null_percent = if draw.percent(3) { 100 } else { *draw.pick(&[0, 0, 0, 5, 5, 20, 60]) };
        Plan { column: Column { name, kind, data_type, tame, pool }, layout, null_percent }
    }
}

impl Plan {
    fn of_key(draw: &mut Draw, column: Column, skew: bool) -> Self {
        let layout = if skew { Layout::Skewed } else { *draw.pick(&[Layout::Even, Layout::Sorted, Layout::Clustered]) };
        Self { column, layout, null_percent: *draw.pick(&[0, 0, 10, 40]) }
    }

    fn rows(&self, draw: &mut Draw, segment: usize, segment_count: usize, rows: usize) -> ArrayRef {
        let pool = &self.column.pool;
        let slice = match self.layout {
            Layout::Clustered => {
                let from = pool.len() * segment / segment_count;
                let to = (pool.len() * (segment + 1) / segment_count).max(from + 1);
                &pool[from.min(pool.len() - 1)..to.min(pool.len()).max(1)]
            }
            _ => &pool[..],
        };
        // Now and then a segment has no value at all.
        let null_percent = if self.null_percent > 0 && draw.percent(5) { 100 } else { self.null_percent };
        let null = ScalarValue::try_from(&self.column.data_type).unwrap();
        let mut values: Vec<ScalarValue> = (0..rows)
            .map(|_| {
                if draw.percent(null_percent) {
                    return null.clone();
                }
                let skewed = self.layout == Layout::Skewed;
                slice[if skewed { draw.skewed(slice.len()) } else { draw.below(slice.len()) }].clone()
            })
            .collect();
        if self.layout == Layout::Sorted {
            values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        }
        ScalarValue::iter_to_array(values).unwrap()
    }
}

fn any_type(draw: &mut Draw) -> (Kind, DataType) {
    let types = [
        (Kind::Int, DataType::Int8),
        (Kind::Int, DataType::Int16),
        (Kind::Int, DataType::Int32),
        (Kind::Int, DataType::Int64),
        (Kind::Int, DataType::UInt8),
        (Kind::Int, DataType::UInt32),
        (Kind::Int, DataType::UInt64),
        (Kind::Decimal, DataType::Decimal128(9, 2)),
        (Kind::Decimal, DataType::Decimal128(18, 4)),
        (Kind::Decimal, DataType::Decimal128(38, 10)),
        (Kind::Float, DataType::Float64),
        (Kind::Float, DataType::Float64),
        (Kind::Float, DataType::Float32),
        (Kind::Date, DataType::Date32),
        (Kind::Date, DataType::Date32),
        (Kind::Timestamp, DataType::Timestamp(TimeUnit::Microsecond, None)),
        (Kind::Timestamp, DataType::Timestamp(TimeUnit::Nanosecond, None)),
        (Kind::Bool, DataType::Boolean),
        (Kind::Text, DataType::Utf8),
        (Kind::Text, DataType::Utf8View),
        (Kind::Text, DataType::Utf8View),
        (Kind::Text, DataType::LargeUtf8),
    ];
    draw.pick(&types).clone()
}
