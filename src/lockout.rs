//! Whether a change takes the operator's own way in away.
//!
//! The host's own SSH is never in our hands. But whoever dials the host from a service (an onion service for sshd, a
//! tunnel) does so by an edge, and the edge may go with the change that is made over it.

use std::net::IpAddr;

use netns_policy::desired::Desired;
use netns_policy::graph::{AllowGraph, Origin, Target};
use netns_policy::observed::Observed;
use netns_policy::port::Protocol;
use netns_policy::topology::Place;

use crate::session::Session;
use crate::store::{Store, StoreError};

/// The way `PLACE -> host:PORT` that the session uses and that is not in the new graph, or leads from another address
/// then.
pub(crate) fn narrowed(
    session: &Session,
    observed: &Observed,
    desired: &Desired,
    store: &Store,
    new: &AllowGraph,
) -> Result<Option<String>, StoreError> {
    let client = session.client.to_canonical();
    let pools =
        [Some(IpAddr::V4(new.network().pool4.network())), new.network().pool6.map(|pool| pool.network().into())];
    let ours = pools.iter().flatten().any(|pool| pool.is_ipv4() == client.is_ipv4()) && is_inside(client, new);
    if !ours && !is_known(observed, client) {
        return Ok(None);
    }
    let Some(name) = owner(store, client)? else { return Ok(None) };
    let stays = desired.wires.iter().any(|(place, wire)| {
        matches!(place, Place::Service(service) if service.as_str() == name)
            && wire.addresses.iter().any(|address| address == client)
    });
    let allowed = new.edges().iter().any(|edge| {
        matches!(&edge.from, Origin::Service(service) if service.as_str() == name)
            && edge.to == Target::Host
            && edge.ports.covers(Protocol::Tcp, session.server_port)
    });
    Ok((!stays || !allowed).then(|| format!("{name} -> host:{}", session.server_port)))
}

fn is_inside(client: IpAddr, graph: &AllowGraph) -> bool {
    let network = graph.network();
    match client {
        IpAddr::V4(v4) => network.pool4.contains(v4),
        IpAddr::V6(v6) => network.pool6.is_some_and(|pool| pool.contains(v6)),
    }
}

/// Whether a wire of the network has it now, under whatever pool.
fn is_known(observed: &Observed, client: IpAddr) -> bool {
    observed.namespaces.values().flat_map(|netns| netns.links.values()).any(|link| link.addresses.contains(&client))
}

/// The service that has the address on record.
fn owner(store: &Store, client: IpAddr) -> Result<Option<String>, StoreError> {
    let book = store.addresses()?;
    let has = |entry: &netns_policy::address::Entry| match client {
        IpAddr::V4(v4) => entry.address4 == v4,
        IpAddr::V6(v6) => entry.address6 == Some(v6),
    };
    let name = book.services.iter().find(|(_, entry)| has(entry)).map(|(name, _)| name);
    Ok(name.map(|name| name.split('@').next().unwrap_or(name).to_owned()))
}
