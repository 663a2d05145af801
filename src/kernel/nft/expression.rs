//! Expressions of rules, from and to the kernel's attributes.
//!
//! What the model has no word for reads as [`Expr::Unknown`], so that a rule written by somebody else is seen as one.

use netns_policy::ruleset::{Base, CtKey, Expr, MetaKey, Reg, Reject, Rule, Verdict};

use super::abi::{
    LIST_ELEM, bitwise, byteorder, cmp, connlimit, ct, data, dynset, expr, exthdr, family, fib, fwd, immediate, limit,
    log, lookup, meta, nat, payload, reject, rt, verdict,
};
use super::attribute::{Attributes, Writer};

/// `NFT_REG32_00`: the first of the sixteen registers of four bytes.
const REG32: u32 = 8;

/// Writes the list of a rule's expressions.
pub(super) fn write_rule(w: &mut Writer, kind: u16, rule: &Rule) {
    w.nest(kind, |w| rule.0.iter().for_each(|e| write(w, e)));
}

/// Reads the list of a rule's expressions.
pub(super) fn read_rule(list: Attributes<'_>) -> Rule {
    let mut rule = Vec::new();
    for (_, element) in list.iter() {
        let element = Attributes::new(element);
        let name = element.str(expr::NAME).unwrap_or_default();
        let body = element.nested(expr::DATA);
        if name == "byteorder" && swaps_mss(rule.last(), body) {
            continue;
        }
        rule.push(read(&name, body).unwrap_or(Expr::Unknown(name)));
    }
    Rule::from(rule)
}

/// `rt` loads the MSS in host order; the model's expression includes the swap that follows it.
fn swaps_mss(before: Option<&Expr>, body: Attributes<'_>) -> bool {
    let Some(Expr::RtTcpMss { dreg }) = before else { return false };
    read_reg(body, byteorder::SREG) == Some(*dreg)
        && read_reg(body, byteorder::DREG) == Some(*dreg)
        && body.u32(byteorder::OP) == Some(byteorder::HTON)
        && body.u32(byteorder::LEN) == Some(2)
        && body.u32(byteorder::SIZE) == Some(2)
}

/// Writes `name` with what `body` writes, as an element of a list.
fn write_as(w: &mut Writer, name: &str, body: impl FnOnce(&mut Writer)) {
    w.nest(LIST_ELEM, |w| write_named(w, name, body));
}

/// Writes `name` and what `body` writes.
pub(super) fn write_named(w: &mut Writer, name: &str, body: impl FnOnce(&mut Writer)) {
    w.put_str(expr::NAME, name);
    w.nest(expr::DATA, body);
}

