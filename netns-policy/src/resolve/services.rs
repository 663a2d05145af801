//! Services and peers of the graph, and what must be unique among them.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use crate::graph::{Limits, Outbound, Peer, Service};
use crate::name::{LinkName, PeerName, PortName, ServiceName};
use crate::port::Ports;
use crate::syntax::findings::{At, Draft, Findings, Sp};
use crate::syntax::reference::PortRef;
use crate::syntax::service::Trusted;
use crate::syntax::{outbound, service};

use super::Spans;
use super::merge::{Policy, set};
use super::names::{Names, enabled, port_of};
use super::tor;

/// Every enabled service.
pub(crate) fn services(policy: &Policy, spans: &mut Spans, out: &mut Findings) -> BTreeMap<ServiceName, Service> {
    let mut services = BTreeMap::new();
    for written in &policy.services {
        let private = private(written, out);
        if let Some(name) = enabled(written) {
            services.insert(name.clone(), graph_service(policy, name, written, private, spans));
        }
    }
    services
}

fn graph_service(
    policy: &Policy,
    name: &ServiceName,
    written: &service::Service,
    private: BTreeSet<PortName>,
    spans: &mut Spans,
) -> Service {
    let outbound = tor::outbound(policy, written);
    Service {
        name: name.clone(),
        fragment: written.fragment.clone(),
        unit: written.unit.as_ref().map(|unit| unit.value.clone()),
        ports: written.ports.iter().filter_map(|declared| declared.port.clone()).collect(),
        private,
        tags: written.tags.iter().map(|tag| tag.value.clone()).collect(),
        outbound: outbound.map(|o| resolved(&o.value, o.at, &set(&policy.network.lan), spans)).unwrap_or_default(),
        dns: tor::dns(policy, written).map(|dns| dns.value).unwrap_or_default(),
        limits: Limits {
            flows: written.flows.map(|flows| flows.value),
            new_per_second: written.new_per_second.map(|rate| rate.value),
        },
        sockets: written.sockets.iter().filter_map(|offered| offered.socket.clone()).collect(),
        is_tor: written.tor.is_some(),
        was: written.was.as_ref().map(|was| was.value.clone()),
        address4: written.address4.map(|address| address.value),
        address6: written.address6.map(|address| address.value),
        at: spans.location(written.at),
    }
}

fn resolved(written: &outbound::Outbound, at: At, lan: &[IpNetwork], spans: &mut Spans) -> Outbound {
    let everywhere = written.lan_ports.iter().flat_map(|ports| lan.iter().map(|prefix| (*prefix, *ports)));
    let only: BTreeSet<(IpNetwork, Ports)> = written.lan_only.iter().map(|only| only.value).chain(everywhere).collect();
    let direct: BTreeSet<Ports> = written.direct_only.iter().copied().collect();
    Outbound {
        tor: written.tor,
        lan: written.lan,
        direct: written.direct,
        lan_only: only.into_iter().collect(),
        direct_only: direct.into_iter().collect(),
        at: Some(spans.location(at)),
    }
}

fn private(written: &service::Service, out: &mut Findings) -> BTreeSet<PortName> {
    let mut private = BTreeSet::new();
    for port in &written.private {
        let found = port_of(written, &PortRef::Name(port.value.clone()), port.at, out);
        private.extend(found.and_then(|(_, name)| name.cloned()));
    }
    private
}

/// Every peer.
pub(crate) fn peers(policy: &Policy, spans: &mut Spans) -> BTreeMap<PeerName, Peer> {
    let peer = |written: &crate::syntax::section::Peer| Peer {
        name: written.name.clone(),
        wireguard: written.wireguard.as_ref().map(|key| key.value.clone()),
        onion: written.onion.as_ref().map(|key| key.value.clone()),
        at: spans.location(written.at),
    };
    policy.peers.iter().map(peer).map(|peer| (peer.name.clone(), peer)).collect()
}

