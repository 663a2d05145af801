//! Who looks around sees its own edges and one answer for everything else.

use std::io::{Error, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::arena::{Arena, BOTH, Ears};
use crate::common::{in_sandbox, nft};

/// What a port scan learns about one port.
#[derive(Debug, Eq, PartialEq)]
enum Answer {
    Open,
    Refused(Option<i32>),
    Silent,
}

#[test]
fn what_is_not_allowed_looks_like_what_is_not_there() {
    in_sandbox(|| {
        let arena = Arena::make();
        let _ears = Ears::everywhere(&arena);
        scan(&arena, "asking its own lock");
        // Without the lock it is the panel that answers, where the kernel lets it.
        for from in ["a", "e"] {
            nft(&format!("node-{from}"), "flush ruleset");
        }
        scan(&arena, "its lock flushed");
    });
}

fn scan(arena: &Arena, what: &str) {
    for family in BOTH {
        for from in ["a", "e"] {
            let nobody = arena.nobody(family);
            let none = (tcp(arena, from, nobody, 80), udp(arena, from, nobody, 53));
            assert_eq!(none.0, Answer::Refused(Some(nix::libc::ECONNREFUSED)), "{what}");
            assert!(matches!(none.1, Answer::Refused(_)), "{what}: {none:?}");
            for (to, tcp_port, udp_port) in [("b", 443, 80), ("c", 80, 53), ("f", 80, 443), ("d", 9999, 9999)] {
                let address = arena.address(family, to);
                let seen = (tcp(arena, from, address, tcp_port), udp(arena, from, address, udp_port));
                assert_eq!(seen, none, "{what}: {from} tells {to} from nobody, {family:?}");
            }
            println!("{what}: {from} scans, {family:?}: expected one answer for all, seen {none:?}");
        }
        assert_eq!(tcp(arena, "a", arena.address(family, "b"), 80), Answer::Open, "an edge is an edge");
    }
}

fn tcp(arena: &Arena, from: &str, to: IpAddr, port: u16) -> Answer {
    let begun = Instant::now();
    let answer = match arena.connect(from, SocketAddr::new(to, port)) {
        Ok(_) => Answer::Open,
        Err(error) => refused(&error),
    };
    assert!(begun.elapsed() < Duration::from_millis(100), "a refusal comes at once");
    answer
}

fn udp(arena: &Arena, from: &str, to: IpAddr, port: u16) -> Answer {
    let asked = arena.netns(from).run(move || {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect((to, port))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        socket.send(b"anybody there?")?;
        socket.recv(&mut [0; 16])
    });
    asked.map_or_else(|error| refused(&error), |_| Answer::Open)
}

fn refused(error: &Error) -> Answer {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Answer::Silent,
        _ => Answer::Refused(error.raw_os_error()),
    }
}
