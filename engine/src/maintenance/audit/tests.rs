//! What becomes of lost and found replicas.

use aubade_proto::Version;

use super::*;
use crate::maintenance::testing::{node_id, segment_id, snapshot};

fn nodes_of(pairs: &[(u128, u128)]) -> NodesOf {
    let mut all = NodesOf::new();
    for (segment, node) in pairs {
        all.entry(segment_id(*segment)).or_default().insert(node_id(*node));
    }
    all
}

/// The holders of the first segment after the corrections, and whether it was told to be without a replica.
fn corrected(snapshot: &Snapshot, differences: &Differences) -> (Vec<NodeId>, bool) {
    let corrections = corrections(snapshot, differences);
    let after = snapshot.apply(Version(9), &corrections.actions).unwrap();
    let mut holders = after.segments().next().unwrap().holders.clone();
    holders.sort_unstable();
    (holders, !corrections.without_replica.is_empty())
}

fn ids(numbers: &[u128]) -> Vec<NodeId> {
    numbers.iter().map(|number| node_id(*number)).collect()
}

#[test]
fn a_missing_or_damaged_replica_is_taken_out_and_the_others_stay() {
    let snapshot = snapshot(3, 3, &[(&[1, 2, 3], &[1, 2, 3]), (&[1, 2, 3], &[1, 2, 3])]);
    let missing = Differences { missing: nodes_of(&[(1, 2)]), ..Differences::default() };
    assert_eq!(corrected(&snapshot, &missing), (ids(&[1, 3]), false));
    let damaged = Differences { quarantined: nodes_of(&[(1, 2)]), ..Differences::default() };
    assert_eq!(corrected(&snapshot, &damaged), (ids(&[1, 3]), false));
    // The other segment is no concern of it.
    assert_eq!(corrections(&snapshot, &damaged).actions.len(), 1);
}

#[test]
fn with_every_replica_lost_at_one_look_one_that_left_a_file_stays_named() {
    let snapshot = snapshot(3, 3, &[(&[1, 2, 3], &[1, 2, 3])]);
    for damaged in 1..=3 {
        let missing = (1..=3).filter(|node| *node != damaged).map(|node| (1, node)).collect::<Vec<_>>();
        let differences = Differences {
            missing: nodes_of(&missing),
            quarantined: nodes_of(&[(1, damaged)]),
            ..Differences::default()
        };
        assert_eq!(corrected(&snapshot, &differences), (ids(&[damaged]), true));
    }
    let all = Differences { quarantined: nodes_of(&[(1, 1), (1, 2), (1, 3)]), ..Differences::default() };
    assert_eq!(corrected(&snapshot, &all).0.len(), 1);
}

#[test]
fn the_last_one_stays_named_at_every_later_look() {
    let snapshot = snapshot(3, 3, &[(&[1, 2, 3], &[2])]);
    let differences = Differences { quarantined: nodes_of(&[(1, 2)]), ..Differences::default() };
    assert!(corrections(&snapshot, &differences).actions.is_empty());
    assert_eq!(corrected(&snapshot, &differences), (ids(&[2]), true));
}

#[test]
fn a_replica_that_turns_up_takes_the_place_of_the_last_lost_one() {
    let snapshot = snapshot(3, 3, &[(&[1, 2, 3], &[2])]);
    let differences =
        Differences { missing: nodes_of(&[(1, 2)]), found: nodes_of(&[(1, 1)]), ..Differences::default() };
    assert_eq!(corrected(&snapshot, &differences), (ids(&[1]), false));
}

#[test]
fn a_node_that_was_removed_gives_its_place_up_once_another_has_the_segment() {
    let snapshot = snapshot(2, 2, &[(&[1], &[7])]);
    let differences = Differences { found: nodes_of(&[(1, 1)]), ..Differences::default() };
    assert_eq!(corrected(&snapshot, &differences), (ids(&[1]), false));
}

#[test]
fn a_segment_without_a_replica_is_told_once() {
    let snapshot = snapshot(1, 1, &[(&[1], &[1])]);
    let differences = Differences { missing: nodes_of(&[(1, 1)]), ..Differences::default() };
    let corrections = corrections(&snapshot, &differences);
    let mut reported = BTreeSet::new();
    corrections.report(&differences, &mut reported, false);
    assert_eq!(reported, BTreeSet::from([segment_id(1)]));
    Corrections::default().report(&Differences::default(), &mut reported, false);
    assert_eq!(reported.len(), 1, "not every node was asked");
    Corrections::default().report(&Differences::default(), &mut reported, true);
    assert!(reported.is_empty());
}
