//! What two policies differ in, as edges: not as lines of a text.
//!
//! # Invariants
//!
//! - Between a policy and itself, and between two that mean the same, there is no difference in who may reach whom.
//! - What goes stands before what comes, and each in the order of the graph.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::exposure::{Exposure, Way};
use crate::graph::{AllowGraph, Dns, Outbound, Service};

/// One difference.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Difference {
    /// Whether it goes or comes.
    pub sign: Sign,
    /// What it is.
    pub kind: Kind,
    /// Which, as the operator writes it: `web -> db:sql`.
    pub what: String,
}

/// Whether something goes or comes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Sign {
    /// Only the first has it.
    #[serde(rename = "-")]
    Goes,
    /// Only the second has it.
    #[serde(rename = "+")]
    Comes,
}

/// What differs.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A service.
    Service,
    /// A right to open a connection.
    Edge,
    /// A right to open a unix socket.
    Socket,
    /// A way in from outside.
    Exposure,
    /// What a service may reach outside.
    Outbound,
    /// How a service resolves names, what limits it has, which unit it is.
    Setting,
    /// The network's name, pools, resolvers, what `lan` means.
    Network,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.sign {
            Sign::Goes => '-',
            Sign::Comes => '+',
        };
        let kind = match self.kind {
            Kind::Service => "service",
            Kind::Edge => "edge",
            Kind::Socket => "socket",
            Kind::Exposure => "exposure",
            Kind::Outbound => "outbound",
            Kind::Setting => "setting",
            Kind::Network => "network",
        };
        write!(f, "{sign} {kind:<8} {}", self.what)
    }
}

/// What `new` differs from `old` in.
pub fn differences(old: &AllowGraph, new: &AllowGraph) -> Vec<Difference> {
    let (old, new) = (facts(old), facts(new));
    let one = |sign, (kind, what): &(Kind, String)| Difference { sign, kind: *kind, what: what.clone() };
    let goes = old.difference(&new).map(|fact| one(Sign::Goes, fact));
    let comes = new.difference(&old).map(|fact| one(Sign::Comes, fact));
    goes.chain(comes).collect()
}

/// All that a policy says, one by one.
fn facts(graph: &AllowGraph) -> BTreeSet<(Kind, String)> {
    let mut facts = BTreeSet::new();
    let network = graph.network();
    facts.insert((Kind::Network, format!("name {}", network.name)));
    facts.insert((Kind::Network, format!("pool4 {}", network.pool4)));
    facts.extend(network.pool6.map(|pool| (Kind::Network, format!("pool6 {pool}"))));
    facts.extend(network.lan.iter().map(|prefix| (Kind::Network, format!("lan {prefix}"))));
    facts.extend(network.resolvers.iter().map(|address| (Kind::Network, format!("resolver {address}"))));
    for service in graph.services() {
        facts.insert((Kind::Service, service.name.to_string()));
        facts.extend(outbound(&service.outbound).map(|way| (Kind::Outbound, format!("{} -> {way}", service.name))));
        facts.extend(settings(service).map(|setting| (Kind::Setting, format!("{}: {setting}", service.name))));
    }
    facts.extend(graph.edges().iter().map(|edge| {
        // With the number, or an edge would stay the same while its port becomes another.
        let port = edge.port_name.as_ref().map(|_| format!(" ({})", edge.ports)).unwrap_or_default();
        (Kind::Edge, format!("{edge}{port}"))
    }));
    facts.extend(graph.sockets().iter().map(|socket| (Kind::Socket, format!("{socket} ({})", socket.path))));
    facts.extend(graph.exposures().iter().map(|exposure| (Kind::Exposure, words(exposure))));
    facts
}

