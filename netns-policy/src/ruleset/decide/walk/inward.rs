//! The way in by a port of the host: past the host and the gateway, each of which translates the destination.

use super::outside::Leg;
use super::{Connections, Fate, Hop, Loss, Place, Walk, World, datagram, leads_where_it_goes};
use crate::packet::Packet;
use crate::ruleset::HookPoint;
use crate::ruleset::decide::{Env, LOCAL, Nat, UNICAST};

/// A packet from outside to an address of the host's own, as each of the gates on its way ought to see it. It goes as far
/// as the translations make it so.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Call {
    /// As it comes to the host.
    pub to_host: Packet,
    /// To the gateway's end of the leg.
    pub to_gateway: Packet,
    /// To the one who is called.
    pub to_place: Packet,
}

impl World {
    /// Carries a call to wherever it gets. Where the host translates nothing, it is for the host itself.
    pub fn admit<'a>(&'a self, call: &Call, connections: &Connections) -> Walk<'a> {
        let mut hops = Vec::new();
        let fate = match self.admitted(call, connections, &mut hops) {
            Ok(place) => Fate::Delivered(place),
            Err(fate) => fate,
        };
        Walk { hops, fate }
    }

    fn admitted<'a>(
        &'a self,
        call: &Call,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<&'a str, Fate<'a>> {
        let leg = self.leg.as_ref().ok_or(Fate::Lost(Loss::NoSuchPlace))?;
        let (gateway, place) = self.places.get_key_value(&leg.gateway).ok_or(Fate::Lost(Loss::NoSuchPlace))?;
        if !leg.host_sends_on(call, connections, hops)? {
            return Ok("host");
        }
        leg.gateway_sends_on(place, call, connections, hops)?;
        let index = self.patch(gateway, place, &call.to_place, hops)?;
        let (to, place) = self.wire(index).ok_or(Fate::Lost(Loss::NoSuchWire))?;
        place.lets_in(to, &call.to_place, connections, hops)?;
        Ok(to)
    }
}

impl Leg {
    /// Whether the host sends the call into the leg, and lets it through.
    fn host_sends_on<'a>(
        &'a self,
        call: &Call,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<bool, Fate<'a>> {
        datagram(&call.to_host)?;
        let gate = self.host_gate();
        let arriving = Env {
            iif: self.uplink.index,
            iifname: &self.uplink.name,
            fib_daddr_type: LOCAL,
            ..self.host_env(&call.to_host, connections)
        };
        let Some(nat) = gate.ask(HookPoint::Prerouting, &call.to_host, &arriving, hops)? else {
            gate.ask(HookPoint::Input, &call.to_host, &arriving, hops)?;
            return Ok(false);
        };
        leads_to(nat, &call.to_host, &call.to_gateway)?;
        let (oif, oifname) = (self.outer.index, self.outer.name.as_str());
        let passing = Env { oif, oifname, fib_daddr_type: UNICAST, ..arriving };
        gate.ask(HookPoint::Forward, &call.to_gateway, &passing, hops)?;
        // The client's address stays.
        match gate.ask(HookPoint::Postrouting, &call.to_gateway, &passing, hops)? {
            None => Ok(true),
            Some(_) => Err(Fate::Lost(Loss::Translated)),
        }
    }

    fn gateway_sends_on<'a>(
        &'a self,
        place: &'a Place,
        call: &Call,
        connections: &Connections,
        hops: &mut Vec<Hop<'a>>,
    ) -> Result<(), Fate<'a>> {
        let gate = self.gateway_gate(place);
        let arriving = place.env(&self.gateway, &call.to_gateway, connections);
        let arriving = Env { iif: self.inner.index, iifname: &self.inner.name, ..arriving };
        let nat = gate.ask(HookPoint::Prerouting, &call.to_gateway, &arriving, hops)?;
        // What nobody translates is for the gateway itself, where nobody listens.
        leads_to(nat.ok_or(Fate::Lost(Loss::NotAddressedHere))?, &call.to_gateway, &call.to_place)?;
        let passing = Env { oif: place.index, oifname: &place.link, ..arriving };
        gate.ask(HookPoint::Forward, &call.to_place, &passing, hops)?;
        match gate.ask(HookPoint::Postrouting, &call.to_place, &passing, hops)? {
            None => Ok(()),
            Some(_) => Err(Fate::Lost(Loss::Translated)),
        }
    }
}

/// Whether a translation makes of the one packet the other.
fn leads_to<'a>(nat: Nat, from: &Packet, to: &Packet) -> Result<(), Fate<'a>> {
    let port = |packet: &Packet| packet.in_stack().and_then(|view| view.transport(2, 2).map(<[u8]>::to_vec));
    let keeps = matches!(nat, Nat::Destination { port: None, .. });
    let is_so = leads_where_it_goes(nat, to) && (!keeps || port(from) == port(to));
    if is_so { Ok(()) } else { Err(Fate::Lost(Loss::Translated)) }
}
