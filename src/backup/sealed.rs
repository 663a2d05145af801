//! A stream that is sealed with a passphrase, in the age format, version 1 (<https://age-encryption.org/v1>), so that
//! age(1) opens it too.
//!
//! A random key is wrapped by one that scrypt (RFC 7914) makes of the passphrase, the header bears an HMAC of that key, and
//! what follows is chunks of 64 KiB under ChaCha20-Poly1305 (RFC 8439), numbered, the last one marked.
//!
//! # Invariants
//!
//! - Nothing is handed out that was not authenticated, and the end of the stream only where it was sealed: what was
//!   altered, cut off, lengthened or put into another order is refused.
//! - Keys are wiped when they are dropped.

use std::io::{self, BufRead, Read, Write};

use chacha20poly1305::aead::AeadInPlace as _;
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit as _, Nonce, Tag};
use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

use super::Passphrase;

const INTRO: &str = "age-encryption.org/v1";
const STANZA: &str = "-> scrypt ";
const LABEL: &[u8] = b"age-encryption.org/v1/scrypt";
const CHUNK: usize = 64 << 10;
const TAG: usize = 16;

/// The work of a guess, as the exponent of scrypt's N: 128 MiB and some tenths of a second.
pub(super) const WORK: u8 = 17;
/// More is not done for a file that comes from somewhere: 1 GiB of memory.
const MOST_WORK: u8 = 20;

/// Why a sealed stream cannot be opened.
#[derive(Debug, Error)]
pub enum Unopened {
    /// It is something else.
    #[error("it is not sealed with a passphrase in the age format")]
    Other,
    /// It would take more memory than a backup of ours does.
    #[error("to try a passphrase on it takes 2^{0} blocks of memory, which is more than any of ours")]
    Costly(u8),
    /// The passphrase is another one, or what says how to use it was altered.
    #[error("the passphrase is another one")]
    Passphrase,
    /// It was altered or cut off.
    #[error("it was altered or cut off")]
    Damaged,
    /// The system refused.
    #[error("the system refused")]
    Io(#[from] io::Error),
}

type Secret = Zeroizing<[u8; 32]>;

/// Seals what is written to it.
pub(super) struct Sealer<W: Write> {
    to: W,
    cipher: Chunks,
    plain: Zeroizing<Vec<u8>>,
}

impl<W: Write> Sealer<W> {
    /// Writes the header.
    ///
    /// # Errors
    ///
    /// What writing says.
    pub fn new(mut to: W, passphrase: &Passphrase, work: u8) -> io::Result<Self> {
        let (mut file_key, mut salt, mut nonce) = (Zeroizing::new([0; 16]), [0; 16], [0; 16]);
        for bytes in [&mut *file_key, &mut salt, &mut nonce] {
            getrandom::fill(bytes).map_err(other)?;
        }
        let mut wrapped = file_key.to_vec();
        let tag = cipher(&wrapping_key(passphrase, &salt, work)?)
            .encrypt_in_place_detached(&Nonce::default(), &[], &mut wrapped)
            .map_err(other)?;
        wrapped.extend(tag);
        let header = format!("{INTRO}\n{STANZA}{} {work}\n{}\n---", encode(&salt), encode(&wrapped));
        let mac = header_mac(&file_key[..], &header).finalize().into_bytes();
        to.write_all(format!("{header} {}\n", encode(&mac)).as_bytes())?;
        to.write_all(&nonce)?;
        let cipher = Chunks::new(&derived(&file_key[..], &nonce, b"payload"));
        Ok(Self { to, cipher, plain: Zeroizing::new(Vec::with_capacity(CHUNK)) })
    }

