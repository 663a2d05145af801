//! `nsctl exposed`: every way in.

use std::process::ExitCode;

use nsctl::expose::listed::{Listed, listed};
use nsctl::expose::machine_addresses;
use nsctl::{Error, Orchestrator};
use serde_json::json;

use crate::args::Args;
use crate::output;

pub fn exposed(args: &Args, nsctl: &Orchestrator) -> Result<ExitCode, Error> {
    let checked = nsctl.in_force_or_files()?;
    let relay = super::relay_in_words(nsctl, checked.graph.network().name.as_str());
    let ways = listed(&checked.graph, &machine_addresses(&checked.graph), relay.as_deref());
    if args.json {
        output::answer(&json!({ "exposures": ways.iter().map(as_json).collect::<Vec<_>>() }));
        return Ok(ExitCode::SUCCESS);
    }
    if ways.is_empty() {
        output::line("no service is exposed");
        return Ok(ExitCode::SUCCESS);
    }
    let row = |cells: [&str; 6]| {
        let [way, outside, to, who, state, at] = cells;
        output::line(format_args!("{way:<10} {outside:<21} {to:<24} {who:<24} {state:<12} {at}"));
    };
    row(["WAY", "OUTSIDE", "TO", "WHO", "STATE", "WRITTEN"]);
    for way in &ways {
        let to = format!("{}:{}", way.service, way.port);
        row([way.way, &outside(way), &to, &who(way), &way.state, &way.at.to_string()]);
    }
    Ok(ExitCode::SUCCESS)
}

/// The first address, and how many more there are; of a port on no address, the port.
fn outside(way: &Listed) -> String {
    match (way.outside.as_slice(), way.outside_port) {
        ([], Some(port)) => format!(":{port}"),
        ([], None) => "-".into(),
        ([only], _) => only.clone(),
        ([first, rest @ ..], _) => format!("{first} +{}", rest.len()),
    }
}

fn who(way: &Listed) -> String {
    if way.who.is_empty() { "nobody".into() } else { way.who.join(",") }
}

fn as_json(way: &Listed) -> serde_json::Value {
    json!({
        "way": way.way, "outside": way.outside, "outside_port": way.outside_port, "service": way.service,
        "port": way.port, "who": way.who, "state": way.state, "file": way.at.file, "line": way.at.line,
    })
}
