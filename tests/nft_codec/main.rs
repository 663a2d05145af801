//! The nftables codec against the kernel and against nft(8).
//!
//! Each test has a network namespace of its own. It needs CAP_SYS_ADMIN: root, or `unshare -Urmn cargo test`.

#[path = "../common/listing.rs"]
mod listing;
mod shapes;

use std::collections::BTreeMap;
use std::process::Command;

use netns_policy::ruleset::delta::{Delta, Op};
use netns_policy::ruleset::{Count, Dynamic, Family, Field, Key, Ruleset, Set, Table};
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
            let (index_of_peer, index_word) = ((n + 2).to_string(), index.to_string());
            let pair = ["link", "add", name, "index", &index_word, "type", "veth", "peer", "name", &peer];
            witness("ip", &[&pair[..], &["index", &index_of_peer]].concat());
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
        let dump = nft.dump(|_, _| true).unwrap();
        assert_tables_equal(&dump.ruleset, &desired);
        assert_eq!(Delta::between(&dump.ruleset, &desired), Delta::default());
    });
}

#[test]
fn we_print_what_nft_prints() {
    sandboxed(|links| {
        let nft = NftSocket::open().unwrap();
        let desired = everything(links);
        load(&nft, &desired);
        let names = links.iter().map(|(name, index)| (*index, (*name).to_owned())).collect();
        let theirs = comparable(&witness("nft", &["list", "ruleset"]));
        let ours = comparable(&desired.display(&names));
        for (n, (theirs, ours)) in theirs.lines().zip(ours.lines()).enumerate() {
            assert_eq!(ours, theirs, "line {n}");
        }
        assert_eq!(ours, theirs);
    });
}

/// A listing as another one of the same rules looks, whoever made it.
fn comparable(listing: &str) -> String {
    listing::without_counts(listing, &BTreeMap::from([(10, "s_a".to_owned())]))
}

#[test]
fn one_more_element_is_one_operation() {
    sandboxed(|links| {
        let nft = NftSocket::open().unwrap();
        let mut desired = everything(links);
        load(&nft, &desired);
        let fw4 = fabric(&mut desired).sets.get_mut("fw4").unwrap();
        fw4.elements.insert(flow4(links[1].1, 2, 3, 6, 22), Some(links[2].1.to_ne_bytes().to_vec()));
        let dump = nft.dump(|_, _| true).unwrap();
        let delta = Delta::between(&dump.ruleset, &desired);
        assert_eq!(
            delta.to_string(),
            "add element netdev nsctl fw4 { 11 . 10.203.0.2 . 10.203.0.3 . tcp . 22 : 12 }\n"
        );
        nft.commit(&delta, Some(dump.generation)).unwrap();
        assert_tables_equal(&nft.dump(|_, _| true).unwrap().ruleset, &desired);
        assert!(
            witness("nft", &["list", "map", "netdev", "nsctl", "fw4"])
                .contains("\"s_b\" . 10.203.0.2 . 10.203.0.3 . tcp . 22 counter packets 0 bytes 0 : \"s_c\"")
        );
    });
}

fn fabric(ruleset: &mut Ruleset) -> &mut Table {
    ruleset.tables.get_mut(&(Family::Netdev, "nsctl".to_owned())).unwrap()
}

