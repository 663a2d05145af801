//! `nsctl test`: every `[[test]]` and `[[never]]` by name, from the graph or by real connections too.

use std::process::ExitCode;

use netns_policy::trial::{Claim, Kind, Trial};
use nsctl::matrix::{MatrixError, Outside};
use nsctl::trial::{Shown, Tried, Verdict, live};
use nsctl::{Error, Orchestrator};
use serde_json::{Value, json};

use crate::args::{Args, Results};
use crate::junit::{Case, Outcome, Suite};
use crate::{junit, output};

pub fn test(
    args: &Args,
    nsctl: &Orchestrator,
    format: Results,
    connect: bool,
    outside: &Outside,
) -> Result<ExitCode, Error> {
    let trials = nsctl.trials()?;
    // What the graph breaks is not applied, so there is nothing to try it on.
    let broken = trials.iter().any(|trial| !trial.holds());
    let shown = match connect && !broken {
        true => Some(live(nsctl, outside, &trials).map_err(|e| match e {
            MatrixError::Orchestrator(e) => *e,
            other => Error::Verify(Box::new(other)),
        })?),
        false => None,
    };
    let tried: Vec<Outcomes> = (0..)
        .zip(&trials)
        .map(|(number, trial): (usize, _)| Outcomes::of(trial, shown.as_ref().map(|shown| shown[number].as_slice())))
        .collect();
    if connect && broken {
        output::talk("the policy breaks its own tests, so it is not applied: nothing was tried");
    }
    match format {
        _ if args.json => output::answer(&as_json(&tried)),
        Results::Json => output::answer(&as_json(&tried)),
        Results::Junit => output::line(junit::document("nsctl test", &tried.iter().map(suite).collect::<Vec<_>>())),
        Results::Text => text(args, &tried),
    }
    let failed = tried.iter().any(|trial| trial.failed().next().is_some());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A trial with what connections showed of its claims.
struct Outcomes<'a> {
    trial: &'a Trial,
    claims: Vec<(&'a Claim, Option<&'a Shown>)>,
}

impl<'a> Outcomes<'a> {
    fn of(trial: &'a Trial, shown: Option<&'a [Shown]>) -> Self {
        let mut shown = shown.into_iter().flatten();
        let claims = trial.claims.iter();
        let claims = claims.map(|claim| (claim, claim.asks.as_ref().and_then(|_| shown.next()))).collect();
        Self { trial, claims }
    }

    fn failed(&self) -> impl Iterator<Item = &(&'a Claim, Option<&'a Shown>)> {
        self.claims.iter().filter(|(claim, shown)| has_failed(claim, *shown))
    }

    fn unproven(&self) -> impl Iterator<Item = (&'a Claim, &'a str)> {
        let open = self.claims.iter().filter(|(claim, shown)| !has_failed(claim, *shown));
        open.filter_map(|(claim, shown)| Some((*claim, (*shown)?.unproven()?)))
    }

    fn word(&self) -> &'static str {
        match (self.failed().next(), self.unproven().next()) {
            (Some(_), _) => "failed",
            (None, Some(_)) => "unproven",
            (None, None) => "ok",
        }
    }
}

fn has_failed(claim: &Claim, shown: Option<&Shown>) -> bool {
    !claim.holds || shown.is_some_and(|shown| shown.contrary().next().is_some())
}

/// What is wrong with a claim, line by line.
fn faults(claim: &Claim, shown: Option<&Shown>) -> Vec<String> {
    let graph = (!claim.holds).then(|| format!("{}: {}", claim.what, claim.reason));
    let connections = shown.into_iter().flat_map(Shown::contrary).map(|tried| {
        let Tried { probe, seen, verdict } = tried;
        let note = match verdict {
            Verdict::Contrary(Some(note)) => format!(" ({note})"),
            _ => String::new(),
        };
        let expected = format!("{:?}", probe.expected).to_lowercase();
        format!("{}: {probe}: expected {expected}, {seen}{note}", claim.what)
    });
    graph.into_iter().chain(connections).collect()
}

