//! What was typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use netns_policy::name::NetworkName;
use nsctl::store::Number;

/// Puts every service of this machine into a network namespace of its own, so that only the written edges carry packets.
#[derive(Debug, Parser)]
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

#[derive(Debug, Subcommand)]
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
    /// Removes everything that is nsctl's; recorded addresses stay.
    Down {
        /// This network, whatever the policy says; default: the policy's, else the only one that is known.
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
        /// End the processes that run in its services.
        #[arg(long)]
        stop: bool,
    },
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
        /// Its number; default: the one before that which is in force, or waits to be confirmed.
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
    #[arg(long)]
    pub stop: bool,
}

/// `90s`, `2m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_secs(5);
    const MOST: Duration = Duration::from_secs(24 * 60 * 60);
    let time =
        humantime::parse_duration(text).map_err(|_| "a time is a number and s, m or h: `90s`, `2m`".to_owned())?;
    if (LEAST..=MOST).contains(&time) { Ok(time) } else { Err("a confirmation is waited for 5s to 24h".into()) }
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
