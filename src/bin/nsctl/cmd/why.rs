//! `nsctl why`: which edge, or which absence; where it stands in the kernel, what has passed and what was refused; and,
//! with `--live`, what really becomes of a connection.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use netns_policy::explain::stands::{Refusal, Stand, refusal, stands, stands_of_way_in};
use netns_policy::explain::{Answer, ExplainError, Explanation, Reach, asked, explain};
use netns_policy::exposure::Exposure;
use netns_policy::graph::{AllowGraph, Edge, Origin, Target};
use netns_policy::port::Ports;
use netns_policy::topology::Place;
use nsctl::attempt::{Attempt, AttemptError, Lookup, Question, attempt, refusals};
use nsctl::status::{Counts, exposure_state};
use nsctl::{Error, Orchestrator, Planned};
use serde_json::{Value, json};

use crate::args::Args;
use crate::output;

pub fn why(
    args: &Args,
    nsctl: &Orchestrator,
    from: &str,
    to: &str,
    live: bool,
    address: Option<IpAddr>,
) -> Result<ExitCode, Error> {
    let graph = nsctl.check()?.graph;
    let (to, port) = to.split_once(':').unwrap_or((to, ""));
    let usage = |e: ExplainError| Error::Usage { message: output::chain(&e), help: e.hint().map(str::to_owned) };
    let explanation = explain(&graph, from, to, port).map_err(usage)?;
    let ports = asked(&graph, to, port).map_err(usage)?;
    let question = Question { from: from.to_owned(), to: to.to_owned(), ports, address };
    // Before the attempt, which counts too.
    let kernel = Kernel::of(nsctl, &graph, &question, &explanation.answer);
    let attempt = match live {
        true => Some(attempt(nsctl, &question).map_err(|e| match e {
            AttemptError::Usage { message, help } => Error::Usage { message, help },
            AttemptError::Orchestrator(e) => *e,
        })?),
        false => None,
    };
    if args.json {
        output::answer(&as_json(&explanation, &kernel, attempt.as_ref()));
    } else {
        text(args, &explanation, &kernel);
        attempt.iter().for_each(told);
    }
    // An answer is an answer: whether it is yes or no is on stdout, the exit code says that it was found.
    Ok(ExitCode::SUCCESS)
}

/// What the kernel has of it, or would have.
#[derive(Default)]
struct Kernel {
    /// What the panel's elements have counted; nothing without privilege, or when the policy is not applied.
    passed: Option<(u64, u64)>,
    /// How often the caller's own lock has refused it; nothing where that cannot be read.
    refused: Option<u64>,
    /// Where the right stands; nothing where addresses are not known.
    stands: Option<Vec<(Stand, Option<u64>)>>,
    /// What refuses it.
    refusal: Option<Refusal>,
}

impl Kernel {
    fn of(nsctl: &Orchestrator, graph: &AllowGraph, question: &Question, answer: &Answer) -> Self {
        let Question { from, to, ports, .. } = question;
        let yes = matches!(answer, Answer::Yes(_));
        if let Answer::Yes(Reach { way_in: Some(way), .. }) = answer {
            let here = |exposure: &&Exposure| exposure.way == *way && exposure.service.as_str() == to;
            let asked = |exposure: &&Exposure| ports.is_none_or(|ports| ports.overlaps(&exposure.ports));
            let exposure = graph.exposures().iter().filter(here).find(asked);
            return exposure.map(|exposure| Self::of_way_in(nsctl, exposure)).unwrap_or_default();
        }
        let (Some(client), Some(server)) = (caller(graph, from), called(graph, to)) else { return Self::default() };
        let planned = nsctl.look().ok();
        let applied = planned.as_ref().filter(|planned| planned.observed.fabric.is_some());
        let passed = applied.and_then(|planned| passed(planned, question));
        let refused = applied.and_then(|planned| refusals(nsctl, planned, question));
        // Without privilege: as it would be.
        let Some(planned) = planned.or_else(|| nsctl.plan_offline().ok()) else { return Self::default() };
        let counted = |stand: Stand| {
            let packets = planned.observed.counters.get(&stand.id).map(|count| count.packets);
            (stand, packets)
        };
        let mut stands = stands(&planned.desired, &client, &server, *ports);
        // One map has the ways to both.
        stands.retain(|stand| yes && stand.leads_to_wan().is_none_or(|wan| wan == (to == "wan")));
        let port = ports.map(|ports| (ports.protocol(), ports.lo()));
        let refusal = |(protocol, port)| refusal(&planned.desired, &client, &server, protocol, port);
        Self {
            passed,
            refused,
            stands: Some(stands.into_iter().map(counted).collect()),
            refusal: port.filter(|_| !yes).and_then(refusal),
        }
    }
}

