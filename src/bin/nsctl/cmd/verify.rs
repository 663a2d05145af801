//! `nsctl verify`.

use std::net::IpAddr;
use std::process::ExitCode;

use nsctl::{Error, Orchestrator};

use crate::args::Args;

pub fn verify(_: &Args, _: &Orchestrator, _: Option<IpAddr>, _: Option<IpAddr>) -> Result<ExitCode, Error> {
    Err(Error::Usage { message: "verify".into() })
}

pub fn demo(_: &Args) -> Result<ExitCode, Error> {
    Err(Error::Usage { message: "demo".into() })
}
