//! What is legal and probably not meant. A lint never refuses a policy.

use std::collections::{BTreeMap, BTreeSet};

use crate::exposure::{Exposure, Way};
use crate::graph::{AllowGraph, Cause, Edge, Location, Origin, Service, Target};
use crate::name::ServiceName;
use crate::port::Protocol;
use crate::resolve::Spans;
use crate::resolve::merge::Policy;
use crate::syntax::findings::{Draft, Findings};

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
                let draft = Draft::new("W0215", self.spans.at(&service.at), message);
                self.out.add(draft.second(self.spans.at(&first.at), "the other one").help("rename one of them"));
            }
        }
    }

    fn overlapping_ports(&mut self) {
        for service in self.policy.services.iter().filter(|service| service.enabled) {
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
            self.graph.exposures().iter().map(|exposure| &exposure.service).collect();
        for edge in self.graph.edges() {
            used.extend(origin_name(edge).into_iter().chain(target_name(edge)));
        }
        let alone = |service: &&Service| !used.contains(&service.name) && service.outbound.stays_inside();
        for service in self.graph.services().filter(alone) {
            let message = format!("{} reaches nobody, and nobody reaches it", service.name);
            self.warn("W0226", &service.at, message, "connect it, expose it, or take it out");
        }
    }

    fn linked_onions(&mut self) {
        let onions = self.graph.exposures().iter().filter(|exposure| matches!(exposure.way, Way::Onion { .. }));
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
        for exposure in self.graph.exposures().iter().filter(|exposure| matches!(exposure.way, Way::Lan { .. })) {
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
        for edge in self.graph.edges().iter().filter(|edge| edge.cause != Cause::Tor) {
            let (Some(from), Some(to)) = (origin_name(edge), target_name(edge)) else {
                continue;
            };
            let service = |name: &ServiceName| self.graph.service(name.as_str());
            let tor_only = service(from).is_some_and(|from| from.outbound.tor && from.outbound.stays_inside());
            if tor_only && service(to).is_some_and(|to| to.outbound.reaches_wan() && !to.is_tor) {
                let message = format!("{from} goes out through tor only, but may reach {to}, which goes out directly");
                self.warn("W0807", &edge.at, message, "the neighbour could carry its traffic out");
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
