//! One file a verb, or a few that belong together.

mod apply;
#[cfg(feature = "backup")]
mod backup;
mod completions;
#[cfg(feature = "daemon")]
mod daemon;
mod demo;
mod doctor;
mod drift;
mod env;
mod exec;
mod expose;
mod exposed;
mod fmt;
mod generations;
mod grant;
mod graph;
mod holder;
mod man;
#[cfg(feature = "backup")]
mod passphrase;
mod plan;
mod prove;
mod reach;
mod schema;
mod status;
mod test;
mod verify;
mod why;

use std::process::ExitCode;

use caps::{CapSet, Capability};
use nsctl::matrix::Outside;
use nsctl::{Error, Options, Orchestrator};

use crate::args::{Args, Command};
use crate::output;

pub fn run(args: &Args) -> Result<ExitCode, Error> {
    may(&args.command)?;
    match &args.command {
        Command::Apply { boot: true, network, .. } => apply::boot(args, &orchestrator(args, false), network.as_ref()),
        Command::Apply { renumber, against, change, boot: false, .. } => {
            apply::apply(args, &orchestrator(args, *renumber), *against, *change)
        }
        #[cfg(feature = "backup")]
        Command::Backup { file, network, force, passphrase } => {
            backup::backup(args, &orchestrator(args, false), (file, network.as_ref()), *force, passphrase.passphrase_fd)
        }
        Command::Check => check(args),
        Command::Completions { shell } => Ok(completions::completions(*shell)),
        Command::Confirm { network } => generations::confirm(args, &orchestrator(args, false), network.as_ref()),
        #[cfg(feature = "daemon")]
        Command::Daemon { network, log } => daemon::daemon(args, orchestrator(args, false), network.as_ref(), *log),
        Command::Demo => demo::demo(args),
        Command::Diff { from, to, network } => {
            generations::diff(args, &orchestrator(args, false), network.as_ref(), *from, *to)
        }
        Command::Doctor => Ok(doctor::doctor(args, &orchestrator(args, false))),
        Command::Down { network, stop } => apply::down(args, &orchestrator(args, false), network.as_ref(), *stop),
        Command::Drift => drift::drift(args, &orchestrator(args, false)),
        Command::Env { service } => env::env(args, &orchestrator(args, false), service),
        Command::Exec { user, service, command } => {
            exec::exec(args, &orchestrator(args, false), user.as_deref(), service, command)
        }
        Command::Expose { service, lan, port, relay, proxy, onion, wireguard, clearnet, all, dry_run, into } => {
            let nsctl = orchestrator(args, false);
            let asked = expose::Asked { service: service.as_deref().unwrap_or_default(), dry_run: *dry_run, into };
            if let Some(switch) = all {
                return expose::switch(args, &nsctl, &asked, *switch);
            }
            let unserved = expose::unserved(*onion, *wireguard, clearnet.as_deref());
            let relay = expose::handover(*relay, *proxy);
            expose::expose(args, &nsctl, &asked, (lan.as_ref(), port.as_ref(), relay), unserved)
        }
        Command::Exposed => exposed::exposed(args, &orchestrator(args, false)),
        Command::Fmt { check, paths } => fmt::fmt(args, paths, *check),
        Command::Generations { network } => generations::list(args, &orchestrator(args, false), network.as_ref()),
        Command::Hold { network } => generations::hold(&orchestrator(args, false), network),
        Command::Grant { who, target, fragment, revoke, dry_run, into } => grant::grant(
            args,
            &orchestrator(args, false),
            &grant::Asked { who, target, fragment: *fragment, revoke: *revoke, dry_run: *dry_run, into },
        ),
        Command::Graph { format } => graph::graph(args, *format, &orchestrator(args, false)),
        Command::Man { directory } => man::man(args, directory.as_deref()),
        Command::Plan { offline, exit_code, renumber } => {
            plan::plan(args, &orchestrator(args, *renumber), *offline, *exit_code)
        }
        Command::Prove { live } => prove::prove(args, &orchestrator(args, false), *live),
        Command::Schema => Ok(schema::schema()),
        Command::Reach { from, to, hops } => {
            reach::reach(args, &orchestrator(args, false), from.as_deref(), to.as_deref(), *hops)
        }
        #[cfg(feature = "daemon")]
        Command::Reload { change } => daemon::reload(args, &orchestrator(args, false), *change),
        #[cfg(feature = "backup")]
        Command::Restore { file, force, passphrase } => {
            backup::restore(args, &orchestrator(args, false), file, *force, passphrase.passphrase_fd)
        }
        Command::Rollback { to, network, change } => {
            generations::rollback(args, &orchestrator(args, false), network.as_ref(), *to, *change)
        }
        Command::Status => status::status(args, &orchestrator(args, false)),
        Command::Test { live, format, wan, lan } => {
            let outside =
                Outside { wan: wan.iter().copied().collect(), lan: lan.iter().copied().collect(), netns: None };
            test::test(args, &orchestrator(args, false), *format, *live, &outside)
        }
        Command::Unexpose { service, lan, port, all, dry_run, into } => {
            let asked = expose::Asked { service, dry_run: *dry_run, into };
            expose::unexpose(args, &orchestrator(args, false), &asked, *lan, *port, *all)
        }
        Command::Verify { wan, lan } => verify::verify(args, &orchestrator(args, false), *wan, *lan),
        Command::Why { live, address, from, to } => {
            why::why(args, &orchestrator(args, false), from, to, *live, *address)
        }
    }
}

