//! Netlink attributes: written into one growing buffer, read without a copy.
//!
//! Numbers of nf_tables are in network byte order; [`Writer`] and [`Attributes`] know no other. What is malformed reads
//! as absent: the kernel is the only sender.

use netlink_packet_core::{NlaBuffer, NlasIterator};

const NESTED: u16 = 1 << 15;

/// Bytes of one or more netlink messages in the making.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// What was written so far.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Writes one message: the header of netlink, that of nfnetlink, then what `body` writes.
    pub(super) fn message(&mut self, header: &Header, body: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(&header.kind.to_ne_bytes());
        self.0.extend_from_slice(&header.flags.to_ne_bytes());
        self.0.extend_from_slice(&header.sequence.to_ne_bytes());
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(&[header.family, 0]);
        self.0.extend_from_slice(&header.resource.to_be_bytes());
        body(self);
        let len = u32::try_from(self.0.len() - start).expect("one message is kept below 64 KiB by its attributes");
        self.0[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Writes an attribute, padded to four bytes.
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).expect("an attribute has less than 64 KiB");
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn put_u8(&mut self, kind: u16, value: u8) {
        self.put(kind, &[value]);
    }

    pub(super) fn put_u16(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_be_bytes());
    }

    pub(super) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    pub(super) fn put_u64(&mut self, kind: u16, value: u64) {
        self.put(kind, &value.to_be_bytes());
    }

    /// Writes a string with the NUL that ends it.
    pub(super) fn put_str(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes);
    }

    /// Writes an attribute that holds the ones `body` writes.
    pub(super) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(self);
        let len = u16::try_from(self.0.len() - start).expect("lists are split before they reach 64 KiB");
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }
}

/// The start of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Subsystem and message number.
    pub(super) kind: u16,
    /// `NLM_F_*`.
    pub(super) flags: u16,
    /// What an answer repeats.
    pub(super) sequence: u32,
    /// `NFPROTO_*`.
    pub(super) family: u8,
    /// The subsystem again, in the brackets of a batch.
    pub(super) resource: u16,
}

/// A run of attributes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Kind and value of each attribute, in order.
    pub(super) fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let whole = self.0;
        NlasIterator::new(whole).map_while(|nla: Result<NlaBuffer<&'a [u8]>, _>| {
            let nla = nla.ok()?;
            let (kind, len) = (nla.kind(), usize::from(nla.length()));
            Some((kind, nla.into_inner().get(4..len)?))
        })
    }

    /// The value of the first attribute of this kind.
    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    /// The attributes inside the first attribute of this kind; none when it is absent.
    pub(super) fn nested(self, kind: u16) -> Self {
        Self(self.get(kind).unwrap_or_default())
    }

    pub(super) fn u8(self, kind: u16) -> Option<u8> {
        self.get(kind)?.first().copied()
    }

    pub(super) fn u16(self, kind: u16) -> Option<u16> {
        Some(u16::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    pub(super) fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    pub(super) fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A string without the NUL that ends it.
    pub(super) fn str(self, kind: u16) -> Option<String> {
        let bytes = self.get(kind)?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut w = Writer::default();
        w.put_u16(1, 7);
        w.nest(2, |w| w.put_str(3, "name"));
        w.put_u64(4, 1 << 40);
        let read = Attributes::new(w.bytes());
        assert_eq!(read.u16(1), Some(7));
        assert_eq!(read.nested(2).str(3).as_deref(), Some("name"));
        assert_eq!(read.u64(4), Some(1 << 40));
        assert_eq!(read.u32(5), None);
    }

    #[test]
    fn a_cut_attribute_reads_as_absent() {
        let mut w = Writer::default();
        w.put_u32(1, 7);
        assert_eq!(Attributes::new(&w.bytes()[..6]).u32(1), None);
    }
}
