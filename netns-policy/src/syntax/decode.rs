//! From [`Node`]s to typed values: every wrong type and every unknown key is reported, with its span.

use std::fmt::Display;
use std::str::FromStr;

use crate::name::InvalidName;
use crate::port::{InvalidPort, Ports};
use crate::suggest::{did_you_mean, list};

use super::findings::{At, Draft, Findings, SECRET, Sp};
use super::node::{Entry, Kind, Node};

/// A table that is being read: keys are taken out by name, and what is left is unknown.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) at: At,
    entries: Vec<Entry>,
    known: Vec<&'static str>,
    /// Whether a key with `private` in its name can only be a secret here.
    pub(crate) guards_secrets: bool,
}

impl Table {
    /// The table that `node` is, or a type error. `at` is where it is announced: its key.
    pub(crate) fn open(node: Node, at: At, out: &mut Findings) -> Option<Self> {
        match node.kind {
            Kind::Table(entries) => Some(Self { at, entries, known: Vec::new(), guards_secrets: false }),
            kind => wrong_type(node.at, &kind, "a table", out),
        }
    }

    /// Takes the value of `key` out, if it is there.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<Entry> {
        self.known.push(key);
        self.take_unknown(key)
    }

    /// A key that could be here, for those who misspelt it.
    pub(crate) fn know(&mut self, key: &'static str) {
        self.known.push(key);
    }

    /// Takes the value of a key out that nobody should be told of.
    pub(crate) fn take_unknown(&mut self, key: &str) -> Option<Entry> {
        let index = self.entries.iter().position(|entry| entry.key.value == key)?;
        Some(self.entries.swap_remove(index))
    }

    /// Whether `key` is there and was not taken yet.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.place(key).is_some()
    }

    /// Where `key` stands, if it is there and was not taken yet.
    pub(crate) fn place(&self, key: &str) -> Option<At> {
        self.entries.iter().find(|entry| entry.key.value == key).map(|entry| entry.key.at)
    }

    /// Takes the sub-table `key` out.
    pub(crate) fn table(&mut self, key: &'static str, out: &mut Findings) -> Option<Self> {
        let entry = self.take(key)?;
        Self::open(entry.value, entry.key.at, out)
    }

    /// Takes the sub-table `key` out, as entries whose keys the operator chose.
    pub(crate) fn named(&mut self, key: &'static str, out: &mut Findings) -> Vec<Entry> {
        self.table(key, out).map(Self::into_entries).unwrap_or_default()
    }

    /// Everything in it, when all keys are names of the operator's. In the order of the file.
    pub(crate) fn into_entries(mut self) -> Vec<Entry> {
        self.entries.sort_by_key(|entry| entry.key.at);
        self.entries
    }

    /// Takes a value out and decodes it.
    pub(crate) fn read<T>(&mut self, key: &'static str, out: &mut Findings, read: Reading<T>) -> Option<Sp<T>> {
        let entry = self.take(key)?;
        let at = entry.value.at;
        read(entry.value, out).map(|value| Sp::new(value, at))
    }

    /// Takes a list out and decodes its items; an absent list is empty.
    pub(crate) fn list<T>(&mut self, key: &'static str, out: &mut Findings, read: Reading<T>) -> Vec<Sp<T>> {
        self.take(key).map(|entry| items(entry.value, out, read)).unwrap_or_default()
    }

    /// Like [`Table::read`], but the key must be there.
    pub(crate) fn need<T>(&mut self, key: &'static str, out: &mut Findings, read: Reading<T>) -> Option<Sp<T>> {
        if !self.has(key) {
            out.add(Draft::new("E0115", self.at, format!("`{key}` is missing here")));
        }
        self.read(key, out, read)
    }

    /// Reports what nobody asked for.
    pub(crate) fn finish(mut self, out: &mut Findings) {
        self.entries.sort_by_key(|entry| entry.key.at);
        for Entry { key, value } in &self.entries {
            if is_secret(&key.value, self.guards_secrets) {
                mask(value, out);
                out.add(secret(value.at, key));
            } else if !out.is_full() {
                let meant = did_you_mean(&key.value, self.known.iter().copied());
                let known = format!("known here: {}", list(self.known.iter().copied()));
                let message = format!("unknown key `{}`", key.value.escape_debug());
                out.add(Draft::new("E0109", key.at, message).help(meant.unwrap_or(known)));
            }
        }
    }
}

