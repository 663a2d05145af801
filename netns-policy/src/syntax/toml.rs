//! TOML to [`Node`]s.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::findings::{At, Draft, Findings, Sp};
use super::node::{DEPTH, Entry, Kind, Node, too_deep};

/// The document as a table, or `None` when it is not TOML; every syntax error is reported.
pub(crate) fn read(file: usize, text: &str, out: &mut Findings) -> Option<Node> {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        out.add(syntax_error(error.message(), At { file, start: span.start, end: span.end }));
    }
    let reader = Reader { file };
    let root = At { file, start: 0, end: text.len() };
    let node = reader.table(root, table.into_inner(), DEPTH, out)?;
    errors.is_empty().then_some(node)
}

fn syntax_error(message: &str, at: At) -> Draft {
    if message.starts_with("duplicate key") {
        return Draft::new("E0108", at, "this key is given twice").help("every key stands once in its table");
    }
    if message.contains("recurs") {
        return too_deep(at);
    }
    // What the parser takes for a word or a number of TOML is a text without its quotes most of the time.
    const UNQUOTED: [&str; 5] =
        ["invalid boolean", "invalid datetime", "invalid float", "invalid integer", "string values must be quoted"];
    let hint =
        UNQUOTED.iter().any(|said| message.starts_with(said)).then(|| "a text stands in double quotes".to_owned());
    Draft::new("E0107", at, format!("not TOML: {message}")).hint(hint)
}

struct Reader {
    file: usize,
}

impl Reader {
    fn at(&self, span: Range<usize>) -> At {
        At { file: self.file, start: span.start, end: span.end }
    }

    fn node(&self, value: Spanned<DeValue<'_>>, depth: usize, out: &mut Findings) -> Option<Node> {
        let at = self.at(value.span());
        let kind = match value.into_inner() {
            DeValue::String(text) => Kind::String(text.into_owned()),
            DeValue::Integer(number) => integer(&number),
            DeValue::Float(_) => Kind::Other("a float"),
            DeValue::Boolean(value) => Kind::Boolean(value),
            DeValue::Datetime(_) => Kind::Other("a date"),
            DeValue::Array(items) => {
                let depth = self.deeper(at, depth, out)?;
                Kind::Array(items.into_iter().map(|item| self.node(item, depth, out)).collect::<Option<_>>()?)
            }
            DeValue::Table(table) => return self.table(at, table, depth, out),
        };
        Some(Node { at, kind })
    }

    fn table(&self, at: At, table: DeTable<'_>, depth: usize, out: &mut Findings) -> Option<Node> {
        let depth = self.deeper(at, depth, out)?;
        let mut entries = Vec::with_capacity(table.len());
        for (key, value) in table {
            let key = Sp::new(key.get_ref().clone().into_owned(), self.at(key.span()));
            entries.push(Entry { key, value: self.node(value, depth, out)? });
        }
        Some(Node { at, kind: Kind::Table(entries) })
    }

    fn deeper(&self, at: At, depth: usize, out: &mut Findings) -> Option<usize> {
        let deeper = depth.checked_sub(1);
        if deeper.is_none() {
            out.add(too_deep(at));
        }
        deeper
    }
}

fn integer(number: &DeInteger<'_>) -> Kind {
    i64::from_str_radix(number.as_str(), number.radix()).map_or(Kind::Other("a number out of range"), Kind::Integer)
}
