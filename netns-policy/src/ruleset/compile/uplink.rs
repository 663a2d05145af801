//! The gateway `uplink`: the way out of `outbound = "direct"` and `"lan"`, the resolver of `dns = "direct"`, and the way in
//! of `expose.lan` and `expose.port`.
//!
//! Every packet towards the outside, and every one that comes in by an exposure, is asked anew who may send it, so that
//! a revoked way is closed for open connections too; only replies rest on connection tracking.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::entrance::entrances;
use super::lock::known;
use super::outside::{direct_reach, lan, lan_reach, not_direct};
use super::vocabulary::{
    BOTH, ESTABLISHED, ICMP_ERRORS, ICMP6_ERRORS, INVALID, Load, RELATED, TCP, UDP, UNTRACKED, Version, base_chain,
    interval, key, rule, set,
};
use super::{Source, TABLE};
use crate::ruleset::{Chain, ChainKind, Family, Field, HookPoint, Reject, Rule, Ruleset, Set, Table};
use crate::topology::Place;

/// The gateway's end of the leg.
pub const LEG: &str = "up0";
const WIRE: &str = "net0";
/// `tcp flags`.
const RST: u8 = 0x04;

pub(super) fn compile(source: &Source) -> Ruleset {
    let mut chains: BTreeMap<String, Chain> = BTreeMap::from([
        ("input".into(), base_chain(ChainKind::Filter, HookPoint::Input, 0, false, input())),
        ("forward".into(), base_chain(ChainKind::Filter, HookPoint::Forward, 0, false, forward(source))),
        ("refuse".into(), Chain { hook: None, rules: refuse() }),
        ("output".into(), base_chain(ChainKind::Filter, HookPoint::Output, 0, false, output())),
        ("to_resolver".into(), base_chain(ChainKind::Nat, HookPoint::Prerouting, -100, true, resolve(source))),
    ]);
    let leaving = vec![rule().oifname(LEG).masquerade()];
    chains.insert("leaving".into(), base_chain(ChainKind::Nat, HookPoint::Postrouting, 100, true, leaving));
    if !entrances(source).is_empty() {
        let to_service = base_chain(ChainKind::Nat, HookPoint::Prerouting, -100, true, enter(source));
        chains.insert("to_service".into(), to_service);
    }
    let table = Table { chains: chains.into(), sets: sets(source).into(), dormant: false };
    Ruleset { tables: BTreeMap::from([((Family::Inet, TABLE.to_owned()), table)]) }
}

fn sets(source: &Source) -> BTreeMap<String, Set> {
    let mut sets = BTreeMap::new();
    for v in BOTH {
        sets.insert(v.named("host"), host(source, v));
        exposed(source, v).into_iter().for_each(|set| drop(sets.insert(v.named("exposed"), set)));
        sets.insert(v.named("not_direct"), not_direct(source, v));
        let mut direct = set(&[v.addr()]);
        let mut lan_set = interval(&[v.addr(), v.addr()]);
        let mut reach_set = interval(&[v.addr(), v.addr(), Field::InetProto, Field::InetService]);
        let mut ports = interval(&[v.addr(), v.addr(), Field::InetProto, Field::InetService]);
        let mut resolver = set(&[v.addr(), v.addr()]);
        for service in source.graph.services() {
            let addresses = source.addresses.of(&Place::Service(service.name.clone()));
            let own = addresses.iter().flat_map(|a| a.iter().collect::<Vec<_>>()).find(|a| Version::of(*a) == v);
            let Some(own) = own else { continue };
            if service.outbound.direct {
                direct.elements.insert(key().addr(own).exact(), None);
            }
            for (from, to) in lan(source, service, v) {
                lan_set.elements.insert(key().addr(own).addrs(from, to).range_key(), None);
            }
            for (set, reach) in [(&mut reach_set, lan_reach(service, v)), (&mut ports, direct_reach(service, v))] {
                let tuples = reach.iter().map(|r| (r.fill(key().addr(own).addrs(r.from, r.to)), None));
                set.elements.extend(tuples);
            }
            if service.dns == crate::graph::Dns::Direct {
                for to in resolvers(source, v) {
                    resolver.elements.insert(key().addr(own).addr(to).exact(), None);
                }
            }
        }
        sets.insert(v.named("direct"), direct);
        sets.insert(v.named("lan"), lan_set);
        sets.insert(v.named("reach"), reach_set);
        sets.insert(v.named("direct_ports"), ports);
        sets.insert(v.named("resolvers"), resolver);
        let errors = if v == Version::V4 { &ICMP_ERRORS[..] } else { &ICMP6_ERRORS[..] };
        let elements = errors.iter().map(|kind| (key().icmp_type(*kind).exact(), None)).collect();
        sets.insert(v.named("icmp_errors"), Set { elements, ..set(&[v.icmp_field()]) });
    }
    sets
}

/// The host's own addresses: nobody reaches the machine by going out and coming back.
fn host(source: &Source, v: Version) -> Set {
    let own = source.host.addresses.iter().filter(|address| Version::of(**address) == v);
    Set { elements: own.map(|address| (key().addr(*address).exact(), None)).collect(), ..set(&[v.addr()]) }
}

/// The resolvers to which questions are sent on.
pub(super) fn resolvers(source: &Source, v: Version) -> Vec<IpAddr> {
    source.resolvers().iter().copied().filter(|address| Version::of(*address) == v).take(1).collect()
}

