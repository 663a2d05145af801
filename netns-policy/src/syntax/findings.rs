//! Where findings are collected while a policy is read, before they are given their lines and columns.

use std::sync::Arc;

use miette::NamedSource;

use crate::diagnostic::{Finding, Place, PolicyErrors};
use crate::graph::Location;

use super::text::turns_direction;

/// A span of one of the sources.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct At {
    /// Index of the source.
    pub(crate) file: usize,
    /// First byte.
    pub(crate) start: usize,
    /// The byte after the last.
    pub(crate) end: usize,
}

impl At {
    /// The very beginning of a file: for what is missing from it.
    pub(crate) fn top(file: usize) -> Self {
        Self { file, start: 0, end: 0 }
    }

    /// Both, the one that stands first first.
    pub(crate) fn in_order(self, other: Self) -> (Self, Self) {
        if other < self { (other, self) } else { (self, other) }
    }
}

/// A value and where it is written. Two are equal when their values are, wherever they stand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sp<T> {
    pub(crate) value: T,
    pub(crate) at: At,
}

impl<T: PartialEq> PartialEq for Sp<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Sp<T> {}

impl<T: PartialOrd> PartialOrd for Sp<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.value.partial_cmp(&other.value)
    }
}

impl<T: Ord> Ord for Sp<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.value.cmp(&other.value)
    }
}

impl<T> Sp<T> {
    pub(crate) fn new(value: T, at: At) -> Self {
        Self { value, at }
    }
}

/// A finding that is still without its text.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) code: &'static str,
    pub(crate) at: At,
    message: String,
    label: Option<String>,
    second: Option<(At, String)>,
    help: Option<String>,
}

impl Draft {
    pub(crate) fn new(code: &'static str, at: At, message: impl Into<String>) -> Self {
        Self { code, at, message: message.into(), label: None, second: None, help: None }
    }

    pub(crate) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    pub(crate) fn second(mut self, at: At, label: impl Into<String>) -> Self {
        self.second = Some((at, label.into()));
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same finding in other words.
    pub(crate) fn saying(mut self, message: String) -> Self {
        self.message = message;
        self
    }

    /// The help, or none.
    pub(crate) fn hint(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }
}

/// The code of the finding that a value is a secret, which does not repeat it.
pub(crate) const SECRET: &str = "E0705";

/// What is said of a mistake in a value that is masked: any other message may quote it.
const UNSAID: &str = "this value is not right, and not shown, because its key speaks of a secret";

/// Everything found so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    drafts: Vec<Draft>,
    errors: usize,
    warnings: usize,
    secrets: Vec<At>,
    /// Whether some source could not be read at all, so that what seems to be missing may stand there.
    pub(crate) unread: bool,
}

impl Findings {
    // A hostile file must not cost more memory or time than a good one of its size.
    const MOST: usize = 1_000;
    // What a source that could not be read may explain.
    const EXCUSED: [&str; 8] = ["E0116", "E0201", "E0204", "E0209", "E0220", "E0230", "E0306", "E0801"];

    pub(crate) fn add(&mut self, draft: Draft) {
        if self.unread && Self::EXCUSED.contains(&draft.code) {
            return;
        }
        // Counted apart, and counted even when it is not kept: no number of warnings hides a mistake.
        let is_error = draft.code.starts_with('E');
        let count = if is_error { &mut self.errors } else { &mut self.warnings };
        *count += 1;
        if *count <= Self::MOST {
            self.drafts.push(draft);
        }
    }

    /// Adds a finding of which one is enough.
    pub(crate) fn once(&mut self, code: &'static str, at: At, message: String) {
        if !self.drafts.iter().any(|draft| draft.code == code) {
            self.add(Draft::new(code, at, message));
        }
    }

    /// Whether no more is taken, so that looking further is of no use.
    pub(crate) fn is_full(&self) -> bool {
        self.errors >= Self::MOST
    }

