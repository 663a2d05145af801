//! The proof holds for what is compiled, and for nothing else.

use std::time::Instant;

use drawn::Made;
use netns_policy::prove::prove;
use proptest::prelude::*;

#[allow(dead_code, reason = "other tests use the rest of it")]
mod drawn;

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
