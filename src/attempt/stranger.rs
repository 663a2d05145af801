//! Chains of others in the namespaces that a connection goes through.

use std::fmt;

use netns_policy::ruleset::compile::TABLE;
use netns_policy::topology::Place;

use super::evidence::Scene;
use crate::kernel::Linux;
use crate::kernel::nft::{ListedChain, NftSocket};
use crate::uplink::culprit::{drops, has_refusal};

/// A base chain that is not ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stranger {
    /// Where it stands: `web`, `fabric`, `uplink`, `host`.
    pub place: String,
    /// The namespace; nothing for the host's own.
    pub netns: Option<String>,
    /// Family, table and name.
    pub chain: String,
    /// The hook as nft(8) names it.
    pub hook: &'static str,
    /// Lower runs earlier; ours are at 0, on the host at -10.
    pub priority: i32,
    /// How it could stop a packet; nothing when it cannot.
    pub stops_by: Option<&'static str>,
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, chain, hook, priority, stops_by, .. } = self;
        write!(f, "chain {chain} in {place} (hook {hook}, priority {priority}")?;
        match stops_by {
            Some(how) => write!(f, ", {how})"),
            None => f.write_str(")"),
        }
    }
}

/// Every base chain of others on the way from the one to the other.
pub(super) fn on_the_way(scene: &Scene) -> Vec<Stranger> {
    let network = &scene.planned.desired.network;
    let fabric = scene.planned.desired.fabric_netns();
    let mut all = Vec::new();
    let mut places = vec![(scene.from.to_string(), scene.from.netns(network)), ("fabric".into(), Some(fabric))];
    if scene.to != scene.from {
        places.push((scene.to.to_string(), scene.to.netns(network)));
    }
    if scene.to == Place::Uplink {
        places.push(("host".into(), None));
    }
    for (place, netns) in places {
        all.extend(at(scene.linux, &place, netns.as_ref()));
    }
    all
}

/// Every base chain of others in one namespace; nothing for the host's own.
pub(crate) fn at(linux: &Linux, place: &str, netns: Option<&String>) -> Vec<Stranger> {
    // Who is root in there could make more of them than anybody reads.
    let read = || NftSocket::open_wary()?.chains();
    let chains = match netns {
        Some(netns) => linux.inside(netns, read).unwrap_or_default(),
        None => read().unwrap_or_default(),
    };
    chains.iter().filter_map(|chain| stranger(place, netns, chain)).collect()
}

fn stranger(place: &str, netns: Option<&String>, chain: &ListedChain) -> Option<Stranger> {
    let base = chain.base?;
    let ours = match netns {
        Some(_) => chain.table == TABLE && matches!(chain.family.as_str(), "inet" | "netdev"),
        // Another network of ours has its own table there.
        None => chain.family == "inet" && chain.table.strip_prefix(TABLE).is_some_and(|rest| rest.starts_with('-')),
    };
    if ours {
        return None;
    }
    let stops_by = match () {
        () if drops(chain) => Some("policy drop"),
        () if has_refusal(chain) => Some("one of its rules"),
        () => None,
    };
    Some(Stranger {
        place: place.to_owned(),
        netns: netns.cloned(),
        chain: format!("{} {} {}", chain.family, chain.table, chain.name),
        hook: hook(&chain.family, base.number),
        priority: base.priority,
        stops_by,
    })
}

/// `NF_NETDEV_*` and `NF_INET_*` as nft(8) names them.
fn hook(family: &str, number: u32) -> &'static str {
    match (family, number) {
        ("netdev", 0) | (_, 5) => "ingress",
        ("netdev", 1) => "egress",
        (_, 0) => "prerouting",
        (_, 1) => "input",
        (_, 2) => "forward",
        (_, 3) => "output",
        (_, 4) => "postrouting",
        _ => "other",
    }
}