    /// Seals the end.
    ///
    /// # Errors
    ///
    /// What writing says.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let nonce = self.cipher.next(last)?;
        let tag = self.cipher.cipher.encrypt_in_place_detached(&nonce, &[], &mut self.plain);
        let tag = tag.map_err(other)?;
        self.to.write_all(&self.plain)?;
        self.to.write_all(&tag)?;
        self.plain.clear();
        Ok(())
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk waits, since it may be the last one.
        if self.plain.len() == CHUNK && !bytes.is_empty() {
            self.seal(false)?;
        }
        let n = bytes.len().min(CHUNK - self.plain.len());
        self.plain.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// What a header says: with it the rest can be read, as often as one likes.
pub(super) struct Opened(Secret);

/// Reads a header, and leaves `from` where the chunks begin.
///
/// # Errors
///
/// See [`Unopened`].
pub(super) fn open(from: &mut impl BufRead, passphrase: &Passphrase) -> Result<Opened, Unopened> {
    if line(from)? != INTRO {
        return Err(Unopened::Other);
    }
    let (stanza, body, end) = (line(from)?, line(from)?, line(from)?);
    let arguments = stanza.strip_prefix(STANZA).and_then(|rest| rest.split_once(' ')).ok_or(Unopened::Other)?;
    let mac = end.strip_prefix("--- ").ok_or(Unopened::Other)?;
    let work: u8 = arguments.1.parse().map_err(|_| Unopened::Other)?;
    if work > MOST_WORK || work == 0 {
        return Err(Unopened::Costly(work));
    }
    let salt: [u8; 16] = decode(arguments.0).ok_or(Unopened::Damaged)?;
    let wrapped: [u8; 32] = decode(&body).ok_or(Unopened::Damaged)?;
    let mac: [u8; 32] = decode(mac).ok_or(Unopened::Damaged)?;
    let mut file_key = Zeroizing::new([0; 16]);
    file_key.copy_from_slice(&wrapped[..16]);
    cipher(&wrapping_key(passphrase, &salt, work)?)
        .decrypt_in_place_detached(&Nonce::default(), &[], &mut file_key[..], Tag::from_slice(&wrapped[16..]))
        .map_err(|_| Unopened::Passphrase)?;
    let header = format!("{INTRO}\n{stanza}\n{body}\n---");
    header_mac(&file_key[..], &header).verify_slice(&mac).map_err(|_| Unopened::Damaged)?;
    let mut nonce = [0; 16];
    from.read_exact(&mut nonce).map_err(|_| Unopened::Damaged)?;
    Ok(Opened(derived(&file_key[..], &nonce, b"payload")))
}

/// Passes over a header that [`open`] has read before.
///
/// # Errors
///
/// See [`Unopened`].
pub(super) fn skip(from: &mut impl BufRead) -> Result<(), Unopened> {
    for _ in 0..4 {
        line(from)?;
    }
    from.read_exact(&mut [0; 16]).map_err(|_| Unopened::Damaged)
}

/// One line of a header, which is short.
fn line(from: &mut impl BufRead) -> Result<String, Unopened> {
    let mut line = Vec::new();
    from.take(128).read_until(b'\n', &mut line)?;
    match line.pop() {
        Some(b'\n') => String::from_utf8(line).map_err(|_| Unopened::Other),
        _ => Err(Unopened::Other),
    }
}

impl Opened {
    /// What was sealed, from where [`open`] left the stream.
    pub fn reader<R: BufRead>(&self, from: R) -> Opener<R> {
        let plain = Zeroizing::new(Vec::with_capacity(CHUNK + TAG));
        Opener { from, cipher: Chunks::new(&self.0), plain, at: 0, is_last: false }
    }
}

/// Opens what is read from it.
pub(super) struct Opener<R: BufRead> {
    from: R,
    cipher: Chunks,
    plain: Zeroizing<Vec<u8>>,
    at: usize,
    is_last: bool,
}

impl<R: BufRead> Opener<R> {
    fn next_chunk(&mut self) -> io::Result<()> {
        let damaged = || io::Error::other(Unopened::Damaged);
        self.plain.clear();
        self.at = 0;
        (&mut self.from).take((CHUNK + TAG) as u64).read_to_end(&mut self.plain)?;
        self.is_last = self.from.fill_buf()?.is_empty();
        let is_first = self.cipher.counter == 0;
        let length = self.plain.len().checked_sub(TAG).ok_or_else(damaged)?;
        if length == 0 && !is_first {
            return Err(damaged());
        }
        let nonce = self.cipher.next(self.is_last)?;
        let (text, tag) = self.plain.split_at_mut(length);
        let opened = self.cipher.cipher.decrypt_in_place_detached(&nonce, &[], text, Tag::from_slice(tag));
        // What is not authentic is handed out by no later call either.
        let opened = opened.map_err(|_| damaged());
        self.plain.truncate(if opened.is_ok() { length } else { 0 });
        opened
    }
}

impl<R: BufRead> Read for Opener<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.at == self.plain.len() && !self.is_last {
            self.next_chunk()?;
        }
        let n = bytes.len().min(self.plain.len() - self.at);
        bytes[..n].copy_from_slice(&self.plain[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// The cipher of the chunks, and which comes next.
struct Chunks {
    cipher: ChaCha20Poly1305,
    counter: u64,
}

impl Chunks {
    fn new(key: &Secret) -> Self {
        Self { cipher: cipher(key), counter: 0 }
    }

    /// Eleven bytes of the number, and one that marks the last chunk.
    fn next(&mut self, last: bool) -> io::Result<Nonce> {
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&self.counter.to_be_bytes());
        nonce[11] = u8::from(last);
        self.counter = self.counter.checked_add(1).ok_or_else(|| io::Error::other("too many chunks"))?;
        Ok(nonce.into())
    }
}

fn cipher(key: &Secret) -> ChaCha20Poly1305 {
    ChaCha20Poly1305::new(Key::from_slice(&key[..]))
}

fn wrapping_key(passphrase: &Passphrase, salt: &[u8; 16], work: u8) -> io::Result<Secret> {
    let parameters = scrypt::Params::new(work, 8, 1, 32).map_err(other)?;
    let mut key = Secret::default();
    scrypt::scrypt(passphrase.bytes(), &[LABEL, salt].concat(), &parameters, &mut key[..]).map_err(other)?;
    Ok(key)
}

fn derived(file_key: &[u8], salt: &[u8], label: &[u8]) -> Secret {
    let mut key = Secret::default();
    Hkdf::<Sha256>::new(Some(salt), file_key).expand(label, &mut key[..]).expect("32 bytes are one block");
    key
}

/// These crates have errors of their own kind where there is no standard library.
fn other(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

fn header_mac(file_key: &[u8], header: &str) -> Hmac<Sha256> {
    let key = derived(file_key, &[], b"header");
    let mac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(&key[..]).expect("a key of any length will do");
    mac.chain_update(header)
}

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 (RFC 4648) without padding.
fn encode(bytes: &[u8]) -> String {
    let letters = bytes.chunks(3).flat_map(|three| {
        let number = three.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        (0..=three.len()).map(move |at| char::from(LETTERS[(number >> (18 - 6 * at) & 63) as usize]))
    });
    letters.collect()
}

/// The bytes that are encoded so, and in no other way.
fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (mut bits, mut held, mut bytes) = (0u32, 0, Vec::with_capacity(N));
    for letter in text.bytes() {
        let value = LETTERS.iter().position(|known| *known == letter)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    let bytes: [u8; N] = bytes.try_into().ok()?;
    (encode(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const CHEAP: u8 = 1;

    fn passphrase() -> Passphrase {
        Passphrase::new(b"correct horse".to_vec()).unwrap()
    }

    fn sealed(text: &[u8]) -> Vec<u8> {
        let mut sealer = Sealer::new(Vec::new(), &passphrase(), CHEAP).unwrap();
        sealer.write_all(text).unwrap();
        sealer.finish().unwrap()
    }

    fn opened(sealed: &[u8], passphrase: &Passphrase) -> Result<Vec<u8>, Unopened> {
        let mut from = Cursor::new(sealed);
        let opened = open(&mut from, passphrase)?;
        let mut text = Vec::new();
        opened.reader(from).read_to_end(&mut text)?;
        Ok(text)
    }

    /// A text of this length, no two chunks of which are equal.
    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at / 251 + at) as u8).collect()
    }

    #[test]
    fn what_was_sealed_is_opened_whatever_its_length() {
        for length in [0, 1, 15, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7] {
            let text = text(length);
            assert_eq!(opened(&sealed(&text), &passphrase()).unwrap(), text, "{length}");
        }
    }

    /// By age 1.1.1, with a header of its own work.
    #[test]
    fn what_age_has_sealed_is_opened() {
        let sealed = include_bytes!("../../tests/golden/sealed-by-age.age");
        assert_eq!(opened(sealed, &passphrase()).unwrap(), b"sealed by age(1)\n");
    }

    #[test]
    fn another_passphrase_opens_nothing() {
        let other = Passphrase::new(b"correct horsf".to_vec()).unwrap();
        assert!(matches!(opened(&sealed(b"text"), &other), Err(Unopened::Passphrase)));
    }

    #[test]
    fn two_seals_of_one_text_have_nothing_in_common() {
        let (one, two) = (sealed(&text(64)), sealed(&text(64)));
        assert_ne!(one[one.len() - 80..], two[two.len() - 80..]);
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let whole = sealed(&text(100));
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut altered = whole.clone();
                altered[at] ^= 1 << bit;
                assert!(opened(&altered, &passphrase()).is_err(), "byte {at}, bit {bit}");
            }
        }
        assert!(opened(&whole, &passphrase()).is_ok(), "the control");
    }

