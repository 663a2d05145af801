//! `[[never]]` and `[[test]]`, looked up and held against the finished graph.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::graph::{AllowGraph, Edge, Location, Origin, Outbound, SocketEdge, Target};
use crate::name::PortName;
use crate::never::{Expectation, Goal, Never, Roads, Start};
use crate::port::Ports;
use crate::suggest::did_you_mean;
use crate::syntax::findings::{At, Draft, Findings, Sp};
use crate::syntax::obligation::Test;
use crate::syntax::reference::{LINK_LOCAL, Point, PortRef, Who};
use crate::syntax::{obligation, service};
use crate::trial::{self, Ask, Claim, Kind, Trial};

use super::Spans;
use super::merge::Policy;
use super::names::{Found, Names, enabled, find_port, no_port, port_of, port_text, socket_of, wrong_protocol};

/// Every `[[never]]`, looked up.
pub(crate) fn nevers(policy: &Policy, names: &Names<'_>, spans: &mut Spans, out: &mut Findings) -> Vec<Never> {
    policy.nevers.iter().map(|never| look_up(policy, names, never, spans, out)).collect()
}

fn look_up(
    policy: &Policy,
    names: &Names<'_>,
    never: &obligation::Never,
    spans: &mut Spans,
    out: &mut Findings,
) -> Never {
    let mut from = BTreeSet::new();
    for who in &never.from {
        from.extend(starts(policy, names, who, out));
    }
    let mut to = BTreeSet::new();
    for point in &never.to {
        to.extend(goals(policy, names, point, out));
    }
    let mut except = BTreeSet::new();
    for who in &never.except {
        if who.value == Who::Service("host".to_owned()) {
            except.insert(Origin::Host);
            continue;
        }
        let services = names.services(who, out).into_iter().filter_map(|service| service.name.clone());
        except.extend(services.map(Origin::Service));
    }
    let path = never.path.then(|| never.hops.unwrap_or(u32::MAX));
    Never { why: never.why.clone(), path, from, to, except, at: spans.location(never.at) }
}

fn starts(policy: &Policy, names: &Names<'_>, who: &Sp<Who>, out: &mut Findings) -> Vec<Start> {
    if let Who::Service(word) = &who.value {
        match word.as_str() {
            "host" => return vec![Start::Inside(Origin::Host)],
            "lan" => return vec![Start::Lan],
            "peers" => return vec![Start::Peers],
            "wan" => return vec![Start::Wan],
            _ => {}
        }
        if let Some(peer) = policy.peers.iter().find(|peer| peer.name.as_str() == word) {
            return vec![Start::Peer(peer.name.clone())];
        }
    }
    let services = names.services(who, out).into_iter().filter_map(|service| service.name.clone());
    services.map(|name| Start::Inside(Origin::Service(name))).collect()
}

fn goals(policy: &Policy, names: &Names<'_>, point: &Sp<Point>, out: &mut Findings) -> Vec<Goal> {
    let Point { who, port, text } = &point.value;
    match (who, text.as_str()) {
        (_, "wan") => return vec![Goal::Wan],
        (_, "lan") => return vec![Goal::Lan],
        (Who::Service(word), _) if word == "host" => {
            let Some(port) = port else {
                return vec![Goal::Inside(Target::Host, None)];
            };
            let ports = host_port(policy, port, point.at, out);
            return ports.into_iter().map(|ports| Goal::Inside(Target::Host, Some(ports))).collect();
        }
        _ => {}
    }
    let services = names.services(&Sp::new(who.clone(), point.at), out);
    let target = |service: &service::Service| service.name.clone().map(Target::Service);
    match port {
        None => services.into_iter().filter_map(target).map(|target| Goal::Inside(target, None)).collect(),
        Some(port) => {
            let mut goals = Vec::new();
            let offers = |service: &&&service::Service| socket_at(service, port).is_some();
            for service in services.iter().filter(offers) {
                goals.extend(
                    service.name.clone().zip(socket_at(service, port)).map(|(to, name)| Goal::Socket(to, name)),
                );
            }
            if matches!(port, PortRef::Socket(_)) || !goals.is_empty() && no_port_at(&services, port) {
                if let (true, Some(first)) = (goals.is_empty(), services.first()) {
                    let _reported = socket_of(first, &port_name(port), point.at, out);
                }
                return goals;
            }
            for (service, ports) in ports_at(&services, port, point.at, out) {
                goals.extend(target(service).map(|target| Goal::Inside(target, Some(ports))));
            }
            goals
        }
    }
}

