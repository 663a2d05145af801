//! What can be done to a packet: tags, fragments, extension headers, options, cuts.

use super::build::{clamp16, seal_ipv4};
use super::{ETHERNET, Ends, Extension, IPV4, IPV6, Packet, ipv4_length, ipv6};

impl Packet {
    /// The same frame behind a VLAN tag; `tpid` is [`super::VLAN`] or [`super::VLAN_SERVICE`].
    #[must_use]
    pub fn tagged(&self, tpid: u16, tci: u16) -> Self {
        let (addresses, rest) = self.frame().split_at(self.frame().len().min(12));
        Self::from_frame([addresses, &tpid.to_be_bytes(), &tci.to_be_bytes(), rest].concat())
    }

    /// The same datagram between other ends, as address translation leaves it for the rules behind: only a checksum
    /// below the IP header, which no rule reads, is left as it was. `None` when it is of another family.
    pub fn readdressed(&self, ends: Ends) -> Option<Self> {
        let view = self.in_stack().filter(|view| view.tag.is_none())?;
        let mut frame = self.frame().to_vec();
        match (ends, view.protocol) {
            (Ends::V4 { from, to }, IPV4) => {
                let header = frame.get_mut(ETHERNET..)?;
                let len = usize::from(header.first()? & 0x0f) * 4;
                let header = header.get_mut(..len)?;
                header[12..16].copy_from_slice(&from.octets());
                header[16..20].copy_from_slice(&to.octets());
                seal_ipv4(header);
            }
            (Ends::V6 { from, to }, IPV6) => {
                let header = frame.get_mut(ETHERNET..ETHERNET + 40)?;
                header[8..24].copy_from_slice(&from.octets());
                header[24..40].copy_from_slice(&to.octets());
            }
            _ => return None,
        }
        Some(Self::from_frame(frame))
    }

    /// The same ICMP error about a packet between other ends, as address translation leaves it. `None` when it embeds no
    /// header, or one of the other family.
    pub fn about(&self, ends: Ends) -> Option<Self> {
        let view = self.in_stack().filter(|view| view.tag.is_none())?;
        let inner = ETHERNET + view.transport?.offset + 8;
        let mut frame = self.frame().to_vec();
        let (at, addresses) = match (ends, frame.get(inner)? >> 4) {
            (Ends::V4 { from, to }, 4) => (inner + 12, [from.octets(), to.octets()].concat()),
            (Ends::V6 { from, to }, 6) => (inner + 8, [from.octets(), to.octets()].concat()),
            _ => return None,
        };
        frame.get_mut(at..at + addresses.len())?.copy_from_slice(&addresses);
        Some(Self::from_frame(frame))
    }

    /// The first `len` bytes of the frame.
    #[must_use]
    pub fn cut(&self, len: usize) -> Self {
        Self::from_frame(&self.frame()[..self.frame().len().min(len)])
    }

    /// The same IPv6 datagram with an extension header right behind its first header; `None` when it is no IPv6.
    pub fn with_extension(&self, extension: Extension) -> Option<Self> {
        let (header, body) = self.plain(IPV6)?;
        let added = extension.bytes(header[6]);
        Some(self.ipv6_with(extension.number(), &[&added, body]))
    }

    /// The same IPv4 datagram with options, which are padded to four bytes; `None` when it is no IPv4 or has some.
    pub fn with_options(&self, options: &[u8]) -> Option<Self> {
        let (header, body) = self.plain(IPV4)?;
        let mut header = header.to_vec();
        header.extend(options);
        header.resize(header.len().next_multiple_of(4), 0);
        (header.len() <= 60).then_some(())?;
        header[0] = 0x40 | u8::try_from(header.len() / 4).ok()?;
        Some(self.ipv4_with(header, body))
    }

    /// The same IPv6 datagram with the low 16 bits of its flow label set; `None` when it is no IPv6.
    pub fn with_flow_label(&self, label: u16) -> Option<Self> {
        self.at_ingress().filter(|view| view.tag.is_none() && view.protocol == IPV6 && view.network.len() >= 40)?;
        let mut frame = self.frame().to_vec();
        frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&label.to_be_bytes());
        Some(Self::from_frame(frame))
    }

    /// The datagram in two fragments, the second of which starts with byte `at` of the payload, rounded down to eight.
    /// `None` when it is no IP, is a fragment already or is too short.
    pub fn fragments(&self, at: usize) -> Option<(Self, Self)> {
        let at = at / 8 * 8;
        let view = self.in_stack().filter(|view| !view.is_fragment() && at > 0)?;
        let (header, body) = self.plain(view.protocol)?;
        let (head, tail) = body.split_at_checked(at).filter(|(_, tail)| !tail.is_empty())?;
        let field = u16::try_from(at).ok()?;
        if view.protocol == IPV6 {
            let part = |field: u16, bytes: &[u8]| {
                let [hi, lo] = field.to_be_bytes();
                self.ipv6_with(Extension::AtomicFragment.number(), &[&[header[6], 0, hi, lo, 0, 0, 0, 1], bytes])
            };
            return Some((part(1, head), part(field, tail)));
        }
        let part = |field: u16, bytes: &[u8]| {
            let mut header = header.to_vec();
            header[6..8].copy_from_slice(&field.to_be_bytes());
            self.ipv4_with(header, bytes)
        };
        Some((part(0x2000, head), part(field / 8, tail)))
    }

    /// The same datagram as connection tracking hands it on: without the fragment header of one that is all there
    /// (`nf_ct_frag6_gather`), and otherwise as it is.
    #[must_use]
    pub fn defragmented(&self) -> Self {
        self.unwrapped().unwrap_or_else(|| self.clone())
    }

    fn unwrapped(&self) -> Option<Self> {
        let view = self.in_stack().filter(|view| view.tag.is_none() && view.protocol == IPV6)?;
        let (header, announced) = ipv6::atomic_fragment(view.network)?;
        let mut datagram = view.network.to_vec();
        datagram[announced] = *datagram.get(header)?;
        datagram.get(header..header + 8)?;
        datagram.drain(header..header + 8);
        let len = clamp16(datagram.len().checked_sub(40)?).to_be_bytes();
        datagram[4..6].copy_from_slice(&len);
        Some(Self::from_frame([&self.frame()[..ETHERNET], &datagram].concat()))
    }

    /// Header (without extensions or options) and the rest of a well-formed datagram in an untagged frame.
    fn plain(&self, protocol: u16) -> Option<(&[u8], &[u8])> {
        let view = self.at_ingress().filter(|view| view.tag.is_none() && view.protocol == protocol)?;
        let (header, total) = match protocol {
            IPV4 if view.network.first() == Some(&0x45) => (20, ipv4_length(view.network)?),
            IPV6 => (40, ipv6::length(view.network)?),
            _ => return None,
        };
        view.network.get(..total)?.split_at_checked(header)
    }

    fn ipv4_with(&self, mut header: Vec<u8>, body: &[u8]) -> Self {
        let total = clamp16(header.len() + body.len()).to_be_bytes();
        header[2..4].copy_from_slice(&total);
        seal_ipv4(&mut header);
        Self::from_frame([&self.frame()[..ETHERNET], &header, body].concat())
    }

    fn ipv6_with(&self, next: u8, body: &[&[u8]]) -> Self {
        let body = body.concat();
        let mut frame = self.frame()[..ETHERNET + 40].to_vec();
        frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&clamp16(body.len()).to_be_bytes());
        frame[ETHERNET + 6] = next;
        frame.extend(body);
        Self::from_frame(frame)
    }
}
