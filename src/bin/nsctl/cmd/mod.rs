//! One file a verb, or a few that belong together.

mod apply;
mod demo;
mod env;
mod exec;
mod graph;
mod plan;
mod reach;
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
        Command::Apply { renumber } => apply::apply(args, &orchestrator(args, *renumber)),
        Command::Check => check(args),
        Command::Demo => demo::demo(args),
        Command::Down { network } => apply::down(args, &orchestrator(args, false), network.as_ref()),
        Command::Env { service } => env::env(args, &orchestrator(args, false), service),
        Command::Exec { user, service, command } => {
            exec::exec(args, &orchestrator(args, false), user.as_deref(), service, command)
        }
        Command::Graph { format } => graph::graph(args, *format, &orchestrator(args, false)),
        Command::Plan { offline, exit_code, renumber } => {
            plan::plan(args, &orchestrator(args, *renumber), *offline, *exit_code)
        }
        Command::Reach { from, to, hops } => {
            reach::reach(args, &orchestrator(args, false), from.as_deref(), to.as_deref(), *hops)
        }
        Command::Status => status::status(args, &orchestrator(args, false)),
        Command::Test { live, format, wan, lan } => {
            let outside =
                Outside { wan: wan.iter().copied().collect(), lan: lan.iter().copied().collect(), netns: None };
            test::test(args, &orchestrator(args, false), *format, *live, &outside)
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
        Command::Down { .. } => "down",
        Command::Exec { .. } => "exec",
        Command::Plan { offline: false, .. } => "plan without --offline",
        Command::Status => "status",
        Command::Test { live: true, .. } => "test --live",
        Command::Verify { .. } => "verify",
        Command::Why { live: true, .. } => "why --live",
        Command::Check
        | Command::Demo
        | Command::Env { .. }
        | Command::Graph { .. }
        | Command::Plan { .. }
        | Command::Reach { .. }
        | Command::Test { .. }
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

fn orchestrator(args: &Args, renumber: bool) -> Orchestrator {
    let options = Options { policy: args.policy.clone(), state: args.state.clone(), renumber, ..Options::default() };
    Orchestrator::new(options)
}

fn check(args: &Args) -> Result<ExitCode, Error> {
    let checked = orchestrator(args, false).check()?;
    let (services, edges) = (checked.graph.services().count(), checked.graph.edges().len());
    if args.json {
        let warnings: Vec<_> = checked.warnings.iter().map(|warning| warning.plain()).collect();
        output::answer(&serde_json::json!({ "services": services, "edges": edges, "warnings": warnings }));
    } else {
        output::warnings(&checked.warnings);
        output::line(format_args!("ok: {}, {}", output::count(services, "service"), output::count(edges, "edge")));
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
