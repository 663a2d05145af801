//! Workers on a real kernel: a relay in a gateway's namespace, and the fleet that owns it.

#[path = "../common/mod.rs"]
mod common;
mod stage;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::in_root_sandbox;
use nix::sys::signal::{Signal, kill};
use nsctl::worker::relay::{Limits, Route};
use nsctl::worker::{Event, Fence, Kind, Phase, Spec};
use stage::*;

#[test]
fn bytes_go_both_ways_and_the_end_of_one_way_leaves_the_other_open() {
    in_root_sandbox(|| {
        set();
        let service = listener(SERVICE, 80);
        let crew = Crew::with(relay(vec![route()]));
        let mut client = client();
        let (mut server, _) = service.accept().unwrap();
        // The client says all it has, and its end arrives before the server says anything.
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).unwrap();
        assert_eq!(question, "question");
        // What comes back is more than any buffer on the way holds.
        let bytes: Vec<u8> = (0..10_000_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        let sent = bytes.clone();
        let writer = thread::spawn(move || server.write_all(&sent));
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        writer.join().unwrap().unwrap();
        assert!(answer == bytes, "{} of {} bytes came", answer.len(), bytes.len());
        let state = crew.until("closed", |state| state.connections.open == 0 && state.connections.total == 1);
        assert_eq!((state.connections.refused, state.connections.unanswered), (0, 0));
    });
}

#[test]
fn a_connection_that_breaks_on_one_side_breaks_on_the_other() {
    in_root_sandbox(|| {
        set();
        let service = listener(SERVICE, 80);
        let _crew = Crew::with(relay(vec![route()]));
        let mut client = client();
        let (server, _) = service.accept().unwrap();
        nix::sys::socket::setsockopt(
            &server,
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger { l_onoff: 1, l_linger: 0 },
        )
        .unwrap();
        drop(server);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        // The control: an orderly end is an orderly end.
        let mut client = crate::client();
        drop(service.accept().unwrap());
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    });
}

/// The addresses in a PROXY header, read without the code that wrote it, and what follows.
fn read_proxy(stream: &mut TcpStream) -> (SocketAddr, SocketAddr, String) {
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed).unwrap();
    assert_eq!(&fixed[..12], b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A", "the signature");
    assert_eq!(fixed[12], 0x21, "version 2, PROXY");
    let mut rest = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
    stream.read_exact(&mut rest).unwrap();
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let v4 = |at: usize| <[u8; 4]>::try_from(&rest[at..at + 4]).unwrap();
    let v6 = |at: usize| <[u8; 16]>::try_from(&rest[at..at + 16]).unwrap();
    let (from, to) = match (fixed[13], rest.len()) {
        (0x11, 12) => (SocketAddr::from((v4(0), port(8))), SocketAddr::from((v4(4), port(10)))),
        (0x21, 36) => (SocketAddr::from((v6(0), port(32))), SocketAddr::from((v6(16), port(34)))),
        other => panic!("{other:?}"),
    };
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    (from, to, text)
}

#[test]
fn the_service_is_told_who_the_client_is() {
    in_root_sandbox(|| {
        set();
        let families = [(GATE, SERVICE, CLIENT), (GATE6, SERVICE6, CLIENT6)];
        let routes = families.iter().enumerate().map(|(n, (gate, service, _))| Route {
            name: format!("web{n}"),
            listen: address(gate, 80),
            target: address(service, 80),
            proxy: true,
            sources: Vec::new(),
        });
        let _crew = Crew::with(relay(routes.collect()));
        for (gate, service, client) in families {
            let service = listener(service, 80);
            let mut stream = connect("outside", address(gate, 80)).unwrap();
            stream.write_all(b"hello").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let (from, to, text) = read_proxy(&mut service.accept().unwrap().0);
            assert_eq!(from, stream.local_addr().unwrap());
            assert_eq!(from.ip(), client.parse::<std::net::IpAddr>().unwrap());
            assert_eq!((to, text.as_str()), (address(gate, 80), "hello"));
        }
    });
}

