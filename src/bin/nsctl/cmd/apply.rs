//! `nsctl apply` and `nsctl down`.

use std::process::ExitCode;

use netns_policy::name::NetworkName;
use nsctl::{Applied, Error, Note, Orchestrator};
use serde_json::json;

use super::plan;
use crate::args::Args;
use crate::output;

pub fn apply(args: &Args, nsctl: &Orchestrator) -> Result<ExitCode, Error> {
    let applied = nsctl.apply()?;
    let notes = notes(&applied);
    if args.verbose {
        applied.report.done.iter().for_each(|step| output::talk(format_args!("done: {step}")));
    }
    if args.json {
        let done: Vec<_> = applied.report.done.iter().map(ToString::to_string).collect();
        let changes = plan::changes_json(&applied.changes);
        let warnings: Vec<_> = applied.checked.warnings.iter().map(|warning| warning.plain()).collect();
        let proof = super::prove::as_json(&applied.proof);
        output::answer(
            &json!({ "done": done, "changes": changes, "notes": notes, "warnings": warnings, "proof": proof }),
        );
        return Ok(ExitCode::SUCCESS);
    }
    output::warnings(&applied.checked.warnings);
    let lines = plan::lines(&applied.changes, &applied.checked.graph);
    lines.iter().for_each(output::line);
    notes.iter().for_each(output::talk);
    match (applied.report.done.len(), lines.len()) {
        (0, _) => output::line("nothing to do"),
        (n, 0) => output::line(format_args!("{} of upkeep made", output::count(n, "step"))),
        (_, n) => output::line(format_args!("{} made", output::count(n, "change"))),
    }
    Ok(ExitCode::SUCCESS)
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

pub fn down(args: &Args, nsctl: &Orchestrator, network: Option<&NetworkName>) -> Result<ExitCode, Error> {
    let removed = match network {
        Some(network) => nsctl.remove(network.clone())?,
        None => nsctl.down()?,
    };
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