fn text(args: &Args, all: &[Outcomes]) {
    for outcomes in all {
        let Outcomes { trial, claims } = outcomes;
        output::line(format_args!("{:<8}  {}", outcomes.word(), trial.title()));
        for (claim, shown) in claims {
            for fault in faults(claim, *shown) {
                output::line(format_args!("          {fault}  {}", claim.at));
            }
            if args.verbose && !has_failed(claim, *shown) {
                let tried = match shown {
                    Some(Shown::Tried(tried)) => format!(", {}", output::count(tried.len(), "connection")),
                    _ => String::new(),
                };
                output::line(format_args!("          {}: {}{tried}", claim.what, claim.reason));
            }
        }
        for (claim, why) in outcomes.unproven() {
            output::line(format_args!("          {}: {why}  {}", claim.what, claim.at));
        }
    }
    if all.is_empty() {
        return output::line("the policy has neither a [[test]] nor a [[never]]");
    }
    let [passed, failed, unproven] = ["ok", "failed", "unproven"].map(|word| count(all, word));
    let open = if unproven > 0 { format!(", {unproven} unproven") } else { String::new() };
    output::line(format_args!("{passed} passed, {failed} failed{open}"));
}

fn count(all: &[Outcomes], word: &str) -> usize {
    all.iter().filter(|outcomes| outcomes.word() == word).count()
}

fn as_json(all: &[Outcomes]) -> Value {
    let results = all.iter().map(|outcomes| {
        let Outcomes { trial, claims } = outcomes;
        let claims = claims.iter().map(|(claim, shown)| {
            json!({
                "what": claim.what, "ok": !has_failed(claim, *shown), "reason": claim.reason, "at": claim.at,
                "live": shown.map(shown_json),
            })
        });
        json!({
            "kind": trial.kind, "name": trial.name, "at": trial.at, "outcome": outcomes.word(),
            "claims": claims.collect::<Vec<_>>(),
        })
    });
    json!({
        "passed": count(all, "ok"), "failed": count(all, "failed"), "unproven": count(all, "unproven"),
        "results": results.collect::<Vec<_>>(),
    })
}

fn shown_json(shown: &Shown) -> Value {
    let tried = match shown {
        Shown::NotTried(why) => return json!({ "tried": [], "not_tried": why }),
        Shown::Tried(tried) => tried,
    };
    let row = |tried: &Tried| {
        let Tried { probe, seen, verdict } = tried;
        let (outcome, note) = match verdict {
            Verdict::AsClaimed => ("ok", None),
            Verdict::Nothing(why) => ("unproven", Some(why)),
            Verdict::Contrary(note) => ("failed", note.as_ref()),
        };
        json!({
            "from": probe.from, "to": probe.to, "address": probe.address, "proto": probe.protocol.to_string(),
            "port": probe.port, "expected": format!("{:?}", probe.expected).to_lowercase(),
            "seen": seen.to_string(), "outcome": outcome, "note": note,
        })
    };
    json!({ "tried": tried.iter().map(row).collect::<Vec<_>>(), "not_tried": null })
}

fn suite(outcomes: &Outcomes) -> Suite {
    let Outcomes { trial, claims } = outcomes;
    // Of an invariant each chain that breaks it is a claim, and all have one name.
    let cases: Vec<&[(&Claim, Option<&Shown>)]> = match trial.kind {
        Kind::Never => vec![claims.as_slice()],
        Kind::Test => claims.chunks(1).collect(),
    };
    Suite { name: trial.title(), cases: cases.into_iter().filter_map(case).collect() }
}

fn case(claims: &[(&Claim, Option<&Shown>)]) -> Option<Case> {
    let (first, shown) = claims.first()?;
    let faults: Vec<String> = claims.iter().flat_map(|(claim, shown)| faults(claim, *shown)).collect();
    let outcome = match (faults.is_empty(), shown.and_then(Shown::unproven)) {
        (false, _) => Outcome::Failed(faults),
        (true, Some(why)) => Outcome::Skipped(why.to_owned()),
        (true, None) => Outcome::Passed,
    };
    Some(Case { name: first.what.clone(), file: first.at.file.clone(), line: first.at.line, outcome })
}
