//! `nsctl why`.

use std::process::ExitCode;

use nsctl::{Error, Orchestrator};

use crate::args::Args;

pub fn why(_: &Args, _: &Orchestrator, _: &str, _: &str) -> Result<ExitCode, Error> {
    Err(Error::Usage { message: "why".into() })
}
