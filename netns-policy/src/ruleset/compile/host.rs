//! The table of ours on the host: the host's lock on its own wire, and the masquerade of the uplink's leg.
//!
//! It never judges a packet that is neither on a link of ours, nor to an address of ours, nor let in by a sysctl of ours:
//! every chain accepts by default, so the host's own traffic, SSH above all, cannot be cut here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::entrance::entrances;
use super::grant::Grant;
use super::lock::{Elements, called, callers, connection_sets, known, known_of};
use super::outside::{join, not_direct};
use super::vocabulary::{BOTH, ESTABLISHED, Load, NEW, TCP, Version, Words, base_chain, interval, key, rule};
use super::{Source, host_table};
use crate::name::NetworkName;
use crate::observed::Observed;
use crate::ruleset::{Chain, ChainKind, Family, Field, HookPoint, Reject, Rule, Ruleset, Set, Table};
use crate::topology::{Place, leg_link};

/// `tcp flags`.
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The chain that counts what got through the host's forward hook, one rule a family.
pub const PASSED: &str = "passed";

pub(super) fn compile(source: &Source, grants: &[&Grant]) -> Ruleset {
    let uses_host = source.indexes.contains_key(&Place::Host);
    let uses_uplink = source.indexes.contains_key(&Place::Uplink);
    if !uses_host && !uses_uplink {
        return Ruleset::default();
    }
    let mut sets = connection_sets();
    let mut lock = Elements { sets: &mut sets };
    for grant in grants {
        lock.grant(&Place::Host, grant);
    }
    for v in BOTH {
        sets.insert(v.named("not_direct"), not_direct(source, v));
        sets.insert(v.named("lan"), lan(source, v));
        if !entrances(source).is_empty() {
            sets.insert(v.named("ports"), ports(source, v));
            sets.insert(v.named("exposed"), exposed(source, v));
        }
    }
    let table = Table { chains: chains(source).into(), sets: sets.into(), dormant: false };
    Ruleset { tables: BTreeMap::from([((Family::Inet, host_table(source.graph)), table)]) }
}

/// Private destinations that some service may reach: who, the gateway has asked already.
fn lan(source: &Source, v: Version) -> Set {
    let lan = source.graph.network().lan.iter().map(|prefix| (prefix.network(), prefix.broadcast()));
    let only = source
        .graph
        .services()
        .flat_map(|service| service.outbound.lan_only.iter().map(|(prefix, _)| (prefix.network(), prefix.broadcast())));
    let resolvers = super::uplink::resolvers(source, v).into_iter().map(|address| (address, address));
    let all = lan.chain(only).chain(resolvers).filter(|(from, _)| Version::of(*from) == v).collect();
    let elements = join(all).into_iter().map(|(from, to)| (key().addrs(from, to).range_key(), None));
    Set { elements: elements.collect(), ..interval(&[v.addr()]) }
}

/// Who may come in by which port of the host.
fn ports(source: &Source, v: Version) -> Set {
    let keys = entrances(source).into_iter().filter_map(|entrance| {
        let (_, from) = entrance.of(source, v)?;
        Some(entrance.keys_here(&from, entrance.outside))
    });
    let elements = keys.flatten().map(|key| (key, None)).collect();
    Set { elements, ..interval(&[v.addr(), Field::InetProto, Field::InetService]) }
}

/// The same, as it looks when it is sent on to the gateway.
fn exposed(source: &Source, v: Version) -> Set {
    let end = source.addresses.leg_gateway().iter().find(|end| Version::of(*end) == v);
    let keys = entrances(source).into_iter().filter_map(|entrance| {
        let (_, from) = entrance.of(source, v)?;
        Some(entrance.keys(&from, end?, entrance.outside))
    });
    let elements = keys.flatten().map(|key| (key, None)).collect();
    Set { elements, ..interval(&[v.addr(), v.addr(), Field::InetProto, Field::InetService]) }
}

/// A port of one of the host's own addresses is the same port of the gateway's end of the leg, for those who may come in by
/// it; never for who is on a link of ours.
fn enter(source: &Source) -> Vec<Rule> {
    let ends = source.addresses.leg_gateway();
    let rules = ends.iter().map(|end| {
        let v = Version::of(end);
        let here = rule().nfproto(v).iif_is_not_ours().local_destination();
        here.among(&[Load::Saddr(v), Load::L4proto, Load::Dport], &v.named("ports"), true).dnat(end, None)
    });
    rules.collect()
}

