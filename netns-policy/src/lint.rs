//! What is legal and probably not meant. A lint never refuses a policy.

use std::collections::{BTreeMap, BTreeSet};

use crate::exposure::{Exposure, Way};
use crate::graph::{AllowGraph, Cause, Edge, Location, Origin, Service, Target};
use crate::name::ServiceName;
use crate::port::Protocol;
use crate::resolve::Spans;
use crate::resolve::merge::Policy;
use crate::syntax::findings::{Draft, Findings};
use crate::syntax::service::Trusted;

/// Adds the warnings about a finished graph.
pub(crate) fn lint(policy: &Policy, graph: &AllowGraph, spans: &Spans, out: &mut Findings) {
    let mut lint = Lint { policy, graph, spans, out };
    lint.look_alikes();
    lint.overlapping_ports();
    lint.isolated();
    lint.linked_onions();
    lint.direct_without_dns();
    lint.lan_is_nothing();
    lint.ssh_from_services();
    lint.around_tor();
    lint.datagrams_over_tor();
    lint.challenge_without_port();
}

struct Lint<'a> {
    policy: &'a Policy,
    graph: &'a AllowGraph,
    spans: &'a Spans,
    out: &'a mut Findings,
}

impl<'a> Lint<'a> {
    fn warn(&mut self, code: &'static str, at: &Location, message: String, help: &str) {
        self.out.add(Draft::new(code, self.spans.at(at), message).help(help));
    }

    fn look_alikes(&mut self) {
        let mut seen: BTreeMap<String, &Service> = BTreeMap::new();
        for service in self.graph.services() {
            if let Some(first) = seen.insert(skeleton(service.name.as_str()), service) {
                let message = format!("{} and {} are easily taken for each other", first.name, service.name);
                let (first, again) = self.spans.at(&service.at).in_order(self.spans.at(&first.at));
                let draft = Draft::new("W0215", again, message).second(first, "the other one");
                self.out.add(draft.help("rename one of them"));
            }
        }
    }

    fn overlapping_ports(&mut self) {
        for service in self.policy.services.iter().filter(|service| service.is_enabled()) {
            let ports: Vec<_> =
                service.ports.iter().filter_map(|d| d.port.as_ref().map(|(n, p)| (d.name.at, n, *p))).collect();
            for (index, (at, name, ports_here)) in ports.iter().enumerate() {
                if let Some((first, other, _)) = ports[..index].iter().find(|(_, _, other)| other.overlaps(ports_here))
                {
                    let message = format!("ports `{other}` and `{name}` of {} overlap", service.text);
                    let draft = Draft::new("W0219", *at, message).second(*first, "the other one");
                    self.out.add(draft.help("who may reach one reaches part of the other"));
                }
            }
        }
    }

    fn isolated(&mut self) {
        let mut used: BTreeSet<&ServiceName> =
            self.graph.written_exposures().iter().map(|exposure| &exposure.service).collect();
        for edge in self.graph.edges() {
            used.extend(origin_name(edge).into_iter().chain(target_name(edge)));
        }
        for socket in self.graph.sockets() {
            used.extend([&socket.from, &socket.to]);
        }
        // Of those who asked, their asks tell.
        let asks = self.policy.services.iter().filter(|service| !service.wants.is_empty());
        used.extend(asks.filter_map(|service| service.name.as_ref()));
        let alone = |service: &&Service| !used.contains(&service.name) && service.outbound.stays_inside();
        for service in self.graph.services().filter(alone) {
            let message = format!("{} reaches nobody, and nobody reaches it", service.name);
            self.warn("W0226", &service.at, message, "connect it, expose it, or take it out");
        }
    }

    fn linked_onions(&mut self) {
        let onions = self.graph.written_exposures().iter().filter(|exposure| matches!(exposure.way, Way::Onion { .. }));
        let direct = |exposure: &&Exposure| {
            self.graph.service(exposure.service.as_str()).is_some_and(|s| s.outbound.reaches_wan())
        };
        for exposure in onions.filter(direct) {
            let message = format!("{} has an onion address and `outbound = \"direct\"`", exposure.service);
            self.warn("W0611", &exposure.at, message, "the two can be linked, which gives the machine's address away");
        }
    }

    fn direct_without_dns(&mut self) {
        let written: BTreeSet<&str> = self
            .policy
            .services
            .iter()
            .filter(|service| service.dns.is_some())
            .map(|service| service.text.as_str())
            .collect();
        // Tor asks its exits for names.
        let blind = |s: &&Service| s.outbound.reaches_wan() && !s.is_tor && !written.contains(s.name.as_str());
        for service in self.graph.services().filter(|service| service.dns != crate::graph::Dns::Direct).filter(blind) {
            let at = service.outbound.at.as_ref().unwrap_or(&service.at);
            let message = format!("{} goes out directly, and cannot look names up", service.name);
            self.warn("W0804", at, message, "write `dns = \"direct\"`, or `dns = \"none\"` if that is meant");
        }
    }

