//! Cases that say who must reach whom under which policy, held against the compiled rules and against the kernel.
//!
//! `NSCTL_CONFORMANCE` names a file of cases; without it those beside this file are taken. Every key of the file is
//! understood or the case fails. Each policy is given to the product as an operator would write it.
//!
//! - The interpreter carries the first packet of every connection, and its answer, through the compiled rules.
//! - Live, every connection is really tried in a sandbox, over both families, with a listener on every port that is
//!   asked for, declared or not. What is open on an edge that a step takes away must fall silent with it.

mod case;
#[path = "../common/mod.rs"]
mod common;
mod interpret;
mod live;
mod outside;
mod translate;

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use netns_policy::PolicyErrors;
use netns_policy::address::AddressError;

use case::{Case, Pair, Step};

/// The cases that come with the source.
const CASES: &str = include_str!("cases.json");

/// How long a file of cases may take.
const PATIENCE: Duration = Duration::from_secs(900);

/// Why a policy is not in force.
#[derive(Debug)]
pub enum Refused {
    /// It is wrong: the codes, with what they say.
    Codes(BTreeSet<&'static str>, String),
    /// Anything else.
    Other(String),
}

impl From<PolicyErrors> for Refused {
    fn from(errors: PolicyErrors) -> Self {
        let codes = errors.iter().map(|error| error.code()).collect();
        let texts: Vec<String> = errors.iter().map(|error| format!("{} {error}", error.code())).collect();
        Self::Codes(codes, texts.join("; "))
    }
}

impl From<AddressError> for Refused {
    fn from(error: AddressError) -> Self {
        Self::Codes([error.code()].into(), format!("{} {error}", error.code()))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Codes(_, text) => write!(f, "the policy is refused: {text}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

#[test]
fn every_case_holds_in_the_interpreter_and_in_the_kernel() {
    common::in_patient_sandbox(PATIENCE, || {
        let internet = live::internet();
        run(|case| {
            let mut machine = live::Machine::new(&case.id, &internet);
            let failures = steps(case, &mut Live { machine: &mut machine });
            let probes = machine.probes;
            Half { failures: [failures, machine.down()].concat(), counts: format!(", {probes} connections") }
        });
    });
}

#[test]
fn every_case_holds_in_the_interpreter() {
    run(|_| Half { failures: Vec::new(), counts: ", not live".into() });
}

/// What one half of a case came to.
struct Half {
    failures: Vec<String>,
    counts: String,
}

/// Runs every case; one line each, and all failures at the end.
fn run(mut live: impl FnMut(&Case) -> Half) {
    let text = match std::env::var_os("NSCTL_CONFORMANCE") {
        Some(path) => std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        None => CASES.to_owned(),
    };
    let cases = case::read(&text).unwrap_or_else(|error| panic!("{error}"));
    let mut failures = Vec::new();
    for case in &cases {
        let begun = Instant::now();
        let interpreted = steps(case, &mut interpret::Machine::default());
        let lived = live(case);
        let [fine, lives] = [&interpreted, &lived.failures].map(|lines| if lines.is_empty() { "ok" } else { "FAILED" });
        let written = if case.problems.is_empty() { "" } else { ", NOT UNDERSTOOD" };
        let pairs = || case.steps.iter().flat_map(|step| step.pairs.iter().flatten());
        println!(
            "{:6} {:56} interpreter {fine:6} live {lives:6} {} steps, {} pairs, {} open{}{written}, {:.1} s",
            case.id,
            case.title,
            case.steps.len(),
            pairs().count(),
            pairs().filter(|pair| pair.open).count(),
            lived.counts,
            begun.elapsed().as_secs_f64(),
        );
        let mut add = |half: &str, lines: &[String]| {
            failures.extend(lines.iter().map(|line| format!("{} {half}: {line}", case.id)));
        };
        add("file", &case.problems);
        add("interpreter", &interpreted);
        add("live", &lived.failures);
    }
    assert!(failures.is_empty(), "{} failures in {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// A machine that policies are given to.
trait Machine {
    /// Puts a policy in force; lines are what is wrong after it.
    fn apply(&mut self, policy: &str, before: &[Pair], after: &[Pair]) -> Result<Vec<String>, Refused>;
    /// Gives it a policy that must be refused.
    fn apply_refused(&mut self, policy: &str) -> (Option<Refused>, Vec<String>);
    /// What differs from `pairs`.
    fn differences(&mut self, pairs: &[Pair]) -> Result<Vec<String>, Refused>;
}

/// Goes through the steps of a case on one machine; a line for everything that is not as it must be.
fn steps(case: &Case, machine: &mut dyn Machine) -> Vec<String> {
    let mut failures = Vec::new();
    let mut in_force: Vec<Pair> = Vec::new();
    for (number, step) in (1..).zip(&case.steps) {
        let lines = match one_step(step, &in_force, machine) {
            Ok(lines) => lines,
            Err(refused) => vec![refused.to_string()],
        };
        failures.extend(lines.into_iter().map(|line| format!("step {number}: {line}")));
        if let Some(pairs) = &step.pairs {
            in_force.clone_from(pairs);
        }
    }
    failures
}

fn one_step(step: &Step, in_force: &[Pair], machine: &mut dyn Machine) -> Result<Vec<String>, Refused> {
    let policy = translate::translate(&step.policy).map_err(Refused::Other)?;
    let pairs = step.pairs.as_deref().unwrap_or(in_force);
    let mut lines = match &step.refused {
        None => machine.apply(&policy, in_force, pairs)?,
        Some(code) => {
            let (refused, mut lines) = machine.apply_refused(&policy);
            lines.extend(match refused {
                Some(Refused::Codes(codes, _)) if codes.contains(code.as_str()) => None,
                Some(other) => Some(format!("must be refused with {code}: {other}")),
                None => Some(format!("must be refused with {code}, but is accepted")),
            });
            lines
        }
    };
    lines.extend(machine.differences(pairs)?);
    Ok(lines)
}

impl Machine for interpret::Machine {
    fn apply(&mut self, policy: &str, _: &[Pair], _: &[Pair]) -> Result<Vec<String>, Refused> {
        interpret::Machine::apply(self, policy)
    }

    fn apply_refused(&mut self, policy: &str) -> (Option<Refused>, Vec<String>) {
        (interpret::Machine::apply(self, policy).err(), Vec::new())
    }

    fn differences(&mut self, pairs: &[Pair]) -> Result<Vec<String>, Refused> {
        Ok(interpret::Machine::differences(self, pairs))
    }
}

struct Live<'m, 'i> {
    machine: &'m mut live::Machine<'i>,
}

impl Machine for Live<'_, '_> {
    fn apply(&mut self, policy: &str, before: &[Pair], after: &[Pair]) -> Result<Vec<String>, Refused> {
        let mut held = self.machine.hold(before, after)?;
        let mut lines = self.machine.apply(policy)?;
        lines.extend(live::judge(&mut held));
        Ok(lines)
    }

    fn apply_refused(&mut self, policy: &str) -> (Option<Refused>, Vec<String>) {
        self.machine.apply_refused(policy)
    }

    fn differences(&mut self, pairs: &[Pair]) -> Result<Vec<String>, Refused> {
        self.machine.differences(pairs)
    }
}
