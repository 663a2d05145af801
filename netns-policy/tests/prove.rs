//! The proof holds for what is compiled, and for nothing else.

use std::time::Instant;

use drawn::Made;
use netns_policy::desired::Desired;
use netns_policy::prove::prove;
use netns_policy::ruleset::decide::walk::World;
use netns_policy::ruleset::expect::{Ip, classes, outside};
use netns_policy::ruleset::{ChainKind, Expr, Rule, Set, Table, Verdict};
use netns_policy::topology::Place;
use proptest::prelude::*;

#[allow(dead_code, reason = "other tests use the rest of it")]
mod drawn;
#[allow(dead_code, reason = "other tests use the rest of it")]
mod planted;

fn holds(made: &Made) -> Result<netns_policy::prove::Proof, String> {
    prove(&made.graph, &made.addresses, &made.host, &made.desired)
        .map_err(|found| format!("{found}\n  {}\n  {:?}\n  {:?}", found.class, found.packet, found.trace))
}

#[test]
fn the_examples_are_proved() {
    for (name, text) in [
        ("bitcoin-node", include_str!("../../examples/policies/bitcoin-node.toml")),
        ("nix-bitcoin", include_str!("../../examples/policies/nix-bitcoin.toml")),
        ("umbrel", include_str!("../../examples/policies/umbrel.toml")),
    ] {
        let made = Made::of(text);
        let began = Instant::now();
        let proof = holds(&made);
        println!("{name}: {proof:?} in {:?}", began.elapsed());
        assert!(proof.is_ok(), "{name}: {}", proof.unwrap_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_compiled_is_proved(policy in drawn::policy(6)) {
        let made = Made::of(&policy.text());
        let proof = holds(&made);
        prop_assert!(proof.is_ok(), "{}\n{}", proof.unwrap_err(), policy.text());
    }
}

/// What is desired, with the rules of a world.
fn with_rules(made: &Made, world: &World) -> Desired {
    let mut desired = made.desired.clone();
    desired.fabric = world.fabric.clone();
    for (place, lock) in &mut desired.locks {
        *lock = match place {
            Place::Host => world.leg.as_ref().map(|leg| leg.host.clone()).unwrap_or_default(),
            _ => world.places[&place.to_string()].lock.clone(),
        };
    }
    desired
}

#[test]
fn every_planted_mistake_is_refuted() {
    let mut missed = Vec::new();
    let large = [&planted::MORE[..], &planted::BELIEVED[..]].concat();
    let all = [
        (planted::SMALL, &planted::MUTANTS[..]),
        (planted::LARGE, &large[..]),
        (planted::ENTERED, &planted::ENTRANCES[..]),
        (planted::RELAYED, &planted::RELAYS[..]),
    ];
    for (text, mistakes) in all {
        let made = Made::of(text);
        // The control: without a mistake there is a proof, of the same rules by the same way.
        assert_eq!(holds(&made).map(|_| ()), Ok(()));
        assert_eq!(with_rules(&made, &made.world), made.desired);
        for (name, mistake) in mistakes {
            let mut world = made.world.clone();
            mistake(&mut world);
            assert_ne!(world, made.world, "{name}: changed nothing");
            let began = Instant::now();
            match prove(&made.graph, &made.addresses, &made.host, &with_rules(&made, &world)) {
                Ok(_) => missed.push(*name),
                Err(found) => {
                    println!("{:>5.1?} ms  {name}: {found}: {}", began.elapsed().as_secs_f64() * 1e3, found.class)
                }
            }
        }
    }
    assert_eq!(missed, Vec::<&str>::new(), "not found");
}

#[test]
fn a_missing_guard_of_one_of_two_uplinks_is_refuted() {
    let mut host = drawn::host();
    host.uplinks4.insert("wlan0".into());
    host.sysctls.insert("net/ipv4/conf/wlan0/forwarding".into(), "0".into());
    let made = Made::on(host, planted::LARGE);
    assert_eq!(holds(&made).map(|_| ()), Ok(()));
    for uplink in ["eth0", "wlan0"] {
        let mut desired = made.desired.clone();
        let table = desired.locks.get_mut(&Place::Host).unwrap().tables.values_mut().next().unwrap();
        let rules = &mut table.chains.get_mut("forward").unwrap().rules;
        let before = rules.len();
        let names = |expr: &Expr| matches!(expr, Expr::Cmp { data, .. } if data.starts_with(uplink.as_bytes()));
        rules.retain(|rule| !rule.0.iter().any(names));
        assert_eq!(rules.len(), before - 1);
        let found = prove(&made.graph, &made.addresses, &made.host, &desired).unwrap_err();
        assert!(found.gate.contains(&format!("forward from {uplink}")), "{found}");
    }
}

#[test]
fn a_wire_more_or_less_or_of_two_is_no_proof() {
    let made = Made::of(planted::LARGE);
    assert_eq!(holds(&made).map(|_| ()), Ok(()));
    let said = |change: fn(&mut Desired)| {
        let mut desired = made.desired.clone();
        change(&mut desired);
        prove(&made.graph, &made.addresses, &made.host, &desired).map(|_| ()).map_err(|found| found.to_string())
    };
    assert_eq!(
        said(|desired| drop(desired.wires.remove(&Place::Service("charlie".parse().unwrap())))),
        Err("the fabric has no wire of charlie".into())
    );
    assert_eq!(
        said(|desired| drop(desired.wires.remove(&Place::Uplink))),
        Err("the fabric has no wire of uplink".into())
    );
    assert_eq!(said(|desired| drop(desired.wires.remove(&Place::Host))), Err("the fabric has no wire of host".into()));
    let more = said(|desired| {
        let place = Place::Service("delta".parse().unwrap());
        let wire = desired.wires[&Place::Host].clone();
        desired.wires.insert(place, wire);
    });
    assert_eq!(more, Err("the fabric has a wire of delta, which the policy does not give it".into()));
    let twice = said(|desired| {
        let index = desired.wires[&Place::Host].index;
        desired.wires.get_mut(&Place::Uplink).unwrap().index = index;
    });
    assert_eq!(twice, Err("the fabric has one wire of host and uplink".into()));
    let swapped = said(|desired| {
        let addresses = desired.wires[&Place::Host].addresses;
        desired.wires.get_mut(&Place::Uplink).unwrap().addresses = addresses;
    });
    assert_eq!(swapped, Err("the fabric has a wire of uplink with the addresses of somebody else".into()));
    // Who has no lock has no rules: the host has been asked too.
    let open = said(|desired| drop(desired.locks.remove(&Place::Host))).unwrap_err();
    assert!(open.starts_with("the table on the host at "), "{open}");
}

/// One thing done to one rule or element: an element less, an element with a bit turned, a rule less, a comparison
/// turned round, a comparison or a question less.
fn spoil(world: &mut World, which: usize, how: usize, at: usize) -> bool {
    let spoiled = spoil_one(world, which, how, at);
    if let (Some(leg), Some(host)) = (&world.leg, world.places.get_mut("host")) {
        host.lock = leg.host.clone();
    }
    spoiled
}

fn spoil_one(world: &mut World, which: usize, how: usize, at: usize) -> bool {
    let leg = world.leg.as_mut().map(|leg| &mut leg.host);
    // The host's table is in a world twice, for its wire and for the leg: see below.
    let services = world.places.iter_mut().filter(|(name, _)| *name != "host");
    let locks = services.map(|(_, place)| &mut place.lock);
    let mut tables: Vec<&mut Table> = std::iter::once(&mut world.fabric)
        .chain(locks)
        .chain(leg)
        .flat_map(|rules| rules.tables.values_mut())
        .collect();
    let count = tables.len();
    let table = &mut tables[which % count];
    if how < 2 {
        let mut sets: Vec<&mut Set> = table.sets.values_mut().filter(|set| !set.elements.is_empty()).collect();
        if sets.is_empty() {
            return false;
        }
        let count = sets.len();
        let set = &mut sets[at % count];
        let nth = (at / 7) % set.elements.len();
        let (mut key, answer) =
            set.elements.iter().nth(nth).map(|(key, answer)| (key.clone(), answer.clone())).unwrap();
        set.elements.remove(&key);
        if how == 1 {
            // Of a value, not of its padding.
            let mut values = Vec::new();
            let mut start = 0;
            for field in &set.key {
                values.extend(start..start + field.width());
                start += field.padded_len();
            }
            let byte = values[(at / 3) % values.len()];
            key.from[byte] ^= 1 << (at % 8);
            if let Some(to) = &mut key.to {
                to[byte] ^= 1 << (at % 8);
            }
            set.elements.insert(key, answer);
        }
        return true;
    }
    let mut rules: Vec<(&mut Vec<Rule>, usize)> = Vec::new();
    for chain in table.chains.values_mut().filter(|chain| !chain.rules.is_empty()) {
        let nth = at % chain.rules.len();
        rules.push((&mut chain.rules, nth));
    }
    if rules.is_empty() {
        return false;
    }
    let count = rules.len();
    let (rules, nth) = &mut rules[(at / 5) % count];
    let expressions = &mut rules[*nth].0;
    match how {
        2 => drop(rules.remove(*nth)),
        3 => {
            let turned = expressions.iter_mut().find_map(|expr| match expr {
                Expr::Cmp { equal, .. } | Expr::Lookup { invert: equal, dreg: None, .. } => Some(equal),
                _ => None,
            });
            match turned {
                Some(turned) => *turned = !*turned,
                None => return false,
            }
        }
        _ => {
            let asks = |expr: &Expr| matches!(expr, Expr::Cmp { .. } | Expr::Lookup { dreg: None, .. });
            match expressions.iter().position(asks) {
                Some(place) => drop(expressions.remove(place)),
                None => return false,
            }
        }
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is done to one rule or element is refuted, or makes no difference to any packet that samples of classes
    /// of the graph, which know nothing of the proof, can tell.
    #[test]
    fn a_spoiled_rule_is_refuted_or_makes_no_difference(
        large in any::<bool>(), which in 0usize..64, how in 0usize..5, at in 0usize..4096,
    ) {
        let made = Made::of(if large { planted::LARGE } else { planted::SMALL });
        let mut world = made.world.clone();
        prop_assume!(spoil(&mut world, which, how, at) && world != made.world);
        let proof = prove(&made.graph, &made.addresses, &made.host, &with_rules(&made, &world));
        if proof.is_ok() {
            let address = |name: &str, ip: Ip| made.address(name, ip);
            let mut inside = classes(&made.graph).step_by(13);
            prop_assert_eq!(inside.find(|class| !class.holds(&made.graph, &address, &world)), None);
            let premises = made.premises();
            let mut beyond = outside::classes(&premises).step_by(17);
            prop_assert_eq!(beyond.find(|class| !class.holds(&premises, &world)), None);
        }
    }
}

/// Whether a rule says nothing: it only counts, logs and remembers, or it asks a set that is empty.
fn is_idle(table: &Table, rule: &Rule) -> bool {
    let ends = |e: &Expr| {
        matches!(e, Expr::Verdict(_) | Expr::Reject(_) | Expr::Fwd { .. } | Expr::Masquerade | Expr::Dnat { .. })
    };
    let is_empty = |set: &str| table.sets[set].elements.is_empty();
    let asks_none = |e: &Expr| matches!(e, Expr::Lookup { set, invert: false, .. } if is_empty(set));
    !rule.0.iter().any(ends) || rule.0.iter().any(asks_none)
}

/// Whether every filter of a table ends with this.
fn ends_so(table: &Table, accepts: bool) -> bool {
    let hooks = table.chains.values().filter_map(|chain| chain.hook.as_ref());
    hooks.filter(|hook| hook.kind == ChainKind::Filter).all(|hook| hook.policy_accept == accepts)
}

/// Whether it can be seen at once that what was done to a chain or a set makes no difference.
fn is_explained(before: &Table, after: &Table) -> bool {
    let refuses = |rule: &Rule| matches!(rule.0.last(), Some(Expr::Verdict(Verdict::Drop) | Expr::Reject(_)));
    let always = |rule: &Rule| refuses(rule) && rule.0.iter().all(|e| matches!(e, Expr::Counter) || ends(e));
    fn ends(expr: &Expr) -> bool {
        matches!(expr, Expr::Verdict(_) | Expr::Reject(_))
    }
    let chains = before.chains.iter().filter(|(name, chain)| after.chains[*name] != **chain).all(|(name, chain)| {
        let (old, new) = (&chain.rules, &after.chains[name].rules);
        let at = old.iter().zip(new).position(|(old, new)| old != new).unwrap_or(new.len());
        let (rule, rest) = (&old[at], &old[at + 1..]);
        // Refused by the next one, or at the end: only how the sender is told is another.
        let drops = refuses(rule) && rest.iter().all(|rule| refuses(rule) || is_idle(before, rule));
        let drops = drops && (rest.iter().any(always) || ends_so(before, false));
        let accepts = rest.is_empty() && ends_so(before, true) && rule.0[..] == [Expr::Verdict(Verdict::Accept)];
        is_idle(before, rule) || new.len() < old.len() && (drops || accepts)
    });
    // Asked only along with a set that is empty.
    let sets = before.sets.iter().filter(|(name, set)| after.sets[*name] != **set).all(|(name, _)| {
        let asks = |rule: &&Rule| rule.0.iter().any(|e| matches!(e, Expr::Lookup { set, .. } if set == name));
        before.chains.values().flat_map(|chain| &chain.rules).filter(asks).all(|rule| is_idle(before, rule))
    });
    chains && sets
}

/// Of all that can be done to one rule or element, everything matters but what idles, and what another rule says again.
#[test]
fn nearly_every_spoiled_rule_is_refuted() {
    let made = Made::of(planted::SMALL);
    let (mut refuted, mut idle, mut unnoticed) = (0, 0, Vec::new());
    for n in 0..200 {
        let (which, how, at) = (n % 8, n % 5, n * 37);
        let mut world = made.world.clone();
        if !spoil(&mut world, which, how, at) || world == made.world {
            continue;
        }
        let desired = with_rules(&made, &world);
        if prove(&made.graph, &made.addresses, &made.host, &desired).is_err() {
            refuted += 1;
            continue;
        }
        let rulesets = std::iter::once((&made.desired.fabric, &desired.fabric))
            .chain(made.desired.locks.values().zip(desired.locks.values()));
        let mut tables = rulesets.flat_map(|(old, new)| old.tables.values().zip(new.tables.values()));
        if tables.all(|(old, new)| is_explained(old, new)) { idle += 1 } else { unnoticed.push((which, how, at)) }
    }
    println!("{refuted} refuted, {idle} idle, {} make no difference: {unnoticed:?}", unnoticed.len());
    // A reply of the panel that is asked for no SYN whatever its protocol: that of UDP passes by the next rule anyway.
    assert!(unnoticed.len() <= 1, "{unnoticed:?}");
    assert!(refuted > 5 * idle, "{refuted} refuted, {idle} idle");
}
