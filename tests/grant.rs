//! `nsctl grant`: one file of ours is written, whole, only if the policy with it holds; no other file is touched.

#![allow(clippy::disallowed_methods, reason = "it runs the command as an operator would")]

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

const NODE: &str = "schema = 1\nnetwork.name = \"node\"\n\n# The wallet.\n[service.lnd]\nports = { rpc = \"tcp:10009\", p2p = \"tcp:9735\" }\n\
    sockets = { ctl = \"/run/lnd/ctl\" }\n\n[service.web]\nports = { http = \"tcp:80\" }\nconnect.lnd = [\"p2p\"]\n";
const CHARGE: &str = "schema = 1\nfragment = \"charge-lnd\"\n\n[service.charge]\nports = { x = \"tcp:1\" }\n\
    wants.lnd = { ports = [\"rpc\", \"p2p\"], sockets = [\"ctl\"], why = \"sets fees\" }\n";

/// A directory of policies of the test's own.
struct Policies(PathBuf);

impl Policies {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("grant").join(name);
        fs::remove_dir_all(&path).ok();
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let policies = Self(path);
        policies.put("10-node.toml", NODE);
        policies.put("50-charge.toml", CHARGE);
        policies
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
        fs::set_permissions(self.0.join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    fn own(&self) -> Option<String> {
        fs::read_to_string(self.0.join("90-nsctl.toml")).ok()
    }

    fn nsctl(&self, arguments: &[&str]) -> Output {
        let mut nsctl = Command::new(env!("CARGO_BIN_EXE_nsctl"));
        nsctl.arg("-f").arg(&self.0).args(["--state", "none"]).args(arguments).output().unwrap()
    }

    fn grant(&self, arguments: &[&str]) -> Output {
        self.nsctl(&[&["grant"], arguments].concat())
    }

    /// The edges of the policy as it is read now.
    fn edges(&self) -> Vec<String> {
        let output = self.nsctl(&["graph"]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }
}

fn code(output: &Output) -> (i32, String) {
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), talk)
}

fn done(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Refused with that code, and nothing written.
#[track_caller]
fn refused(policies: &Policies, arguments: &[&str], expected: &str) {
    let before = policies.own();
    let (status, talk) = code(&policies.grant(arguments));
    assert!(matches!(status, 1 | 2) && talk.contains(expected), "{arguments:?}: {status} {talk}");
    assert_eq!(policies.own(), before, "{arguments:?}");
    let left: Vec<_> = fs::read_dir(&policies.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("tmp")), "{left:?}");
}

#[test]
fn an_answer_opens_what_was_asked_for_and_taking_it_back_closes_it() {
    let policies = Policies::new("answer");
    assert_eq!(policies.edges(), ["web -> lnd:p2p"]);
    assert_eq!(
        done(policies.grant(&["charge", "lnd:rpc", "--dry-run"])).lines().next(),
        Some("+ edge charge -> lnd:rpc".replace("edge ", "edge    ").as_str())
    );
    assert_eq!(policies.own(), None, "a look writes nothing");
    done(policies.grant(&["charge", "lnd:rpc"]));
    assert_eq!(policies.edges(), ["charge -> lnd:rpc", "web -> lnd:p2p"]);
    done(policies.grant(&["charge-lnd"]));
    assert_eq!(policies.edges(), ["charge -> lnd:p2p,rpc,unix:ctl", "web -> lnd:p2p"]);
    assert!(done(policies.grant(&["charge-lnd"])).contains("nothing to do"));
    done(policies.grant(&["charge", "lnd:unix:ctl", "--revoke"]));
    assert_eq!(policies.edges(), ["charge -> lnd:p2p,rpc", "web -> lnd:p2p"]);
    done(policies.grant(&["charge", "--revoke"]));
    assert_eq!(policies.edges(), ["web -> lnd:p2p"]);
    assert_eq!((policies.text("10-node.toml"), policies.text("50-charge.toml")), (NODE.to_owned(), CHARGE.to_owned()));
}

