//! Why a connection is allowed, or is not: the edge and its line, or what is missing and what would break.
//!
//! Names only: nothing here looks at a kernel. Whoever asks for a name that does not exist gets an [`ExplainError`]
//! with the nearest one that does.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;
use thiserror::Error;

use crate::exposure::{Exposure, Way};
use crate::graph::{AllowGraph, Cause, Dns, Edge, Location, Origin, Outbound, Service, Target};
use crate::never::{Never, Start};
use crate::port::{InvalidPort, Ports, Protocol, number};
use crate::suggest::did_you_mean;

/// The answer to `FROM TO:PORT`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Explanation {
    /// Who would open the connection.
    pub from: String,
    /// Who would be reached.
    pub to: String,
    /// The port, as the target calls it where it has a name for it; empty for any.
    pub port: String,
    /// Yes or no.
    #[serde(flatten)]
    pub answer: Answer,
}

/// Yes or no, and why.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    /// It is not allowed.
    No(No),
    /// It is allowed.
    Yes(Reach),
}

/// Something that is allowed, and where.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Reach {
    /// The edge, the exposure or the way out, in words.
    pub what: String,
    /// Where it is written; `None` for what needs no writing.
    pub at: Option<Location>,
}

/// What is missing.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct No {
    /// One sentence.
    pub reason: String,
    /// What `from` may reach instead.
    pub may_reach: Vec<Reach>,
    /// Somebody else who may do what was asked for; a neighbour of `from` where there is one.
    pub closest: Option<Reach>,
    /// The invariants that would not hold if this were allowed.
    pub breaks: Vec<Reach>,
}

/// A question that cannot be answered, because it names what does not exist.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ExplainError {
    /// The target has no port of that name.
    #[error("{to} has no port `{port}`")]
    Port {
        /// The target.
        to: String,
        /// The port that was asked for.
        port: String,
        /// The nearest one there is.
        hint: Option<String>,
    },
    /// Not a port at all.
    #[error("`{text}` is not a port")]
    PortForm {
        /// What was asked for.
        text: String,
        /// What is wrong with it.
        #[source]
        source: InvalidPort,
    },
    /// Nobody has that name.
    #[error("there is no {what} `{name}`")]
    Unknown {
        /// What it would have to be.
        what: &'static str,
        /// The name that was asked for.
        name: String,
        /// The nearest one there is.
        hint: Option<String>,
    },
}

impl ExplainError {
    /// What to ask for instead.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Port { hint, .. } | Self::Unknown { hint, .. } => hint.as_deref(),
            Self::PortForm { .. } => None,
        }
    }
}

/// Whether `from` may open a connection to `port` of `to`, and why.
///
/// `from` is a service, `host`, a peer, `wan` or `lan`; `to` is a service, `host`, `wan`, `lan`,
/// `metadata` or `uplink`, which resolves names; `port` is a name of the target's, `tcp:8332`, `8332` (TCP is meant), or empty for any.
///
/// # Errors
///
/// [`ExplainError`] when one of the three does not exist.
pub fn explain(graph: &AllowGraph, from: &str, to: &str, port: &str) -> Result<Explanation, ExplainError> {
    let start = start(graph, from)?;
    let goal = goal(graph, to)?;
    let ports = ports(graph, &goal, to, port)?;
    let shown = ports.map(|ports| port_text(graph, &goal, ports)).unwrap_or_default();
    let asked = Question { graph, start, goal, ports, from, to, port: &shown };
    let answer = asked.answer();
    Ok(Explanation { from: from.to_owned(), to: to.to_owned(), port: shown, answer })
}

enum Goal {
    Inside(Target),
    /// Defined, and switched off.
    Disabled,
    Lan,
    Metadata,
    /// The gateway, which resolves names for those with `dns = "direct"`.
    Uplink,
    Wan,
}

fn start(graph: &AllowGraph, name: &str) -> Result<Start, ExplainError> {
    let peer = || graph.peers().find(|peer| peer.name.as_str() == name).map(|peer| Start::Peer(peer.name.clone()));
    let word = match name {
        "host" => Some(Start::Inside(Origin::Host)),
        "lan" => Some(Start::Lan),
        "wan" => Some(Start::Wan),
        _ => None,
    };
    let service = || service_name(graph, name).map(|name| Start::Inside(Origin::Service(name)));
    word.or_else(service).or_else(peer).ok_or_else(|| {
        let peers = graph.peers().map(|peer| peer.name.as_str());
        unknown("service or peer", name, services(graph).chain(peers).chain(["host", "lan", "wan"]))
    })
}

