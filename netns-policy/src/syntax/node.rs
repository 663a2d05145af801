//! The tree that TOML and JSON have in common: values with their spans, nothing decoded yet.

use super::findings::{At, Draft, Findings, Sp};
use super::text::check_string;

/// How deep a policy may nest. The language itself needs six.
pub(crate) const DEPTH: usize = 32;

/// A value and where it is written.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) at: At,
    pub(crate) kind: Kind,
}

/// What a value is.
#[derive(Debug)]
pub(crate) enum Kind {
    Array(Vec<Node>),
    Boolean(bool),
    Integer(i64),
    /// Something the language has no use for: a float, a date, `null` in a list.
    Other(&'static str),
    String(String),
    Table(Vec<Entry>),
}

/// One key of a table with its value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: Sp<String>,
    pub(crate) value: Node,
}

impl Kind {
    /// What it is called in a message.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Array(_) => "a list",
            Self::Boolean(_) => "a boolean",
            Self::Integer(_) => "an integer",
            Self::Other(word) => word,
            Self::String(_) => "a string",
            Self::Table(_) => "a table",
        }
    }
}

impl Node {
    /// Refuses characters that only an escape sequence can bring in, all of them; `false` when there is one.
    pub(crate) fn check_strings(&self, out: &mut Findings) -> bool {
        match &self.kind {
            Kind::String(text) => check_string(text, self.at, out),
            Kind::Array(items) => items.iter().filter(|item| !item.check_strings(out)).count() == 0,
            Kind::Table(entries) => entries.iter().filter(|entry| !entry.check_strings(out)).count() == 0,
            _ => true,
        }
    }
}

impl Entry {
    fn check_strings(&self, out: &mut Findings) -> bool {
        let key = check_string(&self.key.value, self.key.at, out);
        self.value.check_strings(out) && key
    }
}

/// The finding for a value below [`DEPTH`].
pub(crate) fn too_deep(at: At) -> Draft {
    Draft::new("E0106", at, format!("nested too deeply, the limit is {DEPTH}"))
}
