//! The live prober and `exec`, on a real kernel.

mod common;

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Ran, in_root_sandbox, in_sandbox, ip, netns, nft, run_test, wire};
use netns_policy::port::Protocol::{self, Tcp, Udp};
use nsctl::exec::{Exec, RunAs, exec};
use nsctl::verify::Expected::{Closed, Open};
use nsctl::verify::{Expected, Options, Outcome, Place, Probe, Report, run};

const A4: &str = "10.0.0.1";
const B4: &str = "10.0.0.2";
const C4: &str = "10.0.0.3";
const A6: &str = "fd00::1";
const B6: &str = "fd00::2";
const B_LINK: &str = "fe80::b";

/// Three services: a and b have one wire, c has none.
fn three_services() -> Vec<Place> {
    for name in ["a", "b", "c"] {
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
    }
    wire(
        ("a", "net0", &["10.0.0.1/24", "fd00::1/64", "fe80::a/64"]),
        ("b", "net0", &["10.0.0.2/24", "10.0.0.22/24", "fd00::2/64", "fe80::b/64"]),
    );
    vec![place("a", &[A4, A6, "fe80::a"]), place("b", &[B4, "10.0.0.22", B6, B_LINK]), place("c", &[C4])]
}

fn place(name: &str, addresses: &[&str]) -> Place {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Place { name: name.into(), netns: netns(name), addresses, link: "net0".into() }
}

fn probe(from: &str, (to, address): (&str, &str), protocol: Protocol, port: u16, expected: Expected) -> Probe {
    let address: IpAddr = address.parse().unwrap();
    Probe { from: from.into(), to: to.into(), address, protocol, port, expected }
}

/// A run with half a second of patience where an answer is expected.
fn verify(places: &[Place], probes: &[Probe]) -> Report {
    let options = Options { open_timeout: Duration::from_millis(500), ..Options::default() };
    run(places, probes, &options, &|_, _| {}).unwrap()
}

fn refused(report: &Report, probe: usize, code: i32) -> bool {
    matches!(&report.outcomes[probe], Outcome::Refused(seen) if seen.0 == code)
}

#[test]
fn an_open_port_answers_on_every_address_and_an_unwired_service_does_not() {
    in_sandbox(|| {
        let places = three_services();
        let mut probes = Vec::new();
        for protocol in [Tcp, Udp] {
            for address in [B4, "10.0.0.22", B6, B_LINK] {
                probes.push(probe("a", ("b", address), protocol, 80, Open));
            }
            probes.push(probe("b", ("a", A4), protocol, 81, Open));
            probes.push(probe("a", ("c", C4), protocol, 80, Closed));
            probes.push(probe("c", ("b", B4), protocol, 80, Closed));
            probes.push(probe("c", ("b", B_LINK), protocol, 80, Closed));
        }
        let report = verify(&places, &probes);
        assert_eq!((&report.mismatches[..], &report.unproven[..]), (&[][..], &[][..]));
        assert_eq!(report.proven(), 16);
        assert_eq!(report.outcomes[..5], [const { Outcome::Open }; 5]);
        assert_eq!(report.outcomes[5], Outcome::Silent, "on the wire, and nobody there");
        assert!(refused(&report, 6, nix::libc::ENETUNREACH), "{report:?}");
        assert!(refused(&report, 7, nix::libc::ENETUNREACH), "{report:?}");
    });
}

#[test]
fn a_wrong_expectation_is_a_mismatch() {
    in_sandbox(|| {
        let places = three_services();
        let mut probes = Vec::new();
        for protocol in [Tcp, Udp] {
            probes.push(probe("a", ("b", B4), protocol, 80, Closed));
            probes.push(probe("a", ("b", B6), protocol, 80, Closed));
            probes.push(probe("a", ("b", B_LINK), protocol, 80, Closed));
            probes.push(probe("c", ("b", B4), protocol, 80, Open));
            probes.push(probe("a", ("b", B4), protocol, 81, Open));
        }
        let report = verify(&places, &probes);
        let wrong: Vec<_> = report.mismatches.iter().map(|mismatch| (&mismatch.probe, &mismatch.seen)).collect();
        for (number, outcome) in report.outcomes.iter().enumerate() {
            let is_wrong = number % 5 != 4;
            assert_eq!(wrong.contains(&(&probes[number], outcome)), is_wrong, "{}: {outcome}", probes[number]);
        }
        assert_eq!(wrong.len(), 8);
        assert!(report.mismatches[4].note.as_deref().is_some_and(|note| note.contains("arrived in b (from 10.0.0.1:")));
    });
}

