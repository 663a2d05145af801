//! Which open connections end when one policy follows another: those that lost their right, and no others.

use std::net::IpAddr;

use drawn::{Made, Policy};
use netns_policy::address::{AddressBook, AddressPlan};
use netns_policy::cut::{Cuts, Opening};
use netns_policy::desired::Desired;
use netns_policy::exposure::Way;
use netns_policy::graph::{AllowGraph, Dns, Origin, Target};
use netns_policy::name::ServiceName;
use netns_policy::network::HostNetwork;
use netns_policy::observed::Observed;
use netns_policy::port::{Ports, Protocol};
use netns_policy::ruleset::compile::Capabilities;
use netns_policy::ruleset::delta::Delta;
use netns_policy::ruleset::expect::outside::Premises;
use netns_policy::topology::Place;
use proptest::prelude::*;

#[allow(dead_code, reason = "other tests use the rest of it")]
mod drawn;

/// A policy in force.
struct Generation {
    graph: AllowGraph,
    addresses: AddressPlan,
    desired: Desired,
    host: HostNetwork,
}

impl Generation {
    fn new(policy: &Policy, book: &AddressBook) -> Self {
        let (graph, host) = (drawn::graph(&policy.text()), drawn::host());
        let addresses = AddressPlan::assign(&graph, book, 0, false).unwrap();
        let observed = Observed { host: host.clone(), ..Observed::default() };
        let (desired, _) = Desired::new(&graph, &addresses, &observed, Capabilities::default(), 0);
        Self { graph, addresses, desired, host }
    }

    /// Whose address this is.
    fn owner(&self, address: IpAddr) -> Option<Place> {
        let places = self.graph.services().map(|service| Place::Service(service.name.clone()));
        let mut places = places.chain([Place::Host, Place::Relay]);
        places.find(|place| self.addresses.of(place).is_some_and(|own| own.iter().any(|own| own == address)))
    }

    /// Whether a connection that opens so at `place` is allowed, by the policy alone.
    fn allows(&self, place: &Place, opening: &Opening) -> bool {
        let Some(from) = self.owner(opening.from) else { return self.enters(place, opening) };
        let ends = [Some(&from), self.owner(opening.to).as_ref()].map(|end| end.cloned());
        match ends {
            [Some(Place::Relay), Some(Place::Service(to))]
                if [&Place::Relay, &Place::Service(to.clone())].contains(&place) =>
            {
                let mut all = self.graph.exposures().iter().filter(|exposure| exposure.way.relay().is_some());
                all.any(|exposure| exposure.service == to && covers(exposure.ports, opening.protocol, opening.port))
            }
            [Some(from), Some(to)] if [&from, &to].contains(&place) => self.edge(&from, &to, opening),
            [Some(Place::Service(name)), None] if *place == Place::Uplink || *place == from => {
                self.leaves(&name, opening)
            }
            _ => false,
        }
    }

    /// Whether somebody outside may come in so: past the host to the gateway's end of the leg, past the gateway to the
    /// service or the relay.
    fn enters(&self, place: &Place, opening: &Opening) -> bool {
        let lan = self.graph.network().lan.iter().any(|prefix| prefix.contains(opening.from));
        let pooled = match opening.from {
            IpAddr::V4(from) => self.addresses.pool4().contains(from),
            IpAddr::V6(from) => self.addresses.pool6().is_some_and(|pool| pool.contains(from)),
        };
        self.graph.exposures().iter().any(|exposure| {
            let (Way::Lan { external, .. } | Way::Port { external, .. }) = exposure.way else { return false };
            let service = Place::Service(exposure.service.clone());
            let relayed = exposure.way.relay().is_some();
            let inside = if relayed { (Place::Relay, external) } else { (service, exposure.ports.lo()) };
            let (addresses, port) = match place {
                Place::Host => (self.addresses.leg_gateway(), external),
                Place::Uplink => (self.addresses.of(&inside.0).unwrap(), inside.1),
                place if *place == inside.0 => (self.addresses.of(place).unwrap(), inside.1),
                _ => return false,
            };
            let may_come = lan || matches!(exposure.way, Way::Port { .. });
            let reached = addresses.iter().any(|own| own == opening.server.0) && port == opening.server.1;
            !pooled && may_come && reached && exposure.ports.protocol().number() == opening.protocol
        })
    }

