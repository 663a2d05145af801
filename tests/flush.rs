//! What becomes of declared and undeclared traffic when somebody empties our rules, or breaks a piece of what we made;
//! and that it is seen and mended.

mod common;

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::in_sandbox;
use common::network::{Network, chain};
use common::talk::{Speaker, Talk};
use netns_policy::plan::Plan;
use netns_policy::port::Protocol::Tcp;
use nsctl::internet::Internet;
use nsctl::kernel::netns::Netns;

const POLICY: &str = r#"
schema = 1
[network]
name = "f"
[service.db]
ports = { sql = "tcp:5432", time = "udp:123" }
[service.web]
ports = { http = "tcp:80" }
outbound = "direct"
connect.db = ["sql", "time"]
[service.third]
connect.web = ["http"]
[host]
may_connect.db = ["sql"]
"#;

fn applied() -> (Internet, Network) {
    let internet = Internet::make().unwrap();
    let network = Network::new("flush", POLICY);
    network.apply();
    (internet, network)
}

/// Who tries what nobody has declared: from, to, port.
const UNDECLARED: [(&str, &str, u16); 6] = [
    ("web", "db", 9),
    ("db", "web", 9),
    ("third", "db", 9),
    ("host", "web", 9),
    ("third", "web", 9),
    ("db", "third", 9),
];

