//! Plans of queries, for all sessions: planning a query of TPC-H takes milliseconds, a copy of its plan some hundred
//! microseconds (`benches/benches/plan_cache.rs`).
//!
//! An entry is found by the words of a statement, the values of its parameters, the settings of the session, and the
//! version of the catalog's schema. It has the optimised logical plan, which holds for any snapshot of that schema, and
//! a [`PlanTemplate`], which holds as long as the tables have the same segments. What other segments there are changes
//! statistics, and so the best plan: then the logical plan is planned again for the newer snapshot.
//!
//! A statement whose constants or parameters have other values shares the optimised logical plan: constants that may
//! change are lifted out of it ([`lift`]). Of two physical plans of one shape a [`GenericPlan`] is learnt where they differ
//! in values only, and copied for the values of the statements after them. Where there is none, or the values change too
//! much, the statement is planned physically for its values, since these decide in which order tables are joined; when
//! it comes again, it gets an entry of its own.

mod idle;
mod key;
mod lease;
mod lift;
mod lookup;
mod shown;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aubade_catalog::Snapshot;
use aubade_environment::Clock;
use aubade_planner::{Binding, GenericPlan, KeptPlan, Opaque, PlanTemplate};
use aubade_proto::{Error, ErrorCode, Result, Version};
use parking_lot::Mutex;
use serde::Serialize;

use idle::IdleCache;
pub(crate) use key::PlanKey;
pub(crate) use lease::Lease;
use lift::Lifts;
pub(crate) use lookup::{Lookup, Shape};

use crate::engine::EngineOptions;
use crate::limits::{
    PLAN_CACHE_AGE, PLAN_CACHE_AGE_MAX, PLAN_CACHE_DETAIL_BYTES_MAX, PLAN_CACHE_ENTRIES, PLAN_CACHE_ENTRIES_MAX,
    PLAN_CACHE_LESSONS_MAX, PLAN_CACHE_TEXT_BYTES_MAX,
};
use crate::query::cut;
use crate::session::{Prepared, Settings};

/// See the module's doc.
#[derive(Debug)]
pub(crate) struct PlanCache {
    is_on: bool,
    entries: IdleCache<Arc<Entry>>,
    /// What statements are, by keys and shapes without parameters.
    descriptions: IdleCache<Prepared>,
    /// Which constants may change in statements that differ in constants only; `None` where such have no plan in common.
    lifts: IdleCache<Option<Arc<Lifts>>>,
    /// Statements that have run with a plan for all values.
    seen: IdleCache<()>,
    /// The newest version of the schema that a statement was looked up for.
    schema_version: AtomicU64,
    misses: AtomicU64,
}

/// One line of `system.plan_cache`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PlanCacheLine {
    /// The statement as it was first sent, cut where it is long.
    sql: String,
    /// What it is found by, as far as its words are a part of it: normalised, and cut where it is long.
    key: String,
    /// Of all that it is found by: two entries have two.
    key_digest: String,
    /// Of the catalog's schema.
    schema_version: u64,
    parameters: u64,
    /// Their types, with the values where the plan is for these only; cut where they are many.
    parameter_values: String,
    /// The settings that are others than those that sessions start with; cut where they are many.
    settings: String,
    /// Different constants that may have other values.
    lifted: u64,
    hits: u64,
    /// Of the hits, those for which the physical plan was kept too.
    template_hits: u64,
    /// What planning took at first, microseconds.
    planning_micros: u64,
    /// What it would have taken for all hits, less what it took.
    saved_micros: u64,
}

/// The plans of one statement.
#[derive(Debug)]
pub(crate) struct Entry {
    sql: String,
    lifted: usize,
    plan: Opaque<KeptPlan>,
    template: Mutex<Option<Template>>,
    /// Of all statements of a shape.
    lesson: Mutex<Lesson>,
    planning_micros: AtomicU64,
    hits: AtomicU64,
    template_hits: AtomicU64,
    hit_micros: AtomicU64,
}