#[test]
fn only_sources_of_the_route_are_let_in() {
    in_root_sandbox(|| {
        set();
        echo("a", SERVICE, 80);
        let crew = Crew::with(relay(vec![Route { sources: vec!["10.1.0.9/32".parse().unwrap()], ..route() }]));
        // It can be refused before it is told that it is connected.
        if let Ok(mut stream) = connect("outside", address(GATE, 80)) {
            assert!(ask(&mut stream, "x", "ax").is_err());
        }
        crew.until("refused", |state| state.connections.refused == 1);
        // The control: the same from nobody's prefix in particular.
        crew.want(vec![relay(vec![route()])]);
        crew.until("open", |_| ask(&mut client(), "x", "ax").is_ok());
    });
}

#[test]
fn a_worker_that_is_killed_is_back_at_once_and_nobody_is_refused_meanwhile() {
    in_root_sandbox(|| {
        set();
        echo("a", SERVICE, 80);
        let crew = Crew::with(relay(vec![route()]));
        let mut before = client();
        ask(&mut before, "x", "ax").unwrap();
        for round in 1..=3 {
            let pid = crew.pid();
            let killed = Instant::now();
            kill(pid, Signal::SIGKILL).unwrap();
            // All of these come while there is no worker, or as soon as there is one again.
            let mut waiting: Vec<_> = (0..20).map(|_| client()).collect();
            for client in &mut waiting {
                ask(client, "x", "ax").unwrap();
            }
            let took = killed.elapsed();
            assert!(took < Duration::from_secs(3), "{took:?}");
            let state = crew.until("ready", |state| state.phase == Phase::Ready && state.restarts == round);
            assert_ne!(state.pid.map(process), Some(pid));
            assert_eq!(state.why.as_deref(), Some("it was ended by SIGKILL"));
            assert!(!exists(pid), "it was not waited for");
        }
        // The control: what the killed worker held is gone, so it was it that held it.
        assert!(ask(&mut before, "x", "ax").is_err());
        // What was taken since its last sign of life is lost with a worker.
        crew.until("counted", |state| (20..=61).contains(&state.connections.total));
    });
}

#[test]
fn a_worker_that_hangs_is_killed_and_started_again() {
    in_root_sandbox(|| {
        set();
        echo("a", SERVICE, 80);
        let crew = Crew::with(relay(vec![route()]));
        let pid = crew.pid();
        // The control: one that does not hang lives longer than it may be silent.
        thread::sleep(timing().silence + Duration::from_millis(500));
        assert_eq!(crew.pid(), pid);
        kill(pid, Signal::SIGSTOP).unwrap();
        let state = crew.until("restarted", |state| state.restarts == 1 && state.phase == Phase::Ready);
        assert!(!exists(pid));
        assert_eq!(state.why.as_deref(), Some("it gave no sign of life for 1.5 s, and was killed"));
        ask(&mut client(), "x", "ax").unwrap();
    });
}

/// A relay whose program is another one.
fn with_program(program: &str) -> Spec {
    Spec { program: Some(program.into()), ..relay(vec![route()]) }
}

#[test]
fn a_crash_loop_is_slowed_down_and_shown_with_its_reason() {
    in_root_sandbox(|| {
        set();
        let crew = Crew::new(timing());
        crew.want(vec![with_program("/bin/false")]);
        thread::sleep(Duration::from_millis(2500));
        let state = crew.until("backing off", |state| state.phase == Phase::BackingOff);
        // 0, 200, 600, 1400 ms, each a little later.
        assert!((3..=4).contains(&state.failures), "{state:?}");
        assert_eq!(state.why.as_deref(), Some("it ended with exit code 1"));
        assert!(state.pause.is_some_and(|pause| pause >= 800), "{state:?}");
        // A spec that can be done is not kept waiting for the pause.
        echo("a", SERVICE, 80);
        crew.want(vec![relay(vec![route()])]);
        let asked = Instant::now();
        crew.until("ready", |state| state.phase == Phase::Ready);
        assert!(asked.elapsed() < Duration::from_millis(800), "{:?}", asked.elapsed());
        ask(&mut client(), "x", "ax").unwrap();
    });
}

