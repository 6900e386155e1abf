//! Rendezvous placement: which nodes hold the replicas of a segment, and in which order they are
//! asked. Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998).
//!
//! The scores are part of the stored format: another hash would move every replica. A test holds
//! them fast.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use aubade_proto::{NodeId, SegmentId};

use crate::snapshot::NodeEntry;

/// The protection group of a segment: `copies` different nodes (fewer when there are fewer), spread
/// evenly over the zones (the counts of two zones differ by more than one only where a zone has no
/// more nodes), each zone's in rendezvous order. Deterministic.
pub fn place(segment: SegmentId, nodes: &[NodeEntry], copies: usize) -> Vec<NodeId> {
    let mut by_zone: BTreeMap<&str, BTreeSet<NodeId>> = BTreeMap::new();
    for node in nodes {
        by_zone.entry(&node.zone).or_default().insert(node.id);
    }
    // The zones that get one more than others, or get the first replica, differ from segment to segment.
    let mut zones: Vec<(u64, &str, VecDeque<NodeId>)> = by_zone
        .into_iter()
        .map(|(zone, ids)| {
            let ids: Vec<NodeId> = ids.into_iter().collect();
            (score(segment, fold(zone.as_bytes())), zone, rendezvous_order(segment, &ids).into())
        })
        .collect();
    zones.sort_by_key(|(score, zone, _)| (Reverse(*score), *zone));
    let mut group = Vec::with_capacity(copies.min(nodes.len()));
    while group.len() < copies {
        let before = group.len();
        for (_, _, waiting) in &mut zones {
            if group.len() < copies
                && let Some(node) = waiting.pop_front()
            {
                group.push(node);
            }
        }
        if group.len() == before {
            break;
        }
    }
    group
}

/// Nodes that fill up a protection group which has lost members, or was made when there were too few nodes: up to
/// `count` of `candidates`, each from a zone that the group has the fewest nodes of, in the order in which [`place`]
/// takes them. A group of [`place`] that loses a node becomes the group that [`place`] gives without it.
pub fn fill(segment: SegmentId, group: &[NodeEntry], candidates: &[NodeEntry], count: usize) -> Vec<NodeId> {
    let mut per_zone: BTreeMap<&str, usize> = BTreeMap::new();
    for member in group {
        *per_zone.entry(&member.zone).or_default() += 1;
    }
    let taken: BTreeSet<NodeId> = group.iter().map(|member| member.id).collect();
    let mut waiting: Vec<(Reverse<u64>, Reverse<u64>, &NodeEntry)> = candidates
        .iter()
        .filter(|node| !taken.contains(&node.id))
        .map(|node| {
            let zone = score(segment, fold(node.zone.as_bytes()));
            (Reverse(zone), Reverse(score(segment, fold(node.id.0.as_bytes()))), node)
        })
        .collect();
    waiting.sort_unstable_by_key(|(zone, score, node)| (*zone, node.zone.as_str(), *score, node.id));
    waiting.dedup_by_key(|(_, _, node)| node.id);
    let mut chosen = Vec::with_capacity(count.min(waiting.len()));
    while chosen.len() < count && !waiting.is_empty() {
        let members = |node: &NodeEntry| per_zone.get(node.zone.as_str()).copied().unwrap_or(0);
        // The first of those that are equal, so that the order decides.
        let best = (0..waiting.len()).min_by_key(|index| waiting.get(*index).map(|(_, _, node)| members(node)));
        let Some(best) = best else { break };
        let (_, _, node) = waiting.remove(best);
        *per_zone.entry(&node.zone).or_default() += 1;
        chosen.push(node.id);
    }
    chosen
}

/// `candidates` in rendezvous order for `segment`: the order in which replicas are read.
pub fn rendezvous_order(segment: SegmentId, candidates: &[NodeId]) -> Vec<NodeId> {
    let mut scored: Vec<(u64, NodeId)> =
        candidates.iter().map(|node| (score(segment, fold(node.0.as_bytes())), *node)).collect();
    scored.sort_unstable_by_key(|(score, node)| (Reverse(*score), *node));
    scored.into_iter().map(|(_, node)| node).collect()
}

/// The score of a pair: every bit of both ids reaches every bit of it.
fn score(segment: SegmentId, candidate: u64) -> u64 {
    mix(fold(segment.0.as_bytes()).wrapping_add(mix(candidate)))
}