#[test]
fn silence_and_refusal_are_kept_apart() {
    in_sandbox(|| {
        let places = three_services();
        nft(
            "b",
            "add table inet t; add chain inet t in { type filter hook input priority 0; };
             add rule inet t in tcp dport 1 drop; add rule inet t in udp dport 1 drop;
             add rule inet t in tcp dport 2 reject with tcp reset; add rule inet t in udp dport 2 reject;
             add rule inet t in tcp dport 3 reject with icmpx admin-prohibited;
             add rule inet t in udp dport 3 reject with icmpx admin-prohibited",
        );
        nft(
            "a",
            "add table inet t; add chain inet t out { type filter hook output priority 0; };
             add rule inet t out udp dport 4 drop; add rule inet t out tcp dport 4 reject with tcp reset",
        );
        let mut probes = Vec::new();
        for port in 1..=4 {
            for protocol in [Tcp, Udp] {
                probes.push(probe("a", ("b", B4), protocol, port, Closed));
            }
        }
        probes.push(probe("a", ("b", B4), Tcp, 1, Open));
        probes.push(probe("a", ("b", B4), Udp, 2, Open));
        let report = verify(&places, &probes);
        assert_eq!(report.outcomes[0], Outcome::Silent);
        assert_eq!(report.outcomes[1], Outcome::Silent);
        assert!(refused(&report, 2, nix::libc::ECONNREFUSED), "{report:?}");
        assert!(refused(&report, 3, nix::libc::ECONNREFUSED), "{report:?}");
        assert!(refused(&report, 4, nix::libc::EHOSTUNREACH), "{report:?}");
        assert!(refused(&report, 5, nix::libc::EHOSTUNREACH), "{report:?}");
        assert!(refused(&report, 6, nix::libc::ECONNREFUSED), "{report:?}");
        assert!(refused(&report, 7, nix::libc::EPERM), "{report:?}");
        let wrong: Vec<_> = report.mismatches.iter().map(|mismatch| mismatch.probe.port).collect();
        assert_eq!(wrong, [1, 2], "only the two that expect an answer");
        assert_eq!(report.proven(), 8);
    });
}

#[test]
fn a_datagram_that_arrives_is_noticed_though_its_answer_is_lost() {
    in_sandbox(|| {
        let places = three_services();
        nft(
            "b",
            "add table inet t; add chain inet t out { type filter hook output priority 0; };
             add rule inet t out udp sport 53 drop",
        );
        let report = verify(&places, &[probe("a", ("b", B4), Udp, 53, Closed), probe("a", ("b", B6), Udp, 53, Open)]);
        assert_eq!(report.outcomes, [Outcome::Silent, Outcome::Silent]);
        let notes: Vec<_> = report.mismatches.iter().filter_map(|mismatch| mismatch.note.as_deref()).collect();
        assert!(notes[0].starts_with("it arrived in b (from 10.0.0.1:"), "{notes:?}");
        assert!(notes[1].starts_with("it arrived in b (from [fd00::1]:"), "{notes:?}");
    });
}

#[test]
fn one_lost_packet_does_not_make_a_port_look_closed() {
    in_sandbox(|| {
        let places = three_services();
        // The first packet to each of the two is lost, and every second one after it.
        nft(
            "b",
            "add table inet t; add chain inet t in { type filter hook input priority 0; };
             add rule inet t in tcp dport 80 tcp flags syn numgen inc mod 2 == 0 drop;
             add rule inet t in udp dport 80 numgen inc mod 2 == 0 drop",
        );
        for protocol in [Tcp, Udp] {
            let report = verify(&places, &[probe("a", ("b", B4), protocol, 80, Closed)]);
            assert_eq!(report.outcomes, [Outcome::Open], "{protocol}");
            assert_eq!(report.mismatches.len(), 1, "{protocol}");
        }
    });
}

