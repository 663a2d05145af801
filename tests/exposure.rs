//! Ways in by a port of the host on a real kernel: who comes in by `expose.lan` and `expose.port`, whom the service sees,
//! what a service that is exposed so may not do, and what ends when the exposure goes.

#![allow(clippy::disallowed_methods, reason = "ip, nft and sh are witnesses; a sandbox needs unshare")]

mod common;
#[path = "uplink/world.rs"]
#[allow(dead_code, reason = "the tests of the way out use the rest of it")]
mod world;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use netns_policy::relay::relays;
use nsctl::Applied;
use nsctl::kernel::netns::Netns;

use common::in_sandbox;
use common::network::chain;
use world::{World, connect, listen, sh, sysctl};

/// The host. Its neighbour, the router, is `lan`; who comes from further away is not.
const HOST: [&str; 2] = ["192.168.7.2", "[2001:db8:7::2]"];
const NEIGHBOUR: [&str; 2] = ["192.168.7.1", "2001:db8:7::1"];
const STRANGER: [&str; 2] = ["203.0.113.10", "2001:db8:9::10"];

/// How long silence is waited for.
const SILENCE: Duration = Duration::from_millis(400);
const SOON: Duration = Duration::from_secs(5);

const LAN: &str = "expose.lan = { ports = { \"8080\" = \"http\", \"5300\" = \"names\" } }";
const PORT: &str = "expose.port = { ports = { \"8080\" = \"http\", \"5300\" = \"names\" } }";
const RELAY: &str = "expose.lan = { ports = { \"8080\" = \"http\" }, relay = true }";
const OFF: &str = "[expose]\nall = \"off\"\n";

fn policy(rtl: &str, more: &str) -> String {
    format!(
        r#"
schema = 1
[network]
name = "node"
pool4 = "10.231.0.0/24"
pool6 = "fd6e:6f64:6500::/64"
lan = ["192.168.7.0/24", "2001:db8:7::/64"]
[service.rtl]
ports = {{ http = "tcp:3000", names = "udp:5353", admin = "tcp:4000" }}
{rtl}
[service.other]
ports = {{ http = "tcp:80", admin = "tcp:81" }}
expose.port = {{ ports = {{ "9000" = "http" }} }}
[service.home]
outbound = "lan"
{more}
"#
    )
}

fn apply(world: &World, rtl: &str, more: &str) -> Applied {
    world.policy(&policy(rtl, more));
    world.orchestrator().apply().unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn at(host: &str, port: u16) -> String {
    format!("{host}:{port}")
}

/// Listens in a namespace on every address.
fn serve(netns: &Netns, port: u16) -> TcpListener {
    listen(Some(netns), &format!("[::]:{port}"))
}

fn ip_of(address: SocketAddr) -> String {
    address.ip().to_canonical().to_string()
}

/// An open connection: the client's end and the server's.
fn joined(listener: &TcpListener, from: &Netns, to: &str) -> (TcpStream, TcpStream) {
    let client = connect(Some(from), to).unwrap_or_else(|e| panic!("{to}: {e}\n{}", sh("nft list ruleset")));
    let (server, _) = listener.accept().expect("a connection");
    for end in [&client, &server] {
        end.set_read_timeout(Some(SILENCE)).expect("a timeout");
    }
    (client, server)
}

/// Whether a word that one end says is heard by the other.
fn hears(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    let mut heard = [0; 4];
    from.write_all(b"word").is_ok() && to.read_exact(&mut heard).is_ok() && heard == *b"word"
}

/// Connects, talks both ways, and says whom the listener sees.
fn seen(listener: &TcpListener, from: &Netns, to: &str) -> String {
    let (mut client, mut server) = joined(listener, from, to);
    assert!(hears(&mut client, &mut server) && hears(&mut server, &mut client), "{to} does not carry both ways");
    ip_of(server.peer_addr().expect("it is connected"))
}

/// Whether no connection comes to be.
fn is_shut(from: &Netns, to: &str) -> bool {
    let to: SocketAddr = to.parse().expect("an address");
    from.run(move || Ok(TcpStream::connect_timeout(&to, SILENCE).is_err())).expect("a thread")
}

/// How many connections to the exposed port the service, the gateway and the host remember.
fn tracked(world: &World) -> [usize; 3] {
    let line = "conntrack -L -p tcp 2>/dev/null | grep -c -e dport=8080 -e dport=3000 || true";
    let there = |netns: &str| {
        let netns = Netns::open(&world.options.netns.join(netns)).expect("a namespace");
        netns.run(move || Ok(sh(line))).expect("a thread")
    };
    [there("node-rtl"), there("node+uplink"), sh(line)].map(|count| count.trim().parse().expect("a number"))
}

fn datagram_socket(netns: &Netns, at: &str) -> UdpSocket {
    let at: SocketAddr = at.parse().expect("an address");
    let socket = netns.run(move || UdpSocket::bind(at)).expect("a socket");
    socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
    socket
}

fn any_like(host: &str) -> &'static str {
    if host.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }
}