/// FNV-1a over the bytes, then mixed. Source: Fowler, Noll, Vo, "The FNV non-cryptographic hash
/// algorithm" (draft-eastlake-fnv).
fn fold(bytes: &[u8]) -> u64 {
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// The finaliser of SplitMix64. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators" (2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use aubade_environment::{Random, SeededRandom};
    use uuid::Uuid;

    use super::*;

    fn node(zone: usize, index: usize) -> NodeEntry {
        let id = NodeId(Uuid::from_u128(((zone as u128) << 64) | index as u128));
        NodeEntry { id, zone: format!("az{zone}"), address: format!("10.0.{zone}.{index}:7101") }
    }

    fn cluster(sizes: &[usize]) -> Vec<NodeEntry> {
        sizes.iter().enumerate().flat_map(|(zone, size)| (0..*size).map(move |index| node(zone, index))).collect()
    }

    fn segments(count: usize) -> impl Iterator<Item = SegmentId> {
        let random = SeededRandom::new(11);
        (0..count).map(move |_| SegmentId(Uuid::from_u128(random.next_u128())))
    }

    #[test]
    fn zones_differ_by_at_most_one_and_no_node_comes_twice() {
        for sizes in [&[2_usize, 2, 2][..], &[6], &[1, 1, 1, 1], &[3, 5], &[4, 4, 4], &[1, 7, 2], &[0, 3]] {
            let nodes = cluster(sizes);
            for copies in 1..=7 {
                for segment in segments(20) {
                    check_group(&nodes, sizes, copies, &place(segment, &nodes, copies));
                }
            }
        }
    }

    fn check_group(nodes: &[NodeEntry], sizes: &[usize], copies: usize, group: &[NodeId]) {
        assert_eq!(group.len(), copies.min(nodes.len()));
        assert_eq!(group.iter().collect::<BTreeSet<_>>().len(), group.len(), "a node came twice");
        let mut per_zone = vec![0_usize; sizes.len()];
        for id in group {
            let zone = usize::try_from(id.0.as_u128() >> 64).unwrap();
            per_zone[zone] += 1;
        }
        let most = per_zone.iter().copied().max().unwrap_or(0);
        for (count, size) in per_zone.iter().zip(sizes) {
            assert!(count + 1 >= most || count == size, "{per_zone:?} of {sizes:?}");
        }
    }

    #[test]
    fn replicas_and_first_reads_are_balanced() {
        let nodes = cluster(&[4, 4, 4]);
        let (mut held, mut first) = (BTreeMap::<NodeId, u32>::new(), BTreeMap::<NodeId, u32>::new());
        for segment in segments(12_000) {
            let group = place(segment, &nodes, 4);
            *first.entry(rendezvous_order(segment, &group)[0]).or_default() += 1;
            for id in group {
                *held.entry(id).or_default() += 1;
            }
        }
        assert!(held.values().all(|count| (3_700..4_300).contains(count)), "{held:?}");
        assert!(first.values().all(|count| (850..1_150).contains(count)), "{first:?}");
    }

    #[test]
    fn a_node_that_leaves_moves_only_its_own_replicas() {
        let nodes = cluster(&[4, 4, 4]);
        for segment in segments(200) {
            let before: BTreeSet<NodeId> = place(segment, &nodes, 6).into_iter().collect();
            let after: BTreeSet<NodeId> = place(segment, &nodes[1..], 6).into_iter().collect();
            let gone = usize::from(before.contains(&nodes[0].id));
            assert_eq!(before.difference(&after).count(), gone);
        }
    }

    #[test]
    fn a_group_that_lost_a_node_is_filled_as_it_would_be_placed_without_it() {
        for (sizes, copies) in [(&[4_usize, 4, 4][..], 6), (&[4, 4, 4], 4), (&[2, 3, 3], 6), (&[1, 1, 1, 1], 3)] {
            let nodes = cluster(sizes);
            for segment in segments(100) {
                let placed = place(segment, &nodes, copies);
                for gone in &placed {
                    let left: Vec<NodeEntry> = nodes.iter().filter(|node| node.id != *gone).cloned().collect();
                    let group: Vec<NodeEntry> = left.iter().filter(|node| placed.contains(&node.id)).cloned().collect();
                    let mut filled: BTreeSet<NodeId> = group.iter().map(|node| node.id).collect();
                    filled.extend(fill(segment, &group, &left, 1));
                    assert_eq!(filled, place(segment, &left, copies).into_iter().collect(), "{sizes:?}");
                }
            }
        }
    }

    #[test]
    fn filling_takes_no_member_twice_and_no_more_than_there_are() {
        let nodes = cluster(&[2, 1, 1]);
        for segment in segments(20) {
            assert!(fill(segment, &nodes, &nodes, 2).is_empty());
            let filled = fill(segment, &nodes[..1], &nodes, 9);
            assert_eq!(filled.iter().collect::<BTreeSet<_>>().len(), 3);
            // The zones without a member come before the second node of the first one.
            assert_eq!(filled[2], nodes[1].id);
        }
    }

    #[test]
    fn the_order_of_the_list_does_not_matter_and_twins_count_once() {
        let nodes = cluster(&[2, 2, 2]);
        let mut reversed: Vec<NodeEntry> = nodes.iter().rev().cloned().collect();
        reversed.push(nodes[0].clone());
        for segment in segments(50) {
            assert_eq!(place(segment, &nodes, 6), place(segment, &reversed, 6));
        }
    }

    /// Golden: a change here would move every stored replica.
    #[test]
    fn scores_never_change() {
        let segment = SegmentId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001));
        let indices: Vec<u128> = place(segment, &cluster(&[2, 2, 2]), 6)
            .iter()
            .map(|id| ((id.0.as_u128() >> 64) << 4) | (id.0.as_u128() & 15))
            .collect();
        assert_eq!(score(segment, fold(b"az1")), GOLDEN_SCORE);
        assert_eq!(indices, GOLDEN_GROUP);
    }

    const GOLDEN_SCORE: u64 = 0xf687_8d3a_8f8b_4788;
    /// Zone and index of each node, as hexadecimal digits.
    const GOLDEN_GROUP: [u128; 6] = [0x10, 0x21, 0x01, 0x11, 0x20, 0x00];
}