#[test]
fn the_file_is_for_everybody_to_read_and_keeps_what_else_is_in_it() {
    let policies = Policies::new("keeps");
    // With the umask of a careful root.
    let command =
        format!("umask 077; exec '{}' -f '{}' grant charge lnd:rpc", env!("CARGO_BIN_EXE_nsctl"), policies.0.display());
    assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    let path = policies.0.join("90-nsctl.toml");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
    let others = "\n# said by another command\n[extend.lnd]\ntags = [\"wallet\"]  # and why\n\n[peer.phone]\n\
                  wireguard = \"HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=\"\n";
    policies.put("90-nsctl.toml", &format!("{}{others}", policies.own().unwrap()));
    done(policies.grant(&["charge", "lnd:p2p"]));
    assert!(policies.own().unwrap().ends_with(others), "{:?}", policies.own());
    done(policies.grant(&["charge", "--revoke"]));
    let left = policies.own().unwrap();
    assert!(left.ends_with(others.trim_start()) && !left.contains("charge"), "{left}");
    // What another command said of the service itself is not the grant's to take.
    policies.put("90-nsctl.toml", &format!("{left}\n[extend.charge]\nconnect.lnd = [\"p2p\"]\n"));
    refused(&policies, &["charge", "--revoke"], "E0911");
}

#[test]
fn an_answer_that_breaks_an_invariant_is_not_written() {
    let policies = Policies::new("never");
    let never = "schema = 1\n[[never]]\nfrom = [\"charge\"]\nto = [\"lnd:rpc\"]\nwhy = \"fees are mine\"\n";
    policies.put("20-never.toml", never);
    refused(&policies, &["charge"], "fees are mine");
    refused(&policies, &["charge", "lnd:rpc", "--dry-run"], "E0401");
    done(policies.grant(&["charge", "lnd:p2p"]));
    assert_eq!(policies.edges(), ["charge -> lnd:p2p", "web -> lnd:p2p"]);
    // Nor is one taken back that a test asks for.
    policies.put("20-never.toml", "schema = 1\n[[test]]\nfrom = \"charge\"\ncan = [\"lnd:p2p\"]\n");
    refused(&policies, &["charge", "--revoke"], "E0403");
}

#[test]
fn what_a_person_wrote_is_left_alone_whatever_it_is_called() {
    let policies = Policies::new("person");
    policies.put("90-nsctl.toml", "schema = 1\n# mine\n");
    refused(&policies, &["charge"], "not written by nsctl");
    policies.put("90-nsctl.toml", "");
    refused(&policies, &["charge"], "not written by nsctl");
    let own = policies.0.join("90-nsctl.toml");
    fs::remove_file(&own).unwrap();
    symlink("/dev/null", &own).unwrap();
    let (status, talk) = code(&policies.grant(&["charge"]));
    assert!(status == 2 && talk.contains("not written by nsctl") && own.is_symlink(), "{talk}");
    fs::remove_file(&own).unwrap();
    policies.put("90-nsctl.json", "{\"schema\": 1}");
    refused(&policies, &["charge"], "only one is heard");
    fs::remove_file(policies.0.join("90-nsctl.json")).unwrap();
    done(policies.grant(&["charge", "lnd:rpc"]));
    // An edge that a person wrote is not ours to take.
    policies.put("20-mine.toml", "schema = 1\n[extend.charge]\nconnect.lnd = [\"p2p\"]\n");
    refused(&policies, &["charge", "lnd:p2p", "--revoke"], "20-mine.toml:3");
    policies.put("90-nsctl.toml", &policies.own().unwrap().replace("[\"rpc\"]", "[\"rpc\""));
    refused(&policies, &["charge", "lnd:unix:ctl"], "E0107");
}

#[test]
fn a_later_directory_of_policies_is_not_overlooked() {
    let (first, second) = (Policies::new("first"), Policies::new("second"));
    for name in ["10-node.toml", "50-charge.toml"] {
        fs::remove_file(second.0.join(name)).unwrap();
    }
    let both = |arguments: &[&str]| -> Output {
        let mut nsctl = Command::new(env!("CARGO_BIN_EXE_nsctl"));
        nsctl.arg("-f").arg(&first.0).arg("-f").arg(&second.0).args(arguments).output().unwrap()
    };
    done(both(&["grant", "charge", "lnd:rpc"]));
    assert!(first.own().is_none() && second.own().is_some(), "the last one has the last word");
    // With the other one last, a file of ours in it would put out of force what was granted before.
    let mut nsctl = Command::new(env!("CARGO_BIN_EXE_nsctl"));
    nsctl.arg("-f").arg(&second.0).arg("-f").arg(&first.0).args(["grant", "charge", "lnd:p2p"]);
    let (status, talk) = code(&nsctl.output().unwrap());
    assert!(status == 2 && talk.contains("only one is heard") && first.own().is_none(), "{talk}");
}

