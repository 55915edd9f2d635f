//! [`Buckets`]: one rate limit's state for all of its keys, shared by all workers, in bounded memory and without a lock on
//! the way of a key that is known.
//!
//! The rate is that of GCRA (ITU-T I.371, virtual scheduling): a bucket is one number, the theoretical arrival time (TAT) of
//! the next request, and a bucket whose TAT has passed is full again and says nothing. So that is what may be forgotten.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A rate, as arithmetic wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds between two requests, rounded up.
    interval: u64,
    /// Nanoseconds that a whole burst takes to come back.
    burst: u64,
}

/// What came of asking a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The request is within its limit.
    pub within: bool,
    /// So many more could follow at once.
    pub remaining: u64,
    /// Until there is one more.
    pub until_more: Duration,
}

/// A point in time: nanoseconds since a beginning that all buckets share; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(pub u64);

/// The buckets of one limit. Made when they are first used.
#[derive(Debug)]
pub struct Buckets {
    rate: Rate,
    sets: usize,
    made: OnceLock<Box<[Set]>>,
}

/// Sets of a limit that has keys: 1 MiB, 57,344 keys. A power of two.
const SETS: usize = 8192;
const WAYS: usize = 7;
/// Looks at a set that somebody else is just writing a new key into, which takes some tens of nanoseconds.
const PATIENCE: usize = 100;

/// Keys whose hashes are alike: two cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Set {
    /// Somebody is writing a new key.
    writing: AtomicBool,
    /// The bucket of all keys that find no place.
    overflow: AtomicU64,
    buckets: [Bucket; WAYS],
}

/// A key and its TAT. The TAT of a bucket only ever grows, over all keys that it is of, so that nothing is written by a thread
/// that looked at it before it became another's.
#[derive(Debug, Default)]
struct Bucket {
    tat: AtomicU64,
    tag: AtomicU64,
}

/// A TAT that stands while a bucket becomes another key's.
const CHANGING: u64 = u64::MAX;

impl Rate {
    /// So many in so much time, and so many at once. All from 1; what is beyond the arithmetic is the longest that is not.
    pub fn new(requests: u32, per: Duration, burst: u32) -> Self {
        const MOST: u64 = u64::MAX / 4;
        let per = u64::try_from(per.as_nanos()).unwrap_or(MOST).min(MOST);
        let interval = per.div_ceil(u64::from(requests.max(1))).max(1);
        Self { interval, burst: interval.saturating_mul(u64::from(burst.max(1))).min(MOST) }
    }

    /// The TAT after one more request, and what is said about it. `None`: it does not change.
    fn take(self, tat: u64, now: Now) -> (Option<u64>, Taken) {
        let debt = tat.saturating_sub(now.0);
        let after = debt + self.interval;
        if after > self.burst {
            let until_more = Duration::from_nanos(after - self.burst);
            return (None, Taken { within: false, remaining: 0, until_more });
        }
        let remaining = (self.burst - after) / self.interval;
        let until_more = (after - 1) % self.interval + 1;
        let taken = Taken { within: true, remaining, until_more: Duration::from_nanos(until_more) };
        (Some(now.0 + after), taken)
    }
}

impl Buckets {
    /// Full ones, for a limit that tells keys apart or not.
    pub fn new(rate: Rate, keyed: bool) -> Self {
        Self { rate, sets: if keyed { SETS } else { 1 }, made: OnceLock::new() }
    }

    /// Takes one request of a key, by the key's hash: 64 bits that nobody outside can foresee.
    pub fn take(&self, key: u64, now: Now) -> Taken {
        let set = self.set(key);
        set.known(key, |tat| self.rate.take(tat, now))
            .or_else(|| set.add(key, now, self.rate))
            .unwrap_or_else(|| {
                let overflow = |tat| self.rate.take(tat, now);
                update(&set.overflow, overflow, || true).unwrap_or(NOTHING_LEFT)
            })
    }

