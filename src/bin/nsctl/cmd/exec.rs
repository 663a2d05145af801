//! `nsctl exec`: a command inside a service's namespace.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use netns_policy::topology::Place;
use nsctl::exec::{Exec, RunAs, exec as become_command};
use nsctl::kernel::netns::Netns;
use nsctl::{Error, Orchestrator, unit};

use super::service_of;
use crate::args::Args;
use crate::output;

pub fn exec(
    args: &Args,
    nsctl: &Orchestrator,
    user: Option<&str>,
    service: &str,
    command: &[OsString],
) -> Result<ExitCode, Error> {
    let graph = nsctl.check()?.graph;
    let service = service_of(&graph, service)?;
    let network = &graph.network().name;
    let netns = Place::Service(service.name.clone()).netns(network).unwrap_or_default();
    let path = nsctl.options().netns.join(&netns);
    let opened = Netns::open(&path).map_err(|e| Error::Usage {
        message: format!("cannot open {} ({e})", path.display()),
        help: Some("run `nsctl apply` first".into()),
    })?;
    let files = nsctl.options().run.join(network.as_str()).join(&netns);
    let unit_user = service.unit.as_deref().and_then(|unit| unit::user(unit, &unit::DIRECTORIES.map(Path::new)));
    let user = RunAs::new(user, unit_user.as_deref());
    let Err(error) = become_command(&Exec { netns: &opened, files: Some(&files), user, command });
    output::not_run(&error, args.json);
    Ok(ExitCode::from(error.exit_status()))
}
