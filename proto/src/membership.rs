//! Sets of join keys in a form that can be sent and asked fast.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, PrimitiveArray};
use arrow::buffer::BooleanBuffer;
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Int8Type, Int16Type, Int32Type, Int64Type, Schema, UInt8Type, UInt16Type,
    UInt32Type,
};
use arrow::record_batch::RecordBatch;
use datafusion::common::internal_datafusion_err;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use parquet::bloom_filter::Sbbf;

use crate::bits::bits_of;
use crate::bloom::BloomKeys;
use crate::code::ErrorCode;
use crate::error::{Error, Result};

/// Bytes of a set at most: it travels with every request.
pub const KEY_SET_BYTES_MAX: usize = 8 << 20;
/// A bitmap is preferred to a Bloom filter as long as it takes no more than this many bits per key:
/// it is exact, and a look-up is one load.
const BITMAP_BITS_PER_KEY_MAX: u64 = 64;
/// Up to this size of a bitmap it is twice as many bits: it stays in the cache, and asking it needs no hash.
const BITMAP_BYTES_CACHED: u64 = 1 << 20;
/// A bitmap of this size is always worth it.
const BITMAP_BYTES_SMALL: u64 = 64 << 10;

/// A set of keys that may answer "yes" for a key that is not in it, but never "no" for one that is.
#[derive(Clone)]
pub enum KeySet {
    /// Whole numbers and dates, exactly: bit `i` stands for `first + i`.
    Bitmap {
        /// The smallest key.
        first: i64,
        /// One bit for every number from `first` on.
        bits: BooleanBuffer,
    },
    /// A Bloom filter.
    Bloom(Arc<BloomKeys>),
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bitmap { first, bits } => write!(f, "bitmap of {} numbers from {first}", bits.len()),
            Self::Bloom(_) => f.write_str("Bloom filter"),
        }
    }
}

/// How keys of a type are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyKind {
    Integer,
    Decimal,
    Text,
    Bytes,
}

impl KeyKind {
    /// `None` for types whose equality is not that of their bytes, such as floats.
    fn of(data_type: &DataType) -> Option<Self> {
        match data_type {
            DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::UInt8
            | DataType::UInt16
            | DataType::UInt32
            | DataType::Date32
            | DataType::Date64
            | DataType::Timestamp(..) => Some(Self::Integer),
            DataType::Decimal128(..) => Some(Self::Decimal),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(Self::Text),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Some(Self::Bytes),
            _ => None,
        }
    }
}

