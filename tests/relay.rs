//! A way in through a relay as a whole: from `nsctl expose --relay` to a client outside, with the daemon and its worker.

#![allow(clippy::disallowed_methods, reason = "the command is run as an operator would")]

mod common;
#[path = "uplink/world.rs"]
#[allow(dead_code, reason = "the tests of the way out use the rest of it")]
mod world;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{in_sandbox, netns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use world::{World, connect, listen};

const NODE: &str = r#"
schema = 1
[network]
name = "node"
pool4 = "10.231.0.0/24"
pool6 = "fd6e:6f64:6500::/64"
lan = ["192.168.7.0/24", "2001:db8:7::/64"]
[service.rtl]
ports = { http = "tcp:3000", admin = "tcp:4000" }
"#;

/// How long what the daemon does may take.
const SOON: Duration = Duration::from_secs(15);

/// A port of the machine, and the address of the neighbour that comes there.
const WAYS: [(&str, &str); 2] = [("192.168.7.2:8080", "192.168.7.1"), ("[2001:db8:7::2]:8080", "2001:db8:7::1")];

fn nsctl(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nsctl"));
    command.args(["-f", "/run/test/policy.d", "--state", "/run/test/state"]).args(arguments);
    command
}

fn done(arguments: &[&str]) -> Value {
    let output = nsctl(arguments).arg("--json").output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// `nsctl daemon`, ended with the test.
struct Daemon(Child);

impl Daemon {
    fn start() -> Self {
        let log = fs::File::create("/run/test/daemon.log").unwrap();
        Self(nsctl(&["daemon"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }
}

impl Daemon {
    fn dies(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM).ok();
            self.0.wait().ok();
        }
        println!("{}", fs::read_to_string("/run/test/daemon.log").unwrap_or_default());
    }
}

/// Says something as the neighbour, and what the service heard of it.
fn says(world: &World, service: &TcpListener, to: &str) -> Option<Vec<u8>> {
    let mut client: TcpStream = connect(Some(&world.router), to).ok()?;
    client.write_all(b"hello").ok()?;
    client.shutdown(Shutdown::Write).ok()?;
    client.set_read_timeout(Some(SOON)).unwrap();
    service.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        let Ok((mut served, _)) = service.accept() else {
            sleep(Duration::from_millis(10));
            continue;
        };
        served.set_nonblocking(false).unwrap();
        let mut heard = Vec::new();
        served.read_to_end(&mut heard).unwrap();
        return Some(heard);
    }
    None
}

fn state() -> String {
    done(&["exposed"])["exposures"][0]["state"].as_str().unwrap_or("nothing").to_owned()
}

fn until(what: &str) {
    let deadline = Instant::now() + SOON;
    while state() != what {
        assert!(Instant::now() < deadline, "{} and not {what}", state());
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_neighbour_talks_to_a_service_through_the_relay_until_the_way_is_taken_back() {
    in_sandbox(|| {
        let world = &World::new();
        world.settle();
        fs::create_dir_all("/run/test/policy.d").unwrap();
        fs::write("/run/test/policy.d/10-node.toml", NODE).unwrap();
        done(&["apply"]);
        done(&["expose", "rtl", "--lan", "8080:http", "--relay", "--proxy"]);
        assert_eq!(state(), "needs the daemon");
        let server = listen(Some(&netns("node-rtl")), "[::]:3000");
        let daemon = Daemon::start();
        until("relay: ready");
        for (to, neighbour) in WAYS {
            let heard = says(world, &server, to).expect("the relay carries it");
            let octets = match neighbour.parse().unwrap() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            assert_eq!(heard[16..16 + octets.len()], octets, "the header names the client");
            assert!(heard.ends_with(b"hello"), "{heard:?}");
        }
        // A daemon that is killed takes its worker with it, and the next one has another at once.
        daemon.dies();
        assert_eq!(state(), "needs the daemon");
        assert!(says(world, &server, WAYS[0].0).is_none(), "somebody carries it still");
        let _daemon = Daemon::start();
        until("relay: ready");
        assert!(says(world, &server, WAYS[0].0).is_some(), "it is there again");
        done(&["expose", "--all", "off"]);
        assert_eq!(state(), "off");
        assert!(says(world, &server, WAYS[0].0).is_none(), "it is off");
        done(&["expose", "--all", "on"]);
        until("relay: ready");
        assert!(says(world, &server, WAYS[0].0).is_some(), "it is on again");
        done(&["unexpose", "rtl"]);
        assert_eq!(state(), "nothing");
        assert!(says(world, &server, WAYS[0].0).is_none(), "it is taken back");
    });
}
