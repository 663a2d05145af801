//! What is wrong with a policy, or doubtful, and where.
//!
//! A [`Finding`] has a stable code, a place in a file, and where possible the next move. Codes that begin with `E`
//! refuse the policy, codes that begin with `W` do not. The text of a secret is masked, and characters that a terminal
//! would act on are replaced, before a finding can show them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, Severity, SourceCode};
use serde::Serialize;
use thiserror::Error;

use crate::graph::Location;

/// How a source is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// JSON (RFC 8259), the exact twin for machines.
    Json,
    /// TOML 1.0.
    Toml,
}

impl Format {
    /// The format of a file with this extension, if a policy can be in it.
    pub fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "json" => Some(Self::Json),
            "toml" => Some(Self::Toml),
            _ => None,
        }
    }
}

/// One file of a policy.
#[derive(Clone, Debug)]
pub struct Source {
    /// The path as messages show it.
    pub name: String,
    /// The bytes as read; they need not be UTF-8 yet.
    pub text: Vec<u8>,
    /// How it is written.
    pub format: Format,
    /// Whose word it is.
    pub trust: Trust,
}

/// Whose word a file is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Trust {
    /// The operator's: it may say everything.
    #[default]
    Operator,
    /// A package's: it may define its own services and ask for edges.
    Vendor,
}

impl Source {
    /// A source of the operator, written in TOML.
    pub fn toml(name: impl Into<String>, text: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), text: text.into(), format: Format::Toml, trust: Trust::Operator }
    }

    /// A source of the operator, written in JSON.
    pub fn json(name: impl Into<String>, text: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), text: text.into(), format: Format::Json, trust: Trust::Operator }
    }
}

/// A span of a file that a finding points at.
#[derive(Clone, Debug)]
pub struct Place {
    /// The file as it was named.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Bytes of the file, not counting a byte order mark.
    pub span: Range<usize>,
    /// The line, or the part of it around the span where it is very long.
    pub source_line: String,
    /// Where the span begins in `source_line`, in characters, and how many of them it covers there.
    underline: (usize, usize),
    /// Whether what stands around it is short enough to be shown as it is.
    is_narrow: bool,
    text: Arc<NamedSource<String>>,
}

impl Place {
    const BEFORE: usize = 60;
    const WIDEST: usize = 160;
    /// The most bytes of a line, and the most lines of a span, that are shown whole.
    const NARROW: usize = 400;
    const LOWEST: usize = 20;

