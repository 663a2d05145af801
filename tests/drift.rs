//! Each kind of drift is made by somebody else, named by the command in the words that are documented, and gone after
//! `apply` where that repairs it.

#![allow(
    clippy::disallowed_methods,
    reason = "it runs the command, its witnesses, and processes that live in services"
)]

mod common;

use std::fs;
use std::process::{Child, Command, Output, Stdio};

use common::network::Network;
use common::{in_root_sandbox, in_sandbox, ip};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

const POLICY: &str = r#"schema = 1
network.name = "d"

[service.web]
ports = { http = "tcp:8080" }
connect.db = ["sql"]
outbound = "direct"

[service.db]
ports = { sql = "tcp:5432" }
unit = "db.service"

[host]
may_connect.db = ["sql"]
"#;

/// A host with a way out, so that there is an uplink.
fn applied() -> Network {
    ip("link add out type veth peer name far");
    ip("link set far up");
    ip("address add 192.0.2.2/24 dev out");
    ip("link set out up");
    ip("route add default via 192.0.2.1");
    let network = Network::new("d", POLICY);
    network.apply();
    assert_eq!(told(), (0, "no drift\n".to_owned()), "before anything is done to it");
    network
}

fn nsctl(arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nsctl"));
    command.args(["-f", "/run/d/policy.toml", "--state", "/run/d/state"]).args(arguments.split_whitespace());
    command.stdin(Stdio::null()).env("LC_ALL", "C").output().unwrap()
}

