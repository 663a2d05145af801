//! `nsctl drift`.

use std::process::ExitCode;

use nsctl::drift::{Compared, Drift};
use nsctl::{Error, Orchestrator};
use serde_json::{Value, json};

use crate::args::Args;
use crate::output;

pub fn drift(args: &Args, nsctl: &Orchestrator) -> Result<ExitCode, Error> {
    let Compared { planned, extra, drift } = nsctl.drift()?;
    if args.json {
        let all: Vec<Value> = drift.iter().map(as_json).collect();
        output::answer(
            &json!({ "network": planned.desired.network.to_string(), "drift": all, "unseen": extra.unseen }),
        );
    } else if drift.is_empty() {
        output::line("no drift");
    } else {
        for one in &drift {
            output::line(one);
            output::line(format_args!("  {}", one.next()));
        }
    }
    Ok(ExitCode::from(u8::from(!drift.is_empty())))
}

/// The fields of the difference, with what is the same for all.
fn as_json(drift: &Drift) -> Value {
    let mut value = json!(drift);
    value["what"] = json!(drift.to_string());
    value["repairable"] = json!(drift.repairable());
    value["next"] = json!(drift.next());
    value
}
