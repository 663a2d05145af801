//! An [`Explanation`] as a person reads it.

use std::fmt;

use super::{Answer, Explanation};
use crate::graph::Location;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        let width = lines.iter().filter(|(_, at)| at.is_some()).map(|(text, _)| text.chars().count()).max();
        let width = width.unwrap_or(0).max(44);
        let word = if self.is_yes() { "yes" } else { "no" };
        for (index, (text, at)) in lines.iter().enumerate() {
            let (newline, word) = if index == 0 { ("", word) } else { ("\n", "") };
            match at {
                Some(at) => write!(f, "{newline}{word:5}{text:width$}  {at}")?,
                None => write!(f, "{newline}{word:5}{text}")?,
            }
        }
        Ok(())
    }
}

impl Explanation {
    fn lines(&self) -> Vec<(String, Option<&Location>)> {
        let no = match &self.answer {
            Answer::Yes(reach) => {
                let through = reach.through.iter().map(|through| (format!("by {through}"), None));
                return std::iter::once((reach.what.clone(), reach.at.as_ref())).chain(through).collect();
            }
            Answer::No(no) => no,
        };
        let mut lines = vec![(no.reason.clone(), None)];
        let head = format!("{} may reach: ", self.from);
        for (index, reach) in no.may_reach.iter().enumerate() {
            let head = if index == 0 { head.clone() } else { " ".repeat(head.len()) };
            lines.push((format!("{head}{}", reach.what), reach.at.as_ref()));
        }
        if no.may_reach.is_empty() {
            lines.push((format!("{head}nothing"), None));
        }
        lines.extend(no.closest.iter().map(|reach| (format!("closest: {}", reach.what), reach.at.as_ref())));
        let breaks = no.breaks.iter();
        lines.extend(breaks.map(|never| (format!("an edge would break: {}", never.what), never.at.as_ref())));
        for (index, step) in no.chain.iter().enumerate() {
            let head = if index == 0 { "indirectly: " } else { "       then: " };
            lines.push((format!("{head}{}", step.what), step.at.as_ref()));
        }
        lines
    }
}