    fn lan_is_nothing(&mut self) {
        if !self.graph.network().lan.is_empty() {
            return;
        }
        for service in self.graph.services().filter(|service| service.outbound.lan) {
            let at = service.outbound.at.as_ref().unwrap_or(&service.at);
            let message = format!("`lan` means nothing here, so {} reaches nothing by it", service.name);
            self.warn("W0810", at, message, "say what it means: `lan = [\"192.168.1.0/24\"]` in `[network]`");
        }
        for exposure in self.graph.written_exposures().iter().filter(|exposure| matches!(exposure.way, Way::Lan { .. }))
        {
            let message = format!("`lan` means nothing here, so nobody reaches {} by it", exposure.service);
            self.warn("W0810", &exposure.at, message, "say what it means: `lan = [\"192.168.1.0/24\"]` in `[network]`");
        }
    }

    fn ssh_from_services(&mut self) {
        let ssh = |edge: &&Edge| edge.to == Target::Host && edge.ports.covers(Protocol::Tcp, 22);
        for edge in self.graph.edges().iter().filter(ssh) {
            let message = format!("{} may reach port 22 of the host", edge.from);
            self.warn("W0806", &edge.at, message, "a service could try to log in by ssh");
        }
    }

    /// A service that may only go out through tor, next to one that would carry its traffic.
    fn around_tor(&mut self) {
        let edges = self.graph.edges().iter().filter(|edge| edge.cause != Cause::Tor);
        let edges = edges.filter_map(|edge| Some((origin_name(edge)?, target_name(edge)?, &edge.at)));
        let sockets = self.graph.sockets().iter().map(|socket| (&socket.from, &socket.to, &socket.at));
        for (from, to, at) in edges.chain(sockets) {
            let service = |name: &ServiceName| self.graph.service(name.as_str());
            let tor_only = service(from).is_some_and(|from| from.outbound.tor && from.outbound.stays_inside());
            if tor_only
                && !self.is_acknowledged(from, to)
                && service(to).is_some_and(|to| to.outbound.reaches_wan() && !to.is_tor)
            {
                let message = format!("{from} goes out through tor only, but may reach {to}, which goes out directly");
                let help = format!(
                    "the neighbour could carry its traffic out; if it does not, write `via_ok = [\"{to}\"]` in `[service.{from}]`"
                );
                self.warn("W0807", at, message, &help);
            }
        }
    }

    /// Whether the operator has said of this neighbour that it carries nothing out.
    fn is_acknowledged(&self, from: &ServiceName, to: &ServiceName) -> bool {
        let written = self.policy.services.iter().find(|service| service.text == from.as_str());
        written.is_some_and(|service| {
            service.via_ok.iter().any(|trusted| match &trusted.value {
                Trusted::Everybody => true,
                Trusted::Service(name) => name == to.as_str(),
            })
        })
    }

    /// A service whose datagrams would stay behind.
    fn datagrams_over_tor(&mut self) {
        let only_tor = |service: &&Service| service.outbound.tor && service.outbound.stays_inside();
        for service in self.graph.services().filter(only_tor) {
            let udp = service.ports.iter().find(|(_, ports)| ports.protocol() == Protocol::Udp);
            if let Some((port, _)) = udp {
                let at = service.outbound.at.as_ref().unwrap_or(&service.at);
                let message = format!("{} speaks UDP (`{port}`), and goes out through tor only", service.name);
                self.warn("W0808", at, message, "Tor carries TCP only: what it sends outside by UDP goes nowhere");
            }
        }
    }

    /// The certificate authority asks on port 80 for what http-01 puts there (RFC 8555, section 8.3).
    fn challenge_without_port(&mut self) {
        let exposures = self.graph.written_exposures();
        let at_80 = exposures.iter().any(|exposure| matches!(exposure.way, Way::Port { external: 80, .. }));
        let asked =
            |way: &Way| matches!(way, Way::Clearnet { challenge: Some(challenge), .. } if challenge == "http-01");
        for exposure in exposures.iter().filter(|exposure| asked(&exposure.way) && !at_80) {
            if !exposure.ports.covers(Protocol::Tcp, 80) {
                let message = format!("{} proves its name by http-01, and port 80 is not exposed", exposure.service);
                let help = "expose it, `expose.port.ports = { \"80\" = ... }`, or write `challenge = \"tls-alpn-01\"`";
                self.warn("W0610", &exposure.at, message, help);
            }
        }
    }
}

fn origin_name(edge: &Edge) -> Option<&ServiceName> {
    match &edge.from {
        Origin::Service(name) => Some(name),
        Origin::Host => None,
    }
}

fn target_name(edge: &Edge) -> Option<&ServiceName> {
    match &edge.to {
        Target::Service(name) => Some(name),
        Target::Host => None,
    }
}

/// The same text for names that look the same.
fn skeleton(name: &str) -> String {
    let plain: String = name
        .chars()
        .map(|c| match c {
            '0' => 'o',
            '1' | 'i' => 'l',
            '5' => 's',
            c => c,
        })
        .collect();
    plain.replace("rn", "m").replace("vv", "w").replace('-', "")
}
