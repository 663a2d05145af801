//! What was typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use netns_policy::name::NetworkName;
use nsctl::store::Number;

/// Puts every service of this machine into a network namespace of its own, so that only the written edges carry packets.
#[derive(Clone, Debug, Parser)]
#[command(name = "nsctl", version, arg_required_else_help = true)]
pub struct Args {
    /// A policy file, or a directory of them; may be given several times.
    ///
    /// Default: /usr/lib/nsctl/policy.d/, /etc/nsctl/policy.toml, /etc/nsctl/policy.d/, /run/nsctl/policy.d/.
    #[arg(short = 'f', long = "policy", value_name = "PATH", global = true)]
    pub policy: Vec<PathBuf>,

    /// Where addresses are recorded, so that services keep them.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/nsctl", global = true)]
    pub state: PathBuf,

    /// The answer as JSON on stdout. Keys are stable and only ever grow; see docs/cli.md.
    #[arg(long, global = true)]
    pub json: bool,

    /// Say on stderr what is done, step by step.
    #[arg(short, long, global = true)]
    pub verbose: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Makes the kernel as the policy says; a second call does nothing.
    Apply {
        /// Give services other addresses where the pool changed.
        #[arg(long)]
        renumber: bool,
        /// Only if this generation is in force still: the one that was planned against.
        #[arg(long, value_name = "N")]
        against: Option<Number>,
        /// Make the generation in force so again, whatever the files say by now; where there is none, the files.
        #[arg(long, conflicts_with_all = ["renumber", "against", "confirm", "no_confirm", "stop"])]
        boot: bool,
        /// That of this network; default: the policy's, else the only one that is known.
        #[arg(long, value_name = "NAME", requires = "boot")]
        network: Option<NetworkName>,
        #[command(flatten)]
        change: Change,
    },
    /// Seals the state (generations, addresses, keys) into a file, with a passphrase.
    #[cfg(feature = "backup")]
    Backup {
        /// The file.
        file: PathBuf,
        /// Of this network alone; default: of all.
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
        /// Replace a file that is there.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        passphrase: Sealing,
    },
    /// Parses the policy and checks its invariants and tests; needs no privilege.
    Check,
    /// Prints what a shell loads to complete commands and options.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Keeps what was applied with --confirm: from another connection than that one.
    Confirm {
        /// This network; default: the policy's, else the only one that is known.
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
    },
    /// Stays, and repairs what differs from the generation in force; reads no policy file by itself.
    #[cfg(feature = "daemon")]
    Daemon {
        /// This network alone; default: all that are on record.
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
        /// The form of its log.
        #[arg(long, value_enum, default_value_t = Log::Text)]
        log: Log,
    },
    /// Shows everything on a bitcoin node of 17 services, in a sandbox that touches nothing of the host.
    Demo,
    /// Prints what two generations differ in, as edges.
    Diff {
        /// The first; default: the one before the second.
        #[arg(value_name = "N")]
        from: Option<Number>,
        /// The second; default: the one in force.
        #[arg(value_name = "M")]
        to: Option<Number>,
        /// Of this network; default: the policy's, else the only one that is known.
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
    },
    /// Looks for what keeps the policy from holding, and says what to do; changes nothing.
    Doctor,
    /// Removes everything that is nsctl's; recorded addresses stay.
    Down {
        /// This network, whatever the policy says; default: the policy's, else the only one that is known.
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
        /// End the processes that run in its services.
        ///
        /// They are asked to (SIGTERM) and waited for, ten minutes or so long; nobody is killed.
        #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "10m", value_parser = time)]
        stop: Option<Duration>,
    },
    /// Names every difference between kernel and policy; exit code 1 if there is one.
    Drift,
    /// Prints the addresses of a service and its neighbours, and the unit settings that put it into its namespace.
    Env {
        /// The service.
        service: String,
    },
    /// Runs a command inside a service's namespace, with its hosts file and resolver and without privileges.
    Exec {
        /// Run as this user; default: the caller behind sudo, else the unit's User=, else nobody.
        #[arg(long)]
        user: Option<String>,
        /// The service.
        service: String,
        /// The command and its arguments.
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Lets people outside reach a service: writes a way in into nsctl's own policy file and applies it.
    #[command(group = clap::ArgGroup::new("way").required(true).args(["lan", "port", "onion", "wireguard", "clearnet", "all"]))]
    Expose {
        /// The service.
        #[arg(required_unless_present = "all")]
        service: Option<String>,
        /// On a port of the machine, for the local network; default: the service's only port, by the same number.
        #[arg(long, value_name = "OUTSIDE:PORT", num_args = 0..=1, default_missing_value = "")]
        lan: Option<Spot>,
        /// On a port of the machine, for everybody; default as for --lan.
        #[arg(long, value_name = "OUTSIDE:PORT", num_args = 0..=1, default_missing_value = "")]
        port: Option<Spot>,
        /// With --lan or --port: through a relay, which the service sees in place of the client. TCP only.
        #[arg(long, conflicts_with_all = ["onion", "wireguard", "clearnet", "all"])]
        relay: bool,
        /// With --relay: name the client to the service in a header of the PROXY protocol, version 2.
        #[arg(long, requires = "relay")]
        proxy: bool,
        /// As a Tor onion service; not served yet.
        #[arg(long)]
        onion: bool,
        /// To peers in a tunnel; not served yet.
        #[arg(long)]
        wireguard: bool,
        /// By a domain name with TLS; not served yet.
        #[arg(long, value_name = "DOMAIN")]
        clearnet: Option<String>,
        /// Close every way in of every service, or open again what is written.
        #[arg(long, value_enum, conflicts_with = "service")]
        all: Option<Switch>,
        /// Show what would change, and write nothing.
        #[arg(long)]
        dry_run: bool,
        /// Write to this file; default: 90-nsctl.toml in the last directory of --policy, else of /etc.
        #[arg(long, value_name = "FILE")]
        into: Option<PathBuf>,
    },
    /// Lists every way in: where it is outside, who may, how it is, and where it is written.
    Exposed,
    /// Puts policy files into their one layout, with their comments; needs no privilege.
    Fmt {
        /// Change nothing; exit with 1 when a file is laid out otherwise.
        #[arg(long)]
        check: bool,
        /// Files, directories, or - for stdin; default: those of --policy, else those under /etc and /run.
        #[arg(value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Lists every policy that was applied, and which is in force.
    Generations {
        /// Of this network; default: the policy's, else the only one that is known.
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
    },
    /// Lists what fragments of packages ask for, or answers them: opens nothing before the next apply.
    Grant {
        /// The service that asks, and no other; left out: list.
        #[arg(value_name = "NAME")]
        who: Option<String>,
        /// Of what it asks for, this alone: `lnd`, `lnd:rpc`, `clightning:unix:rpc`.
        #[arg(value_name = "TARGET[:PORT]", requires = "who")]
        target: Option<String>,
        /// NAME is a fragment, and all its services are meant.
        #[arg(long, requires = "who")]
        fragment: bool,
        /// Take back what was granted.
        #[arg(long, requires = "who")]
        revoke: bool,
        /// Show what would change, and write nothing.
        #[arg(long)]
        dry_run: bool,
        /// Write the answer to this file; default: 90-nsctl.toml in the last directory of --policy, else of /etc.
        #[arg(long, value_name = "FILE")]
        into: Option<PathBuf>,
    },
    /// Prints the allow-graph; needs no privilege.
    Graph {
        /// The form.
        #[arg(long, value_enum, default_value_t = Form::Text)]
        format: Form,
    },
    /// Waits for a confirmation, and goes back without one: what `apply --confirm` leaves behind it.
    #[command(hide = true)]
    Hold {
        /// The network.
        #[arg(long, value_name = "NAME")]
        network: NetworkName,
    },
    /// Writes the manual pages.
    Man {
        /// Into this directory; left out: the main page to stdout.
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Prints what apply would do, as edges.
    Plan {
        /// Compare with an empty machine instead of this one; needs no privilege.
        #[arg(long)]
        offline: bool,
        /// Exit with 3 when there is something to do.
        #[arg(long)]
        exit_code: bool,
        /// Plan with other addresses where the pool changed.
        #[arg(long)]
        renumber: bool,
    },
    /// Proves that for every packet the rules do what the policy says; needs no privilege without --live.
    Prove {
        /// Of the rules that the kernel holds, instead of those that are compiled.
        #[arg(long)]
        live: bool,
    },
    /// Prints the JSON Schema of the policy language, for editors and programs.
    Schema,
    /// Prints what can be reached from a place, or who can reach it, in how many steps; needs no privilege.
    #[command(group = clap::ArgGroup::new("end").required(true).multiple(true).args(["from", "to"]))]
    Reach {
        /// Where it begins: a service, a peer, `host`, `peers`, `wan` or `lan`.
        #[arg(long, value_name = "PLACE")]
        from: Option<String>,
        /// Where it ends; with --from, one shortest chain from there.
        #[arg(long, value_name = "PLACE")]
        to: Option<String>,
        /// At most so many steps, the way in included.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        hops: Option<u32>,
    },
    /// Lets the daemon apply the policy's files.
    #[cfg(feature = "daemon")]
    Reload {
        #[command(flatten)]
        change: Change,
    },
    /// Puts the state that a backup holds into the state directory; `nsctl apply --boot` makes it so.
    #[cfg(feature = "backup")]
    Restore {
        /// The file.
        file: PathBuf,
        /// Set state that is there aside, and do it while the network is up.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        passphrase: Sealing,
    },
    /// Puts an earlier generation into force again.
    Rollback {
        /// Its number; default: the parent of that which is in force, or what comes back for one that waits.
        #[arg(value_name = "N")]
        to: Option<Number>,
        /// Of this network; default: the policy's, else the only one that is known.
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
        #[command(flatten)]
        change: Change,
    },
    /// Prints services, addresses, edges with their counters, and drift.
    Status,
    /// Runs the tests and invariants of the policy, each by name; needs no privilege without --live.
    Test {
        /// Really connect for each `can` and `cannot` too.
        #[arg(long)]
        live: bool,
        /// The form of the results.
        #[arg(long, value_enum, default_value_t = Results::Text)]
        format: Results,
        /// An address on the internet that answers, to stand for `wan`.
        #[arg(long, value_name = "ADDRESS", requires = "live")]
        wan: Option<std::net::IpAddr>,
        /// An address of the local network that answers, to stand for `lan`.
        #[arg(long, value_name = "ADDRESS", requires = "live")]
        lan: Option<std::net::IpAddr>,
    },
    /// Takes a way in back that expose has written, and applies it.
    #[command(group = clap::ArgGroup::new("ways").args(["lan", "port", "all"]))]
    Unexpose {
        /// The service.
        service: String,
        /// The way for the local network, or the one of them on this port of the machine; default: the only way.
        #[arg(long, value_name = "OUTSIDE", num_args = 0..=1, default_missing_value = "0")]
        lan: Option<u16>,
        /// The way for everybody, likewise.
        #[arg(long, value_name = "OUTSIDE", num_args = 0..=1, default_missing_value = "0")]
        port: Option<u16>,
        /// All of them.
        #[arg(long)]
        all: bool,
        /// Show what would change, and write nothing.
        #[arg(long)]
        dry_run: bool,
        /// It is written in this file; default: as for expose.
        #[arg(long, value_name = "FILE")]
        into: Option<PathBuf>,
    },
    /// Really connects every pair and compares with the graph.
    Verify {
        /// An address on the internet that answers on every probed port, to stand for `wan`.
        #[arg(long, value_name = "ADDRESS")]
        wan: Option<std::net::IpAddr>,
        /// An address of the local network that answers, to stand for `lan`.
        #[arg(long, value_name = "ADDRESS")]
        lan: Option<std::net::IpAddr>,
    },
    /// Explains why FROM may or may not reach TO:PORT; needs no privilege without --live.
    Why {
        /// Really connect, and say what became of it and who stopped it.
        #[arg(long)]
        live: bool,
        /// The address that is dialled for `wan` or `lan`.
        #[arg(long, value_name = "ADDRESS", requires = "live")]
        address: Option<std::net::IpAddr>,
        /// A service, a peer, `host`, `peers`, `wan` or `lan`.
        from: String,
        /// A service and its port, by name or number: `bitcoind:rpc`, `bitcoind:tcp:8332`; or `wan`, `lan`, `metadata`.
        #[arg(value_name = "TO:PORT")]
        to: String,
    },
}

/// Where the passphrase of a backup comes from.
#[cfg(feature = "backup")]
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Sealing {
    /// Read the passphrase from this open file descriptor, up to the end of its first line; default: the terminal.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16))]
    pub passphrase_fd: Option<u16>,
}

/// How a change is made.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Change {
    /// Go back unless `nsctl confirm` says otherwise within this time (90s, 2m, 1h), from a new connection.
    ///
    /// Default over SSH: 2m. A change that closes the way by which you came in asks for it.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub confirm: Option<Duration>,
    /// Wait for no confirmation, over SSH neither.
    #[arg(long, conflicts_with = "confirm")]
    pub no_confirm: bool,
    /// End the processes that run in services that are removed.
    ///
    /// They are asked to (SIGTERM) and waited for, ten minutes or so long; nobody is killed.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "10m", value_parser = time)]
    pub stop: Option<Duration>,
}

/// `90s`, `2m`, `1h`.
fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "a time is a number and s, m or h: `90s`, `2m`".to_owned())
}

