//! Results of tests as JUnit XML, the form that build servers read.
//!
//! Only what every reader of that form agrees on: suites, cases, failures, skipped. What XML 1.0 forbids in a text
//! (section 2.2) is replaced, however it got into a policy.

use std::fmt::Write as _;

/// Cases that belong together.
#[derive(Debug)]
pub struct Suite {
    pub name: String,
    pub cases: Vec<Case>,
}

/// One case.
#[derive(Debug)]
pub struct Case {
    pub name: String,
    pub file: String,
    pub line: u32,
    pub outcome: Outcome,
}

/// How a case ended.
#[derive(Debug)]
pub enum Outcome {
    Passed,
    /// With what was wrong, line by line.
    Failed(Vec<String>),
    /// With the reason.
    Skipped(String),
}

/// The document.
pub fn document(name: &str, suites: &[Suite]) -> String {
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let all = || suites.iter().flat_map(|suite| &suite.cases);
    open(&mut xml, 0, "testsuites", name, all());
    for suite in suites {
        open(&mut xml, 2, "testsuite", &suite.name, suite.cases.iter());
        suite.cases.iter().for_each(|case| write_case(&mut xml, &suite.name, case));
        xml.push_str("  </testsuite>\n");
    }
    xml.push_str("</testsuites>");
    xml
}

fn open<'a>(xml: &mut String, indent: usize, tag: &str, name: &str, cases: impl Iterator<Item = &'a Case>) {
    let (mut tests, mut failures, mut skipped) = (0, 0, 0);
    for case in cases {
        tests += 1;
        failures += usize::from(matches!(case.outcome, Outcome::Failed(_)));
        skipped += usize::from(matches!(case.outcome, Outcome::Skipped(_)));
    }
    // What the reader of a suite sums up; the outermost element has no `skipped`.
    let skipped = if tag == "testsuite" { format!(" skipped=\"{skipped}\"") } else { String::new() };
    let name = escaped(name);
    writeln!(
        xml,
        "{:indent$}<{tag} name=\"{name}\" tests=\"{tests}\" failures=\"{failures}\" errors=\"0\"{skipped}>",
        ""
    )
    .expect("a string takes all");
}

fn write_case(xml: &mut String, suite: &str, case: &Case) {
    let (suite, name, file, line) = (escaped(suite), escaped(&case.name), escaped(&case.file), case.line);
    let head = format!("    <testcase classname=\"{suite}\" name=\"{name}\" file=\"{file}\" line=\"{line}\"");
    let rest = match &case.outcome {
        Outcome::Passed => "/>\n".to_owned(),
        Outcome::Skipped(why) => format!(">\n      <skipped message=\"{}\"/>\n    </testcase>\n", escaped(why)),
        Outcome::Failed(faults) => {
            let first = faults.first().map(|fault| escaped(fault)).unwrap_or_default();
            let all = escaped(&faults.join("\n"));
            format!(">\n      <failure message=\"{first}\">{all}</failure>\n    </testcase>\n")
        }
    };
    xml.push_str(&head);
    xml.push_str(&rest);
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // In an attribute they would be read as blanks.
            '\n' => escaped.push_str("&#10;"),
            '\t' => escaped.push_str("&#9;"),
            '\r' => escaped.push_str("&#13;"),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}
