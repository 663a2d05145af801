//! How often a place is mended before it is held closed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use netns_policy::plan::Site;

/// So many repairs of one place in a [`WINDOW`].
pub(super) const MOST: usize = 6;

/// The time that is counted.
pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// The repairs of the last minute, by place: whoever spoils one place without pause costs no other its repair.
#[derive(Debug, Default)]
pub(super) struct Budget {
    repairs: BTreeMap<Site, VecDeque<Instant>>,
}

impl Budget {
    /// Of these places, those for which nothing is left.
    pub(super) fn spent(&mut self, sites: &BTreeSet<Site>, now: Instant) -> BTreeSet<Site> {
        self.age(now);
        sites.iter().filter(|site| self.repairs.get(site).is_some_and(|all| all.len() >= MOST)).cloned().collect()
    }

    /// One repair of these places.
    pub(super) fn spend(&mut self, sites: &BTreeSet<Site>, now: Instant) {
        sites.iter().for_each(|site| self.repairs.entry(site.clone()).or_default().push_back(now));
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) {
        self.repairs.clear();
    }

    fn age(&mut self, now: Instant) {
        for repairs in self.repairs.values_mut() {
            while repairs.front().is_some_and(|then| now.duration_since(*then) >= WINDOW) {
                repairs.pop_front();
            }
        }
        self.repairs.retain(|_, repairs| !repairs.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use netns_policy::topology::Place;

    use super::*;

    #[test]
    fn a_place_is_mended_six_times_a_minute_and_costs_no_other_its_repairs() {
        let site = |name: &str| BTreeSet::from([Site::Place(Place::Service(name.parse().expect("a name")))]);
        let (a, b) = (site("a"), site("b"));
        let mut budget = Budget::default();
        let start = Instant::now();
        for n in 0..6 {
            let now = start + Duration::from_secs(n);
            assert_eq!(budget.spent(&a, now), BTreeSet::new(), "repair {n}");
            budget.spend(&a, now);
        }
        let now = start + Duration::from_secs(6);
        assert_eq!(budget.spent(&a, now), a);
        assert_eq!(budget.spent(&b, now), BTreeSet::new());
        assert_eq!(budget.spent(&a, start + WINDOW), BTreeSet::new(), "the first is a minute old");
    }
}
