//! Root in one service against the verbs: whatever it does in its own namespace, the others are read, served and removed.

#![allow(clippy::disallowed_methods, reason = "the tools of whoever is root inside")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::network::{Network, chain};
use common::{in_sandbox, ip, nft, witness};
use netns_policy::port::Protocol;
use netns_policy::ruleset::compile::TABLE;
use netns_policy::topology::Place;
use nsctl::Error;
use nsctl::kernel::netlink::{Request, Rtnl};
use nsctl::kernel::{KernelError, link};

const POLICY: &str = r#"schema = 1
network.name = "node"

[service.a]
connect.b = ["web"]

[service.b]
ports = { web = "tcp:80" }

[service.c]
connect.b = ["web"]
"#;

const ONE_MORE: &str = "\n[service.d]\nconnect.b = [\"web\"]\n";

fn network() -> Network {
    let network = Network::new("hostile", POLICY);
    network.apply();
    network
}

fn reaches_b(network: &Network, from: &str) -> bool {
    network.reaches(from, "b", (network.v4("b"), Protocol::Tcp, 80))
}

fn goes_down_whole(network: &Network) {
    network.down();
    assert!(network.is_nothing());
    let left = fs::read_dir("/run/netns").unwrap().count();
    assert_eq!(left, 0, "namespaces stay");
}

/// Does the same in a's namespace without pause, until it is dropped.
struct Loop(Arc<AtomicBool>, Option<thread::JoinHandle<()>>);

impl Loop {
    fn of(network: &Network, request: fn(&mut Rtnl) -> Vec<Request>) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (netns, until) = (network.netns("a"), Arc::clone(&ends));
        let inside = move || {
            let mut rtnl = Rtnl::open()?;
            while !until.load(Ordering::Relaxed) {
                let requests = request(&mut rtnl);
                rtnl.try_all(&requests).ok();
                thread::sleep(Duration::from_micros(200));
            }
            Ok(())
        };
        Self(ends, Some(thread::spawn(move || netns.run(inside).unwrap())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap();
    }
}

fn concerns_a(error: &KernelError) -> bool {
    match error {
        KernelError::Spoiled { spoils } => spoils.iter().all(|one| one.place == Some(service("a"))),
        KernelError::Inside { netns, .. } => netns == "node-a",
        _ => false,
    }
}

fn service(name: &str) -> Place {
    Place::Service(name.parse().unwrap())
}

/// Applies a policy with one more service while a works against it: all but a are served.
fn serves_all_but_a(network: &Network, request: fn(&mut Rtnl) -> Vec<Request>) {
    let hostile = Loop::of(network, request);
    network.write(&format!("{POLICY}{ONE_MORE}"));
    let begun = Instant::now();
    for _ in 0..2 {
        match network.nsctl.apply() {
            Ok(_) => {}
            Err(Error::Spoiled { spoiled, .. }) => {
                spoiled.iter().for_each(|one| println!("{one}: {}", one.source));
                assert!(spoiled.iter().all(|one| concerns_a(&one.source)), "{spoiled:#?}");
            }
            Err(e) => panic!("{}", chain(&e)),
        }
        for from in ["c", "d"] {
            assert!(reaches_b(network, from), "{from} is served");
        }
    }
    println!("two turns took {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    network.nsctl.status().unwrap();
    drop(hostile);
    network.apply();
    assert_eq!(network.plan().steps, []);
    assert!(reaches_b(network, "a"));
    goes_down_whole(network);
}

#[test]
fn a_link_whose_name_is_no_text_stops_no_verb() {
    in_sandbox(|| {
        let network = network();
        let mut add = Command::new("ip");
        add.args(["-n", "node-a", "link", "add"]).arg(OsStr::from_bytes(b"\xff\xfex")).args(["type", "bridge"]);
        witness(&mut add);
        assert_eq!(network.plan().steps, []);
        network.nsctl.status().unwrap();
        network.change(&format!("{POLICY}{ONE_MORE}"));
        assert!(reaches_b(&network, "a") && reaches_b(&network, "d"));
        // Its own wire with such an alias is made anew.
        let alias = OsStr::from_bytes(b"\xff\xfe");
        witness(Command::new("ip").args(["-n", "node-a", "link", "set", "net0", "alias"]).arg(alias));
        network.nsctl.status().unwrap();
        network.apply();
        assert_eq!(network.plan().steps, []);
        assert!(reaches_b(&network, "a"));
        goes_down_whole(&network);
    });
}

#[test]
fn more_rules_than_anybody_reads_stop_no_verb() {
    in_sandbox(|| {
        let network = network();
        let comment = "x".repeat(120);
        let elements = |n: u32| format!("10.{}.{}.{} comment \"{comment}\"", n >> 16, n >> 8 & 255, n & 255);
        nft("node-a", &format!("add set inet {TABLE} flood {{ type ipv4_addr; }}"));
        // As many at once as a socket without power outside takes.
        for some in (0..64_000).map(elements).collect::<Vec<_>>().chunks(1000) {
            fs::write("/run/flood", format!("add element inet {TABLE} flood {{ {} }}\n", some.join(", "))).unwrap();
            witness(Command::new("ip").args(["netns", "exec", "node-a", "nft", "-f", "/run/flood"]));
        }
        let drift = network.drift();
        assert!(drift.iter().any(|line| line.contains("node-a")), "{drift:?}");
        network.change(&format!("{POLICY}{ONE_MORE}"));
        assert!(reaches_b(&network, "d"));
        nft("node-a", "flush ruleset");
        network.apply();
        assert_eq!(network.drift(), Vec::<String>::new());
        goes_down_whole(&network);
    });
}

#[test]
fn nobody_makes_itself_foreign() {
    in_sandbox(|| {
        let network = network();
        let hide = |alias: &str| {
            witness(Command::new("ip").args(["-n", "node-a", "link", "set", "lo", "alias", alias]));
            ip("-n node-a link del net0");
        };
        for alias in ["", "nsctl:other:a"] {
            hide(alias);
            network.nsctl.status().unwrap();
            network.apply();
            assert!(reaches_b(&network, "a"));
        }
        hide("");
        goes_down_whole(&network);
    });
}

#[test]
fn links_in_the_place_of_a_wire_make_way() {
    in_sandbox(|| {
        let network = network();
        ip("-n node-a link del net0");
        let index = network.planned().desired.wires[&service("a")].index;
        for squatter in ["name net0", "name other", "name third"] {
            ip(&format!("-n node-a link add {squatter} type bridge"));
        }
        ip("-n node-a link set net0 name fourth");
        ip("-n node-a link property add dev other altname net0");
        ip(&format!("-n node-a link add fifth index {index} type bridge"));
        network.apply();
        assert_eq!(network.plan().steps, []);
        assert!(reaches_b(&network, "a"));
        goes_down_whole(&network);
    });
}

#[test]
fn a_service_that_deletes_its_wire_again_and_again_is_alone_with_it() {
    in_sandbox(|| serves_all_but_a(&network(), |_| vec![link::delete_by_name("net0")]));
}

#[test]
fn a_service_that_keeps_its_wire_down_is_alone_with_it() {
    in_sandbox(|| {
        let down = |rtnl: &mut Rtnl| {
            let end = rtnl.link_named("net0").ok().flatten();
            end.into_iter().map(|end| link::set_down(end.index)).collect()
        };
        let network = network();
        ip("-n node-a link del net0");
        serves_all_but_a(&network, down);
    });
}
