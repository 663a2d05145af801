//! What the kernel tests share: a sandbox for each test, and the witnesses `ip` and `nft`.
//!
//! # Invariants
//!
//! - A test that touches the kernel runs in a process, a network, a mount and (but for [`in_root_sandbox`]) a user
//!   namespace of its own. `/run` is empty there and `lo` is up. Nothing of it reaches the host or another test.
//! - It ends: after [`PATIENCE`], or what it asked for, its process group is killed, and the test fails.
//! - Where the machine allows no such namespaces, the test says so on the real stderr; with `CI=true` it fails.
//!
//! ```ignore
//! #[test]
//! fn a_wire_carries_packets() {
//!     in_sandbox(|| {
//!         ip("netns add a");
//!         ...
//!     });
//! }
//! ```

#![allow(dead_code, reason = "each test crate uses a part of this")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests call themselves, unshare(1), ip(8) and nft(8); the product does not"
)]

pub mod listing;
pub mod machine;
pub mod network;
#[cfg(feature = "daemon")]
pub mod resident;
pub mod talk;

use std::any::type_name;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, geteuid};
use nsctl::kernel::netns::Netns;

/// How long a test in a sandbox may take.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Tells the copy of the test binary that it is inside.
const INSIDE: &str = "NSCTL_TEST_INSIDE";

/// What the copy prints when the body of the test has come to its end.
const DONE: &str = "sandbox: the test came to its end";

/// Namespaces for anybody: root inside is the caller outside, and the only user there is.
const ANYBODY: &[&str] = &["--user", "--map-root-user", "--mount", "--net", "--propagation", "private"];

/// Namespaces for root, who stays what it is and can become other users.
const ROOT: &[&str] = &["--mount", "--net", "--propagation", "private"];

/// Runs the calling test's `body` in a sandbox of its own, as root without any power outside.
///
/// The body has to be a closure written in the test function itself: the name of the test is read off its type.
pub fn in_sandbox<F: FnOnce()>(body: F) {
    sandboxed(ANYBODY, PATIENCE, type_name::<F>(), body);
}

/// Like [`in_sandbox`], for what may take longer.
pub fn in_patient_sandbox<F: FnOnce()>(patience: Duration, body: F) {
    sandboxed(ANYBODY, patience, type_name::<F>(), body);
}

/// Like [`in_sandbox`], as the real root in mount and network namespaces only, for what needs more than one user.
pub fn in_root_sandbox<F: FnOnce()>(body: F) {
    if !geteuid().is_root() {
        return cannot("it takes root: several users cannot be mapped without");
    }
    sandboxed(ROOT, PATIENCE, type_name::<F>(), body);
}

fn sandboxed(namespaces: &[&str], patience: Duration, closure: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        furnish();
        body();
        println!("{DONE}");
        return;
    }
    let allowed = Command::new("unshare").args(namespaces).arg("true").output();
    match allowed {
        Ok(output) if output.status.success() => {}
        Ok(output) => return cannot(String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => return cannot(&format!("unshare(1): {error}")),
    }
    let mut again = Command::new("unshare");
    again.args(namespaces).arg(std::env::current_exe().expect("a test has a binary"));
    // Whoever runs the tests over SSH is not asked to confirm what they apply.
    again.env(INSIDE, "1").env("SSH_CONNECTION", "");
    let ran = run_for(patience, of_test(&mut again, test_name(closure)));
    assert!(ran.status.success() && ran.text.contains(DONE), "in the sandbox ({}):\n{}", ran.status, ran.text);
    // What it measured is of interest to whoever asks for it with --nocapture.
    print!("{}", ran.text);
}

