//! Sets of numbers, as ranges that are sorted and touch nowhere: equal sets are equal values.

use std::rc::Rc;

/// A set of numbers.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Numbers(Rc<[(u128, u128)]>);

impl Numbers {
    /// The numbers of these ranges, both ends included, in whatever order.
    pub(super) fn new(mut ranges: Vec<(u128, u128)>) -> Self {
        ranges.sort_unstable();
        let mut joined: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (lo, hi) in ranges {
            match joined.last_mut() {
                Some((_, end)) if lo <= *end || lo - 1 == *end => *end = hi.max(*end),
                _ => joined.push((lo, hi)),
            }
        }
        Self(joined.into())
    }

    /// One number.
    pub(super) fn one(number: u128) -> Self {
        Self::range(number, number)
    }

    /// These numbers.
    pub(super) fn each(numbers: impl IntoIterator<Item = u128>) -> Self {
        Self::new(numbers.into_iter().map(|number| (number, number)).collect())
    }

    /// A range, both ends included.
    pub(super) fn range(lo: u128, hi: u128) -> Self {
        Self(Rc::new([(lo, hi)]))
    }

    /// The ranges, lowest first.
    pub(super) fn ranges(&self) -> &[(u128, u128)] {
        &self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn least(&self) -> Option<u128> {
        self.0.first().map(|(lo, _)| *lo)
    }

    /// The only number, if there is just one.
    pub(super) fn only(&self) -> Option<u128> {
        match self.0[..] {
            [(lo, hi)] if lo == hi => Some(lo),
            _ => None,
        }
    }

    pub(super) fn holds(&self, number: u128) -> bool {
        let after = self.0.partition_point(|(lo, _)| *lo <= number);
        after.checked_sub(1).is_some_and(|at| number <= self.0[at].1)
    }

    /// The ranges of this set that can touch `lo..=hi`.
    fn near(&self, lo: u128, hi: u128) -> &[(u128, u128)] {
        let from = self.0.partition_point(|(_, end)| *end < lo);
        let to = self.0.partition_point(|(start, _)| *start <= hi);
        &self.0[from..to.max(from)]
    }

    pub(super) fn meets(&self, other: &Self) -> bool {
        let (few, many) = if self.0.len() <= other.0.len() { (self, other) } else { (other, self) };
        few.0.iter().any(|(lo, hi)| !many.near(*lo, *hi).is_empty())
    }

    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.0.iter().all(|(lo, hi)| matches!(other.near(*lo, *hi), [(start, end)] if start <= lo && hi <= end))
    }

    pub(super) fn and(&self, other: &Self) -> Self {
        let (few, many) = if self.0.len() <= other.0.len() { (self, other) } else { (other, self) };
        let both = few.0.iter().flat_map(|(lo, hi)| {
            many.near(*lo, *hi).iter().map(move |(start, end)| ((*lo).max(*start), (*hi).min(*end)))
        });
        // Both are sorted and touch nowhere, and so does what they have in common.
        Self(both.collect())
    }

    pub(super) fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for (lo, hi) in self.0.iter() {
            let mut next = Some(*lo);
            for (start, end) in other.near(*lo, *hi) {
                if let Some(at) = next.filter(|at| at < start) {
                    left.push((at, start - 1));
                }
                next = end.checked_add(1).filter(|after| after <= hi);
            }
            left.extend(next.map(|at| (at, *hi)));
        }
        Self(left.into())
    }

    pub(super) fn or(&self, other: &Self) -> Self {
        Self::new([&self.0[..], &other.0].concat())
    }

    /// The numbers below `2^bits` that are `value` where `mask` has a one; none when there are too many ranges of them
    /// to be written down.
    pub(super) fn masked(bits: u32, mask: u128, value: u128) -> Option<Self> {
        const MOST: usize = 4096;
        let width = if bits >= 128 { u128::MAX } else { (1 << bits) - 1 };
        if value & !mask != 0 || value & !width != 0 {
            return Some(Self::new(Vec::new()));
        }
        let mask = mask & width;
        // What is below the lowest one of the mask runs through; each bit above it that the mask leaves free doubles.
        let low = if mask == 0 { width } else { (1u128 << mask.trailing_zeros()) - 1 };
        let mut starts = vec![value];
        for bit in (0..bits).map(|n| 1u128 << n).filter(|bit| low & bit == 0 && mask & bit == 0) {
            if starts.len() * 2 > MOST {
                return None;
            }
            starts.extend(starts.clone().into_iter().map(|start| start | bit));
        }
        Some(Self::new(starts.into_iter().map(|start| (start, start | low)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drawn() -> impl Strategy<Value = Numbers> {
        let range = (0u128..40, 0u128..6).prop_map(|(lo, len)| (lo, lo + len));
        prop::collection::vec(range, 0..6).prop_map(Numbers::new)
    }

    proptest! {
        #[test]
        fn every_operation_is_that_of_sets(a in drawn(), b in drawn()) {
            for n in 0..50 {
                let (in_a, in_b) = (a.holds(n), b.holds(n));
                prop_assert_eq!(a.and(&b).holds(n), in_a && in_b);
                prop_assert_eq!(a.without(&b).holds(n), in_a && !in_b);
                prop_assert_eq!(a.or(&b).holds(n), in_a || in_b);
            }
            prop_assert_eq!(a.meets(&b), !a.and(&b).is_empty());
            prop_assert_eq!(a.is_within(&b), a.without(&b).is_empty());
            // Equal sets are equal values.
            prop_assert_eq!(a.and(&b).or(&a.without(&b)), a.clone());
        }

        #[test]
        fn a_mask_has_just_the_numbers_that_it_describes(mask in 0u128..256, value in 0u128..256) {
            let found = Numbers::masked(8, mask, value).unwrap();
            for n in 0..256 {
                prop_assert_eq!(found.holds(n), n & mask == value, "{}", n);
            }
        }
    }

    #[test]
    fn the_ends_of_all_numbers_are_numbers_too() {
        let all = Numbers::range(0, u128::MAX);
        let rest = all.without(&Numbers::each([0, 7, u128::MAX]));
        assert_eq!(rest.ranges(), [(1, 6), (8, u128::MAX - 1)]);
        assert_eq!(rest.or(&Numbers::each([0, 7, u128::MAX])), all);
        assert_eq!(Numbers::masked(16, 0x3fff, 0).unwrap().ranges().len(), 4);
    }
}
