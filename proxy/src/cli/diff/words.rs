//! Classes of texts in few words: by the patterns that cover them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::classes::{Class, Pattern, Texts, classes};

/// All texts of one kind, by what patterns make of them.
#[derive(Debug)]
pub(super) struct Dimension {
    /// `path`.
    noun: &'static str,
    patterns: Vec<Pattern>,
    pub(super) classes: Vec<Class>,
    /// The classes of each pattern.
    members: Vec<BTreeSet<usize>>,
}

/// Patterns that a phrase leaves out; rather than more of them, it calls what is left the rest.
const MAX_EXCEPTIONS: usize = 3;

impl Dimension {
    /// `None`: patterns overlap in too many ways.
    pub(super) fn of(noun: &'static str, patterns: BTreeSet<Pattern>, texts: &Texts) -> Option<Self> {
        let patterns: Vec<_> = patterns.into_iter().collect();
        let classes = classes(&patterns, texts)?;
        let mut members = vec![BTreeSet::new(); patterns.len()];
        for (number, class) in classes.iter().enumerate() {
            for pattern in &class.patterns {
                members[*pattern].insert(number);
            }
        }
        Some(Self { noun, patterns, classes, members })
    }

    /// What to call classes together: patterns that lie within them, but for a few exceptions, and what is left one by one.
    pub(super) fn words(&self, of: &BTreeSet<usize>) -> Vec<String> {
        let all: BTreeSet<usize> = (0..self.classes.len()).collect();
        let whole = (format!("any {}", self.noun), &all);
        let touched: BTreeSet<usize> =
            of.iter().flat_map(|class| self.classes[*class].patterns.iter().copied()).collect();
        let named =
            touched.iter().map(|pattern| (self.patterns[*pattern].shown.clone(), &self.members[*pattern]));
        let phrases = std::iter::once(whole).chain(named).filter_map(|(shown, within)| {
            let without = self.except(within, |class| of.contains(&class))?;
            let covered: BTreeSet<usize> = within.intersection(of).copied().collect();
            (!covered.is_empty()).then(|| Phrase {
                exceptions: without.len(),
                shown: self.but(shown, &without),
                covered,
            })
        });
        let mut phrases: Vec<_> = phrases.collect();
        // The widest first; of those that are as wide, the plainest.
        phrases.sort_by_key(|phrase| (Reverse(phrase.covered.len()), phrase.exceptions));
        let mut left = of.clone();
        let mut words = Vec::new();
        for phrase in phrases {
            if !left.is_disjoint(&phrase.covered) {
                left.retain(|class| !phrase.covered.contains(class));
                words.push(phrase.shown);
            }
        }
        words.sort();
        let (named, others): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|class| !self.classes[*class].patterns.is_empty());
        words.extend(named.into_iter().chain(others).map(|class| self.alone(class)));
        words
    }

    /// A class by the narrowest patterns that it matches.
    fn alone(&self, class: usize) -> String {
        let matched = &self.classes[class].patterns;
        let is_within = |a: usize, b: usize| {
            let (a, b) = ((&self.members[a], a), (&self.members[b], b));
            a.0.is_subset(b.0) && (a.0.len(), a.1) < (b.0.len(), b.1)
        };
        let narrowest: Vec<usize> = matched
            .iter()
            .copied()
            .filter(|pattern| !matched.iter().any(|other| is_within(*other, *pattern)))
            .collect();
        let names: Vec<&str> = narrowest.iter().map(|pattern| &*self.patterns[*pattern].shown).collect();
        let shown = match names.as_slice() {
            [] => return format!("any other {}", self.noun),
            [only] => (*only).to_owned(),
            several => format!("both {}", several.join(" and ")),
        };
        let mut within = self.members[narrowest[0]].clone();
        narrowest.iter().for_each(|pattern| within.retain(|class| self.members[*pattern].contains(class)));
        match self.except(&within, |other| other == class) {
            Some(without) => self.but(shown, &without),
            None => format!("the rest of {shown}"),
        }
    }

    /// Patterns that have, of these classes, just those that are not kept; `None`: there are no such, or not few.
    fn except(&self, within: &BTreeSet<usize>, kept: impl Fn(usize) -> bool) -> Option<Vec<usize>> {
        let mut left: BTreeSet<usize> = within.iter().copied().filter(|class| !kept(*class)).collect();
        let mut shares: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for class in &left {
            for pattern in &self.classes[*class].patterns {
                shares.entry(*pattern).or_default().insert(*class);
            }
        }
        shares.retain(|pattern, _| {
            !self.members[*pattern].iter().any(|class| within.contains(class) && kept(*class))
        });
        let mut without = Vec::new();
        while !left.is_empty() && without.len() < MAX_EXCEPTIONS {
            let share = |of: &BTreeSet<usize>| of.intersection(&left).count();
            let (share, Reverse(pattern)) =
                shares.iter().map(|(pattern, of)| (share(of), Reverse(*pattern))).max()?;
            if share == 0 {
                return None;
            }
            left.retain(|class| !self.members[pattern].contains(class));
            without.push(pattern);
        }
        left.is_empty().then_some(without)
    }

    fn but(&self, shown: String, without: &[usize]) -> String {
        let names: Vec<&str> = without.iter().map(|pattern| &*self.patterns[*pattern].shown).collect();
        if names.is_empty() { shown } else { format!("{shown} except {}", names.join(" or ")) }
    }
}

/// What to call some classes together.
struct Phrase {
    shown: String,
    exceptions: usize,
    covered: BTreeSet<usize>,
}
