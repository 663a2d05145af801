//! The rules on classes against the rules on packets: what holds of a class holds of each of its packets, as the
//! interpreter says, which other tests hold against the kernel.

use std::collections::BTreeMap;

use super::*;
use crate::graph::{Origin, Target};
use crate::packet::View;
use crate::port::Protocol;
use crate::ruleset::decide::{Decision, Nat};
use drawn::Made;
use machine::Leaf;
use witness::{Point, packet, point_of, some_point};

#[path = "../../tests/drawn/mod.rs"]
#[allow(dead_code, reason = "the integration tests use the rest of it")]
mod drawn;
#[path = "../../tests/planted/mod.rs"]
#[allow(dead_code, reason = "the integration tests use the rest of it")]
mod planted;

/// Numbers that look like chance and are the same each time.
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.throw() % n as u64) as usize
    }

    /// One of them: an end of a range as often as anything between.
    fn one_of(&mut self, numbers: &Numbers) -> u128 {
        let (lo, hi) = numbers.ranges()[self.below(numbers.ranges().len())];
        match self.below(3) {
            0 => lo,
            1 => hi,
            _ => {
                let between = u128::from(self.throw()) << 64 | u128::from(self.throw());
                (hi - lo).checked_add(1).map_or(between, |len| lo + between % len)
            }
        }
    }

    /// A point of a class: its usual one, with some of its numbers drawn anew.
    fn point(&mut self, class: &Class) -> Point {
        let mut point = some_point(class);
        for var in Var::ALL {
            if self.below(2) == 0 && !matches!(var, Var::Link | Var::NetLen | Var::Ether) {
                point[var as usize] = self.one_of(&class.of(var));
            }
        }
        point[Var::Len as usize] = point[Var::Len as usize].min(1400);
        if point[Var::Sense as usize] == 1 && class.ip() != Ip::Neither {
            let extensions = 8 * (point[Var::FragHeader as usize] + point[Var::RtHeader as usize]);
            point[Var::NetLen as usize] = class.ip().header() + extensions + point[Var::Len as usize];
        }
        point
    }
}

/// Everything at one hook of one namespace.
struct Scene<'a> {
    gate: Gate<'a>,
    leaves: Vec<Leaf>,
}

impl Scene<'_> {
    fn view<'p>(&self, packet: &'p Packet) -> Option<View<'p>> {
        match self.gate.at.point {
            HookPoint::Ingress => packet.at_ingress(),
            _ => packet.in_stack().filter(|view| !view.is_fragment()),
        }
    }

    /// What the interpreter says of it.
    fn decided(&self, packet: &Packet, point: &Point) -> Option<Outcome> {
        let env = self.gate.env(point);
        let gate = &self.gate;
        let outcome = hooks(gate.rules, gate.family, gate.at.point, gate.at.device, packet, &env);
        match (outcome.decision, outcome.nat) {
            (Decision::Drop | Decision::Rejected(_), _) => None,
            (Decision::Forwarded(index), _) => Some(Outcome::Forward(index)),
            (Decision::Accept, None) => Some(Outcome::Accept),
            (Decision::Accept, Some(Nat::Masquerade)) => Some(Outcome::Masquerade),
            (Decision::Accept, Some(Nat::Destination { address, port })) => {
                Some(Outcome::Redirect(spec::number_of(address), port))
            }
        }
    }

    /// The leaf of this packet, which is the only one that has it.
    fn leaf(&self, ip: Ip, point: &Point) -> Option<&Leaf> {
        let mut all = self.leaves.iter().filter(|leaf| leaf.class.holds(ip, point));
        let first = all.next();
        assert!(all.next().is_none(), "{}: two leaves have {point:?}", self.gate.name);
        first
    }
}

