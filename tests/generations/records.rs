//! Records that are lost, broken, older or newer: one clear sentence each, and a way out that leads out.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use nsctl::store::Number;

use crate::common::{in_patient_sandbox, in_sandbox, witness};
use crate::node::{NEW, NEW_EDGE, NoHolder, Node, OLD, OLD_EDGE, STATE};

/// Two generations, the second in force.
fn two() -> Node {
    let node = Node::up();
    node.write(NEW);
    node.run("apply --no-confirm").ok();
    node
}

#[test]
fn a_link_to_a_generation_that_is_not_there_is_mended_by_rollback() {
    in_sandbox(|| {
        let node = two();
        fs::remove_file(node.record("current")).unwrap();
        symlink("generations/9", node.record("current")).unwrap();
        for asked in ["apply --no-confirm", "apply --boot", "diff"] {
            node.run(asked).refused("E0912", &["current names generations/9, which is not there", "nsctl rollback 2"]);
        }
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]), "packets do not ask");
        let states = node.json("generations");
        assert_eq!(states["generations"].as_array().map(Vec::len), Some(2), "they can be looked at: {states}");
        node.run("rollback 2 --no-confirm").ok();
        assert_eq!((node.current(), node.open()), (Some(Number(2)), BTreeSet::from([NEW_EDGE])));
        node.run("apply --no-confirm").ok();
    });
}

#[test]
fn where_no_generation_is_left_apply_makes_one() {
    in_sandbox(|| {
        let node = Node::up();
        fs::remove_dir_all(node.record("generations")).unwrap();
        let said = node.run("apply --no-confirm");
        said.refused("E0912", &["current names generations/1, which is not there", "remove"]);
        fs::remove_file(node.record("current")).unwrap();
        node.run("apply --no-confirm").ok();
        assert_eq!((node.current(), node.open()), (Some(Number(1)), BTreeSet::from([OLD_EDGE])));
    });
}

#[test]
fn down_needs_no_generation_that_can_be_read() {
    in_sandbox(|| {
        let node = two();
        fs::remove_dir_all(node.record("generations")).unwrap();
        node.run("down").ok();
        assert!(node.network.is_nothing() && node.current().is_none());
    });
}

#[test]
fn a_broken_generation_is_told_and_apply_makes_a_new_one() {
    in_sandbox(|| {
        let node = two();
        let torn = |name: &str| fs::write(node.record(&format!("generations/2/{name}")), "{\"number\":").unwrap();
        torn("policy.json");
        for asked in ["apply --boot", "rollback 2 --no-confirm", "diff 1 2"] {
            let said = node.run(asked);
            said.refused("E0912", &["cannot understand", "generations/2/policy.json", "nsctl apply"]);
        }
        torn("meta.json");
        let states = node.json("generations");
        let of = |index: usize| states["generations"][index]["state"].as_str().unwrap();
        assert_eq!((of(0), of(1)), ("was in force", "in force, cannot be read"));
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
        node.run("apply --no-confirm").ok();
        assert_eq!((node.current(), node.open()), (Some(Number(3)), BTreeSet::from([NEW_EDGE])));
        node.run("apply --boot").ok();
        node.run("rollback 1 --no-confirm").ok();
        assert_eq!(node.open(), BTreeSet::from([OLD_EDGE]));
    });
}

#[test]
fn a_broken_record_of_what_waits_is_told_and_can_be_taken_away() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = Node::up();
        node.write(NEW);
        node.run("apply --confirm 5m").ok();
        drop(NoHolder);
        fs::write(node.record("pending.json"), "{").unwrap();
        for asked in ["apply --no-confirm", "apply --boot", "confirm", "rollback --no-confirm", "generations"] {
            node.run(asked).refused("E0912", &["cannot understand", "pending.json", "remove it"]);
        }
        fs::remove_file(node.record("pending.json")).unwrap();
        node.run("rollback --no-confirm").ok();
        assert_eq!(node.open(), BTreeSet::from([OLD_EDGE]));
    });
}

#[test]
fn what_a_newer_version_has_written_is_neither_read_nor_changed() {
    in_sandbox(|| {
        let node = two();
        let addresses = node.addresses();
        fs::write(node.record("format"), "2\n").unwrap();
        let before = fs::read_dir(node.record("")).unwrap().count();
        for asked in
            ["apply --no-confirm", "apply --boot", "rollback --no-confirm", "confirm", "generations", "diff 1 2"]
        {
            node.run(asked).refused("E0918", &["format is of format 2", "knows formats up to 1"]);
        }
        assert_eq!(fs::read_dir(node.record("")).unwrap().count(), before);
        assert_eq!(node.open_by(&addresses), BTreeSet::from([NEW_EDGE]), "packets do not ask");
        fs::write(node.record("format"), "1\n").unwrap();
        node.run("apply --no-confirm").ok();
    });
}