    /// What taking one would say, without taking it.
    pub fn look(&self, key: u64, now: Now) -> Taken {
        let set = self.set(key);
        let known = set.known(key, |tat| (None, self.rate.take(tat, now).1));
        known.unwrap_or_else(|| {
            let has_room = set.buckets.iter().any(|bucket| bucket.tat.load(Ordering::Relaxed) <= now.0);
            let tat = if has_room { 0 } else { set.overflow.load(Ordering::Relaxed) };
            self.rate.take(tat, now).1
        })
    }

    fn set(&self, key: u64) -> &Set {
        let sets = self.made.get_or_init(|| (0..self.sets).map(|_| Set::default()).collect());
        // The tag is the whole hash, so that these bits may be the set's as well. There is always a set.
        &sets[key as usize & (sets.len() - 1)]
    }
}

/// What is said where even the bucket of all others can't be asked.
const NOTHING_LEFT: Taken = Taken { within: false, remaining: 0, until_more: Duration::from_secs(1) };

/// Changes a TAT as `take` says, for as long as it is the one that is meant. `None`: it is not.
fn update(
    at: &AtomicU64,
    take: impl Fn(u64) -> (Option<u64>, Taken),
    is_meant: impl Fn() -> bool,
) -> Option<Taken> {
    // With Acquire, so that what `is_meant` reads is no older than the TAT.
    let mut tat = at.load(Ordering::Acquire);
    loop {
        if tat == CHANGING || !is_meant() {
            return None;
        }
        let (next, taken) = take(tat);
        let Some(next) = next else { return Some(taken) };
        match at.compare_exchange_weak(tat, next, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Some(taken),
            Err(other) => tat = other,
        }
    }
}

impl Set {
    /// Changes the bucket of a key that has one.
    fn known(&self, key: u64, take: impl Fn(u64) -> (Option<u64>, Taken)) -> Option<Taken> {
        let of_key = |bucket: &&Bucket| bucket.tag.load(Ordering::Relaxed) == key;
        let bucket = self.buckets.iter().find(of_key)?;
        update(&bucket.tat, take, || bucket.tag.load(Ordering::Relaxed) == key)
    }

    /// Gives a key a bucket that says nothing any more, with its first request taken. `None`: there is none, or somebody
    /// else is at it for too long, as a thread that lost its core is.
    fn add(&self, key: u64, now: Now, rate: Rate) -> Option<Taken> {
        let begin =
            || self.writing.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let mut looked = 0;
        while !begin() {
            looked += 1;
            if looked > PATIENCE {
                return None;
            }
            std::hint::spin_loop();
        }
        // Whoever was before may have written this very key.
        let taken = self.known(key, |tat| rate.take(tat, now)).or_else(|| self.replace(key, now, rate));
        self.writing.store(false, Ordering::Release);
        taken
    }

