//! The elements of a set as a tree, one level for each field of the key, in which equal branches are one.
//!
//! A question about a class of packets is answered by walking down: at each level the class is divided among the
//! branches, and what no branch has, misses. So the parts are as few as the elements make them, and the elements of
//! other wires cost nothing.

use std::collections::BTreeMap;

use super::class::{Class, Var};
use super::numbers::Numbers;
use crate::ruleset::Set;

/// One field of the key that is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked {
    /// It is known.
    Known(u128),
    /// It is a variable, less so many of its lowest bits.
    Var(Var, u32),
}

/// A set, ready to be asked.
#[derive(Debug)]
pub(super) struct Index {
    /// Without the answers: what has an element, and what has none.
    plain: Tree,
    /// With them; of a map only.
    answered: Option<Tree>,
    /// A map may answer 0.
    pub(super) has_zero: bool,
}

/// A set that cannot be read as one: no key, a key of another size, a map without an answer.
#[derive(Debug)]
pub(super) struct Malformed;

impl Index {
    pub(super) fn new(set: &Set) -> Result<Self, Malformed> {
        // So reads what is of a type or has flags that the model has no word for. A tree without levels has it all.
        if set.key.is_empty() {
            return Err(Malformed);
        }
        let elements: Result<Vec<Element>, Malformed> =
            set.elements.iter().map(|(key, answer)| element(set, key, answer.as_deref())).collect();
        let elements = elements?;
        let all: Vec<&Element> = elements.iter().collect();
        let levels = set.key.len();
        Ok(Self {
            plain: Tree::new(&all, levels, false),
            answered: set.data.map(|_| Tree::new(&all, levels, true)),
            has_zero: set.data.is_some() && elements.iter().any(|element| element.answer == 0),
        })
    }

    /// The parts of `class` that have an element, each with the answer (0 for a set), and those that have none.
    pub(super) fn ask(&self, class: &Class, key: &[Asked], answers: bool) -> (Vec<(Class, u128)>, Vec<Class>) {
        let (mut hits, mut misses) = (Vec::new(), Vec::new());
        match &self.answered {
            // Misses are told from the tree that has fewer branches.
            Some(answered) if answers => {
                answered.walk(answered.root, class.clone(), key, &mut |class, answer| hits.push((class, answer)), None);
                if !hits.is_empty() {
                    self.plain.walk(self.plain.root, class.clone(), key, &mut |_, _| (), Some(&mut misses));
                }
            }
            _ => self.plain.walk(
                self.plain.root,
                class.clone(),
                key,
                &mut |class, answer| hits.push((class, answer)),
                Some(&mut misses),
            ),
        }
        if hits.is_empty() {
            misses = vec![class.clone()];
        }
        (hits, misses)
    }
}

struct Element {
    ranges: Vec<(u128, u128)>,
    answer: u128,
}

/// The number that these bytes are, first byte highest.
pub(super) fn number(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0, |number, byte| number << 8 | u128::from(*byte))
}

fn element(set: &Set, key: &crate::ruleset::Key, answer: Option<&[u8]>) -> Result<Element, Malformed> {
    let to = key.to.as_ref().unwrap_or(&key.from);
    let len: usize = set.key.iter().map(|field| field.padded_len()).sum();
    if key.from.len() != len || to.len() != len || (key.to.is_some() && !set.interval) {
        return Err(Malformed);
    }
    let mut at = 0;
    let ranges = set.key.iter().map(|field| {
        let value = |bytes: &[u8]| number(&bytes[at..at + field.width()]);
        let range = (value(&key.from), value(to));
        at += field.padded_len();
        range
    });
    let ranges: Vec<_> = ranges.collect();
    // A range that runs backwards holds nothing: the kernel would have refused it.
    if ranges.iter().any(|(lo, hi)| lo > hi) {
        return Err(Malformed);
    }
    let answer = match (set.data, answer) {
        (None, None) => 0,
        (Some(data), Some(answer)) if answer.len() >= data.width() => number(&answer[..data.width()]),
        _ => return Err(Malformed),
    };
    Ok(Element { ranges, answer })
}

/// A branch: by its number, or, below the last field, the answer.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Branch {
    Node(usize),
    Answer(u128),
}

#[derive(Debug)]
struct Node {
    /// Sorted, none overlap.
    rows: Vec<(u128, u128, Branch)>,
    /// The same by branch.
    groups: Vec<(Branch, Numbers)>,
    /// All that is in some branch.
    all: Numbers,
}

#[derive(Debug)]
struct Tree {
    nodes: Vec<Node>,
    root: Branch,
}

/// What a tree is made of on the way.
struct Growing {
    tree: Tree,
    /// Equal nodes are one.
    known: BTreeMap<Vec<(u128, u128, Branch)>, usize>,
    levels: usize,
    answers: bool,
}

impl Tree {
    fn new(elements: &[&Element], levels: usize, answers: bool) -> Self {
        let tree = Self { nodes: Vec::new(), root: Branch::Node(0) };
        let mut growing = Growing { tree, known: BTreeMap::new(), levels, answers };
        let root = growing.branch(elements, 0);
        Self { root, ..growing.tree }
    }

