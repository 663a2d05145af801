//! The daemon: what is spoiled is mended and named, what is spoiled without pause is held closed, and its loss changes
//! nothing.

#![cfg(feature = "daemon")]
#![allow(clippy::disallowed_methods, reason = "the daemon is started, and witnesses spoil what it watches")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::network::{NEVER, Network, SOON};
use common::resident::{Resident, eventually};
use common::talk::{Speaker, Talk};
use common::{in_patient_sandbox, in_root_sandbox, in_sandbox, ip, nft};
use nsctl::orchestrator::{Confirm, How};

const POLICY: &str = r#"
schema = 1
[network]
name = "node"
pool4 = "10.31.0.0/24"
[service.a]
connect.b = ["x", "y"]
[service.c]
connect.b = ["x"]
[service.b]
ports = { x = "tcp:5000", y = "udp:5001" }
"#;

fn network() -> (Network, Resident) {
    let network = Network::new("node", POLICY);
    network.apply();
    let daemon = Resident::start(&network);
    (network, daemon)
}

fn reaches(network: &Network, from: &str) -> bool {
    let to = SocketAddr::new(network.v4("b"), 5000);
    let _listener = network.listen("b", [0; 4].into(), 5000);
    network.connect(from, to, NEVER).is_ok()
}

#[test]
fn what_is_spoiled_is_mended_and_named() {
    in_sandbox(|| {
        let (network, daemon) = network();
        assert!(reaches(&network, "a"), "the control");
        type Spoil = Box<dyn Fn()>;
        let spoil: [(&str, Spoil); 9] = [
            ("the wire of a is missing", Box::new(|| drop(ip("-n node-a link delete net0")))),
            ("table inet nsctl in node-b is gone", Box::new(|| drop(nft("node-b", "flush ruleset")))),
            ("edge a -> b", Box::new(|| drop(nft("node+fabric", "flush map netdev nsctl edges4")))),
            ("panel4", Box::new(|| drop(nft("node+fabric", "flush chain netdev nsctl panel4")))),
            ("node-c", Box::new(|| drop(ip("netns delete node-c")))),
            ("wire of b", Box::new(|| drop(ip("-n node+fabric link set dev b down")))),
            ("wire of a", Box::new(|| drop(ip("-n node-a link set dev net0 down")))),
            (
                "in node+fabric",
                Box::new(|| {
                    drop(common::witness(Command::new("ip").args([
                        "netns",
                        "exec",
                        "node+fabric",
                        "sysctl",
                        "-qw",
                        "net.ipv4.ip_forward=1",
                    ])))
                }),
            ),
            ("node+fabric", Box::new(|| drop(ip("netns delete node+fabric")))),
        ];
        for (words, spoil) in spoil {
            let repairs = || daemon.snapshot(&network, "node")["repairs"].as_u64().unwrap();
            let before = repairs();
            spoil();
            if words.starts_with("in ") {
                // Nothing of netlink tells of a sysctl: the compare of every minute does. Another change brings it forward.
                ip("-n node+fabric link set dev b down");
            }
            eventually(&format!("a repair after `{words}`"), || repairs() > before);
            eventually(&format!("no step left after `{words}`"), || network.plan().is_empty());
            let said = daemon.messages().pop().unwrap_or_default();
            let last = daemon.messages().into_iter().rfind(|message| message.starts_with("drift, mended")).unwrap();
            assert!(last.contains(words) || words == "node+fabric", "`{words}`: {said}\n{:#?}", daemon.messages());
            assert!(reaches(&network, "a") && reaches(&network, "c"), "after `{words}`");
        }
        assert!(daemon.stop());
    });
}

#[test]
fn what_is_foreign_is_told_and_left_alone() {
    in_sandbox(|| {
        let (network, daemon) = network();
        nft("node+fabric", "add table inet stranger");
        daemon.wait_for("drift, left alone: foreign table inet stranger in node+fabric");
        assert!(nft("node+fabric", "list tables").contains("stranger"));
        let snapshot = daemon.snapshot(&network, "node");
        assert_eq!(
            (&snapshot["drift"][0], &snapshot["repairs"]),
            (&"foreign table inet stranger in node+fabric".into(), &0.into())
        );
    });
}

