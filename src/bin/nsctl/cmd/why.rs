//! `nsctl why`: which edge, or which absence; and, where the kernel may be asked, what has passed.

use std::process::ExitCode;

use netns_policy::explain::explain;
use netns_policy::graph::{AllowGraph, Edge, Origin, Target};
use netns_policy::port::Protocol;
use nsctl::status::Counts;
use nsctl::{Error, Orchestrator};
use serde_json::json;

use crate::args::Args;
use crate::output;

pub fn why(args: &Args, nsctl: &Orchestrator, from: &str, to: &str) -> Result<ExitCode, Error> {
    let graph = nsctl.check()?.graph;
    let (to, port) = to.split_once(':').unwrap_or((to, ""));
    let explanation = explain(&graph, from, to, port)
        .map_err(|e| Error::Usage { message: output::chain(&e), help: e.hint().map(str::to_owned) })?;
    let passed = passed(nsctl, &graph, from, to, port);
    if args.json {
        let mut answer = json!(explanation);
        answer["packets"] = json!(passed.map(|(packets, _)| packets));
        answer["bytes"] = json!(passed.map(|(_, bytes)| bytes));
        output::answer(&answer);
    } else {
        output::line(&explanation);
        if let Some((packets, bytes)) = passed {
            output::line(format_args!("     passed so far: {packets} packets, {bytes} bytes"));
        }
    }
    // An answer is an answer: whether it is yes or no is on stdout, the exit code says that it was found.
    Ok(ExitCode::SUCCESS)
}

/// What the elements of the edges asked for have counted; nothing without privilege, or when the policy is not applied.
fn passed(nsctl: &Orchestrator, graph: &AllowGraph, from: &str, to: &str, port: &str) -> Option<(u64, u64)> {
    let origin = if from == "host" { Origin::Host } else { Origin::Service(from.parse().ok()?) };
    let target = if to == "host" { Target::Host } else { Target::Service(to.parse().ok()?) };
    let asked = |edge: &&Edge| {
        let named = edge.port_name.as_ref().is_some_and(|name| name.as_str() == port);
        let numbered = port.rsplit(':').next().and_then(|n| n.parse().ok()).is_some_and(|n: u16| {
            let protocol = if port.starts_with("udp:") { Protocol::Udp } else { Protocol::Tcp };
            edge.ports.covers(protocol, n)
        });
        edge.from == origin && edge.to == target && (named || numbered || port.is_empty())
    };
    let edges: Vec<&Edge> = graph.edges().iter().filter(asked).collect();
    edges.first()?;
    let planned = nsctl.look().ok()?;
    planned.observed.fabric.as_ref()?;
    let counts = Counts::new(&planned.observed);
    let passed = edges.into_iter().map(|edge| counts.of(edge).0);
    Some(passed.fold((0, 0), |(packets, bytes), one| (packets + one.packets, bytes + one.bytes)))
}
