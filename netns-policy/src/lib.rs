//! An allow-graph of services, compiled to nftables rules.
//!
//! Pure: text in, plan out. No file, socket, process, clock or randomness is touched here, so that everything in this
//! crate can be tested, proved and replayed without a kernel.
//!
#![doc = include_str!("../README.md")]

// Rules written by hand are shared between the unit tests and those of tests/, which say `netns_policy`.
#[cfg(test)]
extern crate self as netns_policy;

pub mod address;
pub mod changes;
pub mod cut;
pub mod desired;
pub mod diagnostic;
pub mod explain;
pub mod exposure;
pub mod graph;
pub mod layout;
mod lint;
pub mod name;
pub mod network;
pub mod never;
pub mod observed;
pub mod packet;
pub mod plan;
pub mod port;
pub mod prove;
mod resolve;
pub mod ruleset;
pub mod schema;
pub mod shared;
mod suggest;
mod syntax;
pub mod topology;

pub use diagnostic::{Format, PolicyError, PolicyErrors, Source, Trust, Warning};
pub use resolve::Checked;
