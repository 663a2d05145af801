//! The file as written: one tree for TOML and JSON, decoded by hand so that every mistake is found with its span.
//!
//! Nothing here knows about other files or asks whether a name exists; that is the business of `resolve`.

pub(crate) mod decode;
pub(crate) mod expose;
pub(crate) mod findings;
mod json;
mod node;
pub(crate) mod obligation;
pub(crate) mod outbound;
pub(crate) mod reference;
pub(crate) mod section;
pub(crate) mod service;
mod text;
mod toml;

use crate::diagnostic::{Format, Source};

use self::decode::{Table, integer};
use self::findings::{At, Draft, Findings};
use self::node::Node;
use self::obligation::{Never, Test};
use self::section::{Defaults, Host, Network, Peer};
use self::service::Service;

/// The only schema there is.
const SCHEMA: i64 = 1;

/// One file, decoded.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) network: Network,
    pub(crate) defaults: Defaults,
    pub(crate) services: Vec<Service>,
    pub(crate) host: Host,
    pub(crate) peers: Vec<Peer>,
    pub(crate) nevers: Vec<Never>,
    pub(crate) tests: Vec<Test>,
}

/// Reads one source; returns its text for messages, and what could be decoded of it.
pub(crate) fn read(file: usize, source: &Source, out: &mut Findings) -> (String, Option<File>) {
    let (text, plain) = text::text(file, source, out);
    let node = if plain { tree(file, source.format, &text, out) } else { None };
    match node {
        Some(node) => {
            decode::mask_secrets(&node, out);
            (text, Some(decode(file, node, out)))
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

fn decode(file: usize, node: Node, out: &mut Findings) -> File {
    let top = At::top(file);
    let Some(mut table) = Table::open(node, top, out) else {
        return File::default();
    };
    schema(&mut table, top, out);
    for key in ["fragment", "extend"] {
        not_yet(&mut table, key, out);
    }
    let decoded = File {
        network: Network::read(&mut table, out),
        defaults: Defaults::read(&mut table, out),
        services: service::read_all(&mut table, out),
        host: Host::read(&mut table, out),
        peers: section::read_peers(&mut table, out),
        nevers: obligation::read_nevers(&mut table, out),
        tests: obligation::read_tests(&mut table, out),
    };
    table.finish(out);
    decoded
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

/// Refuses a key of the language that this version cannot honour: to ignore it would promise something.
pub(crate) fn not_yet(table: &mut Table, key: &str, out: &mut Findings) {
    if let Some(entry) = table.take_unknown(key) {
        let message = format!("`{key}` is not supported by this version");
        out.add(
            Draft::new("E0118", entry.key.at, message)
                .help("write the edges where the client is defined, as `connect`"),
        );
    }
}
