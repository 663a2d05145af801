//! `nsctl grant`: what fragments ask for, and the operator's answers.

use std::path::PathBuf;
use std::process::ExitCode;

use netns_policy::ask::{Answer, Ask};
use nsctl::grant::{self, Answered, Choice};
use nsctl::{Error, Orchestrator};
use serde_json::json;

use crate::args::Args;
use crate::output;

/// What was typed behind `grant`.
pub struct Asked<'a> {
    pub who: &'a Option<String>,
    pub target: &'a Option<String>,
    pub revoke: bool,
    pub dry_run: bool,
    pub into: &'a Option<PathBuf>,
}

pub fn grant(args: &Args, nsctl: &Orchestrator, asked: &Asked<'_>) -> Result<ExitCode, Error> {
    let Some(who) = asked.who else {
        list(args, &nsctl.check()?.asks);
        return Ok(ExitCode::SUCCESS);
    };
    let choice = Choice { who: who.clone(), target: asked.target.clone(), revoke: asked.revoke };
    let answered = grant::answer(nsctl.options(), asked.into.as_deref(), &choice, asked.dry_run)?;
    if args.json {
        output::answer(&json!({
            "file": answered.path.display().to_string(), "written": !asked.dry_run && answered.changes(),
            "opened": answered.opened, "closed": answered.closed,
        }));
        return Ok(ExitCode::SUCCESS);
    }
    tell(&answered, asked.dry_run);
    Ok(ExitCode::SUCCESS)
}

fn tell(answered: &Answered, dry_run: bool) {
    let signed = |sign: char| move |edge: &String| output::line(format_args!("{sign} edge    {edge}"));
    answered.closed.iter().for_each(signed('-'));
    answered.opened.iter().for_each(signed('+'));
    let path = answered.path.display();
    match (answered.changes(), dry_run) {
        (false, _) => output::line("nothing to do"),
        (true, true) => output::line(format_args!("nothing was written; without --dry-run it goes to {path}")),
        (true, false) => output::line(format_args!("written to {path}; run `nsctl apply` to make it so")),
    }
    if answered.changes() && !answered.is_heard {
        output::talk(format_args!("{path} is not a part of this policy yet: name it too, with --policy {path}"));
    }
}

fn list(args: &Args, asks: &[Ask]) {
    if args.json {
        return output::answer(&json!({ "asks": asks.iter().map(as_json).collect::<Vec<_>>() }));
    }
    if asks.is_empty() {
        return output::line("no fragment asks for anything");
    }
    output::line(format_args!("{:<8} {:<20} {:<28} {}", "ANSWER", "SERVICE", "ASKS FOR", "WHY"));
    for ask in asks {
        let wanted = format!("{}:{}", ask.target, ask.wanted);
        let why = ask.why.as_deref().unwrap_or_default().escape_debug();
        let text = format!("{:<8} {:<20} {wanted:<28} {why}", word(ask.answer), ask.service.as_str());
        output::line(text.trim_end());
    }
    if let Some(open) = asks.iter().find(|ask| ask.answer == Answer::Open) {
        output::line(format_args!("nothing is open for what nobody answered; `nsctl grant {}` answers", open.service));
    }
}

fn word(answer: Answer) -> &'static str {
    match answer {
        Answer::Granted => "granted",
        Answer::Moot => "moot",
        Answer::Open => "open",
    }
}

/// One ask, with stable keys.
pub fn as_json(ask: &Ask) -> serde_json::Value {
    json!({
        "fragment": ask.fragment.as_str(), "service": ask.service.as_str(), "target": ask.target.as_str(),
        "port": ask.wanted.to_string(), "why": ask.why, "optional": ask.optional, "answer": word(ask.answer),
        "file": ask.at.file, "line": ask.at.line,
    })
}

/// One line when somebody waits for an answer.
pub fn tell_open(asks: &[Ask]) {
    let open = asks.iter().filter(|ask| ask.answer == Answer::Open).count();
    if open > 0 {
        let asks = output::count(open, "ask");
        output::line(format_args!("{asks} of fragments without an answer; `nsctl grant` lists them"));
    }
}
