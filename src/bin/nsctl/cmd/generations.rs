//! `nsctl generations`, `rollback`, `diff`, `confirm`, and what waits for a confirmation.

use std::process::ExitCode;

use netns_policy::name::NetworkName;
use nsctl::session::Session;
use nsctl::store::Number;
use nsctl::{Error, Orchestrator};
use serde_json::json;

use super::apply;
use crate::args::{Args, Change};
use crate::output;

pub fn list(args: &Args, nsctl: &Orchestrator, network: Option<&NetworkName>) -> Result<ExitCode, Error> {
    let network = nsctl.recorded_network(network)?;
    let all = nsctl.generations(&network)?;
    if args.json {
        output::answer(&json!({ "network": network.to_string(), "generations": all }));
        return Ok(ExitCode::SUCCESS);
    }
    if all.is_empty() {
        output::line(format_args!("no policy of network {network} was applied yet"));
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format_args!(
        "{:>6}  {:<20} {:>8} {:>6} {:>8}  {:<10} {:<12} {}",
        "NUMBER", "TIME", "SERVICES", "EDGES", "EXPOSED", "POLICY", "BY", "STATE"
    ));
    for one in &all {
        let meta = &one.meta;
        let short = meta.hash.get(..8).unwrap_or(&meta.hash);
        output::line(format_args!(
            "{:>6}  {:<20} {:>8} {:>6} {:>8}  {short:<10} {:<12} {}",
            meta.number.to_string(),
            output::time(meta.time),
            meta.services,
            meta.edges,
            meta.exposures,
            meta.by,
            one.state,
        ));
    }
    Ok(ExitCode::SUCCESS)
}

pub fn diff(
    args: &Args,
    nsctl: &Orchestrator,
    network: Option<&NetworkName>,
    from: Option<Number>,
    to: Option<Number>,
) -> Result<ExitCode, Error> {
    let network = nsctl.recorded_network(network)?;
    let (from, to, differences) = nsctl.diff(&network, from, to)?;
    if args.json {
        output::answer(&json!({ "from": from, "to": to, "differences": differences }));
        return Ok(ExitCode::SUCCESS);
    }
    differences.iter().for_each(output::line);
    if differences.is_empty() {
        output::line(format_args!("generations {from} and {to} mean the same"));
    }
    Ok(ExitCode::SUCCESS)
}

pub fn rollback(
    args: &Args,
    nsctl: &Orchestrator,
    network: Option<&NetworkName>,
    to: Option<Number>,
    change: Change,
) -> Result<ExitCode, Error> {
    let network = nsctl.recorded_network(network)?;
    let session = Session::of_caller();
    let hold = apply::holder(args);
    let applied = nsctl.rollback(&network, to, &apply::how(change, None, session.as_ref(), &hold))?;
    apply::tell(args, &applied);
    if !args.json {
        output::talk("the policy's files say what they said: the next apply takes them again");
    }
    Ok(ExitCode::SUCCESS)
}

pub fn confirm(args: &Args, nsctl: &Orchestrator, network: Option<&NetworkName>) -> Result<ExitCode, Error> {
    let network = nsctl.recorded_network(network)?;
    let generation = nsctl.confirm(&network, Session::of_caller().as_ref())?;
    if args.json {
        output::answer(&json!({ "network": network.to_string(), "generation": generation }));
    } else {
        output::line(format_args!("generation {generation} stays"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs on its own, with nobody to talk to.
pub fn hold(nsctl: &Orchestrator, network: &NetworkName) -> Result<ExitCode, Error> {
    // Out of the session of whoever began the change: its end is no reason to end.
    nix::unistd::setsid().ok();
    nsctl.hold(network)?;
    Ok(ExitCode::SUCCESS)
}