#[derive(Clone, Debug)]
struct Template {
    plan: Arc<PlanTemplate>,
    /// A copy runs of a plan of which only one may.
    leased: bool,
}

/// What was learnt of the plans of a shape.
#[derive(Clone, Debug, Default)]
struct Lesson {
    /// A plan, and what it was made for.
    example: Option<(Arc<PlanTemplate>, Arc<Binding>)>,
    /// What was learnt of the example and another plan.
    generic: Option<Arc<GenericPlan>>,
    /// Plans from which nothing could be learnt, one after the other.
    failures: u32,
}

/// The limits that `options` set, or the defaults.
///
/// # Errors
/// `InvalidArgument` where one is of no use, or larger than it may be.
fn limits_of(options: &EngineOptions) -> Result<(u64, Duration)> {
    let entries = options.plan_cache_entries.unwrap_or(PLAN_CACHE_ENTRIES);
    let age = options.plan_cache_age.unwrap_or(PLAN_CACHE_AGE);
    let refused = |text: String, hint: String| Err(Error::new(ErrorCode::InvalidArgument, text).hint(hint));
    if entries > PLAN_CACHE_ENTRIES_MAX {
        let text = format!("the plan cache cannot have {entries} entries, which are not counted in bytes");
        return refused(text, format!("give --plan-cache-entries up to {PLAN_CACHE_ENTRIES_MAX}; 0 switches it off"));
    }
    if age.is_zero() {
        let text = "plans that are forgotten at once are of no use".to_owned();
        return refused(text, "give --plan-cache-age 1 or more, or --plan-cache-entries 0 for no plans".to_owned());
    }
    if age > PLAN_CACHE_AGE_MAX {
        let text = format!("plans that nobody asks for cannot be kept for {} s", age.as_secs());
        return refused(text, format!("give --plan-cache-age up to {}, a year", PLAN_CACHE_AGE_MAX.as_secs()));
    }
    Ok((entries, age))
}

impl PlanCache {
    /// An empty cache with the limits that `options` set. Ages are by `clock`.
    ///
    /// # Errors
    /// `InvalidArgument` where one is of no use, or larger than it may be.
    pub(crate) fn new(options: &EngineOptions, clock: &Arc<dyn Clock>) -> Result<Self> {
        let (entries, age) = limits_of(options)?;
        Ok(Self {
            is_on: entries > 0,
            entries: IdleCache::new(entries, age, Arc::clone(clock)),
            descriptions: IdleCache::new(entries, age, Arc::clone(clock)),
            lifts: IdleCache::new(entries, age, Arc::clone(clock)),
            seen: IdleCache::new(entries, age, Arc::clone(clock)),
            schema_version: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        })
    }

    /// Whether any plan is kept.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    /// The plans of a statement, or of all statements of a shape.
    pub(crate) fn get(&self, key: &PlanKey) -> Option<Arc<Entry>> {
        self.adopt(key.schema_version);
        self.entries.get(key)
    }

    /// The first statement over a newer schema forgets what is of older ones.
    fn adopt(&self, newest: Version) {
        // Ordering: a number by itself; who moves it on does the work.
        if self.schema_version.fetch_max(newest.0, Ordering::Relaxed) < newest.0 {
            self.entries.forget_before(newest);
            self.descriptions.forget_before(newest);
            self.lifts.forget_before(newest);
            self.seen.forget_before(newest);
        }
    }

    /// The shape of a statement, if it is known which constants may change in such as this one.
    pub(crate) fn shape(&self, lookup: &Lookup) -> Option<Shape> {
        lookup.shape(&self.lifts.get(lookup.pattern())??)
    }

    /// Takes note of which constants may change in statements like this one.
    pub(crate) fn add_lifts(&self, lookup: &Lookup, lifts: Option<Lifts>) {
        self.lifts.insert(lookup.pattern().clone(), lifts.map(Arc::new));
    }

    /// Whether it is known which constants may change in statements like this one.
    pub(crate) fn knows_lifts(&self, lookup: &Lookup) -> bool {
        self.lifts.get(lookup.pattern()).is_some()
    }

