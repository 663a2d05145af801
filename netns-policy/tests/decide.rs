//! What was seen in a kernel with three services, said again by the oracle: a -> b tcp/80 and udp/53, c -> b tcp/81.
//!
//! Every "does not pass" has a twin of the same kind that passes, so that none is true for another reason.

use std::net::IpAddr;

use netns_policy::packet::build::{Ends, Icmp, flag};
use netns_policy::packet::{Extension, Packet, VLAN, VLAN_SERVICE};
use netns_policy::port::Protocol::{Tcp, Udp};
use netns_policy::ruleset::Reject;
use netns_policy::ruleset::decide::conntrack::{CtState, Tracked};
use netns_policy::ruleset::decide::walk::{Connections, Fate, Gate, Loss, Sender, World};
use recipe::{address4, address6};

#[allow(dead_code, reason = "the other tests use the rest of it")]
mod recipe;

const PLACES: [&str; 3] = ["a", "b", "c"];
const SYN_ACK: u8 = flag::SYN | flag::ACK;

fn world() -> World {
    recipe::world(&PLACES, &[("a", "b", Tcp, 80), ("a", "b", Udp, 53), ("c", "b", Tcp, 81)])
}

/// The ends of a packet in both families.
fn ends(from: &str, to: &str) -> [Ends; 2] {
    let pair = |from: IpAddr, to: IpAddr| Ends::new(from, to).unwrap();
    let address = |name| (address4(&PLACES, name).unwrap(), address6(&PLACES, name).unwrap());
    let ((from4, from6), (to4, to6)) = (address(from), address(to));
    [pair(from4.into(), to4.into()), pair(from6.into(), to6.into())]
}

/// One step of a conversation: from, to, packet.
type Step<'a> = (&'a str, &'a str, &'a dyn Fn(Ends) -> Packet);

/// How packets end that `from` makes for `to`: as a program and as root sends them, over IPv4 and over IPv6.
fn fates(from: &str, to: &str, connections: &Connections, packet: impl Fn(Ends) -> Packet) -> Vec<bool> {
    let world = world();
    let both = |ends: Ends| [Sender::Program, Sender::Root].map(|sender| (ends, sender));
    let carry = |(ends, sender)| {
        let walk = world.carry(from, &packet(ends), sender, connections);
        walk.fate == Fate::Delivered(to)
    };
    ends(from, to).into_iter().flat_map(both).map(carry).collect()
}

fn passes(from: &str, to: &str, connections: &Connections, packet: impl Fn(Ends) -> Packet) -> bool {
    let fates = fates(from, to, connections, packet);
    assert!(fates.iter().all(|fate| *fate == fates[0]), "families or senders differ: {fates:?}");
    fates[0]
}

fn none() -> Connections {
    Connections::new()
}