#[test]
fn an_answer_from_another_place_is_no_answer() {
    in_sandbox(|| {
        let places = three_services();
        // What is meant for c goes to b.
        ip("-n a route add 10.9.0.3 via 10.0.0.2");
        nft(
            "b",
            "add table ip t; add chain ip t pre { type nat hook prerouting priority -100; };
             add rule ip t pre ip daddr 10.9.0.3 redirect",
        );
        let mut probes = Vec::new();
        for protocol in [Tcp, Udp] {
            probes.push(probe("a", ("b", B4), protocol, 80, Open));
            probes.push(probe("a", ("c", "10.9.0.3"), protocol, 80, Open));
            probes.push(probe("a", ("c", "10.9.0.3"), protocol, 80, Closed));
        }
        let report = verify(&places, &probes);
        assert_eq!(report.mismatches.len(), 4, "{report:?}");
        assert!(report.mismatches.iter().all(|mismatch| mismatch.seen == Outcome::Elsewhere("b".into())));
    });
}

#[test]
fn a_real_listener_is_used_where_there_is_one() {
    in_sandbox(|| {
        let places = three_services();
        let real = netns("b").run(|| {
            Ok((
                TcpListener::bind("0.0.0.0:80")?,
                TcpListener::bind("10.0.0.2:81")?,
                UdpSocket::bind("0.0.0.0:80")?,
                UdpSocket::bind("0.0.0.0:81")?,
            ))
        });
        let (wildcard, one_address, silent, _closed) = real.unwrap();
        nft(
            "b",
            "add table inet t; add chain inet t in { type filter hook input priority 0; };
             add rule inet t in udp dport 81 drop",
        );
        let report = verify(
            &places,
            &[
                probe("a", ("b", B4), Tcp, 80, Open),
                probe("a", ("b", B6), Tcp, 80, Open),
                probe("a", ("b", B4), Tcp, 81, Open),
                probe("a", ("b", "10.0.0.22"), Tcp, 81, Open),
                probe("a", ("b", B4), Tcp, 81, Closed),
                probe("a", ("b", B4), Udp, 80, Open),
                probe("a", ("b", B4), Udp, 81, Closed),
            ],
        );
        let seen = [Outcome::Accepted, Outcome::Open, Outcome::Accepted, Outcome::Open, Outcome::Accepted];
        assert_eq!(report.outcomes[..5], seen);
        assert_eq!(report.mismatches.len(), 1, "{report:?}");
        assert_eq!(report.mismatches[0].probe.expected, Closed);
        // Silence of a real UDP service proves neither.
        let unproven: Vec<_> = report.unproven.iter().map(|unproven| unproven.probe.port).collect();
        assert_eq!(unproven, [80, 81]);
        assert!(report.unproven[0].reason.contains("holds udp:80 in b"), "{report:?}");
        assert_eq!(silent.recv(&mut [0; 64]).unwrap(), 25, "it was asked all the same");
        drop((wildcard, one_address));
    });
}

#[test]
fn a_run_leaves_no_listener_no_thread_and_no_time_wait() {
    in_sandbox(|| {
        let places = three_services();
        let threads = || fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        let report = verify(&places, &[probe("a", ("b", B4), Tcp, 80, Open), probe("a", ("b", B4), Udp, 80, Open)]);
        assert_eq!(report.proven(), 2);
        assert_eq!(threads(), before);
        for name in ["a", "b"] {
            let sockets = ip(&format!("netns exec {name} ss -Hantu"));
            assert_eq!(sockets, "", "left in {name}");
        }
    });
}

