//! A terminal in which the cases of one row are run, and its golden file.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::rows;

/// Where the golden files are.
pub const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bad");

/// The directories of all rows, ordered.
pub fn directories() -> Vec<(u16, PathBuf)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(HERE).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        if let Some(row) = name.split_once('-').and_then(|(number, _)| number.parse().ok()) {
            all.push((row, entry.path()));
        }
    }
    all.sort();
    let rows: BTreeSet<u16> = all.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows.len(), all.len(), "a row has two directories");
    all
}

/// The directory of a row, if there is one.
pub fn directory_of(row: u16) -> Option<PathBuf> {
    directories().into_iter().find(|(number, _)| *number == row).map(|(_, directory)| directory)
}

/// An empty directory for what a row is built of, writable by nobody else.
pub fn scratch(row: u16) -> PathBuf {
    use std::os::unix::fs::DirBuilderExt as _;
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bad-{row:03}"));
    fs::remove_dir_all(&root).ok();
    fs::DirBuilder::new().mode(0o700).create(&root).unwrap();
    root
}

/// What was shown for one row.
pub struct Shell {
    row: u16,
    directory: PathBuf,
    shown: String,
    hidden: Option<(String, String)>,
    uncounted: Option<&'static str>,
}

impl Shell {
    /// In `directory`.
    pub fn new(row: u16, directory: &Path) -> Self {
        Self { row, directory: directory.to_owned(), shown: String::new(), hidden: None, uncounted: None }
    }

    /// The command, to be run by whoever owns this repository, be it root or not.
    pub fn nsctl(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nsctl"));
        let owner = fs::metadata(HERE).unwrap().uid();
        command.args(arguments.split_whitespace()).current_dir(&self.directory).stdin(Stdio::null());
        command.env("LC_ALL", "C").env("SUDO_UID", owner.to_string());
        // Who it is is told in records.
        command.env_remove("SUDO_USER");
        command
    }

    /// Shows `other` for what differs from run to run.
    pub fn hide(&mut self, text: &str, other: &str) {
        self.hidden = Some((text.to_owned(), other.to_owned()));
    }

    /// Shows `[N]` for the number after these words.
    pub fn hide_number_after(&mut self, words: &'static str) {
        self.uncounted = Some(words);
    }

    /// Runs a case for a person and for a program; both must say what the row says, or nothing for a control.
    pub fn case(&mut self, name: &str, arguments: &str) {
        let person = self.nsctl(arguments).output().unwrap();
        let program = self.nsctl(&format!("{arguments} --json")).output().unwrap();
        self.judge(name, arguments, &person, &program);
    }

    fn judge(&mut self, name: &str, arguments: &str, person: &Output, program: &Output) {
        self.show(arguments, person, program);
        let codes = codes(program);
        let at = format!("row {} ({}), {name}: {codes:?}", self.row, rows::title(self.row));
        assert_eq!(person.status.code(), program.status.code(), "{at}");
        let refused = codes.iter().any(|code| code.starts_with('E')) && !is_answer(program);
        match person.status.code() {
            Some(0) => assert!(!refused, "{at}"),
            Some(1 | 2) => assert!(refused, "{at}: {person:?}"),
            _ => panic!("{at}: {person:?}"),
        }
        if name.starts_with("ok-") {
            assert!(person.status.success() && codes.is_empty(), "{at}: the control fails");
        } else {
            let expected = rows::codes(self.row);
            assert!(!codes.is_empty(), "{at}: nothing is said");
            assert!(codes.iter().all(|code| expected.contains(&code.as_str())), "{at}: expected {expected:?}");
        }
    }

    /// Like [`Shell::case`] for what is met by chance: each of the two is run until it says what the row says.
    pub fn case_at_last(&mut self, name: &str, arguments: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let met = |arguments: &str| loop {
            let output = self.nsctl(arguments).output().unwrap();
            let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
            if rows::codes(self.row).iter().any(|code| said.contains(code)) {
                return output;
            }
            assert!(Instant::now() < deadline, "row {}: it is never met: {said}", self.row);
        };
        let (person, program) = (met(arguments), met(&format!("{arguments} --json")));
        self.judge(name, arguments, &person, &program);
    }

