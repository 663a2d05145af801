//! An allow-graph of services, compiled to nftables rules.
//!
//! Pure: text in, plan out. No file, socket, process, clock or randomness is touched here, so that everything in this
//! crate can be tested, proved and replayed without a kernel.
//!
//! # From a text to the steps
//!
//! A policy becomes a graph, the graph gets addresses, both become everything that ought to exist, and the difference to
//! what exists is the plan:
//!
//! ```
//! use netns_policy::Source;
//! use netns_policy::address::{AddressBook, AddressPlan};
//! use netns_policy::desired::Desired;
//! use netns_policy::explain::explain;
//! use netns_policy::graph::AllowGraph;
//! use netns_policy::observed::Observed;
//! use netns_policy::plan::Plan;
//! use netns_policy::ruleset::compile::Capabilities;
//!
//! let text = r#"
//!     schema = 1
//!     network.name = "shop"
//!     [service.web]
//!     connect.db = ["sql"]
//!     [service.db]
//!     ports = { sql = "tcp:5432" }
//! "#;
//! let graph = AllowGraph::parse(&[Source::toml("policy.toml", text)])?.graph;
//!
//! // Why may it, or may it not?
//! assert!(explain(&graph, "web", "db", "sql")?.is_yes());
//! assert!(!explain(&graph, "db", "web", "tcp:80")?.is_yes());
//!
//! // What is to be done on a machine on which nothing exists yet? It is 0 o'clock, and nobody had an address before.
//! let addresses = AddressPlan::assign(&graph, &AddressBook::default(), 0, false)?;
//! let nothing = Observed::default();
//! let (desired, _) = Desired::new(&graph, &addresses, &nothing, Capabilities::default(), 0);
//! let plan = Plan::between(&nothing, &desired);
//! assert_eq!(plan.steps[0].to_string(), "create fabric shop+fabric");
//! assert_eq!(plan.changes.len(), 3, "two services and one edge");
//!
//! // The lock in the namespace of `db` drops what no rule accepts.
//! let db = netns_policy::topology::Place::Service("db".parse()?);
//! let table = desired.locks[&db].tables.values().next().ok_or("no table")?;
//! assert!(!table.chains["input"].hook.as_ref().is_some_and(|hook| hook.policy_accept));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # To read, in this order
//!
//! 1. The words: [`name`], [`port`], [`exposure`]; then [`graph`], which is what a policy means, and [`mod@never`], what it
//!    must not mean. [`diagnostic`] is how mistakes are told, [`schema`] and [`layout`] are for those who write policies.
//! 2. Who is where: [`topology`] names the places, [`address`] gives out addresses that stay, [`network`] is what the host
//!    itself is connected to.
//! 3. The rules: [`ruleset`] is nftables as data, [`ruleset::compile`] the one place where policy becomes rules,
//!    [`ruleset::decide`] an interpreter of them, [`packet`] what it reads; [`prove`] compares all packets with the
//!    policy, [`ruleset::expect`] says from the graph alone what has to come of single ones.
//! 4. The turn: [`desired`] and [`observed`], [`plan`] between them with [`ruleset::delta`] and [`cut`] (which
//!    connections end), [`changes`] for the operator's eyes; [`difference`], of two policies alone.
//! 5. The answers: [`explain`].
//!
//! [`shared`] keeps large networks small in memory.
//!
#![doc = include_str!("../README.md")]

// Rules written by hand are shared between the unit tests and those of tests/, which say `netns_policy`.
#[cfg(test)]
extern crate self as netns_policy;

pub mod address;
pub mod ask;
pub mod canonical;
pub mod changes;
pub mod cut;
pub mod desired;
pub mod diagnostic;
pub mod difference;
pub mod explain;
pub mod exposure;
pub mod graph;
pub mod hold;
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
pub mod reach;
pub mod relay;
mod resolve;
pub mod ruleset;
pub mod schema;
pub mod shared;
mod suggest;
mod syntax;
pub mod topology;
pub mod trial;

pub use diagnostic::{Format, PolicyError, PolicyErrors, Source, Trust, Warning};
pub use resolve::Checked;