/// An empty /run, so that /run/netns is the sandbox's own, and a loopback that works.
fn furnish() {
    mount(Some("sandbox"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).expect("a /run of our own");
    // Root of a user namespace that is root outside too could still write there.
    nsctl::sandbox::write_protect("/etc").expect("an /etc that nothing is written to");
    ip("link set lo up");
}

/// `crate::module::test::{{closure}}` is `module::test` to the test harness.
fn test_name(closure: &str) -> &str {
    let path = closure.split("::{{closure}}").next().unwrap_or(closure);
    path.split_once("::").map_or(path, |(_, test)| test)
}

/// A kernel test that cannot run says why, where no harness captures it; in CI that is a failure.
pub fn cannot(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let message = format!("NOT RUN: {test}: this machine gives no sandbox: {why}\n");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
    std::io::stderr().write_all(message.as_bytes()).expect("stderr can be written");
}

/// How a process ended and what it printed, stdout and stderr as they came.
#[derive(Debug)]
pub struct Ran {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed.
    pub text: String,
}

/// Runs `command`, which starts this test binary, with the arguments for exactly the test `name`.
pub fn run_test(command: &mut Command, name: &str) -> Ran {
    run(of_test(command, name))
}

fn of_test<'c>(command: &'c mut Command, name: &str) -> &'c mut Command {
    command.args(["--exact", name, "--nocapture", "--test-threads=1", "--include-ignored"])
}

/// Runs `command` in a process group of its own, which is killed when it takes longer than [`PATIENCE`].
pub fn run(command: &mut Command) -> Ran {
    run_for(PATIENCE, command)
}

fn run_for(patience: Duration, command: &mut Command) -> Ran {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    command.stdin(Stdio::null()).stdout(writer.try_clone().expect("a pipe end")).stderr(writer).process_group(0);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // The command holds ends of the pipe for as long as it can be spawned again.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (send, text) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).ok();
        send.send(String::from_utf8_lossy(&bytes).into_owned()).ok();
    });
    let status = wait_or_kill(&mut child, patience);
    let text = text.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|_| "(its output is still held open)".into());
    Ran { status, text }
}

fn wait_or_kill(child: &mut Child, patience: Duration) -> ExitStatus {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return status;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let group = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    killpg(group, Signal::SIGKILL).expect("the group is ours");
    child.wait().unwrap_or(ExitStatus::from_raw(Signal::SIGKILL as i32))
}

/// `ip ARGUMENTS`, which must succeed; its stdout. The arguments hold no quotes.
pub fn ip(arguments: &str) -> String {
    witness(Command::new("ip").args(arguments.split_whitespace()))
}

/// Loads an nft script in the namespace called `netns`; it must succeed.
pub fn nft(netns: &str, script: &str) -> String {
    witness(Command::new("ip").args(["netns", "exec", netns, "nft", script]))
}

/// Runs one nft command in the sandbox's own namespace; it must succeed.
pub fn nft_here(script: &str) -> String {
    witness(Command::new("nft").arg(script))
}

/// What an independent tool prints; it must succeed.
pub fn witness(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}\n{}", String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).into_owned()
}

/// The namespace that `ip netns add NAME` has made.
pub fn netns(name: &str) -> Netns {
    Netns::open(&Path::new("/run/netns").join(name)).unwrap_or_else(|error| panic!("no namespace {name}: {error}"))
}

/// One end of a wire: the namespace, the link, its addresses with their prefix lengths.
pub type End<'a> = (&'a str, &'a str, &'a [&'a str]);

/// Joins two namespaces by a wire that carries packets at once: one MAC for both ends, so that no neighbour has to be
/// looked for, and no link-local address but those that are given.
pub fn wire(a: End, b: End) {
    let mac = "address 02:00:00:00:00:01";
    ip(&format!("link add {} {mac} netns {} type veth peer name {} {mac} netns {}", a.1, a.0, b.1, b.0));
    for (name, link, addresses) in [a, b] {
        ip(&format!("-n {name} link set {link} addrgenmode none arp off"));
        // Without it a wire waits a second or two before its IPv6 addresses are used.
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            ip(&format!("-n {name} address add {address} dev {link} {nodad}"));
        }
        ip(&format!("-n {name} link set {link} up"));
    }
    // To be asked for a link makes the kernel settle its state; otherwise that happens within the next second.
    for (name, link, _) in [a, b] {
        ip(&format!("-n {name} link show {link}"));
    }
}
