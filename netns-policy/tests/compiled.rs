//! The law: compiled rules deliver a packet if, and only if, the policy says so.

use std::net::IpAddr;
use std::time::Instant;

use drawn::Made;
use netns_policy::ruleset::decide::walk::World;
use netns_policy::ruleset::expect::{Ip, PacketClass, classes, expected, outside};
use proptest::prelude::*;

#[allow(dead_code, reason = "other tests use the rest of it")]
mod drawn;

/// The first class inside the fabric, of every `step`th from `start` on, that `world` gets wrong.
fn inside(made: &Made, world: &World, start: usize, step: usize) -> Option<PacketClass> {
    let address = |name: &str, ip: Ip| -> Option<IpAddr> { made.address(name, ip) };
    let mut some = classes(&made.graph).skip(start).step_by(step);
    some.find(|class| !class.holds(&made.graph, &address, world))
}

/// The same for what is outside.
fn outside(made: &Made, world: &World, start: usize, step: usize) -> Option<outside::OutsideClass> {
    let premises = made.premises();
    let found = outside::classes(&premises).skip(start).step_by(step).find(|class| !class.holds(&premises, world));
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

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
}

const BITCOIN_NODE: &str = include_str!("../../examples/policies/bitcoin-node.toml");

#[test]
fn the_example_keeps_the_promise() {
    let made = Made::of(BITCOIN_NODE);
    let began = Instant::now();
    assert_eq!(inside(&made, &made.world, 0, 499), None);
    let inside_took = began.elapsed();
    assert_eq!(outside(&made, &made.world, 0, 499), None);
    let took = began.elapsed() - inside_took;
    println!("inside {} classes, one of 499 in {inside_took:?}", classes(&made.graph).count());
    println!("outside {} classes, one of 499 in {took:?}", outside::classes(&made.premises()).count());
    let address = |name: &str, ip: Ip| made.address(name, ip);
    let yes = classes(&made.graph).step_by(499).filter(|class| expected(&made.graph, &address, class)).count();
    assert!(yes > 20, "only {yes} of the classes that were tried can pass");
}
