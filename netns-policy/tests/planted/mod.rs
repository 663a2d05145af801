//! Mistakes, planted into rules: of each check it is asked whether it finds them.

use std::collections::BTreeMap;

use netns_policy::ruleset::decide::walk::World;
use netns_policy::ruleset::{
    Base, ChainKind, CtKey, Expr, Family, Hook, HookPoint, Key, MetaKey, Reg, Rule, Table, Verdict,
};

/// Small, and with a little of everything.
pub const SMALL: &str = r#"
schema = 1
[network]
name = "node"
lan = ["192.168.1.0/24"]
[service.alpha]
outbound = ["direct", "lan"]
dns = "direct"
connect.bravo = ["web", "big", "dns"]
[service.bravo]
ports = { web = "tcp:80", big = "tcp:1000-1200", dns = "udp:53" }
[service.charlie]
outbound = { direct = ["tcp:443"] }
connect.bravo = ["dns"]
[host]
may_connect.alpha = ["tcp:22"]
"#;

fn panel(world: &mut World) -> &mut Table {
    world.fabric.tables.get_mut(&(Family::Netdev, "nsctl".into())).unwrap()
}

fn lock<'a>(world: &'a mut World, place: &str) -> &'a mut Table {
    world.places.get_mut(place).unwrap().lock.tables.values_mut().next().unwrap()
}

fn host(world: &mut World) -> &mut Table {
    world.leg.as_mut().unwrap().host.tables.values_mut().next().unwrap()
}

fn rules<'a>(table: &'a mut Table, chain: &str) -> &'a mut Vec<Rule> {
    &mut table.chains.get_mut(chain).unwrap().rules
}

fn asks(rule: &Rule, set: &str) -> bool {
    rule.0.iter().any(|expr| matches!(expr, Expr::Lookup { set: asked, .. } if asked == set))
}

/// Removes the rules that ask a set.
fn forget(table: &mut Table, chain: &str, set: &str) {
    rules(table, chain).retain(|rule| !asks(rule, set));
}

/// Removes a question (its loads and the lookup) from every rule of the chain that asks it, and keeps the rest.
fn unasked(table: &mut Table, chain: &str, set: &str) {
    for rule in rules(table, chain) {
        rule.0.retain(|expr| !matches!(expr, Expr::Lookup { set: asked, dreg: None, .. } if asked == set));
    }
}

fn elements<'a>(table: &'a mut Table, set: &str) -> &'a mut BTreeMap<Key, Option<Vec<u8>>> {
    &mut table.sets.get_mut(set).unwrap().elements
}

fn open(table: &mut Table, chain: &str) {
    table.chains.get_mut(chain).unwrap().hook.as_mut().unwrap().policy_accept = true;
    rules(table, chain)
        .retain(|rule| !rule.0.iter().any(|e| matches!(e, Expr::Reject(_) | Expr::Verdict(Verdict::Drop))));
}

fn accept() -> Rule {
    Rule::from(vec![Expr::Verdict(Verdict::Accept)])
}

