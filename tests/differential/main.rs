//! The interpreter against the kernel: policies drawn at random are applied for real, frames drawn at random are put on
//! their wires, and each must arrive exactly where `netns_policy::ruleset::decide` says.
//!
//! # Invariants
//!
//! - "Arrived" is behind the receiver's lock, and seen by a rule of the test's own, not by anything of ours.
//! - The same seed sends the same frames, but for their numbers. `NSCTL_FUZZ_SEED` is another one, `NSCTL_FUZZ_SECONDS` is how long new scenes
//!   are begun.
//! - What never arrives in any scene proves nothing: the run fails if a kind that can arrive never did.

#![allow(clippy::disallowed_methods, reason = "nft and conntrack are witnesses; the product calls nothing")]

#[path = "../common/mod.rs"]
mod common;
mod dice;
mod draw;
#[path = "../../netns-policy/tests/drawn/mod.rs"]
#[allow(dead_code, reason = "this test uses a part of it")]
mod drawn;
mod play;
#[path = "../attack/raw.rs"]
#[allow(dead_code, reason = "this test only sends")]
mod raw;
mod stage;
mod witness;

use std::time::{Duration, Instant};

use netns_policy::ruleset::decide::walk::World;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use dice::Dice;
use draw::{Draw, Shot};
use play::{Arrived, Tally};
use stage::{Scene, Stage};

const SEED: u64 = 0x6e73_6374_6c00_0001;
const SECONDS: u64 = 10;

/// So many scenes are played however slow the machine is: in these every kind of [`ABLE`] arrives.
const SCENES: u64 = 22;

/// So many are enough for that whatever the seed.
const MANY_SCENES: u64 = 60;

/// What can arrive under some policy: each has, or the run proves nothing.
const ABLE: [&str; 40] = [
    "tcp opening v4",
    "tcp opening v6",
    "tcp answer v4",
    "tcp answer v6",
    "tcp v4",
    "tcp v6",
    "udp v4",
    "udp v6",
    "udp answer v4",
    "udp answer v6",
    "echo v4",
    "echo v6",
    "echo answer v4",
    "echo answer v6",
    "icmp error v4",
    "icmp error v6",
    "tcp opening v4 out",
    "tcp opening v6 out",
    "tcp v4 out",
    "udp v4 out",
    "udp v6 out",
    "echo v4 out",
    "echo v6 out",
    "icmp error v4 out",
    "other protocol v4 out",
    "tcp answer v4 in",
    "tcp answer v6 in",
    "udp answer v4 in",
    "udp answer v6 in",
    "tcp opening v4 of a caller",
    "tcp opening v6 of a caller",
    "udp v4 of a caller",
    "udp v6 of a caller",
    "with options",
    "with destination options",
    "with hop-by-hop options",
    "as a fragment of one",
    "in two parts",
    "with other bytes",
    "to another MAC address",
];

/// A policy of two to four services, from the generator of the properties; without limits, of which the interpreter
/// knows only whether they are reached.
fn policy(dice: &mut Dice) -> String {
    let seed: Vec<u8> = (0..4).flat_map(|_| dice.number().to_le_bytes()).collect();
    let config = Config { failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let drawn = drawn::policy(4).new_tree(&mut runner).expect("nothing is filtered").current();
    drawn.text().lines().filter(|line| !line.starts_with("limits")).fold(String::new(), |text, line| text + line + "\n")
}

fn shots(scene: &Scene<'_>, dice: &mut Dice) -> Vec<Shot> {
    let mut draw = Draw::new(scene, Dice::new(dice.number()));
    (0..draw::MOST).map(|_| draw.shot()).collect()
}

/// Where everything arrived, of which the two must say the same.
fn agreed(scene: &Scene<'_>, shots: &[Shot], seed: u64) -> Arrived {
    play::play(scene, &scene.world, shots).unwrap_or_else(|found| {
        let (shots, found) = play::shrunk(scene, &scene.world, shots, found);
        panic!("NSCTL_FUZZ_SEED={seed}\n{}", play::report(scene, &shots, &found))
    })
}

fn number(variable: &str, or: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is a number, and not {text:?}")),
        Err(_) => or,
    }
}

