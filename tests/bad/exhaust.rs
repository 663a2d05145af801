//! What only costs: policies of a mebibyte that make a reader nest, compare, suggest or multiply.
//!
//! Each is read by the command with an address space of [`MEMORY`] and ends by itself, with an answer or a refusal that
//! fits a terminal; never by a signal, a panic or a time limit. The limit is far above what each takes, as machines
//! differ; what it catches is a cost that grows with the square.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::shell;

/// In KiB, as ulimit(1) takes it. Debug builds need more of it than others.
const MEMORY: u32 = 512 << 10;
const PATIENCE: Duration = Duration::from_secs(90);
/// The most that is printed.
const TALK: usize = 256 << 10;
const MIB: usize = 1 << 20;

const HEAD: &str = "schema = 1\nnetwork.name = \"node\"\nnetwork.pool4 = \"10.0.0.0/8\"\n";

/// `head`, then as many of the parts as fit into a file.
fn filled(head: String, part: impl Fn(usize) -> String) -> String {
    let mut text = head;
    for n in 0.. {
        let part = part(n);
        if text.len() + part.len() > MIB {
            return text;
        }
        text.push_str(&part);
    }
    text
}

fn join(count: usize, item: impl Fn(usize) -> String) -> String {
    (0..count).map(item).collect::<Vec<_>>().join(",")
}

/// 223 services that all reach each other: 49,506 edges, close to the limit.
fn dense() -> String {
    let service =
        |n| format!("[service.s{n}]\nports = {{ h = \"tcp:80\" }}\ntags = [\"t\"]\nconnect.\"@t\" = [\"h\"]\n");
    HEAD.to_owned() + &(0..223).map(service).collect::<String>()
}

fn bombs() -> Vec<(&'static str, String)> {
    let many_ports = |count: usize| {
        let port = |n| format!("p{n} = \"tcp:{}\"\n", 1 + n % 65_535);
        format!("{HEAD}[service.a.ports]\n{}", (0..count).map(port).collect::<String>())
    };
    let never =
        |n: usize| format!("[[never]]\nfrom = [\"@t\"]\nto = [\"z\"]\npath = true\nexcept = [\"s{}\"]\n", n % 200);
    let broken = |_| "[[never]]\nfrom = [\"@t\"]\nto = [\"@t\"]\npath = true\n".to_owned();
    vec![
        ("nested.toml", format!("x = {}", "[".repeat(MIB - 4))),
        ("tables.toml", format!("x={}", "{a=".repeat(MIB / 3 - 10))),
        ("dotted.toml", format!("a{} = 1", ".a".repeat(MIB / 2 - 10))),
        ("headers.toml", filled(String::new(), |n| format!("[a{n}.b.c]\n"))),
        ("nested.json", "[".repeat(MIB)),
        ("objects.json", "{\"a\":".repeat(MIB / 5 - 1)),
        ("key.toml", format!("{HEAD}{} = 1\n", "k".repeat(MIB - 200))),
        ("name.toml", format!("{HEAD}[service.{}]\n", "u".repeat(MIB - 200))),
        ("text.toml", format!("{HEAD}[service.a]\nunit = \"{}\"\n", "u".repeat(MIB - 200))),
        ("keys.toml", filled(HEAD.to_owned(), |n| format!("k{n} = 1\n"))),
        ("names.toml", filled(HEAD.to_owned(), |n| format!("[service.\"B{n}\"]\n"))),
        (
            "line.json",
            format!("{{\"schema\":1,\"network\":{{\"name\":\"n\"}},{}}}", join(80_000, |n| format!("\"k{n}\":1"))),
        ),
        ("lines.toml", "\n".repeat(MIB)),
        ("controls.toml", format!("{HEAD}#{}", "\0".repeat(MIB - 200))),
        ("directions.toml", format!("{HEAD}#{}", "\u{202e}".repeat(MIB / 3 - 200))),
        (
            "ports.toml",
            filled(format!("{HEAD}[service.a.ports]\n"), |n| format!("p{n} = \"tcp:{}\"\n", 1 + n % 65_535)),
        ),
        ("same-ports.toml", filled(format!("{HEAD}[service.a.ports]\n"), |n| format!("p{n} = \"tcp:1-65535\"\n"))),
        (
            "private.toml",
            format!("{}[service.b]\nconnect.a = [{}]\n", many_ports(24_000), join(24_000, |n| format!("\"p{n}\""))),
        ),
        (
            "exposed.toml",
            many_ports(22_000)
                + "[service.a.expose.port.ports]\n"
                + &(0..22_000).map(|n| format!("\"{}\" = \"p{n}\"\n", n + 1)).collect::<String>(),
        ),
        (
            "twice.toml",
            format!(
                "{HEAD}[service.a]\nconnect.b = [{}]\n[service.b]\nports = {{ h = \"tcp:80\" }}\n",
                join(200_000, |_| "\"h\"".into())
            ),
        ),
        (
            "targets.toml",
            filled(HEAD.to_owned(), |n| {
                let edge = |m| format!("connect.servise-numbr-{n}-{m} = [\"x\"]\n");
                format!("[service.service-number-{n}]\n{}", (0..28).map(edge).collect::<String>())
            }),
        ),
        (
            "tags.toml",
            filled(HEAD.to_owned(), |n| {
                let numbers = join(60, |m| format!("\"tcp:{}\"", m + 1));
                format!("[service.s{n}]\ntags = [\"t\"]\nconnect.\"@t\" = [{numbers}]\n")
            }),
        ),
        (
            "tags-off.toml",
            filled(HEAD.to_owned(), |n| {
                let numbers = join(60, |m| format!("\"tcp:{}\"", m + 1));
                format!("[service.s{n}]\nenabled = false\ntags = [\"t\"]\nconnect.\"@t\" = [{numbers}]\n")
            }),
        ),
        (
            "never.toml",
            // With a mistake, so that it ends with what is tried here: the proof of so many edges has its own time.
            dense()
                + "[service.z]\nports = { h = \"tcp:80\" }\nconnect.nobody = [\"h\"]\n"
                + &(0..1_000).map(never).collect::<String>(),
        ),
        ("never-broken.toml", dense() + &(0..1_000).map(broken).collect::<String>()),
        (
            "peers.toml",
            filled(
                format!(
                    "{HEAD}[service.a]\nports = {{ h = \"tcp:80\" }}\n[service.a.expose.wireguard]\nports = [\"h\"]\npeers = [{}]\n",
                    join(30_000, |n| format!("\"p{n}\""))
                ),
                |n| format!("[peer.p{n}]\n"),
            ),
        ),
    ]
}

