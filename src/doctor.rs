//! A look at everything that could keep a network from doing what its policy says: the machine, the policy, the state, the
//! rules of others, and the services themselves.
//!
//! # Invariants
//!
//! - Nothing is changed. The one thing that is sent is the datagram with which `apply` too tries the way out.
//! - A check says what was seen. What cannot be seen is said to be unseen, and is never called well.
//! - Without a policy the machine is looked at alone.

mod files;
mod links;
mod listeners;
mod machine;
mod occupants;
mod rules;
mod view;

use std::error::Error as StdError;

use serde::Serialize;

use crate::orchestrator::{Error, Orchestrator};
use crate::report::chain;
use view::View;

/// How a check came out.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it ought to be.
    Ok,
    /// It works, and somebody ought to look at it.
    Warn,
    /// It does not work, or does not hold.
    Fail,
}

impl Outcome {
    /// `ok`, `warn`, `fail`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Check {
    /// Which check it is: a stable word.
    pub check: &'static str,
    /// How it came out.
    pub outcome: Outcome,
    /// The service, `uplink`, `fabric` or `host` that it is about, if it is about one.
    pub place: Option<String>,
    /// What was seen.
    pub seen: String,
    /// What to do, when something is to be done.
    pub next: Option<String>,
}

impl Check {
    fn ok(check: &'static str, seen: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Ok, place: None, seen: seen.into(), next: None }
    }

    fn warn(check: &'static str, seen: impl Into<String>, next: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Warn, place: None, seen: seen.into(), next: Some(next.into()) }
    }

    fn fail(check: &'static str, seen: impl Into<String>, next: impl Into<String>) -> Self {
        Self { outcome: Outcome::Fail, ..Self::warn(check, seen, next) }
    }

    fn at(self, place: impl Into<String>) -> Self {
        Self { place: Some(place.into()), ..self }
    }
}

/// Those that found something, else one that says that all is well.
fn or_ok(found: Vec<Check>, check: &'static str, seen: impl Into<String>) -> Vec<Check> {
    if found.is_empty() { vec![Check::ok(check, seen)] } else { found }
}

impl Orchestrator {
    /// Looks at all of it. Needs CAP_SYS_ADMIN and CAP_NET_ADMIN to see everything, and says what it could not see.
    pub fn doctor(&self) -> Vec<Check> {
        let mut checks = machine::checks();
        let powerless = checks.iter().any(|check| check.check == "capabilities" && check.outcome == Outcome::Fail);
        let crippled = checks.iter().any(|check| check.check == "kernel" && check.outcome == Outcome::Fail);
        let checked = match self.check() {
            Ok(checked) => checked,
            Err(Error::Read(errors)) if errors.is_missing() && self.options().policy.is_empty() => {
                checks.push(Check::ok("policy", "there is none yet: only the machine was looked at"));
                return checks;
            }
            Err(error) => {
                checks.push(Check::fail("policy", told(&error), "`nsctl check` shows every mistake with its place"));
                return checks;
            }
        };
        checks.extend(files::policy(&checked));
        checks.extend(files::state(&self.options().state, &checked.graph.network().name));
        if powerless || crippled {
            return checks;
        }
        match View::new(self) {
            Ok(view) => checks.extend(view.checks()),
            Err(error) => checks.push(Check::fail("network", told(&error), "`nsctl plan` says more")),
        }
        checks
    }
}

/// An error with its causes, on one line whatever they hold.
fn told(error: &dyn StdError) -> String {
    chain(error).replace('\n', " ")
}

/// `1 service`, `2 services`.
fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
