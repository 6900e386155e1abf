//! The 22 queries of TPC-H with the validation parameters of the specification (q11's fraction is
//! that of scale 1 at every scale, q15 is written with WITH instead of a view).

/// One query.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// 1 to 22.
    pub number: u32,
    /// Its text, one statement without a semicolon.
    pub sql: &'static str,
    /// The columns of the result that ORDER BY names, in its order; empty if there is none.
    pub order_columns: &'static [usize],
    /// Whether no two rows of the result can agree in all `order_columns`.
    pub totally_ordered: bool,
    /// Its LIMIT.
    pub limit: Option<usize>,
}

impl Query {
    /// As people write it: `q1`.
    pub fn name(&self) -> String {
        format!("q{}", self.number)
    }
}

macro_rules! query {
    ($number:literal, $file:literal, $order:expr, $total:literal, $limit:expr) => {
        Query {
            number: $number,
            sql: include_str!(concat!("queries/", $file, ".sql")),
            order_columns: &$order,
            totally_ordered: $total,
            limit: $limit,
        }
    };
}

/// All of them, in order.
pub const QUERIES: [Query; 22] = [
    query!(1, "q01", [0, 1], true, None),
    query!(2, "q02", [0, 2, 1, 3], true, Some(100)),
    query!(3, "q03", [1, 2], false, Some(10)),
    query!(4, "q04", [0], true, None),
    query!(5, "q05", [1], false, None),
    query!(6, "q06", [], false, None),
    query!(7, "q07", [0, 1, 2], true, None),
    query!(8, "q08", [0], true, None),
    query!(9, "q09", [0, 1], true, None),
    query!(10, "q10", [2], false, Some(20)),
    query!(11, "q11", [1], false, None),
    query!(12, "q12", [0], true, None),
    query!(13, "q13", [1, 0], true, None),
    query!(14, "q14", [], false, None),
    query!(15, "q15", [0], true, None),
    query!(16, "q16", [3, 0, 1, 2], true, None),
    query!(17, "q17", [], false, None),
    query!(18, "q18", [4, 3], false, Some(100)),
    query!(19, "q19", [], false, None),
    query!(20, "q20", [0], true, None),
    query!(21, "q21", [1, 0], true, Some(100)),
    query!(22, "q22", [0], true, None),
];

/// The query of that number.
pub fn query(number: u32) -> Option<&'static Query> {
    QUERIES.iter().find(|query| query.number == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_run_from_1_to_22() {
        let numbers: Vec<u32> = QUERIES.iter().map(|query| query.number).collect();
        assert_eq!(numbers, (1..=22).collect::<Vec<_>>());
        assert!(query(0).is_none() && query(23).is_none());
    }

    #[test]
    fn order_and_limit_are_told_as_the_text_has_them() {
        for query in QUERIES {
            assert_eq!(query.sql.contains("\norder by"), !query.order_columns.is_empty(), "{}", query.name());
            assert_eq!(query.sql.contains("\nlimit"), query.limit.is_some(), "{}", query.name());
            assert!(!query.sql.contains(';'), "{}", query.name());
        }
    }
}
