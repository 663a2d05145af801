//! What is kept, gone back to, compared.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nsctl::store::Number;

use crate::common::{in_patient_sandbox, in_sandbox};
use crate::node::{HEAD, NEW, NEW_EDGE, Node, OLD, OLD_EDGE, Said};

#[test]
fn every_applied_policy_is_a_generation_with_all_that_it_was_applied_with() {
    in_sandbox(|| {
        let node = Node::up();
        node.write(NEW);
        let said = node.run("apply --no-confirm").ok();
        assert!(said.out.contains("generation 2 is in force, after 1"), "{}", said.out);
        node.assert_whole(&[Some(Number(2))], "after two of them");
        let meta = node.store().meta(Number(2)).unwrap();
        assert_eq!((meta.parent, meta.services, meta.edges, meta.exposures), (Some(Number(1)), 3, 1, 0));
        assert!(
            meta.proved > 100 && meta.version == env!("CARGO_PKG_VERSION") && meta.time > 1_700_000_000,
            "{meta:?}"
        );
        assert_eq!(meta.boot, Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().into()));
        let text = String::from_utf8(node.store().sources(Number(2)).unwrap().remove(0).text).unwrap();
        assert_eq!(text, format!("{HEAD}{NEW}"), "with its comments and blanks");

        let listed = node.json("generations");
        let listed = listed["generations"].as_array().unwrap();
        let states: Vec<_> = listed.iter().map(|one| one["state"].as_str().unwrap()).collect();
        assert_eq!(states, ["was in force", "in force"]);
        assert_eq!(listed[1]["hash"], meta.hash.as_str());
    });
}

#[test]
fn a_generation_is_root_s_alone_and_is_never_written_again() {
    in_sandbox(|| {
        let node = Node::up();
        let files = ["addresses.json", "meta.json", "policy.json", "rules.nft"];
        let state = |name: &str| {
            let path = node.record(&format!("generations/1/{name}"));
            (fs::metadata(&path).unwrap().permissions().mode() & 0o7777, fs::read(path).unwrap())
        };
        let before: Vec<_> = files.iter().map(|name| state(name)).collect();
        assert!(before.iter().all(|(mode, _)| *mode == 0o600));
        assert_eq!(fs::metadata(node.record("generations/1")).unwrap().permissions().mode() & 0o7777, 0o700);
        node.write(NEW);
        node.run("apply --no-confirm").ok();
        node.run("rollback --no-confirm").ok();
        assert!(files.iter().map(|name| state(name)).eq(before));
    });
}

#[test]
fn a_second_apply_makes_no_generation() {
    in_sandbox(|| {
        let node = Node::up();
        let said = node.run("apply --no-confirm").ok();
        assert_eq!(said.out, "nothing to do\n");
        let applied = node.json("apply --confirm 5m");
        assert_eq!((&applied["generation"], &applied["before"]), (&1.into(), &1.into()));
        assert!(applied["confirm_within"].is_null(), "nothing changes, so nothing waits: {applied}");
        assert_eq!(node.store().generations().unwrap(), [Number(1)]);
        node.write(NEW);
        node.run("apply --no-confirm").ok();
        assert_eq!(node.store().generations().unwrap(), [Number(1), Number(2)], "the control");
    });
}

#[test]
fn rollback_brings_the_edges_of_an_earlier_generation_back() {
    in_sandbox(|| {
        let node = Node::up();
        node.write(NEW);
        node.run("apply --no-confirm").ok();
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
        let said = node.run("rollback --no-confirm").ok();
        assert!(said.out.contains("generation 1 is in force, after 2"), "{}", said.out);
        assert!(said.err.contains("the next apply takes them again"), "{}", said.err);
        assert_eq!((node.open(), node.current()), (BTreeSet::from([OLD_EDGE]), Some(Number(1))));

        node.run("rollback 2 --no-confirm").ok();
        assert_eq!((node.open(), node.current()), (BTreeSet::from([NEW_EDGE]), Some(Number(2))));
        node.run("rollback 1 --no-confirm").ok();
        // The files say what they said.
        node.run("apply --no-confirm").ok();
        assert_eq!((node.open(), node.current()), (BTreeSet::from([NEW_EDGE]), Some(Number(2))));
        node.run("rollback 7").refused("E0917", &["there is no generation 7", "1 to 2"]);
        node.run("rollback 1 --no-confirm").ok();
        node.run("rollback --no-confirm").refused("E0917", &["there is no generation before this one"]);
    });
}