/// Keys as 64-bit numbers.
fn integers(keys: &dyn Array) -> DataFusionResult<PrimitiveArray<Int64Type>> {
    // Dates of 32 bits have no cast to 64-bit numbers of their own.
    let keys = match keys.data_type() {
        DataType::Int64 => return Ok(keys.as_primitive::<Int64Type>().clone()),
        DataType::Date32 => cast(keys, &DataType::Int32)?,
        _ => arrow::array::make_array(keys.to_data()),
    };
    Ok(cast(&keys, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

/// Which of `keys` have a bit. Keys as narrow as they are: making them 64-bit numbers first takes longer than asking.
fn in_bitmap(first: i64, bits: &BooleanBuffer, keys: &dyn Array) -> DataFusionResult<BooleanBuffer> {
    fn ask<T: ArrowPrimitiveType>(first: i64, bits: &BooleanBuffer, keys: &dyn Array) -> BooleanBuffer
    where
        i64: From<T::Native>,
    {
        let (bytes, offset, count) = (bits.values(), bits.offset(), bits.len() as u64);
        primitive(keys.as_primitive::<T>(), |key| {
            let bit = i64::from(key).wrapping_sub(first) as u64;
            bit < count && {
                // Within a buffer in memory.
                let place = bit as usize + offset;
                bytes.get(place / 8).is_some_and(|byte| byte >> (place % 8) & 1 == 1)
            }
        })
    }
    Ok(match keys.data_type() {
        DataType::Int8 => ask::<Int8Type>(first, bits, keys),
        DataType::Int16 => ask::<Int16Type>(first, bits, keys),
        DataType::Int32 => ask::<Int32Type>(first, bits, keys),
        DataType::Date32 => ask::<Date32Type>(first, bits, keys),
        DataType::UInt8 => ask::<UInt8Type>(first, bits, keys),
        DataType::UInt16 => ask::<UInt16Type>(first, bits, keys),
        DataType::UInt32 => ask::<UInt32Type>(first, bits, keys),
        _ => ask::<Int64Type>(first, bits, &integers(keys)?),
    })
}

fn for_each<T: ?Sized>(values: impl Iterator<Item = Option<impl AsRef<T>>>, mut each: impl FnMut(&T)) {
    values.flatten().for_each(|value| each(value.as_ref()));
}

fn insert(kind: KeyKind, keys: &ArrayRef, set: &mut Sbbf) -> Result<()> {
    match kind {
        KeyKind::Integer => integers(keys)?.iter().flatten().for_each(|key| set.insert(&key)),
        KeyKind::Decimal => {
            keys.as_primitive::<Decimal128Type>().iter().flatten().for_each(|key| set.insert(&key.to_le_bytes()[..]));
        }
        KeyKind::Text => match keys.data_type() {
            DataType::Utf8 => for_each(keys.as_string::<i32>().iter(), |key: &str| set.insert(key)),
            DataType::LargeUtf8 => for_each(keys.as_string::<i64>().iter(), |key: &str| set.insert(key)),
            _ => for_each(keys.as_string_view().iter(), |key: &str| set.insert(key)),
        },
        KeyKind::Bytes => match keys.data_type() {
            DataType::Binary => for_each(keys.as_binary::<i32>().iter(), |key: &[u8]| set.insert(key)),
            DataType::LargeBinary => for_each(keys.as_binary::<i64>().iter(), |key: &[u8]| set.insert(key)),
            _ => for_each(keys.as_binary_view().iter(), |key: &[u8]| set.insert(key)),
        },
    }
    Ok(())
}

/// A bitmap of keys with its first number, and whether it is to be sent; `None` where it would be too large to be asked.
fn bitmap(keys: &[PrimitiveArray<Int64Type>], count: usize) -> Option<((i64, BooleanBuffer), bool)> {
    let first = keys.iter().filter_map(arrow::compute::min).min()?;
    let last = keys.iter().filter_map(arrow::compute::max).max()?;
    let bits = last.checked_sub(first)?.checked_add(1).and_then(|bits| u64::try_from(bits).ok())?;
    let bytes = bits.div_ceil(8);
    let is_cached = bytes <= BITMAP_BYTES_CACHED;
    let bits_per_key = BITMAP_BITS_PER_KEY_MAX * if is_cached { 2 } else { 1 };
    let dense = bits / bits_per_key <= count as u64 && bytes <= KEY_SET_BYTES_MAX as u64;
    let is_sent = dense || bytes <= BITMAP_BYTES_SMALL;
    if !is_sent && !is_cached {
        return None;
    }
    let mut set = vec![0_u8; usize::try_from(bytes).ok()?];
    for key in keys.iter().flat_map(|keys| keys.iter().flatten()) {
        // Within the range, by the two bounds above.
        let bit = key.wrapping_sub(first) as u64;
        if let Some(byte) = usize::try_from(bit / 8).ok().and_then(|index| set.get_mut(index)) {
            *byte |= 1 << (bit % 8);
        }
    }
    Some(((first, BooleanBuffer::new(set.into(), 0, usize::try_from(bits).ok()?)), is_sent))
}

impl KeySet {
    /// Whether keys of a type can be kept.
    pub fn supports(data_type: &DataType) -> bool {
        KeyKind::of(data_type).is_some()
    }

    /// The set of the keys in `keys`, arrays of one type; nulls are left out. `None` for a type that
    /// is not supported, and for more keys than [`KEY_SET_BYTES_MAX`] can hold.
    ///
    /// # Errors
    /// When the arrays have different types.
    pub fn build(keys: &[ArrayRef]) -> Result<Option<Self>> {
        let Some(kind) = keys.first().and_then(|first| KeyKind::of(first.data_type())) else { return Ok(None) };
        let count: usize = keys.iter().map(|keys| keys.len() - keys.null_count()).sum();
        let mut kept = None;
        if kind == KeyKind::Integer {
            let numbers = keys.iter().map(|keys| integers(keys)).collect::<DataFusionResult<Vec<_>>>()?;
            match bitmap(&numbers, count) {
                Some(((first, bits), true)) => return Ok(Some(Self::Bitmap { first, bits })),
                Some((bitmap, false)) => kept = Some(bitmap),
                None => {}
            }
        }
        Self::bloom(kind, keys, count, kept)
    }

    fn bloom(
        kind: KeyKind,
        keys: &[ArrayRef],
        count: usize,
        bitmap: Option<(i64, BooleanBuffer)>,
    ) -> Result<Option<Self>> {
        // About ten bits per key at its rate of false positives, then rounded up to a power of two.
        if count.saturating_mul(5) / 4 > KEY_SET_BYTES_MAX {
            return Ok(None);
        }
        let bloom = BloomKeys::build(count, bitmap, |set| keys.iter().try_for_each(|keys| insert(kind, keys, set)))?;
        Ok(Some(Self::Bloom(Arc::new(bloom))))
    }

    /// The set in a message of the wire.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidMessage`] for fewer bits than are promised.
    pub fn from_bitmap(first: i64, count: u64, bits: bytes::Bytes) -> Result<Self> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if bits.len().saturating_mul(8) < count {
            return Err(Error::new(ErrorCode::InvalidMessage, "a bitmap of keys has fewer bits than it says"));
        }
        Ok(Self::Bitmap { first, bits: BooleanBuffer::new(bits.into(), 0, count) })
    }

    /// The set in a message of the wire.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidMessage`] for bytes that are no whole number of blocks.
    pub fn from_bloom(bitset: &[u8]) -> Result<Self> {
        Ok(Self::Bloom(Arc::new(BloomKeys::from_bitset(bitset)?)))
    }

    /// Which of `keys` may be in the set; null is in none.
    ///
    /// # Errors
    /// For keys of a type that is not supported.
    pub fn contains(&self, keys: &dyn Array) -> DataFusionResult<BooleanArray> {
        let kind = KeyKind::of(keys.data_type())
            .ok_or_else(|| internal_datafusion_err!("keys of type {} are in no set", keys.data_type()))?;
        let found = match (self, kind) {
            (Self::Bitmap { first, bits }, KeyKind::Integer) => in_bitmap(*first, bits, keys)?,
            (Self::Bitmap { .. }, _) => {
                return Err(internal_datafusion_err!("a bitmap holds no keys of type {}", keys.data_type()));
            }
            (Self::Bloom(set), KeyKind::Integer) => match &set.bitmap {
                Some((first, bits)) => in_bitmap(*first, bits, keys)?,
                None => {
                    let numbers = set.numbers()?;
                    primitive(&integers(keys)?, |key| numbers.check(key))
                }
            },
            (Self::Bloom(set), KeyKind::Decimal) => {
                primitive(keys.as_primitive::<Decimal128Type>(), |key| set.check(&key.to_le_bytes()[..]))
            }
            (Self::Bloom(set), KeyKind::Text) => match keys.data_type() {
                DataType::Utf8 => each(keys.as_string::<i32>().iter(), |key: &str| set.check(key)),
                DataType::LargeUtf8 => each(keys.as_string::<i64>().iter(), |key: &str| set.check(key)),
                _ => each(keys.as_string_view().iter(), |key: &str| set.check(key)),
            },
            (Self::Bloom(set), KeyKind::Bytes) => match keys.data_type() {
                DataType::Binary => each(keys.as_binary::<i32>().iter(), |key: &[u8]| set.check(key)),
                DataType::LargeBinary => each(keys.as_binary::<i64>().iter(), |key: &[u8]| set.check(key)),
                _ => each(keys.as_binary_view().iter(), |key: &[u8]| set.check(key)),
            },
        };
        let found = match keys.nulls() {
            Some(nulls) => &found & nulls.inner(),
            None => found,
        };
        Ok(BooleanArray::new(found, None))
    }
}

fn primitive<T: ArrowPrimitiveType>(keys: &PrimitiveArray<T>, check: impl Fn(T::Native) -> bool) -> BooleanBuffer {
    bits_of(keys.values(), check)
}

fn each<T: ?Sized>(keys: impl Iterator<Item = Option<impl AsRef<T>>>, check: impl Fn(&T) -> bool) -> BooleanBuffer {
    keys.map(|key| key.is_some_and(|key| check(key.as_ref()))).collect()
}

/// True for rows whose key may be in a set: what a join's build side says about its probe side.
#[derive(Clone, Debug)]
pub struct Membership {
    key: Arc<dyn PhysicalExpr>,
    set: KeySet,
}

impl Membership {
    /// Whether `key` is in `set`.
    pub fn new(key: Arc<dyn PhysicalExpr>, set: KeySet) -> Self {
        Self { key, set }
    }

    /// What is looked up.
    pub fn key(&self) -> &Arc<dyn PhysicalExpr> {
        &self.key
    }

    /// Where.
    pub fn set(&self) -> &KeySet {
        &self.set
    }

    /// Identifies the set by its memory: sets are shared, never compared.
    fn address(&self) -> usize {
        match &self.set {
            KeySet::Bitmap { bits, .. } => bits.values().as_ptr() as usize,
            KeySet::Bloom(set) => Arc::as_ptr(set) as usize,
        }
    }
}

impl PartialEq for Membership {
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address() && self.key.eq(&other.key)
    }
}

impl Eq for Membership {}

impl Hash for Membership {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
        self.address().hash(state);
    }
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.key, self.set)
    }
}

