//! `nsctl backup` and `nsctl restore`.

use std::path::Path;
use std::process::ExitCode;

use netns_policy::name::NetworkName;
use nsctl::{Error, Orchestrator};
use serde_json::json;

use super::passphrase;
use crate::args::Args;
use crate::output;

pub fn backup(
    args: &Args,
    nsctl: &Orchestrator,
    (file, network): (&Path, Option<&NetworkName>),
    force: bool,
    fd: Option<u16>,
) -> Result<ExitCode, Error> {
    let passphrase = passphrase::new(fd)?;
    let done = nsctl.backup(file, network, &passphrase, force)?;
    let networks: Vec<_> = done.networks.iter().map(ToString::to_string).collect();
    if args.json {
        output::answer(&json!({
            "file": file.display().to_string(), "networks": networks, "files": done.files, "policy_files": done.policy,
            "note": done.note,
        }));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(note) = &done.note {
        output::talk(format_args!("the policy files are not in it: {note}"));
    }
    let files = output::count(done.files, "file");
    output::line(format_args!("{files} of {} sealed into {}", networks.join(", "), file.display()));
    Ok(ExitCode::SUCCESS)
}

pub fn restore(
    args: &Args,
    nsctl: &Orchestrator,
    file: &Path,
    force: bool,
    fd: Option<u16>,
) -> Result<ExitCode, Error> {
    let passphrase = passphrase::known(fd)?;
    let done = nsctl.restore_backup(file, &passphrase, force)?;
    let networks: Vec<_> = done.networks.iter().map(ToString::to_string).collect();
    if args.json {
        let aside = done.aside.iter();
        let aside: Vec<_> = aside
            .map(|(from, to)| json!({ "was": from.display().to_string(), "is": to.display().to_string() }))
            .collect();
        output::answer(&json!({ "networks": networks, "files": done.files, "time": done.time, "aside": aside }));
        return Ok(ExitCode::SUCCESS);
    }
    for (was, is) in &done.aside {
        output::line(format_args!("what was {} is {} now", was.display(), is.display()));
    }
    let files = output::count(done.files, "file");
    output::line(format_args!("{files} of {} restored, of {}", networks.join(", "), output::time(done.time)));
    output::line("`nsctl apply --boot` brings up what was in force then");
    Ok(ExitCode::SUCCESS)
}
