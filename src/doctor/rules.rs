//! Rules of others that stop what services send or receive: on the host, and inside namespaces of ours.

use std::collections::BTreeSet;

use netns_policy::graph::{Origin, Target};
use netns_policy::topology::Place;

use super::view::View;
use super::{Check, or_ok};
use crate::attempt::stranger;
use crate::drift::shown;
use crate::kernel::nft::{ListedChain, NftSocket};
use crate::orchestrator::Note;
use crate::uplink::culprit::{self, Way};
use crate::uplink::{self, has_legacy_filter};

/// Who keeps rules of their own, by a chain or table that only they make.
const KEEPERS: [(&str, &str); 6] = [
    ("docker", "DOCKER"),
    ("firewalld", "filter_FORWARD"),
    ("kubernetes", "KUBE-FORWARD"),
    ("libvirt", "LIBVIRT_FWO"),
    ("podman", "NETAVARK_FORWARD"),
    ("ufw", "ufw-user-forward"),
];

/// How many chains of others in one namespace are told one by one.
const MOST: usize = 8;

pub(super) fn checks(view: &View) -> Vec<Check> {
    let mut found = way_out(view);
    let chains = NftSocket::open_wary().and_then(|socket| socket.chains());
    match &chains {
        Ok(chains) => found.extend(host_ends(view, chains)),
        Err(error) => found.push(Check::warn(
            "rules",
            format!("the rules of the host cannot be read: {error}"),
            "`nft list ruleset`, and look for chains that drop",
        )),
    }
    for home in &view.households {
        let strangers = stranger::at(&view.linux, &home.place, Some(&home.netns));
        let stop: Vec<_> = strangers.iter().filter_map(|stranger| Some((stranger, stranger.stops_by?))).collect();
        let netns = &home.netns;
        found.extend(stop.iter().take(MOST).map(|(stranger, how)| {
            let table = stranger.chain.rsplit_once(' ').map_or("", |(table, _)| table);
            let chain = shown(&stranger.chain);
            let seen = format!("chain {chain} in {netns} is not ours and may drop at {} ({how})", stranger.hook);
            let next = format!("look at it: `ip netns exec {netns} nft list table {}`", shown(table));
            Check::warn("rules", seen, next).at(&home.place)
        }));
        if let Some(more) = stop.len().checked_sub(MOST).filter(|more| *more > 0) {
            let seen = format!("{more} more chains in {netns} are not ours and may drop");
            let next = format!("look at them: `ip netns exec {netns} nft list chains`");
            found.push(Check::warn("rules", seen, next).at(&home.place));
        }
    }
    let keepers = keepers(chains.as_deref().unwrap_or_default());
    let keepers = match keepers.as_slice() {
        [] => String::new(),
        [one] => format!("; {one} keeps rules here"),
        some => format!("; {} keep rules here", some.join(", ")),
    };
    or_ok(found, "rules", format!("no rule of others stops what services send or receive{keepers}"))
}

fn keepers(chains: &[ListedChain]) -> Vec<&'static str> {
    let has = |name: &str| chains.iter().any(|chain| chain.name == name);
    KEEPERS.iter().filter(|(_, chain)| has(chain)).map(|(keeper, _)| *keeper).collect()
}

/// What a datagram shows that leaves by the uplink.
fn way_out(view: &View) -> Vec<Check> {
    if view.namespace(&Place::Uplink).is_none() {
        return Vec::new();
    }
    let check = |note: Note| match note {
        Note::Blocked(blocked) => Some(
            Check::fail(
                "rules",
                format!("{} stops what services send outside: a datagram did not get through", blocked.chain),
                blocked.remedy,
            )
            .at("host"),
        ),
        Note::NoUplink => Some(
            Check::warn(
                "rules",
                "the host has no default route: nothing leads outside",
                "connect it, then `nsctl apply`",
            )
            .at("host"),
        ),
        Note::NoResolver => Some(
            Check::warn(
                "rules",
                "the host has no resolver that can be reached from a namespace",
                "name one: `resolvers = [\"ADDRESS\"]` under [network]",
            )
            .at("uplink"),
        ),
        _ => None,
    };
    uplink::notes(&view.planned, &view.nsctl.options().netns).into_iter().filter_map(check).collect()
}

/// What stands between the host and services, where an edge joins them.
fn host_ends(view: &View, chains: &[ListedChain]) -> Vec<Check> {
    let (graph, desired) = (&view.planned.checked.graph, &view.planned.desired);
    let Some(wire) = desired.wires.get(&Place::Host) else { return Vec::new() };
    let families: &[&str] = if wire.addresses.v6.is_some() { &["ip", "ip6"] } else { &["ip"] };
    let legacy: BTreeSet<&str> = families.iter().copied().filter(|family| has_legacy_filter(family)).collect();
    let to_host = graph.edges().iter().any(|edge| edge.to == Target::Host);
    let from_host = graph.edges().iter().any(|edge| edge.from == Origin::Host);
    let ways = [(to_host, Way::In, "services send to the host"), (from_host, Way::Out, "the host sends to services")];
    let mut found = Vec::new();
    for (_, way, what) in ways.into_iter().filter(|(asked, ..)| *asked) {
        let blocked = culprit::find(chains, (families, way), &legacy, wire.inner.as_str());
        found.extend(blocked.into_iter().map(|one| {
            let seen = format!("{} may stop what {what}", one.chain);
            Check::warn("rules", seen, format!("unless a rule there lets it pass: {}", one.remedy)).at("host")
        }));
    }
    found
}
