//! Physical optimiser rules and what they are made of, one per file.

pub mod compose;
pub mod push_fragment;
pub mod pushable;
pub mod yielding_joins;

pub use push_fragment::PushFragment;
pub use pushable::Pushable;
pub use yielding_joins::YieldingJoins;
