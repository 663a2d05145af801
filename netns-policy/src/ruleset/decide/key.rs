//! Looking up a key, as the set back ends of the kernel do.
//!
//! A set of one field compares the bytes of its value; a concatenation compares every field padded to four bytes
//! (nft_set_hash.c), or, when its elements are ranges, the value of each field on its own (nft_set_pipapo.c).

use crate::ruleset::{Field, Key, Set};

/// Bytes of the key in the registers, from the first register of the key on.
pub(super) fn key_len(set: &Set) -> usize {
    match set.key[..] {
        [field] => field.width(),
        _ => set.key.iter().map(|field| field.padded_len()).sum(),
    }
}

/// The element that holds `key`, which has [`key_len`] bytes. In the kernel ranges cannot overlap; here the first wins.
pub(super) fn find<'a>(set: &'a Set, key: &[u8]) -> Option<(&'a Key, Option<&'a [u8]>)> {
    let (found, answer) = if set.interval {
        set.elements.iter().find(|(element, _)| holds(&set.key, element, key))
    } else {
        exact(set, key)
    }?;
    Some((found, answer.as_deref()))
}

fn exact<'a>(set: &'a Set, key: &[u8]) -> Option<(&'a Key, &'a Option<Vec<u8>>)> {
    let mut from = key.to_vec();
    from.resize(key.len().next_multiple_of(4), 0);
    set.elements.get_key_value(&Key { from, to: None })
}

fn holds(fields: &[Field], element: &Key, key: &[u8]) -> bool {
    let to = element.to.as_ref().unwrap_or(&element.from);
    let mut offset = 0;
    fields.iter().all(|field| {
        let value = |bytes: &'_ [u8]| -> Option<Vec<u8>> { Some(bytes.get(offset..offset + field.width())?.to_vec()) };
        let inside = match (value(&element.from), value(key), value(to)) {
            (Some(from), Some(value), Some(to)) => from <= value && value <= to,
            _ => false,
        };
        offset += field.padded_len();
        inside
    })
}
