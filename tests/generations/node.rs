//! A node of three services, the command as an operator runs it, and what is looked at afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use netns_policy::graph::AllowGraph;
use netns_policy::port::Protocol;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsctl::store::{Number, Store};
use serde_json::Value;

use crate::common::network::Network;

/// What all policies here begin with.
pub const HEAD: &str = r#"schema = 1
[network]
name = "node"
pool4 = "10.31.0.0/24"
ipv6 = false
[service.a]
ports = { x = "tcp:7001" }
[service.b]
ports = { x = "tcp:7001", y = "tcp:7002" }
"#;

/// From `a` to `b:x`, and no more.
pub const OLD: &str = "connect.a = [\"x\"]\n[service.c]\nports = { x = \"tcp:7001\" }\n";
/// From `b` to `c:x` and `a` to nobody.
pub const NEW: &str = "connect.c = [\"x\"]\n[service.c]\nports = { x = \"tcp:7001\" }\n";

/// An edge as it is tried: from, to, port.
pub type Tried = (&'static str, &'static str, u16);

/// That of [`OLD`].
pub const OLD_EDGE: Tried = ("b", "a", 7001);
/// That of [`NEW`].
pub const NEW_EDGE: Tried = ("b", "c", 7001);
/// Those of neither.
const NEVER: [Tried; 3] = [("a", "b", 7001), ("c", "b", 7002), ("a", "c", 7001)];

/// The state directory.
pub const STATE: &str = "/run/node/state";

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code; `None` when it was killed.
    pub code: Option<i32>,
    /// On stdout.
    pub out: String,
    /// On stderr.
    pub err: String,
}

impl Said {
    /// Of a process that has ended.
    pub fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Which must have gone well.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self
    }

    /// Which must have been refused with this code, and all of `words`.
    #[track_caller]
    pub fn refused(self, code: &str, words: &[&str]) -> Self {
        assert!(self.code == Some(1) && self.err.contains(&format!("{code}: ")), "{code}: {self:?}");
        words.iter().for_each(|word| assert!(self.err.contains(word), "`{word}`: {}", self.err));
        self
    }
}

/// The node.
pub struct Node {
    /// To look with.
    pub network: Network,
}

impl Node {
    /// With [`HEAD`] and this policy, not applied yet.
    pub fn new(policy: &str) -> Self {
        Self { network: Network::new("node", &format!("{HEAD}{policy}")) }
    }

    /// With [`OLD`] in force, as generation 1.
    pub fn up() -> Self {
        let node = Self::new(OLD);
        node.run("apply --no-confirm").ok();
        assert_eq!(node.open(), BTreeSet::from([OLD_EDGE]), "the control: what is open is seen to be open");
        node
    }

    /// Another policy, not applied yet.
    pub fn write(&self, policy: &str) {
        self.network.write(&format!("{HEAD}{policy}"));
    }

    /// The command.
    pub fn nsctl(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nsctl"));
        command.args(["-f", "/run/node/policy.toml", "--state", STATE]).args(arguments.split_whitespace());
        command.stdin(Stdio::null()).env("LC_ALL", "C");
        command
    }

    /// Runs it.
    pub fn run(&self, arguments: &str) -> Said {
        Said::of(&self.nsctl(arguments).output().unwrap())
    }

    /// Runs it with one variable more.
    pub fn run_with(&self, variable: (&str, &str), arguments: &str) -> Said {
        Said::of(&self.nsctl(arguments).env(variable.0, variable.1).output().unwrap())
    }

    /// Runs it by way of another program.
    pub fn run_by(&self, program: &str, arguments: &str) -> Said {
        let nsctl = self.nsctl(arguments);
        let mut words = program.split_whitespace();
        let mut by = Command::new(words.next().unwrap());
        by.args(words).arg(nsctl.get_program()).args(nsctl.get_args());
        by.stdin(Stdio::null()).env("LC_ALL", "C").env_remove("SSH_CONNECTION");
        Said::of(&by.output().unwrap())
    }

    /// Runs it below a shell that has this variable still, by way of a program that takes it away or says another thing.
    pub fn run_behind(&self, (name, value): (&str, &str), by: &str, arguments: &str) -> Said {
        let nsctl = self.nsctl(arguments);
        let mut shell = Command::new("sh");
        // Two commands, so that the shell does not become the first one.
        shell.args(["-c", &format!("{by} \"$0\" \"$@\"; exit $?")]).arg(nsctl.get_program()).args(nsctl.get_args());
        shell.stdin(Stdio::null()).env("LC_ALL", "C").env(name, value);
        Said::of(&shell.output().unwrap())
    }

