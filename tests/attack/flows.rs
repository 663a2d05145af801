//! Live flows of others: nobody ends, shrinks or redirects what is not its own.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use netns_policy::packet::build::{Icmp, flag};
use netns_policy::packet::{Ends, Packet};

use crate::arena::{Arena, BOTH, Ip};
use crate::common::{in_sandbox, ip, nft};
use crate::forged::dropped;
use crate::raw::{Sender, Sniffer};

/// Whom a story is about: who sends, as whom, about the flow of a to whom.
type Story = (&'static str, &'static str, &'static str);

/// Nobody of these is a party to the flow, or says who it is.
const STRANGERS: [Story; 10] = [
    ("e", "e", "b"),
    ("e", "b", "b"),
    ("c", "c", "b"),
    ("c", "b", "b"),
    ("f", "f", "b"),
    ("f", "b", "b"),
    ("d", "uplink", "b"),
    ("b", "b", "f"),
    ("b", "f", "f"),
    ("e", "f", "f"),
];

#[test]
fn only_the_peer_itself_can_break_a_flow_by_icmp() {
    in_sandbox(|| {
        let arena = Arena::make();
        let servers = ["b", "f"].map(|server| (server, arena.udp(server, 53)));
        for family in BOTH {
            let flows = servers.each_ref().map(|(server, socket)| Flow::begin(&arena, family, server, socket));
            for story in STRANGERS {
                let flow = flows.iter().find(|flow| flow.server == story.2).expect("a and each server talk");
                for (name, icmp) in errors(family) {
                    flow.tell(&arena, story, icmp);
                    let seen = flow.state(&arena);
                    println!(
                        "{name} by {} as {} about a -> {}: expected Whole, seen {seen:?}",
                        story.0, story.1, story.2
                    );
                    assert_eq!(seen, State::Whole, "{name}: {story:?}");
                }
            }
            // The same words, by the one who may say them.
            for flow in &flows {
                let [unreachable, big, _] = errors(family);
                for ((name, icmp), expected) in [(unreachable, State::Refused), (big, State::Shrunk)] {
                    flow.tell(&arena, (flow.server, flow.server, flow.server), icmp);
                    let seen = flow.state(&arena);
                    println!("{name} by {} about its own flow: expected {expected:?}, seen {seen:?}", flow.server);
                    assert_eq!(seen, expected, "{name}");
                }
            }
        }
    });
}

#[test]
fn a_connection_outlives_every_segment_of_a_stranger() {
    in_sandbox(|| {
        let arena = Arena::make();
        let listener = arena.listen("b", 80);
        for family in BOTH {
            let to = SocketAddr::new(arena.address(family, "b"), 80);
            let talk = Talk::begin(&arena, &listener, to);
            let stories = [("e", "b", "a"), ("e", "a", "b"), ("c", "a", "b"), ("f", "b", "a"), ("d", "uplink", "a")];
            for (from, source, dest) in stories {
                for flags in [flag::RST, flag::RST | flag::ACK, flag::FIN | flag::ACK, flag::SYN, flag::SYN | flag::ACK]
                {
                    talk.cut_in(&arena, (from, source, dest), flags);
                }
                assert!(talk.goes_on(), "segments by {from} as {source} to {dest}");
                println!("segments by {from} as {source} into a's connection: expected to go on, goes on");
            }
            // With the same numbers, by the one who may.
            talk.cut_in(&arena, ("b", "b", "a"), flag::RST);
            assert!(!talk.goes_on(), "the segments have not got the right numbers: nothing was tested");
            println!("the same by b itself: expected broken, broken");
        }
    });
}

/// The lock by itself, the panel standing open: of what conntrack calls related, a redirect is not let in.
#[test]
fn the_lock_lets_in_errors_about_a_flow_and_no_redirect() {
    in_sandbox(|| {
        let arena = Arena::make();
        let socket = arena.udp("b", 53);
        let flow = Flow::begin(&arena, Ip::V4, "b", &socket);
        let both = ["a", "b"].map(|from| {
            let to = if from == "a" { "b" } else { "a" };
            format!("chain {from} {{ type filter hook ingress device \"{from}\" priority 0; policy drop; fwd to \"{to}\"\n}}")
        });
        nft("node+fabric", &format!("flush ruleset\ntable netdev open {{ {}\n}}", both.join("\n")));
        let dropped = || dropped(&nft("node-a", "list chain inet nsctl input"));
        let before = dropped();
        let [(_, unreachable), _, (_, redirect)] = errors(Ip::V4);
        flow.tell(&arena, ("b", "b", "b"), redirect);
        assert_eq!(dropped(), before + 1, "a redirect is related to a flow, and came in");
        flow.tell(&arena, ("b", "b", "b"), unreachable);
        assert_eq!((flow.state(&arena), dropped()), (State::Refused, before + 1), "an error is related too, and may");
    });
}

/// Unreachable, too big, redirect.
fn errors(family: Ip) -> [(&'static str, Icmp); 3] {
    let icmp = |kind, code, rest| Icmp { kind, code, rest };
    match family {
        Ip::V4 => [
            ("port unreachable", icmp(3, 3, 0)),
            ("fragmentation needed", icmp(3, 4, 1300)),
            ("redirect", icmp(5, 1, 0x0ae7_0005)),
        ],
        Ip::V6 => {
            [("port unreachable", icmp(1, 4, 0)), ("packet too big", icmp(2, 0, 1300)), ("redirect", icmp(137, 0, 0))]
        }
    }
}

#[derive(Debug, Eq, PartialEq)]
enum State {
    /// Datagrams go there and back, and the path is as wide as it was.
    Whole,
    /// The client was told that nobody is there.
    Refused,
    /// The client takes the path for narrow.
    Shrunk,
}

/// A flow of a to udp/53 of a server.
struct Flow<'a> {
    family: Ip,
    server: &'static str,
    client: UdpSocket,
    answering: &'a UdpSocket,
}

impl<'a> Flow<'a> {
    fn begin(arena: &Arena, family: Ip, server: &'static str, answering: &'a UdpSocket) -> Self {
        let to = SocketAddr::new(arena.address(family, server), 53);
        let made = arena.netns("a").run(move || {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.connect(to)?;
            Ok(socket)
        });
        let client = made.expect("a has a socket");
        client.set_read_timeout(Some(Duration::from_millis(50))).expect("it is a socket");
        let flow = Self { family, server, client, answering };
        assert_eq!(flow.state(arena), State::Whole);
        flow
    }

    /// Sends an error about this flow to a.
    fn tell(&self, arena: &Arena, (from, source, _): Story, icmp: Icmp) {
        let port = self.client.local_addr().expect("it is bound").port();
        let inner: Ends = arena.ends(self.family, "a", self.server);
        let about = Packet::udp(inner, port, 53, b"question");
        let packet = Packet::icmp_error(arena.ends(self.family, source, "a"), icmp, &about);
        let sent = Sender::open(&arena.netns(from), "net0").send(packet.frame());
        sent.expect("a raw frame is sent");
        thread::sleep(Duration::from_millis(2));
    }

    fn state(&self, arena: &Arena) -> State {
        let route = ip(&format!("-n node-a route get {}", arena.address(self.family, self.server)));
        if route.contains(" mtu 1300") {
            return State::Shrunk;
        }
        let refused = |error: std::io::Error| {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
            State::Refused
        };
        let mut bytes = [0; 64];
        if let Err(error) = self.client.send(b"question") {
            return refused(error);
        }
        while let Ok((len, from)) = self.answering.recv_from(&mut bytes) {
            self.answering.send_to(&bytes[..len], from).expect("an answer to what was asked passes");
        }
        match self.client.recv(&mut bytes) {
            Ok(_) => State::Whole,
            Err(error) => refused(error),
        }
    }
}

/// A connection of a to b.
struct Talk {
    client: TcpStream,
    server: TcpStream,
    to: SocketAddr,
    at: [(&'static str, Sniffer); 2],
}

impl Talk {
    fn begin(arena: &Arena, listener: &TcpListener, to: SocketAddr) -> Self {
        let at = ["a", "b"].map(|place| (place, Sniffer::open(&arena.netns(place), "net0")));
        let client = arena.connect("a", to).expect("a -> b tcp/80 is declared");
        listener.set_nonblocking(false).expect("it is a socket");
        let (server, _) = listener.accept().expect("a has come");
        let talk = Self { client, server, to, at };
        assert!(talk.goes_on());
        talk
    }

    fn goes_on(&self) -> bool {
        let pairs = [(&self.client, &self.server), (&self.server, &self.client)];
        pairs.into_iter().all(|(mut from, mut to)| {
            to.set_read_timeout(Some(Duration::from_secs(2))).expect("it is a socket");
            from.write_all(b"still there").is_ok() && to.read_exact(&mut [0; 11]).is_ok()
        })
    }

    /// A segment into this connection, with the very number that `dest` waits for: more than a stranger could know.
    fn cut_in(&self, arena: &Arena, (from, source, dest): Story, flags: u8) {
        assert!(self.goes_on());
        // The last acknowledgment of `dest` may be a delayed one.
        thread::sleep(Duration::from_millis(60));
        let (_, sniffer) = self.at.iter().find(|(place, _)| *place == dest).expect("an end of it");
        let last = sniffer.take().left.pop().map(Packet::from_frame).expect("it acknowledges");
        let view = last.in_stack().expect("it is well formed");
        let awaited = view.transport(8, 4).expect("it is a segment");
        let port = self.client.local_addr().expect("it is connected").port();
        let (sport, dport) = if dest == "a" { (80, port) } else { (port, 80) };
        let family = if self.to.is_ipv4() { Ip::V4 } else { Ip::V6 };
        let segment = Packet::tcp(arena.ends(family, source, dest), sport, dport, flags);
        let frame = with_sequence(&segment, awaited);
        Sender::open(&arena.netns(from), "net0").send(&frame).expect("a raw frame is sent");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The same segment with another sequence number, and the checksum that goes with it (RFC 1624).
fn with_sequence(segment: &Packet, sequence: &[u8]) -> Vec<u8> {
    let view = segment.in_stack().expect("it is well formed");
    let at = segment.frame().len() - view.network.len() + view.transport.expect("it is a segment").offset;
    let mut frame = segment.frame().to_vec();
    let word = |bytes: &[u8]| u32::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    let mut sum = word(&frame[at + 16..]) ^ 0xffff;
    for half in [0, 2] {
        sum += (word(&frame[at + 4 + half..]) ^ 0xffff) + word(&sequence[half..]);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[at + 4..at + 8].copy_from_slice(sequence);
    frame[at + 16..at + 18].copy_from_slice(&(sum as u16 ^ 0xffff).to_be_bytes());
    frame
}