fn write(w: &mut Writer, expr: &Expr) {
    match expr {
        Expr::Meta { key, dreg } => write_as(w, "meta", |w| {
            put_reg(w, meta::DREG, *dreg);
            w.put_u32(meta::KEY, meta_number(*key));
        }),
        Expr::Payload { base, offset, len, dreg } => write_as(w, "payload", |w| {
            put_reg(w, payload::DREG, *dreg);
            w.put_u32(payload::BASE, base_number(*base));
            w.put_u32(payload::OFFSET, *offset);
            w.put_u32(payload::LEN, *len);
        }),
        Expr::RoutingHeaderExists { dreg } => write_as(w, "exthdr", |w| write_exists(w, exthdr::ROUTING, *dreg)),
        Expr::FragmentHeaderExists { dreg } => write_as(w, "exthdr", |w| write_exists(w, exthdr::FRAGMENT, *dreg)),
        Expr::Cmp { equal, sreg, data } => write_as(w, "cmp", |w| {
            put_reg(w, cmp::SREG, *sreg);
            w.put_u32(cmp::OP, if *equal { cmp::EQ } else { cmp::NEQ });
            put_value(w, cmp::DATA, data);
        }),
        Expr::Bitwise { sreg, dreg, mask, xor } => write_as(w, "bitwise", |w| {
            put_reg(w, bitwise::SREG, *sreg);
            put_reg(w, bitwise::DREG, *dreg);
            w.put_u32(bitwise::LEN, u32::try_from(mask.len()).expect("a mask fits the registers"));
            put_value(w, bitwise::MASK, mask);
            put_value(w, bitwise::XOR, xor);
        }),
        Expr::Lookup { set, sreg, dreg, invert } => write_as(w, "lookup", |w| {
            w.put_str(lookup::SET, set);
            put_reg(w, lookup::SREG, *sreg);
            dreg.iter().for_each(|dreg| put_reg(w, lookup::DREG, *dreg));
            if *invert {
                w.put_u32(lookup::FLAGS, lookup::F_INV);
            }
        }),
        Expr::Update { set, sreg } => write_as(w, "dynset", |w| {
            write_dynset(w, set, *sreg, dynset::OP_UPDATE);
            w.nest(dynset::EXPR, |w| write_named(w, "counter", |_| ()));
        }),
        Expr::CountOver { set, sreg, count } => write_as(w, "dynset", |w| {
            write_dynset(w, set, *sreg, dynset::OP_ADD);
            w.nest(dynset::EXPR, |w| {
                write_named(w, "connlimit", |w| {
                    w.put_u32(connlimit::COUNT, *count);
                    w.put_u32(connlimit::FLAGS, connlimit::F_INV);
                });
            });
        }),
        Expr::CtCountOver { count } => write_as(w, "connlimit", |w| {
            w.put_u32(connlimit::COUNT, *count);
            w.put_u32(connlimit::FLAGS, connlimit::F_INV);
        }),
        Expr::Fwd { sreg } => write_as(w, "fwd", |w| put_reg(w, fwd::SREG_DEV, *sreg)),
        Expr::Verdict(verdict) => write_as(w, "immediate", |w| {
            w.put_u32(immediate::DREG, 0);
            w.nest(immediate::DATA, |w| write_verdict(w, verdict));
        }),
        Expr::Immediate { dreg, data } => write_as(w, "immediate", |w| {
            put_reg(w, immediate::DREG, *dreg);
            put_value(w, immediate::DATA, data);
        }),
        Expr::Reject(how) => write_as(w, "reject", |w| {
            let (kind, code) = reject_numbers(*how);
            w.put_u32(reject::TYPE, kind);
            w.put_u8(reject::CODE, code);
        }),
        Expr::Log { group, prefix, snaplen } => write_as(w, "log", |w| write_log(w, *group, prefix, *snaplen)),
        Expr::Limit { per_second, burst, over } => write_as(w, "limit", |w| {
            w.put_u64(limit::RATE, *per_second);
            w.put_u64(limit::UNIT, 1);
            w.put_u32(limit::BURST, *burst);
            w.put_u32(limit::TYPE, limit::PACKETS);
            w.put_u32(limit::FLAGS, if *over { limit::F_INV } else { 0 });
        }),
        Expr::Counter => write_as(w, "counter", |_| ()),
        Expr::Ct { key, dreg } => write_as(w, "ct", |w| {
            put_reg(w, ct::DREG, *dreg);
            w.put_u32(ct::KEY, ct_number(*key));
        }),
        Expr::FibDaddrType { dreg } => write_as(w, "fib", |w| {
            put_reg(w, fib::DREG, *dreg);
            w.put_u32(fib::RESULT, fib::ADDRTYPE);
            w.put_u32(fib::FLAGS, fib::F_DADDR);
        }),
        Expr::Masquerade => write_as(w, "masq", |_| ()),
        Expr::Dnat { ipv6, addr, port } => write_as(w, "nat", |w| {
            w.put_u32(nat::TYPE, nat::DNAT);
            w.put_u32(nat::FAMILY, u32::from(if *ipv6 { family::IPV6 } else { family::IPV4 }));
            put_reg(w, nat::REG_ADDR_MIN, *addr);
            port.iter().for_each(|port| put_reg(w, nat::REG_PROTO_MIN, *port));
        }),
        Expr::RtTcpMss { dreg } => write_rt_mss(w, *dreg),
        Expr::SetTcpMss { sreg } => write_as(w, "exthdr", |w| {
            put_reg(w, exthdr::SREG, *sreg);
            w.put_u8(exthdr::TYPE, exthdr::MSS);
            w.put_u32(exthdr::OFFSET, 2);
            w.put_u32(exthdr::LEN, 2);
            w.put_u32(exthdr::OP, exthdr::OP_TCPOPT);
        }),
        // Never part of a desired ruleset; the kernel refuses the empty body, which is what should happen.
        Expr::Unknown(name) => write_as(w, name, |_| ()),
    }
}

