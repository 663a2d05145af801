//! The whole way of a packet: out of one namespace, through the fabric, into another.
//!
//! Three questions are asked on it, each of rules that this walk only reads: the sender's lock, the panel, the
//! receiver's lock. A packet is [`Fate::Delivered`] when all three let it pass and the receiver's IP stack takes it.
//! Nothing between them is assumed: a fabric without rules forwards nothing, because it has no address and no route.
//! What the gateway takes on its wire for somebody else goes on by its [`Leg`], through two more gates, to [`WAN`].

mod behind;
mod inward;
mod outside;

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::conntrack::Tracked;
use super::{Decision, Env, Nat, Outcome, hooks};
use crate::packet::{Packet, View};
use crate::ruleset::{Family, HookPoint, Reject, Ruleset};

pub use inward::Call;
pub use outside::{Arrival, Leg, Link, WAN};

/// Everything whose rules a packet can meet.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct World {
    /// The rules of the fabric.
    pub fabric: Ruleset,
    /// The namespaces that are wired to it, by name of the service; the host is `host`.
    pub places: BTreeMap<String, Place>,
    /// The way out, if there is one.
    pub leg: Option<Leg>,
}

/// A namespace and its wire.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// Index of the wire's end in the fabric.
    pub fabric_index: u32,
    /// Name of the wire's end in the fabric.
    pub fabric_link: String,
    /// Index of the wire's end in this namespace.
    pub index: u32,
    /// Name of the wire's end in this namespace.
    pub link: String,
    /// The addresses of this namespace.
    pub addresses: Vec<IpAddr>,
    /// Its rules.
    pub lock: Ruleset,
}

/// The connections that each place holds; a place that is not in it holds none.
pub type Connections = BTreeMap<String, Tracked>;

/// Who puts a packet on the wire.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Sender {
    /// A program: what it sends passes the lock of its namespace.
    Program,
    /// Root in the namespace, with a packet socket, or with the lock removed.
    Root,
}

/// One of the places that ask about a packet.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Gate {
    /// The lock of the namespace that it comes from.
    SenderLock,
    /// The rules of the fabric.
    Panel,
    /// The gateway, which sends it on.
    Gateway,
    /// The host, by which it leaves or comes.
    Host,
    /// The lock of the namespace that it goes to.
    ReceiverLock,
}

/// What one gate said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hop<'a> {
    /// Which.
    pub gate: Gate,
    /// The place that the lock, or the wire into the panel, belongs to.
    pub place: &'a str,
    /// What its rules said.
    pub outcome: Outcome<'a>,
}

/// How a packet ends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fate<'a> {
    /// This place has it.
    Delivered(&'a str),
    /// A gate refused it and told the sender.
    Refused(Gate, Reject),
    /// A gate dropped it.
    Dropped(Gate),
    /// No rule took it, but it goes nowhere.
    Lost(Loss),
}

/// How a packet is lost without a rule.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Loss {
    /// The rules let it into the IP stack of the fabric, where nobody lives.
    EndsInFabric,
    /// A fragment waits for the others.
    HeldForReassembly,
    /// It is addressed to somebody else.
    NotAddressedHere,
    /// It has IP options that nobody takes: they cannot be read, or are a source route.
    Options,
    /// It is no datagram that an IP stack takes, or a program sends.
    NotIp,
    /// The sender is no place of this world.
    NoSuchPlace,
    /// The fabric has no wire with the index that the map gave.
    NoSuchWire,
    /// A lock rewrites its addresses: where it goes then is not part of this walk.
    Translated,
    /// It would leave with a source that nobody outside can answer, or nobody should see.
    NotMasqueraded,
    /// The gateway would send it back by the wire it came from.
    TurnedBack,
}

/// A walk: what each gate said, and the end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Walk<'a> {
    /// The gates that were asked, in order.
    pub hops: Vec<Hop<'a>>,
    /// The end.
    pub fate: Fate<'a>,
}

impl Walk<'_> {
    /// Whether the packet arrived at a place.
    pub fn is_delivered(&self) -> bool {
        matches!(self.fate, Fate::Delivered(_))
    }

    /// Whether the packet went out into the world.
    pub fn has_left(&self) -> bool {
        self.fate == Fate::Delivered(WAN)
    }
}

