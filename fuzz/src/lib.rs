//! What must hold of every input, whatever its bytes: the fuzz targets say only where the bytes come from.
//!
//! - Nothing panics, and an input takes less than a second.
//! - What is refused is refused with places that lie inside the text, and no message shows a secret.
//! - What is accepted keeps the invariants of the graph, reads the same again and in any order of its files, and the same
//!   from its JSON twin; its addresses are given out without two owners, and recorded so that nobody moves.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netns_policy::address::{AddressBook, AddressPlan};
use netns_policy::desired::Desired;
use netns_policy::graph::{AllowGraph, Origin, Target};
use netns_policy::observed::Observed;
use netns_policy::ruleset::compile::Capabilities;
use netns_policy::{Checked, Format, PolicyErrors, Source, Trust, Warning};

/// How long one input may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// More edges than this are not asked for pair by pair.
const MANY: usize = 300;

/// A secret that can be told from everything else: 32 bytes in base64.
const SECRET: &str = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0MDA=";

/// One policy in TOML.
pub fn toml(bytes: &[u8]) {
    policy(&[Source::toml("policy.toml", bytes)]);
    if let Some(twin) = twin(bytes) {
        same(&[Source::toml("policy", bytes)], &[Source::json("policy", twin)]);
    }
    secret(bytes, Format::Toml);
}

/// One policy in JSON.
pub fn json(bytes: &[u8]) {
    policy(&[Source::json("policy.json", bytes)]);
    secret(bytes, Format::Json);
}

/// Several files of one policy: parts of the input that a byte of no text divides, each begun by what it is.
pub fn files(bytes: &[u8]) {
    let part = |(number, part): (usize, &[u8])| {
        let (kind, text) = part.split_first()?;
        let format = if kind & 1 == 0 { Format::Toml } else { Format::Json };
        let trust = if kind & 2 == 0 { Trust::Operator } else { Trust::Vendor };
        Some(Source { name: format!("{}-{number}", kind >> 2 & 3), text: text.to_vec(), format, trust })
    };
    let sources: Vec<Source> = bytes.split(|byte| *byte == 0xff).enumerate().filter_map(part).take(8).collect();
    policy(&sources);
    let turned: Vec<Source> = sources.iter().rev().cloned().collect();
    same(&sources, &turned);
}

/// What is recorded in the state directory: the addresses.
pub fn state(bytes: &[u8]) {
    let Ok(book) = in_time(|| AddressBook::from_json(bytes)) else { return };
    let again = serde_json::to_vec(&book).expect("what was read can be written");
    assert_eq!(AddressBook::from_json(&again).expect("what was written can be read"), book);
    let text = "schema = 1\nnetwork.name = \"node\"\n[service.a]\nconnect.b = [\"x\"]\n[service.b]\nports = { x = \"tcp:1\" }\n\
                [service.c]\nwas = \"d\"\noutbound = \"direct\"\n";
    let graph = AllowGraph::parse(&[Source::toml("policy.toml", text)]).expect("it is right").graph;
    for renumber in [false, true] {
        addresses(&graph, &book, renumber);
        if let Ok(plan) = AddressPlan::assign(&graph, &book, 1, renumber) {
            let seen = Observed::default();
            let (_, next) = Desired::new(&graph, &plan, &seen, Capabilities::default(), book.next_index);
            assert!(next > book.next_index, "an index comes back");
        }
    }
}

/// What `work` comes to, which it does in time; on a busy machine it may have to be done again to show that.
fn in_time<T>(mut work: impl FnMut() -> T) -> T {
    let mut done = None;
    for _ in 0..3 {
        let begun = Instant::now();
        let result = work();
        if begun.elapsed() < PATIENCE {
            return result;
        }
        done = Some(begun.elapsed());
    }
    panic!("it takes {done:?}")
}

