//! The first lock: one ingress chain a wire, one chain a family, and maps that say which wire a packet goes into.

use std::collections::BTreeMap;

use super::entrance::{Entrance, entrances};
use super::grant::{Grant, grants};
use super::outside::{lan, private, reach};
use super::vocabulary::{BOTH, Load, TCP, UDP, Version, Words, dynamic, interval, interval_map, key, map, rule, set};
use super::{EXPAND, Source, TABLE};
use crate::graph::{Denied, Service};
use crate::ruleset::{Chain, ChainKind, Family, Field, Hook, HookPoint, Key, Rule, Ruleset, Set, Table};
use crate::topology::Place;

/// `tcp flags`: SYN and ACK.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

pub(super) fn compile(source: &Source) -> Ruleset {
    let mut table = Table { sets: sets(source).into(), chains: chains(source).into(), dormant: false };
    let mut panel = Elements { sets: &mut table.sets, indexes: source.indexes };
    for (place, index) in source.indexes {
        panel.source(source, place, *index);
    }
    for grant in grants(source.graph, source.addresses) {
        panel.grant(&grant);
    }
    for service in source.graph.services() {
        panel.outbound(source, service);
    }
    for entrance in entrances(source) {
        panel.entrance(source, &entrance);
    }
    Ruleset { tables: BTreeMap::from([((Family::Netdev, TABLE.to_owned()), table)]) }
}

fn sets(source: &Source) -> BTreeMap<String, Set> {
    let mut sets = BTreeMap::new();
    for v in BOTH {
        let tuple = [Field::IfaceIndex, v.addr(), v.addr(), Field::InetProto, Field::InetService];
        let way = [Field::IfaceIndex, v.addr()];
        let mut add = |stem: &str, set| sets.insert(v.named(stem), set);
        add("edges", map(&tuple));
        add("replies", map(&tuple));
        add("edge_ranges", interval_map(&tuple));
        add("reply_ranges", interval_map(&tuple));
        add("echo", map(&[Field::IfaceIndex, v.addr(), v.addr(), v.icmp_field()]));
        add("sources", set(&way));
        add("direct", map(&way));
        add("direct_back", map(&way));
        add("lan", interval_map(&[Field::IfaceIndex, v.addr(), v.addr()]));
        add("lan_back", interval_map(&[Field::IfaceIndex, v.addr(), v.addr()]));
        add("reach", interval_map(&tuple));
        add("reach_back", interval_map(&tuple));
        add("errors_back", map(&way));
        add("icmp_errors", constant(v.icmp_field(), v.icmp_errors()));
        add("private", private(v));
        if !entrances(source).is_empty() {
            let end = [Field::IfaceIndex, v.addr(), Field::InetProto, Field::InetService];
            add("exposed", map(&end));
            add("exposed_back", map(&end));
        }
        add("pool", pool(source, v));
    }
    sets.insert("denied".into(), dynamic(&[Field::IfaceIndex], 65535, 86400));
    sets
}

fn constant(field: Field, values: &[u8]) -> Set {
    let elements = values.iter().map(|value| (key().icmp_type(*value).exact(), None)).collect();
    Set { elements, ..set(&[field]) }
}

fn pool(source: &Source, v: Version) -> Set {
    let elements = source.pool(v).into_iter().map(|(from, to)| (key().addrs(from, to).range_key(), None)).collect();
    Set { elements, ..interval(&[v.addr()]) }
}

fn chains(source: &Source) -> BTreeMap<String, Chain> {
    let mut chains: BTreeMap<String, Chain> =
        source.indexes.iter().map(|(place, index)| (wire_chain(*index), ingress(place))).collect();
    chains.insert("panel".into(), Chain { hook: None, rules: entry() });
    for v in BOTH {
        chains.insert(v.named("panel"), Chain { hook: None, rules: family(source, v) });
        chains.insert(v.named("fragments"), Chain { hook: None, rules: fragments(v) });
    }
    chains
}

/// The base chain of a wire. Its number is the wire's index, so that a wire which is made anew gets a new chain.
pub fn wire_chain(index: u32) -> String {
    format!("wire{index}")
}

fn ingress(place: &Place) -> Chain {
    let hook = Hook {
        kind: ChainKind::Filter,
        point: HookPoint::Ingress,
        device: Some(place.link().to_string()),
        priority: 0,
        policy_accept: false,
    };
    Chain { hook: Some(hook), rules: vec![rule().goto("panel")] }
}

