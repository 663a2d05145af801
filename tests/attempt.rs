//! `why --live`: each verdict is met once for real, beside a connection that succeeds.

#![allow(clippy::disallowed_methods, reason = "a process that lives in a service")]

mod common;

use std::io::Write as _;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::network::Network;
use common::{in_sandbox, ip, netns};
use netns_policy::explain::stands::{refusal, stands};
use netns_policy::port::Protocol;
use netns_policy::topology::Place;
use nix::mount::{MsFlags, mount};
use nsctl::attempt::{Attempt, AttemptError, Question, attempt};

const SHOP: &str = r#"schema = 1
network.name = "shop"

[host]
may_connect.web = ["http"]
accepts = { metrics = { port = "tcp:9100", from = ["web"] } }

[service.db]
unit = "db.service"
ports = { sql = "tcp:5432", log = "udp:5514" }

[service.web]
ports = { http = "tcp:8080" }
connect.db = ["sql", "log"]
outbound.direct = ["tcp:443"]
dns = "direct"

[service.cron]
limits = { flows = 1 }
connect.db = ["sql"]
"#;

fn shop() -> Network {
    let network = Network::new("shop", SHOP);
    network.apply();
    network
}

fn ask(network: &Network, from: &str, to: &str, ports: &str) -> Result<Attempt, AttemptError> {
    let question = Question { from: from.into(), to: to.into(), ports: ports.parse().ok(), address: None };
    attempt(&network.nsctl, &question)
}

/// What was met, one word for each family.
fn codes(network: &Network, from: &str, to: &str, ports: &str) -> Vec<&'static str> {
    let attempt = ask(network, from, to, ports).unwrap();
    attempt.tries.iter().map(|one| one.verdict.code()).collect()
}

fn says(network: &Network, from: &str, to: &str, ports: &str) -> String {
    ask(network, from, to, ports).unwrap().tries[0].verdict.to_string()
}

/// A listener on all addresses of `place`, in both families.
fn listen(network: &Network, place: &str, port: u16) -> TcpListener {
    network.listen(place, IpAddr::from([0u16; 8]), port)
}

const SQL: &str = "tcp:5432";

#[test]
fn a_connection_is_made_over_both_families_and_its_absence_is_told_from_a_refusal() {
    in_sandbox(|| {
        let network = shop();
        assert_eq!(codes(&network, "web", "db", SQL), ["nobody-listens", "nobody-listens"]);
        assert!(says(&network, "web", "db", SQL).contains("no process lives in the namespace"));
        let listener = listen(&network, "db", 5432);
        assert_eq!(codes(&network, "web", "db", SQL), ["connected", "connected"]);
        assert_eq!(codes(&network, "db", "db", SQL), ["connected", "connected"], "by loopback");
        let made = ask(&network, "web", "db", SQL).unwrap();
        assert!(made.allowed && made.drift.is_empty() && made.strangers.is_empty(), "{made:?}");
        assert!(made.tries.iter().all(|one| one.elapsed < Duration::from_secs(1)), "{made:?}");
        assert_eq!(made.lookup.unwrap().addresses.unwrap(), network.addresses("db"));
        drop(listener);
        assert_eq!(codes(&network, "db", "db", SQL), ["nobody-listens", "nobody-listens"]);
    });
}

#[test]
fn a_listener_where_nobody_comes_is_named_with_its_address() {
    in_sandbox(|| {
        let network = shop();
        {
            let _loopback = network.listen("db", [127, 0, 0, 1].into(), 5432);
            assert_eq!(codes(&network, "web", "db", SQL), ["loopback-only", "loopback-only"]);
            assert!(says(&network, "web", "db", SQL).contains("127.0.0.1"));
        }
        {
            let _four = network.listen("db", [0, 0, 0, 0].into(), 5432);
            assert_eq!(codes(&network, "web", "db", SQL), ["connected", "other-family"]);
        }
        {
            let six = network.addresses("db")[1];
            let _six = network.listen("db", six, 5432);
            assert_eq!(codes(&network, "web", "db", SQL), ["other-family", "connected"]);
        }
        ip("-n shop-db address add 10.9.9.9/32 dev lo");
        let _other = network.listen("db", [10, 9, 9, 9].into(), 5432);
        assert_eq!(codes(&network, "web", "db", SQL), ["other-address", "other-family"]);
    });
}

