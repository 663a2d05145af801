//! `[[test]]`s shown by real connections: what `nsctl test --live` tries.
//!
//! # Invariants
//!
//! - Each claim of a `[[test]]` is tried, or the reason why it cannot be is in [`Shown::NotTried`]. None counts as shown
//!   because nobody looked.
//! - What is tried is all that the claim says: both families, both ends of a range, every port where none is named.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netns_policy::graph::{Edge, Origin, Target};
use netns_policy::port::{Ports, Protocol};
use netns_policy::trial::{Ask, Goal, Trial};

use crate::matrix::{self, MatrixError, Outside};
use crate::orchestrator::{Orchestrator, Planned};
use crate::verify::{self, Expected, Options, Outcome, Probe};

/// What became of one claim.
#[derive(Clone, Debug)]
pub enum Shown {
    /// These connections were tried.
    Tried(Vec<Tried>),
    /// None could be.
    NotTried(String),
}

/// A connection that was tried.
#[derive(Clone, Debug)]
pub struct Tried {
    /// Which.
    pub probe: Probe,
    /// What it met.
    pub seen: Outcome,
    /// Whether that is what ought to be.
    pub verdict: Verdict,
}

/// What a connection shows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is as claimed.
    AsClaimed,
    /// Nothing, and why.
    Nothing(String),
    /// The contrary, with what else is known of it.
    Contrary(Option<String>),
}

impl Shown {
    /// The connections that showed the contrary.
    pub fn contrary(&self) -> impl Iterator<Item = &Tried> {
        let tried = match self {
            Self::Tried(tried) => tried.as_slice(),
            Self::NotTried(_) => &[],
        };
        tried.iter().filter(|tried| matches!(tried.verdict, Verdict::Contrary(_)))
    }

    /// Why it is not shown, though nothing showed the contrary.
    pub fn unproven(&self) -> Option<&str> {
        match self {
            Self::NotTried(why) => Some(why),
            Self::Tried(tried) => tried.iter().find_map(|tried| match &tried.verdict {
                Verdict::Nothing(why) => Some(why.as_str()),
                _ => None,
            }),
        }
    }
}

/// Tries the claims of `trials`, which have to be those of the applied policy: for each trial what was shown of each of
/// its claims, in their order. A `[[never]]` has none that can be tried: it is about all ports of all others, as
/// `nsctl verify` is.
///
/// # Errors
///
/// As [`matrix::verify`].
pub fn live(nsctl: &Orchestrator, outside: &Outside, trials: &[Trial]) -> Result<Vec<Vec<Shown>>, MatrixError> {
    let planned = nsctl.look().map_err(Box::new)?;
    matrix::is_applied(&planned)?;
    let asked = Asked { planned: &planned, outside };
    let wanted: Vec<Vec<Result<Vec<Probe>, String>>> = trials
        .iter()
        .map(|trial| trial.claims.iter().filter_map(|claim| claim.asks.as_ref()).map(|ask| asked.probes(ask)).collect())
        .collect();
    let probes: Vec<Probe> = wanted.iter().flatten().flatten().flatten().cloned().collect();
    let places = matrix::places(&planned, outside, &nsctl.options().netns)?;
    let report = verify::run(&places, &probes, &Options::default(), &|_, _| {})?;
    let mut outcomes = report.outcomes.iter();
    let mut tried = |probe: &Probe| {
        let seen = outcomes.next().cloned().unwrap_or(Outcome::Silent);
        let contrary = report.mismatches.iter().find(|one| one.probe == *probe);
        let nothing = report.unproven.iter().find(|one| one.probe == *probe);
        let verdict = match (contrary, nothing) {
            (Some(mismatch), _) => Verdict::Contrary(mismatch.note.clone()),
            (None, Some(unproven)) => Verdict::Nothing(unproven.reason.clone()),
            (None, None) => Verdict::AsClaimed,
        };
        Tried { probe: probe.clone(), seen, verdict }
    };
    let mut shown = |wanted: &Result<Vec<Probe>, String>| match wanted {
        Ok(probes) if probes.is_empty() => Shown::NotTried("there is no port to be tried".into()),
        Ok(probes) => Shown::Tried(probes.iter().map(&mut tried).collect()),
        Err(why) => Shown::NotTried(why.clone()),
    };
    Ok(wanted.iter().map(|claims| claims.iter().map(&mut shown).collect()).collect())
}

struct Asked<'a> {
    planned: &'a Planned,
    outside: &'a Outside,
}