impl PhysicalExpr for Membership {
    fn data_type(&self, _input_schema: &Schema) -> DataFusionResult<DataType> {
        Ok(DataType::Boolean)
    }

    fn nullable(&self, _input_schema: &Schema) -> DataFusionResult<bool> {
        Ok(false)
    }

    fn evaluate(&self, batch: &RecordBatch) -> DataFusionResult<ColumnarValue> {
        let keys = self.key.evaluate(batch)?.into_array(batch.num_rows())?;
        Ok(ColumnarValue::Array(Arc::new(self.set.contains(&keys)?)))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.key]
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
        match children.into_iter().next() {
            Some(key) => Ok(Arc::new(Self { key, set: self.set.clone() })),
            None => Err(internal_datafusion_err!("a membership has one child")),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt_sql(f)?;
        write!(f, " in {}", self.set)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Date32Array, Decimal128Array, Int32Array, Int64Array, StringViewArray};
    use arrow::datatypes::TimeUnit;

    use super::*;

    fn check(keys: ArrayRef, asked: ArrayRef, expected: &[bool]) -> KeySet {
        let set = KeySet::build(&[keys]).unwrap().unwrap();
        let found = set.contains(&asked).unwrap();
        assert_eq!(found.iter().map(Option::unwrap).collect::<Vec<_>>(), expected);
        set
    }

