//! A service that is root in its namespace attacks, with raw frames and with its own settings, on a real kernel.
//!
//! # Invariants
//!
//! - What "did not arrive" says is worth something: the same frames arrive where nothing filters, and each kind of frame
//!   has a twin that the policy allows, which arrives too.
//! - Arrival is looked for on every wire, not on the addressee's only; hearing on every socket.
//!
//! The sender and the witness on the wire are packet sockets of the test itself: no program is needed for either.

mod arena;
mod catalogue;
#[path = "../common/mod.rs"]
mod common;
mod flows;
mod forged;
mod outside;
mod raw;
mod root;
mod scan;
