//! An allow-graph of services, compiled to nftables rules.
//!
//! Pure: text in, plan out. No file, socket, process, clock or randomness is touched here, so that everything in this
//! crate can be tested, proved and replayed without a kernel.

pub mod diagnostic;
pub mod explain;
pub mod exposure;
pub mod graph;
mod lint;
pub mod name;
pub mod never;
pub mod port;
mod resolve;
pub mod ruleset;
mod suggest;
mod syntax;

pub use diagnostic::{Format, PolicyError, PolicyErrors, Source, Warning};
pub use resolve::Checked;