#[test]
fn why_a_worker_cannot_start_is_said_in_words() {
    in_root_sandbox(|| {
        set();
        let crew = Crew::new(timing());
        std::fs::write("/run/closed", "").unwrap();
        let taken = common::netns("gate").run(|| std::net::TcpListener::bind("10.1.0.2:81")).unwrap();
        let at = |listen: &str| relay(vec![Route { listen: listen.parse().unwrap(), ..route() }]);
        let nowhere = Spec { netns: "/run/netns/nowhere".into(), ..relay(vec![route()]) };
        let cases = [
            (
                with_program("/run/programs/missing"),
                "there is no program `/run/programs/missing`: it belongs beside nsctl",
            ),
            (with_program("/run/closed"), "user 60900 cannot run `/run/closed`: it and the directories above it"),
            (nowhere, "cannot enter the namespace /run/netns/nowhere: No such file or directory"),
            (
                at("10.1.0.2:81"),
                "cannot listen on 10.1.0.2:81 in the namespace /run/netns/gate: Address already in use",
            ),
            (at("10.9.9.9:80"), "cannot listen on 10.9.9.9:80 in the namespace /run/netns/gate: Cannot assign"),
            // A program that is no worker of ours and says so to nobody.
            (with_program("/bin/cat"), "it ended with exit code"),
        ];
        for (spec, expected) in cases {
            crew.want(vec![spec]);
            crew.until(expected, |state| {
                state.phase == Phase::BackingOff && state.why.as_ref().is_some_and(|why| why.starts_with(expected))
            });
        }
        drop(taken);
    });
}

#[test]
fn a_worker_has_a_user_of_its_own_no_rights_and_the_namespace_of_its_gateway() {
    in_root_sandbox(|| {
        set();
        let crew = Crew::with(relay(vec![route()]));
        let pid = crew.pid();
        let user = Kind::Relay.user();
        assert_eq!(status_of(pid, "Uid"), format!("{user}\t{user}\t{user}\t{user}"));
        assert_eq!(status_of(pid, "Gid"), format!("{user}\t{user}\t{user}\t{user}"));
        assert_eq!(status_of(pid, "Groups"), "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status_of(pid, set), "0000000000000000", "{set}");
        }
        assert_eq!((status_of(pid, "NoNewPrivs"), status_of(pid, "Seccomp")), ("1".into(), "2".into()));
        assert_eq!(netns_of(&pid.to_string()), netns_of_pin("gate"));
        assert_ne!(netns_of(&pid.to_string()), netns_of("self"));
        // What it says of itself agrees, and the kernel was asked for all there is.
        let fences = crew.state().fences;
        for fence in [Fence::User, Fence::Capabilities, Fence::NoNewPrivileges, Fence::Seccomp] {
            assert!(fences.contains(&fence), "{fences:?}");
        }
        println!("fences: {fences:?}");
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert_eq!(command_line.iter().filter(|byte| **byte == 0).count(), 1, "it has arguments");
        assert_eq!(std::fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str(), Some("/"));
    });
}

fn netns_of_pin(name: &str) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(format!("/run/netns/{name}")).unwrap().ino()
}

#[test]
fn a_flood_of_connections_fills_neither_files_nor_memory_and_others_are_served() {
    in_root_sandbox(|| {
        set();
        echo("a", SERVICE, 80);
        let limits = Limits { connections: 60, per_source: 40, ..Limits::default() };
        let crew = Crew::with(relay_within(vec![route()], limits));
        let pid = crew.pid();
        let memory = |key: &str| status_of(pid, key).trim_end_matches(" kB").parse::<u64>().unwrap();
        let before = memory("VmRSS");
        let mut flood = Vec::new();
        let mut served = 0;
        for _ in 0..600 {
            // Who is refused can notice it as early as here.
            let Ok(mut stream) = connect("outside", address(GATE, 80)) else { continue };
            served += u32::from(ask(&mut stream, "x", "ax").is_ok());
            flood.push(stream);
        }
        assert_eq!(served, 40, "one source has its share");
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        assert!(files < 80 + 30, "{files} open files");
        let after = memory("VmRSS");
        assert!(after < before + 2048, "{before} kB, then {after} kB");
        println!("a relay takes {before} kB, under a flood {after} kB, {files} files");
        // Somebody else is still served.
        let mut other = from_other_client();
        ask(&mut other, "x", "ax").unwrap();
        crew.until("counted", |state| state.connections.refused == 560 && state.connections.open == 41);
        // And the flood's share is free again when it is gone.
        drop(flood);
        crew.until("free", |state| state.connections.open == 1);
        ask(&mut client(), "x", "ax").unwrap();
    });
}