    #[test]
    fn dense_numbers_are_a_bitmap() {
        let keys = Arc::new(Int64Array::from(vec![Some(5), None, Some(-2), Some(9)]));
        let asked = Arc::new(Int64Array::from(vec![
            Some(-3),
            Some(-2),
            Some(5),
            None,
            Some(6),
            Some(9),
            Some(10),
            Some(i64::MIN),
        ]));
        let set = check(keys, asked, &[false, true, true, false, false, true, false, false]);
        assert!(matches!(set, KeySet::Bitmap { first: -2, bits } if bits.len() == 12));
    }

    #[test]
    fn sparse_numbers_texts_and_decimals_are_a_bloom_filter() {
        let sparse = Arc::new(Int64Array::from(vec![1, i64::MAX - 1]));
        let set = check(Arc::clone(&sparse) as _, sparse, &[true, true]);
        assert!(matches!(set, KeySet::Bloom(_)));
        let texts = Arc::new(StringViewArray::from(vec!["a", "a text that is not inline"]));
        let set = check(Arc::clone(&texts) as _, texts, &[true, true]);
        let others = StringViewArray::from_iter_values((0..1_000).map(|number| format!("other {number}")));
        assert!(set.contains(&others).unwrap().true_count() < 100);
        let decimals = Arc::new(Decimal128Array::from(vec![17, -4]));
        check(Arc::clone(&decimals) as _, decimals, &[true, true]);
    }

