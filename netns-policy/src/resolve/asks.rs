//! `wants`: what fragments ask for, held against the finished graph. An ask opens nothing.

use crate::ask::{Answer, Ask, Wanted};
use crate::graph::{AllowGraph, Origin, Target};
use crate::name::ServiceName;
use crate::syntax::findings::{At, Draft, Findings};
use crate::syntax::fragment::Want;
use crate::syntax::reference::PortRef;
use crate::syntax::service::Service;

use super::Spans;
use super::merge::Policy;
use super::names::{Found, Names, enabled, find_port};

/// Every ask of an enabled service, ordered by service, target and what is wanted; of what is asked for twice, the first.
pub(crate) fn asks(
    policy: &Policy,
    names: &Names<'_>,
    graph: &AllowGraph,
    spans: &mut Spans,
    out: &mut Findings,
) -> Vec<Ask> {
    let mut asks = Vec::new();
    for service in &policy.services {
        for want in &service.wants {
            if want.target.value == service.text {
                let draft = Draft::new("E0203", want.target.at, format!("{} always reaches itself", service.text));
                out.add(draft.help("remove the line: loopback is open inside every service"));
                continue;
            }
            let asker = Asker { names, graph, service, want };
            asker.ask(spans, out, &mut asks);
        }
    }
    asks.sort_by(|a, b| key(a).cmp(&key(b)).then_with(|| a.at.cmp(&b.at)));
    asks.dedup_by(|b, a| key(a) == key(b));
    asks
}

fn key(ask: &Ask) -> (&ServiceName, &ServiceName, &Wanted) {
    (&ask.service, &ask.target, &ask.wanted)
}

struct Asker<'a> {
    names: &'a Names<'a>,
    graph: &'a AllowGraph,
    service: &'a Service,
    want: &'a Want,
}

impl Asker<'_> {
    fn ask(&self, spans: &mut Spans, out: &mut Findings, asks: &mut Vec<Ask>) {
        let Want { target, ports, sockets, why, optional } = self.want;
        let ports = ports.iter().map(|port| (Wanted::Port(port.value.1.clone()), Some(&port.value.0), port.at));
        let sockets = sockets.iter().map(|socket| (Wanted::Socket(socket.value.clone()), None, socket.at));
        for (wanted, port, at) in ports.chain(sockets) {
            let answer = match port {
                Some(port) => self.port(port),
                None => self.socket(&wanted),
            };
            let answer = answer.unwrap_or_else(|why_not| {
                self.moot(&wanted, why_not, at, out);
                Answer::Moot
            });
            let (Some(fragment), Some(service)) = (&self.service.fragment, enabled(self.service)) else {
                continue;
            };
            let Ok(target) = target.value.parse() else {
                continue;
            };
            let (fragment, service, at) = (fragment.clone(), service.clone(), spans.location(at));
            asks.push(Ask { fragment, service, target, wanted, why: why.clone(), optional: *optional, answer, at });
        }
    }

    fn moot(&self, wanted: &Wanted, why_not: &str, at: At, out: &mut Findings) {
        if !self.want.optional && self.service.is_enabled() {
            let (service, target) = (self.service.text.escape_debug(), self.want.target.value.escape_debug());
            let draft = Draft::new("W0308", at, format!("{service} asks for {target}:{wanted}, and {why_not}"));
            out.add(draft.help("nothing is open; a fragment that does without it says `optional = true`"));
        }
    }

    /// The target, or why there is none to be asked for.
    fn target(&self) -> Result<(&Service, &ServiceName), &'static str> {
        let target = self.names.find(&self.want.target.value).ok_or("there is no such service")?;
        Ok((target, enabled(target).ok_or("that service is switched off")?))
    }

    fn port(&self, port: &PortRef) -> Result<Answer, &'static str> {
        let (target, name) = self.target()?;
        let Found::Ports(ports, _) = find_port(target, port) else {
            return Err("it has no such port");
        };
        let from = enabled(self.service).map(|name| Origin::Service(name.clone()));
        let edges = from.as_ref().map_or(&[][..], |from| self.graph.edges_from(from));
        let to = Target::Service(name.clone());
        // Edges to one target are ordered by their first port, so that gaps between them show.
        let mut missing = u32::from(ports.lo());
        for edge in edges.iter().filter(|edge| edge.to == to && edge.ports.overlaps(&ports)) {
            if u32::from(edge.ports.lo()) <= missing {
                missing = missing.max(u32::from(edge.ports.hi()) + 1);
            }
        }
        Ok(if missing > u32::from(ports.hi()) { Answer::Granted } else { Answer::Open })
    }

    fn socket(&self, wanted: &Wanted) -> Result<Answer, &'static str> {
        let (target, name) = self.target()?;
        let is_it = |offered: &&crate::syntax::socket::Offered| *wanted == Wanted::Socket(offered.name.value.clone());
        let offered = target.sockets.iter().find(is_it).ok_or("it has no such socket")?;
        let sockets = enabled(self.service).map_or(&[][..], |from| self.graph.sockets_from(from));
        let granted = sockets.iter().any(|socket| socket.to == *name && socket.name.as_str() == offered.name.value);
        Ok(if granted { Answer::Granted } else { Answer::Open })
    }
}
