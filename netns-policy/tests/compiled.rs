//! The law: compiled rules deliver a packet if, and only if, the policy says so.

use std::net::IpAddr;
use std::time::Instant;

use drawn::Made;
use netns_policy::packet::{Ends, Packet};
use netns_policy::ruleset::decide::Decision;
use netns_policy::ruleset::decide::walk::{Connections, Fate, Gate, Loss, Sender, World};
use netns_policy::ruleset::delta::{Delta, Op};
use netns_policy::ruleset::expect::{Ip, Kind, PacketClass, classes, expected, outside};
use netns_policy::ruleset::{Expr, Key, Reg, Rule, Ruleset, Set};
use proptest::prelude::*;

#[allow(dead_code, reason = "other tests use the rest of it")]
mod drawn;
#[allow(dead_code, reason = "other tests use the rest of it")]
mod planted;

/// The first class inside the fabric, of every `step`th from `start` on, that `world` gets wrong.
fn inside(made: &Made, world: &World, start: usize, step: usize) -> Option<PacketClass> {
    let address = |name: &str, ip: Ip| -> Option<IpAddr> { made.address(name, ip) };
    let mut some = classes(&made.graph).skip(start).step_by(step);
    some.find(|class| !class.holds(&made.graph, &address, world))
}

/// The same for what is outside.
fn outside(made: &Made, world: &World, start: usize, step: usize) -> Option<outside::OutsideClass> {
    let premises = made.premises();
    let mut some = outside::classes(&premises).skip(start).step_by(step);
    some.find(|class| !class.holds(&premises, world))
}

/// A panel that hands everything to one wire.
fn broken_panel(world: &World, to: &str) -> Ruleset {
    let index = world.places[to].fabric_index.to_ne_bytes().to_vec();
    let out = Rule::from(vec![Expr::Immediate { dreg: Reg(0), data: index }, Expr::Fwd { sreg: Reg(0) }]);
    let mut panel = world.fabric.clone();
    let chains = panel.tables.values_mut().flat_map(|table| table.chains.values_mut());
    chains.filter(|chain| chain.hook.is_some()).for_each(|chain| chain.rules = vec![out.clone()]);
    panel
}