/// Everything that can differ at once: shapes, hooks, policies, answers, rules, chains and tables.
#[test]
fn a_change_of_everything_is_one_transaction() {
    sandboxed(|links| {
        let nft = NftSocket::open().unwrap();
        let mut desired = everything(links);
        load(&nft, &desired);

        let table = fabric(&mut desired);
        table.chains.remove("i_s_c");
        table.chains.get_mut("i_s_a").unwrap().hook.as_mut().unwrap().priority = 7;
        table.chains.get_mut("i_s_b").unwrap().hook.as_mut().unwrap().policy_accept = true;
        table.chains.get_mut("p4").unwrap().rules.remove(3);
        table.sets.remove("ic4");
        table.sets.get_mut("fw6").unwrap().counter = false;
        let priv4 = table.sets.get_mut("priv4").unwrap();
        let gone = priv4.elements.keys().nth(1).unwrap().clone();
        priv4.elements.remove(&gone);
        let rp4 = table.sets.get_mut("rp4").unwrap();
        rp4.elements.values_mut().for_each(|answer| *answer = Some(links[0].1.to_ne_bytes().to_vec()));
        desired.tables.remove(&(Family::Inet, "nsctl_uplink".to_owned()));

        let before = nft.generation().unwrap();
        load(&nft, &desired);
        let after = nft.dump(|_, _| true).unwrap();
        assert_eq!(after.generation, before + 1);
        assert_tables_equal(&after.ruleset, &desired);
        load(&nft, &Ruleset::default());
        assert_eq!(nft.dump(|_, _| true).unwrap().ruleset, Ruleset::default());
        assert_eq!(witness("nft", &["list", "ruleset"]), "");
    });
}

#[test]
fn a_change_for_another_generation_does_not_happen() {
    sandboxed(|links| {
        let nft = NftSocket::open().unwrap();
        let desired = everything(links);
        let dump = nft.dump(|_, _| true).unwrap();
        witness("nft", &["add", "table", "ip", "somebody"]);
        let late = nft.commit(&Delta::between(&dump.ruleset, &desired), Some(dump.generation));
        assert!(matches!(late, Err(NftError::GenerationChanged)), "{late:?}");
        let dump = nft.dump(|_, _| true).unwrap();
        assert_eq!(dump.ruleset, Ruleset::default());
        assert_eq!(dump.tables, [("ip".to_owned(), "somebody".to_owned())]);
        nft.commit(&Delta::between(&dump.ruleset, &desired), Some(dump.generation)).unwrap();
    });
}

#[test]
fn three_thousand_elements_are_one_commit() {
    sandboxed(|links| {
        let nft = NftSocket::open().unwrap();
        let key = |n: u16| flow4(links[0].1, 1, (n % 200) as u8, 6, n);
        let elements = (0..3000).map(|n| (key(n), Some(links[1].1.to_ne_bytes().to_vec()))).collect();
        let sets = BTreeMap::from([("m".to_owned(), Set { elements, ..map(&shapes::FLOW4) })]);
        let table = Table { sets: sets.into(), chains: BTreeMap::new().into(), dormant: false };
        let mut desired = Ruleset { tables: BTreeMap::from([((Family::Netdev, "t".to_owned()), table)]) };
        let before = nft.generation().unwrap();
        load(&nft, &desired);
        let dump = nft.dump(|_, _| true).unwrap();
        assert_eq!(dump.generation, before + 1);
        assert_eq!(dump.ruleset, desired);
        assert_eq!(dump.counters.len(), 3000);
        let id = (Family::Netdev, "t".to_owned());
        desired.tables.get_mut(&id).unwrap().sets.get_mut("m").unwrap().elements.clear();
        load(&nft, &desired);
        assert_eq!(nft.dump(|_, _| true).unwrap().ruleset, desired);
    });
}

#[test]
fn what_the_kernel_refuses_is_named_and_nothing_of_it_happens() {
    sandboxed(|links| {
        let nft = NftSocket::open().unwrap();
        let mut desired = everything(links);
        let p4 = fabric(&mut desired).chains.get_mut("p4").unwrap();
        p4.rules.push(build().l4(17).lock_flow(false, true).ask("nowhere", false).accept());
        let refused = nft.commit(&Delta::between(&Ruleset::default(), &desired), None).unwrap_err();
        let NftError::Refused { operation, errno, .. } = &refused else { panic!("{refused:?}") };
        assert_eq!(operation, "add rule netdev nsctl p4 @nh,96,32 . meta l4proto . udp dport @nowhere accept");
        assert_eq!(*errno, nix::libc::ENOENT);
        assert_eq!(
            refused.to_string(),
            "the kernel refused `add rule netdev nsctl p4 @nh,96,32 . meta l4proto . udp dport @nowhere accept`"
        );
        assert_eq!(nft.dump(|_, _| true).unwrap().tables, []);
    });
}