#[test]
fn a_service_that_runs_on_the_host_is_noticed() {
    in_sandbox(|| {
        let network = shop();
        let _astray = network.listen("host", [0, 0, 0, 0].into(), 5432);
        assert!(says(&network, "web", "db", SQL).contains("on the host somebody listens on that port"));
        let _inside = listen(&network, "db", 5432);
        assert_eq!(codes(&network, "web", "db", SQL), ["connected", "connected"]);
    });
}

/// A control group, as systemd makes one for each unit, in the place of the machine's own.
#[test]
fn a_unit_that_runs_outside_of_its_namespace_is_noticed() {
    in_sandbox(|| {
        let network = shop();
        mount(Some("groups"), "/sys/fs/cgroup", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        std::fs::create_dir_all("/sys/fs/cgroup/system.slice/db.service").unwrap();
        let group = "/sys/fs/cgroup/system.slice/db.service/cgroup.procs";
        std::fs::write(group, "").unwrap();
        assert!(!says(&network, "web", "db", SQL).contains("of its unit"));
        std::fs::write(group, format!("{}\n", std::process::id())).unwrap();
        let met = ask(&network, "web", "db", SQL).unwrap();
        let verdict = &met.tries[0].verdict;
        assert!(verdict.to_string().ends_with("1 process of its unit lives in another namespace"), "{verdict}");
        assert!(
            verdict.next("web", "db", "").unwrap().contains("`nsctl env db`"),
            "{:?}",
            verdict.next("web", "db", "")
        );
        // And who lives where it should is not accused.
        let mut sleeping = Command::new("ip");
        let mut sleeping = sleeping.args(["netns", "exec", "shop-db", "sleep", "60"]).spawn().unwrap();
        std::fs::write(group, format!("{}\n", sleeping.id())).unwrap();
        let deadline = Instant::now() + common::network::SOON;
        while says(&network, "web", "db", SQL).contains("of its unit") && Instant::now() < deadline {}
        let inside = says(&network, "web", "db", SQL);
        sleeping.kill().unwrap();
        sleeping.wait().unwrap();
        assert_eq!(inside, "it arrived, and nobody listens there");
    });
}

/// nft(8) finds each element under the key that `why` names, and lists each rule as `why` does.
#[test]
fn nft_finds_what_is_named() {
    in_sandbox(|| {
        let network = Network::example("bitcoin-node");
        network.apply();
        let planned = network.planned();
        let mut found = 0;
        for edge in planned.checked.graph.edges() {
            let place = |name: String| if name == "host" { Place::Host } else { Place::Service(name.parse().unwrap()) };
            let (from, to) = (place(edge.from.to_string()), place(edge.to.to_string()));
            for stand in stands(&planned.desired, &from, &to, Some(edge.ports)) {
                let place = if stand.place == "fabric" { "fabric" } else { &stand.place };
                let key = stand.element.split(" : ").next().unwrap();
                network.nft(place, &format!("get element {} {} {{ {key} }}", stand.table, stand.set));
                found += 1;
            }
            let all = stands(&planned.desired, &from, &to, Some(edge.ports));
            let first = all.first().expect("every edge stands somewhere");
            let listed = network.nft("fabric", &format!("list chain {} {}", first.table, first.chain));
            assert!(listed.lines().any(|line| line.trim() == first.rule), "{}\n{listed}", first.rule);
        }
        assert!(found > 200, "{found}");
        let refused = refusal(
            &planned.desired,
            &Place::Service("rtl".parse().unwrap()),
            &Place::Service("bitcoind".parse().unwrap()),
            Protocol::Tcp,
            8332,
        )
        .unwrap();
        let listed = network.nft("rtl", &format!("list chain {} {}", refused.table, refused.chain));
        assert!(listed.lines().any(|line| line.trim() == refused.rule), "{}\n{listed}", refused.rule);
    });
}

#[test]
fn each_lock_is_known_by_its_own_counters() {
    in_sandbox(|| {
        let network = shop();
        let _listener = listen(&network, "db", 5432);
        let _other = listen(&network, "web", 8080);
        assert_eq!(codes(&network, "web", "db", SQL), ["connected", "connected"]);
        // No edge: the caller's own lock.
        assert_eq!(codes(&network, "db", "web", "tcp:8080"), ["own-lock", "own-lock"]);
        assert_eq!(codes(&network, "db", "web", "udp:8080"), ["own-lock", "own-lock"]);
        assert!(!ask(&network, "db", "web", "tcp:8080").unwrap().allowed);
        // The caller has broken its own: the panel.
        network.nft("db", "flush ruleset");
        assert_eq!(codes(&network, "db", "web", "tcp:8080"), ["panel", "panel"]);
        // And if the panel let it pass: the lock of the target.
        let elements = |set: &str, family: usize| {
            let (from, to) = (network.addresses("db")[family], network.addresses("web")[family]);
            format!("add element netdev nsctl {set} {{ \"db\" . {from} . {to} . tcp . 8080 : \"web\" }}")
        };
        network.nft("fabric", &elements("edges4", 0));
        assert_eq!(codes(&network, "db", "web", "tcp:8080"), ["far-lock", "panel"]);
        network.nft("fabric", &elements("edges6", 1));
        assert_eq!(codes(&network, "db", "web", "tcp:8080"), ["far-lock", "far-lock"]);
        let drift = ask(&network, "db", "web", "tcp:8080").unwrap().drift;
        assert!(drift.iter().any(|what| what.contains("in shop-db")), "{drift:?}");
        // All of them broken, and it connects: nobody may take that for a right.
        network.nft("web", "flush ruleset");
        let replies = |set: &str, family: usize| {
            let (from, to) = (network.addresses("db")[family], network.addresses("web")[family]);
            format!("add element netdev nsctl {set} {{ \"web\" . {to} . {from} . tcp . 8080 : \"db\" }}")
        };
        network.nft("fabric", &replies("replies4", 0));
        assert_eq!(codes(&network, "db", "web", "tcp:8080")[0], "connected-without-a-right");
        network.apply();
        assert_eq!(codes(&network, "db", "web", "tcp:8080"), ["own-lock", "own-lock"]);
    });
}

#[test]
fn a_right_that_the_kernel_has_not_is_told_with_the_difference() {
    in_sandbox(|| {
        let network = shop();
        let _listener = listen(&network, "db", 5432);
        network.nft("fabric", "flush map netdev nsctl edges4");
        let half = ask(&network, "web", "db", SQL).unwrap();
        let codes: Vec<_> = half.tries.iter().map(|one| one.verdict.code()).collect();
        assert_eq!(codes, ["panel", "connected"]);
        assert!(half.tries[0].verdict.to_string().ends_with("although the policy allows it"), "{half:?}");
        assert!(half.drift.contains(&"edge web -> db:tcp:5432 is missing for IPv4".to_owned()), "{half:?}");
        network.apply();
        assert_eq!(self::codes(&network, "web", "db", SQL), ["connected", "connected"]);
    });
}

#[test]
fn who_is_beyond_its_limits_is_told_so() {
    in_sandbox(|| {
        let network = shop();
        let _listener = listen(&network, "db", 5432);
        assert_eq!(codes(&network, "cron", "db", SQL), ["connected", "connected"]);
        let to = std::net::SocketAddr::new(network.v4("db"), 5432);
        let mut held = network.connect("cron", to, common::network::SOON).unwrap();
        assert_eq!(codes(&network, "cron", "db", SQL), ["limit", "limit"]);
        // And while the one that it has is busy.
        let asked = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !asked.load(Ordering::Relaxed) {
                    held.write_all(b".").unwrap();
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            let codes = codes(&network, "cron", "db", SQL);
            asked.store(true, Ordering::Relaxed);
            assert_eq!(codes, ["limit", "limit"], "busy");
        });
        assert_eq!(codes(&network, "web", "db", SQL), ["connected", "connected"], "who has no limits");
        drop(held);
    });
}

