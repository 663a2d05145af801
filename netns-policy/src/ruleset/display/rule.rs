//! A rule in nft(8)'s words, found by running its expressions over registers that hold words instead of values.
//!
//! As nft(8) does, a match on a protocol that a later match implies is left out: `meta l4proto tcp` before `tcp dport`.
//! Unlike nft(8), a map that is asked only for whether it has the key is not passed over in silence.

use super::phrase::{self, Kind};
use super::value::{self, Links};
use crate::ruleset::{Base, CtKey, Expr, Field, MetaKey, Reg, Reject, Rule, Set};

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;

/// The words of a rule. `sets` tells of what fields the key of a set is.
pub(super) fn words<'a>(rule: &Rule, sets: impl Fn(&str) -> Option<&'a Set>, links: &Links) -> String {
    let mut run = Run { links, registers: Default::default(), loads: 0, l3: None, l4: None, said: Vec::new() };
    for expr in &rule.0 {
        run.step(expr, &sets);
    }
    run.said.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// What a register holds.
#[derive(Clone, Debug)]
enum Word {
    Meta(MetaKey),
    Payload {
        base: Base,
        offset: u32,
        len: u32,
    },
    Ct(CtKey),
    Exists(&'static str),
    FibType,
    RouteMss,
    Masked {
        of: Box<Word>,
        mask: Vec<u8>,
    },
    Constant(Vec<u8>),
    /// What was asked, and the place in the rule where.
    Answer(String, usize),
}

impl Word {
    /// Bytes that it takes in the registers.
    fn len(&self) -> usize {
        match self {
            Self::Meta(MetaKey::Iifname | MetaKey::Oifname) => 16,
            Self::Payload { len, .. } => *len as usize,
            Self::Masked { of, .. } => of.len(),
            Self::Constant(bytes) => bytes.len(),
            Self::Meta(_) | Self::Ct(_) | Self::Exists(_) | Self::FibType | Self::RouteMss | Self::Answer(..) => 4,
        }
    }
}

struct Run<'a> {
    links: &'a Links,
    /// With each word, how many were loaded before it.
    registers: [Option<(usize, Word)>; 16],
    loads: usize,
    /// The network protocol that a match has settled (`true` is IPv6), and the place of that match.
    l3: Option<(bool, usize)>,
    /// The same for the transport protocol.
    l4: Option<(u8, usize)>,
    /// The words so far; what turned out to be implied is `None`.
    said: Vec<Option<String>>,
}

impl Run<'_> {
    fn step<'s>(&mut self, expr: &Expr, sets: &impl Fn(&str) -> Option<&'s Set>) {
        let key_of = |set: &str| sets(set).map(|set| set.key.clone()).unwrap_or_default();
        match expr {
            Expr::Meta { key, dreg } => self.load(*dreg, Word::Meta(*key)),
            Expr::Payload { base, offset, len, dreg } => {
                self.load(*dreg, Word::Payload { base: *base, offset: *offset, len: *len });
            }
            Expr::RoutingHeaderExists { dreg } => self.load(*dreg, Word::Exists("exthdr rt")),
            Expr::FragmentHeaderExists { dreg } => self.load(*dreg, Word::Exists("exthdr frag")),
            Expr::CtCountOver { count } => self.say(format!("ct count over {count}")),
            Expr::Ct { key, dreg } => self.load(*dreg, Word::Ct(*key)),
            Expr::FibDaddrType { dreg } => self.load(*dreg, Word::FibType),
            Expr::RtTcpMss { dreg } => self.load(*dreg, Word::RouteMss),
            Expr::Immediate { dreg, data } => self.load(*dreg, Word::Constant(data.clone())),
            Expr::Bitwise { sreg, dreg, mask, .. } => {
                if let Some(of) = self.at(*sreg) {
                    self.load(*dreg, Word::Masked { of: Box::new(of), mask: mask.clone() });
                }
            }
            Expr::Cmp { equal, sreg, data } => self.compare(*sreg, *equal, data),
            Expr::Lookup { set, sreg, dreg, invert } => {
                let key = self.key(*sreg, &key_of(set));
                match dreg {
                    Some(dreg) => self.ask(*dreg, format!("{key} map @{set}")),
                    None => self.say(format!("{key} {}@{set}", if *invert { "!= " } else { "" })),
                }
            }
            Expr::Update { set, sreg } => {
                let key = self.key(*sreg, &key_of(set));
                self.say(format!("update @{set} {{ {key} counter }}"));
            }
            Expr::CountOver { set, sreg, count } => {
                let key = self.key(*sreg, &key_of(set));
                self.say(format!("add @{set} {{ {key} ct count over {count} }}"));
            }
            Expr::Fwd { sreg } => {
                let to = self.operand(*sreg, Kind::Link);
                self.say(format!("fwd to {to}"));
            }
            Expr::SetTcpMss { sreg } => {
                let size = self.operand(*sreg, Kind::Number);
                self.say(format!("tcp option maxseg size set {size}"));
            }
            Expr::Dnat { ipv6, addr, port } => self.dnat(*ipv6, *addr, *port),
            Expr::Reject(how) => self.reject(*how),
            Expr::Verdict(verdict) => self.say(phrase::verdict_words(verdict)),
            Expr::Log { group, prefix, snaplen } => self.say(phrase::log_words(*group, prefix, *snaplen)),
            Expr::Limit { per_second, burst, over } => self.say(phrase::limit_words(*per_second, *burst, *over)),
            Expr::Counter => self.say("counter packets 0 bytes 0".into()),
            Expr::Masquerade => self.say("masquerade".into()),
            Expr::Unknown(name) => self.say(format!("<{name}>")),
        }
    }

    fn say(&mut self, words: String) {
        self.said.push(Some(words));
    }

    /// Says the question where it is asked, until somebody reads the answer and says it there.
    fn ask(&mut self, dreg: Reg, words: String) {
        self.load(dreg, Word::Answer(words.clone(), self.said.len()));
        self.say(words);
    }

    fn load(&mut self, reg: Reg, word: Word) {
        if let Some(slot) = self.registers.get_mut(usize::from(reg.0)) {
            *slot = Some((self.loads, word));
            self.loads += 1;
        }
    }

    fn at(&self, reg: Reg) -> Option<Word> {
        self.registers.get(usize::from(reg.0))?.as_ref().map(|(_, word)| word.clone())
    }

    /// A key of these fields, from this register on; without any, of what was loaded there one after the other.
    fn key(&mut self, sreg: Reg, fields: &[Field]) -> String {
        if fields.is_empty() {
            return self.run_of_words(usize::from(sreg.0));
        }
        let mut words = Vec::new();
        let mut at = sreg.0;
        for field in fields {
            words.push(match self.at(Reg(at)) {
                Some(Word::Constant(bytes)) => value::field(*field, &bytes, self.links),
                Some(word) => self.name(&word).0,
                None => "?".into(),
            });
            at += u8::try_from(field.padded_len() / 4).expect("a field has at most sixteen bytes");
        }
        words.join(" . ")
    }

    fn run_of_words(&mut self, mut at: usize) -> String {
        let mut words = Vec::new();
        let mut last = None;
        while let Some((load, word)) = self.registers.get(at).cloned().flatten() {
            // What was loaded before the word to its left belongs to an earlier match.
            if last.is_some_and(|last| load < last) {
                break;
            }
            last = Some(load);
            at += word.len().div_ceil(4).max(1);
            words.push(self.name(&word).0);
        }
        if words.is_empty() { "?".into() } else { words.join(" . ") }
    }

    /// What a statement takes from one register.
    fn operand(&mut self, reg: Reg, kind: Kind) -> String {
        match self.at(reg) {
            Some(Word::Constant(bytes)) => phrase::constant(kind, &bytes, self.links),
            Some(word) => self.name(&word).0,
            None => "?".into(),
        }
    }

    /// What nft(8) calls a loaded property, and how its values are written.
    fn name(&mut self, word: &Word) -> (String, Kind) {
        let (name, kind) = match word {
            Word::Meta(key) => phrase::meta_name(*key),
            Word::Ct(CtKey::Direction) => ("ct direction", Kind::Direction),
            Word::Ct(CtKey::State) => ("ct state", Kind::Flags(&value::CT_STATE)),
            Word::Ct(CtKey::Status) => ("ct status", Kind::Flags(&value::CT_STATUS)),
            Word::Exists(what) => {
                self.implied_l3();
                (*what, Kind::Exists)
            }
            Word::FibType => ("fib daddr type", Kind::AddressType),
            Word::RouteMss => ("rt mtu", Kind::Number),
            Word::Payload { base, offset, len } => return self.payload(*base, *offset, *len),
            Word::Masked { of, mask } => {
                let (name, kind) = self.name(of);
                return (format!("{name} & {}", phrase::constant(kind, mask, self.links)), kind);
            }
            Word::Constant(bytes) => return (value::hex(bytes), Kind::Raw),
            Word::Answer(words, place) => {
                self.said[*place] = None;
                return (words.clone(), Kind::Raw);
            }
        };
        (name.to_owned(), kind)
    }

    fn payload(&mut self, base: Base, offset: u32, len: u32) -> (String, Kind) {
        let known = match base {
            Base::Link => None,
            Base::Network => self.network(offset, len),
            Base::Transport => self.transport(offset, len),
        };
        known.unwrap_or_else(|| {
            let header = match base {
                Base::Link => "ll",
                Base::Network => "nh",
                Base::Transport => "th",
            };
            (format!("@{header},{},{}", offset * 8, len * 8), Kind::Raw)
        })
    }

    fn network(&mut self, offset: u32, len: u32) -> Option<(String, Kind)> {
        let (v6, _) = self.l3?;
        let (name, kind) = if v6 {
            match (offset, len) {
                (4, 2) => ("ip6 length", Kind::Number),
                (6, 1) => ("ip6 nexthdr", Kind::Protocol),
                (7, 1) => ("ip6 hoplimit", Kind::Number),
                (8, 1..=16) => ("ip6 saddr", Kind::Ipv6),
                (24, 1..=16) => ("ip6 daddr", Kind::Ipv6),
                _ => return None,
            }
        } else {
            match (offset, len) {
                (2, 2) => ("ip length", Kind::Number),
                (4, 2) => ("ip id", Kind::Number),
                (6, 2) => ("ip frag-off", Kind::Number),
                (8, 1) => ("ip ttl", Kind::Number),
                (9, 1) => ("ip protocol", Kind::Protocol),
                (12, 1..=4) => ("ip saddr", Kind::Ipv4),
                (16, 1..=4) => ("ip daddr", Kind::Ipv4),
                _ => return None,
            }
        };
        self.implied_l3();
        Some((name.to_owned(), kind))
    }

    fn transport(&mut self, offset: u32, len: u32) -> Option<(String, Kind)> {
        let port = match (offset, len) {
            (0, 2) => Some("sport"),
            (2, 2) => Some("dport"),
            _ => None,
        };
        let Some((l4, place)) = self.l4 else {
            return port.map(|port| (format!("th {port}"), Kind::Field(Field::InetService)));
        };
        let (name, kind) = match (l4, offset, len) {
            (TCP, 13, 1) => ("tcp flags".to_owned(), Kind::Flags(&value::TCP_FLAG)),
            (ICMP, 0, 1) => ("icmp type".to_owned(), Kind::Field(Field::IcmpType)),
            (ICMP, 1, 1) => ("icmp code".to_owned(), Kind::Names(&value::ICMP_CODE)),
            (ICMP6, 0, 1) => ("icmpv6 type".to_owned(), Kind::Field(Field::Icmpv6Type)),
            (ICMP6, 1, 1) => ("icmpv6 code".to_owned(), Kind::Names(&value::ICMP6_CODE)),
            (ICMP | ICMP6, ..) => return None,
            _ => {
                let with_ports = matches!(l4, TCP | 17 | 33 | 132 | 136);
                (format!("{} {}", value::protocol(l4), port.filter(|_| with_ports)?), Kind::Field(Field::InetService))
            }
        };
        self.said[place] = None;
        if matches!(l4, ICMP | ICMP6) {
            self.implied_l3();
        }
        Some((name, kind))
    }

    /// The match on the network protocol goes without saying.
    fn implied_l3(&mut self) {
        if let Some((_, place)) = self.l3 {
            self.said[place] = None;
        }
    }

    fn compare(&mut self, sreg: Reg, equal: bool, data: &[u8]) {
        let Some(word) = self.at(sreg) else {
            return self.say(format!("? {}", value::hex(data)));
        };
        let words = match &word {
            Word::Masked { of, mask } => self.masked(of, mask, equal, data),
            word => self.plain(word, equal, data),
        };
        self.say(words);
        if equal {
            self.settle(&word, data);
        }
    }

    fn plain(&mut self, word: &Word, equal: bool, data: &[u8]) -> String {
        let (name, kind) = self.name(word);
        let shown = phrase::constant(kind, data, self.links);
        match (kind, equal) {
            (Kind::Exists, equal) => format!("{name} {}", if equal == (data == [1]) { "exists" } else { "missing" }),
            // Without the sign it would ask for any of the flags.
            (Kind::Flags(_), true) => format!("{name} == {shown}"),
            (_, true) => format!("{name} {shown}"),
            (_, false) => format!("{name} != {shown}"),
        }
    }

    fn masked(&mut self, of: &Word, mask: &[u8], equal: bool, data: &[u8]) -> String {
        let (name, kind) = self.name(of);
        let zero = data.iter().all(|byte| *byte == 0);
        let shown = phrase::constant(kind, data, self.links);
        match kind {
            Kind::Flags(_) => {
                let wanted = phrase::constant(kind, mask, self.links);
                let not = if equal { "" } else { "!= " };
                let sign = if equal { "==" } else { "!=" };
                match mask.iter().map(|byte| byte.count_ones()).sum() {
                    _ if zero && !equal => format!("{name} {wanted}"),
                    _ if zero => format!("{name} ! {wanted}"),
                    1 => format!("{name} & {wanted} {sign} {shown}"),
                    _u32 => format!("{name} {not}{shown} / {wanted}"),
                }
            }
            Kind::Ipv4 | Kind::Ipv6 if value::mask_len(mask).is_some() => {
                let len = value::mask_len(mask).unwrap_or(0);
                format!("{name} {}{shown}/{len}", if equal { "" } else { "!= " })
            }
            _ => format!(
                "{name} & {} {} {shown}",
                phrase::constant(kind, mask, self.links),
                if equal { "==" } else { "!=" }
            ),
        }
    }

    /// Remembers which protocol the match just said settles.
    fn settle(&mut self, word: &Word, data: &[u8]) {
        let place = self.said.len() - 1;
        match (word, data) {
            (Word::Meta(MetaKey::Nfproto), [2]) | (Word::Meta(MetaKey::Protocol), [8, 0]) => {
                self.l3 = Some((false, place));
            }
            (Word::Meta(MetaKey::Nfproto), [10]) | (Word::Meta(MetaKey::Protocol), [0x86, 0xdd]) => {
                self.l3 = Some((true, place));
            }
            (Word::Meta(MetaKey::L4proto), [proto]) => self.l4 = Some((*proto, place)),
            _ => {}
        }
    }

    fn dnat(&mut self, ipv6: bool, addr: Reg, port: Option<Reg>) {
        let shown = self.operand(addr, if ipv6 { Kind::Ipv6 } else { Kind::Ipv4 });
        // A port next to the answer of a map is part of the answer.
        let port = port.and_then(|reg| self.at(reg)).map(|word| match word {
            Word::Constant(bytes) => value::decimal(&bytes),
            word => self.name(&word).0,
        });
        let to = match port {
            Some(port) if ipv6 => format!("[{shown}]:{port}"),
            Some(port) => format!("{shown}:{port}"),
            None => shown,
        };
        self.say(format!("dnat {} to {to}", if ipv6 { "ip6" } else { "ip" }));
    }

    fn reject(&mut self, how: Reject) {
        if how != Reject::IcmpxAdminProhibited {
            self.implied_l3();
        }
        let how = match how {
            Reject::TcpReset => "tcp reset",
            Reject::IcmpAdminProhibited => "icmp admin-prohibited",
            Reject::Icmp6AdminProhibited => "icmpv6 admin-prohibited",
            Reject::IcmpxAdminProhibited => "icmpx admin-prohibited",
        };
        self.say(format!("reject with {how}"));
    }
}