impl World {
    /// Carries a packet from a place to wherever it gets. The frame leaves as it is: `sender` says only whether the
    /// sender's lock is asked.
    pub fn carry<'a>(&'a self, from: &str, packet: &Packet, sender: Sender, connections: &Connections) -> Walk<'a> {
        let mut hops = Vec::new();
        let fate = match self.travel(from, packet, sender, connections, &mut hops) {
            Ok(place) => Fate::Delivered(place),
            Err(fate) => fate,
        };
        Walk { hops, fate }
    }

    /// The same, and whoever let the packet pass keeps it in mind: the sender's connection tracking when it left, the
    /// receiver's when it arrived. Root's packet sockets go past the sender's.
    pub fn send<'a>(&'a self, from: &str, packet: &Packet, sender: Sender, connections: &mut Connections) -> Walk<'a> {
        let walk = self.carry(from, packet, sender, connections);
        for hop in walk.hops.iter().filter(|hop| matches!(hop.gate, Gate::SenderLock | Gate::ReceiverLock)) {
            connections.entry(hop.place.to_owned()).or_default().notice(packet);
        }
        let left = walk.hops.iter().any(|hop| hop.gate == Gate::SenderLock && hop.outcome.decision == Decision::Accept);
        if left {
            connections.entry(from.to_owned()).or_default().record(packet);
        }
        if let Fate::Delivered(to) = walk.fate {
            connections.entry(to.to_owned()).or_default().record(packet);
        }
        walk
    }

    fn travel<'a>(
        &'a self,
        from: &str,
        packet: &Packet,
        sender: Sender,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<&'a str, Fate<'a>> {
        let (from, place) = self.places.get_key_value(from).ok_or(Fate::Lost(Loss::NoSuchPlace))?;
        let left;
        let packet = match sender {
            Sender::Program => {
                place.lets_out(from, packet, connections, hops)?;
                left = packet.defragmented();
                &left
            }
            Sender::Root => packet,
        };
        let index = self.patch(from, place, packet, hops)?;
        let (to, place) = self.wire(index).ok_or(Fate::Lost(Loss::NoSuchWire))?;
        if let Some(leg) = self.leg.as_ref().filter(|leg| leg.gateway == to && !place.owns(packet)) {
            return leg.leave(place, packet, connections, hops);
        }
        place.lets_in(to, packet, connections, hops)?;
        Ok(to)
    }

    /// The fabric: the index of the wire that the packet leaves by.
    fn patch<'a>(
        &'a self,
        name: &'a str,
        place: &'a Place,
        packet: &Packet,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<u32, Fate<'a>> {
        let device = &place.fabric_link;
        let env = Env { iif: place.fabric_index, iifname: device, ..Env::default() };
        let outcome = hooks(&self.fabric, Family::Netdev, HookPoint::Ingress, Some(device), packet, &env);
        match ask(hops, Gate::Panel, name, outcome)? {
            Some(index) => Ok(index),
            None => Err(Fate::Lost(Loss::EndsInFabric)),
        }
    }

    fn wire(&self, index: u32) -> Option<(&str, &Place)> {
        let (name, place) = self.places.iter().find(|(_, place)| place.fabric_index == index)?;
        Some((name, place))
    }
}