fn chains(source: &Source) -> BTreeMap<String, Chain> {
    let wire = Place::Host.inner_link(&source.graph.network().name).to_string();
    let leg = leg_link(&source.graph.network().name).to_string();
    let mut input = vec![rule().iifname(&wire).goto("from_fabric")];
    // The gateway has no business with the machine itself.
    input.extend(known_of(|| rule().iifname(&leg)));
    input.extend([rule().iifname(&leg).counter().drop(), rule().iif_lo().accept()]);
    // A machine answers for each of its addresses on each of its links: what listens on the fabric's address for
    // services alone would be open to containers and to neighbours who send there.
    input.extend(own(source).map(|address| rule().nfproto(Version::of(address)).daddr(address).counter().drop()));
    let output = vec![rule().oifname(&wire).goto("to_fabric")];
    let regular = |rules| Chain { hook: None, rules };
    // Before `filter` (0), so that what is dropped here is seen by nobody else; what is accepted here is still judged
    // by every other table.
    let base = |point, rules| base_chain(ChainKind::Filter, point, -10, true, rules);
    let mut chains = BTreeMap::from([
        ("input".into(), base(HookPoint::Input, input)),
        ("output".into(), base(HookPoint::Output, output)),
        ("forward".into(), base(HookPoint::Forward, forward(source, &wire, &leg))),
        ("from_fabric".into(), regular(from_fabric())),
        ("to_fabric".into(), regular(to_fabric())),
        ("from_leg".into(), regular(from_leg(source))),
        ("to_leg".into(), regular(to_leg(source))),
        ("leaving".into(), base_chain(ChainKind::Nat, HookPoint::Postrouting, 100, true, masquerade(source))),
        (PASSED.into(), base_chain(ChainKind::Filter, HookPoint::Postrouting, -150, true, passed(source))),
    ]);
    if !entrances(source).is_empty() {
        chains
            .insert("to_gateway".into(), base_chain(ChainKind::Nat, HookPoint::Prerouting, -100, true, enter(source)));
    }
    chains
}

/// The host's addresses on its wire and on its leg, as far as it has them.
fn own(source: &Source) -> impl Iterator<Item = IpAddr> {
    let wire = source.addresses.of(&Place::Host).filter(|_| source.indexes.contains_key(&Place::Host));
    let leg = source.indexes.contains_key(&Place::Uplink).then(|| source.addresses.leg_host());
    [wire, leg].into_iter().flatten().flat_map(|addresses| addresses.iter().collect::<Vec<_>>())
}

fn forward(source: &Source, wire: &str, leg: &str) -> Vec<Rule> {
    let mut rules = vec![
        // Only what the host itself sends may use its wire: what a container sends behind the host is not the host.
        rule().iifname(wire).counter().drop(),
        rule().oifname(wire).counter().drop(),
        rule().iifname(leg).goto("from_leg"),
        rule().oifname(leg).goto("to_leg"),
    ];
    rules.extend(guard(source));
    rules
}

/// Forwarding was switched on for the leg alone: where it was off before, everybody else still finds it off. Another
/// network of ours has a leg too, and judges it in a table of its own.
fn guard(source: &Source) -> Vec<Rule> {
    if !source.indexes.contains_key(&Place::Uplink) {
        return vec![];
    }
    let off = |path: &str| source.host.original(path) == Some("0");
    let mut rules = Vec::new();
    if off("net/ipv4/ip_forward") {
        let ours = source.host.forwarding4(source.graph);
        let ours = ours.iter().filter(|link| off(&format!("net/ipv4/conf/{link}/forwarding")));
        rules.extend(ours.map(|link| guard4(link)));
    }
    if off("net/ipv6/conf/all/forwarding") && source.host.forwards6(source.graph) {
        rules.push(guard6());
    }
    rules
}

fn guard4(link: &str) -> Rule {
    rule().nfproto(Version::V4).iifname(link).oif_is_not_ours().counter().drop()
}

/// All links: where the one switch for all was off, nothing came from any to any.
fn guard6() -> Rule {
    rule().nfproto(Version::V6).iif_is_not_ours().oif_is_not_ours().counter().drop()
}

