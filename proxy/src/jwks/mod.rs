//! Keys of issuers: fetched off the request path, kept, and asked for again when a token names one that is not there.
//!
//! A set is fetched when a rule names it, again at its maximum age, and once in a while for a key that is not known. What
//! can't be fetched leaves the last good set in use: an issuer that is down takes nobody down with it.

mod fetch;
mod status;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use control_client::jwks::{KeySet, Unusable};
use control_client::snapshot::RemoteKeys;
use foldhash::fast::RandomState;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

pub use status::{Failure, Problem, Status};

use fetch::Fetcher;

/// A set is fetched again at this age (that of Envoy's remote sets).
const MAX_AGE: Duration = Duration::from_secs(300);
/// A key that is not known makes its issuer be asked again no more often than this.
const REFETCH_INTERVAL: Duration = Duration::from_secs(10);
/// First wait after a failure; doubled up to [`MAX_AGE`].
const FIRST_BACKOFF: Duration = Duration::from_secs(1);

/// How sets are fetched.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Roots that vouch for issuers' servers, PEM; `None`: the system's bundle.
    pub authority: Option<PathBuf>,
    /// `SO_MARK` of the sockets.
    pub mark: Option<u32>,
}

/// Every set that some rule names.
pub struct Store {
    sets: ArcSwap<Sets>,
    /// Other sets are to be kept now.
    changed: Notify,
    /// Counts changes of keys.
    moved: watch::Sender<u64>,
    fetcher: Fetcher,
    started: Instant,
}

type Sets = HashMap<RemoteKeys, Arc<Cell>, RandomState>;

/// One set.
struct Cell {
    source: RemoteKeys,
    keys: ArcSwapOption<KeySet>,
    /// Why the last fetch failed.
    problem: ArcSwapOption<Problem>,
    /// Fetches that have ended.
    ended: watch::Sender<u64>,
    /// Those that brought a set.
    fetches: AtomicU64,
    /// Those that did not, as [`Failure::ALL`] lists them.
    failures: [AtomicU64; Failure::ALL.len()],
    /// Seconds since the epoch at the end of the last that brought one; 0: none.
    fetched: AtomicU64,
    fetching: AtomicBool,
    wanted: Notify,
    /// Milliseconds from the store's start, and one, to the last call for a fetch out of turn; 0: none.
    called: AtomicU64,
}

/// A fetch to come, or under way.
pub struct Refetch {
    ended: watch::Receiver<u64>,
    timeout: Duration,
}

impl Refetch {
    /// Waits until it has ended, one way or the other.
    pub async fn done(mut self) {
        // Both ends of this wait mean the same: what is there now has to do.
        let _ = tokio::time::timeout(self.timeout, self.ended.changed()).await;
    }
}

impl Store {
    /// A store without sets.
    pub fn new(options: Options) -> Arc<Self> {
        Arc::new(Self {
            sets: ArcSwap::default(),
            changed: Notify::new(),
            moved: watch::Sender::new(0),
            fetcher: Fetcher::new(options),
            started: Instant::now(),
        })
    }