/// The socket that `port` may mean at the service: `unix:rpc` a socket alone, `rpc` a port or a socket of that name.
fn socket_at(service: &service::Service, port: &PortRef) -> Option<PortName> {
    let (PortRef::Name(name) | PortRef::Socket(name)) = port else {
        return None;
    };
    let offered = service.sockets.iter().find(|offered| offered.name.value == *name)?;
    offered.socket.as_ref().map(|(name, _)| name.clone())
}

fn no_port_at(services: &[&service::Service], port: &PortRef) -> bool {
    services.iter().all(|service| matches!(find_port(service, port), Found::Missing))
}

fn port_name(port: &PortRef) -> String {
    match port {
        PortRef::Name(name) | PortRef::Typed(_, name) | PortRef::Socket(name) => name.clone(),
        PortRef::Number(ports) => ports.to_string(),
    }
}

/// The port at each service that has it; at least one must.
fn ports_at<'a>(
    services: &[&'a service::Service],
    port: &PortRef,
    at: At,
    out: &mut Findings,
) -> Vec<(&'a service::Service, Ports)> {
    let mut found = Vec::new();
    let mut missing = !services.is_empty();
    for service in services {
        match find_port(service, port) {
            Found::Missing => continue,
            Found::Broken => {}
            Found::Protocol(ports) => out.add(wrong_protocol(service, port, ports, at)),
            Found::Ports(ports, _) => found.push((*service, ports)),
        }
        missing = false;
    }
    if missing {
        out.add(no_port(services[0], &port_text(port), at));
    }
    found
}

fn host_port(policy: &Policy, port: &PortRef, at: At, out: &mut Findings) -> Option<Ports> {
    let name = match port {
        PortRef::Number(ports) => return Some(*ports),
        PortRef::Name(name) | PortRef::Typed(_, name) | PortRef::Socket(name) => name,
    };
    let found = policy.host.accepts.iter().find(|accept| accept.name.value.as_str() == name);
    if found.is_none() {
        let names = policy.host.accepts.iter().map(|accept| accept.name.value.as_str());
        let draft =
            Draft::new("E0204", at, format!("the host accepts nothing under the name `{}`", name.escape_debug()));
        out.add(draft.hint(did_you_mean(name, names)));
    }
    found.map(|accept| accept.ports.value)
}

/// Every `[[test]]` in the form that does not depend on how names are given.
pub(crate) fn tests(policy: &Policy, names: &Names<'_>) -> Vec<Expectation> {
    let test = |test: &Test| {
        let Who::Service(from) = &test.from.value else {
            return None;
        };
        let plain =
            |points: &[Sp<Point>]| points.iter().map(|point| plain_point(policy, names, &point.value)).collect();
        Some(Expectation {
            from: from.clone(),
            can: plain(&test.can),
            cannot: plain(&test.cannot),
            name: test.name.clone(),
        })
    };
    policy.tests.iter().filter_map(test).collect()
}

fn plain_point(policy: &Policy, names: &Names<'_>, point: &Point) -> String {
    let (Who::Service(word), Some(port)) = (&point.who, &point.port) else {
        return point.text.clone();
    };
    if word == "host" {
        let ports = host_port(policy, port, At::top(0), &mut Findings::default());
        return ports.map_or_else(|| point.text.clone(), |ports| format!("host:{ports}"));
    }
    let Some(service) = names.find(word) else {
        return point.text.clone();
    };
    // Of a service that is switched off no port is open, whichever is meant.
    if !service.is_enabled() {
        return word.clone();
    }
    match (socket_at(service, port), find_port(service, port)) {
        (None, Found::Ports(ports, _)) => format!("{word}:{ports}"),
        (Some(socket), Found::Missing) => format!("{word}:unix:{socket}"),
        // A name for both: only the name says so.
        _ => point.text.clone(),
    }
}