    fn edge(&self, from: &Place, to: &Place, opening: &Opening) -> bool {
        let between = self.graph.edges().iter().filter(|e| drawn::from(&e.from) == *from && drawn::to(&e.to) == *to);
        let mut ports = between.map(|edge| edge.ports);
        match opening.protocol {
            1 | 58 => ports.next().is_some(),
            number => ports.any(|p| p.protocol().number() == number && (p.lo()..=p.hi()).contains(&opening.port)),
        }
    }

    fn leaves(&self, name: &ServiceName, opening: &Opening) -> bool {
        let Some(service) = self.graph.service(name.as_str()) else { return false };
        let premises = Premises { graph: &self.graph, addresses: &self.addresses, host: &self.host };
        let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|p| p.number() == opening.protocol);
        let asks = service.dns == Dns::Direct
            && protocol.is_some()
            && opening.port == 53
            && premises.resolver(opening.to).is_some();
        asks || premises.reaches(service, opening.to, protocol.map(|protocol| (protocol, opening.port)))
    }
}

fn covers(ports: Ports, protocol: u8, port: u16) -> bool {
    ports.protocol().number() == protocol && (ports.lo()..=ports.hi()).contains(&port)
}

const FAR: [&str; 8] =
    ["9.9.9.9", "192.168.1.20", "192.168.1.200", "10.9.0.1", "172.16.0.1", "127.0.0.1", "2620:fe::9", "fd99::7"];
const PORTS: [u16; 14] = [22, 53, 80, 81, 123, 150, 443, 514, 1000, 1150, 1300, 1450, 5000, 8000];

