//! Collections that many places hold and few change.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// A collection to be used like the `C` it is. Clones share it until one of them is changed.
///
/// A thousand services have the same forty rules and the same lists of private prefixes, and each is in what exists, in
/// what ought to exist and in the steps between: held once, they cost next to nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Shared<C>(Arc<C>);

impl<C: Eq> Shared<C> {
    /// Takes `other` in the place of its own collection if they are equal, so that memory holds it once. Says whether
    /// they are.
    pub fn share(&mut self, other: &Self) -> bool {
        let are_equal = self == other;
        if are_equal {
            self.0 = Arc::clone(&other.0);
        }
        are_equal
    }
}

impl<C> From<C> for Shared<C> {
    fn from(collection: C) -> Self {
        Self(Arc::new(collection))
    }
}

impl<C> Deref for Shared<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.0
    }
}

impl<C: Clone> DerefMut for Shared<C> {
    fn deref_mut(&mut self) -> &mut C {
        Arc::make_mut(&mut self.0)
    }
}

impl<C: Clone + IntoIterator> IntoIterator for Shared<C> {
    type Item = C::Item;
    type IntoIter = C::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        Arc::unwrap_or_clone(self.0).into_iter()
    }
}

impl<'a, C> IntoIterator for &'a Shared<C>
where
    &'a C: IntoIterator,
{
    type Item = <&'a C as IntoIterator>::Item;
    type IntoIter = <&'a C as IntoIterator>::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        (&*self.0).into_iter()
    }
}

impl<'a, C: Clone> IntoIterator for &'a mut Shared<C>
where
    &'a mut C: IntoIterator,
{
    type Item = <&'a mut C as IntoIterator>::Item;
    type IntoIter = <&'a mut C as IntoIterator>::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        Arc::make_mut(&mut self.0).into_iter()
    }
}

impl<T, C: FromIterator<T>> FromIterator<T> for Shared<C> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self::from(C::from_iter(items))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_one_is_none_of_the_other() {
        let first = Shared::from(vec![1, 2]);
        let mut second = first.clone();
        assert!(std::ptr::eq(&*first, &*second), "they are one list");
        second.push(3);
        assert_eq!((&first[..], &second[..]), (&[1, 2][..], &[1, 2, 3][..]));
    }

    #[test]
    fn only_what_is_equal_becomes_one() {
        let first = Shared::from(vec![1, 2]);
        let (mut equal, mut other) = (Shared::from(vec![1, 2]), Shared::from(vec![1]));
        assert!(equal.share(&first) && !other.share(&first));
        assert!(std::ptr::eq(&*first, &*equal));
        assert_eq!(other[..], [1]);
    }
}
