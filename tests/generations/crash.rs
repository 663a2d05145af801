//! A process that dies before any one of its writes or steps, and what it leaves.
//!
//! What holds after each death: the record names the old or the new generation, each generation reads back whole, nothing
//! is open that neither allows, and the same command once more finishes it.

use std::collections::BTreeSet;
use std::time::Duration;

use nsctl::store::Number;

use crate::common::in_patient_sandbox;
use crate::node::{NEW, NEW_EDGE, NoHolder, Node, OLD, OLD_EDGE, Said, holders};

/// A loop over all deaths on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(600);

/// More places than any command passes.
const MOST: u32 = 400;

/// Runs a command so that it dies at its first, second, ... place, until it ends by itself; how often it died.
fn at_each_place(node: &Node, arguments: &str, before: impl Fn(), after: impl Fn(&str)) -> u32 {
    for place in 1..MOST {
        before();
        let fault = format!("crash:{place}");
        let said: Said = node.run_with(("NSCTL_FAULT", &fault), arguments);
        let when = format!("nsctl {arguments}, dead at its place {place}");
        after(&when);
        match said.code {
            Some(0) => return place - 1,
            Some(_) => panic!("{when}: {said:?}"),
            None => {}
        }
    }
    panic!("nsctl {arguments} passes no end of places");
}

/// Edges of the old or of the new generation: with a service's lock changed and the panel not yet, of neither.
fn assert_bounded(node: &Node, when: &str) {
    let open = node.open();
    assert!(open.is_subset(&BTreeSet::from([OLD_EDGE, NEW_EDGE])), "{when}: {open:?}");
}

#[test]
fn apply_that_dies_anywhere_leaves_the_old_or_the_new_generation() {
    in_patient_sandbox(PATIENCE, || {
        let node = Node::up();
        let (base, top) = (std::cell::Cell::new(None), std::cell::Cell::new(Number(0)));
        let before = || {
            node.write(OLD);
            node.run("apply --no-confirm").ok();
            // A text of its own each time, so that each is a generation.
            base.set(node.current());
            top.set(*node.store().generations().unwrap().last().unwrap());
            node.write(&format!("{NEW}# after {}\n", top.get()));
        };
        let died = at_each_place(&node, "apply --no-confirm", before, |when| {
            node.assert_whole(&[base.get(), Some(Number(top.get().0 + 1))], when);
            assert_bounded(&node, when);
            let said = node.run("apply --no-confirm").ok();
            assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]), "{when}, and once more: {said:?}");
            assert_eq!(node.current(), Some(Number(top.get().0 + 1)), "{when}: the number is not used twice");
            node.assert_whole(&[Some(Number(top.get().0 + 1))], when);
        });
        assert!(died > 20, "it died {died} times");
    });
}

#[test]
fn the_very_first_apply_that_dies_anywhere_is_finished_by_the_next() {
    in_patient_sandbox(PATIENCE, || {
        let node = Node::new(OLD);
        let before = || {
            node.run("down").ok();
            std::fs::remove_dir_all(crate::node::STATE).ok();
        };
        before();
        let died = at_each_place(&node, "apply --no-confirm", before, |when| {
            node.assert_whole(&[None, Some(Number(1))], when);
            node.run("apply --no-confirm").ok();
            node.assert_whole(&[Some(Number(1))], when);
            assert_eq!(node.open(), BTreeSet::from([OLD_EDGE]), "{when}");
        });
        assert!(died > 30, "it died {died} times");
    });
}

#[test]
fn rollback_that_dies_anywhere_leaves_one_of_the_two() {
    in_patient_sandbox(PATIENCE, || {
        let node = Node::up();
        node.write(NEW);
        let before = || drop(node.run("apply --no-confirm").ok());
        let died = at_each_place(&node, "rollback 1 --no-confirm", before, |when| {
            node.assert_whole(&[Some(Number(1)), Some(Number(2))], when);
            assert_bounded(&node, when);
            node.run("rollback 1 --no-confirm").ok();
            assert_eq!((node.current(), node.open()), (Some(Number(1)), BTreeSet::from([OLD_EDGE])), "{when}");
        });
        assert!(died > 8, "it died {died} times");
    });
}

