//! A set of prefixes, asked which of its members a text begins with: one binary search, whatever its size.

/// Prefixes in order of bytes, each with the longest other one that it begins with.
#[derive(Debug, Clone)]
pub(super) struct Prefixes<V> {
    entries: Box<[Entry<V>]>,
}

#[derive(Debug, Clone)]
struct Entry<V> {
    prefix: Box<[u8]>,
    /// Index of the longest proper prefix in the set, or [`NONE`].
    parent: u32,
    value: V,
}

const NONE: u32 = u32::MAX;

impl<V> Default for Prefixes<V> {
    fn default() -> Self {
        Self { entries: Box::default() }
    }
}

impl<V> Prefixes<V> {
    /// A set of distinct prefixes.
    pub(super) fn new(prefixes: impl IntoIterator<Item = (Box<[u8]>, V)>) -> Self {
        let mut entries: Vec<_> =
            prefixes.into_iter().map(|(prefix, value)| Entry { prefix, parent: NONE, value }).collect();
        entries.sort_unstable_by(|a, b| a.prefix.cmp(&b.prefix));
        // The prefixes that the last entry begins with, longest last.
        let mut open: Vec<u32> = Vec::new();
        for index in 0..entries.len() {
            while let Some(&last) = open.last() {
                if entries[index].prefix.starts_with(&entries[last as usize].prefix) {
                    break;
                }
                open.pop();
            }
            entries[index].parent = open.last().copied().unwrap_or(NONE);
            open.push(index as u32);
        }
        Self { entries: entries.into() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The members that `text` begins with, longest first.
    ///
    /// Of the members up to `text`, let `last` be the greatest. Members that begin with `p` are neighbours, so if `text`
    /// begins with a member `p`, then so does `last`, which lies between the two: all members sought are `last` or its
    /// ancestors.
    pub(super) fn of<'a>(&'a self, text: &[u8]) -> impl Iterator<Item = (&'a [u8], &'a V)> + use<'a, V> {
        let after = self.entries.partition_point(|entry| *entry.prefix <= *text);
        let mut next = (after as u32).wrapping_sub(1);
        let common = self.entries.get(next as usize).map_or(0, |last| common_length(&last.prefix, text));
        std::iter::from_fn(move || {
            loop {
                let entry = self.entries.get(next as usize)?;
                next = entry.parent;
                if entry.prefix.len() <= common {
                    return Some((&*entry.prefix, &entry.value));
                }
            }
        })
    }
}

fn common_length(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn finds_what_a_scan_finds(
            members in proptest::collection::btree_set("[ab/]{0,5}", 0..20),
            text in "[ab/]{0,7}",
        ) {
            let members: BTreeSet<String> = members;
            let set = Prefixes::new(members.iter().map(|member| (member.as_bytes().into(), member.clone())));
            let found: Vec<_> = set.of(text.as_bytes()).map(|(_, value)| value.clone()).collect();
            let mut expected: Vec<_> = members.into_iter().filter(|member| text.starts_with(&**member)).collect();
            expected.sort_by_key(|member| std::cmp::Reverse(member.len()));
            prop_assert_eq!(found, expected);
        }
    }
}
