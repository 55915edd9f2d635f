//! Weighted choice of a backend: even over time without being predictable.
//!
//! Decisions come in strata. Each stratum holds every backend its share of times, to within one, and is shuffled; where
//! the share is no whole number, the points of one stratum lie between those of the last (a Kronecker sequence), so that
//! errors never add up. The first stratum starts at a random place with a random phase: one decision of each of many
//! fresh states keeps the weights too.

use std::hash::{BuildHasher, Hash};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Decisions of a stratum: at least so many, so that a stratum's last ones can't be guessed,
const MIN_STRATUM: u64 = 16;
/// and at most so many, so that any run of decisions is even.
const MAX_STRATUM: u64 = 128;
/// Used where the weights, reduced, need a longer stratum to come out whole.
const INEXACT_STRATUM: u64 = 64;
/// Fractional part of the golden ratio, as a fraction of 2^64: the most even step there is.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The weights of a rule's backends, compiled.
#[derive(Debug, Clone)]
pub struct Split {
    kind: Kind,
    total: u64,
    fingerprint: u64,
}

#[derive(Debug, Clone)]
enum Kind {
    /// No backend has a weight.
    None,
    /// One has it all.
    Single(usize),
    /// `upper[i]` is the sum of the weights up to and including `i`.
    Weighted { upper: Box<[u64]>, stratum: u64 },
}

impl Split {
    /// Compiles weights; those of invalid backends included, since they keep their share.
    pub fn new(weights: &[u32]) -> Self {
        let total = weights.iter().map(|&w| u64::from(w)).sum();
        let fingerprint = foldhash::quality::FixedState::default().hash_one(weights);
        let mut weighted = weights.iter().enumerate().filter(|(_, weight)| **weight > 0);
        let kind = match (weighted.next(), weighted.next()) {
            (None, _) => Kind::None,
            (Some((only, _)), None) => Kind::Single(only),
            _ => Kind::Weighted { upper: cumulate(weights), stratum: stratum(weights, total) },
        };
        Self { kind, total, fingerprint }
    }

    /// Sum of the weights.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The choice, where it needs no state: `Some(None)` where no backend has a weight.
    pub fn constant(&self) -> Option<Option<usize>> {
        match self.kind {
            Kind::None => Some(None),
            Kind::Single(only) => Some(Some(only)),
            Kind::Weighted { .. } => None,
        }
    }
}

/// Where one worker is in one rule's split. Lives outside the tables, by [`SplitKey`]; survives new tables, and starts
/// anew by itself when the weights changed.
#[derive(Debug)]
pub struct SplitState {
    random: SmallRng,
    fingerprint: u64,
    /// Of 2^64.
    phase: u64,
    /// The current stratum, shuffled.
    slots: Vec<u16>,
    next: usize,
}

/// Names one rule of one service port, stable over versions of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SplitKey(pub u64);

impl SplitKey {
    /// The key of what is named; the same in every version of the tables of this process.
    pub(super) fn of(name: impl Hash) -> Self {
        Self(foldhash::quality::FixedState::default().hash_one(name))
    }
}

impl Default for SplitState {
    fn default() -> Self {
        Self::new(SmallRng::from_rng(&mut rand::rng()))
    }
}

impl SplitState {
    /// A fresh state. `Default` seeds it from the operating system.
    pub fn new(mut random: SmallRng) -> Self {
        let phase = random.random();
        Self { random, fingerprint: 0, phase, slots: Vec::new(), next: 0 }
    }

    /// Index of the backend that the next request goes to; `None` where no backend has a weight.
    pub fn choose(&mut self, split: &Split) -> Option<usize> {
        let (upper, stratum) = match &split.kind {
            Kind::None => return None,
            Kind::Single(only) => return Some(*only),
            Kind::Weighted { upper, stratum } => (upper, *stratum),
        };
        if self.fingerprint != split.fingerprint {
            self.fingerprint = split.fingerprint;
            self.fill(upper, stratum);
            self.next = self.random.random_range(0..self.slots.len());
        } else if self.next == self.slots.len() {
            self.fill(upper, stratum);
        }
        let slot = self.slots.get(self.next).map(|&slot| usize::from(slot));
        self.next += 1;
        slot
    }

