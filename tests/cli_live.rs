//! The commands that change or read the kernel, run one after the other as an operator would.
//!
//! What they print for a person is compared with a transcript; `NSCTL_UPDATE=1` writes it anew, for the eye to compare.
//! What they print for a program is asked for its keys.

#![allow(clippy::disallowed_methods, reason = "it runs the command and looks at what it prints")]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};

use common::{in_sandbox, ip, netns};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

const SHOP: &str = r#"schema = 1
network.name = "shop"

[service.web]
ports = { http = "tcp:8080" }
connect.db = ["sql", "log"]

[service.db]
ports = { sql = "tcp:5432", log = "udp:5514" }
"#;

const TESTS: &str = r#"
[[test]]
name = "the shop reaches its database, and not the other way"
from = "web"
can = ["db:sql", "db:log"]
cannot = ["wan", "db:tcp:22"]

[[never]]
from = ["db"]
to = ["web"]
why = "the database calls nobody"
"#;

const DB: &str = "10.231.0.1";
const DB6: &str = "fd8d:9001:d32c:0:2e18:6354:7fbf:d56";
const TRANSCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/live.txt");

fn write_policy(text: &str) {
    fs::write("/run/policy.toml", text).unwrap();
}

/// An /etc with the few files that programs ask for, so that links in /etc/netns stay in the sandbox.
fn own_etc() {
    let names = ["passwd", "group", "hosts", "resolv.conf", "nsswitch.conf"];
    let files = names.map(|name| (name, fs::read(format!("/etc/{name}")).unwrap_or_default()));
    mount(Some("etc"), "/etc", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(format!("/etc/{name}"), bytes).unwrap());
}

fn nsctl(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nsctl"));
    command.args(["-f", "/run/policy.toml", "--state", "/run/state"]).args(arguments.split_whitespace());
    command.stdin(Stdio::null()).env("LC_ALL", "C");
    command
}

fn run(arguments: &str) -> Output {
    nsctl(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ended by itself")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The answer as JSON. Talk must not be in it.
fn json(arguments: &str) -> Value {
    let output = run(&format!("{arguments} --json"));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments}: {e}: {output:?}"))
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value} is no object")).keys().map(String::as_str).collect()
}

fn edge<'a>(status: &'a Value, from: &str, port: &str) -> &'a Value {
    let edges = status["edges"].as_array().unwrap();
    edges.iter().find(|edge| edge["from"] == from && edge["port_name"] == port).expect("the policy has it")
}

/// One datagram of 100 bytes; nobody listens, and the panel has counted it all the same.
fn datagram(address: &str) {
    let command = format!("head -c 100 /dev/zero > /dev/udp/{address}/5514");
    let sent = nsctl("exec web -- bash -c").arg(command).output().unwrap();
    assert!(sent.status.success(), "{sent:?}");
}

/// What a terminal would show, with what differs from run to run left out.
#[derive(Default)]
struct Transcript(String);

impl Transcript {
    fn run(&mut self, arguments: &str) -> Output {
        let output = run(arguments);
        self.0.push_str(&format!("$ nsctl {arguments}\n"));
        if code(&output) != 0 {
            self.0.push_str(&format!("? {}\n", code(&output)));
        }
        self.0.push_str(&text(&output.stdout));
        self.0.extend(text(&output.stderr).lines().map(|line| format!("2> {line}\n")));
        self.0.push('\n');
        output
    }

    fn compare(self) {
        let lines = self.0.lines().map(|line| match line.ends_with(" ms)") {
            _ if line.contains("connections tried in") => counted(line),
            true => timed(line),
            false => line.trim_end().into(),
        });
        let seen = lines.collect::<Vec<String>>().join("\n") + "\n";
        if std::env::var_os("NSCTL_UPDATE").is_some() {
            fs::write(TRANSCRIPT, &seen).unwrap();
        }
        let expected = fs::read_to_string(TRANSCRIPT).unwrap();
        for (number, (seen, expected)) in seen.lines().zip(expected.lines()).enumerate() {
            assert_eq!(seen, expected, "line {} of {TRANSCRIPT}", number + 1);
        }
        assert_eq!(seen.lines().count(), expected.lines().count(), "{seen}");
    }
}