#[test]
fn who_spoils_a_place_without_pause_is_held_closed_and_costs_no_other_its_repair() {
    in_sandbox(|| {
        let (network, daemon) = network();
        let talk = Talk::udp(&network, "a", ("b", network.v4("b"), 5001));
        let held = || daemon.snapshot(&network, "node")["held"].clone();
        for n in 0..7 {
            let before = daemon.snapshot(&network, "node")["repairs"].as_u64().unwrap();
            nft("node-c", "flush ruleset");
            eventually(&format!("repair {n}"), || {
                daemon.snapshot(&network, "node")["repairs"].as_u64().unwrap() > before
            });
            eventually("the lock or the hold", || held()[0] == "c" || network.plan().is_empty());
            assert_eq!(held()[0] == "c", n == 6, "after {} times", n + 1);
        }
        assert!(ip("-n node+fabric link show c").contains("state DOWN"));
        assert!(!reaches(&network, "c"), "it is closed although its own rules are gone");
        assert!(talk.goes_on(), "the others go on");
        let before = daemon.snapshot(&network, "node")["repairs"].as_u64().unwrap();
        nft("node-a", "flush ruleset");
        eventually("the others are mended", || daemon.snapshot(&network, "node")["repairs"].as_u64().unwrap() > before);
        let held_now = network.nsctl.status().unwrap().held;
        assert_eq!(held_now, ["c"]);
        let again = {
            daemon.kill();
            Resident::start(&network)
        };
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(again.snapshot(&network, "node")["held"][0], "c", "one that is started anew knows");
        network.apply();
        eventually("lifted", || again.snapshot(&network, "node")["held"][0].is_null());
        assert!(reaches(&network, "c"), "apply lifts it");
        talk.end();
    });
}

/// One question after another; how many had no answer.
fn unanswered(network: &Network, stop: &AtomicBool) -> (u32, u32) {
    let (client, server) = (network.bind("a", [0; 4].into(), 0), network.bind("b", network.v4("b"), 5001));
    client.connect((network.v4("b"), 5001)).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let (mut asked, mut lost) = (0, 0);
    let deaf = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut question = [0; 4];
            while !deaf.load(Ordering::Relaxed) {
                if let Ok((4, who)) = server.recv_from(&mut question) {
                    server.send_to(&question, who).ok();
                }
            }
        });
        while !stop.load(Ordering::Relaxed) {
            asked += 1;
            let mut answer = [0; 4];
            let heard = client.send(&u32::to_be_bytes(asked)).is_ok() && matches!(client.recv(&mut answer), Ok(4));
            if !heard || u32::from_be_bytes(answer) != asked {
                lost += 1;
            }
        }
        // Only now: the last question too is one that has to be answered.
        deaf.store(true, Ordering::Relaxed);
    });
    (asked, lost)
}

#[test]
fn a_daemon_that_is_killed_twenty_times_costs_no_packet() {
    in_patient_sandbox(Duration::from_secs(240), || {
        let network = Network::new("node", POLICY);
        network.apply();
        let tcp = Talk::tcp(&network, "a", ("b", network.v4("b"), 5000), Speaker::Server);
        let stop = AtomicBool::new(false);
        let (asked, lost) = std::thread::scope(|scope| {
            let talk = scope.spawn(|| unanswered(&network, &stop));
            for n in 0..20 {
                let daemon = Resident::start(&network);
                if n % 2 == 0 {
                    // In the middle of a repair, too.
                    nft("node-c", "flush ruleset");
                    std::thread::sleep(Duration::from_millis(10 * n));
                }
                daemon.kill();
            }
            stop.store(true, Ordering::Relaxed);
            talk.join().unwrap()
        });
        assert_eq!(lost, 0, "of {asked}");
        assert!(asked > 1000, "{asked} is no traffic");
        assert!(tcp.goes_on());
        tcp.end();
        let _daemon = Resident::start(&network);
        eventually("all is mended", || network.plan().is_empty());
    });
}

#[test]
fn files_are_taken_on_request_and_not_by_surprise() {
    in_sandbox(|| {
        let (network, daemon) = network();
        let without_c = POLICY.replace("[service.c]\nconnect.b = [\"x\"]\n", "[service.c]\n");
        network.write(&without_c);
        std::thread::sleep(Duration::from_millis(500));
        assert!(reaches(&network, "c"), "nobody asked");
        let nsctl = |arguments: &[&str]| {
            let state = network.nsctl.options().state.clone();
            let output = Command::new(env!("CARGO_BIN_EXE_nsctl")).args(arguments).arg("--state").arg(state).output();
            let output = output.unwrap();
            (
                output.status.code(),
                String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
            )
        };
        let (code, said) = nsctl(&["reload"]);
        assert_eq!((code, said.contains("generation 2 is in force")), (Some(0), true), "{said}");
        assert!(!reaches(&network, "c"));
        network.write("schema = 1\nnonsense = 2\n");
        let (code, said) = nsctl(&["reload"]);
        assert!(code == Some(1) && said.contains("E0109"), "{said}");
        network.write(&without_c);
        assert!(reaches(&network, "a") && !reaches(&network, "c"), "nothing was changed");
        daemon.wait_for("in force");
        assert!(daemon.stop());
        let (code, said) = nsctl(&["reload"]);
        assert!(code == Some(1) && said.contains("E0928"), "{said}");
    });
}