    fn show(&mut self, arguments: &str, person: &Output, program: &Output) {
        self.shown.push_str(&format!("$ nsctl {arguments}\n"));
        if let Some(code) = person.status.code().filter(|code| *code != 0) {
            self.shown.push_str(&format!("? {code}\n"));
        }
        // What is proved of a policy is no matter of what is bad in it, and changes with the rules.
        let answer = String::from_utf8_lossy(&person.stdout).into_owned();
        let answer = answer.lines().filter(|line| !line.starts_with("proved: "));
        self.shown.extend(answer.map(|line| format!("{line}\n")));
        let said = String::from_utf8_lossy(&person.stderr).into_owned();
        self.shown.extend(said.lines().map(|line| format!("2> {line}").trim_end().to_owned() + "\n"));
        self.shown.extend(places(program).iter().map(|place| format!("json: {place}\n")));
        self.shown.push('\n');
    }

    /// Compares with the golden file of the row.
    pub fn compare(self) {
        let root = fs::canonicalize(&self.directory).unwrap();
        let (hidden, other) = self.hidden.unwrap_or_default();
        let shown = if hidden.is_empty() { self.shown } else { self.shown.replace(&hidden, &other) };
        let shown = self.uncounted.map_or(shown.clone(), |words| without_number(&shown, words));
        let shown = shown.replace(root.to_str().unwrap(), "[HERE]");
        let golden = directory_of(self.row).expect("a directory for its golden file").join("golden.txt");
        if std::env::var_os("NSCTL_UPDATE").is_some() {
            fs::write(&golden, &shown).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        for (number, (shown, expected)) in shown.lines().zip(expected.lines()).enumerate() {
            assert_eq!(shown, expected, "line {} of {}", number + 1, golden.display());
        }
        assert_eq!(shown.lines().count(), expected.lines().count(), "{}:\n{shown}", golden.display());
    }
}

fn without_number(shown: &str, words: &str) -> String {
    let (first, rest) = shown.split_once(words).expect("a number is shown");
    let rest =
        rest.split(words).map(|rest| format!("{words}[N]{}", rest.trim_start_matches(|c: char| c.is_ascii_digit())));
    first.to_owned() + &rest.collect::<String>()
}

fn answer(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("not JSON: {e}: {output:?}"))
}

fn is_answer(output: &Output) -> bool {
    answer(output).get("errors").is_none()
}

fn findings(output: &Output) -> Vec<Value> {
    let answer = answer(output);
    let found = answer.get("errors").or(answer.get("warnings")).and_then(Value::as_array);
    let mut found = found.cloned().unwrap_or_default();
    // A note has a code where there is something to mend.
    for note in answer.get("notes").and_then(Value::as_array).into_iter().flatten() {
        let code = note.as_str().and_then(|note| note.split_once(": ")).filter(|(code, _)| code.len() == 5);
        found.extend(code.map(|(code, _)| serde_json::json!({ "code": code })));
    }
    found
}

fn codes(output: &Output) -> BTreeSet<String> {
    findings(output).iter().map(|found| found["code"].as_str().expect("a code").to_owned()).collect()
}

/// `E0201 policy.toml:4:9`, as a program gets it.
fn places(output: &Output) -> Vec<String> {
    let place = |found: &Value| {
        let mut text = found["code"].as_str().expect("a code").to_owned();
        if let Some(file) = found["file"].as_str() {
            text.push_str(&format!(" {file}"));
        }
        if let (Some(line), Some(column)) = (found["line"].as_u64(), found["column"].as_u64()) {
            text.push_str(&format!(":{line}:{column}"));
        }
        text
    };
    findings(output).iter().map(place).collect()
}