    /// Lays `stratum` points at even distances over the weights, and shuffles what they hit.
    fn fill(&mut self, upper: &[u64], stratum: u64) {
        let total = upper.last().copied().unwrap_or(0);
        self.phase = self.phase.wrapping_add(GOLDEN);
        self.slots.clear();
        let mut backend = 0;
        for slot in 0..stratum {
            // (slot + phase) * total / stratum; below 2^7 * 2^36 * 2^64, and less than `total`.
            let place = (u128::from(slot) << 64) + u128::from(self.phase);
            let point = ((place * u128::from(total) / u128::from(stratum)) >> 64) as u64;
            while upper.get(backend).is_some_and(|&upper| point >= upper) {
                backend += 1;
            }
            self.slots.push(backend as u16);
        }
        for last in (1..self.slots.len()).rev() {
            let other = self.random.random_range(0..=last);
            self.slots.swap(last, other);
        }
        self.next = 0;
    }
}

fn cumulate(weights: &[u32]) -> Box<[u64]> {
    let sums = weights.iter().scan(0, |sum, &weight| {
        *sum += u64::from(weight);
        Some(*sum)
    });
    sums.collect()
}

/// Length of a stratum: the least multiple of the reduced weights' sum that is long enough, if it is short enough.
fn stratum(weights: &[u32], total: u64) -> u64 {
    let divisor = weights.iter().fold(0, |divisor, &weight| gcd(divisor, u64::from(weight))).max(1);
    let reduced = total / divisor;
    let whole = reduced * MIN_STRATUM.div_ceil(reduced.max(1));
    if whole <= MAX_STRATUM { whole } else { INEXACT_STRATUM }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seeded(seed: u64) -> SplitState {
        SplitState::new(SmallRng::seed_from_u64(seed))
    }

    fn counts(state: &mut SplitState, split: &Split, decisions: usize, backends: usize) -> Vec<usize> {
        let mut counts = vec![0; backends];
        for _ in 0..decisions {
            counts[state.choose(split).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn ninety_ten_holds_over_any_thousand_decisions() {
        let split = Split::new(&[90, 10]);
        for seed in 0..50 {
            let mut state = seeded(seed);
            let choices: Vec<_> = (0..5_000).map(|_| state.choose(&split).unwrap()).collect();
            for window in choices.windows(1_000) {
                let minor: usize = window.iter().sum();
                assert!((90..=110).contains(&minor), "{minor} of 1000, seed {seed}");
            }
        }
    }

    #[test]
    fn one_decision_of_each_of_many_states_keeps_the_weights() {
        let split = Split::new(&[90, 10]);
        let minor: usize = (0..20_000).map(|seed| seeded(seed).choose(&split).unwrap()).sum();
        assert!((1_850..=2_150).contains(&minor), "{minor} of 20000: more than 3.5 sigma off");
    }

    #[test]
    fn states_of_two_workers_do_not_march_in_step() {
        let split = Split::new(&[50, 50]);
        let (mut one, mut two) = (SplitState::default(), SplitState::default());
        let same = (0..10_000).filter(|_| one.choose(&split) == two.choose(&split)).count();
        assert!((4_000..=6_000).contains(&same), "{same}");
    }

    #[test]
    fn degenerate_weights() {
        assert_eq!(seeded(1).choose(&Split::new(&[])), None);
        assert_eq!(seeded(1).choose(&Split::new(&[0, 0])), None);
        assert_eq!(seeded(1).choose(&Split::new(&[0, 7, 0])), Some(1));
        assert_eq!(Split::new(&[0, 7, 0]).constant(), Some(Some(1)));
        assert_eq!(Split::new(&[1, 7]).constant(), None);
    }

    #[test]
    fn a_rare_backend_gets_its_turn_and_no_more() {
        let split = Split::new(&[999_999, 1]);
        let rare = counts(&mut seeded(3), &split, 4_000_000, 2)[1];
        assert!((2..=6).contains(&rare), "{rare} of 4 expected");
    }

    #[test]
    fn new_weights_start_a_new_stratum() {
        let mut state = seeded(9);
        counts(&mut state, &Split::new(&[1, 1]), 5, 2);
        assert_eq!(counts(&mut state, &Split::new(&[0, 1, 1]), 100, 3)[0], 0);
    }

    proptest! {
        #[test]
        fn any_weights_come_out_even(
            weights in proptest::collection::vec(prop_oneof![Just(0), 1u32..=10, 1u32..=1_000_000], 2..8),
            seed: u64,
        ) {
            let split = Split::new(&weights);
            prop_assume!(split.total() > 0);
            let decisions = 4_000;
            let counts = counts(&mut seeded(seed), &split, decisions, weights.len());
            for (count, &weight) in counts.iter().zip(&weights) {
                let expected = decisions as f64 * f64::from(weight) / split.total() as f64;
                prop_assert!((*count as f64 - expected).abs() <= 40.0, "{counts:?} of {weights:?}");
                prop_assert!(weight > 0 || *count == 0);
            }
        }
    }
}