#[test]
fn what_arrives_is_what_the_interpreter_says() {
    let seconds = number("NSCTL_FUZZ_SECONDS", SECONDS);
    common::in_patient_sandbox(Duration::from_secs(seconds + 240), || {
        let seed = number("NSCTL_FUZZ_SEED", SEED);
        println!("NSCTL_FUZZ_SEED={seed} NSCTL_FUZZ_SECONDS={seconds}");
        let stage = Stage::build();
        let mut tally = Tally::new();
        let begun = Instant::now();
        let mut scenes = 0;
        while scenes < SCENES || begun.elapsed() < Duration::from_secs(seconds) {
            // A scene depends on its number, so that it can be begun with.
            let again = seed.wrapping_add(scenes);
            let mut dice = Dice::new(again);
            let scene = stage.play(&policy(&mut dice));
            let shots = shots(&scene, &mut dice);
            play::count(&shots, &agreed(&scene, &shots, again), &mut tally);
            scenes += 1;
        }
        for (kind, (sent, arrived)) in &tally {
            println!("{kind:40} {sent:6} sent {arrived:6} arrived");
        }
        let never: Vec<_> =
            ABLE.into_iter().filter(|kind| tally.get(*kind).is_none_or(|(_, there)| *there == 0)).collect();
        println!("{scenes} scenes of {} shots in {:.1} s", draw::MOST, begun.elapsed().as_secs_f64());
        let enough = seed == SEED || scenes >= MANY_SCENES;
        assert!(never.is_empty() || !enough, "these can arrive, and never did: {never:?}");
    });
}

/// Everything of which the two could say different things, in one policy.
const RICH: &str = r#"
schema = 1
[network]
name = "node"
lan = ["192.168.1.0/24", "fd99::/64"]
[service.a]
connect.b = ["web", "dns", "big"]
outbound = ["lan", "direct"]
[service.b]
ports = { web = "tcp:80", dns = "udp:53", big = "tcp:1000-1200" }
outbound = { direct = ["tcp:443", "tcp:53", "tcp:80", "udp:53", "udp:123", "udp:514"] }
[host]
may_connect.b = ["web"]
accepts = { backup = { port = "tcp:8000", from = ["a"] } }
"#;

