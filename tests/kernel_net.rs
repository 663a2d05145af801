//! The kernel room's links, addresses, routes, rules, sysctls and connections, on a real kernel.
//!
//! Everything happens in fresh namespaces that die with the test; ip(8) and conntrack(8) are the witnesses.

#![allow(clippy::disallowed_methods, reason = "ip and conntrack are witnesses; scratch mount namespaces need unshare")]

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use nix::unistd::Pid;
use nsctl::kernel::address::Address;
use nsctl::kernel::conntrack::{Conntrack, Transport};
use nsctl::kernel::link::{self, AddrGenMode, LOOPBACK, OperState};
use nsctl::kernel::netlink::{NetlinkError, Rtnl};
use nsctl::kernel::netns::{self, Netns};
use nsctl::kernel::process::processes_in;
use nsctl::kernel::route::{MAIN_TABLE, Route, RouteType};
use nsctl::kernel::rule::IpRule;
use nsctl::kernel::sysctl::Sysctl;
use nsctl::kernel::wire::{WirePair, add_altname};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GROUP: u32 = 0x6e73;
const PROTOCOL: u8 = 0x6e;
const NET0: u32 = 100;

/// Whether namespaces can be made here. Says so loudly when not, and fails where a machine is there for this.
fn possible() -> bool {
    match Netns::unpinned() {
        Ok(_) => true,
        Err(e) => {
            let message =
                format!("NOT TESTED: no network namespace can be made here: {e}; run as root or under `unshare -Urmn`");
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
            // Straight to the stream: what a passing test says by `eprintln!` is swallowed.
            writeln!(io::stderr(), "{message}").expect("stderr takes it");
            false
        }
    }
}

