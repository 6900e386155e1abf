//! The right to run the one copy of a plan that may run at a time.

use std::sync::Arc;

use aubade_planner::PlanTemplate;

use super::Entry;

/// Held by a run. Dropped without [`Lease::end`], the plan is forgotten: tasks of the run may still be under way.
#[derive(Debug)]
pub(crate) struct Lease {
    entry: Arc<Entry>,
    plan: Arc<PlanTemplate>,
    is_clean: bool,
}

impl Lease {
    pub(super) fn new(entry: Arc<Entry>, plan: Arc<PlanTemplate>) -> Self {
        Self { entry, plan, is_clean: false }
    }

    /// The run has ended as it should.
    pub(crate) fn end(mut self) {
        self.is_clean = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.entry.end_lease(&self.plan, self.is_clean);
    }
}