fn entry() -> Vec<Rule> {
    vec![
        // The kernel takes one tag off before this hook, so that the packet looks untagged: the link header does not.
        rule().link_type(0x8100).counter().drop(),
        rule().link_type(0x88a8).counter().drop(),
        rule().ethertype(Version::V4).goto("panel4"),
        rule().ethertype(Version::V6).goto("panel6"),
        rule().counter().drop(),
    ]
}

fn family(source: &Source, v: Version) -> Vec<Rule> {
    let call = [Load::Iif, Load::Saddr(v), Load::Daddr(v), Load::L4proto, Load::Dport];
    let answer = [Load::Iif, Load::Saddr(v), Load::Daddr(v), Load::L4proto, Load::Sport];
    let mut rules = Vec::new();
    if v == Version::V6 {
        rules.push(rule().routing_header().counter().drop());
    }
    rules.push(rule().fragment(v).goto(&v.named("fragments")));
    rules.push(rule().fwd(&call, &v.named("edges")));
    rules.extend(replies(&answer, &v.named("replies")));
    rules.push(rule().fwd(&call, &v.named("edge_ranges")));
    rules.extend(replies(&answer, &v.named("reply_ranges")));
    let echo = [Load::Iif, Load::Saddr(v), Load::Daddr(v), Load::IcmpType];
    rules.push(rule().l4proto(v.icmp()).fwd(&echo, &v.named("echo")));
    rules.extend(errors(v));
    if !entrances(source).is_empty() {
        rules.extend(exposed(v));
    }
    rules.extend(outside(v));
    rules.extend(refusal(source, v));
    rules
}

/// Parts of a datagram: between a service and the gateway only, by address and never by port.
///
/// A later part has no ports, yet the kernel's quick loads of one, two and four bytes read on regardless: what the
/// sender wrote there would be taken for ports (seen on 6.18; in IPv6 it is the flow label). So no rule with a port
/// ever sees a part. Inside the fabric there are none, as its MTU is the largest that IP has.
fn fragments(v: Version) -> Vec<Rule> {
    let mut rules = by_address(v).to_vec();
    rules.push(rule().counter().drop());
    rules
}

/// A reply is never a pure SYN: nobody can open a connection through the mirror.
fn replies(answer: &[Load], map: &str) -> [Rule; 2] {
    [rule().l4proto(TCP).tcp_flags(SYN | ACK, false, SYN).fwd(answer, map), rule().l4proto(UDP).fwd(answer, map)]
}

/// ICMP errors about a declared flow, told by the header that they embed.
///
/// The embedded packet ran the other way, so its source is the one who is told: it must own the flow (the first
/// question), and the error must be addressed to somebody with whom the sender has such a flow (the second, which
/// gives the wire). An error whose outer and embedded addresses differ is ignored by the receiver's own lock.
fn errors(v: Version) -> Vec<Rule> {
    let at = v.embedded();
    let width = if v == Version::V4 { 4 } else { 16 };
    let (proto, from, to) = (at.proto, Load::Transport(at.daddr, width), Load::Transport(at.saddr, width));
    let start = || error_of_its_own(v);
    let maps = [("replies", at.dport), ("reply_ranges", at.dport), ("edges", at.sport), ("edge_ranges", at.sport)];
    maps.map(|(stem, port)| {
        let about = |told| [Load::Iif, from, told, Load::Transport(proto, 1), Load::Transport(port, 2)];
        start().has(&about(to), &v.named(stem)).fwd(&about(Load::Daddr(v)), &v.named(stem))
    })
    .to_vec()
}

/// Who comes in by a port of the host, with an address of its own: the far one is in no key, but it is never of a pool,
/// so nobody in the fabric is taken for somebody outside.
///
/// An ICMP error about what has come in goes back by the header that it embeds, to whom the gateway's connection tracking
/// relates it.
fn exposed(v: Version) -> [Rule; 4] {
    let (here, there) = ([Load::Saddr(v)], [Load::Daddr(v)]);
    let answer = [Load::Iif, Load::Saddr(v), Load::L4proto, Load::Sport];
    let outward = |words: Words| words.among(&there, &v.named("pool"), false).fwd(&answer, &v.named("exposed_back"));
    let call = [Load::Iif, Load::Daddr(v), Load::L4proto, Load::Dport];
    [
        rule().among(&here, &v.named("pool"), false).fwd(&call, &v.named("exposed")),
        outward(rule().l4proto(TCP).tcp_flags(SYN | ACK, false, SYN)),
        outward(rule().l4proto(UDP)),
        outward_error(v),
    ]
}

