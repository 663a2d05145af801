//! Every service in a network namespace of its own, wired by one allow-graph.
//!
//! [`Orchestrator`] has the verbs: check, plan, apply, status, down. The language, the compiler and the planner are in
//! [`netns_policy`], which is pure; [`kernel`] is the only room that touches the kernel.
//!
//! # Invariants
//!
//! - Nothing of the host is changed but what bears our mark: namespaces, links, tables, routes and rules of our names.
//! - What exists is read from the kernel before every change, never remembered.

pub mod attempt;
pub mod exec;
pub mod internet;
pub mod kernel;
pub mod matrix;
pub mod orchestrator;
pub mod policy;
pub mod reconcile;
pub mod report;
pub mod sandbox;
pub mod status;
pub mod store;
pub mod trial;
pub mod unit;
pub mod uplink;
pub mod verify;

pub use netns_policy;
pub use orchestrator::{Applied, Checked, Error, Note, Options, Orchestrator, Planned, Removed};