    #[test]
    fn a_bitmap_that_is_too_sparse_to_be_sent_is_asked_where_it_was_made() {
        let sparse = Int64Array::from_iter_values((0..5_000).map(|key| key * 1_000));
        let set = KeySet::build(&[Arc::new(sparse)]).unwrap().unwrap();
        let KeySet::Bloom(keys) = &set else { panic!("{set}") };
        let asked = Int64Array::from_iter_values((0..5_000_000).step_by(500));
        assert_eq!(set.contains(&asked).unwrap().true_count(), 5_000);
        let sent = KeySet::from_bloom(&keys.bitset().unwrap()).unwrap();
        assert!((5_000..5_300).contains(&sent.contains(&asked).unwrap().true_count()));
    }

    #[test]
    fn dates_and_narrow_numbers_are_numbers() {
        let dates = Arc::new(Date32Array::from(vec![8_000, 8_010]));
        check(Arc::clone(&dates) as _, Arc::new(Date32Array::from(vec![8_000, 8_001, 8_010])), &[true, false, true]);
        let narrow = Arc::new(Int32Array::from(vec![7]));
        check(narrow, Arc::new(Int64Array::from(vec![7, 8])), &[true, false]);
    }

    #[test]
    fn a_bitmap_is_asked_with_keys_of_all_whole_types() {
        let asked: ArrayRef = Arc::new(Int64Array::from(vec![Some(3), Some(4), None, Some(11), Some(100)]));
        let types = [
            DataType::Int8,
            DataType::Int16,
            DataType::Int32,
            DataType::Int64,
            DataType::UInt8,
            DataType::UInt16,
            DataType::UInt32,
            DataType::Timestamp(TimeUnit::Second, None),
        ];
        let set = KeySet::build(&[Arc::new(Int64Array::from(vec![3, 11, 12]))]).unwrap().unwrap();
        // As one that came in the middle of a message.
        let KeySet::Bitmap { first, bits } = set else { panic!("{set}") };
        let moved: BooleanBuffer = [true; 5].into_iter().chain(bits.iter()).collect();
        let set = KeySet::Bitmap { first, bits: moved.slice(5, bits.len()) };
        for data_type in types {
            let found = set.contains(&cast(&asked, &data_type).unwrap()).unwrap();
            let found: Vec<bool> = found.iter().map(Option::unwrap).collect();
            assert_eq!(found, [true, false, false, true, false], "{data_type}");
        }
        let dates = Date32Array::from(vec![3, 4]);
        assert_eq!(set.contains(&dates).unwrap().true_count(), 1);
    }

    #[test]
    fn floats_and_no_keys_make_no_set() {
        assert!(!KeySet::supports(&DataType::Float64));
        assert!(KeySet::build(&[]).unwrap().is_none());
    }
}