/// What two services, or a service and something else, may not share.
pub(crate) fn check_unique(policy: &Policy, names: &Names<'_>, out: &mut Findings) {
    let units = policy.services.iter().filter_map(|service| service.unit.as_ref());
    twice(units.map(|unit| (&unit.value, unit.at)), "E0225", "two services have the unit", out);
    let was = || policy.services.iter().filter_map(|service| service.was.as_ref());
    twice(was().map(|was| (&was.value, was.at)), "E0229", "two services claim to have been", out);
    for was in was().filter(|was| names.find(was.value.as_str()).is_some()) {
        let draft = Draft::new("E0229", was.at, format!("there is still a service `{}`", was.value));
        out.add(draft.help("`was` names a service that is gone, whose address this one keeps"));
    }
    names_apart(policy, out);
    for service in &policy.services {
        for trusted in &service.via_ok {
            if let Trusted::Service(name) = &trusted.value {
                let _reported = names.service(name, trusted.at, out);
            }
        }
    }
    let keys = |key: fn(&crate::syntax::section::Peer) -> Option<&Sp<String>>| policy.peers.iter().filter_map(key);
    let wireguard = keys(|peer| peer.wireguard.as_ref()).map(|key| (&key.value, key.at));
    same_key(wireguard, out);
    same_key(keys(|peer| peer.onion.as_ref()).map(|key| (&key.value, key.at)), out);
    for service in &policy.services {
        for tag in service.tags.iter().filter(|tag| names.find(tag.value.as_str()).is_some()) {
            clash(names, tag.value.as_str(), tag.at, "a tag", out);
        }
    }
    for peer in policy.peers.iter().filter(|peer| names.find(peer.name.as_str()).is_some()) {
        clash(names, peer.name.as_str(), peer.at, "a peer", out);
    }
}

/// Names that differ only in what no name may hold, and names that would give one link.
fn names_apart(policy: &Policy, out: &mut Findings) {
    let mut folded: BTreeMap<String, &service::Service> = BTreeMap::new();
    let mut links: BTreeMap<LinkName, &service::Service> = BTreeMap::new();
    for service in &policy.services {
        let (shown, fold) = (service.text.escape_debug(), service.text.to_lowercase().replace('_', "-"));
        if let Some(first) = folded.insert(fold, service) {
            let message = format!("`{}` and `{shown}` are one name but for case or hyphens", first.text.escape_debug());
            let (first, again) = service.at.in_order(first.at);
            let draft = Draft::new("E0216", again, message).second(first, "the other one");
            out.add(draft.help("give one of them another name"));
        }
        let Some(name) = &service.name else {
            continue;
        };
        if let Some(first) = links.insert(LinkName::for_name(name.as_str()), service) {
            let link = LinkName::for_name(name.as_str());
            let message = format!("{} and {shown} would both have the link {link} in the fabric", first.text);
            let (first, again) = service.at.in_order(first.at);
            let draft = Draft::new("E0217", again, message).second(first, "the other one");
            out.add(draft.help("links have 15 bytes, and short forms that met by chance: rename one of the two"));
        }
    }
}

fn clash(names: &Names<'_>, name: &str, at: At, what: &str, out: &mut Findings) {
    let draft = Draft::new("E0210", at, format!("`{name}` is both {what} and a service"));
    let service = names.find(name).map(|service| service.at);
    out.add(match service {
        Some(service) => draft.second(service, "the service").help("give one of them another name"),
        None => draft,
    });
}

fn twice<'a, T: Ord + std::fmt::Display + 'a>(
    items: impl Iterator<Item = (&'a T, At)>,
    code: &'static str,
    message: &str,
    out: &mut Findings,
) {
    let mut seen = BTreeMap::new();
    for (value, at) in items {
        if let Some((first, at)) = seen.insert(value, at).map(|other| at.in_order(other)) {
            out.add(Draft::new(code, at, format!("{message} `{value}`")).second(first, "first here"));
        }
    }
}

fn same_key<'a>(keys: impl Iterator<Item = (&'a String, At)>, out: &mut Findings) {
    let mut seen = BTreeMap::new();
    for (key, at) in keys {
        if let Some((first, at)) = seen.insert(key, at).map(|other| at.in_order(other)) {
            let draft = Draft::new("E0704", at, "two peers have the same public key").second(first, "first here");
            out.add(draft.help("make a key for each device, else one cannot be revoked without the other"));
        }
    }
}
