//! Why parts of a plan stay on the coordinator: in words for EXPLAIN, and by kind for counting.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $text:literal;)*) => {
        /// The kinds of reasons; each is a counter in `system.metrics`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $(#[doc = $text] $variant,)*
        }

        impl Reason {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name of its counter.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it means.
            pub fn description(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

reasons! {
    AfterLimit = "after_limit", "it comes after a limit, which has to see all rows first";
    ExpressionKind = "expression_kind", "an expression of a kind that storage nodes are not given";
    Join = "join", "joins run on the coordinator";
    JoinBuildSide = "join_build_side", "what a join hashes is thought to be larger than aubade.broadcast_bytes";
    JoinInput = "join_input", "between a join and the scan and aggregate around it is what storage nodes do not run";
    JoinKind = "join_kind", "a join is of a kind that storage nodes do not run";
    JoinSavesLittle = "join_saves_little", "a join at storage nodes would save few bytes";
    JoinWithoutAggregate = "join_without_aggregate", "no aggregate makes less of the rows of a join";
    KeepsValues = "keeps_values", "an aggregate keeps all its values, and what they are ordered by";
    ManyGroups = "many_groups", "an aggregate has about as many groups as rows";
    ManyRows = "many_rows", "the first rows of an order are too many";
    Metadata = "metadata", "a projection changes the metadata of its columns";
    NoWireForm = "no_wire_form", "an expression or its type does not survive the wire";
    OrderedAggregate = "ordered_aggregate", "an aggregate takes its rows in an order, and they come from joins or are sorted already";
    ResultIsNotState = "result_is_not_state", "a filter of groups is on a result that is not the state of its aggregate";
    RunTime = "run_time", "a filter is known only while the query runs";
    SessionSettings = "session_settings", "a function has settings of the session";
    Sort = "sort", "a sort of all rows runs on the coordinator";
    SpreadGroups = "spread_groups", "groups that a filter is on may have rows in several segments";
    Subquery = "subquery", "an expression needs the result of a subquery";
    TimeZone = "time_zone", "a function may depend on the time zone of the session";
    UnknownFunction = "unknown_function", "a function is not known to storage nodes";
    Volatile = "volatile", "a function gives another value each time";
    Wider = "wider", "a projection would send more bytes than its columns have";
    Window = "window", "windows run on the coordinator";
}

/// Why something cannot, or should not, run at a storage node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For counting.
    pub reason: Reason,
    text: String,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }

    /// The same with another text around its own.
    pub(crate) fn within(&self, before: &str) -> Self {
        Self { reason: self.reason, text: format!("{before}{}", self.text) }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A part of a plan that stays on the coordinator directly above a scan, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotPushed {
    /// Which part.
    pub part: String,
    /// Why.
    pub refusal: Refusal,
}

impl NotPushed {
    pub(crate) fn new(part: impl Into<String>, refusal: Refusal) -> Self {
        Self { part: part.into(), refusal }
    }
}

impl fmt::Display for NotPushed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.refusal)
    }
}
