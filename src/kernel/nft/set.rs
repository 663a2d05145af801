//! Sets and their elements, from and to the kernel's attributes.
//!
//! The kernel keeps a set of single-field ranges as a sorted list of ends, where the upper one is the first key that is
//! *not* in the range and is missing when the range goes to the largest key. The model has both ends included.

use netns_policy::ruleset::{Count, Dynamic, Field, Key, Set};

use super::abi::{LIST_ELEM, counter, data, element, expr, set};
use super::attribute::{Attributes, Writer};
use super::expression::{put_value, read_value, write_named};

/// Bits that a type takes in the number of a concatenation (nft(8): `TYPE_BITS`).
const TYPE_BITS: u32 = 6;

/// nft(8)'s notes on a set, so that its listings read numbers in the right byte order.
const NOTE_KEY_ORDER: u8 = 0;
const NOTE_DATA_ORDER: u8 = 1;
const HOST_ORDER: u32 = 1;
const NETWORK_ORDER: u32 = 2;

/// Writes the attributes that define a set, but for its table and name.
pub(super) fn write_shape(w: &mut Writer, id: u32, shape: &Set) {
    w.put_u32(set::ID, id);
    w.put_u32(set::FLAGS, flags(shape));
    w.put_u32(set::KEY_TYPE, shape.key.iter().fold(0, |number, field| (number << TYPE_BITS) | field.number()));
    w.put_u32(set::KEY_LEN, length(key_len(&shape.key)));
    if let Some(answer) = shape.data {
        w.put_u32(set::DATA_TYPE, answer.number());
        w.put_u32(set::DATA_LEN, length(answer.width()));
    }
    if let Some(Dynamic { timeout, .. }) = shape.dynamic
        && timeout > 0
    {
        w.put_u64(set::TIMEOUT, u64::from(timeout) * 1000);
    }
    write_description(w, shape);
    w.put(set::USERDATA, &notes(shape));
    if shape.counter {
        w.nest(set::EXPR, |w| write_named(w, "counter", |_| ()));
    }
}

fn flags(shape: &Set) -> u32 {
    let timeout = shape.dynamic.is_some_and(|dynamic| dynamic.timeout > 0);
    [
        (shape.interval, set::F_INTERVAL),
        (shape.interval && shape.key.len() > 1, set::F_CONCAT),
        (shape.data.is_some(), set::F_MAP),
        (shape.dynamic.is_some(), set::F_EVAL),
        (timeout, set::F_TIMEOUT),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .fold(0, |flags, (_, flag)| flags | flag)
}

fn write_description(w: &mut Writer, shape: &Set) {
    let fields = shape.interval && shape.key.len() > 1;
    if !fields && shape.dynamic.is_none() {
        return;
    }
    w.nest(set::DESC, |w| {
        shape.dynamic.iter().for_each(|dynamic| w.put_u32(set::DESC_SIZE, dynamic.size));
        if fields {
            w.nest(set::DESC_CONCAT, |w| {
                for field in &shape.key {
                    w.nest(LIST_ELEM, |w| w.put_u32(set::FIELD_LEN, length(field.width())));
                }
            });
        }
    });
}

/// A concatenation has no byte order of its own; nft(8) writes 0 then, and reads the fields' own.
fn notes(shape: &Set) -> Vec<u8> {
    let key_order = match shape.key[..] {
        [field] => order(field),
        _ => 0,
    };
    let mut notes = vec![NOTE_KEY_ORDER, 4];
    notes.extend(key_order.to_ne_bytes());
    if let Some(answer) = shape.data {
        notes.extend([NOTE_DATA_ORDER, 4]);
        notes.extend(order(answer).to_ne_bytes());
    }
    notes
}

fn order(field: Field) -> u32 {
    if field == Field::IfaceIndex { HOST_ORDER } else { NETWORK_ORDER }
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("a key has at most 64 bytes")
}

/// Bytes of a key as the kernel counts them: only the fields of a concatenation are padded.
fn key_len(key: &[Field]) -> usize {
    match key {
        [field] => field.width(),
        fields => fields.iter().map(|field| field.padded_len()).sum(),
    }
}

/// Reads the definition of a set. One whose types or flags the model has no words for gets an empty key, which equals
/// no set of ours.
pub(super) fn read_shape(a: Attributes<'_>) -> Set {
    let flags = a.u32(set::FLAGS).unwrap_or(0);
    let description = a.nested(set::DESC);
    let timeout = a.u64(set::TIMEOUT).map_or(0, |ms| u32::try_from(ms / 1000).unwrap_or(u32::MAX));
    let is = |flag| flags & flag != 0;
    let mut shape = Set {
        key: fields(a.u32(set::KEY_TYPE).unwrap_or(0)).unwrap_or_default(),
        data: a.u32(set::DATA_TYPE).filter(|_| is(set::F_MAP)).and_then(field),
        interval: is(set::F_INTERVAL),
        dynamic: is(set::F_EVAL).then(|| Dynamic { size: description.u32(set::DESC_SIZE).unwrap_or(0), timeout }),
        counter: a.nested(set::EXPR).str(expr::NAME).as_deref() == Some("counter"),
        elements: Default::default(),
    };
    let unknown = is(!(self::flags(&shape) | set::F_CONSTANT | set::F_CONCAT | set::F_TIMEOUT));
    let static_timeout = is(set::F_TIMEOUT) && !is(set::F_EVAL);
    if unknown || static_timeout || key_len(&shape.key) != a.u32(set::KEY_LEN).unwrap_or(0) as usize {
        shape.key.clear();
    }
    shape
}

fn fields(mut number: u32) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while number != 0 {
        fields.push(field(number & ((1 << TYPE_BITS) - 1))?);
        number >>= TYPE_BITS;
    }
    fields.reverse();
    Some(fields)
}

