//! What the statements of a session are planned with: functions, rules and settings, without tables.

use std::collections::HashSet;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use aubade_catalog::Snapshot;
use aubade_planner::pipeline::first_rules;
use aubade_planner::{Opaque, PlannerOptions, session_config, session_state};
use aubade_proto::Version;
use datafusion::execution::{SessionState, SessionStateBuilder};

use crate::engine::Engine;

/// See the module's doc.
#[derive(Debug)]
pub(crate) struct Template {
    /// With all rules.
    pub(crate) state: Opaque<SessionState>,
    /// With the rules whose plans can be kept.
    pub(crate) first_stage: Opaque<SessionState>,
    /// Plans depend on them.
    pub(crate) settings: Settings,
}

/// All settings as text. It is longer than most statements, and a part of the keys of all, so that it is hashed once.
#[derive(Clone, Debug, Eq)]
pub(crate) struct Settings {
    text: Arc<str>,
    hash: u64,
}

impl Settings {
    fn new(text: String) -> Self {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self { hash: hasher.finish(), text: text.into() }
    }

    /// Those that are others in `initial`, as `name=value`.
    pub(crate) fn changes_from(&self, initial: &Self) -> String {
        if self == initial {
            return String::new();
        }
        let initial: HashSet<&str> = initial.text.lines().collect();
        let changed = self.text.lines().filter(|line| !initial.contains(line)).map(shown);
        changed.collect::<Vec<_>>().join(", ")
    }
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

impl Hash for Settings {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

/// One line of the text of settings as people write it.
fn shown(line: &str) -> String {
    let Some((name, value)) = line.split_once('=') else { return line.to_owned() };
    let text = value.strip_prefix("Some(\"").and_then(|value| value.strip_suffix("\")"));
    format!("{name}={}", text.unwrap_or("NULL"))
}

/// What the columns and the parameters of a statement depend on: they are known for as long as it is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Basis {
    /// Of the catalog's schema.
    pub(crate) schema_version: Version,
    /// Of the session.
    pub(crate) settings: Settings,
}

impl Template {
    /// What the sessions of an engine start with.
    pub(crate) fn of(engine: &Engine) -> Self {
        let options = PlannerOptions { target_partitions: engine.options().target_partitions, ..Default::default() };
        let mut config = session_config(&options);
        // Every sort sets memory aside for merging its spilled runs: all of them together must fit.
        let sorts = 4 * config.target_partitions();
        let merge_bytes = engine.options().memory_limit_bytes() / sorts.max(1);
        let execution = &mut config.options_mut().execution;
        execution.sort_spill_reservation_bytes = execution.sort_spill_reservation_bytes.min(merge_bytes);
        Self::new(session_state(config, Arc::clone(engine.runtime())))
    }

    pub(crate) fn new(state: SessionState) -> Self {
        let mut settings = String::new();
        for entry in state.config().options().entries() {
            // Writing into a string does not fail.
            let _ = writeln!(settings, "{}={:?}", entry.key, entry.value);
        }
        let first_stage =
            SessionStateBuilder::new_from_existing(state.clone()).with_physical_optimizer_rules(first_rules()).build();
        Self { state: Opaque::new(state), first_stage: Opaque::new(first_stage), settings: Settings::new(settings) }
    }

    /// What statements that are planned on a snapshot depend on.
    pub(crate) fn basis(&self, snapshot: &Snapshot) -> Basis {
        Basis { schema_version: snapshot.schema_version, settings: self.settings.clone() }
    }
}
