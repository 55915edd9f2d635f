//! A candidate configuration: never in force, asked about a sample of the traffic, and what it would change told by policy.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use control_client::snapshot::{Policy, Snapshot};
use control_client::verdict::Severity;
use control_client::{Source, StartError, Workload};
use http::Request;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::body::Body;
use crate::decision::{Objects, Outcome, PolicyRef, Reason};
use crate::explain::{Call, decide};
use crate::generation::Generation;
use crate::http::sanitize;
use crate::jwks;
use crate::reload;
use crate::sample::{Asked, Sampled, Samples};
use crate::telemetry::{CandidateCounts, ConnectionFacts, ProxyFacts};
use crate::upstream::Registry;

/// A candidate that is read, and asked about nothing yet.
pub struct Started {
    /// What it says of itself.
    pub candidate: Arc<Candidate>,
    /// Where samples go.
    pub samples: Samples,
    /// Follows its source; to be run on the control thread.
    pub follow: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Looks at samples; likewise.
    pub look: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Fetches the keys that it names; likewise.
    pub fetch: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Reads a candidate as the proxy reads its configuration.
///
/// # Errors
/// When its source can't be read at all.
pub fn start(
    source: &Path,
    workload: &Workload,
    options: control_client::Options,
    proxy: &ProxyFacts,
    issuers: jwks::Options,
    counts: Arc<CandidateCounts>,
) -> Result<Started, StartError> {
    let (snapshots, _, follow) =
        control_client::start(Source::Dir(source.to_owned()), workload.clone(), options)?;
    let (samples, received) = Samples::queue(Arc::clone(&counts));
    let candidate = Candidate::new(proxy.clone(), issuers, counts);
    let fetch = Box::pin(Arc::clone(&candidate.keys).run());
    let look = Box::pin(Arc::clone(&candidate).look(snapshots, received));
    Ok(Started { candidate, samples, follow: Box::pin(follow), look, fetch })
}

/// A candidate at work. One a proxy.
pub struct Candidate {
    proxy: ProxyFacts,
    /// Its own: nothing of the candidate's touches what serves.
    registry: Arc<Registry>,
    keys: Arc<jwks::Store>,
    counts: Arc<CandidateCounts>,
    report: Mutex<Report>,
}

impl Candidate {
    fn new(proxy: ProxyFacts, issuers: jwks::Options, counts: Arc<CandidateCounts>) -> Arc<Self> {
        let (registry, keys) = (Registry::new(), jwks::Store::new(issuers));
        Arc::new(Self { proxy, registry, keys, counts, report: Mutex::default() })
    }