/// How many connections there are, and how long they take, is not what the transcript is about.
fn counted(line: &str) -> String {
    let (_, rest) = line.split_once(" s: ").expect("it says how long it took");
    let (_, rest) = rest.split_once(' ').expect("it says how many");
    format!("[N] connections tried in [TIME] s: [N] {rest}")
}

/// How long an attempt took neither.
fn timed(line: &str) -> String {
    let (rest, _) = line.rsplit_once(" (").expect("it says how long it took");
    format!("{rest} ([TIME] ms)")
}

#[test]
fn an_operator_sees_what_the_transcript_says() {
    in_sandbox(|| {
        own_etc();
        write_policy(SHOP);
        let mut shell = Transcript::default();
        shell.run("plan --exit-code");
        shell.run("apply");
        shell.run("apply");
        shell.run("plan --exit-code");
        shell.run("exec web -- getent ahostsv4 db");
        shell.run("exec web -- getent hosts nobody-of-that-name");
        shell.run("exec web -- no-such-command");
        shell.run("exec web -- id -u");
        datagram(DB);
        datagram(DB6);
        shell.run("status");
        shell.run("why web db:log");
        shell.run("why web db:log -v");
        shell.run("why --live web db:sql");
        {
            let _listener = netns("shop-db").run(|| TcpListener::bind((DB, 5432))).unwrap();
            shell.run("why --live web db:sql");
        }
        shell.run("why --live db web:http");
        write_policy(&format!("{SHOP}{TESTS}"));
        shell.run("test --live");
        shell.run("verify");
        write_policy(&SHOP.replace("connect.db", "connect.bd"));
        shell.run("apply");
        write_policy(&SHOP.replace("\"sql\", \"log\"", "\"log\""));
        shell.run("plan");
        shell.run("apply");
        shell.run("down");
        shell.run("down");
        assert_eq!(ip("netns list"), "");
        assert!(!fs::exists("/etc/netns").unwrap(), "the last link takes its directory along");
        shell.compare();
    });
}

#[test]
fn an_edge_counts_ip_bytes_from_its_client_and_survives_a_change_of_another() {
    in_sandbox(|| {
        own_etc();
        write_policy(SHOP);
        assert_eq!(code(&run("apply")), 0);
        datagram(DB);
        let status = json("status");
        // 20 bytes of IPv4 header, 8 of UDP, 100 of payload; 14 of Ethernet are not counted.
        assert_eq!((&status["edges"][0]["packets"], &status["edges"][0]["bytes"]), (&0.into(), &0.into()), "{status}");
        let log = edge(&status, "web", "log");
        assert_eq!((&log["packets"], &log["bytes"]), (&1.into(), &128.into()), "{log}");
        datagram(DB6);
        let status = json("status");
        let log = edge(&status, "web", "log");
        assert_eq!((&log["packets"], &log["bytes"]), (&2.into(), &(128 + 148).into()), "{log}");

        write_policy(&SHOP.replace("[service.db]", "[service.db]\nconnect.web = [\"http\"]"));
        assert_eq!(code(&run("apply")), 0);
        let after = json("status");
        assert_eq!(edge(&after, "web", "log"), log);
        assert_eq!(edge(&after, "db", "http")["packets"], 0);
    });
}

#[test]
fn a_connection_is_counted_both_ways() {
    in_sandbox(|| {
        own_etc();
        write_policy(SHOP);
        assert_eq!(code(&run("apply")), 0);
        let listener = netns("shop-db").run(|| TcpListener::bind((DB, 5432))).unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 10]).unwrap();
            stream.write_all(&[0; 5000]).unwrap();
        });
        let mut stream = netns("shop-web").run(|| TcpStream::connect((DB, 5432))).unwrap();
        stream.write_all(&[0; 10]).unwrap();
        stream.read_exact(&mut [0; 5000]).unwrap();
        serving.join().unwrap();
        let status = json("status");
        let sql = edge(&status, "web", "sql");
        let count = |key: &str| sql[key].as_u64().unwrap();
        assert!(count("packets") >= 3 && count("reply_packets") >= 2, "{sql}");
        assert!(count("bytes") < 1000 && count("reply_bytes") > 5000, "{sql}");
    });
}

