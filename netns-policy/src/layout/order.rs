//! In which order keys stand.

use serde_json::{Map, Value};

use crate::schema::POLICY;

use super::statement::{Kind, Statement};

/// The keys of the language in the order in which they stand: what a thing is, what it reaches outside, whom it
/// serves, whom it asks, who reaches it from outside.
pub const KEYS: [&str; 64] = [
    "schema",
    "fragment",
    "of",
    "declare_tags",
    "name",
    "unit",
    "role",
    "tags",
    "enabled",
    "was",
    "address4",
    "address6",
    "pool4",
    "pool6",
    "ipv6",
    "outbound",
    "dns",
    "limits",
    "flows",
    "new_per_second",
    "denied",
    "log",
    "tor",
    "direct",
    "domain",
    "ports",
    "port",
    "challenge",
    "relay",
    "proxy",
    "all",
    "private",
    "sockets",
    "connect",
    "open",
    "via_ok",
    "may_connect",
    "accepts",
    "wants",
    "expose",
    "onion",
    "wireguard",
    "clearnet",
    "lan",
    "resolvers",
    "clients",
    "peers",
    "from",
    "to",
    "can",
    "cannot",
    "except",
    "path",
    "hops",
    "why",
    "optional",
    "network",
    "defaults",
    "service",
    "extend",
    "host",
    "peer",
    "never",
    "test",
];

/// The statements with the keys of each table in their order.
pub(super) fn ordered(mut statements: Vec<Statement<'_>>) -> Vec<Statement<'_>> {
    let schema: Value = serde_json::from_str(POLICY).expect("the schema is JSON");
    let keep_on_top = keep_on_top(&mut statements);
    let mut start = 0;
    let mut path: Vec<&str> = Vec::new();
    for at in 0..=statements.len() {
        let header = match statements.get(at).map(|statement| &statement.kind) {
            Some(Kind::Pair { .. }) => continue,
            Some(Kind::Header { keys, .. }) => keys.clone(),
            Some(Kind::End) | None => Vec::new(),
        };
        let pairs = &mut statements[start..at];
        together(pairs);
        if has_keys_of_the_language(&schema, &path) {
            sort(pairs);
        }
        path = header;
        start = at + 1;
    }
    if let Some(first) = statements.first_mut() {
        first.above.splice(0..0, keep_on_top.above);
        first.after_blank = keep_on_top.after_blank;
    }
    statements
}

/// What stands at the very top belongs to the file, not to its first key: editors look for `#:schema` there.
fn keep_on_top<'a>(statements: &mut [Statement<'a>]) -> Statement<'a> {
    let mut top = Statement { above: Vec::new(), after_blank: false, kind: Kind::End, note: None };
    if let Some(first) = statements.first_mut() {
        std::mem::swap(&mut top.above, &mut first.above);
        std::mem::swap(&mut top.after_blank, &mut first.after_blank);
    }
    top
}

/// The blank line below a header is not the first key's to carry along.
fn together(pairs: &mut [Statement<'_>]) {
    if let Some(first) = pairs.first_mut() {
        match first.above.first_mut() {
            Some(remark) => remark.after_blank = false,
            None => first.after_blank = false,
        }
    }
}

fn sort(pairs: &mut [Statement<'_>]) {
    pairs.sort_by_key(|pair| match &pair.kind {
        Kind::Pair { keys, .. } => rank(plain(keys[0])),
        _ => usize::MAX,
    });
}

fn rank(key: &str) -> usize {
    KEYS.iter().position(|known| *known == key).unwrap_or(KEYS.len())
}

fn plain(key: &str) -> &str {
    key.trim_matches(['"', '\''])
}

/// Whether the keys of the table at `path` are words of the language, not names of the operator's.
fn has_keys_of_the_language(schema: &Value, path: &[&str]) -> bool {
    let mut node = resolved(schema, schema);
    for key in path {
        let next = node.get("properties").and_then(|keys| keys.get(plain(key)));
        let next = next.or_else(|| node.get("additionalProperties").filter(|named| named.is_object()));
        let Some(next) = next else { return false };
        node = resolved(schema, next);
        if let Some(items) = node.get("items") {
            node = resolved(schema, items);
        }
    }
    node.contains_key("properties")
}

/// A node of the schema with what it refers to.
fn resolved(schema: &Value, node: &Value) -> Map<String, Value> {
    let mut all = node.as_object().cloned().unwrap_or_default();
    let referred = all.remove("$ref").and_then(|to| schema.pointer(to.as_str()?.trim_start_matches('#')));
    for (key, value) in referred.map(|node| resolved(schema, node)).unwrap_or_default() {
        all.entry(key).or_insert(value);
    }
    all
}
