//! Names, parsed once.
//!
//! A name that exists is well formed: paths, units, logs and the files of the operator can hold it without quoting.
//! The kernel's own limit (a link has 15 bytes) is the business of [`LinkName`] alone; no other name is ever shortened.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use thiserror::Error;

/// Why a text is not a name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidName {
    /// A character outside `a-z 0-9 -`.
    #[error("{0:?} is not one of a-z, 0-9 and -")]
    BadChar(char),
    /// The first character is not a letter.
    #[error("it does not start with a letter")]
    BadStart,
    /// No character at all.
    #[error("it is empty")]
    Empty,
    /// A word of the language, which would be ambiguous as a name.
    #[error("`{0}` is a reserved word")]
    Reserved(String),
    /// More than 63 bytes.
    #[error("{len} bytes, the limit is 63")]
    TooLong {
        /// How many bytes it has.
        len: usize,
    },
}

/// Words that mean something in the policy language or in the fabric, so that no service or peer may have them.
pub const RESERVED: [&str; 11] =
    ["all", "clearnet", "default", "fabric", "host", "lan", "lo", "metadata", "uplink", "wan", "wireguard"];

const MAX_LEN: usize = 63;

fn well_formed(s: &str) -> Result<(), InvalidName> {
    let Some(first) = s.chars().next() else {
        return Err(InvalidName::Empty);
    };
    if let Some(c) = s.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(InvalidName::BadChar(c));
    }
    if !first.is_ascii_lowercase() {
        return Err(InvalidName::BadStart);
    }
    if s.len() > MAX_LEN {
        return Err(InvalidName::TooLong { len: s.len() });
    }
    Ok(())
}

fn not_reserved(s: &str) -> Result<(), InvalidName> {
    if RESERVED.contains(&s) { Err(InvalidName::Reserved(s.to_owned())) } else { Ok(()) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $check:expr) => {
        $(#[$doc])*
        ///
        /// One to 63 bytes of `a-z 0-9 -`, the first a letter, as in a host name (RFC 1123).
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(s: &str) -> Result<Self, InvalidName> {
                well_formed(s)?;
                let check: fn(&str) -> Result<(), InvalidName> = $check;
                check(s)?;
                Ok(Self(s.to_owned()))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// The name of a service: it can be looked up from inside the namespaces that may reach it.
    ServiceName, not_reserved
);
name!(
    /// The name of a person's device.
    PeerName, not_reserved
);
name!(
    /// The name of a network: one policy, one fabric. Namespaces are named `<network>-<service>`.
    NetworkName, |_| Ok(())
);
name!(
    /// The name of a port or of a unix socket of a service, such as `rpc`.
    PortName, |_| Ok(())
);
name!(
    /// The name of a fragment: a file that may define services and ask for edges, and open none.
    FragmentName, |_| Ok(())
);
name!(
    /// A tag: `connect."@web"` means every service that has the tag `web`.
    Tag, |_| Ok(())
);

/// The name of a network link: at most 15 bytes (`IFNAMSIZ` less the NUL, see netdevice(7)).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LinkName(String);

impl LinkName {
    /// How many bytes the kernel gives a link name.
    pub const MAX_LEN: usize = 15;

    /// The link name for `name`: the name itself where it fits; else its first eight bytes, a `+` (which no service
    /// name may hold, so the two forms cannot meet) and six hex digits of its SHA-256.
    pub fn for_name(name: &str) -> Self {
        if name.len() <= Self::MAX_LEN {
            return Self(name.to_owned());
        }
        let digest = Sha256::digest(name.as_bytes());
        let head: String = name.chars().take(8).collect();
        Self(format!("{head}+{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2]))
    }

    /// A name read from the kernel, which has checked it.
    pub fn from_kernel(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_service_name_is_legal_and_its_link_name_is_short_and_its_own() {
        let a = "joinmarket-ob-watcher".parse::<ServiceName>().unwrap();
        let b = "joinmarket-ob-watches".parse::<ServiceName>().unwrap();
        let (a, b) = (LinkName::for_name(a.as_str()), LinkName::for_name(b.as_str()));
        assert!(a.as_str().len() <= LinkName::MAX_LEN);
        assert_ne!(a, b);
        assert_eq!(LinkName::for_name("spark-wallet").as_str(), "spark-wallet");
    }

    #[test]
    fn what_is_not_a_name_says_why() {
        assert_eq!("".parse::<ServiceName>(), Err(InvalidName::Empty));
        assert_eq!("Bitcoind".parse::<ServiceName>(), Err(InvalidName::BadChar('B')));
        assert_eq!("-a".parse::<ServiceName>(), Err(InvalidName::BadStart));
        assert_eq!("host".parse::<ServiceName>(), Err(InvalidName::Reserved("host".into())));
        assert!("a".repeat(63).parse::<ServiceName>().is_ok());
        assert_eq!("a".repeat(64).parse::<ServiceName>(), Err(InvalidName::TooLong { len: 64 }));
    }
}
