//! `nsctl exec`: a command inside a service's namespace.

use std::ffi::OsString;
use std::fs;
use std::process::ExitCode;

use netns_policy::topology::Place;
use nsctl::exec::{Exec, RunAs, exec as become_command};
use nsctl::kernel::netns::Netns;
use nsctl::{Error, Orchestrator};

use super::service_of;
use crate::output;

pub fn exec(nsctl: &Orchestrator, user: Option<&str>, service: &str, command: &[OsString]) -> Result<ExitCode, Error> {
    let graph = nsctl.check()?.graph;
    let service = service_of(&graph, service)?;
    let network = &graph.network().name;
    let netns = Place::Service(service.name.clone()).netns(network).unwrap_or_default();
    let path = nsctl.options().netns.join(&netns);
    let opened = Netns::open(&path).map_err(|e| Error::Usage {
        message: format!("cannot open {} ({e}): run `nsctl apply` first", path.display()),
    })?;
    let files = nsctl.options().run.join(network.as_str()).join(&netns);
    let unit_user = service.unit.as_deref().and_then(user_of_unit);
    let user = RunAs::new(user, unit_user.as_deref());
    let Err(error) = become_command(&Exec { netns: &opened, files: Some(&files), user, command });
    output::talk(output::chain(&error));
    Ok(ExitCode::from(error.exit_status()))
}

/// The last `User=` of a unit's file and its drop-ins, as far as they can be read without asking systemd.
fn user_of_unit(unit: &str) -> Option<String> {
    let directories = ["/usr/lib/systemd/system", "/lib/systemd/system", "/run/systemd/system", "/etc/systemd/system"];
    let mut texts: Vec<String> = Vec::new();
    for directory in directories {
        texts.extend(fs::read_to_string(format!("{directory}/{unit}")));
        let drop_ins = fs::read_dir(format!("{directory}/{unit}.d")).into_iter().flatten().flatten();
        let mut paths: Vec<_> = drop_ins.map(|entry| entry.path()).collect();
        paths.sort();
        texts.extend(paths.iter().filter_map(|path| fs::read_to_string(path).ok()));
    }
    let lines = texts.iter().flat_map(|text| text.lines());
    let user = lines.filter_map(|line| line.trim().strip_prefix("User=")).next_back()?.trim();
    (!user.is_empty() && !user.contains('%')).then(|| user.to_owned())
}
