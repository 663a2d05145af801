//! The schema, by a checker that knows nothing of ours.

use std::sync::OnceLock;

use jsonschema::Validator;
use netns_policy::schema::POLICY;
use netns_policy::{Format, Source};
use serde_json::Value;

/// The schema as a value.
pub fn schema() -> Value {
    serde_json::from_str(POLICY).expect("the schema is JSON")
}

/// Why a file is not valid, in a few words; nothing when it is.
pub fn objections(file: &Value) -> Vec<String> {
    static VALIDATOR: OnceLock<Validator> = OnceLock::new();
    let validator = VALIDATOR.get_or_init(|| jsonschema::validator_for(&schema()).expect("the schema is one"));
    validator.iter_errors(file).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// A file as a value, where its text is TOML or JSON at all.
pub fn value(source: &Source) -> Option<Value> {
    let text = std::str::from_utf8(&source.text).ok()?;
    match source.format {
        Format::Json => serde_json::from_str(text).ok(),
        Format::Toml => {
            let table: toml::Table = toml::from_str(text).ok()?;
            serde_json::to_value(table).ok()
        }
    }
}

/// Codes of mistakes that the schema finds whenever they are made: they are in the form of one file.
const ALWAYS: [&str; 22] = [
    "E0109", "E0110", "E0111", "E0112", "E0115", "E0206", "E0211", "E0212", "E0213", "E0214", "E0231", "E0302",
    "E0303", "E0304", "E0404", "E0507", "E0601", "E0603", "E0604", "E0702", "E0703", "E0705",
];

/// Whether the schema is to find this mistake whatever else is in the policy.
pub fn is_formal(code: &str) -> bool {
    ALWAYS.contains(&code)
}

/// Mistakes of form whose code stands for others too that no schema can find, by the title of their case.
const ALSO: [&str; 14] = [
    "1 MiB and a byte",
    "JSON too deep",
    "NUL",
    "NUL in a JSON key",
    "TOML too deep",
    "fixed address that is none",
    "key not canonical",
    "key too short",
    "lan that is everything",
    "multicast pool",
    "onion key malformed",
    "pool that is everything",
    "public pool",
    "terminal escape in a string",
];

/// Mistakes of form that this schema does not find, by the title of their case: to it 1.0 is 1.
const NOT: [&str; 2] = ["schema as a JSON float", "schema as a float"];

/// Holds a policy that is refused against the schema: it finds what it can, and nothing that is not there.
pub fn finds_it_where_it_can(title: &str, codes: &[&str], sources: &[Source]) {
    let Some(values) = sources.iter().map(value).collect::<Option<Vec<Value>>>() else { return };
    let objections: Vec<String> = values.iter().flat_map(objections).collect();
    let is_formal = codes.iter().any(|code| is_formal(code)) || ALSO.contains(&title);
    assert_eq!(!objections.is_empty(), is_formal && !NOT.contains(&title), "{title}: {objections:?}");
}
