//! What comes to the host for somebody behind it: a container's packet, or a neighbour's.

use super::outside::Link;
use super::{Connections, Decision, Fate, Gate, Hop, Loss, Place, Walk, World, ask, datagram};
use crate::packet::Packet;
use crate::ruleset::decide::{Env, Nat, hooks};
use crate::ruleset::{Family, HookPoint};

impl World {
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