/// The second lock stands by itself: the first class in which a client's lock lets a connection out that has no edge,
/// or a server's lets one in though the panel hands it anything.
fn alone(made: &Made, world: &World) -> Option<(&'static str, PacketClass)> {
    let address = |name: &str, ip: Ip| -> Option<IpAddr> { made.address(name, ip) };
    let opening = |class: &PacketClass| matches!(class.kind, Kind::Syn | Kind::UdpNew);
    let mut broken = world.clone();
    for class in classes(&made.graph).filter(opening) {
        let Some(packet) = class.packet(&address) else { continue };
        let (from, to) = (class.from.to_string(), class.to.to_string());
        let edge = expected(&made.graph, &address, &class);
        let left = world.carry(&from, &packet, Sender::Program, &Connections::new());
        if (left.hops[0].outcome.decision == Decision::Accept) != edge {
            return Some(("client", class));
        }
        broken.fabric = broken_panel(world, &to);
        if broken.carry(&from, &packet, Sender::Root, &Connections::new()).is_delivered() != edge {
            return Some(("server", class));
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_packet_arrives_if_and_only_if_the_policy_has_the_edge(policy in drawn::policy(6), start in 0usize..97) {
        let made = Made::of(&policy.text());
        prop_assert_eq!(inside(&made, &made.world, start, 97), None, "{}", policy.text());
    }

    #[test]
    fn a_packet_leaves_or_comes_back_if_and_only_if_outbound_says_so(policy in drawn::policy(4), start in 0usize..199) {
        let made = Made::of(&policy.text());
        prop_assert_eq!(outside(&made, &made.world, start, 199), None, "{}", policy.text());
    }

    #[test]
    fn the_second_lock_stands_by_itself(policy in drawn::policy(3)) {
        let made = Made::of(&policy.text());
        prop_assert_eq!(alone(&made, &made.world), None, "{}", policy.text());
    }
}

/// Of the example's classes one in so many is tried; which ones is the same every time.
const STEP: usize = 101;
const BITCOIN_NODE: &str = include_str!("../../examples/policies/bitcoin-node.toml");

#[test]
fn the_example_keeps_the_promise() {
    let made = Made::of(BITCOIN_NODE);
    let began = Instant::now();
    assert_eq!(inside(&made, &made.world, 0, STEP), None);
    let inside_took = began.elapsed();
    assert_eq!(outside(&made, &made.world, 0, STEP), None);
    let took = began.elapsed() - inside_took;
    println!("inside {} classes, one of {STEP} in {inside_took:?}", classes(&made.graph).count());
    println!("outside {} classes, one of {STEP} in {took:?}", outside::classes(&made.premises()).count());
    let address = |name: &str, ip: Ip| made.address(name, ip);
    let plain = |class: &PacketClass| matches!(class.kind, Kind::Syn | Kind::Reply(_) | Kind::Echo | Kind::EchoReply);
    let tried: Vec<_> = classes(&made.graph).filter(plain).step_by(13).collect();
    let yes = tried.iter().filter(|class| expected(&made.graph, &address, class)).count();
    assert_eq!(tried.iter().find(|class| !class.holds(&made.graph, &address, &made.world)), None);
    assert!(yes > 10, "only {yes} of the {} classes that were tried can pass", tried.len());
}

/// Every ruleset of a policy.
fn rulesets(made: &Made) -> Vec<&Ruleset> {
    std::iter::once(&made.desired.fabric).chain(made.desired.locks.values()).collect()
}

/// Whether some key is in both elements of an interval set.
fn overlap(set: &Set, a: &Key, b: &Key) -> bool {
    let mut at = 0;
    set.key.iter().all(|field| {
        let span = |key: &Key| {
            let side = |bytes: &[u8]| bytes[at..at + field.width()].to_vec();
            (side(&key.from), side(key.to.as_ref().expect("an element of an interval set has two ends")))
        };
        let ((a_lo, a_hi), (b_lo, b_hi)) = (span(a), span(b));
        at += field.padded_len();
        a_lo <= b_hi && b_lo <= a_hi
    })
}

fn well_formed(set: &Set) -> bool {
    let len: usize = set.key.iter().map(|field| field.padded_len()).sum();
    let sized =
        |key: &Key| key.from.len() == len && key.to.as_ref().is_none_or(|to| to.len() == len && key.from <= *to);
    set.elements
        .iter()
        .all(|(key, answer)| sized(key) && key.to.is_some() == set.interval && answer.is_some() == set.data.is_some())
}

/// How many elements come or go, and how many other operations there are.
fn size(delta: &Delta) -> (usize, usize) {
    let elements = delta.ops.iter().map(|op| match op {
        Op::AddElements(e) | Op::DeleteElements(e) => e.of.elements.len(),
        _ => 0,
    });
    let others = delta.ops.iter().filter(|op| !matches!(op, Op::AddElements(_) | Op::DeleteElements(_)));
    (elements.sum(), others.count())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_two_elements_of_an_interval_set_overlap(policy in drawn::policy(6)) {
        let made = Made::of(&policy.text());
        let tables = rulesets(&made).into_iter().flat_map(|rules| rules.tables.values());
        for (name, set) in tables.flat_map(|table| &table.sets) {
            prop_assert!(well_formed(set), "{name}");
            let keys: Vec<&Key> = set.elements.keys().filter(|_| set.interval).collect();
            for (n, a) in keys.iter().enumerate() {
                prop_assert!(!keys[..n].iter().any(|b| overlap(set, a, b)), "{name}: {a:?}\n{}", policy.text());
            }
        }
    }

    #[test]
    fn no_text_of_the_operator_names_a_rule_object(policy in drawn::policy(6)) {
        let text = policy.text().replace("\"node\"", "\"zebra\"");
        let words = drawn::NAMES.iter().chain(&["zebra", "backup", "media", "web"]);
        let made = Made::of(&text);
        for rules in rulesets(&made) {
            for ((_, table), inner) in &rules.tables {
                let table = table.strip_prefix("nsctl-").map_or(table.as_str(), |_| "nsctl");
                let names = inner.chains.keys().chain(inner.sets.keys()).map(String::as_str).chain([table]);
                let names: Vec<&str> = names.collect();
                prop_assert!(!names.iter().any(|name| words.clone().any(|word| name.contains(word))), "{names:?}");
            }
        }
    }

    /// One edge more is an element and its answer and the echo both ways in the panel, and the port and the echo in
    /// the two locks, for each family: of a range the ports, of a long one that joins others those it joins.
    #[test]
    fn an_edge_more_is_a_constant_number_of_elements(
        policy in drawn::policy(5), from in 0usize..5, to in 0usize..5, port in 0usize..8,
    ) {
        let (from, to) = (from % policy.services.len(), to % policy.services.len());
        prop_assume!(from != to);
        let mut more = policy.clone();
        let target = more.services[to].0;
        more.services[from].1.edges.push((target, port));
        let (few, more) = (Made::of(&policy.text()), Made::of(&more.text()));
        let names = [from, to].map(|n| drawn::NAMES[policy.services[n].0]);
        // Of the ports that can be drawn the longest short range has four, and two long ones join to one.
        let (elements, others) = size(&Delta::between(&few.desired.fabric, &more.desired.fabric));
        prop_assert!(elements <= 2 * (2 * 4 + 2) && others == 0, "{elements} elements, {others} others in the panel");
        for (place, lock) in &more.desired.locks {
            let (elements, others) = size(&Delta::between(&few.desired.locks[place], lock));
            let most = if names.contains(&place.to_string().as_str()) { 2 * (4 + 1) } else { 0 };
            prop_assert!(elements <= most && others == 0, "{elements} elements, {others} others in {place}");
        }
    }
}

// ---- planted mistakes ------------------------------------------------------------------------------------------------

#[test]
fn every_planted_mistake_is_found() {
    let made = Made::of(planted::SMALL);
    let began = Instant::now();
    assert_eq!((inside(&made, &made.world, 0, 5), outside(&made, &made.world, 0, 7)), (None, None));
    assert_eq!(alone(&made, &made.world), None);
    println!(
        "{} and {} classes in {:?}",
        classes(&made.graph).count(),
        outside::classes(&made.premises()).count(),
        began.elapsed()
    );
    let mut missed = Vec::new();
    for (name, mistake) in planted::MUTANTS {
        let mut world = made.world.clone();
        mistake(&mut world);
        assert_ne!(world, made.world, "{name}: changed nothing");
        // Most are found in a few of the classes; only what is not is looked for in all.
        let found = |step| inside(&made, &world, 0, step).is_some() || outside(&made, &world, 0, step).is_some();
        if !(found(97) || found(11) || found(1) || alone(&made, &world).is_some()) {
            missed.push(name);
        }
    }
    println!("with the mistakes {:?}", began.elapsed());
    assert_eq!(missed, Vec::<&str>::new(), "not found");
}

/// Mistakes that the first packet of a call meets, whoever is at the other gates. The rest is the proof's to find.
const OF_CALLS: [&str; 8] = [
    "lock: the source restriction is dropped",
    "panel: somebody of the pool comes in",
    "panel: it is open from another wire",
    "panel: it leads to another service",
    "panel: one is missing",
    "host: it leads to another port of the gateway",
    "gateway: it leads to the wrong port",
    "relay: people outside come in past it",
];

#[test]
fn a_mistake_that_calls_from_outside_meet_is_found_by_them() {
    let cases = [(planted::ENTERED, &planted::ENTRANCES[..]), (planted::RELAYED, &planted::RELAYS[..])];
    let mut found = Vec::new();
    for (text, mistakes) in cases {
        let made = Made::of(text);
        assert_eq!(outside(&made, &made.world, 0, 7), None);
        for (name, mistake) in mistakes.iter().filter(|(name, _)| OF_CALLS.contains(name)) {
            let mut world = made.world.clone();
            mistake(&mut world);
            let is_found = |step| outside(&made, &world, 0, step).is_some();
            found.extend((is_found(97) || is_found(1)).then_some(*name));
        }
    }
    found.sort_unstable();
    let mut all = OF_CALLS;
    all.sort_unstable();
    assert_eq!(found, all);
}

#[test]
fn what_a_lock_sends_somewhere_else_is_not_judged_as_it_was_written() {
    let text = "schema = 1\nnetwork.name = \"node\"\n[service.a]\ndns = \"tor\"\n[service.b]\n\
                [service.tor]\nrole = \"tor\"\noutbound = \"direct\"\nports = { socks = \"tcp:9050\", dns = \"udp:9053\" }\n";
    let made = Made::of(text);
    let fate = |from: &str, port| {
        let address = |name| made.address(name, Ip::V4).unwrap();
        let packet = Packet::udp(Ends::new(address(from), address("tor")).unwrap(), 40000, port, b"?");
        made.world.carry(from, &packet, Sender::Program, &Connections::new()).fate
    };
    assert_eq!(fate("a", 53), Fate::Lost(Loss::Translated), "it is asked on as a question to port 9053");
    assert_eq!(fate("a", 9053), Fate::Delivered("tor"));
    assert!(matches!(fate("b", 53), Fate::Refused(Gate::SenderLock, _)));
}
