//! Whether the pools are free on this host.

use ipnetwork::IpNetwork;
use netns_policy::graph::AllowGraph;
use netns_policy::observed::Observed;

use super::Error;

pub(super) fn pool_is_free(graph: &AllowGraph, observed: &Observed) -> Result<(), Error> {
    let network = graph.network();
    let pools = [Some(IpNetwork::V4(network.pool4)), network.pool6.map(IpNetwork::V6)];
    let host = &observed.host;
    let taken: Vec<IpNetwork> =
        host.on_link.iter().copied().chain(host.addresses.iter().map(|a| (*a).into())).collect();
    let all: Vec<IpNetwork> = taken.iter().chain(&network.lan).copied().collect();
    for pool in pools.into_iter().flatten() {
        if let Some(taken) = taken.iter().find(|taken| overlap(**taken, pool)) {
            return Err(Error::PoolTaken { pool, taken: *taken, free: free_pool(pool, &all) });
        }
    }
    Ok(())
}

/// A pool as large as this one, in 10.0.0.0/8, that overlaps none of `taken`; the one we use unasked comes first.
fn free_pool(like: IpNetwork, taken: &[IpNetwork]) -> Option<IpNetwork> {
    let length = like.prefix();
    let candidates = (231..=255u8).chain(0..231).filter(|_| like.is_ipv4() && length >= 16);
    let mut candidates =
        candidates.filter_map(|second| IpNetwork::new(std::net::Ipv4Addr::new(10, second, 0, 0).into(), length).ok());
    candidates.find(|pool| !taken.iter().any(|taken| overlap(*taken, *pool)))
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}
