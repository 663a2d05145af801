//! TOML as a list of statements, each with the comments that belong to it. Nothing is decoded.

use toml_parser::Source;
use toml_parser::lexer::TokenKind;

/// A line of comment above something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remark<'a> {
    /// Whether a blank line stands before it.
    pub(super) after_blank: bool,
    pub(super) text: &'a str,
}

/// A header, a pair, or the end of the file.
#[derive(Clone, Debug)]
pub(super) struct Statement<'a> {
    /// The comments above it.
    pub(super) above: Vec<Remark<'a>>,
    /// Whether a blank line stands right before it.
    pub(super) after_blank: bool,
    pub(super) kind: Kind<'a>,
    /// The comment behind it.
    pub(super) note: Option<&'a str>,
}

#[derive(Clone, Debug)]
pub(super) enum Kind<'a> {
    End,
    Header { keys: Vec<&'a str>, is_list: bool },
    Pair { keys: Vec<&'a str>, value: Value<'a> },
}

/// A value as it is written.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    List(Items<'a>),
    Plain(&'a str),
    Table(Items<'a>),
}

/// What is between two brackets.
#[derive(Clone, Debug, Default)]
pub(super) struct Items<'a> {
    pub(super) items: Vec<Item<'a>>,
    /// Comments behind the last one, on lines of their own.
    pub(super) below: Vec<&'a str>,
}

#[derive(Clone, Debug)]
pub(super) struct Item<'a> {
    pub(super) above: Vec<&'a str>,
    /// Of an inline table, the key.
    pub(super) keys: Vec<&'a str>,
    pub(super) value: Value<'a>,
    pub(super) note: Option<&'a str>,
}

/// Every comment of a text.
pub(super) fn comments(text: &str) -> impl Iterator<Item = &str> {
    let source = Source::new(text);
    let comments = source.lex().filter(|token| token.kind() == TokenKind::Comment);
    comments.filter_map(move |token| text.get(token.span().start()..token.span().end())).map(str::trim_end)
}

/// The statements of a text that is TOML, the end being the last; `None` when it is not.
pub(super) fn read(text: &str) -> Option<Vec<Statement<'_>>> {
    let tokens = Source::new(text).lex();
    let tokens = tokens.map(|token| Some((token.kind(), text.get(token.span().start()..token.span().end())?)));
    let mut reader = Reader { tokens: tokens.collect::<Option<_>>()?, at: 0 };
    let mut statements = Vec::new();
    loop {
        let statement = reader.statement()?;
        let is_end = matches!(statement.kind, Kind::End);
        statements.push(statement);
        if is_end {
            return Some(statements);
        }
    }
}

struct Reader<'a> {
    tokens: Vec<(TokenKind, &'a str)>,
    at: usize,
}

impl<'a> Reader<'a> {
    fn statement(&mut self) -> Option<Statement<'a>> {
        let mut above = Vec::new();
        let mut after_blank = false;
        loop {
            self.skip_blanks();
            match self.peek() {
                TokenKind::Newline => {
                    self.next();
                    after_blank = true;
                }
                TokenKind::Comment => {
                    above.push(Remark { after_blank, text: self.comment() });
                    self.end_of_line()?;
                    after_blank = false;
                }
                _ => break,
            }
        }
        let kind = match self.peek() {
            TokenKind::Eof => Kind::End,
            TokenKind::LeftSquareBracket => self.header()?,
            _ => {
                let keys = self.keys()?;
                self.expect(TokenKind::Equals)?;
                Kind::Pair { keys, value: self.value()? }
            }
        };
        let note = self.note();
        self.end_of_line()?;
        Some(Statement { above, after_blank, kind, note })
    }

    fn header(&mut self) -> Option<Kind<'a>> {
        self.expect(TokenKind::LeftSquareBracket)?;
        let is_list = self.eat(TokenKind::LeftSquareBracket);
        let keys = self.keys()?;
        for _ in 0..=usize::from(is_list) {
            self.expect(TokenKind::RightSquareBracket)?;
        }
        Some(Kind::Header { keys, is_list })
    }

    fn keys(&mut self) -> Option<Vec<&'a str>> {
        let mut keys = Vec::new();
        loop {
            self.skip_blanks();
            match self.next() {
                (TokenKind::Atom | TokenKind::BasicString | TokenKind::LiteralString, key) => keys.push(key),
                _ => return None,
            }
            self.skip_blanks();
            if !self.eat(TokenKind::Dot) {
                return Some(keys);
            }
        }
    }

    fn value(&mut self) -> Option<Value<'a>> {
        self.skip_blanks();
        match self.next() {
            (TokenKind::LeftSquareBracket, _) => self.items(TokenKind::RightSquareBracket).map(Value::List),
            (TokenKind::LeftCurlyBracket, _) => self.items(TokenKind::RightCurlyBracket).map(Value::Table),
            (
                TokenKind::Atom
                | TokenKind::BasicString
                | TokenKind::LiteralString
                | TokenKind::MlBasicString
                | TokenKind::MlLiteralString,
                text,
            ) => Some(Value::Plain(text)),
            _ => None,
        }
    }

    fn items(&mut self, close: TokenKind) -> Option<Items<'a>> {
        let mut items = Items::default();
        loop {
            items.below.extend(self.comments());
            if self.eat(close) {
                return Some(items);
            }
            let mut above = std::mem::take(&mut items.below);
            let keys = if close == TokenKind::RightCurlyBracket { self.keys()? } else { Vec::new() };
            if !keys.is_empty() {
                // TOML wants both on one line; its reader does not insist.
                above.extend(self.comments());
                self.expect(TokenKind::Equals)?;
                above.extend(self.comments());
            }
            let value = self.value()?;
            let mut note = self.note();
            items.below.extend(self.comments());
            let goes_on = self.eat(TokenKind::Comma);
            if note.is_none() && items.below.is_empty() {
                note = self.note();
            }
            items.items.push(Item { above, keys, value, note });
            if !goes_on {
                items.below.extend(self.comments());
                return self.eat(close).then_some(items);
            }
        }
    }

    /// Comments on lines of their own.
    fn comments(&mut self) -> Vec<&'a str> {
        let mut comments = Vec::new();
        loop {
            self.skip_blanks();
            match self.peek() {
                TokenKind::Newline => drop(self.next()),
                TokenKind::Comment => comments.push(self.comment()),
                _ => return comments,
            }
        }
    }

    /// A comment on the same line.
    fn note(&mut self) -> Option<&'a str> {
        self.skip_blanks();
        (self.peek() == TokenKind::Comment).then(|| self.comment())
    }

    fn comment(&mut self) -> &'a str {
        self.next().1.trim_end()
    }

    fn end_of_line(&mut self) -> Option<()> {
        self.skip_blanks();
        (self.peek() == TokenKind::Eof || self.eat(TokenKind::Newline)).then_some(())
    }

    fn skip_blanks(&mut self) {
        while self.eat(TokenKind::Whitespace) {}
    }

    fn expect(&mut self, kind: TokenKind) -> Option<()> {
        self.skip_blanks();
        self.eat(kind).then_some(())
    }

    fn eat(&mut self, kind: TokenKind) -> bool {
        let found = self.peek() == kind;
        self.at += usize::from(found);
        found
    }

    fn peek(&self) -> TokenKind {
        self.tokens.get(self.at).map_or(TokenKind::Eof, |(kind, _)| *kind)
    }

    fn next(&mut self) -> (TokenKind, &'a str) {
        let token = self.tokens.get(self.at).copied().unwrap_or((TokenKind::Eof, ""));
        self.at += 1;
        token
    }
}