/// What the places hold after these packets went out, over both families, each as a program sends it.
fn after(steps: &[Step<'_>]) -> Connections {
    let (world, mut connections) = (world(), none());
    for (from, to, packet) in steps {
        for ends in ends(from, to) {
            let walk = world.send(from, &packet(ends), Sender::Program, &mut connections);
            assert_eq!(walk.fate, Fate::Delivered(to), "{from} to {to}: {:?}", walk.hops);
        }
    }
    connections
}

fn tcp(sport: u16, dport: u16, flags: u8) -> impl Fn(Ends) -> Packet {
    move |ends| Packet::tcp(ends, sport, dport, flags)
}

fn udp(sport: u16, dport: u16) -> impl Fn(Ends) -> Packet {
    move |ends| Packet::udp(ends, sport, dport, b"text")
}

#[test]
fn declared_flows_pass_both_ways() {
    let mut steps: Vec<Step<'_>> = Vec::new();
    let (syn, syn_ack, ack) = (tcp(40000, 80, flag::SYN), tcp(80, 40000, SYN_ACK), tcp(40000, 80, flag::ACK));
    steps.extend([("a", "b", &syn as &dyn Fn(Ends) -> Packet), ("b", "a", &syn_ack), ("a", "b", &ack)]);
    let (fin, answer) = (tcp(80, 40000, flag::FIN | flag::ACK), tcp(40000, 80, flag::ACK));
    steps.extend([("b", "a", &fin as &dyn Fn(Ends) -> Packet), ("a", "b", &answer)]);
    let (query, reply) = (udp(40001, 53), udp(53, 40001));
    steps.extend([("a", "b", &query as &dyn Fn(Ends) -> Packet), ("b", "a", &reply), ("a", "b", &query)]);
    after(&steps);
}

#[test]
fn undeclared_ports_pairs_and_directions_do_not() {
    assert!(passes("a", "b", &none(), tcp(40000, 80, flag::SYN)));
    assert!(!passes("a", "b", &none(), tcp(40000, 81, flag::SYN)));
    assert!(!passes("a", "b", &none(), tcp(40000, 53, flag::SYN)));
    assert!(!passes("a", "c", &none(), tcp(40000, 80, flag::SYN)));
    assert!(!passes("b", "a", &none(), tcp(40000, 80, flag::SYN)));
    assert!(passes("c", "b", &none(), tcp(40000, 81, flag::SYN)));
    assert!(!passes("c", "b", &none(), tcp(40000, 80, flag::SYN)));
    assert!(passes("a", "b", &none(), udp(40000, 53)));
    assert!(!passes("a", "b", &none(), udp(40000, 80)));
}

#[test]
fn the_clients_lock_refuses_first_and_the_panel_refuses_root() {
    let world = world();
    let [ends4, ends6] = ends("a", "b");
    let fate = |packet: Packet, sender| match world.carry("a", &packet, sender, &none()).fate {
        Fate::Refused(gate, reject) => (gate, reject),
        other => panic!("{other:?}"),
    };
    let syn = Packet::tcp(ends4, 40000, 443, flag::SYN);
    assert_eq!(fate(syn.clone(), Sender::Program), (Gate::SenderLock, Reject::TcpReset));
    assert_eq!(fate(syn, Sender::Root), (Gate::Panel, Reject::TcpReset));
    let query = |ends| Packet::udp(ends, 40000, 54, b"");
    assert_eq!(fate(query(ends4), Sender::Program), (Gate::SenderLock, Reject::IcmpxAdminProhibited));
    assert_eq!(fate(query(ends4), Sender::Root), (Gate::Panel, Reject::IcmpAdminProhibited));
    assert_eq!(fate(query(ends6), Sender::Root), (Gate::Panel, Reject::Icmp6AdminProhibited));
    // Never an answer to a reset: two refusals would talk for ever.
    let reset = Packet::tcp(ends4, 40000, 443, flag::RST);
    assert_eq!(world.carry("a", &reset, Sender::Root, &none()).fate, Fate::Dropped(Gate::Panel));
}

#[test]
fn a_walk_names_the_rule_and_the_element() {
    let world = world();
    let walk = world.carry("a", &Packet::tcp(ends("a", "b")[0], 40000, 80, flag::SYN), Sender::Program, &none());
    let gates: Vec<_> = walk.hops.iter().map(|hop| (hop.gate, hop.place)).collect();
    assert_eq!(gates[..1], [(Gate::SenderLock, "a")]);
    let panel = walk.hops.iter().find(|hop| hop.gate == Gate::Panel).unwrap();
    assert_eq!(panel.outcome.trace, [("i_a", 0), ("panel", 2), ("p4", 0)]);
    assert_eq!(panel.outcome.elements.len(), 1);
    assert_eq!(panel.outcome.elements[0].0, "fw4");
    assert_eq!(walk.hops.last().unwrap().place, "b");
}

#[test]
fn a_spoofed_source_is_dropped_silently() {
    let world = world();
    for (own, stolen) in ends("c", "b").into_iter().zip(ends("a", "b")) {
        let fate =
            |ends, port| world.carry("c", &Packet::tcp(ends, 40000, port, flag::SYN), Sender::Root, &none()).fate;
        assert_eq!(fate(own, 81), Fate::Delivered("b"));
        assert_eq!(fate(stolen, 80), Fate::Dropped(Gate::Panel));
        assert_eq!(fate(stolen, 81), Fate::Dropped(Gate::Panel));
    }
}

#[test]
fn a_server_opens_nothing_from_its_port() {
    let flow = after(&[("a", "b", &tcp(40000, 80, flag::SYN))]);
    assert!(passes("b", "a", &flow, tcp(80, 40000, SYN_ACK)));
    assert!(!passes("b", "a", &flow, tcp(80, 40001, flag::SYN)));
    assert!(!passes("b", "a", &none(), tcp(80, 40000, flag::SYN)));
    for flags in [SYN_ACK, flag::ACK, flag::RST, flag::FIN | flag::ACK, 0, flag::FIN | flag::PSH | flag::URG] {
        assert!(!passes("b", "a", &none(), tcp(80, 40000, flags)), "{flags:#x}");
    }
}

#[test]
fn unsolicited_datagrams_pass_the_panel_but_not_the_lock() {
    let world = world();
    for ends in ends("b", "a") {
        let fate = |connections: &Connections| {
            world.carry("b", &Packet::udp(ends, 53, 40000, b"text"), Sender::Root, connections).fate.clone()
        };
        let asked = after(&[("a", "b", &udp(40000, 53))]);
        assert_eq!(fate(&none()), Fate::Dropped(Gate::ReceiverLock));
        assert_eq!(fate(&asked), Fate::Delivered("a"));
    }
}

#[test]
fn a_segment_in_the_middle_of_nothing_is_invalid() {
    let flow = after(&[("a", "b", &tcp(40000, 80, flag::SYN)), ("b", "a", &tcp(80, 40000, SYN_ACK))]);
    assert!(passes("a", "b", &flow, tcp(40000, 80, flag::ACK)));
    assert!(!passes("a", "b", &none(), tcp(40000, 80, flag::ACK)));
    assert!(!passes("a", "b", &flow, tcp(40001, 80, flag::ACK)));
    assert!(!passes("a", "b", &flow, tcp(40000, 80, flag::SYN | flag::FIN)));
}

#[test]
fn echo_passes_on_declared_pairs_and_nowhere_else() {
    assert!(passes("a", "b", &none(), |ends| Packet::echo_request(ends, 7)));
    assert!(!passes("b", "a", &none(), |ends| Packet::echo_request(ends, 7)));
    assert!(!passes("a", "c", &none(), |ends| Packet::echo_request(ends, 7)));
    let asked = after(&[("a", "b", &|ends| Packet::echo_request(ends, 7))]);
    assert!(passes("b", "a", &asked, |ends| Packet::echo_reply(ends, 7)));
    assert!(!passes("b", "a", &asked, |ends| Packet::echo_reply(ends, 8)));
    assert!(!passes("b", "a", &none(), |ends| Packet::echo_reply(ends, 7)));
}

/// "Destination unreachable", code "port unreachable", about a packet.
fn unreachable(about: impl Fn(bool) -> Packet) -> impl Fn(Ends) -> Packet {
    move |ends| {
        let v4 = ends.icmp() == 1;
        let icmp = if v4 { Icmp { kind: 3, code: 3, rest: 0 } } else { Icmp { kind: 1, code: 4, rest: 0 } };
        Packet::icmp_error(ends, icmp, &about(v4))
    }
}

fn ends_of(v4: bool, from: &str, to: &str) -> Ends {
    ends(from, to)[usize::from(!v4)]
}

#[test]
fn an_error_passes_if_it_is_about_an_open_declared_flow_of_its_receiver() {
    let flow = after(&[("a", "b", &udp(40000, 53))]);
    let about = |from: &'static str, to: &'static str, sport: u16, dport: u16| {
        unreachable(move |v4| Packet::udp(ends_of(v4, from, to), sport, dport, b"text"))
    };
    assert!(passes("b", "a", &flow, about("a", "b", 40000, 53)));
    // Closed, another client port, an undeclared port, a flow of the receiver with somebody else.
    assert!(!passes("b", "a", &none(), about("a", "b", 40000, 53)));
    assert!(!passes("b", "a", &flow, about("a", "b", 40001, 53)));
    assert!(!passes("b", "a", &flow, about("a", "b", 40000, 54)));
    assert!(!passes("c", "a", &flow, about("a", "b", 40000, 53)));
    let foreign = after(&[("c", "b", &tcp(40000, 81, flag::SYN))]);
    let about_c = unreachable(|v4| Packet::tcp(ends_of(v4, "c", "b"), 40000, 81, flag::SYN));
    assert!(passes("b", "c", &foreign, &about_c));
    assert!(!passes("b", "a", &foreign, &about_c));
}

#[test]
fn a_client_may_say_that_its_port_is_closed_meanwhile() {
    let flow = after(&[("a", "b", &udp(40000, 53)), ("b", "a", &udp(53, 40000))]);
    let closed = unreachable(|v4| Packet::udp(ends_of(v4, "b", "a"), 53, 40000, b"text"));
    assert!(passes("a", "b", &flow, &closed));
    assert!(!passes("a", "b", &none(), &closed));
    assert!(!passes("c", "b", &flow, &closed));
}

#[test]
fn a_redirect_never_passes() {
    let flow = after(&[("a", "b", &udp(40000, 53))]);
    let error = |kind: u8| {
        let original = Packet::udp(ends("a", "b")[0], 40000, 53, b"text");
        let packet = Packet::icmp_error(ends("b", "a")[0], Icmp { kind, code: 1, rest: 0 }, &original);
        world().carry("b", &packet, Sender::Root, &flow).is_delivered()
    };
    assert!(error(3) && error(11));
    assert!(!error(4) && !error(5) && !error(12));
}

#[test]
fn fragments_do_not_pass() {
    let part = |first: bool| {
        move |ends: Ends| {
            let (head, tail) = Packet::udp(ends, 40000, 53, &[0; 64]).fragments(32).unwrap();
            if first { head } else { tail }
        }
    };
    assert!(passes("a", "b", &none(), |ends| Packet::udp(ends, 40000, 53, &[0; 64])));
    assert!(!passes("a", "b", &none(), part(true)));
    assert!(!passes("a", "b", &none(), part(false)));
    let world = world();
    for ends in ends("a", "b") {
        let fate = |first| world.carry("a", &part(first)(ends), Sender::Root, &none()).fate;
        assert_eq!(fate(true), Fate::Lost(Loss::HeldForReassembly));
        assert_eq!(fate(false), Fate::Dropped(Gate::Panel));
    }
}

#[test]
fn tags_do_not_pass() {
    let syn = tcp(40000, 80, flag::SYN);
    assert!(passes("a", "b", &none(), &syn));
    for tpid in [VLAN, VLAN_SERVICE] {
        for tci in [0, 7] {
            assert!(!passes("a", "b", &none(), |ends| syn(ends).tagged(tpid, tci)), "{tpid:#x} {tci}");
        }
    }
    assert!(!passes("a", "b", &none(), |ends| syn(ends).tagged(VLAN, 1).tagged(VLAN, 2)));
}

#[test]
fn routing_headers_do_not_pass_and_other_extension_headers_hide_nothing() {
    let world = world();
    let [_, ends] = ends("a", "b");
    let with = |extension, port| {
        let packet = Packet::tcp(ends, 40000, port, flag::SYN).with_extension(extension).unwrap();
        world.carry("a", &packet, Sender::Root, &none()).is_delivered()
    };
    for extension in [Extension::HopByHop, Extension::Destination, Extension::AtomicFragment] {
        assert!(with(extension, 80), "{extension:?}");
        assert!(!with(extension, 443), "{extension:?}");
    }
    assert!(!with(Extension::Routing, 80));
    assert!(!with(Extension::Authentication, 80));
}

#[test]
fn other_protocols_and_frames_do_not_pass() {
    let syn = tcp(40000, 80, flag::SYN);
    let world = world();
    for protocol in [4, 41, 47, 50, 51, 132, 253] {
        assert!(!passes("a", "b", &none(), |ends| Packet::ip(ends, protocol, &syn(ends).frame()[34..])), "{protocol}");
    }
    let [ends4, ends6] = ends("a", "b");
    let arp = Packet::arp_request([10, 203, 0, 1].into(), [10, 203, 0, 2].into());
    let swapped = Packet::ethernet(0x86dd, &[&syn(ends4).frame()[14..]]);
    let wrong = Packet::ethernet(0x0800, &[&syn(ends6).frame()[14..]]);
    for frame in [arp, swapped, wrong, Packet::ethernet(0x88cc, &[&[0; 40]]), Packet::from_frame([0; 13])] {
        assert!(!world.carry("a", &frame, Sender::Root, &none()).is_delivered(), "{frame:?}");
    }
}

#[test]
fn without_rules_nothing_passes() {
    let mut world = world();
    let syn = Packet::tcp(ends("a", "b")[0], 40000, 80, flag::SYN);
    assert!(world.carry("a", &syn, Sender::Root, &none()).is_delivered());
    world.fabric.tables.clear();
    assert_eq!(world.carry("a", &syn, Sender::Root, &none()).fate, Fate::Lost(Loss::EndsInFabric));
    assert_eq!(world.carry("nobody", &syn, Sender::Root, &none()).fate, Fate::Lost(Loss::NoSuchPlace));
}

#[test]
fn connection_tracking_follows_a_flow() {
    let [ends4, _] = ends("a", "b");
    let back = ends4.reversed();
    let mut tracked = Tracked::default();
    let packet = |ends, sport, dport, flags| Packet::tcp(ends, sport, dport, flags);
    let (syn, syn_ack) = (packet(ends4, 1, 80, flag::SYN), packet(back, 80, 1, SYN_ACK));
    assert_eq!(tracked.classify(&syn), Some(CtState::original(CtState::NEW)));
    assert_eq!(tracked.classify(&syn_ack), None);
    tracked.record(&syn);
    assert_eq!(tracked.classify(&syn), Some(CtState::original(CtState::NEW)));
    assert_eq!(tracked.classify(&packet(ends4, 1, 80, flag::ACK)), None);
    assert_eq!(tracked.classify(&syn_ack), Some(CtState::reply(CtState::ESTABLISHED)));
    tracked.record(&syn_ack);
    assert_eq!(tracked.classify(&packet(ends4, 1, 80, flag::ACK)), Some(CtState::original(CtState::ESTABLISHED)));
    assert_eq!(tracked.classify(&packet(back, 80, 1, flag::SYN)), None);
    let error = Packet::icmp_error(back, Icmp { kind: 3, code: 1, rest: 0 }, &syn);
    assert_eq!(tracked.classify(&error).map(|ct| ct.state), Some(CtState::RELATED));
    let elsewhere = Ends::new(back.from(), [10, 203, 0, 9].into()).unwrap();
    let error = Packet::icmp_error(elsewhere, Icmp { kind: 3, code: 1, rest: 0 }, &syn);
    assert_eq!(tracked.classify(&error), None);
}

#[test]
fn neighbour_discovery_is_never_tracked() {
    let [_, ends6] = ends("a", "b");
    let advertisement = Packet::icmp(ends6, Icmp { kind: 136, code: 0, rest: 0 }, &[0; 16]);
    assert_eq!(Tracked::default().classify(&advertisement), Some(CtState::original(CtState::UNTRACKED)));
}

fn both(mut holds: impl FnMut(Ends) -> bool) -> bool {
    let [v4, v6] = ends("a", "b");
    let (four, six) = (holds(v4), holds(v6));
    assert_eq!(four, six, "the families differ");
    four
}

#[test]
fn a_datagram_that_lies_about_its_length_opens_nothing() {
    let delivered = |ends: Ends, length: u8| {
        let mut frame = Packet::udp(ends, 40000, 53, b"text").frame().to_vec();
        let at = frame.len() - 4 - 3;
        frame[at] = length;
        world().carry("a", &Packet::from_frame(frame), Sender::Root, &none()).is_delivered()
    };
    assert!(both(|ends| delivered(ends, 12)) && both(|ends| delivered(ends, 8)));
    assert!(!both(|ends| delivered(ends, 13)) && !both(|ends| delivered(ends, 7)));
}

#[test]
fn options_that_nobody_reads_and_source_routes_end_at_the_receiver() {
    let [v4, _] = ends("a", "b");
    let fate = |options: &[u8]| {
        let packet = Packet::udp(v4, 40000, 53, b"text").with_options(options).unwrap();
        world().carry("a", &packet, Sender::Root, &none()).fate == Fate::Delivered("b")
    };
    assert!(fate(&[7, 7, 4, 0, 0, 0, 0]));
    assert!(!fate(&[7, 39, 4, 0]));
    assert!(!fate(&[131, 7, 4, 169, 254, 169, 254]));
}

#[test]
fn a_frame_for_another_machine_is_not_received() {
    let delivered = |ends: Ends, mac: [u8; 6]| {
        let mut frame = Packet::udp(ends, 40000, 53, b"text").frame().to_vec();
        frame[..6].copy_from_slice(&mac);
        world().carry("a", &Packet::from_frame(frame), Sender::Root, &none()).is_delivered()
    };
    assert!(both(|ends| delivered(ends, [0xff; 6])));
    assert!(!both(|ends| delivered(ends, [2, 0, 0, 0, 0, 2])));
}

#[test]
fn connection_tracking_takes_the_fragment_header_of_a_whole_datagram_off() {
    let [v4, v6] = ends("a", "b");
    let plain = Packet::udp(v6, 40000, 53, b"text and more text");
    for before in [None, Some(Extension::Destination)] {
        let dressed = |packet: &Packet| before.map_or(packet.clone(), |header| packet.with_extension(header).unwrap());
        let fragment = dressed(&plain.with_extension(Extension::AtomicFragment).unwrap());
        assert_eq!(fragment.defragmented(), dressed(&plain));
    }
    let (head, tail) = plain.fragments(8).unwrap();
    for other in [head, tail, plain, Packet::udp(v4, 40000, 53, b"text")] {
        assert_eq!(other.defragmented(), other);
    }
}

#[test]
fn a_reset_before_any_answer_ends_the_flow_whatever_becomes_of_it() {
    let reset = tcp(40000, 80, flag::RST);
    let answer = tcp(80, 40000, SYN_ACK);
    let opened = after(&[("a", "b", &tcp(40000, 80, flag::SYN))]);
    assert!(passes("b", "a", &opened, &answer));
    let ended = after(&[("a", "b", &tcp(40000, 80, flag::SYN)), ("a", "b", &reset)]);
    assert!(!passes("b", "a", &ended, &answer));
    // With options that b's IP stack drops, b's connection tracking has seen it all the same.
    let mut seen = opened;
    let [v4, _] = ends("a", "b");
    let packet = reset(v4).with_options(&[7, 39, 4, 0]).unwrap();
    assert!(!world().send("a", &packet, Sender::Root, &mut seen).is_delivered());
    assert_eq!(seen["b"].classify(&reset(v4)), None, "a reset opens nothing");
}

#[test]
fn connection_tracking_reads_behind_an_authentication_header() {
    let [_, v6] = ends("a", "b");
    let hidden = |packet: Packet| packet.with_extension(Extension::Authentication).unwrap();
    let tracked = Tracked::default();
    let state = |packet: Packet| tracked.classify(&hidden(packet)).map(|ct| ct.state);
    assert_eq!(state(Packet::tcp(v6, 40000, 80, flag::SYN)), Some(CtState::NEW));
    assert_eq!(state(Packet::tcp(v6, 40000, 80, flag::ACK)), None);
    assert_eq!(tracked.classify(&Packet::ip(v6, 59, b"")), None, "a header says that none follows");
}