fn outward_error(v: Version) -> Rule {
    let (at, width) = (v.embedded(), if v == Version::V4 { 4 } else { 16 });
    let about =
        [Load::Iif, Load::Transport(at.daddr, width), Load::Transport(at.proto, 1), Load::Transport(at.dport, 2)];
    error_of_its_own(v).among(&[Load::Daddr(v)], &v.named("pool"), false).fwd(&about, &v.named("exposed_back"))
}

/// An ICMP error with the source of its wire, about a packet whose header has no options.
fn error_of_its_own(v: Version) -> Words {
    let of_this_kind = rule().l4proto(v.icmp()).among(&[Load::IcmpType], &v.named("icmp_errors"), true);
    let own = of_this_kind.among(&[Load::Iif, Load::Saddr(v)], &v.named("sources"), true);
    match v {
        // A header with options would put the ports elsewhere.
        Version::V4 => own.transport_byte(8, 0xff, 0x45),
        Version::V6 => own.transport_byte(8, 0xf0, 0x60),
    }
}

/// To the gateway and back: after all exact entries have missed.
fn outside(v: Version) -> Vec<Rule> {
    let (here, there) = (Load::Saddr(v), Load::Daddr(v));
    let error = || rule().l4proto(v.icmp()).among(&[Load::IcmpType], &v.named("icmp_errors"), true);
    let sources = v.named("sources");
    let mut rules = by_address(v).to_vec();
    rules.extend([
        rule().fwd(&[Load::Iif, here, there, Load::L4proto, Load::Dport], &v.named("reach")),
        rule().fwd(&[Load::Iif, here, there, Load::L4proto, Load::Sport], &v.named("reach_back")),
        // A router on the way may have any address, a private one too, and the gateway itself has one of ours.
        error().among(&[here], &v.named("pool"), false).fwd(&[Load::Iif, there], &v.named("errors_back")),
        error().among(&[Load::Iif, here], &sources, true).fwd(&[Load::Iif, there], &v.named("errors_back")),
    ]);
    rules
}

/// What an unrestricted `direct` or `lan` opens, there and back.
fn by_address(v: Version) -> [Rule; 4] {
    let (here, there) = (Load::Saddr(v), Load::Daddr(v));
    [
        rule().among(&[there], &v.named("private"), false).fwd(&[Load::Iif, here], &v.named("direct")),
        rule().fwd(&[Load::Iif, here, there], &v.named("lan")),
        rule().among(&[here], &v.named("private"), false).fwd(&[Load::Iif, there], &v.named("direct_back")),
        rule().fwd(&[Load::Iif, here, there], &v.named("lan_back")),
    ]
}

fn refusal(source: &Source, v: Version) -> Vec<Rule> {
    let defaults = source.graph.defaults();
    let mut rules = vec![
        // Spoofed: counted, and never answered, or the answer would go to somebody who asked nothing.
        rule().among(&[Load::Iif, Load::Saddr(v)], &v.named("sources"), false).counter().drop(),
        // One element a wire: a flood fills nothing for others. The lock of each service keeps the details.
        rule().update(&[Load::Iif], "denied"),
    ];
    if defaults.log {
        rules.push(rule().log("nsctl panel "));
    }
    if source.capabilities.netdev_reject && defaults.denied == Denied::Reject {
        // Only who opens a connection is told. A packet of a known one that is looked up while somebody flushes the rules
        // can miss its element and still find its source: a reset would end what the next apply brings back.
        let opening = rule().l4proto(TCP).tcp_flags(SYN | ACK, true, SYN);
        rules.push(opening.reject(crate::ruleset::Reject::TcpReset));
        rules.push(rule().l4proto(UDP).reject(v.admin_prohibited()));
        rules.push(rule().l4proto(v.icmp()).icmp_type(v.echo_request()).reject(v.admin_prohibited()));
    }
    rules.push(rule().drop());
    rules
}

struct Elements<'a> {
    sets: &'a mut BTreeMap<String, Set>,
    indexes: &'a BTreeMap<Place, u32>,
}

