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

/// More of the same form: what the language has besides.
const MORE_CASES: &str = include_str!("more.json");

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
        let around = live::Surroundings::make();
        run(|case| {
            let mut machine = live::Machine::new(&case.id, &around);
            let failures = steps(case, &mut Live { machine: &mut machine });
            let probes = machine.probes;
            let failures = [failures, machine.down()].concat();
            Some(Half { failures, probes })
        });
    });
}

#[test]
fn nsctl_verify_agrees_where_services_reach_the_host_the_lan_and_the_internet() {
    common::in_sandbox(|| {
        let around = live::Surroundings::make();
        let cases = case::read(CASES).expect("they come with the source");
        for case in cases.iter().filter(|case| ["C078", "C080", "C081"].contains(&case.id.as_str())) {
            let mut machine = live::Machine::new(&case.id, &around);
            let policy = translate::translate(&case.steps[0].policy).expect("it can be said");
            machine.apply(&policy).unwrap_or_else(|refused| panic!("{}: {refused}", case.id));
            assert_eq!(machine.verified(), Vec::<String>::new(), "{}", case.id);
            assert_eq!(machine.down(), Vec::<String>::new(), "{}", case.id);
        }
    });
}

#[test]
fn every_case_holds_in_the_interpreter() {
    run(|_| None);
}

/// What the live half of a case came to.
struct Half {
    failures: Vec<String>,
    probes: usize,
}

/// The files of cases: the one that is named, else those beside this file.
fn files() -> Vec<String> {
    match std::env::var_os("NSCTL_CONFORMANCE") {
        Some(path) => {
            let text = std::fs::read_to_string(&path);
            vec![text.unwrap_or_else(|error| panic!("{}: {error}", path.display()))]
        }
        None => [CASES, MORE_CASES].map(str::to_owned).to_vec(),
    }
}

/// Runs every case; one line each, and all failures at the end.
fn run(mut live: impl FnMut(&Case) -> Option<Half>) {
    let read = |text: String| case::read(&text).unwrap_or_else(|error| panic!("{error}"));
    let cases: Vec<Case> = files().into_iter().flat_map(read).collect();
    let mut failures = Vec::new();
    for case in &cases {
        let begun = Instant::now();
        let interpreted = steps(case, &mut interpret::Machine::default());
        let lived = live(case);
        println!("{}, {:.1} s", result(case, &interpreted, lived.as_ref()), begun.elapsed().as_secs_f64());
        let mut add = |half: &str, lines: &[String]| {
            failures.extend(lines.iter().map(|line| format!("{} {half}: {line}", case.id)));
        };
        add("file", &case.problems);
        add("interpreter", &interpreted);
        add("live", lived.as_ref().map_or(&[], |half| &half.failures));
    }
    assert!(failures.is_empty(), "{} failures in {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

fn result(case: &Case, interpreted: &[String], lived: Option<&Half>) -> String {
    let word = |lines: &[String]| if lines.is_empty() { "ok" } else { "FAILED" };
    let file = if case.problems.is_empty() { "" } else { "  NOT UNDERSTOOD" };
    let pairs = || case.steps.iter().flat_map(|step| step.pairs.iter().flatten());
    let (steps, asked, open) = (case.steps.len(), pairs().count(), pairs().filter(|pair| pair.open).count());
    let lived = match lived {
        Some(half) => format!("live {:6}  {} connections", word(&half.failures), half.probes),
        None => "not live".into(),
    };
    let Case { id, title, .. } = case;
    format!(
        "{id:6} {title:56}  interpreter {:6}  {lived}, {steps} steps, {asked} pairs, {open} open{file}",
        word(interpreted)
    )
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

#[test]
fn what_is_not_understood_fails_its_case() {
    let good: serde_json::Value = serde_json::from_str(CASES).expect("the file is JSON");
    let objects = ["", "/steps/0", "/steps/0/policy", "/steps/0/policy/services/a", "/steps/0/policy/allow/0"];
    for path in objects.into_iter().chain(["/steps/0/universe", "/steps/0/expect"]) {
        let mut file = good.clone();
        let cases = file["cases"].as_array_mut().expect("there are cases");
        let case = cases.iter_mut().find(|case| case["id"] == "C065").expect("it is one of them");
        case.pointer_mut(path).expect("it is there")["surprise"] = true.into();
        let cases = case::read(&file.to_string()).expect("it is a file of cases");
        let problems: Vec<&String> = cases.iter().flat_map(|case| &case.problems).collect();
        assert!(problems.len() == 1 && problems[0].contains("`surprise`"), "{path}: {problems:?}");
    }
}

#[test]
fn an_answer_that_nobody_asks_for_and_a_wrong_count_fail_their_case() {
    let good: serde_json::Value = serde_json::from_str(CASES).expect("the file is JSON");
    let changes = [("open_count", serde_json::json!(4)), ("open", serde_json::json!({"a": {"tcp/82": ["b"]}}))];
    for (key, value) in changes {
        let mut file = good.clone();
        let cases = file["cases"].as_array_mut().expect("there are cases");
        let case = cases.iter_mut().find(|case| case["id"] == "C065").expect("it is one of them");
        case["steps"][0]["expect"][key] = value;
        let cases = case::read(&file.to_string()).expect("it is a file of cases");
        assert!(cases.iter().any(|case| case.id == "C065" && !case.problems.is_empty()), "{key}");
    }
}