/// Calls `look` with every hook of every namespace on every link.
fn scenes(made: &Made, look: &mut impl FnMut(&Scene<'_>)) {
    let desired = &made.desired;
    let run = |gate: Gate<'_>, roots: Vec<Class>, look: &mut dyn FnMut(&Scene<'_>)| {
        let leaves = roots.iter().flat_map(|root| gate.machine.run(gate.family, &gate.at, root).unwrap());
        let leaves = leaves.collect();
        look(&Scene { gate, leaves });
    };
    let machine = Machine::new(&desired.fabric);
    for (place, wire) in &desired.wires {
        let link = Link { index: wire.index, name: wire.outer.to_string(), group: GROUP };
        let at = At {
            point: HookPoint::Ingress,
            device: Some(wire.outer.as_str()),
            iif: Some(&link),
            oif: None,
            local: &[],
        };
        let (name, family, wires) = (place.to_string(), Family::Netdev, BTreeMap::new());
        let gate = Gate { name, family, rules: &desired.fabric, machine: &machine, at, key: Var::Daddr, wires };
        run(gate, Class::frames(), look);
    }
    let wires = desired.wires.iter().map(|(place, wire)| (place.clone(), wire.index)).collect();
    let facts = Facts::new(&made.graph, &made.addresses, &made.host, wires);
    for (place, rules) in &desired.locks {
        let mut machine = Machine::new(rules);
        if let Place::Service(name) = place {
            machine.limits = made.graph.service(name.as_str()).unwrap().limits;
        }
        let local = if *place == Place::Host { facts.host_local() } else { vec![] };
        let links = links(rules, &["net0"], &[GROUP]).unwrap();
        let none = None;
        for one in &links {
            for other in &links {
                let ways = [
                    (HookPoint::Prerouting, Some(one), none),
                    (HookPoint::Input, Some(one), none),
                    (HookPoint::Forward, Some(one), Some(other)),
                    (HookPoint::Output, none, Some(one)),
                    (HookPoint::Postrouting, Some(one), Some(other)),
                ];
                for (point, iif, oif) in ways {
                    let at = At { point, device: None, iif, oif, local: &local };
                    let name = format!("{place} at {point:?} from {iif:?} by {oif:?}");
                    let (family, wires) = (Family::Inet, BTreeMap::new());
                    let gate = Gate { name, family, rules, machine: &machine, at, key: Var::Daddr, wires };
                    run(gate, Class::datagrams(), look);
                }
            }
        }
    }
}

/// The policies that are looked at.
fn policies() -> [Made; 2] {
    [Made::of(planted::SMALL), Made::of(planted::LARGE)]
}

#[test]
fn what_is_said_of_a_class_is_true_of_its_packets() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut held, mut drawn) = (BTreeMap::new(), 0);
    for made in policies() {
        scenes(&made, &mut |scene| {
            for leaf in &scene.leaves {
                for _ in 0..3 {
                    drawn += 1;
                    let point = dice.point(&leaf.class);
                    let frame = packet(leaf.class.ip(), &point);
                    // Not every point can be built; what was built need not be of this class, then.
                    let Some(view) = scene.view(&frame) else { continue };
                    let (ip, real) = point_of(&view, &point);
                    if !leaf.class.holds(ip, &real) {
                        continue;
                    }
                    *held.entry((scene.gate.at.point as u8, leaf.outcome.is_some())).or_insert(0usize) += 1;
                    // A translated packet is shown to the next chain as it was: the interpreter's walk ends there.
                    if matches!(leaf.outcome, Some(Outcome::Redirect(..))) {
                        continue;
                    }
                    let decided = scene.decided(&frame, &real);
                    assert_eq!(decided, leaf.outcome, "{}: {}\n{frame:?}", scene.gate.name, leaf.class);
                }
            }
        });
    }
    println!("{held:?} of {drawn}");
    let all: usize = held.values().sum();
    assert!(all * 2 > drawn, "only {all} of {drawn} points could be built");
    assert!(held.len() == 10 && held.values().all(|count| *count > 30), "{held:?}");
}

#[test]
fn every_packet_is_of_just_one_class_which_says_what_becomes_of_it() {
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    for made in policies() {
        let mut count = 0;
        scenes(&made, &mut |scene| {
            for _ in 0..20 {
                // Near what passes, then spoiled a little.
                let leaf = &scene.leaves[dice.below(scene.leaves.len())];
                let mut point = dice.point(&leaf.class);
                point[Var::Ct as usize] = dice.below(7) as u128;
                let mut bytes = packet(leaf.class.ip(), &point).frame().to_vec();
                for _ in 0..dice.below(4) {
                    let at = dice.below(bytes.len());
                    bytes[at] = dice.throw() as u8;
                }
                let frame = Packet::from_frame(bytes);
                let Some(view) = scene.view(&frame) else { continue };
                let (ip, real) = point_of(&view, &point);
                let leaf = scene.leaf(ip, &real);
                let leaf = leaf.unwrap_or_else(|| panic!("{}: no leaf has {real:?}\n{frame:?}", scene.gate.name));
                count += 1;
                if !matches!(leaf.outcome, Some(Outcome::Redirect(..))) {
                    let decided = scene.decided(&frame, &real);
                    assert_eq!(decided, leaf.outcome, "{}: {}\n{frame:?}", scene.gate.name, leaf.class);
                }
            }
        });
        assert!(count > 2_000, "only {count} packets");
    }
}