#[test]
fn what_a_peer_does_not_read_is_not_kept() {
    in_root_sandbox(|| {
        set();
        let service = listener(SERVICE, 80);
        let crew = Crew::with(relay(vec![route()]));
        let pid = crew.pid();
        let memory = || status_of(pid, "VmRSS").trim_end_matches(" kB").parse::<u64>().unwrap();
        let before = memory();
        let mut pairs = Vec::new();
        for _ in 0..50 {
            let client = client();
            let (server, _) = service.accept().unwrap();
            server.set_nonblocking(true).unwrap();
            pairs.push((client, server));
        }
        // The services send until nothing more is taken; nobody reads.
        let mut sent = 0;
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            for (_, server) in &mut pairs {
                while let Ok(more) = server.write(&[0; 16 << 10]) {
                    sent += more;
                }
            }
            thread::sleep(Duration::from_millis(20));
        }
        let after = memory();
        println!("{sent} bytes under way, {before} kB, then {after} kB");
        assert!(sent > 50 << 16, "nothing was held up");
        assert!(after < before + 50 * 20 + 1024, "{before} kB, then {after} kB");
    });
}

#[test]
fn a_changed_target_is_taken_by_the_running_worker_and_what_stays_allowed_is_not_cut() {
    in_root_sandbox(|| {
        set();
        echo("a", SERVICE, 80);
        echo("b", SERVICE6, 80);
        let kept = Route { name: "kept".into(), listen: address(GATE, 82), ..route() };
        let crew = Crew::with(relay(vec![route(), kept.clone()]));
        let pid = crew.pid();
        let mut moved = client();
        let mut stays = connect("outside", address(GATE, 82)).unwrap();
        ask(&mut moved, "x", "ax").unwrap();
        ask(&mut stays, "x", "ax").unwrap();
        // Another target on the same port, and one way more.
        let more = Route { name: "more".into(), listen: address(GATE6, 80), ..route() };
        let other = Route { target: address(SERVICE6, 80), ..route() };
        crew.want(vec![relay(vec![other, kept, more])]);
        crew.until("changed", |_| ask(&mut client(), "x", "bx").is_ok());
        ask(&mut stays, "y", "ay").unwrap();
        ask(&mut connect("outside", address(GATE6, 80)).unwrap(), "x", "ax").unwrap();
        assert!(ask(&mut moved, "y", "ay").is_err(), "what is not allowed any more goes on");
        let state = crew.state();
        assert_eq!((crew.pid(), state.restarts, state.phase), (pid, 0, Phase::Ready));
    });
}