fn write_exists(w: &mut Writer, header: u8, dreg: Reg) {
    put_reg(w, exthdr::DREG, dreg);
    w.put_u8(exthdr::TYPE, header);
    w.put_u32(exthdr::OFFSET, 0);
    w.put_u32(exthdr::LEN, 1);
    w.put_u32(exthdr::FLAGS, exthdr::F_PRESENT);
    w.put_u32(exthdr::OP, exthdr::OP_IPV6);
}

fn write_dynset(w: &mut Writer, set: &str, sreg: Reg, op: u32) {
    w.put_str(dynset::SET, set);
    put_reg(w, dynset::SREG_KEY, sreg);
    w.put_u32(dynset::OP, op);
}

fn write_log(w: &mut Writer, group: u16, prefix: &str, snaplen: u32) {
    w.put_u16(log::GROUP, group);
    if !prefix.is_empty() {
        w.put_str(log::PREFIX, prefix);
    }
    if snaplen > 0 {
        w.put_u32(log::SNAPLEN, snaplen);
    }
}

fn write_rt_mss(w: &mut Writer, dreg: Reg) {
    write_as(w, "rt", |w| {
        put_reg(w, rt::DREG, dreg);
        w.put_u32(rt::KEY, rt::TCPMSS);
    });
    write_as(w, "byteorder", |w| {
        put_reg(w, byteorder::SREG, dreg);
        put_reg(w, byteorder::DREG, dreg);
        w.put_u32(byteorder::OP, byteorder::HTON);
        w.put_u32(byteorder::LEN, 2);
        w.put_u32(byteorder::SIZE, 2);
    });
}

fn write_verdict(w: &mut Writer, what: &Verdict) {
    let (code, chain) = match what {
        Verdict::Accept => (verdict::ACCEPT, None),
        Verdict::Drop => (verdict::DROP, None),
        Verdict::Goto(chain) => (verdict::GOTO, Some(chain)),
        Verdict::Jump(chain) => (verdict::JUMP, Some(chain)),
        Verdict::Return => (verdict::RETURN, None),
    };
    w.nest(data::VERDICT, |w| {
        w.put(data::VERDICT_CODE, &code.to_be_bytes());
        chain.iter().for_each(|chain| w.put_str(data::VERDICT_CHAIN, chain));
    });
}

fn put_reg(w: &mut Writer, kind: u16, reg: Reg) {
    w.put_u32(kind, REG32 + u32::from(reg.0));
}

/// Writes a constant.
pub(super) fn put_value(w: &mut Writer, kind: u16, value: &[u8]) {
    w.nest(kind, |w| w.put(data::VALUE, value));
}

/// Reads a constant.
pub(super) fn read_value(attributes: Attributes<'_>, kind: u16) -> Option<Vec<u8>> {
    attributes.nested(kind).get(data::VALUE).map(<[u8]>::to_vec)
}

/// Reads a register. The kernel names the ones on a multiple of sixteen bytes by their old numbers, 1 to 4.
fn read_reg(attributes: Attributes<'_>, kind: u16) -> Option<Reg> {
    let number = attributes.u32(kind)?;
    let slot = match number {
        1..=4 => (number - 1) * 4,
        REG32..=23 => number - REG32,
        _ => return None,
    };
    u8::try_from(slot).ok().map(Reg)
}

