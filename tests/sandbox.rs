//! The sandbox, entered for real. Without the test harness, which starts threads: a sandbox is for a process with one.

mod common;

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use common::{ip, run, wire};
use nsctl::kernel::netns::Netns;
use nsctl::sandbox::Sandbox;

const INSIDE: &str = "inside";
const STANDS: &str = "the sandbox stands";
const FORBIDDEN: [&str; 2] = ["/etc/nsctl-sandbox-test", "/var/nsctl-sandbox-test"];

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == INSIDE) {
        return enters_and_touches_nothing_outside();
    }
    if arguments.iter().any(|argument| argument == "--list") {
        return println!("sandbox: test");
    }
    takes_no_root();
    println!("test result: ok. the sandbox was entered as every user at hand");
}

#[allow(clippy::disallowed_methods, reason = "a sandbox is entered by a process, so it needs one for each user")]
fn takes_no_root() {
    let allowed = Command::new("unshare").args(["-Urmn", "true"]).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        return common::cannot("unshare -Urmn is refused");
    }
    let binary = std::env::current_exe().expect("a test has a binary");
    let mut commands = vec![Command::new(&binary)];
    if nix::unistd::geteuid().is_root() {
        let mut as_nobody = Command::new("setpriv");
        as_nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
        commands.push(as_nobody);
    }
    let namespaces = || fs::read_dir("/run/netns").map_or(0, Iterator::count);
    let before = namespaces();
    for command in &mut commands {
        let ran = run(command.arg(INSIDE));
        assert!(ran.status.success() && ran.text.contains(STANDS), "{command:?}: {}\n{}", ran.status, ran.text);
    }
    assert_eq!(namespaces(), before, "namespaces of the sandbox are seen outside");
    assert!(FORBIDDEN.iter().all(|file| !Path::new(file).exists()));
}

fn enters_and_touches_nothing_outside() {
    let before = Netns::current().and_then(|netns| netns.file().metadata()).expect("/proc is mounted");
    let sandbox = Sandbox::enter().unwrap_or_else(|error| panic!("{error}: {}", source(&error)));
    let now = Netns::current().and_then(|netns| netns.file().metadata()).expect("/proc is mounted");
    assert_ne!(std::os::unix::fs::MetadataExt::ino(&before), std::os::unix::fs::MetadataExt::ino(&now));
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    assert!(sandbox.has_user_namespace() && status.contains("\nUid:\t0\t0\t0\t0\n"), "{status}");
    assert!(fs::read_dir("/run").expect("it is there").next().is_none(), "/run is not empty");
    for file in FORBIDDEN {
        let error = fs::write(file, "x").expect_err("it is write-protected");
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "{file}");
    }
    // Namespaces can be made in it, by ip(8) and by ourselves, and wired.
    ip("link set lo up");
    ip("netns add a");
    let b = Path::new("/run/netns/b");
    Netns::create(b, || Ok(())).expect("root in the sandbox may");
    wire(("a", "net0", &["10.0.0.1/24"]), ("b", "net0", &["10.0.0.2/24"]));
    ip("netns exec a ping -c 1 -W 5 10.0.0.2");
    println!("{STANDS}");
}

fn source(error: &dyn std::error::Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}