    /// Makes these the sets that are kept: before the tables that name them are in force, and after those are gone that
    /// named others.
    pub fn follow<'s>(&self, sources: impl Iterator<Item = &'s RemoteKeys>) {
        let before = self.sets.load();
        let cell = |source: &RemoteKeys| before.get(source).cloned().unwrap_or_else(|| Cell::new(source));
        let sets: Sets = sources.map(|source| (source.clone(), cell(source))).collect();
        if sets.len() != before.len() || sets.keys().any(|source| !before.contains_key(source)) {
            self.sets.store(Arc::new(sets));
            self.changed.notify_one();
        }
    }

    /// The keys of a set as they are now.
    pub fn keys(&self, source: &RemoteKeys) -> Option<Arc<KeySet>> {
        self.sets.load().get(source)?.keys.load_full()
    }

    /// Whether a set was asked for once, with or without success: until then nobody knows what its keys are.
    pub fn was_asked_for(&self, source: &RemoteKeys) -> bool {
        self.sets.load().get(source).is_some_and(|cell| *cell.ended.borrow() > 0)
    }

    /// Tells of each change of keys, and of the end of each set's first fetch.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// Why the last fetch of a set failed, if it did.
    pub fn problem(&self, source: &RemoteKeys) -> Option<Arc<Problem>> {
        self.sets.load().get(source)?.problem.load_full()
    }

    /// How every set stands, by where it is from.
    pub fn status(&self) -> Vec<Status> {
        let sets = self.sets.load();
        let mut all: Vec<_> = sets.values().map(|cell| cell.status()).collect();
        all.sort_by(|a, b| a.source.cmp(&b.source));
        all
    }

    /// The same, as `/jwks` shows it.
    pub fn to_json(&self) -> serde_json::Value {
        self.status().iter().map(Status::to_json).collect()
    }

    /// A key is wanted that a set does not have. `None`: its issuer was asked a short while ago.
    pub fn refetch(&self, source: &RemoteKeys) -> Option<Refetch> {
        let cell = self.sets.load().get(source).cloned()?;
        let refetch = Refetch { ended: cell.ended.subscribe(), timeout: source.timeout };
        // Those that come while a fetch is under way, or before the first, wait for it together.
        if *refetch.ended.borrow() == 0 || cell.fetching.load(Ordering::Acquire) {
            return Some(refetch);
        }
        let now = self.started.elapsed().as_millis() as u64 + 1;
        let called = cell.called.load(Ordering::Relaxed);
        if called != 0 && now < called + REFETCH_INTERVAL.as_millis() as u64 {
            return None;
        }
        if cell.called.compare_exchange(called, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            cell.wanted.notify_one();
        }
        Some(refetch)
    }

    /// Fetches and refreshes sets for as long as the process lives.
    pub async fn run(self: Arc<Self>) {
        let mut running: HashMap<RemoteKeys, AbortHandle> = HashMap::new();
        loop {
            let sets = self.sets.load_full();
            running.retain(|source, task| {
                let stays = sets.contains_key(source);
                if !stays {
                    task.abort();
                }
                stays
            });
            for (source, cell) in sets.iter() {
                running.entry(source.clone()).or_insert_with(|| {
                    let (store, cell) = (Arc::clone(&self), Arc::clone(cell));
                    tokio::spawn(async move { store.refresh(&cell).await }).abort_handle()
                });
            }
            drop(sets);
            self.changed.notified().await;
        }
    }

    /// Fetches every set once, for those who can wait for it.
    pub async fn fetch_all(&self) {
        for cell in self.sets.load_full().values() {
            self.fetch(cell).await;
        }
    }

    async fn refresh(&self, cell: &Cell) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let wait = if self.fetch(cell).await {
                backoff = FIRST_BACKOFF;
                MAX_AGE
            } else {
                let wait = backoff;
                backoff = (backoff * 2).min(MAX_AGE);
                wait
            };
            // Within a tenth, so that the proxies of a mesh don't ask all at once.
            let jitter = wait.mul_f64(rand::random_range(0.0..0.1));
            let _ = tokio::time::timeout(wait - jitter, cell.wanted.notified()).await;
        }
    }

    /// Whether a new set is there.
    async fn fetch(&self, cell: &Cell) -> bool {
        cell.fetching.store(true, Ordering::Release);
        let fetched = self.fetcher.keys(&cell.source).await;
        let ok = fetched.is_ok();
        let mut moved = *cell.ended.borrow() == 0;
        match fetched {
            Ok(keys) => moved |= cell.take(keys),
            Err(problem) => {
                let kept = if cell.keys.load().is_some() { "; the last good ones stay in use" } else { "" };
                let Problem { failure, detail } = &problem;
                let failure = failure.as_str();
                tracing::warn!(keys = %cell.source.location, failure, "keys of an issuer not fetched: {detail}{kept}");
                cell.failed(problem);
            }
        }
        cell.fetching.store(false, Ordering::Release);
        cell.ended.send_modify(|ended| *ended += 1);
        if moved {
            self.moved.send_modify(|moved| *moved += 1);
        }
        ok
    }
}

impl Cell {
    fn new(source: &RemoteKeys) -> Arc<Self> {
        Arc::new(Self {
            source: source.clone(),
            keys: ArcSwapOption::empty(),
            problem: ArcSwapOption::empty(),
            ended: watch::Sender::new(0),
            fetches: AtomicU64::new(0),
            failures: std::array::from_fn(|_| AtomicU64::new(0)),
            fetched: AtomicU64::new(0),
            fetching: AtomicBool::new(false),
            wanted: Notify::new(),
            called: AtomicU64::new(0),
        })
    }

    /// The same set again is no other one: tokens that it verified need not be verified again. True: it is another.
    fn take(&self, keys: KeySet) -> bool {
        self.problem.store(None);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.fetched.store(now.as_secs(), Ordering::Relaxed);
        self.fetches.fetch_add(1, Ordering::Relaxed);
        let other = self.keys.load().as_deref() != Some(&keys);
        if other {
            tracing::info!(keys = %self.source.location, number = keys.len(), "keys of an issuer are new");
            for key in &keys.left_out {
                if fips::required() && matches!(key.why, Unusable::NotApproved(_)) {
                    tracing::warn!(keys = %self.source.location, "{key}; its tokens are refused (--fips required)");
                } else {
                    tracing::debug!(keys = %self.source.location, "{key}; this key is left out");
                }
            }
            self.keys.store(Some(Arc::new(keys)));
        }
        other
    }

    fn failed(&self, problem: Problem) {
        let at = Failure::ALL.iter().position(|each| *each == problem.failure);
        if let Some(count) = at.and_then(|at| self.failures.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.problem.store(Some(Arc::new(problem)));
    }

    fn status(&self) -> Status {
        let keys = self.keys.load();
        let fetched = Some(self.fetched.load(Ordering::Relaxed)).filter(|seconds| *seconds != 0);
        Status {
            source: self.source.location.to_string(),
            keys: keys.as_ref().map_or(0, |keys| keys.len()),
            left_out: keys.iter().flat_map(|keys| &keys.left_out).map(ToString::to_string).collect(),
            fetched: fetched.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds)),
            fetches: self.fetches.load(Ordering::Relaxed),
            failures: self.failures.each_ref().map(|count| count.load(Ordering::Relaxed)),
            problem: self.problem.load().as_deref().cloned(),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("sets", &self.status()).finish_non_exhaustive()
    }
}