    #[test]
    fn what_is_cut_off_or_lengthened_is_refused() {
        let whole = sealed(&text(100));
        for length in 0..whole.len() {
            assert!(opened(&whole[..length], &passphrase()).is_err(), "{length}");
        }
        // At the very end of a chunk too.
        let long = sealed(&text(3 * CHUNK));
        for chunks in 1..=3 {
            assert!(
                opened(&long[..long.len() - chunks * (CHUNK + TAG)], &passphrase()).is_err(),
                "{chunks} chunks less"
            );
        }
        for more in [1, TAG, CHUNK + TAG] {
            assert!(opened(&[&whole[..], &vec![0; more]].concat(), &passphrase()).is_err(), "{more} more");
        }
    }

    #[test]
    fn chunks_in_another_order_are_refused() {
        let whole = sealed(&text(3 * CHUNK));
        let at = |chunk: usize| whole.len() - (3 - chunk) * (CHUNK + TAG);
        let swapped = [&whole[..at(0)], &whole[at(1)..at(2)], &whole[at(0)..at(1)], &whole[at(2)..]].concat();
        assert_eq!(swapped.len(), whole.len());
        assert!(opened(&swapped, &passphrase()).is_err());
    }

    #[test]
    fn a_header_that_asks_for_the_memory_of_the_machine_is_refused_unread() {
        let whole = String::from_utf8_lossy(&sealed(b"")).into_owned();
        let asks = whole.replacen(" 1\n", " 30\n", 1);
        assert!(matches!(opened(asks.as_bytes(), &passphrase()), Err(Unopened::Costly(30))));
        let endless = [INTRO.as_bytes(), &[b'a'; 4096]].concat();
        assert!(matches!(opened(&endless, &passphrase()), Err(Unopened::Other)));
    }

    #[test]
    fn base64_is_read_in_its_one_form() {
        assert_eq!(encode(b"Man"), "TWFu");
        assert_eq!((encode(b"Ma"), encode(b"M")), ("TWE".into(), "TQ".into()));
        assert_eq!(decode::<2>("TWE"), Some(*b"Ma"));
        for other in ["TWF", "TWE=", "TW", "TWEA", "TW-", ""] {
            assert_eq!(decode::<2>(other), None, "{other}");
        }
    }
}