/// Runs a check in so much memory; what it printed, and how long it took.
fn checked(directory: &Path, name: &str) -> (Vec<u8>, Duration) {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v \"$1\"; exec \"$2\" check -f \"$3\"", "sh", &MEMORY.to_string()]);
    command.args([env!("CARGO_BIN_EXE_nsctl"), name]).current_dir(directory);
    let out = directory.join("out");
    let printed = fs::File::create(&out).unwrap();
    command.stdin(Stdio::null()).stdout(printed.try_clone().unwrap()).stderr(printed);
    let start = Instant::now();
    let mut child = command.spawn().unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{name}: not done after {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let printed = fs::read(&out).unwrap();
    let shown = String::from_utf8_lossy(&printed[..printed.len().min(400)]).into_owned();
    assert!(matches!(status.code(), Some(0 | 2)), "{name}: {status}: {shown}");
    (printed, start.elapsed())
}

#[test]
fn no_policy_hangs_panics_or_takes_all_memory() {
    let root = shell::scratch(999);
    for (name, text) in bombs() {
        assert!(text.len() <= MIB, "{name} is too large to be read at all: {}", text.len());
        assert!(text.len() > MIB / 32, "{name} is small: {}", text.len());
        fs::write(root.join(name), text).unwrap();
        let (printed, took) = checked(&root, name);
        println!("{name:<20} {took:>8.1?}, {} bytes printed", printed.len());
        assert!(!printed.is_empty() && printed.len() < TALK, "{name}: {} bytes printed", printed.len());
        let longest = printed.split(|b| *b == b'\n').map(<[u8]>::len).max().unwrap_or_default();
        assert!(longest < 2_000, "{name}: a line of {longest} bytes");
    }
    fs::remove_dir_all(root).unwrap();
}

/// The limit is one: what needs more than it ends by it.
#[test]
fn the_memory_limit_of_this_test_is_felt() {
    let root = shell::scratch(998);
    fs::write(root.join("policy.toml"), HEAD).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v 8192; exec \"$1\" check -f policy.toml", "sh", env!("CARGO_BIN_EXE_nsctl")]);
    let output = command.current_dir(&root).output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    assert!(checked(&root, "policy.toml").0.starts_with(b"ok: 0 services, 0 edges\n"), "the control");
    fs::remove_dir_all(root).unwrap();
}
