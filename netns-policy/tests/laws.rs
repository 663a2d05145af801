//! The laws of merging. A policy is a set of files: it has no order, no nesting, and nothing in it counts twice.
//!
//! Not only good policies: what is said about bad ones is the same as well, but for which of two places is named first.

mod files;

use std::collections::BTreeSet;

use files::{Outcome, any_files, parse, source, sources};
use netns_policy::PolicyErrors;
use netns_policy::graph::AllowGraph;
use proptest::prelude::*;
use serde_json::Value;

/// Every finding in a form that says nothing of files: code and message.
fn findings(outcome: &Outcome) -> Vec<String> {
    let line = |finding: &netns_policy::diagnostic::Finding| format!("{} {finding}", finding.code());
    let mut findings: Vec<String> = match outcome {
        Ok(checked) => checked.warnings.iter().map(line).collect(),
        Err(errors) => errors.iter().map(line).collect(),
    };
    findings.sort();
    findings
}

/// Every ask and what became of it.
fn asks(outcome: &Outcome) -> Vec<String> {
    let asks = outcome.iter().flat_map(|checked| &checked.asks);
    asks.map(|ask| format!("{ask} {:?}", ask.answer)).collect()
}

fn same(a: &Outcome, b: &Outcome) -> Result<(), TestCaseError> {
    same_but(a, b, findings)
}

/// The same graphs, the same asks, and the same of what is told.
fn same_but<T: std::fmt::Debug + PartialEq>(
    a: &Outcome,
    b: &Outcome,
    told: fn(&Outcome) -> T,
) -> Result<(), TestCaseError> {
    match (a, b) {
        (Ok(one), Ok(other)) => {
            prop_assert!(one.graph.same_as(&other.graph), "{:#?}\n{:#?}", one.graph, other.graph);
            prop_assert_eq!(one.graph.hash(), other.graph.hash());
            prop_assert_eq!(asks(a), asks(b));
            prop_assert_eq!(told(a), told(b));
        }
        // More than are reported: which ones they are depends on where they stand.
        (Err(one), Err(other)) if one.0.len() == PolicyErrors::MOST => prop_assert_eq!(other.0.len(), one.0.len()),
        (Err(_), Err(_)) => prop_assert_eq!(told(a), told(b)),
        _ => prop_assert!(false, "one holds, the other does not: {:?} {:?}", findings(a), findings(b)),
    }
    Ok(())
}

/// Findings without how often: an empty list in two files is doubted twice, and joined it is one.
fn once_each(outcome: &Outcome) -> BTreeSet<String> {
    findings(outcome).into_iter().collect()
}

/// Two files as one, where one file can say both: tables are united, lists are joined.
fn join(a: &Value, b: &Value) -> Option<Value> {
    if a.get("fragment").is_some() || b.get("fragment").is_some() {
        return None;
    }
    for table in ["service", "peer"] {
        let names = |file: &Value| -> BTreeSet<String> {
            file[table].as_object().into_iter().flat_map(|table| table.keys().cloned()).collect()
        };
        if !names(a).is_disjoint(&names(b)) {
            return None;
        }
    }
    let accepts = |file: &Value| file["host"].get("accepts").is_some();
    if accepts(a) && accepts(b) {
        return None;
    }
    join_values(a, b)
}

fn join_values(a: &Value, b: &Value) -> Option<Value> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let mut joined = a.clone();
            for (key, value) in b {
                let value = match a.get(key) {
                    Some(before) => join_values(before, value)?,
                    None => value.clone(),
                };
                joined.insert(key.clone(), value);
            }
            Some(Value::Object(joined))
        }
        (Value::Array(a), Value::Array(b)) => Some(a.iter().chain(b).cloned().collect()),
        (a, b) => (a == b).then(|| a.clone()),
    }
}

