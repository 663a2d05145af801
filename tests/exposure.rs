//! Ways in by a port of the host on a real kernel: who comes in by `expose.lan` and `expose.port`, whom the service sees,
//! and what a service that is exposed so may not do.

#![allow(clippy::disallowed_methods, reason = "ip, nft and sh are witnesses; a sandbox needs unshare")]

mod common;
#[path = "uplink/world.rs"]
#[allow(dead_code, reason = "the tests of the way out use the rest of it")]
mod world;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nsctl::Applied;
use nsctl::kernel::netns::Netns;

use common::in_sandbox;
use common::network::chain;
use world::{World, connect, listen, sh};

/// A neighbour, whom the word `lan` means, and somebody further away; both reach the host.
const HOST4: &str = "192.168.7.2";

fn policy(rtl: &str) -> String {
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
ports = {{ http = "tcp:80" }}
expose.port = {{ ports = {{ "9000" = "http" }} }}
"#
    )
}

const LAN: &str = "expose.lan = { ports = { \"8080\" = \"http\", \"5300\" = \"names\" } }";
const PORT: &str = "expose.port = { ports = { \"8080\" = \"http\", \"5300\" = \"names\" } }";

fn apply(world: &World, policy: &str) -> Applied {
    world.policy(policy);
    world.orchestrator().apply().unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// Listens in a service on every address.
fn serve(netns: &Netns, port: u16) -> std::net::TcpListener {
    listen(Some(netns), &format!("[::]:{port}"))
}

/// Connects from a namespace; who is seen by the listener.
fn seen_by(listener: &std::net::TcpListener, from: &Netns, to: &str) -> String {
    let mut client = connect(Some(from), to).unwrap_or_else(|e| panic!("{to}: {e}\n{}", sh("nft list ruleset")));
    let (mut server, peer) = listener.accept().expect("a connection");
    server.write_all(b"welcome").expect("an answer is sent");
    let mut answer = [0; 7];
    client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    client.read_exact(&mut answer).expect("an answer arrives");
    peer.ip().to_canonical().to_string()
}

/// Whether nobody lets it in: in time for a test, silence is told from an answer.
fn is_shut(from: &Netns, to: &str) -> bool {
    let to: SocketAddr = to.parse().expect("an address");
    from.run(move || Ok(TcpStream::connect_timeout(&to, Duration::from_millis(600)).is_err())).expect("a thread")
}

#[test]
fn a_neighbour_comes_in_by_lan_with_its_own_address_and_a_stranger_does_not() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        apply(world, &policy(LAN));
        let rtl = world.service("rtl");
        let server = serve(&rtl, 3000);
        let at = format!("{HOST4}:8080");
        assert_eq!(seen_by(&server, &world.router, &at), "192.168.7.1");
        assert!(is_shut(&world.internet, &at), "a stranger is not of `lan`");
        assert!(apply(world, &policy(LAN)).report.done.is_empty(), "a second apply has nothing to do");
        // The control: it is `lan` that keeps the stranger out.
        apply(world, &policy(PORT));
        assert_eq!(seen_by(&server, &world.internet, &at), "203.0.113.10");
        assert_eq!(seen_by(&server, &world.router, &at), "192.168.7.1");
    });
}