/// Refuses what breaks an invariant. An edge more can only break more, so this is told even when other mistakes are.
pub(crate) fn check_nevers(graph: &AllowGraph, spans: &Spans, out: &mut Findings) {
    let roads = Roads::new(graph);
    for never in graph.nevers() {
        if out.is_full() {
            return;
        }
        let never_at = spans.at(&never.at);
        for breach in roads.breaches(never) {
            let chain = breach.chain.join(" -> ");
            let why = never.why.as_ref().map(|why| format!(": \"{}\"", why.escape_debug())).unwrap_or_default();
            let (code, what) =
                if breach.is_direct() { ("E0401", "is forbidden") } else { ("E0402", "is a forbidden path") };
            let draft = Draft::new(code, spans.at(&breach.at), format!("{chain} {what}{why}"));
            let label = if breach.is_direct() { "allowed here" } else { "the last step is allowed here" };
            out.add(draft.label(label).second(never_at, "forbidden here"));
        }
    }
}

/// Refuses a policy whose tests fail.
pub(crate) fn check_tests(policy: &Policy, names: &Names<'_>, graph: &AllowGraph, out: &mut Findings) {
    let incomplete = out.has_errors();
    for test in &policy.tests {
        let Some(from) = Tested::from(policy, names, test, graph, out) else {
            continue;
        };
        for point in &test.cannot {
            if let Some(Reached::Yes(how)) = from.reaches(point, out) {
                let message = format!("{} can reach {}{}", from.text, point.value.text, said(test));
                out.add(Draft::new("E0403", point.at, message).label("should not be").help(how));
            }
        }
        // What seems closed may be open once the other mistakes are mended.
        for point in test.can.iter() {
            if let Some(Reached::No(help)) = from.reaches(point, out).filter(|_| !incomplete) {
                let message = format!("{} cannot reach {}{}", from.text, point.value.text, said(test));
                out.add(Draft::new("E0403", point.at, message).label("should be possible").help(help));
            }
        }
    }
}

/// The codes that say no more than that an obligation is broken.
pub(crate) const BROKEN: [&str; 3] = ["E0401", "E0402", "E0403"];

/// Every obligation with its outcome.
pub(crate) fn trials(policy: &Policy, names: &Names<'_>, graph: &AllowGraph, spans: &mut Spans) -> Vec<Trial> {
    let nevers = graph.nevers().iter().map(|never| never_trial(never, graph)).collect::<Vec<_>>();
    let tests = policy.tests.iter().filter_map(|test| test_trial(policy, names, graph, test, spans));
    let mut trials: Vec<Trial> = nevers.into_iter().chain(tests).collect();
    trials.sort_by(|a, b| (&a.at, a.kind).cmp(&(&b.at, b.kind)));
    trials
}

fn never_trial(never: &Never, graph: &AllowGraph) -> Trial {
    let list = |names: Vec<String>| {
        let most = 4;
        let more = names.len().saturating_sub(most);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}", names.into_iter().take(most).collect::<Vec<_>>().join(", "))
    };
    let from = list(never.from.iter().map(ToString::to_string).collect());
    let to = list(never.to.iter().map(ToString::to_string).collect());
    let word = if never.path.is_some() { "chain leads" } else { "edge leads" };
    let what = format!("no {word} from {from} to {to}");
    let claim = |holds, reason, at: &Location| Claim { what: what.clone(), holds, reason, at: at.clone(), asks: None };
    let breaches = never.breaches(graph);
    let mut claims: Vec<Claim> =
        breaches.iter().map(|breach| claim(false, breach.chain.join(" -> "), &breach.at)).collect();
    if claims.is_empty() {
        claims.push(claim(true, "there is none".into(), &never.at));
    }
    Trial { kind: Kind::Never, name: never.why.clone(), claims, at: never.at.clone() }
}

fn test_trial(policy: &Policy, names: &Names<'_>, graph: &AllowGraph, test: &Test, spans: &mut Spans) -> Option<Trial> {
    // What cannot be looked up has been told, and then nobody asks here.
    let out = &mut Findings::default();
    let from = Tested::from(policy, names, test, graph, out)?;
    let points = test.can.iter().map(|point| (point, true)).chain(test.cannot.iter().map(|point| (point, false)));
    let claims = points.filter_map(|(point, can)| {
        let (reached, reason) = match from.reaches(point, out)? {
            Reached::Yes(how) => (true, how),
            Reached::No(help) => (false, help),
        };
        let word = if can { "can" } else { "cannot" };
        Some(Claim {
            what: format!("{} {word} reach {}", from.text, point.value.text),
            holds: reached == can,
            reason,
            at: spans.location(point.at),
            asks: from.asks(point, can, out),
        })
    });
    let claims = claims.collect();
    Some(Trial { kind: Kind::Test, name: test.name.clone(), claims, at: spans.location(test.from.at) })
}