#[test]
fn rules_of_others_are_named_where_they_stand() {
    in_sandbox(|| {
        let network = shop();
        let _listener = listen(&network, "db", 5432);
        assert_eq!(codes(&network, "web", "db", SQL), ["connected", "connected"]);
        let cases = [
            ("web", "inet", "output", "", "drop"),
            ("web", "inet", "output", "", "reject with tcp reset"),
            ("web", "inet", "postrouting", "", "drop"),
            ("fabric", "netdev", "ingress", "device web ", "drop"),
            ("db", "inet", "prerouting", "", "drop"),
            ("db", "inet", "input", "", "drop"),
            ("db", "inet", "input", "", "reject with tcp reset"),
            ("fabric", "netdev", "egress", "device db ", "drop"),
            // What comes back.
            ("db", "inet", "output", "", "drop"),
            ("fabric", "netdev", "ingress", "device db ", "drop"),
            ("web", "inet", "input", "", "drop"),
        ];
        for (place, family, hook, device, verdict) in cases {
            let rule = if family == "netdev" { "meta l4proto tcp" } else { "meta l4proto tcp th dport 5432" };
            let back = (place, hook) == ("db", "output") || (place, hook) == ("web", "input");
            let rule = if back { "meta l4proto tcp th sport 5432" } else { rule };
            let table = format!(
                "add table {family} other; add chain {family} other one {{ type filter hook {hook} {device}priority -7; }};
                 add rule {family} other one {rule} {verdict}"
            );
            network.nft(place, &table);
            let met = ask(&network, "web", "db", SQL).unwrap();
            let codes: Vec<_> = met.tries.iter().map(|one| one.verdict.code()).collect();
            assert_eq!(codes, ["foreign-chain", "foreign-chain"], "{place} {hook} {verdict}: {met:?}");
            let expected = format!("chain {family} other one in {place} (hook {hook}, priority -7, one of its rules)");
            let says = met.tries[0].verdict.to_string();
            assert!(says.contains(&expected), "{place} {hook}: {says}");
            network.nft(place, &format!("delete table {family} other"));
            assert_eq!(self::codes(&network, "web", "db", SQL), ["connected", "connected"], "after {place} {hook}");
        }
        // One that could stop nothing is no suspect.
        network.nft("db", "add table inet other; add chain inet other one { type filter hook input priority -7; }");
        let met = ask(&network, "web", "db", SQL).unwrap();
        assert_eq!((met.strangers.len(), met.strangers[0].stops_by), (1, None));
    });
}

