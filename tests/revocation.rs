//! A right that is taken away is gone at once, whoever is talking; and nobody else notices.

mod common;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use common::in_sandbox;
use common::network::{NEVER, Network, SOON, replaced};
use common::talk::{Speaker, Talk};
use netns_policy::plan::Plan;
use nsctl::internet::Internet;

/// The one edge that goes is `web -> db:sql`, or what a test puts in its place.
const POLICY: &str = r#"
schema = 1
[network]
name = "r"
[service.db]
ports = { sql = "tcp:5432", more = "tcp:5433", time = "udp:123", late = "udp:124", few = "tcp:7000-7003", many = "tcp:2000-2199" }
[service.web]
outbound = "direct"
connect.db = ["sql", "more", "time", "late"]
[service.other]
outbound = "direct"
connect.db = ["sql", "time"]
[host]
may_connect.db = ["sql", "more"]
accepts = { backup = { port = "tcp:8000", from = ["db"] }, other = { port = "tcp:8001", from = ["db"] } }
"#;

const WEB: &str = "connect.db = [\"sql\", \"more\", \"time\", \"late\"]";

fn applied() -> Network {
    let network = Network::new("revocation", POLICY);
    network.apply();
    network
}

fn assert_dead(talk: &Talk, what: &str) {
    assert_eq!(talk.heard_from_now(), 0, "{what} is heard on");
    if let Some(death) = talk.death() {
        let ends = [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused, ErrorKind::BrokenPipe];
        let ends = ends.contains(&death) || matches!(death, ErrorKind::PermissionDenied | ErrorKind::HostUnreachable);
        assert!(ends, "{what} ended by {death:?}");
    }
}

fn assert_alive(talk: &Talk, what: &str) {
    assert!(talk.goes_on() && talk.death().is_none(), "{what} does not go on: {:?}", talk.death());
}

/// The lines of conntrack(8) at `place` about the connection that came from this port, of either family.
fn tracked(network: &Network, place: &str, talk: &Talk) -> usize {
    let families = ["ipv4", "ipv6"].map(|family| network.witness(place, &format!("conntrack -L -f {family}")));
    let from = format!(" sport={} ", talk.client_port);
    families.iter().flat_map(|lines| lines.lines()).filter(|line| line.contains(&from)).count()
}

#[test]
fn an_edge_that_goes_takes_its_connections_and_no_others() {
    in_sandbox(|| {
        let network = applied();
        let (mut gone, mut stay) = (Vec::new(), Vec::new());
        for address in network.addresses("db") {
            for speaker in [Speaker::Client, Speaker::Server] {
                let tcp = |from, port| Talk::tcp(&network, from, ("db", address, port), speaker);
                gone.push((format!("tcp over {address}, {speaker:?} speaks"), "web", tcp("web", 5432)));
                stay.push((format!("another port over {address}, {speaker:?} speaks"), "web", tcp("web", 5433)));
                stay.push((format!("another client over {address}, {speaker:?} speaks"), "other", tcp("other", 5432)));
                stay.push((format!("the host over {address}, {speaker:?} speaks"), "host", tcp("host", 5432)));
            }
            let udp = |from, port| Talk::udp(&network, from, ("db", address, port));
            gone.push((format!("udp over {address}"), "web", udp("web", 123)));
            stay.push((format!("another udp port over {address}"), "web", udp("web", 124)));
        }
        for (what, from, talk) in gone.iter().chain(&stay) {
            assert_alive(talk, what);
            assert_eq!((tracked(&network, from, talk), tracked(&network, "db", talk)), (1, 1), "{what}");
        }
        network.change(&replaced(POLICY, WEB, "connect.db = [\"more\", \"late\"]"));
        for (what, _, talk) in &gone {
            assert_dead(talk, what);
            assert_eq!((tracked(&network, "web", talk), tracked(&network, "db", talk)), (0, 0), "{what}");
        }
        for (what, from, talk) in &stay {
            assert_alive(talk, what);
            assert_eq!((tracked(&network, from, talk), tracked(&network, "db", talk)), (1, 1), "{what}");
        }
        // Whoever speaks on a connection that is no more is told so, by its own lock.
        let tcp = gone.iter().filter(|(what, _, _)| what.starts_with("tcp"));
        for (what, _, talk) in tcp {
            assert_eq!(talk.death(), Some(ErrorKind::ConnectionReset), "{what}");
        }
        let all = gone.into_iter().chain(stay);
        all.for_each(|(_, _, talk)| talk.end());

        network.change(POLICY);
        for address in network.addresses("db") {
            let again = Talk::tcp(&network, "web", ("db", address, 5432), Speaker::Server);
            assert_alive(&again, "an edge that came back");
            again.end();
        }
    });
}

