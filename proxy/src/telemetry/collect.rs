//! A scrape: the cells of all workers summed, and what is known of the configuration, as Prometheus text.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Unit;

use super::cells::{BUCKETS_US, Cells, Counter, Durations, PolicyName, Traffic, Verdict};
use super::coverage::Coverage;
use super::record::Side;
use super::status::{self, ConfigStatus};
use super::{CandidateCounts, Shared};
use crate::decision::Check;

/// What a scrape reads.
#[derive(Debug)]
pub(super) struct Scrape(pub(super) Arc<Shared>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let workers = self.0.workers();
        decisions(&workers, &mut encoder)?;
        marks(&workers, &mut encoder)?;
        coverage(&Coverage::of(&self.0.config.load(), &workers), &mut encoder)?;
        traffic(&workers, &mut encoder)?;
        providers(&workers, &mut encoder)?;
        connections(&workers, &mut encoder)?;
        cuts(&workers, &mut encoder)?;
        records(&workers, self.0.losses.records.load(Ordering::Relaxed), &mut encoder)?;
        config(&self.0.config.load(), &mut encoder)?;
        if let Some(counts) = self.0.candidate.get() {
            candidate(counts, &mut encoder)?;
        }
        if let Some(identity) = self.0.identity.get() {
            super::identity::encode(&identity.status(), SystemTime::now(), &mut encoder)?;
        }
        if let Some(issuers) = self.0.issuers.get() {
            super::issuers::encode(&issuers.status(), &mut encoder)?;
        }
        build(&mut encoder)?;
        crypto(&mut encoder)
    }
}

