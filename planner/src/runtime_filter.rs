//! Filters of a scan that become known only while the query runs: the keys of a join's build side,
//! and the bound of the rows that an ORDER BY with LIMIT still wants.
//!
//! They are best effort. A filter that is not known when a segment is asked for is left out, and the
//! operator that made it looks at every row again.

use std::fmt;
use std::sync::Arc;

use aubade_proto::{Fragment, Result};
use datafusion::common::ScalarValue;
use datafusion::common::config::ConfigOptions;
use datafusion::physical_expr::expressions::{DynamicFilterPhysicalExpr, Literal};
use datafusion::physical_expr::{PhysicalExpr, split_conjunction};
use parking_lot::Mutex;

use crate::join_keys::{JoinKeys, SizedFilter};
use crate::rewrite::Pushable;
use crate::subquery_values::with_values;

/// Bytes of all sets of keys in a fragment: they travel with every request, of which a storage node
/// takes 16 MiB.
const SETS_BYTES_MAX: usize = 12 << 20;

/// One such filter, over the columns that a fragment reads.
#[derive(Clone, Debug)]
pub(crate) struct RuntimeFilter {
    /// What it is about.
    columns: Vec<Arc<dyn PhysicalExpr>>,
    /// DataFusion's expression; there is none for keys that DataFusion would not have brought here.
    dynamic: Option<Arc<dyn PhysicalExpr>>,
    /// The keys of the build side, where it comes from a join.
    keys: Option<Arc<JoinKeys>>,
}

impl RuntimeFilter {
    /// A filter that DataFusion keeps up to date; `None` when the expression is of another kind.
    pub(crate) fn try_new(dynamic: Arc<dyn PhysicalExpr>) -> Option<Self> {
        let columns = dynamic.children().into_iter().cloned().collect();
        dynamic.is::<DynamicFilterPhysicalExpr>().then_some(Self { columns, dynamic: Some(dynamic), keys: None })
    }

    /// `columns` are keys of a join.
    pub(crate) fn of_keys(columns: Vec<Arc<dyn PhysicalExpr>>, keys: Arc<JoinKeys>) -> Self {
        Self { columns, dynamic: None, keys: Some(keys) }
    }

    /// By which the operator that keeps it up to date is found.
    pub(crate) fn expression_id(&self) -> Option<u64> {
        self.dynamic.as_ref()?.expression_id()
    }

    /// Whether it comes from one of the joins with these keys, or of the operators that fill filters of these ids.
    pub(crate) fn comes_from(&self, keys: &[Arc<JoinKeys>], ids: &[u64]) -> bool {
        let by_keys = self.keys.as_ref().is_some_and(|own| keys.iter().any(|keys| Arc::ptr_eq(own, keys)));
        by_keys || self.expression_id().is_some_and(|id| ids.contains(&id))
    }

    /// DataFusion's expression.
    pub(crate) fn expression(&self) -> Option<&Arc<dyn PhysicalExpr>> {
        self.dynamic.as_ref()
    }

    /// The same filter, that comes from a join with these keys.
    pub(crate) fn with_keys(&self, keys: Arc<JoinKeys>) -> Self {
        Self { keys: Some(keys), ..self.clone() }
    }

    /// Grows whenever more is known.
    fn generation(&self) -> u64 {
        let keys_known = self.keys.as_ref().is_some_and(|keys| keys.are_known());
        let generation = self.dynamic.as_ref().map_or(0, |dynamic| dynamic.snapshot_generation());
        generation.saturating_mul(2).saturating_add(u64::from(keys_known))
    }