    /// Takes note that a statement is run with a plan for all values; `true` if one was before.
    pub(crate) fn see(&self, key: &PlanKey) -> bool {
        let was_seen = self.seen.get(key).is_some();
        if !was_seen {
            self.seen.insert(key.clone(), ());
        }
        was_seen
    }

    /// Counts a statement of which there was no plan.
    pub(crate) fn count_miss(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps the plan of a statement, or of all statements of a shape, that was planned for the first time. Of the latter
    /// `lifted` constants may have other values.
    pub(crate) fn add(&self, key: PlanKey, sql: &str, lifted: usize, plan: Opaque<KeptPlan>) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            sql: cut(sql, PLAN_CACHE_TEXT_BYTES_MAX),
            lifted,
            plan,
            template: Mutex::default(),
            lesson: Mutex::default(),
            planning_micros: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            template_hits: AtomicU64::new(0),
            hit_micros: AtomicU64::new(0),
        });
        self.entries.insert(key, Arc::clone(&entry));
        entry
    }

    /// What a statement is, if it was described before.
    pub(crate) fn description(&self, key: &PlanKey) -> Option<Prepared> {
        self.descriptions.get(key)
    }

    /// Keeps what a statement is.
    pub(crate) fn add_description(&self, key: PlanKey, prepared: Prepared) {
        self.descriptions.insert(key, prepared);
    }

    /// Forgets a plan that does not work any more.
    pub(crate) fn remove(&self, key: &PlanKey) {
        self.entries.remove(key);
    }

    /// Forgets all plans.
    pub(crate) fn clear(&self) {
        self.entries.clear();
        self.descriptions.clear();
        self.lifts.clear();
        self.seen.clear();
    }

    /// Statements that were not found.
    pub(crate) fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// All entries, those that saved most first. `initial` are the settings that sessions start with.
    pub(crate) fn lines(&self, initial: &Settings) -> Vec<PlanCacheLine> {
        let mut lines: Vec<PlanCacheLine> =
            self.entries.all().iter().map(|(key, entry)| entry.line(key, initial)).collect();
        lines.sort_by(|one, other| {
            (other.saved_micros, &one.key, &one.key_digest).cmp(&(one.saved_micros, &other.key, &other.key_digest))
        });
        lines
    }
}

impl Entry {
    /// The optimised logical plan.
    pub(crate) fn plan(&self) -> &KeptPlan {
        &self.plan
    }

    /// The physical plan for the segments of `snapshot`, if there is one of which a copy may be made now; and the lease
    /// that the run has to hold where only one copy may run.
    pub(crate) fn template(self: &Arc<Self>, snapshot: &Snapshot) -> Option<(Arc<PlanTemplate>, Option<Lease>)> {
        let mut slot = self.template.lock();
        let template = slot.as_mut()?;
        if !template.plan.fits(snapshot) {
            *slot = None;
            return None;
        }
        if template.leased {
            return None;
        }
        let plan = Arc::clone(&template.plan);
        template.leased = plan.is_exclusive();
        let lease = template.leased.then(|| Lease::new(Arc::clone(self), Arc::clone(&plan)));
        Some((plan, lease))
    }

    /// Keeps a physical plan, unless there is one of which a copy runs. What it was made of is run by the caller, who
    /// gets the lease where only one may run.
    pub(crate) fn set_template(self: &Arc<Self>, plan: Arc<PlanTemplate>) -> Option<Lease> {
        let mut slot = self.template.lock();
        if slot.as_ref().is_some_and(|template| template.leased) {
            return None;
        }
        let leased = plan.is_exclusive();
        *slot = Some(Template { plan: Arc::clone(&plan), leased });
        leased.then(|| Lease::new(Arc::clone(self), plan))
    }

    /// Forgets a physical plan of which no copy can be made.
    pub(crate) fn forget_template(&self, plan: &Arc<PlanTemplate>) {
        self.end_lease(plan, false);
    }

