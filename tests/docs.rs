//! What the documents say is so.

#![allow(clippy::disallowed_methods, reason = "it runs the commands that the README shows")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nsctl::netns_policy::Source;
use nsctl::netns_policy::graph::AllowGraph;
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every document: those that are found by their place, and whatever lies in docs/.
fn documents() -> Vec<String> {
    let mut all =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "netns-policy/README.md"].map(str::to_owned).to_vec();
    let names = fs::read_dir(Path::new(ROOT).join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    all.extend(names.map(|name| format!("docs/{}", name.to_str().unwrap())).filter(|name| name.ends_with(".md")));
    assert!(["cli", "performance"].iter().all(|name| all.contains(&format!("docs/{name}.md"))), "{all:?}");
    all
}

/// The blocks of a document in that language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// Every Rust source in these rooms.
fn sources(rooms: &[&str]) -> String {
    fn walk(directory: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => walk(&entry, out),
                false if entry.extension().is_some_and(|extension| extension == "rs") => out.push(entry),
                false => {}
            }
        }
    }
    let mut files = Vec::new();
    for room in rooms {
        walk(&Path::new(ROOT).join(room), &mut files);
    }
    files.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

#[test]
fn the_readme_shows_what_its_commands_print_for_its_policy() {
    let readme = read("README.md");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme");
    fs::create_dir_all(&directory).unwrap();
    let policy = blocks(&readme, "toml").into_iter().next().expect("there is a policy");
    fs::write(directory.join("policy.toml"), policy).unwrap();
    let transcripts = blocks(&readme, "console");
    assert!(transcripts.len() >= 2, "{transcripts:?}");
    for transcript in transcripts {
        let (command, expected) = transcript.split_once('\n').unwrap();
        let arguments = command.strip_prefix("$ nsctl ").expect("it is a command of ours").split(' ');
        let mut nsctl = Command::new(env!("CARGO_BIN_EXE_nsctl"));
        // The state of the machine that runs the test is not the reader's.
        nsctl.args(arguments).args(["--state", "none"]).current_dir(&directory);
        let output = nsctl.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{command}");
    }
}

#[test]
fn the_tests_that_the_readme_names_exist() {
    let readme = read("README.md");
    let sources = sources(&["src", "tests", "netns-policy/src", "netns-policy/tests"]);
    let (_, table) = readme.split_once("## What is guaranteed").unwrap();
    let (table, _) = table.split_once("## What is not").unwrap();
    let names = table.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() > 2);
    let names: BTreeSet<&str> = names.collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        assert!(sources.contains(&format!("fn {name}(")), "no test {name}");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in documents() {
        let text = read(&document);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.starts_with("http")) {
            let file = target.split('#').next().unwrap_or_default();
            let path = Path::new(ROOT).join(&document).with_file_name("").join(file);
            assert!(path.exists(), "{document} links to {target}");
        }
    }
}

/// `E0201`, `W0215`.
fn codes(text: &str) -> BTreeSet<&str> {
    let at = text.match_indices(['E', 'W']).filter_map(|(at, _)| text.get(at..at + 5));
    at.filter(|code| code[1..].bytes().all(|b| b.is_ascii_digit()) && code.as_bytes()[1] == b'0').collect()
}

#[test]
fn every_code_is_documented_and_every_documented_code_exists() {
    // Tests name codes too, and do not say that the product has them.
    let (cli, sources) = (read("docs/cli.md"), sources(&["src", "netns-policy/src"]));
    let quoted = sources.split('"').filter(|text| text.len() == 5);
    let defined: BTreeSet<&str> = quoted.flat_map(codes).collect();
    assert!(defined.len() > 80, "{defined:?}");
    let (_, table) = cli.split_once("## Codes").unwrap();
    assert_eq!(codes(table), defined);
}

/// `MissingWire` is `missing-wire`.
fn kebab(name: &str) -> String {
    let parts = name.chars().map(|c| if c.is_uppercase() { format!("-{}", c.to_lowercase()) } else { c.to_string() });
    parts.collect::<String>().trim_start_matches('-').to_owned()
}

