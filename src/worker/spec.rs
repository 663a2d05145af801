//! What a worker is to be, as data.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Secret, relay};

/// A worker that ought to run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Spec {
    /// Its name in the fleet, such as `relay-uplink`; it is what states and events are told by.
    pub name: String,
    /// Where the network namespace is pinned that it lives in.
    pub netns: PathBuf,
    /// What it does.
    pub work: Work,
    /// What it has to know for that and nobody else, by name.
    pub secrets: BTreeMap<String, Secret>,
    /// The program, when it is not the one of this kind beside the running executable.
    pub program: Option<PathBuf>,
}

/// What a worker does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Work {
    /// Carries TCP connections to services.
    Relay(relay::Config),
}

/// The kinds of workers. Each has a user of its own, who owns nothing.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `nsctl-relay`.
    Relay,
}

impl Kind {
    /// The user and the group of this kind. They lie where neither distributions nor systemd take any from: see
    /// docs/decisions.md.
    pub fn user(self) -> u32 {
        match self {
            Self::Relay => 60900,
        }
    }

    /// The file name of its program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Relay => "nsctl-relay",
        }
    }
}

impl Work {
    /// Which kind of worker does this.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Relay(_) => Kind::Relay,
        }
    }

    /// The listeners that have to be bound for it, by name.
    pub(crate) fn listeners(&self) -> BTreeMap<String, SocketAddr> {
        match self {
            Self::Relay(config) => config.routes.iter().map(|route| (route.name.clone(), route.listen)).collect(),
        }
    }

    /// The configuration as the worker reads it.
    pub(crate) fn config(&self) -> Result<serde_json::Value, serde_json::Error> {
        match self {
            Self::Relay(config) => serde_json::to_value(config),
        }
    }

    /// Whether a worker that was started for this can be told to do `other` instead. Its fences are as wide as the work
    /// that it began with, and never become wider.
    pub(crate) fn can_become(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Relay(old), Self::Relay(new)) => {
                let had = old.target_ports();
                old.limits == new.limits && new.target_ports().iter().all(|port| had.contains(port))
            }
        }
    }
}
