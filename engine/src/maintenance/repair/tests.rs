//! Which copies are made, and when one that failed is tried again.

use aubade_proto::Version;

use super::*;
use crate::maintenance::testing::{node_id, segment_id, snapshot};

const NOW: Duration = Duration::from_secs(100);

/// The copies planned, as pairs of segment and node.
fn planned(snapshot: &Snapshot, alive: &[u128], waits: &Waits, now: Duration) -> Vec<(SegmentId, NodeId)> {
    let alive = alive.iter().map(|number| node_id(*number)).collect();
    plan(snapshot, &alive, waits, now).into_iter().map(|job| (job.segment.id, job.node)).collect()
}

fn job(snapshot: &Snapshot, segment: usize, node: u128) -> Job {
    Job { segment: Arc::clone(snapshot.segments().nth(segment).unwrap()), node: node_id(node) }
}

fn full() -> Error {
    Error::new(ErrorCode::DiskFull, "no room")
}

fn broken() -> Error {
    Error::new(ErrorCode::SegmentCorrupt, "other bytes")
}

#[test]
fn members_that_lack_a_segment_get_it_when_they_are_there() {
    let snapshot = snapshot(4, 3, &[(&[1, 2, 3], &[1]), (&[1, 2, 3], &[1, 2, 3])]);
    let waits = Waits::default();
    assert_eq!(planned(&snapshot, &[1, 2, 3, 4], &waits, NOW), [2, 3].map(|node| (segment_id(1), node_id(node))));
    // The place of a member that is away is kept for it.
    assert_eq!(planned(&snapshot, &[1, 3, 4], &waits, NOW), [(segment_id(1), node_id(3))]);
    assert!(planned(&snapshot, &[2, 3, 4], &waits, NOW).is_empty(), "there is nothing to copy from");
}

#[test]
fn a_group_that_lost_a_member_for_good_gets_another_one() {
    let before = snapshot(4, 3, &[(&[1, 2, 3], &[1, 2, 3])]);
    let after = before.apply(Version(2), &[Action::RemoveNode(node_id(2))]).unwrap();
    assert_eq!(planned(&after, &[1, 3, 4], &Waits::default(), NOW), [(segment_id(1), node_id(4))]);
    assert!(planned(&after, &[1, 3], &Waits::default(), NOW).is_empty());
    let joined = Action::AddReplica { segment: segment_id(1), node: node_id(4) };
    let repaired = after.apply(Version(3), &[joined]).unwrap();
    assert!(planned(&repaired, &[1, 3, 4], &Waits::default(), NOW).is_empty());
}

#[test]
fn what_was_written_to_too_few_nodes_is_copied_when_there_are_more() {
    let snapshot = snapshot(4, 3, &[(&[1, 2], &[1, 2])]);
    assert_eq!(planned(&snapshot, &[1, 2, 4], &Waits::default(), NOW), [(segment_id(1), node_id(4))]);
    assert_eq!(planned(&snapshot, &[1, 2, 3, 4], &Waits::default(), NOW).len(), 1);
}

#[test]
fn no_more_copies_are_planned_than_are_wanted() {
    // Four members, of which two lack a segment that is short of one copy.
    let snapshot = snapshot(4, 3, &[(&[1, 2, 3, 4], &[1, 2])]);
    assert_eq!(planned(&snapshot, &[1, 2, 3, 4], &Waits::default(), NOW).len(), 1);
}

#[test]
fn a_removed_node_is_no_source_and_no_target() {
    let snapshot = snapshot(2, 2, &[(&[7, 1], &[7]), (&[7, 1], &[7, 1])]);
    assert_eq!(planned(&snapshot, &[1, 2], &Waits::default(), NOW), [(segment_id(2), node_id(2))]);
}

#[test]
fn a_segment_that_fails_waits_longer_every_time_and_stands_in_nobodys_way() {
    let snapshot = snapshot(2, 2, &[(&[1, 2], &[1]), (&[1, 2], &[1])]);
    let mut waits = Waits::default();
    let mut now = NOW;
    for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
        waits.failed(&job(&snapshot, 0, 2), &broken(), now);
        assert_eq!(planned(&snapshot, &[1, 2], &waits, now), [(segment_id(2), node_id(2))]);
        now += Duration::from_secs(pause) - Duration::from_millis(1);
        assert_eq!(planned(&snapshot, &[1, 2], &waits, now).len(), 1);
        now += Duration::from_millis(1);
        assert_eq!(planned(&snapshot, &[1, 2], &waits, now).len(), 2);
    }
    waits.succeeded(&job(&snapshot, 0, 2));
    waits.failed(&job(&snapshot, 0, 2), &broken(), now);
    assert_eq!(planned(&snapshot, &[1, 2], &waits, now + Duration::from_secs(1)).len(), 2, "it begins anew");
}

#[test]
fn a_node_that_fails_holds_up_all_copies_to_it_and_is_tried_with_one() {
    let snapshot = snapshot(3, 2, &[(&[1, 2], &[1]), (&[1, 2], &[1]), (&[1, 3], &[1])]);
    let mut waits = Waits::default();
    for segment in [0, 1] {
        waits.failed(&job(&snapshot, segment, 2), &full(), NOW);
    }
    let other = (segment_id(3), node_id(3));
    assert_eq!(planned(&snapshot, &[1, 2, 3], &waits, NOW), [other]);
    // Two that failed together count once.
    let later = NOW + Duration::from_secs(1);
    assert_eq!(planned(&snapshot, &[1, 2, 3], &waits, later), [(segment_id(1), node_id(2)), other]);
    waits.succeeded(&job(&snapshot, 0, 2));
    assert_eq!(planned(&snapshot, &[1, 2, 3], &waits, later).len(), 3);
}

#[test]
fn a_place_in_a_group_goes_to_a_node_that_takes_it() {
    let snapshot = snapshot(3, 2, &[(&[1], &[1])]);
    let (_, first) = planned(&snapshot, &[1, 2, 3], &Waits::default(), NOW)[0];
    let mut waits = Waits::default();
    waits.failed(&Job { segment: Arc::clone(snapshot.segments().next().unwrap()), node: first }, &full(), NOW);
    let (_, second) = planned(&snapshot, &[1, 2, 3], &waits, NOW)[0];
    assert_ne!(first, second);
}

#[test]
fn failures_that_are_remembered_are_bounded() {
    let snapshot = snapshot(2, 2, &[(&[1, 2], &[1])]);
    let mut waits = Waits::default();
    for number in 0..=REPAIR_WAITS_MAX as u128 {
        waits.failed(&job(&snapshot, 0, number), &broken(), NOW);
    }
    assert_eq!(waits.segments.len(), REPAIR_WAITS_MAX);
}
