//! `[[test]]` and `[[never]]`, each with its outcome: what `nsctl test` shows.
//!
//! [`AllowGraph::parse`] refuses a policy that breaks one of them and says so as a mistake. Here they are told one by
//! one, those that hold too. A [`Trial`] allows nothing and yields no graph: whoever wants one has to parse.

use serde::Serialize;

use crate::diagnostic::{PolicyErrors, Source};
use crate::graph::{AllowGraph, Location, Origin, Target};
use crate::port::Ports;

/// What an obligation is written as.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `[[never]]`.
    Never,
    /// `[[test]]`.
    Test,
}

/// One `[[test]]` or `[[never]]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trial {
    /// Which of the two.
    pub kind: Kind,
    /// `name` or `why`, in the operator's words.
    pub name: Option<String>,
    /// What it claims: of a `[[test]]` each entry of `can` and `cannot`; of a `[[never]]` one, or each chain that breaks it.
    pub claims: Vec<Claim>,
    /// Where it stands.
    pub at: Location,
}

/// One thing that has to be so.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claim {
    /// In words: `web can reach db:sql`.
    pub what: String,
    /// Whether the graph says the same.
    pub holds: bool,
    /// What allows it, or what would; of a `[[never]]` the chain.
    pub reason: String,
    /// Where it is written.
    pub at: Location,
    /// The connection that would show it; none for a `[[never]]`.
    pub asks: Option<Ask>,
}

/// A connection that a [`Claim`] is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ask {
    /// Who would open it; nothing where it would come from outside.
    pub from: Option<Origin>,
    /// What would be reached.
    pub to: Goal,
    /// On which ports; nothing for any.
    pub ports: Option<Ports>,
    /// Whether it ought to be possible.
    pub can: bool,
}

/// What a `[[test]]` asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Goal {
    /// A service or the host.
    Inside(Target),
    /// The local network.
    Lan,
    /// A link-local IPv6 address.
    LinkLocal,
    /// Cloud metadata.
    Metadata,
    /// The internet.
    Wan,
}

impl Trial {
    /// Whether all that it claims is so.
    pub fn holds(&self) -> bool {
        self.claims.iter().all(|claim| claim.holds)
    }

    /// How it is called: `test "the shop reaches its database"`; without a name by its line.
    pub fn title(&self) -> String {
        let word = match self.kind {
            Kind::Never => "never",
            Kind::Test => "test",
        };
        match &self.name {
            Some(name) => format!("{word} \"{}\"", name.escape_debug()),
            None => format!("{word} at {}", self.at),
        }
    }
}

impl AllowGraph {
    /// Every `[[test]]` and `[[never]]` of these files with its outcome, ordered by file and line.
    ///
    /// ```
    /// use netns_policy::{Source, graph::AllowGraph};
    ///
    /// let policy = r#"
    ///     schema = 1
    ///     network.name = "n"
    ///     [service.a]
    ///     [service.b]
    ///     ports = { x = "tcp:1" }
    ///     [[test]]
    ///     from = "a"
    ///     can = ["b:x"]
    /// "#;
    /// let trials = AllowGraph::trials(&[Source::toml("policy.toml", policy)])?;
    /// assert!(!trials[0].holds());
    /// assert_eq!(trials[0].claims[0].what, "a can reach b:x");
    /// # Ok::<(), netns_policy::PolicyErrors>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What is wrong with the files besides: then nothing certain can be said of any of them.
    pub fn trials(sources: &[Source]) -> Result<Vec<Trial>, PolicyErrors> {
        crate::resolve::trials(sources)
    }
}