/// Whether the graph has an edge for each packet of a class, said without any word of the proof's own promise.
fn is_declared(made: &Made, from: &Place, to: &Place, class: &Class) -> bool {
    let origin = match from {
        Place::Host => Origin::Host,
        Place::Service(name) => Origin::Service(name.clone()),
        Place::Relay | Place::Uplink => return false,
    };
    let target = match to {
        Place::Host => Target::Host,
        Place::Service(name) => Target::Service(name.clone()),
        Place::Relay | Place::Uplink => return false,
    };
    let own = made.desired.wires[from].addresses;
    let spoken = own.iter().any(|own| class.narrow(Var::Saddr).and_then(Numbers::only) == Some(spec::number_of(own)));
    let protocol = match class.narrow(Var::Proto).and_then(Numbers::only) {
        Some(6) => Protocol::Tcp,
        Some(17) => Protocol::Udp,
        // An echo request.
        Some(1 | 58) => {
            let some = made.graph.edges().iter().any(|edge| edge.from == origin && edge.to == target);
            let kinds = class.of(Var::Sport);
            return spoken
                && some
                && kinds.ranges().iter().all(|(lo, hi)| matches!((lo >> 8, hi >> 8), (8, 8) | (128, 128)));
        }
        _ => return false,
    };
    let ports = class.of(Var::Dport);
    let mut all = ports.ranges().iter().flat_map(|(lo, hi)| *lo..=*hi);
    spoken && all.all(|port| made.graph.allows(&origin, &target, protocol, port as u16).is_some())
}

#[test]
fn what_begins_a_connection_on_the_whole_way_has_an_edge_of_the_graph() {
    let new = Ct::set(&[Ct::New]);
    let (mut arrived, mut stopped) = (0, 0);
    for made in policies() {
        let desired = &made.desired;
        let fabric = Machine::new(&desired.fabric);
        let locks: BTreeMap<u32, (&Place, Machine<'_>)> = desired
            .wires
            .values()
            .map(|wire| (wire.index, (&wire.place, Machine::new(&desired.locks[&wire.place]))))
            .collect();
        for (from, wire) in &desired.wires {
            let link = Link { index: wire.index, name: wire.outer.to_string(), group: GROUP };
            let (point, device) = (HookPoint::Ingress, Some(wire.outer.as_str()));
            let at = At { point, device, iif: Some(&link), oif: None, local: &[] };
            let leaves = Class::frames().into_iter().flat_map(|root| fabric.run(Family::Netdev, &at, &root).unwrap());
            for leaf in leaves {
                let Some(Outcome::Forward(index)) = leaf.outcome else { continue };
                let (to, lock) = &locks[&index];
                let wire = &desired.wires[*to];
                let link = Link { index: 2, name: wire.inner.to_string(), group: 0 };
                let at = At { point: HookPoint::Input, device: None, iif: Some(&link), oif: None, local: &[] };
                // What the receiver puts together from parts has been seen by no port.
                let parts = [Var::Sport, Var::Dport, Var::Flags, Var::Len].into_iter();
                let whole = parts.fold(leaf.class.any(Var::Frag).any(Var::FragHeader), |class, var| {
                    if leaf.class.of(Var::Frag).holds(0) { class } else { class.any(var) }
                });
                for datagram in Class::datagrams() {
                    let Some(class) = whole.and(&datagram).and_then(|class| class.narrowed(Var::Ct, &new)) else {
                        continue;
                    };
                    for end in lock.run(Family::Inet, &at, &class).unwrap() {
                        match end.outcome {
                            None => stopped += 1,
                            Some(_) => {
                                arrived += 1;
                                assert!(is_declared(&made, from, to, &end.class), "{from} to {to}: {}", end.class);
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(arrived > 50 && stopped > 500, "{arrived} classes arrive, {stopped} do not");
}