fn field(number: u32) -> Option<Field> {
    use Field::{IcmpType, Icmpv6Type, IfaceIndex, InetProto, InetService, Ipv4Addr, Ipv6Addr};
    [IfaceIndex, Ipv4Addr, Ipv6Addr, InetProto, InetService, IcmpType, Icmpv6Type]
        .into_iter()
        .find(|field| field.number() == number)
}

/// One element as the kernel has it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Element {
    key: Vec<u8>,
    key_end: Option<Vec<u8>>,
    answer: Option<Vec<u8>>,
    flags: u32,
    count: Option<Count>,
}

impl Element {
    /// At least as many bytes as [`write_element`] writes.
    pub(super) fn room(&self) -> usize {
        let value = |value: &[u8]| 8 + value.len().next_multiple_of(4);
        let given = |bytes: &Option<Vec<u8>>| bytes.as_deref().map_or(0, value);
        4 + 8 + value(&self.key) + given(&self.key_end) + given(&self.answer)
    }
}

/// The kernel's elements for those of `of`: one for each, or two for a range of a single field.
pub(super) fn elements(of: &Set) -> Vec<Element> {
    of.elements.iter().flat_map(|(key, answer)| split(of, key, answer.as_deref())).collect()
}

fn split(of: &Set, key: &Key, answer: Option<&[u8]>) -> Vec<Element> {
    if key.from.is_empty() {
        let answer = answer.map(<[u8]>::to_vec);
        return vec![Element { answer, flags: element::F_CATCHALL, ..Element::default() }];
    }
    let len = key_len(&of.key);
    let from = key.from[..len.min(key.from.len())].to_vec();
    let answer = answer.map(|answer| answer[..of.data.map_or(0, Field::width).min(answer.len())].to_vec());
    let to = key.to.as_ref().map_or(from.clone(), |to| to[..len.min(to.len())].to_vec());
    if !of.interval {
        return vec![Element { key: from, answer, ..Element::default() }];
    }
    if of.key.len() > 1 {
        return vec![Element { key: from, key_end: Some(to), answer, ..Element::default() }];
    }
    let start = Element { key: from, answer, ..Element::default() };
    let end = successor(to).map(|key| Element { key, flags: element::F_INTERVAL_END, ..Element::default() });
    std::iter::once(start).chain(end).collect()
}

/// The next larger number, or `None` after the largest.
fn successor(mut number: Vec<u8>) -> Option<Vec<u8>> {
    for byte in number.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(number);
        }
    }
    None
}

/// The next smaller number, or `None` before zero.
fn predecessor(mut number: Vec<u8>) -> Option<Vec<u8>> {
    for byte in number.iter_mut().rev() {
        *byte = byte.wrapping_sub(1);
        if *byte != 0xff {
            return Some(number);
        }
    }
    None
}

/// Writes one element of a list.
pub(super) fn write_element(w: &mut Writer, e: &Element) {
    w.nest(LIST_ELEM, |w| {
        if e.flags != 0 {
            w.put_u32(element::FLAGS, e.flags);
        }
        if !e.key.is_empty() {
            put_value(w, element::KEY, &e.key);
        }
        e.key_end.iter().for_each(|end| put_value(w, element::KEY_END, end));
        e.answer.iter().for_each(|answer| put_value(w, element::DATA, answer));
    });
}