/// What the witness prints inside of `netns`.
fn witness(netns: &Netns, command: &str) -> String {
    let command = command.to_owned();
    let words = command.clone();
    let output = netns
        .run(move || {
            let mut words = words.split_whitespace();
            Command::new(words.next().expect("a command")).args(words).output()
        })
        .expect("the witness runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn rtnl(netns: &Netns) -> Rtnl {
    netns.run(|| Ok(Rtnl::open()?)).expect("a socket")
}

fn network(text: &str) -> IpNetwork {
    text.parse().expect("a prefix")
}

fn wire(name: &str, outer_index: u32) -> WirePair {
    WirePair {
        inner: "net0".into(),
        inner_index: NET0,
        outer: name.into(),
        outer_index,
        altname: Some(format!("{name}-with-a-name-longer-than-fifteen-bytes")),
        alias: Some(format!("nsctl:test:{name}")),
        mac: MAC,
        mtu: 65535,
        group: GROUP,
    }
}

fn addresses(n: u32) -> Vec<Address> {
    let (high, low) = (n / 250, n % 250 + 1);
    ["10.231.H.L/32", "fd00:cb::H:L/128"]
        .map(|text| Address {
            link: NET0,
            address: network(&text.replace('H', &high.to_string()).replace('L', &low.to_string())),
        })
        .into()
}

fn routes(n: u32) -> Vec<Route> {
    let own = addresses(n);
    let by =
        |prefix, own: &Address| Route { source: Some(own.address.ip()), ..Route::by(NET0, network(prefix), PROTOCOL) };
    vec![
        by("10.231.0.0/16", &own[0]),
        by("fd00:cb::/64", &own[1]),
        Route { mtu: Some(1500), ..by("0.0.0.0/0", &own[0]) },
        Route { mtu: Some(1500), ..by("::/0", &own[1]) },
    ]
}

/// A namespace without IPv6, as the far ends get it.
fn fabric() -> Netns {
    let fabric = Netns::unpinned().expect("a namespace");
    let off = || ["all", "default"].iter().try_for_each(|link| Ok(Sysctl::ipv6(link, "disable_ipv6").write("1")?));
    fabric.run(off).expect("IPv6 is off");
    fabric
}

/// A service's namespace, wired to `fabric`, as the product makes one.
fn service(fabric: &Netns, name: &str, n: u32) -> (Netns, Rtnl) {
    let netns = Netns::unpinned().expect("a namespace");
    let mut inside = rtnl(&netns);
    let wire = wire(name, 1000 + n);
    let outer = fabric.try_clone().expect("a handle");
    inside.pipeline(wire.bring_up(outer, &addresses(n), &routes(n))).expect("bring up");
    (netns, inside)
}

#[test]
fn three_wires_have_every_attribute_that_was_asked_for() {
    if !possible() {
        return;
    }
    let fabric = fabric();
    let mut outside = rtnl(&fabric);
    let names = ["alpha", "beta", "gamma"];
    let services: Vec<_> = (0..).zip(names).map(|(n, name)| service(&fabric, name, n)).collect();
    outside.pipeline((0..).zip(names).flat_map(|(n, name)| wire(name, 1000 + n).label()).collect()).unwrap();

    for link in outside.links().unwrap().iter().filter(|link| link.index != LOOPBACK) {
        assert!(!link.up, "the fabric's end is down until it is set up: {link:?}");
    }
    outside.set_up(&[1000, 1001, 1002]).unwrap();
    outside.settle(&[1000, 1001, 1002]).unwrap();
    outside.wait_until_up(&[1000, 1001, 1002], Duration::from_secs(5)).unwrap();

    for (n, ((name, (netns, mut inside)), index)) in names.into_iter().zip(services).zip(1000..).enumerate() {
        inside.wait_until_up(&[NET0], Duration::from_secs(5)).unwrap();
        let outer = outside.link(index).unwrap().expect("the outer end");
        let inner = inside.link(NET0).unwrap().expect("the inner end");
        assert_eq!((outer.name.as_str(), inner.name.as_str()), (name, "net0"));
        assert_eq!(outer.altnames, [format!("{name}-with-a-name-longer-than-fifteen-bytes")]);
        assert_eq!(outer.alias, Some(format!("nsctl:test:{name}")));
        assert_eq!((outer.peer, inner.peer), (Some(NET0), Some(index)));
        assert_eq!(outer.peer_netns, outside.netns_id(&netns).unwrap());
        assert_eq!(inner.peer_netns, inside.netns_id(&fabric).unwrap());
        assert!(outer.peer_netns.is_some() && inner.peer_netns.is_some());
        for end in [&outer, &inner] {
            assert_eq!((end.mac, end.mtu, end.group), (Some(MAC), 65535, GROUP));
            assert!(end.up && end.no_arp && end.lower_up);
            assert_eq!((end.state, end.kind.as_deref()), (OperState::Up, Some("veth")));
            assert_eq!(end.addr_gen_mode, Some(AddrGenMode::None));
        }
        for (side, what) in [(&fabric, name), (&netns, "net0")] {
            let text = witness(side, &format!("ip -d link show dev {what}"));
            for wanted in [
                "NOARP",
                "mtu 65535",
                "state UP",
                "02:00:00:00:00:01",
                "addrgenmode none",
                "numtxqueues 1 numrxqueues 1",
            ] {
                assert!(text.contains(wanted), "{what} lacks {wanted}: {text}");
            }
        }
        assert_eq!(witness(&fabric, &format!("ip address show dev {name}")).matches("inet").count(), 0);
        let text = witness(&fabric, &format!("ip -d link show dev {name}"));
        assert!(text.contains(&format!("alias nsctl:test:{name}")), "{text}");
        assert!(text.contains(&format!("altname {name}-with-a-name-longer")), "{text}");

        let n = n as u32;
        let listed = inside.addresses().unwrap();
        assert_eq!(listed.iter().filter(|address| address.link == NET0).cloned().collect::<Vec<_>>(), addresses(n));
        let text = witness(&netns, "ip address show dev net0");
        assert!(!text.contains("tentative") && !text.contains("fe80"), "{text}");
        assert!(text.contains(&format!("inet 10.231.0.{}/32", n + 1)) && text.contains("nodad"), "{text}");

        let ours: Vec<_> =
            inside.routes(Some(MAIN_TABLE)).unwrap().into_iter().filter(|r| r.protocol == PROTOCOL).collect();
        assert_eq!(ours.len(), 4);
        for route in routes(n) {
            assert!(ours.contains(&route), "{route:?} is not in {ours:?}");
        }
        let text = witness(&netns, "ip route");
        assert!(
            text.contains(&format!("10.231.0.0/16 dev net0 proto 110 scope link src 10.231.0.{}", n + 1)),
            "{text}"
        );
        let own = format!("default dev net0 proto 110 scope link src 10.231.0.{} mtu 1500", n + 1);
        assert!(text.contains(&own), "{text}");
        let text = witness(&netns, "ip -6 route");
        assert!(text.contains("default dev net0 proto 110") && text.contains("mtu 1500"), "{text}");
        assert!(witness(&netns, "ip link show dev lo").contains("LOOPBACK,UP"), "lo is up");
    }
}

#[test]
fn two_hundred_wires_come_up_in_bulk_and_go_by_group() {
    if !possible() {
        return;
    }
    const N: u32 = 200;
    let fabric = fabric();
    let mut outside = rtnl(&fabric);
    // Some modules put a link of their own into every new namespace.
    let before = outside.links().unwrap();
    let started = Instant::now();
    let services: Vec<_> = (0..N).map(|n| service(&fabric, &format!("s{n}"), n)).collect();
    let made = started.elapsed();
    let indexes: Vec<u32> = (1000..1000 + N).collect();
    outside.pipeline((0..N).flat_map(|n| wire(&format!("s{n}"), 1000 + n).label()).collect()).unwrap();
    let labelled = started.elapsed();
    outside.set_up(&indexes).unwrap();
    outside.settle(&indexes).unwrap();
    outside.wait_until_up(&indexes, Duration::from_secs(10)).unwrap();
    let up = started.elapsed();
    let listed = outside.links().unwrap();
    let read = started.elapsed();
    eprintln!(
        "{N} services: namespaces and wires {made:.0?}, labels {:.0?}, up and settled {:.0?}, list {:.1?}; {:.2?} a service",
        labelled - made,
        up - labelled,
        read - up,
        up / N,
    );

    let ours: BTreeSet<u32> = listed.iter().filter(|link| link.group == GROUP).map(|link| link.index).collect();
    assert_eq!(ours, indexes.iter().copied().collect());
    assert!(listed.iter().filter(|link| link.group == GROUP).all(|link| link.state == OperState::Up));

    let started = Instant::now();
    outside.delete_group(GROUP).unwrap();
    eprintln!("{N} wires deleted in {:.0?}", started.elapsed());
    assert_eq!(outside.links().unwrap(), before);
    assert!(!witness(&fabric, "ip -o link").contains("veth"));
    outside.delete_group(GROUP).expect("an empty group is deleted");
    for (_, mut inside) in services {
        assert_eq!(inside.link(NET0).unwrap(), None, "the other end is gone too");
    }
}

#[test]
fn a_wire_between_two_namespaces_serves_as_the_uplinks_leg() {
    if !possible() {
        return;
    }
    let (host, uplink) = (Netns::unpinned().unwrap(), Netns::unpinned().unwrap());
    let leg = WirePair {
        inner: "host0".into(),
        outer: "nsctl-leg".into(),
        mtu: 1500,
        altname: None,
        alias: None,
        ..wire("", 77)
    };
    let mut inside = rtnl(&uplink);
    let mut outside = rtnl(&host);
    let near = [
        Address { link: NET0, address: network("192.0.2.2/31") },
        Address { link: NET0, address: network("2001:db8::2/127") },
    ];
    let hop = |destination, via: &str| Route {
        gateway: Some(via.parse().unwrap()),
        on_link: true,
        ..Route::by(NET0, network(destination), PROTOCOL)
    };
    let routes = [
        hop("0.0.0.0/0", "203.0.113.1"),
        hop("::/0", "2001:db8:1::1"),
        Route { table: 5000, ..hop("198.51.100.0/24", "192.0.2.3") },
    ];
    inside.pipeline(leg.bring_up(host.try_clone().unwrap(), &near, &routes)).unwrap();
    outside.pipeline(leg.label()).unwrap();
    outside.set_up(&[77]).unwrap();
    outside.wait_until_up(&[77], Duration::from_secs(5)).unwrap();

    assert!(witness(&host, "ip -d link show dev nsctl-leg").contains("mtu 1500"));
    assert!(witness(&uplink, "ip route").contains("default via 203.0.113.1 dev host0 proto 110 onlink"));
    assert!(
        witness(&uplink, "ip -6 route").contains("default via 2001:db8:1::1 dev host0 proto 110 metric 1024 onlink")
    );
    assert!(witness(&uplink, "ip route show table 5000").contains("198.51.100.0/24 via 192.0.2.3 dev host0"));
    let all = inside.routes(None).unwrap();
    for route in &routes {
        assert!(all.contains(route), "{route:?} is not in {all:?}");
    }
    assert_eq!(inside.routes(Some(5000)).unwrap(), [routes[2].clone()]);
    assert_eq!(inside.routes(Some(5001)).unwrap(), [], "a table that is not there has no routes");

    inside.pipeline(vec![link::set_mtu(NET0, 1400)]).unwrap();
    assert_eq!(inside.link(NET0).unwrap().unwrap().mtu, 1400);
    inside.set_down(&[NET0]).unwrap();
    assert!(witness(&uplink, "ip link show dev host0").contains("mtu 1400 qdisc noqueue state DOWN"));
    inside.set_up(&[NET0]).unwrap();
    inside.pipeline(routes.iter().map(|route| route.add().pardon(Errno::EEXIST)).collect()).unwrap();

    for route in &routes {
        inside.pipeline(vec![route.delete(), route.delete()]).expect("deleting twice is fine");
    }
    assert!(inside.routes(None).unwrap().iter().all(|route| route.protocol != PROTOCOL));
    inside.pipeline(near.iter().flat_map(|address| [address.delete(), address.delete()]).collect()).unwrap();
    assert!(inside.addresses().unwrap().iter().all(|address| address.link != NET0));
    outside.delete_links(&[77, 77]).expect("deleting twice is fine");
    assert_eq!(inside.link(NET0).unwrap(), None);
}

#[test]
fn the_machines_own_lists_can_be_read_too() {
    let mut here = Rtnl::open().unwrap();
    assert!(here.links().unwrap().iter().any(|link| link.name == "lo" && link.index == LOOPBACK));
    assert_eq!(here.link(LOOPBACK).unwrap().unwrap().kind, None);
    here.addresses().unwrap();
    let all = here.routes(None).unwrap();
    let main = here.routes(Some(MAIN_TABLE)).unwrap();
    assert_eq!(main, all.into_iter().filter(|route| route.table == MAIN_TABLE).collect::<Vec<_>>());
    assert!(here.rules().unwrap().iter().any(|rule| rule.table == MAIN_TABLE));
}

#[test]
fn blackholes_read_back_as_they_were_added() {
    if !possible() {
        return;
    }
    let netns = Netns::unpinned().unwrap();
    let mut inside = rtnl(&netns);
    let holes = ["10.231.0.0/16", "fd00:cb::/64"].map(|prefix| Route::blackhole(network(prefix), PROTOCOL));
    inside.set_up(&[LOOPBACK]).unwrap();
    inside.pipeline(holes.iter().map(Route::add).collect()).unwrap();
    let ours: Vec<_> = inside.routes(None).unwrap().into_iter().filter(|route| route.protocol == PROTOCOL).collect();
    assert_eq!(ours, holes);
    assert!(ours.iter().all(|route| route.kind == RouteType::BlackHole));
    assert!(witness(&netns, "ip route").contains("blackhole 10.231.0.0/16 proto 110"));
    assert!(witness(&netns, "ip -6 route").contains("blackhole fd00:cb::/64"));
}

#[test]
fn rules_come_and_go_and_leave_the_others_alone() {
    if !possible() {
        return;
    }
    let netns = Netns::unpinned().unwrap();
    let mut inside = rtnl(&netns);
    let before = inside.rules().unwrap();
    assert!(before.len() >= 5, "the kernel's own rules of both families: {before:?}");
    let ours =
        ["10.231.0.0/16", "fd00:cb::/64"].map(|prefix| IpRule::for_own_traffic(network(prefix), 5000, 1000, PROTOCOL));
    inside.pipeline(ours.iter().map(IpRule::add).collect()).unwrap();
    let listed: Vec<_> = inside.rules().unwrap().into_iter().filter(|rule| rule.protocol == PROTOCOL).collect();
    assert_eq!(listed, ours);
    assert!(witness(&netns, "ip rule").contains("1000:\tfrom all to 10.231.0.0/16 iif lo lookup 5000 proto 110"));
    assert!(witness(&netns, "ip -6 rule").contains("1000:\tfrom all to fd00:cb::/64 iif lo lookup 5000 proto 110"));

    let twice = inside.pipeline(vec![ours[0].add()]).unwrap_err();
    assert_eq!(twice.errno(), Some(Errno::EEXIST), "{twice}");
    inside.pipeline(ours.iter().flat_map(|rule| [rule.delete(), rule.delete()]).collect()).unwrap();
    assert_eq!(inside.rules().unwrap(), before);
}

#[test]
fn a_refusal_names_the_operation_the_errno_and_the_kernels_words() {
    if !possible() {
        return;
    }
    let netns = Netns::unpinned().unwrap();
    let mut inside = rtnl(&netns);
    inside.set_up(&[LOOPBACK]).unwrap();
    let requests = vec![
        Route::by(LOOPBACK, network("10.1.0.0/16"), PROTOCOL).add(),
        Address { link: 4711, address: network("10.0.0.1/32") }.add(),
        Route::by(LOOPBACK, network("10.2.0.0/16"), PROTOCOL).add(),
    ];
    let error = inside.pipeline(requests).unwrap_err();
    assert_eq!(error.to_string(), "cannot add the address 10.0.0.1/32 to link 4711");
    assert_eq!(error.errno(), Some(Errno::ENODEV));
    let NetlinkError::Refused { refusal, .. } = &error else { panic!("{error:?}") };
    assert!(refusal.to_string().starts_with("the kernel refused: No such device (os error 19)"), "{refusal}");
    assert_eq!(witness(&netns, "ip route").lines().count(), 2, "the ones around it were done");

    let route = Route {
        gateway: Some("203.0.113.1".parse().unwrap()),
        ..Route::by(LOOPBACK, network("10.3.0.0/16"), PROTOCOL)
    };
    let error = inside.pipeline(vec![route.add()]).unwrap_err();
    let NetlinkError::Refused { refusal, .. } = &error else { panic!("{error:?}") };
    assert!(refusal.explanation.is_some(), "the kernel says why in words: {refusal}");

    let error = inside.delete_group(0).unwrap_err();
    assert_eq!(error.to_string(), "cannot delete the links of group 0");
    let error = inside.wait_until_up(&[4711], Duration::from_millis(5)).unwrap_err();
    assert!(matches!(error, NetlinkError::NotUp { ref indexes } if *indexes == [4711]), "{error}");

    let stranger = Netns::unpinned().unwrap();
    assert_eq!(inside.netns_id(&stranger).unwrap(), None, "no link leads there");

    // Each of these is refused; the answers must not overrun the socket.
    let gone = (0..500u32)
        .map(|n| Route::by(LOOPBACK, network(&format!("10.8.{}.{}/32", n / 250, n % 250)), PROTOCOL).delete());
    inside.pipeline(gone.collect()).expect("what is gone is deleted");

    // More than fits into one datagram; only the last is wrong.
    let mut many: Vec<_> = (0..300u32)
        .map(|n| Route::by(LOOPBACK, network(&format!("10.9.{}.{}/32", n / 200, n % 200)), PROTOCOL).add())
        .collect();
    many.push(add_altname(4711, "nobody"));
    let error = inside.pipeline(many).unwrap_err();
    assert_eq!(error.to_string(), "cannot add the altname nobody to link 4711");
    assert_eq!(inside.routes(Some(MAIN_TABLE)).unwrap().len(), 302);
}

/// Two services joined by a wire, `a` at 10.231.0.1 and `b` at 10.231.0.2, with conntrack awake in `a`.
fn pair() -> (Netns, Netns) {
    let (a, b) = (Netns::unpinned().unwrap(), Netns::unpinned().unwrap());
    let mut far = rtnl(&b);
    let mut near = rtnl(&a);
    near.pipeline(WirePair { altname: None, alias: None, ..wire("net0", NET0) }.bring_up(
        b.try_clone().unwrap(),
        &addresses(0),
        &routes(0),
    ))
    .unwrap();
    far.pipeline(addresses(1).iter().map(Address::add).collect()).unwrap();
    far.set_up(&[LOOPBACK, NET0]).unwrap();
    far.pipeline(routes(1).iter().map(Route::add).collect()).unwrap();
    near.wait_until_up(&[NET0], Duration::from_secs(5)).unwrap();
    far.wait_until_up(&[NET0], Duration::from_secs(5)).unwrap();
    a.run(wake_conntrack).expect("nft loads a conntrack rule");
    (a, b)
}

fn wake_conntrack() -> io::Result<()> {
    let table = "table inet t { chain c { type filter hook output priority 0; ct state new counter; }; }";
    let status = Command::new("nft").arg(table).status()?;
    assert!(status.success());
    Ok(())
}

#[test]
fn one_connection_is_found_deleted_by_its_tuple_and_the_others_stay() {
    if !possible() {
        return;
    }
    let (a, b) = pair();
    let (listener, udp) = b.run(|| Ok((TcpListener::bind("[::]:8332")?, UdpSocket::bind("[::]:53")?))).unwrap();
    let [first, second, third] = ["10.231.0.2:8332", "10.231.0.2:8332", "[fd00:cb::0:2]:8332"]
        .map(|to| a.run(move || TcpStream::connect(to)).unwrap());
    let peers: Vec<_> = (0..3).map(|_| listener.accept().unwrap().0).collect();
    let query = a.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("10.231.0.2:53")?;
        socket.send(b"who?")?;
        Ok(socket)
    });
    let query = query.unwrap();
    let mut buffer = [0; 8];
    let (_, from) = udp.recv_from(&mut buffer).unwrap();
    udp.send_to(b"you", from).unwrap();
    query.recv(&mut buffer).unwrap();
    let ping = witness(&a, "ping -c 1 -W 2 10.231.0.2");
    assert!(ping.contains("1 received"), "{ping}");
    let ping = witness(&a, "ping -c 1 -W 2 fd00:cb::2");
    assert!(ping.contains("1 received"), "{ping}");

    let mut elsewhere = Netns::unpinned().unwrap().run(|| Ok(Conntrack::open()?)).unwrap();
    assert_eq!(elsewhere.dump().unwrap(), [], "nothing is remembered where nothing happened");
    let mut conntrack = a.run(|| Ok(Conntrack::open()?)).unwrap();
    let flows = conntrack.dump().unwrap();
    let at = |stream: &TcpStream| {
        let local = stream.local_addr().unwrap();
        flows
            .iter()
            .find(|flow| flow.original.source_port() == local.port() && flow.original.source == local.ip())
            .unwrap()
    };
    let flow = at(&first);
    assert_eq!(flow.original.protocol, 6);
    assert_eq!(flow.original.destination, "10.231.0.2".parse::<IpAddr>().unwrap());
    assert_eq!(flow.original.destination_port(), 8332);
    assert_eq!((flow.reply.source, flow.reply.source_port()), (flow.original.destination, 8332));
    assert!(flow.is_answered() && !flow.is_translated() && flow.id.is_some());
    let icmp: BTreeSet<u8> = flows
        .iter()
        .filter_map(|flow| match flow.original.transport {
            Transport::Icmp { kind, .. } => Some(kind),
            _ => None,
        })
        .collect();
    assert_eq!(icmp, BTreeSet::from([8, 128]), "an echo of each family: {flows:?}");
    let count = |flows: &str| flows.lines().count();
    let listed = witness(&a, "conntrack -L -f ipv4");
    assert_eq!(count(&listed), flows.iter().filter(|flow| flow.original.source.is_ipv4()).count(), "{listed}");

    assert!(conntrack.delete(flow).unwrap());
    assert!(!conntrack.delete(flow).unwrap(), "gone already is fine");
    let left = witness(&a, "conntrack -L -f ipv4 -p tcp");
    assert!(!left.contains(&format!("sport={} ", flow.original.source_port())), "{left}");
    assert!(left.contains(&format!("sport={} ", at(&second).original.source_port())), "{left}");

    // An entry with the tuple, but of another connection, stays.
    let mut stranger = at(&second).clone();
    stranger.id = stranger.id.map(|id| id ^ 1);
    assert!(!conntrack.delete(&stranger).unwrap());
    assert!(
        witness(&a, "conntrack -L -f ipv4 -p tcp").contains(&format!("sport={} ", stranger.original.source_port()))
    );

    assert!(conntrack.delete(at(&third)).unwrap());
    assert_eq!(count(&witness(&a, "conntrack -L -f ipv6 -p tcp")), 0);
    assert_eq!(conntrack.delete_where(|flow| matches!(flow.original.transport, Transport::Icmp { .. })).unwrap(), 2);
    let rest: BTreeSet<u8> = conntrack.dump().unwrap().iter().map(|flow| flow.original.protocol).collect();
    assert_eq!(rest, BTreeSet::from([6, 17]));
    drop(peers);
}

