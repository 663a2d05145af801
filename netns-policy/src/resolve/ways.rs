//! Every way in from outside, looked up and checked.

use std::collections::{BTreeMap, BTreeSet};

use crate::exposure::{Exposure, Handover, Way};
use crate::name::{PeerName, PortName};
use crate::port::{Ports, Protocol};
use crate::suggest::{did_you_mean, list};
use crate::syntax::expose::{Clearnet, Mapped, OnHost, Onion, WireGuard};
use crate::syntax::findings::{At, Draft, Findings, Sp};
use crate::syntax::reference::PortRef;
use crate::syntax::section::Peer;
use crate::syntax::service::Service;

use super::merge::Policy;
use super::names::{enabled, port_of};
use super::{Spans, domain};

/// The exposures of all enabled services, ordered by service.
pub(crate) fn exposures(policy: &Policy, spans: &mut Spans, out: &mut Findings) -> Vec<Exposure> {
    let mut ways = Ways {
        policy,
        spans,
        found: Vec::new(),
        domains: BTreeMap::new(),
        hosts: BTreeMap::new(),
        inner: BTreeMap::new(),
        by_name: policy.peers.iter().map(|peer| (peer.name.as_str(), peer)).collect(),
        out,
    };
    for service in &policy.services {
        ways.service(service);
    }
    let mut found = ways.found;
    found.sort_by(|a, b| {
        (&a.service, a.way.word(), &a.port_name, a.way.external())
            .cmp(&(&b.service, b.way.word(), &b.port_name, b.way.external()))
            .then_with(|| a.at.cmp(&b.at))
    });
    found
}

/// Nothing of ours may cut the operator off.
const SSH: (Protocol, u16) = (Protocol::Tcp, 22);

/// How a relay hands on, if there is to be one.
fn relay(on_host: &OnHost) -> Option<Handover> {
    let kind = if on_host.proxy.is_some() { Handover::ProxyV2 } else { Handover::Bare };
    on_host.relay.is_some_and(|relay| relay.value).then_some(kind)
}

struct Ways<'a> {
    policy: &'a Policy,
    spans: &'a mut Spans,
    found: Vec<Exposure>,
    domains: BTreeMap<String, At>,
    hosts: BTreeMap<(Protocol, u16), At>,
    inner: BTreeMap<(String, Ports), At>,
    by_name: BTreeMap<&'a str, &'a Peer>,
    out: &'a mut Findings,
}

