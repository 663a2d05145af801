//! nsctl-policy(5), from the schema: a key that is in the language is in the manual.

use clap_mangen::roff::{Roff, bold, roman};
use nsctl::netns_policy::schema::POLICY;
use serde_json::{Map, Value};

use super::marked;

const DESCRIPTION: [&str; 2] = [
    "A policy is one or more files in TOML, or in JSON, which says the same. Files are merged by union. What is not \
     written is closed, and the order of lines and files means nothing. Unknown keys are errors. In JSON, null means that \
     the key is absent.",
    "An editor completes and checks a policy by its schema: write the output of nsctl schema beside it, and name that \
     file in the first line, as in #:schema policy-1.json.",
];

const OF_A_SERVICE: &str = "#/$defs/service/properties/";

/// The page.
pub(super) fn page() -> String {
    let schema: Value = serde_json::from_str(POLICY).expect("the schema is JSON");
    let mut page = Page { schema: &schema, roff: Roff::new() };
    let version = format!("nsctl {}", env!("CARGO_PKG_VERSION"));
    page.roff.control("TH", ["nsctl-policy", "5", "", &version, "nsctl"]);
    page.section("NAME");
    page.roff.text(vec![roman("nsctl-policy - which services there are, and who may connect to whom")]);
    page.section("DESCRIPTION");
    for text in DESCRIPTION {
        page.roff.control("PP", []);
        page.roff.text(vec![roman(text)]);
    }
    page.example();
    page.table(&schema, "FILE");
    page.forms();
    page.section("SEE ALSO");
    page.roff.text(vec![roman("nsctl(1), nsctl-check(1), nsctl-schema(1)")]);
    page.roff.render()
}

struct Page<'a> {
    schema: &'a Value,
    roff: Roff,
}

impl Page<'_> {
    fn section(&mut self, title: &str) {
        self.roff.control("SH", [title]);
    }

    fn say(&mut self, node: &Value) {
        if let Some(text) = node["description"].as_str() {
            self.roff.text(marked(text));
        }
    }

    fn example(&mut self) {
        self.section("EXAMPLE");
        self.roff.control("nf", []);
        for line in [
            "schema = 1",
            "network.name = \"shop\"",
            "",
            "[service.web]",
            "ports = { http = \"tcp:8080\" }",
            "connect.db = [\"sql\"]",
            "",
            "[service.db]",
            "ports = { sql = \"tcp:5432\" }",
        ] {
            self.roff.text(vec![roman(line)]);
        }
        self.roff.control("fi", []);
    }

    /// The keys of a table under a title, then the tables in it.
    fn table(&mut self, node: &Value, title: &str) {
        let node = self.resolved(node);
        let Some(Value::Object(keys)) = node.get("properties") else { return };
        self.section(title);
        let whole = title == "FILE";
        if !whole {
            self.say(&Value::Object(node.clone()));
        }
        // What a table has in common with [service.NAME] is told there.
        let is_borrowed = |value: &Value| value["$ref"].as_str().is_some_and(|to| to.starts_with(OF_A_SERVICE));
        if keys.values().any(is_borrowed) {
            self.roff.control("PP", []);
            self.roff.text(vec![roman("It has the keys of [service.NAME], and these:")]);
        }
        let own = || keys.iter().filter(|(_, value)| !is_borrowed(value));
        for (key, value) in own() {
            let value = Value::Object(self.resolved(value));
            self.roff.control("TP", []);
            self.roff.text(vec![bold(key.as_str()), roman(self.form(&value))]);
            self.say(&value);
            if let Some(default) = value.get("default") {
                self.roff.text(vec![roman(format!("Default: {default}."))]);
            }
        }
        for (key, value) in own() {
            self.below(value, &if whole { key.clone() } else { format!("{}.{key}", title.trim_matches(['[', ']'])) });
        }
    }

    /// The tables that the value of a key is or holds.
    fn below(&mut self, value: &Value, path: &str) {
        let node = self.resolved(value);
        if node.contains_key("properties") {
            self.table(value, &format!("[{path}]"));
        }
        if let Some(named) = node.get("additionalProperties").filter(|named| named.is_object()) {
            self.table(named, &format!("[{path}.NAME]"));
            for one in self.resolved(named).get("anyOf").and_then(Value::as_array).into_iter().flatten() {
                self.table(one, &format!("[{path}.NAME]"));
            }
        }
        if let Some(items) = node.get("items") {
            self.table(items, &format!("[[{path}]]"));
        }
        for one in node.get("anyOf").and_then(Value::as_array).into_iter().flatten() {
            self.table(one, &format!("[{path}]"));
        }
    }

    /// What a value looks like, in a few words.
    fn form(&self, node: &Value) -> String {
        let words = |values: &Vec<Value>| values.iter().map(Value::to_string).collect::<Vec<_>>().join(" | ");
        match (&node["enum"], &node["const"], node["type"].as_str()) {
            (Value::Array(values), ..) => format!(" = {}", words(values)),
            (_, Value::Null, Some("array")) => " = [...]".to_owned(),
            (_, Value::Null, Some("object")) => String::new(),
            (_, Value::Null, Some("boolean")) => " = true | false".to_owned(),
            (_, Value::Null, Some("integer")) => " = NUMBER".to_owned(),
            (_, Value::Null, Some(_)) => " = \"...\"".to_owned(),
            (_, Value::Null, None) => String::new(),
            (_, value, _) => format!(" = {value}"),
        }
    }

    /// How names, ports and the like are written.
    fn forms(&mut self) {
        self.section("VALUES");
        for form in ["name", "ports", "port_of_target", "who", "point", "local_prefix", "text"] {
            let node = self.schema["$defs"][form].clone();
            self.roff.control("TP", []);
            self.roff.text(vec![bold(form.replace('_', " "))]);
            self.say(&node);
        }
    }

    /// A node with what it refers to.
    fn resolved(&self, node: &Value) -> Map<String, Value> {
        let mut all = node.as_object().cloned().unwrap_or_default();
        let referred = all.remove("$ref").and_then(|to| self.schema.pointer(to.as_str()?.trim_start_matches('#')));
        for (key, value) in referred.map(|node| self.resolved(node)).unwrap_or_default() {
            all.entry(key).or_insert(value);
        }
        all
    }
}