/// A neighbour can make addresses come and go, and so can anybody's containers: nobody has spoiled anything by that.
#[test]
fn a_host_whose_own_network_changes_without_pause_holds_nothing_closed() {
    in_sandbox(|| {
        let _internet = nsctl::internet::Internet::make().unwrap();
        let network =
            Network::new("node", &POLICY.replace("[service.c]", "[service.c]\noutbound = \"direct\"\ndns = \"none\""));
        network.apply();
        let daemon = Resident::start(&network);
        ip("link add other type veth peer name beyond");
        ip("link set other up");
        for n in 1..=9 {
            ip(&format!("address add 172.30.{n}.1/24 dev other"));
            let excluded = || {
                let set = network.nft("uplink", "list set inet nsctl not_direct4");
                network.plan().is_empty() && !set.is_empty()
            };
            eventually(&format!("address {n} is followed"), excluded);
        }
        let snapshot = daemon.snapshot(&network, "node");
        assert_eq!(snapshot["held"], serde_json::json!([]), "{:#?}", daemon.messages());
        assert!(daemon.messages().iter().any(|message| message.starts_with("followed the host's own network")));
        // The control: what somebody spoils is counted still.
        nft("node-c", "flush ruleset");
        daemon.wait_for("drift, mended");
    });
}

/// Root inside can spoil what is done there, and cannot keep its own way in open by that.
#[test]
fn a_service_that_spoils_its_lock_cannot_keep_its_way_in() {
    in_patient_sandbox(Duration::from_secs(200), || {
        let _internet = nsctl::internet::Internet::make().unwrap();
        let directory = std::path::Path::new("/run/node");
        std::fs::create_dir_all(directory.join("policy.d")).unwrap();
        std::fs::write(directory.join("policy.d/10.toml"), POLICY).unwrap();
        let nsctl = |arguments: &[&str]| {
            let paths = ["--policy", "/run/node/policy.d", "--state", "/run/node/state"];
            Command::new(env!("CARGO_BIN_EXE_nsctl")).args(arguments).args(paths).output().unwrap()
        };
        assert!(nsctl(&["apply"]).status.success());
        let opened = nsctl(&["expose", "b", "--port", "5000:x"]);
        assert!(opened.status.success(), "{opened:?}");
        let led = || common::nft_here("list ruleset").contains("5000");
        assert!(led(), "the control: the way is open");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let spoil = ["netns", "exec", "node-b", "nft", "delete table inet nsctl"];
                while !stop.load(Ordering::Relaxed) {
                    Command::new("ip").args(spoil).output().ok();
                }
            });
            let ways = [&["unexpose", "b"][..], &["expose", "b", "--port", "5000:x"], &["expose", "--all", "off"]];
            let open: Vec<bool> = ways.iter().map(|arguments| (drop(nsctl(arguments)), led()).1).collect();
            stop.store(true, Ordering::Relaxed);
            assert_eq!(open, [false, true, false], "after each of {ways:?}");
        });
    });
}

#[test]
fn the_daemon_alone_goes_back_when_nobody_confirms() {
    in_sandbox(|| {
        let (network, daemon) = network();
        network.write(&POLICY.replace("connect.b = [\"x\", \"y\"]", "connect.b = [\"x\"]"));
        // Nobody else holds it: the library was given no second one.
        let how = How { confirm: Confirm::Within(Duration::from_secs(2)), ..How::default() };
        let applied = network.nsctl.apply_with(&how).unwrap();
        assert_eq!((applied.generation.0, applied.pending.is_some()), (2, true));
        daemon.wait_for("not confirmed: back to generation 1");
        let (current, pending) = network.nsctl.in_force_now(&"node".parse().unwrap()).unwrap();
        assert_eq!((current.map(|number| number.0), pending.is_none()), (Some(1), true));
        let talk = Talk::udp(&network, "a", ("b", network.v4("b"), 5001));
        assert!(talk.goes_on(), "what was taken is there again");
        talk.end();
    });
}

#[test]
fn a_network_that_is_taken_down_stays_down() {
    in_sandbox(|| {
        let (network, daemon) = network();
        network.down();
        daemon.wait_for("nothing is in force");
        std::thread::sleep(Duration::from_millis(500));
        assert!(network.is_nothing());
        network.apply();
        eventually("it is watched again", || daemon.snapshot(&network, "node")["generation"] == 1);
        ip("-n node-a link delete net0");
        daemon.wait_for("drift, mended: the wire of a is missing");
    });
}

