//! Every service in a network namespace of its own, wired by one allow-graph.

pub mod exec;
pub mod kernel;
pub mod sandbox;
pub mod verify;
