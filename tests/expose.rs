//! `nsctl expose` and `unexpose`: a way in is written into the one file of ours, applied, and put back when that fails.

#![allow(clippy::disallowed_methods, reason = "it runs the command as an operator would")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{in_sandbox, ip};
use nsctl::expose::{Closing, Opening, Side, Which, close, make_so, open};
use nsctl::{Error, Options, Orchestrator};
use serde_json::Value;

const NODE: &str = "schema = 1\nnetwork = { name = \"node\", lan = [\"192.168.1.0/24\"] }\n\n# The wallet.\n[service.lnd]\n\
    ports = { rpc = \"tcp:10009\", p2p = \"tcp:48335\" }\nprivate = [\"rpc\"]\n\n[service.web]\nports = { http = \"tcp:48380\", admin = \"tcp:48381\" }\n\
    connect.lnd = [\"p2p\"]\nexpose.port.ports = { \"48390\" = \"admin\" }\n";

/// A directory of policies.
struct Policies(PathBuf);

impl Policies {
    /// In the sandbox's own /run.
    fn new() -> Self {
        let path = Path::new("/run/policies").to_owned();
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("10-node.toml"), NODE).unwrap();
        Self(path)
    }

    fn nsctl(&self, arguments: &[&str]) -> Output {
        let mut nsctl = Command::new(env!("CARGO_BIN_EXE_nsctl"));
        nsctl.arg("-f").arg(&self.0).args(["--state", "/run/state"]).args(arguments).output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> Value {
        let output = self.nsctl(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Refused with exit code 2, and what was said.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.nsctl(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn own(&self) -> Option<String> {
        fs::read_to_string(self.0.join("90-nsctl.toml")).ok()
    }

    fn options(&self) -> Options {
        Options { policy: vec![self.0.clone()], state: "/run/state".into(), etc_netns: None, ..Options::default() }
    }

    /// The ways in of the policy as it is read now: `lan :48335 lnd:p2p`.
    fn ways(&self) -> Vec<String> {
        let listed = self.done(&["exposed"]);
        let word = |way: &Value, key: &str| way[key].as_str().unwrap().to_owned();
        let line = |way: &Value| {
            format!("{} :{} {}:{}", word(way, "way"), way["outside_port"], word(way, "service"), word(way, "port"))
        };
        listed["exposures"].as_array().unwrap().iter().map(line).collect()
    }
}

#[test]
fn a_way_in_is_written_applied_listed_and_taken_back() {
    in_sandbox(|| {
        let policies = Policies::new();
        let opened = policies.done(&["expose", "lnd", "--lan"]);
        assert_eq!((&opened["written"], &opened["applied"]), (&Value::Bool(true), &Value::Bool(true)));
        assert_eq!(opened["opened"][0]["outside_port"], 48335);
        assert!(!opened["done"].as_array().unwrap().is_empty(), "it was never applied before");
        assert_eq!(policies.ways(), ["lan :48335 lnd:p2p", "port :48390 web:admin"]);
        let own = policies.own().unwrap();
        assert!(own.ends_with("\n\n[extend.lnd.expose.lan]\nports = { 48335 = \"p2p\" }\n"), "{own}");
        // What a person wrote is as it was, and a second call does nothing.
        assert_eq!(fs::read_to_string(policies.0.join("10-node.toml")).unwrap(), NODE);
        let again = policies.done(&["expose", "lnd", "--lan"]);
        assert_eq!((&again["written"], again["done"].as_array().unwrap().len()), (&Value::Bool(false), 0));
        let closed = policies.done(&["unexpose", "lnd"]);
        assert_eq!(closed["closed"][0]["outside_port"], 48335);
        assert_eq!(policies.ways(), ["port :48390 web:admin"]);
        assert!(!policies.own().unwrap().contains("extend"), "a trace is left");
    });
}

#[test]
fn a_dry_run_writes_and_applies_nothing() {
    in_sandbox(|| {
        let policies = Policies::new();
        let shown = policies.done(&["expose", "web", "--lan", "48399:http", "--dry-run"]);
        assert_eq!(shown["opened"][0]["outside_port"], 48399);
        assert_eq!((&shown["written"], &shown["applied"]), (&Value::Bool(false), &Value::Bool(false)));
        assert_eq!((policies.own(), Path::new("/run/netns/node-web").exists()), (None, false));
        // The control: without it there are both.
        policies.done(&["expose", "web", "--lan", "48399:http"]);
        assert!(policies.own().is_some() && Path::new("/run/netns/node-web").exists());
    });
}

#[test]
fn what_cannot_be_applied_is_not_left_written() {
    in_sandbox(|| {
        let policies = Policies::new();
        // A stranger's namespace stands where one of ours has to be.
        ip("netns add node-lnd");
        let failed = policies.nsctl(&["expose", "lnd", "--lan"]);
        let talk = String::from_utf8(failed.stderr).unwrap();
        assert_eq!(failed.status.code(), Some(1), "{talk}");
        assert!(talk.contains("not applied: /run/policies/90-nsctl.toml is as it was"), "{talk}");
        assert!(talk.contains("the namespace node-lnd exists and is not ours"), "{talk}");
        assert_eq!(policies.own(), None, "there was no such file before");
        ip("netns delete node-lnd");
        policies.done(&["expose", "lnd", "--lan"]);
        // And the same with a file that had something in it.
        let before = policies.own().unwrap() + "# Kept.\n";
        fs::write(policies.0.join("90-nsctl.toml"), &before).unwrap();
        policies.done(&["apply"]);
        let nsctl = Orchestrator::new(policies.options());
        nsctl.down().unwrap();
        ip("netns add node-lnd");
        let opening =
            Opening { service: "web".into(), side: Side::Lan, outside: None, port: Some("http".into()), relay: None };
        let changed = open(nsctl.options(), None, &opening, false).unwrap();
        assert_ne!(policies.own().as_ref(), Some(&before), "the control: it is written before it is applied");
        let failed = make_so(&nsctl, changed.written, &nsctl::How::default()).unwrap_err();
        assert!(matches!(failed.error, Error::Foreign { .. }) && failed.file.is_ok(), "{failed:?}");
        assert_eq!(policies.own(), Some(before));
    });
}

#[test]
fn a_port_of_the_machine_that_somebody_has_is_not_taken_from_them() {
    in_sandbox(|| {
        let policies = Policies::new();
        let expose = ["expose", "web", "--lan", "48377:http", "--dry-run"];
        // On loopback it is nobody's business.
        let loopback = std::net::TcpListener::bind("127.0.0.1:48377").unwrap();
        policies.done(&expose);
        drop(loopback);
        let sshd = std::net::TcpListener::bind("0.0.0.0:48377").unwrap();
        let talk = policies.refused(&expose);
        assert!(talk.contains("port 48377 of the machine is taken: a program on the host listens there"), "{talk}");
        drop(sshd);
        let talk = policies.refused(&["expose", "web", "--lan", "48390:http", "--dry-run"]);
        assert!(
            talk.contains("port 48390 of the machine leads to web:admin already (/run/policies/10-node.toml:"),
            "{talk}"
        );
    });
}

#[test]
fn what_a_person_wrote_is_not_taken_back_and_it_is_said_where_it_stands() {
    in_sandbox(|| {
        let policies = Policies::new();
        let talk = policies.refused(&["unexpose", "web", "--port", "--dry-run"]);
        let help = "a person wrote port -> web:admin at /run/policies/10-node.toml:12: take it out there";
        assert!(talk.contains(help), "{talk}");
        // Beside one of ours it stays, and that is told.
        let nsctl = Orchestrator::new(policies.options());
        let opening =
            Opening { service: "web".into(), side: Side::Lan, outside: None, port: Some("http".into()), relay: None };
        open(nsctl.options(), None, &opening, false).unwrap();
        let closing = Closing { service: "web".into(), which: Which::All };
        let changed = close(nsctl.options(), None, &closing, false).unwrap();
        assert_eq!(changed.closed.len(), 1);
        let left: Vec<String> = changed.left.iter().map(|(way, at)| format!("{way} {at}")).collect();
        assert_eq!(left, ["port    :48390 -> web:admin /run/policies/10-node.toml:12"]);
    });
}

#[test]
fn of_two_ways_the_one_that_is_named_goes() {
    in_sandbox(|| {
        let policies = Policies::new();
        let nsctl = Orchestrator::new(policies.options());
        for (service, side, port) in [("lnd", Side::Port, "p2p"), ("web", Side::Lan, "http")] {
            let (service, port) = (service.to_owned(), Some(port.to_owned()));
            open(nsctl.options(), None, &Opening { service, side, outside: None, port, relay: None }, false).unwrap();
        }
        fs::write(policies.0.join("20-more.toml"), "schema = 1\n[extend.lnd.ports]\nrest = \"tcp:48336\"\n").unwrap();
        let second =
            Opening { service: "lnd".into(), side: Side::Lan, outside: None, port: Some("rest".into()), relay: None };
        open(nsctl.options(), None, &second, false).unwrap();
        let talk = policies.refused(&["unexpose", "lnd", "--dry-run"]);
        assert!(
            talk.contains("lnd is exposed in 2 ways")
                && talk.contains("say which: --lan 48336, --port 48335; or --all"),
            "{talk}"
        );
        let closing = |which| Closing { service: "lnd".into(), which };
        let changed = close(nsctl.options(), None, &closing(Which::Of(Side::Port, Some(48335))), false).unwrap();
        assert_eq!(changed.closed.len(), 1);
        assert_eq!(policies.ways(), ["lan :48336 lnd:rest", "lan :48380 web:http", "port :48390 web:admin"]);
    });
}

#[test]
fn taking_back_works_where_what_was_exposed_is_what_is_wrong() {
    in_sandbox(|| {
        let policies = Policies::new();
        let nsctl = Orchestrator::new(policies.options());
        let opening = Opening { service: "lnd".into(), side: Side::Lan, outside: None, port: None, relay: None };
        open(nsctl.options(), None, &opening, false).unwrap();
        // The port is private from now on.
        let text = NODE.replace("private = [\"rpc\"]", "private = [\"rpc\", \"p2p\"]");
        fs::write(policies.0.join("10-node.toml"), text).unwrap();
        assert!(nsctl.check().is_err(), "the control");
        let changed =
            close(nsctl.options(), None, &Closing { service: "lnd".into(), which: Which::Only }, false).unwrap();
        assert_eq!(changed.closed.len(), 1);
        nsctl.check().unwrap();
    });
}
