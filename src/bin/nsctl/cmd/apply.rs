//! `nsctl apply` and `nsctl down`.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use netns_policy::name::NetworkName;
use nsctl::orchestrator::history::Settled;
use nsctl::session::Session;
use nsctl::store::{Fate, Number, Pending};
use nsctl::{Applied, Confirm, Error, How, Note, Orchestrator, Running};
use serde_json::json;

use super::plan;
use crate::args::{Args, Change};
use crate::output;

/// How long a command waits for the operator's answer is the library's to say; who goes back without one is started here.
pub fn holder(args: &Args) -> impl Fn(&NetworkName, &Pending) -> io::Result<()> + '_ {
    |network, pending| super::holder::start(&args.state, network, pending)
}

/// What becomes of processes in services that are removed.
pub fn running(stop: Option<Duration>) -> Running {
    stop.map_or(Running::Refuse, Running::Stop)
}

/// The change as it was asked for.
pub fn how<'a>(
    change: Change,
    against: Option<Number>,
    session: Option<&'a Session>,
    hold: &'a dyn Fn(&NetworkName, &Pending) -> io::Result<()>,
) -> How<'a> {
    let confirm = match (change.confirm, change.no_confirm) {
        (Some(within), _) => Confirm::Within(within),
        (None, true) => Confirm::Never,
        (None, false) => Confirm::OverSsh,
    };
    let running = running(change.stop);
    How { confirm, running, against, session, hold: Some(hold) }
}

pub fn apply(args: &Args, nsctl: &Orchestrator, against: Option<Number>, change: Change) -> Result<ExitCode, Error> {
    let session = Session::of_caller();
    let hold = holder(args);
    let applied = nsctl.apply_with(&how(change, against, session.as_ref(), &hold))?;
    tell(args, &applied);
    Ok(ExitCode::SUCCESS)
}

/// At boot: what was in force, whatever was written since.
pub fn boot(args: &Args, nsctl: &Orchestrator, network: Option<&NetworkName>) -> Result<ExitCode, Error> {
    let network = nsctl.recorded_network(network)?;
    let (settled, applied) = nsctl.restore(&network)?;
    let went_back = match settled {
        Settled::WentBack { from, to, rebooted } => Some(Error::WentBack { from, to, rebooted }),
        Settled::Nothing | Settled::Waits(..) => None,
    };
    let applied = match (applied, went_back) {
        (Some(applied), went_back) => {
            went_back.iter().for_each(output::talk);
            applied
        }
        // What nobody has confirmed does not come into force by a reboot.
        (None, Some(went_back)) => return Err(went_back),
        (None, None) => nsctl.apply()?,
    };
    for spoiled in &applied.report.spoiled {
        output::talk(format_args!("somebody inside spoils what is done there: {}", spoiled.step));
    }
    tell(args, &applied);
    Ok(ExitCode::SUCCESS)
}

/// How long it waits still to be confirmed, if it does.
fn within(applied: &Applied) -> Option<f64> {
    applied.pending.as_ref().map(|pending| match pending.fate() {
        Fate::Waits(left) => left.as_secs_f64().ceil(),
        Fate::Expired | Fate::Rebooted => 0.0,
    })
}

/// What was done, with stable keys.
pub fn as_json(applied: &Applied) -> serde_json::Value {
    let done: Vec<_> = applied.report.done.iter().map(ToString::to_string).collect();
    let notes = notes(applied);
    let warnings: Vec<_> = applied.checked.warnings.iter().map(|warning| warning.plain()).collect();
    json!({
        "done": done, "changes": plan::changes_json(&applied.changes), "notes": notes, "warnings": warnings,
        "proof": super::prove::as_json(&applied.proof), "generation": applied.generation, "before": applied.before,
        "confirm_within": within(applied),
    })
}

/// What was done.
pub fn tell(args: &Args, applied: &Applied) {
    if args.verbose {
        applied.report.done.iter().for_each(|step| output::talk(format_args!("done: {step}")));
    }
    if args.json {
        return output::answer(&as_json(applied));
    }
    output::warnings(&applied.checked.warnings);
    let lines = plan::lines(&applied.changes, &applied.checked.graph);
    lines.iter().for_each(output::line);
    notes(applied).iter().for_each(output::talk);
    match (applied.report.done.len(), lines.len()) {
        (0, _) => output::line("nothing to do"),
        (n, 0) => output::line(format_args!("{} of upkeep made", output::count(n, "step"))),
        (_, n) => output::line(format_args!("{} made", output::count(n, "change"))),
    }
    if applied.before != Some(applied.generation) {
        let after = applied.before.map(|before| format!(", after {before}")).unwrap_or_default();
        output::line(format_args!("generation {} is in force{after}", applied.generation));
    }
    if let Some(within) = within(applied) {
        output::line(format_args!(
            "it goes back in {within} s: `nsctl confirm` from a new connection keeps it, `nsctl rollback` does not wait"
        ));
    }
}

/// What has to be said beside it.
pub fn notes(applied: &Applied) -> Vec<String> {
    applied.notes.iter().map(note).collect()
}

fn note(note: &Note) -> String {
    let code = note.code().map(|code| format!("{code}: ")).unwrap_or_default();
    let text = match note {
        Note::Blocked(blocked) => format!(
            "{} on this host drops what services send outside; let it pass with: {}",
            blocked.chain, blocked.remedy
        ),
        Note::NoResolver => "no resolver of this host can be reached from a namespace: set [network] resolvers".into(),
        Note::NoUplink => "there is no default route yet: outbound leads nowhere until there is one".into(),
        Note::NoIpv4Uplink => "there is no IPv4 default route yet: outbound leads to IPv6 addresses alone".into(),
        Note::NotServed { exposure } => format!("not served yet, nothing is open for it: {exposure}"),
    };
    code + &text
}

pub fn down(
    args: &Args,
    nsctl: &Orchestrator,
    network: Option<&NetworkName>,
    stop: Option<Duration>,
) -> Result<ExitCode, Error> {
    let network = network.map_or_else(|| nsctl.network(), |network| Ok(network.clone()))?;
    let removed = nsctl.remove(network, running(stop))?;
    if args.verbose {
        removed.report.done.iter().for_each(|step| output::talk(format_args!("done: {step}")));
    }
    if args.json {
        let done: Vec<_> = removed.report.done.iter().map(ToString::to_string).collect();
        output::answer(&json!({ "network": removed.network.to_string(), "done": done, "notes": removed.notes }));
        return Ok(ExitCode::SUCCESS);
    }
    removed.notes.iter().for_each(output::talk);
    if removed.report.done.is_empty() {
        output::line(format_args!("nothing of network {} is there", removed.network));
    } else {
        output::line(format_args!("network {} is removed; its addresses stay recorded", removed.network));
    }
    Ok(ExitCode::SUCCESS)
}
