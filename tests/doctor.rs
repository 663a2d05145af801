//! Each thing that the doctor looks for is really made, by somebody else, and is told; and before it is made, it is not.

#![allow(clippy::disallowed_methods, reason = "it runs the command, and processes that live in services")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Output, Stdio};

use common::network::Network;
use common::{in_root_sandbox, in_sandbox, ip, nft_here};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

const POLICY: &str = r#"schema = 1
network = { name = "d", resolvers = ["192.0.2.53"] }

[service.web]
ports = { http = "tcp:8080" }
connect.db = ["sql"]
outbound = "direct"
dns = "direct"

[service.db]
ports = { sql = "tcp:5432" }

[host]
may_connect.db = ["sql"]
"#;

const TRANSCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/doctor.txt");

/// A host with a way out, and the network on it.
fn applied() -> Network {
    ip("link add out type veth peer name far");
    ip("link set far up");
    ip("address add 192.0.2.2/24 dev out");
    ip("link set out up");
    ip("route add default via 192.0.2.1");
    let network = Network::new("d", POLICY);
    network.apply();
    network
}

fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nsctl"));
    command.args(["-f", "/run/d/policy.toml", "--state", "/run/d/state"]).args(arguments.split_whitespace());
    command.stdin(Stdio::null()).env("LC_ALL", "C");
    command
}

fn doctor(arguments: &str) -> Output {
    command(&format!("doctor {arguments}")).output().unwrap()
}

/// What of one check, as `outcome: seen`.
fn of(check: &str) -> Vec<String> {
    told(&doctor("--json"), check).0
}

/// What was seen, and what to do.
fn told(output: &Output, check: &str) -> (Vec<String>, Vec<String>) {
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let all = answer["checks"].as_array().unwrap().iter().filter(|one| one["check"] == check);
    let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    all.map(|one| (format!("{}: {}", text(one, "outcome"), text(one, "seen")), text(one, "next"))).unzip()
}

fn is_well(check: &str) -> bool {
    let said = of(check);
    said.len() == 1 && said[0].starts_with("ok: ")
}

/// A process in a service, which ends with the test.
struct Sleeper(Child);

impl Sleeper {
    /// As root of the sandbox, with every capability, and with the files of the host.
    fn rooted(netns: &str) -> Self {
        Self::of(Command::new("ip").args(["netns", "exec", netns, "sleep", "100"]))
    }

    /// As the product runs a command: without a capability, and without the sockets of the host.
    fn harmless(service: &str) -> Self {
        Self::of(&mut command(&format!("exec {service} -- sleep 100")))
    }

    fn of(command: &mut Command) -> Self {
        Self::named("sleep", command)
    }