#[test]
fn two_generations_differ_in_edges() {
    in_sandbox(|| {
        let node = Node::up();
        node.write(NEW);
        node.run("apply --no-confirm").ok();
        let forth = node.run("diff").ok().out;
        assert_eq!(forth, node.run("diff 1 2").ok().out);
        let back = node.run("diff 2 1").ok().out;
        let begins =
            |text: &str, sign: &str, with: &str| text.lines().any(|line| line.starts_with(sign) && line.contains(with));
        assert!(begins(&forth, "+", "b -> c:x") && begins(&forth, "-", "b -> a:x"), "{forth}");
        assert!(begins(&back, "-", "b -> c:x") && begins(&back, "+", "b -> a:x"), "{back}");
        assert_eq!(node.run("diff 2 2").ok().out, "generations 2 and 2 mean the same\n");
        assert_eq!(node.json("diff 1 2")["differences"].as_array().map(Vec::len), Some(2));
        node.run("diff 1 9").refused("E0917", &["there is no generation 9"]);
    });
}

/// Both begin while a third one is at work, so that both have looked at the same generation, unless one is late: then it
/// is tried again.
#[test]
fn of_two_applies_at_once_one_wins_and_the_other_is_told() {
    in_patient_sandbox(Duration::from_secs(300), || {
        let node = Node::up();
        for round in 0..50 {
            let base = node.current().unwrap();
            fs::write("/run/node/one.toml", format!("{HEAD}{NEW}# {round}\n")).unwrap();
            fs::write("/run/node/two.toml", format!("{HEAD}{OLD}# {round}\n")).unwrap();
            let guard = node.store().lock().unwrap();
            let started = ["/run/node/one.toml", "/run/node/two.toml"].map(start);
            std::thread::sleep(Duration::from_millis(500 + 50 * round));
            drop(guard);
            let ended = started.map(|child| Said::of(&child.wait_with_output().unwrap()));
            let (won, lost): (Vec<&Said>, Vec<&Said>) = ended.iter().partition(|said| said.code == Some(0));
            assert!(!won.is_empty() || lost.iter().all(|said| said.err.contains("E0903: ")), "{ended:?}");
            let Some(lost) = lost.iter().find(|said| said.err.contains("E0904: ")) else { continue };
            let told = format!("generation {} is in force, and generation {base} was planned against", base.0 + 1);
            assert!(lost.code == Some(1) && lost.err.contains(&told), "{told}: {lost:?}");
            node.assert_whole(&[Some(Number(base.0 + 1))], "one of them");
            // Who plans again gets through.
            node.write(NEW);
            node.run("apply --no-confirm").ok();
            assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
            return;
        }
        panic!("they were never at once");
    });
}

fn start(file: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nsctl"));
    command.args(["-f", file, "--state", crate::node::STATE, "apply", "--no-confirm"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn apply_against_a_generation_that_is_not_in_force_any_more_changes_nothing() {
    in_sandbox(|| {
        let node = Node::up();
        node.write(NEW);
        let said: Said = node.run("apply --against 7 --no-confirm");
        said.refused("E0904", &["generation 1 is in force, and generation 7 was planned against"]);
        assert_eq!((node.open(), node.current()), (BTreeSet::from([OLD_EDGE]), Some(Number(1))));
        node.run("apply --against 1 --no-confirm").ok();
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
        node.run("apply --against 1 --no-confirm").refused("E0904", &[]);
    });
}

#[test]
fn old_generations_are_let_go_and_those_that_matter_are_not() {
    in_sandbox(|| {
        let node = Node::up();
        for number in 2..=5 {
            node.write(&format!("{NEW}# {number}\n"));
            node.run("apply --no-confirm").ok();
        }
        let store = node.store();
        store.prune(3, &[Number(1), Number(5)]).unwrap();
        assert_eq!(store.generations().unwrap(), [1, 3, 4, 5].map(Number));
        node.assert_whole(&[Some(Number(5))], "after that");
        node.run("rollback 2 --no-confirm").refused("E0917", &["there is no generation 2", "4 are kept, 1 to 5"]);
        node.run("rollback 1 --no-confirm").ok();
        // A number is not given twice while a higher one is there.
        node.write(&format!("{NEW}# 6\n"));
        node.run("apply --no-confirm").ok();
        assert_eq!(node.current(), Some(Number(6)));
    });
}
