//! What travels in a probe and comes back in an answer: 25 bytes that say which run, which place, which probe.
//!
//! The nonce keeps two runs at one time apart and tells our listeners from any other program. It is no secret.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Bytes of a token on the wire.
pub(super) const LEN: usize = 25;

/// The number of one run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Nonce(u128);

impl Nonce {
    /// A new one: the standard library seeds each of its hashers from the kernel's random numbers.
    pub(super) fn new() -> Self {
        let half = || u128::from(RandomState::new().build_hasher().finish());
        let half_again = || u128::from(RandomState::new().hash_one("nsctl verify"));
        Self(half() << 64 | half_again())
    }
}

/// Which way a token goes. Only requests are answered: two listeners must never talk to each other without end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Answer,
    Request,
}

/// A token: in a request `place` is who is asked, in an answer it is who answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Token {
    pub(super) nonce: Nonce,
    pub(super) kind: Kind,
    pub(super) place: u32,
    /// The number of the probe; `u32::MAX` in the greeting of a TCP listener, which does not know it.
    pub(super) probe: u32,
}

impl Token {
    pub(super) fn encode(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..16].copy_from_slice(&self.nonce.0.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.place.to_be_bytes());
        bytes[20..24].copy_from_slice(&self.probe.to_be_bytes());
        bytes[24] = self.kind as u8;
        bytes
    }

    /// The token in `bytes`, if these are exactly one token of that kind and of the run `nonce`.
    pub(super) fn decode(bytes: &[u8], nonce: Nonce, kind: Kind) -> Option<Self> {
        if bytes.len() != LEN || bytes[..16] != nonce.0.to_be_bytes() || bytes[24] != kind as u8 {
            return None;
        }
        let word = |at: usize| bytes[at..at + 4].iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        Some(Self { nonce, kind, place: word(16), probe: word(20) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_by_its_own_run_and_as_what_it_is() {
        let (nonce, other) = (Nonce::new(), Nonce::new());
        assert_ne!(nonce, other);
        let token = Token { nonce, kind: Kind::Request, place: 7, probe: 0x0102_0304 };
        assert_eq!(Token::decode(&token.encode(), nonce, Kind::Request), Some(token));
        assert_eq!(Token::decode(&token.encode(), nonce, Kind::Answer), None);
        assert_eq!(Token::decode(&token.encode(), other, Kind::Request), None);
        assert_eq!(Token::decode(&token.encode()[1..], nonce, Kind::Request), None);
    }
}