    /// Whether there are several times more mistakes than are told, so that what was meant need not be guessed: to look
    /// through a thousand names for each of a thousand is what a hostile policy would have us do.
    pub(crate) fn is_crowded(&self) -> bool {
        self.errors >= 4 * PolicyErrors::MOST
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.errors > 0 || self.unread
    }

    /// Never shows this span to anybody.
    pub(crate) fn mask(&mut self, at: At) {
        self.secrets.push(at);
    }

    /// The findings with their texts, errors first parted from warnings, each ordered by place.
    pub(crate) fn finish(self, texts: &Texts) -> (Vec<Finding>, Vec<Finding>) {
        let masked = texts.masked(&self.secrets);
        let mut drafts = self.drafts;
        drafts.sort_by(|a, b| (a.at, a.code, &a.message).cmp(&(b.at, b.code, &b.message)));
        // A place costs as much as its line is long: none is looked up that nobody is told.
        let mut errors = 0..PolicyErrors::MOST;
        drafts.retain(|draft| draft.code.starts_with('W') || errors.next().is_some());
        let place = |at: At| Place::new(&masked[at.file], texts.location(at), at.start..at.end);
        let mut secrets = self.secrets;
        secrets.sort();
        let all = drafts.into_iter().map(|draft| {
            let shows = draft.code != SECRET && secrets.binary_search(&draft.at).is_ok();
            let draft = if shows { Draft::new(draft.code, draft.at, UNSAID) } else { draft };
            let second = draft.second.map(|(at, label)| (place(at), label));
            Finding::new(draft.code, draft.message, place(draft.at)).with(draft.label, second, draft.help)
        });
        all.partition(|finding| !finding.is_warning())
    }
}

/// The texts of all sources, to turn spans into lines.
#[derive(Debug)]
pub(crate) struct Texts(Vec<Text>);

#[derive(Debug)]
struct Text {
    name: String,
    text: String,
    // Where each line begins: a policy has many places, and a file may be one long line or a hundred thousand.
    lines: Vec<usize>,
}

impl Texts {
    /// The texts under their names.
    pub(crate) fn new(texts: impl IntoIterator<Item = (String, String)>) -> Self {
        let text = |(name, text): (String, String)| {
            let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
            Text { name, text, lines }
        };
        Self(texts.into_iter().map(text).collect())
    }

    /// Line and column of a span.
    pub(crate) fn location(&self, at: At) -> Location {
        let Text { name, text, lines } = &self.0[at.file];
        let start = at.start.min(text.len());
        let line = lines.partition_point(|begin| *begin <= start);
        let column = text[lines[line - 1]..start].chars().count() + 1;
        let number = |n| u32::try_from(n).unwrap_or(u32::MAX);
        Location { file: name.clone(), line: number(line), column: number(column) }
    }

    fn masked(&self, secrets: &[At]) -> Vec<Arc<NamedSource<String>>> {
        let mask = |(file, Text { name, text, .. }): (usize, &Text)| {
            let mut text: String =
                text.char_indices().map(|(at, c)| printable(c, &text[at + c.len_utf8()..])).collect();
            for at in secrets.iter().filter(|at| at.file == file) {
                let stars: String =
                    text[at.start..at.end].bytes().map(|b| if b == b'\n' { '\n' } else { '*' }).collect();
                text.replace_range(at.start..at.end, &stars);
            }
            Arc::new(NamedSource::new(name, text))
        };
        self.0.iter().enumerate().map(mask).collect()
    }
}

/// What stands for `c` where the text is shown: a terminal must not act on it. As many bytes as `c` itself has.
fn printable(c: char, rest: &str) -> char {
    match c {
        '\n' | '\t' => c,
        '\r' if rest.starts_with('\n') => c,
        c if c.is_ascii_control() => '?',
        c if !c.is_control() && !turns_direction(c) => c,
        c if c.len_utf8() == 2 => '\u{b7}',
        _ => char::REPLACEMENT_CHARACTER,
    }
}