/// What `nsctl drift` says, and how it ends.
fn told() -> (i32, String) {
    let output = nsctl("drift");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr, "", "nothing is said beside the answer");
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// The differences as `kind: what`.
fn kinds() -> Vec<String> {
    let answer: Value = serde_json::from_slice(&nsctl("drift --json").stdout).unwrap();
    let all = answer["drift"].as_array().unwrap();
    all.iter().map(|one| format!("{}: {}", one["kind"].as_str().unwrap(), one["what"].as_str().unwrap())).collect()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Something that a stranger does to the network `d`, and all that is said of it.
type Damage = (&'static str, &'static [&'static str]);

const REPAIRED: &[Damage] = &[
    (
        "ip netns exec d+fabric nft delete chain netdev nsctl wire17",
        &["missing-chain: chain wire17 of netdev nsctl in d+fabric is gone"],
    ),
    (
        "ip -n d-web link del net0",
        &[
            "missing-wire: the wire of web is missing",
            "missing-edge: edge web -> db:tcp:5432 is missing",
            "missing-edge: edge web -> wan is missing",
        ],
    ),
    (
        "ip -n d-web link set net0 down",
        &["changed-wire: the wire of web is changed: it is down at its own end, address WEB6 is gone"],
    ),
    (
        "ip -n d-web address flush dev net0",
        &["changed-wire: the wire of web is changed: address 10.231.0.2 is gone, address WEB6 is gone"],
    ),
    (
        "ip -n d-web link set net0 mtu 1500",
        &["changed-wire: the wire of web is changed: MTU 1500 instead of 65535 at its own end"],
    ),
    ("ip -n d-web route del default", &["missing-route: web has lost the route 0.0.0.0/0 src 10.231.0.2 mtu 1500"]),
    (
        "ip -n d-web route add 10.9.0.0/16 dev net0 proto 110",
        &["undeclared-route: web has the route 10.9.0.0/16, which ought not to be"],
    ),
    ("ip -n d+fabric link set web down", &["wire-down: the wire of web is down at the end in the fabric"]),
    (
        "ip -n d+fabric link del web",
        &[
            "missing-wire: the wire of web is missing",
            "missing-edge: edge web -> db:tcp:5432 is missing",
            "missing-edge: edge web -> wan is missing",
        ],
    ),
    ("ip -n d+fabric link add other type bridge", &["extra-link: link other in d+fabric is not ours"]),
    (
        "ip netns del d-web",
        &[
            "missing-namespace: namespace d-web is missing",
            "missing-edge: edge web -> db:tcp:5432 is missing",
            "missing-edge: edge web -> wan is missing",
        ],
    ),
    (
        "ip netns del d+fabric",
        &[
            "missing-fabric: fabric d+fabric is missing",
            "missing-edge: edge host -> db:tcp:5432 is missing",
            "missing-edge: edge web -> db:tcp:5432 is missing",
            "missing-edge: edge web -> wan is missing",
            "changed-host-route: the host has lost a rule or route into 10.231.0.0/22 and fd18:ac3e:7343::/64 (table 1487683186)",
        ],
    ),
    (
        "ip link del d+host",
        &[
            "missing-wire: the wire of host is missing",
            "missing-edge: edge host -> db:tcp:5432 is missing",
            "changed-host-route: the host has lost a rule or route into 10.231.0.0/22 and fd18:ac3e:7343::/64 (table 1487683186)",
        ],
    ),
    (
        "ip link del d+leg",
        &[
            "changed-leg: the leg d+leg of the uplink is gone",
            "changed-sysctl: sysctl net.ipv4.conf.d+leg.forwarding on the host ought to be 1",
        ],
    ),
    (
        "ip netns exec d+fabric nft flush ruleset",
        &[
            "missing-edge: edge host -> db:tcp:5432 is missing",
            "missing-edge: edge web -> db:tcp:5432 is missing",
            "missing-edge: edge web -> wan is missing",
            "missing-table: table netdev nsctl in d+fabric is gone, with everything in it",
        ],
    ),
    (
        "ip netns exec d-db nft flush ruleset",
        &["missing-table: table inet nsctl in d-db is gone, with everything in it"],
    ),
    ("nft flush ruleset", &["missing-table: table inet nsctl-d on the host is gone, with everything in it"]),
    (
        "ip netns exec d-db nft add table inet nsctl { flags dormant; }",
        &["dormant-table: table inet nsctl in d-db is switched off (dormant)"],
    ),
    (
        "ip netns exec d-db nft flush chain inet nsctl input",
        &[
            "changed-rules: chain input of inet nsctl in d-db: 12 rules gone: `iif \"lo\" accept`, `ct state established \
           accept`, `icmp type @icmp_errors4 ct state related accept`, ...",
        ],
    ),
    (
        "ip netns exec d-db nft insert rule inet nsctl input accept",
        &["changed-rules: chain input of inet nsctl in d-db: 1 rule not ours: `accept`"],
    ),
    (
        "ip netns exec d-db nft add chain inet nsctl more",
        &["undeclared-chain: chain more of inet nsctl in d-db ought not to be"],
    ),
    (
        "ip netns exec d-db nft chain inet nsctl input { policy accept; }",
        &["changed-chain: chain input of inet nsctl in d-db has another hook or policy"],
    ),
    (
        "ip netns exec d-db nft add set inet nsctl more { type ipv4_addr; }",
        &["undeclared-set: set more of inet nsctl in d-db ought not to be"],
    ),
    (
        "ip netns exec d-db nft add element inet nsctl in4 { 10.231.0.9 . tcp . 22 }",
        &["undeclared-right: the lock in d-db has 10.231.0.9 -> db:tcp:22, which is not in the policy"],
    ),
    (
        "ip netns exec d-db nft flush set inet nsctl in4",
        &[
            "missing-right: edge host -> db:tcp:5432 is missing from the lock in d-db for IPv4",
            "missing-right: edge web -> db:tcp:5432 is missing from the lock in d-db for IPv4",
        ],
    ),
    (
        "ip netns exec d-web nft flush set inet nsctl direct4",
        &["missing-right: edge web -> wan is missing from the lock in d-web for IPv4"],
    ),
    (
        "ip netns exec d+fabric nft flush map netdev nsctl edges4",
        &[
            "missing-edge: edge host -> db:tcp:5432 is missing for IPv4",
            "missing-edge: edge web -> db:tcp:5432 is missing for IPv4",
        ],
    ),
    (
        "ip netns exec d+fabric nft flush map netdev nsctl replies6",
        &["changed-elements: set replies6 of netdev nsctl in d+fabric: 2 elements gone: "],
    ),
    (
        "ip netns exec d+fabric nft flush set netdev nsctl sources4",
        &["changed-elements: set sources4 of netdev nsctl in d+fabric: 5 elements gone: `\"db\" . 10.231.0.1`, \
           `\"web\" . 10.231.0.2`, `\"+uplink\" . 10.231.3.241`, ..."],
    ),
    (
        "ip netns exec d+uplink sysctl -w net.ipv4.ip_forward=0",
        &["changed-sysctl: sysctl net.ipv4.ip_forward in d+uplink is 0 and ought to be 1"],
    ),
    (
        "sysctl -w net.ipv4.conf.out.forwarding=0",
        &["changed-sysctl: sysctl net.ipv4.conf.out.forwarding on the host is 0 and ought to be 1"],
    ),
    (
        "ip rule del priority 11100",
        &["changed-host-route: the host has lost a rule or route into 10.231.0.0/22 (table 1487683186)"],
    ),
    ("rm /run/nsctl/d/d-web/hosts", &["changed-file: hosts of web is gone"]),
    ("cp /etc/hostname /run/nsctl/d/d-db/resolv.conf", &["changed-file: resolv.conf of db is changed"]),
];

/// The IPv6 address of `web`.
const WEB6: &str = "fd18:ac3e:7343:0:2ffa:6add:ed72:9a9c";

/// The kernel takes a namespace apart after `ip netns del` has ended: its wires go last.
fn wires_are_gone(network: &Network) {
    let wire_is_there = || match fs::exists("/run/netns/d+fabric").unwrap() {
        true => network.witness("fabric", "ip -br link").contains("web@"),
        false => ip("-br link").contains("d+host"),
    };
    while wire_is_there() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn whatever_a_turn_repairs_is_named_and_gone_after_it() {
    in_sandbox(|| {
        let network = applied();
        let mut wrong = Vec::new();
        for (damage, expected) in REPAIRED {
            network.witness("host", damage);
            if damage.starts_with("ip netns del") {
                wires_are_gone(&network);
            }
            let seen = kinds();
            let fits = |(seen, expected): (&String, &&str)| {
                let expected = expected.replace("WEB6", WEB6);
                *seen == expected || (expected.ends_with(": ") && seen.starts_with(&expected))
            };
            if seen.len() != expected.len() || !seen.iter().zip(*expected).all(fits) {
                wrong.push(format!("{damage}\n  {seen:#?}"));
            }
            let (code, text) = told();
            assert_eq!((code, text.lines().count()), (1, 2 * seen.len()), "{damage}: {text}");
            assert!(text.lines().skip(1).step_by(2).all(|next| next == "  repaired by `nsctl apply`"), "{text}");
            network.apply();
            assert_eq!(told(), (0, "no drift\n".to_owned()), "after {damage} and its repair");
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

/// A process in the namespace, which ends with the test.
struct Sleeper(Child);

impl Sleeper {
    fn in_netns(netns: &str) -> Self {
        Self::of(Command::new("ip").args(["netns", "exec", netns, "sleep", "100"]))
    }

    fn of(command: &mut Command) -> Self {
        let sleeper = Self(command.spawn().unwrap());
        // ip-netns(8) becomes the command once it is inside.
        let name = || fs::read_to_string(format!("/proc/{}/comm", sleeper.pid())).unwrap();
        while name() != "sleep\n" {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        sleeper
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_process_in_a_replaced_namespace_is_named_until_it_ends() {
    in_sandbox(|| {
        let network = applied();
        let sleeper = Sleeper::in_netns("d-web");
        // Somebody else's namespace is nobody's business.
        let _other = Sleeper(Command::new("unshare").args(["--net", "sleep", "100"]).spawn().unwrap());
        assert_eq!(told(), (0, "no drift\n".to_owned()), "it is at home");
        let pid = sleeper.pid();
        let stray = format!("stray-process: web runs in a namespace that is d-web no longer: process {pid} (sleep)");
        ip("netns del d-web");
        assert!(kinds().contains(&stray), "{:#?}", kinds());
        network.apply();
        assert_eq!(kinds(), std::slice::from_ref(&stray), "no turn mends it");
        let (code, text) = told();
        assert_eq!(code, 1);
        assert!(text.contains(&format!("(`kill {pid}`)")), "{text}");
        // Down and up again: what it lived in is known still.
        network.down();
        network.apply();
        assert_eq!(kinds(), std::slice::from_ref(&stray), "after down and apply");
        // The next one too, which is replaced in its turn.
        let next = Sleeper::in_netns("d-web");
        ip("netns del d-web");
        network.apply();
        let both = kinds();
        assert!(both.len() == 2 && both.contains(&stray), "{both:?}");
        assert!(both.iter().any(|line| line.contains(&format!("process {} (sleep)", next.pid()))), "{both:?}");
        drop((sleeper, next));
        assert_eq!(told(), (0, "no drift\n".to_owned()), "it has ended");
        network.down();
        assert!(!fs::exists("/run/nsctl").unwrap(), "nothing is kept of namespaces in which nobody lives");
    });
}

/// As in a container on the same machine, with a network of the same name.
#[test]
fn who_lives_in_another_network_of_the_same_name_is_no_stray() {
    in_sandbox(|| {
        let _network = applied();
        let nsctl = env!("CARGO_BIN_EXE_nsctl");
        let script = format!(
            "mount -t tmpfs none /run/netns && mount -t tmpfs none /run/nsctl && ip link set lo up && \
             {nsctl} -f /run/d/policy.toml --state /run/d/other apply > /run/d/said 2>&1 && \
             exec ip netns exec d-web sleep 100"
        );
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--propagation", "private", "sh", "-c", &script]);
        let other = Sleeper::of(&mut command);
        assert!(fs::read_to_string("/run/d/said").unwrap().contains("changes made"));
        assert_eq!(told(), (0, "no drift\n".to_owned()), "{} is another one's", other.pid());
    });
}

#[test]
fn what_only_a_person_can_mend_is_named_with_the_next_move_and_left_alone() {
    in_sandbox(|| {
        let network = applied();
        network.nft("fabric", "add table netdev somebody");
        ip("-n d-web link add tap9 type ifb");
        ip("netns add d-other");
        let expected = [
            "foreign table netdev somebody in d+fabric",
            "  not ours, and never deleted; look at it: `ip netns exec d+fabric nft list table netdev somebody`",
            "foreign namespace d-other",
            "  not ours, and never deleted; who is in it: `ip netns pids d-other`",
            "link tap9 (ifb) in d-web is not ours",
            "  opens nothing: the panel looks at the other end of net0; look at it: \
             `ip netns exec d-web ip -d link show tap9`",
        ];
        for when in ["before a turn", "after a turn"] {
            let (code, text) = told();
            assert_eq!((code, text.lines().collect::<Vec<_>>()), (1, expected.to_vec()), "{when}");
            network.apply();
        }
        let answer: Value = serde_json::from_slice(&nsctl("drift --json").stdout).unwrap();
        assert_eq!(keys(&answer), ["drift", "network", "unseen"]);
        let table = ["family", "kind", "netns", "next", "repairable", "table", "what"];
        assert_eq!(keys(&answer["drift"][0]), table);
        assert_eq!(answer["drift"][0]["repairable"], false);
        assert_eq!(answer["drift"][2]["link_kind"], "ifb");
        let status: Value = serde_json::from_slice(&nsctl("status --json").stdout).unwrap();
        let status: Vec<&str> = status["drift"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
        assert_eq!(status, [expected[0], expected[2], expected[4]], "status has the same words");
        network.nft("fabric", "delete table netdev somebody");
        ip("-n d-web link del tap9");
        ip("netns del d-other");
        assert_eq!(told(), (0, "no drift\n".to_owned()));
    });
}

#[test]
fn of_thousands_of_links_the_first_are_named_and_the_rest_are_counted() {
    in_sandbox(|| {
        let network = applied();
        let links: String = (0..3000).map(|n| format!("link add x{n} type ifb\n")).collect();
        fs::write("/run/links", links).unwrap();
        network.witness("web", "ip -batch /run/links");
        let seen = kinds();
        assert_eq!(seen.len(), 9, "{seen:#?}");
        assert_eq!(seen[0], "extra-link: link x0 (ifb) in d-web is not ours");
        assert_eq!(seen[8], "many-links: 2992 more links in d-web are not ours");
    });
}

#[test]
fn of_thousands_of_rules_the_first_are_named_and_the_rest_are_counted() {
    in_sandbox(|| {
        let network = applied();
        let chains: String = (0..3000).map(|n| format!("add chain inet nsctl x{n}\n")).collect();
        fs::write("/run/chains", chains).unwrap();
        network.witness("web", "nft -f /run/chains");
        let seen = kinds();
        assert_eq!(seen.len(), 65, "{seen:#?}");
        assert!(seen[0].starts_with("undeclared-chain: chain x0 of inet nsctl in d-web"), "{seen:#?}");
        assert_eq!(seen[64], "more-rules: 2936 more differences of the rules in d-web");
        network.apply();
        assert_eq!(told(), (0, "no drift\n".to_owned()));
    });
}

/// Control groups as systemd has them, in files of ours.
fn control_groups(unit: &str, processes: &[u32]) {
    mount(Some("cgroup"), "/sys/fs/cgroup", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let group = format!("/sys/fs/cgroup/system.slice/{unit}");
    fs::create_dir_all(&group).unwrap();
    let listed: String = processes.iter().map(|pid| format!("{pid}\n")).collect();
    fs::write(format!("{group}/cgroup.procs"), listed).unwrap();
}

#[test]
fn a_unit_that_runs_outside_of_its_namespace_is_named() {
    in_sandbox(|| {
        let network = applied();
        let inside = Sleeper::in_netns("d-db");
        let outside = Sleeper(Command::new("sleep").arg("100").spawn().unwrap());
        control_groups("db.service", &[inside.pid()]);
        assert_eq!(told(), (0, "no drift\n".to_owned()), "it is at home");
        control_groups("db.service", &[inside.pid(), outside.pid()]);
        let (code, text) = told();
        let pid = outside.pid();
        let expected = format!(
            "db.service runs outside its namespace: process {pid} (sleep)\n  no lock holds it: give the unit the lines of \
             `nsctl env db`, then `systemctl restart db.service`\n"
        );
        assert_eq!((code, text), (1, expected));
        // In a namespace that was its own it is a stray, and the unit is what to restart.
        ip("netns del d-db");
        network.apply();
        control_groups("db.service", &[inside.pid()]);
        let (_, text) = told();
        assert!(text.ends_with("\n  `systemctl restart db.service`\n"), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
    });
}

#[test]
fn processes_and_links_that_come_and_go_meanwhile_are_no_error() {
    in_sandbox(|| {
        let _network = applied();
        let busy = "while :; do ip netns exec d-web true; unshare --net true; ip -n d-db link add x type ifb; \
                    ip -n d-db link del x; done";
        let _busy = Sleeper(Command::new("sh").args(["-c", busy]).spawn().unwrap());
        let of_the_link = "link x (ifb) in d-db is not ours";
        for _ in 0..20 {
            let (_, text) = told();
            let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(' ')).collect();
            assert!(lines == ["no drift"] || lines == [of_the_link], "{text}");
        }
    });
}

#[test]
fn drift_without_the_power_to_look_says_which_is_missing() {
    in_root_sandbox(|| {
        let network = applied();
        let mut command = Command::new("setpriv");
        command.args([
            "--bounding-set",
            "-net_admin",
            env!("CARGO_BIN_EXE_nsctl"),
            "-f",
            "/run/d/policy.toml",
            "drift",
        ]);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("E0910: drift needs CAP_NET_ADMIN"), "{said}");
        network.down();
    });
}
