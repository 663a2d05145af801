//! Which connections `nsctl verify` tries, and what each ought to meet.
//!
//! Every pair of places, over both families: the declared ports, the same numbers of the other protocol, an undeclared
//! port; link-local addresses; every address of the host; and, for what lies outside, the local network, the internet
//! and the metadata address.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use netns_policy::address::Addresses;
use netns_policy::graph::{AllowGraph, Origin, Service, Target};
use netns_policy::port::Protocol;
use netns_policy::topology::Place as Wired;
use thiserror::Error;

use crate::kernel::netns::Netns;
use crate::orchestrator::{Error, Orchestrator, Planned};
use crate::verify::{self, Expected, Options, Place, Probe, Report, VerifyError};

/// A port that no policy of ours is likely to declare; where one does, it is probed as declared.
pub(crate) const UNDECLARED: u16 = 65000;

/// The link-local address that a wire's Ethernet address would give (RFC 4291, appendix A): nobody has it.
pub(crate) const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 1);

/// Cloud metadata.
pub(crate) const METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

/// The place of everything outside. One for all of it: a namespace has one listener for a port, and whoever is asked at
/// another address there would answer with another's name. No service can be called so.
pub(crate) const OUTSIDE: &str = "the outside";

/// What stands for a network outside.
#[derive(Debug, Default)]
pub struct Outside {
    /// Addresses that stand for the internet.
    pub wan: Vec<IpAddr>,
    /// Addresses that stand for the local network.
    pub lan: Vec<IpAddr>,
    /// The namespace that holds these addresses, where they are made for the occasion. Without one, what ought to be
    /// open is not probed but reported as unproven, unless the addresses were named by the caller.
    pub netns: Option<Netns>,
}

