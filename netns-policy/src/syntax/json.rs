//! JSON to [`Node`]s: RFC 8259 to the letter, with spans.
//!
//! Of a key that is given twice other readers keep the last and say nothing, so that `"none"` can become `"direct"`
//! unseen; here it is an error at every depth. `null` as a value means that the key is absent.

use std::collections::BTreeMap;

use super::findings::{At, Draft, Findings, Sp};
use super::node::{DEPTH, Entry, Kind, Node, too_deep};

/// The document, or `None` when it is not JSON.
pub(crate) fn read(file: usize, text: &str, out: &mut Findings) -> Option<Node> {
    let mut reader = Reader { file, text, at: 0, out };
    let result = reader.document();
    result.map_err(|draft| out.add(*draft)).ok()
}

type Read<T> = Result<T, Box<Draft>>;

struct Reader<'a> {
    file: usize,
    text: &'a str,
    at: usize,
    out: &'a mut Findings,
}

impl Reader<'_> {
    fn document(&mut self) -> Read<Node> {
        self.blank();
        let node = self.value(DEPTH)?.ok_or_else(|| self.wrong("expected an object"))?;
        self.blank();
        if self.at < self.text.len() { Err(self.wrong("expected the end of the file")) } else { Ok(node) }
    }

    /// The next value; `None` for `null`.
    fn value(&mut self, depth: usize) -> Read<Option<Node>> {
        let start = self.at;
        let kind = match self.peek() {
            Some(b'{') => self.object(depth)?,
            Some(b'[') => self.array(depth)?,
            Some(b'"') => Kind::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ if self.eat("true") => Kind::Boolean(true),
            _ if self.eat("false") => Kind::Boolean(false),
            _ if self.eat("null") => return Ok(None),
            _ => return Err(self.wrong("expected a value")),
        };
        Ok(Some(Node { at: self.span(start), kind }))
    }

    fn object(&mut self, depth: usize) -> Read<Kind> {
        let depth = self.deeper(depth)?;
        let mut entries = Vec::new();
        let mut seen = BTreeMap::new();
        self.at += 1;
        self.blank();
        while !self.eat("}") {
            self.comma(!seen.is_empty(), "`,` or `}`")?;
            let key = self.key()?;
            let first = seen.get(&key.value).copied();
            if let Some(first) = first {
                self.out.add(duplicate(&key, first));
            }
            seen.entry(key.value.clone()).or_insert(key.at);
            self.blank();
            let value = self.value(depth)?.filter(|_| first.is_none());
            entries.extend(value.map(|value| Entry { key, value }));
            self.blank();
        }
        Ok(Kind::Table(entries))
    }

    fn key(&mut self) -> Read<Sp<String>> {
        let start = self.at;
        if self.peek() != Some(b'"') {
            return Err(self.wrong("expected a key in double quotes"));
        }
        let key = self.string()?;
        let at = self.span(start);
        self.blank();
        if self.eat(":") { Ok(Sp::new(key, at)) } else { Err(self.wrong("expected `:`")) }
    }

    fn array(&mut self, depth: usize) -> Read<Kind> {
        let depth = self.deeper(depth)?;
        let mut items = Vec::new();
        self.at += 1;
        self.blank();
        while !self.eat("]") {
            self.comma(!items.is_empty(), "`,` or `]`")?;
            let start = self.at;
            let item = self.value(depth)?;
            items.push(item.unwrap_or(Node { at: self.span(start), kind: Kind::Other("null") }));
            self.blank();
        }
        Ok(Kind::Array(items))
    }

    fn comma(&mut self, needed: bool, expected: &str) -> Read<()> {
        if needed && !self.eat(",") {
            return Err(self.wrong(&format!("expected {expected}")));
        }
        self.blank();
        Ok(())
    }

    fn string(&mut self) -> Read<String> {
        let mut value = String::new();
        self.at += 1;
        loop {
            let rest = &self.text[self.at..];
            let plain = rest.find(|c| matches!(c, '"' | '\\' | '\0'..='\x1f')).unwrap_or(rest.len());
            value.push_str(&rest[..plain]);
            self.at += plain;
            match self.peek() {
                Some(b'"') => break self.at += 1,
                Some(b'\\') => value.push(self.escape()?),
                Some(_) => return Err(self.wrong("a control character must be escaped in a string")),
                None => return Err(self.wrong("the string does not end")),
            }
        }
        Ok(value)
    }

    fn escape(&mut self) -> Read<char> {
        self.at += 1;
        let c = match self.peek() {
            Some(c @ (b'"' | b'\\' | b'/')) => char::from(c),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => return Err(self.wrong("unknown escape sequence")),
        };
        self.at += 1;
        Ok(c)
    }

    /// `\uXXXX`, or two of them for what lies beyond the basic plane (RFC 8259, section 7).
    fn unicode(&mut self) -> Read<char> {
        let mut code = self.hex4()?;
        if (0xd800..0xdc00).contains(&code) && self.eat("\\") && self.peek() == Some(b'u') {
            let low = self.hex4()?;
            let is_low = (0xdc00..0xe000).contains(&low);
            code = if is_low { 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00) } else { code };
        }
        char::from_u32(code).ok_or_else(|| self.wrong("half of a surrogate pair"))
    }

    fn hex4(&mut self) -> Read<u32> {
        let digits = self.text.get(self.at + 1..self.at + 5).unwrap_or_default();
        if digits.len() != 4 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(self.wrong("expected four hexadecimal digits"));
        }
        self.at += 5;
        u32::from_str_radix(digits, 16).map_err(|_| self.wrong("expected four hexadecimal digits"))
    }

    fn number(&mut self) -> Read<Kind> {
        let start = self.at;
        self.eat("-");
        let digits = self.digits();
        let leading_zero = digits > 1 && self.text.as_bytes()[self.at - digits] == b'0';
        let mut is_integer = true;
        let mut fine = digits > 0 && !leading_zero;
        if self.eat(".") {
            is_integer = false;
            fine &= self.digits() > 0;
        }
        if self.eat("e") || self.eat("E") {
            is_integer = false;
            let _sign = self.eat("+") || self.eat("-");
            fine &= self.digits() > 0;
        }
        if !fine {
            return Err(Box::new(Draft::new("E0107", self.span(start), "not JSON: not a number")));
        }
        let number = self.text[start..self.at].parse().map_or(Kind::Other("a number out of range"), Kind::Integer);
        Ok(if is_integer { number } else { Kind::Other("a float") })
    }

    fn digits(&mut self) -> usize {
        let digits = self.text[self.at..].bytes().take_while(u8::is_ascii_digit).count();
        self.at += digits;
        digits
    }

    fn deeper(&self, depth: usize) -> Read<usize> {
        let at = At { file: self.file, start: self.at, end: self.at + 1 };
        depth.checked_sub(1).ok_or_else(|| Box::new(too_deep(at)))
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn eat(&mut self, expected: &str) -> bool {
        let found = self.text[self.at..].starts_with(expected);
        self.at += if found { expected.len() } else { 0 };
        found
    }

    fn blank(&mut self) {
        let blank = |b: &u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r');
        self.at += self.text[self.at..].bytes().take_while(blank).count();
    }

    fn span(&self, start: usize) -> At {
        At { file: self.file, start, end: self.at }
    }

    fn wrong(&self, message: &str) -> Box<Draft> {
        let next = self.text[self.at..].chars().next().map_or(0, char::len_utf8);
        let at = At { file: self.file, start: self.at, end: self.at + next };
        Box::new(Draft::new("E0107", at, format!("not JSON: {message}")))
    }
}

fn duplicate(key: &Sp<String>, first: At) -> Draft {
    Draft::new("E0108", key.at, format!("`{}` is given twice", key.value.escape_debug())).second(first, "first here")
}
