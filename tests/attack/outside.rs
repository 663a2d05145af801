//! What a way out, a container on the host and a stranger on the network do not open.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use netns_policy::packet::build::flag;
use netns_policy::packet::{Ends, Packet};

use crate::arena::{Arena, BOTH, Ears, Ip};
use crate::common::{in_sandbox, ip, netns, nft};
use crate::raw::{Sender, Sniffer};

#[test]
fn direct_reaches_the_public_internet_and_nothing_else() {
    in_sandbox(|| {
        let arena = Arena::make();
        let ears = Ears::everywhere(&arena);
        let outside = listening(&arena);
        nft("node-d", "flush ruleset");
        for there in arena.internet.wan() {
            assert!(arena.connect("d", SocketAddr::new(there, 80)).is_ok(), "d -> {there} is declared");
            assert!(outside.accept().is_ok(), "{there}");
            println!("d -> {there}: expected open, seen open");
        }
        let mut closed = arena.internet.lan();
        // Metadata, the first router (it is on the link of the host), the host itself, the leg, the gateway.
        for text in ["169.254.169.254", "198.51.100.1", "198.51.100.2", "2001:db8:1::1", "2001:db8:1::2"] {
            closed.push(text.parse().expect("constant"));
        }
        for family in BOTH {
            closed.extend(
                ["leg of the host", "leg of the uplink", "host", "uplink", "b"].map(|n| arena.address(family, n)),
            );
        }
        for there in closed {
            let seen = arena.connect("d", SocketAddr::new(there, 80));
            assert!(seen.is_err(), "d -> {there} is open");
            let refusal = seen.expect_err("it is closed").kind();
            println!("d -> {there}: expected closed at once, seen {refusal:?}");
            assert_eq!(refusal, std::io::ErrorKind::ConnectionRefused, "d -> {there} is refused at once");
        }
        assert!(outside.accept().is_err() && ears.accepted().is_empty());
    });
}

/// What comes out on the internet's side, sent by d as root: never with a source of ours, never for a private place.
#[test]
fn nothing_leaves_under_another_name() {
    in_sandbox(|| {
        let arena = Arena::make();
        let internet = arena.internet.netns().try_clone().expect("a handle");
        let sniffer = Sniffer::open(&internet, "eth0");
        let sender = Sender::open(&arena.netns("d"), "net0");
        for family in BOTH {
            let there =
                arena.internet.wan().into_iter().find(|a| a.is_ipv4() == (family == Ip::V4)).expect("it has both");
            let ends = |from, to| Ends::new(from, to).expect("of one family");
            let own = arena.address(family, "d");
            sender.send(Packet::udp(ends(own, there), 4000, 53, b"by d").frame()).expect("sent");
            for source in ["a", "host", "uplink", "leg of the uplink"] {
                let forged = ends(arena.address(family, source), there);
                sender.send(Packet::udp(forged, 4000, 53, b"forged").frame()).expect("sent");
            }
            for to in ["198.51.100.1", "169.254.169.254", "192.168.1.5", "2001:db8:1::1"] {
                let to: IpAddr = to.parse().expect("constant");
                if to.is_ipv4() == own.is_ipv4() {
                    sender.send(Packet::udp(ends(own, to), 4000, 53, b"forged").frame()).expect("sent");
                    sender.send(Packet::tcp(ends(own, to), 4000, 80, flag::SYN).frame()).expect("sent");
                }
            }
            std::thread::sleep(Duration::from_millis(50));
            let arrived: Vec<Packet> = sniffer.take().arrived.into_iter().map(Packet::from_frame).collect();
            let sources: Vec<_> =
                arrived.iter().filter_map(|p| p.at_ingress()?.ends()).map(|e| (e.from(), e.to())).collect();
            let host: IpAddr = if own.is_ipv4() { "198.51.100.2" } else { "2001:db8:1::2" }.parse().expect("constant");
            let ours: Vec<_> = sources.iter().filter(|(_, to)| !to.is_multicast()).collect();
            assert_eq!(ours, [&(host, there)], "one datagram of d, under the host's name");
            println!("d sends as others and to private places, {family:?}: expected 1 datagram outside, seen {ours:?}");
        }
    });
}

#[test]
fn a_container_behind_the_host_does_not_inherit_its_edges() {
    in_sandbox(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("the sandbox's own");
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("the sandbox's own");
        let arena = Arena::make();
        let ears = Ears::everywhere(&arena);
        container();
        let outside = listening(&arena);
        for there in arena.internet.wan() {
            assert!(from_box(SocketAddr::new(there, 80)).is_ok(), "the container goes out to {there}, masqueraded");
            assert!(outside.accept().is_ok());
        }
        for family in BOTH {
            let b = SocketAddr::new(arena.address(family, "b"), 80);
            assert!(arena.connect("host", b).is_ok() && ears.accepted() == [("b", 80)], "the host has an edge");
            let on_wire = Sniffer::open(&arena.netns("b"), "net0");
            let try_it = |what: &str| {
                let seen = from_box(b).expect_err("the container has no edge").kind();
                // Not even a first packet, which would be all that a datagram needs.
                let arrived = on_wire.take().arrived;
                assert!(arrived.is_empty() && ears.accepted().is_empty(), "{what}: {arrived:?}");
                println!("container -> b tcp/80, {what}, {family:?}: expected nothing, seen {seen:?}");
            };
            try_it("masqueraded");
            // A route of the host's own making into the fabric, which a container cannot set, does not open it either.
            ip(&format!("route add {} dev node+host src {}", b.ip(), arena.address(family, "host")));
            try_it("with a route in the main table");
            ip(&format!("route del {} dev node+host", b.ip()));
            as_the_host(&arena, &ears, family);
        }
    });
}