#[test]
fn a_single_file_needs_to_be_told_where_the_answer_goes() {
    let policies = Policies::new("single");
    let (node, charge) = (policies.0.join("10-node.toml"), policies.0.join("50-charge.toml"));
    let nsctl = |arguments: &[&str]| -> Output {
        let mut nsctl = Command::new(env!("CARGO_BIN_EXE_nsctl"));
        nsctl.arg("-f").arg(&node).arg("-f").arg(&charge).args(arguments).output().unwrap()
    };
    let (status, talk) = code(&nsctl(&["grant", "charge"]));
    assert!(status == 2 && talk.contains("--into"), "{talk}");
    let into = policies.0.join("answers.toml");
    let output = nsctl(&["grant", "charge", "lnd:rpc", "--into", into.to_str().unwrap()]);
    assert!(output.status.success() && code(&output).1.contains("not a part of this policy yet"), "{output:?}");
    let heard = nsctl(&["-f", into.to_str().unwrap(), "grant", "charge", "--into", into.to_str().unwrap()]);
    assert!(heard.status.success() && heard.stderr.is_empty(), "{heard:?}");
    let graph = done(nsctl(&["-f", into.to_str().unwrap(), "graph"]));
    assert!(graph.contains("charge -> lnd:p2p,rpc,unix:ctl"), "{graph}");
    let (status, talk) = code(&nsctl(&["grant", "charge", "--into", node.to_str().unwrap()]));
    assert!(status == 2 && talk.contains("not written by nsctl"), "{talk}");
    assert_eq!(policies.text("10-node.toml"), NODE);
}

#[test]
fn a_grant_does_not_pass_to_another_package_and_can_be_taken_back_when_its_own_is_gone() {
    let policies = Policies::new("gone");
    done(policies.grant(&["charge"]));
    fs::remove_file(policies.0.join("50-charge.toml")).unwrap();
    let gone = policies.nsctl(&["check"]);
    assert!(gone.status.success() && code(&gone).1.contains("W0309"), "{gone:?}");
    assert_eq!(policies.edges(), ["web -> lnd:p2p"]);
    policies.put("60-other.toml", &CHARGE.replace("\"charge-lnd\"", "\"other\""));
    let other = policies.nsctl(&["check"]);
    assert!(other.status.code() == Some(2) && code(&other).1.contains("E0306"), "{other:?}");
    done(policies.grant(&["charge", "--revoke"]));
    let check = policies.nsctl(&["check", "--json"]);
    let answer: Value = serde_json::from_slice(&check.stdout).unwrap();
    let answers: Vec<_> =
        answer["asks"].as_array().unwrap().iter().map(|ask| ask["answer"].as_str().unwrap()).collect();
    assert_eq!(answers, ["open"; 3]);
    assert_eq!(answer["hash"].as_str().unwrap().len(), 64);
}

#[test]
fn two_answers_at_once_do_not_overwrite_each_other() {
    let policies = Policies::new("lock");
    let held = Flock::lock(File::open(&policies.0).unwrap(), FlockArg::LockExclusive).unwrap();
    refused(&policies, &["charge"], "E0903");
    drop(held);
    done(policies.grant(&["charge", "lnd:rpc"]));
    let both = ["lnd:p2p", "lnd:unix:ctl"].map(|target| {
        let mut nsctl = Command::new(env!("CARGO_BIN_EXE_nsctl"));
        nsctl.arg("-f").arg(&policies.0).args(["grant", "charge", target]).spawn().unwrap()
    });
    let written = both.map(|mut child| child.wait().unwrap().success());
    let listed = policies.edges()[0].matches(',').count();
    assert_eq!(listed, written.iter().filter(|done| **done).count(), "who was told that it is written can rely on it");
}
