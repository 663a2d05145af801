//! The one place where policy becomes rules.
//!
//! Four rulesets follow from one list of grants: the panel in the fabric, the lock in each service, the gateway
//! `uplink` and the table on the host. docs/fabric.md says in prose what each chain is for.
//!
//! # Invariants
//!
//! - Rules depend on the shape of the policy only (which features it uses); who may reach whom is in elements, so that
//!   one edge more or less is a constant number of elements.
//! - No text of the operator becomes an identifier, except the network's name behind a prefix of ours.

mod entrance;
mod grant;
mod host;
mod lock;
mod outside;
mod panel;
mod uplink;
mod vocabulary;

use std::collections::BTreeMap;

use crate::address::AddressPlan;
use crate::graph::AllowGraph;
use crate::network::HostNetwork;
use crate::topology::Place;

pub use grant::{Grant, grants};
pub use host::{PASSED, unrecorded};
pub use outside::is_public;
pub use panel::wire_chain;
pub use uplink::LEG;

use super::Ruleset;

/// The table in every namespace of ours.
pub const TABLE: &str = "nsctl";

/// The NFLOG group to which refusals are sampled.
pub const LOG_GROUP: u16 = 5;

/// Ranges of at most so many ports become one element a port; longer ones go to an interval map, which is asked after
/// the exact one has missed.
pub const EXPAND: u32 = 64;

/// What this kernel can do beyond what is required, found by trying it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Capabilities {
    /// `reject` in the netdev family (`CONFIG_NFT_REJECT_NETDEV`), which Debian 12's kernel has not.
    pub netdev_reject: bool,
}

/// What the rules of one policy follow from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The policy.
    pub graph: &'a AllowGraph,
    /// Who has which address.
    pub addresses: &'a AddressPlan,
    /// The interface index in the fabric of every wire.
    pub indexes: &'a BTreeMap<Place, u32>,
    /// What the host's own network looks like.
    pub host: &'a HostNetwork,
    /// What the kernel can do.
    pub capabilities: Capabilities,
}

impl Source<'_> {
    /// The panel: everything in the fabric.
    pub fn fabric(&self) -> Ruleset {
        panel::compile(self)
    }

    /// The pool of one version: its first and its last address.
    fn pool(&self, v: vocabulary::Version) -> Option<outside::Range> {
        match v {
            vocabulary::Version::V4 => {
                let pool = self.addresses.pool4();
                Some((pool.network().into(), pool.broadcast().into()))
            }
            vocabulary::Version::V6 => {
                self.addresses.pool6().map(|pool| (pool.network().into(), pool.broadcast().into()))
            }
        }
    }

    /// The resolvers that `dns = "direct"` ends at: those of the policy, else the host's.
    pub fn resolvers(&self) -> &[std::net::IpAddr] {
        let written = &self.graph.network().resolvers;
        if written.is_empty() { &self.host.resolvers } else { written }
    }

    /// The second lock of the namespace of each of `places`; for the host, the table of ours there.
    pub fn locks(&self, places: impl IntoIterator<Item = Place>) -> BTreeMap<Place, Ruleset> {
        self.locks_beside(places, |_| None)
    }

    /// The same, sharing in memory what is the same in `beside`.
    pub(crate) fn locks_beside<'s>(
        &self,
        places: impl IntoIterator<Item = Place>,
        beside: impl Fn(&Place) -> Option<&'s Ruleset>,
    ) -> BTreeMap<Place, Ruleset> {
        let grants = grants(self.graph, self.addresses);
        let mut by_place: BTreeMap<&Place, Vec<&Grant>> = BTreeMap::new();
        for grant in &grants {
            by_place.entry(&grant.from).or_default().push(grant);
            by_place.entry(&grant.to).or_default().push(grant);
        }
        let of = |place: &Place| by_place.get(place).map_or(&[][..], Vec::as_slice);
        let mut previous = Ruleset::default();
        let lock = |place: Place| {
            let mut lock = self.lock_with(&place, of(&place));
            lock.share(&previous);
            beside(&place).into_iter().for_each(|beside| lock.share(beside));
            previous.clone_from(&lock);
            (place, lock)
        };
        places.into_iter().map(lock).collect()
    }

    /// The second lock of one place.
    pub fn lock(&self, place: &Place) -> Ruleset {
        self.locks([place.clone()]).remove(place).unwrap_or_default()
    }

    fn lock_with(&self, place: &Place, grants: &[&Grant]) -> Ruleset {
        match place {
            Place::Host => host::compile(self, grants),
            Place::Service(name) => match self.graph.service(name.as_str()) {
                Some(service) => lock::compile(self, place, Some(service), grants),
                None => Ruleset::default(),
            },
            Place::Relay => lock::compile(self, place, None, grants),
            Place::Uplink => uplink::compile(self),
        }
    }
}

/// The name of our table on the host.
pub fn host_table(graph: &AllowGraph) -> String {
    format!("{TABLE}-{}", graph.network().name)
}
