//! What the daemon knows, for whoever asks: the control socket and the metrics.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::store::Number;

/// How many repairs are remembered.
pub(super) const REMEMBERED: usize = 32;

/// All of it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Snapshot {
    /// The version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it was started, in seconds since 1970.
    pub since: u64,
    /// Each network that has a record.
    pub networks: BTreeMap<String, NetworkSnapshot>,
}

/// One network.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct NetworkSnapshot {
    /// The generation in force; null when none is.
    pub generation: Option<Number>,
    /// How many seconds a generation waits still to be confirmed; null when none does.
    pub confirm_within: Option<u64>,
    /// What differs from it and is left, in the operator's words.
    pub drift: Vec<String>,
    /// The places that are held closed, because they were spoiled again and again.
    pub held: Vec<String>,
    /// How often something was mended since the daemon was started.
    pub repairs: u64,
    /// The last of them, the newest last.
    pub repaired: Vec<Repair>,
    /// When it was last compared with the kernel, in seconds since 1970.
    pub looked: u64,
    /// How long that took, in milliseconds.
    pub look_ms: f64,
    /// How many services it has.
    pub services: usize,
    /// How many edges.
    pub edges: usize,
    /// How many ways in, by kind.
    pub exposures: BTreeMap<String, usize>,
    /// The workers that serve ways in, each with its state.
    pub workers: Vec<serde_json::Value>,
    /// Why it could not be compared or mended the last time.
    pub error: Option<String>,
}

/// One repair.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Repair {
    /// When, in seconds since 1970.
    pub time: u64,
    /// What was not as it ought to be.
    pub drift: Vec<String>,
}
