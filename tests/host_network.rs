//! Hosts as they are found: tunnels, several routers, no IPv6, other people's links, containers behind them.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::network::{NEVER, Network, SOON, chain};
use common::{in_sandbox, ip, netns};
use netns_policy::port::Protocol::Tcp;
use nsctl::internet::Internet;
use nsctl::kernel::netns::Netns;
use nsctl::{Error, Note};

/// A service that calls another, one that goes out, and the host that calls one and is called.
const POLICY: &str = r#"
schema = 1
[network]
name = "NAME"
pool4 = "POOL"
[service.a]
outbound = "direct"
connect.b = ["x"]
[service.b]
ports = { x = "tcp:80" }
[host]
accepts.h = { port = "tcp:81", from = ["a"] }
may_connect.b = ["x"]
"#;

/// Nothing of the host's but the way out.
const OUT: &str = r#"
schema = 1
[network]
name = "NAME"
pool4 = "POOL"
[service.a]
outbound = "direct"
"#;

fn network(text: &str, name: &str, pool: &str) -> Network {
    let mut network = Network::new(name, &text.replace("NAME", name).replace("POOL", pool));
    // One machine has one state directory.
    let options = nsctl::Options { state: "/run/state".into(), ..network.nsctl.options().clone() };
    network.nsctl = nsctl::Orchestrator::new(options);
    network
}

fn node() -> Network {
    network(POLICY, "node", "10.31.0.0/24")
}

/// A link that is somebody else's, up; its other end is here too.
fn other_link(name: &str) {
    ip(&format!("link add {name} type veth peer name x{name}"));
    ip(&format!("link set {name} up"));
    ip(&format!("link set x{name} up"));
}