#[test]
fn confirm_that_dies_anywhere_has_confirmed_or_has_not() {
    in_patient_sandbox(PATIENCE, || {
        let _guard = NoHolder;
        let node = Node::up();
        let before = || {
            node.run("rollback 1 --no-confirm").ok();
            node.write(NEW);
            node.run("apply --confirm 5m").ok();
        };
        let died = at_each_place(&node, "confirm", before, |when| {
            node.assert_whole(&[Some(Number(2))], when);
            assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]), "{when}");
            if node.store().pending().unwrap().is_some() {
                node.run("confirm").ok();
            }
            assert_eq!(node.store().pending().unwrap(), None, "{when}");
            node.run("apply --no-confirm").ok();
        });
        assert!(died >= 3, "it died {died} times");
    });
}

/// Who waits then is this process, or nobody: the change goes back, by whoever comes next.
#[test]
fn apply_with_a_confirmation_that_dies_anywhere_goes_back_or_never_began() {
    in_patient_sandbox(PATIENCE, || {
        let _guard = NoHolder;
        let node = Node::up();
        let before = || {
            node.run("rollback 1 --no-confirm").ok();
            node.write(NEW);
        };
        let died = at_each_place(&node, "apply --confirm 5m", before, |when| {
            node.assert_whole(&[Some(Number(1)), Some(Number(2))], when);
            assert_bounded(&node, when);
            let waits = node.store().pending().unwrap();
            if let Some(pending) = &waits {
                assert_eq!((pending.generation, pending.back), (Number(2), Some(Number(1))), "{when}");
                node.run("apply --no-confirm").refused("E0905", &["generation 2 waits to be confirmed"]);
                node.run("rollback").ok();
            }
            assert_eq!(
                (node.current(), node.open()),
                (Some(Number(1)), BTreeSet::from([OLD_EDGE])),
                "{when}: {waits:?}"
            );
            assert_eq!(node.store().pending().unwrap(), None, "{when}");
            // The holder sees for itself that nothing waits.
            crate::node::until("the holder ends", Duration::from_secs(10), || holders().is_empty());
            node.run("apply --no-confirm").ok();
            assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]), "{when}");
        });
        assert!(died > 20, "it died {died} times");
    });
}

/// Going back, late, is itself cut short.
#[test]
fn going_back_that_dies_anywhere_is_gone_on_with_by_the_next() {
    in_patient_sandbox(PATIENCE, || {
        let _guard = NoHolder;
        let node = Node::up();
        let before = || {
            node.run("rollback 1 --no-confirm").ok();
            node.write(NEW);
            node.run("apply --confirm 5m").ok();
            drop(NoHolder);
            let mut pending = node.store().pending().unwrap().unwrap();
            pending.deadline = 1;
            node.store().record_pending(&pending).unwrap();
        };
        let died = at_each_place(&node, "hold --network node", before, |when| {
            node.assert_whole(&[Some(Number(1)), Some(Number(2))], when);
            assert_bounded(&node, when);
            if node.store().pending().unwrap().is_some() {
                node.run("apply --no-confirm").refused("E0905", &["generation 1 is in force again"]);
            }
            assert_eq!((node.current(), node.open()), (Some(Number(1)), BTreeSet::from([OLD_EDGE])), "{when}");
            assert_eq!(node.store().pending().unwrap(), None, "{when}");
        });
        assert!(died > 8, "it died {died} times");
    });
}

#[test]
fn down_that_dies_anywhere_is_finished_by_the_next() {
    in_patient_sandbox(PATIENCE, || {
        let node = Node::up();
        let before = || drop(node.run("apply --no-confirm").ok());
        let died = at_each_place(&node, "down", before, |when| {
            node.assert_whole(&[None, Some(Number(1))], when);
            assert!(node.open().is_subset(&BTreeSet::from([OLD_EDGE])), "{when}");
            node.run("down").ok();
            assert!(node.network.is_nothing(), "{when}");
            assert_eq!(node.current(), None, "{when}");
        });
        assert!(died > 5, "it died {died} times");
    });
}