    fn replace(&self, key: u64, now: Now, rate: Rate) -> Option<Taken> {
        let (first, taken) = rate.take(0, now);
        let claim = |bucket: &&Bucket| {
            let tat = bucket.tat.load(Ordering::Relaxed);
            // Its own key may take from it at the same time; then it is not for others.
            let change =
                || bucket.tat.compare_exchange(tat, CHANGING, Ordering::Acquire, Ordering::Relaxed).is_ok();
            tat <= now.0 && change()
        };
        let bucket = self.buckets.iter().find(claim)?;
        bucket.tag.store(key, Ordering::Relaxed);
        bucket.tat.store(first?, Ordering::Release);
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(requests: u32, per_secs: u64, burst: u32) -> Rate {
        Rate::new(requests, Duration::from_secs(per_secs), burst)
    }

    /// A bucket of tokens, by the definition: full at first, one more each interval, never more than fit.
    struct Naive {
        interval: u128,
        burst: u128,
        /// In nanoseconds that they take to come.
        tokens: u128,
        last: u64,
    }

    impl Naive {
        fn new(requests: u32, per_secs: u64, burst: u32) -> Self {
            let interval = (u128::from(per_secs) * u128::from(SECOND)).div_ceil(requests.into());
            let burst = interval * u128::from(burst);
            Self { interval, burst, tokens: burst, last: 0 }
        }

        fn take(&mut self, now: u64) -> (bool, u128) {
            self.tokens = (self.tokens + u128::from(now - self.last)).min(self.burst);
            self.last = now;
            let within = self.tokens >= self.interval;
            if within {
                self.tokens -= self.interval;
            }
            (within, self.tokens / self.interval)
        }
    }

    proptest! {
        #[test]
        fn a_bucket_does_as_tokens_would(
            requests in 1..2_000u32,
            per in 1..100u64,
            burst in 1..50u32,
            steps in proptest::collection::vec((0..3usize, 0..4u64, 0..SECOND), 1..300),
        ) {
            let buckets = Buckets::new(rate(requests, per, burst), true);
            let mut naive: HashMap<usize, Naive> = HashMap::new();
            let mut now = SECOND;
            for (key, whole, part) in steps {
                now += whole * per * SECOND / u64::from(requests) + part / u64::from(requests);
                let tokens = naive.entry(key).or_insert_with(|| Naive::new(requests, per, burst));
                let (within, left) = tokens.take(now);
                let looked = buckets.look(key as u64 * 77, Now(now));
                let taken = buckets.take(key as u64 * 77, Now(now));
                prop_assert_eq!(looked, taken);
                prop_assert_eq!((taken.within, u128::from(taken.remaining)), (within, left));
                // Just then, and not before, there is one more.
                let later = now + taken.until_more.as_nanos() as u64;
                let looks = |at| buckets.look(key as u64 * 77, Now(at));
                let (then, before) = (looks(later), looks(later - 1));
                prop_assert_eq!((then.within, then.remaining), (true, taken.remaining));
                prop_assert!(before.remaining < then.remaining || !before.within);
            }
        }
    }

    #[test]
    fn a_slow_rate_and_a_quick_one() {
        let year = rate(1, 31 * 24 * 3600, 11);
        assert!(year.take(0, Now(1)).0.is_some());
        let buckets = Buckets::new(rate(1_000_000, 1, 1), false);
        assert!(buckets.take(0, Now(SECOND)).within);
        assert!(!buckets.take(0, Now(SECOND + 999)).within);
        assert!(buckets.take(0, Now(SECOND + 1000)).within);
    }

    #[test]
    fn a_million_keys_take_no_more_memory_and_none_is_unlimited() {
        let buckets = Buckets::new(rate(1, 3600, 2), true);
        let spread = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
        let admitted = (0..1_000_000).filter(|n| buckets.take(spread(*n), Now(SECOND)).within).count();
        // Each bucket gave its first, and that of each set's others its whole burst.
        assert_eq!(admitted, SETS * (WAYS + 2));
        assert_eq!(buckets.made.get().unwrap().len() * size_of::<Set>(), 1 << 20);
        // Those that came first are known still, and those that came too late have nothing.
        assert!(buckets.take(spread(0), Now(SECOND)).within);
        assert!(!buckets.take(spread(0), Now(SECOND)).within);
        assert!(!buckets.take(spread(1_000_001), Now(SECOND)).within);
        // An hour later all are full again, and forgotten for others.
        let later = Now(SECOND + 3 * 3600 * SECOND);
        assert!((0..1000).all(|n| buckets.take(spread(2_000_000 + n), later).within));
    }

    #[test]
    fn a_key_without_a_place_shares_and_gets_one_as_soon_as_there_is() {
        let buckets = Buckets::new(rate(1, 10, 1), false);
        for key in 0..WAYS as u64 {
            assert!(buckets.take(key, Now(SECOND * (1 + key))).within);
        }
        assert!(buckets.take(100, Now(SECOND * 8)).within, "of what all others share");
        assert!(!buckets.look(101, Now(SECOND * 9)).within);
        assert!(!buckets.take(101, Now(SECOND * 9)).within);
        assert!(buckets.take(101, Now(SECOND * 11)).within, "the first one is full again");
        assert!(!buckets.take(101, Now(SECOND * 11)).within);
    }

    /// Threads that all want more than there is, of keys that all find a place, while buckets change hands all the time.
    #[test]
    fn threads_together_never_get_more_than_one_would() {
        const THREADS: u64 = 8;
        const KEYS: usize = 4;
        const ROUNDS: u64 = 20_000;
        const BURST: u64 = 10;
        const INTERVAL: u64 = 1000;
        let buckets = Buckets::new(rate(1_000_000, 1, BURST as u32), false);
        let admitted: [AtomicUsize; KEYS] = Default::default();
        let clock = AtomicU64::new(SECOND);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (buckets, admitted, clock) = (&buckets, &admitted, &clock);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        // At times long enough that all are full again.
                        let step = if round % 1000 == 0 { 2 * BURST * INTERVAL } else { INTERVAL / 20 };
                        let now = Now(clock.fetch_add(step, Ordering::SeqCst));
                        let key = (round + thread) as usize % KEYS;
                        if buckets.take(1 + key as u64, now).within {
                            admitted[key].fetch_add(1, Ordering::SeqCst);
                        }
                        // Another key for each interval: of these, at most three are in their buckets at once.
                        buckets.take(1000 + now.0 / INTERVAL, now);
                    }
                });
            }
        });
        // A thread that lost its core between looking at the clock and taking belongs to an earlier time.
        let most = BURST + (clock.load(Ordering::SeqCst) - SECOND) / INTERVAL + THREADS;
        for (key, admitted) in admitted.iter().enumerate() {
            let admitted = admitted.load(Ordering::SeqCst) as u64;
            assert!(admitted <= most, "key {key}: {admitted} of {most}");
            assert!(admitted >= most / 2, "key {key}: {admitted} of {most}");
        }
    }

    /// A first request is as exact as any other: of threads that all bring a new key at once, one is the first.
    #[test]
    fn a_key_that_comes_by_many_threads_at_once_has_one_bucket() {
        const THREADS: usize = 4;
        let buckets = Buckets::new(rate(1, 3600, 2), true);
        let admitted = AtomicUsize::new(0);
        let barrier = std::sync::Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for key in 0..2_000 {
                        barrier.wait();
                        if buckets.take(key, Now(SECOND)).within {
                            admitted.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        // A thread that lost its core while it wrote lets others take of what all share, as much as that has.
        let shared = |set: &Set| set.overflow.load(Ordering::SeqCst).saturating_sub(SECOND) / (3600 * SECOND);
        let shared: u64 = buckets.made.get().unwrap().iter().map(shared).sum();
        // Where three of the four did, the key's own bucket was asked once only.
        let admitted = admitted.into_inner() as u64;
        assert!((2 * 2_000..=2 * 2_000 + shared).contains(&admitted), "{admitted}, {shared} of them shared");
        assert!(shared < 100, "{shared}");
    }

    #[test]
    fn what_became_another_s_while_it_was_looked_at_is_not_taken_from() {
        let set = Set::default();
        let bucket = &set.buckets[3];
        bucket.tag.store(7, Ordering::Relaxed);
        bucket.tat.store(100, Ordering::Relaxed);
        let taken = set.known(7, |tat| {
            bucket.tat.store(200, Ordering::Relaxed);
            bucket.tag.store(8, Ordering::Relaxed);
            rate(1, 1, 1).take(tat, Now(SECOND))
        });
        assert_eq!((taken, bucket.tat.load(Ordering::Relaxed)), (None, 200));
        bucket.tat.store(CHANGING, Ordering::Relaxed);
        assert_eq!(set.known(8, |tat| rate(1, 1, 1).take(tat, Now(SECOND))), None);
    }
}
