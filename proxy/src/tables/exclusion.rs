//! Rules that ask only for what must *not* be: those that a request rules out are left out by bits, many at a time.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::atom::Atom;
use super::by_atom::ByAtom;
use super::condition::Asked;
use super::index::Next;
use super::rule::Residual;

/// A long list of rules and, by atom, which of them a request that has the atom can't match.
#[derive(Debug)]
pub(super) struct Exclusion {
    positions: Box<[u32]>,
    excluded: ByAtom<Excluded>,
}

/// Indices into the list of positions.
#[derive(Debug)]
enum Excluded {
    Few(Box<[u32]>),
    Many(Box<[u64]>),
}

const WORD: usize = u64::BITS as usize;

impl Exclusion {
    pub(super) fn new(rules: &[Residual], positions: Vec<u32>) -> Self {
        let mut by_atom: HashMap<Atom<'_>, Vec<u32>, RandomState> = HashMap::default();
        for (index, &position) in positions.iter().enumerate() {
            // Any of these that fails, fails the rule.
            let required = rules[position as usize].conditions.required();
            for atom in required.flat_map(|test| Atom::excluding(test)) {
                by_atom.entry(atom).or_default().push(index as u32);
            }
        }
        let words = positions.len().div_ceil(WORD);
        let excluded = by_atom.into_iter().map(|(atom, indices)| (atom, Excluded::new(indices, words)));
        Self { excluded: ByAtom::new(excluded), positions: positions.into() }
    }

    pub(super) fn visit(&self, request: &Asked<'_>, visit: &mut dyn FnMut(u32) -> Next) {
        // On the stack for up to 10,240 rules.
        let mut out: SmallVec<[u64; 160]> = SmallVec::from_elem(0, self.positions.len().div_ceil(WORD));
        self.excluded.visit(request, &mut |excluded| excluded.add_to(&mut out));
        for (word, bits) in out.iter().enumerate() {
            let mut left = !bits;
            while left != 0 {
                let index = word * WORD + left.trailing_zeros() as usize;
                let Some(&position) = self.positions.get(index) else { return };
                if visit(position) == Next::Enough {
                    return;
                }
                left &= left - 1;
            }
        }
    }
}

impl Excluded {
    fn new(indices: Vec<u32>, words: usize) -> Self {
        if indices.len() <= words {
            return Self::Few(indices.into());
        }
        let mut bits = vec![0; words];
        for index in indices {
            bits[index as usize / WORD] |= 1 << (index as usize % WORD);
        }
        Self::Many(bits.into())
    }

    fn add_to(&self, out: &mut [u64]) {
        match self {
            Self::Few(indices) => {
                for &index in indices {
                    out[index as usize / WORD] |= 1 << (index as usize % WORD);
                }
            }
            Self::Many(bits) => out.iter_mut().zip(bits).for_each(|(out, bits)| *out |= bits),
        }
    }
}
