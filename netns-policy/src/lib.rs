//! An allow-graph of services, compiled to nftables rules.
//!
//! Pure: text in, plan out. No file, socket, process, clock or randomness is touched here, so that everything in this
//! crate can be tested, proved and replayed without a kernel.

// Rules written by hand are shared between the unit tests and those of tests/, which say `netns_policy`.
#[cfg(test)]
extern crate self as netns_policy;

pub mod exposure;
pub mod graph;
pub mod name;
pub mod packet;
pub mod port;
pub mod ruleset;
