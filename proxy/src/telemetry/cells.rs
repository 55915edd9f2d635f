//! The metric cells of one worker: written by that worker alone, without locks or formatting, and read at a scrape.
//!
//! A record touches two cells. Its [`Verdict`] (what was decided, by which policy, how the checks and the request came
//! out) has one count, from which a scrape derives every decision metric; its [`Traffic`] (route, backend, status)
//! has the durations and bytes. Both are found by a key of small integers that is valid for one configuration.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::record::{ConfigFacts, Consulted, Cut, Record, Side};
use crate::decision::{Check, CheckOutcome, Objects, Outcome, PolicyRef, Reason, Stage};

/// A count with one writer: adding is a load and a store, which no other core contends for.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(super) fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    pub(super) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Everything one worker counts. Aligned so that two workers never write to one cache line (or to a prefetched pair).
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Cells {
    pub(super) records: Counter,
    /// Found no place in the queue.
    pub(super) dropped: Counter,
    /// Left out by the sample.
    pub(super) sampled_out: Counter,
    /// By side.
    pub(super) connections_opened: [Counter; 3],
    pub(super) connections_closed: [Counter; 3],
    pub(super) connections_aged: [Counter; 3],
    /// Connections taken in plaintext, by the workload's port; 0 stands for those that are too many.
    pub(super) plaintext: Series<u16, Counter>,
    pub(super) verdicts: Series<Verdict, Counter>,
    pub(super) traffic: Series<Traffic, TrafficCell>,
    pub(super) cuts: Series<CutName, Counter>,
    pub(super) sweeps: Counter,
    pub(super) swept: Counter,
    pub(super) swept_us: Counter,
    pub(super) marks: Series<Mark, Counter>,
    pub(super) no_policy: Series<NoPolicy, Counter>,
    pub(super) consulted: Series<Heard, Durations>,
}

/// Cells by what they count. Locked when a combination is first seen under a configuration, and by a scrape.
#[derive(Debug)]
pub(super) struct Series<L, C>(Mutex<HashMap<L, Arc<C>>>);

impl<L, C> Default for Series<L, C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<L: Hash + Eq + Clone, C: Default> Series<L, C> {
    /// All cells, for a scrape.
    pub(super) fn all(&self) -> Vec<(L, Arc<C>)> {
        self.lock().iter().map(|(labels, cell)| (labels.clone(), Arc::clone(cell))).collect()
    }

    /// The cell of these labels; of `or` instead if they are new and there are too many already.
    pub(super) fn cell(&self, labels: L, or: impl FnOnce(L) -> L) -> Arc<C> {
        let mut series = self.lock();
        let labels =
            if series.len() < SERIES_LIMIT || series.contains_key(&labels) { labels } else { or(labels) };
        Arc::clone(series.entry(labels).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<L, Arc<C>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was decided and how it came out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Verdict {
    pub(super) side: Side,
    pub(super) outcome: Outcome,
    pub(super) stage: Stage,
    pub(super) reason: Reason,
    pub(super) policy: Option<PolicyName>,
    pub(super) checks: [(CheckOutcome, Reason); 5],
    pub(super) ended: (Stage, Reason),
}

/// Where a request went and what came back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Traffic {
    pub(super) side: Side,
    /// A request, and not a connection.
    pub(super) request: bool,
    /// 0: none.
    pub(super) status: u16,
    pub(super) route: Option<PolicyName>,
    pub(super) backend: Option<Arc<str>>,
}

/// What was cut, and by what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct CutName {
    pub(super) side: Side,
    pub(super) reason: Reason,
    pub(super) policy: Option<PolicyName>,
}

impl Cells {
    /// Counts something that was cut. Rare, so the series is asked each time.
    pub(super) fn cut(&self, side: Side, reason: Reason, cut: Option<&Cut>) {
        let policy = cut.and_then(|cut| PolicyName::of(&cut.config.objects, cut.policy));
        let other = |name: CutName| CutName { policy: name.policy.map(|_| PolicyName::other()), ..name };
        self.cuts.cell(CutName { side, reason, policy }, other).add(1);
    }
}

/// What a policy said that decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Mark {
    pub(super) policy: PolicyName,
    /// What a dry-run policy would have done, and why; `None`: an AUDIT rule that matched.
    pub(super) would: Option<(Outcome, Reason)>,
}

/// What no policy decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct NoPolicy {
    pub(super) side: Side,
    /// `host:port` of the service asked for, when known.
    pub(super) service: Option<Arc<str>>,
}

/// What an authorization provider said.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Heard {
    pub(super) provider: Arc<str>,
    /// `provider-allowed`, `provider-denied` or `provider-unavailable`.
    pub(super) outcome: Reason,
}

/// A policy object and rule, as labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PolicyName {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) rule: Option<u16>,
}

/// Requests of one [`Traffic`].
#[derive(Debug, Default)]
pub(super) struct TrafficCell {
    pub(super) count: Counter,
    pub(super) received: Counter,
    pub(super) sent: Counter,
    pub(super) durations: Durations,
}

