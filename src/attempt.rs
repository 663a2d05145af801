//! One real connection from where a service stands, and what became of it: `nsctl why --live`.
//!
//! A refusal looks alike whoever refuses. So the elements and rules that would have counted the attempt are read before
//! and after it, and connection tracking of both ends is asked for this very attempt, by its source port.
//!
//! # Invariants
//!
//! - One attempt a family, of [`PATIENCE`] at most. A service that is reached sees a connection that is reset at once, or
//!   a datagram of six bytes; a resolver sees one question for the root.
//! - A verdict rests on something that was read. What nothing explains is [`Verdict::Lost`], with whose rules stand there.
//! - Nothing is changed: no rule, no link, no connection of others.

mod dial;
mod evidence;
mod judge;
mod names;
pub(crate) mod stranger;

use std::net::IpAddr;
use std::time::Duration;

use netns_policy::graph::{Edge, Origin, Service, Target};
use netns_policy::port::{Ports, Protocol};
use netns_policy::topology::Place;
use thiserror::Error;

pub use dial::{Met, PATIENCE};
pub use judge::Verdict;
pub use names::{Lookup, Resolver};
pub use stranger::Stranger;

use crate::orchestrator::{self, Orchestrator, Planned};
use evidence::Scene;

/// A question: `FROM TO:PORT`, looked up.
#[derive(Clone, Debug)]
pub struct Question {
    /// Who opens.
    pub from: String,
    /// Who is reached: a service, `host`, `wan`, `lan`, `metadata` or `uplink`.
    pub to: String,
    /// On which port; nothing for the only one there is.
    pub ports: Option<Ports>,
    /// The address that stands for `wan` or `lan`.
    pub address: Option<IpAddr>,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Who opened.
    pub from: String,
    /// Who was to be reached.
    pub to: String,
    /// Over which protocol.
    pub protocol: Protocol,
    /// To which port.
    pub port: u16,
    /// Whether the policy allows it.
    pub allowed: bool,
    /// Whether the caller knows the name of the target.
    pub lookup: Option<Lookup>,
    /// One for each address of the target.
    pub tries: Vec<Try>,
    /// What of the kernel is not as the policy says.
    pub drift: Vec<String>,
    /// Chains of others on the way.
    pub strangers: Vec<Stranger>,
}

impl Attempt {
    /// Whether it leads to what lies outside.
    pub fn is_outside(&self) -> bool {
        ["lan", "metadata", "uplink", "wan"].contains(&self.to.as_str())
    }
}

/// One attempt.
#[derive(Clone, Debug)]
pub struct Try {
    /// The address that was dialled.
    pub address: IpAddr,
    /// What the caller met.
    pub met: Met,
    /// How long that took.
    pub elapsed: Duration,
    /// What it comes to.
    pub verdict: Verdict,
}

/// Why nothing was tried.
#[derive(Debug, Error)]
pub enum AttemptError {
    /// What is asked cannot be tried from this machine.
    #[error("{message}")]
    Usage {
        /// Why.
        message: String,
        /// What to ask for instead.
        help: Option<String>,
    },
    /// The policy or the kernel.
    #[error(transparent)]
    Orchestrator(#[from] Box<orchestrator::Error>),
}

fn usage<T>(message: impl Into<String>, help: Option<String>) -> Result<T, AttemptError> {
    Err(AttemptError::Usage { message: message.into(), help })
}

/// Tries it.
///
/// # Errors
///
/// [`AttemptError`]. That nothing is reached is no error but a [`Verdict`].
pub fn attempt(nsctl: &Orchestrator, question: &Question) -> Result<Attempt, AttemptError> {
    let planned = nsctl.look().map_err(Box::new)?;
    let linux = nsctl.kernel(&planned.desired.network).map_err(Box::new)?;
    let (from, to) = (caller(&planned, &question.from)?, called(&planned, &question.to)?);
    let ports = ports(&planned, question, &to)?;
    let (protocol, port) = (ports.protocol(), ports.lo());
    let addresses = addresses(&planned, question, &to)?;
    let allowed = is_allowed(&planned, question, &from, &to, (protocol, port));
    let scene = Scene { linux: &linux, planned: &planned, from, to, protocol, port, allowed };
    let strangers = stranger::on_the_way(&scene);
    let lookup = names::lookup(&scene, &question.to);
    let tries = addresses.into_iter().map(|address| scene.attempt(address, &strangers)).collect();
    let drift = crate::drift::undone(&planned).iter().map(ToString::to_string).collect();
    let (from, to) = (question.from.clone(), question.to.clone());
    Ok(Attempt { from, to, protocol, port, allowed, lookup, tries, drift, strangers })
}

/// How often the lock of `from` has refused exactly this, as far back as it remembers: an element goes a day after its
/// last refusal. Nothing where that cannot be read, or where the lock keeps no such list, as the host's.
pub fn refusals(nsctl: &Orchestrator, planned: &Planned, question: &Question) -> Option<u64> {
    let from = Place::Service(planned.checked.graph.service(&question.from)?.name.clone());
    let to = called(planned, &question.to).ok().filter(|to| *to != Place::Uplink)?;
    let linux = nsctl.kernel(&planned.desired.network).ok()?;
    let addresses: Vec<IpAddr> = planned.addresses.of(&to)?.iter().collect();
    evidence::refusals(&linux, &from, &addresses, question.ports)
}

/// Where the attempt starts.
fn caller(planned: &Planned, name: &str) -> Result<Place, AttemptError> {
    match service(planned, name)? {
        Some(service) => Ok(Place::Service(service.name.clone())),
        None if name == "host" => Ok(Place::Host),
        None => usage(
            format!("{name} stands outside, and from there this machine cannot try"),
            Some("a live attempt starts in a service or on the host".into()),
        ),
    }
}

/// Whose wire it leads to: what lies outside is behind the uplink.
fn called(planned: &Planned, name: &str) -> Result<Place, AttemptError> {
    match service(planned, name)? {
        Some(service) => Ok(Place::Service(service.name.clone())),
        None if name == "host" => Ok(Place::Host),
        None if ["lan", "metadata", "uplink", "wan"].contains(&name) => Ok(Place::Uplink),
        None => usage(format!("{name} stands outside, and nothing is opened to it"), None),
    }
}

/// The service of that name, if there is one; who is switched off has nothing to try.
fn service<'a>(planned: &'a Planned, name: &str) -> Result<Option<&'a Service>, AttemptError> {
    let graph = &planned.checked.graph;
    if graph.disabled().any(|disabled| disabled.as_str() == name) {
        return usage(format!("{name} is switched off by `enabled = false`"), None);
    }
    Ok(graph.service(name))
}

