//! The proof holds for what is compiled, and for nothing else.

use std::time::Instant;

use drawn::Made;
use netns_policy::desired::Desired;
use netns_policy::prove::prove;
use netns_policy::ruleset::decide::walk::World;
use netns_policy::ruleset::expect::{Ip, classes, outside};
use netns_policy::ruleset::{Expr, Rule, Set, Table};
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
    for (text, mistakes) in [(planted::SMALL, &planted::MUTANTS[..]), (planted::LARGE, &planted::MORE[..])] {
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

/// Of all that can be done to one rule or element, nearly everything matters.
#[test]
fn nearly_every_spoiled_rule_is_refuted() {
    let made = Made::of(planted::SMALL);
    let (mut refuted, mut unnoticed) = (0, Vec::new());
    for n in 0..200 {
        let (which, how, at) = (n % 8, n % 5, n * 37);
        let mut world = made.world.clone();
        if !spoil(&mut world, which, how, at) || world == made.world {
            continue;
        }
        match prove(&made.graph, &made.addresses, &made.host, &with_rules(&made, &world)) {
            Err(_) => refuted += 1,
            Ok(_) => unnoticed.push((which, how, at)),
        }
    }
    println!("{refuted} refuted, {} make no difference: {unnoticed:?}", unnoticed.len());
    // What only counts, logs or tells the sender, and doubles of what another rule does.
    assert!(refuted > 3 * unnoticed.len(), "{refuted} refuted, {unnoticed:?}");
}
