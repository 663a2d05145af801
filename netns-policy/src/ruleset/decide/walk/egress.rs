//! The way out of the fabric and back: a gateway, its leg, and the host behind it.
//!
//! Gateway and host forward what they get, so each is asked at every hook of a forwarded packet. What the masquerade
//! of the gateway does to a packet is done to it here too; the host's, which nobody behind it can see, is not. The
//! routing is not asked: a packet is carried to wherever a route could lead, and the rules alone have to stop it.

use std::net::IpAddr;

use super::super::{Env, Nat, hooks};
use super::{Connections, Decision, Fate, Gate, Hop, Loss, Place, Walk, World, ask, datagram};
use crate::packet::{Ends, Packet};
use crate::ruleset::{Family, HookPoint};

/// One end of a link as its namespace knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// A way out of the fabric.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Egress {
    /// The place that the way leads through.
    pub gateway: String,
    /// The gateway's end of its leg.
    pub leg: Link,
    /// The addresses of that end.
    pub leg_addresses: Vec<IpAddr>,
    /// The host's rules, with all its addresses; its link is its end of the leg.
    pub host: Place,
    /// The host's link to the outside.
    pub uplink: Link,
}

/// The name under which a walk speaks of the host, and under which [`Connections`] keep what it holds.
const HOST: &str = "host";

impl World {
    /// Carries what a program in `from` sends towards the outside. Whoever lets it pass keeps its connection in mind.
    pub fn leave<'a>(
        &'a self,
        egress: &'a Egress,
        from: &str,
        packet: &Packet,
        connections: &mut Connections,
    ) -> Walk<'a> {
        let mut hops = Vec::new();
        let mut passed = Vec::new();
        let fate = match self.out(egress, from, packet, connections, &mut hops, &mut passed) {
            Ok(fate) | Err(fate) => fate,
        };
        if matches!(fate, Fate::Left | Fate::Delivered(_)) {
            for (place, packet) in passed {
                connections.entry(place).or_default().record(&packet);
            }
        }
        Walk { hops, fate }
    }

    fn out<'a>(
        &'a self,
        egress: &'a Egress,
        from: &str,
        packet: &Packet,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
        passed: &mut Vec<(String, Packet)>,
    ) -> Result<Fate<'a>, Fate<'a>> {
        let (from, place) = self.places.get_key_value(from).ok_or(Fate::Lost(Loss::NoSuchPlace))?;
        place.lets_out(from, packet, connections, hops)?;
        passed.push((from.clone(), packet.clone()));
        let index = self.patch(from, place, packet, hops)?;
        let (to, place) = self.wire(index).ok_or(Fate::Lost(Loss::NoSuchWire))?;
        passed.push((to.to_owned(), packet.clone()));
        if to != egress.gateway || place.addresses.contains(&destination(packet)?) {
            place.lets_in(to, packet, connections, hops)?;
            return Ok(Fate::Delivered(to));
        }
        let (wire, leg) = (place.link(), &egress.leg);
        let outer = place.forwards(Gate::Gateway, to, (&wire, leg), packet, connections, hops)?;
        let outer = match outer {
            Some(Nat::Masquerade) => masqueraded(packet, &egress.leg_addresses)?,
            _ => packet.clone(),
        };
        passed.push((HOST.to_owned(), outer.clone()));
        let host = &egress.host;
        if host.addresses.contains(&destination(&outer)?) {
            host.lets_in(HOST, &outer, connections, hops)?;
            return Ok(Fate::Delivered(HOST));
        }
        host.forwards(Gate::Host, HOST, (&host.link(), &egress.uplink), &outer, connections, hops)?;
        Ok(Fate::Left)
    }

    /// Carries what comes to the host from outside into its end of the leg, and on through the gateway.
    ///
    /// `outer` is the packet as the host sees it, `inner` as the gateway does once it has put the address back that its
    /// masquerade had replaced; for a packet of no connection the two are the same.
    pub fn come_in<'a>(
        &'a self,
        egress: &'a Egress,
        outer: &Packet,
        inner: &Packet,
        connections: &Connections,
    ) -> Walk<'a> {
        let mut hops = Vec::new();
        let fate = self.inwards(egress, outer, inner, connections, &mut hops).unwrap_or_else(|fate| fate);
        Walk { hops, fate }
    }

    fn inwards<'a>(
        &'a self,
        egress: &'a Egress,
        outer: &Packet,
        inner: &Packet,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<Fate<'a>, Fate<'a>> {
        let host = &egress.host;
        host.forwards(Gate::Host, HOST, (&egress.uplink, &host.link()), outer, connections, hops)?;
        let gateway = self.places.get_key_value(&egress.gateway).ok_or(Fate::Lost(Loss::NoSuchPlace))?;
        let (name, place) = gateway;
        place.forwards(Gate::Gateway, name, (&egress.leg, &place.link()), inner, connections, hops)?;
        self.deliver(name, place, inner, connections, hops)
    }

    /// Carries what comes to the host from outside into the host's own wire, as if a route led there.
    pub fn enter_by_wire<'a>(
        &'a self,
        host: &str,
        uplink: &Link,
        packet: &Packet,
        connections: &Connections,
    ) -> Walk<'a> {
        let mut hops = Vec::new();
        let mut walk = || {
            let (name, place) = self.places.get_key_value(host).ok_or(Fate::Lost(Loss::NoSuchPlace))?;
            place.forwards(Gate::Host, name, (uplink, &place.link()), packet, connections, &mut hops)?;
            self.deliver(name, place, packet, connections, &mut hops)
        };
        let fate = walk().unwrap_or_else(|fate| fate);
        Walk { hops, fate }
    }

    fn deliver<'a>(
        &'a self,
        from: &'a str,
        place: &'a Place,
        packet: &Packet,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<Fate<'a>, Fate<'a>> {
        let index = self.patch(from, place, packet, hops)?;
        let (to, place) = self.wire(index).ok_or(Fate::Lost(Loss::NoSuchWire))?;
        place.lets_in(to, packet, connections, hops)?;
        Ok(Fate::Delivered(to))
    }
}