#[test]
fn a_second_daemon_is_told_that_there_is_one() {
    in_sandbox(|| {
        let (network, _daemon) = network();
        let state = network.nsctl.options().state.clone();
        let second = Command::new(env!("CARGO_BIN_EXE_nsctl")).args(["daemon", "--state"]).arg(state).output().unwrap();
        let said = String::from_utf8_lossy(&second.stderr);
        assert!(!second.status.success() && said.contains("E0928: another daemon listens"), "{said}");
    });
}

#[test]
fn systemd_is_told_that_it_is_ready_and_alive() {
    in_sandbox(|| {
        let network = Network::new("node", POLICY);
        network.apply();
        let socket = UnixDatagram::bind("/run/notify").unwrap();
        socket.set_read_timeout(Some(common::resident::SOON)).unwrap();
        let daemon = Resident::start_with(&network, |command| {
            command.env("NOTIFY_SOCKET", "/run/notify").env("WATCHDOG_USEC", "400000").env_remove("WATCHDOG_PID");
        });
        let mut said = Vec::new();
        while said.iter().filter(|word| *word == "WATCHDOG=1").count() < 3 {
            let mut buffer = [0; 256];
            let n = socket.recv(&mut buffer).expect("it says something all the time");
            said.extend(String::from_utf8_lossy(&buffer[..n]).lines().map(str::to_owned));
        }
        assert_eq!(said[0], "READY=1");
        assert!(daemon.stop());
    });
}

#[test]
fn only_root_is_answered() {
    in_root_sandbox(|| {
        let (network, _daemon) = network();
        let socket = "/run/nsctl/control.sock";
        let ask = |question: &[u8]| {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream.write_all(question).ok();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).ok();
            line
        };
        assert!(ask(b"{\"verb\":\"status\"}\n").contains("\"node\""), "the control: root is");
        assert!(ask(b"what?\n").contains("E0928"));
        let mut long = vec![b' '; 1 << 20];
        long.push(b'\n');
        assert!(!ask(&long).contains("node"), "a question has an end");
        // By its mode nobody else can connect; and if the mode were another one, the kernel tells who it is.
        std::fs::set_permissions(socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let script = format!(
            "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => '{socket}') or die $!; $SIG{{PIPE}} = 'IGNORE'; \
             print $s '{{\"verb\":\"status\"}}', \"\\n\"; $s->flush; my $l = <$s>; print defined $l ? length $l : 0"
        );
        let stranger = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "perl", "-e", &script])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&stranger.stdout).trim(), "0", "{stranger:?}");
        let same = common::witness(Command::new("perl").args(["-e", &script]));
        assert_ne!(same.trim(), "0", "the control");
        drop(network);
    });
}

#[test]
fn metrics_say_what_the_daemon_knows() {
    in_sandbox(|| {
        let (network, daemon) = network();
        ip("-n node-a link delete net0");
        daemon.wait_for("drift, mended");
        eventually("it is told", || daemon.snapshot(&network, "node")["repairs"] == 1);
        let mut stream = UnixStream::connect("/run/nsctl/metrics.sock").unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: nsctl\r\n\r\n").unwrap();
        let lines: Vec<String> = BufReader::new(stream).lines().map_while(Result::ok).collect();
        assert_eq!(lines[0], "HTTP/1.1 200 OK");
        for line in [
            "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8",
            "nsctl_generation{network=\"node\"} 1.0",
            "nsctl_services{network=\"node\"} 3.0",
            "nsctl_edges{network=\"node\"} 3.0",
            "nsctl_repairs_total{network=\"node\"} 1",
            "nsctl_held{network=\"node\"} 0.0",
            "# EOF",
        ] {
            assert!(lines.iter().any(|is| is == line), "`{line}` in {lines:#?}");
        }
    });
}

#[test]
fn who_makes_noise_for_nothing_is_listened_to_less() {
    in_sandbox(|| {
        let (network, daemon) = network();
        let cpu = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
            let words: Vec<u64> =
                stat.rsplit(')').next().unwrap().split_whitespace().filter_map(|w| w.parse().ok()).collect();
            words[10] + words[11]
        };
        // A service that is root inside changes what is nobody's business, as fast as it can.
        let stop = AtomicBool::new(false);
        let before = cpu();
        let start = Instant::now();
        let looks = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    nft("node-c", "add table inet own; delete table inet own");
                }
            });
            std::thread::sleep(Duration::from_secs(8));
            let used = cpu() - before;
            nft("node-b", "flush ruleset");
            daemon.wait_for("table inet nsctl in node-b is gone");
            stop.store(true, Ordering::Relaxed);
            used
        });
        // In hundredths of a second of one CPU.
        println!("noise: {looks} ticks in {:?}", start.elapsed());
        assert!(u128::from(looks) * 10 < start.elapsed().as_millis() / 2, "half a CPU goes into one noisy service");
        drop(network);
    });
}
