//! `nsctl plan`: the difference, as edges.

use std::process::ExitCode;

use netns_policy::changes::{Change, Passage};
use netns_policy::graph::{AllowGraph, Service};
use netns_policy::plan::Plan;
use netns_policy::port::Ports;
use nsctl::{Error, Orchestrator, Planned};
use serde_json::json;

use crate::args::Args;
use crate::output;

pub fn plan(args: &Args, nsctl: &Orchestrator, offline: bool, exit_code: bool) -> Result<ExitCode, Error> {
    let planned = if offline { nsctl.plan_offline()? } else { nsctl.plan()? };
    if args.json {
        let mut answer = as_json(&planned.plan);
        answer["proof"] = json!(planned.proof.as_ref().map(super::prove::as_json));
        output::answer(&answer);
    } else {
        output::warnings(&planned.checked.warnings);
        output::editable(&planned.checked.editable);
        print(&planned);
        if args.verbose {
            planned.plan.steps.iter().for_each(|step| output::talk(format_args!("would {step}")));
        }
    }
    let something = exit_code && !planned.plan.is_empty();
    Ok(if something { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

/// The plan with stable keys.
pub fn as_json(plan: &Plan) -> serde_json::Value {
    let steps: Vec<_> = plan.steps.iter().map(ToString::to_string).collect();
    json!({ "steps": steps, "changes": changes_json(&plan.changes) })
}

/// The changes with stable keys.
pub fn changes_json(changes: &[Change]) -> Vec<serde_json::Value> {
    changes.iter().map(change_json).collect()
}

fn change_json(change: &Change) -> serde_json::Value {
    match change {
        Change::AddEdge(p) | Change::RemoveEdge(p) => {
            let verb = if matches!(change, Change::AddEdge(_)) { "add" } else { "remove" };
            let ports = p.ports.map(|ports| ports.to_string());
            json!({
                "change": verb, "what": "edge", "from": p.from, "to": p.to, "range": p.range, "ports": ports,
            })
        }
        Change::AddService { name, addresses } => json!({
            "change": "add", "what": "service", "name": name.to_string(),
            "address4": addresses.v4, "address6": addresses.v6,
        }),
        Change::RemoveService { netns } => json!({ "change": "remove", "what": "service", "netns": netns }),
        Change::Renumber { name, from, to } => json!({
            "change": "renumber", "what": "service", "name": name,
            "from4": from.v4, "from6": from.v6, "address4": to.v4, "address6": to.v6,
        }),
        Change::Repair { what } => json!({ "change": "repair", "what": what }),
    }
}

fn print(planned: &Planned) {
    let lines = lines(&planned.plan.changes, &planned.checked.graph);
    lines.iter().for_each(output::line);
    match (lines.len(), planned.plan.steps.len()) {
        (0, 0) => output::line("nothing to do"),
        (0, n) => output::line(format_args!(
            "{} of upkeep, none made yet; run `nsctl apply` to make {}",
            output::count(n, "step"),
            them(n),
        )),
        (n, _) => output::line(format_args!(
            "{}, none made yet; run `nsctl apply` to make {}",
            output::count(n, "change"),
            them(n),
        )),
    }
}

fn them(n: usize) -> &'static str {
    if n == 1 { "it" } else { "them" }
}

/// One line for each change: the sign, the kind, the thing.
pub fn lines(changes: &[Change], graph: &AllowGraph) -> Vec<String> {
    changes.iter().map(|change| line(change, graph)).collect()
}

fn line(change: &Change, graph: &AllowGraph) -> String {
    match change {
        Change::AddEdge(p) => format!("+ edge    {}", named(p, graph)),
        Change::RemoveEdge(p) => format!("- edge    {}", named(p, graph)),
        Change::AddService { name, addresses } => {
            let v6 = addresses.v6.map(|v6| format!("  {v6}")).unwrap_or_default();
            format!("+ service {name:<23} {:<15}{v6}", addresses.v4.to_string()).trim_end().to_owned()
        }
        Change::RemoveService { netns } => {
            let prefix = format!("{}-", graph.network().name);
            format!("- service {}", netns.strip_prefix(&prefix).unwrap_or(netns))
        }
        Change::Renumber { name, from, to } => format!("~ address {name}: {from} -> {to}"),
        Change::Repair { what } => format!("~ repair  {what}"),
    }
}

/// The edge with the target's own names for the ports, where it has them.
fn named(passage: &Passage, graph: &AllowGraph) -> String {
    match passage.ports.and_then(|ports| names(ports, graph.service(&passage.to)?)) {
        Some(names) => format!("{} -> {}:{names}", passage.from, passage.to),
        None => passage.to_string(),
    }
}

/// Ports of one service that lie side by side come from the panel as one range: its names are told in full, or not at
/// all.
fn names(ports: Ports, target: &Service) -> Option<String> {
    let whole = target.ports.iter().find(|(_, own)| **own == ports);
    if let Some((name, _)) = whole {
        return Some(name.to_string());
    }
    let inside = |own: &Ports| ports.covers(own.protocol(), own.lo()) && ports.covers(own.protocol(), own.hi());
    let mut parts: Vec<_> = target.ports.iter().filter(|(_, own)| inside(own)).collect();
    parts.sort_by_key(|(_, own)| own.lo());
    let mut next = u32::from(ports.lo());
    for (_, own) in &parts {
        if u32::from(own.lo()) != next {
            return None;
        }
        next = u32::from(own.hi()) + 1;
    }
    let all: Vec<_> = parts.iter().map(|(name, _)| name.as_str()).collect();
    (next == u32::from(ports.hi()) + 1).then(|| all.join(","))
}