impl Asked<'_> {
    /// The connections that show what is asked, or why there are none.
    fn probes(&self, ask: &Ask) -> Result<Vec<Probe>, String> {
        let Some(from) = &ask.from else {
            return Err("it would come from outside, where this machine is not".into());
        };
        let graph = &self.planned.checked.graph;
        if let Origin::Service(name) = from
            && graph.service(name.as_str()).is_none()
        {
            return Err(format!("{name} is switched off, and has no namespace"));
        }
        let (place, addresses) = match &ask.to {
            Goal::Inside(Target::Service(name)) => {
                let addresses = self.planned.addresses.service(name.as_str());
                let addresses = addresses.filter(|_| graph.service(name.as_str()).is_some());
                let addresses = addresses.ok_or_else(|| format!("{name} is switched off, and has no address"))?;
                (name.to_string(), addresses.iter().collect())
            }
            Goal::Inside(Target::Host) => ("host".to_owned(), self.host(ask.can)?),
            Goal::LinkLocal => return self.link_local(from),
            Goal::Metadata => (matrix::OUTSIDE.to_owned(), vec![matrix::METADATA]),
            Goal::Lan => (matrix::OUTSIDE.to_owned(), self.someone(ask.can, &self.outside.lan, "--lan")?),
            Goal::Wan => (matrix::OUTSIDE.to_owned(), self.someone(ask.can, &self.outside.wan, "--wan")?),
        };
        let expected = if ask.can { Expected::Open } else { Expected::Closed };
        let ports = self.ports(from, ask);
        let probe = |address: IpAddr, (protocol, port)| Probe {
            from: from.to_string(),
            to: place.clone(),
            address,
            protocol,
            port,
            expected,
        };
        Ok(addresses.into_iter().flat_map(|address| ports.iter().map(move |port| probe(address, *port))).collect())
    }

    /// What is open of the host is open on its wire; closed has to be all of it.
    fn host(&self, can: bool) -> Result<Vec<IpAddr>, String> {
        if !can {
            let all: Vec<IpAddr> = matrix::host_addresses(self.planned).into_iter().collect();
            return if all.is_empty() { Err("the host has no address".into()) } else { Ok(all) };
        }
        let wire = self.planned.desired.wires.get(&netns_policy::topology::Place::Host);
        wire.map(|wire| wire.addresses.iter().collect()).ok_or_else(|| "the host has no wire".into())
    }

    /// Addresses outside: those that were named; where it has to be closed anybody's will do.
    fn someone(&self, can: bool, named: &[IpAddr], option: &str) -> Result<Vec<IpAddr>, String> {
        let has_ipv6 = self.planned.checked.graph.network().pool6.is_some();
        let spoken = |address: &IpAddr| address.is_ipv4() || has_ipv6;
        if named.is_empty() && can {
            return Err(format!("it takes somebody outside who answers: name an address with {option}"));
        }
        let lan = option == "--lan";
        let anybody = || if lan { matrix::someone_on_lan(self.planned) } else { matrix::someone_on_wan() };
        let all = if named.is_empty() { anybody() } else { named.to_vec() };
        let all: Vec<IpAddr> = all.into_iter().filter(spoken).collect();
        if all.is_empty() {
            Err(format!("there is nobody to try it with: name an address with {option}"))
        } else {
            Ok(all)
        }
    }

    fn link_local(&self, from: &Origin) -> Result<Vec<Probe>, String> {
        let other = self.planned.checked.graph.services().find(|service| service.name.as_str() != from.to_string());
        let other = other.ok_or("there is no other service")?;
        let probe = |protocol| Probe {
            from: from.to_string(),
            to: other.name.to_string(),
            address: matrix::LINK_LOCAL.into(),
            protocol,
            port: matrix::UNDECLARED,
            expected: Expected::Closed,
        };
        Ok([Protocol::Tcp, Protocol::Udp].map(probe).into())
    }

    fn ports(&self, from: &Origin, ask: &Ask) -> BTreeSet<(Protocol, u16)> {
        let ends = |ports: Ports| [ports.lo(), ports.hi()].map(|port| (ports.protocol(), port));
        let undeclared = [Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, matrix::UNDECLARED));
        let graph = &self.planned.checked.graph;
        match (&ask.to, ask.ports, ask.can) {
            // Of what was asked for, what there is an edge to: the graph holds it already.
            (Goal::Inside(target), asked, true) => {
                let meets = |edge: &&Edge| edge.to == *target && asked.is_none_or(|asked| asked.overlaps(&edge.ports));
                let edges = graph.edges_from(from).iter().filter(meets);
                edges.flat_map(|edge| ends(asked.map_or(edge.ports, |asked| both(asked, edge.ports)))).collect()
            }
            (Goal::Inside(_), Some(asked), false) => ends(asked).into(),
            (Goal::Inside(target), None, false) => {
                let declared = match target {
                    Target::Service(name) => graph.service(name.as_str()),
                    Target::Host => None,
                };
                let declared = declared.into_iter().flat_map(|service| service.ports.values().copied());
                let accepted = graph.edges().iter().filter(|edge| edge.to == *target).map(|edge| edge.ports);
                declared.chain(accepted).flat_map(ends).chain(undeclared).collect()
            }
            (Goal::Wan | Goal::Lan, _, true) => self.way_out(from, &ask.to).into_iter().collect(),
            _ => [Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, matrix::OUTSIDE_PORT)).into(),
        }
    }

    /// A port that a way out is open for.
    fn way_out(&self, from: &Origin, to: &Goal) -> Option<(Protocol, u16)> {
        let Origin::Service(name) = from else { return None };
        let outbound = &self.planned.checked.graph.service(name.as_str())?.outbound;
        let (whole, only) = match to {
            Goal::Wan => (outbound.direct, outbound.direct_only.first().copied()),
            _ => (outbound.lan, outbound.lan_only.first().map(|(_, ports)| *ports)),
        };
        match (whole, only) {
            (true, _) => Some((Protocol::Tcp, matrix::OUTSIDE_PORT)),
            (false, only) => only.map(|ports| (ports.protocol(), ports.lo())),
        }
    }
}

/// What is in both, which overlap.
fn both(a: Ports, b: Ports) -> Ports {
    let (lo, hi) = (a.lo().max(b.lo()), a.hi().min(b.hi()));
    Ports::new(a.protocol(), lo, hi).unwrap_or(b)
}
