//! `nsctl status`.

use std::process::ExitCode;

use nsctl::{Error, Orchestrator};

use crate::args::Args;
use crate::output;

pub fn status(args: &Args, nsctl: &Orchestrator) -> Result<ExitCode, Error> {
    let status = nsctl.status()?;
    if args.json {
        output::answer(&status);
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format_args!("network {}", status.network));
    if let Some(generation) = status.generation {
        let files = match status.files {
            Some("changed") => "; the policy's files say something else by now: `nsctl plan` shows what",
            Some("refused") => "; the policy's files are wrong by now: `nsctl check` tells why",
            _ => "",
        };
        output::line(format_args!("generation {generation}{files}"));
    }
    if let Some(pending) = &status.pending {
        output::line(format_args!(
            "it goes back in {} s unless it is confirmed: `nsctl confirm`, `nsctl rollback`",
            pending.seconds
        ));
    }
    if !status.held.is_empty() {
        output::line(format_args!(
            "HELD CLOSED, spoiled again and again: {}; see who does that, then `nsctl apply`",
            status.held.join(", ")
        ));
    }
    if !status.drift.is_empty() {
        output::line(
            "\ndrift; `nsctl apply` repairs what is ours, and leaves alone what is foreign (`nsctl drift` says more):",
        );
        status.drift.iter().for_each(|what| output::line(format_args!("  {what}")));
    }
    output::line(format_args!("\n{:<24} {:<5} {:<15} {}", "SERVICE", "STATE", "IPV4", "IPV6"));
    for service in &status.services {
        let v6 = service.address6.map(|v6| v6.to_string()).unwrap_or_default();
        let text = format!("{:<24} {:<5} {:<15} {v6}", service.name, service.state, service.address4.to_string());
        output::line(text.trim_end());
    }
    output::line(format_args!("\n{:<24} {:<32} {:>10} {:>14}", "FROM", "TO", "PACKETS", "BYTES"));
    for edge in &status.edges {
        let port = match (&edge.port_name, edge.port == edge.port_end) {
            (Some(name), _) => name.clone(),
            (None, true) => format!("{}:{}", edge.proto, edge.port),
            (None, false) => format!("{}:{}-{}", edge.proto, edge.port, edge.port_end),
        };
        let to = format!("{}:{port}", edge.to);
        output::line(format_args!("{:<24} {to:<32} {:>10} {:>14}", edge.from, edge.packets, edge.bytes));
    }
    for outbound in &status.outbound {
        output::line(format_args!("{:<24} {}", outbound.from, outbound.to.join(", ")));
    }
    let relay = super::relay_in_words(nsctl, &status.network);
    if !status.exposures.is_empty() {
        output::line(format_args!("\n{:<24} {:<32} {}", "EXPOSED BY", "SERVICE", "STATE"));
        for exposure in &status.exposures {
            let target = format!("{}:{}", exposure.service, exposure.port);
            let state = match (exposure.state, &relay) {
                ("needs the daemon", Some(relay)) => format!("relay: {relay}"),
                (state, _) => state.to_owned(),
            };
            output::line(format_args!("{:<24} {target:<32} {state}", exposure.way));
        }
    }
    if !status.asks.is_empty() {
        output::line("\nasked for by fragments, and not open; `nsctl grant` says what for:");
        status.asks.iter().for_each(|ask| output::line(format_args!("  {ask}")));
    }
    status.warnings.iter().for_each(output::talk);
    if status.drift.is_empty() {
        output::line("\nno drift");
    }
    Ok(ExitCode::SUCCESS)
}