/// Who may come in to whom: from, to, and the port there.
fn exposed(source: &Source, v: Version) -> Option<Set> {
    let entrances = entrances(source);
    let keys = entrances.iter().filter_map(|entrance| {
        let (to, from) = entrance.of(source, v)?;
        Some(entrance.keys(&from, to, entrance.port))
    });
    let shape = interval(&[v.addr(), v.addr(), Field::InetProto, Field::InetService]);
    let elements = keys.flatten().map(|key| (key, None)).collect();
    (!entrances.is_empty()).then_some(Set { elements, ..shape })
}

/// A port of the leg's end, to which the host has translated its own, is the port of a service.
fn enter(source: &Source) -> Vec<Rule> {
    let ends = source.addresses.leg_gateway();
    let rules = entrances(source).into_iter().flat_map(|entrance| {
        let pairs: Vec<_> = ends.iter().zip(entrance.to_addresses.iter()).collect();
        pairs.into_iter().map(move |(end, to)| {
            let called = rule().iifname(LEG).nfproto(Version::of(end)).daddr(end);
            let called = called.l4proto(entrance.protocol.number()).dport(entrance.outside);
            called.dnat(to, Some(entrance.port))
        })
    });
    rules.collect()
}

fn input() -> Vec<Rule> {
    let mut rules = vec![rule().iif_lo().accept()];
    rules.extend(known());
    rules.push(rule().counter().drop());
    rules
}

/// The gateway says nothing of its own but ICMP errors about what it forwards, and refusals.
fn output() -> Vec<Rule> {
    let mut rules = vec![rule().oif_lo().accept()];
    rules.extend(known());
    // A reset with which `forward` refuses belongs to the connection that never came to be: it is related, not established.
    rules.push(rule().oifname(WIRE).l4proto(TCP).tcp_flags(RST, true, RST).ct_state(RELATED).accept());
    for v in BOTH {
        let error = rule().nfproto(v).l4proto(v.icmp());
        rules.push(error.among(&[Load::IcmpType], &v.named("icmp_errors"), true).accept());
    }
    rules.push(rule().counter().drop());
    rules
}

fn forward(source: &Source) -> Vec<Rule> {
    let mut rules = vec![
        rule().clamp_mss(),
        // What belongs to no connection is not translated either: it would leave with a source of the pool.
        rule().ct_state(INVALID | UNTRACKED).counter().drop(),
    ];
    let back = || rule().iifname(LEG).oifname(WIRE);
    if !entrances(source).is_empty() {
        rules.extend(BOTH.map(|v| {
            let call = [Load::Saddr(v), Load::Daddr(v), Load::L4proto, Load::Dport];
            back().nfproto(v).among(&call, &v.named("exposed"), true).accept()
        }));
        rules.extend(BOTH.map(|v| {
            let answer = [Load::Daddr(v), Load::Saddr(v), Load::L4proto, Load::Sport];
            let answer = rule().iifname(WIRE).oifname(LEG).nfproto(v).among(&answer, &v.named("exposed"), true);
            answer.ct_state(ESTABLISHED).ct_reply().accept()
        }));
    }
    rules.push(back().ct_state(ESTABLISHED).ct_reply().accept());
    for v in BOTH {
        let error = back().nfproto(v).l4proto(v.icmp()).among(&[Load::IcmpType], &v.named("icmp_errors"), true);
        rules.push(error.ct_state(RELATED).accept());
    }
    for v in BOTH {
        let out = || rule().iifname(WIRE).oifname(LEG).nfproto(v);
        let (here, there) = (Load::Saddr(v), Load::Daddr(v));
        rules.push(out().among(&[here, there], &v.named("resolvers"), true).dport(53).accept());
        rules.push(out().among(&[there], &v.named("host"), true).goto("refuse"));
        rules.push(out().among(&[here, there], &v.named("lan"), true).accept());
        let tuple = [here, there, Load::L4proto, Load::Dport];
        rules.push(out().among(&tuple, &v.named("reach"), true).accept());
        let public = || out().among(&[there], &v.named("not_direct"), false);
        rules.push(public().among(&[here], &v.named("direct"), true).accept());
        rules.push(public().among(&tuple, &v.named("direct_ports"), true).accept());
        let error = out().l4proto(v.icmp()).among(&[Load::IcmpType], &v.named("icmp_errors"), true);
        rules.push(error.ct_state(RELATED).accept());
    }
    rules.push(rule().iifname(WIRE).goto("refuse"));
    rules.push(rule().counter().end());
    rules
}

/// A TCP client takes an ICMP error for a passing trouble while it is still inside connect(2), and tries again after a
/// second; a reset ends it at once.
fn refuse() -> Vec<Rule> {
    vec![
        rule().counter().end(),
        rule().l4proto(TCP).reject(Reject::TcpReset),
        rule().reject(Reject::IcmpxAdminProhibited),
    ]
}

fn resolve(source: &Source) -> Vec<Rule> {
    let asked = source.addresses.resolver();
    let pairs = asked.iter().flat_map(|address| {
        let to = resolvers(source, Version::of(address));
        to.into_iter().flat_map(move |resolver| [UDP, TCP].map(|proto| (address, resolver, proto)))
    });
    pairs
        .map(|(address, resolver, proto)| {
            let question = rule().iifname(WIRE).nfproto(Version::of(address)).daddr(address).l4proto(proto).dport(53);
            question.dnat(resolver, None)
        })
        .collect()
}
