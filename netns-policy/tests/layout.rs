//! The layout of a file changes nothing but the layout.

use std::collections::BTreeSet;

use netns_policy::Source;
use netns_policy::graph::AllowGraph;
use netns_policy::layout::{KEYS, LayoutError, lay_out};
use netns_policy::schema::POLICY;
use proptest::prelude::*;
use serde_json::Value;

#[allow(dead_code, reason = "other tests use the rest of it")]
mod drawn;

const COMPLETE: &str = include_str!("complete.toml");

fn toml(text: &str) -> Source {
    Source::toml("policy.toml", text)
}

fn laid_out(text: &str) -> String {
    lay_out(&toml(text)).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

const UGLY: &str = r##"#:schema policy-1.json
# The shop.

network . name="shop"   # its name
schema=1
defaults.log = false


# ---- people ----

# alice
[peer . alice] # her phone
onion="descriptor:x25519:N2NU7BSRL6YODZCYPN4CREB54TYLKGIE2KYOQWLFYC23ZJVCE5DQ"
wireguard   =   "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="

[service.web]

outbound = [ "lan" ,"direct" ]
connect.db = [ # both
    'sql',"admin"   # by name

    # no more
]


connect."@cache" = [  "get",]
tags=["front"]
# what it serves
ports={http="tcp:80",https =  'tcp:443'}

[service.web.expose.onion]
clients = ["alice"]
ports = { "80"="http" }
[service.db]
ports.sql = "tcp:5432"
ports.admin = "tcp:5433"

[service.store]
tags = [ "cache", "a-tag-with-a-long-name", "another-tag-with-a-long-name", "yet-another-tag-with-a-long-name" ]
ports = { get = "tcp:11211" }
[[test]]
cannot=["db"]
from="store"
# the end"##;

const NEAT: &str = r##"#:schema policy-1.json
# The shop.

schema = 1
network.name = "shop"  # its name
defaults.log = false

# ---- people ----

# alice
[peer.alice]  # her phone
onion = "descriptor:x25519:N2NU7BSRL6YODZCYPN4CREB54TYLKGIE2KYOQWLFYC23ZJVCE5DQ"
wireguard = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="

[service.web]
tags = ["front"]
outbound = ["lan", "direct"]
# what it serves
ports = { http = "tcp:80", https = 'tcp:443' }
connect.db = [
  # both
  'sql',
  "admin",  # by name
  # no more
]

connect."@cache" = ["get"]
[service.web.expose.onion]
ports = { "80" = "http" }
clients = ["alice"]

[service.db]
ports.sql = "tcp:5432"
ports.admin = "tcp:5433"

[service.store]
tags = [
  "cache",
  "a-tag-with-a-long-name",
  "another-tag-with-a-long-name",
  "yet-another-tag-with-a-long-name",
]
ports = { get = "tcp:11211" }

[[test]]
from = "store"
cannot = ["db"]
# the end
"##;

#[test]
fn an_ugly_file_becomes_neat() {
    assert_eq!(laid_out(UGLY), NEAT);
    assert_eq!(laid_out(NEAT), NEAT);
}

#[test]
fn what_the_operator_named_stays_in_its_order() {
    let named = "schema = 1\n\n[service.web.ports]\nwhy = \"tcp:1\"\nname = \"tcp:2\"\n\n[service.web.connect]\nport = [\"a\"]\ndb = [\"a\"]\n";
    assert_eq!(laid_out(named).replace("\n\n", "\n"), named.replace("\n\n", "\n"));
    assert_eq!(
        laid_out("schema = 1\n\n[[test]]\ncan = [\"b\"]\nfrom = \"a\"\n"),
        "schema = 1\n\n[[test]]\nfrom = \"a\"\ncan = [\"b\"]\n"
    );
}

#[test]
fn json_is_sorted() {
    let ugly = r#"{"schema":1,"service":{"b":{},"a":{"unit":null,"tags":["y","x"]}},"network":{"name":"n"}}"#;
    let neat = lay_out(&Source::json("policy.json", ugly)).unwrap();
    let expected = "{\n  \"network\": {\n    \"name\": \"n\"\n  },\n  \"schema\": 1,\n  \"service\": {\n    \"a\": {\n      \
                    \"tags\": [\n        \"y\",\n        \"x\"\n      ],\n      \"unit\": null\n    },\n    \"b\": {}\n  }\n}\n";
    assert_eq!(neat, expected);
    assert_eq!(lay_out(&Source::json("policy.json", neat.clone())).unwrap(), neat);
}

#[test]
fn a_file_with_mistakes_is_refused_and_one_that_needs_others_is_not() {
    let refused = |source: &Source| match lay_out(source) {
        Err(LayoutError::Policy(errors)) => errors.iter().map(|error| error.code()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&toml("schema = 1\nsrevice = {}\n")), ["E0109"]);
    assert_eq!(refused(&toml("schema = 1\n[service\n")), ["E0107"]);
    assert_eq!(refused(&Source::json("p.json", "{\"schema\": 1,}")), ["E0107"]);
    assert_eq!(laid_out("schema=1\n[service.a]\nconnect.b=['p']\n"), "schema = 1\n\n[service.a]\nconnect.b = ['p']\n");
}

#[test]
fn every_key_of_the_language_has_its_place() {
    fn collect<'a>(node: &'a Value, keys: &mut BTreeSet<&'a str>) {
        if let Some(Value::Object(properties)) = node.get("properties").filter(|_| node.get("const").is_none()) {
            keys.extend(properties.keys().map(String::as_str));
        }
        let below = node.as_object().into_iter().flat_map(|node| node.values());
        below.chain(node.as_array().into_iter().flatten()).for_each(|node| collect(node, keys));
    }
    let schema: Value = serde_json::from_str(POLICY).unwrap();
    let mut keys = BTreeSet::new();
    collect(&schema, &mut keys);
    assert_eq!(KEYS.iter().copied().collect::<BTreeSet<_>>(), keys);
    assert_eq!(KEYS.len(), keys.len(), "a key stands there twice");
}

