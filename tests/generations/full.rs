//! A disk that takes no more.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nsctl::store::Number;

use crate::common::{in_patient_sandbox, in_sandbox};
use crate::node::{NEW, NEW_EDGE, NoHolder, Node, OLD, OLD_EDGE, STATE, Said};

#[test]
fn a_disk_that_is_full_from_any_write_on_leaves_the_old_generation_whole() {
    in_patient_sandbox(Duration::from_secs(600), || {
        let node = Node::up();
        let mut told = BTreeSet::new();
        for place in 1..200 {
            node.write(OLD);
            node.run("apply --no-confirm").ok();
            let base = node.current().unwrap();
            let top = *node.store().generations().unwrap().last().unwrap();
            node.write(&format!("{NEW}# after {top}\n"));
            let said = node.run_with(("NSCTL_FAULT", &format!("full:{place}")), "apply --no-confirm");
            if said.code == Some(0) {
                assert!(told.contains("E0906") && told.contains("E0922"), "{told:?} of {place} places");
                return;
            }
            let when = format!("full at its write {place}");
            told.insert(if said.err.contains("E0906: ") { "E0906" } else { "E0922" });
            judge(&node, &said, base, top, &when);
            node.run("apply --no-confirm").ok();
            assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]), "{when}, and after room was made");
        }
        panic!("it never ended");
    });
}

/// What a change that had no room leaves: told, the old generation whole, nothing open of neither, and of the new one
/// nothing when nothing was done.
fn judge(node: &Node, said: &Said, base: Number, top: Number, when: &str) {
    assert!(said.code == Some(1) && said.err.contains("make room"), "{when}: {said:?}");
    node.assert_whole(&[Some(base), Some(Number(top.0 + 1))], when);
    let open = node.open();
    if said.err.contains("E0906: ") {
        assert!(said.err.contains("nothing was applied"), "{when}: {said:?}");
        assert_eq!((node.current(), open), (Some(base), BTreeSet::from([OLD_EDGE])), "{when}: nothing was applied");
    } else {
        assert!(!said.err.contains("nothing was applied"), "{when}: {said:?}");
        assert!(open.is_subset(&BTreeSet::from([OLD_EDGE, NEW_EDGE])), "{when}");
    }
}

/// No pretence: a small tmpfs with so many pages left.
#[test]
fn a_disk_that_is_really_full_leaves_the_old_generation_whole() {
    in_patient_sandbox(Duration::from_secs(300), || {
        fs::create_dir_all(STATE).unwrap();
        mount(Some("state"), STATE, Some("tmpfs"), MsFlags::empty(), Some("size=512k,mode=0700")).unwrap();
        let node = Node::up();
        let filler = format!("{STATE}/filler");
        for pages in (0..64).step_by(2) {
            fill(&filler, pages);
            node.write(&format!("{NEW}# with {pages} pages\n"));
            let said = node.run("apply --no-confirm");
            let when = format!("with {pages} pages of room");
            if said.code == Some(0) {
                assert!(pages > 0, "{when} there was room enough");
                assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
                return;
            }
            judge(&node, &said, Number(1), Number(1), &when);
            fs::remove_file(&filler).unwrap();
            // Works again after room is made, and the next round begins with the old one.
            node.run("apply --no-confirm").ok();
            assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]), "{when}");
            node.run("rollback 1 --no-confirm").ok();
            fs::remove_dir_all(node.record("generations/2")).unwrap();
        }
        panic!("it had never room enough");
    });
}

/// Takes all the room but so many pages.
fn fill(path: &str, pages: usize) {
    let mut file = File::create(path).unwrap();
    let mut written = 0u64;
    while file.write_all(&[0; 4096]).is_ok() {
        written += 4096;
    }
    file.set_len(written.saturating_sub(pages as u64 * 4096)).unwrap();
}

#[test]
fn a_change_that_waits_and_cannot_be_recorded_goes_back_by_itself() {
    in_patient_sandbox(Duration::from_secs(600), || {
        let _guard = NoHolder;
        let node = Node::up();
        for place in 1..200 {
            node.write(NEW);
            let said = node.run_with(("NSCTL_FAULT", &format!("full:{place}")), "apply --confirm 5m");
            // The holder that it has started is of the same disk.
            drop(NoHolder);
            let when = format!("full at its write {place}");
            node.assert_whole(&[Some(Number(1)), Some(Number(2))], &when);
            let waits = node.store().pending().unwrap();
            assert!(waits.is_some() || node.open() == BTreeSet::from([OLD_EDGE]), "{when}: nobody goes back: {said:?}");
            if waits.is_some() {
                node.run("rollback").ok();
            }
            assert_eq!((node.open(), node.current()), (BTreeSet::from([OLD_EDGE]), Some(Number(1))), "{when}");
            if said.code == Some(0) {
                return;
            }
        }
        panic!("it never ended");
    });
}

#[test]
fn rollback_and_confirm_say_what_they_could_not_record() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = Node::up();
        node.write(NEW);
        node.run("apply --confirm 5m").ok();
        let full = ("NSCTL_FAULT", "full:1");
        let said = node.run_with(full, "confirm");
        said.refused("E0906", &["make room"]);
        assert!(node.store().pending().unwrap().is_some(), "it waits still");
        node.run("confirm").ok();
        let said = node.run_with(full, "rollback --no-confirm");
        assert!(said.code == Some(1) && said.err.contains("make room"), "{said:?}");
        node.run("rollback --no-confirm").ok();
        assert_eq!(node.open(), BTreeSet::from([OLD_EDGE]));
    });
}
