//! `nsctl grant`: one file of ours is written, whole, only if the policy with it holds; no other file is touched.

#![allow(clippy::disallowed_methods, reason = "it runs the command as an operator would")]

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::fcntl::{Flock, FlockArg};
use nsctl::Options;
use nsctl::own::Own;
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
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
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
    done(policies.grant(&["--fragment", "charge-lnd"]));
    assert_eq!(policies.edges(), ["charge -> lnd:p2p,rpc,unix:ctl", "web -> lnd:p2p"]);
    assert!(done(policies.grant(&["--fragment", "charge-lnd"])).contains("nothing to do"));
    done(policies.grant(&["charge", "lnd:unix:ctl", "--revoke"]));
    assert_eq!(policies.edges(), ["charge -> lnd:p2p,rpc", "web -> lnd:p2p"]);
    done(policies.grant(&["charge", "--revoke"]));
    assert_eq!(policies.edges(), ["web -> lnd:p2p"]);
    assert_eq!((policies.text("10-node.toml"), policies.text("50-charge.toml")), (NODE.to_owned(), CHARGE.to_owned()));
}

#[test]
fn a_service_that_has_the_name_of_its_fragment_is_answered_alone() {
    let policies = Policies::new("alone");
    let both = "schema = 1\nfragment = \"charge\"\n\n[service.charge]\nports = { x = \"tcp:1\" }\nwants.lnd = [\"rpc\"]\n\n\
        [service.charge2]\nports = { x = \"tcp:1\" }\nwants.lnd = [\"rpc\", \"p2p\"]\n";
    policies.put("50-charge.toml", both);
    done(policies.grant(&["charge"]));
    assert_eq!(policies.edges(), ["charge -> lnd:rpc", "web -> lnd:p2p"]);
    done(policies.grant(&["charge", "--fragment"]));
    assert_eq!(policies.edges(), ["charge -> lnd:rpc", "charge2 -> lnd:p2p,rpc", "web -> lnd:p2p"]);
    done(policies.grant(&["charge", "--revoke"]));
    assert_eq!(policies.edges(), ["charge2 -> lnd:p2p,rpc", "web -> lnd:p2p"]);
    done(policies.grant(&["--fragment", "charge", "lnd:p2p", "--revoke"]));
    assert_eq!(policies.edges(), ["charge2 -> lnd:rpc", "web -> lnd:p2p"]);
    // A fragment that is no service is named as what it is.
    policies.put("50-charge.toml", &both.replace("fragment = \"charge\"", "fragment = \"fees\""));
    fs::remove_file(policies.0.join("90-nsctl.toml")).unwrap();
    refused(&policies, &["fees"], "name one of its services: charge, charge2; all of them: `--fragment fees`");
    refused(&policies, &["--fragment", "charge"], "these fragments ask: fees");
    done(policies.grant(&["--fragment", "fees", "lnd:rpc"]));
    assert_eq!(policies.edges(), ["charge -> lnd:rpc", "charge2 -> lnd:rpc", "web -> lnd:p2p"]);
}