fn said(test: &Test) -> String {
    test.name.as_ref().map(|name| format!(", against the test \"{}\"", name.escape_debug())).unwrap_or_default()
}

/// Whose reach a test is about.
struct Tested<'a> {
    policy: &'a Policy,
    names: &'a Names<'a>,
    graph: &'a AllowGraph,
    text: String,
    who: Start,
}

enum Reached {
    /// And what allows it.
    Yes(String),
    /// And what would.
    No(String),
}

impl<'a> Tested<'a> {
    fn from(
        policy: &'a Policy,
        names: &'a Names<'a>,
        test: &Test,
        graph: &'a AllowGraph,
        out: &mut Findings,
    ) -> Option<Self> {
        let Who::Service(text) = &test.from.value else {
            let draft = Draft::new("E0110", test.from.at, "a test is about one service, not about a tag");
            out.add(draft.help("write one `[[test]]` for each, or a `[[never]]`"));
            return None;
        };
        let mut starts = starts(policy, names, &test.from, out).into_iter();
        Some(Self { policy, names, graph, text: text.clone(), who: starts.next()? })
    }

    /// Whether the point can be reached; `None` when it is not known, which is reported.
    fn reaches(&self, point: &Sp<Point>, out: &mut Findings) -> Option<Reached> {
        let Point { who, port, text } = &point.value;
        let Who::Service(word) = who else {
            out.add(Draft::new("E0110", point.at, "a test names services, not tags"));
            return None;
        };
        match text.as_str() {
            LINK_LOCAL => return Some(Reached::No("nothing in a policy opens link-local IPv6".into())),
            "metadata" | "wan" | "lan" => return Some(self.reaches_outside(text)),
            _ => {}
        }
        if word == "host" {
            let ports = match port {
                Some(port) => Some(host_port(self.policy, port, point.at, out)?),
                None => None,
            };
            return Some(self.reaches_inside(&Target::Host, ports, text));
        }
        let service = self.names.service(word, point.at, out)?;
        let socket = port.as_ref().and_then(|port| socket_at(service, port));
        let ports = match port {
            None => None,
            Some(PortRef::Socket(name)) => {
                socket_of(service, name, point.at, out)?;
                None
            }
            // The name of a socket alone.
            Some(port) if socket.is_some() && matches!(find_port(service, port), Found::Missing) => None,
            Some(port) => Some(port_of(service, port, point.at, out)?.0),
        };
        let Some(name) = enabled(service) else {
            return Some(Reached::No(format!("{word} is switched off by `enabled = false`")));
        };
        let opens = |edge: &&SocketEdge| edge.to == *name && (port.is_none() || socket.as_ref() == Some(&edge.name));
        if let Start::Inside(Origin::Service(from)) = &self.who
            && let Some(edge) = self.graph.sockets_from(from).iter().find(opens)
        {
            return Some(Reached::Yes(format!("{edge} is allowed at {}", edge.at)));
        }
        if let (Some(socket), None, Start::Inside(Origin::Service(from))) = (&socket, ports, &self.who) {
            let how = format!("`open.{word} = [\"{socket}\"]` in `[service.{from}]` would allow it");
            return Some(Reached::No(how));
        }
        if socket.is_some() && ports.is_none() {
            return Some(Reached::No(format!("{text} is a unix socket, which only a service opens here")));
        }
        Some(self.reaches_inside(&Target::Service(name.clone()), ports, text))
    }

