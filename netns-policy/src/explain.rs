//! Why a connection is allowed, or is not: the edge and its line, or what is missing and what would break.
//!
//! Names only: nothing here looks at a kernel. Whoever asks for a name that does not exist gets an [`ExplainError`]
//! with the nearest one that does.

mod display;
mod names;
pub mod stands;

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr as _;

use serde::Serialize;
use thiserror::Error;

use crate::exposure::{Exposure, Way};
use crate::graph::{AllowGraph, Cause, Dns, Edge, Location, Origin, Outbound, Service, Target};
use crate::name::PortName;
use crate::never::{Never, Start};
use crate::port::{InvalidPort, Ports, Protocol};
use crate::reach::{self, Node};

pub(crate) use names::place;
use names::{Goal, goal, port_text, ports};

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
    /// What made it, where it is not written for exactly this: `connect."@chain"`, `outbound = "tor"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub through: Option<String>,
    /// How it leads in from outside, if it does.
    #[serde(skip)]
    pub way_in: Option<Way>,
}

impl Reach {
    fn new(what: impl Into<String>, at: Option<Location>) -> Self {
        Self { what: what.into(), at, through: None, way_in: None }
    }
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
    /// A shortest chain of other rights that leads there all the same, one service after the other; empty when none does.
    pub chain: Vec<Reach>,
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

/// The ports that `port` of `to` means; nothing for any.
///
/// # Errors
///
/// [`ExplainError`] when one of the two does not exist.
pub fn asked(graph: &AllowGraph, to: &str, port: &str) -> Result<Option<Ports>, ExplainError> {
    ports(graph, &goal(graph, to)?, to, port)
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
    let start = place(graph, from)?;
    let goal = goal(graph, to)?;
    let ports = ports(graph, &goal, to, port)?;
    let shown = ports.map(|ports| port_text(graph, &goal, ports)).unwrap_or_default();
    let asked = Question { graph, start, goal, ports, from, to, port: &shown };
    let answer = asked.answer();
    Ok(Explanation { from: from.to_owned(), to: to.to_owned(), port: shown, answer })
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
            Goal::Peer => self.no(format!("nothing opens connections to a peer; {} opens them", self.to)),
            Goal::Disabled => self.no(format!("{} is switched off by `enabled = false`", self.to)),
            Goal::Inside(_) if self.from == self.to => {
                Answer::Yes(Reach::new(format!("{} always reaches itself", self.from), None))
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
            None if self.graph.exposes_nothing() => {
                self.no("every exposure is off: `[expose] all = \"off\"` is written".to_owned())
            }
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
            return Answer::Yes(Reach::new(what, outbound.at.clone()));
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
                Answer::Yes(Reach::new(what, Some(service.at.clone())))
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
        Answer::No(No {
            reason,
            may_reach: self.may_reach(),
            closest: self.closest(),
            breaks: self.breaks(),
            chain: self.chain(),
        })
    }

    fn may_reach(&self) -> Vec<Reach> {
        let Start::Inside(origin) = &self.start else {
            return self.exposures().map(target_reach).collect();
        };
        let edges = self.graph.edges_from(origin).iter().map(|edge| {
            let text = edge.to_string();
            let what = text.split_once(" -> ").map_or(text.as_str(), |(_, target)| target);
            Reach::new(what, Some(edge.at.clone()))
        });
        let words = self.service().into_iter().flat_map(|service| {
            let at = &service.outbound.at;
            words(&service.outbound).into_iter().map(|(_, what)| Reach::new(what, at.clone()))
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

    /// The invariants that break once the answer is yes; where no port was asked for, whichever of the target's it is.
    fn breaks(&self) -> Vec<Reach> {
        let ports: Vec<Ports> = match (self.ports, &self.goal) {
            (Some(ports), _) => vec![ports],
            (None, Goal::Inside(Target::Service(name))) => self
                .graph
                .service(name.as_str())
                .into_iter()
                .flat_map(|service| service.ports.values().copied())
                .collect(),
            // A way out is opened as a whole, and of the host any port is as good as another.
            (None, _) => Ports::new(Protocol::Tcp, 1, 1).into_iter().collect(),
        };
        let graphs: Vec<AllowGraph> = ports.into_iter().filter_map(|ports| self.with(ports)).collect();
        let broken =
            |never: &&Never| !graphs.is_empty() && graphs.iter().all(|graph| !never.breaches(graph).is_empty());
        let reach = |never: &Never| Reach::new(never_text(never), Some(never.at.clone()));
        self.graph.nevers().iter().filter(broken).map(reach).collect()
    }

    /// The graph in which the answer is yes; nothing where no line of a policy could say that.
    fn with(&self, ports: Ports) -> Option<AllowGraph> {
        let mut graph = self.graph.clone();
        let at = Location { file: String::new(), line: 0, column: 0 };
        match (&self.start, &self.goal) {
            (Start::Inside(from), Goal::Inside(to)) => {
                let (from, to) = (from.clone(), to.clone());
                let edge = Edge { from, to, ports, port_name: None, cause: Cause::Written, at };
                let place = graph.edges.partition_point(|other| other.key() < edge.key());
                graph.edges.insert(place, edge);
            }
            (Start::Inside(Origin::Service(name)), Goal::Wan | Goal::Lan) => {
                let service = graph.services.get_mut(name)?;
                service.outbound.direct |= matches!(self.goal, Goal::Wan);
                service.outbound.lan |= matches!(self.goal, Goal::Lan);
            }
            (start, Goal::Inside(Target::Service(service))) => {
                let way = match start {
                    Start::Lan => Way::Lan { external: 1, relay: None },
                    Start::Peer(peer) => Way::WireGuard { peers: [peer.clone()].into() },
                    Start::Peers => Way::WireGuard { peers: graph.peers.keys().cloned().collect() },
                    _ => Way::Port { external: 1, relay: None },
                };
                let named = self.graph.service(service.as_str())?.ports.iter().find(|(_, own)| **own == ports);
                let port_name = named.map(|(name, _)| name.clone()).or_else(|| PortName::from_str("new").ok())?;
                graph.exposures.push(Exposure { service: service.clone(), port_name, ports, way, at });
            }
            _ => return None,
        }
        Some(graph)
    }

    /// Other rights that lead there: what is refused here is no wall where this is not empty.
    fn chain(&self) -> Vec<Reach> {
        let from = match &self.start {
            Start::Inside(Origin::Host) => Node::Host,
            Start::Inside(Origin::Service(name)) => Node::Service(name.clone()),
            Start::Lan => Node::Lan,
            Start::Peer(name) => Node::Peer(name.clone()),
            Start::Peers => Node::Peers,
            Start::Wan => Node::Wan,
        };
        let to = match &self.goal {
            Goal::Inside(Target::Host) => Node::Host,
            Goal::Inside(Target::Service(name)) => Node::Service(name.clone()),
            Goal::Lan => Node::Lan,
            Goal::Wan => Node::Wan,
            Goal::Disabled | Goal::Metadata | Goal::Peer | Goal::Uplink => return Vec::new(),
        };
        let steps = reach::chain(self.graph, &from, &to);
        // One step is another port of the same target, and is told as what may be reached.
        if steps.len() < 2 {
            return Vec::new();
        }
        steps.into_iter().map(|step| Reach::new(step.what, Some(step.at))).collect()
    }
}

fn colon(to: &str, port: &str) -> String {
    if port.is_empty() { to.to_owned() } else { format!("{to}:{port}") }
}

fn edge_reach(edge: &Edge) -> Reach {
    let through = match &edge.cause {
        Cause::Written => None,
        Cause::Tag(tag) => Some(format!("connect.\"@{tag}\"")),
        Cause::Tor => Some("`tor` in `outbound` or `dns`".to_owned()),
    };
    Reach { what: edge.to_string(), at: Some(edge.at.clone()), through, way_in: None }
}

fn exposure_reach(exposure: &Exposure) -> Reach {
    let what = format!("{exposure}{}", reach::people(exposure));
    Reach { way_in: Some(exposure.way.clone()), ..Reach::new(what, Some(exposure.at.clone())) }
}

/// Each way out: `wan` or `lan`, and the same with prefix and ports.
pub(crate) fn words(outbound: &Outbound) -> Vec<(&'static str, String)> {
    let whole = [("wan", outbound.direct), ("lan", outbound.lan)];
    let whole = whole.into_iter().filter(|(_, open)| *open).map(|(word, _)| (word, word.to_owned()));
    let wan = outbound.direct_only.iter().map(|ports| ("wan", format!("wan {ports}")));
    let lan = outbound.lan_only.iter().map(|(prefix, ports)| ("lan", format!("{prefix} {ports}")));
    whole.chain(wan).chain(lan).collect()
}

fn target_reach(exposure: &Exposure) -> Reach {
    let what = format!("{}:{} by {}", exposure.service, exposure.port_name, exposure.way.word());
    Reach::new(what, Some(exposure.at.clone()))
}

fn never_text(never: &Never) -> String {
    match &never.why {
        Some(why) => format!("never \"{}\"", why.escape_debug()),
        None => "a never".to_owned(),
    }
}

impl Explanation {
    /// Whether the connection is allowed.
    pub fn is_yes(&self) -> bool {
        matches!(self.answer, Answer::Yes(_))
    }
}