fn goal(graph: &AllowGraph, name: &str) -> Result<Goal, ExplainError> {
    match name {
        "host" => return Ok(Goal::Inside(Target::Host)),
        "lan" => return Ok(Goal::Lan),
        "metadata" => return Ok(Goal::Metadata),
        "wan" => return Ok(Goal::Wan),
        _ => {}
    }
    match (service_name(graph, name), graph.service(name)) {
        (Some(name), Some(_)) => Ok(Goal::Inside(Target::Service(name))),
        (Some(_), None) => Ok(Goal::Disabled),
        (None, _) if name == "uplink" => Ok(Goal::Uplink),
        (None, _) => Err(unknown("service", name, services(graph).chain(["host", "lan", "metadata", "wan"]))),
    }
}

fn services(graph: &AllowGraph) -> impl Iterator<Item = &str> {
    graph.services().map(|service| service.name.as_str())
}

fn service_name(graph: &AllowGraph, name: &str) -> Option<crate::name::ServiceName> {
    let enabled = graph.service(name).map(|service| service.name.clone());
    enabled.or_else(|| graph.disabled().find(|disabled| disabled.as_str() == name).cloned())
}

fn unknown<'a>(what: &'static str, name: &str, known: impl Iterator<Item = &'a str>) -> ExplainError {
    ExplainError::Unknown { what, name: name.to_owned(), hint: did_you_mean(name, known) }
}

fn ports(graph: &AllowGraph, goal: &Goal, to: &str, text: &str) -> Result<Option<Ports>, ExplainError> {
    let numeric = |text: &str| {
        let bare = number(text).and_then(|port| Ports::new(Protocol::Tcp, port, port));
        let parsed = if text.contains(':') { text.parse() } else { bare };
        parsed.map(Some).map_err(|source| ExplainError::PortForm { text: text.to_owned(), source })
    };
    let is_number = text.contains(':') || text.starts_with(|c: char| c.is_ascii_digit());
    match goal {
        _ if text.is_empty() => Ok(None),
        _ if is_number => numeric(text),
        Goal::Inside(target) => {
            let names = || port_names(graph, target);
            match names().find(|(name, _)| *name == text) {
                Some((_, ports)) => Ok(Some(ports)),
                None => {
                    let hint = did_you_mean(text, names().map(|(name, _)| name));
                    Err(ExplainError::Port { to: to.to_owned(), port: text.to_owned(), hint })
                }
            }
        }
        Goal::Disabled => Ok(None),
        _ => numeric(text),
    }
}

fn port_names<'a>(graph: &'a AllowGraph, target: &'a Target) -> impl Iterator<Item = (&'a str, Ports)> {
    let service = match target {
        Target::Service(name) => graph.service(name.as_str()),
        Target::Host => None,
    };
    let declared = service.into_iter().flat_map(|service| &service.ports).map(|(name, ports)| (name.as_str(), *ports));
    let accepted = graph.edges().iter().filter(move |edge| edge.to == Target::Host && *target == Target::Host);
    declared.chain(accepted.filter_map(|edge| edge.port_name.as_ref().map(|name| (name.as_str(), edge.ports))))
}

fn port_text(graph: &AllowGraph, goal: &Goal, ports: Ports) -> String {
    let name = match goal {
        Goal::Inside(target) => port_names(graph, target).find(|(_, p)| *p == ports).map(|(name, _)| name),
        _ => None,
    };
    name.map_or_else(|| ports.to_string(), str::to_owned)
}

struct Question<'a> {
    graph: &'a AllowGraph,
    start: Start,
    goal: Goal,
    ports: Option<Ports>,
    from: &'a str,
    to: &'a str,
    port: &'a str,
}

