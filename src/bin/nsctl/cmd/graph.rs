//! `nsctl graph`: the allow-graph as text, Graphviz or Mermaid. Equal policies give equal bytes.

use std::collections::BTreeMap;
use std::process::ExitCode;

use netns_policy::graph::{AllowGraph, Edge};
use nsctl::status::words;
use nsctl::{Error, Orchestrator};
use serde_json::json;

use crate::args::{Args, Form};
use crate::output;

pub fn graph(args: &Args, form: Form, nsctl: &Orchestrator) -> Result<ExitCode, Error> {
    let graph = nsctl.check()?.graph;
    if args.json {
        output::answer(&as_json(&graph));
        return Ok(ExitCode::SUCCESS);
    }
    match form {
        Form::Dot => dot(&graph),
        Form::Mermaid => mermaid(&graph),
        Form::Text => text(&graph),
    }
    Ok(ExitCode::SUCCESS)
}

/// Every arrow: edges, ways out, ways in.
fn arrows(graph: &AllowGraph) -> Vec<(String, String, String)> {
    let inside = graph.edges().iter().map(|edge| (edge.from.to_string(), edge.to.to_string(), port(edge)));
    let sockets =
        graph.sockets().iter().map(|one| (one.from.to_string(), one.to.to_string(), format!("unix:{}", one.name)));
    let out = graph.services().flat_map(|service| {
        words(&service.outbound).into_iter().map(|word| (service.name.to_string(), word, String::new()))
    });
    let ways_in = graph
        .exposures()
        .iter()
        .map(|exposure| (exposure.way.word().to_owned(), exposure.service.to_string(), exposure.port_name.to_string()));
    inside.chain(sockets).chain(out).chain(ways_in).collect()
}

fn port(edge: &Edge) -> String {
    edge.port_name.as_ref().map_or_else(|| edge.ports.to_string(), ToString::to_string)
}

fn as_json(graph: &AllowGraph) -> serde_json::Value {
    let services: Vec<_> = graph.services().map(|service| service.name.to_string()).collect();
    let edges = graph.edges().iter().map(|edge| {
        json!({
            "from": edge.from.to_string(), "to": edge.to.to_string(), "proto": edge.ports.protocol().to_string(),
            "port": edge.ports.lo(), "port_end": edge.ports.hi(), "port_name": edge.port_name.as_ref().map(ToString::to_string),
            "file": edge.at.file, "line": edge.at.line,
        })
    });
    let sockets = graph.sockets().iter().map(|one| {
        json!({
            "from": one.from.to_string(), "to": one.to.to_string(), "name": one.name.to_string(), "path": one.path,
            "file": one.at.file, "line": one.at.line,
        })
    });
    let exposures = graph.exposures().iter().map(|exposure| {
        json!({
            "way": exposure.way.word(), "service": exposure.service.to_string(),
            "port": exposure.port_name.to_string(), "file": exposure.at.file, "line": exposure.at.line,
        })
    });
    json!({
        "network": graph.network().name.to_string(),
        "services": services,
        "edges": edges.collect::<Vec<_>>(),
        "sockets": sockets.collect::<Vec<_>>(),
        "exposures": exposures.collect::<Vec<_>>(),
    })
}

/// One line for each pair.
pub fn text(graph: &AllowGraph) {
    let mut joined: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for (from, to, port) in arrows(graph) {
        joined.entry((from, to)).or_default().push(port);
    }
    let width = joined.keys().map(|(from, _)| from.len()).max().unwrap_or(0);
    for ((from, to), ports) in joined {
        let ports = ports.join(",");
        let colon = if ports.is_empty() { "" } else { ":" };
        output::line(format_args!("{from:<width$} -> {to}{colon}{ports}"));
    }
}

fn dot(graph: &AllowGraph) {
    output::line(format_args!("digraph \"{}\" {{", graph.network().name));
    output::line("  rankdir=LR;");
    output::line("  node [shape=box];");
    for service in graph.services() {
        output::line(format_args!("  \"{}\";", service.name));
    }
    for (from, to, port) in arrows(graph) {
        output::line(format_args!("  \"{from}\" -> \"{to}\" [label=\"{port}\"];"));
    }
    output::line("}");
}

fn mermaid(graph: &AllowGraph) {
    output::line("flowchart LR");
    let mut names: Vec<String> = graph.services().map(|service| service.name.to_string()).collect();
    names.extend(arrows(graph).into_iter().flat_map(|(from, to, _)| [from, to]));
    names.sort();
    names.dedup();
    let ids: BTreeMap<&String, usize> = names.iter().enumerate().map(|(id, name)| (name, id)).collect();
    for (name, id) in &ids {
        output::line(format_args!("  n{id}[\"{name}\"]"));
    }
    for (from, to, port) in arrows(graph) {
        let label = if port.is_empty() { String::new() } else { format!("|{port}|") };
        output::line(format_args!("  n{} -->{label} n{}", ids[&from], ids[&to]));
    }
}
