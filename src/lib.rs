//! Every service in a network namespace of its own, wired by one allow-graph.

pub mod kernel;