#[test]
fn a_neighbour_comes_in_by_lan_with_its_own_address_and_a_stranger_does_not() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        assert_eq!(apply(world, LAN, "").notes, []);
        let server = serve(&world.service("rtl"), 3000);
        for (host, neighbour) in HOST.into_iter().zip(NEIGHBOUR) {
            assert_eq!(seen(&server, &world.router, &at(host, 8080)), neighbour);
            assert!(is_shut(&world.internet, &at(host, 8080)), "a stranger is not of `lan` at {host}");
            assert!(is_shut(&world.router, &at(host, 4000)), "what is not exposed stays shut");
        }
        assert!(apply(world, LAN, "").report.done.is_empty(), "a second apply has nothing to do");
        world.orchestrator().prove_live().unwrap_or_else(|error| panic!("{}", chain(&error)));
        // The control: it is `lan` that keeps the stranger out.
        apply(world, PORT, "");
        for (host, (neighbour, stranger)) in HOST.into_iter().zip(NEIGHBOUR.into_iter().zip(STRANGER)) {
            assert_eq!(seen(&server, &world.internet, &at(host, 8080)), stranger);
            assert_eq!(seen(&server, &world.router, &at(host, 8080)), neighbour);
        }
        let states: Vec<_> = world.orchestrator().status().unwrap().exposures.iter().map(|one| one.state).collect();
        assert_eq!(states, ["open"; 3]);
    });
}

#[test]
fn a_neighbour_on_a_link_without_a_way_out_comes_in_and_goes_nowhere_else() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        let guest = Netns::unpinned().unwrap();
        world.guest(&guest);
        let knob = "net/ipv4/conf/guest/forwarding";
        assert_eq!(sysctl(knob), "0");
        let text = policy(PORT, "").replace("\"192.168.7.0/24\",", "\"192.168.7.0/24\", \"172.20.0.0/24\",");
        world.policy(&text);
        world.orchestrator().apply().unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(sysctl(knob), "1");
        let server = serve(&world.service("rtl"), 3000);
        assert_eq!(seen(&server, &guest, "172.20.0.1:8080"), "172.20.0.2");
        let far = listen(Some(&world.internet), "203.0.113.10:80");
        assert!(is_shut(&guest, "203.0.113.10:80"), "the host forwards for a guest of its own");
        // The control: somebody who may goes there.
        connect(None, "203.0.113.10:80").expect("the host itself");
        far.accept().expect("a connection");
        world.orchestrator().down().unwrap();
        assert_eq!(sysctl(knob), "0");
    });
}

#[test]
fn datagrams_come_in_and_are_answered_and_unasked_ones_do_not_go_out() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        apply(world, LAN, "");
        for host in HOST {
            let client = datagram_socket(&world.router, any_like(host));
            client.connect(at(host, 5300)).unwrap();
            client.send(b"question").unwrap();
            let refused = client.recv(&mut [0; 16]).unwrap_err().kind();
            assert_eq!(refused, ErrorKind::ConnectionRefused, "a closed port says so at {host}");
        }
        let server = datagram_socket(&world.service("rtl"), "[::]:5353");
        for (host, neighbour) in HOST.into_iter().zip(NEIGHBOUR) {
            let client = datagram_socket(&world.router, any_like(host));
            let mut text = [0; 16];
            client.send_to(b"question", at(host, 5300)).unwrap();
            let (len, from) = server.recv_from(&mut text).unwrap();
            assert_eq!((&text[..len], ip_of(from)), (&b"question"[..], neighbour.to_owned()));
            server.send_to(b"answer", from).unwrap();
            let (len, answerer) = client.recv_from(&mut text).unwrap();
            assert_eq!((&text[..len], answerer), (&b"answer"[..], at(host, 5300).parse().unwrap()));
            // To somebody who has asked nothing: from the same port, to the same machine.
            let other = datagram_socket(&world.router, any_like(host));
            let unasked = SocketAddr::new(from.ip(), other.local_addr().unwrap().port());
            let refused = server.send_to(b"unasked", unasked);
            assert!(refused.is_err() && other.recv_from(&mut text).is_err(), "{unasked} heard of it: {refused:?}");
            let stranger = datagram_socket(&world.internet, any_like(host));
            stranger.send_to(b"question", at(host, 5300)).unwrap();
            assert!(server.recv_from(&mut text).is_err(), "a stranger is not of `lan` at {host}");
        }
    });
}