/// Whether the caller may do this at all, told before anything is tried: the kernel's own refusal would name a socket or
/// a file, and not what is missing.
fn may(command: &Command) -> Result<(), Error> {
    let verb = match command {
        Command::Apply { .. } => "apply",
        Command::Confirm { .. } => "confirm",
        #[cfg(feature = "daemon")]
        Command::Daemon { .. } => "daemon",
        Command::Diff { .. } => "diff",
        Command::Generations { .. } => "generations",
        Command::Hold { .. } => "hold",
        Command::Rollback { .. } => "rollback",
        Command::Down { .. } => "down",
        Command::Drift => "drift",
        Command::Exec { .. } => "exec",
        Command::Expose { onion: false, wireguard: false, clearnet: None, dry_run: false, .. } => {
            "expose without --dry-run"
        }
        Command::Plan { offline: false, .. } => "plan without --offline",
        Command::Prove { live: true } => "prove --live",
        Command::Status => "status",
        Command::Test { live: true, .. } => "test --live",
        Command::Unexpose { dry_run: false, .. } => "unexpose without --dry-run",
        Command::Verify { .. } => "verify",
        Command::Why { live: true, .. } => "why --live",
        #[cfg(feature = "daemon")]
        Command::Reload { .. } => return Ok(()),
        #[cfg(feature = "backup")]
        Command::Backup { .. } | Command::Restore { .. } => return Ok(()),
        Command::Check
        | Command::Completions { .. }
        | Command::Demo
        | Command::Doctor
        | Command::Env { .. }
        | Command::Expose { .. }
        | Command::Exposed
        | Command::Fmt { .. }
        | Command::Grant { .. }
        | Command::Graph { .. }
        | Command::Man { .. }
        | Command::Plan { .. }
        | Command::Prove { .. }
        | Command::Schema
        | Command::Reach { .. }
        | Command::Test { .. }
        | Command::Unexpose { .. }
        | Command::Why { .. } => return Ok(()),
    };
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(true);
    match (has(Capability::CAP_SYS_ADMIN), has(Capability::CAP_NET_ADMIN)) {
        (true, true) => Ok(()),
        (true, false) => Err(Error::Unprivileged { verb, capability: "CAP_NET_ADMIN" }),
        (false, true) => Err(Error::Unprivileged { verb, capability: "CAP_SYS_ADMIN" }),
        (false, false) => Err(Error::Unprivileged { verb, capability: "CAP_SYS_ADMIN and CAP_NET_ADMIN" }),
    }
}

/// How the relay of a network is, where a daemon answers.
#[cfg(feature = "daemon")]
fn relay_in_words(nsctl: &Orchestrator, network: &str) -> Option<String> {
    use nsctl::daemon::{Request, ask};
    let answer = ask(&nsctl.options().run, &Request::Status, std::time::Duration::from_secs(5)).ok()?;
    let workers = answer["networks"][network]["workers"].as_array()?;
    let relay = workers.iter().find(|worker| worker["kind"] == "relay")?;
    let phase = relay["phase"].as_str()?.replace('-', " ");
    match relay["why"].as_str().filter(|_| phase == "backing off") {
        Some(why) => Some(format!("{phase}: {why}")),
        None => Some(phase),
    }
}

#[cfg(not(feature = "daemon"))]
fn relay_in_words(_: &Orchestrator, _: &str) -> Option<String> {
    None
}

fn orchestrator(args: &Args, renumber: bool) -> Orchestrator {
    let options = Options { policy: args.policy.clone(), state: args.state.clone(), renumber, ..Options::default() };
    Orchestrator::new(options)
}

fn check(args: &Args) -> Result<ExitCode, Error> {
    let (checked, proof) = orchestrator(args, false).check_and_prove()?;
    let (services, edges) = (checked.graph.services().count(), checked.graph.edges().len());
    if args.json {
        let warnings = output::warnings_json(&checked.warnings, &checked.editable);
        let files = &checked.files;
        let proof = prove::as_json(&proof);
        let asks: Vec<_> = checked.asks.iter().map(grant::as_json).collect();
        output::answer(&serde_json::json!({
            "services": services, "edges": edges, "hash": checked.graph.hash(), "asks": asks, "files": files,
            "warnings": warnings, "proof": proof,
        }));
    } else {
        if args.verbose {
            output::files(&checked.files);
        }
        output::warnings(&checked.warnings);
        output::editable(&checked.editable);
        output::line(format_args!("ok: {}, {}", output::count(services, "service"), output::count(edges, "edge")));
        grant::tell_open(&checked.asks);
        output::line(format_args!("proved: {} classes of packets", proof.classes()));
    }
    Ok(ExitCode::SUCCESS)
}

/// The service of that name.
fn service_of<'a>(
    graph: &'a netns_policy::graph::AllowGraph,
    name: &str,
) -> Result<&'a netns_policy::graph::Service, Error> {
    graph.service(name).ok_or_else(|| {
        let known: Vec<_> = graph.services().map(|service| service.name.as_str()).collect();
        let help = Some(format!("there are: {}", known.join(", ")));
        Error::Usage { message: format!("there is no service `{name}`"), help }
    })
}
