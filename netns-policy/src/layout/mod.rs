//! The one layout of a policy file.
//!
//! # Invariants
//!
//! - The file says the same: every value is the same value, and every comment is there.
//! - The layout of a layout is itself.
//! - Tables and what the operator named stay in the order in which they were written, since people group them by
//!   meaning; the keys of the language stand in one order.
//!
//! The first of these is looked at anew for every file: what comes out is read again before anybody sees it.

mod order;
mod print;
mod statement;

use std::collections::BTreeMap;

use thiserror::Error;

use crate::diagnostic::{Format, PolicyErrors, Source};
use crate::syntax;
use crate::syntax::findings::{Findings, Texts};

pub use order::KEYS;

/// Why a file was not laid out.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// It has mistakes of form; those that concern other files do not matter here.
    #[error(transparent)]
    Policy(#[from] PolicyErrors),
    /// It would not say the same any more, which is a mistake of ours.
    #[error("the layout of {file} would not say the same, and is left alone")]
    Unfaithful {
        /// The file as it was named.
        file: String,
    },
}

/// The text of a file in its one layout.
///
/// TOML: one blank line before a table, none before a table of the table above it; keys in the order of [`KEYS`]; one
/// blank around `=`, two before a comment at the end of a line; lists on one line where 100 columns hold it and no
/// comment stands in them. JSON: keys sorted, two blanks for each depth.
///
/// ```
/// use netns_policy::{Source, layout::lay_out};
///
/// let written = "schema=1\n[service.web]\n\n\nports={http=\"tcp:80\"} # for all\nunit=\"web.service\"\n";
/// let laid_out = "schema = 1\n\n[service.web]\nunit = \"web.service\"\nports = { http = \"tcp:80\" }  # for all\n";
/// assert_eq!(lay_out(&Source::toml("policy.toml", written))?, laid_out);
/// # Ok::<(), netns_policy::layout::LayoutError>(())
/// ```
///
/// # Errors
///
/// [`LayoutError::Policy`] when the file by itself is wrong. That other files are missing is no mistake here.
pub fn lay_out(source: &Source) -> Result<String, LayoutError> {
    let text = well_formed(source)?;
    let unfaithful = || LayoutError::Unfaithful { file: source.name.clone() };
    match source.format {
        Format::Json => json(&text).ok_or_else(unfaithful),
        Format::Toml => {
            let laid_out = statement::read(&text).map(|statements| print::file(&order::ordered(statements)));
            laid_out.filter(|laid_out| says_the_same(&text, laid_out)).ok_or_else(unfaithful)
        }
    }
}

/// The text of a file that has no mistake of its own.
fn well_formed(source: &Source) -> Result<String, PolicyErrors> {
    let mut out = Findings::default();
    let (text, _) = syntax::read(0, source, &mut out);
    if !out.has_errors() {
        return Ok(text);
    }
    let (mut errors, _) = out.finish(&Texts::new([(source.name.clone(), text)]));
    errors.truncate(PolicyErrors::MOST);
    Err(PolicyErrors(errors))
}

fn json(text: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let mut sorted = value.clone();
    // It is sorted already, unless some other crate in the build makes serde_json keep the order.
    sorted.sort_all_objects();
    let laid_out = serde_json::to_string_pretty(&sorted).ok()? + "\n";
    (serde_json::from_str::<serde_json::Value>(&laid_out).ok()? == value).then_some(laid_out)
}

fn says_the_same(before: &str, after: &str) -> bool {
    let values = |text: &str| toml::from_str::<toml::Table>(text).ok();
    values(before).is_some_and(|before| values(after) == Some(before)) && comments(before) == comments(after)
}

/// Every comment, and how often it stands there.
fn comments(text: &str) -> BTreeMap<&str, usize> {
    let mut comments = BTreeMap::new();
    for comment in statement::comments(text) {
        *comments.entry(comment).or_default() += 1;
    }
    comments
}