#[test]
fn what_is_missing_of_the_way_is_said_before_anything_is_tried() {
    in_sandbox(|| {
        let network = Network::new("shop", SHOP);
        assert_eq!(codes(&network, "web", "db", SQL), ["not-applied", "not-applied"]);
        network.apply();
        let _listener = listen(&network, "db", 5432);
        assert_eq!(codes(&network, "web", "db", SQL), ["connected", "connected"]);
        for (netns, link, end) in [("shop-db", "net0", "its own end"), ("shop+fabric", "web", "the end in the fabric")]
        {
            ip(&format!("-n {netns} link set {link} down"));
            assert_eq!(codes(&network, "web", "db", SQL), ["wire-down", "wire-down"]);
            assert!(says(&network, "web", "db", SQL).ends_with(end), "{}", says(&network, "web", "db", SQL));
            network.apply();
            assert_eq!(codes(&network, "web", "db", SQL), ["connected", "connected"]);
        }
        ip("-n shop+fabric link del web");
        assert_eq!(codes(&network, "web", "db", SQL), ["wire-broken", "wire-broken"]);
        network.apply();
        ip("netns del shop-web");
        assert_eq!(codes(&network, "web", "db", SQL), ["no-namespace", "no-namespace"]);
        network.apply();
        assert_eq!(codes(&network, "web", "db", SQL), ["connected", "connected"]);
    });
}

#[test]
fn a_datagram_is_answered_refused_or_not_answered() {
    in_sandbox(|| {
        let network = shop();
        assert_eq!(codes(&network, "web", "db", "udp:5514"), ["nobody-listens", "nobody-listens"]);
        let silent = network.bind("db", IpAddr::from([0u16; 8]), 5514);
        assert_eq!(codes(&network, "web", "db", "udp:5514"), ["unanswered", "unanswered"]);
        let answering = std::thread::spawn(move || {
            silent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            // Two were not answered; two more come.
            for number in 0..4 {
                let (size, from) = silent.recv_from(&mut [0; 64]).unwrap();
                assert_eq!(size, 6, "six bytes");
                if number >= 2 {
                    silent.send_to(b"yes", from).unwrap();
                }
            }
        });
        assert_eq!(codes(&network, "web", "db", "udp:5514"), ["connected", "connected"]);
        answering.join().unwrap();
    });
}

#[test]
fn the_host_is_tried_from_and_to() {
    in_sandbox(|| {
        let network = shop();
        assert_eq!(codes(&network, "host", "web", "tcp:8080"), ["nobody-listens", "nobody-listens"]);
        assert_eq!(codes(&network, "web", "host", "tcp:9100"), ["nobody-listens", "nobody-listens"]);
        let _web = listen(&network, "web", 8080);
        let _metrics = listen(&network, "host", 9100);
        let _ssh = listen(&network, "host", 22);
        assert_eq!(codes(&network, "host", "web", "tcp:8080"), ["connected", "connected"]);
        assert_eq!(codes(&network, "web", "host", "tcp:9100"), ["connected", "connected"]);
        assert_eq!(codes(&network, "host", "db", SQL), ["own-lock", "own-lock"]);
        assert_eq!(codes(&network, "web", "host", "tcp:22"), ["own-lock", "own-lock"]);
    });
}

