//! `nsctl expose` and `nsctl unexpose`.

use std::path::PathBuf;
use std::process::ExitCode;

use nsctl::expose::{self, Changed, Closing, Entrance, Handover, NotApplied, Opening, Side, Which};
use nsctl::session::Session;
use nsctl::{Applied, Error, How, Orchestrator};
use serde_json::json;

use crate::args::{Args, Spot, Switch};
use crate::output;

/// What was typed for either.
pub struct Asked<'a> {
    pub service: &'a str,
    pub dry_run: bool,
    pub into: &'a Option<PathBuf>,
}

/// The way that was asked for and that nobody serves yet.
pub fn unserved(onion: bool, wireguard: bool, clearnet: Option<&str>) -> Option<&'static str> {
    let words = [(onion, "onion"), (wireguard, "wireguard"), (clearnet.is_some(), "clearnet")];
    words.into_iter().find_map(|(is_asked, word)| is_asked.then_some(word))
}

/// How a relay is to hand connections on, where there is to be one.
pub fn handover(relay: bool, proxy: bool) -> Option<Handover> {
    relay.then_some(if proxy { Handover::ProxyV2 } else { Handover::Bare })
}

/// `--all off` and `--all on`.
pub fn switch(args: &Args, nsctl: &Orchestrator, asked: &Asked<'_>, switch: Switch) -> Result<ExitCode, Error> {
    let is_off = switch == Switch::Off;
    let write = || expose::switch(nsctl.options(), asked.into.as_deref(), is_off, asked.dry_run);
    if !is_off || asked.dry_run {
        refuse_surprises(nsctl, asked)?;
        return carry_out(args, nsctl, asked, write()?);
    }
    // First in the kernel, from the record: a policy file that somebody has left half-edited must not keep a door open.
    // Where they do not say which network is meant, every one is.
    let networks = match nsctl.recorded_network(None) {
        Ok(network) => vec![network],
        Err(_) => nsctl.recorded_networks()?,
    };
    let (mut closed, mut failed) = (Vec::new(), None);
    for network in networks {
        match nsctl.close_all(&network) {
            Ok(applied) => closed.extend(applied),
            // The others are closed all the same.
            Err(error) => failed = Some(error),
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let Some(first) = closed.first() else { return carry_out(args, nsctl, asked, write()?) };
    let code = match write() {
        Ok(changed) => {
            report(args, asked, &changed, changed.written.is_some(), Some(first));
            ExitCode::SUCCESS
        }
        Err(error) => {
            output::talk("every way in is closed, but that could not be written down: the next apply opens them again");
            return Err(error);
        }
    };
    for spoiled in closed.iter().flat_map(|applied| &applied.report.spoiled) {
        output::talk(format_args!("somebody inside spoils what is done there: {}", spoiled.step));
    }
    Ok(code)
}

/// What other changes the files hold is not to come into force by the way.
fn refuse_surprises(nsctl: &Orchestrator, asked: &Asked<'_>) -> Result<(), Error> {
    // Files that are refused are told of by whoever reads them next.
    if asked.dry_run || nsctl.files_are_in_force().unwrap_or(true) {
        return Ok(());
    }
    Err(Error::Usage {
        message: "the policy's files hold other changes, which are not in force yet".into(),
        help: Some(
            "`nsctl plan` shows them: apply them first. `nsctl expose --all off` closes everything at once".into(),
        ),
    })
}

pub fn expose(
    args: &Args,
    nsctl: &Orchestrator,
    asked: &Asked<'_>,
    (lan, port, relay): (Option<&Spot>, Option<&Spot>, Option<Handover>),
    unserved: Option<&'static str>,
) -> Result<ExitCode, Error> {
    if let Some(way) = unserved {
        let help = "such a way can be written in a policy file, is checked there and opens nothing".to_owned();
        return Err(Error::Usage { message: format!("--{way} is not served yet"), help: Some(help) });
    }
    let sides = [(Side::Lan, lan), (Side::Port, port)];
    let Some((side, spot)) = sides.into_iter().find_map(|(side, spot)| Some((side, spot?.clone()))) else {
        return Err(Error::Usage { message: "no way in is named".into(), help: Some("--lan or --port".into()) });
    };
    refuse_surprises(nsctl, asked)?;
    let opening = Opening { service: asked.service.to_owned(), side, outside: spot.outside, port: spot.port, relay };
    let changed = expose::open(nsctl.options(), asked.into.as_deref(), &opening, asked.dry_run)?;
    carry_out(args, nsctl, asked, changed)
}

pub fn unexpose(
    args: &Args,
    nsctl: &Orchestrator,
    asked: &Asked<'_>,
    lan: Option<u16>,
    port: Option<u16>,
    all: bool,
) -> Result<ExitCode, Error> {
    // 0 stands for any: nothing is exposed on it.
    let of = |side, outside: u16| Which::Of(side, Some(outside).filter(|outside| *outside != 0));
    let which = match (lan, port, all) {
        (Some(outside), _, _) => of(Side::Lan, outside),
        (_, Some(outside), _) => of(Side::Port, outside),
        (_, _, true) => Which::All,
        (None, None, false) => Which::Only,
    };
    refuse_surprises(nsctl, asked)?;
    let closing = Closing { service: asked.service.to_owned(), which };
    let changed = expose::close(nsctl.options(), asked.into.as_deref(), &closing, asked.dry_run)?;
    carry_out(args, nsctl, asked, changed)
}

/// Tells a change, and applies it where it was written and is a part of the policy.
fn carry_out(args: &Args, nsctl: &Orchestrator, asked: &Asked<'_>, mut changed: Changed) -> Result<ExitCode, Error> {
    let written = changed.written.take();
    let is_written = written.is_some();
    // What is so in the file already is made so too: an apply may have been forgotten.
    let is_due = !asked.dry_run && changed.is_heard;
    let applied = if is_due { Some(applied(args, nsctl, &changed, written)?) } else { None };
    report(args, asked, &changed, is_written, applied.as_ref());
    for spoiled in applied.iter().flat_map(|applied| &applied.report.spoiled) {
        output::talk(format_args!("somebody inside spoils what is done there: {}", spoiled.step));
    }
    Ok(ExitCode::SUCCESS)
}

fn report(args: &Args, asked: &Asked<'_>, changed: &Changed, is_written: bool, applied: Option<&Applied>) {
    if args.json {
        let ways = |ways: &[Entrance]| ways.iter().map(as_json).collect::<Vec<_>>();
        let done = applied.into_iter().flat_map(|applied| &applied.report.done).map(ToString::to_string);
        let left = changed.left.iter().map(|(way, at)| {
            let mut way = as_json(way);
            way["file"] = json!(at.file);
            way["line"] = json!(at.line);
            way
        });
        output::answer(&json!({
            "file": changed.path.display().to_string(), "written": is_written, "applied": applied.is_some(),
            "opened": ways(&changed.opened), "closed": ways(&changed.closed), "left": left.collect::<Vec<_>>(),
            "done": done.collect::<Vec<_>>(),
            "warnings": output::warnings_json(&changed.warnings, &[]),
            "notes": applied.into_iter().flat_map(super::apply::notes).collect::<Vec<_>>(),
        }));
        return;
    }
    tell(changed, asked.dry_run, is_written, applied);
}

fn applied(
    args: &Args,
    nsctl: &Orchestrator,
    changed: &Changed,
    written: Option<nsctl::own::Written>,
) -> Result<Applied, Error> {
    let was_written = written.is_some();
    // A way in is no change that is confirmed; one that closes the operator's own is asked for by `apply --confirm`.
    let session = Session::of_caller();
    let how = How { session: session.as_ref(), ..How::default() };
    expose::make_so(nsctl, written, &how).map_err(|failed| {
        let NotApplied { error, file } = *failed;
        let path = changed.path.display();
        match file {
            Ok(()) if was_written && !args.json => output::talk(format_args!("not applied: {path} is as it was")),
            Ok(()) => {}
            Err(why) => output::talk(format_args!("{path} could not be put back as it was: {why}")),
        }
        error
    })
}

fn tell(changed: &Changed, dry_run: bool, is_written: bool, applied: Option<&Applied>) {
    changed.closed.iter().for_each(|way| output::line(format_args!("- {way}")));
    changed.opened.iter().for_each(|way| output::line(format_args!("+ {way}")));
    let path = changed.path.display();
    let done = applied.map_or(0, |applied| applied.report.done.len());
    match (changed.differs, dry_run) {
        (false, _) if done == 0 => output::line("nothing to do"),
        (false, _) => output::line(format_args!("it is written already; applied now, {}", output::count(done, "step"))),
        (true, true) => output::line(format_args!("nothing was written; without --dry-run it goes to {path}")),
        (true, false) if applied.is_some() => output::line(format_args!("written to {path} and applied")),
        (true, false) => output::line(format_args!("written to {path}")),
    }
    output::warnings(&changed.warnings);
    for (way, at) in &changed.left {
        let Entrance { way, outside, service, port } = way;
        output::talk(format_args!("{way} :{outside} -> {service}:{port} stays: a person wrote it, at {at}"));
    }
    applied.into_iter().flat_map(super::apply::notes).for_each(output::talk);
    if is_written && !changed.is_heard {
        output::talk(format_args!("{path} is not a part of this policy yet: name it too, with --policy {path}"));
    }
}

fn as_json(way: &Entrance) -> serde_json::Value {
    json!({ "way": way.way, "outside_port": way.outside, "service": way.service, "port": way.port })
}
