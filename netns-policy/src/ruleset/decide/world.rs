//! The world that a [`Desired`] makes, so that what is planned can be asked before it exists.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::walk::{Leg, Link, Place, World};
use crate::desired::{self, Desired};
use crate::network::HostNetwork;
use crate::ruleset::compile::LEG;
use crate::topology;

/// The index that the oracle gives the leg's ends and the host's uplink: rules tell these by name.
const SOME_INDEX: u32 = 3;

impl World {
    /// Everything that packets meet once `desired` is made on a host with this network.
    pub fn of(desired: &Desired, host: &HostNetwork) -> Self {
        let places = desired.wires.values().map(|wire| (wire.place.to_string(), place(desired, wire))).collect();
        Self { fabric: desired.fabric.clone(), places, leg: leg(desired, host) }
    }
}

fn place(desired: &Desired, wire: &desired::Wire) -> Place {
    Place {
        fabric_index: wire.index,
        fabric_link: wire.outer.to_string(),
        index: wire.index,
        link: wire.inner.to_string(),
        addresses: wire.addresses.iter().collect(),
        lock: desired.locks.get(&wire.place).cloned().unwrap_or_default(),
    }
}

fn leg(desired: &Desired, host: &HostNetwork) -> Option<Leg> {
    let leg = desired.leg.as_ref()?;
    let gateway = desired.wires.get(&topology::Place::Uplink)?;
    let wired = desired.wires.get(&topology::Place::Host).map(|wire| wire.addresses);
    let own = host.addresses.iter().copied().chain(leg.host.iter());
    let own: Vec<IpAddr> = own.chain(wired.iter().flat_map(|own| own.iter().collect::<Vec<_>>())).collect();
    let pools: Vec<IpNetwork> = gateway.routes.iter().map(|route| route.to).collect();
    let uplink = host.uplinks4.iter().chain(&host.uplinks6).next().cloned().unwrap_or_default();
    Some(Leg {
        gateway: topology::Place::Uplink.to_string(),
        inner: Link { index: SOME_INDEX, name: LEG.to_owned() },
        outer: Link { index: SOME_INDEX, name: leg.host_link.to_string() },
        addresses: leg.gateway.iter().collect(),
        pools,
        host: desired.locks.get(&topology::Place::Host).cloned().unwrap_or_default(),
        host_addresses: own,
        uplink: Link { index: SOME_INDEX, name: uplink },
    })
}