/// From the package's file to the kernel: asked, closed, granted, open, taken back, closed.
#[test]
fn what_a_package_asks_for_is_closed_until_it_is_granted_and_applied() {
    in_sandbox(|| {
        own_etc();
        fs::create_dir("/run/policies").unwrap();
        fs::write("/run/policies/10-shop.toml", SHOP).unwrap();
        let fragment = "schema = 1\nfragment = \"stats\"\n[service.stats]\nwants.db = [\"sql\"]\n";
        fs::write("/run/policies/50-stats.toml", fragment).unwrap();
        let nsctl = |arguments: &str| -> String {
            let mut command = Command::new(env!("CARGO_BIN_EXE_nsctl"));
            command.args(["-f", "/run/policies", "--state", "/run/state"]).args(arguments.split_whitespace());
            let output = command.stdin(Stdio::null()).output().unwrap();
            assert!(output.status.success(), "{arguments}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        nsctl("apply");
        let _server = netns("shop-db").run(|| TcpListener::bind((DB, 5432))).unwrap();
        let reached = |from: &str| netns(from).run(|| TcpStream::connect((DB, 5432))).is_ok();
        assert!(reached("shop-web") && !reached("shop-stats"), "the control is open, the package is not");
        let status: Value = serde_json::from_str(&nsctl("status --json")).unwrap();
        assert_eq!(status["asks"][0], "stats -> db:sql");
        assert!(nsctl("status").contains("\n  stats -> db:sql\n"));
        nsctl("grant stats");
        assert!(!reached("shop-stats"), "an answer alone opens nothing");
        nsctl("apply");
        assert!(reached("shop-stats"));
        assert!(!nsctl("status").contains("nsctl grant"));
        nsctl("grant stats --revoke");
        nsctl("apply");
        assert!(reached("shop-web") && !reached("shop-stats"));
    });
}

#[test]
fn answers_for_programs_have_the_documented_keys() {
    in_sandbox(|| {
        own_etc();
        write_policy(SHOP);
        assert_eq!(keys(&json("plan")), ["changes", "proof", "steps"]);
        let applied = json("apply");
        assert_eq!(
            keys(&applied),
            ["before", "changes", "confirm_within", "done", "generation", "notes", "proof", "warnings"]
        );
        assert_eq!(keys(&applied["changes"][0]), ["address4", "address6", "change", "name", "what"]);
        assert_eq!(keys(&applied["changes"][2]), ["change", "from", "ports", "range", "to", "what"]);
        let status = json("status");
        assert_eq!(
            keys(&status),
            [
                "asks",
                "drift",
                "edges",
                "exposures",
                "files",
                "generation",
                "held",
                "network",
                "outbound",
                "pending",
                "services",
                "warnings"
            ]
        );
        let service = ["address4", "address6", "link", "name", "netns", "ports", "state"];
        assert_eq!(keys(&status["services"][0]), service);
        let edge =
            ["bytes", "from", "packets", "port", "port_end", "port_name", "proto", "reply_bytes", "reply_packets"];
        assert_eq!(keys(&status["edges"][0]), [&edge[..], &["to"]].concat());
        assert_eq!((&status["network"], &status["drift"]), (&"shop".into(), &Value::Array(vec![])));
        let verified = json("verify");
        assert_eq!(keys(&verified), ["elapsed_ms", "mismatches", "probes", "proven", "unproven"]);
        assert_eq!((&verified["probes"], &verified["mismatches"]), (&verified["proven"], &Value::Array(vec![])));
        assert_eq!(json("prove --live")["classes"], json("plan")["proof"]["classes"]);
        let why = json("why web db:sql");
        let yes =
            ["answer", "at", "bytes", "elements", "from", "live", "packets", "port", "refusal", "refused", "state"];
        assert_eq!(keys(&why), [&yes[..], &["through", "to", "what"]].concat());
        let element = ["chain", "element", "netns", "packets", "place", "rule", "set", "table"];
        assert_eq!(keys(&why["elements"][0]), element);
        let why_not = json("why --live db web:http");
        let no = ["answer", "breaks", "bytes", "chain", "closest", "elements", "from", "live", "may_reach", "packets"];
        assert_eq!(keys(&why_not), [&no[..], &["port", "reason", "refusal", "refused", "to"]].concat());
        assert_eq!(keys(&why_not["refusal"]), ["absent", "chain", "netns", "place", "rule", "table"]);
        let live = &why_not["live"];
        assert_eq!(keys(live), ["allowed", "drift", "foreign", "lookup", "port", "proto", "tries"]);
        assert_eq!(keys(&live["tries"][0]), ["address", "ms", "next", "says", "seen", "verdict"]);
        assert_eq!(keys(&live["lookup"]), ["addresses", "fault", "file", "name", "resolvers"]);
        // What was tried is counted, and told the next time.
        let refused = |why: &Value| why["refused"].as_u64().unwrap();
        assert_eq!(refused(&json("why db web:http")), refused(&why_not) + 2);
        let tested = json("test --live");
        assert_eq!(keys(&tested), ["failed", "passed", "results", "unproven"]);
        let reach = json("reach --from web");
        assert_eq!(keys(&reach), ["from", "goes_on", "hops", "layers", "not_reached", "to"]);
        assert!(why["packets"].as_u64().is_some_and(|packets| packets > 0), "verify has just used it: {why}");
        assert_eq!(keys(&json("down")), ["done", "network", "notes"]);
    });
}

#[test]
fn an_exit_code_tells_failure_from_a_wrong_policy_and_from_something_to_do() {
    in_sandbox(|| {
        own_etc();
        write_policy(SHOP);
        assert_eq!(code(&run("plan --exit-code")), 3);
        assert_eq!(code(&run("plan")), 0);
        assert_eq!(code(&run("apply")), 0);
        assert_eq!(code(&run("plan --exit-code")), 0);
        let lock = File::open("/run/state/shop/lock").unwrap();
        let held = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
        let refused = run("apply --json");
        assert_eq!(code(&refused), 1);
        let errors: Value = serde_json::from_slice(&refused.stdout).unwrap();
        assert_eq!(keys(&errors["errors"][0]), ["code", "column", "file", "help", "line", "message"]);
        assert_eq!(errors["errors"][0]["code"], "E0903");
        drop(held);
        write_policy(&SHOP.replace("connect.db", "connect.bd"));
        assert_eq!(code(&run("apply")), 2);
        assert_eq!(code(&run("exec nobody -- true")), 2);
        assert_eq!(code(&run("no-such-verb")), 2);
    });
}

#[test]
fn a_foreign_flush_is_drift_and_the_next_apply_repairs_it() {
    in_sandbox(|| {
        own_etc();
        write_policy(SHOP);
        assert_eq!(code(&run("apply")), 0);
        common::nft("shop+fabric", "flush ruleset");
        assert_ne!(json("status")["drift"], Value::Array(vec![]));
        assert_eq!(code(&run("plan --exit-code")), 3);
        let verified = run("verify");
        assert_eq!(code(&verified), 1);
        assert!(text(&verified.stderr).contains("apply the policy first"), "{verified:?}");
        assert_eq!(code(&run("apply")), 0);
        assert_eq!(json("status")["drift"], Value::Array(vec![]));
        assert_eq!(code(&run("verify")), 0);
    });
}

#[test]
fn talk_goes_to_stderr_and_a_reader_that_has_gone_is_no_panic() {
    in_sandbox(|| {
        own_etc();
        write_policy(SHOP);
        let talkative = run("apply -v");
        assert!(text(&talkative.stderr).contains("nsctl: done: create fabric shop+fabric"), "{talkative:?}");
        assert!(!text(&talkative.stdout).contains("done:"), "{talkative:?}");
        for arguments in ["status", "status --json", "plan", "graph", "--help"] {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let output = nsctl(arguments).stdout(writer).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{arguments}: {output:?}");
        }
    });
}

#[test]
fn a_refusal_names_the_capability_that_is_missing() {
    in_sandbox(|| {
        own_etc();
        write_policy(SHOP);
        for verb in
            ["apply", "down", "exec web -- true", "plan", "status", "test --live", "verify", "why --live web db:sql"]
        {
            let binary = [env!("CARGO_BIN_EXE_nsctl"), "-f", "/run/policy.toml", "--json"];
            let drop = ["--bounding-set=-net_admin", "--inh-caps=-net_admin"];
            let without = Command::new("setpriv").args(drop).args(binary).args(verb.split(' ')).output().unwrap();
            let refused: Value = serde_json::from_slice(&without.stdout).unwrap_or_else(|e| panic!("{e}: {without:?}"));
            assert_eq!((code(&without), &refused["errors"][0]["code"]), (1, &"E0910".into()));
            let message = refused["errors"][0]["message"].as_str().unwrap();
            assert!(message.ends_with(" needs CAP_NET_ADMIN"), "{message}");
        }
        assert_eq!(code(&run("plan --offline")), 0);
    });
}

#[test]
fn what_is_foreign_is_told_and_left_alone() {
    in_sandbox(|| {
        own_etc();
        write_policy(SHOP);
        assert_eq!(code(&run("apply")), 0);
        common::nft("shop+fabric", "add table inet other");
        ip("netns add shop-other");
        fs::remove_file("/run/nsctl/shop/shop-web/hosts").unwrap();
        let upkeep = "1 step of upkeep, none made yet; run `nsctl apply` to make it\n";
        assert_eq!(text(&run("plan").stdout), upkeep);
        assert_eq!(text(&run("apply").stdout), "1 step of upkeep made\n");
        let expected = ["foreign table inet other in shop+fabric", "foreign namespace shop-other"];
        assert_eq!(json("status")["drift"], Value::from(expected.to_vec()));
        assert_eq!(code(&run("verify")), 0, "what is foreign is no reason not to look");
        assert_eq!(code(&run("down")), 0);
        assert!(ip("netns list").starts_with("shop-other"));
        ip("netns add shop-web");
        let refused = run("apply");
        assert_eq!(code(&refused), 1);
        assert!(text(&refused.stderr).contains("the namespace shop-web exists and is not ours"), "{refused:?}");
    });
}

#[test]
fn a_command_that_cannot_be_run_and_a_port_that_there_is_not_are_told_to_programs() {
    in_sandbox(|| {
        own_etc();
        write_policy(SHOP);
        assert_eq!(code(&run("apply")), 0);
        let failed = run("--json exec web -- /nonexistent");
        let answer: Value = serde_json::from_slice(&failed.stdout).unwrap();
        assert_eq!((code(&failed), &answer["errors"][0]["code"]), (127, &"E0914".into()));
        let failed = run("--json why web db:sq");
        let answer: Value = serde_json::from_slice(&failed.stdout).unwrap();
        let error = &answer["errors"][0];
        assert_eq!((&error["message"], &error["help"]), (&"db has no port `sq`".into(), &"did you mean `sql`?".into()));
    });
}

#[test]
fn a_network_is_taken_down_by_its_name_or_by_what_is_left_of_it() {
    in_sandbox(|| {
        own_etc();
        let nsctl = |arguments: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_nsctl"));
            command.args(["--state", "/run/state"]).args(arguments.split_whitespace()).output().unwrap()
        };
        write_policy(SHOP);
        assert_eq!(code(&run("apply")), 0);
        fs::remove_dir_all("/run/state").unwrap();
        let removed = nsctl("down");
        assert_eq!(text(&removed.stdout), "network shop is removed; its addresses stay recorded\n", "{removed:?}");
        let other =
            SHOP.replace("\"shop\"", "\"other\"\npool4 = \"10.232.0.0/22\"").replace("network.name", "[network]\nname");
        write_policy(&other);
        assert_eq!(code(&run("apply")), 0);
        let which = nsctl("down");
        assert_eq!(code(&which), 2);
        assert!(text(&which.stderr).contains("2 networks are known"), "{which:?}");
        write_policy("broken");
        assert_eq!(code(&run("down")), 2);
        fs::create_dir("/etc/nsctl").unwrap();
        fs::write("/etc/nsctl/policy.toml", "broken").unwrap();
        let refused = nsctl("down");
        assert!(text(&refused.stderr).contains("the policy is refused"), "{refused:?}");
        assert_eq!(code(&run("down --network other")), 0);
        assert_eq!(ip("netns list"), "");
    });
}
