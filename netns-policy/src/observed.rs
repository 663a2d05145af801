//! What the kernel says exists. Never filled from memory or from files.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::desired::{Files, HostRoute, Route, Wire, alias};
use crate::name::{NetworkName, ServiceName};
use crate::network::HostNetwork;
use crate::ruleset::{Counters, Family, Ruleset};
use crate::topology::Place;

/// What of one network exists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The fabric's namespace.
    pub fabric: Option<Namespace>,
    /// Every other namespace of ours, by name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Namespaces with a name of ours that are not marked as ours.
    pub foreign: BTreeSet<String>,
    /// Namespaces with a name of ours that are marked as those of another network, whose name begins like this one's.
    pub neighbours: BTreeSet<String>,
    /// Links of the host with a name of ours that are not marked as ours.
    pub foreign_links: BTreeSet<String>,
    /// Links of ours in the host's namespace, by name.
    pub host_links: BTreeMap<String, Link>,
    /// Our table on the host.
    pub host_rules: Ruleset,
    /// Generation of the host's nftables.
    pub host_generation: u32,
    /// Our rules and routes into the pool.
    pub host_route: Option<HostRoute>,
    /// The host's own network.
    pub host: HostNetwork,
    /// The files under the run directory.
    pub files: BTreeMap<ServiceName, Files>,
    /// Packets and bytes of the panel's elements.
    pub counters: Counters,
}

/// One namespace of ours.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Namespace {
    /// Links by name.
    pub links: BTreeMap<String, Link>,
    /// Our table.
    pub rules: Ruleset,
    /// Tables that are not ours.
    pub foreign_tables: BTreeSet<(String, String)>,
    /// Generation of its nftables.
    pub generation: u32,
    /// Its rules could not be read: somebody inside changes them without pause. [`Namespace::rules`] is empty then.
    pub restless: bool,
}

/// One link.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// The index of the other end of a veth pair, in its own namespace.
    pub peer: Option<u32>,
    /// Its alias, which marks it as ours.
    pub alias: Option<String>,
    /// Other names it has.
    pub altnames: BTreeSet<String>,
    /// Administratively up.
    pub up: bool,
    /// Bytes of a packet.
    pub mtu: u32,
    /// Neither ARP nor neighbour discovery.
    pub noarp: bool,
    /// Its addresses, link-local ones too.
    pub addresses: BTreeSet<IpAddr>,
    /// Routes of ours by it.
    pub routes: BTreeSet<Route>,
}

impl Observed {
    /// The highest index that a link of the fabric has or that an element of a map still names.
    pub fn highest_index(&self) -> u32 {
        let Some(fabric) = &self.fabric else { return 0 };
        let links = fabric.links.values().map(|link| link.index);
        let elements = fabric.rules.tables.iter().filter(|((family, _), _)| *family == Family::Netdev);
        let named = elements.flat_map(|(_, table)| table.sets.values()).filter(|set| set.data.is_some());
        let values = named.flat_map(|set| set.elements.values().flatten());
        links
            .chain(values.filter_map(|value| Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))))
            .max()
            .unwrap_or(0)
    }

    /// The index of `wire` in the fabric if both ends are there, joined, and as they were made; what can be mended in
    /// place (up or down, routes, altnames) does not count.
    pub fn whole_wire(&self, wire: &Wire) -> Option<u32> {
        let outer = self.fabric.as_ref()?.links.get(wire.outer.as_str())?;
        let inner = self.inner_link(wire)?;
        let joined = inner.peer == Some(outer.index) && outer.peer == Some(inner.index);
        let marked = outer.alias.as_deref() == Some(&wire.alias);
        let made = |link: &Link| link.noarp && link.mtu == crate::desired::INNER_MTU;
        // More addresses than its own do a service no good: the wire and the address are in every key.
        let addressed = wire.addresses.iter().all(|address| inner.addresses.contains(&address));
        (joined && marked && made(inner) && made(outer) && addressed).then_some(outer.index)
    }

    /// The inner end of `wire`.
    pub fn inner_link(&self, wire: &Wire) -> Option<&Link> {
        match &wire.netns {
            Some(netns) => self.namespaces.get(netns)?.links.get(wire.inner.as_str()),
            None => self.host_links.get(wire.inner.as_str()),
        }
    }

    /// The rules in force at `place`.
    pub fn rules(&self, place: &Place, netns: Option<&str>) -> Option<&Ruleset> {
        match (place, netns) {
            (Place::Host, _) => Some(&self.host_rules),
            (_, Some(netns)) => self.namespaces.get(netns).map(|ns| &ns.rules),
            (_, None) => None,
        }
    }

    /// Whether the fabric, where no process lives, knows a wire of the place with this name.
    pub fn fabric_knows(&self, network: &NetworkName, place: &str) -> bool {
        let marked = alias(network, place);
        let named = crate::name::LinkName::for_name(place);
        let link = self.fabric.as_ref().and_then(|fabric| fabric.links.get(named.as_str()));
        link.is_some_and(|link| link.alias.as_deref() == Some(&marked))
    }

    /// Whether nothing of the network exists.
    pub fn is_nothing(&self) -> bool {
        self.fabric.is_none()
            && self.namespaces.is_empty()
            && self.host_links.is_empty()
            && self.host_rules.tables.is_empty()
            && self.host_route.is_none()
            && self.files.is_empty()
    }
}

/// A prefix as the kernel writes it: host bits cleared.
pub fn canonical(prefix: IpNetwork) -> IpNetwork {
    IpNetwork::new(prefix.network(), prefix.prefix()).unwrap_or(prefix)
}