#[test]
fn an_edge_of_the_host_goes_like_any_other() {
    in_sandbox(|| {
        let network = applied();
        for speaker in [Speaker::Client, Speaker::Server] {
            network.apply();
            let (db, host) = (network.v4("db"), network.v4("host"));
            let gone = Talk::tcp(&network, "host", ("db", db, 5432), speaker);
            let stays = Talk::tcp(&network, "host", ("db", db, 5433), speaker);
            let calls = Talk::tcp(&network, "db", ("host", host, 8000), speaker);
            let still_calls = Talk::tcp(&network, "db", ("host", host, 8001), speaker);
            [&gone, &stays, &calls, &still_calls]
                .into_iter()
                .for_each(|talk| assert_alive(talk, "an edge of the host"));
            let less = replaced(POLICY, "may_connect.db = [\"sql\", \"more\"]", "may_connect.db = [\"more\"]");
            network.change(&replaced(&less, "backup = { port = \"tcp:8000\", from = [\"db\"] }, ", ""));
            assert_dead(&gone, "host -> db");
            assert_dead(&calls, "db -> host");
            assert_alive(&stays, "another port from the host");
            assert_alive(&still_calls, "another port of the host");
            for place in ["host", "db"] {
                let left = [&gone, &calls].map(|talk| tracked(&network, place, talk));
                assert_eq!(left, [0, 0], "in {place}");
            }
            [gone, stays, calls, still_calls].into_iter().for_each(Talk::end);
            network.change(POLICY);
        }
    });
}

/// A connection to a listener on the internet.
fn out(network: &Network, internet: &Internet, from: &str, at: IpAddr, speaker: Speaker) -> Talk {
    let at = SocketAddr::new(at, 443);
    let listener = internet.netns().run(move || TcpListener::bind(at)).unwrap();
    let client = network.connect(from, at, SOON).unwrap_or_else(|error| panic!("{from} -> {at}: {error}"));
    Talk::over(client, listener.accept().unwrap().0, speaker)
}

#[test]
fn a_way_out_that_goes_takes_its_connections_and_no_others() {
    in_sandbox(|| {
        let internet = Internet::make().unwrap();
        let network = applied();
        for speaker in [Speaker::Client, Speaker::Server] {
            for at in internet.wan() {
                network.change(POLICY);
                let gone = out(&network, &internet, "web", at, speaker);
                let stays = out(&network, &internet, "other", at, speaker);
                let inside = Talk::tcp(&network, "web", ("db", network.v4("db"), 5432), speaker);
                [&gone, &stays, &inside].into_iter().for_each(|talk| assert_alive(talk, "before"));
                network.change(&replaced(POLICY, &format!("outbound = \"direct\"\n{WEB}"), WEB));
                assert_dead(&gone, &format!("web to {at}, {speaker:?} speaks"));
                assert_alive(&stays, &format!("other to {at}, {speaker:?} speaks"));
                assert_alive(&inside, "web to db");
                assert_eq!(tracked(&network, "web", &gone) + tracked(&network, "uplink", &gone), 0);
                assert_eq!(tracked(&network, "uplink", &stays), 1);
                let refused = network.connect("web", SocketAddr::new(at, 443), NEVER);
                assert!(refused.is_err(), "a new connection to {at}");
                [gone, stays, inside].into_iter().for_each(Talk::end);
            }
        }
    });
}

#[test]
fn a_service_that_goes_takes_its_connections_and_no_others() {
    in_sandbox(|| {
        let network = applied();
        let db = network.v4("db");
        for speaker in [Speaker::Client, Speaker::Server] {
            let gone = Talk::tcp(&network, "other", ("db", db, 5432), speaker);
            let stays = Talk::tcp(&network, "web", ("db", db, 5432), speaker);
            let old = "[service.other]\noutbound = \"direct\"\nconnect.db = [\"sql\", \"time\"]\n";
            network.change(&replaced(POLICY, old, ""));
            assert_dead(&gone, "a connection of a service that is no more");
            assert_alive(&stays, "a connection of another service");
            assert_eq!(tracked(&network, "db", &gone), 0);
            [gone, stays].into_iter().for_each(Talk::end);
            network.change(POLICY);
        }
    });
}

#[test]
fn a_connection_whose_right_is_written_otherwise_lives_on() {
    in_sandbox(|| {
        let with = |ports: &str| replaced(POLICY, WEB, &format!("connect.db = [{ports}]"));
        let network = Network::new("revocation", &with("\"tcp:2050\", \"tcp:7001\""));
        network.apply();
        let db = network.v4("db");
        for speaker in [Speaker::Client, Speaker::Server] {
            let large = Talk::tcp(&network, "web", ("db", db, 2050), speaker);
            let small = Talk::tcp(&network, "web", ("db", db, 7001), speaker);
            for ports in ["\"many\", \"few\"", "\"tcp:2050-2150\", \"tcp:7001-7002\"", "\"tcp:2050\", \"tcp:7001\""] {
                network.change(&with(ports));
                assert_alive(&large, ports);
                assert_alive(&small, ports);
            }
            network.change(&with("\"tcp:2051-2199\", \"tcp:7002\""));
            assert_dead(&large, "a range beside");
            assert_dead(&small, "a port beside");
            assert_eq!(network.plan(), Plan::default());
            [large, small].into_iter().for_each(Talk::end);
            network.change(&with("\"tcp:2050\", \"tcp:7001\""));
        }
    });
}

/// What was open before an edge went must not come back to life with it, nor with the same ports.
#[test]
fn a_revoked_connection_stays_dead_when_its_edge_comes_back() {
    in_sandbox(|| {
        let network = applied();
        let at = SocketAddr::new(network.v4("db"), 5432);
        let listener = network.listen("db", at.ip(), at.port());
        let client: TcpStream = network.connect("web", at, SOON).unwrap();
        let (server, _) = listener.accept().unwrap();
        network.change(&replaced(POLICY, WEB, "connect.db = [\"more\"]"));
        network.change(POLICY);
        let talk = Talk::over(client, server, Speaker::Server);
        assert_dead(&talk, "an idle connection over a revocation");
        talk.end();
    });
}