    /// What is known by now, as conjuncts that can be sent.
    fn known(&self, pushable: Option<&Pushable>, fragment: &Fragment, config: &ConfigOptions) -> Vec<SizedFilter> {
        if let Some(keys) = &self.keys {
            let columns = self.columns.iter().map(with_values).collect::<Result<Vec<_>, _>>();
            return columns.map_or_else(|_| Vec::new(), |columns| keys.filters(&columns, fragment.scan_schema()));
        }
        let dynamic = self.dynamic.as_ref().and_then(|dynamic| dynamic.downcast_ref::<DynamicFilterPhysicalExpr>());
        let Some(dynamic) = dynamic else { return Vec::new() };
        let (Ok(current), Some(pushable)) = (dynamic.current(), pushable) else { return Vec::new() };
        let conjuncts = split_conjunction(&current).into_iter();
        // Before there are rows it is `true`.
        let says_something = |conjunct: &&Arc<dyn PhysicalExpr>| {
            let literal = conjunct.downcast_ref::<Literal>();
            literal.is_none_or(|literal| *literal.value() != ScalarValue::Boolean(Some(true)))
        };
        conjuncts
            .filter(says_something)
            .filter_map(|conjunct| with_values(conjunct).ok())
            .filter(|conjunct| pushable.check_filter(conjunct, fragment.scan_schema(), config).is_ok())
            .map(|conjunct| (conjunct, 0))
            .collect()
    }
}

impl fmt::Display for RuntimeFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<_> = self.columns.iter().map(ToString::to_string).collect();
        write!(f, "{} of {}", if self.keys.is_some() { "join keys" } else { "bound" }, columns.join(", "))
    }
}

/// A fragment with its filters that become known while the query runs. Clones share what is known.
#[derive(Clone)]
pub struct RuntimeFragment {
    fragment: Arc<Fragment>,
    filters: Arc<[RuntimeFilter]>,
    pushable: Option<Arc<Pushable>>,
    config: Arc<ConfigOptions>,
    latest: Arc<Mutex<Option<Latest>>>,
}

/// The fragment as of the last look.
#[derive(Debug)]
struct Latest {
    generations: Vec<u64>,
    fragment: Arc<Fragment>,
}

impl fmt::Debug for RuntimeFragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeFragment").field("filters", &self.filters).finish_non_exhaustive()
    }
}

impl RuntimeFragment {
    pub(crate) fn new(
        fragment: Arc<Fragment>,
        filters: Arc<[RuntimeFilter]>,
        pushable: Option<Arc<Pushable>>,
        config: Arc<ConfigOptions>,
    ) -> Self {
        Self { fragment, filters, pushable, config, latest: Arc::default() }
    }

    /// The fragment as it was planned.
    pub fn planned(&self) -> &Arc<Fragment> {
        &self.fragment
    }

    /// The fragment with all filters that are known by now. What is returned later may let fewer
    /// rows pass: a segment that is asked for again must be asked with the same one.
    ///
    /// # Errors
    /// When a filter does not fit the fragment.
    pub fn now(&self) -> Result<Arc<Fragment>> {
        if self.filters.is_empty() {
            return Ok(Arc::clone(&self.fragment));
        }
        let generations: Vec<u64> = self.filters.iter().map(RuntimeFilter::generation).collect();
        let mut latest = self.latest.lock();
        if let Some(latest) = latest.as_ref().filter(|latest| latest.generations == generations) {
            return Ok(Arc::clone(&latest.fragment));
        }
        let known =
            self.filters.iter().flat_map(|filter| filter.known(self.pushable.as_deref(), &self.fragment, &self.config));
        let mut bytes_left = SETS_BYTES_MAX;
        let mut fits = |bytes: usize| {
            let fits = bytes <= bytes_left;
            bytes_left -= if fits { bytes } else { 0 };
            fits
        };
        let known: Vec<_> = known.filter(|(_, bytes)| fits(*bytes)).map(|(filter, _)| filter).collect();
        let fragment = match known.is_empty() {
            true => Arc::clone(&self.fragment),
            false => Arc::new(self.fragment.with_more_filters(known)?),
        };
        *latest = Some(Latest { generations, fragment: Arc::clone(&fragment) });
        Ok(fragment)
    }
}