/// What may be open at a place: its own connections, and at the gateway everybody's to the outside.
fn openings(old: &Generation, new: &Generation, place: &Place) -> Vec<Opening> {
    let inside = |generation: &Generation| {
        let places = generation.desired.wires.keys().filter(|place| **place != Place::Uplink);
        places
            .filter_map(|place| generation.addresses.of(place))
            .flat_map(|own| own.iter().collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    let mut all = [inside(old), inside(new)].concat();
    all.sort();
    all.dedup();
    let far: Vec<IpAddr> = FAR.iter().map(|text| text.parse().unwrap()).collect();
    let outside: Vec<IpAddr> = far.iter().copied().chain(old.addresses.resolver().iter()).collect();
    let own = |address: &IpAddr| [old, new].iter().any(|g| g.owner(*address).as_ref() == Some(place));
    let pairs: Vec<(IpAddr, IpAddr)> = if *place == Place::Uplink {
        all.iter().flat_map(|from| outside.iter().map(move |to| (*from, *to))).collect()
    } else {
        let (mine, others): (Vec<IpAddr>, Vec<IpAddr>) = all.iter().partition(|address| own(address));
        let out = mine.iter().flat_map(|from| others.iter().chain(&outside).map(move |to| (*from, *to)));
        out.chain(mine.iter().flat_map(|to| others.iter().map(move |from| (*from, *to)))).collect()
    };
    let pairs = pairs.into_iter().filter(|(from, to)| from.is_ipv4() == to.is_ipv4() && from != to);
    let all = pairs
        .flat_map(|(from, to)| {
            let icmp = if from.is_ipv4() { 1 } else { 58 };
            let ports = PORTS.iter().flat_map(|port| [(6, *port), (17, *port)]).chain([(icmp, 0)]);
            ports.map(move |(protocol, port)| Opening { from, to, protocol, port, server: (to, port) })
        })
        .collect::<Vec<_>>();
    [all, calls(old, new, place, &far)].concat()
}

/// Calls from outside by every port that is exposed before or after, as a place sees them.
fn calls(old: &Generation, new: &Generation, place: &Place, far: &[IpAddr]) -> Vec<Opening> {
    let mut calls = Vec::new();
    for generation in [old, new] {
        for exposure in generation.graph.exposures() {
            let Some(external) = exposure.way.external() else { continue };
            let (protocol, inner) = (exposure.ports.protocol().number(), exposure.ports.lo());
            let service = Place::Service(exposure.service.clone());
            let leg = generation.addresses.leg_gateway();
            let ends = [(None, leg, external), (Some(&service), leg, inner), (Some(&Place::Relay), leg, external)];
            for (end, leg, port) in ends {
                let own = end.map_or(Some(leg), |end| generation.addresses.of(end)).unwrap();
                for (server, leg) in own.iter().zip(leg.iter()) {
                    let host: IpAddr = if server.is_ipv4() { "192.168.1.10" } else { "fd99::10" }.parse().unwrap();
                    // Where a translation is done, the call is remembered as it was before.
                    let to = match (place, end) {
                        (Place::Host, None) => host,
                        (Place::Uplink, Some(_)) => leg,
                        (place, Some(end)) if place == end => server,
                        _ => continue,
                    };
                    let same = far.iter().filter(|from| from.is_ipv4() == to.is_ipv4());
                    let called = if *place == Place::Host || *place == Place::Uplink { external } else { port };
                    let opening = |from| Opening { from, to, protocol, port: called, server: (server, port) };
                    calls.extend(same.map(|from| opening(*from)));
                }
            }
        }
    }
    calls
}

fn cuts(old: &Generation, new: &Generation, place: &Place) -> Option<Cuts> {
    let (before, after) = (old.desired.locks.get(place)?, new.desired.locks.get(place)?);
    // The host's wire goes as a whole, and its connections have no way any more.
    if after.tables.is_empty() {
        return None;
    }
    let delta = Delta::between(before, after).narrowing();
    Some(Cuts::of(place, &delta, before, after))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_connection_is_cut_if_and_only_if_it_lost_its_right(
        a in drawn::policy(4), b in drawn::policy(4), changes in prop::collection::vec(any::<bool>(), 6),
    ) {
        let b = a.with_some_of(&b, &changes);
        let old = Generation::new(&a, &AddressBook::default());
        let new = Generation::new(&b, old.addresses.book());
        for place in old.desired.locks.keys() {
            // A place that goes takes its connections along.
            let Some(cuts) = cuts(&old, &new, place) else { continue };
            for opening in openings(&old, &new, place) {
                let lost = old.allows(place, &opening) && !new.allows(place, &opening);
                prop_assert_eq!(cuts.hits(&opening), lost, "{:?} at {}\n{}\n--- then ---\n{}", opening, place, a.text(), b.text());
            }
        }
    }

    /// Whatever changes, the host's own connections go on: SSH above all.
    #[test]
    fn what_is_not_on_our_wire_is_never_cut(a in drawn::policy(4), b in drawn::policy(4)) {
        let old = Generation::new(&a, &AddressBook::default());
        let new = Generation::new(&b, old.addresses.book());
        let Some(cuts) = cuts(&old, &new, &Place::Host) else { return Ok(()) };
        let own: Vec<IpAddr> = old.host.addresses.iter().copied().chain(["127.0.0.1".parse().unwrap()]).collect();
        let far = FAR.iter().map(|text| text.parse().unwrap());
        for (own, far) in far.flat_map(|far: IpAddr| own.iter().map(move |own| (*own, far))) {
            for (from, to) in [(own, far), (far, own)] {
                for (protocol, port) in [(6, 22), (6, 80), (6, 443), (17, 53), (17, 1000), (1, 0)] {
                    let opening = Opening { from, to, protocol, port, server: (to, port) };
                    prop_assert!(!cuts.hits(&opening), "{:?}", opening);
                }
            }
        }
    }
}

#[test]
fn a_revoked_edge_is_cut_at_both_ends_and_another_on_the_same_pair_is_not() {
    let text = |ports: &str| {
        format!(
            "schema = 1\n[network]\nname = \"node\"\n[service.a]\nconnect.b = [{ports}]\n\
             [service.b]\nports = {{ x = \"tcp:80\", y = \"tcp:81\" }}\n"
        )
    };
    let (old, new) = (Made::of(&text("\"x\", \"y\"")), Made::of(&text("\"y\"")));
    let address = |name: &str| old.addresses.service(name).unwrap().v4.into();
    let opening =
        |port| Opening { from: address("a"), to: address("b"), protocol: 6, port, server: (address("b"), port) };
    for name in ["a", "b"] {
        let place = Place::Service(name.parse().unwrap());
        let (before, after) = (&old.desired.locks[&place], &new.desired.locks[&place]);
        let cuts = Cuts::of(&place, &Delta::between(before, after).narrowing(), before, after);
        assert_eq!((cuts.hits(&opening(80)), cuts.hits(&opening(81))), (true, false), "at {name}");
    }
    assert_eq!(new.graph.edges()[0].key().0, &Origin::Service("a".parse().unwrap()));
    assert_eq!(new.graph.edges()[0].to, Target::Service("b".parse().unwrap()));
}
