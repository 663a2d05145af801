//! Generations by the real command on a real kernel: made, gone back to, confirmed, cut short at every write, and out of
//! room.

#![allow(clippy::disallowed_methods, reason = "it runs the command and looks at what it does")]

#[cfg(feature = "backup")]
mod backup;
#[path = "../common/mod.rs"]
mod common;
mod confirm;
mod crash;
mod full;
mod history;
mod lockout;
mod node;
mod records;
mod running;