#[test]
fn every_kind_of_drift_and_every_check_of_the_doctor_is_documented() {
    let (cli, drift) = (read("docs/cli.md"), read("src/drift.rs"));
    let (_, kinds) = drift.split_once("pub enum Drift {").unwrap();
    let (kinds, _) = kinds.split_once("\n}\n").unwrap();
    let lines = kinds.lines().filter_map(|line| line.strip_prefix("    ")?.split(' ').next());
    let kinds: Vec<String> = lines.filter(|name| name.starts_with(char::is_uppercase)).map(kebab).collect();
    assert!(kinds.len() > 30, "{kinds:?}");
    let source = sources(&["src/doctor", "src/bin/nsctl/cmd"]);
    let made = ["ok(", "warn(", "fail("].into_iter().flat_map(|made| source.split(made).skip(1));
    let checks: BTreeSet<&str> =
        made.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next()).collect();
    assert!(checks.len() > 15, "{checks:?}");
    for word in kinds.iter().map(String::as_str).chain(checks) {
        assert!(cli.contains(&format!("`{word}`")), "{word} is not in docs/cli.md");
    }
}

#[test]
fn documents_are_plain_ascii() {
    for document in documents() {
        let text = read(&document);
        let line = text.lines().position(|line| !line.is_ascii());
        assert_eq!(line.map(|line| line + 1), None, "{document}");
    }
}

/// The examples of docs/policy.md: a title that says where it stands, what it is refused with if so, and the text.
fn examples() -> Vec<(String, Option<String>, Source)> {
    let example = |(at, text): (usize, String)| {
        let code = text.strip_prefix("# refused: ").and_then(|rest| rest.get(..5)).map(str::to_owned);
        let schema = if text.contains("schema = 1") { "" } else { "schema = 1\n" };
        let name = format!("example-{:02}.toml", at + 1);
        (name.clone(), code, Source::toml(name, format!("{schema}{text}")))
    };
    blocks(&read("docs/policy.md"), "toml").into_iter().enumerate().map(example).collect()
}

#[test]
fn the_examples_of_the_language_are_one_policy_and_what_is_refused_is() {
    let (refused, held): (Vec<_>, Vec<_>) = examples().into_iter().partition(|(_, code, _)| code.is_some());
    let policy: Vec<Source> = held.into_iter().map(|(_, _, source)| source).collect();
    let checked = AllowGraph::parse(&policy).unwrap_or_else(|errors| panic!("{:#}", errors.0[0]));
    assert!(policy.len() > 10 && refused.len() > 4 && checked.asks.len() > 3);
    for (name, code, source) in refused {
        let errors = AllowGraph::parse(&[&policy[..], &[source]].concat()).expect_err(&name);
        let codes: Vec<&str> = errors.iter().map(|error| error.code()).collect();
        assert!(codes.iter().all(|found| Some(*found) == code.as_deref()), "{name}: {codes:?}");
    }
}

/// Every name of a property, at whatever depth.
fn properties(schema: &Value, out: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            let known = map.get("properties").and_then(Value::as_object);
            out.extend(known.into_iter().flat_map(|properties| properties.keys().cloned()));
            map.values().for_each(|value| properties(value, out));
        }
        Value::Array(items) => items.iter().for_each(|item| properties(item, out)),
        _ => {}
    }
}

#[test]
fn every_key_of_the_language_is_in_its_reference() {
    let schema: Value = serde_json::from_str(nsctl::netns_policy::schema::POLICY).unwrap();
    let mut keys = BTreeSet::new();
    properties(&schema, &mut keys);
    assert!(keys.len() > 50, "{keys:?}");
    let text = read("docs/policy.md");
    let words: BTreeSet<&str> = text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))).collect();
    let missing: Vec<&String> = keys.iter().filter(|key| !words.contains(key.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