/// An element that is there with another answer is never silently pointed elsewhere.
#[test]
fn an_element_cannot_be_re_pointed_by_adding_it() {
    sandboxed(|links| {
        let nft = NftSocket::open().unwrap();
        let mut desired = everything(links);
        load(&nft, &desired);
        let fw4 = fabric(&mut desired).sets.get_mut("fw4").unwrap();
        fw4.elements.values_mut().for_each(|answer| *answer = Some(links[2].1.to_ne_bytes().to_vec()));
        let dump = nft.dump(|_, _| true).unwrap();
        let delta = Delta::between(&dump.ruleset, &desired);
        let only_added = delta.filtered(|op| matches!(op, Op::AddElements(_)));
        let refused = nft.commit(&only_added, None).unwrap_err();
        let NftError::Refused { operation, errno, .. } = refused else { panic!("{refused:?}") };
        assert_eq!(
            operation,
            "add element netdev nsctl fw4 { 10 . 10.203.0.1 . 10.203.0.2 . tcp . 80 : 12 } and 2 more"
        );
        assert_eq!(errno, nix::libc::EEXIST);
        nft.commit(&delta, Some(dump.generation)).unwrap();
        assert_tables_equal(&nft.dump(|_, _| true).unwrap().ruleset, &desired);
    });
}

#[test]
fn what_others_write_into_our_tables_is_drift_and_is_repaired() {
    sandboxed(|links| {
        let nft = NftSocket::open().unwrap();
        let desired = everything(links);
        load(&nft, &desired);
        let strange = [
            "insert rule inet nsctl_lock input tcp dport { 22, 23 } accept",
            "insert rule inet nsctl_lock input meta mark 7 accept",
            "insert rule inet nsctl_lock output tcp dport 1-1023 accept",
            "add set inet nsctl_lock odd { type ether_addr; elements = { 00:11:22:33:44:55 }; }",
            "add map inet nsctl_lock vm { type ipv4_addr : verdict; elements = { 1.2.3.4 : accept, * : drop }; }",
            "add chain inet nsctl_lock extra { type route hook output priority 3; }",
            "add element netdev nsctl priv4 { 5.5.5.0/24 }",
            "add element netdev nsctl gw4 { * : \"s_a\" }",
            "add table inet nsctl_lock { flags dormant; }",
            "add table netdev nsctl { flags dormant; }",
            "delete element netdev nsctl fw4 { \"s_a\" . 10.203.0.1 . 10.203.0.2 . tcp . 80 }",
        ];
        for line in strange {
            witness("nft", &[line]);
            let observed = nft.dump(|_, _| true).unwrap().ruleset;
            assert_ne!(observed, desired, "not seen: {line}");
            load(&nft, &desired);
            assert_tables_equal(&nft.dump(|_, _| true).unwrap().ruleset, &desired);
        }
    });
}