fn policy(sources: &[Source]) {
    let read = in_time(|| AllowGraph::parse(sources));
    match read {
        Ok(Checked { graph, warnings, .. }) => {
            warnings.iter().for_each(|warning| finding(sources, warning));
            assert!(warnings.iter().all(Warning::is_warning), "an error refuses");
            invariants(&graph);
        }
        Err(PolicyErrors(errors)) => {
            assert!((1..=PolicyErrors::MOST).contains(&errors.len()), "{} errors", errors.len());
            assert!(errors.iter().any(|error| !error.is_warning()), "doubt alone refuses nothing");
            errors.iter().for_each(|error| finding(sources, error));
        }
    }
}

/// Every place lies inside its text and on the borders of characters; and it can be shown.
fn finding(sources: &[Source], finding: &Warning) {
    let places = std::iter::once(finding.at()).chain(finding.second().map(|(place, _)| place));
    for place in places {
        let Some(source) = sources.iter().find(|source| source.name == place.file) else {
            assert!(sources.is_empty(), "a place in {}, which is no file", place.file);
            continue;
        };
        let bytes = source.text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&source.text);
        let span = place.span.clone();
        let inside = match std::str::from_utf8(bytes) {
            Ok(text) => text.get(span.clone()).is_some(),
            // There are no characters to cut in two, and what is shown is longer where one stands for a broken one.
            Err(_) => span.start <= span.end && span.start <= String::from_utf8_lossy(bytes).len(),
        };
        assert!(inside, "{span:?} is not in the text of {} bytes: {finding:#}", bytes.len());
        assert!(place.line >= 1 && place.column >= 1, "{place}");
    }
    let shown = format!("{finding:#}");
    let odd = shown.chars().find(|c| c.is_control() && *c != '\n');
    assert!(odd.is_none(), "{odd:?} would reach a terminal: {shown:?}");
}

fn invariants(graph: &AllowGraph) {
    let exists = |name: &str| graph.service(name).is_some();
    for edge in graph.edges() {
        let (from, to) = (edge.from.to_string(), edge.to.to_string());
        assert!(from != to, "{edge} leads to itself");
        assert!(matches!(edge.from, Origin::Host) || exists(&from), "{edge} starts nowhere");
        assert!(matches!(edge.to, Target::Host) || exists(&to), "{edge} ends nowhere");
    }
    if graph.edges().len() < MANY {
        for edge in graph.edges() {
            let found = graph.allows(&edge.from, &edge.to, edge.ports.protocol(), edge.ports.lo());
            assert!(found.is_some(), "{edge} is there and allows nothing");
        }
    }
    let names: Vec<_> = graph.services().map(|service| &service.name).collect();
    assert!(names.is_sorted(), "{names:?}");
    addresses(graph, &AddressBook::default(), false);
}

/// Addresses are in their pools, nobody shares one, and what is recorded keeps them.
fn addresses(graph: &AllowGraph, book: &AddressBook, renumber: bool) {
    let Ok(plan) = in_time(|| AddressPlan::assign(graph, book, 1, renumber)) else { return };
    let mut owned: BTreeSet<IpAddr> = BTreeSet::new();
    for service in graph.services() {
        let own = plan.service(service.name.as_str()).unwrap_or_else(|| panic!("{} has no address", service.name));
        for address in own.iter() {
            let inside = match address {
                IpAddr::V4(address) => plan.pool4().contains(address),
                IpAddr::V6(address) => plan.pool6().is_some_and(|pool| pool.contains(address)),
            };
            assert!(inside, "{address} of {} is in no pool", service.name);
            assert!(owned.insert(address), "{address} has two owners");
        }
    }
    let again = AddressPlan::assign(graph, plan.book(), 2, false);
    let again = again.unwrap_or_else(|error| panic!("what is recorded cannot be given out again: {error}"));
    for service in graph.services() {
        let name = service.name.as_str();
        assert_eq!(again.service(name), plan.service(name), "{name} has moved");
    }
}

