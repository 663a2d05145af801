//! The way out and back: the gateway, its leg, and the host at the other end.
//!
//! Addresses are translated on it, and each namespace's filter rules see the packet between its own two translations.
//! A walk out rewrites the packet as it goes; who sends one in gives it as each of the gates will see it ([`Arrival`]).
//! Routing is that of the design: the gateway sends its pools back by the wire and everything else by the leg; the host
//! takes its own addresses in and sends everything else by its uplink.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Connections, Fate, Gate, Hop, Loss, Place, Walk, World, ask, datagram, received};
use crate::packet::build::flag;
use crate::packet::{Ends, Packet, be16, embedded};
use crate::ruleset::decide::conntrack::{CtState, Tracked};
use crate::ruleset::decide::{Env, LOCAL, Nat, UNICAST, hooks};
use crate::ruleset::{Family, HookPoint, Ruleset};

/// Where a packet is that has left: a word that no service may have as its name.
pub const WAN: &str = "wan";

/// A link as rules see it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// The way out.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Leg {
    /// The place where it starts.
    pub gateway: String,
    /// Its end there.
    pub inner: Link,
    /// Its end on the host.
    pub outer: Link,
    /// The gateway's addresses on it: what masquerading makes of a source.
    pub addresses: Vec<IpAddr>,
    /// What the gateway sends back by its wire.
    pub pools: Vec<IpNetwork>,
    /// The host's rules.
    pub host: Ruleset,
    /// Every address of the host.
    pub host_addresses: Vec<IpAddr>,
    /// The link by which the host reaches everybody else.
    pub uplink: Link,
}

/// A packet that comes in, as each of the gates on its way sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Arrival {
    /// To the gateway's address on the leg; `None` when it starts behind the host, whose rules are gone.
    pub at_host: Option<Packet>,
    /// To the service; `None` when it starts on the gateway's wire.
    pub at_gateway: Option<Packet>,
    /// The same, from the address that the service has called.
    pub on_wire: Packet,
}

impl World {
    /// Carries a packet from outside to wherever it gets.
    pub fn receive<'a>(&'a self, arrival: &Arrival, connections: &Connections) -> Walk<'a> {
        let mut hops = Vec::new();
        let fate = match self.enter(arrival, connections, &mut hops) {
            Ok(place) => Fate::Delivered(place),
            Err(fate) => fate,
        };
        Walk { hops, fate }
    }

    fn enter<'a>(
        &'a self,
        arrival: &Arrival,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<&'a str, Fate<'a>> {
        let leg = self.leg.as_ref().ok_or(Fate::Lost(Loss::NoSuchPlace))?;
        let (gateway, place) = self.places.get_key_value(&leg.gateway).ok_or(Fate::Lost(Loss::NoSuchPlace))?;
        if let Some(packet) = &arrival.at_host {
            leg.host_lets_in(packet, connections, hops)?;
        }
        if let Some(packet) = &arrival.at_gateway {
            leg.gateway_lets_in(place, packet, connections, hops)?;
        }
        let index = self.patch(gateway, place, &arrival.on_wire, hops)?;
        let (to, place) = self.wire(index).ok_or(Fate::Lost(Loss::NoSuchWire))?;
        place.lets_in(to, &arrival.on_wire, connections, hops)?;
        Ok(to)
    }
}

