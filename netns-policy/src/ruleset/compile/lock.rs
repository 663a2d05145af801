//! The second lock: what stands in a service's own namespace, and in the relay's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::entrance::{Entrance, entrances};
use super::grant::Grant;
use super::outside::{lan, private, reach};
use super::vocabulary::{
    BOTH, ESTABLISHED, KeyBuilder, Load, NEW, RELATED, TCP, UDP, Version, Words, base_chain, dynamic, interval, key,
    rule, set,
};
use super::{EXPAND, Source, TABLE};
use crate::graph::{Denied, Dns, Limits, Service};
use crate::ruleset::{ChainKind, Family, Field, HookPoint, Key, Reject, Rule, Ruleset, Set, Table};
use crate::topology::Place;

/// The lock of a service, or of the relay, which nobody has written anything else about.
pub(super) fn compile(source: &Source, me: &Place, service: Option<&Service>, grants: &[&Grant]) -> Ruleset {
    let mut sets = connection_sets();
    for v in BOTH {
        sets.insert(v.named("private"), private(v));
        sets.insert(v.named("denied"), dynamic(&[v.addr(), Field::InetProto, Field::InetService], 1024, 86400));
        sets.insert(v.named("direct"), interval(&[Field::InetProto]));
        sets.insert(v.named("lan"), interval(&[v.addr()]));
        sets.insert(v.named("reach"), interval(&[v.addr(), Field::InetProto, Field::InetService]));
    }
    let entrances: Vec<Entrance> = entrances(source).into_iter().filter(|entrance| entrance.to == *me).collect();
    if !entrances.is_empty() {
        sets.extend(BOTH.map(|v| (v.named("exposed"), exposed(source, &entrances, v))));
    }
    let mut lock = Elements { sets: &mut sets };
    for grant in grants {
        lock.grant(me, grant);
    }
    service.into_iter().for_each(|service| lock.outbound(source, service));
    let limits = service.map(|service| service.limits).unwrap_or_default();
    let mut chains = BTreeMap::from([
        (
            "input".into(),
            base_chain(ChainKind::Filter, HookPoint::Input, 0, false, input(source, !entrances.is_empty())),
        ),
        ("forward".into(), base_chain(ChainKind::Filter, HookPoint::Forward, 0, false, vec![])),
        ("output".into(), base_chain(ChainKind::Filter, HookPoint::Output, 0, false, output(source, &limits))),
    ]);
    if service.is_some_and(|service| service.dns == Dns::Tor) {
        // -100 is `dstnat`, where nft(8) lets a redirect of local packets stand.
        let redirect = base_chain(ChainKind::Nat, HookPoint::Output, -100, true, ask_tor(source));
        chains.insert("resolve".into(), redirect);
    }
    Ruleset {
        tables: BTreeMap::from([(
            (Family::Inet, TABLE.to_owned()),
            Table { chains: chains.into(), sets: sets.into(), dormant: false },
        )]),
    }
}

/// The sets that say who may open a connection to here (`in`) and to whom from here (`out`).
pub(super) fn connection_sets() -> BTreeMap<String, Set> {
    let mut sets = BTreeMap::new();
    for v in BOTH {
        let tuple = [v.addr(), Field::InetProto, Field::InetService];
        for side in ["in", "out"] {
            sets.insert(v.named(side), set(&tuple));
            sets.insert(v.named(&format!("{side}_ranges")), interval(&tuple));
            sets.insert(v.named(&format!("{side}_echo")), set(&[v.addr()]));
        }
        let elements = v.icmp_errors().iter().map(|kind| (key().icmp_type(*kind).exact(), None)).collect();
        sets.insert(v.named("icmp_errors"), Set { elements, ..set(&[v.icmp_field()]) });
    }
    sets
}

/// `established`, and of `related` the ICMP errors alone: never a helper's expectation.
pub(super) fn known() -> Vec<Rule> {
    known_of(rule)
}

/// The same, of packets that `these` matches.
pub(super) fn known_of(these: impl Fn() -> Words) -> Vec<Rule> {
    let error = |v: Version| {
        let icmp = these().nfproto(v).l4proto(v.icmp());
        icmp.among(&[Load::IcmpType], &v.named("icmp_errors"), true).ct_state(RELATED).accept()
    };
    vec![these().ct_state(ESTABLISHED).accept(), error(Version::V4), error(Version::V6)]
}

/// New connections from the peers in `in`.
pub(super) fn callers() -> Vec<Rule> {
    permitted("in", Load::Saddr)
}

/// New connections to the peers in `out`.
pub(super) fn called() -> Vec<Rule> {
    permitted("out", Load::Daddr)
}

fn permitted(side: &str, peer: fn(Version) -> Load) -> Vec<Rule> {
    let rules = BOTH.map(|v| {
        let tuple = [peer(v), Load::L4proto, Load::Dport];
        let new = || rule().nfproto(v).ct_state(NEW);
        let echo = rule().nfproto(v).l4proto(v.icmp()).icmp_type(v.echo_request());
        [
            new().among(&tuple, &v.named(side), true).accept(),
            new().among(&tuple, &v.named(&format!("{side}_ranges")), true).accept(),
            echo.among(&[peer(v)], &v.named(&format!("{side}_echo")), true).accept(),
        ]
    });
    rules.concat()
}

/// Who may come in from outside, to which port.
fn exposed(source: &Source, entrances: &[Entrance], v: Version) -> Set {
    let keys = entrances.iter().flat_map(|entrance| entrance.keys_here(&entrance.sources(source, v), entrance.port));
    let elements = keys.map(|key| (key, None)).collect();
    Set { elements, ..interval(&[v.addr(), Field::InetProto, Field::InetService]) }
}