/// Reads one element of a list.
pub(super) fn read_element(a: Attributes<'_>) -> Element {
    let value = |kind| read_value(a, kind);
    Element {
        key: value(element::KEY).unwrap_or_default(),
        key_end: value(element::KEY_END),
        answer: value(element::DATA).or_else(|| a.nested(element::DATA).get(data::VERDICT).map(<[u8]>::to_vec)),
        flags: a.u32(element::FLAGS).unwrap_or(0),
        count: read_count(a),
    }
}

fn read_count(a: Attributes<'_>) -> Option<Count> {
    let several = a.nested(element::EXPRESSIONS);
    let listed = several.iter().map(|(_, inner)| Attributes::new(inner));
    let found = std::iter::once(a.nested(element::EXPR))
        .chain(listed)
        .find(|inner| inner.str(expr::NAME).as_deref() == Some("counter"))?
        .nested(expr::DATA);
    Some(Count { packets: found.u64(counter::PACKETS)?, bytes: found.u64(counter::BYTES)? })
}

/// An element of the model, its answer and its counter.
pub(super) type Read = (Key, Option<Vec<u8>>, Option<Count>);

/// The model's elements for those that the kernel has of a set of this shape.
pub(super) fn join(shape: &Set, mut found: Vec<Element>) -> Vec<Read> {
    let ends = shape.interval && shape.key.len() == 1;
    if !ends {
        return found.into_iter().map(|e| single(shape, e)).collect();
    }
    // An end sorts before the start at the same key: ranges may touch.
    found.sort_by(|a, b| (&a.key, !is_end(a)).cmp(&(&b.key, !is_end(b))));
    let mut read = Vec::new();
    let mut open: Option<Element> = None;
    for e in found {
        let next = (!is_end(&e)).then(|| e.clone());
        read.extend(open.take().map(|start| range(start, predecessor(e.key))));
        open = next;
    }
    read.extend(open.map(|start| {
        let largest = vec![0xff; start.key.len()];
        range(start, Some(largest))
    }));
    read
}

fn is_end(e: &Element) -> bool {
    e.flags & element::F_INTERVAL_END != 0
}

fn single(shape: &Set, e: Element) -> Read {
    let to = shape.interval.then(|| pad(e.key_end.unwrap_or_else(|| e.key.clone())));
    (Key { from: pad(e.key), to }, e.answer.map(pad), e.count)
}

fn range(start: Element, to: Option<Vec<u8>>) -> Read {
    (Key { from: pad(start.key), to: to.map(pad) }, start.answer.map(pad), start.count)
}

fn pad(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use netns_policy::ruleset::Members;

    use super::*;

    fn ranges(ranges: &[([u8; 2], [u8; 2])]) -> Set {
        let key = |bytes: [u8; 2]| pad(bytes.to_vec());
        let elements = ranges.iter().map(|(from, to)| (Key { from: key(*from), to: Some(key(*to)) }, None));
        Set {
            key: vec![Field::InetService],
            data: None,
            interval: true,
            dynamic: None,
            counter: false,
            elements: elements.collect(),
        }
    }

    fn there_and_back(set: &Set) -> Members {
        let mut sent = elements(set);
        // The kernel's order is its own.
        sent.reverse();
        join(set, sent).into_iter().map(|(key, answer, _)| (key, answer)).collect()
    }

    #[test]
    fn ranges_that_touch_and_the_largest_one_come_back() {
        for set in [
            ranges(&[([0, 0], [0, 5]), ([0, 6], [0, 6]), ([0, 255], [1, 0])]),
            ranges(&[([0, 80], [0, 80]), ([4, 0], [255, 255])]),
            ranges(&[([0, 0], [255, 255])]),
        ] {
            assert_eq!(there_and_back(&set), set.elements);
        }
    }

    #[test]
    fn the_end_that_the_kernel_keeps_is_the_first_key_outside() {
        let ends: Vec<_> = elements(&ranges(&[([0, 255], [1, 255])])).into_iter().map(|e| e.key).collect();
        assert_eq!(ends, [vec![0, 255], vec![2, 0]]);
    }

    #[test]
    fn the_largest_range_has_no_end() {
        assert_eq!(elements(&ranges(&[([0, 1], [255, 255])])).len(), 1);
    }

    #[test]
    fn an_end_before_every_start_is_passed_over() {
        let set = ranges(&[]);
        let end = Element { key: vec![0, 0], flags: element::F_INTERVAL_END, ..Element::default() };
        assert_eq!(join(&set, vec![end]), []);
    }
}
