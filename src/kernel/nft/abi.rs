//! The numbers of linux/netfilter/nf_tables.h that this codec uses, without its prefixes.
//!
//! They are the kernel's user interface and never change.

#![allow(missing_docs, reason = "each name is the one of the header, where it is described")]

/// Message types, with the subsystem in the upper byte.
pub(super) mod msg {
    const fn nftables(number: u16) -> u16 {
        (10 << 8) | number
    }
    pub const BATCH_BEGIN: u16 = 0x10;
    pub const BATCH_END: u16 = 0x11;
    pub const NEWTABLE: u16 = nftables(0);
    pub const GETTABLE: u16 = nftables(1);
    pub const DELTABLE: u16 = nftables(2);
    pub const NEWCHAIN: u16 = nftables(3);
    pub const GETCHAIN: u16 = nftables(4);
    pub const DELCHAIN: u16 = nftables(5);
    pub const NEWRULE: u16 = nftables(6);
    pub const GETRULE: u16 = nftables(7);
    pub const DELRULE: u16 = nftables(8);
    pub const NEWSET: u16 = nftables(9);
    pub const GETSET: u16 = nftables(10);
    pub const DELSET: u16 = nftables(11);
    pub const NEWSETELEM: u16 = nftables(12);
    pub const GETSETELEM: u16 = nftables(13);
    pub const DELSETELEM: u16 = nftables(14);
    pub const NEWGEN: u16 = nftables(15);
    pub const GETGEN: u16 = nftables(16);
}

pub(super) mod nlm {
    pub const NOOP: u16 = 1;
    pub const ERROR: u16 = 2;
    pub const DONE: u16 = 3;
    pub const F_REQUEST: u16 = 0x1;
    pub const F_DUMP_INTR: u16 = 0x10;
    pub const F_DUMP: u16 = 0x300;
    pub const F_CREATE: u16 = 0x400;
    pub const F_APPEND: u16 = 0x800;
}

pub(super) mod family {
    pub const UNSPEC: u8 = 0;
    pub const INET: u8 = 1;
    pub const IPV4: u8 = 2;
    pub const ARP: u8 = 3;
    pub const NETDEV: u8 = 5;
    pub const BRIDGE: u8 = 7;
    pub const IPV6: u8 = 10;
}

pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const BATCH_GENID: u16 = 1;
pub(super) const LIST_ELEM: u16 = 1;
pub(super) const GEN_ID: u16 = 1;

pub(super) mod table {
    pub const NAME: u16 = 1;
    pub const FLAGS: u16 = 2;

    pub const F_OWNER: u32 = 0x2;
    pub const F_PERSIST: u32 = 0x4;
}

pub(super) mod chain {
    pub const TABLE: u16 = 1;
    pub const NAME: u16 = 3;
    pub const HOOK: u16 = 4;
    pub const POLICY: u16 = 5;
    pub const TYPE: u16 = 7;
}

pub(super) mod hook {
    pub const HOOKNUM: u16 = 1;
    pub const PRIORITY: u16 = 2;
    pub const DEV: u16 = 3;
    pub const DEVS: u16 = 4;
}

pub(super) mod rule {
    pub const TABLE: u16 = 1;
    pub const CHAIN: u16 = 2;
    pub const EXPRESSIONS: u16 = 4;
}

pub(super) mod set {
    pub const TABLE: u16 = 1;
    pub const NAME: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const KEY_TYPE: u16 = 4;
    pub const KEY_LEN: u16 = 5;
    pub const DATA_TYPE: u16 = 6;
    pub const DATA_LEN: u16 = 7;
    pub const DESC: u16 = 9;
    pub const ID: u16 = 10;
    pub const TIMEOUT: u16 = 11;
    pub const USERDATA: u16 = 13;
    pub const EXPR: u16 = 17;

    pub const DESC_SIZE: u16 = 1;
    pub const DESC_CONCAT: u16 = 2;
    pub const FIELD_LEN: u16 = 1;

    pub const F_CONSTANT: u32 = 0x2;
    pub const F_INTERVAL: u32 = 0x4;
    pub const F_MAP: u32 = 0x8;
    pub const F_TIMEOUT: u32 = 0x10;
    pub const F_EVAL: u32 = 0x20;
    pub const F_CONCAT: u32 = 0x80;
}

pub(super) mod element {
    pub const LIST_TABLE: u16 = 1;
    pub const LIST_SET: u16 = 2;
    pub const LIST_ELEMENTS: u16 = 3;

    pub const KEY: u16 = 1;
    pub const DATA: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const EXPR: u16 = 7;
    pub const KEY_END: u16 = 10;
    pub const EXPRESSIONS: u16 = 11;

    pub const F_INTERVAL_END: u32 = 1;
    pub const F_CATCHALL: u32 = 2;
}

pub(super) mod data {
    pub const VALUE: u16 = 1;
    pub const VERDICT: u16 = 2;
    pub const VERDICT_CODE: u16 = 1;
    pub const VERDICT_CHAIN: u16 = 2;
}