impl Question<'_> {
    fn answer(&self) -> Answer {
        if matches!(&self.start, Start::Inside(Origin::Service(name)) if self.graph.service(name.as_str()).is_none()) {
            return self.no(format!("{} is switched off by `enabled = false`", self.from));
        }
        match &self.goal {
            Goal::Disabled => self.no(format!("{} is switched off by `enabled = false`", self.to)),
            Goal::Inside(_) if self.from == self.to => {
                Answer::Yes(Reach { what: format!("{} always reaches itself", self.from), at: None })
            }
            Goal::Inside(target) => match &self.start {
                Start::Inside(origin) => self.inside(origin, target),
                _ => self.through_exposure(target),
            },
            Goal::Lan | Goal::Metadata | Goal::Wan => self.outside(),
            Goal::Uplink => self.resolver(),
        }
    }

    fn inside(&self, origin: &Origin, target: &Target) -> Answer {
        let edges = || self.graph.edges_from(origin).iter().filter(|edge| edge.to == *target);
        match edges().find(|edge| self.is_asked(edge.ports)) {
            Some(edge) => Answer::Yes(edge_reach(edge)),
            None if edges().next().is_some() => {
                self.no(format!("{} has no edge to port {} of {}", self.from, self.port, self.to))
            }
            None => self.no(format!("{} has no edge to {}", self.from, self.to)),
        }
    }

    fn is_asked(&self, ports: Ports) -> bool {
        let covers = |asked: Ports| ports.covers(asked.protocol(), asked.lo()) && asked.hi() <= ports.hi();
        self.ports.is_none_or(covers)
    }

    fn through_exposure(&self, target: &Target) -> Answer {
        let exposed = self
            .exposures()
            .find(|exposure| *target == Target::Service(exposure.service.clone()) && self.is_asked(exposure.ports));
        match exposed {
            Some(exposure) => Answer::Yes(exposure_reach(exposure)),
            None => self.no(format!("nothing exposes {} to {}", colon(self.to, self.port), self.from)),
        }
    }

    fn exposures(&self) -> impl Iterator<Item = &Exposure> {
        self.graph.exposures().iter().filter(|exposure| self.start.comes_through(exposure))
    }

    fn outside(&self) -> Answer {
        let Some(service) = self.service() else {
            return self.no(format!("{} has no `outbound`", self.from));
        };
        let outbound = &service.outbound;
        let open = match self.goal {
            Goal::Wan => outbound.direct || outbound.direct_only.iter().any(|ports| self.is_asked(*ports)),
            Goal::Lan => outbound.lan || outbound.lan_only.iter().any(|(_, ports)| self.is_asked(*ports)),
            _ => self.opens_metadata(outbound),
        };
        let word = if matches!(self.goal, Goal::Wan) { "direct" } else { "lan" };
        if open {
            let what = format!("{} -> {} by outbound {word}", self.from, colon(self.to, self.port));
            return Answer::Yes(Reach { what, at: outbound.at.clone() });
        }
        let reason = match self.goal {
            Goal::Metadata => format!("{} may not reach the metadata address: `direct` never means it", self.from),
            Goal::Wan if outbound.tor => format!("{} goes out through tor only", self.from),
            _ => format!("{} has no outbound {word} for this", self.from),
        };
        self.no(reason)
    }

    /// The gateway answers for names and nothing else.
    fn resolver(&self) -> Answer {
        let asks = self.service().filter(|service| service.dns == Dns::Direct);
        let is_dns = self.ports.is_none_or(|ports| (ports.lo(), ports.hi()) == (53, 53));
        match asks {
            Some(service) if is_dns => {
                let what = format!("{} -> {} by dns = \"direct\"", self.from, colon(self.to, self.port));
                Answer::Yes(Reach { what, at: Some(service.at.clone()) })
            }
            Some(_) => self.no("uplink answers on port 53 only".to_owned()),
            None => self.no(format!("{} has no `dns = \"direct\"`, for which alone uplink answers", self.from)),
        }
    }

    fn opens_metadata(&self, outbound: &Outbound) -> bool {
        let address = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));
        let lan = outbound.lan && self.graph.network().lan.iter().any(|prefix| prefix.contains(address));
        lan || outbound.lan_only.iter().any(|(prefix, ports)| prefix.contains(address) && self.is_asked(*ports))
    }

    fn service(&self) -> Option<&Service> {
        match &self.start {
            Start::Inside(Origin::Service(name)) => self.graph.service(name.as_str()),
            _ => None,
        }
    }

    fn no(&self, reason: String) -> Answer {
        Answer::No(No { reason, may_reach: self.may_reach(), closest: self.closest(), breaks: self.breaks() })
    }

    fn may_reach(&self) -> Vec<Reach> {
        let Start::Inside(origin) = &self.start else {
            return self.exposures().map(target_reach).collect();
        };
        let edges = self.graph.edges_from(origin).iter().map(|edge| {
            let text = edge.to_string();
            let what = text.split_once(" -> ").map_or(text.as_str(), |(_, target)| target).to_owned();
            Reach { what, at: Some(edge.at.clone()) }
        });
        let words = self.service().into_iter().flat_map(|service| {
            let outbound = &service.outbound;
            let whole = [("wan", outbound.direct), ("lan", outbound.lan)];
            let whole = whole.into_iter().filter(|(_, open)| *open).map(|(word, _)| word.to_owned());
            let wan = outbound.direct_only.iter().map(|ports| format!("wan {ports}"));
            let lan = outbound.lan_only.iter().map(|(prefix, ports)| format!("{prefix} {ports}"));
            let all = whole.chain(wan).chain(lan).collect::<Vec<_>>();
            all.into_iter().map(|what| Reach { what, at: outbound.at.clone() })
        });
        edges.chain(words).collect()
    }

    fn closest(&self) -> Option<Reach> {
        let Goal::Inside(target) = &self.goal else {
            return None;
        };
        let others = self.graph.edges().iter().filter(|edge| edge.to == *target && self.is_asked(edge.ports));
        others.min_by_key(|edge| !self.is_neighbour(&edge.from)).map(edge_reach)
    }

    fn is_neighbour(&self, other: &Origin) -> bool {
        let (Start::Inside(origin), Origin::Service(other)) = (&self.start, other) else {
            return false;
        };
        let meets = |edge: &Edge| edge.to == Target::Service(other.clone());
        self.graph.edges_from(origin).iter().any(meets)
    }

    /// The invariants that break once the answer is yes.
    fn breaks(&self) -> Vec<Reach> {
        let mut graph = self.graph.clone();
        match (&self.start, &self.goal, self.ports) {
            (Start::Inside(from), Goal::Inside(to), Some(ports)) => {
                let at = Location { file: String::new(), line: 0, column: 0 };
                let (from, to) = (from.clone(), to.clone());
                let edge = Edge { from, to, ports, port_name: None, cause: Cause::Written, at };
                let place = graph.edges.partition_point(|other| other.key() < edge.key());
                graph.edges.insert(place, edge);
            }
            (Start::Inside(Origin::Service(name)), Goal::Wan | Goal::Lan, _) => {
                let Some(service) = graph.services.get_mut(name) else {
                    return Vec::new();
                };
                service.outbound.direct |= matches!(self.goal, Goal::Wan);
                service.outbound.lan |= matches!(self.goal, Goal::Lan);
            }
            _ => return Vec::new(),
        }
        let broken = |never: &&Never| !never.breaches(&graph).is_empty();
        let reach = |never: &Never| Reach { what: never_text(never), at: Some(never.at.clone()) };
        self.graph.nevers().iter().filter(broken).map(reach).collect()
    }
}

