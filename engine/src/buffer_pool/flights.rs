//! Loads that are under way: whoever wants the same of a segment waits for the one that has begun.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use aubade_proto::{Result, SegmentId};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::load::Source;

/// Whether what was loaded has found room; `None` until it is known.
type Outcome = Option<Result<bool>>;

/// One load of each segment at most: those of other columns wait for their turn, and find there what they have in common.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<SegmentId, UnderWay>>);

/// What a load is asked for; the outcome of another one holds for it only where all of this is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) columns: Vec<Arc<str>>,
    pub(super) source: Source,
    /// They come whatever the others are worth.
    pub(super) is_pinned: bool,
}

#[derive(Debug)]
struct UnderWay {
    asked: Asked,
    outcome: watch::Receiver<Outcome>,
}

/// What to do about a load.
pub(super) enum Turn<'a> {
    /// Nobody loads anything of the segment: others wait until this is dropped.
    Own(Flight<'a>),
    Waits(Waiting),
}

/// The load of somebody else.
pub(super) struct Waiting {
    outcome: watch::Receiver<Outcome>,
    is_same: bool,
}

/// A load that others can wait for.
pub(super) struct Flight<'a> {
    flights: &'a Flights,
    segment: SegmentId,
    outcome: Outcome,
    tell: watch::Sender<Outcome>,
}

impl Flights {
    pub(super) fn join(&self, segment: SegmentId, asked: &Asked) -> Turn<'_> {
        match self.0.lock().entry(segment) {
            Entry::Occupied(known) => {
                let known = known.get();
                Turn::Waits(Waiting { outcome: known.outcome.clone(), is_same: known.asked == *asked })
            }
            Entry::Vacant(free) => {
                let (tell, outcome) = watch::channel(None);
                free.insert(UnderWay { asked: asked.clone(), outcome });
                Turn::Own(Flight { flights: self, segment, outcome: None, tell })
            }
        }
    }
}

impl Waiting {
    /// Waits for the end of the load. Gives its outcome; `None` where it says nothing about this one, or where whoever
    /// loaded has given up.
    pub(super) async fn outcome(mut self) -> Outcome {
        let outcome = self.outcome.wait_for(Option::is_some).await.ok()?;
        outcome.clone().filter(|_| self.is_same)
    }
}

impl Flight<'_> {
    /// The load has ended.
    pub(super) fn end(mut self, outcome: &Result<bool>) {
        self.outcome = Some(outcome.clone());
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        // First: those that are told look for a load once more.
        self.flights.0.lock().remove(&self.segment);
        // Without an outcome they hear that nobody will tell them.
        if let Some(outcome) = self.outcome.take() {
            self.tell.send_replace(Some(outcome));
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const SEGMENT: SegmentId = SegmentId(Uuid::nil());

    fn asked(columns: &[&str]) -> Asked {
        Asked { columns: columns.iter().map(|name| Arc::from(*name)).collect(), source: Source::Any, is_pinned: true }
    }

    fn own<'a>(flights: &'a Flights, columns: &[&str]) -> Flight<'a> {
        match flights.join(SEGMENT, &asked(columns)) {
            Turn::Own(flight) => flight,
            Turn::Waits(_) => panic!("somebody loads it"),
        }
    }

    fn waits(flights: &Flights, columns: &[&str]) -> Waiting {
        match flights.join(SEGMENT, &asked(columns)) {
            Turn::Own(_) => panic!("nobody loads it"),
            Turn::Waits(waiting) => waiting,
        }
    }

    #[tokio::test]
    async fn one_loads_and_the_others_hear_of_it() {
        let flights = Flights::default();
        let flight = own(&flights, &["a"]);
        let (same, other) = (waits(&flights, &["a"]), waits(&flights, &["a", "b"]));
        flight.end(&Ok(false));
        assert!(!same.outcome().await.unwrap().unwrap());
        assert!(other.outcome().await.is_none());
        drop(own(&flights, &["a", "b"]));
    }

    #[tokio::test]
    async fn one_that_gives_up_leaves_it_to_others() {
        let flights = Flights::default();
        let flight = own(&flights, &["a"]);
        let waiting = waits(&flights, &["a"]);
        drop(flight);
        assert!(waiting.outcome().await.is_none());
        drop(own(&flights, &["a"]));
    }
}