#[test]
fn who_is_exposed_may_open_nothing_outside_and_nobody_inside_comes_in_by_the_host() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        apply(world, PORT, "");
        let (rtl, home) = (world.service("rtl"), world.service("home"));
        let near = listen(Some(&world.router), "192.168.7.1:80");
        let to = "192.168.7.1:80";
        let began = Instant::now();
        assert!(is_shut(&rtl, to) && began.elapsed() < SILENCE, "it is refused at once");
        // The control: a service that may go out reaches the same listener.
        connect(Some(&home), to).expect(to);
        near.accept().expect("a connection");
        // With its own lock out of the way, the panel and the gateway refuse it all the same.
        rtl.run(|| Ok(sh("nft delete table inet nsctl"))).unwrap();
        assert!(is_shut(&rtl, to), "it goes out without its lock");
        let unasked = datagram_socket(&world.router, "192.168.7.1:6000");
        let speaker = datagram_socket(&rtl, "[::]:5353");
        speaker.send_to(b"unasked", "[::ffff:192.168.7.1]:6000").ok();
        assert!(unasked.recv_from(&mut [0; 16]).is_err(), "a datagram goes out without its lock");
        apply(world, PORT, "");
        let server = serve(&rtl, 3000);
        assert!(is_shut(&home, "192.168.7.2:8080"), "`lan` never means the host");
        assert_eq!(seen(&server, &world.router, "192.168.7.2:8080"), NEIGHBOUR[0]);
    });
}

#[test]
fn an_exposure_that_goes_ends_its_connections_at_once_and_no_others() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        // The gateway stays with every one of the policies: `home` goes out by it.
        let (host_ssh, exposed, bystander) = (listen(None, "192.168.7.2:22"), "192.168.7.2:8080", "192.168.7.2:9000");
        apply(world, LAN, "");
        let (server, other) = (serve(&world.service("rtl"), 3000), serve(&world.service("other"), 80));
        for gone in [("", ""), (LAN, OFF), (RELAY, "")] {
            apply(world, LAN, "");
            let (mut client, mut served) = joined(&server, &world.router, exposed);
            let (mut silent, mut speaking) = joined(&server, &world.router, exposed);
            let (mut ssh, mut sshd) = joined(&host_ssh, &world.router, "192.168.7.2:22");
            let mut stays = (gone.1 != OFF).then(|| joined(&other, &world.internet, bystander));
            assert!(hears(&mut client, &mut served) && hears(&mut speaking, &mut silent));
            assert_eq!(tracked(world), [2, 2, 2]);
            apply(world, gone.0, gone.1);
            // To the host a port that leads to the relay from now on is the same right as before.
            let kept = if gone.0 == RELAY { 2 } else { 0 };
            assert_eq!(tracked(world), [0, 0, kept], "it is remembered with {gone:?}");
            assert!(!hears(&mut client, &mut served), "the client is heard on with {gone:?}");
            let ended = served.read(&mut [0; 4]).map_err(|error| error.kind());
            assert!(matches!(ended, Err(ErrorKind::WouldBlock | ErrorKind::ConnectionReset)), "{ended:?}");
            assert!(!hears(&mut speaking, &mut silent), "the service is heard on with {gone:?}");
            assert!(is_shut(&world.router, exposed), "another connection comes to be with {gone:?}");
            for (from, to) in stays.iter_mut() {
                assert!(hears(from, to) && hears(to, from), "another service's connection has ended");
            }
            assert!(hears(&mut ssh, &mut sshd) && hears(&mut sshd, &mut ssh), "the host's own connection has ended");
        }
        assert_eq!(
            world.orchestrator().status().unwrap().exposures.iter().map(|one| one.state).collect::<Vec<_>>(),
            ["open", "needs the daemon"]
        );
        let forwarding = ["net/ipv4/conf/eth0/forwarding", "net/ipv6/conf/all/forwarding"];
        assert_eq!(forwarding.map(sysctl), ["1", "1"]);
        world.orchestrator().down().unwrap();
        assert_eq!(forwarding.map(sysctl), ["0", "0"]);
        assert_eq!(sh("nft list tables"), "");
        assert!(is_shut(&world.router, exposed));
    });
}