    /// What it answers for a program.
    #[track_caller]
    pub fn json(&self, arguments: &str) -> Value {
        let said = self.run(&format!("{arguments} --json"));
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{arguments}: {error}: {said:?}"))
    }

    /// Which generation is in force, as the record says.
    pub fn current(&self) -> Option<Number> {
        self.store().current().unwrap()
    }

    /// The records.
    pub fn store(&self) -> Store {
        Store::new(Path::new(STATE), &"node".parse().unwrap())
    }

    /// A path in the records.
    pub fn record(&self, name: &str) -> PathBuf {
        Path::new(STATE).join("node").join(name)
    }

    /// Who has which address on record.
    pub fn addresses(&self) -> BTreeMap<String, IpAddr> {
        let book = self.store().addresses().unwrap();
        book.services.into_iter().map(|(name, entry)| (name, entry.address4.into())).collect()
    }

    /// What is open of all that the policies here know, by real connections. What none of them allows must not be.
    #[track_caller]
    pub fn open(&self) -> BTreeSet<Tried> {
        self.open_by(&self.addresses())
    }

    /// The same where the record cannot be read any more.
    #[track_caller]
    pub fn open_by(&self, addresses: &BTreeMap<String, IpAddr>) -> BTreeSet<Tried> {
        let reaches = |(from, to, port): &Tried| {
            let to_address = addresses.get(*to);
            to_address.is_some_and(|address| self.network.reaches(from, to, (*address, Protocol::Tcp, *port)))
        };
        let never: Vec<_> = NEVER.iter().filter(|tried| reaches(tried)).collect();
        assert!(never.is_empty(), "nobody allows {never:?}");
        [OLD_EDGE, NEW_EDGE].into_iter().filter(reaches).collect()
    }

    /// Every generation that is kept must read back whole, and the one in force must be one of these.
    #[track_caller]
    pub fn assert_whole(&self, any_of: &[Option<Number>], when: &str) {
        let store = self.store();
        let current = store.current().unwrap_or_else(|error| panic!("{when}: {error}"));
        assert!(any_of.contains(&current), "{when}: {current:?} is in force, and not one of {any_of:?}");
        let all = store.generations().unwrap();
        assert!(current.is_none_or(|current| all.contains(&current)), "{when}: {current:?} of {all:?}");
        for number in all {
            let whole = |error: nsctl::store::StoreError| -> ! { panic!("{when}: generation {number}: {error}") };
            let meta = store.meta(number).unwrap_or_else(|error| whole(error));
            assert_eq!(meta.number, number, "{when}");
            let sources = store.sources(number).unwrap_or_else(|error| whole(error));
            assert_eq!(nsctl::store::digest(&sources), meta.digest, "{when}");
            let graph =
                AllowGraph::parse(&sources).unwrap_or_else(|_| panic!("{when}: {number} holds no policy")).graph;
            assert_eq!(graph.hash(), meta.hash, "{when}");
            let book = store.addresses_of(number).unwrap_or_else(|error| whole(error));
            assert!(graph.services().all(|service| book.services.keys().any(|name| *name == service.name.to_string())));
            let rules = fs::read_to_string(self.record(&format!("generations/{number}/rules.nft"))).unwrap();
            assert!(rules.contains("node+fabric") && rules.trim_end().ends_with('}'), "{when}: {rules}");
        }
    }
}

/// The processes that wait for a confirmation in this sandbox.
pub fn holders() -> Vec<Pid> {
    let here = fs::read_link("/proc/self/ns/mnt").unwrap();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let holds = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let is_in_here = fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|there| there == here);
        is_in_here && line.split(|byte| *byte == 0).any(|word| word == b"hold")
    };
    pids.filter(holds).map(Pid::from_raw).collect()
}

/// Ends the holders when a test ends, however it ends.
pub struct NoHolder;

impl Drop for NoHolder {
    fn drop(&mut self) {
        holders().into_iter().for_each(|pid| {
            kill(pid, Signal::SIGKILL).ok();
        });
    }
}

/// Waits for something that comes by itself.
#[track_caller]
pub fn until(what: &str, patience: Duration, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
