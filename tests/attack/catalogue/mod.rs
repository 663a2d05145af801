//! The forged frames, each with what has to become of it.
//!
//! # Invariants
//!
//! - No two frames are equal, so that one which is seen somewhere can be told.
//! - Each kind of frame is built a second time around a tuple that the policy allows, and that one has to arrive.

mod frames;
mod icmp;
mod source;
mod transport;

use std::net::IpAddr;

use netns_policy::packet::{Ends, Packet};

use super::arena::{Arena, Ip};

/// What has to become of a frame.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Expected {
    /// It comes out of no wire: the panel stops it.
    Nowhere,
    /// It may come out of the wire of its addressee; no socket gets it and nobody answers: the lock stops it.
    Silence,
    /// It comes out of the wire of its addressee, and of no other.
    Wire,
    /// That, and its addressee's socket gets it, or answers it.
    Heard,
}

pub struct Attack {
    pub name: String,
    pub from: &'static str,
    /// Whose wire it is meant for.
    pub to: &'static str,
    pub packet: Packet,
    pub expected: Expected,
}

/// Everything, in both families.
pub fn all(arena: &Arena) -> Vec<Attack> {
    let mut catalogue = Catalogue { arena, attacks: Vec::new(), next: 20_000 };
    for ip in super::arena::BOTH {
        source::add(&mut catalogue, ip);
        transport::add(&mut catalogue, ip);
        frames::add(&mut catalogue, ip);
        icmp::add(&mut catalogue, ip);
    }
    catalogue.attacks
}

struct Catalogue<'a> {
    arena: &'a Arena,
    attacks: Vec<Attack>,
    next: u16,
}

impl Catalogue<'_> {
    /// A port that no other frame has.
    fn port(&mut self) -> u16 {
        self.next += 1;
        self.next
    }

    fn add(&mut self, expected: Expected, (from, to): (&'static str, &'static str), name: &str, packet: Packet) {
        let family = match packet.at_ingress().map(|view| view.protocol) {
            Some(netns_policy::packet::IPV4) => "v4 ",
            Some(netns_policy::packet::IPV6) => "v6 ",
            _ => "",
        };
        let name = format!("{family}{name}");
        self.attacks.push(Attack { name, from, to, packet, expected });
    }

    fn ends(&self, ip: Ip, from: &str, to: &str) -> Ends {
        self.arena.ends(ip, from, to)
    }

    fn address(&self, ip: Ip, name: &str) -> IpAddr {
        self.arena.address(ip, name)
    }

    /// A TCP segment from a port of its own.
    fn tcp(&mut self, ends: Ends, dport: u16, flags: u8) -> Packet {
        Packet::tcp(ends, self.port(), dport, flags)
    }

    /// A datagram from a port of its own, with that port as its text.
    fn udp(&mut self, ends: Ends, dport: u16) -> Packet {
        let port = self.port();
        Packet::udp(ends, port, dport, format!("attack {port}").as_bytes())
    }

    /// A datagram from a given port to one of its own or to a given one.
    fn udp_from(&mut self, ends: Ends, sport: u16, dport: u16) -> Packet {
        let mark = self.port();
        Packet::udp(ends, sport, dport, format!("attack {mark}").as_bytes())
    }

    /// A datagram of any protocol whose first bytes look like these ports.
    fn other(&mut self, ends: Ends, protocol: u8, dport: u16) -> Packet {
        let port = self.port();
        Packet::ip(ends, protocol, [&port.to_be_bytes()[..], &dport.to_be_bytes(), &[0; 28]].concat())
    }
}