/// How long a confirmation is waited for.
fn duration(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_secs(5);
    const MOST: Duration = Duration::from_secs(24 * 60 * 60);
    let time = time(text)?;
    if (LEAST..=MOST).contains(&time) { Ok(time) } else { Err("a confirmation is waited for 5s to 24h".into()) }
}

/// `8080:http`, `8080`, `http` or nothing: a port of the machine and the name of a port of the service.
#[derive(Clone, Debug, Default)]
pub struct Spot {
    /// The port of the machine.
    pub outside: Option<u16>,
    /// The name of the service's port.
    pub port: Option<String>,
}

impl FromStr for Spot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (outside, port) = match text.split_once(':') {
            Some((outside, port)) => (Some(outside), Some(port)),
            None if text.starts_with(|c: char| c.is_ascii_digit()) => (Some(text), None),
            None => (None, Some(text).filter(|text| !text.is_empty())),
        };
        let number = |text: &str| text.parse().ok().filter(|number| *number != 0);
        let outside = outside
            .map(|text| number(text).ok_or_else(|| format!("a port is a number from 1 to 65535, this is `{text}`")));
        Ok(Self { outside: outside.transpose()?, port: port.map(ToOwned::to_owned) })
    }
}

/// Whether ways in are open.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Switch {
    /// None of them is.
    Off,
    /// Those are that are written.
    On,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Form {
    /// Graphviz.
    Dot,
    /// Mermaid flowchart.
    Mermaid,
    /// One line for each edge.
    Text,
}

/// Forms of the daemon's log.
#[cfg(feature = "daemon")]
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Log {
    /// One JSON object a line.
    Json,
    /// One line for each event.
    Text,
}

/// Shells whose completion can be made.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// bash(1).
    Bash,
    /// fish(1).
    Fish,
    /// zsh(1).
    Zsh,
}

/// Forms of what `test` found.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Results {
    /// As with --json.
    Json,
    /// JUnit XML, for build servers.
    Junit,
    /// One line for each, and what is wrong with it.
    Text,
}
