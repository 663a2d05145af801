//! The rules in the kernel are those that were compiled, and print as nft(8) prints them.
//!
//! `UPDATE_GOLDEN=1 cargo test --test ruleset` writes tests/golden anew.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::in_sandbox;
use common::listing::without_counts;
use common::network::{Network, example, replaced};
use netns_policy::ruleset::Ruleset;
use netns_policy::topology::Place;
use nsctl::internet::Internet;
use nsctl::kernel::netlink::Rtnl;
use nsctl::kernel::nft::NftSocket;

/// The service of which one is shown: it calls, it is called, and it goes out.
const SERVICE: &str = "lnd";
const PLACES: [&str; 4] = ["fabric", SERVICE, "uplink", "host"];

fn desired(network: &Network, place: &str) -> Ruleset {
    let desired = network.planned().desired;
    match place {
        "fabric" => desired.fabric,
        "host" => desired.locks[&Place::Host].clone(),
        "uplink" => desired.locks[&Place::Uplink].clone(),
        service => desired.locks[&Place::Service(service.parse().unwrap())].clone(),
    }
}

/// What the kernel has at `place`, and the names of the links there.
fn dumped(network: &Network, place: &str) -> (Ruleset, BTreeMap<u32, String>) {
    let look = || {
        let links = Rtnl::open()?.links()?;
        let names = links.into_iter().map(|link| (link.index, link.name)).collect();
        Ok((NftSocket::open()?.dump(|_, _| true)?.ruleset, names))
    };
    network.netns(place).run(look).unwrap()
}

fn applied() -> (Internet, Network) {
    let internet = Internet::make().unwrap();
    // Resolvers of its own, for the machine's are nobody else's.
    let lan = "lan    = [\"192.168.1.0/24\"]";
    let policy = replaced(&example("bitcoin-node"), lan, &format!("{lan}\nresolvers = [\"203.0.113.10\"]"));
    let network = Network::new("bitcoin-node", &policy);
    network.apply();
    (internet, network)
}

#[test]
fn what_the_kernel_has_is_what_was_compiled() {
    in_sandbox(|| {
        let (_internet, network) = applied();
        let services = network.planned().checked.graph.services().map(|s| s.name.to_string()).collect::<Vec<_>>();
        for place in services.iter().map(String::as_str).chain(["fabric", "uplink", "host"]) {
            let (found, _) = dumped(&network, place);
            let wanted = desired(&network, place);
            assert!(!wanted.tables.is_empty(), "{place}");
            for (id, table) in &wanted.tables {
                assert_eq!(found.tables[id].sets, table.sets, "{place}");
                assert_eq!(found.tables[id].chains, table.chains, "{place}");
            }
            assert_eq!(found, wanted, "{place}");
        }
    });
}

#[test]
fn nft_lists_what_we_print() {
    in_sandbox(|| {
        let (_internet, network) = applied();
        for place in PLACES {
            let (_, links) = dumped(&network, place);
            let ours = without_counts(&desired(&network, place).display(&links), &links);
            let theirs = without_counts(&network.witness(place, "nft list ruleset"), &links);
            assert!(theirs.lines().count() > 50, "{place}: {theirs}");
            compare(place, &ours, &theirs);
        }
    });
}

fn compare(place: &str, ours: &str, theirs: &str) {
    // Sets and chains are listed in the order in which they were made, which the model does not keep.
    let blocks = |text: &str| {
        let mut blocks: Vec<String> = text.split("\n\n").flat_map(|part| part.split("\n\t}\n")).map(trimmed).collect();
        blocks.sort();
        blocks
    };
    for (ours, theirs) in blocks(ours).iter().zip(blocks(theirs)) {
        assert_eq!(*ours, theirs, "{place}");
    }
    assert_eq!(blocks(ours).len(), blocks(theirs).len(), "{place}");
}

fn trimmed(block: &str) -> String {
    block.trim_matches(['\n', '}', ' ']).to_owned()
}

/// A reviewer sees in these files what a change of the compiler does to the rules.
#[test]
fn the_rules_of_the_bitcoin_node_are_the_golden_ones() {
    in_sandbox(|| {
        let (_internet, network) = applied();
        for place in PLACES {
            let (found, links) = dumped(&network, place);
            let text = found.display(&links);
            let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(place).with_extension("nft");
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&golden, &text).unwrap();
            }
            assert_golden(&text, golden);
        }
    });
}

fn assert_golden(text: &str, golden: PathBuf) {
    let wanted = fs::read_to_string(&golden).unwrap_or_default();
    // The panel refuses on its own where the kernel can; elsewhere the locks alone do.
    let refuses = nsctl::kernel::probe::capabilities().unwrap().netdev_reject || !golden.ends_with("fabric.nft");
    let wanted: Vec<_> = wanted.lines().filter(|line| refuses || !line.contains(" reject with ")).collect();
    for (line, (found, wanted)) in text.lines().zip(wanted.iter().copied()).enumerate() {
        assert_eq!(found, wanted, "{}:{}", golden.display(), line + 1);
    }
    assert_eq!(text.lines().count(), wanted.len(), "{}", golden.display());
}