/// Comments as another reader finds them: our texts have no `#` in a string.
fn comments(text: &str) -> Vec<&str> {
    let mut comments: Vec<&str> =
        text.lines().filter_map(|line| line.find('#').map(|at| line[at..].trim_end())).collect();
    comments.sort_unstable();
    comments
}

fn holds_what_it_promises(text: &str) -> Result<(), TestCaseError> {
    let neat = match lay_out(&toml(text)) {
        Ok(neat) => neat,
        Err(error) => return Err(TestCaseError::fail(format!("{error}\n{text}"))),
    };
    prop_assert_eq!(&lay_out(&toml(&neat)).map_err(|e| TestCaseError::fail(e.to_string()))?, &neat, "not stable");
    prop_assert_eq!(comments(text), comments(&neat));
    let spaced = neat.lines().any(|line| line.ends_with(' ')) || neat.contains("\n\n\n") || neat.starts_with('\n');
    prop_assert!(!spaced && neat.ends_with('\n') && !neat.ends_with("\n\n"), "untidy:\n{}", neat);
    match (AllowGraph::parse(&[toml(text)]), AllowGraph::parse(&[toml(&neat)])) {
        (Ok(before), Ok(after)) => prop_assert!(before.graph.same_as(&after.graph), "{}", neat),
        (Err(before), Err(after)) => prop_assert_eq!(before.0.len(), after.0.len()),
        _ => prop_assert!(false, "one of them is refused:\n{}", neat),
    }
    Ok(())
}

#[test]
fn examples_keep_their_meaning_and_their_comments() {
    let examples = ["bitcoin-node", "nix-bitcoin", "umbrel"];
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policies");
    for example in examples {
        let text = std::fs::read_to_string(directory.join(example).with_extension("toml")).unwrap();
        assert!(comments(&text).len() > 1, "{example} has no comment that could be lost");
        holds_what_it_promises(&text).unwrap();
    }
}

/// Blanks, line ends and comments, put everywhere where the parser lets them be.
#[test]
fn no_blank_anywhere_makes_it_fall_over() {
    let mut laid_out = 0;
    for put in ["\n", "\t ", "\r\n", " # remark\n"] {
        for (at, _) in COMPLETE.char_indices() {
            let text = format!("{}{put}{}", &COMPLETE[..at], &COMPLETE[at..]);
            match lay_out(&toml(&text)) {
                Ok(neat) => {
                    assert_eq!(lay_out(&toml(&neat)).unwrap(), neat, "{text}");
                    laid_out += 1;
                }
                Err(LayoutError::Policy(_)) => {}
                Err(error) => panic!("{error}\n{text}"),
            }
        }
    }
    assert!(laid_out > 1000, "only {laid_out} of them are policies");
}

/// What somebody does to a line of a file without changing what it says.
fn worn(line: &str, how: u8, n: usize) -> String {
    let is_pair = line.contains(" = ") && !line.starts_with(['#', '[']);
    let is_list = is_pair && line.contains("[\"") && !line.contains('{') && !line.contains('#');
    match how {
        0 => format!("\n\n\n{line}"),
        1 => format!("# above {n}\n{line}"),
        2 => format!("\n  # apart {n}  \n\n{line}"),
        3 if !line.is_empty() && !line.contains('#') => format!("{line}\t # behind {n}"),
        4 if is_pair => line.replacen(" = ", "=", 1),
        5 if is_pair => format!("\t{}", line.replacen(" = ", "   =\t", 1)),
        6 if is_list => line.replace("[\"", &format!("[ # open {n}\n\n \"")).replace("\"]", "\" , ]"),
        7 if is_list => {
            line.replace("\", \"", &format!("\", # item {n}\n  \"")).replace("\"]", &format!("\"\n# last {n}\n]"))
        }
        8 => format!("{line}\r"),
        9 => format!("{line}   "),
        _ => line.to_owned(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_worn_file_says_the_same_when_it_is_laid_out(
        policy in drawn::policy(5),
        complete in any::<bool>(),
        wear in prop::collection::vec(0u8..30, 200),
    ) {
        let text = if complete { COMPLETE.to_owned() } else { policy.text() };
        let lines = text.lines().zip(wear.iter().cycle()).enumerate();
        let worn: Vec<String> = lines.map(|(n, (line, how))| worn(line, *how, n)).collect();
        holds_what_it_promises(&(worn.join("\n") + "\n"))?;
    }

    /// Whatever is a policy file has a layout, however strangely it is written.
    #[test]
    fn no_text_makes_it_fall_over(
        at in any::<prop::sample::Index>(), cut in 0usize..12, put in "[\\[\\]{}=.,#\"'\n\r a-z0-9\\\\]{0,6}",
    ) {
        let mut text: Vec<char> = COMPLETE.chars().collect();
        let at = at.index(text.len());
        let end = (at + cut).min(text.len());
        text.splice(at..end, put.chars());
        let text: String = text.into_iter().collect();
        match lay_out(&toml(&text)) {
            Ok(neat) => prop_assert_eq!(lay_out(&toml(&neat)).map_err(|e| TestCaseError::fail(e.to_string()))?, neat),
            Err(LayoutError::Policy(_)) => {}
            Err(error) => prop_assert!(false, "{error}\n{text}"),
        }
    }
}
