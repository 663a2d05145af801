//! One listener to one NFLOG group, for as long as one packet takes.

use std::io;
use std::time::Duration;

use netlink_packet_core::{DefaultNla, Emitable};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::super::socket::{NetlinkSocket, Packed};

// linux/netfilter/nfnetlink.h, nfnetlink_log.h
const SUBSYSTEM: u16 = 4 << 8;
const PACKET: u16 = SUBSYSTEM;
const CONFIG: u16 = SUBSYSTEM | 1;
const CFG_COMMAND: u16 = 1;
const CFG_THRESHOLD: u16 = 5;
const COMMAND_BIND: u8 = 1;

/// A socket that is bound to a group.
pub(super) struct Listener(NetlinkSocket);

impl Listener {
    /// Binds to `group` in the namespace of the calling thread. `EBUSY` when somebody else has it.
    pub(super) fn bind(group: u16) -> io::Result<Self> {
        let mut socket = NetlinkSocket::open(NETLINK_NETFILTER)?;
        let attributes = [
            DefaultNla::new(CFG_COMMAND, vec![COMMAND_BIND]),
            // Else the kernel collects packets for up to a second.
            DefaultNla::new(CFG_THRESHOLD, 1u32.to_be_bytes().into()),
        ];
        // The command makes the group, and what follows in the same message configures it.
        let [high, low] = group.to_be_bytes();
        let mut payload = vec![0, 0, high, low];
        let mut bytes = vec![0; attributes.as_slice().buffer_len()];
        attributes.as_slice().emit(&mut bytes);
        payload.extend(bytes);
        match socket.tell(&[Packed::new(CONFIG, 0, payload)])?.pop() {
            Some((_, refusal)) => Err(refusal.errno.into()),
            None => Ok(Self(socket)),
        }
    }

    /// Waits for a packet that was logged.
    pub(super) fn packet(&mut self, patience: Duration) -> io::Result<()> {
        match self.0.wait_for(PACKET, patience)? {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::TimedOut, "the rule was taken, but nothing was logged")),
        }
    }
}