/// What is derived from the [`Verdict`]s: decisions, checks, ends, and the coverage gap.
fn decisions(workers: &[Arc<Cells>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let (mut decisions, mut checks, mut ended) = (Counts::new(), Counts::new(), Counts::new());
    for (verdict, count) in counts(workers) {
        let side = side_label(verdict.side);
        decisions.add(decision_labels(&verdict), count);
        ended.add(
            vec![
                side.clone(),
                label("stage", verdict.ended.0.as_str()),
                label("reason", verdict.ended.1.as_str()),
            ],
            count,
        );
        for (check, (outcome, reason)) in Check::ALL.iter().zip(verdict.checks) {
            let labels = vec![
                side.clone(),
                label("check", check.as_str()),
                label("outcome", outcome.as_str()),
                label("reason", reason.as_str()),
            ];
            checks.add(labels, count);
        }
    }
    decisions.encode(encoder, "writ_decisions", "Decisions by what decided and which policy")?;
    checks.encode(encoder, "writ_checks", "Results of the five checks")?;
    ended.encode(encoder, "writ_ended", "How requests and connections ended")
}

/// What AUDIT and dry-run rules said, and what nobody decided.
fn marks(workers: &[Arc<Cells>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let (mut audit, mut shadow) = (Counts::new(), Counts::new());
    for (mark, count) in workers.iter().flat_map(|cells| cells.marks.all()) {
        let policy = policy_labels(&mark.policy);
        match mark.would {
            None => audit.add(policy, count.value()),
            Some((outcome, reason)) => {
                let mut labels = vec![label("outcome", outcome.as_str()), label("reason", reason.as_str())];
                labels.extend(policy);
                shadow.add(labels, count.value());
            }
        }
    }
    audit.encode(encoder, "writ_audit", "Requests and connections that an AUDIT rule matched first")?;
    shadow.encode(encoder, "writ_shadow", "What dry-run policies would have done")?;
    let mut no_policy = zeros(SIDES.map(side_label));
    for (uncovered, count) in workers.iter().flat_map(|cells| cells.no_policy.all()) {
        let mut labels = vec![side_label(uncovered.side)];
        labels.extend(uncovered.service.as_ref().map(|service| label("service", service)));
        no_policy.add(labels, count.value());
    }
    no_policy.encode(encoder, "writ_no_policy", "Requests and connections that no policy decided, by service")
}

/// The rules in force, by whether anything ever met them.
fn coverage(coverage: &Coverage, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut rules: BTreeMap<Labels, u64> = BTreeMap::new();
    for rule in &coverage.rules {
        let state = if rule.hits == 0 { "never-hit" } else { "hit" };
        *rules.entry(vec![label("policy_kind", &rule.policy.kind), label("state", state)]).or_default() += 1;
    }
    let rules: Vec<_> = rules.into_iter().collect();
    gauges(encoder, "writ_policy_rules", "Rules in force, by whether anything met them", &rules)?;
    let never = coverage.rules.iter().filter(|rule| rule.hits == 0).take(NEVER_HIT_LIMIT);
    let never: Vec<_> = never.map(|rule| (policy_labels(&rule.policy), 1)).collect();
    gauges(encoder, "writ_policy_never_hit", "1: nothing met this rule since the proxy started", &never)
}

/// So many rules that nothing met are named in metrics; `/coverage` names all.
const NEVER_HIT_LIMIT: usize = 1_000;

/// What is derived from the [`Traffic`] cells: requests, durations, bytes.
fn traffic(workers: &[Arc<Cells>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let (mut requests, mut bytes) = (Counts::new(), Counts::new());
    let mut durations: BTreeMap<Labels, Histogram> = BTreeMap::new();
    for (traffic, cell) in workers.iter().flat_map(|cells| cells.traffic.all()) {
        let side = side_label(traffic.side);
        for (direction, count) in [("received", &cell.received), ("sent", &cell.sent)] {
            bytes.add(vec![side.clone(), label("direction", direction)], count.value());
        }
        if traffic.request {
            requests.add(request_labels(&traffic), cell.count.value());
            durations.entry(duration_labels(&traffic)).or_default().add(&cell.durations);
        }
    }
    requests.encode(encoder, "writ_requests", "Requests by route, backend and status code")?;
    bytes.encode(
        encoder,
        "writ_bytes",
        "Bytes of bodies and tunnels, by direction as seen from the caller's side",
    )?;
    let help = "Time from the first byte of a request to the last of its response";
    histograms(encoder, "writ_request_duration", help, &durations)
}

/// How authorization providers answer.
fn providers(workers: &[Arc<Cells>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut durations: BTreeMap<Labels, Histogram> = BTreeMap::new();
    for (heard, cell) in workers.iter().flat_map(|cells| cells.consulted.all()) {
        let labels = vec![label("provider", &heard.provider), label("outcome", heard.outcome.as_str())];
        durations.entry(labels).or_default().add(&cell);
    }
    let help = "Time until an authorization provider answered, or was given up, by what it said";
    histograms(encoder, "writ_provider_duration", help, &durations)
}

fn connections(workers: &[Arc<Cells>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let sum = |of: fn(&Cells) -> &[Counter; 3], side: Side| {
        workers.iter().map(|cells| of(cells)[side as usize].value()).sum::<u64>()
    };
    let (mut total, mut aged, mut open) = (Counts::new(), Counts::new(), Vec::new());
    for side in SIDES {
        // Closed first: a connection that opens and closes in between must not show as less than none.
        let closed = sum(|cells| &cells.connections_closed, side);
        let opened = sum(|cells| &cells.connections_opened, side);
        total.add(vec![side_label(side)], opened);
        aged.add(vec![side_label(side)], sum(|cells| &cells.connections_aged, side));
        open.push((vec![side_label(side)], opened.saturating_sub(closed)));
    }
    total.encode(encoder, "writ_connections", "Connections accepted")?;
    let help = "Connections told to finish because they reached --max-connection-duration";
    aged.encode(encoder, "writ_connections_max_duration_reached", help)?;
    gauges(encoder, "writ_connections_open", "Connections open now", &open)?;
    let mut plaintext = Counts::new();
    for (port, count) in workers.iter().flat_map(|cells| cells.plaintext.all()) {
        plaintext.add(vec![label("port", &port.to_string())], count.value());
    }
    plaintext.encode(
        encoder,
        "writ_plaintext_connections",
        "Inbound connections accepted in plaintext, by the workload's port (0: of further ports)",
    )
}

/// What changes ended, and what asking about everything open cost.
fn cuts(workers: &[Arc<Cells>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut cuts = Counts::new();
    for (name, cell) in workers.iter().flat_map(|cells| cells.cuts.all()) {
        let mut labels = vec![side_label(name.side), label("reason", name.reason.as_str())];
        labels.extend(name.policy.map(|policy| label("policy", &policy_text(&policy))));
        cuts.add(labels, cell.value());
    }
    let help =
        "Open requests, tunnels and connections ended by a change, by the policy that refuses them now";
    cuts.encode(encoder, "writ_connections_cut", help)?;
    let sum = |of: fn(&Cells) -> &Counter| workers.iter().map(|cells| of(cells).value()).sum::<u64>();
    for (name, help, count) in [
        ("writ_sweeps", "Sweeps over what is open, after changes", sum(|cells| &cells.sweeps)),
        ("writ_swept", "Requests and tunnels that sweeps asked the policy about", sum(|cells| &cells.swept)),
    ] {
        let mut counts = Counts::new();
        counts.add(Vec::new(), count);
        counts.encode(encoder, name, help)?;
    }
    let spent = seconds(sum(|cells| &cells.swept_us));
    let mut family = encoder.encode_descriptor(
        "writ_sweep",
        "Time that sweeps took of the workers",
        Some(&Unit::Seconds),
        MetricType::Counter,
    )?;
    family.encode_counter(&spent, None::<&Exemplar<NoLabelSet, f64>>)
}

fn records(workers: &[Arc<Cells>], unwritten: u64, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let sum = |of: fn(&Cells) -> &Counter| workers.iter().map(|cells| of(cells).value()).sum::<u64>();
    let one = |name: &'static str, help: &str, count: u64, encoder: &mut DescriptorEncoder<'_>| {
        let mut counts = Counts::new();
        counts.add(Vec::new(), count);
        counts.encode(encoder, name, help)
    };
    one("writ_records", "Records emitted", sum(|cells| &cells.records), encoder)?;
    let sampled_out = sum(|cells| &cells.sampled_out);
    one("writ_records_sampled_out", "Records left out of the log by the sample", sampled_out, encoder)?;
    let mut dropped = Counts::new();
    dropped.add(vec![label("cause", "queue-full")], sum(|cells| &cells.dropped));
    dropped.add(vec![label("cause", "write-failed")], unwritten);
    dropped.encode(encoder, "writ_records_dropped", "Records that never reached the log")
}

fn config(config: &ConfigStatus, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    gauges(
        encoder,
        "writ_config_version",
        "Version of the configuration in force",
        &[(vec![], config.version)],
    )?;
    gauges(
        encoder,
        "writ_config_stale",
        "1: the configuration is the last known good one, its source out of reach",
        &[(vec![], u64::from(config.stale))],
    )?;
    gauges(
        encoder,
        "writ_config_rejected",
        "1: a newer configuration was refused as a whole",
        &[(vec![], u64::from(config.rejected.is_some()))],
    )?;
    let verdicts = status::STATES.map(|state| {
        let count = config.verdicts.iter().filter(|verdict| verdict.state == state).count();
        (vec![label("state", state.as_str())], count as u64)
    });
    gauges(encoder, "writ_config_verdicts", "Resources by what became of them", &verdicts)?;
    let mut labels = vec![label("digest", &config.digest)];
    labels.extend(config.revision.as_deref().map(|revision| label("revision", revision)));
    // Its sample is `writ_config_info`.
    encoder
        .encode_descriptor("writ_config", "The configuration in force", None, MetricType::Info)?
        .encode_info(&labels)
}

fn candidate(counts: &CandidateCounts, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut sampled = Counts::new();
    for (change, count) in [
        ("unchanged", &counts.unchanged),
        ("allowed-to-refused", &counts.allowed_to_refused),
        ("refused-to-allowed", &counts.refused_to_allowed),
        ("undecided", &counts.undecided),
        ("dropped", &counts.dropped),
    ] {
        sampled.add(vec![label("change", change)], count.load(Ordering::Relaxed));
    }
    sampled.encode(
        encoder,
        "writ_candidate",
        "Sampled requests and connections, by what the candidate would change",
    )
}

/// `writ_build_info`, as every exporter has it.
fn build(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let version = [label("version", env!("CARGO_PKG_VERSION"))];
    encoder
        .encode_descriptor("writ_build", "The program that runs", None, MetricType::Info)?
        .encode_info(&version.as_slice())
}

/// `writ_crypto_info`: which crypto module runs, and what is known of its validation.
fn crypto(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let attestation = fips::install();
    let mut labels = vec![
        label("module", attestation.module),
        label("version", attestation.module_version),
        label("flavour", attestation.flavour),
        label("validation", attestation.validation.as_str()),
        label("self_test", attestation.self_test.as_str()),
        label("fips", if attestation.fips { "true" } else { "false" }),
        label("fips_required", if fips::required() { "true" } else { "false" }),
    ];
    labels
        .extend(attestation.validation.certificate().map(|number| label("certificate", &number.to_string())));
    encoder
        .encode_descriptor("writ_crypto", "The crypto module that runs", None, MetricType::Info)?
        .encode_info(&labels)
}

fn counts(workers: &[Arc<Cells>]) -> impl Iterator<Item = (Verdict, u64)> {
    workers.iter().flat_map(|cells| cells.verdicts.all()).map(|(verdict, cell)| (verdict, cell.value()))
}

type Label = (&'static str, Cow<'static, str>);
type Labels = Vec<Label>;

fn decision_labels(verdict: &Verdict) -> Labels {
    let mut labels = vec![
        side_label(verdict.side),
        label("outcome", verdict.outcome.as_str()),
        label("stage", verdict.stage.as_str()),
        label("reason", verdict.reason.as_str()),
    ];
    labels.extend(verdict.policy.iter().flat_map(policy_labels));
    labels
}

fn policy_labels(policy: &PolicyName) -> Labels {
    let mut labels = vec![
        label("policy_kind", &policy.kind),
        label("policy_namespace", &policy.namespace),
        label("policy_name", &policy.name),
    ];
    labels.extend(policy.rule.map(|rule| label("rule", &rule.to_string())));
    labels
}

fn request_labels(traffic: &Traffic) -> Labels {
    let mut labels = vec![side_label(traffic.side)];
    labels.extend(traffic.route.as_ref().map(|route| label("route", &policy_text(route))));
    labels.extend(traffic.backend.as_ref().map(|backend| label("backend", backend)));
    if traffic.status != 0 {
        labels.push(label("code", &traffic.status.to_string()));
    }
    labels
}

fn duration_labels(traffic: &Traffic) -> Labels {
    let mut labels = vec![side_label(traffic.side)];
    labels.extend(traffic.backend.as_ref().map(|backend| label("backend", backend)));
    labels
}

/// `HTTPRoute/bookinfo/ratings/1`.
fn policy_text(policy: &PolicyName) -> String {
    let object = format!("{}/{}/{}", policy.kind, policy.namespace, policy.name);
    policy.rule.map_or(object.clone(), |rule| format!("{object}/{rule}"))
}

fn side_label(side: Side) -> Label {
    ("side", side.as_str().into())
}

fn label(key: &'static str, value: &str) -> Label {
    (key, value.to_owned().into())
}

/// A family of counters, in a stable order.
struct Counts(BTreeMap<Labels, u64>);

impl Counts {
    fn new() -> Self {
        Self(BTreeMap::new())
    }

    fn add(&mut self, labels: Labels, count: u64) {
        *self.0.entry(labels).or_default() += count;
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>, name: &'static str, help: &str) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, count) in &self.0 {
            let exemplar = None::<&Exemplar<NoLabelSet, u64>>;
            if labels.is_empty() {
                family.encode_counter(count, exemplar)?;
            } else {
                family.encode_family(labels)?.encode_counter(count, exemplar)?;
            }
        }
        Ok(())
    }
}

/// Families that alarms watch show zeros, so that a first count is a change.
fn zeros<const N: usize>(labels: [Label; N]) -> Counts {
    Counts(labels.into_iter().map(|label| (vec![label], 0)).collect())
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &'static str,
    help: &str,
    values: &[(Labels, u64)],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        if labels.is_empty() {
            family.encode_gauge(value)?;
        } else {
            family.encode_family(labels)?.encode_gauge(value)?;
        }
    }
    Ok(())
}

fn histograms(
    encoder: &mut DescriptorEncoder<'_>,
    name: &'static str,
    help: &str,
    histograms: &BTreeMap<Labels, Histogram>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for (labels, histogram) in histograms {
        histogram.encode(family.encode_family(labels)?)?;
    }
    Ok(())
}

#[derive(Default)]
struct Histogram {
    total_us: u64,
    buckets: [u64; BUCKETS_US.len() + 1],
}

impl Histogram {
    fn add(&mut self, durations: &Durations) {
        self.total_us += durations.total_us.value();
        for (sum, bucket) in self.buckets.iter_mut().zip(&durations.buckets) {
            *sum += bucket.value();
        }
    }

    /// The count is the sum of the buckets, so that the two agree even if a worker counts meanwhile.
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BUCKETS_US.iter().map(|&us| seconds(us)).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.buckets).collect();
        let count = self.buckets.iter().sum();
        encoder.encode_histogram::<NoLabelSet>(seconds(self.total_us), count, &buckets, None)
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

const SIDES: [Side; 3] = [Side::Inbound, Side::Outbound, Side::Gateway];