/// Attempts without end on everything undeclared, over both families by TCP and UDP, with a listener at each end that
/// counts what arrives.
struct Siege {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicUsize>,
    tried: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Siege {
    fn begin(network: &Network) -> Self {
        let (stop, arrived, tried) = (Arc::default(), Arc::default(), Arc::default());
        let mut siege = Self { stop, arrived, tried, threads: Vec::new() };
        for to in ["db", "web", "third"] {
            let any = IpAddr::from([0u16; 8]);
            siege.count(network.listen(to, any, 9), network.bind(to, any, 9));
        }
        for (from, to, port) in UNDECLARED {
            for address in network.addresses(to) {
                siege.storm(network.netns(from), SocketAddr::new(address, port));
            }
        }
        siege
    }

    fn count(&mut self, tcp: TcpListener, udp: UdpSocket) {
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        let (stop, arrived) = (self.stop.clone(), self.arrived.clone());
        self.threads.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if tcp.accept().is_ok() | udp.recv(&mut [0; 8]).is_ok() {
                    arrived.fetch_add(1, Ordering::Relaxed);
                }
            }
        }));
    }

    fn storm(&mut self, netns: Netns, at: SocketAddr) {
        let (stop, tried) = (self.stop.clone(), self.tried.clone());
        self.threads.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let once = move || {
                    let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
                    UdpSocket::bind((any, 0))?.send_to(b"?", at).ok();
                    std::net::TcpStream::connect_timeout(&at, Duration::from_millis(10)).ok();
                    Ok(())
                };
                netns.run(once).unwrap();
                tried.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(3));
            }
        }));
    }

    /// Lets it go on for a while; how often it has tried in that time.
    fn go_on(&self) -> usize {
        let before = self.tried.load(Ordering::Relaxed);
        thread::sleep(Duration::from_millis(300));
        self.tried.load(Ordering::Relaxed) - before
    }

    fn assert_nothing_arrived(&self, when: &str) {
        assert!(self.go_on() > 50, "nobody tries {when}");
        assert_eq!(self.arrived.load(Ordering::Relaxed), 0, "arrived {when}");
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

/// Declared conversations: by TCP, either side speaking, and by UDP.
fn declared(network: &Network) -> Vec<Talk> {
    let mut talks = Vec::new();
    for address in network.addresses("db") {
        for speaker in [Speaker::Client, Speaker::Server] {
            talks.push(Talk::tcp(network, "web", ("db", address, 5432), speaker));
            talks.push(Talk::tcp(network, "host", ("db", address, 5432), speaker));
        }
        talks.push(Talk::udp(network, "web", ("db", address, 123)));
    }
    for (n, talk) in talks.iter().enumerate() {
        assert!(talk.goes_on(), "declared {n}");
    }
    talks
}

/// The control of every siege: without any rules but the open one of a stranger, it is seen to arrive.
#[test]
fn what_passes_is_counted() {
    in_sandbox(|| {
        let (_internet, network) = applied();
        let siege = Siege::begin(&network);
        siege.assert_nothing_arrived("before");
        let wire = |place: &str| {
            network.planned().desired.wires.values().find(|w| w.place.to_string() == place).unwrap().index
        };
        let (from, to) = (wire("third"), wire("db"));
        let (there, back) = (network.v4("third"), network.v4("db"));
        network.nft(
            "fabric",
            &format!("add element netdev nsctl edges4 {{ {from} . {there} . {back} . udp . 9 : {to} }}"),
        );
        network.nft("third", "flush ruleset");
        network.nft("db", "flush ruleset");
        siege.go_on();
        assert!(siege.arrived.load(Ordering::Relaxed) > 5, "an open way is not noticed");
        siege.end();
    });
}

#[test]
fn a_flush_of_the_fabric_stops_everything_and_apply_brings_it_back() {
    in_sandbox(|| {
        let (_internet, network) = applied();
        let (talks, siege) = (declared(&network), Siege::begin(&network));
        network.nft("fabric", "flush ruleset");
        for talk in &talks {
            assert_eq!(talk.heard_from_now(), 0, "a packet passed a fabric without rules");
        }
        siege.assert_nothing_arrived("through a fabric without rules");
        let drift = network.drift();
        assert!(drift.contains(&"edge web -> db:tcp:5432 is missing".to_owned()), "{drift:#?}");
        // One transaction: rules without edges would reset what is declared.
        assert_eq!(network.apply().report.done.len(), 1);
        assert_eq!(network.plan(), Plan::default());
        for (n, talk) in talks.iter().enumerate() {
            assert!(talk.goes_on(), "declared {n}, after the repair: {:?}", talk.death());
        }
        siege.assert_nothing_arrived("after the repair");
        siege.end();
        talks.into_iter().for_each(Talk::end);
    });
}

#[test]
fn a_flush_of_the_host_or_of_a_service_opens_nothing() {
    in_sandbox(|| {
        let (_internet, network) = applied();
        let (talks, siege) = (declared(&network), Siege::begin(&network));
        for place in ["host", "web", "db", "third", "uplink"] {
            network.nft(place, "flush ruleset");
            siege.assert_nothing_arrived(&format!("after a flush in {place}"));
            for (n, talk) in talks.iter().enumerate() {
                assert!(talk.goes_on(), "declared {n}, after a flush in {place}: {:?}", talk.death());
            }
            let drift = network.drift();
            assert!(drift.iter().any(|line| line.contains(place)), "a flush in {place}: {drift:#?}");
            network.apply();
            assert_eq!(network.plan(), Plan::default(), "after a flush in {place}");
            siege.assert_nothing_arrived(&format!("after the repair of {place}"));
            for (n, talk) in talks.iter().enumerate() {
                assert!(talk.goes_on(), "declared {n}, after the repair of {place}: {:?}", talk.death());
            }
        }
        siege.end();
        talks.into_iter().for_each(Talk::end);
    });
}

/// Both locks of a pair gone, and the panel alone: a declared server does not reach its client, nor anybody a stranger.
#[test]
fn without_any_lock_the_panel_still_stands() {
    in_sandbox(|| {
        let (_internet, network) = applied();
        let siege = Siege::begin(&network);
        for place in ["web", "db", "third", "host", "uplink"] {
            network.nft(place, "flush ruleset");
        }
        siege.assert_nothing_arrived("with the panel alone");
        assert!(network.reaches("web", "db", (network.v4("db"), Tcp, 5432)), "what is declared passes");
        network.apply();
        assert_eq!(network.plan(), Plan::default());
        siege.end();
    });
}

/// Something that a stranger does, and a word of what `status` says of it.
type Damage = (&'static str, &'static str);

const DAMAGES: [Damage; 20] = [
    ("ip -n f-web link del net0", "the wire of web is missing"),
    ("ip -n f-web link set net0 down", "the wire of web is changed: it is down at its own end"),
    ("ip -n f-web link set net0 down name eth7", "the wire of web is missing"),
    ("ip -n f-web route del default", "web has lost the route 0.0.0.0/0"),
    ("ip -n f-web address flush dev net0", "the wire of web is changed: address 10.231.0.3 is gone"),
    ("ip -n f-web link set net0 mtu 1500", "the wire of web is changed: MTU 1500 instead of 65535"),
    ("ip -n f+fabric link set web down", "the wire of web is down at the end in the fabric"),
    ("ip -n f+fabric link del web", "the wire of web is missing"),
    ("ip netns del f-web", "namespace f-web is missing"),
    ("ip netns del f+fabric", "edge web -> db:tcp:5432 is missing"),
    ("ip link del f+host", "edge host -> db:tcp:5432 is missing"),
    ("ip link del f+leg", "the leg f+leg of the uplink is gone"),
    ("ip -n f+uplink link set up0 down", "the leg f+leg of the uplink is changed: it is down in the gateway"),
    (
        "ip -n f+uplink route del default dev up0",
        "the leg f+leg of the uplink is changed: no default route in the gateway",
    ),
    (
        "ip netns exec f+uplink sysctl -w net.ipv4.ip_forward=0",
        "sysctl net.ipv4.ip_forward in f+uplink is 0 and ought to be 1",
    ),
    (
        "ip netns exec f+fabric sysctl -w net.ipv4.ip_forward=1",
        "sysctl net.ipv4.ip_forward in f+fabric is 1 and ought to be 0",
    ),
    ("ip rule del priority 11102", "the host has lost a rule or route into 10.231.0.0/22"),
    ("ip netns exec f-db nft flush chain inet nsctl input", "chain input of inet nsctl in f-db: "),
    (
        "ip netns exec f-db nft add element inet nsctl in4 { 10.231.0.9 . tcp . 22 }",
        "the lock in f-db has 10.231.0.9 -> db:tcp:22",
    ),
    ("ip netns exec f+fabric nft add table netdev somebody", "foreign table netdev somebody in f+fabric"),
];

#[test]
fn whatever_is_broken_is_seen_and_mended() {
    in_sandbox(|| {
        let (_internet, network) = applied();
        let priority = netns_policy::desired::host_route_numbers(&"f".parse().unwrap()).1;
        assert_eq!(priority, 11102);
        for (damage, word) in DAMAGES {
            let siege = Siege::begin(&network);
            network.witness("host", damage);
            let drift = network.drift();
            assert!(drift.iter().any(|line| line.contains(word)), "{damage}: {drift:#?}");
            network.nsctl.apply().unwrap_or_else(|error| panic!("{damage}: {}", chain(&error)));
            assert_eq!(network.plan(), Plan::default(), "{damage}");
            for (from, to) in [("web", "db"), ("host", "db")] {
                let at = network.v4(to);
                assert!(network.reaches(from, to, (at, Tcp, 5432)), "{from} -> {to} after {damage}");
            }
            assert!(network.reaches("third", "web", (network.v4("web"), Tcp, 80)), "third -> web after {damage}");
            assert_eq!(siege.arrived.load(Ordering::Relaxed), 0, "arrived, {damage}");
            siege.end();
        }
        // A stranger's table is told of and left alone: it is not ours.
        assert_eq!(network.drift(), ["foreign table netdev somebody in f+fabric"]);
        network.nft("fabric", "delete table netdev somebody");
        assert_eq!(network.drift(), [""; 0]);
        network.down();
        assert!(network.is_nothing());
    });
}