impl Elements<'_> {
    fn put(&mut self, set: String, key: Key, out: Option<u32>) {
        let set = self.sets.get_mut(&set).expect("every set is declared in `sets`");
        set.elements.insert(key, out.map(|index| index.to_ne_bytes().to_vec()));
    }

    /// The source that a wire may speak as.
    fn source(&mut self, source: &Source, place: &Place, index: u32) {
        // Errors about questions to the resolver come from its address: translation writes it over the router's.
        let resolver = (*place == Place::Uplink).then(|| source.addresses.resolver());
        let own = source.addresses.of(place).into_iter().chain(resolver);
        for address in own.flat_map(|addresses| addresses.iter().collect::<Vec<_>>()) {
            self.put(Version::of(address).named("sources"), key().iface(index).addr(address).exact(), None);
        }
    }

    fn grant(&mut self, grant: &Grant) {
        let (Some(&from), Some(&to)) = (self.indexes.get(&grant.from), self.indexes.get(&grant.to)) else { return };
        let both = grant.from_addresses.iter().zip(grant.to_addresses.iter()).collect::<Vec<_>>();
        for (client, server) in both {
            let v = Version::of(client);
            let forth = key().iface(from).addr(client).addr(server);
            let back = key().iface(to).addr(server).addr(client);
            let proto = grant.ports.protocol().number();
            if grant.ports.count() <= EXPAND {
                for port in grant.ports.lo()..=grant.ports.hi() {
                    self.put(v.named("edges"), forth.clone().proto(proto).port(port).exact(), Some(to));
                    self.put(v.named("replies"), back.clone().proto(proto).port(port).exact(), Some(from));
                }
            } else {
                let (lo, hi) = (grant.ports.lo(), grant.ports.hi());
                let range = |key: super::vocabulary::KeyBuilder| key.proto(proto).ports(lo, hi).range_key();
                self.put(v.named("edge_ranges"), range(forth.clone()), Some(to));
                self.put(v.named("reply_ranges"), range(back.clone()), Some(from));
            }
            if grant.has_echo() {
                self.put(v.named("echo"), forth.icmp_type(v.echo_request()).exact(), Some(to));
                self.put(v.named("echo"), back.icmp_type(v.echo_reply()).exact(), Some(from));
            }
        }
    }

    fn entrance(&mut self, source: &Source, entrance: &Entrance) {
        let (Some(&uplink), Some(&wire)) = (self.indexes.get(&Place::Uplink), self.indexes.get(&entrance.to)) else {
            return;
        };
        for v in BOTH {
            let Some((address, from)) = entrance.of(source, v) else { continue };
            // As for a service with a way out: who may not come is told nothing by an error, since no lock knows its flow.
            self.put(v.named("errors_back"), key().iface(uplink).addr(address).exact(), Some(wire));
            if from.is_empty() {
                continue;
            }
            let end = |index| entrance.fill(key().iface(index).addr(address), entrance.port).exact();
            self.put(v.named("exposed"), end(uplink), Some(wire));
            self.put(v.named("exposed_back"), end(wire), Some(uplink));
        }
    }

    fn outbound(&mut self, source: &Source, service: &Service) {
        let place = Place::Service(service.name.clone());
        let (Some(&wire), Some(&uplink)) = (self.indexes.get(&place), self.indexes.get(&Place::Uplink)) else { return };
        let Some(addresses) = source.addresses.of(&place) else { return };
        if !crate::topology::uses_uplink(source.graph, service) {
            return;
        }
        for address in addresses.iter() {
            let v = Version::of(address);
            self.put(v.named("errors_back"), key().iface(uplink).addr(address).exact(), Some(wire));
            if service.outbound.direct {
                self.put(v.named("direct"), key().iface(wire).addr(address).exact(), Some(uplink));
                self.put(v.named("direct_back"), key().iface(uplink).addr(address).exact(), Some(wire));
            }
            for (from, to) in lan(source, service, v) {
                let forth = key().iface(wire).addr(address).addrs(from, to);
                let back = key().iface(uplink).addrs(from, to).addr(address);
                self.put(v.named("lan"), forth.range_key(), Some(uplink));
                self.put(v.named("lan_back"), back.range_key(), Some(wire));
            }
            for reach in reach(service, v) {
                let forth = reach.fill(key().iface(wire).addr(address).addrs(reach.from, reach.to));
                let back = reach.fill(key().iface(uplink).addrs(reach.from, reach.to).addr(address));
                self.put(v.named("reach"), forth, Some(uplink));
                self.put(v.named("reach_back"), back, Some(wire));
            }
        }
    }
}