#[test]
fn a_port_that_the_fence_does_not_have_takes_another_worker_and_cuts_nothing() {
    in_root_sandbox(|| {
        set();
        echo("a", SERVICE, 80);
        echo("b", SERVICE, 8080);
        let kept = Route { name: "kept".into(), listen: address(GATE, 82), ..route() };
        let crew = Crew::with(relay(vec![route(), kept.clone()]));
        let old = crew.pid();
        let mut moved = client();
        let mut stays = connect("outside", address(GATE, 82)).unwrap();
        ask(&mut moved, "x", "ax").unwrap();
        ask(&mut stays, "x", "ax").unwrap();
        crew.want(vec![relay(vec![Route { target: address(SERVICE, 8080), ..route() }, kept])]);
        crew.until("changed", |_| ask(&mut client(), "x", "bx").is_ok());
        let new = crew.pid();
        assert_ne!(old, new);
        ask(&mut stays, "y", "ay").unwrap();
        assert!(ask(&mut moved, "y", "ay").is_err(), "what is not allowed any more goes on");
        assert!(exists(old));
        // With its last connection it goes, and is waited for.
        drop(stays);
        let deadline = Instant::now() + SOON;
        while exists(old) {
            assert!(Instant::now() < deadline, "the old one stays");
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!((crew.pid(), crew.state().restarts), (new, 0));
    });
}

#[test]
fn a_worker_that_is_not_wanted_is_gone_with_its_listener_and_its_connections() {
    in_root_sandbox(|| {
        set();
        echo("a", SERVICE, 80);
        let crew = Crew::with(relay(vec![route()]));
        let pid = crew.pid();
        let mut stream = client();
        ask(&mut stream, "x", "ax").unwrap();
        crew.want(Vec::new());
        crew.until("stopped", |state| state.phase == Phase::Stopped);
        assert!(!exists(pid));
        assert!(ask(&mut stream, "x", "ax").is_err());
        let refused = connect("outside", address(GATE, 80)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        // And it is there again when it is wanted again.
        crew.want(vec![relay(vec![route()])]);
        crew.until("ready", |state| state.phase == Phase::Ready);
        ask(&mut client(), "x", "ax").unwrap();
        let pid = crew.pid();
        crew.stop();
        assert!(!exists(pid));
    });
}

#[test]
fn a_worker_that_does_not_end_when_it_is_asked_to_is_killed() {
    in_root_sandbox(|| {
        set();
        let crew = Crew::with(relay(vec![route()]));
        let pid = crew.pid();
        kill(pid, Signal::SIGSTOP).unwrap();
        let asked = Instant::now();
        crew.stop();
        assert!(!exists(pid));
        let took = asked.elapsed();
        assert!(took >= timing().grace && took < timing().grace + Duration::from_secs(2), "{took:?}");
    });
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a link is deleted that may be gone")]
fn a_gateway_that_was_made_anew_gets_its_worker() {
    in_root_sandbox(|| {
        set();
        echo("a", SERVICE, 80);
        let crew = Crew::with(relay(vec![route()]));
        let old = netns_of(&crew.pid().to_string());
        common::ip("netns delete gate");
        crew.until("told", |state| {
            let gone = "cannot enter the namespace /run/netns/gate: No such file or directory";
            state.why.as_ref().is_some_and(|why| why.starts_with(gone))
        });
        // The wires may be gone with it, or not yet.
        for (place, link) in [("outside", "out0"), ("service", "net0")] {
            common::run(std::process::Command::new("ip").args(["-n", place, "link", "delete", link]));
        }
        common::ip("netns add gate");
        common::ip("-n gate link set lo up");
        let wire =
            |far, near, ours: &[&str], theirs: &[&str]| common::wire((far, "new0", theirs), ("gate", near, ours));
        wire("outside", "in0", &["10.1.0.2/24"], &["10.1.0.1/24"]);
        wire("service", "net0", &["10.2.0.1/24"], &["10.2.0.2/24"]);
        crew.until("ready", |state| state.phase == Phase::Ready);
        assert_eq!(netns_of(&crew.pid().to_string()), netns_of_pin("gate"));
        assert_ne!(netns_of(&crew.pid().to_string()), old);
        ask(&mut client(), "x", "ax").unwrap();
    });
}

#[test]
fn a_crowd_that_says_nothing_makes_room_for_who_comes_and_not_for_who_speaks() {
    in_root_sandbox(|| {
        set();
        echo("a", SERVICE, 80);
        let limits = Limits { connections: 10, per_source: 10, stay: 1, ..Limits::default() };
        let crew = Crew::with(relay_within(vec![route()], limits));
        let mut talker = client();
        ask(&mut talker, "x", "ax").unwrap();
        let crowd: Vec<_> = (0..9).map(|_| client()).collect();
        crew.until("full", |state| state.connections.open == 10);
        // As long as nobody has been still for long, who comes is refused.
        assert!(ask(&mut from_other_client(), "x", "ax").is_err());
        for _ in 0..6 {
            thread::sleep(Duration::from_millis(250));
            ask(&mut talker, "y", "ay").unwrap();
        }
        for _ in 0..5 {
            ask(&mut from_other_client(), "x", "ax").unwrap();
        }
        ask(&mut talker, "z", "az").unwrap();
        crew.until("counted", |state| state.connections.evicted >= 1 && state.connections.open <= 10);
        drop(crowd);
    });
}

#[test]
fn whatever_is_wanted_and_killed_the_last_word_holds() {
    in_root_sandbox(|| {
        set();
        echo("a", SERVICE, 80);
        echo("b", SERVICE, 8080);
        let crew = Crew::new(timing());
        let specs = |n: u32| match n % 4 {
            0 => Vec::new(),
            1 => vec![relay(vec![route()])],
            2 => vec![relay(vec![Route { target: address(SERVICE, 8080), ..route() }])],
            _ => vec![relay(vec![route(), Route { name: "more".into(), listen: address(GATE, 81), ..route() }])],
        };
        // Repeatable: a linear congruence, as in the C standard.
        let mut seed = 7u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12345);
            seed >> 16
        };
        let mut pids = std::collections::BTreeSet::new();
        for _ in 0..60 {
            crew.want(specs(next()));
            thread::sleep(Duration::from_millis(u64::from(next() % 60)));
            let pid = crew.states().into_iter().find_map(|state| state.pid);
            pids.extend(pid);
            if let Some(pid) = pid.filter(|_| next() % 4 == 0) {
                let signal = if next() % 2 == 0 { Signal::SIGKILL } else { Signal::SIGSTOP };
                kill(process(pid), signal).ok();
            }
        }
        crew.want(specs(2));
        crew.until("ready", |state| state.phase == Phase::Ready && ask(&mut client(), "x", "bx").is_ok());
        println!("{} workers were started", pids.len());
        let last = crew.pid();
        crew.stop();
        pids.insert(u32::try_from(last.as_raw()).unwrap());
        let left: Vec<_> = pids.into_iter().filter(|pid| exists(process(*pid))).collect();
        assert!(left.is_empty(), "{left:?} are left");
    });
}

#[test]
#[allow(clippy::disallowed_methods, reason = "somebody calls it by hand")]
fn a_worker_that_is_called_by_hand_says_what_it_is() {
    let called = std::process::Command::new(env!("CARGO_BIN_EXE_nsctl-relay")).output().unwrap();
    assert_eq!(called.status.code(), Some(2));
    let said = String::from_utf8(called.stderr).unwrap();
    assert!(said.starts_with("this program is started by nsctl and does nothing on its own"), "{said}");
}

#[test]
fn a_service_that_does_not_answer_is_counted_and_the_client_is_told() {
    in_root_sandbox(|| {
        set();
        let crew = Crew::with(relay(vec![route()]));
        // It can be told before it is told that it is connected.
        let told = connect("outside", address(GATE, 80)).and_then(|mut stream| stream.read(&mut [0]));
        assert_eq!(told.unwrap_err().kind(), ErrorKind::ConnectionReset);
        crew.until("counted", |state| state.connections.unanswered == 1 && state.connections.open == 0);
    });
}

/// Owns a worker and waits to be killed. Started by the test below.
#[test]
#[ignore = "a part of another test"]
fn owner() {
    let Ok(programs) = std::env::var("NSCTL_TEST_PROGRAMS") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let launcher = nsctl::worker::Launcher::with_programs(programs.as_ref());
        let mut fleet = nsctl::worker::Fleet::new(launcher, timing(), |event| {
            if let Event::Ready { pid, .. } = event {
                println!("worker {pid}");
            }
        });
        fleet.want(vec![relay(vec![route()])]);
        std::future::pending::<()>().await;
    });
}

#[test]
#[allow(clippy::disallowed_methods, reason = "an owner that can be killed is a process of its own")]
fn a_worker_does_not_outlive_its_owner() {
    in_root_sandbox(|| {
        set();
        let programs = programs();
        for is_stopped in [false, true] {
            let mut owner = std::process::Command::new(std::env::current_exe().unwrap());
            owner.args(["--exact", "owner", "--nocapture", "--include-ignored"]);
            let ended = owner_is_killed(owner.env("NSCTL_TEST_PROGRAMS", &programs), |pid| {
                if is_stopped {
                    kill(pid, Signal::SIGSTOP).unwrap();
                }
            });
            assert!(ended, "stopped: {is_stopped}: it lives on");
        }
    });
}