#[test]
fn a_port_by_number_is_not_opened_along_with_others() {
    let policies = Policies::new("number");
    policies.put("50-charge.toml", &CHARGE.replace("[\"rpc\", \"p2p\"]", "[\"rpc\", \"tcp:1-9999\"]"));
    let output = policies.grant(&["charge"]);
    assert!(code(&output).1.contains("`nsctl grant charge lnd:tcp:1-9999` opens it"), "{output:?}");
    assert_eq!(policies.edges(), ["charge -> lnd:rpc,unix:ctl", "web -> lnd:p2p"]);
    let output = policies.grant(&["charge", "lnd:tcp:1-9999"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(policies.edges()[0].contains("1-9999"), "{:?}", policies.edges());
}

#[test]
fn what_is_taken_out_of_a_broken_policy_is_shown() {
    let policies = Policies::new("broken");
    done(policies.grant(&["charge", "lnd:rpc"]));
    policies.put("20-never.toml", "schema = 1\n[[never]]\nfrom = [\"charge\"]\nto = [\"lnd:rpc\"]\nwhy = \"no\"\n");
    assert_eq!(policies.nsctl(&["check"]).status.code(), Some(2));
    let told = done(policies.grant(&["charge", "--revoke"]));
    assert!(told.starts_with("- edge    charge -> lnd:rpc\n"), "{told}");
    done(policies.nsctl(&["check"]));
}

#[test]
fn an_answer_is_for_the_target_as_it_is_defined_and_passes_to_nobody_of_its_name() {
    let policies = Policies::new("target");
    done(policies.grant(&["charge"]));
    assert!(!policies.own().unwrap().contains("of."), "the operator's: {:?}", policies.own());
    // The operator's goes, and a package has one of that name.
    let node = "schema = 1\nnetwork.name = \"node\"\n[service.web]\n";
    policies.put("10-node.toml", node);
    let lnd = "schema = 1\nfragment = \"lnd-pkg\"\n[service.lnd]\nports = { rpc = \"tcp:1\", p2p = \"tcp:2\" }\n\
               sockets = { ctl = \"/run/lnd/ctl\" }\n";
    policies.put("60-lnd.toml", lnd);
    assert_eq!(policies.edges(), [] as [&str; 0]);
    // What was granted at the other one is not granted along.
    done(policies.grant(&["charge", "lnd:rpc"]));
    assert_eq!(policies.edges(), ["charge -> lnd:rpc"]);
    assert!(policies.own().unwrap().contains("of.lnd = \"lnd-pkg\"\n"), "{:?}", policies.own());
    policies.put("60-lnd.toml", &lnd.replace("lnd-pkg", "evil"));
    assert_eq!(policies.edges(), [] as [&str; 0]);
    done(policies.grant(&["charge", "lnd", "--revoke"]));
    assert!(!policies.own().unwrap().contains("lnd"), "{:?}", policies.own());
    // Back to the operator's.
    policies.put("60-lnd.toml", lnd);
    done(policies.grant(&["charge"]));
    fs::remove_file(policies.0.join("60-lnd.toml")).unwrap();
    policies.put("10-node.toml", NODE);
    assert_eq!(policies.edges(), ["web -> lnd:p2p"]);
    done(policies.grant(&["charge", "lnd:rpc"]));
    assert_eq!(policies.edges(), ["charge -> lnd:rpc", "web -> lnd:p2p"]);
    assert!(!policies.own().unwrap().contains("of."), "{:?}", policies.own());
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
    symlink("nowhere.toml", &own).unwrap();
    let (status, talk) = code(&policies.grant(&["charge"]));
    assert!(status == 2 && talk.contains("is a link, and not written by nsctl"), "{talk}");
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
    policies.put("20-mine.toml", "schema = 1\n[extend.charge]\nconnect.lnd = [\"p2p\"]\nopen.lnd = [\"ctl\"]\n");
    refused(&policies, &["charge", "lnd:unix:ctl", "--revoke"], "20-mine.toml:4");
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

#[test]
fn two_first_answers_at_once_find_one_directory_to_lock() {
    let policies = Policies::new("first-lock");
    let directory = policies.0.join("answers");
    let into = directory.join("a.toml");
    let path = |name: &str| policies.0.join(name).to_str().unwrap().to_owned();
    let (node, charge) = (path("10-node.toml"), path("50-charge.toml"));
    let start = |target: &str| {
        let mut nsctl = Command::new(env!("CARGO_BIN_EXE_nsctl"));
        nsctl.args(["-f", &node, "-f", &charge, "grant", "charge", target, "--into"]).arg(&into).spawn().unwrap()
    };
    for _ in 0..20 {
        fs::remove_dir_all(&directory).ok();
        let both = ["lnd:p2p", "lnd:unix:ctl"].map(start).map(|mut child| child.wait().unwrap().success());
        let text = fs::read_to_string(&into).unwrap();
        assert_eq!(
            [text.contains("\"p2p\""), text.contains("\"ctl\"")],
            both,
            "who was told that it is written can rely on it"
        );
    }
    fs::remove_dir_all(&directory).unwrap();
    let options = Options { policy: vec![node.clone().into(), charge.clone().into()], ..Options::default() };
    let first = Own::open(&options, Some(&into), false).unwrap();
    assert!(Own::open(&options, Some(&into), false).unwrap_err().to_string().contains("another nsctl is at work"));
    drop(first);
    // A look makes no directory, and one that is held keeps an answer out.
    fs::remove_dir_all(&directory).unwrap();
    let mut look = Command::new(env!("CARGO_BIN_EXE_nsctl"));
    look.args(["-f", &node, "-f", &charge, "grant", "charge", "--dry-run", "--into"]).arg(&into);
    assert!(look.output().unwrap().status.success() && !directory.exists());
    fs::create_dir(&directory).unwrap();
    let held = Flock::lock(File::open(&directory).unwrap(), FlockArg::LockExclusive).unwrap();
    assert!(!start("lnd:p2p").wait().unwrap().success() && !into.exists());
    drop(held);
    assert!(start("lnd:p2p").wait().unwrap().success() && into.exists());
}

#[test]
fn a_file_that_would_not_be_read_as_it_is_written_is_refused() {
    let policies = Policies::new("unread");
    for name in ["mine.json", "mine.conf", ".mine.toml", "mine"] {
        let into = policies.0.join(name);
        refused(&policies, &["charge", "lnd:rpc", "--into", into.to_str().unwrap()], "would not be read");
        assert!(!into.exists(), "{name}");
    }
    done(policies.grant(&["charge", "lnd:rpc", "--into", policies.0.join("mine.toml").to_str().unwrap()]));
    assert_eq!(policies.edges(), ["charge -> lnd:rpc", "web -> lnd:p2p"]);
}

#[test]
fn a_bare_name_is_a_file_of_the_directory_one_is_in() {
    let policies = Policies::new("bare");
    for target in ["lnd:rpc", "lnd:p2p"] {
        let mut nsctl = Command::new(env!("CARGO_BIN_EXE_nsctl"));
        nsctl.current_dir(&policies.0).args(["-f", ".", "grant", "charge", target, "--into", "mine.toml"]);
        let output = nsctl.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
    assert_eq!(policies.edges(), ["charge -> lnd:p2p,rpc", "web -> lnd:p2p"]);
}

#[test]
fn no_file_of_the_policy_is_put_out_of_force_by_the_name_of_ours() {
    let (first, second) = (Policies::new("mask-first"), Policies::new("mask-second"));
    for name in ["10-node.toml", "50-charge.toml"] {
        fs::remove_file(second.0.join(name)).unwrap();
    }
    let into = |directory: &Policies, name: &str| -> Output {
        let mut nsctl = Command::new(env!("CARGO_BIN_EXE_nsctl"));
        nsctl.arg("-f").arg(&first.0).arg("-f").arg(&second.0).args(["grant", "charge", "lnd:rpc", "--into"]);
        nsctl.arg(directory.0.join(name)).output().unwrap()
    };
    let refused = |directory: &Policies, name: &str| {
        let (status, talk) = code(&into(directory, name));
        let is_there = directory.0.join(name).exists();
        assert!(status == 2 && talk.contains("only one is heard") && !is_there, "{name}: {talk}");
    };
    // Ours would mask a file of the policy,
    refused(&second, "10-node.toml");
    // or be masked by one that is switched off,
    second.put("60-off.toml", "");
    symlink("/dev/null", second.0.join("70-off.toml")).unwrap();
    refused(&first, "60-off.toml");
    refused(&first, "70-off.toml");
    // or come where something is switched off: then it would be on again.
    first.put("80-off.toml", "");
    refused(&second, "80-off.toml");
    let output = into(&second, "60-on.toml");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn the_file_keeps_its_mode_and_a_neighbour_its_place() {
    let policies = Policies::new("mode");
    done(policies.grant(&["charge", "lnd:rpc"]));
    let own = policies.0.join("90-nsctl.toml");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o640)).unwrap();
    chown(&own, Some(0), Some(12)).unwrap();
    policies.put("90-nsctl.toml.tmp", "mine");
    done(policies.grant(&["charge", "lnd:p2p"]));
    let is = fs::metadata(&own).unwrap();
    assert_eq!((is.permissions().mode() & 0o7777, is.gid()), (0o640, 12));
    assert_eq!(policies.text("90-nsctl.toml.tmp"), "mine");
    // One of several names of a file is not torn from the others.
    fs::hard_link(&own, policies.0.join("other")).unwrap();
    refused(&policies, &["charge", "lnd:unix:ctl"], "one of several names");
    assert_eq!(policies.grant(&["charge", "lnd:unix:ctl"]).status.code(), Some(1));
}

#[test]
fn a_file_that_changed_since_it_was_read_is_left_alone() {
    let policies = Policies::new("changed");
    let own = policies.0.join("90-nsctl.toml");
    let options = Options { policy: vec![policies.0.clone()], ..Options::default() };
    let write = |meanwhile: &str| {
        let mut ours = Own::open(&options, None, false).unwrap();
        ours.document.as_table_mut().decor_mut().set_suffix("# more\n");
        if !meanwhile.is_empty() {
            fs::write(&own, meanwhile).unwrap();
        }
        ours.write()
    };
    // There was none, and now there is one of somebody's.
    let error = write("schema = 1\n# mine\n").unwrap_err();
    assert!(error.to_string().contains("has changed since it was read"), "{error}");
    assert_eq!(policies.text("90-nsctl.toml"), "schema = 1\n# mine\n");
    fs::remove_file(&own).unwrap();
    done(policies.grant(&["charge", "lnd:rpc"]));
    let meanwhile = format!("{}# mine\n", policies.own().unwrap());
    let error = write(&meanwhile).unwrap_err();
    assert!(error.to_string().contains("has changed since it was read"), "{error}");
    assert_eq!(policies.text("90-nsctl.toml"), meanwhile);
    write("").unwrap();
}