impl Kernel {
    fn of_way_in(nsctl: &Orchestrator, exposure: &Exposure) -> Self {
        let Some(planned) = nsctl.look().ok().or_else(|| nsctl.plan_offline().ok()) else { return Self::default() };
        let count = |stand: &Stand| planned.observed.counters.get(&stand.id).copied();
        let stands = stands_of_way_in(&planned.desired, exposure);
        let in_panel = stands.iter().filter(|stand| stand.place == "fabric" && stand.set.starts_with("exposed"));
        let counts: Vec<_> = in_panel.filter_map(count).collect();
        let passed = counts.iter().fold((0, 0), |(packets, bytes), one| (packets + one.packets, bytes + one.bytes));
        let counted = |stand: Stand| {
            let packets = count(&stand).map(|count| count.packets);
            (stand, packets)
        };
        Self {
            passed: (!counts.is_empty()).then_some(passed),
            stands: Some(stands.into_iter().map(counted).collect()),
            ..Self::default()
        }
    }
}

fn caller(graph: &AllowGraph, name: &str) -> Option<Place> {
    match graph.service(name) {
        Some(service) => Some(Place::Service(service.name.clone())),
        None => (name == "host").then_some(Place::Host),
    }
}

fn called(graph: &AllowGraph, name: &str) -> Option<Place> {
    let outside = ["lan", "metadata", "uplink", "wan"].contains(&name);
    caller(graph, name).or_else(|| outside.then_some(Place::Uplink))
}

/// What the elements of the edges asked for have counted.
fn passed(planned: &Planned, question: &Question) -> Option<(u64, u64)> {
    let Question { from, to, ports, .. } = question;
    let origin = if from == "host" { Origin::Host } else { Origin::Service(from.parse().ok()?) };
    let target = if to == "host" { Target::Host } else { Target::Service(to.parse().ok()?) };
    let asked = |edge: &&Edge| {
        let meets = |ports: Ports| ports.overlaps(&edge.ports);
        edge.from == origin && edge.to == target && ports.is_none_or(meets)
    };
    let edges: Vec<&Edge> = planned.checked.graph.edges().iter().filter(asked).collect();
    edges.first()?;
    let counts = Counts::new(&planned.observed);
    let passed = edges.into_iter().map(|edge| counts.of(edge).0);
    Some(passed.fold((0, 0), |(packets, bytes), one| (packets + one.packets, bytes + one.bytes)))
}

/// How it is with a way in, as `status` has it.
fn state(explanation: &Explanation) -> Option<&'static str> {
    match &explanation.answer {
        Answer::Yes(reach) => reach.way_in.as_ref().map(exposure_state),
        _ => None,
    }
}

fn text(args: &Args, explanation: &Explanation, kernel: &Kernel) {
    output::line(explanation);
    match state(explanation) {
        Some("not served") => output::line(format_args!("     not served yet: nothing is open for it")),
        Some("needs the daemon") => output::line(format_args!("     needs the daemon: it hands the connections on")),
        _ => {}
    }
    if let Some((packets, bytes)) = kernel.passed {
        output::line(format_args!("     passed so far: {packets} packets, {bytes} bytes"));
    }
    if let Some(refused) = kernel.refused.filter(|refused| *refused > 0) {
        output::line(format_args!("     refused so far: {}", output::count_of(refused, "packet")));
    }
    if args.verbose {
        stand_lines(kernel.stands.as_deref().unwrap_or_default());
        kernel.refusal.iter().for_each(refusal_lines);
    }
}

/// Each element, and after those of one map the rule that asks it.
fn stand_lines(stands: &[(Stand, Option<u64>)]) {
    for (index, (stand, packets)) in stands.iter().enumerate() {
        let Stand { netns, table, set, element, chain, rule, .. } = stand;
        let place = netns.as_deref().unwrap_or("the host");
        let packets = packets.map(|packets| format!(", {}", output::count_of(packets, "packet"))).unwrap_or_default();
        output::line(format_args!("     in {place}: {table} {set} {{ {element} }}{packets}"));
        let same = stands.get(index + 1).is_some_and(|(next, _)| (&next.place, &next.rule) == (&stand.place, rule));
        if !same {
            output::line(format_args!("       asked by {chain}: {rule}"));
        }
    }
}

