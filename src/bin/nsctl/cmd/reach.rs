//! `nsctl reach`: what falls if this one falls, who could bring that one down, and by which lines.

use std::process::ExitCode;

use netns_policy::explain::ExplainError;
use netns_policy::graph::{AllowGraph, Location};
use netns_policy::reach::{self, Direction, Node, Radius, Step};
use nsctl::{Error, Orchestrator};
use serde_json::json;

use crate::args::Args;
use crate::output;

pub fn reach(
    args: &Args,
    nsctl: &Orchestrator,
    from: Option<&str>,
    to: Option<&str>,
    hops: Option<u32>,
) -> Result<ExitCode, Error> {
    let graph = nsctl.check()?.graph;
    let find = |name, direction| reach::node(&graph, name, direction).map_err(|e| unknown(&e));
    match (from, to) {
        (Some(from), Some(to)) => {
            chain(args, &graph, &find(from, Direction::From)?, &find(to, Direction::To)?, hops);
        }
        (Some(name), None) => around(args, &graph, &find(name, Direction::From)?, Direction::From, hops),
        (None, Some(name)) => around(args, &graph, &find(name, Direction::To)?, Direction::To, hops),
        (None, None) => unreachable!("the command line takes no question without an end"),
    }
    Ok(ExitCode::SUCCESS)
}

fn unknown(error: &ExplainError) -> Error {
    Error::Usage { message: output::chain(error), help: error.hint().map(str::to_owned) }
}

fn around(args: &Args, graph: &AllowGraph, center: &Node, direction: Direction, hops: Option<u32>) {
    let radius = reach::radius(graph, center, direction, hops);
    if args.json {
        return output::answer(&as_json(&radius, hops));
    }
    let rows: Vec<_> = (1..)
        .zip(&radius.layers)
        .flat_map(|(hop, layer)| layer.iter().map(move |met| (hop, met)))
        .flat_map(|(hop, met)| {
            met.by.iter().enumerate().map(move |(n, step)| (hop, (n == 0).then_some(&met.node), step))
        })
        .collect();
    let width = rows.iter().filter_map(|(_, node, _)| *node).map(|node| node.to_string().len()).max().unwrap_or(0);
    let what = rows.iter().map(|(_, _, step)| step.what.chars().count()).max().unwrap_or(0);
    let mut before = 0;
    for (hop, node, step) in &rows {
        let head = if *hop == before { String::new() } else { format!("hop {hop}") };
        let node = node.map(ToString::to_string).unwrap_or_default();
        output::line(format_args!("{head:<6} {node:<width$}  {:<what$}  {}", step.what, step.at));
        before = *hop;
    }
    output::line(summary(graph, &radius));
}

/// What it comes to in one line, and who is out of reach.
fn summary(graph: &AllowGraph, radius: &Radius) -> String {
    let services = |node: &Node| matches!(node, Node::Service(_));
    let met = radius.layers.iter().flatten().filter(|met| services(&met.node)).count();
    let all = graph.services().count() - usize::from(services(&radius.center));
    let others = if services(&radius.center) { "other " } else { "" };
    let center = &radius.center;
    let count = format!("{met} of {}", output::count(all, &format!("{others}service")));
    let mut text = match radius.direction {
        // What root on the host may do is no matter of edges.
        Direction::From if *center == Node::Host => {
            format!("by its edges host reaches {count}; its root is above them")
        }
        Direction::From => format!("{center} reaches {count}"),
        Direction::To => format!("{count} can reach {center}"),
    };
    if radius.goes_on {
        text.push_str(", and more with more hops");
    }
    if !radius.unmet.is_empty() {
        let unmet: Vec<&str> = radius.unmet.iter().map(|name| name.as_str()).collect();
        let word = if radius.direction == Direction::From { "not reached" } else { "cannot" };
        text.push_str(&format!("\n{word}: {}", unmet.join(", ")));
    }
    text
}

fn as_json(radius: &Radius, hops: Option<u32>) -> serde_json::Value {
    let center = radius.center.to_string();
    let (from, to) = match radius.direction {
        Direction::From => (Some(center), None),
        Direction::To => (None, Some(center)),
    };
    let layers = (1..)
        .zip(&radius.layers)
        .map(|(hop, layer)| json!({ "hop": hop, "places": layer.iter().map(reach::Met::plain).collect::<Vec<_>>() }));
    let unmet: Vec<&str> = radius.unmet.iter().map(|name| name.as_str()).collect();
    json!({
        "from": from, "to": to, "hops": hops, "layers": layers.collect::<Vec<_>>(),
        "not_reached": unmet, "goes_on": radius.goes_on,
    })
}

fn chain(args: &Args, graph: &AllowGraph, from: &Node, to: &Node, hops: Option<u32>) {
    let mut steps = reach::chain(graph, from, to);
    if hops.is_some_and(|hops| steps.len() > hops as usize) {
        steps.clear();
    }
    if args.json {
        let plain = steps.iter().map(|Step { what, at, .. }| json!({ "what": what, "at": at }));
        let chain: Vec<_> = plain.collect();
        return output::answer(&json!({
            "from": from.to_string(), "to": to.to_string(), "hops": hops, "chain": chain,
        }));
    }
    if steps.is_empty() {
        let within = hops.map(|hops| format!(" of {}", output::count(hops as usize, "hop"))).unwrap_or_default();
        return output::line(format_args!("no chain{within} leads from {from} to {to}"));
    }
    let what = steps.iter().map(|step| step.what.chars().count()).max().unwrap_or(0);
    for (hop, Step { what: text, at, .. }) in (1..).zip(&steps) {
        let at: &Location = at;
        output::line(format_args!("hop {hop}  {text:<what$}  {at}"));
    }
}
