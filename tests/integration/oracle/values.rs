//! Pools of values of every type, and how a value is written in SQL.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;

use super::data::Kind;
use super::draw::Draw;

/// Microseconds from 0001-01-01 to 9999-12-31, which is what SQL can write.
const MICROS: (i64, i64) = (-62_135_596_800_000_000, 253_402_300_799_999_999);
/// Days of the same.
const DAYS: (i32, i32) = (-719_162, 2_932_896);
/// Days and seconds from 1990 to 2029.
const TAME_DAYS: (i64, i64) = (7305, 21_914);
const TAME_SECONDS: (i64, i64) = (TAME_DAYS.0 * 86_400, TAME_DAYS.1 * 86_400);

/// Values for the rows of one column: few or many, so that some columns repeat and others do not.
pub fn pool(draw: &mut Draw, kind: Kind, data_type: &DataType, tame: bool) -> Vec<ScalarValue> {
    let count = *draw.pick(&[1, 2, 5, 30, 300, 3000]);
    let specials = draw.percent(40);
    let mut pool: Vec<ScalarValue> = match kind {
        Kind::Int => ints(draw, data_type, tame, count),
        Kind::Decimal => decimals(draw, data_type, tame, count),
        Kind::Float => floats(draw, data_type, tame, specials, count),
        Kind::Date => dates(draw, tame, count),
        Kind::Timestamp => timestamps(draw, data_type, tame, count),
        Kind::Bool => vec![ScalarValue::Boolean(Some(true)), ScalarValue::Boolean(Some(false))],
        Kind::Text => text_pool(data_type, &texts(draw, count)),
    };
    pool.dedup();
    pool
}

/// Int values of a type, which must have room for them.
pub fn int_pool(data_type: &DataType, values: &[i64]) -> Vec<ScalarValue> {
    values.iter().map(|value| ScalarValue::Int64(Some(*value)).cast_to(data_type).unwrap()).collect()
}

/// Texts in one of the layouts that Arrow has for them.
pub fn text_pool(data_type: &DataType, values: &[String]) -> Vec<ScalarValue> {
    let make = match data_type {
        DataType::Utf8 => ScalarValue::Utf8,
        DataType::LargeUtf8 => ScalarValue::LargeUtf8,
        _ => ScalarValue::Utf8View,
    };
    values.iter().map(|value| make(Some(value.clone()))).collect()
}

fn ints(draw: &mut Draw, data_type: &DataType, tame: bool, count: usize) -> Vec<ScalarValue> {
    let (low, high): (i128, i128) = match data_type {
        DataType::Int8 => (i8::MIN.into(), i8::MAX.into()),
        DataType::Int16 => (i16::MIN.into(), i16::MAX.into()),
        DataType::Int32 => (i32::MIN.into(), i32::MAX.into()),
        DataType::UInt8 => (0, u8::MAX.into()),
        DataType::UInt32 => (0, u32::MAX.into()),
        DataType::UInt64 => (0, u64::MAX.into()),
        _ => (i64::MIN.into(), i64::MAX.into()),
    };
    let (tame_low, tame_high) = (low.max(-20_000) as i64, high.min(20_000) as i64);
    let mut values: Vec<i128> = (0..count).map(|_| draw.between(tame_low, tame_high).into()).collect();
    if !tame {
        values.extend([low, high, low + 1, high - 1, 0, 1.min(high), (high / 3)]);
    }
    // Decimals of scale 0 hold all of them.
    let decimal = |value| ScalarValue::Decimal128(Some(value), 38, 0);
    values.into_iter().map(|value| decimal(value).cast_to(data_type).unwrap()).collect()
}

fn decimals(draw: &mut Draw, data_type: &DataType, tame: bool, count: usize) -> Vec<ScalarValue> {
    let DataType::Decimal128(precision, scale) = *data_type else { panic!("{data_type} is no decimal") };
    let unit = 10_i128.pow(scale.unsigned_abs().into());
    let mut values: Vec<i128> = (0..count)
        .map(|_| {
            let whole = i128::from(draw.between(-50_000, 50_000)) * unit;
            whole + i128::from(draw.between(0, 9_999_999)) % unit
        })
        .collect();
    if !tame {
        let largest = 10_i128.pow(precision.into()) - 1;
        values.extend([largest, -largest, largest - 1, 0, 1, -1, unit]);
    }
    values.into_iter().map(|value| ScalarValue::Decimal128(Some(value), precision, scale)).collect()
}

/// Tame ones are quarters: sums of them are exact, whatever the order. NaN and infinities are tame too.
fn floats(draw: &mut Draw, data_type: &DataType, tame: bool, specials: bool, count: usize) -> Vec<ScalarValue> {
    let single = data_type == &DataType::Float32;
    let bound = if single { 1 << 10 } else { 1 << 20 };
    let mut values: Vec<f64> = (0..count).map(|_| draw.between(-bound, bound) as f64 / 4.0).collect();
    if specials {
        values.extend([f64::NAN, f64::INFINITY]);
    }
    if !tame {
        let largest = if single { f64::from(f32::MAX) } else { f64::MAX };
        let smallest = if single { f64::from(f32::MIN_POSITIVE) } else { 5e-324 };
        values.extend([0.0, -0.0, largest, -largest, smallest, 0.1, f64::NEG_INFINITY, -f64::NAN]);
    }
    let float = |value| ScalarValue::Float64(Some(value));
    let value = |value| if single { ScalarValue::Float32(Some(value as f32)) } else { float(value) };
    values.into_iter().map(value).collect()
}