impl Place {
    fn link(&self) -> Link {
        Link { index: self.index, name: self.link.clone() }
    }

    /// Asks every hook of a packet that is not for this namespace; what is done to its source.
    fn forwards<'a>(
        &'a self,
        gate: Gate,
        name: &'a str,
        (iif, oif): (&Link, &Link),
        packet: &Packet,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<Option<Nat>, Fate<'a>> {
        datagram(packet)?;
        let arriving = Env { iif: iif.index, iifname: &iif.name, ..self.env(name, packet, connections) };
        let passing = Env { oif: oif.index, oifname: &oif.name, ..arriving };
        let hook =
            [(HookPoint::Prerouting, arriving), (HookPoint::Forward, passing), (HookPoint::Postrouting, passing)];
        let mut source = None;
        for (point, env) in hook {
            let outcome = hooks(&self.lock, Family::Inet, point, None, packet, &env);
            match outcome.nat {
                Some(Nat::Destination { .. }) if outcome.decision == Decision::Accept => {
                    ask(hops, gate, name, outcome)?;
                    return Err(Fate::Lost(Loss::Translated));
                }
                nat => source = source.or(nat),
            }
            ask(hops, gate, name, outcome)?;
        }
        Ok(source)
    }
}

fn destination<'a>(packet: &Packet) -> Result<IpAddr, Fate<'a>> {
    Ok(datagram(packet)?.ends().ok_or(Fate::Lost(Loss::NotIp))?.to())
}

/// The packet with the source that the masquerade gives it: an address of the link that it leaves by.
fn masqueraded<'a>(packet: &Packet, own: &[IpAddr]) -> Result<Packet, Fate<'a>> {
    let to = destination(packet)?;
    let from = own.iter().find(|address| address.is_ipv4() == to.is_ipv4());
    let ends = from.and_then(|from| Ends::new(*from, to));
    ends.and_then(|ends| packet.with_ends(ends)).ok_or(Fate::Lost(Loss::Translated))
}