fn input(source: &Source, is_exposed: bool) -> Vec<Rule> {
    let mut rules = vec![rule().iif_lo().accept()];
    rules.extend(known());
    rules.extend(callers());
    if is_exposed {
        rules.extend(BOTH.map(|v| {
            let call = [Load::Saddr(v), Load::L4proto, Load::Dport];
            rule().nfproto(v).ct_state(NEW).among(&call, &v.named("exposed"), true).accept()
        }));
    }
    if source.graph.defaults().log {
        rules.push(rule().log("nsctl in "));
    }
    rules.push(rule().counter().drop());
    rules
}

fn output(source: &Source, limits: &Limits) -> Vec<Rule> {
    let mut rules = vec![rule().oif_lo().accept()];
    rules.extend(known());
    rules.extend(limited(limits));
    rules.extend(called());
    for v in BOTH {
        let to = [Load::Daddr(v)];
        // Any protocol that is listed under `direct`; the list holds all or none.
        let public = rule().nfproto(v).among(&to, &v.named("private"), false);
        rules.push(public.among(&[Load::L4proto], &v.named("direct"), true).accept());
        rules.push(rule().nfproto(v).among(&to, &v.named("lan"), true).accept());
        let tuple = [Load::Daddr(v), Load::L4proto, Load::Dport];
        rules.push(rule().nfproto(v).among(&tuple, &v.named("reach"), true).accept());
    }
    rules.extend(refuse(source));
    rules
}

/// `limits`: beyond them a new connection is refused like one without an edge.
fn limited(limits: &Limits) -> Vec<Rule> {
    let new = || rule().ct_state(NEW);
    let rate = limits.new_per_second.map(|n| new().limit(n.into(), n.max(5), true).counter().reject(REFUSAL));
    let flows = limits.flows.map(|n| new().ct_count_over(n).counter().reject(REFUSAL));
    rate.into_iter().chain(flows).collect()
}

const REFUSAL: Reject = Reject::IcmpxAdminProhibited;

/// Remembered by name of the target, sampled, counted, and refused at once.
pub(super) fn refuse(source: &Source) -> Vec<Rule> {
    let defaults = source.graph.defaults();
    let mut rules = BOTH
        .map(|v| rule().nfproto(v).update(&[Load::Daddr(v), Load::L4proto, Load::Dport], &v.named("denied")))
        .to_vec();
    if defaults.log {
        rules.push(rule().log("nsctl out "));
    }
    rules.push(rule().counter().end());
    if defaults.denied == Denied::Reject {
        rules.push(rule().l4proto(TCP).reject(Reject::TcpReset));
        rules.push(rule().reject(REFUSAL));
    }
    rules
}

/// `dns = "tor"`: what asks port 53 of the tor service is answered by its port `dns`.
fn ask_tor(source: &Source) -> Vec<Rule> {
    let Some(tor) = source.graph.services().find(|service| service.is_tor) else { return vec![] };
    let Some(ports) = tor.ports.iter().find(|(name, _)| name.as_str() == "dns").map(|(_, ports)| ports) else {
        return vec![];
    };
    let addresses = source.addresses.service(tor.name.as_str());
    let to = addresses.iter().flat_map(|addresses| addresses.iter().collect::<Vec<_>>());
    to.map(|address| {
        let asked = rule().nfproto(Version::of(address)).daddr(address).l4proto(UDP).dport(53);
        asked.dnat(address, Some(ports.lo()))
    })
    .collect()
}

pub(super) struct Elements<'a> {
    pub(super) sets: &'a mut BTreeMap<String, Set>,
}

impl Elements<'_> {
    fn put(&mut self, set: String, key: Key) {
        self.sets.get_mut(&set).expect("every set is declared").elements.insert(key, None);
    }

    /// What `grant` means to `me`, who may be either end of it or neither.
    pub(super) fn grant(&mut self, me: &Place, grant: &Grant) {
        if grant.to == *me {
            self.side("in", grant.from_addresses.iter(), grant);
        }
        if grant.from == *me {
            self.side("out", grant.to_addresses.iter(), grant);
        }
    }

    fn side(&mut self, side: &str, peers: impl Iterator<Item = IpAddr>, grant: &Grant) {
        let (proto, lo, hi) = (grant.ports.protocol().number(), grant.ports.lo(), grant.ports.hi());
        for peer in peers {
            let v = Version::of(peer);
            let start: KeyBuilder = key().addr(peer).proto(proto);
            if grant.ports.count() <= EXPAND {
                (lo..=hi).for_each(|port| self.put(v.named(side), start.clone().port(port).exact()));
            } else {
                self.put(v.named(&format!("{side}_ranges")), start.ports(lo, hi).range_key());
            }
            if grant.has_echo() {
                self.put(v.named(&format!("{side}_echo")), key().addr(peer).exact());
            }
        }
    }

    fn outbound(&mut self, source: &Source, service: &Service) {
        let own = source.addresses.service(service.name.as_str());
        let spoken = own.iter().flat_map(|own| own.iter().collect::<Vec<_>>()).map(Version::of);
        for v in spoken {
            if service.outbound.direct {
                self.put(v.named("direct"), key().protos(0, u8::MAX).range_key());
            }
            for (from, to) in lan(source, service, v) {
                self.put(v.named("lan"), key().addrs(from, to).range_key());
            }
            for reach in reach(service, v) {
                self.put(v.named("reach"), reach.fill(key().addrs(reach.from, reach.to)));
            }
        }
    }
}
