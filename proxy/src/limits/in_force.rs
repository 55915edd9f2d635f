//! [`InForce`]: the buckets of the rate limits of one generation of tables, which name them by number.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use super::buckets::{Buckets, Now, Rate};

/// A limit that needs buckets.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'t> {
    /// The same only for the same limit, over all versions of the policy.
    pub id: &'t str,
    /// What it gives.
    pub rate: Rate,
    /// It tells keys apart.
    pub keyed: bool,
}

/// Buckets by the numbers that tables know them by. What no generation holds any more is gone.
#[derive(Debug)]
pub struct InForce {
    limits: Box<[(Box<str>, Arc<Buckets>)]>,
    /// Kept over generations, as are the buckets: what they say is by these.
    hash: RandomState,
    began: Instant,
}

impl InForce {
    /// Full buckets for all.
    pub fn first<'t>(wanted: impl Iterator<Item = Wanted<'t>>) -> Self {
        let none = Self { limits: Box::default(), hash: RandomState::new(), began: Instant::now() };
        none.next(wanted)
    }

    /// For the next generation: of a limit that was in force the very same ones.
    pub fn next<'t>(&self, wanted: impl Iterator<Item = Wanted<'t>>) -> Self {
        let known: HashMap<&str, &Arc<Buckets>> =
            self.limits.iter().map(|(id, buckets)| (&**id, buckets)).collect();
        let buckets = |Wanted { id, rate, keyed }: Wanted<'t>| {
            let buckets = known.get(id).map(|buckets| Arc::clone(buckets));
            (id.into(), buckets.unwrap_or_else(|| Arc::new(Buckets::new(rate, keyed))))
        };
        Self { limits: wanted.map(buckets).collect(), hash: self.hash.clone(), began: self.began }
    }

    /// The buckets of a number.
    ///
    /// # Panics
    /// With a number of other tables that had more limits.
    pub fn buckets(&self, number: u32) -> &Buckets {
        &self.limits[number as usize].1
    }

    /// By what all buckets know keys: SipHash by a secret, so that nobody can choose with whom to share.
    pub fn hasher(&self) -> impl std::hash::Hasher + use<> {
        self.hash.build_hasher()
    }

    /// The time by which all buckets count.
    pub fn now(&self) -> Now {
        Now(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX / 2).saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_limit_that_stays_keeps_its_buckets_and_one_that_goes_is_gone() {
        let wanted = |id| Wanted { id, rate: Rate::new(1, Duration::from_secs(3600), 1), keyed: true };
        let first = InForce::first(["a", "b"].map(wanted).into_iter());
        assert!(first.buckets(0).take(7, first.now()).within);
        let second = first.next(["c", "a"].map(wanted).into_iter());
        assert!(!second.buckets(1).take(7, second.now()).within);
        assert!(second.buckets(0).take(7, second.now()).within);
        let gone = Arc::downgrade(&first.limits[1].1);
        drop(first);
        assert!(gone.upgrade().is_none());
        assert!(second.next(["b"].map(wanted).into_iter()).buckets(0).take(7, second.now()).within);
    }
}
