//! What fragments ask for, and whether the operator has answered.

use crate::graph::Location;
use crate::name::{FragmentName, ServiceName};

/// One port or unix socket of one service that a fragment asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ask {
    /// The fragment that asks.
    pub fragment: FragmentName,
    /// The service, of that fragment, that would get the edge.
    pub service: ServiceName,
    /// Whom it wants to reach.
    pub target: ServiceName,
    /// Where there.
    pub wanted: Wanted,
    /// What for, in the words of the fragment.
    pub why: Option<String>,
    /// Whether the service does without it.
    pub optional: bool,
    /// What became of it.
    pub answer: Answer,
    /// Where it is written.
    pub at: Location,
}

/// What an [`Ask`] is about, as the fragment writes it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Wanted {
    /// A port: `rpc`, `tcp:rpc`, `tcp:8332`.
    Port(String),
    /// A unix socket: `rpc`.
    Socket(String),
}

/// What became of an [`Ask`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// The edge is in the graph.
    Granted,
    /// Nobody can answer: the service is not there or switched off, or it has no such port. Nothing is open.
    Moot,
    /// The operator has not answered. Nothing is open.
    Open,
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(port) => f.pad(port),
            Self::Socket(name) => f.pad(&format!("unix:{name}")),
        }
    }
}

impl std::fmt::Display for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}:{}", self.service, self.target, self.wanted)
    }
}