impl Leg {
    /// From the gateway's wire to the leg, and by the host.
    pub(super) fn leave<'a>(
        &'a self,
        place: &'a Place,
        packet: &Packet,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<&'a str, Fate<'a>> {
        let view = received(packet)?;
        let gate = self.gateway_gate(place);
        let env = Env { iif: place.index, iifname: &place.link, ..place.env(&self.gateway, packet, connections) };
        // A known flow keeps the translation that its first packet got.
        let first = Env { ct: env.ct.map(as_first), ..env };
        let nat = gate.ask(HookPoint::Prerouting, packet, &first, hops)?;
        let called = match nat.or_else(|| gate.of_the_flow(packet, env)) {
            Some(Nat::Destination { address, port: None }) => to(packet, address)?,
            Some(_) => return Err(Fate::Lost(Loss::Translated)),
            None => packet.clone(),
        };
        if view.is_for_a_group() {
            return Err(Fate::Lost(Loss::NotAddressedHere));
        }
        if !view.has_acceptable_options() {
            return Err(Fate::Lost(Loss::Options));
        }
        let destination = datagram(&called)?.ends().ok_or(Fate::Lost(Loss::NotIp))?.to();
        let back = self.pools.iter().any(|pool| pool.contains(destination));
        let (oif, oifname) = if back { (place.index, &place.link) } else { (self.inner.index, &self.inner.name) };
        let env = Env { oif, oifname, ..env };
        gate.ask(HookPoint::Forward, &called, &env, hops)?;
        let nat = gate.ask(HookPoint::Postrouting, &called, &env, hops)?;
        if back {
            return Err(Fate::Lost(Loss::TurnedBack));
        }
        masqueraded(nat, env.ct)?;
        let related = env.ct.is_some_and(|ct| ct.state == CtState::RELATED);
        // A redirect is about routes of one network, and never translated (`nf_nat_icmp_reply_translation`).
        if related && called.in_stack().and_then(|view| view.transport(0, 1)) == Some(&[5]) && destination.is_ipv4() {
            return Err(Fate::Lost(Loss::NotMasqueraded));
        }
        self.host_lets_out(&self.as_gateway(&called, related)?, connections, hops)
    }

    fn host_lets_out<'a>(
        &'a self,
        packet: &Packet,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<&'a str, Fate<'a>> {
        let gate = self.host_gate();
        let env = Env { iif: self.outer.index, iifname: &self.outer.name, ..self.host_env(packet, connections) };
        gate.ask(HookPoint::Prerouting, packet, &env, hops)?;
        if env.fib_daddr_type == LOCAL {
            gate.ask(HookPoint::Input, packet, &env, hops)?;
            return Ok("host");
        }
        let env = Env { oif: self.uplink.index, oifname: &self.uplink.name, ..env };
        gate.ask(HookPoint::Forward, packet, &env, hops)?;
        let nat = gate.ask(HookPoint::Postrouting, packet, &env, hops)?;
        masqueraded(nat, env.ct)?;
        Ok(WAN)
    }

    fn host_lets_in<'a>(
        &'a self,
        packet: &Packet,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<(), Fate<'a>> {
        datagram(packet)?;
        let ways = Env {
            iif: self.uplink.index,
            iifname: &self.uplink.name,
            oif: self.outer.index,
            oifname: &self.outer.name,
            ..self.host_env(packet, connections)
        };
        for point in [HookPoint::Prerouting, HookPoint::Forward, HookPoint::Postrouting] {
            self.host_gate().ask(point, packet, &ways, hops)?;
        }
        Ok(())
    }

    fn gateway_lets_in<'a>(
        &'a self,
        place: &'a Place,
        packet: &Packet,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<(), Fate<'a>> {
        datagram(packet)?;
        let gate = self.gateway_gate(place);
        let env = place.env(&self.gateway, packet, connections);
        let env = Env { iif: self.inner.index, iifname: &self.inner.name, ..env };
        let env = Env { oif: place.index, oifname: &place.link, ..env };
        for point in [HookPoint::Prerouting, HookPoint::Forward, HookPoint::Postrouting] {
            if gate.ask(point, packet, &env, hops)?.is_some() {
                return Err(Fate::Lost(Loss::Translated));
            }
        }
        Ok(())
    }

    pub(super) fn gateway_gate<'a>(&'a self, place: &'a Place) -> Gated<'a> {
        Gated { rules: &place.lock, gate: Gate::Gateway, name: &self.gateway }
    }

    pub(super) fn host_gate(&self) -> Gated<'_> {
        Gated { rules: &self.host, gate: Gate::Host, name: "host" }
    }

    pub(super) fn host_env(&self, packet: &Packet, connections: &Connections) -> Env<'static> {
        let ct = match connections.get("host") {
            Some(tracked) => tracked.classify(packet),
            None => Tracked::default().classify(packet),
        };
        let to = packet.in_stack().and_then(|view| view.ends()).map(|ends| ends.to());
        let local = to.is_some_and(|to| self.host_addresses.contains(&to));
        Env { ct, fib_daddr_type: if local { LOCAL } else { UNICAST }, ..Env::default() }
    }

    /// The same packet from the gateway's own address; an error is then about a packet to that address.
    fn as_gateway<'a>(&self, packet: &Packet, is_error: bool) -> Result<Packet, Fate<'a>> {
        let to = datagram(packet)?.ends().ok_or(Fate::Lost(Loss::NotIp))?.to();
        let own = self.addresses.iter().find_map(|own| Ends::new(*own, to)).ok_or(Fate::Lost(Loss::NotMasqueraded))?;
        let sent = packet.readdressed(own).ok_or(Fate::Lost(Loss::NotIp))?;
        let about = if is_error { sent.about(own.reversed()) } else { None };
        Ok(about.unwrap_or(sent))
    }
}

