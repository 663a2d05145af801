//! The places where the system keeps policies, in a root directory of the test's own.

#![allow(clippy::disallowed_methods, reason = "it runs the command in that root directory")]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use common::{in_root_sandbox, in_sandbox};
use nix::mount::{MsFlags, mount};
use nix::unistd::chroot;
use serde_json::Value;

const VENDOR: &str = "/usr/lib/nsctl/policy.d";
const OPERATOR: &str = "/etc/nsctl/policy.d";
const NODE: &str = "schema = 1\nnetwork.name = \"node\"\n";

/// Makes `to` a directory that holds what `from` holds, each entry where it was, but for those in `but`.
fn mirror(from: &Path, to: &Path, but: &[&str]) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if but.contains(&from.to_str().unwrap_or_default()) {
            continue;
        }
        if kind.is_symlink() {
            symlink(fs::read_link(from).unwrap(), to).unwrap();
        } else {
            if kind.is_dir() {
                fs::create_dir(&to).unwrap()
            } else {
                fs::write(&to, "").unwrap()
            }
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(&from), &to, None::<&str>, bind, None::<&str>).unwrap();
        }
    }
}

/// A root directory like the machine's, with an /etc, a /nix and an /usr/lib/nsctl of its own.
fn own_root() {
    let root = Path::new("/run/root");
    mirror(Path::new("/"), root, &["/etc", "/nix", "/run", "/usr"]);
    mirror(Path::new("/usr"), &root.join("usr"), &["/usr/lib"]);
    mirror(Path::new("/usr/lib"), &root.join("usr/lib"), &["/usr/lib/nsctl"]);
    for directory in ["run", "nix/store", "etc/nsctl/policy.d", "usr/lib/nsctl/policy.d"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    chroot(root).unwrap();
    std::env::set_current_dir("/").unwrap();
}

fn put(directory: &str, name: &str, text: &str) {
    let path = Path::new(directory).join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
}

fn check() -> Output {
    Command::new(env!("CARGO_BIN_EXE_nsctl")).args(["check", "--json"]).output().unwrap()
}

/// The files of a check that must pass: path, whose word, what became of it.
fn files() -> Vec<String> {
    let output = check();
    assert!(output.status.success(), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let file = |file: &Value| {
        let text = |key: &str| file[key].as_str().unwrap_or_default().to_owned();
        let off = if file["off"] == true { " off" } else { "" };
        format!("{} {}{off} {}", text("trust"), text("path"), text("masked_by")).trim_end().to_owned()
    };
    answer["files"].as_array().unwrap().iter().map(file).collect()
}

fn refused() -> Vec<String> {
    let output = check();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let errors = answer["errors"].as_array().unwrap().iter();
    errors.map(|e| format!("{} {}", e["code"].as_str().unwrap(), e["file"].as_str().unwrap_or_default())).collect()
}

#[test]
fn a_package_s_fragments_are_its_word_and_the_operator_masks_them() {
    in_sandbox(|| {
        own_root();
        assert_eq!(refused(), ["E0001 "], "there is none yet");
        put("/etc/nsctl", "policy.toml", NODE);
        for name in ["10-a.toml", "20-b.toml", "30-c.toml", "40-d.toml", "README"] {
            put(VENDOR, name, &format!("schema = 1\nfragment = \"{}\"\n", &name[3..4]));
        }
        put(OPERATOR, "20-b.toml", "schema = 1\n");
        put(OPERATOR, "30-c.toml", "");
        symlink("/dev/null", Path::new(OPERATOR).join("40-d.toml")).unwrap();
        fs::create_dir_all("/run/nsctl/policy.d").unwrap();
        put("/run/nsctl/policy.d", "50-e.toml", "schema = 1\n");
        let expected = [
            "operator /etc/nsctl/policy.d/20-b.toml",
            "operator /etc/nsctl/policy.d/30-c.toml off",
            "operator /etc/nsctl/policy.d/40-d.toml off",
            "operator /etc/nsctl/policy.toml",
            "operator /run/nsctl/policy.d/50-e.toml",
            "vendor /usr/lib/nsctl/policy.d/10-a.toml",
            "vendor /usr/lib/nsctl/policy.d/20-b.toml /etc/nsctl/policy.d/20-b.toml",
            "vendor /usr/lib/nsctl/policy.d/30-c.toml /etc/nsctl/policy.d/30-c.toml",
            "vendor /usr/lib/nsctl/policy.d/40-d.toml /etc/nsctl/policy.d/40-d.toml",
        ];
        assert_eq!(files(), expected);
        // A link does not make a package's word the operator's.
        symlink(Path::new(VENDOR).join("10-a.toml"), Path::new(OPERATOR).join("60-f.toml")).unwrap();
        assert_eq!(refused(), ["E0003 /etc/nsctl/policy.d/60-f.toml"]);
    });
}

#[test]
fn what_others_can_edit_is_no_policy_of_the_system_s() {
    in_sandbox(|| {
        own_root();
        put("/etc/nsctl", "policy.toml", NODE);
        put(OPERATOR, "10-a.toml", "schema = 1\n");
        assert_eq!(files().len(), 2, "the control");
        let mode = |path: &str, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        mode("/etc/nsctl/policy.toml", 0o666);
        mode("/etc/nsctl/policy.d/10-a.toml", 0o602);
        assert_eq!(refused(), ["E0004 /etc/nsctl/policy.d/10-a.toml", "E0004 /etc/nsctl/policy.toml"]);
        mode("/etc/nsctl/policy.toml", 0o644);
        mode("/etc/nsctl/policy.d/10-a.toml", 0o600);
        mode("/etc/nsctl", 0o777);
        assert_eq!(refused(), ["E0006 /etc/nsctl"]);
        mode("/etc/nsctl", 0o755);
        fs::remove_file("/etc/nsctl/policy.toml").unwrap();
        symlink("/nowhere", "/etc/nsctl/policy.toml").unwrap();
        assert_eq!(refused(), ["E0010 /etc/nsctl/policy.toml"], "it was meant to be there");
    });
}

/// NixOS: /etc/nsctl/policy.d/a.toml -> /etc/static/... -> /nix/store/...
#[test]
fn a_link_may_lead_to_what_nix_has_sealed() {
    in_sandbox(|| {
        own_root();
        let mode = |path: &str, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        fs::create_dir("/nix/store/etc").unwrap();
        put("/nix/store/etc", "a.toml", NODE);
        mode("/nix/store/etc/a.toml", 0o444);
        mode("/nix/store/etc", 0o555);
        mode("/nix/store", 0o1775);
        symlink("/nix/store/etc", "/etc/static").unwrap();
        symlink("/etc/static/a.toml", Path::new(OPERATOR).join("a.toml")).unwrap();
        assert_eq!(files(), ["operator /etc/nsctl/policy.d/a.toml"]);
        mode("/nix/store/etc/a.toml", 0o644);
        assert_eq!(refused(), ["E0003 /etc/nsctl/policy.d/a.toml"], "somebody writes to it");
        mode("/nix/store/etc/a.toml", 0o444);
        // Whoever can turn the link in the middle round chooses the policy.
        fs::create_dir("/etc/open").unwrap();
        mode("/etc/open", 0o777);
        symlink("/nix/store/etc/a.toml", "/etc/open/a.toml").unwrap();
        fs::remove_file(Path::new(OPERATOR).join("a.toml")).unwrap();
        symlink("/etc/open/a.toml", Path::new(OPERATOR).join("a.toml")).unwrap();
        assert_eq!(refused(), ["E0006 /etc/open"]);
    });
}

#[test]
fn the_places_of_the_system_are_root_s_and_a_named_path_the_caller_s_too() {
    in_root_sandbox(|| {
        own_root();
        put("/etc/nsctl", "policy.toml", NODE);
        let whose = |uid| std::os::unix::fs::chown("/etc/nsctl/policy.toml", Some(uid), None).unwrap();
        let named = |sudo: Option<&str>| {
            let mut nsctl = Command::new(env!("CARGO_BIN_EXE_nsctl"));
            nsctl.args(["check", "-f", "/etc/nsctl/policy.toml"]).env_remove("SUDO_UID");
            sudo.map(|uid| nsctl.env("SUDO_UID", uid));
            String::from_utf8(nsctl.output().unwrap().stderr).unwrap()
        };
        assert_eq!((files().len(), named(None)), (1, String::new()), "the control");
        whose(1000);
        assert_eq!(refused(), ["E0005 /etc/nsctl/policy.toml"]);
        assert!(named(None).contains("E0005"), "{}", named(None));
        assert!(named(Some("1001")).contains("E0005"));
        assert_eq!(named(Some("1000")), "");
    });
}

const LND: &str = "schema = 1\nnetwork.name = \"node\"\n[service.lnd]\nports.rpc = \"tcp:10009\"\n";
const CHARGE: &str = "schema = 1\nfragment = \"charge\"\n[service.charge]\n";

/// What a command on the policy of the system prints; records lie in this root alone.
fn nsctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nsctl")).args(["--state", "/run/state"]).args(arguments).output().unwrap()
}

fn edges() -> String {
    let output = nsctl(&["graph"]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_package_opens_nothing_and_the_operator_s_answer_goes_to_etc() {
    in_sandbox(|| {
        own_root();
        put("/etc/nsctl", "policy.toml", LND);
        put(VENDOR, "50-charge.toml", &format!("{CHARGE}connect.lnd = [\"rpc\"]\n"));
        assert_eq!(refused(), ["E0303 /usr/lib/nsctl/policy.d/50-charge.toml"]);
        put(VENDOR, "50-charge.toml", &format!("{CHARGE}wants.lnd = [\"rpc\"]\n"));
        assert_eq!(edges(), "");
        // The directory need not be there.
        fs::remove_dir(OPERATOR).unwrap();
        let output = nsctl(&["grant", "charge"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(edges(), "charge -> lnd:rpc\n");
        assert!(files().contains(&"operator /etc/nsctl/policy.d/90-nsctl.toml".to_owned()), "{:?}", files());
        // The file of a later directory is in force: ours would say nothing.
        fs::create_dir_all("/run/nsctl/policy.d").unwrap();
        put("/run/nsctl/policy.d", "90-nsctl.toml", "schema = 1\n");
        let output = nsctl(&["grant", "charge"]);
        assert!(output.status.code() == Some(2) && edges().is_empty(), "{output:?}");
    });
}

/// A system whose /etc is sealed.
#[test]
fn where_etc_cannot_be_written_the_answer_goes_beside_the_records() {
    in_sandbox(|| {
        own_root();
        put("/etc/nsctl", "policy.toml", LND);
        put(VENDOR, "50-charge.toml", &format!("{CHARGE}wants.lnd = [\"rpc\"]\n"));
        let bind = |flags| mount(Some("/etc"), "/etc", None::<&str>, flags, None::<&str>).unwrap();
        bind(MsFlags::MS_BIND);
        bind(MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        assert!(fs::write("/etc/nsctl/x", "").is_err(), "the control");
        let output = nsctl(&["grant", "charge"]);
        assert!(output.status.success(), "{output:?}");
        assert!(Path::new("/run/state/policy.d/90-nsctl.toml").exists());
        assert_eq!(edges(), "charge -> lnd:rpc\n", "and is heard");
        let output = nsctl(&["grant", "charge", "--revoke"]);
        assert!(output.status.success() && edges().is_empty(), "{output:?}");
    });
}