fn read(name: &str, a: Attributes<'_>) -> Option<Expr> {
    match name {
        "meta" => Some(Expr::Meta { key: meta_key(a.u32(meta::KEY)?)?, dreg: read_reg(a, meta::DREG)? }),
        "payload" => Some(Expr::Payload {
            base: base(a.u32(payload::BASE)?)?,
            offset: a.u32(payload::OFFSET)?,
            len: a.u32(payload::LEN)?,
            dreg: read_reg(a, payload::DREG)?,
        }),
        "exthdr" => read_exthdr(a),
        "cmp" => Some(Expr::Cmp {
            equal: match a.u32(cmp::OP)? {
                cmp::EQ => true,
                cmp::NEQ => false,
                _ => return None,
            },
            sreg: read_reg(a, cmp::SREG)?,
            data: read_value(a, cmp::DATA)?,
        }),
        "bitwise" if a.u32(bitwise::OP).unwrap_or(0) == 0 => Some(Expr::Bitwise {
            sreg: read_reg(a, bitwise::SREG)?,
            dreg: read_reg(a, bitwise::DREG)?,
            mask: read_value(a, bitwise::MASK)?,
            xor: read_value(a, bitwise::XOR)?,
        }),
        "lookup" => Some(Expr::Lookup {
            set: a.str(lookup::SET)?,
            sreg: read_reg(a, lookup::SREG)?,
            // The verdict of a verdict map goes to register 0: that is not to have no register.
            dreg: match a.get(lookup::DREG) {
                Some(_) => Some(read_reg(a, lookup::DREG)?),
                None => None,
            },
            invert: a.u32(lookup::FLAGS).unwrap_or(0) & lookup::F_INV != 0,
        }),
        "dynset" => read_dynset(a),
        "fwd" if a.get(fwd::SREG_ADDR).is_none() => Some(Expr::Fwd { sreg: read_reg(a, fwd::SREG_DEV)? }),
        "immediate" => match a.u32(immediate::DREG)? {
            0 => read_verdict(a.nested(immediate::DATA).nested(data::VERDICT)).map(Expr::Verdict),
            _ => Some(Expr::Immediate { dreg: read_reg(a, immediate::DREG)?, data: read_value(a, immediate::DATA)? }),
        },
        "reject" => read_reject(a).map(Expr::Reject),
        "log" => read_log(a),
        "limit" => read_limit(a),
        "connlimit" if a.u32(connlimit::FLAGS)? == connlimit::F_INV => {
            Some(Expr::CtCountOver { count: a.u32(connlimit::COUNT)? })
        }
        "counter" => Some(Expr::Counter),
        "ct" => Some(Expr::Ct { key: ct_key(a.u32(ct::KEY)?)?, dreg: read_reg(a, ct::DREG)? }),
        "fib" => (a.u32(fib::RESULT)? == fib::ADDRTYPE && a.u32(fib::FLAGS)? == fib::F_DADDR)
            .then_some(Expr::FibDaddrType { dreg: read_reg(a, fib::DREG)? }),
        "masq" => a.iter().next().is_none().then_some(Expr::Masquerade),
        "nat" => read_nat(a),
        "rt" => (a.u32(rt::KEY)? == rt::TCPMSS).then_some(Expr::RtTcpMss { dreg: read_reg(a, rt::DREG)? }),
        _ => None,
    }
}

fn read_exthdr(a: Attributes<'_>) -> Option<Expr> {
    let shape = (a.u32(exthdr::OP)?, a.u8(exthdr::TYPE)?, a.u32(exthdr::OFFSET)?, a.u32(exthdr::LEN)?);
    let present = a.u32(exthdr::FLAGS).unwrap_or(0) == exthdr::F_PRESENT;
    match shape {
        (exthdr::OP_IPV6, exthdr::ROUTING, 0, 1) if present => {
            Some(Expr::RoutingHeaderExists { dreg: read_reg(a, exthdr::DREG)? })
        }
        (exthdr::OP_IPV6, exthdr::FRAGMENT, 0, 1) if present => {
            Some(Expr::FragmentHeaderExists { dreg: read_reg(a, exthdr::DREG)? })
        }
        (exthdr::OP_TCPOPT, exthdr::MSS, 2, 2) => Some(Expr::SetTcpMss { sreg: read_reg(a, exthdr::SREG)? }),
        _ => None,
    }
}

fn read_dynset(a: Attributes<'_>) -> Option<Expr> {
    let (set, sreg) = (a.str(dynset::SET)?, read_reg(a, dynset::SREG_KEY)?);
    let inner = a.nested(dynset::EXPR);
    let limit = inner.nested(expr::DATA);
    match (a.u32(dynset::OP)?, inner.str(expr::NAME)?.as_str()) {
        (dynset::OP_UPDATE, "counter") => Some(Expr::Update { set, sreg }),
        (dynset::OP_ADD, "connlimit") if limit.u32(connlimit::FLAGS)? == connlimit::F_INV => {
            Some(Expr::CountOver { set, sreg, count: limit.u32(connlimit::COUNT)? })
        }
        _ => None,
    }
}

fn read_verdict(a: Attributes<'_>) -> Option<Verdict> {
    match a.u32(data::VERDICT_CODE)?.cast_signed() {
        verdict::ACCEPT => Some(Verdict::Accept),
        verdict::DROP => Some(Verdict::Drop),
        verdict::GOTO => a.str(data::VERDICT_CHAIN).map(Verdict::Goto),
        verdict::JUMP => a.str(data::VERDICT_CHAIN).map(Verdict::Jump),
        verdict::RETURN => Some(Verdict::Return),
        _ => None,
    }
}