fn outbound(outbound: &Outbound) -> impl Iterator<Item = String> + '_ {
    let whole = [(outbound.direct, "wan"), (outbound.lan, "lan"), (outbound.tor, "tor")];
    let whole = whole.into_iter().filter(|(yes, _)| *yes).map(|(_, word)| word.to_owned());
    let direct = outbound.direct_only.iter().map(|ports| format!("wan {ports}"));
    let lan = outbound.lan_only.iter().map(|(prefix, ports)| format!("{prefix} {ports}"));
    whole.chain(direct).chain(lan)
}

fn settings(service: &Service) -> impl Iterator<Item = String> + '_ {
    let unit = service.unit.iter().map(|unit| format!("unit {unit}"));
    let dns = match service.dns {
        Dns::Direct => "dns direct",
        Dns::None => "dns none",
        Dns::Names => "dns names",
        Dns::Tor => "dns tor",
    };
    let dns = std::iter::once(dns.to_owned());
    let flows = service.limits.flows.map(|flows| format!("limits.flows {flows}"));
    let new = service.limits.new_per_second.map(|new| format!("limits.new_per_second {new}"));
    let tor = service.is_tor.then(|| "role tor".to_owned());
    let ports = service.ports.iter().map(|(name, ports)| format!("port {name} {ports}"));
    unit.chain(dns).chain(flows).chain(new).chain(tor).chain(ports)
}

fn words(exposure: &Exposure) -> String {
    let outside = exposure.way.external().map(|port| format!(" at port {port}")).unwrap_or_default();
    let list = |names: &mut dyn Iterator<Item = String>| names.collect::<Vec<_>>().join(", ");
    let who = match &exposure.way {
        Way::Onion { clients, .. } if !clients.is_empty() => {
            format!(", for {}", list(&mut clients.iter().map(ToString::to_string)))
        }
        Way::WireGuard { peers } => format!(", for {}", list(&mut peers.iter().map(ToString::to_string))),
        Way::Clearnet { domain, .. } => format!(" as {domain}"),
        _ => String::new(),
    };
    format!("{exposure}{outside}{who}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Source;

    fn graph(text: &str) -> AllowGraph {
        let text = format!("schema = 1\nnetwork.name = 'n'\n{text}");
        AllowGraph::parse(&[Source::toml("policy.toml", text)]).expect("it is a policy").graph
    }

    fn told(old: &str, new: &str) -> Vec<String> {
        differences(&graph(old), &graph(new)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn two_policies_differ_in_edges_and_not_in_lines() {
        let old = "[service.a]\nconnect.b = ['x']\n[service.b]\nports = { x = 'tcp:1', y = 'tcp:2' }";
        let same =
            "[service.b]\nports.y = 'tcp:2'\nports.x = 'tcp:1'\n\n# a word\n[service.a]\nconnect = { b = ['x'] }";
        assert_eq!(told(old, same), Vec::<String>::new());
        let other = old.replace("['x']", "['y']");
        assert_eq!(told(old, &other), ["- edge     a -> b:x (tcp:1)", "+ edge     a -> b:y (tcp:2)"]);
    }

    #[test]
    fn an_edge_whose_port_becomes_another_number_is_another_edge() {
        let old = "[service.a]\nconnect.b = ['x']\n[service.b]\nports = { x = 'tcp:1' }";
        let lines = told(old, &old.replace("tcp:1", "tcp:2"));
        assert!(lines.contains(&"- edge     a -> b:x (tcp:1)".into()), "{lines:?}");
        assert!(lines.contains(&"+ edge     a -> b:x (tcp:2)".into()), "{lines:?}");
    }

    #[test]
    fn what_leads_outside_and_in_is_told() {
        let old = "[service.a]\nports = { x = 'tcp:1' }";
        let new = "[service.a]\noutbound = 'direct'\ndns = 'direct'\nports = { x = 'tcp:1' }\n[service.a.expose.port]\nports = { '80' = 'x' }";
        assert_eq!(
            told(old, new),
            [
                "- setting  a: dns none",
                "+ exposure port -> a:x at port 80",
                "+ outbound a -> wan",
                "+ setting  a: dns direct",
            ]
        );
    }
}