#[test]
fn five_thousand_probes_take_seconds() {
    in_sandbox(|| {
        let places = three_services();
        nft(
            "b",
            "add table inet t; add chain inet t in { type filter hook input priority 0; };
             add rule inet t in tcp dport 2000-2999 drop; add rule inet t in udp dport 2000-2999 drop",
        );
        let probes: Vec<_> = [(Tcp, B4), (Tcp, B6), (Udp, B4), (Udp, B6), (Udp, B_LINK)]
            .into_iter()
            .flat_map(|(protocol, address)| {
                (1500..2500).map(move |port| {
                    let expected = if port < 2000 { Open } else { Closed };
                    probe("a", ("b", address), protocol, port, expected)
                })
            })
            .collect();
        let told = std::sync::Mutex::new((0, 0));
        let started = Instant::now();
        let report = run(&places, &probes, &Options::default(), &|done, of| *told.lock().unwrap() = (done, of));
        let (report, elapsed) = (report.unwrap(), started.elapsed());
        println!("5000 probes, half of them silent, from one source: {elapsed:.2?}");
        assert_eq!((&report.mismatches[..], &report.unproven[..], report.proven()), (&[][..], &[][..], 5000));
        assert_eq!(*told.lock().unwrap(), (5000, 5000));
        assert!(elapsed < Duration::from_secs(30), "{elapsed:?}");
    });
}

#[test]
fn a_probe_of_an_unknown_place_and_a_doubled_place_are_errors() {
    in_sandbox(|| {
        let mut places = three_services();
        let stray = [probe("a", ("d", B4), Tcp, 80, Open)];
        let error = run(&places, &stray, &Options::default(), &|_, _| {}).unwrap_err();
        assert_eq!(error.to_string(), "a probe names `d`, which is no place of this run");
        places.push(place("b", &[B4]));
        let error = run(&places, &[], &Options::default(), &|_, _| {}).unwrap_err();
        assert_eq!(error.to_string(), "two places are called `b`");
    });
}

/// What the copy of this binary that is to become a command reads: the user asked for, then the command, by lines.
const BECOME: &str = "NSCTL_TEST_BECOME";

/// Not a test of its own: what [`run_inside`] starts, to be replaced by the command.
#[test]
#[ignore = "it is started by the tests of exec"]
fn become_a_command() {
    let wanted = std::env::var(BECOME).expect("only the tests of exec start this");
    let mut lines = wanted.lines();
    let user = lines.next().filter(|user| !user.is_empty());
    let command: Vec<_> = lines.map(OsString::from).collect();
    let netns = netns("a");
    let files = Some(Path::new("/run/files/a"));
    let user = RunAs { asked: user, sudo: None, unit: None };
    let error = exec(&Exec { netns: &netns, files, user, command: &command }).unwrap_err();
    eprintln!("{error}");
    std::process::exit(error.exit_status().into());
}

#[allow(clippy::disallowed_methods, reason = "exec replaces a process, so it needs one to replace")]
fn run_inside(user: &str, command: &[&str]) -> Ran {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.env(BECOME, format!("{user}\n{}", command.join("\n"))).env("LD_PRELOAD_NOT", "x").env("LC_ALL", "C");
    run_test(&mut again, "become_a_command")
}

fn a_service_with_files() {
    three_services();
    fs::create_dir_all("/run/files/a").unwrap();
    fs::create_dir_all("/run/nscd").unwrap();
    fs::write("/run/nscd/socket", "").unwrap();
    for (name, text) in [
        ("hosts", "10.0.0.2 b.in.the.graph\n"),
        ("resolv.conf", "# resolver of a\n"),
        ("nsswitch.conf", "hosts: files # of a\n"),
    ] {
        fs::write(format!("/run/files/a/{name}"), text).unwrap();
        let mode = fs::Permissions::from_mode(0o644);
        fs::set_permissions(format!("/run/files/a/{name}"), mode).unwrap();
    }
}

/// What a command sees inside, one fact on a line.
const LOOK: &str = "echo uid=$(id -u) gid=$(id -g); grep -E '^(Cap|NoNewPrivs|Groups)' /proc/self/status; cat /etc/hosts /etc/resolv.conf \
                    /etc/nsswitch.conf; getent hosts b.in.the.graph; echo nscd=$(ls /run/nscd); \
                    echo links=$(ls /sys/class/net); env; ip -br address show dev net0";