    /// The run that had the lease of `plan` has ended: as it should, or with tasks that may still write into what all
    /// copies share.
    fn end_lease(&self, plan: &Arc<PlanTemplate>, is_clean: bool) {
        let mut slot = self.template.lock();
        match slot.as_mut().filter(|template| Arc::ptr_eq(&template.plan, plan)) {
            Some(template) if is_clean => template.leased = false,
            Some(_) => *slot = None,
            None => {}
        }
    }

    /// The plan for other values, if one was learnt for the segments of `snapshot`.
    pub(crate) fn generic(&self, snapshot: &Snapshot) -> Option<Arc<GenericPlan>> {
        let mut lesson = self.lesson.lock();
        if lesson.example.as_ref().is_some_and(|(example, _)| !example.fits(snapshot)) {
            *lesson = Lesson::default();
        }
        lesson.generic.clone()
    }

    /// Whether another plan may still teach something.
    pub(crate) fn learns(&self) -> bool {
        self.lesson.lock().failures < PLAN_CACHE_LESSONS_MAX
    }

    /// Learns from a physical plan of a statement of the shape, and its values, unless a scan gives more than `factor` times
    /// as many rows for these as for others, or as few.
    pub(crate) fn learn(&self, template: &Arc<PlanTemplate>, binding: Binding, factor: u64) {
        let before = self.lesson.lock().clone();
        let learnt = before.example.as_ref().and_then(|(example, of_example)| {
            let learnt = GenericPlan::learn(example, of_example, template, &binding, factor);
            learnt.inspect_err(|error| tracing::debug!(%error, "nothing is learnt from a plan")).ok()?
        });
        let mut lesson = self.lesson.lock();
        let is_as_before = match (&lesson.example, &before.example) {
            (Some((now, _)), Some((example, _))) => Arc::ptr_eq(now, example),
            (now, example) => now.is_none() && example.is_none(),
        };
        // Another statement has taught something meanwhile, or rows were written.
        if !is_as_before {
            return;
        }
        match learnt {
            Some(generic) if lesson.generic.as_ref().is_none_or(|before| generic.is_at_least(before)) => {
                (lesson.generic, lesson.failures) = (Some(Arc::new(generic)), 0);
            }
            _ => lesson.failures += u32::from(lesson.example.is_some()),
        }
        // One that has taught something stays, however different others are.
        if lesson.generic.is_none() {
            lesson.example = Some((Arc::clone(template), Arc::new(binding)));
        }
    }

    /// What it took to plan the statement for the first time.
    pub(crate) fn planning_time(&self) -> Duration {
        Duration::from_micros(self.planning_micros.load(Ordering::Relaxed))
    }

    /// Sets what it took to plan the statement for the first time.
    pub(crate) fn planned_in(&self, took: Duration) {
        self.planning_micros.store(micros(took), Ordering::Relaxed);
    }

    /// Counts a hit, and what it took to make a plan of it.
    pub(crate) fn count_hit(&self, from_template: bool, took: Duration) {
        self.hits.fetch_add(1, Ordering::Relaxed);
        self.template_hits.fetch_add(u64::from(from_template), Ordering::Relaxed);
        self.hit_micros.fetch_add(micros(took), Ordering::Relaxed);
    }

    fn line(&self, key: &PlanKey, initial: &Settings) -> PlanCacheLine {
        let hits = self.hits.load(Ordering::Relaxed);
        let planning_micros = self.planning_micros.load(Ordering::Relaxed);
        let without = planning_micros.saturating_mul(hits);
        PlanCacheLine {
            sql: self.sql.clone(),
            key: shown::words(key),
            key_digest: shown::digest(key),
            schema_version: key.schema_version.0,
            parameters: key.parameter_count() as u64,
            parameter_values: shown::parameters(key),
            settings: cut(&key.settings.changes_from(initial), PLAN_CACHE_DETAIL_BYTES_MAX),
            lifted: self.lifted as u64,
            hits,
            template_hits: self.template_hits.load(Ordering::Relaxed),
            planning_micros,
            saved_micros: without.saturating_sub(self.hit_micros.load(Ordering::Relaxed)),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
