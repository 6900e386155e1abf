//! Optimiser rules and what they are made of, one per file.

pub mod aggregate_before_join;
pub mod broadcast_joins;
pub mod code_group_keys;
pub mod collect_join_keys;
pub mod compose;
pub mod keep_states;
mod origin;
pub mod push_fragment;
pub mod push_having;
pub mod push_reduction;
pub mod pushable;
pub mod share_scans;
pub mod smaller_build_sides;
pub mod sound_keys;
pub mod sound_lists;
pub mod unambiguous_pushdown;
pub mod unordered_grouping_sets;
pub mod yielding_joins;

pub use aggregate_before_join::AggregateBeforeJoin;
pub use broadcast_joins::BroadcastJoins;
pub use code_group_keys::CodeGroupKeys;
pub use collect_join_keys::CollectJoinKeys;
pub use keep_states::KeepStates;
pub use push_fragment::PushFragment;
pub use push_having::PushHaving;
pub use push_reduction::PushReduction;
pub use pushable::Pushable;
pub use share_scans::ShareScans;
pub use smaller_build_sides::SmallerBuildSides;
pub use sound_keys::{SoundKeys, SoundRelations};
pub use sound_lists::SoundLists;
pub use unambiguous_pushdown::UnambiguousPushdown;
pub use unordered_grouping_sets::UnorderedGroupingSets;
pub use yielding_joins::YieldingJoins;