/// What sysctls were before us, where the record of that is lost but our traces in the kernel tell: the guard stands in
/// our table only for what was off. Where the table is gone too and our leg is there, what is on was switched on by us.
pub fn unrecorded(network: &NetworkName, observed: &Observed) -> BTreeMap<String, String> {
    let host = &observed.host;
    let name = leg_link(network);
    let own = format!("net/ipv4/conf/{name}/forwarding");
    let leg = observed.host_links.get(name.as_str());
    let table = observed.host_rules.tables.get(&(Family::Inet, format!("{}-{network}", super::TABLE)));
    if host.before.contains_key(&own) || (leg.is_none() && table.is_none()) {
        return BTreeMap::new();
    }
    let forward = table.and_then(|table| table.chains.get("forward"));
    let guarded = |guard: &Rule| match table {
        Some(_) => forward.is_some_and(|chain| chain.rules.contains(guard)),
        None => leg.is_some(),
    };
    let on = |path: &str| host.sysctls.get(path).is_some_and(|value| value == "1");
    let mut paths: Vec<String> = Vec::new();
    if !on("net/ipv4/ip_forward") {
        // A link that is no uplink was switched on for who comes in, if its guard says so.
        let others = host.links.keys().filter(|link| table.is_some() && !host.uplinks4.contains(*link));
        let ours = host.uplinks4.iter().chain(others).filter(|link| guarded(&guard4(link)));
        paths.extend(ours.map(|link| format!("net/ipv4/conf/{link}/forwarding")));
        paths.extend(leg.map(|_| own));
    }
    let has6 = leg.is_none_or(|leg| leg.addresses.iter().any(|address| is_global6(*address)));
    if has6 && (table.is_some() || !host.uplinks6.is_empty()) && guarded(&guard6()) {
        paths.push("net/ipv6/conf/all/forwarding".into());
    }
    paths
        .into_iter()
        .filter(|path| on(path) && !host.before.contains_key(path))
        .map(|path| (path, "0".into()))
        .collect()
}

fn is_global6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if !address.is_unicast_link_local())
}

/// TCP that begins in the middle. The host's own connection tracking may pick it up (`nf_conntrack_tcp_loose`, which is
/// not ours to set there); in our namespaces such a packet is invalid. A reset opens nothing, and ends what had no
/// answer yet.
fn picked_up() -> Words {
    rule().l4proto(TCP).tcp_flags(SYN | ACK, false, SYN).tcp_flags(RST, false, RST).ct_state(NEW).counter()
}

fn from_fabric() -> Vec<Rule> {
    let mut rules = known();
    rules.push(picked_up().drop());
    rules.extend(callers());
    rules.push(rule().counter().drop());
    rules
}

fn to_fabric() -> Vec<Rule> {
    let mut rules = known();
    rules.push(picked_up().reject(Reject::TcpReset));
    rules.extend(called());
    rules.push(rule().counter().end());
    rules.push(rule().l4proto(TCP).reject(Reject::TcpReset));
    rules.push(rule().reject(Reject::IcmpxAdminProhibited));
    rules
}

fn from_leg(source: &Source) -> Vec<Rule> {
    let mut rules = vec![rule().local_destination().counter().drop()];
    if !entrances(source).is_empty() {
        // Who came in may have any address.
        rules.push(rule().ct_state(ESTABLISHED).ct_reply().accept());
    }
    for v in BOTH {
        let there = [Load::Daddr(v)];
        rules.push(rule().nfproto(v).among(&there, &v.named("lan"), true).accept());
        rules.push(rule().nfproto(v).among(&there, &v.named("not_direct"), true).counter().drop());
    }
    rules.push(rule().accept());
    rules
}

fn to_leg(source: &Source) -> Vec<Rule> {
    let mut rules = known();
    if !entrances(source).is_empty() {
        rules.extend(BOTH.map(|v| {
            let call = [Load::Saddr(v), Load::Daddr(v), Load::L4proto, Load::Dport];
            rule().nfproto(v).ct_state(NEW).among(&call, &v.named("exposed"), true).accept()
        }));
    }
    rules.push(rule().counter().drop());
    rules
}

fn masquerade(source: &Source) -> Vec<Rule> {
    leg_sources(source, |words| words.masquerade())
}

/// Counts what got through the forward hook: `apply` sends a probe and looks here to learn whether somebody else's
/// rules drop it.
fn passed(source: &Source) -> Vec<Rule> {
    leg_sources(source, |words| words.counter().end())
}

fn leg_sources(source: &Source, end: impl Fn(super::vocabulary::Words) -> Rule) -> Vec<Rule> {
    if !source.indexes.contains_key(&Place::Uplink) {
        return vec![];
    }
    let wire = Place::Host.inner_link(&source.graph.network().name).to_string();
    let from = source.addresses.leg_gateway();
    from.iter().map(|address| end(rule().nfproto(Version::of(address)).saddr(address).oifname_is_not(&wire))).collect()
}