fn to<'a>(packet: &Packet, address: IpAddr) -> Result<Packet, Fate<'a>> {
    let from = datagram(packet)?.ends().ok_or(Fate::Lost(Loss::NotIp))?.from();
    let ends = Ends::new(from, address).ok_or(Fate::Lost(Loss::Translated))?;
    packet.readdressed(ends).ok_or(Fate::Lost(Loss::NotIp))
}

fn as_first(ct: CtState) -> CtState {
    if ct.state == CtState::ESTABLISHED { CtState::original(CtState::NEW) } else { ct }
}

/// The source is rewritten by the connection: that of a new one is set up now, that of a known one was. What belongs to
/// none is never rewritten.
fn masqueraded<'a>(nat: Option<Nat>, ct: Option<CtState>) -> Result<(), Fate<'a>> {
    let known = ct.is_some_and(|ct| ct.state == CtState::ESTABLISHED || ct.state == CtState::RELATED);
    if nat == Some(Nat::Masquerade) || known { Ok(()) } else { Err(Fate::Lost(Loss::NotMasqueraded)) }
}

/// The rules of one namespace on the way.
pub(super) struct Gated<'a> {
    rules: &'a Ruleset,
    gate: Gate,
    name: &'a str,
}

/// The first packet of the connection that an ICMP error is about, which somebody else has answered.
fn opening(packet: &Packet) -> Option<Packet> {
    let view = packet.in_stack()?;
    let inner = view.network.get(view.transport?.offset + 8..)?;
    let (from, to, transport) = embedded(inner)?;
    let (ends, sport, dport) =
        (Ends::new(to, from)?, be16(inner, transport.offset + 2)?, be16(inner, transport.offset)?);
    match transport.protocol {
        6 => Some(Packet::tcp(ends, sport, dport, flag::SYN)),
        17 => Some(Packet::udp(ends, sport, dport, b"")),
        _ => None,
    }
}

impl<'a> Gated<'a> {
    /// An error goes to where the connection that it is about was sent on.
    fn of_the_flow(&self, packet: &Packet, env: Env<'_>) -> Option<Nat> {
        env.ct.filter(|ct| ct.state == CtState::RELATED)?;
        let first = Env { ct: Some(CtState::original(CtState::NEW)), ..env };
        hooks(self.rules, Family::Inet, HookPoint::Prerouting, None, &opening(packet)?, &first).nat
    }

    pub(super) fn ask(
        &self,
        point: HookPoint,
        packet: &Packet,
        env: &Env<'_>,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<Option<Nat>, Fate<'a>> {
        let outcome = hooks(self.rules, Family::Inet, point, None, packet, env);
        let nat = outcome.nat;
        ask(hops, self.gate, self.name, outcome)?;
        Ok(nat)
    }
}
