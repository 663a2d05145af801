//! What editors, shells and man(1) are given, held against those who read it.

#![allow(clippy::disallowed_methods, reason = "it runs the command and its readers")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use nsctl::netns_policy::schema::POLICY;

const SHELLS: [&str; 3] = ["bash", "fish", "zsh"];

fn nsctl(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_nsctl")).args(arguments).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that the help lists.
fn verbs() -> BTreeSet<String> {
    let help = nsctl(&["--help"]);
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let (list, _) = list.split_once("\n\n").unwrap();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: BTreeSet<_> = names.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect();
    assert!(names.contains("apply") && names.len() > 10, "{names:?}");
    names.into_iter().filter(|name| name != "help").collect()
}

/// Runs a witness with `text` as its input; nothing, and it is said, where there is none on this machine.
fn witness(program: &str, arguments: &[&str], text: &str) -> Option<Output> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    match command.spawn() {
        Ok(mut child) => {
            let mut input = child.stdin.take().unwrap();
            let text = text.to_owned();
            // A program that prints while it reads would wait for a reader.
            let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
            let output = child.wait_with_output().unwrap();
            writer.join().unwrap().ok();
            Some(output)
        }
        Err(e) => {
            println!("NOT TESTED: there is no {program} here ({e})");
            None
        }
    }
}

#[test]
fn a_shell_takes_its_completions() {
    for shell in SHELLS {
        let script = nsctl(&["completions", shell]);
        for verb in verbs() {
            assert!(script.contains(&verb), "{shell} cannot complete {verb}");
        }
        let (Some(good), Some(bad)) = (witness(shell, &["-n"], &script), witness(shell, &["-n"], "if ((")) else {
            assert_ne!(shell, "bash", "bash is on every machine");
            continue;
        };
        assert!(good.status.success() && good.stderr.is_empty(), "{shell}: {good:?}");
        assert!(!bad.status.success(), "{shell} -n finds no mistake in anything");
    }
}

#[test]
fn bash_completes_commands_options_and_words() {
    let script = nsctl(&["completions", "bash"]);
    let complete = |words: &[&str]| -> Vec<String> {
        let (list, last) = (words.join(" "), words.len() - 1);
        let ask = format!(
            "{script}\nCOMP_WORDS=({list}); COMP_CWORD={last}\n_nsctl nsctl {} {}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
            words[last],
            words[last - 1],
        );
        let output = witness("bash", &["--norc"], &ask).expect("bash is on every machine");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(complete(&["nsctl", "stat"]), ["status"]);
    assert_eq!(complete(&["nsctl", "plan", "--off"]), ["--offline"]);
    assert_eq!(complete(&["nsctl", "completions", "z"]), ["zsh"]);
    assert!(complete(&["nsctl", "nothing-like-it"]).is_empty());
}

/// The pages, in a directory of its own.
fn pages(name: &str) -> Vec<(String, String)> {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    drop(fs::remove_dir_all(&directory));
    let told = nsctl(&["man", directory.to_str().unwrap()]);
    let written = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let written: BTreeSet<PathBuf> = written.collect();
    assert_eq!(told.lines().map(PathBuf::from).collect::<BTreeSet<_>>(), written, "it tells which files it wrote");
    let page =
        |path: &PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(path).unwrap());
    written.iter().map(page).collect()
}

#[test]
fn there_is_a_page_for_each_command_and_one_for_the_language() {
    let mut expected: BTreeSet<String> = verbs().iter().map(|verb| format!("nsctl-{verb}.1")).collect();
    expected.extend(["nsctl.1".to_owned(), "nsctl-policy.5".to_owned()]);
    let pages = pages("man-names");
    assert_eq!(pages.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>(), expected);
    let (_, main) = pages.iter().find(|(name, _)| name == "nsctl.1").unwrap();
    assert_eq!(nsctl(&["man"]).trim_end(), main.trim_end(), "without a directory the main page is printed");
    assert!(pages.iter().all(|(_, page)| page.is_ascii()), "a page is not in ASCII");
}

#[test]
fn groff_warns_of_nothing_in_any_page() {
    let lint = ["-man", "-ww", "-z", "-Tascii", "-rLL=78n"];
    for (name, page) in pages("man-lint") {
        let Some(output) = witness("groff", &lint, &page) else {
            assert!(std::env::var_os("CI").is_none(), "CI has a groff");
            return;
        };
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {output:?}");
    }
    let bad = witness("groff", &lint, ".TH x 1\n.SH NAME\n\\fZx\n.nosuchrequest\n").expect("it ran above");
    assert!(!bad.stderr.is_empty(), "groff finds no fault in anything");
}

#[test]
fn the_page_of_the_language_has_every_key() {
    let (_, page) = pages("man-policy").into_iter().find(|(name, _)| name == "nsctl-policy.5").unwrap();
    let schema: serde_json::Value = serde_json::from_str(POLICY).unwrap();
    let mut keys = BTreeSet::new();
    fn collect<'a>(node: &'a serde_json::Value, keys: &mut BTreeSet<&'a str>) {
        if let Some(properties) = node.get("properties").and_then(|p| p.as_object()) {
            keys.extend(properties.keys().map(String::as_str));
        }
        let below = node.as_object().into_iter().flat_map(|node| node.values());
        below.chain(node.as_array().into_iter().flatten()).for_each(|node| collect(node, keys));
    }
    collect(&schema, &mut keys);
    assert!(keys.len() > 40, "{keys:?}");
    let missing: Vec<_> = keys.iter().filter(|key| !page.contains(&format!("\\fB{key}\\fR"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_schema_is_printed_as_it_is_shipped() {
    assert_eq!(nsctl(&["schema"]).trim_end(), POLICY.trim_end());
    assert_eq!(nsctl(&["schema", "--json"]), nsctl(&["schema"]));
}