    pub(crate) fn new(text: &Arc<NamedSource<String>>, location: Location, span: Range<usize>) -> Self {
        let all = text.inner();
        let start = floor(all, span.start);
        let end = floor(all, span.end).max(start);
        let line_start = all[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = all[start..].find('\n').map_or(all.len(), |at| start + at);
        let before = all[line_start..start].chars().count();
        let covered = all[start..end.min(line_end)].chars().count();
        let skip = if line_end - line_start > Self::WIDEST { before.saturating_sub(Self::BEFORE) } else { 0 };
        let shown: String = all[line_start..line_end].trim_end().chars().skip(skip).take(Self::WIDEST).collect();
        Self {
            file: location.file,
            line: location.line,
            column: location.column,
            span: start..end,
            source_line: shown.replace('\t', " "),
            underline: (before - skip, covered.clamp(1, Self::WIDEST)),
            is_narrow: Self::is_narrow(all, line_start, end),
            text: Arc::clone(text),
        }
    }

    /// Whether the lines from `line_start` to `end`, and one before and one behind, are few and short.
    fn is_narrow(text: &str, line_start: usize, end: usize) -> bool {
        let before = &text[..line_start.saturating_sub(1)];
        let before = before.len() - before.rfind('\n').map_or(0, |at| at + 1);
        let behind = text[end..].split('\n').take(2).map(str::len).max().unwrap_or(0);
        let lines = text[line_start..end].split('\n');
        let (count, widest) = lines.fold((0, 0), |(count, widest), line| (count + 1, line.len().max(widest)));
        count <= Self::LOWEST && before.max(widest).max(behind) <= Self::NARROW
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// One thing that is wrong with a policy (`E...`) or doubtful (`W...`).
///
/// `{}` prints the message alone, `{:#}` the whole of it in plain ASCII layout; as a [`Diagnostic`] it can be rendered
/// by miette.
#[derive(Clone, Debug)]
pub struct Finding {
    code: &'static str,
    message: String,
    at: Place,
    label: Option<String>,
    second: Option<Box<Elsewhere>>,
    help: Option<String>,
}

/// A mistake: the policy is refused.
pub type PolicyError = Finding;

/// Legal but doubtful: the policy is accepted.
pub type Warning = Finding;

impl Finding {
    /// The longest sentence in bytes: names and keys that are quoted in it may be as long as a file.
    const LONGEST: usize = 600;

    pub(crate) fn new(code: &'static str, message: String, at: Place) -> Self {
        Self { code, message: Self::short(message), at, label: None, second: None, help: None }
    }

    pub(crate) fn with(mut self, label: Option<String>, second: Option<(Place, String)>, help: Option<String>) -> Self {
        self.label = label.map(Self::short);
        self.second = second.map(|(at, label)| Box::new(Elsewhere { at, label: Self::short(label) }));
        self.help = help.map(Self::short);
        self
    }

    fn short(mut text: String) -> String {
        if text.len() > Self::LONGEST {
            let behind = text.split_off(floor(&text, Self::LONGEST));
            text.push_str(&format!("... ({} more bytes)", behind.len()));
        }
        text
    }

    /// The stable code, such as `E0201`.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// One sentence, lower case.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Where.
    pub fn at(&self) -> &Place {
        &self.at
    }

    /// What to say about the place, if more than the message does.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// A second place that has to do with it, and what to say about that one.
    pub fn second(&self) -> Option<(&Place, &str)> {
        self.second.as_deref().map(|second| (&second.at, second.label.as_str()))
    }

    /// The next move.
    pub fn help(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// Whether it leaves the policy in force.
    pub fn is_warning(&self) -> bool {
        self.code.starts_with('W')
    }

    /// Whether the lines around its places are few and short, so that they can be drawn whole. A policy may be one line
    /// of a mebibyte; `{:#}` shows a part of it.
    pub fn is_narrow(&self) -> bool {
        self.at.is_narrow && self.second.as_deref().is_none_or(|second| second.at.is_narrow)
    }

    /// The same as plain fields, for `--json`.
    pub fn plain(&self) -> Plain<'_> {
        Plain {
            code: self.code,
            file: &self.at.file,
            line: self.at.line,
            column: self.at.column,
            start: self.at.span.start,
            end: self.at.span.end,
            message: &self.message,
            help: self.help(),
        }
    }

    fn underlined(f: &mut fmt::Formatter<'_>, at: &Place, label: &str) -> fmt::Result {
        let (start, len) = at.underline;
        write!(f, "\n  --> {at}\n   | {}\n   | {:start$}{}", at.source_line, "", "^".repeat(len))?;
        if label.is_empty() { Ok(()) } else { write!(f, " {label}") }
    }
}

/// A [`Finding`] as plain fields; only ever grows.
#[derive(Clone, Debug, Serialize)]
pub struct Plain<'a> {
    /// The stable code.
    pub code: &'static str,
    /// The file as it was named.
    pub file: &'a str,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// First byte.
    pub start: usize,
    /// The byte after the last.
    pub end: usize,
    /// One sentence.
    pub message: &'a str,
    /// The next move.
    pub help: Option<&'a str>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return f.write_str(&self.message);
        }
        let kind = if self.is_warning() { "warning" } else { "error" };
        write!(f, "{kind}[{}]: {}", self.code, self.message)?;
        Self::underlined(f, &self.at, self.label.as_deref().unwrap_or_default())?;
        if let Some((at, label)) = self.second() {
            Self::underlined(f, at, label)?;
        }
        match &self.help {
            Some(help) => write!(f, "\n   = help: {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Finding {}

impl Diagnostic for Finding {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.code))
    }

    fn severity(&self) -> Option<Severity> {
        Some(if self.is_warning() { Severity::Warning } else { Severity::Error })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&*self.at.text)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let first = LabeledSpan::new_primary_with_span(self.label.clone(), self.at.span.clone());
        // Labels belong to one source; a second place in another file is a related diagnostic instead.
        let second = self.second.as_deref().filter(|second| second.at.file == self.at.file);
        let second = second.map(|s| LabeledSpan::new_with_span(Some(s.label.clone()), s.at.span.clone()));
        Some(Box::new(std::iter::once(first).chain(second)))
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        let second = self.second.as_deref().filter(|second| second.at.file != self.at.file)?;
        Some(Box::new(std::iter::once(second as &dyn Diagnostic)))
    }
}

/// The second place of a [`Finding`].
#[derive(Clone, Debug, Error)]
#[error("{label}")]
struct Elsewhere {
    at: Place,
    label: String,
}

impl Diagnostic for Elsewhere {
    fn severity(&self) -> Option<Severity> {
        Some(Severity::Advice)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&*self.at.text)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(std::iter::once(LabeledSpan::new_primary_with_span(None, self.at.span.clone()))))
    }
}

/// Every mistake of a policy, ordered by file and position; never empty, at most [`PolicyErrors::MOST`].
#[derive(Clone, Debug, Error)]
#[error("the policy is refused: {} {}", .0.len(), if .0.len() == 1 { "mistake" } else { "mistakes" })]
pub struct PolicyErrors(pub Vec<PolicyError>);

impl PolicyErrors {
    /// How many are reported at most; a file with more is better read from the top.
    pub const MOST: usize = 50;

    /// The mistakes.
    pub fn iter(&self) -> impl Iterator<Item = &PolicyError> {
        self.0.iter()
    }
}

impl Diagnostic for PolicyErrors {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.0.iter().map(|error| error as &dyn Diagnostic)))
    }
}
