//! Protocols and ports, parsed once: a [`Ports`] is a protocol with a range that is not empty and does not hold 0.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A transport protocol that has ports.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// RFC 9293, protocol number 6.
    Tcp,
    /// RFC 768, protocol number 17.
    Udp,
}

impl Protocol {
    /// The number in the IP header (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Why a text is not a port or a range of ports.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidPort {
    /// The range ends before it begins.
    #[error("the range {lo}-{hi} runs backwards")]
    Backwards {
        /// First port as written.
        lo: u16,
        /// Last port as written.
        hi: u16,
    },
    /// Not of the form `tcp:8332`, `udp:53` or `tcp:28332-28333`.
    #[error("expected `tcp:PORT`, `udp:PORT` or `tcp:FIRST-LAST`")]
    Form,
    /// Not a number from 1 to 65535 in its plain form.
    #[error("a port is a number from 1 to 65535, this is {0:?}")]
    Number(String),
}

/// One or more ports of one protocol: `tcp:8332`, `tcp:28332-28333`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ports {
    protocol: Protocol,
    lo: u16,
    hi: u16,
}

impl Ports {
    /// The ports `lo` to `hi`, both included.
    ///
    /// # Errors
    ///
    /// [`InvalidPort::Number`] when `lo` is 0, [`InvalidPort::Backwards`] when `hi` is below `lo`.
    pub fn new(protocol: Protocol, lo: u16, hi: u16) -> Result<Self, InvalidPort> {
        if lo == 0 {
            return Err(InvalidPort::Number("0".into()));
        }
        if hi < lo {
            return Err(InvalidPort::Backwards { lo, hi });
        }
        Ok(Self { protocol, lo, hi })
    }

    /// The protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The first port.
    pub fn lo(&self) -> u16 {
        self.lo
    }

    /// The last port; equal to [`Ports::lo`] for a single one.
    pub fn hi(&self) -> u16 {
        self.hi
    }

    /// How many ports, 1 to 65535.
    pub fn count(&self) -> u32 {
        u32::from(self.hi - self.lo) + 1
    }

    /// Whether `port` of `protocol` is one of these.
    pub fn covers(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && (self.lo..=self.hi).contains(&port)
    }

    /// Whether any port is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.protocol == other.protocol && self.lo <= other.hi && other.lo <= self.hi
    }
}

impl FromStr for Ports {
    type Err = InvalidPort;

    fn from_str(s: &str) -> Result<Self, InvalidPort> {
        let (protocol, range) = s.split_once(':').ok_or(InvalidPort::Form)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(InvalidPort::Form),
        };
        match range.split_once('-') {
            Some((lo, hi)) if !lo.is_empty() => Self::new(protocol, number(lo)?, number(hi)?),
            _ => number(range).and_then(|port| Self::new(protocol, port, port)),
        }
    }
}

/// A port in its plain form: no sign, no blank, no leading zero, so that one port has one spelling.
pub(crate) fn number(s: &str) -> Result<u16, InvalidPort> {
    let plain = !s.is_empty() && !s.starts_with('0') && s.bytes().all(|b| b.is_ascii_digit());
    match s.parse::<u16>() {
        Ok(port) if plain => Ok(port),
        _ => Err(InvalidPort::Number(s.to_owned())),
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lo == self.hi {
            write!(f, "{}:{}", self.protocol, self.lo)
        } else {
            write!(f, "{}:{}-{}", self.protocol, self.lo, self.hi)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_one_spelling() {
        for good in ["tcp:1", "udp:65535", "tcp:28332-28333"] {
            assert_eq!(good.parse::<Ports>().unwrap().to_string(), good);
        }
        for bad in ["tcp:0", "tcp:080", "tcp:80 ", "tcp:-1", "tcp:+80", "tcp:65536", "tcp:", "80", "sctp:80"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad:?} passed");
        }
        assert_eq!("tcp:-1".parse::<Ports>(), Err(InvalidPort::Number("-1".into())), "it is told whole");
        assert_eq!("tcp:90-80".parse::<Ports>(), Err(InvalidPort::Backwards { lo: 90, hi: 80 }));
    }
}
