//! The policy language as a JSON Schema: for editors, and for whoever writes policies by program.
//!
//! It says what can be told of one file without the others: keys, forms, words, what must be there. Every file of a
//! policy that [`AllowGraph::parse`] accepts is valid under it, once `null` values are left out, which in JSON mean that
//! the key is absent. The other way round it accepts more: whether a name that is used exists it cannot know.
//!
//! [`AllowGraph::parse`]: crate::graph::AllowGraph::parse

/// The schema of one policy file, as JSON Schema of draft 2020-12.
///
/// An editor that knows TOML takes it from the first line of a policy: `#:schema policy-1.json`.
pub const POLICY: &str = include_str!("../schema/policy-1.json");
