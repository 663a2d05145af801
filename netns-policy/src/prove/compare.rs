//! What rules do against what they ought to: two sets of packets, compared exactly.

use std::collections::BTreeMap;

use super::class::{Class, Var};
use super::machine::{Leaf, Outcome};
use super::numbers::Numbers;
use super::spec::Spec;

/// Packets with which the rules do another thing than they ought to.
#[derive(Clone, Debug)]
pub(super) struct Deviation {
    pub(super) class: Class,
    pub(super) does: Option<Outcome>,
    pub(super) ought: Option<Outcome>,
}

/// A [`Spec`], ready to be compared.
struct Promise {
    /// What passes must be among these.
    allowed: BTreeMap<Outcome, Vec<Class>>,
    /// What must pass, somehow: nothing of it is dropped.
    owed: Vec<Class>,
    /// What must pass in this way, by the one value of the key, where there is just one: nothing of it goes another way.
    by_key: BTreeMap<u128, Vec<(Outcome, Class)>>,
    /// The rest of it.
    by_range: Vec<(Outcome, Class)>,
}

impl Promise {
    fn new(spec: &Spec, key: Var) -> Self {
        let mut allowed: BTreeMap<Outcome, Vec<Class>> = BTreeMap::new();
        for (outcome, class) in spec.must.iter().chain(&spec.may) {
            allowed.entry(*outcome).or_default().push(class.clone());
        }
        let allowed = allowed.into_iter().map(|(outcome, classes)| (outcome, joined(classes, key))).collect();
        let mut by_key: BTreeMap<u128, Vec<(Outcome, Class)>> = BTreeMap::new();
        let mut by_range = Vec::new();
        for (outcome, class) in &spec.must {
            match class.narrow(key).and_then(Numbers::only) {
                Some(value) => by_key.entry(value).or_default().push((*outcome, class.clone())),
                None => by_range.push((*outcome, class.clone())),
            }
        }
        let owed = joined(spec.must.iter().map(|(_, class)| class.clone()).collect(), key);
        Self { allowed, owed, by_key, by_range }
    }

    /// What must pass in another way than by `outcome` and could be in a class with these values of the key.
    fn otherwise<'p>(
        &'p self,
        outcome: Outcome,
        values: Option<&'p Numbers>,
    ) -> impl Iterator<Item = &'p (Outcome, Class)> {
        let near = values.into_iter().flat_map(Numbers::ranges).flat_map(|(lo, hi)| self.by_key.range(lo..=hi));
        let all = self.by_key.iter().filter(move |_| values.is_none());
        let keyed = near.chain(all).flat_map(|(_, classes)| classes);
        keyed.chain(&self.by_range).filter(move |(other, _)| *other != outcome)
    }
}

/// The same classes, those that differ in `key` alone as one.
fn joined(classes: Vec<Class>, key: Var) -> Vec<Class> {
    let mut by_rest: BTreeMap<Class, Vec<(u128, u128)>> = BTreeMap::new();
    for class in classes {
        by_rest.entry(class.any(key)).or_default().extend(class.of(key).ranges());
    }
    by_rest.into_iter().map(|(rest, ranges)| rest.with(key, &Numbers::new(ranges))).collect()
}

/// The first leaf with which the rules do what they ought not to.
pub(super) fn compare(leaves: &[Leaf], spec: &Spec, key: Var) -> Option<Deviation> {
    let promise = Promise::new(spec, key);
    leaves.iter().find_map(|leaf| deviation(leaf, &promise, key))
}

fn deviation(leaf: &Leaf, promise: &Promise, key: Var) -> Option<Deviation> {
    let Leaf { class, outcome: does } = leaf;
    let Some(outcome) = does else {
        let lost = promise.owed.iter().find_map(|owed| class.and(owed))?;
        let all = promise.by_key.values().flatten().chain(&promise.by_range);
        let ought = all.into_iter().find(|(_, class)| class.meets(&lost)).map(|(outcome, _)| *outcome);
        return Some(Deviation { class: lost, does: None, ought });
    };
    let mut rest = vec![class.clone()];
    for allowed in promise.allowed.get(outcome).into_iter().flatten() {
        rest = rest.iter().flat_map(|part| part.without(allowed)).collect();
        if rest.is_empty() {
            break;
        }
    }
    let otherwise = |part: &Class| {
        let found =
            promise.otherwise(*outcome, part.narrow(key)).find_map(|(ought, class)| Some((*ought, class.and(part)?)));
        found.map(|(ought, class)| Deviation { class, does: *does, ought: Some(ought) })
    };
    match rest.into_iter().next() {
        Some(part) => Some(otherwise(&part).unwrap_or(Deviation { class: part, does: *does, ought: None })),
        None => otherwise(class),
    }
}