/// One mistake, and its name.
pub type Mutant = (&'static str, fn(&mut World));

pub const MUTANTS: [Mutant; 30] = [
    ("an edge is missing", |w| drop(elements(panel(w), "edges4").pop_first())),
    ("a reply is missing", |w| drop(elements(panel(w), "replies6").pop_last())),
    ("a range is missing", |w| elements(panel(w), "edge_ranges4").clear()),
    ("an element has its ends swapped", |w| {
        let (key, out) = elements(panel(w), "edges4").pop_first().unwrap();
        let from = [&key.from[..4], &key.from[8..12], &key.from[4..8], &key.from[12..]].concat();
        elements(panel(w), "edges4").insert(Key { from, to: None }, out);
    }),
    ("an edge leads to the wrong wire", |w| {
        let wire = w.places["charlie"].fabric_index.to_ne_bytes().to_vec();
        elements(panel(w), "edges4").values_mut().for_each(|out| *out = Some(wire.clone()));
    }),
    ("an element has the wrong port", |w| {
        let (mut key, out) = elements(panel(w), "edges6").pop_first().unwrap();
        let last = key.from.len() - 3;
        key.from[last] ^= 1;
        elements(panel(w), "edges6").insert(key, out);
    }),
    ("one element more, in both locks too", |w| {
        let port = |key: &Key| {
            let mut key = key.clone();
            let at = key.from.len() - 3;
            key.from[at] ^= 1;
            key
        };
        let more = |set: &mut BTreeMap<Key, Option<Vec<u8>>>| {
            let new: Vec<_> = set.iter().map(|(key, out)| (port(key), out.clone())).collect();
            set.extend(new);
        };
        more(elements(panel(w), "edges4"));
        more(elements(lock(w, "alpha"), "out4"));
        more(elements(lock(w, "bravo"), "in4"));
    }),
    ("replies may be pure SYNs", |w| {
        for rule in rules(panel(w), "panel4").iter_mut().filter(|rule| asks(rule, "replies4")) {
            let flags = |e: &Expr| matches!(e, Expr::Payload { offset: 13, .. } | Expr::Bitwise { .. });
            let compared = |e: &Expr| matches!(e, Expr::Cmp { equal: false, data, .. } if *data == [2]);
            rule.0.retain(|e| !flags(e) && !compared(e));
        }
        open(lock(w, "alpha"), "input");
        open(lock(w, "bravo"), "output");
    }),
    ("fragments are asked for ports", |w| {
        for chain in ["panel4", "panel6"] {
            let goes =
                |rule: &Rule| matches!(rule.0.last(), Some(Expr::Verdict(Verdict::Goto(to))) if to.starts_with("frag"));
            rules(panel(w), chain).retain(|rule| !goes(rule));
        }
    }),
    ("fragments may go anywhere that edges lead", |w| {
        let forward = rules(panel(w), "panel4").iter().find(|rule| asks(rule, "edges4")).unwrap().clone();
        rules(panel(w), "fragments4").insert(0, forward);
    }),
    ("no fragment passes", |w| rules(panel(w), "fragments4").clear()),
    ("tags pass", |w| drop(rules(panel(w), "panel").drain(..2))),
    ("routing headers pass", |w| drop(rules(panel(w), "panel6").remove(0))),
    ("errors do not look at the embedded header", |w| {
        for rule in rules(panel(w), "panel4").iter_mut().filter(|rule| asks(rule, "replies4") && asks(rule, "sources4"))
        {
            let at = rule.0.iter().position(|e| matches!(e, Expr::Cmp { equal: false, data, .. } if data.len() == 4));
            let first = rule.0.iter().position(|e| matches!(e, Expr::Cmp { data, .. } if *data == [0x45])).unwrap();
            rule.0.drain(first + 1..=at.unwrap());
        }
        // The flow is known to the receiver: what its lock would refuse is let through to see what the panel does.
        open(lock(w, "bravo"), "input");
        open(lock(w, "alpha"), "input");
    }),
    ("errors may have any source", |w| {
        unasked(panel(w), "panel4", "sources4");
    }),
    ("errors are forgotten", |w| forget(panel(w), "panel4", "sources4")),
    ("echo is forgotten", |w| elements(panel(w), "echo6").clear()),
    ("the input lock accepts by default", |w| open(lock(w, "bravo"), "input")),
    ("established is accepted after the refusal", |w| {
        let first = rules(lock(w, "alpha"), "input").remove(1);
        rules(lock(w, "alpha"), "input").push(first);
    }),
    ("related is accepted whatever it is", |w| {
        for rule in rules(lock(w, "bravo"), "input") {
            rule.0.retain(|e| !matches!(e, Expr::Lookup { set, .. } if set.starts_with("icmp_errors")));
        }
        elements(panel(w), "icmp_errors4").insert(Key { from: vec![5, 0, 0, 0], to: None }, None);
    }),
    ("new is accepted from anybody who may ask", |w| unasked(lock(w, "alpha"), "output", "out4")),
    ("direct means private addresses too", |w| {
        unasked(panel(w), "panel4", "private4");
        unasked(lock(w, "alpha"), "output", "private4");
        unasked(lock(w, "uplink"), "forward", "not_direct4");
        elements(host(w), "not_direct4").clear();
    }),
    ("direct means the host's links too", |w| {
        elements(lock(w, "uplink"), "not_direct4").retain(|key, _| key.from[..2] != [203, 0]);
    }),
    ("the gateway lets everybody out", |w| rules(lock(w, "uplink"), "forward").insert(0, accept())),
    ("the gateway lets everybody in", |w| {
        let back = rules(lock(w, "uplink"), "forward")
            .iter_mut()
            .find(|rule| rule.0.iter().any(|e| matches!(e, Expr::Ct { key: CtKey::Direction, .. })));
        *back.unwrap() = accept();
    }),
    ("the gateway does not masquerade", |w| rules(lock(w, "uplink"), "leaving").clear()),
    ("the host does not masquerade", |w| rules(host(w), "leaving").clear()),
    ("the host is reached by going out", |w| {
        elements(lock(w, "uplink"), "host4").clear();
        rules(host(w), "input").clear();
    }),
    ("the resolver is not found", |w| rules(lock(w, "uplink"), "to_resolver").clear()),
    ("errors of routers do not come back", |w| elements(panel(w), "errors_back4").clear()),
];

// ---- more of them ----------------------------------------------------------------------------------------------------

/// `ct state STATE`.
fn state(bits: u32) -> Vec<Expr> {
    vec![
        Expr::Ct { key: CtKey::State, dreg: Reg(0) },
        Expr::Bitwise { sreg: Reg(0), dreg: Reg(0), mask: bits.to_ne_bytes().into(), xor: vec![0; 4] },
        Expr::Cmp { equal: false, sreg: Reg(0), data: vec![0; 4] },
    ]
}

fn l4proto(number: u8) -> Vec<Expr> {
    vec![
        Expr::Meta { key: MetaKey::L4proto, dreg: Reg(0) },
        Expr::Cmp { equal: true, sreg: Reg(0), data: vec![number] },
    ]
}

fn accepting(words: Vec<Expr>) -> Rule {
    Rule::from([words, vec![Expr::Verdict(Verdict::Accept)]].concat())
}

/// `... fwd to "SERVICE"`.
fn into_wire(w: &World, words: Vec<Expr>, service: &str) -> Rule {
    let index = w.places[service].fabric_index.to_ne_bytes().to_vec();
    Rule::from([words, vec![Expr::Immediate { dreg: Reg(0), data: index }, Expr::Fwd { sreg: Reg(0) }]].concat())
}

/// Removes the first comparison with `data` from every rule, with the load before it.
fn uncompared(table: &mut Table, chain: &str, data: &[u8]) {
    for rule in rules(table, chain) {
        let at = rule.0.iter().position(|e| matches!(e, Expr::Cmp { data: own, .. } if own == data));
        at.into_iter().for_each(|at| drop(rule.0.drain(at - 1..=at)));
    }
}

/// The same element, with something done to its key.
fn altered(table: &mut Table, set: &str, alter: impl Fn(&mut Key)) {
    let (mut key, out) = elements(table, set).pop_first().unwrap();
    alter(&mut key);
    elements(table, set).insert(key, out);
}

fn without_address(table: &mut Table, chain: &str, set: &str) {
    for rule in rules(table, chain).iter_mut().filter(|rule| asks(rule, set)) {
        rule.0.retain(|e| !matches!(e, Expr::Lookup { set: asked, .. } if asked == set));
    }
}

fn base(point: HookPoint, rules: Vec<Rule>) -> netns_policy::ruleset::Chain {
    let hook = Hook { kind: ChainKind::Filter, point, device: None, priority: -300, policy_accept: true };
    netns_policy::ruleset::Chain { hook: Some(hook), rules }
}

/// A network with everything: tor, limits, a way out of every kind.
pub const LARGE: &str = r#"
schema = 1
[network]
name = "node"
lan = ["192.168.1.0/24"]
resolvers = ["9.9.9.9", "2620:fe::fe"]
[service.alpha]
outbound = ["direct", "lan"]
dns = "direct"
connect.bravo = ["web", "big", "dns"]
limits = { flows = 100, new_per_second = 50 }
[service.bravo]
ports = { web = "tcp:80", big = "tcp:1000-1200", dns = "udp:53" }
dns = "tor"
[service.charlie]
outbound = { direct = ["tcp:443"], lan = ["192.168.1.20/32 tcp:5000"] }
connect.bravo = ["dns", "web"]
[service.tor]
role = "tor"
outbound = "direct"
dns = "direct"
ports = { socks = "tcp:9050", dns = "udp:9053" }
[host]
may_connect.alpha = ["tcp:22"]
accepts = { backup = { port = "tcp:8000", from = ["charlie"] } }
"#;

/// The ten of the compiler, as they look in a panel; mistakes of the locks; and such as a sample would hardly meet.
pub const MORE: [Mutant; 56] = [
    ("panel: policy accept", |w| {
        let chains = panel(w).chains.values_mut().filter_map(|chain| chain.hook.as_mut());
        chains.for_each(|hook| hook.policy_accept = true);
        for chain in ["panel", "panel4", "panel6"] {
            drop(rules(panel(w), chain).pop());
        }
    }),
    ("panel: no anti-spoof", |w| {
        let set = panel(w).sets.get_mut("edges4").unwrap();
        set.interval = true;
        set.elements = std::mem::take(&mut set.elements)
            .into_iter()
            .map(|(mut key, out)| {
                let mut to = key.from.clone();
                key.from[4..8].fill(0);
                to[4..8].fill(0xff);
                (Key { from: key.from, to: Some(to) }, out)
            })
            .collect();
    }),
    ("panel: established is accepted", |w| rules(panel(w), "panel4").insert(0, accepting(state(2)))),
    ("panel: established is handed on", |w| {
        let rule = into_wire(w, state(2), "bravo");
        rules(panel(w), "panel6").insert(1, rule);
    }),
    ("panel: related from anyone", |w| {
        let rule = into_wire(w, state(4), "alpha");
        rules(panel(w), "panel4").insert(1, rule);
    }),
    ("panel: the reply map is missing", |w| elements(panel(w), "replies4").clear()),
    ("panel: an edge is reversed", |w| {
        let (wire, out) = (w.places["alpha"].fabric_index, w.places["bravo"].fabric_index);
        let edges = elements(panel(w), "edges4");
        let key = edges.iter().find(|(key, _)| key.from[..4] == wire.to_ne_bytes()).unwrap().0.clone();
        edges.remove(&key);
        let from = [&out.to_ne_bytes()[..], &key.from[8..12], &key.from[4..8], &key.from[12..]].concat();
        edges.insert(Key { from, to: None }, Some(wire.to_ne_bytes().into()));
    }),
    ("panel: a range is off by one at its end", |w| {
        altered(panel(w), "edge_ranges4", |key| key.to.as_mut().unwrap()[17] += 1);
    }),
    ("panel: a range is off by one at its start", |w| {
        altered(panel(w), "reply_ranges6", |key| key.from[41] += 1);
    }),
    ("panel: an edge is dropped", |w| drop(elements(panel(w), "edges6").pop_last())),
    ("panel: an edge is too wide", |w| {
        altered(panel(w), "edge_ranges6", |key| {
            key.from[40..42].fill(0);
            key.to.as_mut().unwrap()[40..42].fill(0xff);
        });
    }),
    ("panel: TCP and UDP are swapped", |w| altered(panel(w), "edges4", |key| key.from[12] ^= 6 ^ 17)),
    ("panel: an element of another protocol more", |w| {
        let edges = elements(panel(w), "edges4");
        let (mut key, out) = edges.first_key_value().map(|(key, out)| (key.clone(), out.clone())).unwrap();
        key.from[12] = 132;
        edges.insert(key, out);
    }),
    ("panel: replies may open TCP, though the locks would not", |w| {
        for rule in rules(panel(w), "panel6").iter_mut().filter(|rule| asks(rule, "replies6")) {
            let flags = |e: &Expr| matches!(e, Expr::Payload { offset: 13, .. } | Expr::Bitwise { .. });
            let compared = |e: &Expr| matches!(e, Expr::Cmp { equal: false, data, .. } if *data == [2]);
            rule.0.retain(|e| !flags(e) && !compared(e));
        }
    }),
    ("panel: service tags pass", |w| drop(rules(panel(w), "panel").remove(1))),
    ("panel: headers with options are embedded", |w| uncompared(panel(w), "panel4", &[0x45])),
    ("panel: source quench is an error too", |w| {
        elements(panel(w), "icmp_errors4").insert(Key { from: vec![4, 0, 0, 0], to: None }, None);
    }),
    ("panel: multicast is public", |w| {
        elements(panel(w), "private4").retain(|key, _| key.from[0] != 224);
    }),
    ("panel: shared addresses are public as sources", |w| {
        elements(panel(w), "private6").retain(|key, _| key.from[..2] != [0x00, 0x64]);
    }),
    ("panel: errors of the pool's addresses come in by the gateway", |w| elements(panel(w), "pool4").clear()),
    ("panel: the gateway may not speak as the resolver", |w| {
        let uplink = w.places["uplink"].fabric_index.to_ne_bytes();
        let resolver: Vec<_> =
            elements(panel(w), "sources4").keys().filter(|k| k.from[..4] == uplink).cloned().collect();
        assert_eq!(resolver.len(), 2);
        resolver.iter().for_each(|key| drop(elements(panel(w), "sources4").remove(key)));
    }),
    ("panel: one wire has no chain", |w| {
        let device = w.places["charlie"].fabric_link.clone();
        panel(w).chains.retain(|_, chain| chain.hook.as_ref().is_none_or(|h| h.device.as_ref() != Some(&device)));
    }),
    ("panel: no rule at all", |w| w.fabric.tables.clear()),
    ("panel: ARP passes", |w| {
        let rule = into_wire(w, vec![], "bravo");
        let last = rules(panel(w), "panel").len() - 1;
        rules(panel(w), "panel").insert(last, rule);
    }),
    ("lock: input accepts by default", |w| {
        lock(w, "charlie").chains.get_mut("input").unwrap().hook.as_mut().unwrap().policy_accept = true;
        drop(rules(lock(w, "charlie"), "input").pop());
    }),
    ("lock: new from anybody to a declared port", |w| {
        rules(lock(w, "bravo"), "input").insert(1, accepting([l4proto(6), state(8)].concat()));
    }),
    ("lock: established is not accepted", |w| drop(rules(lock(w, "alpha"), "input").remove(1))),
    ("lock: related, whatever it is", |w| rules(lock(w, "bravo"), "input").insert(1, accepting(state(4)))),
    ("lock: invalid is accepted", |w| rules(lock(w, "bravo"), "input").insert(1, accepting(state(1)))),
    ("lock: untracked is accepted", |w| rules(lock(w, "tor"), "output").insert(1, accepting(state(64)))),
    ("lock: it forwards", |w| {
        lock(w, "alpha").chains.get_mut("forward").unwrap().hook.as_mut().unwrap().policy_accept = true;
    }),
    ("lock: the output is open", |w| {
        rules(lock(w, "bravo"), "output").insert(1, accepting(vec![]));
    }),
    ("lock: one port of a peer more", |w| {
        let set = elements(lock(w, "bravo"), "in6");
        let (mut key, _) = set.first_key_value().map(|(key, out)| (key.clone(), out.clone())).unwrap();
        key.from[21] ^= 0x80;
        set.insert(key, None);
    }),
    ("lock: one port of a peer less", |w| drop(elements(lock(w, "charlie"), "out4").pop_first())),
    ("lock: a private prefix is missing", |w| {
        elements(lock(w, "alpha"), "private4").retain(|key, _| key.from[..2] != [100, 64]);
    }),
    ("lock: unasked echo replies are taken", |w| {
        let kind = vec![
            Expr::Payload { base: Base::Transport, offset: 0, len: 1, dreg: Reg(0) },
            Expr::Cmp { equal: true, sreg: Reg(0), data: vec![0] },
        ];
        rules(lock(w, "bravo"), "input").insert(1, accepting([l4proto(1), kind].concat()));
    }),
    ("lock: the limit lets pass what is beyond it", |w| {
        let over = Expr::Limit { per_second: 50, burst: 50, over: true };
        rules(lock(w, "alpha"), "output").insert(1, accepting([state(8), vec![over]].concat()));
    }),
    ("lock: the limits are forgotten", |w| {
        rules(lock(w, "alpha"), "output")
            .retain(|rule| !rule.0.iter().any(|e| matches!(e, Expr::Limit { over: true, .. })));
    }),
    ("lock: the number of flows is not limited", |w| {
        rules(lock(w, "alpha"), "output").retain(|rule| !rule.0.iter().any(|e| matches!(e, Expr::CtCountOver { .. })));
    }),
    ("lock: names are asked at another port", |w| {
        for expr in rules(lock(w, "bravo"), "resolve").iter_mut().flat_map(|rule| &mut rule.0) {
            if let Expr::Immediate { data, .. } = expr
                && data.len() == 2
            {
                data[1] ^= 1;
            }
        }
    }),
    ("lock: names are not asked of tor", |w| drop(lock(w, "bravo").chains.remove("resolve"))),
    ("lock: somebody drops before it", |w| {
        lock(w, "bravo")
            .chains
            .insert("x".into(), base(HookPoint::Prerouting, vec![Rule::from(vec![Expr::Verdict(Verdict::Drop)])]));
    }),
    ("gateway: direct without its exclusions", |w| without_address(lock(w, "uplink"), "forward", "not_direct6")),
    ("gateway: it lets in what is established from outside", |w| {
        let direction = |e: &Expr| matches!(e, Expr::Ct { key: CtKey::Direction, .. });
        let back = rules(lock(w, "uplink"), "forward").iter_mut().find(|rule| rule.0.iter().any(direction)).unwrap();
        let at = back.0.iter().position(direction).unwrap();
        back.0.drain(at..=at + 1);
    }),
    ("gateway: it forwards what is invalid", |w| {
        let drops = |rule: &Rule| {
            rule.0.iter().any(|e| matches!(e, Expr::Bitwise { mask, .. } if *mask == 65u32.to_ne_bytes()))
        };
        rules(lock(w, "uplink"), "forward").retain(|rule| !drops(rule));
    }),
    ("gateway: it sends back by its wire", |w| {
        rules(lock(w, "uplink"), "forward").insert(2, accepting(state(2)));
    }),
    ("gateway: it does not masquerade IPv6", |w| {
        let four = vec![
            Expr::Meta { key: MetaKey::Nfproto, dreg: Reg(0) },
            Expr::Cmp { equal: true, sreg: Reg(0), data: vec![2] },
        ];
        rules(lock(w, "uplink"), "leaving").iter_mut().for_each(|rule| drop(rule.0.splice(0..0, four.clone())));
    }),
    ("gateway: it takes new connections", |w| rules(lock(w, "uplink"), "input").insert(1, accepting(state(8)))),
    ("gateway: another service may ask for names", |w| {
        let set = elements(lock(w, "uplink"), "resolvers4");
        let (mut key, _) = set.first_key_value().map(|(key, out)| (key.clone(), out.clone())).unwrap();
        key.from[3] ^= 7;
        set.insert(key, None);
    }),
    ("host: the leg leads to the host", |w| drop(rules(host(w), "from_leg").remove(0))),
    ("host: containers use its wire", |w| drop(rules(host(w), "forward").remove(1))),
    ("host: new connections come in by the leg", |w| rules(host(w), "to_leg").insert(0, accepting(state(8)))),
    ("host: its wire takes everything", |w| rules(host(w), "from_fabric").insert(0, accepting(vec![]))),
    ("host: its own traffic is dropped", |w| {
        rules(host(w), "input").push(Rule::from(vec![Expr::Verdict(Verdict::Drop)]))
    }),
    ("host: the guard is missing", |w| {
        rules(host(w), "forward").truncate(4);
    }),
    ("host: its addresses in the fabric are open to others", |w| {
        drop(rules(host(w), "input").pop());
    }),
];

// ---- such as pass where a proof believes too much --------------------------------------------------------------------

/// `META == DATA`.
fn is(key: MetaKey, data: &[u8]) -> Vec<Expr> {
    vec![Expr::Meta { key, dreg: Reg(0) }, Expr::Cmp { equal: true, sreg: Reg(0), data: data.into() }]
}

fn named(key: MetaKey, name: &str) -> Vec<Expr> {
    let mut data = name.as_bytes().to_vec();
    data.resize(16, 0);
    is(key, &data)
}

/// `fib daddr type local`.
fn is_local() -> Vec<Expr> {
    let data = 2u32.to_ne_bytes().into();
    vec![Expr::FibDaddrType { dreg: Reg(0) }, Expr::Cmp { equal: true, sreg: Reg(0), data }]
}

/// Changes every limit that decides in the output of `alpha`.
fn limits(w: &mut World, change: impl Fn(&mut Expr)) {
    rules(lock(w, "alpha"), "output").iter_mut().flat_map(|rule| rule.0.iter_mut()).for_each(change);
}

/// Of [`LARGE`].
pub const BELIEVED: [Mutant; 21] = [
    ("host: only the guard of IPv4 is missing", |w| {
        let eth0 = named(MetaKey::Iifname, "eth0");
        rules(host(w), "forward").retain(|rule| !rule.0.contains(&eth0[1]));
    }),
    ("host: only the guard of IPv6 is missing", |w| drop(rules(host(w), "forward").pop())),
    ("host: the guard spares no other network", |w| {
        let group = |e: &Expr| matches!(e, Expr::Meta { key: MetaKey::Oifgroup, .. });
        for rule in rules(host(w), "forward") {
            let at = rule.0.iter().position(group);
            at.into_iter().for_each(|at| drop(rule.0.drain(at..=at + 1)));
        }
    }),
    ("host: one index of an uplink passes the guard", |w| {
        let words = [is(MetaKey::Iif, &7u32.to_ne_bytes()), named(MetaKey::Iifname, "eth0")].concat();
        rules(host(w), "forward").insert(0, accepting(words));
    }),
    ("host: a group that nobody names is dropped", |w| {
        let words = is(MetaKey::Iifgroup, &9u32.to_ne_bytes());
        rules(host(w), "forward").push(Rule::from([words, vec![Expr::Verdict(Verdict::Drop)]].concat()));
    }),
    ("host: related of any protocol goes into the leg", |w| rules(host(w), "to_leg").insert(0, accepting(state(4)))),
    ("host: related of any protocol comes by the leg", |w| {
        let words = [named(MetaKey::Iifname, "node+leg"), state(4)].concat();
        rules(host(w), "input").insert(0, accepting(words));
    }),
    ("host: no rule at all", |w| w.leg.as_mut().unwrap().host.tables.clear()),
    ("lock: what is local is accepted", |w| rules(lock(w, "bravo"), "input").insert(1, accepting(is_local()))),
    ("gateway: what is local is accepted", |w| rules(lock(w, "uplink"), "input").insert(1, accepting(is_local()))),
    ("lock: a link of some index and of its name is believed", |w| {
        let words = [is(MetaKey::Iif, &2u32.to_ne_bytes()), named(MetaKey::Iifname, "net0")].concat();
        rules(lock(w, "bravo"), "input").insert(1, accepting(words));
    }),
    ("lock: a name is believed though no rule else asks for one", |w| {
        rules(lock(w, "bravo"), "input").insert(1, accepting(named(MetaKey::Iifname, "other0")));
    }),
    ("lock: a group is believed", |w| {
        rules(lock(w, "bravo"), "input").insert(1, accepting(is(MetaKey::Iifgroup, &7u32.to_ne_bytes())));
    }),
    ("lock: an index is believed, loaded a while before", |w| {
        let mut words = is(MetaKey::Iif, &9u32.to_ne_bytes());
        words.insert(1, Expr::Counter);
        rules(lock(w, "bravo"), "input").insert(1, accepting(words));
    }),
    ("lock: a part of an index is believed", |w| {
        let (mask, xor) = (0x8000_0000u32.to_ne_bytes().into(), vec![0; 4]);
        let mut words = is(MetaKey::Iif, &0x8000_0000u32.to_ne_bytes());
        words.insert(1, Expr::Bitwise { sreg: Reg(0), dreg: Reg(0), mask, xor });
        rules(lock(w, "bravo"), "input").insert(1, accepting(words));
    }),
    ("lock: one flow more than the limit", |w| {
        limits(w, |expr| {
            if let Expr::CtCountOver { count } = expr {
                *count += 1;
            }
        });
    }),
    ("lock: a thousand times as many flows", |w| {
        limits(w, |expr| {
            if let Expr::CtCountOver { count } = expr {
                *count *= 1000;
            }
        });
    }),
    ("lock: one more in a second", |w| {
        limits(w, |expr| {
            if let Expr::Limit { per_second, over: true, .. } = expr {
                *per_second += 1;
            }
        });
    }),
    ("lock: one less in a second", |w| {
        limits(w, |expr| {
            if let Expr::Limit { per_second, over: true, .. } = expr {
                *per_second -= 1;
            }
        });
    }),
    ("lock: one more at once", |w| {
        limits(w, |expr| {
            if let Expr::Limit { burst, over: true, .. } = expr {
                *burst += 1;
            }
        });
    }),
    ("lock: a limit that nobody asked for", |w| {
        let over = [state(8), vec![Expr::CtCountOver { count: 100 }, Expr::Verdict(Verdict::Drop)]].concat();
        rules(lock(w, "charlie"), "output").insert(1, Rule::from(over));
    }),
];

/// Ways in by ports of the host, of both kinds and protocols, to services with and without a way out.
pub const ENTERED: &str = r#"
schema = 1
[network]
name = "node"
lan = ["192.168.1.0/24", "fd99::/64"]
[service.alpha]
outbound = "direct"
ports = { web = "tcp:80" }
expose.port = { ports = { "8081" = "web" } }
connect.bravo = ["web"]
[service.bravo]
ports = { web = "tcp:80", dns = "udp:53", shut = "tcp:81" }
expose.lan = { ports = { "8080" = "web" } }
expose.port = { ports = { "5353" = "dns" } }
[service.charlie]
ports = { web = "tcp:80" }
connect.bravo = ["web", "dns"]
"#;

/// Changes every key of a set.
fn rekeyed(table: &mut Table, set: &str, change: impl Fn(&mut Vec<u8>, bool)) {
    let set = elements(table, set);
    let changed: Vec<_> = std::mem::take(set)
        .into_iter()
        .map(|(mut key, answer)| {
            change(&mut key.from, false);
            key.to.iter_mut().for_each(|to| change(to, true));
            (key, answer)
        })
        .collect();
    set.extend(changed);
}

/// From every address.
fn from_everybody(table: &mut Table, set: &str) {
    rekeyed(table, set, |bytes, is_end| bytes[..4].fill(if is_end { 0xff } else { 0 }));
}

/// Mistakes with them.
pub const ENTRANCES: [Mutant; 22] = [
    ("host: the source restriction is dropped", |w| from_everybody(host(w), "ports4")),
    ("host: the source restriction is dropped on the way to the gateway", |w| from_everybody(host(w), "exposed4")),
    ("gateway: the source restriction is dropped", |w| from_everybody(lock(w, "uplink"), "exposed4")),
    ("lock: the source restriction is dropped", |w| from_everybody(lock(w, "bravo"), "exposed4")),
    ("panel: the mirror takes a pure SYN", |w| {
        let rule = rules(panel(w), "panel4").iter_mut().find(|rule| asks(rule, "exposed_back4")).unwrap();
        let flags = rule.0.iter().position(|e| matches!(e, Expr::Payload { offset: 13, .. })).unwrap();
        drop(rule.0.drain(flags..flags + 3));
    }),
    ("panel: somebody of the pool comes in", |w| {
        let rule = rules(panel(w), "panel4").iter_mut().find(|rule| asks(rule, "exposed4")).unwrap();
        rule.0.retain(|e| !matches!(e, Expr::Lookup { set, .. } if set == "pool4"));
    }),
    ("panel: answers go to somebody of the pool by the gateway", |w| {
        for rule in rules(panel(w), "panel6").iter_mut().filter(|rule| asks(rule, "exposed_back6")) {
            rule.0.retain(|e| !matches!(e, Expr::Lookup { set, .. } if set == "pool6"));
        }
    }),
    ("panel: it is open from another wire", |w| {
        let wire = w.places["charlie"].fabric_index.to_ne_bytes();
        rekeyed(panel(w), "exposed4", |bytes, _| bytes[..4].copy_from_slice(&wire));
    }),
    ("panel: it is open from one wire more", |w| {
        let wire = w.places["charlie"].fabric_index.to_ne_bytes();
        let set = elements(panel(w), "exposed4");
        let (mut key, answer) = set.first_key_value().map(|(key, answer)| (key.clone(), answer.clone())).unwrap();
        key.from[..4].copy_from_slice(&wire);
        set.insert(key, answer);
    }),
    ("panel: it leads to another service", |w| {
        let wire = w.places["charlie"].fabric_index.to_ne_bytes().to_vec();
        elements(panel(w), "exposed4").values_mut().for_each(|answer| *answer = Some(wire.clone()));
    }),
    ("panel: one is missing", |w| drop(elements(panel(w), "exposed6").pop_first())),
    ("panel: an answer is missing", |w| drop(elements(panel(w), "exposed_back4").pop_last())),
    ("host: it is open by a port more", |w| {
        rekeyed(host(w), "ports4", |bytes, is_end| bytes[9] = if is_end { 0xff } else { bytes[9] });
    }),
    ("host: it leads to another port of the gateway", |w| {
        let rule = rules(host(w), "to_gateway").first_mut().unwrap();
        let to = rule.0.pop().unwrap();
        let port = Expr::Immediate { dreg: Reg(1), data: vec![0x1f, 0x91] };
        let Expr::Dnat { ipv6, addr, .. } = to else { panic!("it ends so") };
        rule.0.extend([port, Expr::Dnat { ipv6, addr, port: Some(Reg(1)) }]);
    }),
    ("host: addresses that are not its own are taken", |w| {
        for rule in rules(host(w), "to_gateway") {
            let at = rule.0.iter().position(|e| matches!(e, Expr::FibDaddrType { .. })).unwrap();
            drop(rule.0.drain(at..at + 2));
        }
    }),
    ("host: links of ours come in by it", |w| {
        for rule in rules(host(w), "to_gateway") {
            let at = rule.0.iter().position(|e| matches!(e, Expr::Meta { key: MetaKey::Iifgroup, .. })).unwrap();
            drop(rule.0.drain(at..at + 2));
        }
    }),
    ("host: answers do not come back", |w| drop(rules(host(w), "from_leg").remove(1))),
    ("gateway: it leads to the wrong port", |w| {
        let port = |e: &mut Expr| match e {
            Expr::Immediate { data, .. } if data.len() == 2 => data[1] ^= 1,
            _ => {}
        };
        rules(lock(w, "uplink"), "to_service").iter_mut().for_each(|rule| rule.0.iter_mut().for_each(port));
    }),
    ("gateway: an answer begins a connection", |w| {
        let answers = |rule: &&mut Rule| asks(rule, "exposed4") && rule.0.iter().any(|e| matches!(e, Expr::Ct { .. }));
        let rule = rules(lock(w, "uplink"), "forward").iter_mut().find(answers).unwrap();
        let at = rule.0.iter().position(|e| matches!(e, Expr::Ct { .. })).unwrap();
        let end = rule.0.len() - 1;
        drop(rule.0.drain(at..end));
    }),
    ("gateway: one who comes in gets no answer", |w| {
        let answers = |rule: &Rule| asks(rule, "exposed6") && rule.0.iter().any(|e| matches!(e, Expr::Ct { .. }));
        rules(lock(w, "uplink"), "forward").retain(|rule| !answers(rule));
    }),
    ("lock: it is open at a port more", |w| {
        rekeyed(lock(w, "bravo"), "exposed4", |bytes, is_end| bytes[9] = if is_end { 0xff } else { 0 });
    }),
    ("lock: who came in may be called", |w| {
        let rule = rules(lock(w, "bravo"), "input").iter().find(|rule| asks(rule, "exposed4")).unwrap().clone();
        rules(lock(w, "bravo"), "output").insert(0, rule);
    }),
];

/// Ways in by a relay.
pub const RELAYED: &str = r#"
schema = 1
[network]
name = "node"
lan = ["192.168.1.0/24", "fd99::/64"]
[service.bravo]
ports = { web = "tcp:80", shut = "tcp:81" }
expose.lan = { ports = { "8080" = "web" }, relay = true }
[service.charlie]
ports = { web = "tcp:80" }
expose.port = { ports = { "8081" = "web" }, relay = true, proxy = "v2" }
[service.delta]
ports = { web = "tcp:80" }
"#;

/// One element more: the first one with another address in place of its own.
fn one_more(table: &mut Table, set: &str, at: usize, address: &[u8]) {
    let set = elements(table, set);
    let (mut key, answer) = set.first_key_value().map(|(key, answer)| (key.clone(), answer.clone())).unwrap();
    for bytes in [Some(&mut key.from), key.to.as_mut()].into_iter().flatten() {
        bytes[at..at + address.len()].copy_from_slice(address);
    }
    set.insert(key, answer);
}

fn v4_of(w: &World, place: &str) -> Vec<u8> {
    let own = w.places[place].addresses.iter().find_map(|address| match address {
        std::net::IpAddr::V4(v4) => Some(v4.octets().to_vec()),
        std::net::IpAddr::V6(_) => None,
    });
    own.unwrap()
}

/// Mistakes with them.
pub const RELAYS: [Mutant; 10] = [
    ("relay: its lock lets it call a service that is not exposed", |w| {
        let delta = v4_of(w, "delta");
        one_more(lock(w, "+relay"), "out4", 0, &delta);
    }),
    ("relay: its lock lets it call another port", |w| {
        rekeyed(lock(w, "+relay"), "out4", |bytes, _| bytes[9] ^= 1);
    }),
    ("relay: its lock lets everything out", |w| open(lock(w, "+relay"), "output")),
    ("relay: its lock takes everything in", |w| open(lock(w, "+relay"), "input")),
    ("relay: its lock forgets who may come in", |w| from_everybody(lock(w, "+relay"), "exposed4")),
    ("relay: the panel lets it call a service that is not exposed", |w| {
        let (delta, wire) = (v4_of(w, "delta"), w.places["delta"].fabric_index.to_ne_bytes().to_vec());
        one_more(panel(w), "edges4", 8, &delta);
        elements(panel(w), "edges4").iter_mut().filter(|(key, _)| key.from[8..12] == delta).for_each(|(_, answer)| {
            *answer = Some(wire.clone());
        });
    }),
    ("relay: it may not call who is exposed", |w| drop(elements(panel(w), "edges6").pop_first())),
    ("relay: the service does not take it in", |w| elements(lock(w, "bravo"), "in4").clear()),
    ("relay: people outside come in past it", |w| {
        let (bravo, relay) = (w.places["bravo"].fabric_index, w.places["+relay"].fabric_index);
        let (relay, wire) = (relay.to_ne_bytes().to_vec(), bravo.to_ne_bytes().to_vec());
        for answer in elements(panel(w), "exposed4").values_mut().filter(|answer| **answer == Some(relay.clone())) {
            *answer = Some(wire.clone());
        }
    }),
    ("relay: errors from outside do not reach it", |w| elements(panel(w), "errors_back4").clear()),
];