/// Frames of the container that say they come from the host or a service.
fn as_the_host(arena: &Arena, ears: &Ears, family: Ip) {
    let sniffers = ["a", "b"].map(|place| Sniffer::open(&arena.netns(place), "net0"));
    let sender = Sender::open(&netns("box"), "eth0");
    for source in ["host", "a", "leg of the uplink", "leg of the host"] {
        for to in ["b", "a", "uplink"] {
            let packet = Packet::udp(arena.ends(family, source, to), 4000, 53, b"forged");
            sender.send(packet.frame()).expect("sent");
            let packet = Packet::tcp(arena.ends(family, source, to), 4000, 80, flag::SYN);
            sender.send(packet.frame()).expect("sent");
        }
    }
    std::thread::sleep(Duration::from_millis(20));
    let arrived: usize = sniffers.iter().map(|sniffer| sniffer.take().arrived.len()).sum();
    assert_eq!((arrived, ears.heard()), (0, vec![]), "{family:?}");
    println!("container as the host or a service, {family:?}: expected nothing, seen nothing");
}

/// A namespace behind the host, as a container engine makes them: a wire, a route, a masquerade.
fn container() {
    ip("netns add box");
    ip("netns add bridge");
    ip("link add veth-box address 02:00:00:00:00:01 type veth peer name eth0 address 02:00:00:00:00:01 netns box");
    for (netns, link, addresses) in
        [("", "veth-box", ["172.17.0.1/24", "fd99::1/64"]), ("-n box", "eth0", ["172.17.0.2/24", "fd99::2/64"])]
    {
        ip(&format!("{netns} link set {link} arp off"));
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            ip(&format!("{netns} address add {address} dev {link} {nodad}"));
        }
        ip(&format!("{netns} link set {link} up"));
        ip(&format!("{netns} link show {link}"));
    }
    ip("-n box route add default via 172.17.0.1");
    ip("-n box -6 route add default via fd99::1");
    masquerade();
}

/// What a container engine, an operator's own script or a home router's manual puts on the host.
fn masquerade() {
    ip(&format!("netns attach machine {}", std::process::id()));
    let rules = |family, prefix| {
        let hook = "type nat hook postrouting priority 100; policy accept;";
        format!(
            "table {family} engine {{ chain post {{ {hook} {family} saddr {prefix} oifname != \"veth-box\" masquerade\n}}\n}}\n"
        )
    };
    nft("machine", &(rules("ip", "172.17.0.0/16") + &rules("ip6", "fd99::/64")));
}

fn from_box(to: SocketAddr) -> std::io::Result<TcpStream> {
    netns("box").run(move || TcpStream::connect_timeout(&to, Duration::from_millis(300)))
}

/// Port 80 of everything on the internet's side.
fn listening(arena: &Arena) -> TcpListener {
    let listener = arena.internet.netns().run(|| TcpListener::bind(("::", 80))).expect("the internet listens");
    listener.set_nonblocking(true).expect("it is a socket");
    listener
}

/// A host on the operator's own network knows the pool and routes it to the machine.
#[test]
fn a_neighbour_of_the_host_cannot_come_in() {
    in_sandbox(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("the sandbox's own");
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("the sandbox's own");
        let arena = Arena::make();
        let ears = Ears::everywhere(&arena);
        let sender = Sender::open(arena.internet.netns(), "eth0");
        let on_wires = ["a", "b", "uplink"].map(|place| Sniffer::open(&arena.netns(place), "net0"));
        let answers = Sniffer::open(&arena.netns("host"), "eth0");
        for family in BOTH {
            let (far, near) =
                if family == Ip::V4 { ("198.51.100.1", "198.51.100.2") } else { ("2001:db8:1::1", "2001:db8:1::2") };
            let answered = |source: &str, to: &str| {
                answers.take();
                let ends = arena.ends(family, source, to);
                sender.send(Packet::tcp(ends, 4000, 80, flag::SYN).frame()).expect("sent");
                sender.send(Packet::udp(ends, 4000, 53, b"forged").frame()).expect("sent");
                std::thread::sleep(Duration::from_millis(20));
                let sources =
                    answers.take().left.into_iter().filter_map(|frame| Packet::from_frame(frame).in_stack()?.ends());
                // What the machine sends back to where it came from is no answer.
                let turned = |answer: &Ends| answer.from() == ends.to() && answer.to() == ends.from() && source != to;
                sources.filter(turned).count() > 0
            };
            assert!(answered(far, near), "the host's own address is open to its neighbours");
            ears.heard();
            for source in [far, "a", "host"] {
                for to in ["a", "b", "host", "leg of the host", "leg of the uplink", "uplink"] {
                    let seen = (answered(source, to), ears.heard());
                    println!("a neighbour as {source} -> {to}, {family:?}: expected nothing, seen {seen:?}");
                    assert_eq!(seen, (false, vec![]), "a neighbour as {source} -> {to}");
                }
            }
            let arrived = on_wires.iter().map(|sniffer| sniffer.take().arrived).collect::<Vec<_>>();
            assert!(arrived.iter().all(Vec::is_empty), "{arrived:?}");
        }
    });
}