/// How a value is decoded; a failure is reported by whoever decodes.
pub(crate) type Reading<T> = fn(Node, &mut Findings) -> Option<T>;

/// The items of a list.
pub(crate) fn items<T>(node: Node, out: &mut Findings, read: Reading<T>) -> Vec<Sp<T>> {
    let items = match node.kind {
        Kind::Array(items) => items,
        kind => wrong_type(node.at, &kind, "a list", out).unwrap_or_default(),
    };
    let item = |item: Node| {
        let at = item.at;
        read(item, out).map(|value| Sp::new(value, at))
    };
    items.into_iter().filter_map(item).collect()
}

fn wrong_type<T>(at: At, kind: &Kind, expected: &str, out: &mut Findings) -> Option<T> {
    out.add(Draft::new("E0110", at, format!("expected {expected}, this is {}", kind.word())));
    None
}

/// A string.
pub(crate) fn string(node: Node, out: &mut Findings) -> Option<String> {
    match node.kind {
        Kind::String(text) => Some(text),
        kind => wrong_type(node.at, &kind, "a string", out),
    }
}

/// `true` or `false`.
pub(crate) fn boolean(node: Node, out: &mut Findings) -> Option<bool> {
    match node.kind {
        Kind::Boolean(value) => Some(value),
        kind => wrong_type(node.at, &kind, "true or false", out),
    }
}

/// An integer.
pub(crate) fn integer(node: Node, out: &mut Findings) -> Option<i64> {
    match node.kind {
        Kind::Integer(value) => Some(value),
        kind => wrong_type(node.at, &kind, "an integer", out),
    }
}

/// A count of something, at least one.
pub(crate) fn positive(node: Node, out: &mut Findings) -> Option<u32> {
    let at = node.at;
    let value = integer(node, out)?;
    let positive = u32::try_from(value).ok().filter(|n| *n > 0);
    if positive.is_none() {
        out.add(Draft::new("E0110", at, format!("expected a number from 1 to {}, this is {value}", u32::MAX)));
    }
    positive
}

/// A string that parses as `T`, or the finding `code` with what `T` says about it.
pub(crate) fn parsed<T: FromStr<Err: Display>>(node: Node, code: &'static str, out: &mut Findings) -> Option<T> {
    let at = node.at;
    let text = string(node, out)?;
    text.parse().map_err(|error| out.add(Draft::new(code, at, format!("{error}")))).ok()
}

