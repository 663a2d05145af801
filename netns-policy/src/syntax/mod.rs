//! The file as written: one tree for TOML and JSON, decoded by hand so that every mistake is found with its span.
//!
//! Nothing here knows about other files or asks whether a name exists; that is the business of `resolve`.

pub(crate) mod decode;
pub(crate) mod expose;
pub(crate) mod findings;
pub(crate) mod fragment;
mod json;
mod node;
pub(crate) mod obligation;
pub(crate) mod outbound;
pub(crate) mod reference;
pub(crate) mod section;
pub(crate) mod service;
pub(crate) mod socket;
mod text;
mod toml;

use crate::diagnostic::{Format, Source, Trust};
use crate::name::Tag;

use self::decode::{Table, integer};
use self::findings::{At, Draft, Findings, Sp};
use self::fragment::Speaker;
use self::node::Node;
use self::obligation::{Never, Test};
use self::section::{Defaults, Host, Network, Peer};
use self::service::{Extend, Service};

/// The only schema there is.
const SCHEMA: i64 = 1;

/// One file, decoded.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) speaker: Speaker,
    /// Where `fragment` stands, or the top.
    pub(crate) spoken: Option<At>,
    pub(crate) declared_tags: Vec<Sp<Tag>>,
    pub(crate) network: Network,
    pub(crate) defaults: Defaults,
    pub(crate) services: Vec<Service>,
    pub(crate) extends: Vec<Extend>,
    pub(crate) host: Host,
    pub(crate) peers: Vec<Peer>,
    pub(crate) nevers: Vec<Never>,
    pub(crate) tests: Vec<Test>,
    /// `[expose] all = "off"`.
    pub(crate) exposes_nothing: bool,
}

/// Reads one source; returns its text for messages, and what could be decoded of it.
pub(crate) fn read(file: usize, source: &Source, out: &mut Findings) -> (String, Option<File>) {
    let (text, plain) = text::text(file, source, out);
    let node = if plain { tree(file, source.format, &text, out) } else { None };
    match node {
        Some(node) => {
            decode::mask_secrets(&node, out);
            (text, Some(decode(file, source.trust, node, out)))
        }
        None => {
            mask_unread(file, &text, out);
            out.unread = true;
            (text, None)
        }
    }
}

fn tree(file: usize, format: Format, text: &str, out: &mut Findings) -> Option<Node> {
    let node = match format {
        Format::Json => json::read(file, text, out),
        Format::Toml => toml::read(file, text, out),
    };
    node.filter(|node| node.check_strings(out))
}

/// A file that cannot be read may hold a secret all the same, and its lines are shown: hides what follows a key that
/// speaks of one, and whatever is long enough to be a key.
fn mask_unread(file: usize, text: &str, out: &mut Findings) {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let lower = line.to_ascii_lowercase();
        let key = ["private", "secret", "preshared", "password"].iter().filter_map(|word| lower.find(word)).min();
        let value = key.and_then(|key| lower[key..].find(['=', ':']).map(|sign| key + sign + 1));
        if let Some(value) = value {
            out.mask(At { file, start: start + value, end: start + line.len() });
        }
        start += line.len();
    }
    let encoded = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
    let mut start = 0;
    for run in text.as_bytes().split(|b| !encoded(*b)) {
        if run.len() >= SHORTEST_KEY {
            out.mask(At { file, start, end: start + run.len() });
        }
        start += run.len() + 1;
    }
}

/// 32 bytes in base64 are 43 characters, in base32 52, in hexadecimal digits 64.
const SHORTEST_KEY: usize = 43;

fn decode(file: usize, trust: Trust, node: Node, out: &mut Findings) -> File {
    let top = At::top(file);
    let Some(mut table) = Table::open(node, top, out) else {
        return File::default();
    };
    schema(&mut table, top, out);
    includes(&mut table, out);
    let tables = fragment::tables_of_the_operator(&table);
    let spoken = table.place("fragment");
    let speaker = fragment::speaker(&mut table, trust == Trust::Vendor, top, out);
    let mut decoded = File {
        spoken,
        declared_tags: table.list("declare_tags", out, service::tag),
        network: Network::read(&mut table, out),
        defaults: Defaults::read(&mut table, out),
        services: service::read_all(&mut table, out),
        extends: service::read_extends(&mut table, out),
        host: Host::read(&mut table, out),
        peers: section::read_peers(&mut table, out),
        nevers: obligation::read_nevers(&mut table, out),
        tests: obligation::read_tests(&mut table, out),
        exposes_nothing: expose::all_off(&mut table, out),
        speaker,
    };
    table.finish(out);
    match &decoded.speaker {
        Speaker::Operator => fragment::refuse_wants(&decoded, out),
        Speaker::Fragment(name) => {
            for service in &mut decoded.services {
                (service.is_of_fragment, service.fragment) = (true, name.clone());
            }
        }
    }
    fragment::restrict(decoded, &tables, out)
}

/// A policy is what lies in its directories, and nothing else.
fn includes(table: &mut Table, out: &mut Findings) {
    for key in ["include", "includes", "import"] {
        if let Some(entry) = table.take_unknown(key) {
            let draft = Draft::new("E0304", entry.key.at, format!("`{key}`: a policy includes no files"));
            out.add(draft.help("put the file beside this one, in a directory of policies: all of them are read"));
        }
    }
}

fn schema(table: &mut Table, top: At, out: &mut Findings) {
    let Some(entry) = table.take("schema") else {
        out.add(
            Draft::new("E0111", top, "missing `schema = 1`")
                .help("every file of a policy says which language it is in"),
        );
        return;
    };
    let at = entry.value.at;
    match integer(entry.value, out) {
        Some(SCHEMA) | None => {}
        Some(newer @ 2..) => {
            let message = format!("schema {newer} was written for a newer nsctl");
            out.add(Draft::new("E0112", at, message).help("this one knows schema 1"));
        }
        Some(other) => {
            out.add(Draft::new("E0112", at, format!("there is no schema {other}")).help("write `schema = 1`"))
        }
    }
}
