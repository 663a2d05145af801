//! The nftables codec against the kernel and against nft(8).
//!
//! Each test has a network namespace of its own. It needs CAP_SYS_ADMIN: root, or `unshare -Urmn cargo test`.

mod shapes;

use std::collections::BTreeMap;
use std::process::Command;

use netns_policy::ruleset::delta::{Delta, Op};
use netns_policy::ruleset::{Expr, Family, Field, Reg, Ruleset, Set, Table};
use nix::sched::{CloneFlags, unshare};
use nsctl::kernel::nft::{NftError, NftSocket};

use shapes::{build, everything, exact, flow4, map};

const LINKS: [&str; 3] = ["s_a", "s_b", "s_c"];

/// Runs `test` in a fresh namespace with three veths, given as (name, index).
fn sandboxed(test: impl FnOnce(&[(&str, u32)]) + Send + 'static) {
    let run = move || {
        #[allow(clippy::disallowed_methods, reason = "the thread dies with the test")]
        let made = unshare(CloneFlags::CLONE_NEWNET);
        if let Err(errno) = made {
            let message = format!("NOT RUN: no network namespace for the test: {errno}");
            assert!(std::env::var_os("CI").is_none(), "{message}");
            eprintln!("{message}");
            return;
        }
        witness("ip", &["link", "set", "lo", "up"]);
        let mut links = Vec::new();
        for (n, name) in LINKS.into_iter().enumerate() {
            let index = 10 + u32::try_from(n).unwrap();
            let peer = format!("p{n}");
            witness("ip", &["link", "add", name, "index", &index.to_string(), "type", "veth", "peer", "name", &peer]);
            links.push((name, index));
        }
        test(&links);
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// What an independent tool says; panics when it fails.
#[allow(clippy::disallowed_methods, reason = "nft(8) and ip(8) are the witnesses of this test")]
fn witness(tool: &str, args: &[&str]) -> String {
    let done = Command::new(tool).args(args).output().unwrap_or_else(|e| panic!("{tool} is needed: {e}"));
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{tool} {args:?}: {} {stderr}", done.status);
    String::from_utf8(done.stdout).unwrap()
}

fn load(nft: &NftSocket, desired: &Ruleset) {
    let observed = nft.dump(|_, _| true).unwrap().ruleset;
    let delta = Delta::between(&observed, desired);
    if let Err(e) = nft.commit(&delta, None) {
        panic!("{e}: {}", std::error::Error::source(&e).unwrap());
    }
}

#[test]
fn what_is_sent_is_what_is_read() {
    sandboxed(|links| {
        let nft = NftSocket::open().unwrap();
        let desired = everything(links);
        load(&nft, &desired);
        eprintln!("{}", witness("nft", &["list", "ruleset"]));
        let dump = nft.dump(|_, _| true).unwrap();
        assert_tables_equal(&dump.ruleset, &desired);
        assert_eq!(Delta::between(&dump.ruleset, &desired), Delta::default());
    });
}

/// As `assert_eq`, but the message is the first difference and not two rulesets.
fn assert_tables_equal(found: &Ruleset, wanted: &Ruleset) {
    assert_eq!(found.tables.keys().collect::<Vec<_>>(), wanted.tables.keys().collect::<Vec<_>>());
    for (id, wanted) in &wanted.tables {
        let found = &found.tables[id];
        for (name, set) in &wanted.sets {
            assert_eq!(found.sets.get(name), Some(set), "set {name} of {id:?}");
        }
        for (name, chain) in &wanted.chains {
            let found = &found.chains[name];
            for (n, rule) in chain.rules.iter().enumerate() {
                assert_eq!(found.rules.get(n), Some(rule), "rule {n} of chain {name} of {id:?}");
            }
            assert_eq!(found, chain, "chain {name} of {id:?}");
        }
        assert_eq!(found, wanted, "{id:?}");
    }
}
