//! Statements as text.

use super::statement::{Items, Kind, Remark, Statement, Value};

/// Columns that a line with a list on it may have.
const WIDTH: usize = 100;

/// Before a comment at the end of a line.
const BEFORE_NOTE: &str = "  ";

/// The whole file.
pub(super) fn file(statements: &[Statement<'_>]) -> String {
    let mut text = String::new();
    let mut table: &[&str] = &[];
    let mut after_header = false;
    for statement in statements {
        let mut lines: Vec<(bool, String)> = statement.above.iter().map(remark).collect();
        let own = own_line(statement);
        lines.extend(own.into_iter().map(|line| (statement.after_blank, line)));
        match &statement.kind {
            Kind::Header { keys, .. } => {
                let is_below = keys.len() > table.len() && keys.starts_with(table) && !table.is_empty();
                let is_bare = statement.above.is_empty();
                apart(&mut lines, !(is_below && is_bare));
                if !is_below {
                    table = keys;
                }
            }
            // Right below its header nothing stands apart.
            _ if after_header => lines.iter_mut().take(1).for_each(|line| line.0 = false),
            _ => {}
        }
        after_header = matches!(statement.kind, Kind::Header { .. });
        for (after_blank, line) in lines {
            if after_blank && !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&line);
            text.push('\n');
        }
    }
    text
}

fn remark(remark: &Remark<'_>) -> (bool, String) {
    (remark.after_blank, remark.text.to_owned())
}

/// Puts a blank line before the header and the comments that stand right above it, or none before a bare header.
fn apart(lines: &mut [(bool, String)], blank: bool) {
    let block = lines.iter().rposition(|(after_blank, _)| *after_blank).unwrap_or(0);
    lines[block].0 = blank;
}

fn own_line(statement: &Statement<'_>) -> Option<String> {
    let mut line = match &statement.kind {
        Kind::End => return None,
        Kind::Header { keys, is_list: false } => format!("[{}]", keys.join(".")),
        Kind::Header { keys, is_list: true } => format!("[[{}]]", keys.join(".")),
        Kind::Pair { keys, value } => pair(keys, value, 0),
    };
    if let Some(note) = statement.note {
        line.push_str(BEFORE_NOTE);
        line.push_str(note);
    }
    Some(line)
}

fn pair(keys: &[&str], value: &Value<'_>, indent: usize) -> String {
    let start = if keys.is_empty() { String::new() } else { format!("{} = ", keys.join(".")) };
    let flat = flat(value);
    let room = WIDTH.saturating_sub(indent + start.chars().count());
    match (flat, value) {
        // An inline table is on one line in TOML 1.0, however long.
        (Some(flat), Value::Plain(_) | Value::Table(_)) => start + &flat,
        (Some(flat), Value::List(_)) if flat.chars().count() <= room => start + &flat,
        (_, Value::List(items)) => start + &tall(items, ['[', ']'], indent),
        (_, Value::Table(items)) => start + &tall(items, ['{', '}'], indent),
        (None, Value::Plain(text)) => start + text,
    }
}

/// A value on one line, where no comment stands in it.
fn flat(value: &Value<'_>) -> Option<String> {
    let items = match value {
        Value::Plain(text) => return Some((*text).to_owned()),
        Value::List(items) | Value::Table(items) => items,
    };
    let bare = items.below.is_empty() && items.items.iter().all(|item| item.above.is_empty() && item.note.is_none());
    let item = |item: &super::statement::Item<'_>| {
        let start = if item.keys.is_empty() { String::new() } else { format!("{} = ", item.keys.join(".")) };
        flat(&item.value).map(|value| start + &value)
    };
    let parts: Vec<String> = items.items.iter().filter(|_| bare).map(item).collect::<Option<_>>()?;
    let joined = parts.join(", ");
    match value {
        _ if !bare => None,
        Value::Table(_) if parts.is_empty() => Some("{}".to_owned()),
        Value::Table(_) => Some(format!("{{ {joined} }}")),
        _ => Some(format!("[{joined}]")),
    }
}

/// One item a line.
fn tall(items: &Items<'_>, [open, close]: [char; 2], indent: usize) -> String {
    let inner = indent + 2;
    let mut lines = vec![open.to_string()];
    for item in &items.items {
        lines.extend(item.above.iter().map(|comment| format!("{:inner$}{comment}", "")));
        let note = item.note.map(|note| format!("{BEFORE_NOTE}{note}")).unwrap_or_default();
        lines.push(format!("{:inner$}{},{note}", "", pair(&item.keys, &item.value, inner)));
    }
    lines.extend(items.below.iter().map(|comment| format!("{:inner$}{comment}", "")));
    lines.push(format!("{:indent$}{close}", ""));
    lines.join("\n")
}