/// The other way round: rules that nft(8) made, read by us.
#[test]
fn what_nft_writes_we_read_and_print_alike() {
    sandboxed(|_| {
        let names = ["lo", "p0", "p1", "p2"].into_iter().enumerate();
        let names = names.map(|(n, name)| (n as u32 + 1, name.to_owned())).collect();
        witness("nft", &["-f", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nft_codec/written_by_nft.nft")]);
        let ruleset = NftSocket::open().unwrap().dump(|_, _| true).unwrap().ruleset;
        let ours = comparable(&ruleset.display(&names));
        let theirs = comparable(&witness("nft", &["list", "ruleset"]));
        let (mut ours, mut theirs): (Vec<_>, Vec<_>) = (ours.lines().collect(), theirs.lines().collect());
        // Sets and chains are listed in the order in which they were made, which the model does not keep.
        ours.sort_unstable();
        theirs.sort_unstable();
        let (mine, nfts) = (ours.clone(), theirs.clone());
        ours.retain(|line| !nfts.contains(line));
        theirs.retain(|line| !mine.contains(line));
        assert_eq!(ours, theirs);
        assert_eq!(mine.len(), nfts.len());
    });
}

/// Ranges that touch, that go to the largest key, that give way to overlapping ones in the same transaction.
#[test]
fn ranges_can_be_exchanged_for_overlapping_ones() {
    sandboxed(|links| {
        let nft = NftSocket::open().unwrap();
        let range = |from: u32, to: u32| shapes::range4(from, to);
        let rounds = [
            vec![range(0, 9), range(10, 19), range(30, u32::MAX)],
            vec![range(0, 5), range(6, 29), range(30, 39), range(40, u32::MAX)],
            vec![range(0, u32::MAX)],
            vec![range(7, 7)],
            vec![],
        ];
        let answer = Some(links[0].1.to_ne_bytes().to_vec());
        for ranges in rounds {
            let plain =
                Set { interval: true, elements: shapes::members(ranges.clone()), ..shapes::set(&[Field::Ipv4Addr]) };
            let mapped = Set {
                elements: ranges.iter().map(|key| (key.clone(), answer.clone())).collect(),
                interval: true,
                ..map(&[Field::Ipv4Addr])
            };
            let pair = |key: &Key| Key {
                from: [&[1, 0, 0, 0], &key.from[..]].concat(),
                to: key.to.as_ref().map(|to| [&[1, 0, 0, 0], &to[..]].concat()),
            };
            let joined = Set {
                elements: ranges.iter().map(|key| (pair(key), answer.clone())).collect(),
                interval: true,
                ..map(&[Field::IfaceIndex, Field::Ipv4Addr])
            };
            let sets = [("plain", plain), ("mapped", mapped), ("joined", joined)];
            let table = Table {
                sets: sets.map(|(n, set)| (n.to_owned(), set)).into_iter().collect(),
                chains: BTreeMap::new().into(),
                dormant: false,
            };
            let desired = Ruleset { tables: BTreeMap::from([((Family::Inet, "t".to_owned()), table)]) };
            load(&nft, &desired);
            assert_tables_equal(&nft.dump(|_, _| true).unwrap().ruleset, &desired);
        }
    });
}

/// What elements of maps, and those of dynamic sets, have counted.
#[test]
fn counts_are_those_of_the_packets() {
    sandboxed(|_| {
        let nft = NftSocket::open().unwrap();
        let to = |last| exact(&[&[127, 0, 0, last]]);
        let known = Set { counter: true, elements: shapes::members([to(1), to(2)]), ..shapes::set(&[Field::Ipv4Addr]) };
        let seen = Set { dynamic: Some(Dynamic { size: 9, timeout: 60 }), ..shapes::set(&[Field::Ipv4Addr]) };
        let table = Table {
            sets: BTreeMap::from([("known".to_owned(), known), ("seen".to_owned(), seen)]).into(),
            dormant: false,
            chains: BTreeMap::from([(
                "out".to_owned(),
                shapes::output(vec![
                    build().nfproto(false).daddr(false).update("seen").end(),
                    build().nfproto(false).daddr(false).ask("known", false).accept(),
                ]),
            )])
            .into(),
        };
        load(&nft, &Ruleset { tables: BTreeMap::from([((Family::Inet, "t".to_owned()), table)]) });
        let socket = std::net::UdpSocket::bind("127.0.0.3:0").unwrap();
        for address in ["127.0.0.2:9", "127.0.0.2:9", "127.0.0.7:9"] {
            socket.send_to(b"12345678", address).unwrap();
        }
        let counters = nft.dump(|_, _| true).unwrap().counters;
        let count = |last| counters[&("t".to_owned(), "known".to_owned(), to(last))];
        assert_eq!(count(1), Count { packets: 0, bytes: 0 });
        assert_eq!(count(2), Count { packets: 2, bytes: 2 * 36 });
        let seen = nft.dynamic_elements(Family::Inet, "t", "seen").unwrap();
        assert_eq!(seen[&to(7)], Count { packets: 1, bytes: 36 });
        assert_eq!(seen[&to(2)].packets, 2);
        assert_eq!(nft.dynamic_elements(Family::Inet, "t", "none").unwrap_err().kind(), std::io::ErrorKind::NotFound);
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