/// Why nothing could be verified.
#[derive(Debug, Error)]
pub enum MatrixError {
    /// There is nothing to verify, or it cannot be read.
    #[error(transparent)]
    Orchestrator(#[from] Box<Error>),
    /// What exists is not what the policy says.
    #[error("{what}; apply the policy first")]
    NotApplied {
        /// The first difference.
        what: String,
    },
    /// A namespace cannot be opened.
    #[error("cannot open the namespace {netns}")]
    Netns {
        /// Its name.
        netns: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The prober failed.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// Really connects every pair and compares with the graph. `progress` is told how many of how many probes are made.
///
/// # Errors
///
/// See [`MatrixError`]. A connection that is not as it ought to be is no error but a mismatch in the report.
pub fn verify(
    nsctl: &Orchestrator,
    outside: &Outside,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Report, MatrixError> {
    let planned = nsctl.look().map_err(Box::new)?;
    is_applied(&planned)?;
    compare(&planned, outside, &nsctl.options().netns, progress)
}

/// What is foreign is told by `status`; it is no reason not to look.
pub(crate) fn is_applied(planned: &Planned) -> Result<(), MatrixError> {
    match crate::drift::undone(planned).first() {
        Some(what) => Err(MatrixError::NotApplied { what: what.to_string() }),
        None => Ok(()),
    }
}

/// Really connects every pair that `planned` knows, whatever has become of the kernel since it was looked at. `pins` is
/// where namespaces are pinned.
///
/// # Errors
///
/// As [`verify()`], but for [`MatrixError::NotApplied`].
pub fn compare(
    planned: &Planned,
    outside: &Outside,
    pins: &Path,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Report, MatrixError> {
    let all = Probes { planned, outside }.all();
    let places = places(planned, outside, pins)?;
    Ok(verify::run(&places, &all, &Options::default(), progress)?)
}

/// Where probes start and arrive: every service, the host, and what is outside.
pub(crate) fn places(planned: &Planned, outside: &Outside, pins: &Path) -> Result<Vec<Place>, MatrixError> {
    let open = |netns: &str| {
        let opened = Netns::open(&pins.join(netns));
        opened.map_err(|source| MatrixError::Netns { netns: netns.to_owned(), source })
    };
    let mut places = Vec::new();
    for wire in planned.desired.wires.values() {
        if let (Wired::Service(name), Some(netns)) = (&wire.place, &wire.netns) {
            let addresses = wire.addresses.iter().collect();
            places.push(Place { name: name.to_string(), netns: open(netns)?, addresses, link: "net0".into() });
        }
    }
    let own = |source| MatrixError::Netns { netns: "of the host".into(), source };
    let host = Netns::current().map_err(own)?;
    let link = Wired::Host.inner_link(&planned.desired.network).to_string();
    let addresses: Vec<IpAddr> = host_addresses(planned).into_iter().collect();
    places.push(Place { name: "host".into(), netns: host, addresses, link });
    // One place for all that is outside: two in the same namespace would take each other's ports for a stranger's.
    // Without a stand-in the listeners stand where nobody comes: only what is closed is probed then.
    let netns = match &outside.netns {
        Some(netns) => netns.try_clone(),
        None => Netns::unpinned(),
    };
    places.push(Place { name: OUTSIDE.into(), netns: netns.map_err(own)?, addresses: vec![], link: "lo".into() });
    Ok(places)
}

/// Every address of the host, those on its wire and on its leg too.
pub(crate) fn host_addresses(planned: &Planned) -> BTreeSet<IpAddr> {
    let wire = planned.desired.wires.get(&Wired::Host).map(|wire| wire.addresses);
    let wire = wire.iter().flat_map(|addresses| addresses.iter().collect::<Vec<_>>());
    let leg = planned.desired.leg.iter().flat_map(|leg| leg.host.iter().collect::<Vec<_>>());
    planned.observed.host.addresses.iter().copied().chain(wire).chain(leg).collect()
}

struct Probes<'a> {
    planned: &'a Planned,
    outside: &'a Outside,
}

impl Probes<'_> {
    fn graph(&self) -> &AllowGraph {
        &self.planned.checked.graph
    }

    fn all(&self) -> Vec<Probe> {
        let mut probes = Vec::new();
        for from in self.graph().services() {
            let origin = Origin::Service(from.name.clone());
            self.to_services(&mut probes, from.name.as_str(), &origin);
            self.to_host(&mut probes, from, &origin);
            self.to_outside(&mut probes, from);
        }
        self.to_services(&mut probes, "host", &Origin::Host);
        if self.outside.netns.is_some() {
            self.outside_in(&mut probes);
        }
        probes
    }

    fn to_services(&self, probes: &mut Vec<Probe>, name: &str, from: &Origin) {
        for to in self.graph().services().filter(|to| *from != Origin::Service(to.name.clone())) {
            let target = Target::Service(to.name.clone());
            let Some(addresses) = self.planned.addresses.service(to.name.as_str()) else { continue };
            for (protocol, port) in ports(to) {
                let open = self.graph().allows(from, &target, protocol, port).is_some();
                probes.extend(addresses.iter().map(|address| probe(name, to, address, protocol, port, open)));
            }
            if matches!(from, Origin::Service(_)) {
                let closed = |protocol| probe(name, to, LINK_LOCAL.into(), protocol, UNDECLARED, false);
                probes.extend([Protocol::Tcp, Protocol::Udp].map(closed));
            }
        }
    }

    fn to_host(&self, probes: &mut Vec<Probe>, from: &Service, origin: &Origin) {
        let accepted = self.graph().edges().iter().filter(|edge| edge.to == Target::Host);
        let mut ports: BTreeSet<(Protocol, u16)> = accepted
            .flat_map(|edge| [Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, edge.ports.lo())))
            .collect();
        ports.extend([(Protocol::Tcp, UNDECLARED), (Protocol::Udp, UNDECLARED)]);
        let wire = self.planned.desired.wires.get(&Wired::Host).map(|wire| wire.addresses);
        let on_wire = |address: IpAddr| wire.is_some_and(|own: Addresses| own.iter().any(|own| own == address));
        for address in host_addresses(self.planned) {
            for (protocol, port) in &ports {
                // The host answers its services on its own wire alone.
                let allowed = self.graph().allows(origin, &Target::Host, *protocol, *port).is_some();
                let open = on_wire(address) && allowed;
                probes.push(raw(from.name.as_str(), "host", address, *protocol, *port, open));
            }
        }
    }

    fn to_outside(&self, probes: &mut Vec<Probe>, from: &Service) {
        let known = self.outside.netns.is_some();
        let or = |given: &[IpAddr], else_: Vec<IpAddr>| if given.is_empty() { else_ } else { given.to_vec() };
        let wan = or(&self.outside.wan, someone_on_wan());
        let lan = or(&self.outside.lan, someone_on_lan(self.planned));
        let named = |given: &[IpAddr]| known || !given.is_empty();
        let mut reach = |addresses: &[IpAddr], provable: bool, open: &dyn Fn(IpAddr, Protocol) -> bool| {
            for address in addresses.iter().copied().filter(|address| self.has_family(*address)) {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let open = open(address, protocol);
                    if provable || !open {
                        probes.push(raw(from.name.as_str(), OUTSIDE, address, protocol, OUTSIDE_PORT, open));
                    }
                }
            }
        };
        let out = &from.outbound;
        let direct = |protocol| out.direct || out.direct_only.iter().any(|ports| ports.covers(protocol, OUTSIDE_PORT));
        reach(&wan, named(&self.outside.wan), &|_, protocol| direct(protocol));
        reach(&lan, named(&self.outside.lan), &|address, protocol| {
            let network = self.graph().network().lan.iter().any(|prefix| prefix.contains(address));
            let only =
                out.lan_only.iter().any(|(p, ports)| p.contains(address) && ports.covers(protocol, OUTSIDE_PORT));
            (out.lan && network) || only
        });
        reach(&[METADATA], true, &|_, _| false);
    }

    /// Nothing that stands outside reaches a service or the host's wire: no exposure is served yet.
    fn outside_in(&self, probes: &mut Vec<Probe>) {
        for to in self.graph().services() {
            let Some(addresses) = self.planned.addresses.service(to.name.as_str()) else { continue };
            for (protocol, port) in ports(to) {
                probes.extend(addresses.iter().map(|address| probe(OUTSIDE, to, address, protocol, port, false)));
            }
        }
    }

    fn has_family(&self, address: IpAddr) -> bool {
        address.is_ipv4() || self.graph().network().pool6.is_some()
    }
}

/// The port that is probed outside.
pub(crate) const OUTSIDE_PORT: u16 = 443;

/// Addresses of the internet at which nobody is (RFC 5737, RFC 3849).
pub(crate) fn someone_on_wan() -> Vec<IpAddr> {
    ["203.0.113.10", "2001:db8:ffff::10"].iter().filter_map(|text| text.parse().ok()).collect()
}

/// An address of each prefix of the local network that is not the host's.
pub(crate) fn someone_on_lan(planned: &Planned) -> Vec<IpAddr> {
    let own = &planned.observed.host.addresses;
    let prefixes = planned.checked.graph.network().lan.iter();
    prefixes.filter_map(|prefix| prefix.iter().skip(1).find(|address| !own.contains(address))).collect()
}

/// What is probed at a service: both ends of each declared range, the same numbers of the other protocol, and a port
/// beside.
fn ports(to: &Service) -> BTreeSet<(Protocol, u16)> {
    let numbers: BTreeSet<u16> = to.ports.values().flat_map(|ports| [ports.lo(), ports.hi()]).collect();
    let all = numbers.into_iter().chain([UNDECLARED]);
    all.flat_map(|port| [(Protocol::Tcp, port), (Protocol::Udp, port)]).collect()
}

fn probe(from: &str, to: &Service, address: IpAddr, protocol: Protocol, port: u16, open: bool) -> Probe {
    raw(from, to.name.as_str(), address, protocol, port, open)
}

fn raw(from: &str, to: &str, address: IpAddr, protocol: Protocol, port: u16, open: bool) -> Probe {
    let expected = if open { Expected::Open } else { Expected::Closed };
    Probe { from: from.to_owned(), to: to.to_owned(), address, protocol, port, expected }
}