impl Place {
    fn lets_out<'a>(
        &'a self,
        name: &'a str,
        packet: &Packet,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<(), Fate<'a>> {
        datagram(packet)?;
        let env = Env { oif: self.index, oifname: &self.link, ..self.env(name, packet, connections) };
        for point in [HookPoint::Output, HookPoint::Postrouting] {
            self.ask(point, Gate::SenderLock, name, packet, &env, hops)?;
        }
        Ok(())
    }

    fn lets_in<'a>(
        &'a self,
        name: &'a str,
        packet: &Packet,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<(), Fate<'a>> {
        let view = received(packet)?;
        let env = Env { iif: self.index, iifname: &self.link, ..self.env(name, packet, connections) };
        self.ask(HookPoint::Prerouting, Gate::ReceiverLock, name, packet, &env, hops)?;
        if !self.takes(&view) {
            return Err(Fate::Lost(Loss::NotAddressedHere));
        }
        self.ask(HookPoint::Input, Gate::ReceiverLock, name, packet, &env, hops)
    }

    fn env(&self, name: &str, packet: &Packet, connections: &Connections) -> Env<'static> {
        let ct = match connections.get(name) {
            Some(tracked) => tracked.classify(packet),
            None => Tracked::default().classify(packet),
        };
        Env { ct, fib_daddr_type: if self.owns(packet) { super::LOCAL } else { super::UNICAST }, ..Env::default() }
    }

    fn owns(&self, packet: &Packet) -> bool {
        packet.in_stack().and_then(|view| view.ends()).is_some_and(|ends| self.addresses.contains(&ends.to()))
    }

    /// Asks every table of the lock at one hook.
    fn ask<'a>(
        &'a self,
        point: HookPoint,
        gate: Gate,
        name: &'a str,
        packet: &Packet,
        env: &Env<'_>,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<(), Fate<'a>> {
        let outcome = hooks(&self.lock, Family::Inet, point, None, packet, env);
        let translated = outcome.nat.is_some_and(|nat| !leads_where_it_goes(nat, packet));
        let asked = ask(hops, gate, name, outcome);
        // Whoever is asked after the translation sees another packet: what was said of this one means nothing.
        if translated { Err(Fate::Lost(Loss::Translated)) } else { asked.map(drop) }
    }

    /// Whether the IP stack takes a datagram for itself. (With the source on a wire to be an address that is its own,
    /// or of no host, it is a martian.)
    fn takes(&self, view: &View<'_>) -> bool {
        let Some(ends) = view.ends() else { return false };
        let martian = is_martian(ends.from()) || self.addresses.contains(&ends.from());
        // A tag that nobody has a link for belongs to another host; number 0 is a priority and no VLAN.
        let foreign = view.tag.is_some_and(|(_, tci)| tci & 0x0fff != 0);
        !martian && !foreign && view.has_acceptable_options() && self.addresses.contains(&ends.to())
    }
}

/// Whether no IP stack takes this for the source of what comes by a wire (`ip_mkroute_input`, `ip6_rcv_core`).
pub(crate) fn is_martian(from: IpAddr) -> bool {
    let nobody = match from {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(_) => false,
    };
    nobody || from.is_loopback() || from.is_multicast()
}

/// Whether a rewriting of the destination writes what is there already.
fn leads_where_it_goes(nat: Nat, packet: &Packet) -> bool {
    let Nat::Destination { address, port } = nat else { return false };
    let Some(view) = packet.in_stack() else { return false };
    let same_port = port.is_none_or(|port| view.transport(2, 2) == Some(&port.to_be_bytes()));
    same_port && view.ends().is_some_and(|ends| ends.to() == address)
}

/// A whole datagram: connection tracking defragments before any lock is asked.
fn datagram<'a>(packet: &Packet) -> Result<View<'_>, Fate<'a>> {
    let view = packet.in_stack().ok_or(Fate::Lost(Loss::NotIp))?;
    if view.is_fragment() { Err(Fate::Lost(Loss::HeldForReassembly)) } else { Ok(view) }
}

/// The same, off a wire: what its frame addresses to another machine goes no further.
fn received<'a>(packet: &Packet) -> Result<View<'_>, Fate<'a>> {
    let view = packet.in_stack().ok_or(Fate::Lost(Loss::NotIp))?;
    if view.is_for_this_machine() { datagram(packet) } else { Err(Fate::Lost(Loss::NotAddressedHere)) }
}

/// Writes down what a gate said; the index that it forwards to, or none when it lets the packet pass.
fn ask<'a>(hops: &mut Vec<Hop<'a>>, gate: Gate, place: &'a str, outcome: Outcome<'a>) -> Result<Option<u32>, Fate<'a>> {
    let decision = outcome.decision;
    hops.push(Hop { gate, place, outcome });
    match decision {
        Decision::Accept => Ok(None),
        Decision::Forwarded(index) => Ok(Some(index)),
        Decision::Drop => Err(Fate::Dropped(gate)),
        Decision::Rejected(reject) => Err(Fate::Refused(gate, reject)),
    }
}