    fn walk(
        &self,
        branch: Branch,
        class: Class,
        key: &[Asked],
        hit: &mut impl FnMut(Class, u128),
        mut misses: Option<&mut Vec<Class>>,
    ) {
        let node = match branch {
            Branch::Answer(answer) => return hit(class, answer),
            Branch::Node(node) => &self.nodes[node],
        };
        let Some((field, rest)) = key.split_first() else { return };
        match *field {
            Asked::Known(value) => match node.find(value) {
                Some(branch) => self.walk(branch, class, rest, hit, misses),
                None => misses.into_iter().for_each(|misses| misses.push(class.clone())),
            },
            Asked::Var(var, shift) => {
                if let Some(value) = class.narrow(var).and_then(Numbers::only) {
                    return match node.find(value >> shift) {
                        Some(branch) => self.walk(branch, class, rest, hit, misses),
                        None => misses.into_iter().for_each(|misses| misses.push(class.clone())),
                    };
                }
                for (branch, numbers) in &node.groups {
                    if let Some(inside) = class.narrowed(var, &widened(numbers, shift)) {
                        self.walk(*branch, inside, rest, hit, misses.as_deref_mut());
                    }
                }
                if let (Some(misses), (_, Some(outside))) = (misses, class.split(var, &widened(&node.all, shift))) {
                    misses.push(outside);
                }
            }
        }
    }
}

impl Node {
    fn find(&self, value: u128) -> Option<Branch> {
        let after = self.rows.partition_point(|(lo, ..)| *lo <= value);
        self.rows[..after].last().filter(|(_, hi, _)| value <= *hi).map(|(.., branch)| *branch)
    }
}

/// The numbers of which these are what is left without the lowest bits.
pub(super) fn widened(numbers: &Numbers, shift: u32) -> Numbers {
    if shift == 0 {
        return numbers.clone();
    }
    let low = (1u128 << shift) - 1;
    Numbers::new(numbers.ranges().iter().map(|(lo, hi)| (lo << shift, hi << shift | low)).collect())
}

impl Growing {
    /// The branch for these elements, which agree in the fields above. In the kernel no two of them overlap; where they
    /// do here, the first one counts.
    fn branch(&mut self, elements: &[&Element], level: usize) -> Branch {
        if level == self.levels {
            return Branch::Answer(elements.first().filter(|_| self.answers).map_or(0, |element| element.answer));
        }
        let rows: Vec<_> = divided(elements, level)
            .into_iter()
            .map(|((lo, hi), elements)| (lo, hi, self.branch(&elements, level + 1)))
            .collect();
        if let Some(node) = self.known.get(&rows) {
            return Branch::Node(*node);
        }
        let mut groups: BTreeMap<Branch, Vec<(u128, u128)>> = BTreeMap::new();
        rows.iter().for_each(|(lo, hi, branch)| groups.entry(*branch).or_default().push((*lo, *hi)));
        let all = Numbers::new(rows.iter().map(|(lo, hi, _)| (*lo, *hi)).collect());
        let groups = groups.into_iter().map(|(branch, ranges)| (branch, Numbers::new(ranges))).collect();
        let node = self.tree.nodes.len();
        self.tree.nodes.push(Node { rows: rows.clone(), groups, all });
        self.known.insert(rows, node);
        Branch::Node(node)
    }
}

type Row<'e> = ((u128, u128), Vec<&'e Element>);

/// The elements by their range in one field, cut where ranges overlap.
fn divided<'e>(elements: &[&'e Element], level: usize) -> Vec<Row<'e>> {
    let mut rows: BTreeMap<(u128, u128), Vec<&Element>> = BTreeMap::new();
    elements.iter().for_each(|element| rows.entry(element.ranges[level]).or_default().push(element));
    let overlap = rows.keys().zip(rows.keys().skip(1)).any(|((_, end), (start, _))| start <= end);
    if !overlap {
        return rows.into_iter().collect();
    }
    let mut starts: Vec<u128> = rows.keys().flat_map(|(lo, hi)| [Some(*lo), hi.checked_add(1)]).flatten().collect();
    starts.sort_unstable();
    starts.dedup();
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([u128::MAX]);
    let spans = starts.iter().copied().zip(ends);
    let inside = |(lo, hi): (u128, u128)| {
        let here = elements.iter().filter(|e| e.ranges[level].0 <= lo && hi <= e.ranges[level].1);
        ((lo, hi), here.copied().collect::<Vec<_>>())
    };
    spans.map(inside).filter(|(_, elements)| !elements.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::Field;

    #[test]
    fn a_set_without_a_key_cannot_be_asked() {
        let set = |key: &[Field]| Set {
            key: key.to_vec(),
            data: None,
            interval: false,
            dynamic: None,
            counter: false,
            elements: Default::default(),
        };
        assert!(Index::new(&set(&[])).is_err());
        let class = &Class::datagrams()[0];
        let index = Index::new(&set(&[Field::InetService])).expect("a set of ports can be asked");
        let (hits, misses) = index.ask(class, &[Asked::Var(Var::Dport, 0)], false);
        assert!(hits.is_empty() && misses.len() == 1, "nothing is in an empty set");
    }
}