/// What an interpreter can forget: a rule of a chain, by its number, or all that is in a set.
enum Forgets {
    Rule(&'static str, usize),
    Elements(&'static str),
}

/// Where, and what. (Most other rules have a twin that lets the same packets pass, or refuse what nothing lets pass.)
const FORGETTING: [(&str, Forgets); 26] = [
    ("fabric", Forgets::Rule("panel", 0)),
    ("fabric", Forgets::Rule("panel4", 0)),
    ("fabric", Forgets::Rule("panel6", 0)),
    ("fabric", Forgets::Elements("edges4")),
    ("fabric", Forgets::Elements("edges6")),
    ("fabric", Forgets::Elements("replies4")),
    ("fabric", Forgets::Elements("replies6")),
    ("fabric", Forgets::Elements("edge_ranges4")),
    ("fabric", Forgets::Elements("edge_ranges6")),
    ("fabric", Forgets::Elements("echo4")),
    ("fabric", Forgets::Elements("echo6")),
    ("fabric", Forgets::Elements("icmp_errors4")),
    ("fabric", Forgets::Elements("private4")),
    ("fabric", Forgets::Elements("direct4")),
    ("fabric", Forgets::Elements("direct6")),
    ("fabric", Forgets::Elements("direct_back4")),
    ("fabric", Forgets::Elements("lan4")),
    ("fabric", Forgets::Elements("reach4")),
    ("b", Forgets::Rule("input", 1)),
    ("b", Forgets::Elements("in4")),
    ("b", Forgets::Elements("in6")),
    ("b", Forgets::Elements("in_ranges4")),
    ("b", Forgets::Elements("in_echo4")),
    ("a", Forgets::Elements("out4")),
    ("a", Forgets::Elements("out6")),
    ("uplink", Forgets::Elements("direct4")),
];

fn forgetful(world: &World, place: &str, forgets: &Forgets) -> World {
    let mut world = world.clone();
    let ruleset = match place {
        "fabric" => &mut world.fabric,
        place => &mut world.places.get_mut(place).expect("it is a place").lock,
    };
    let table = ruleset.tables.values_mut().next().expect("there is a table of ours");
    match forgets {
        Forgets::Rule(chain, number) => {
            drop(table.chains.get_mut(*chain).expect("it is a chain").rules.remove(*number))
        }
        Forgets::Elements(set) => {
            let elements = &mut table.sets.get_mut(*set).unwrap_or_else(|| panic!("there is no set {set}")).elements;
            assert!(!elements.is_empty(), "nothing is in {set}");
            elements.clear();
        }
    }
    world
}

#[test]
fn an_interpreter_that_forgets_something_is_contradicted() {
    common::in_sandbox(|| {
        let stage = Stage::build();
        let scene = stage.play(RICH);
        let mut played = Vec::new();
        for seed in 0..24 {
            let shots = shots(&scene, &mut Dice::new(SEED + seed));
            let arrived = agreed(&scene, &shots, SEED + seed);
            played.push((shots, arrived));
        }
        let noticed = |world: &World| {
            played.iter().find_map(|(shots, arrived)| Some(&shots[play::contradicted(world, shots, arrived)?]))
        };
        assert!(noticed(&scene.world).is_none(), "it contradicts itself");
        let mut unnoticed = Vec::new();
        for (place, forgets) in &FORGETTING {
            let name = match forgets {
                Forgets::Rule(chain, number) => format!("{place}: rule {number} of {chain}"),
                Forgets::Elements(set) => format!("{place}: what is in {set}"),
            };
            match noticed(&forgetful(&scene.world, place, forgets)) {
                Some(shot) => println!("{name}: contradicted by {}", shot.kind),
                None => unnoticed.push(name),
            }
        }
        assert!(unnoticed.is_empty(), "nothing tells of {unnoticed:#?}");
    });
}

/// A way to weaken the real rules: where, and how; and what then arrives.
struct Weakness {
    name: &'static str,
    weaken: fn(&Scene<'_>),
}

const WEAKNESSES: [Weakness; 6] = [
    Weakness {
        name: "tags are let through",
        weaken: |scene| scene.forget_rule("fabric", "netdev", "panel", "@ll,96,16"),
    },
    Weakness {
        name: "routing headers are let through",
        weaken: |scene| scene.forget_rule("fabric", "netdev", "panel6", "exthdr"),
    },
    Weakness {
        name: "the lock of a server is open",
        weaken: |scene| drop(scene.nft("b", "insert rule inet nsctl input accept")),
    },
    Weakness {
        name: "the lock of a client is open",
        weaken: |scene| drop(scene.nft("a", "insert rule inet nsctl input accept")),
    },
    Weakness { name: "an edge is gone", weaken: |scene| drop(scene.nft("fabric", "flush map netdev nsctl replies4")) },
    Weakness {
        name: "the gateway forwards everything",
        weaken: |scene| drop(scene.nft("uplink", "insert rule inet nsctl forward accept")),
    },
];

#[test]
fn a_kernel_with_a_rule_less_is_found_out() {
    common::in_sandbox(|| {
        let stage = Stage::build();
        for Weakness { name, weaken } in WEAKNESSES {
            let scene = stage.play(RICH);
            weaken(&scene);
            let found = (0..12).find_map(|seed| {
                let shots = shots(&scene, &mut Dice::new(SEED + seed));
                let found = play::play(&scene, &scene.world, &shots).err()?;
                Some((shots, found))
            });
            let (shots, found) = found.unwrap_or_else(|| panic!("{name}: nothing tells"));
            println!("{name}: found with {}", draw::told(&shots[found.at]));
        }
    });
}
