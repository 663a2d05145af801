//! The virtual machine, expression by expression: what matches, what does not, and where a run ends.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use netns_policy::packet::build::{Ends, flag};
use netns_policy::packet::{Extension, Packet, VLAN};
use netns_policy::ruleset::decide::conntrack::CtState;
use netns_policy::ruleset::decide::{Decision, Env, Nat, hook, run};
use netns_policy::ruleset::*;
use proptest::prelude::*;
use recipe::*;

#[allow(dead_code, reason = "the other tests use the rest of it")]
mod recipe;

const ENDS: Ends = Ends::V4 { from: Ipv4Addr::new(10, 0, 0, 1), to: Ipv4Addr::new(10, 0, 0, 2) };

fn six() -> Ends {
    Ends::new("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap()).unwrap()
}

fn syn() -> Packet {
    Packet::tcp(ENDS, 40000, 80, flag::SYN)
}

fn base(point: HookPoint, priority: i32, policy_accept: bool, rules: Vec<Rule>) -> Chain {
    let hook = Hook { kind: ChainKind::Filter, point, device: None, priority, policy_accept };
    Chain { hook: Some(hook), rules }
}

fn table(
    chains: impl IntoIterator<Item = (&'static str, Chain)>,
    sets: impl IntoIterator<Item = (&'static str, Set)>,
) -> Table {
    Table {
        chains: chains.into_iter().map(|(name, chain)| (name.to_owned(), chain)).collect(),
        sets: sets.into_iter().map(|(name, set)| (name.to_owned(), set)).collect(),
        dormant: false,
    }
}

/// Whether a rule of these expressions accepts, in a chain that drops.
fn matches_at(point: HookPoint, exprs: &[Expr], sets: &[(&'static str, Set)], packet: &Packet, env: &Env<'_>) -> bool {
    let rules = vec![Rule::from([exprs, &[ACCEPT]].concat())];
    let table = table([("base", base(point, 0, false, rules))], sets.iter().cloned());
    run(&table, "base", packet, env).decision == Decision::Accept
}

fn matches(exprs: &[Expr], packet: &Packet) -> bool {
    matches_at(HookPoint::Ingress, exprs, &[], packet, &Env::default())
}

#[test]
fn a_load_fills_its_last_register_with_zeros() {
    let old = Expr::Immediate { dreg: Reg(3), data: vec![0xff; 8] };
    let load_port = load(TH, 2, 2, 3);
    assert!(matches(&[old.clone(), load_port.clone(), is(3, &[0, 80, 0, 0, 0xff, 0xff, 0xff, 0xff])], &syn()));
    assert!(matches(&[old, meta(MetaKey::L4proto, 3), is(3, &[6, 0, 0, 0])], &syn()));
    assert!(!matches(&[load_port, is(3, &[0, 81])], &syn()));
}

#[test]
fn a_load_of_bytes_that_are_not_there_ends_the_rule() {
    assert!(matches(&[load(TH, 16, 4, 0)], &syn()));
    assert!(!matches(&[load(TH, 17, 4, 0)], &syn()));
    assert!(!matches(&[load(NET, u32::MAX, 4, 0)], &syn()));
    assert!(!matches(&[load(TH, 0, 2, 0)], &Packet::arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into())));
}

#[test]
fn a_register_that_is_none_matches_nothing() {
    assert!(!matches(&[load(NET, 0, 4, 16)], &syn()));
    assert!(!matches(&[load(NET, 0, 8, 15)], &syn()));
    assert!(!matches(&[is_not(15, &[0; 8])], &syn()));
}

#[test]
fn comparisons_compare_as_many_bytes_as_they_have() {
    let four = Expr::Immediate { dreg: Reg(0), data: vec![1, 2, 3, 4] };
    assert!(matches(&[four.clone(), is(0, &[1, 2])], &syn()));
    assert!(!matches(&[four.clone(), is(0, &[1, 3])], &syn()));
    assert!(matches(&[four.clone(), is_not(0, &[1, 3])], &syn()));
    assert!(!matches(&[four, is_not(0, &[1, 2])], &syn()));
}

#[test]
fn bitwise_is_and_then_exclusive_or() {
    let exprs = [
        Expr::Immediate { dreg: Reg(0), data: vec![0b1100, 0xff] },
        Expr::Bitwise { sreg: Reg(0), dreg: Reg(2), mask: vec![0b0110, 0], xor: vec![0b0001, 7] },
    ];
    assert!(matches(&[&exprs[..], &[is(2, &[0b0101, 7, 0, 0])]].concat(), &syn()));
    assert!(!matches(&[&exprs[..], &[is(2, &[0b0100, 7])]].concat(), &syn()));
}

#[test]
fn a_tag_is_off_for_the_headers_and_on_for_the_link_layer() {
    let tagged = syn().tagged(VLAN, 7);
    assert!(matches(&[meta(MetaKey::Protocol, 0), is(0, &[8, 0])], &tagged));
    assert!(matches(&[load(Base::Link, 12, 2, 0), is(0, &[0x81, 0])], &tagged));
    assert!(matches(&[load(Base::Link, 14, 4, 0), is(0, &[0, 7, 8, 0])], &tagged));
    assert!(matches(&[load(TH, 2, 2, 0), is(0, &[0, 80])], &tagged));
    assert!(matches(&[load(Base::Link, 12, 2, 0), is(0, &[8, 0])], &syn()));
    let twice = tagged.tagged(VLAN, 8);
    assert!(matches(&[meta(MetaKey::Protocol, 0), is(0, &[0x81, 0])], &twice));
    assert!(!matches(&[meta(MetaKey::L4proto, 0)], &twice));
}

#[test]
fn ipv6_headers_are_walked_to_the_transport_header() {
    let syn = Packet::tcp(six(), 40000, 80, flag::SYN);
    let port = [meta(MetaKey::L4proto, 1), is(1, &[6]), load(TH, 2, 2, 0), is(0, &[0, 80])];
    assert!(matches(&port, &syn));
    for extension in [Extension::HopByHop, Extension::Destination, Extension::Routing, Extension::AtomicFragment] {
        assert!(matches(&port, &syn.with_extension(extension).unwrap()), "{extension:?}");
    }
    let hidden = syn.with_extension(Extension::Authentication).unwrap();
    assert!(!matches(&port, &hidden));
    assert!(matches(&[meta(MetaKey::L4proto, 1), is(1, &[51])], &hidden));
    let many = (0..100).try_fold(syn, |packet, _| packet.with_extension(Extension::Destination)).unwrap();
    assert!(matches(&port, &many));
}

#[test]
fn a_routing_header_is_seen_behind_others_and_is_a_question_for_ipv6_only() {
    let exists = |value: u8| [Expr::RoutingHeaderExists { dreg: Reg(0) }, is(0, &[value])];
    let plain = Packet::tcp(six(), 40000, 80, flag::SYN);
    let routed = plain.with_extension(Extension::Routing).unwrap().with_extension(Extension::HopByHop).unwrap();
    assert!(matches(&exists(0), &plain));
    assert!(matches(&exists(1), &routed));
    assert!(!matches(&exists(0), &routed));
    assert!(!matches(&exists(0), &syn()) && !matches(&exists(1), &syn()));
}

#[test]
fn later_fragments_have_a_protocol_and_what_looks_like_ports() {
    for ends in [ENDS, six()] {
        let (first, second) = Packet::udp(ends, 40000, 53, &[0; 64]).fragments(32).unwrap();
        let (protocol, port) = ([meta(MetaKey::L4proto, 0), is(0, &[17])], [load(TH, 2, 2, 0), is(0, &[0, 53])]);
        assert!(matches(&protocol, &first) && matches(&port, &first), "{ends:?}");
        assert!(matches(&protocol, &second) && !matches(&port, &second), "{ends:?}");
        // Only what the kernel cannot load the quick way is refused.
        assert!(matches(&[load(TH, 0, 4, 0)], &second), "{ends:?}");
        assert!(!matches(&[load(TH, 1, 2, 0)], &second) && matches(&[load(TH, 1, 2, 0)], &first), "{ends:?}");
        assert!(!matches(&[load(TH, 0, 3, 0)], &second) && !matches(&[load(TH, 0, 8, 0)], &second), "{ends:?}");
    }
}

#[test]
fn the_flow_label_of_a_later_fragment_is_taken_for_its_ports() {
    let (_, second) = Packet::udp(six(), 40000, 53, &[0; 64]).fragments(32).unwrap();
    let port = [load(TH, 2, 2, 0), is(0, &[0, 80])];
    assert!(matches(&port, &second.with_flow_label(80).unwrap()));
    assert!(!matches(&port, &second));
}

#[test]
fn a_header_that_lies_about_lengths_has_no_transport_protocol() {
    let l4proto = [meta(MetaKey::L4proto, 0)];
    let broken = |offset: usize, value: u8| {
        let mut frame = syn().frame().to_vec();
        frame[offset] = value;
        Packet::from_frame(frame)
    };
    assert!(matches(&l4proto, &syn()));
    assert!(!matches(&l4proto, &syn().cut(53)), "shorter than its total length");
    assert!(!matches(&l4proto, &broken(14, 0x44)), "a header of 16 bytes");
    assert!(!matches(&l4proto, &broken(14, 0x65)), "version 6 in an IPv4 frame");
    assert!(!matches(&l4proto, &broken(17, 19)), "a total length below the header's");
    let options = syn().with_options(&[0x83, 7, 4, 10, 0, 0, 9]).unwrap();
    assert!(matches(&[load(TH, 2, 2, 0), is(0, &[0, 80])], &options));
}

#[test]
fn ingress_reads_behind_the_datagram_and_the_stack_does_not() {
    let padded = Packet::from_frame([syn().frame(), &[9; 6]].concat());
    let behind = [load(TH, 20, 4, 0), is(0, &[9; 4])];
    assert!(matches(&behind, &padded));
    assert!(!matches_at(HookPoint::Input, &behind, &[], &padded, &Env::default()));
}

#[test]
fn interfaces_and_families_come_from_the_hook() {
    let env = Env { iif: 7, iifname: "net0", oif: 9, oifname: "a-very-long-name", ..Env::default() };
    let at = |point, exprs: &[Expr]| matches_at(point, exprs, &[], &syn(), &env);
    assert!(at(HookPoint::Input, &[meta(MetaKey::Iif, 0), is(0, &7_u32.to_ne_bytes())]));
    assert!(at(HookPoint::Input, &[meta(MetaKey::Oif, 0), is(0, &9_u32.to_ne_bytes())]));
    assert!(at(HookPoint::Input, &[meta(MetaKey::Iifname, 0), is(0, b"net0\0\0\0\0\0\0\0\0\0\0\0\0")]));
    assert!(at(HookPoint::Input, &[meta(MetaKey::Oifname, 0), is(0, b"a-very-long-nam\0")]));
    assert!(at(HookPoint::Input, &[meta(MetaKey::Nfproto, 0), is(0, &[2])]));
    assert!(at(HookPoint::Ingress, &[meta(MetaKey::Nfproto, 0), is(0, &[5])]));
    assert!(at(HookPoint::Input, &[load(Base::Link, 0, 6, 0)]));
    assert!(!at(HookPoint::Output, &[load(Base::Link, 0, 6, 0)]));
}

#[test]
fn a_packet_without_a_connection_is_invalid_and_has_no_direction() {
    let at = |ct, exprs: &[Expr]| matches_at(HookPoint::Input, exprs, &[], &syn(), &Env { ct, ..Env::default() });
    let direction = [Expr::Ct { key: CtKey::Direction, dreg: Reg(0) }, is(0, &[1])];
    let reply = Some(CtState::reply(CtState::ESTABLISHED));
    assert!(at(None, &ct(1)) && !at(None, &ct(2 | 4 | 8 | 64)));
    assert!(at(reply, &ct(2)) && !at(reply, &ct(8)));
    assert!(at(reply, &direction) && !at(None, &direction));
    assert!(!at(Some(CtState::original(CtState::ESTABLISHED)), &direction));
    assert!(!at(Some(CtState::reply(CtState::UNTRACKED)), &direction));
    let nat = Some(CtState { status: 32, ..CtState::original(CtState::NEW) });
    let status = [Expr::Ct { key: CtKey::Status, dreg: Reg(0) }, and(0, &32_u32.to_ne_bytes()), is_not(0, &[0; 4])];
    assert!(at(nat, &status) && !at(reply, &status));
}

#[test]
fn an_exact_set_knows_its_keys_and_a_map_their_answers() {
    let fields = [Field::Ipv4Addr, Field::InetService];
    let one = key(&[&[10, 0, 0, 2], &80_u16.to_be_bytes()]);
    let sets = [("s", set(&fields, [one.clone()])), ("m", map_of(&fields, [(one, 77)]))];
    let query = [load(NET, 16, 4, 0), load(TH, 2, 2, 1)];
    let at = |last: &[Expr], packet: &Packet| {
        matches_at(HookPoint::Ingress, &[&query[..], last].concat(), &sets, packet, &Env::default())
    };
    let other = Packet::tcp(ENDS, 40000, 81, flag::SYN);
    assert!(at(&[find("s", 0)], &syn()) && !at(&[find("s", 0)], &other));
    assert!(!at(&[miss("s", 0)], &syn()) && at(&[miss("s", 0)], &other));
    assert!(at(&[map("m", 0, 5), is(5, &77_u32.to_ne_bytes())], &syn()));
    assert!(!at(&[map("m", 0, 5)], &other));
    assert!(!at(&[find("unknown", 0)], &syn()) && !at(&[miss("unknown", 0)], &syn()));
}

#[test]
fn a_set_of_one_short_field_ignores_the_rest_of_the_register() {
    let sets = [("s", set(&[Field::IcmpType], [key(&[&[8]])]))];
    let dirty = Expr::Immediate { dreg: Reg(0), data: vec![8, 1, 2, 3] };
    assert!(matches_at(HookPoint::Ingress, &[dirty.clone(), find("s", 0)], &sets, &syn(), &Env::default()));
    let pair = [("s", set(&[Field::IcmpType, Field::IcmpType], [key(&[&[8], &[0]])]))];
    assert!(!matches_at(HookPoint::Ingress, &[dirty, find("s", 0)], &pair, &syn(), &Env::default()));
}

fn interval(fields: &[Field], from: &[&[u8]], to: &[&[u8]]) -> Set {
    let range = Key { from: key(from).from, to: Some(key(to).from) };
    Set { interval: true, ..set(fields, [range]) }
}

#[test]
fn ranges_hold_both_their_ends_and_every_field_on_its_own() {
    let fields = [Field::Ipv4Addr, Field::InetService];
    let range = interval(&fields, &[&[10, 0, 0, 4], &[1, 0]], &[&[10, 0, 1, 3], &[2, 5]]);
    let at = |addr: [u8; 4], port: [u8; 2]| {
        let data = key(&[&addr, &port]).from;
        let exprs = [Expr::Immediate { dreg: Reg(0), data }, find("r", 0)];
        matches_at(HookPoint::Ingress, &exprs, &[("r", range.clone())], &syn(), &Env::default())
    };
    assert!(at([10, 0, 0, 4], [1, 0]) && at([10, 0, 1, 3], [2, 5]));
    assert!(at([10, 0, 0, 255], [1, 255]) && at([10, 0, 1, 0], [2, 0]));
    assert!(!at([10, 0, 0, 3], [1, 0]) && !at([10, 0, 1, 4], [2, 0]));
    // Inside by the order of the whole key, outside by its second field.
    assert!(!at([10, 0, 0, 5], [0, 255]) && !at([10, 0, 0, 5], [2, 6]));
}

#[test]
fn a_range_of_one_field_is_one_of_byte_strings() {
    let range = [("r", interval(&[Field::InetService], &[&[0, 80]], &[&[1, 0]]))];
    let at = |port: u16| {
        let packet = Packet::tcp(ENDS, 40000, port, flag::SYN);
        matches_at(HookPoint::Ingress, &[load(TH, 2, 2, 0), find("r", 0)], &range, &packet, &Env::default())
    };
    assert!(at(80) && at(255) && at(256));
    assert!(!at(79) && !at(257));
}

#[test]
fn what_depends_on_counts_asks_the_environment() {
    let sets = [("d", set(&[Field::Ipv4Addr], []))];
    let at = |expr: Expr, env: Env<'_>| matches_at(HookPoint::Input, &[load(NET, 12, 4, 0), expr], &sets, &syn(), &env);
    let limit = |over| Expr::Limit { per_second: 1, burst: 1, over };
    let update = Expr::Update { set: "d".into(), sreg: Reg(0) };
    let count = Expr::CountOver { set: "d".into(), sreg: Reg(0), count: 5 };
    let exhausted = Env { limits_exhausted: true, ..Env::default() };
    let full = Env { dynamic_full: true, ..Env::default() };
    assert!(at(limit(false), Env::default()) && !at(limit(false), exhausted));
    assert!(!at(limit(true), Env::default()) && at(limit(true), exhausted));
    assert!(at(update.clone(), Env::default()) && !at(update, full));
    assert!(!at(count.clone(), Env { connections: 5, ..Env::default() }));
    assert!(at(count.clone(), Env { connections: 6, ..Env::default() }));
    assert!(!at(count, Env { connections: 6, ..full }));
    let local = [Expr::FibDaddrType { dreg: Reg(0) }, is(0, &2_u32.to_ne_bytes())];
    let env = Env { fib_daddr_type: 2, ..Env::default() };
    assert!(matches_at(HookPoint::Input, &local, &[], &syn(), &env));
    assert!(!matches_at(HookPoint::Input, &local, &[], &syn(), &Env::default()));
}

#[test]
fn the_segment_size_is_a_matter_of_tcp() {
    let env = Env { tcp_mss: Some(1380), ..Env::default() };
    let clamp = [Expr::RtTcpMss { dreg: Reg(0) }, is(0, &1380_u16.to_be_bytes()), Expr::SetTcpMss { sreg: Reg(0) }];
    assert!(matches_at(HookPoint::Forward, &clamp, &[], &syn(), &env));
    assert!(!matches_at(HookPoint::Forward, &clamp, &[], &Packet::udp(ENDS, 1, 2, b""), &env));
    assert!(!matches_at(HookPoint::Forward, &clamp, &[], &syn(), &Env::default()));
}

fn chains(rules: [(&'static str, Vec<Rule>); 4]) -> Table {
    let [(base_name, base_rules), others @ ..] = rules;
    let others = others.map(|(name, rules)| (name, Chain { hook: None, rules }));
    let first = (base_name, base(HookPoint::Ingress, 0, true, base_rules));
    table([first].into_iter().chain(others), [])
}

fn to(verdict: Verdict) -> Rule {
    Rule::from(vec![Expr::Verdict(verdict)])
}

#[test]
fn a_jump_comes_back_and_a_goto_does_not() {
    let jump = |to_: &str| to(Verdict::Jump(to_.into()));
    let goto = |to_: &str| to(Verdict::Goto(to_.into()));
    let ends = |rules| run(&chains(rules), "base", &syn(), &Env::default()).decision;
    let none = || ("x", vec![]);
    let drop = || Rule::from(vec![DROP]);
    // The base chain's policy accepts, so Drop means that its second rule was reached.
    assert_eq!(ends([("base", vec![jump("c"), drop()]), ("c", vec![]), none(), ("y", vec![])]), Decision::Drop);
    assert_eq!(ends([("base", vec![goto("c"), drop()]), ("c", vec![]), none(), ("y", vec![])]), Decision::Accept);
    let returns = vec![to(Verdict::Return), drop()];
    assert_eq!(ends([("base", vec![jump("c")]), ("c", returns.clone()), none(), ("y", vec![])]), Decision::Accept);
    assert_eq!(ends([("base", returns), ("c", vec![]), none(), ("y", vec![])]), Decision::Accept);
    // base jumps to c, c goes to d: the end of d is back in base.
    let (c, d) = (("c", vec![goto("d"), Rule::from(vec![ACCEPT])]), ("d", vec![]));
    assert_eq!(ends([("base", vec![jump("c"), drop()]), c, d, ("y", vec![])]), Decision::Drop);
}

#[test]
fn what_the_kernel_would_not_load_drops() {
    let ends = |rules| run(&chains(rules), "base", &syn(), &Env::default()).decision;
    let circle = |verdict: fn(String) -> Verdict| {
        [("base", vec![to(verdict("c".into()))]), ("c", vec![to(verdict("c".into()))]), ("x", vec![]), ("y", vec![])]
    };
    assert_eq!(ends(circle(Verdict::Goto)), Decision::Drop);
    assert_eq!(ends(circle(Verdict::Jump)), Decision::Drop);
    let unknown = vec![to(Verdict::Goto("nowhere".into()))];
    assert_eq!(ends([("base", unknown), ("c", vec![]), ("x", vec![]), ("y", vec![])]), Decision::Drop);
    assert_eq!(run(&Table::default(), "base", &syn(), &Env::default()).decision, Decision::Drop);
}

#[test]
fn a_verdict_ends_the_run_and_the_trace_says_where() {
    let forward = Rule::from(vec![
        Expr::Immediate { dreg: Reg(0), data: 12_u32.to_ne_bytes().into() },
        Expr::Counter,
        Expr::Log { group: 5, prefix: String::new(), snaplen: 0 },
        Expr::Fwd { sreg: Reg(0) },
    ]);
    let passes = Rule::from(vec![load(TH, 2, 2, 0), is(0, &[0, 81])]);
    let rules = vec![passes, to(Verdict::Jump("c".into())), Rule::from(vec![DROP])];
    let table = chains([("base", rules), ("c", vec![forward]), ("x", vec![]), ("y", vec![])]);
    let outcome = run(&table, "base", &syn(), &Env::default());
    assert_eq!(outcome.decision, Decision::Forwarded(12));
    assert_eq!(outcome.trace, [("base", 1), ("c", 0)]);
    let refuse = chains([
        ("base", vec![Rule::from(vec![Expr::Reject(Reject::TcpReset)])]),
        ("c", vec![]),
        ("x", vec![]),
        ("y", vec![]),
    ]);
    assert_eq!(run(&refuse, "base", &syn(), &Env::default()).decision, Decision::Rejected(Reject::TcpReset));
}

#[test]
fn base_chains_run_by_priority_until_one_does_not_accept() {
    let at = |policy: [bool; 2]| {
        let last = base(HookPoint::Input, 10, policy[1], vec![Rule::from(vec![Expr::Counter])]);
        let first = base(HookPoint::Input, -5, policy[0], vec![Rule::from(vec![Expr::Counter])]);
        let other = base(HookPoint::Output, -50, false, vec![]);
        let table = table([("a-last", last), ("b-first", first), ("other", other)], []);
        let outcome = hook(&table, HookPoint::Input, None, &syn(), &Env::default());
        let trace: Vec<_> = outcome.trace.iter().map(|(chain, _)| chain.to_string()).collect();
        (outcome.decision, trace)
    };
    assert_eq!(at([true, true]), (Decision::Accept, vec!["b-first".into(), "a-last".into()]));
    assert_eq!(at([true, false]), (Decision::Drop, vec!["b-first".into(), "a-last".into()]));
    assert_eq!(at([false, true]), (Decision::Drop, vec!["b-first".into()]));
    let empty = Table::default();
    assert_eq!(hook(&empty, HookPoint::Input, None, &syn(), &Env::default()).decision, Decision::Accept);
}

#[test]
fn an_ingress_chain_is_for_its_own_device() {
    let mut chain = base(HookPoint::Ingress, 0, false, vec![]);
    chain.hook.as_mut().unwrap().device = Some("s_a".into());
    let table = table([("i", chain)], []);
    let at = |device| hook(&table, HookPoint::Ingress, Some(device), &syn(), &Env::default()).decision;
    assert_eq!(at("s_a"), Decision::Drop);
    assert_eq!(at("s_b"), Decision::Accept);
}

#[test]
fn a_nat_chain_is_asked_for_the_first_packet_only() {
    let target = Nat::Destination { address: [10, 0, 0, 9].into(), port: Some(53) };
    let dnat = Rule::from(vec![
        Expr::Immediate { dreg: Reg(0), data: vec![10, 0, 0, 9] },
        Expr::Immediate { dreg: Reg(1), data: vec![0, 53] },
        Expr::Dnat { ipv6: false, addr: Reg(0), port: Some(Reg(1)) },
        DROP,
    ]);
    let mut nat = base(HookPoint::Prerouting, -100, true, vec![dnat]);
    nat.hook.as_mut().unwrap().kind = ChainKind::Nat;
    let masquerade = base(HookPoint::Postrouting, 100, false, vec![Rule::from(vec![Expr::Masquerade])]);
    let table = table([("nat", nat), ("masquerade", masquerade)], []);
    let at = |point, ct| {
        let outcome = hook(&table, point, None, &syn(), &Env { ct, ..Env::default() });
        (outcome.decision, outcome.nat)
    };
    let new = Some(CtState::original(CtState::NEW));
    assert_eq!(at(HookPoint::Prerouting, new), (Decision::Accept, Some(target)));
    assert_eq!(at(HookPoint::Prerouting, Some(CtState::reply(CtState::ESTABLISHED))), (Decision::Accept, None));
    assert_eq!(at(HookPoint::Prerouting, None), (Decision::Accept, None));
    assert_eq!(at(HookPoint::Postrouting, new), (Decision::Accept, Some(Nat::Masquerade)));
}

/// Expressions of any kind with any registers, some of which the kernel would refuse.
fn any_expr() -> impl Strategy<Value = Expr> {
    let reg = || (0u8..20).prop_map(Reg);
    let bytes = || prop::collection::vec(any::<u8>(), 0..20);
    let meta_key = prop::sample::select(vec![
        MetaKey::Iif,
        MetaKey::Iifname,
        MetaKey::L4proto,
        MetaKey::Nfproto,
        MetaKey::Oifname,
        MetaKey::Protocol,
    ]);
    let base = prop::sample::select(vec![Base::Link, Base::Network, Base::Transport]);
    prop_oneof![
        (meta_key, reg()).prop_map(|(key, dreg)| Expr::Meta { key, dreg }),
        (base, 0u32..80, 0u32..80, reg()).prop_map(|(base, offset, len, dreg)| Expr::Payload {
            base,
            offset,
            len,
            dreg
        }),
        (any::<bool>(), reg(), bytes()).prop_map(|(equal, sreg, data)| Expr::Cmp { equal, sreg, data }),
        (reg(), reg(), bytes(), bytes()).prop_map(|(sreg, dreg, mask, xor)| Expr::Bitwise { sreg, dreg, mask, xor }),
        (reg(), prop::option::of(reg()), any::<bool>()).prop_map(|(sreg, dreg, invert)| Expr::Lookup {
            set: "s".into(),
            sreg,
            dreg,
            invert
        }),
        (reg(), bytes()).prop_map(|(dreg, data)| Expr::Immediate { dreg, data }),
        reg().prop_map(|sreg| Expr::Fwd { sreg }),
        (any::<bool>(), reg(), prop::option::of(reg())).prop_map(|(ipv6, addr, port)| Expr::Dnat { ipv6, addr, port }),
        prop::sample::select(vec!["base", "c", "x"]).prop_map(|chain| Expr::Verdict(Verdict::Jump(chain.into()))),
        Just(Expr::Verdict(Verdict::Return)),
    ]
}

/// Bytes that begin like a frame with IP in it, else nothing would get past the first check.
fn any_frame() -> impl Strategy<Value = Packet> {
    let start = prop::sample::select(vec![
        vec![0x08, 0x00, 0x45],
        vec![0x08, 0x00, 0x46],
        vec![0x86, 0xdd, 0x60],
        vec![0x81, 0x00, 0, 7, 0x86, 0xdd, 0x60],
        vec![],
    ]);
    let body = prop::collection::vec(any::<u8>(), 0..120);
    (start, body).prop_map(|(start, body)| Packet::from_frame([&[2; 12][..], &start, &body].concat()))
}

proptest! {
    #[test]
    fn no_packet_and_no_rule_panics(
        packet in any_frame(),
        rules in prop::collection::vec(prop::collection::vec(any_expr(), 0..6).prop_map(Rule::from), 0..6),
        cut in 0usize..120,
        interval in any::<bool>(),
    ) {
        let short = Key { from: vec![1, 2], to: None };
        let s = Set { interval, data: Some(Field::IfaceIndex), ..set(&[Field::Ipv6Addr, Field::InetService], [short]) };
        for point in [HookPoint::Ingress, HookPoint::Input, HookPoint::Output] {
            let chain = |rules: &Vec<Rule>| Chain { hook: None, rules: rules.clone() };
            let mut table = table([("base", base(point, 0, true, rules.clone())), ("c", chain(&rules))], [("s", s.clone())]);
            run(&table, "base", &packet, &Env::default());
            run(&table, "base", &packet.cut(cut), &Env::default());
            table.chains.remove("c");
            run(&table, "base", &packet, &Env::default());
        }
    }

    #[test]
    fn no_bytes_panic_on_the_whole_way(packet in any_frame(), cut in 0usize..120) {
        use netns_policy::ruleset::decide::walk::Sender;
        let world = world(&["a", "b"], &[("a", "b", netns_policy::port::Protocol::Tcp, 80)]);
        let mut connections = BTreeMap::new();
        for packet in [packet.clone(), packet.cut(cut), packet.tagged(VLAN, 0)] {
            world.send("a", &packet, Sender::Program, &mut connections);
            let walk = world.send("a", &packet, Sender::Root, &mut connections);
            prop_assert!(!walk.is_delivered());
            packet.fragments(cut);
            packet.with_options(&[1; 60]);
            packet.with_extension(Extension::Routing);
            Packet::icmp_error(ENDS, netns_policy::packet::build::Icmp { kind: 3, code: 0, rest: 0 }, &packet);
        }
    }
}
