//! What differs between the kernel and the policy, in the operator's words.
//!
//! # Invariants
//!
//! - Whatever the next `apply` would do is told: a step that nothing else tells of is told as a step.
//! - Each difference is told once. What follows from another one (the elements of a table that is gone) is not told again,
//!   but for edges: one that does not work is always told.
//! - Nothing that is not ours is ever repaired: it is named, with the line that shows it.
//!
//! [`drift`] is pure. What it takes beyond a plan is an [`Extra`], which [`Orchestrator::extra`] reads.

pub mod cookies;
mod extra;
mod rules;
mod steps;
mod words;

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

pub(crate) use extra::place_of;
pub(crate) use words::shown;

pub use extra::{Extra, ExtraLink, Links, OutsideProcess, StrayProcess};

use crate::orchestrator::{Error, Orchestrator, Planned};

/// Where something stands.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Spot {
    /// A service, `uplink`, `fabric` or `host`.
    pub place: String,
    /// The namespace; nothing for the host's own.
    pub netns: Option<String>,
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.netns {
            Some(netns) => write!(f, "in {netns}"),
            None => f.write_str("on the host"),
        }
    }
}

/// One difference. Its `kind` is stable, and so are the names of its fields.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the fields are named for what they hold; `at` is where")]
pub enum Drift {
    /// The fabric's namespace is not there.
    MissingFabric { netns: String },
    /// A namespace of ours is not there.
    MissingNamespace { place: String, netns: String },
    /// A namespace of ours that the policy does not ask for.
    UndeclaredNamespace { netns: String },
    /// A wire of which an end is not there.
    MissingWire { place: String },
    /// A wire that is not as it was made.
    ChangedWire { place: String, what: Vec<String> },
    /// A wire's end is down: `fabric`, or the place itself.
    WireDown { place: String, end: String },
    /// A place has other addresses than it ought to have.
    OtherAddress { place: String, is: String, ought: String },
    /// A route by the wire is gone.
    MissingRoute { place: String, route: String },
    /// A route of ours by the wire that ought not to be there.
    UndeclaredRoute { place: String, route: String },
    /// A whole table is gone.
    MissingTable {
        #[serde(flatten)]
        at: Spot,
        table: String,
    },
    /// A table is switched off (`flags dormant`).
    DormantTable {
        #[serde(flatten)]
        at: Spot,
        table: String,
    },
    /// A table of our name that ought not to be there.
    UndeclaredTable {
        #[serde(flatten)]
        at: Spot,
        table: String,
    },
    /// A chain is gone.
    MissingChain {
        #[serde(flatten)]
        at: Spot,
        table: String,
        chain: String,
    },
    /// A chain in a table of ours that ought not to be there.
    UndeclaredChain {
        #[serde(flatten)]
        at: Spot,
        table: String,
        chain: String,
    },
    /// A chain hangs elsewhere, or has another policy.
    ChangedChain {
        #[serde(flatten)]
        at: Spot,
        table: String,
        chain: String,
    },
    /// Rules of a chain are gone, have come, or stand in another order (then both lists are empty).
    ChangedRules {
        #[serde(flatten)]
        at: Spot,
        table: String,
        chain: String,
        gone: Vec<String>,
        come: Vec<String>,
    },
    /// A set or map is gone.
    MissingSet {
        #[serde(flatten)]
        at: Spot,
        table: String,
        set: String,
    },
    /// A set in a table of ours that ought not to be there.
    UndeclaredSet {
        #[serde(flatten)]
        at: Spot,
        table: String,
        set: String,
    },
    /// A set of another shape.
    ChangedSet {
        #[serde(flatten)]
        at: Spot,
        table: String,
        set: String,
    },
    /// Elements that stand for no edge by themselves are gone or have come.
    ChangedElements {
        #[serde(flatten)]
        at: Spot,
        table: String,
        set: String,
        gone: Vec<String>,
        come: Vec<String>,
    },
    /// More differences of the rules in one place than are told one by one.
    MoreRules {
        #[serde(flatten)]
        at: Spot,
        count: usize,
    },
    /// An edge of the policy that the panel has not, or has not for one family (`IPv4`, `IPv6`).
    MissingEdge { edge: String, family: Option<&'static str> },
    /// An edge of the panel that the policy has not.
    UndeclaredEdge { edge: String, family: Option<&'static str> },
    /// An edge of the policy that a lock has not.
    MissingRight {
        #[serde(flatten)]
        at: Spot,
        edge: String,
        family: Option<&'static str>,
    },
    /// A right in a lock that the policy has not.
    UndeclaredRight {
        #[serde(flatten)]
        at: Spot,
        edge: String,
        family: Option<&'static str>,
    },
    /// A sysctl has another value.
    ChangedSysctl {
        #[serde(flatten)]
        at: Spot,
        sysctl: String,
        is: Option<String>,
        ought: String,
    },
    /// A file that resolves names in a service.
    ChangedFile { service: String, file: String, gone: bool },
    /// Files of a service that the policy has not.
    UndeclaredFiles { service: String },
    /// The way from the uplink to the host.
    ChangedLeg { link: String, gone: bool, what: Vec<String> },
    /// The host's rules and routes into the pool: `lost` names the pools that have not all of theirs.
    ChangedHostRoute { table: u32, lost: Vec<String> },
    /// Rules and routes of ours on the host that the policy does not ask for.
    UndeclaredHostRoute { table: u32 },
    /// A link of ours on the host that the policy does not ask for.
    UndeclaredLink { link: String },
    /// A link that is not ours, in a namespace of ours.
    ExtraLink {
        #[serde(flatten)]
        at: Spot,
        link: String,
        link_kind: Option<String>,
    },
    /// More links than are told one by one; `count` is nothing where they are too many to be listed, or
    /// never hold still.
    ManyLinks {
        #[serde(flatten)]
        at: Spot,
        count: Option<usize>,
    },
    /// A table that is not ours, in the fabric.
    ForeignTable { netns: String, family: String, table: String },
    /// A namespace with a name of ours that we did not make.
    ForeignNamespace { netns: String },
    /// Somebody changes the rules in there without pause.
    Restless { netns: String },
    /// A process lives on in a namespace that was deleted or made anew.
    StrayProcess { service: String, netns: String, pid: i32, process: String, count: usize, unit: Option<String> },
    /// A unit of the policy runs outside of its service's namespace.
    OutsideProcess { service: String, netns: String, pid: i32, process: String, unit: String, count: usize },
    /// Something else that the next `apply` would do.
    Undone { step: String },
}

impl Drift {
    /// The stable word for what kind of difference it is: `missing-wire`.
    pub fn kind(&self) -> String {
        let value = serde_json::to_value(self).expect("every field is plain");
        value["kind"].as_str().unwrap_or_default().to_owned()
    }

    /// Whether the next `apply` repairs it; if not, [`Drift::next`] says what a person can do.
    pub fn repairable(&self) -> bool {
        match self {
            Self::ExtraLink { at, .. } => at.place == "fabric",
            Self::ForeignTable { .. }
            | Self::ForeignNamespace { .. }
            | Self::ManyLinks { .. }
            | Self::OutsideProcess { .. }
            | Self::Restless { .. }
            | Self::StrayProcess { .. } => false,
            _ => true,
        }
    }
}

/// The kernel, compared with the policy.
#[derive(Clone, Debug)]
pub struct Compared {
    /// What exists, what ought to, and what a turn would do.
    pub planned: Planned,
    /// What was seen beside it.
    pub extra: Extra,
    /// The differences.
    pub drift: Vec<Drift>,
}

/// What the next `apply` would repair; empty if, and only if, it would do nothing.
pub fn undone(planned: &Planned) -> Vec<Drift> {
    steps::undone(planned)
}

/// Every difference once: what is missing first, then what is too much or changed, then what only a person can mend.
pub fn drift(planned: &Planned, extra: &Extra) -> Vec<Drift> {
    let mut all = steps::undone(planned);
    all.extend(foreign(planned));
    all.extend(extra.drift(planned));
    let mut told = BTreeSet::new();
    all.retain(|one| told.insert(one.clone()));
    all
}

fn foreign(planned: &Planned) -> Vec<Drift> {
    let observed = &planned.observed;
    let netns = planned.desired.fabric_netns();
    let tables = observed.fabric.iter().flat_map(|fabric| &fabric.foreign_tables);
    let mut all: Vec<Drift> = tables
        .map(|(family, table)| Drift::ForeignTable {
            netns: netns.clone(),
            family: family.clone(),
            table: words::shown(table),
        })
        .collect();
    let restless = observed.namespaces.iter().filter(|(_, namespace)| namespace.restless);
    all.extend(restless.map(|(netns, _)| Drift::Restless { netns: netns.clone() }));
    all.extend(observed.foreign.iter().map(|netns| Drift::ForeignNamespace { netns: netns.clone() }));
    all
}

impl Orchestrator {
    /// What a plan does not tell: links that are not ours, and processes outside of where they ought to be. Enters every
    /// namespace of ours once and asks every process of the machine once; keeps nothing.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read.
    pub fn extra(&self, planned: &Planned) -> Result<Extra, Error> {
        let linux = self.kernel(&planned.desired.network)?;
        Ok(Extra::observe(&linux, planned)?)
    }

    /// Every difference between the kernel and the generation in force; and the files where none is.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::look`].
    pub fn drift(&self) -> Result<Compared, Error> {
        let planned = self.look_in_force()?.planned;
        let extra = self.extra(&planned)?;
        let drift = drift(&planned, &extra);
        Ok(Compared { planned, extra, drift })
    }
}