fn dates(draw: &mut Draw, tame: bool, count: usize) -> Vec<ScalarValue> {
    let mut values: Vec<i32> = (0..count).map(|_| draw.between(TAME_DAYS.0, TAME_DAYS.1) as i32).collect();
    // The end of a month and a leap day.
    values.extend([10_987, 11_016]);
    if !tame {
        values.extend([DAYS.0, DAYS.1, 0, -1, 1]);
    }
    values.into_iter().map(|value| ScalarValue::Date32(Some(value))).collect()
}

fn timestamps(draw: &mut Draw, data_type: &DataType, tame: bool, count: usize) -> Vec<ScalarValue> {
    let nanos = matches!(data_type, DataType::Timestamp(TimeUnit::Nanosecond, _));
    let scale = if nanos { 1_000_000_000 } else { 1_000_000 };
    let mut values: Vec<i64> =
        (0..count).map(|_| draw.between(TAME_SECONDS.0, TAME_SECONDS.1) * scale + draw.between(0, 999_999)).collect();
    if !tame {
        // Nanoseconds reach from 1677 to 2262.
        let (low, high) = if nanos { (i64::MIN + 1, i64::MAX) } else { MICROS };
        values.extend([low, high, 0, -1, 1]);
    }
    let make = if nanos { ScalarValue::TimestampNanosecond } else { ScalarValue::TimestampMicrosecond };
    values.into_iter().map(|value| make(Some(value), None)).collect()
}

/// Texts that share prefixes, are longer than the 12 bytes that a view holds inline or than the 64 bytes that
/// statistics keep, or have characters that patterns and literals give a meaning.
fn texts(draw: &mut Draw, count: usize) -> Vec<String> {
    let long = "x".repeat(64);
    let stems = ["", "a", "ab", "aubade", "a shared prefix that is long ", "Ünïcödé ", "日本語", &long];
    let odd = ["", " ", "%", "_", "a_b", "50% off", "it's", "\\", "a\\%b", "NULL", "true", "-1", "1e3", "\u{10ffff}"];
    let mut values: Vec<String> = (0..count)
        .map(|_| {
            let stem = draw.pick(&stems);
            format!("{stem}{}", draw.skewed(10_000))
        })
        .collect();
    if draw.percent(50) {
        values.extend(odd.map(str::to_owned));
        values.push(long.clone());
        values.push(format!("{long}{}", "y".repeat(200)));
    }
    values
}

/// The value as SQL writes it, of exactly its type.
pub fn literal(value: &ScalarValue) -> String {
    if value.is_null() {
        return "NULL".to_owned();
    }
    match value {
        ScalarValue::Boolean(Some(value)) => value.to_string().to_uppercase(),
        ScalarValue::Utf8(Some(text)) | ScalarValue::LargeUtf8(Some(text)) | ScalarValue::Utf8View(Some(text)) => {
            quoted(text)
        }
        ScalarValue::Date32(_) => format!("DATE '{}'", plain(value)),
        ScalarValue::Decimal128(_, precision, scale) => {
            format!("CAST('{}' AS DECIMAL({precision}, {scale}))", plain(value))
        }
        ScalarValue::TimestampMicrosecond(..) => timestamp(value, "Microsecond"),
        ScalarValue::TimestampNanosecond(..) => timestamp(value, "Nanosecond"),
        value => format!("arrow_cast('{}', '{}')", plain(value), value.data_type()),
    }
}

fn timestamp(value: &ScalarValue, unit: &str) -> String {
    format!("arrow_cast('{}', 'Timestamp({unit}, None)')", plain(value))
}

/// The value as people write it, if it is not so large that this would mean another one.
pub fn short_literal(value: &ScalarValue) -> Option<String> {
    match value {
        ScalarValue::Int8(_) | ScalarValue::Int16(_) | ScalarValue::Int32(_) | ScalarValue::UInt8(_) => {
            Some(plain(value))
        }
        ScalarValue::Int64(Some(number)) if number.unsigned_abs() < 1 << 53 => Some(plain(value)),
        ScalarValue::Float64(Some(number)) if number.abs() < 1e9 && number.abs() > 1e-9 => Some(plain(value)),
        ScalarValue::Decimal128(Some(number), ..) if number.unsigned_abs() < 10_u128.pow(15) => Some(plain(value)),
        ScalarValue::TimestampNanosecond(Some(nanos), _) if *nanos > 0 => Some(format!("TIMESTAMP '{}'", plain(value))),
        _ => None,
    }
}

/// A string literal.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The text that casts back to the value.
fn plain(value: &ScalarValue) -> String {
    let text = value.cast_to(&DataType::Utf8).unwrap();
    match text {
        ScalarValue::Utf8(Some(text)) => text,
        other => panic!("{value:?} is written as {other:?}"),
    }
}