pub(super) mod verdict {
    pub const DROP: i32 = 0;
    pub const ACCEPT: i32 = 1;
    pub const JUMP: i32 = -3;
    pub const GOTO: i32 = -4;
    pub const RETURN: i32 = -5;
}

pub(super) mod expr {
    pub const NAME: u16 = 1;
    pub const DATA: u16 = 2;
}

pub(super) mod meta {
    pub const DREG: u16 = 1;
    pub const KEY: u16 = 2;
}

pub(super) mod payload {
    pub const DREG: u16 = 1;
    pub const BASE: u16 = 2;
    pub const OFFSET: u16 = 3;
    pub const LEN: u16 = 4;
}

pub(super) mod exthdr {
    pub const DREG: u16 = 1;
    pub const TYPE: u16 = 2;
    pub const OFFSET: u16 = 3;
    pub const LEN: u16 = 4;
    pub const FLAGS: u16 = 5;
    pub const OP: u16 = 6;
    pub const SREG: u16 = 7;
    pub const F_PRESENT: u32 = 1;
    pub const OP_IPV6: u32 = 0;
    pub const OP_TCPOPT: u32 = 1;
    /// Next header "routing" (RFC 8200).
    pub const ROUTING: u8 = 43;
    /// Next header "fragment" (RFC 8200).
    pub const FRAGMENT: u8 = 44;
    /// TCP option "maximum segment size" (RFC 9293).
    pub const MSS: u8 = 2;
}

pub(super) mod cmp {
    pub const SREG: u16 = 1;
    pub const OP: u16 = 2;
    pub const DATA: u16 = 3;
    pub const EQ: u32 = 0;
    pub const NEQ: u32 = 1;
}

pub(super) mod bitwise {
    pub const SREG: u16 = 1;
    pub const DREG: u16 = 2;
    pub const LEN: u16 = 3;
    pub const MASK: u16 = 4;
    pub const XOR: u16 = 5;
    pub const OP: u16 = 6;
}

pub(super) mod lookup {
    pub const SET: u16 = 1;
    pub const SREG: u16 = 2;
    pub const DREG: u16 = 3;
    pub const FLAGS: u16 = 5;
    pub const F_INV: u32 = 1;
}

pub(super) mod dynset {
    pub const SET: u16 = 1;
    pub const OP: u16 = 3;
    pub const SREG_KEY: u16 = 4;
    pub const EXPR: u16 = 7;
    pub const OP_ADD: u32 = 0;
    pub const OP_UPDATE: u32 = 1;
}

pub(super) mod connlimit {
    pub const COUNT: u16 = 1;
    pub const FLAGS: u16 = 2;
    pub const F_INV: u32 = 1;
}

pub(super) mod fwd {
    pub const SREG_DEV: u16 = 1;
    pub const SREG_ADDR: u16 = 2;
}

pub(super) mod immediate {
    pub const DREG: u16 = 1;
    pub const DATA: u16 = 2;
}

pub(super) mod reject {
    pub const TYPE: u16 = 1;
    pub const CODE: u16 = 2;
    pub const ICMP_UNREACH: u32 = 0;
    pub const TCP_RST: u32 = 1;
    pub const ICMPX_UNREACH: u32 = 2;
}

pub(super) mod log {
    pub const GROUP: u16 = 1;
    pub const PREFIX: u16 = 2;
    pub const SNAPLEN: u16 = 3;
    pub const QTHRESHOLD: u16 = 4;
}

pub(super) mod limit {
    pub const RATE: u16 = 1;
    pub const UNIT: u16 = 2;
    pub const BURST: u16 = 3;
    pub const TYPE: u16 = 4;
    pub const FLAGS: u16 = 5;
    pub const PACKETS: u32 = 0;
    pub const F_INV: u32 = 1;
}

pub(super) mod counter {
    pub const BYTES: u16 = 1;
    pub const PACKETS: u16 = 2;
}

pub(super) mod ct {
    pub const DREG: u16 = 1;
    pub const KEY: u16 = 2;
}

pub(super) mod fib {
    pub const DREG: u16 = 1;
    pub const RESULT: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const ADDRTYPE: u32 = 3;
    pub const F_DADDR: u32 = 2;
}

pub(super) mod nat {
    pub const TYPE: u16 = 1;
    pub const FAMILY: u16 = 2;
    pub const REG_ADDR_MIN: u16 = 3;
    pub const REG_ADDR_MAX: u16 = 4;
    pub const REG_PROTO_MIN: u16 = 5;
    pub const REG_PROTO_MAX: u16 = 6;
    pub const FLAGS: u16 = 7;
    pub const DNAT: u32 = 1;
    /// What the kernel adds by itself: `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`.
    pub const F_PLAIN: u32 = 3;
}

pub(super) mod rt {
    pub const DREG: u16 = 1;
    pub const KEY: u16 = 2;
    pub const TCPMSS: u32 = 3;
}

pub(super) mod byteorder {
    pub const SREG: u16 = 1;
    pub const DREG: u16 = 2;
    pub const OP: u16 = 3;
    pub const LEN: u16 = 4;
    pub const SIZE: u16 = 5;
    pub const HTON: u32 = 1;
}
