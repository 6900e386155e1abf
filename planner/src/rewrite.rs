//! Physical optimiser rules and what they are made of, one per file.

pub mod collect_join_keys;
pub mod compose;
pub mod push_fragment;
pub mod push_reduction;
pub mod pushable;
pub mod share_scans;
pub mod yielding_joins;

pub use collect_join_keys::CollectJoinKeys;
pub use push_fragment::PushFragment;
pub use push_reduction::PushReduction;
pub use pushable::Pushable;
pub use share_scans::ShareScans;
pub use yielding_joins::YieldingJoins;