fn read_reject(a: Attributes<'_>) -> Option<Reject> {
    match (a.u32(reject::TYPE)?, a.u8(reject::CODE)) {
        (reject::TCP_RST, _) => Some(Reject::TcpReset),
        (reject::ICMP_UNREACH, Some(13)) => Some(Reject::IcmpAdminProhibited),
        (reject::ICMP_UNREACH, Some(1)) => Some(Reject::Icmp6AdminProhibited),
        (reject::ICMPX_UNREACH, Some(3)) => Some(Reject::IcmpxAdminProhibited),
        _ => None,
    }
}

fn reject_numbers(how: Reject) -> (u32, u8) {
    match how {
        Reject::TcpReset => (reject::TCP_RST, 0),
        Reject::IcmpAdminProhibited => (reject::ICMP_UNREACH, 13),
        Reject::Icmp6AdminProhibited => (reject::ICMP_UNREACH, 1),
        Reject::IcmpxAdminProhibited => (reject::ICMPX_UNREACH, 3),
    }
}

fn read_log(a: Attributes<'_>) -> Option<Expr> {
    (a.u16(log::QTHRESHOLD).unwrap_or(0) == 0).then_some(Expr::Log {
        group: a.u16(log::GROUP)?,
        prefix: a.str(log::PREFIX).unwrap_or_default(),
        snaplen: a.u32(log::SNAPLEN).unwrap_or(0),
    })
}

fn read_limit(a: Attributes<'_>) -> Option<Expr> {
    (a.u64(limit::UNIT)? == 1 && a.u32(limit::TYPE)? == limit::PACKETS).then_some(Expr::Limit {
        per_second: a.u64(limit::RATE)?,
        burst: a.u32(limit::BURST)?,
        over: a.u32(limit::FLAGS).unwrap_or(0) & limit::F_INV != 0,
    })
}

/// The kernel answers with upper ends equal to the lower ones where only those were given.
fn read_nat(a: Attributes<'_>) -> Option<Expr> {
    let (addr, port) = (read_reg(a, nat::REG_ADDR_MIN)?, read_reg(a, nat::REG_PROTO_MIN));
    let no_range = read_reg(a, nat::REG_ADDR_MAX).is_none_or(|max| max == addr)
        && (a.get(nat::REG_PROTO_MAX).is_none() || read_reg(a, nat::REG_PROTO_MAX) == port);
    let plain = a.u32(nat::TYPE)? == nat::DNAT && a.u32(nat::FLAGS).unwrap_or(0) & !nat::F_PLAIN == 0;
    let ipv6 = match u8::try_from(a.u32(nat::FAMILY)?).ok()? {
        family::IPV4 => false,
        family::IPV6 => true,
        _ => return None,
    };
    (no_range && plain).then_some(Expr::Dnat { ipv6, addr, port })
}

const META: [(MetaKey, u32); 9] = [
    (MetaKey::Protocol, 1),
    (MetaKey::Iif, 4),
    (MetaKey::Oif, 5),
    (MetaKey::Iifname, 6),
    (MetaKey::Oifname, 7),
    (MetaKey::Nfproto, 15),
    (MetaKey::L4proto, 16),
    (MetaKey::Iifgroup, 21),
    (MetaKey::Oifgroup, 22),
];
const CT: [(CtKey, u32); 3] = [(CtKey::State, 0), (CtKey::Direction, 1), (CtKey::Status, 2)];
const BASE: [(Base, u32); 3] = [(Base::Link, 0), (Base::Network, 1), (Base::Transport, 2)];

fn meta_number(key: MetaKey) -> u32 {
    number(&META, key)
}

fn meta_key(number: u32) -> Option<MetaKey> {
    named(&META, number)
}

fn ct_number(key: CtKey) -> u32 {
    number(&CT, key)
}

fn ct_key(number: u32) -> Option<CtKey> {
    named(&CT, number)
}

fn base_number(base: Base) -> u32 {
    number(&BASE, base)
}

fn base(number: u32) -> Option<Base> {
    named(&BASE, number)
}

fn number<T: Copy + PartialEq>(table: &[(T, u32)], name: T) -> u32 {
    table.iter().find(|(n, _)| *n == name).expect("each variant has its row").1
}

fn named<T: Copy>(table: &[(T, u32)], number: u32) -> Option<T> {
    table.iter().find(|(_, n)| *n == number).map(|(name, _)| *name)
}
