//! `nsctl prove`: for every packet the rules do what the policy says, or one for which they do not.

use std::process::ExitCode;
use std::time::Instant;

use netns_policy::prove::Proof;
use nsctl::{Error, Orchestrator};
use serde_json::json;

use crate::args::Args;
use crate::output;

pub fn prove(args: &Args, nsctl: &Orchestrator, live: bool) -> Result<ExitCode, Error> {
    let began = Instant::now();
    let proof = if live { nsctl.prove_live()? } else { nsctl.prove()? };
    let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    if args.json {
        let mut answer = as_json(&proof);
        answer["live"] = json!(live);
        answer["elapsed_ms"] = json!(took);
        output::answer(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let rules = if live { "the rules in the kernel" } else { "the compiled rules" };
    output::line(format_args!("proved: {rules} do what the policy says, for every packet"));
    let parts = [
        ("fabric", proof.panel, "of frames, on all wires"),
        ("services", proof.locks, "of datagrams, in all locks"),
        ("gateway", proof.gateway, "of datagrams"),
        ("host", proof.host, "of datagrams"),
    ];
    for (place, classes, what) in parts {
        output::line(format_args!("{place:<9}{classes:>9} classes {what}"));
    }
    if args.verbose {
        output::talk(format_args!("{} classes in {took} ms", proof.classes()));
    }
    Ok(ExitCode::SUCCESS)
}

/// The proof with stable keys.
pub fn as_json(proof: &Proof) -> serde_json::Value {
    json!({
        "classes": proof.classes(), "fabric": proof.panel, "services": proof.locks, "gateway": proof.gateway,
        "host": proof.host,
    })
}