/// How long something took, as a histogram.
#[derive(Debug, Default)]
pub(super) struct Durations {
    pub(super) total_us: Counter,
    pub(super) buckets: [Counter; BUCKETS_US.len() + 1],
}

impl Durations {
    fn add(&self, us: u64) {
        self.total_us.add(us);
        self.buckets[BUCKETS_US.partition_point(|&bound| bound < us)].add(1);
    }
}

impl TrafficCell {
    fn count(&self, record: &Record, elapsed_us: u64) {
        self.count.add(1);
        self.received.add(record.request_bytes);
        self.sent.add(record.response_bytes);
        self.durations.add(elapsed_us);
    }
}

/// The cells that a worker found already, by configuration: the one in force and the one before it, whose requests
/// are still ending.
#[derive(Debug, Default)]
pub(super) struct Cache {
    current: Generation,
    previous: Generation,
}

/// Cells by keys that mean something under one configuration only.
#[derive(Debug, Default)]
struct Generation {
    /// Keeps the address from being used for another configuration, and nothing else of it.
    config: Weak<ConfigFacts>,
    verdicts: HashMap<VerdictKey, Arc<Counter>, foldhash::fast::FixedState>,
    traffic: HashMap<TrafficKey, FoundTraffic, foldhash::fast::FixedState>,
    marks: HashMap<MarkKey, Arc<Counter>, foldhash::fast::FixedState>,
    no_policy: HashMap<(Side, usize), FoundNoPolicy, foldhash::fast::FixedState>,
    consulted: HashMap<(usize, Reason), FoundHeard, foldhash::fast::FixedState>,
}

type MarkKey = (PolicyRef, Option<(Outcome, Reason)>);

#[derive(Debug)]
struct FoundNoPolicy {
    count: Arc<Counter>,
    /// Keeps the address in the key from being used for another name.
    #[expect(dead_code, reason = "held, not read")]
    service: Option<Arc<str>>,
}

#[derive(Debug)]
struct FoundHeard {
    durations: Arc<Durations>,
    /// Keeps the address in the key from being used for another name.
    #[expect(dead_code, reason = "held, not read")]
    provider: Arc<str>,
}