fn assert_powerless(ran: &Ran) {
    assert!(ran.status.success(), "{ran:?}");
    for set in ["Inh", "Prm", "Eff", "Bnd", "Amb"] {
        assert!(ran.text.contains(&format!("Cap{set}:\t0000000000000000\n")), "Cap{set}: {}", ran.text);
    }
    for fact in ["NoNewPrivs:\t1\n", "10.0.0.2 b.in.the.graph\n", "# resolver of a\n", "hosts: files # of a\n"] {
        assert!(ran.text.contains(fact), "{fact:?} is not in {}", ran.text);
    }
    for fact in ["10.0.0.2        b.in.the.graph\n", "nscd=\n", "10.0.0.1/24", "LC_ALL=C\n"] {
        assert!(ran.text.contains(fact), "{fact:?} is not in {}", ran.text);
    }
    assert!(!ran.text.contains(BECOME) && !ran.text.contains("LD_"), "the environment came along: {}", ran.text);
}

#[test]
fn a_command_inside_has_the_names_of_the_service_and_no_rights() {
    in_sandbox(|| {
        a_service_with_files();
        let host = fs::read("/etc/hosts").unwrap();
        let ran = run_inside("", &["sh", "-c", LOOK]);
        assert_powerless(&ran);
        assert!(ran.text.contains("uid=0 gid=0\n"), "there is one user only: {}", ran.text);
        assert_eq!(fs::read("/etc/hosts").unwrap(), host, "the host's file is as it was");
        assert_eq!(run_inside("root", &["true"]).status.code(), Some(0), "that is who we are");
        let ran = run_inside("nobody", &["true"]);
        assert_eq!(ran.status.code(), Some(125));
        assert!(ran.text.contains("cannot become `nobody`: this user namespace has one user only"), "{}", ran.text);
    });
}

#[test]
fn a_command_of_root_runs_as_nobody() {
    in_root_sandbox(|| {
        a_service_with_files();
        let ran = run_inside("", &["sh", "-c", LOOK]);
        assert_powerless(&ran);
        assert!(ran.text.contains("uid=65534 gid=65534\n"), "{}", ran.text);
        assert!(ran.text.contains("Groups:\t65534 \n"), "{}", ran.text);
        assert!(ran.text.contains("links=lo net0\n"), "{}", ran.text);
        // Even as root it may read what root may, but do nothing with it.
        let ran = run_inside("root", &["sh", "-c", LOOK]);
        assert_powerless(&ran);
        assert!(ran.text.contains("uid=0 gid=0\n") && ran.text.contains("HOME=/root\n"), "{}", ran.text);
        let ran = run_inside("no-such-user", &["true"]);
        assert_eq!(ran.status.code(), Some(125));
        assert!(ran.text.contains("there is no user `no-such-user`"), "{}", ran.text);
    });
}