#[test]
fn sysctls_are_those_of_the_namespace_of_the_calling_thread() {
    if !possible() {
        return;
    }
    let (a, b) = pair();
    let knob = Sysctl::ipv4("net0", "forwarding");
    let (read, write) = (knob.clone(), knob.clone());
    a.run(move || Ok(write.write("1")?)).unwrap();
    assert_eq!(
        a.run({
            let read = read.clone();
            move || Ok(read.read()?)
        })
        .unwrap(),
        "1"
    );
    assert_eq!(b.run(move || Ok(read.read()?)).unwrap(), "0");
    assert!(knob.read().is_err(), "there is no net0 where this thread lives");

    let ours = [
        Sysctl::ip_forward(),
        Sysctl::ipv6_forwarding(),
        Sysctl::ipv6("all", "disable_ipv6"),
        Sysctl::ipv6("default", "disable_ipv6"),
        Sysctl::ipv6("net0", "accept_ra"),
        Sysctl::ipv4("net0", "accept_redirects"),
        Sysctl::ipv6("net0", "accept_redirects"),
        Sysctl::ipv4("net0", "rp_filter"),
        Sysctl::conntrack_tcp_loose(),
    ];
    for knob in ours {
        let turned = a.run(move || {
            let old = knob.read()?;
            let new = if old == "0" { "1" } else { "0" };
            knob.write(new)?;
            assert_eq!(knob.read()?, new, "{knob:?}");
            Ok(())
        });
        turned.expect("a knob of a namespace of ours turns");
    }
    let missing = a.run(|| Ok(Sysctl::ipv4("nobody", "forwarding").write("1")?)).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    assert_eq!(missing.to_string(), "cannot write net/ipv4/conf/nobody/forwarding");
}

