//! Every service in a network namespace of its own, wired by one allow-graph.
//!
//! [`Orchestrator`] has the verbs of the command: check, plan, apply, status, down. The language, the compiler and the
//! planner are in [`netns_policy`], which is pure; [`kernel`] is the only room that touches the kernel.
//!
//! ```
//! use nsctl::netns_policy::explain::explain;
//! use nsctl::{Options, Orchestrator};
//!
//! # let directory = std::env::temp_dir().join(format!("nsctl-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&directory)?;
//! let policy = directory.join("policy.toml");
//! std::fs::write(
//!     &policy,
//!     r#"
//!         schema = 1
//!         network.name = "shop"
//!         [service.web]
//!         connect.db = ["sql"]
//!         [service.db]
//!         ports = { sql = "tcp:5432" }
//!     "#,
//! )?;
//! let nsctl = Orchestrator::new(Options { policy: vec![policy], state: directory.join("state"), ..Options::default() });
//!
//! // Neither of these needs privilege. `plan` compares with this machine, `apply` makes it so, `down` undoes it.
//! let graph = nsctl.check()?.graph;
//! assert!(explain(&graph, "web", "db", "sql")?.is_yes());
//! let planned = nsctl.plan_offline()?;
//! assert_eq!(planned.addresses.service("db").ok_or("no db")?.v4.to_string(), "10.231.0.1");
//! assert_eq!(planned.plan.changes.len(), 3, "two services and one edge");
//! # std::fs::remove_dir_all(&directory)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/embed.rs` goes the whole way, with packets, in a sandbox.
//!
//! # To read, in this order
//!
//! 1. [`netns_policy`]: what a policy is, and how it becomes steps.
//! 2. [`orchestrator`]: the verbs. [`policy`] finds the files, [`store`] keeps what must be remembered (addresses, sysctls as
//!    they were), [`reconcile`] carries one plan out, [`report`] says what became of it.
//! 3. [`kernel`]: looking and doing.
//! 4. For people: [`status`]; [`drift`], each difference by its name; [`doctor`], what else could go wrong; [`verify`] and [`matrix`], which try every pair; [`exec`] and [`mod@unit`], to be inside;
//!    [`uplink`], what on the host stands in the way out; [`rewrite`], how a file of theirs is replaced.
//! 5. [`sandbox`] and [`internet`]: a machine to try all of it on.
//!
//! # Invariants
//!
//! - Nothing of the host is changed but what bears our mark: namespaces, links, tables, routes and rules of our names.
//! - What exists is read from the kernel before every change, never remembered.

pub mod attempt;
#[cfg(feature = "backup")]
pub mod backup;
pub(crate) mod clock;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod doctor;
pub mod drift;
pub mod exec;
pub mod expose;
pub(crate) mod fault;
pub(crate) mod file;
pub mod grant;
pub(crate) mod held;
pub mod internet;
pub mod kernel;
pub(crate) mod lockout;
pub mod matrix;
pub mod orchestrator;
pub mod own;
pub mod policy;
pub mod reconcile;
pub mod report;
pub mod rewrite;
pub mod sandbox;
pub mod session;
pub mod status;
pub(crate) mod stop;
pub mod store;
pub mod trial;
pub(crate) mod trusted;
pub mod unit;
pub mod uplink;
pub mod verify;
#[cfg(feature = "daemon")]
pub mod worker;

pub use netns_policy;
pub use orchestrator::{Applied, Checked, Confirm, Error, How, Note, Options, Orchestrator, Planned, Removed, Running};