/// The files in groups, `at` which a new one begins; each group is one file as far as one file can say it.
fn grouped(files: &[Value], at: &[bool]) -> Vec<Value> {
    let mut groups: Vec<Value> = Vec::new();
    for (file, apart) in files.iter().zip(at) {
        match groups.last_mut().filter(|_| !apart).and_then(|last| join(last, file).map(|joined| (last, joined))) {
            Some((last, joined)) => *last = joined,
            None => groups.push(file.clone()),
        }
    }
    groups
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// `a + b = b + a`: neither the order in which files are given nor the order of their names says anything.
    #[test]
    fn merging_is_commutative(files in any_files(), order in Just((0..40).collect::<Vec<usize>>()).prop_shuffle()) {
        let mut shuffled: Vec<(usize, &Value)> = order.into_iter().zip(&files).collect();
        let forward = parse(&files);
        let renamed: Vec<_> = shuffled.iter().map(|(name, file)| source(&format!("{name:02}.json"), file)).collect();
        same(&forward, &AllowGraph::parse(&renamed))?;
        // Under the same names, however they come in, not even a place differs.
        shuffled.sort_by_key(|(order, _)| *order);
        let mut given = sources(&files);
        given.sort_by_key(|source| shuffled.iter().position(|(_, file)| source.text == file.to_string().into_bytes()));
        match (&forward, &AllowGraph::parse(&given)) {
            (Ok(a), Ok(b)) => prop_assert_eq!(&a.graph, &b.graph),
            (Err(a), Err(b)) => prop_assert_eq!(
                a.iter().map(|e| format!("{e:#}")).collect::<Vec<_>>(),
                b.iter().map(|e| format!("{e:#}")).collect::<Vec<_>>()
            ),
            _ => prop_assert!(false, "one holds, the other does not"),
        }
    }

    /// `(a + b) + c = a + (b + c)`: how the words are parted among files says nothing.
    #[test]
    fn merging_is_associative(
        files in any_files().prop_shuffle(),
        one in prop::collection::vec(any::<bool>(), 40),
        other in prop::collection::vec(any::<bool>(), 40),
    ) {
        let apart = parse(&files);
        let (one, other) = (grouped(&files, &one), grouped(&files, &other));
        same_but(&apart, &parse(&one), once_each)?;
        same_but(&parse(&one), &parse(&other), once_each)?;
    }

    /// `a + a = a`: a file given twice is given once.
    #[test]
    fn merging_is_idempotent(files in any_files(), again in prop::collection::vec(any::<prop::sample::Index>(), 1..5)) {
        let once = sources(&files);
        let twice: Vec<_> = once.iter().chain(again.iter().map(|at| at.get(&once))).cloned().collect();
        match (&AllowGraph::parse(&once), &AllowGraph::parse(&twice)) {
            (Ok(a), Ok(b)) => {
                prop_assert_eq!(&a.graph, &b.graph);
                prop_assert_eq!(a.warnings.iter().map(|w| format!("{w:#}")).collect::<Vec<_>>(), b.warnings.iter().map(|w| format!("{w:#}")).collect::<Vec<_>>());
            }
            (Err(a), Err(b)) => prop_assert_eq!(
                a.iter().map(|e| format!("{e:#}")).collect::<Vec<_>>(),
                b.iter().map(|e| format!("{e:#}")).collect::<Vec<_>>()
            ),
            _ => prop_assert!(false, "one holds, the other does not"),
        }
    }

    /// The same words under another name: what defines something does it twice, which is refused. All other words
    /// change nothing; that an edge is written again is told.
    #[test]
    fn saying_the_same_again_changes_nothing(files in any_files(), again in prop::collection::vec(any::<prop::sample::Index>(), 1..4)) {
        let defines = |file: &&Value| file.get("service").is_some() || file.get("peer").is_some() || file["host"].get("accepts").is_some();
        let more: Vec<Value> = again.iter().map(|at| at.get(&files)).filter(|file| !defines(file)).cloned().collect();
        let all: Vec<Value> = files.iter().chain(&more).cloned().collect();
        let (once, twice) = (parse(&files), parse(&all));
        let told = |outcome: &Outcome| -> BTreeSet<String> {
            findings(outcome).into_iter().filter(|finding| !finding.starts_with("W0222")).collect()
        };
        match (&once, &twice) {
            (Ok(a), Ok(b)) => prop_assert!(a.graph.same_as(&b.graph)),
            (Err(a), Err(b)) => prop_assume!(a.0.len() < PolicyErrors::MOST && b.0.len() < PolicyErrors::MOST),
            _ => prop_assert!(false, "one holds, the other does not: {:?} {:?}", findings(&once), findings(&twice)),
        }
        prop_assert_eq!(told(&once), told(&twice));
        let defined: Vec<Value> = files.iter().chain(files.iter().find(defines)).cloned().collect();
        let refused = parse(&defined);
        prop_assert!(refused.as_ref().is_err_and(|e| e.0.len() == PolicyErrors::MOST || e.iter().any(|e| e.code() == "E0301")));
    }
}

#[test]
fn the_drawn_files_hold_and_fail_in_many_ways() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut codes = BTreeSet::new();
    let (mut held, mut granted) = (0, 0);
    for _ in 0..300 {
        let outcome = parse(&any_files().new_tree(&mut runner).unwrap().current());
        held += usize::from(outcome.is_ok());
        granted += asks(&outcome).iter().filter(|ask| ask.ends_with("Granted")).count();
        codes.extend(findings(&outcome).into_iter().map(|finding| finding[..5].to_owned()));
    }
    assert!((60..240).contains(&held), "{held} of 300 hold");
    assert!(granted > 10, "{granted} asks are granted");
    for code in
        ["E0201", "E0203", "E0204", "E0301", "E0306", "E0307", "E0401", "E0402", "E0605", "E0809", "W0222", "W0308"]
    {
        assert!(codes.contains(code), "no {code} in {codes:?}");
    }
    let sound = files::files(files::Kind::Sound).new_tree(&mut runner).unwrap().current();
    assert!(parse(&sound).is_ok(), "{:?}", findings(&parse(&sound)));
}