/// A process that waits inside of `netns` until its input is closed.
fn lodger(netns: &Netns) -> Child {
    netns.run(|| Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()).expect("cat runs")
}

#[test]
fn an_occupied_namespace_names_its_occupants() {
    if !possible() {
        return;
    }
    let (netns, other) = (Netns::unpinned().unwrap(), Netns::unpinned().unwrap());
    assert_eq!(processes_in(&netns).unwrap().processes, []);
    let mut lodger = lodger(&netns);
    let found = processes_in(&netns).unwrap();
    assert_eq!(found.processes, [Pid::from_raw(lodger.id() as i32)]);
    assert_eq!(processes_in(&other).unwrap().processes, []);
    let here = processes_in(&Netns::current().unwrap()).unwrap().processes;
    assert!(here.contains(&Pid::this()), "this process is where it is");

    let mut stdin = lodger.stdin.take().unwrap();
    stdin.write_all(b"x").unwrap();
    drop(stdin);
    let mut echoed = String::new();
    lodger.stdout.take().unwrap().read_to_string(&mut echoed).unwrap();
    assert_eq!((echoed.as_str(), lodger.wait().unwrap().success()), ("x", true));
    assert_eq!(processes_in(&netns).unwrap().processes, []);
}

#[test]
fn a_pin_is_seen_by_ip_netns_and_not_multiplied() {
    if !possible() {
        return;
    }
    // A mount namespace of its own, so that nothing of this touches the machine's /run/netns.
    let done = std::thread::spawn(|| {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        mount(None::<&str>, "/run", None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        let dir = netns::default_directory();
        let pins = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap().matches("/run/netns").count();
        netns::prepare_directory(&dir).unwrap();
        netns::prepare_directory(&dir).unwrap();
        assert_eq!(pins(), 1, "the directory is mounted once");

        let path = dir.join("node-electrs");
        netns::Netns::create(&path, || Ok(())).unwrap();
        assert_eq!(pins(), 2, "and one pin in it");
        let ip = |arguments: &[&str]| {
            let output = Command::new("ip").args(arguments).output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        assert!(ip(&["netns", "list"]).contains("node-electrs"));
        assert!(ip(&["-n", "node-electrs", "link"]).contains("lo:"));
        ip(&["netns", "add", "foreign"]);
        netns::prepare_directory(&dir).unwrap();
        assert_eq!(netns::pinned(&dir).unwrap(), ["foreign", "node-electrs"]);
        assert!(Netns::open(&dir.join("foreign")).unwrap().file().as_raw_fd() >= 0);
        netns::unpin(&path).unwrap();
        ip(&["netns", "del", "foreign"]);
        assert_eq!((pins(), netns::pinned(Path::new(&dir)).unwrap().len()), (1, 0));
    });
    done.join().expect("the pins are as they should be");
}