#[test]
fn a_resolv_conf_that_is_a_link_into_a_hidden_directory_is_replaced_too() {
    in_sandbox(|| {
        a_service_with_files();
        let stub = "/run/systemd/resolve/stub-resolv.conf";
        fs::create_dir_all("/run/systemd/resolve").unwrap();
        fs::write(stub, "# resolved\n").unwrap();
        let passwd = fs::read("/etc/passwd").unwrap();
        nix::mount::mount(Some("t"), "/etc", Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
        fs::write("/etc/passwd", passwd).unwrap();
        fs::write("/etc/hosts", "").unwrap();
        std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf").unwrap();
        let look = ["sh", "-c", "cat /etc/resolv.conf; ls /run/systemd/resolve"];
        let ran = run_inside("", &look);
        assert!(ran.status.success() && ran.text.contains("# resolver of a\nstub-resolv.conf\n"), "{ran:?}");
        assert_eq!(fs::read_to_string(stub).unwrap(), "# resolved\n", "only the command sees it");
        // A link to nowhere is nothing that could be replaced without making a file on the host.
        fs::remove_file("/etc/resolv.conf").unwrap();
        std::os::unix::fs::symlink("/run/nowhere/resolv.conf", "/etc/resolv.conf").unwrap();
        let ran = run_inside("", &look);
        assert_eq!(ran.status.code(), Some(125), "{ran:?}");
        assert!(!Path::new("/run/nowhere").exists());
    });
}

#[test]
fn a_command_inside_cannot_leave() {
    in_sandbox(|| {
        a_service_with_files();
        assert_eq!(run_inside("", &["nsenter", "--net=/run/netns/a", "true"]).status.code(), Some(1), "setns");
        for command in ["nsenter --net=/run/netns/b true", "mount -t tmpfs x /mnt", "ip link set net0 down"] {
            let words: Vec<_> = command.split(' ').collect();
            let ran = run_inside("", &words);
            assert!(
                !ran.status.success()
                    && ["Operation not permitted", "permission denied"].iter().any(|no| ran.text.contains(no)),
                "{command}: {ran:?}"
            );
        }
    });
}

#[test]
fn the_exit_status_is_the_commands() {
    in_sandbox(|| {
        a_service_with_files();
        assert_eq!(run_inside("", &["true"]).status.code(), Some(0));
        assert_eq!(run_inside("", &["sh", "-c", "exit 42"]).status.code(), Some(42));
        assert_eq!(run_inside("", &["no-such-command"]).status.code(), Some(127));
        assert_eq!(run_inside("", &["/etc/passwd"]).status.code(), Some(126));
        fs::remove_file("/run/files/a/resolv.conf").unwrap();
        let ran = run_inside("", &["true"]);
        assert_eq!(ran.status.code(), Some(125), "without its files it is not started");
        assert!(
            ran.text.contains("cannot put /run/files/a/resolv.conf in the place of /etc/resolv.conf"),
            "{}",
            ran.text
        );
    });
}

#[test]
fn bytes_that_are_no_token_are_a_strangers_answer() {
    in_sandbox(|| {
        let places = three_services();
        // A program that answers every connection with bytes of its own, as many as a token has.
        let listener = netns("b").run(|| TcpListener::bind("0.0.0.0:80")).unwrap();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&[7; 25]).ok();
            stream.read_to_end(&mut Vec::new()).ok();
        });
        let report = verify(&places, &[probe("a", ("b", B4), Tcp, 80, Closed)]);
        assert_eq!(report.mismatches.len(), 1);
        assert_eq!(report.mismatches[0].seen, Outcome::Accepted);
        served.join().unwrap();
    });
}

#[test]
fn listeners_answer_neither_strangers_nor_each_other() {
    in_sandbox(|| {
        let mut places = three_services();
        places.truncate(2);
        let stranger = netns("a").run(|| UdpSocket::bind("10.0.0.1:0")).unwrap();
        stranger.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        // As long as this probe is silent the listener of b stands, and it hears the stranger and an echo of itself.
        nft(
            "b",
            "add table inet t; add chain inet t in { type filter hook input priority 0; };
             add rule inet t in tcp dport 9 drop",
        );
        let echo = netns("b").run(|| UdpSocket::bind("10.0.0.2:7")).unwrap();
        echo.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
        let heard = std::thread::spawn(move || {
            let mut bytes = [0; 64];
            let (size, _) = echo.recv_from(&mut bytes).unwrap();
            let request = bytes[..size].to_vec();
            // Sent on to a listener as if it were a request of ours: answered once, and the answer is not answered.
            let listener = "10.0.0.1:80".parse().unwrap();
            echo.send_to(&request, listener).unwrap();
            let mut answers = 0;
            while let Ok((size, from)) = echo.recv_from(&mut bytes) {
                if from == listener {
                    answers += 1;
                    assert!(answers < 10, "they talk to each other");
                    echo.send_to(&bytes[..size], from).unwrap();
                }
            }
            answers
        });
        let prober = std::thread::spawn(move || {
            verify(
                &places,
                &[
                    probe("a", ("b", B4), Udp, 7, Closed),
                    probe("b", ("a", A4), Udp, 80, Open),
                    probe("a", ("b", B4), Udp, 80, Open),
                    probe("a", ("b", B4), Tcp, 9, Open),
                ],
            )
        });
        std::thread::sleep(Duration::from_millis(100));
        stranger.send_to(b"hello", "10.0.0.2:80").unwrap();
        stranger.recv(&mut [0; 64]).expect_err("a stranger gets no answer");
        assert_eq!(heard.join().unwrap(), 1, "answers to one request");
        prober.join().unwrap();
    });
}
