//! Sees what gets past the rules of a namespace: a chain of the test's own behind ours, which logs to a socket here.
//!
//! - Packets are copied at the hook itself, behind the lock of the namespace: what a rule of ours drops is not seen,
//!   and what is seen no rule of ours dropped. A packet socket would see too much, a program too little.
//! - Nobody answers: what a namespace says of itself (resets, echo replies, ICMP errors) is dropped at its first hook,
//!   before conntrack could learn of it, and so are the refusals of the panel. Only what the test sends counts.
//! - What the interpreter leaves out on purpose, because it only makes more packets invalid, is switched off: checksums,
//!   TCP windows.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nsctl::kernel::netns::Netns;

/// The NFLOG group of the test, which is not ours.
const GROUP: u16 = 77;

/// The mark of what the test itself sends, as a program would.
pub const MARK: u32 = 0x6675_7a7a;

/// Where packets count as arrived.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Behind {
    /// The lock: at the end of the hook `input`, as they come from this link or the other.
    Lock(&'static [&'static str]),
    /// Nothing: whatever comes out of this link has arrived, and is taken away.
    Link(&'static str),
}

/// A socket that gets what arrives in one namespace.
pub struct Witness(OwnedFd);

impl Witness {
    /// Sets it up in a namespace; a witness of before makes way.
    pub fn post(netns: &Netns, behind: Behind) -> Self {
        let script = script(behind);
        let posted = netns.run(move || {
            for knob in
                ["nf_conntrack_checksum 0", "nf_conntrack_tcp_be_liberal 1", "nf_conntrack_tcp_ignore_invalid_rst 1"]
            {
                let (name, value) = knob.split_once(' ').expect("the constants have a space");
                fs::write(format!("/proc/sys/net/netfilter/{name}"), value)?;
            }
            let socket = listen()?;
            load(&script)?;
            Ok(Self(socket))
        });
        posted.unwrap_or_else(|error| panic!("no witness {behind:?}: {error}"))
    }

    /// The datagrams that arrived since the last time, from the network header on.
    pub fn take(&self) -> Vec<Vec<u8>> {
        let mut seen = Vec::new();
        let mut bytes = vec![0; 1 << 17];
        loop {
            match recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => payloads(&bytes[..len], &mut seen),
                Err(Errno::EAGAIN) => return seen,
                Err(errno) => panic!("the witness has lost something: {errno}"),
            }
        }
    }
}

fn script(behind: Behind) -> String {
    let log = format!("log group {GROUP} queue-threshold 1");
    let table = "table inet witness";
    // Neighbours still have to be found where a wire is an ordinary one.
    let neighbours = "meta l4proto ipv6-icmp icmpv6 type { 133, 134, 135, 136 } accept";
    let arrived = match behind {
        Behind::Lock(links) => {
            let links: Vec<String> = links.iter().map(|link| format!("\"{link}\"")).collect();
            let links = links.join(", ");
            // What the machine itself gets from outside would hold ports that a masquerade then has to avoid.
            let outside = format!("{neighbours}; iifname \"eth0\" drop");
            format!("type filter hook input priority 100; policy accept; iifname {{ {links} }} {log}; {outside}")
        }
        Behind::Link(link) => format!(
            "type filter hook prerouting priority -500; policy accept; {neighbours}; iifname \"{link}\" {log} drop"
        ),
    };
    let mute = format!("type filter hook output priority -500; policy accept; {neighbours}; meta mark != {MARK} drop");
    // What the panel refuses with has no number.
    let refusals = "type filter hook prerouting priority -501; policy accept; ip id 0 drop; ip6 flowlabel 0 drop";
    let chains = [("arrived", arrived.as_str()), ("mute", &mute), ("refusals", refusals)];
    let chains: String = chains.iter().map(|(name, rules)| format!("chain {name} {{ {rules}; }}\n")).collect();
    format!("{table}\ndelete {table}\n{table} {{\n{chains}}}\n")
}

/// Loads a script in the namespace of the calling thread.
pub fn load(script: &str) -> io::Result<()> {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    io::Write::write_all(&mut nft.stdin.take().expect("it is piped"), script.as_bytes())?;
    let output = nft.wait_with_output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{}\n{script}", String::from_utf8_lossy(&output.stderr)))),
    }
}

// linux/netfilter/nfnetlink.h, nfnetlink_log.h
const LOG_PACKET: u16 = 4 << 8;
const LOG_CONFIG: u16 = 4 << 8 | 1;
const CONFIG_COMMAND: u16 = 1;
const CONFIG_THRESHOLD: u16 = 5;
const PACKET_PAYLOAD: u16 = 9;
const COMMAND_BIND: u8 = 1;

fn listen() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    setsockopt(&socket, sockopt::RcvBuf, &(1 << 20))?;
    let attributes = [attribute(CONFIG_COMMAND, &[COMMAND_BIND]), attribute(CONFIG_THRESHOLD, &1u32.to_be_bytes())];
    let attributes = attributes.concat();
    let mut message = u32::try_from(20 + attributes.len()).expect("it is short").to_ne_bytes().to_vec();
    message.extend(LOG_CONFIG.to_ne_bytes());
    // NLM_F_REQUEST and NLM_F_ACK.
    message.extend(5u16.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0, 0]);
    message.extend(GROUP.to_be_bytes());
    message.extend(attributes);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 256];
    let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    match answer[..len].get(16..20) {
        Some([0, 0, 0, 0]) => Ok(socket),
        Some(errno) => {
            Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(errno.try_into().expect("these are four bytes"))))
        }
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).expect("it is short");
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The packets in what a socket of nfnetlink_log got: messages of attributes, both aligned to four bytes.
fn payloads(mut bytes: &[u8], seen: &mut Vec<Vec<u8>>) {
    let number = |bytes: &[u8], at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    while let (Some(len), Some(kind)) = (bytes.first_chunk(), number(bytes, 4)) {
        let len = usize::try_from(u32::from_ne_bytes(*len)).map_or(0, |len| len.min(bytes.len()));
        let mut attributes = bytes.get(20..len).unwrap_or_default();
        while let (Some(len), Some(attribute)) = (number(attributes, 0), number(attributes, 2)) {
            let len = usize::from(len).clamp(4, attributes.len());
            if kind == LOG_PACKET && attribute & 0x3fff == PACKET_PAYLOAD {
                seen.push(attributes[4..len].to_vec());
            }
            attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        bytes = bytes.get(len.max(16).next_multiple_of(4)..).unwrap_or_default();
    }
}
