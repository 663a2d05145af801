//! Which known word an unknown one was probably meant to be.

/// The candidate nearest to `word`, if one is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = match word.chars().count() {
        0..=2 => 1,
        3..=5 => 2,
        _ => 3,
    };
    let distance = |candidate: &&str| strsim::damerau_levenshtein(word, candidate);
    // A change of one character changes at most two in the set of those that are there: most candidates need no more
    // than this look.
    let here = letters(word);
    let alike = |c: &&str| (letters(c) ^ here).count_ones() as usize <= 2 * most;
    let near = candidates.into_iter().filter(|c| c.len().abs_diff(word.len()) <= most && *c != word).filter(alike);
    let near = near.map(|c| (distance(&c), c)).filter(|(d, c)| *d <= most && *d < c.chars().count());
    near.min().map(|(_, candidate)| candidate)
}

/// The set of characters of a word, those that differ by 64 taken for one.
fn letters(word: &str) -> u64 {
    word.chars().fold(0, |set, c| set | 1 << (u32::from(c) % 64))
}

/// "did you mean ...?" for [`nearest`].
pub(crate) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, candidates).map(|near| format!("did you mean `{near}`?"))
}

/// A list of names for a message: the first few, and how many more there are.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
