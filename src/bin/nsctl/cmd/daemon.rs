//! `nsctl daemon` and `nsctl reload`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use nsctl::daemon::{self, Reload, Request, Settings};
use nsctl::session::Session;
use nsctl::{Error, Orchestrator};
use tracing_subscriber::filter::LevelFilter;

use super::apply;
use crate::args::{Args, Change, Log};
use crate::output;

/// How long `reload` waits: a policy of a thousand services takes some seconds.
const PATIENCE: Duration = Duration::from_secs(300);

pub fn daemon(
    args: &Args,
    nsctl: Orchestrator,
    network: Option<&netns_policy::name::NetworkName>,
    log: Log,
) -> Result<ExitCode, Error> {
    start_log(args.verbose, log);
    let again = args.clone();
    let reload = move |asked: &Reload| reload_here(&again, asked);
    let settings = Settings { network: network.cloned(), reload: Arc::new(reload) };
    match daemon::run(nsctl, settings) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            output::talk(format_args!("E0928: {}", output::chain(&error)));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Lines on stderr, which systemd takes to the journal with times of its own.
fn start_log(verbose: bool, log: Log) {
    let level = if verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).with_target(false);
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    match (log, in_journal) {
        (Log::Json, _) => lines.json().flatten_event(true).init(),
        (Log::Text, true) => lines.with_ansi(false).without_time().init(),
        (Log::Text, false) => lines.with_ansi(false).init(),
    }
}

/// In the daemon: what `apply` does, with the answer as JSON.
fn reload_here(args: &Args, asked: &Reload) -> serde_json::Value {
    let mut args = args.clone();
    if !asked.policy.is_empty() {
        args.policy.clone_from(&asked.policy);
    }
    let nsctl = super::orchestrator(&args, false);
    let change = Change {
        confirm: asked.confirm.map(Duration::from_secs),
        no_confirm: asked.no_confirm,
        stop: asked.stop.map(Duration::from_secs),
    };
    let hold = apply::holder(&args);
    match nsctl.apply_with(&apply::how(change, None, asked.session.as_ref(), &hold)) {
        Ok(applied) => apply::as_json(&applied),
        Err(error) => output::failure_json(&error),
    }
}

pub fn reload(args: &Args, nsctl: &Orchestrator, change: Change) -> Result<ExitCode, Error> {
    let absolute = |path: &std::path::PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let request = Request::Reload(Reload {
        policy: args.policy.iter().map(absolute).collect(),
        confirm: change.confirm.map(|within| within.as_secs()),
        no_confirm: change.no_confirm,
        stop: change.stop.map(|time| time.as_secs()),
        session: Session::of_caller(),
    });
    let answer = match daemon::ask(&nsctl.options().run, &request, PATIENCE) {
        Ok(answer) => answer,
        Err(error) => return Err(Error::Daemon(error)),
    };
    let failed = answer.get("errors").is_some();
    if args.json {
        output::answer(&answer);
    } else if failed {
        let errors = answer["errors"].as_array().cloned().unwrap_or_default();
        for error in &errors {
            let word = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
            let place = match (error["file"].as_str(), error["line"].as_u64()) {
                (Some(file), Some(line)) => format!("{file}:{line}: "),
                (Some(file), None) => format!("{file}: "),
                _ => String::new(),
            };
            output::talk(format_args!("{}: {place}{}", word("code"), word("message")));
            if let Some(help) = error["help"].as_str() {
                output::talk(format_args!("  help: {help}"));
            }
        }
    } else {
        let done = answer["done"].as_array().map_or(0, Vec::len);
        let steps =
            if done == 0 { "nothing to do".to_owned() } else { format!("{} made", output::count(done, "step")) };
        output::line(steps);
        if answer["before"] != answer["generation"] {
            output::line(format_args!("generation {} is in force", answer["generation"]));
        }
        if let Some(within) = answer["confirm_within"].as_f64() {
            output::line(format_args!("it goes back in {within} s: `nsctl confirm` from a new connection keeps it"));
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
