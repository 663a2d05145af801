//! Workers: the programs that face the outside, each without any right, and their supervision.
//!
//! What a stranger can talk to runs in none of nsctl's privileged processes. A worker is a program of its own, in the
//! network namespace of a gateway, as a user of its own. It is handed what it needs over one socket: listeners that were
//! bound for it, secrets, its configuration. It can take nothing itself.
//!
//! - [`Spec`] says what a worker is to do; [`relay`] is the work that there is.
//! - [`Launcher`] starts one. [`Fleet`] owns those of a network: starts, watches, restarts, changes and ends them.
//! - [`inside`] is the worker's own half: its end of the socket, and [`fence`], what it puts around itself.
//!
//! # Invariants
//!
//! - A worker has one descriptor to speak by. What it says is parsed strictly, bounded in length and in number; descriptors
//!   that it sends are thrown away.
//! - A listener belongs to the fleet, which lends it: while a worker is away, who connects waits and is not refused.
//! - A worker never outlives the process that watches it; that one starts it again when it is back.
//! - Nothing secret is in an argument, an environment or a log.

mod backoff;
mod channel;
pub mod fence;
mod fleet;
pub mod inside;
mod launch;
mod lines;
mod listeners;
mod message;
pub mod relay;
mod running;
#[cfg(target_pointer_width = "64")]
mod seccomp;
mod secret;
mod spec;
mod state;
mod tend;

pub use fence::Fence;
pub use fleet::{Fleet, Timing};
pub use launch::{LaunchError, Launcher};
pub use message::Count;
pub use secret::Secret;
pub use spec::{Kind, Spec, Work};
pub use state::{Event, Phase, WorkerState};
