//! Bytes to text: what no policy may contain, whatever its format.

use crate::diagnostic::Source;

use super::findings::{At, Draft, Findings};

const LIMIT: usize = 1 << 20;

/// The text of a source without its byte order mark, and whether it may be read on.
pub(crate) fn text(file: usize, source: &Source, out: &mut Findings) -> (String, bool) {
    let bytes = source.text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&source.text);
    if bytes.len() > LIMIT {
        let message = format!("{} has {} bytes, the limit is 1 MiB", source.name, bytes.len());
        out.add(Draft::new("E0008", At::top(file), message));
        return (String::new(), false);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), is_plain(file, text, out)),
        Err(error) => {
            let valid = error.valid_up_to();
            let at = At { file, start: valid, end: valid + 1 };
            out.add(Draft::new("E0101", at, format!("not UTF-8 at byte {valid}")));
            (String::from_utf8_lossy(bytes).into_owned(), false)
        }
    }
}

fn is_plain(file: usize, text: &str, out: &mut Findings) -> bool {
    let bytes = text.as_bytes();
    let mut plain = true;
    for (start, c) in text.char_indices() {
        let at = At { file, start, end: start + c.len_utf8() };
        let draft = match c {
            '\0' => Draft::new("E0102", at, "NUL character"),
            '\r' if bytes.get(start + 1) != Some(&b'\n') => {
                Draft::new("E0103", at, "carriage return without a newline").help("lines end with LF or CR LF")
            }
            c if turns_direction(c) => direction(at, c),
            _ => continue,
        };
        plain = false;
        out.add(draft);
    }
    plain
}

/// Refuses what an escape sequence smuggled into a string: it would reach terminals and logs.
pub(crate) fn check_string(text: &str, at: At, out: &mut Findings) -> bool {
    match text.chars().find(|c| (c.is_control() && !matches!(c, '\t' | '\n' | '\r')) || turns_direction(*c)) {
        None => true,
        Some(c) if c.is_control() => {
            let name =
                if c == '\0' { "NUL character".to_owned() } else { format!("control character U+{:04X}", c as u32) };
            out.add(Draft::new("E0102", at, name).help("names and texts go to terminals and logs"));
            false
        }
        Some(c) => {
            out.add(direction(at, c));
            false
        }
    }
}

fn direction(at: At, c: char) -> Draft {
    Draft::new("E0105", at, format!("invisible direction change U+{:04X}", c as u32))
        .help("the text would not read as it works; remove the character")
}

/// Whether the character changes the direction of what follows, unseen (Unicode UAX 9).
pub(crate) fn turns_direction(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