#[derive(Debug)]
struct FoundTraffic {
    cell: Arc<TrafficCell>,
    /// Keeps the address in the key from being used for another name.
    #[expect(dead_code, reason = "held, not read")]
    backend: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct VerdictKey {
    /// Side, outcome, stage, reason, ended, checks: a byte each.
    words: u128,
    policy: PolicyRef,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct TrafficKey {
    route: PolicyRef,
    /// Address of the name: backends have one name each, made when tables compile.
    backend: usize,
    status: u16,
    side: Side,
    request: bool,
}

impl Cache {
    /// Counts a record that ends now.
    pub(super) fn count(&mut self, cells: &Cells, record: &Record, elapsed_us: u64) {
        let generation = self.generation(&record.config);
        generation.verdict(cells, record).add(1);
        generation.traffic(cells, record).count(record, elapsed_us);
        generation.mark(cells, record);
        if decided_by_nobody(record) {
            generation.no_policy(cells, record).add(1);
        }
    }

    /// Counts what a provider said, when it did.
    pub(super) fn consulted(&mut self, cells: &Cells, config: &Arc<ConfigFacts>, consulted: &Consulted) {
        self.generation(config).consulted(cells, consulted).add(consulted.us.into());
    }

    fn generation(&mut self, config: &Arc<ConfigFacts>) -> &mut Generation {
        let wanted = Arc::as_ptr(config);
        if self.current.config.as_ptr() != wanted {
            std::mem::swap(&mut self.current, &mut self.previous);
            if self.current.config.as_ptr() != wanted {
                self.current = Generation { config: Arc::downgrade(config), ..Generation::default() };
            }
        }
        &mut self.current
    }
}

impl Generation {
    fn verdict(&mut self, cells: &Cells, record: &Record) -> &Counter {
        bound(&mut self.verdicts);
        self.verdicts.entry(VerdictKey::of(record)).or_insert_with(|| {
            cells.verdicts.cell(verdict(record), |labels| Verdict {
                policy: labels.policy.map(|_| PolicyName::other()),
                ..labels
            })
        })
    }

    fn traffic(&mut self, cells: &Cells, record: &Record) -> &TrafficCell {
        bound(&mut self.traffic);
        let found = self.traffic.entry(TrafficKey::of(record)).or_insert_with(|| FoundTraffic {
            cell: cells.traffic.cell(traffic(record), |labels| Traffic {
                route: labels.route.map(|_| PolicyName::other()),
                backend: labels.backend.map(|_| OTHER.into()),
                ..labels
            }),
            backend: record.backend.clone(),
        });
        &found.cell
    }
}

impl Generation {
    fn mark(&mut self, cells: &Cells, record: &Record) {
        let Some(marks) = &record.marks else { return };
        let audit = (!marks.audit.is_none()).then_some((marks.audit, None));
        let shadow = marks.shadow.iter().map(|shadow| (shadow.policy, Some((shadow.outcome, shadow.reason))));
        for key in audit.into_iter().chain(shadow) {
            bound(&mut self.marks);
            let find = || {
                let policy = PolicyName::of(&record.config.objects, key.0).unwrap_or_else(PolicyName::other);
                let labels = Mark { policy, would: key.1 };
                cells.marks.cell(labels, |labels| Mark { policy: PolicyName::other(), ..labels })
            };
            self.marks.entry(key).or_insert_with(find).add(1);
        }
    }

    fn no_policy(&mut self, cells: &Cells, record: &Record) -> &Counter {
        bound(&mut self.no_policy);
        let (side, service) = (record.connection.side, &record.service);
        let key = (side, service.as_ref().map_or(0, |name| name.as_ptr() as usize));
        let found = self.no_policy.entry(key).or_insert_with(|| FoundNoPolicy {
            count: cells.no_policy.cell(NoPolicy { side, service: service.clone() }, |labels| NoPolicy {
                service: labels.service.map(|_| OTHER.into()),
                ..labels
            }),
            service: service.clone(),
        });
        &found.count
    }
}

impl Generation {
    fn consulted(&mut self, cells: &Cells, consulted: &Consulted) -> &Durations {
        bound(&mut self.consulted);
        let Consulted { provider, outcome, .. } = consulted;
        let found = self.consulted.entry((provider.as_ptr() as usize, *outcome));
        let found = found.or_insert_with(|| FoundHeard {
            durations: cells.consulted.cell(
                Heard { provider: Arc::clone(provider), outcome: *outcome },
                |labels| Heard { provider: OTHER.into(), ..labels },
            ),
            provider: Arc::clone(provider),
        });
        &found.durations
    }
}

/// The coverage gap: authorized by no policy, or sent where no service and no policy is known.
fn decided_by_nobody(record: &Record) -> bool {
    let authorization = record.decision.result(Check::ServiceAuthorization);
    authorization.reason == Reason::NoPolicy || record.decision.reason == Reason::NoPolicy
}

/// Names of backends that are made anew for every request (a mistake) cost time, not memory.
fn bound<K, V, S>(found: &mut HashMap<K, V, S>) {
    if found.len() > SERIES_LIMIT {
        found.clear();
    }
}

impl VerdictKey {
    fn of(record: &Record) -> Self {
        let decision = &record.decision;
        let (end_stage, end_reason) = ended(record);
        let mut words = [0u8; 16];
        words[0] = record.connection.side as u8;
        words[1] = decision.outcome as u8;
        words[2] = decision.stage as u8;
        words[3] = decision.reason as u8;
        words[4] = end_stage as u8;
        words[5] = end_reason as u8;
        for (at, check) in decision.checks.iter().enumerate() {
            words[6 + 2 * at] = check.outcome as u8;
            words[7 + 2 * at] = check.reason as u8;
        }
        Self { words: u128::from_ne_bytes(words), policy: decision.policy }
    }
}

impl TrafficKey {
    fn of(record: &Record) -> Self {
        Self {
            route: record.decision.route,
            backend: record.backend.as_ref().map_or(0, |name| name.as_ptr() as usize),
            status: record.status,
            side: record.connection.side,
            request: is_request(record),
        }
    }
}

fn verdict(record: &Record) -> Verdict {
    let decision = &record.decision;
    Verdict {
        side: record.connection.side,
        outcome: decision.outcome,
        stage: decision.stage,
        reason: decision.reason,
        policy: PolicyName::of(&record.config.objects, decision.policy),
        checks: Check::ALL.map(|check| {
            let result = decision.result(check);
            (result.outcome, result.reason)
        }),
        ended: ended(record),
    }
}

fn traffic(record: &Record) -> Traffic {
    Traffic {
        side: record.connection.side,
        request: is_request(record),
        status: record.status,
        route: PolicyName::of(&record.config.objects, record.decision.route),
        backend: record.backend.clone(),
    }
}

fn ended(record: &Record) -> (Stage, Reason) {
    record.ended.unwrap_or((Stage::Relay, Reason::ClientClosed))
}

/// HTTP, even if it was refused before its method was understood.
fn is_request(record: &Record) -> bool {
    record.method.is_some() || record.status != 0
}

impl PolicyName {
    fn of(objects: &Objects, policy: PolicyRef) -> Option<Self> {
        let object = objects.get(policy)?;
        Some(Self {
            kind: object.kind.clone(),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            rule: policy.rule_index(),
        })
    }

    /// Stands for those that are too many.
    fn other() -> Self {
        Self { kind: OTHER.into(), namespace: String::new(), name: OTHER.into(), rule: None }
    }
}

/// Upper bounds of the duration histogram, in microseconds.
pub(super) const BUCKETS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];
/// Combinations a worker tells apart; what comes after is counted under `other`.
pub(super) const SERIES_LIMIT: usize = 10_000;
const OTHER: &str = "other";