/// What a worker does: hands on one connection, and tells whom it saw.
fn hand_on(listener: &TcpListener, gateway: &Netns, to: SocketAddr) -> (IpAddr, TcpStream, TcpStream) {
    let (client, from) = listener.accept().expect("a connection");
    let called = gateway.run(move || TcpStream::connect_timeout(&to, SOON)).expect("the service");
    (from.ip().to_canonical(), client, called)
}

#[test]
fn a_relay_sees_who_comes_and_reaches_the_service_and_nothing_else() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        apply(world, RELAY, "");
        world.orchestrator().prove_live().unwrap_or_else(|error| panic!("{}", chain(&error)));
        let planned = world.orchestrator().plan_offline().unwrap();
        let told = relays(&planned.checked.graph, &planned.addresses);
        let [relay] = &told[..] else { panic!("{told:?}") };
        let gateway = Netns::open(&world.options.netns.join("node+relay")).expect("the gateway");
        let (server, other) = (serve(&world.service("rtl"), 3000), serve(&world.service("other"), 80));
        let _admin = serve(&world.service("rtl"), 4000);
        let pairs = relay.listen.iter().zip(&relay.to).zip(HOST.into_iter().zip(NEIGHBOUR));
        for ((here, to), (host, neighbour)) in pairs {
            let here = *here;
            let listener = gateway.run(move || TcpListener::bind(here)).unwrap();
            let mut client = connect(Some(&world.router), &at(host, 8080)).unwrap();
            let (from, mut taken, mut called) = hand_on(&listener, &gateway, *to);
            let (mut served, relay) = server.accept().unwrap();
            assert_eq!(from.to_string(), neighbour, "the relay sees the client");
            assert_eq!(ip_of(relay), here.ip().to_string(), "the service sees the relay");
            assert!(hears(&mut client, &mut taken) && hears(&mut called, &mut served), "there");
            assert!(hears(&mut served, &mut called) && hears(&mut taken, &mut client), "and back");
            assert!(is_shut(&world.internet, &at(host, 8080)), "a stranger is not of `lan`");
            // A worker that was taken over: another port, another service that is exposed by itself, the outside.
            let mut shut = vec![SocketAddr::new(to.ip(), 4000)];
            shut.push(SocketAddr::new(
                world.orchestrator().plan_offline().unwrap().addresses.service("other").unwrap().v4.into(),
                80,
            ));
            shut.extend(["192.168.7.1:22", "203.0.113.10:80"].map(|at| at.parse::<SocketAddr>().unwrap()));
            let _near = listen(Some(&world.router), "192.168.7.1:22");
            let _far = listen(Some(&world.internet), "203.0.113.10:80");
            for to in shut {
                assert!(is_shut(&gateway, &to.to_string()), "the relay reaches {to}");
            }
            // Nor from the port that answers.
            let spoofed = gateway.run(move || {
                let socket = UdpSocket::bind((here.ip(), 8080))?;
                Ok(socket.send_to(b"unasked", "192.168.7.1:6000").is_ok() && here.is_ipv4())
            });
            assert!(spoofed.is_err() || spoofed.is_ok_and(|sent| !sent), "the relay speaks unasked");
        }
        assert_eq!(seen(&other, &world.internet, &at(HOST[0], 9000)), STRANGER[0]);
        // Nobody comes in past the relay.
        let rtl = relay.to[0];
        assert!(is_shut(&world.router, &rtl.to_string()));
        assert!(apply(world, RELAY, "").report.done.is_empty(), "a second apply has nothing to do");
        apply(world, RELAY, OFF);
        assert!(!world.options.netns.join("node+relay").exists(), "its gateway goes with it");
        assert!(is_shut(&world.router, &at(HOST[0], 8080)));
    });
}
