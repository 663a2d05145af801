//! `nsctl exec`: a command inside a service's namespace.

use std::ffi::OsString;
use std::process::ExitCode;

use nsctl::{Error, Orchestrator};

pub fn exec(
    _nsctl: &Orchestrator,
    _user: Option<&str>,
    _service: &str,
    _command: &[OsString],
) -> Result<ExitCode, Error> {
    Err(Error::Usage { message: "exec".into() })
}