    /// The connection that would show it.
    fn asks(&self, point: &Sp<Point>, can: bool, out: &mut Findings) -> Option<Ask> {
        let Point { who, port, text } = &point.value;
        let Who::Service(word) = who else { return None };
        let (to, ports) = match (text.as_str(), word.as_str()) {
            (LINK_LOCAL, _) => (trial::Goal::LinkLocal, None),
            ("lan", _) => (trial::Goal::Lan, None),
            ("metadata", _) => (trial::Goal::Metadata, None),
            ("wan", _) => (trial::Goal::Wan, None),
            (_, "host") => {
                let ports = port.as_ref().and_then(|port| host_port(self.policy, port, point.at, out));
                (trial::Goal::Inside(Target::Host), ports)
            }
            _ => {
                let service = self.names.service(word, point.at, out)?;
                // What is reached by a path, no connection shows.
                if port.as_ref().is_some_and(|port| socket_at(service, port).is_some()) {
                    return None;
                }
                let ports = port.as_ref().and_then(|port| port_of(service, port, point.at, out)).map(|found| found.0);
                (trial::Goal::Inside(Target::Service(service.name.clone()?)), ports)
            }
        };
        let from = match &self.who {
            Start::Inside(origin) => Some(origin.clone()),
            _ => None,
        };
        Some(Ask { from, to, ports, can })
    }

    fn reaches_inside(&self, to: &Target, ports: Option<Ports>, text: &str) -> Reached {
        let Start::Inside(origin) = &self.who else {
            return self.reaches_from_outside(to, ports, text);
        };
        let meets = |edge: &&Edge| edge.to == *to && ports.is_none_or(|ports| ports.overlaps(&edge.ports));
        match self.graph.edges_from(origin).iter().find(meets) {
            Some(edge) => Reached::Yes(format!("{edge} is allowed at {}", edge.at)),
            None => Reached::No(self.would_open(origin, text)),
        }
    }

    fn would_open(&self, origin: &Origin, text: &str) -> String {
        let (target, port) = text.split_once(':').unwrap_or((text, "PORT"));
        match origin {
            Origin::Host => format!("`may_connect.{target} = [\"{port}\"]` in `[host]` would allow it"),
            Origin::Service(name) if target == "host" => {
                format!("`accepts` in `[host]` with `from = [\"{name}\"]` would allow it")
            }
            Origin::Service(name) => format!("`connect.{target} = [\"{port}\"]` in `[service.{name}]` would allow it"),
        }
    }

    fn reaches_from_outside(&self, to: &Target, ports: Option<Ports>, text: &str) -> Reached {
        let reaches = |exposure: &&crate::exposure::Exposure| {
            self.who.comes_through(exposure)
                && *to == Target::Service(exposure.service.clone())
                && ports.is_none_or(|ports| ports.overlaps(&exposure.ports))
        };
        // A switch that closes everything for a while must not be stopped by what is expected of the time after.
        match self.graph.written_exposures().iter().find(reaches) {
            Some(exposure) => Reached::Yes(format!("{exposure} is exposed at {}", exposure.at)),
            None => Reached::No(format!("nothing exposes {text} to {}", self.who)),
        }
    }

    fn reaches_outside(&self, word: &str) -> Reached {
        let Start::Inside(Origin::Service(name)) = &self.who else {
            return Reached::No(format!("{} has no `outbound`", self.who));
        };
        let Some(service) = self.graph.service(name.as_str()) else {
            return Reached::No(format!("{name} is switched off by `enabled = false`"));
        };
        let open = match word {
            "wan" => service.outbound.reaches_wan(),
            "lan" => service.outbound.reaches_lan(),
            _ => reaches_metadata(&service.outbound, self.graph),
        };
        let at = service.outbound.at.as_ref().map(ToString::to_string).unwrap_or_default();
        match (open, word) {
            (true, _) => Reached::Yes(format!("`outbound` allows it at {at}")),
            (false, "wan") => Reached::No(format!("`outbound = \"direct\"` in `[service.{name}]` would allow it")),
            (false, "lan") => Reached::No(format!("`outbound = \"lan\"` in `[service.{name}]` would allow it")),
            (false, _) => Reached::No("`direct` never means the metadata address".into()),
        }
    }
}

/// The metadata service of a cloud is never `direct`; only who writes its address into a list of prefixes opens it.
fn reaches_metadata(outbound: &Outbound, graph: &AllowGraph) -> bool {
    let address = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));
    let lan = outbound.lan && graph.network().lan.iter().any(|prefix| prefix.contains(address));
    lan || outbound.lan_only.iter().any(|(prefix, _)| prefix.contains(address))
}