/// One of a few words.
pub(crate) fn word<T: Copy>(node: Node, words: &[(&'static str, T)], out: &mut Findings) -> Option<T> {
    let at = node.at;
    let text = string(node, out)?;
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    if found.is_none() {
        let names = || words.iter().map(|(word, _)| *word);
        let message = format!("expected one of {}, this is \"{}\"", list(names()), text.escape_debug());
        out.add(Draft::new("E0110", at, message).hint(did_you_mean(&text, names())));
    }
    found
}

/// Ports such as `tcp:8332`.
pub(crate) fn ports(node: Node, out: &mut Findings) -> Option<Ports> {
    let at = node.at;
    if let Kind::Integer(port @ 1..=65_535) = node.kind {
        let draft = Draft::new("E0206", at, format!("{port} does not say its protocol"));
        out.add(draft.help(format!("write \"tcp:{port}\" or \"udp:{port}\"")));
        return None;
    }
    let text = string(node, out)?;
    text.parse().map_err(|error| out.add(bad_port(at, &text, &error))).ok()
}

/// The finding for a text that is no port.
pub(crate) fn bad_port(at: At, text: &str, error: &InvalidPort) -> Draft {
    let code = if matches!(error, InvalidPort::Backwards { .. }) { "E0207" } else { "E0206" };
    let help = match error {
        InvalidPort::Form => "write the protocol and the number, as in \"tcp:8332\", \"udp:53\" or \"tcp:28332-28333\"",
        InvalidPort::Number(_) => "write it without sign, blank or leading zero",
        InvalidPort::Backwards { .. } => "write the lower port first",
    };
    let shown = text.escape_debug();
    Draft::new(code, at, format!("\"{shown}\" is not a port: {error}")).help(help)
}

/// Words of `[[never]]` and `[[test]]` besides those that no name may be.
const WORDS: [&str; 2] = ["ip6", "peers"];

/// A name, or the finding that says why it is none. `what` is what it would name.
pub(crate) fn name<T: FromStr<Err = InvalidName>>(text: &str, at: At, what: &str, out: &mut Findings) -> Option<T> {
    if matches!(what, "service" | "peer") && WORDS.contains(&text) {
        out.add(bad_name(at, text, what, &InvalidName::Reserved(text.to_owned())));
        return None;
    }
    text.parse().map_err(|error| out.add(bad_name(at, text, what, &error))).ok()
}

fn bad_name(at: At, text: &str, what: &str, error: &InvalidName) -> Draft {
    let shown = text.escape_debug();
    let (code, help) = match error {
        InvalidName::Reserved(_) => ("E0211", "the word means something else in a policy; choose another name"),
        InvalidName::TooLong { .. } => ("E0213", "names become host names, which have at most 63 bytes"),
        InvalidName::BadChar(c) if c.is_alphabetic() && !c.is_ascii() => return look_alike(at, *c, what),
        _ => ("E0212", "use a-z, 0-9 and -, and start with a letter: names go to paths, units and logs"),
    };
    Draft::new(code, at, format!("\"{shown}\" cannot be the name of a {what}: {error}")).help(help)
}

fn look_alike(at: At, c: char, what: &str) -> Draft {
    // The letters of Cyrillic and Greek that no font tells from Latin ones (a selection of Unicode UTS 39).
    const ALIKE: [(char, char); 17] = [
        ('а', 'a'),
        ('с', 'c'),
        ('ԁ', 'd'),
        ('е', 'e'),
        ('һ', 'h'),
        ('і', 'i'),
        ('ј', 'j'),
        ('ӏ', 'l'),
        ('о', 'o'),
        ('р', 'p'),
        ('ԛ', 'q'),
        ('ѕ', 's'),
        ('ԝ', 'w'),
        ('х', 'x'),
        ('у', 'y'),
        ('ο', 'o'),
        ('ν', 'v'),
    ];
    let latin = ALIKE.iter().find(|(alike, _)| *alike == c).map(|(_, latin)| *latin);
    let looks = latin.map_or_else(|| "is not ASCII".to_owned(), |latin| format!("looks like \"{latin}\""));
    let message = format!("U+{:04X} in the name of a {what} {looks}", c as u32);
    Draft::new("E0214", at, message).help("names are ASCII: a-z, 0-9 and -")
}

fn is_secret(key: &str, guarded: bool) -> bool {
    let key = key.to_ascii_lowercase().replace('-', "_");
    let telling = ["private_key", "privatekey", "secret", "preshared", "password"];
    telling.iter().any(|word| key.contains(word)) || (guarded && key.contains("private"))
}

/// Masks what stands under a key that speaks of a secret, wherever that is: a port may not have such a name, yet the
/// line of that mistake would show it.
pub(crate) fn mask_secrets(node: &Node, out: &mut Findings) {
    match &node.kind {
        Kind::Array(items) => items.iter().for_each(|item| mask_secrets(item, out)),
        Kind::Table(entries) => {
            for Entry { key, value } in entries {
                match value.kind {
                    Kind::String(_) | Kind::Array(_) if is_secret(&key.value, false) => mask(value, out),
                    _ => mask_secrets(value, out),
                }
            }
        }
        _ => {}
    }
}

/// Masks everything in a value: of a table that is spread over the file, its own span covers a header or a key.
fn mask(node: &Node, out: &mut Findings) {
    out.mask(node.at);
    match &node.kind {
        Kind::Array(items) => items.iter().for_each(|item| mask(item, out)),
        Kind::Table(entries) => entries.iter().for_each(|entry| mask(&entry.value, out)),
        _ => {}
    }
}

/// The finding for a secret at `at` under `key`; the caller masks it.
pub(crate) fn secret(at: At, key: &Sp<String>) -> Draft {
    let message =
        format!("`{}` holds a secret (masked here); secrets do not belong in a policy", key.value.escape_debug());
    Draft::new(SECRET, at, message).help(
        "a policy is readable by all; write the public key here and keep the other in a file of its own, mode 0600",
    )
}
