//! `nsctl test --format junit`, read by a parser that is not ours.

#![allow(clippy::disallowed_methods, reason = "it runs the command, and a witness that reads what it prints")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

/// Python's own reader of XML, which refuses what is not well formed; it prints what it read.
const WITNESS: &str = r#"
import json, sys, xml.etree.ElementTree as tree
root = tree.parse(sys.argv[1]).getroot()
cases = [{"suite": suite.get("name"), "name": case.get("name"), "class": case.get("classname"),
          "parts": [[part.tag, part.get("message"), part.text] for part in case]}
         for suite in root for case in suite]
print(json.dumps({"root": root.tag, "counts": dict(root.attrib), "suites": [dict(s.attrib) for s in root], "cases": cases}))
"#;

/// Runs it on a policy in a file of that name.
fn nsctl(file: &str, policy: &str, arguments: &[&str]) -> Output {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(file);
    fs::write(&file, policy).unwrap();
    Command::new(env!("CARGO_BIN_EXE_nsctl")).arg("-f").arg(file).args(arguments).output().unwrap()
}

fn read(file: &str, document: &[u8]) -> Value {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(file).with_extension("xml");
    fs::write(&file, document).unwrap();
    let read = Command::new("python3").args(["-c", WITNESS]).arg(file).output().expect("python3 is there");
    assert!(read.status.success(), "{}\n{}", String::from_utf8_lossy(&read.stderr), String::from_utf8_lossy(document));
    serde_json::from_slice(&read.stdout).unwrap()
}

fn policy(name: &str) -> String {
    format!(
        "schema = 1\nnetwork.name = \"n\"\n[service.a]\nconnect.b = [\"x\"]\n[service.b]\nports = {{ x = \"tcp:1\" }}\n\
         [[test]]\nname = \"{name}\"\nfrom = \"a\"\ncan = [\"b:x\", \"b:tcp:2\"]\n\
         [[never]]\nfrom = [\"a\"]\nto = [\"b\"]\nwhy = \"{name}\"\n"
    )
}

#[test]
fn another_reader_finds_each_result_under_its_name() {
    let ran = nsctl("plain.toml", &policy("plain"), &["test", "--format", "junit"]);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    let read = read("plain.toml", &ran.stdout);
    assert_eq!(read["root"], "testsuites");
    assert_eq!(read["counts"], json!({ "name": "nsctl test", "tests": "3", "failures": "2", "errors": "0" }));
    assert_eq!(read["suites"][0]["name"], "test \"plain\"");
    let cases = read["cases"].as_array().unwrap();
    assert_eq!((&cases[0]["name"], &cases[0]["parts"]), (&json!("a can reach b:x"), &json!([])));
    assert_eq!((&cases[1]["name"], &cases[1]["parts"][0][0]), (&json!("a can reach b:tcp:2"), &json!("failure")));
    assert!(cases[1]["parts"][0][1].as_str().unwrap().contains("would allow it"), "{read}");
    assert_eq!(
        (&cases[2]["suite"], &cases[2]["parts"][0][1]),
        (&json!("never \"plain\""), &json!("no edge leads from a to b: a -> b:x"),)
    );
}

#[test]
fn no_name_that_a_policy_can_have_breaks_the_document() {
    // As TOML writes them: markup, both quotes, the end of a CDATA section, what is no character, and more. Controls are
    // refused in a policy (E0102).
    let hostile =
        ["<a href='x'>&amp;</a>", "\\\"]]>", "a\\ttab", "\\uFFFE\\uFFFF", "\\U0001F980 \\u00e9", "<!-- -- <?xml ?>"];
    // The name of a file can hold what the text of a policy cannot.
    let file = "\u{1}<&\"\u{ffff}]]>\n.toml";
    for name in hostile {
        let ran = nsctl(file, &policy(name), &["test", "--format", "junit"]);
        let read = read(file, &ran.stdout);
        let suite = read["suites"][0]["name"].as_str().unwrap();
        assert!(suite.starts_with("test \"") && suite.ends_with('"'), "{name}: {suite}");
        assert_eq!(read["cases"].as_array().unwrap().len(), 3, "{name}");
        // What it is called on the screen is what it is called here, but for what XML cannot say at all.
        let shown = String::from_utf8(nsctl(file, &policy(name), &["test"]).stdout).unwrap();
        assert!(shown.contains(suite), "{name}: {suite}\n{shown}");
    }
}