fn set(path: &str, value: &str) {
    fs::write(format!("/proc/sys/{path}"), value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

fn knob(path: &str) -> String {
    fs::read_to_string(format!("/proc/sys/{path}")).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
}

fn assert_works(network: &Network, internet: &Internet) {
    for address in network.addresses("b") {
        assert!(network.reaches("a", "b", (address, Tcp, 80)), "a -> {address}");
        assert!(network.reaches("host", "b", (address, Tcp, 80)), "host -> {address}");
    }
    for address in network.addresses("host") {
        assert!(network.reaches("a", "host", (address, Tcp, 81)), "a -> {address}");
    }
    let _listener = internet.netns().run(|| TcpListener::bind("[::]:443")).unwrap();
    for there in internet.wan() {
        network.connect("a", (there, 443).into(), SOON).unwrap_or_else(|error| panic!("a -> {there}: {error}"));
    }
    assert!(network.plan().steps.is_empty(), "{:?}", network.plan());
}

#[test]
fn a_tunnel_that_takes_half_the_internet_takes_neither_the_pool_nor_the_way_out() {
    in_sandbox(|| {
        let internet = Internet::make().unwrap();
        other_link("tun0");
        for half in ["0.0.0.0/1", "128.0.0.0/2", "8000::/1"] {
            ip(&format!("route add {half} dev tun0"));
        }
        let network = node();
        network.apply();
        assert_works(&network, &internet);
    });
}

#[test]
fn a_default_route_by_several_routers_is_one() {
    in_sandbox(|| {
        let _internet = Internet::make().unwrap();
        other_link("eth1");
        ip("address add 192.0.2.2/24 dev eth1");
        ip("route del default");
        ip("route add default nexthop via 198.51.100.1 dev eth0 onlink nexthop via 192.0.2.1 dev eth1");
        let network = network(OUT, "node", "10.31.0.0/24");
        let uplinks = network.planned().observed.host.uplinks4;
        assert_eq!(uplinks.into_iter().collect::<Vec<_>>(), ["eth0", "eth1"]);
        assert!(!network.apply().notes.iter().any(|note| matches!(note, Note::NoUplink | Note::NoIpv4Uplink)));
    });
}

#[test]
fn a_host_without_an_ipv4_route_says_so_and_one_without_an_ipv6_route_says_nothing() {
    in_sandbox(|| {
        let _internet = Internet::make().unwrap();
        let network = network(OUT, "node", "10.31.0.0/24");
        let told = || {
            let mut notes = network.apply().notes;
            notes.retain(|note| *note != Note::NoResolver);
            notes
        };
        assert_eq!(told(), []);
        ip("-6 route del default");
        assert_eq!(told(), [], "IPv4 alone is nothing unusual");
        ip("-6 route add default via 2001:db8:1::1 dev eth0 onlink");
        ip("route del default");
        assert_eq!(told(), [Note::NoIpv4Uplink]);
        ip("-6 route del default");
        assert_eq!(told(), [Note::NoUplink]);
    });
}

#[test]
fn a_host_that_has_switched_ipv6_off_gets_a_network_with_both_families() {
    in_sandbox(|| {
        for link in ["all", "default"] {
            set(&format!("net/ipv6/conf/{link}/disable_ipv6"), "1");
        }
        let network = node();
        network.apply();
        for address in network.addresses("b") {
            assert!(network.reaches("host", "b", (address, Tcp, 80)), "host -> {address}");
        }
        assert!(network.plan().steps.is_empty());
        assert_eq!(knob("net/ipv6/conf/all/disable_ipv6"), "1", "that stays the host's own business");
    });
}

#[test]
fn networks_whose_rules_share_a_priority_leave_each_others_alone() {
    in_sandbox(|| {
        let internet = Internet::make().unwrap();
        let names = ["shop", "iot"];
        let numbers = names.map(|name| netns_policy::desired::host_route_numbers(&name.parse().unwrap()));
        assert_eq!(numbers[0].1, numbers[1].1, "otherwise this is no test");
        let [shop, iot] = [network(POLICY, "shop", "10.31.0.0/24"), network(POLICY, "iot", "10.32.0.0/24")];
        shop.apply();
        iot.apply();
        for _ in 0..2 {
            assert_works(&shop, &internet);
            assert_works(&iot, &internet);
            assert!(shop.apply().report.done.is_empty() && iot.apply().report.done.is_empty());
        }
        shop.down();
        assert_works(&iot, &internet);
        iot.down();
        assert!(!ip("rule").contains("10.3") && !ip("route show table all").contains("10.3"));
    });
}

#[test]
fn a_pool_that_another_networks_leg_is_in_is_taken() {
    in_sandbox(|| {
        let _internet = Internet::make().unwrap();
        let [one, two] = ["one", "two"].map(|name| network(OUT, name, "10.31.0.0/24"));
        one.apply();
        let refused = two.nsctl.apply();
        assert!(matches!(refused, Err(Error::PoolTaken { .. })), "{refused:?}");
        assert!(two.is_nothing(), "nothing was made");
        assert!(one.plan().steps.is_empty());
    });
}

#[test]
fn a_link_of_somebody_else_with_a_name_of_ours_is_found_before_anything_is_made() {
    in_sandbox(|| {
        let _internet = Internet::make().unwrap();
        let network = node();
        for name in ["node+host", "node+leg"] {
            other_link(name);
            let refused = network.nsctl.apply();
            assert!(matches!(&refused, Err(Error::ForeignLink { link }) if link == name), "{refused:?}");
            assert!(network.is_nothing(), "nothing was made");
            ip(&format!("link del {name}"));
        }
        network.apply();
    });
}

#[test]
fn every_link_that_hears_routers_goes_on_hearing_them() {
    in_sandbox(|| {
        let _internet = Internet::make().unwrap();
        other_link("early");
        other_link("deaf");
        set("net/ipv6/conf/deaf/accept_ra", "0");
        let knobs =
            || ["default", "early", "deaf", "eth0"].map(|link| knob(&format!("net/ipv6/conf/{link}/accept_ra")));
        let before = knobs();
        let network = node();
        network.apply();
        assert_eq!(knobs(), ["2", "2", "0", "2"]);
        other_link("late");
        assert_eq!(knob("net/ipv6/conf/late/accept_ra"), "2");
        assert!(network.apply().report.done.is_empty());
        network.down();
        assert_eq!(knobs(), before);
    });
}

/// A container on the host, which forwards for it; everything goes out by the default route.
fn container() -> Netns {
    for family in ["ipv4", "ipv6"] {
        set(&format!("net/{family}/conf/all/forwarding"), "1");
    }
    ip("netns add box");
    ip("link add box0 type veth peer name net0 netns box");
    for (near, far) in [("198.18.0.1/24", "198.18.0.2/24"), ("2001:db8:18::1/64", "2001:db8:18::2/64")] {
        let nodad = if near.contains(':') { "nodad" } else { "" };
        ip(&format!("address add {near} dev box0 {nodad}"));
        ip(&format!("-n box address add {far} dev net0 {nodad}"));
    }
    ip("link set box0 up");
    ip("-n box link set lo up");
    ip("-n box link set net0 up");
    ip("-n box route add default via 198.18.0.1");
    ip("-n box route add default via 2001:db8:18::1");
    netns("box")
}

#[test]
fn what_others_send_to_the_pool_is_refused_and_never_leaves_by_the_default_route() {
    in_sandbox(|| {
        let internet = Internet::make().unwrap();
        let inside = container();
        let network = node();
        network.apply();
        assert_works(&network, &internet);
        let addresses = network.addresses("b");
        // Whoever is behind the default route would get it: there is a listener at the very address.
        for address in &addresses {
            internet
                .netns()
                .run({
                    let line = format!("address add {address} dev lo");
                    move || Ok(ip(&line))
                })
                .unwrap();
        }
        let heard = internet.netns().run(|| UdpSocket::bind("[::]:80")).unwrap();
        heard.set_read_timeout(Some(NEVER)).unwrap();
        for address in addresses {
            let to = (address, 80).into();
            let tried = inside.run(move || Ok(TcpStream::connect_timeout(&to, Duration::from_secs(3)))).unwrap();
            let refused = tried.expect_err("a container is not the host");
            assert_ne!(refused.kind(), ErrorKind::TimedOut, "{address} is refused at once: {refused}");
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            inside.run(move || Ok(UdpSocket::bind(any)?.send_to(b"?", to).ok())).unwrap();
            heard.recv(&mut [0; 4]).expect_err("nothing leaves by the default route");
        }
        network.down();
        assert!(!ip("rule").contains("10.31") && !ip("-6 rule").contains("fd"), "{}", ip("-6 rule"));
        assert!(!ip("route show table all").contains("prohibit"));
    });
}

#[test]
fn a_host_that_checks_reverse_paths_strictly_reaches_and_is_reached() {
    in_sandbox(|| {
        let internet = Internet::make().unwrap();
        for link in ["all", "default"] {
            set(&format!("net/ipv4/conf/{link}/rp_filter"), "1");
        }
        let network = node();
        if let Err(error) = network.nsctl.apply() {
            panic!("{}", chain(&error));
        }
        assert_eq!(knob("net/ipv4/conf/node+host/rp_filter"), "1");
        assert_works(&network, &internet);
    });
}

/// Errors about a packet of the leg's, such as one that is too large, come from the host itself.
#[test]
fn what_the_host_says_to_the_gateway_goes_by_the_leg() {
    in_sandbox(|| {
        let _internet = Internet::make().unwrap();
        let network = node();
        network.apply();
        for gateway in network.planned().addresses.leg_gateway().iter() {
            let route = ip(&format!("route get {gateway}"));
            assert!(route.contains("dev node+leg"), "{route}");
        }
    });
}
