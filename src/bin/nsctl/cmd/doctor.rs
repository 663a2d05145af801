//! `nsctl doctor`.

use std::process::ExitCode;

use nsctl::Orchestrator;
use nsctl::doctor::{Check, Outcome};
use serde_json::json;

use crate::args::Args;
use crate::output;

pub fn doctor(args: &Args, nsctl: &Orchestrator) -> ExitCode {
    let checks = nsctl.doctor();
    let of = |outcome: Outcome| checks.iter().filter(|check| check.outcome == outcome).count();
    let (ok, warn, fail) = (of(Outcome::Ok), of(Outcome::Warn), of(Outcome::Fail));
    if args.json {
        output::answer(&json!({ "ok": ok, "warn": warn, "fail": fail, "checks": checks }));
    } else {
        checks.iter().for_each(tell);
        output::line(format_args!("\n{ok} ok, {warn} warn, {fail} fail"));
    }
    ExitCode::from(u8::from(fail > 0))
}

fn tell(check: &Check) {
    output::line(format_args!("{:<4}  {:<12}  {}", check.outcome.word(), check.check, check.seen));
    if let Some(next) = &check.next {
        output::line(format_args!("{:<4}  {:<12}  do: {next}", "", ""));
    }
}
