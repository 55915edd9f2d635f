//! Patterns told apart: one text for each set of patterns that some text matches, and no other pattern.
//!
//! All patterns are followed at once, character by character, from every place in them that some text leads to: as a
//! regular expression's automaton is built, only that it is remembered which of the patterns a text matches. Nothing that a
//! text can match is left out, however patterns overlap; and where there is too much of it, the answer is none.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;

/// Texts, and how to call them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pattern {
    pub(super) shown: String,
    /// A text that fits any of them.
    pub(super) forms: Vec<Form>,
}

/// What texts are made of, in order.
pub(super) type Form = Vec<Step>;

/// A part of a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    One(Chars),
    /// Any number of them, also none.
    Many(Chars),
}

/// Characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Chars {
    Only(char),
    /// All but `/`.
    OfSegment,
    All,
}

impl Chars {
    fn have(self, char: char) -> bool {
        match self {
            Self::Only(only) => only == char,
            Self::OfSegment => char != '/',
            Self::All => true,
        }
    }
}

/// Which texts there are at all.
#[derive(Debug)]
pub(super) struct Texts {
    pub(super) forms: Vec<Form>,
    /// What is within none of them.
    pub(super) never_within: Vec<Form>,
}

/// All texts that match the same patterns.
#[derive(Debug)]
pub(super) struct Class {
    /// One of the shortest.
    pub(super) text: String,
    /// By number, in order.
    pub(super) patterns: Vec<usize>,
}

/// Places in patterns, summed over all that texts lead to: a few seconds, and some ten megabytes.
const MAX_PLACES: usize = 2_000_000;

/// Every class of texts; `None`: there are too many ways to overlap.
pub(super) fn classes(patterns: &[Pattern], texts: &Texts) -> Option<Vec<Class>> {
    let automaton = Automaton::of(patterns, texts);
    let start: Rc<[usize]> = automaton.closed(vec![0, automaton.texts_end]).into();
    let mut known = HashSet::from([Rc::clone(&start)]);
    let mut reached = vec![Reached { places: start, before: None }];
    let mut found: HashSet<Vec<usize>> = HashSet::new();
    let mut classes = Vec::new();
    let (mut next, mut places) = (0, 0);
    while next < reached.len() {
        let here = Rc::clone(&reached[next].places);
        places += here.len();
        if places > MAX_PLACES {
            return None;
        }
        if automaton.has(&here, End::Text) {
            let matched = automaton.matched(&here);
            if found.insert(matched.clone()) {
                classes.push(Class { text: spelled(&reached, next), patterns: matched });
            }
        }
        for char in automaton.told_apart(&here) {
            let there: Rc<[usize]> = automaton.after(&here, char).into();
            let possible = there.first().is_some_and(|first| *first < automaton.texts_end)
                && !automaton.has(&there, End::Never);
            if possible && known.insert(Rc::clone(&there)) {
                reached.push(Reached { places: there, before: Some((next, char)) });
            }
        }
        next += 1;
    }
    Some(classes)
}

/// Where some text leads.
struct Reached {
    places: Rc<[usize]>,
    /// What its text without the last character leads to, by number; and that character.
    before: Option<(usize, char)>,
}

fn spelled(reached: &[Reached], end: usize) -> String {
    let mut backwards = Vec::new();
    let mut at = end;
    while let Some((before, char)) = reached[at].before {
        backwards.push(char);
        at = before;
    }
    backwards.into_iter().rev().collect()
}

/// Forms as trees, whose branches share how they begin: one of the texts there are, then one of all else.
struct Automaton {
    places: Vec<Place>,
    /// Where the second tree begins.
    texts_end: usize,
    /// Stands for all characters that no form names.
    unnamed: char,
}

#[derive(Default)]
struct Place {
    /// What does not lead away from it.
    stays: Option<Chars>,
    /// Where a character leads.
    one: BTreeMap<Chars, usize>,
    /// Where nothing leads, to stay there.
    many: BTreeMap<Chars, usize>,
    ends: Vec<End>,
}

/// What a text is that ends at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// One that there is.
    Text,
    /// One that there is not, whatever follows.
    Never,
    /// One that matches this pattern.
    Pattern(usize),
}

impl Automaton {
    fn of(patterns: &[Pattern], texts: &Texts) -> Self {
        let mut automaton = Self { places: vec![Place::default()], texts_end: 0, unnamed: char::default() };
        texts.forms.iter().for_each(|form| automaton.add(0, form, End::Text));
        let root = automaton.places.len();
        automaton.texts_end = root;
        automaton.places.push(Place::default());
        for form in &texts.never_within {
            automaton.add(root, &[&[Step::Many(Chars::All)], &form[..]].concat(), End::Never);
        }
        for (number, pattern) in patterns.iter().enumerate() {
            pattern.forms.iter().for_each(|form| automaton.add(root, form, End::Pattern(number)));
        }
        let all: Vec<usize> = (0..automaton.places.len()).collect();
        let named: BTreeSet<char> = automaton.named(&all).collect();
        let mut unnamed = ('a'..='z').rev().chain('\u{a1}'..=char::MAX);
        automaton.unnamed = unnamed.find(|char| !named.contains(char)).unwrap_or_default();
        automaton
    }

    fn add(&mut self, root: usize, form: &[Step], end: End) {
        let mut at = root;
        for step in form {
            let new = self.places.len();
            let (branches, chars) = match step {
                Step::One(chars) => (&mut self.places[at].one, *chars),
                Step::Many(chars) => (&mut self.places[at].many, *chars),
            };
            at = *branches.entry(chars).or_insert(new);
            if at == new {
                let stays = matches!(step, Step::Many(_)).then_some(chars);
                self.places.push(Place { stays, ..Place::default() });
            }
        }
        self.places[at].ends.push(end);
    }

    fn after(&self, places: &[usize], char: char) -> Vec<usize> {
        let mut next = Vec::new();
        for &at in places {
            let place = &self.places[at];
            if place.stays.is_some_and(|chars| chars.have(char)) {
                next.push(at);
            }
            next.extend(place.one.get(&Chars::Only(char)));
            next.extend(place.one.get(&Chars::All));
            if char != '/' {
                next.extend(place.one.get(&Chars::OfSegment));
            }
        }
        self.closed(next)
    }

    /// With all that nothing leads to.
    fn closed(&self, mut places: Vec<usize>) -> Vec<usize> {
        let mut next = 0;
        while let Some(&at) = places.get(next) {
            places.extend(self.places[at].many.values());
            next += 1;
        }
        places.sort_unstable();
        places.dedup();
        places
    }

    fn named(&self, places: &[usize]) -> impl Iterator<Item = char> {
        let chars =
            places.iter().flat_map(|&at| self.places[at].one.keys().chain(self.places[at].many.keys()));
        chars.filter_map(|chars| match chars {
            Chars::Only(char) => Some(*char),
            _ => None,
        })
    }

    /// The characters that lead to different places; one for all that lead to the same.
    fn told_apart(&self, places: &[usize]) -> BTreeSet<char> {
        self.named(places).chain(['/', self.unnamed]).collect()
    }

    fn has(&self, places: &[usize], end: End) -> bool {
        places.iter().any(|&at| self.places[at].ends.contains(&end))
    }

    /// In order.
    fn matched(&self, places: &[usize]) -> Vec<usize> {
        let ends = places.iter().flat_map(|&at| &self.places[at].ends);
        let matched = ends.filter_map(|end| match end {
            End::Pattern(number) => Some(*number),
            End::Text | End::Never => None,
        });
        matched.collect::<BTreeSet<_>>().into_iter().collect()
    }
}