/// Two ways to write the same come to the same.
fn same(one: &[Source], other: &[Source]) {
    match (AllowGraph::parse(one), AllowGraph::parse(other)) {
        (Ok(one), Ok(other)) => assert!(one.graph.same_as(&other.graph), "{:#?}\n{:#?}", one.graph, other.graph),
        (Err(_), Err(_)) => {}
        (Err(errors), Ok(_)) | (Ok(_), Err(errors)) => panic!("only one of the two is refused: {:#}", errors.0[0]),
    }
}

/// The same document in JSON, where it is one that JSON can say.
fn twin(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)).ok()?;
    // What is refused before it is read has no twin: escapes would bring it past that.
    if text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t')) {
        return None;
    }
    let table: toml::Table = toml::from_str(text).ok()?;
    let is_plain = |text: &str| !text.contains("$__toml");
    let json = serde_json::to_string(&json_of(&toml::Value::Table(table))?).ok().filter(|json| is_plain(json))?;
    Some(json.into_bytes())
}

fn json_of(value: &toml::Value) -> Option<serde_json::Value> {
    Some(match value {
        toml::Value::String(text) => text.clone().into(),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Boolean(truth) => (*truth).into(),
        // Refused in both, but one of them may not even have the word.
        toml::Value::Float(_) | toml::Value::Datetime(_) => return None,
        toml::Value::Array(items) => items.iter().map(json_of).collect::<Option<Vec<_>>>()?.into(),
        toml::Value::Table(entries) => {
            let entry = |(key, value): (&String, &toml::Value)| Some((key.clone(), json_of(value)?));
            serde_json::Value::Object(entries.iter().map(entry).collect::<Option<_>>()?)
        }
    })
}

/// Puts a secret into the text, and looks for it in every message.
fn secret(bytes: &[u8], format: Format) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (&first, key) = match text.as_bytes().last() {
        Some(last) => (last, ["private_key", "wireguard_private_key", "secret", "password"][usize::from(last % 4)]),
        None => return,
    };
    let at = |mark: char| text.match_indices(mark).map(|(at, _)| at + 1).nth(usize::from(first >> 2) % 16);
    let (at, line) = match format {
        Format::Toml => (at('\n'), format!("{key} = \"{SECRET}\"\n")),
        Format::Json => (at('{'), format!("\"{key}\": \"{SECRET}\", ")),
    };
    let Some(at) = at else { return };
    let with = [&text[..at], &line, &text[at..]].concat();
    // In a file that cannot be read it is hidden by its looks; in one that can, where it is the value of that key.
    if !is_value(&with, key, format) {
        return;
    }
    let source = Source { name: "policy".into(), text: with.into_bytes(), format, trust: Trust::Operator };
    let shown: Vec<String> = match AllowGraph::parse(&[source]) {
        Ok(checked) => checked.warnings.iter().map(|finding| format!("{finding:#}")).collect(),
        Err(errors) => errors.iter().map(|finding| format!("{finding:#}\n{:?}", finding.plain())).collect(),
    };
    let part = &SECRET[..24];
    assert!(!shown.iter().any(|text| text.contains(part)), "{shown:#?}");
}

fn is_value(text: &str, key: &str, format: Format) -> bool {
    match format {
        Format::Toml => toml::from_str::<toml::Table>(text)
            .map_or(true, |table| json_of(&toml::Value::Table(table)).is_some_and(|json| holds(&json, key))),
        Format::Json => serde_json::from_str(text).map_or(true, |json: serde_json::Value| holds(&json, key)),
    }
}

fn holds(value: &serde_json::Value, key: &str) -> bool {
    match value {
        serde_json::Value::Object(entries) => {
            entries.get(key).is_some_and(|value| value == SECRET) || entries.values().any(|value| holds(value, key))
        }
        serde_json::Value::Array(items) => items.iter().any(|item| holds(item, key)),
        _ => false,
    }
}