    /// Compiles what its source says and looks at samples. Never ends while its source is followed.
    async fn look(
        self: Arc<Self>,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        mut samples: mpsc::Receiver<Box<Sampled>>,
    ) {
        let mut current = None;
        let mut seen: Option<Arc<Policy>> = None;
        snapshots.mark_changed();
        loop {
            tokio::select! {
                biased;
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let snapshot = Arc::clone(&snapshots.borrow_and_update());
                    if seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &snapshot.policy)) {
                        self.registry.update(&snapshot.endpoints);
                        continue;
                    }
                    seen = Some(Arc::clone(&snapshot.policy));
                    current = self.compile(snapshot).await;
                }
                Some(sampled) = samples.recv() => {
                    if let Some(generation) = &current {
                        self.look_at(generation, *sampled);
                    }
                }
            }
        }
    }

    /// Begins a new report for each version of the candidate.
    async fn compile(&self, snapshot: Arc<Snapshot>) -> Option<Arc<Generation>> {
        let errors = errors(&snapshot);
        let digest = snapshot.policy.digest.clone();
        let registry = Arc::clone(&self.registry);
        let compiled = tokio::task::spawn_blocking(move || reload::first(&snapshot, &registry)).await;
        let compiled = match compiled {
            Ok(compiled) => compiled.map_err(|error| error.to_string()),
            Err(panicked) => Err(format!("compiling tables failed: {panicked}")),
        };
        let unusable = compiled.as_ref().err().cloned();
        *self.report() = Report { digest, errors, unusable, ..Report::default() };
        let generation = compiled.ok().map(Arc::new)?;
        self.keys.follow(generation.tables.authentication().remote_keys());
        Some(generation)
    }

    fn look_at(&self, candidate: &Arc<Generation>, sampled: Sampled) {
        let live = Ruling::new(sampled.outcome, sampled.reason, sampled.policy, &sampled.config.objects);
        let sampled_reason = sampled.reason;
        let (live_digest, example) = (sampled.config.digest.clone(), Example::of(&sampled));
        let record = decide(Arc::clone(candidate), &self.registry, &self.keys, &self.proxy, sampled.into()).0;
        let decision = &record.decision;
        let would = Ruling::new(decision.outcome, decision.reason, decision.policy, &record.config.objects);
        // What a provider would have said is not known, nor what it would have changed for those who decide later; nor what
        // would be left of a rate limit.
        let of_limits = matches!(sampled_reason, Reason::LimitExceeded | Reason::LimiterUnavailable);
        let undecided = of_limits
            || record.was_refused_by_turn()
            || record.asked.as_ref().is_some_and(|asked| asked.would_ask());
        record.discard();
        let (change, count) = match (live.outcome, would.outcome) {
            _ if undecided => (None, &self.counts.undecided),
            (Outcome::Allow, Outcome::Deny) => (Some("allowed-to-refused"), &self.counts.allowed_to_refused),
            (Outcome::Deny, Outcome::Allow) => (Some("refused-to-allowed"), &self.counts.refused_to_allowed),
            _ => (None, &self.counts.unchanged),
        };
        count.fetch_add(1, Ordering::Relaxed);
        let mut report = self.report();
        if report.live != live_digest {
            // What was compared with another configuration says nothing of this one.
            report.begin(live_digest);
        }
        report.sampled += 1;
        report.undecided += u64::from(undecided);
        if let Some(change) = change {
            report.changes(change, live, would, example);
        }
    }

    /// As `/candidate` shows it.
    pub fn to_json(&self) -> Value {
        let mut shown = self.report().to_json();
        shown["dropped"] = AtomicU64::load(&self.counts.dropped, Ordering::Relaxed).into();
        shown
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn errors(snapshot: &Snapshot) -> usize {
    let all = snapshot.verdicts.iter().flat_map(|verdict| &verdict.diagnostics);
    all.filter(|diagnostic| diagnostic.severity == Severity::Error).count()
}

impl From<Sampled> for Call {
    fn from(sampled: Sampled) -> Self {
        let (request, opaque) = match sampled.asked {
            Asked::Opaque(protocol) => (None, protocol),
            Asked::Request(head) => {
                let mut request = Request::new(Body::Empty);
                *request.method_mut() = head.method;
                *request.uri_mut() = head.uri;
                *request.version_mut() = head.version;
                *request.headers_mut() = head.headers;
                (Some(request), "")
            }
        };
        Self { connection: sampled.connection, destination: sampled.destination, request, opaque }
    }
}

/// What one version of the candidate would change, against one configuration in force.
#[derive(Debug, Default)]
struct Report {
    digest: String,
    errors: usize,
    unusable: Option<String>,
    /// Digest of what is in force.
    live: String,
    sampled: u64,
    undecided: u64,
    changes: BTreeMap<(&'static str, Ruling, Ruling), Change>,
    /// Changes that there was no place for.
    others: u64,
}

/// What was decided, why and by which rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Ruling {
    outcome: Outcome,
    reason: Reason,
    /// Kind, namespace, name and rule.
    policy: Option<(String, String, String, Option<u16>)>,
}

#[derive(Debug, Default)]
struct Change {
    count: u64,
    examples: Vec<Example>,
}

/// Who asked for what. Nothing of headers, claims or queries.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Example(Value);

/// Pairs of policies that a report tells apart.
const MAX_CHANGES: usize = 500;
/// Examples of each.
const MAX_EXAMPLES: usize = 5;
/// Bytes of an authority or path in an example.
const MAX_TEXT: usize = 256;

impl Report {
    fn begin(&mut self, live: String) {
        let Self { digest, errors, unusable, .. } = std::mem::take(self);
        *self = Self { digest, errors, unusable, live, ..Self::default() };
    }

    fn changes(&mut self, change: &'static str, live: Ruling, would: Ruling, example: Example) {
        let key = (change, live, would);
        if self.changes.len() >= MAX_CHANGES && !self.changes.contains_key(&key) {
            self.others += 1;
            return;
        }
        let found = self.changes.entry(key).or_default();
        found.count += 1;
        if found.examples.len() < MAX_EXAMPLES && !found.examples.contains(&example) {
            found.examples.push(example);
        }
    }

    fn to_json(&self) -> Value {
        let changes = self.changes.iter().map(|((change, live, would), found)| {
            json!({
                "change": change,
                "count": found.count,
                "live": live.to_json(),
                "candidate": would.to_json(),
                "examples": found.examples.iter().map(|example| &example.0).collect::<Vec<_>>(),
            })
        });
        let mut shown = json!({
            "digest": self.digest,
            "errors": self.errors,
            "live_digest": self.live,
            "sampled": self.sampled,
            "undecided": self.undecided,
            "changes": changes.collect::<Vec<_>>(),
            "other_changes": self.others,
        });
        if let Some(why) = &self.unusable {
            shown["unusable"] = why.as_str().into();
        }
        shown
    }
}

impl Ruling {
    fn new(outcome: Outcome, reason: Reason, policy: PolicyRef, objects: &Objects) -> Self {
        let named = objects.get(policy).map(|object| {
            let (kind, namespace, name) =
                (object.kind.clone(), object.namespace.clone(), object.name.clone());
            (kind, namespace, name, policy.rule_index())
        });
        Self { outcome, reason, policy: named }
    }

    fn to_json(&self) -> Value {
        let mut shown = json!({ "outcome": self.outcome.as_str(), "reason": self.reason.as_str() });
        if let Some((kind, namespace, name, rule)) = &self.policy {
            shown["policy"] = json!({ "kind": kind, "namespace": namespace, "name": name });
            if let Some(rule) = rule {
                shown["policy"]["rule"] = (*rule).into();
            }
        }
        shown
    }
}

impl Example {
    fn of(sampled: &Sampled) -> Self {
        let ConnectionFacts { side, source, source_identity, destination, .. } = &sampled.connection;
        let mut shown = json!({ "side": side.as_str(), "destination": destination.to_string() });
        match source_identity {
            Some(identity) => shown["source"] = (**identity).into(),
            None => shown["source"] = source.ip().to_string().into(),
        }
        match &sampled.asked {
            Asked::Opaque(protocol) => shown["protocol"] = (*protocol).into(),
            Asked::Request(head) => {
                let mut request = Request::new(());
                *request.uri_mut() = head.uri.clone();
                *request.headers_mut() = head.headers.clone();
                shown["method"] = head.method.as_str().into();
                shown["path"] = shorten(head.uri.path()).into();
                if let Some(authority) = sanitize::authority(&request) {
                    shown["authority"] = shorten(authority).into();
                }
            }
        }
        Self(shown)
    }
}

fn shorten(text: &str) -> &str {
    match text.char_indices().find(|(at, _)| *at >= MAX_TEXT) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}
