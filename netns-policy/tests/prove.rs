//! The proof holds for what is compiled, and for nothing else.

use std::time::Instant;

use drawn::Made;
use netns_policy::desired::Desired;
use netns_policy::prove::prove;
use netns_policy::ruleset::decide::walk::World;
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
