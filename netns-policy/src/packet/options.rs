//! The options of an IPv4 header, read as `__ip_options_compile` does (net/ipv4/ip_options.c).

use super::ipv4_header;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const RECORD_ROUTE: u8 = 7;
const TIMESTAMP: u8 = 68;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const CIPSO: u8 = 134;
const STRICT_SOURCE_ROUTE: u8 = 137;
const ROUTER_ALERT: u8 = 148;

/// Whether the options of a well-formed header leave a packet on its way.
///
/// What cannot be read is dropped, and so is a source route: `accept_source_route` is 0 in every namespace of ours, and
/// on a host unless somebody asked for it (`ip_rcv_options`).
pub(super) fn are_taken(network: &[u8]) -> bool {
    ipv4_header(network).and_then(|len| network.get(20..len)).and_then(read).is_some()
}

fn read(mut rest: &[u8]) -> Option<()> {
    // A record and a timestamp stand once at most.
    let mut seen = [false; 2];
    let mut once = |which: usize| (!std::mem::replace(&mut seen[which], true)).then_some(());
    while let Some(kind) = rest.first() {
        let option = match *kind {
            END => break,
            NO_OPERATION => {
                rest = &rest[1..];
                continue;
            }
            _ => rest.get(..usize::from(*rest.get(1)?)).filter(|option| option.len() >= 2)?,
        };
        match *kind {
            // A source route, and CIPSO's labels, which nobody here has set up.
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE | CIPSO => return None,
            RECORD_ROUTE => {
                once(0)?;
                room(option, pointer(option, 4)?, 4)?;
            }
            TIMESTAMP => {
                once(1)?;
                timestamp(option)?;
            }
            ROUTER_ALERT => drop(option.get(3)?),
            _ => {}
        }
        rest = &rest[option.len()..];
    }
    Some(())
}

/// Where the next address goes, counted from 1.
fn pointer(option: &[u8], least: u8) -> Option<usize> {
    let pointer = *option.get(2)?;
    (pointer >= least).then_some(pointer.into())
}

/// Whether `len` bytes fit at a pointer that is not beyond the option.
fn room(option: &[u8], pointer: usize, len: usize) -> Option<()> {
    (pointer > option.len() || pointer - 1 + len <= option.len()).then_some(())
}

fn timestamp(option: &[u8]) -> Option<()> {
    let pointer = pointer(option, 5)?;
    let (overflow, form) = (option.get(3)? >> 4, option[3] & 0x0f);
    if pointer > option.len() {
        return (form == 3 || overflow < 15).then_some(());
    }
    room(option, pointer, 4)?;
    if form == 1 || form == 3 { room(option, pointer, 8) } else { Some(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Ends, Packet};

    fn of(bytes: &[u8]) -> bool {
        let ends = Ends::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into()).expect("both are IPv4");
        let packet = Packet::udp(ends, 1, 2, b"").with_options(bytes).expect("they fit");
        are_taken(packet.in_stack().expect("it is well formed").network)
    }

    #[test]
    fn options_are_read_as_the_kernel_does() {
        for sound in [
            &[1, 1, 1, 0][..],
            &[0, 9, 9, 9],
            &[7, 7, 4, 0, 0, 0, 0],
            &[68, 8, 5, 0, 0, 0, 0, 0],
            &[148, 4, 0, 0],
            &[130, 4, 0, 0],
        ] {
            assert!(of(sound), "{sound:?}");
        }
        for refused in [
            &[7, 39, 4, 0][..],
            &[7, 1, 4, 0],
            &[7, 7, 3, 0, 0, 0, 0],
            &[7, 6, 4, 0, 0, 0],
            &[7, 3, 4, 7, 3, 4],
            &[68, 8, 5, 1, 0, 0, 0, 0],
            &[68, 4, 5, 0xf0],
            &[131, 7, 4, 10, 0, 0, 3],
            &[137, 7, 8, 10, 0, 0, 3],
            &[148, 3, 0],
        ] {
            assert!(!of(refused), "{refused:?}");
        }
    }
}
