//! Rules on requests, found by what they can't match without: a path, a header, a host, a method, an address, or something
//! of the end user.
//!
//! Each rule is filed under *atoms*, one of which every request that matches it must have; which ones, their rarity among
//! the rules decides. Rules without any lie in one list, from which the [`Exclusion`] takes out those that some value of
//! the request rules out. A rule that is found is then asked in full, so the index only ever spares questions.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::atom::{ALL, Atom, Dimensions};
use super::by_atom::ByAtom;
use super::condition::{Asked, RequestTest};
use super::exclusion::Exclusion;
use super::rule::Residual;

/// Rules, by rank, and how to find them.
#[derive(Debug, Default)]
pub(super) struct RuleSet {
    rules: Box<[Residual]>,
    index: Bucket,
}

impl RuleSet {
    /// Files rules; they must be sorted by rank.
    pub(super) fn new(rules: Vec<Residual>) -> Self {
        let positions: Vec<u32> = (0..rules.len() as u32).collect();
        Self { index: Bucket::new(&rules, positions, ALL), rules: rules.into() }
    }

    pub(super) fn len(&self) -> usize {
        self.rules.len()
    }

    /// All rules, by rank.
    pub(super) fn rules(&self) -> &[Residual] {
        &self.rules
    }

    /// Calls `visit` with every rule that can match, those of one list by rank, until it says that later ones of the list
    /// are of no interest. A rule may come twice.
    pub(super) fn visit<'a>(&'a self, request: &Asked<'_>, mut visit: impl FnMut(&'a Residual) -> Next) {
        self.index.visit(request, &mut |position| visit(&self.rules[position as usize]));
    }
}

/// What a visitor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Show me more of this list.
    More,
    /// The rest of this list can't win.
    Enough,
}

/// Up to so many rules are asked one by one.
const SMALL: usize = 16;

/// Positions of rules, by rank.
#[derive(Debug)]
enum Bucket {
    /// Asked one by one.
    List(Box<[u32]>),
    /// Asked one by one, but for those that the request rules out.
    Sieved(Box<Exclusion>),
    /// Filed by atoms, and those that have none.
    Filed(Box<(ByAtom<Bucket>, Bucket)>),
}

impl Default for Bucket {
    fn default() -> Self {
        Self::List(Box::default())
    }
}

impl Bucket {
    fn new(rules: &[Residual], positions: Vec<u32>, within: Dimensions) -> Self {
        if positions.len() <= SMALL {
            return Self::List(positions.into());
        }
        let frequency = frequency(rules, &positions, within);
        let mut filed: HashMap<Atom<'_>, Vec<u32>, RandomState> = HashMap::default();
        let mut rest = Vec::new();
        for position in positions {
            match rarest(&rules[position as usize], within, &frequency) {
                Some(atoms) => {
                    for atom in atoms {
                        let list = filed.entry(atom).or_default();
                        if list.last() != Some(&position) {
                            list.push(position);
                        }
                    }
                }
                None => rest.push(position),
            }
        }
        let rest = if rest.len() <= SMALL {
            Self::List(rest.into())
        } else {
            Self::Sieved(Box::new(Exclusion::new(rules, rest)))
        };
        if filed.is_empty() {
            return rest;
        }
        let buckets = filed.into_iter().map(|(atom, positions)| {
            // In other dimensions, the rules under one atom may still differ.
            let dimension = atom.slot.dimension();
            (atom, Self::new(rules, positions, within & !dimension))
        });
        Self::Filed(Box::new((ByAtom::new(buckets), rest)))
    }

    fn visit(&self, request: &Asked<'_>, visit: &mut dyn FnMut(u32) -> Next) {
        match self {
            Self::List(positions) => {
                let _ = positions.iter().try_for_each(|&position| match visit(position) {
                    Next::More => Ok(()),
                    Next::Enough => Err(()),
                });
            }
            Self::Sieved(exclusion) => exclusion.visit(request, visit),
            Self::Filed(filed) => {
                let (by_atom, rest) = &**filed;
                rest.visit(request, visit);
                by_atom.visit(request, &mut |bucket: &Self| bucket.visit(request, visit));
            }
        }
    }
}

/// How many rules name each atom.
fn frequency<'a>(
    rules: &'a [Residual],
    positions: &[u32],
    within: Dimensions,
) -> HashMap<Atom<'a>, u64, RandomState> {
    let mut frequency = HashMap::default();
    for &position in positions {
        let tests = rules[position as usize].conditions.iter();
        for atom in tests.filter_map(|test| Atom::needed(test, within)).flatten() {
            *frequency.entry(atom).or_default() += 1;
        }
    }
    frequency
}

/// The atoms to file a rule under, one of which its requests must have; the rarest such list. `None`: there is none.
fn rarest<'a>(
    rule: &'a Residual,
    within: Dimensions,
    frequency: &HashMap<Atom<'a>, u64, RandomState>,
) -> Option<Vec<Atom<'a>>> {
    let score = |atoms: &Vec<Atom<'a>>| -> u64 {
        atoms.iter().map(|atom| frequency.get(atom).copied().unwrap_or(0) * atom.cost()).sum()
    };
    let best_of = |clause: &'a [std::sync::Arc<RequestTest>]| {
        clause.iter().filter_map(|test| Atom::needed(test, within)).min_by_key(score)
    };
    // Of ORed clauses, each has to give a list.
    let of_all = |clauses: &'a [Box<[std::sync::Arc<RequestTest>]>]| {
        let lists: Option<Vec<_>> = clauses.iter().map(|clause| best_of(clause)).collect();
        lists.filter(|lists| !lists.is_empty()).map(|lists| lists.concat())
    };
    let conditions = &rule.conditions;
    [best_of(&conditions.when), of_all(&conditions.to), of_all(&conditions.from)]
        .into_iter()
        .flatten()
        .min_by_key(score)
}
