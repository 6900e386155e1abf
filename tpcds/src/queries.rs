//! The 99 queries of TPC-DS.
//!
//! NOTICE: written out for this project after the query templates of the TPC Benchmark DS specification (Transaction
//! Processing Performance Council), in the dialect of DataFusion and with the parameters that the specification uses for
//! validation. Columns that the templates leave without a name have one; where a template makes two statements (14, 23,
//! 24, 39) it is the first of them; 36, 70 and 86 rank by the sort keys of the template. More columns stand in ORDER BY
//! here and there, so that LIMIT cuts no ties.

/// One query.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// 1 to 99.
    pub number: u32,
    /// Its text, one statement without a semicolon.
    pub sql: &'static str,
}

impl Query {
    /// As people write it: `q1`.
    pub fn name(&self) -> String {
        format!("q{}", self.number)
    }
}

macro_rules! queries {
    ($($number:literal $file:literal),* $(,)?) => {
        [$(Query { number: $number, sql: include_str!(concat!("queries/q", $file, ".sql")) }),*]
    };
}

/// All of them, in order.
#[rustfmt::skip]
pub const QUERIES: [Query; 99] = queries![
    1 "01", 2 "02", 3 "03", 4 "04", 5 "05", 6 "06", 7 "07", 8 "08", 9 "09",
    10 "10", 11 "11", 12 "12", 13 "13", 14 "14", 15 "15", 16 "16", 17 "17", 18 "18",
    19 "19", 20 "20", 21 "21", 22 "22", 23 "23", 24 "24", 25 "25", 26 "26", 27 "27",
    28 "28", 29 "29", 30 "30", 31 "31", 32 "32", 33 "33", 34 "34", 35 "35", 36 "36",
    37 "37", 38 "38", 39 "39", 40 "40", 41 "41", 42 "42", 43 "43", 44 "44", 45 "45",
    46 "46", 47 "47", 48 "48", 49 "49", 50 "50", 51 "51", 52 "52", 53 "53", 54 "54",
    55 "55", 56 "56", 57 "57", 58 "58", 59 "59", 60 "60", 61 "61", 62 "62", 63 "63",
    64 "64", 65 "65", 66 "66", 67 "67", 68 "68", 69 "69", 70 "70", 71 "71", 72 "72",
    73 "73", 74 "74", 75 "75", 76 "76", 77 "77", 78 "78", 79 "79", 80 "80", 81 "81",
    82 "82", 83 "83", 84 "84", 85 "85", 86 "86", 87 "87", 88 "88", 89 "89", 90 "90",
    91 "91", 92 "92", 93 "93", 94 "94", 95 "95", 96 "96", 97 "97", 98 "98", 99 "99",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_run_from_1_to_99_and_texts_are_one_statement() {
        let numbers: Vec<u32> = QUERIES.iter().map(|query| query.number).collect();
        assert_eq!(numbers, (1..=99).collect::<Vec<_>>());
        assert!(QUERIES.iter().all(|query| !query.sql.contains(';') && query.sql.len() > 100));
    }
}