#[test]
fn a_state_directory_from_before_generations_is_taken_over() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = two();
        let addresses = fs::read(node.record("addresses.json")).unwrap();
        let older = || {
            for name in ["current", "format", "journal.jsonl"] {
                fs::remove_file(node.record(name)).ok();
            }
            fs::remove_dir_all(node.record("generations")).unwrap();
        };
        older();
        node.run("rollback --no-confirm").refused("E0917", &["there is no generation before this one"]);
        assert_eq!(node.run("generations").ok().out, "no policy of network node was applied yet\n");
        assert_eq!(node.run("apply --no-confirm").ok().out, "nothing to do\ngeneration 1 is in force\n");
        assert_eq!(fs::read(node.record("addresses.json")).unwrap(), addresses, "everybody keeps the address");
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));

        // Of what was there before no generation tells: it cannot come back, and all would be taken down.
        older();
        node.write(OLD);
        node.run("apply --confirm 5m").refused("E0917", &["no generation to go back to", "--no-confirm"]);
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
        node.run_with(("SSH_CONNECTION", "192.0.2.7 50022 198.51.100.1 22"), "apply").ok();
        assert_eq!((node.open(), node.store().pending().unwrap()), (BTreeSet::from([OLD_EDGE]), None));
    });
}

/// The way out that docs/reliability.md tells.
#[test]
fn a_lost_state_directory_is_made_anew_with_the_addresses_that_services_have() {
    in_sandbox(|| {
        let node = two();
        node.write(&format!("{NEW}[service.aa]\n"));
        node.run("apply --no-confirm").ok();
        let before = node.addresses();
        fs::remove_dir_all(STATE).unwrap();
        let said = node.run("apply --no-confirm").ok();
        assert_eq!(said.out, "nothing to do\ngeneration 1 is in force\n");
        assert_eq!((node.addresses(), node.open()), (before, BTreeSet::from([NEW_EDGE])));
    });
}

/// What a disk, or a hand, makes of a record.
const SPOILED: [(&str, &[u8]); 5] = [
    ("empty", b""),
    ("zeros", &[0; 512]),
    ("torn", b"{\"number\": 1,"),
    ("another", b"[1, \"2\", {}]\n"),
    ("text", b"\xff\xfe?"),
];

/// Whatever is in a record, each verb ends by itself with a sentence, opens nothing, and `down` takes all down.
#[test]
fn no_record_can_be_so_spoiled_that_a_verb_dies_of_it_or_down_fails() {
    in_patient_sandbox(Duration::from_secs(600), || {
        let node = two();
        let addresses = node.addresses();
        witness(Command::new("cp").args(["-a", STATE, "/run/node/kept"]));
        let records = [
            "format",
            "current",
            "pending.json",
            "journal.jsonl",
            "addresses.json",
            "sysctls.json",
            "lock",
            "generations/2/meta.json",
            "generations/2/policy.json",
            "generations/2/addresses.json",
            "generations",
        ];
        for (record, (kind, bytes)) in records.iter().flat_map(|record| SPOILED.map(|spoiled| (record, spoiled))) {
            fs::remove_dir_all(node.record(record)).or_else(|_| fs::remove_file(node.record(record))).ok();
            fs::write(node.record(record), bytes).unwrap();
            let when = format!("{record}, {kind}");
            for asked in
                ["generations", "diff 1 2", "confirm", "apply --no-confirm", "apply --boot", "rollback 1 --no-confirm"]
            {
                let said = node.run(asked);
                assert!(
                    matches!(said.code, Some(0 | 1)) && !said.err.contains("panicked"),
                    "{when}: {asked}: {said:?}"
                );
                assert!(said.code == Some(0) || said.err.contains("help: "), "{when}: {asked}: {said:?}");
                assert!(node.open_by(&addresses).is_subset(&BTreeSet::from([OLD_EDGE, NEW_EDGE])), "{when}: {asked}");
            }
            let said = node.run("down");
            let left = fs::read_dir("/run/netns").unwrap().count();
            assert!(said.code == Some(0) && left == 0, "{when}: {left} left: {said:?}");
            fs::remove_dir_all(STATE).unwrap();
            witness(Command::new("cp").args(["-a", "/run/node/kept", STATE]));
            node.run("apply --boot").ok();
            assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]), "{when}: the control");
        }
    });
}