impl Ways<'_> {
    fn service(&mut self, service: &Service) {
        if let Some(onion) = &service.expose.onion {
            self.onion(service, onion);
        }
        if let Some(wireguard) = &service.expose.wireguard {
            self.wireguard(service, wireguard);
        }
        if let Some(clearnet) = &service.expose.clearnet {
            self.clearnet(service, clearnet);
        }
        let (lan, port) = (&service.expose.lan, &service.expose.port);
        for mapped in &lan.ports {
            self.on_host(service, mapped, Way::Lan { external: mapped.external.value, relay: relay(lan) });
        }
        for mapped in &port.ports {
            self.on_host(service, mapped, Way::Port { external: mapped.external.value, relay: relay(port) });
        }
    }

    fn onion(&mut self, service: &Service, onion: &Onion) {
        let clients = self.peers(&onion.clients, "E0608", "an onion key", |peer| peer.onion.is_some());
        for mapped in &onion.ports {
            let way = Way::Onion { external: mapped.external.value, clients: clients.clone() };
            if let Some((ports, name)) = self.single(service, &mapped.port) {
                self.tcp_only(&way, ports, &mapped.port);
                self.add(service, ports, name, way, mapped.port.at);
            }
        }
    }

    fn wireguard(&mut self, service: &Service, wireguard: &WireGuard) {
        let peers = self.peers(&wireguard.peers, "E0707", "a WireGuard key", |peer| peer.wireguard.is_some());
        let mut seen = BTreeSet::new();
        for port in &wireguard.ports {
            if let Some((ports, name)) = self.port(service, port).filter(|(_, name)| seen.insert(*name)) {
                self.add(service, ports, name, Way::WireGuard { peers: peers.clone() }, port.at);
            }
        }
    }

    fn clearnet(&mut self, service: &Service, clearnet: &Clearnet) {
        let Clearnet { domain, port, challenge } = clearnet;
        if let Some(why) = domain::why_not(&domain.value) {
            let message = format!("\"{}\" cannot be exposed: {why}", domain.value.escape_debug());
            self.out.add(Draft::new("E0604", domain.at, message));
        }
        self.challenge(domain, challenge.as_ref());
        if let Some((first, at)) = self.domains.get(&domain.value).map(|other| domain.at.in_order(*other)) {
            let draft = Draft::new("E0602", at, format!("{} leads to two services", domain.value.escape_debug()));
            self.out.add(draft.second(first, "first here").help("give each a name of its own"));
        }
        self.domains.entry(domain.value.clone()).or_insert(domain.at);
        let challenge = challenge.as_ref().map(|challenge| challenge.value.clone());
        let way = Way::Clearnet { domain: domain.value.clone(), challenge };
        if let Some((ports, name)) = self.single(service, port) {
            self.tcp_only(&way, ports, port);
            self.add(service, ports, name, way, port.at);
        }
    }

    fn challenge(&mut self, domain: &Sp<String>, challenge: Option<&Sp<String>>) {
        const WORDS: [&str; 3] = ["http-01", "tls-alpn-01", "dns-01"];
        if let Some(unknown) = challenge.filter(|challenge| !WORDS.contains(&challenge.value.as_str())) {
            let message = format!("expected one of {}, this is \"{}\"", list(WORDS), unknown.value.escape_debug());
            self.out.add(Draft::new("E0110", unknown.at, message).hint(did_you_mean(&unknown.value, WORDS)));
        } else if domain.value.starts_with("*.") && challenge.is_none_or(|challenge| challenge.value != "dns-01") {
            let at = challenge.map_or(domain.at, |challenge| challenge.at);
            let draft = Draft::new("E0603", at, format!("{} is a wildcard, which needs dns-01", domain.value));
            self.out.add(draft.help("write `challenge = \"dns-01\"`, or name the one host that is meant"));
        }
    }

    /// `lan` and `port` exposures stand on ports of the machine; each has one way back.
    fn on_host(&mut self, service: &Service, mapped: &Mapped, way: Way) {
        let Some((ports, name)) = self.single(service, &mapped.port) else {
            return;
        };
        let outer = (ports.protocol(), mapped.external.value);
        let inner = (service.text.clone(), ports);
        if let Some((first, at)) = self.hosts.get(&outer).map(|other| mapped.external.at.in_order(*other)) {
            let message = format!("port {}:{} of the machine leads to two places", outer.0, outer.1);
            self.out.add(Draft::new("E0605", at, message).second(first, "first here"));
        } else if let Some((first, at)) = self.inner.get(&inner).map(|other| mapped.port.at.in_order(*other)) {
            let message = format!("two ports of the machine lead to {}:{}", service.text, mapped.port.value);
            let draft = Draft::new("E0605", at, message).second(first, "first here");
            self.out.add(draft.help("replies find their way back by the port of the service: expose it once"));
        }
        if outer == SSH {
            let draft =
                Draft::new("E0615", mapped.external.at, "port tcp:22 of the machine is where people log in by ssh");
            self.out.add(draft.help("take another port outside: this one would lead to the service from then on"));
        }
        if way.relay().is_some() {
            self.tcp_only(&way, ports, &mapped.port);
        }
        self.hosts.entry(outer).or_insert(mapped.external.at);
        self.inner.entry(inner).or_insert(mapped.port.at);
        self.add(service, ports, name, way, mapped.port.at);
    }

    fn tcp_only(&mut self, way: &Way, ports: Ports, port: &Sp<String>) {
        if ports.protocol() == Protocol::Udp {
            let what = match way {
                Way::Onion { .. } => "Tor carries",
                Way::Lan { .. } | Way::Port { .. } => "a relay carries",
                Way::Clearnet { .. } | Way::WireGuard { .. } => "TLS needs",
            };
            self.out.add(Draft::new("E0607", port.at, format!("{what} TCP only, and port `{}` is udp", port.value)));
        }
    }

    /// A port that stands behind one number outside.
    fn single<'a>(&mut self, service: &'a Service, port: &Sp<String>) -> Option<(Ports, &'a PortName)> {
        let (ports, name) = self.port(service, port)?;
        if ports.count() > 1 {
            let message = format!("{}:{name} is {} ports, and this exposes one", service.text, ports.count());
            self.out.add(
                Draft::new("E0612", port.at, message).help("declare the one that is meant under a name of its own"),
            );
            return None;
        }
        Some((ports, name))
    }

    fn port<'a>(&mut self, service: &'a Service, port: &Sp<String>) -> Option<(Ports, &'a PortName)> {
        let (ports, name) = port_of(service, &PortRef::Name(port.value.clone()), port.at, self.out)?;
        let name = name?;
        if let Some(private) = service.private.iter().find(|private| private.value == port.value) {
            let message = format!("{}:{name} is private, and would be exposed", service.text);
            let draft = Draft::new("E0609", port.at, message).label("exposed here");
            self.out.add(draft.second(private.at, "declared private here"));
        }
        Some((ports, name))
    }

    fn peers(
        &mut self,
        names: &[Sp<String>],
        code: &'static str,
        key: &str,
        has: fn(&Peer) -> bool,
    ) -> BTreeSet<PeerName> {
        let mut peers = BTreeSet::new();
        for name in names {
            let known = || self.policy.peers.iter().map(|peer| peer.name.as_str());
            match self.by_name.get(name.value.as_str()).copied() {
                Some(peer) => {
                    if !has(peer) {
                        let draft = Draft::new(
                            code,
                            name.at,
                            format!("{} has no public key for this: {key} is missing", name.value),
                        );
                        self.out.add(draft.second(peer.at, "the peer"));
                    }
                    peers.insert(peer.name.clone());
                }
                None if self.out.is_full() => {}
                None => {
                    let all = format!("the peers are {}", list(known()));
                    let draft =
                        Draft::new("E0201", name.at, format!("there is no peer `{}`", name.value.escape_debug()));
                    self.out
                        .add(draft.label("declared nowhere").help(did_you_mean(&name.value, known()).unwrap_or(all)));
                }
            }
        }
        peers
    }

    fn add(&mut self, service: &Service, ports: Ports, port_name: &PortName, way: Way, at: At) {
        if let Some(name) = enabled(service) {
            let (service, port_name) = (name.clone(), port_name.clone());
            self.found.push(Exposure { service, port_name, ports, way, at: self.spans.location(at) });
        }
    }
}