/// The port that was asked for; else the only one there is.
fn ports(planned: &Planned, question: &Question, to: &Place) -> Result<Ports, AttemptError> {
    if let Some(ports) = question.ports {
        return Ok(ports);
    }
    let single = |protocol, port| Ports::new(protocol, port, port).expect("the constants are ports");
    match (question.to.as_str(), to) {
        ("uplink", Place::Uplink) => return Ok(single(Protocol::Udp, 53)),
        ("metadata", Place::Uplink) => return Ok(single(Protocol::Tcp, 80)),
        ("lan" | "wan", Place::Uplink) => return Ok(single(Protocol::Tcp, 443)),
        _ => {}
    }
    let graph = &planned.checked.graph;
    let declared: Vec<(String, Ports)> = match graph.service(&question.to) {
        Some(service) => service.ports.iter().map(|(name, ports)| (name.to_string(), *ports)).collect(),
        None => Vec::new(),
    };
    let accepted = graph.edges().iter().filter(|edge| edge.to == Target::Host && *to == Place::Host);
    let accepted = accepted.map(|edge| {
        let name = edge.port_name.as_ref().map_or_else(|| edge.ports.to_string(), ToString::to_string);
        (name, edge.ports)
    });
    let mut all: Vec<(String, Ports)> = declared.into_iter().chain(accepted).collect();
    all.dedup();
    match all.as_slice() {
        [(_, only)] => Ok(*only),
        [] => usage(format!("{} has no port of its own", question.to), Some(format!("{}:PORT", question.to))),
        several => {
            let names: Vec<_> = several.iter().map(|(name, _)| format!("{}:{name}", question.to)).collect();
            usage("which port? one connection goes to one port", Some(names.join(", ")))
        }
    }
}

fn addresses(planned: &Planned, question: &Question, to: &Place) -> Result<Vec<IpAddr>, AttemptError> {
    let own = |addresses: Option<netns_policy::address::Addresses>| -> Vec<IpAddr> {
        addresses.iter().flat_map(|addresses| addresses.iter().collect::<Vec<_>>()).collect()
    };
    match (to, question.to.as_str(), question.address) {
        (Place::Uplink, "lan" | "wan", Some(address)) => Ok(vec![address]),
        (Place::Uplink, word @ ("lan" | "wan"), None) => {
            usage(format!("{word} has many addresses"), Some("name one with --address".into()))
        }
        (.., Some(_)) => usage(format!("{} has an address already", question.to), Some("leave --address out".into())),
        (Place::Uplink, "metadata", None) => Ok(vec![crate::matrix::METADATA]),
        (Place::Uplink, _, None) => Ok(own(Some(planned.addresses.resolver()))),
        (place, _, None) => Ok(own(planned.addresses.of(place))),
    }
}

fn is_allowed(
    planned: &Planned,
    question: &Question,
    from: &Place,
    to: &Place,
    (protocol, port): (Protocol, u16),
) -> bool {
    let graph = &planned.checked.graph;
    let origin = match from {
        Place::Service(name) => Origin::Service(name.clone()),
        _ => Origin::Host,
    };
    let target = match to {
        Place::Service(name) => Target::Service(name.clone()),
        Place::Host => Target::Host,
        // Nobody can ask for it: it has no name of its own.
        Place::Relay => return false,
        Place::Uplink => {
            // The explanation knows every way out.
            let port = format!("{protocol}:{port}");
            let said = netns_policy::explain::explain(graph, &question.from, &question.to, &port);
            return said.is_ok_and(|said| said.is_yes());
        }
    };
    from == to || graph.allows(&origin, &target, protocol, port).map(Edge::key).is_some()
}
