//! `nsctl verify`: really connect every pair, and compare with the graph.

use std::io::IsTerminal as _;
use std::net::IpAddr;
use std::process::ExitCode;

use nsctl::matrix::{self, MatrixError, Outside};
use nsctl::verify::{Probe, Report};
use nsctl::{Error, Orchestrator};
use serde_json::json;

use crate::args::Args;
use crate::output;

pub fn verify(args: &Args, nsctl: &Orchestrator, wan: Option<IpAddr>, lan: Option<IpAddr>) -> Result<ExitCode, Error> {
    let outside = Outside { wan: wan.into_iter().collect(), lan: lan.into_iter().collect(), netns: None };
    let report = run(nsctl, &outside)?;
    show(args, &report);
    Ok(if report.mismatches.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the matrix with progress on a terminal.
pub fn run(nsctl: &Orchestrator, outside: &Outside) -> Result<Report, Error> {
    let terminal = std::io::stderr().is_terminal();
    let report = matrix::verify(nsctl, outside, &|done, all| {
        if terminal && done % 500 == 0 {
            output::progress(format_args!("{done} of {all} connections tried"));
        }
    });
    if terminal {
        output::progress("");
    }
    report.map_err(|e| match e {
        MatrixError::Orchestrator(e) => *e,
        other => Error::Verify(Box::new(other)),
    })
}

fn probe_json(probe: &Probe) -> serde_json::Value {
    json!({
        "from": probe.from, "to": probe.to, "address": probe.address, "proto": probe.protocol.to_string(),
        "port": probe.port, "expected": format!("{:?}", probe.expected).to_lowercase(),
    })
}

pub fn show(args: &Args, report: &Report) {
    if args.json {
        let mismatches = report.mismatches.iter().map(|mismatch| {
            let mut row = probe_json(&mismatch.probe);
            row["seen"] = json!(mismatch.seen.to_string());
            row["note"] = json!(mismatch.note);
            row
        });
        let unproven = report.unproven.iter().map(|unproven| {
            let mut row = probe_json(&unproven.probe);
            row["seen"] = json!(unproven.seen.to_string());
            row["reason"] = json!(unproven.reason);
            row
        });
        output::answer(&json!({
            "probes": report.probes,
            "proven": report.proven(),
            "mismatches": mismatches.collect::<Vec<_>>(),
            "unproven": unproven.collect::<Vec<_>>(),
            "elapsed_ms": u64::try_from(report.elapsed.as_millis()).unwrap_or(u64::MAX),
        }));
        return;
    }
    for mismatch in &report.mismatches {
        let expected = format!("{:?}", mismatch.probe.expected).to_lowercase();
        let note = mismatch.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
        output::line(format_args!("wrong: {}: expected {expected}, {}{note}", mismatch.probe, mismatch.seen));
    }
    for unproven in &report.unproven {
        output::line(format_args!("unproven: {}: {}", unproven.probe, unproven.reason));
    }
    output::line(format_args!(
        "{} connections tried in {:.1} s: {} as the graph says, {} wrong, {} unproven",
        report.probes,
        report.elapsed.as_secs_f64(),
        report.proven(),
        report.mismatches.len(),
        report.unproven.len(),
    ));
}