#[test]
fn a_name_is_looked_up_where_the_service_would() {
    in_sandbox(|| {
        let network = shop();
        let fault = |from: &str, to: &str| {
            let attempt = ask(&network, from, to, "tcp:1").unwrap();
            let outside = attempt.is_outside();
            attempt.lookup.and_then(|lookup| lookup.fault(outside))
        };
        assert_eq!(fault("web", "db"), None);
        assert!(fault("db", "web").unwrap().ends_with("does not name web: it has only what the service may reach"));
        std::fs::remove_file("/run/nsctl/shop/shop-web/hosts").unwrap();
        assert!(fault("web", "db").unwrap().ends_with("is not there: `nsctl apply` writes it"));
        assert_eq!(fault("host", "db"), None, "the host's files are its own");
    });
}

/// Somebody outside: one namespace behind the host, which answers at a public address.
fn internet() {
    ip("netns add internet");
    ip("link add inet0 type veth peer name eth0 netns internet");
    ip("address add 198.18.0.1/24 dev inet0");
    ip("link set inet0 up");
    ip("-n internet address add 198.18.0.2/24 dev eth0");
    ip("-n internet link set eth0 up");
    ip("-n internet link set lo up");
    ip("-n internet address add 9.9.9.9/32 dev lo");
    ip("route add default via 198.18.0.2");
}

#[test]
fn what_leaves_is_told_from_what_the_host_stops() {
    in_sandbox(|| {
        internet();
        std::fs::write("/run/resolv.conf", "").unwrap();
        let network = Network::new(
            "shop",
            &SHOP
                .replace("[host]", "[network]\nname = \"shop\"\nresolvers = [\"9.9.9.9\"]\n\n[host]")
                .replace("network.name = \"shop\"\n", ""),
        );
        network.apply();
        let wan = |from: &str, port: &str| {
            let address = Some("9.9.9.9".parse().unwrap());
            let question = Question { from: from.into(), to: "wan".into(), ports: port.parse().ok(), address };
            attempt(&network.nsctl, &question).unwrap()
        };
        let code = |from: &str, port: &str| wan(from, port).tries[0].verdict.code();
        assert_eq!(code("web", "tcp:443"), "refused-outside");
        assert!(wan("web", "tcp:443").lookup.unwrap().fault(true).unwrap().starts_with("no resolver answers"));
        let _outside = netns("internet").run(|| TcpListener::bind("9.9.9.9:443")).unwrap();
        let resolver = netns("internet").run(|| UdpSocket::bind("9.9.9.9:53")).unwrap();
        std::thread::spawn(move || {
            let mut question = [0; 64];
            while let Ok((size, from)) = resolver.recv_from(&mut question) {
                resolver.send_to(&question[..size], from).ok();
            }
        });
        assert_eq!(code("web", "tcp:443"), "connected");
        assert_eq!(wan("web", "tcp:443").lookup.unwrap().fault(true), None);
        assert_eq!(codes(&network, "web", "uplink", "udp:53")[0], "connected");
        assert_eq!(code("web", "tcp:80"), "own-lock");
        assert_eq!(code("db", "tcp:443"), "no-route", "who has no way out has no default route");
        // The internet keeps silent.
        let mute = "add table ip t; add chain ip t in { type filter hook input priority 0; policy drop; }";
        common::nft("internet", mute);
        assert_eq!(code("web", "tcp:443"), "gone");
        common::nft("internet", "delete table ip t");
        // The host's own firewall does not forward.
        network
            .nft("host", "add table ip fw; add chain ip fw stop { type filter hook forward priority 0; policy drop; }");
        let blocked = wan("web", "tcp:443");
        assert_eq!(blocked.tries[0].verdict.code(), "blocked");
        assert!(blocked.tries[0].verdict.to_string().contains("ip fw stop (policy drop)"), "{blocked:?}");
        network.nft("host", "delete table ip fw");
        assert_eq!(code("web", "tcp:443"), "connected");
        std::io::stdout().flush().unwrap();
    });
}

#[test]
fn what_cannot_be_tried_from_here_is_said() {
    in_sandbox(|| {
        let network = shop();
        let refused = |from: &str, to: &str, ports: &str| match ask(&network, from, to, ports) {
            Err(AttemptError::Usage { message, .. }) => message,
            other => panic!("{other:?}"),
        };
        assert!(refused("wan", "web", "tcp:8080").contains("stands outside"));
        assert_eq!(refused("web", "db", ""), "which port? one connection goes to one port");
        assert_eq!(refused("web", "wan", "tcp:443"), "wan has many addresses");
        assert_eq!(ask(&network, "host", "web", "").unwrap().port, 8080, "it has no other");
    });
}
