//! Bad input, and what is said about it: every row of [`rows::ROWS`] by the real command.
//!
//! A directory `NNN-slug` belongs to the row of that number. What lies in it besides `golden.txt` are cases: a file is a
//! policy, a directory is a policy of several files; one whose name begins with `ok-` is a control and must pass. Rows
//! that need more than files are built in `built` (anybody can) or in `live` (in a sandbox, with privilege). `golden.txt`
//! is what a terminal shows, and the places that `--json` gives.
//!
//! `NSCTL_UPDATE=1` writes the golden files anew, for the eye to compare.

#![allow(clippy::disallowed_methods, reason = "it runs the command and looks at what it prints")]

mod built;
#[path = "../common/mod.rs"]
mod common;
mod exhaust;
mod live;
mod rows;
mod shell;

use std::collections::BTreeSet;
use std::fs;

use rows::{LATER, ROWS};
use shell::{Shell, directories, directory_of};

#[test]
fn a_policy_that_is_wrong_is_told_as_its_row_says() {
    let mut seen = 0;
    for (row, directory) in directories() {
        let mut cases: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        cases.retain(|case| case != "golden.txt");
        cases.sort();
        if cases.is_empty() {
            continue;
        }
        let mut shell = Shell::new(row, &directory);
        for case in &cases {
            let case = case.to_str().unwrap();
            shell.case(case, &format!("check -f {case} --state none"));
        }
        seen += cases.len();
        shell.compare();
    }
    assert!(seen > 120, "{seen} cases");
}

#[test]
fn a_file_that_is_no_policy_is_told_as_its_row_says() {
    for (row, build) in built::ROWS {
        let root = shell::scratch(*row);
        let mut shell = Shell::new(*row, &root);
        build(&mut shell, &root);
        shell.compare();
        fs::remove_dir_all(root).unwrap();
    }
}

/// No row is forgotten, none is there twice, and a golden file that nothing is compared with is found.
#[test]
fn every_row_has_its_golden_file_or_a_reason() {
    let later: BTreeSet<u16> = LATER.iter().map(|(row, _)| *row).collect();
    for (row, reason) in LATER {
        println!("not yet: row {row}, {}: {reason}", rows::title(*row));
    }
    let numbers: Vec<u16> = ROWS.iter().map(|row| row.number).collect();
    assert_eq!(numbers, (1..=105).collect::<Vec<_>>());
    let code = built::ROWS.iter().map(|(row, _)| *row).chain(live::ROWS.iter().copied());
    let made: BTreeSet<u16> = code.collect();
    for row in numbers {
        let there = directory_of(row);
        let Some(directory) = there else {
            assert!(later.contains(&row), "row {row} has no directory, and no reason is given");
            continue;
        };
        assert!(!later.contains(&row), "row {row} is there now: take it out of the list");
        let golden = fs::read_to_string(directory.join("golden.txt"));
        let golden = golden.unwrap_or_else(|e| panic!("row {row} has no golden file: {e}"));
        assert!(golden.contains("$ nsctl "), "row {row}: its golden file shows nothing");
        let cases = fs::read_dir(&directory).unwrap().count() - 1;
        assert!(cases > 0 || made.contains(&row), "row {row}: nothing makes what its golden file shows");
    }
}
