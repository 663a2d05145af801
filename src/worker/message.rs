//! What is said over the socket between a worker and who watches it, as JSON.
//!
//! A worker's words come from a program that strangers talk to. They are parsed strictly: a key too many, a number where a
//! text belongs or a fence that nobody knows is a broken protocol, and the worker is ended.

use serde::{Deserialize, Serialize};

use super::Fence;

/// To the worker.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Order {
    /// What to do from now on. The sockets and then the secrets come as descriptors with this message, in this order.
    Configure {
        /// The configuration of this kind of worker.
        config: serde_json::Value,
        /// Names of the sockets that are handed over.
        sockets: Vec<String>,
        /// Names of the secrets that are handed over, each as a file to read.
        secrets: Vec<String>,
        /// How often to give a sign of life, in milliseconds.
        beat: u64,
    },
    /// Take nothing new, and end with the last connection.
    Drain,
}

/// From the worker.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Word {
    /// The first thing that is said.
    Hello {
        /// Who speaks.
        pid: u32,
        /// What holds it.
        fences: Vec<Fence>,
    },
    /// What was ordered is in force.
    Ready,
    /// A sign of life.
    Alive(Count),
    /// What was ordered cannot be done. The worker ends.
    Failed {
        /// Why, in one line.
        why: String,
    },
}

/// Connections of a worker.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// Open now.
    pub open: u64,
    /// Taken since the start.
    pub total: u64,
    /// Refused since the start: too many, too many of one source, or a source that may not.
    pub refused: u64,
    /// Taken, but the service behind did not answer.
    pub unanswered: u64,
    /// Taken, and closed to make room for others after they had been still for long.
    pub evicted: u64,
}

impl Word {
    /// Parses what a worker said.
    pub(crate) fn parse(message: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(message)
    }
}

/// `text` as one short line that no terminal obeys.
pub(crate) fn tame(text: &str) -> String {
    const LONGEST: usize = 300;
    let is_plain = |c: char| c.is_ascii_graphic() || c == ' ' || (c.is_alphanumeric() && !c.is_control());
    let tamed: String = text.trim().chars().take(LONGEST).map(|c| if is_plain(c) { c } else { '?' }).collect();
    if text.trim().chars().count() > LONGEST { tamed + "..." } else { tamed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_word_is_refused() {
        let good = [
            r#"{"hello":{"pid":1,"fences":["seccomp"]}}"#,
            r#""ready""#,
            r#"{"alive":{"open":1,"total":2,"refused":3,"unanswered":4,"evicted":5}}"#,
            r#"{"failed":{"why":"x"}}"#,
        ];
        for text in good {
            Word::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
        let deep = "[".repeat(4000);
        let bad = [
            r#"{"hello":{"pid":1,"fences":["seccomp"],"more":1}}"#,
            r#"{"hello":{"pid":1,"fences":["a moat"]}}"#,
            r#"{"hello":{"pid":-1,"fences":[]}}"#,
            r#"{"hello":{"pid":1,"pid":2,"fences":[]}}"#,
            r#"{"alive":{"open":1,"total":2,"refused":3}}"#,
            r#"{"alive":{"open":1,"total":2,"refused":3,"unanswered":4,"evicted":5,"x":6}}"#,
            r#"{"ready":1}"#,
            r#""ready" "ready""#,
            r#"{"configure":{}}"#,
            "",
            &deep,
        ];
        for text in bad {
            assert!(Word::parse(text.as_bytes()).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn a_line_is_one_line_and_moves_no_cursor() {
        assert_eq!(tame("  plain: \u{fc}ber [x]\n"), "plain: \u{fc}ber [x]");
        assert_eq!(tame("a\x1b[2Jb\nc\u{202e}d"), "a?[2Jb?c?d");
        assert_eq!(tame(&"y".repeat(1000)).len(), 303);
    }
}