    fn named(name: &str, command: &mut Command) -> Self {
        let sleeper = Self(command.stdin(Stdio::null()).spawn().unwrap());
        let is = || fs::read_to_string(format!("/proc/{}/comm", sleeper.0.id())).unwrap();
        while is().trim_end() != name {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        sleeper
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The text with what differs from machine to machine left out.
fn stable(text: &str) -> String {
    let mut lines = Vec::new();
    let mut of_machine = false;
    for line in text.lines() {
        // They say what they see of the machine that runs the test.
        let check = line.get(6..18).unwrap_or_default().trim();
        of_machine = ["bridges", "kernel", "mounts", "processes"].contains(&check) || (of_machine && check.is_empty());
        if !of_machine && !line.contains(" ok, ") {
            lines.push(line.to_owned());
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn a_person_reads_what_the_transcript_says() {
    in_sandbox(|| {
        let network = applied();
        let well = doctor("");
        assert_eq!(well.status.code(), Some(0), "{well:?}");
        let _listener = network.listen("db", "127.0.0.1".parse().unwrap(), 5432);
        network.nft("fabric", "add table netdev somebody");
        let ill = doctor("");
        assert_eq!(ill.status.code(), Some(1), "a failed check is exit code 1");
        let text = |output: &Output| stable(&String::from_utf8(output.stdout.clone()).unwrap());
        let seen = format!("$ nsctl doctor\n{}\n$ nsctl doctor\n? 1\n{}", text(&well), text(&ill));
        if std::env::var_os("NSCTL_UPDATE").is_some() {
            fs::write(TRANSCRIPT, &seen).unwrap();
        }
        assert_eq!(seen, fs::read_to_string(TRANSCRIPT).unwrap(), "NSCTL_UPDATE=1 writes it anew");
    });
}

#[test]
fn every_check_is_there_and_none_fails_where_all_is_well() {
    in_sandbox(|| {
        let _network = applied();
        let answer: Value = serde_json::from_slice(&doctor("--json").stdout).unwrap();
        let checks = answer["checks"].as_array().unwrap();
        for check in [
            "capabilities",
            "kernel",
            "cookie",
            "clock",
            "mounts",
            "bridges",
            "policy",
            "state",
            "drift",
            "rules",
            "links",
            "forwarding",
            "conntrack",
            "listeners",
            "occupants",
            "names",
            "privileges",
        ] {
            let own: Vec<_> = checks.iter().filter(|one| one["check"] == check).collect();
            assert_eq!(own.len(), 1, "{check}: {own:?}");
            assert!(own[0]["outcome"] == "ok" || check == "mounts" || check == "bridges", "{own:?}");
        }
        let number = |key: &str| answer[key].as_u64().unwrap();
        assert_eq!(number("ok") + number("warn") + number("fail"), checks.len() as u64);
        assert_eq!(number("fail"), 0);
        let keys: Vec<_> = checks[0].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["check", "next", "outcome", "place", "seen"]);
    });
}

#[test]
fn a_look_changes_nothing() {
    in_sandbox(|| {
        // With a way out a datagram is sent, which counts.
        let network =
            Network::new("d", &common::network::replaced(POLICY, "outbound = \"direct\"\ndns = \"direct\"\n", ""));
        network.apply();
        let before = common::machine::Machine::now();
        assert_eq!(doctor("").status.code(), Some(0));
        before.assert_unchanged("by a look");
    });
}

#[test]
fn rules_of_others_that_stop_services_are_named_with_the_line_that_lets_them_pass() {
    in_sandbox(|| {
        let network = applied();
        assert!(is_well("rules"), "{:?}", of("rules"));
        nft_here("add table ip filter");
        nft_here("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
        nft_here("add chain ip filter DOCKER");
        let (seen, next) = told(&doctor("--json"), "rules");
        let stopped =
            "fail: ip filter FORWARD (policy drop) stops what services send outside: a datagram did not get through";
        assert_eq!(seen, [stopped]);
        for line in next[0].split(" && ") {
            nft_here(line.trim_start_matches("nft '").trim_end_matches('\''));
        }
        let well = of("rules");
        assert!(well.len() == 1 && well[0].ends_with("; docker keeps rules here"), "the line helped: {well:?}");
        // The host's own end.
        nft_here("add chain ip filter OUTPUT { type filter hook output priority 0; policy drop; }");
        let (seen, next) = told(&doctor("--json"), "rules");
        assert_eq!(seen, ["warn: ip filter OUTPUT (policy drop) may stop what the host sends to services"]);
        assert!(next[0].ends_with("nft 'insert rule ip filter OUTPUT oifname \"d+host\" accept'"), "{next:?}");
        nft_here("delete table ip filter");
        // Inside of a service.
        network.nft("web", "add table inet wall");
        network.nft("web", "add chain inet wall look { type filter hook input priority 0; }");
        assert!(is_well("rules"), "a chain that cannot drop stops nobody: {:?}", of("rules"));
        network.nft("web", "add chain inet wall out { type filter hook output priority 0; policy drop; }");
        let seen = of("rules");
        assert_eq!(seen, ["warn: chain inet wall out in d-web is not ours and may drop at output (policy drop)"]);
        for n in 0..10 {
            let hook = "{ type filter hook output priority 0; policy drop; }";
            network.nft("web", &format!("add chain inet wall x{n} {hook}"));
        }
        let seen = of("rules");
        assert_eq!((seen.len(), seen[8].as_str()), (9, "warn: 3 more chains in d-web are not ours and may drop"));
    });
}

#[test]
fn a_bridge_whose_frames_are_judged_as_if_they_were_forwarded_is_named() {
    in_sandbox(|| {
        let network = applied();
        let there = fs::exists("/proc/sys/net/bridge/bridge-nf-call-iptables").unwrap();
        assert!(is_well("bridges"), "there is no bridge: {:?}", of("bridges"));
        ip("link add vmbr type bridge");
        if there {
            let said = of("bridges");
            assert!(
                said[0].starts_with("warn: net.bridge.bridge-nf-call-iptables, ") && said[0].contains("vmbr"),
                "{said:?}"
            );
            for knob in ["iptables", "ip6tables", "arptables"] {
                network.witness("host", &format!("sysctl -w net.bridge.bridge-nf-call-{knob}=0"));
            }
        }
        assert_eq!(of("bridges"), ["ok: br_netfilter is not loaded, or off"]);
    });
}

#[test]
fn forwarding_that_is_off_is_named_by_its_interface() {
    in_sandbox(|| {
        let network = applied();
        let well = of("forwarding");
        assert_eq!(well.len(), 1);
        assert!(well[0].contains("net.ipv4.conf.d+leg.forwarding = 1"), "{well:?}");
        network.witness("host", "sysctl -w net.ipv4.conf.d+leg.forwarding=0");
        let seen = "net.ipv4.conf.d+leg.forwarding is 0 and ought to be 1: nothing comes out that way";
        assert_eq!(of("forwarding"), [format!("fail: {seen}")]);
        assert_eq!(doctor("").status.code(), Some(1));
        network.apply();
        assert_eq!(of("forwarding"), well);
    });
}

#[test]
fn whoever_listens_where_nobody_can_reach_him_is_named() {
    in_sandbox(|| {
        let network = applied();
        let any = || "0.0.0.0".parse().unwrap();
        let right = network.listen("db", any(), 5432);
        let own = network.listen("db", "127.0.0.1".parse().unwrap(), 9999);
        let asking = network.bind("db", any(), 40000);
        assert!(is_well("listeners"), "{:?}", of("listeners"));
        let undeclared = network.listen("db", any(), 9998);
        let seen = "warn: db listens on 0.0.0.0:9998 (tcp), which the policy does not declare: nobody reaches it";
        assert_eq!(of("listeners"), [seen]);
        drop(undeclared);
        let datagrams = network.bind("db", any(), 53);
        let seen = "warn: db listens on 0.0.0.0:53 (udp), which the policy does not declare: nobody reaches it";
        assert_eq!(of("listeners"), [seen]);
        drop(datagrams);
        let many: Vec<_> = (7000..7020).map(|port| network.listen("db", any(), port)).collect();
        let seen = of("listeners");
        let more = "warn: db listens on 12 more ports that the policy does not declare";
        assert_eq!((seen.len(), seen[8].as_str()), (9, more));
        drop((many, right, own, asking));
        let _loopback = network.listen("db", "127.0.0.1".parse().unwrap(), 5432);
        let seen = "fail: db:sql (tcp:5432) listens on loopback only, where nobody reaches it";
        assert_eq!(of("listeners"), [seen]);
    });
}

#[test]
fn a_port_with_clients_where_nobody_listens_is_named_while_the_service_runs() {
    in_sandbox(|| {
        let network = applied();
        assert!(is_well("listeners"), "nobody runs, so nobody has to listen");
        let _sleeper = Sleeper::harmless("db");
        let seen = "warn: db:sql (tcp:5432) has clients, its service runs, and nobody listens there";
        assert_eq!(of("listeners"), [seen]);
        let _listener = network.listen("db", network.v4("db"), 5432);
        assert!(is_well("listeners"), "{:?}", of("listeners"));
    });
}

#[test]
fn a_port_that_is_exposed_and_where_nobody_listens_is_named() {
    in_sandbox(|| {
        let network = applied();
        assert!(is_well("listeners"));
        network.change(&format!("{POLICY}\n[service.db.expose.onion]\nports = {{ \"5432\" = \"sql\" }}\n"));
        assert_eq!(of("listeners"), ["warn: db:sql (tcp:5432) is exposed, and nobody listens"]);
        let _listener = network.listen("db", network.v4("db"), 5432);
        assert!(is_well("listeners"), "{:?}", of("listeners"));
    });
}

#[test]
fn a_process_that_could_undo_its_lock_is_named() {
    in_sandbox(|| {
        let _network = applied();
        assert!(is_well("privileges"));
        let rooted = Sleeper::rooted("d-web");
        let seen = of("privileges");
        let expected = format!(
            "warn: process {} (sleep) of web has CAP_NET_ADMIN and CAP_SYS_ADMIN: it can undo its own lock, and the panel \
             alone stands",
            rooted.0.id()
        );
        assert_eq!(seen, [expected]);
    });
}

#[test]
fn a_process_without_power_is_seen_and_not_complained_of() {
    in_root_sandbox(|| {
        let network = applied();
        let harmless = Sleeper::of(&mut command("exec --user nobody web -- sleep 100"));
        let seen = of("privileges");
        assert!(is_well("privileges"), "{seen:?}");
        let occupants = of("occupants");
        assert!(occupants[0].ends_with("; 1 service namespace has somebody in them"), "it was seen: {occupants:?}");
        // Another user with one power alone.
        let one = "--inh-caps=-all,+net_admin --ambient-caps=-all,+net_admin --bounding-set=-all,+net_admin";
        let user = "--reuid=65534 --regid=65534 --clear-groups";
        let line = format!("netns exec d-db setpriv {user} {one} sleep 100");
        let able = Sleeper::of(Command::new("ip").args(line.split(' ')));
        let expected = format!(
            "warn: process {} (sleep) of db has CAP_NET_ADMIN: it can undo its own lock, and the panel alone stands",
            able.0.id()
        );
        assert_eq!(of("privileges"), [expected]);
        drop((harmless, able));
        network.down();
    });
}

#[test]
fn a_socket_that_answers_names_around_the_lock_is_named_where_a_process_sees_it() {
    in_sandbox(|| {
        let _network = applied();
        let hidden = Sleeper::harmless("db");
        fs::create_dir("/run/nscd").unwrap();
        let _nscd = UnixListener::bind("/run/nscd/socket").unwrap();
        drop(hidden);
        let hidden = Sleeper::harmless("db");
        assert!(is_well("names"), "`exec` hides it: {:?}", of("names"));
        let sees = Sleeper::rooted("d-web");
        let expected = format!(
            "warn: process {} (sleep) of web can reach /run/nscd/socket: nscd, which answers names for the host",
            sees.0.id()
        );
        assert_eq!(of("names"), std::slice::from_ref(&expected));
        fs::create_dir_all("/run/dbus").unwrap();
        let _bus = UnixListener::bind("/run/dbus/system_bus_socket").unwrap();
        let bus = "the system bus, by which systemd-resolved answers names too";
        let said = of("names");
        assert!(said.contains(&expected), "{said:?}");
        for sleeper in [&hidden, &sees] {
            let needle = format!("process {} (sleep)", sleeper.0.id());
            assert!(said.iter().any(|line| line.contains(&needle) && line.ends_with(bus)), "{said:?}");
        }
    });
}

#[test]
fn nobody_ought_to_live_in_the_fabric() {
    in_sandbox(|| {
        let _network = applied();
        assert!(is_well("occupants"));
        let sleeper = Sleeper::rooted("d+fabric");
        let expected = format!("warn: process {} (sleep) runs in d+fabric, where nobody ought to", sleeper.0.id());
        assert_eq!(of("occupants"), [expected]);
    });
}

#[test]
fn a_program_that_configures_links_is_believed_only_where_it_says_so() {
    in_sandbox(|| {
        let _network = applied();
        assert!(is_well("links"));
        fs::copy("/bin/sleep", "/run/NetworkManager").unwrap();
        let running = Sleeper::named("NetworkManager", Command::new("/run/NetworkManager").arg("100"));
        let unseen =
            |link: &str| format!("warn: NetworkManager runs, and nothing tells whether it leaves {link} alone");
        assert_eq!(of("links"), [unseen("d+host"), unseen("d+leg")]);
        fs::remove_file("/run/NetworkManager").unwrap();
        fs::create_dir_all("/run/NetworkManager/devices").unwrap();
        for (link, managed) in [("d+host", "false"), ("d+leg", "true")] {
            let listed = ip(&format!("-o link show {link}"));
            let file = format!("/run/NetworkManager/devices/{}", listed.split(':').next().unwrap());
            fs::write(file, format!("[device]\nmanaged={managed}\n")).unwrap();
        }
        let said = of("links");
        drop(running);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("warn: NetworkManager manages d+leg, as /run/NetworkManager/devices/"), "{said:?}");
    });
}

#[test]
fn a_state_that_cannot_be_kept_is_named() {
    in_sandbox(|| {
        let network = Network::new("d", POLICY);
        let at = |state: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_nsctl"));
            told(
                &command.args(["-f", "/run/d/policy.toml", "--json", "--state", state, "doctor"]).output().unwrap(),
                "state",
            )
            .0
        };
        assert_eq!(at("/run/d/state"), ["ok: /run/d/state/d: there is none yet, there is room"]);
        fs::create_dir_all("/run/open/d").unwrap();
        fs::set_permissions("/run/open/d", fs::Permissions::from_mode(0o777)).unwrap();
        let said = at("/run/open");
        assert!(said[0].starts_with("fail: E0007: "), "{said:?}");
        fs::create_dir_all("/run/full").unwrap();
        mount(Some("full"), "/run/full", Some("tmpfs"), MsFlags::empty(), Some("size=1m,mode=0755")).unwrap();
        assert_eq!(at("/run/full"), ["fail: /run/full has 1024 KiB free"]);
        mount(Some("full"), "/run/full", Some("tmpfs"), MsFlags::MS_RDONLY, Some("mode=0755")).unwrap();
        assert_eq!(at("/run/full"), ["fail: /run/full cannot be written: it is mounted read-only"]);
        fs::create_dir_all("/run/broken/d").unwrap();
        fs::set_permissions("/run/broken/d", fs::Permissions::from_mode(0o700)).unwrap();
        fs::write("/run/broken/d/addresses.json", "{").unwrap();
        let said = at("/run/broken");
        assert!(said[0].starts_with("fail: E0912: "), "{said:?}");
        drop(network);
    });
}

#[test]
fn a_policy_that_others_can_edit_or_that_is_wrong_is_named() {
    in_sandbox(|| {
        let network = Network::new("d", POLICY);
        let policy = |mode| fs::set_permissions("/run/d/policy.toml", fs::Permissions::from_mode(mode)).unwrap();
        policy(0o644);
        assert_eq!(of("policy"), ["ok: network d: 2 services, 2 edges; nobody else can edit it"]);
        assert_eq!(of("drift"), ["warn: the policy is not applied"]);
        policy(0o666);
        let said = of("policy");
        assert!(said[0].starts_with("fail: ") && said[0].ends_with("`nsctl apply` refuses that (E0004)"), "{said:?}");
        policy(0o644);
        network.write("schema = 1\nnetwork.name = \"d\"\n[service.a]\nconnect.b = [\"x\"]\n");
        let said = of("policy");
        assert!(said[0].starts_with("fail: the policy is refused"), "{said:?}");
        assert_eq!(doctor("").status.code(), Some(1));
    });
}

#[test]
fn without_a_policy_the_machine_is_looked_at_alone() {
    in_sandbox(|| {
        let output = Command::new(env!("CARGO_BIN_EXE_nsctl")).args(["doctor", "--json"]).output().unwrap();
        let (said, _) = told(&output, "policy");
        assert_eq!(said, ["ok: there is none yet: only the machine was looked at"]);
        assert!(told(&output, "kernel").0[0].starts_with("ok: Linux "));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    });
}

#[test]
fn who_may_not_look_is_told_what_is_missing() {
    in_root_sandbox(|| {
        let network = applied();
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-sys_admin,-sys_ptrace", env!("CARGO_BIN_EXE_nsctl")]);
        let output = command.args(["-f", "/run/d/policy.toml", "--state", "/run/d/state", "--json", "doctor"]).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(1));
        let (said, _) = told(&output, "capabilities");
        assert_eq!(
            said,
            [
                "fail: without CAP_SYS_ADMIN, no namespace can be entered",
                "warn: without CAP_SYS_PTRACE, processes of other users cannot be looked at"
            ]
        );
        assert_eq!(told(&output, "drift").0, [""; 0], "what cannot be seen is not called well");
        network.down();
    });
}