fn colon(to: &str, port: &str) -> String {
    if port.is_empty() { to.to_owned() } else { format!("{to}:{port}") }
}

fn edge_reach(edge: &Edge) -> Reach {
    Reach { what: edge.to_string(), at: Some(edge.at.clone()) }
}

fn exposure_reach(exposure: &Exposure) -> Reach {
    let people: Vec<&str> = match &exposure.way {
        Way::Onion { clients: people, .. } | Way::WireGuard { peers: people } => {
            people.iter().map(|p| p.as_str()).collect()
        }
        Way::Clearnet { .. } | Way::Lan { .. } | Way::Port { .. } => Vec::new(),
    };
    let people = if people.is_empty() { String::new() } else { format!(", for {}", people.join(" and ")) };
    Reach { what: format!("{exposure}{people}"), at: Some(exposure.at.clone()) }
}

fn target_reach(exposure: &Exposure) -> Reach {
    let what = format!("{}:{} by {}", exposure.service, exposure.port_name, exposure.way.word());
    Reach { what, at: Some(exposure.at.clone()) }
}

fn never_text(never: &Never) -> String {
    match &never.why {
        Some(why) => format!("never \"{}\"", why.escape_debug()),
        None => "a never".to_owned(),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        let width = lines.iter().filter(|(_, at)| at.is_some()).map(|(text, _)| text.chars().count()).max();
        let width = width.unwrap_or(0).max(44);
        let word = if self.is_yes() { "yes" } else { "no" };
        for (index, (text, at)) in lines.iter().enumerate() {
            let (newline, word) = if index == 0 { ("", word) } else { ("\n", "") };
            match at {
                Some(at) => write!(f, "{newline}{word:5}{text:width$}  {at}")?,
                None => write!(f, "{newline}{word:5}{text}")?,
            }
        }
        Ok(())
    }
}

impl Explanation {
    /// Whether the connection is allowed.
    pub fn is_yes(&self) -> bool {
        matches!(self.answer, Answer::Yes(_))
    }

    fn lines(&self) -> Vec<(String, Option<&Location>)> {
        let no = match &self.answer {
            Answer::Yes(reach) => return vec![(reach.what.clone(), reach.at.as_ref())],
            Answer::No(no) => no,
        };
        let mut lines = vec![(no.reason.clone(), None)];
        let head = format!("{} may reach: ", self.from);
        for (index, reach) in no.may_reach.iter().enumerate() {
            let head = if index == 0 { head.clone() } else { " ".repeat(head.len()) };
            lines.push((format!("{head}{}", reach.what), reach.at.as_ref()));
        }
        if no.may_reach.is_empty() {
            lines.push((format!("{head}nothing"), None));
        }
        lines.extend(no.closest.iter().map(|reach| (format!("closest: {}", reach.what), reach.at.as_ref())));
        let breaks = no.breaks.iter();
        lines.extend(breaks.map(|never| (format!("an edge would break: {}", never.what), never.at.as_ref())));
        lines
    }
}