fn refusal_lines(refusal: &Refusal) {
    let place = refusal.netns.as_deref().unwrap_or("the host");
    output::line(format_args!("     refused in {place} by {} {}: {}", refusal.table, refusal.chain, refusal.rule));
    for absent in &refusal.absent {
        output::line(format_args!("     missing in the fabric: {absent}"));
    }
}

fn as_json(explanation: &Explanation, kernel: &Kernel, attempt: Option<&Attempt>) -> Value {
    let mut answer = json!(explanation);
    if let Answer::Yes(reach) = &explanation.answer {
        answer["through"] = json!(reach.through);
        answer["state"] = json!(state(explanation));
    }
    answer["packets"] = json!(kernel.passed.map(|(packets, _)| packets));
    answer["bytes"] = json!(kernel.passed.map(|(_, bytes)| bytes));
    answer["refused"] = json!(kernel.refused);
    answer["elements"] = json!(kernel.stands.as_ref().map(|stands| {
        let element = |(stand, packets): &(Stand, Option<u64>)| {
            let mut element = json!(stand);
            element["packets"] = json!(packets);
            element
        };
        stands.iter().map(element).collect::<Vec<_>>()
    }));
    answer["refusal"] = json!(kernel.refusal);
    answer["live"] = json!(attempt.map(live_json));
    answer
}

fn milliseconds(duration: Duration) -> f64 {
    // To the microsecond: what a clock says beyond that is noise.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn live_json(attempt: &Attempt) -> Value {
    let tries = attempt.tries.iter().map(|one| {
        json!({
            "address": one.address, "seen": one.met.to_string(), "ms": milliseconds(one.elapsed),
            "verdict": one.verdict.code(), "says": one.verdict.to_string(), "next": next(attempt, one),
        })
    });
    let strangers = attempt.strangers.iter().map(|one| {
        json!({
            "place": one.place, "netns": one.netns, "chain": one.chain, "hook": one.hook, "priority": one.priority,
            "stops_by": one.stops_by,
        })
    });
    let lookup = attempt.lookup.as_ref().map(|lookup| {
        let resolvers = lookup
            .resolvers
            .iter()
            .map(|one| json!({ "address": one.address, "seen": one.met.to_string(), "ms": milliseconds(one.elapsed) }));
        json!({
            "name": lookup.name, "file": lookup.file, "addresses": lookup.addresses,
            "resolvers": resolvers.collect::<Vec<_>>(), "fault": fault(attempt, lookup),
        })
    });
    json!({
        "proto": attempt.protocol.to_string(), "port": attempt.port, "allowed": attempt.allowed,
        "tries": tries.collect::<Vec<_>>(), "lookup": lookup, "drift": attempt.drift,
        "foreign": strangers.collect::<Vec<_>>(),
    })
}

fn next(attempt: &Attempt, one: &nsctl::attempt::Try) -> Option<String> {
    one.verdict.next(&attempt.from, &attempt.to, &one.address.to_string())
}

fn fault(attempt: &Attempt, lookup: &Lookup) -> Option<String> {
    lookup.fault(attempt.is_outside())
}

fn told(attempt: &Attempt) {
    let mut head = "live";
    let mut before = None;
    for one in &attempt.tries {
        let port = format!("{}:{}", attempt.protocol, attempt.port);
        let after = format!(" ({:.1} ms)", milliseconds(one.elapsed));
        let after = if one.elapsed.is_zero() { "" } else { &after };
        output::line(format_args!("{head:<5}{} {port}: {}{after}", one.address, one.verdict));
        head = "";
        let next = next(attempt, one);
        if next != before {
            next.iter().for_each(|next| output::line(format_args!("     next: {next}")));
        }
        before = next;
    }
    if let Some(fault) = attempt.lookup.as_ref().and_then(|lookup| fault(attempt, lookup)) {
        output::line(format_args!("     name: {fault}"));
    }
    for what in &attempt.drift {
        output::line(format_args!("     drift: {what}"));
    }
    let named = |stranger: &nsctl::attempt::Stranger| {
        attempt.tries.iter().any(|one| one.verdict.to_string().contains(&stranger.to_string()))
    };
    for stranger in attempt.strangers.iter().filter(|one| one.stops_by.is_some() && !named(one)) {
        output::line(format_args!("     on the way: {stranger}"));
    }
}
