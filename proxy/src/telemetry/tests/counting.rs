//! Metrics say what the records say.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::Value;
use tokio::sync::mpsc;

use super::super::{ConfigFacts, ConfigStatus, Options, Record, Shard, Side, Sink, Telemetry};
use super::{ROUTE, VIEWER, allowed, config, connection, proxy};
use crate::decision::{Check, CheckOutcome, CheckResult, PolicyRef, Reason, Stage};

fn off() -> Arc<Telemetry> {
    Telemetry::start(Options::new(proxy(), Sink::Off)).unwrap()
}

/// Sum of the samples of a family whose labels contain all of `having`.
fn sum(metrics: &str, family: &str, having: &[&str]) -> f64 {
    metrics
        .lines()
        .filter(|line| line.starts_with(&format!("{family}{{")) || line.starts_with(&format!("{family} ")))
        .filter(|line| having.iter().all(|label| line.contains(label)))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

#[test]
fn an_allowed_request_names_its_policy() {
    let telemetry = off();
    let shard = telemetry.shard();
    let mut record = allowed(&shard, &config(1), &connection(Side::Inbound));
    record.decision.route = PolicyRef::rule(ROUTE, 1);
    record.backend = Some("ratings-v2:9080".into());
    record.request_bytes = 7;
    drop(record);
    let metrics = telemetry.metrics().unwrap();
    for line in [
        concat!(
            r#"writ_decisions_total{side="inbound",outcome="allow",stage="authorize",reason="matched-allow","#,
            r#"policy_kind="AuthorizationPolicy",policy_namespace="bookinfo",policy_name="ratings-viewer",rule="0"} 1"#
        ),
        r#"writ_checks_total{side="inbound",check="encryption",outcome="pass",reason="mtls"} 1"#,
        r#"writ_ended_total{side="inbound",stage="relay",reason="complete"} 1"#,
        concat!(
            r#"writ_requests_total{side="inbound",route="HTTPRoute/bookinfo/ratings/1","#,
            r#"backend="ratings-v2:9080",code="200"} 1"#
        ),
        r#"writ_request_duration_seconds_count{side="inbound",backend="ratings-v2:9080"} 1"#,
        r#"writ_bytes_total{side="inbound",direction="received"} 7"#,
        r#"writ_bytes_total{side="inbound",direction="sent"} 48"#,
        r#"writ_no_policy_total{side="inbound"} 0"#,
        r#"writ_records_dropped_total{cause="queue-full"} 0"#,
        "writ_records_total 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line} in\n{metrics}");
    }
}

#[test]
fn a_record_that_nobody_ended_says_client_closed() {
    let telemetry = off();
    let shard = telemetry.shard();
    drop(Record::begin(&shard, &config(1), &connection(Side::Outbound)));
    let metrics = telemetry.metrics().unwrap();
    assert_eq!(sum(&metrics, "writ_ended_total", &[r#"reason="client-closed""#, r#"stage="relay""#]), 1.0);
    assert_eq!(sum(&metrics, "writ_requests_total", &[]), 0.0, "a connection is no request");
}

#[test]
fn what_no_policy_covers_is_counted() {
    let telemetry = off();
    let shard = telemetry.shard();
    let mut record = allowed(&shard, &config(1), &connection(Side::Inbound));
    let uncovered = CheckResult::new(CheckOutcome::NotRequired, Reason::NoPolicy, PolicyRef::NONE);
    record.decision.check(Check::ServiceAuthorization, uncovered);
    record.decision.allow(Stage::Authorize, Reason::NoPolicy, PolicyRef::NONE);
    drop(record);
    let metrics = telemetry.metrics().unwrap();
    assert_eq!(sum(&metrics, "writ_no_policy_total", &[r#"side="inbound""#]), 1.0);
    assert!(metrics.contains(r#"stage="authorize",reason="no-policy"} 1"#), "{metrics}");
}

#[test]
fn a_policy_keeps_its_count_over_configurations() {
    let telemetry = off();
    let shard = telemetry.shard();
    for version in 0..5 {
        drop(allowed(&shard, &config(version), &connection(Side::Inbound)));
    }
    let metrics = telemetry.metrics().unwrap();
    assert_eq!(sum(&metrics, "writ_decisions_total", &[r#"policy_name="ratings-viewer""#]), 5.0);
}

#[test]
fn labels_are_bounded() {
    let telemetry = off();
    let shard = telemetry.shard();
    let (config, connection) = (config(1), connection(Side::Outbound));
    for name in 0..super::super::cells::SERIES_LIMIT + 50 {
        let mut record = allowed(&shard, &config, &connection);
        record.backend = Some(name.to_string().into());
    }
    let metrics = telemetry.metrics().unwrap();
    assert_eq!(sum(&metrics, "writ_requests_total", &[r#"backend="other""#]), 50.0);
    assert_eq!(sum(&metrics, "writ_requests_total", &[]), super::super::cells::SERIES_LIMIT as f64 + 50.0);
}

#[test]
fn connections_are_counted_while_open() {
    let telemetry = off();
    let shard = telemetry.shard();
    let first = shard.connection(Side::Inbound);
    let second = shard.connection(Side::Inbound);
    drop(first);
    let metrics = telemetry.metrics().unwrap();
    assert_eq!(sum(&metrics, "writ_connections_open", &[r#"side="inbound""#]), 1.0);
    assert_eq!(sum(&metrics, "writ_connections_total", &[r#"side="inbound""#]), 2.0);
    drop(second);
    assert_eq!(sum(&telemetry.metrics().unwrap(), "writ_connections_open", &[]), 0.0);
}

#[test]
fn the_configuration_is_shown() {
    let telemetry = off();
    telemetry.set_config(ConfigStatus {
        version: 7,
        digest: "sha256:a\"b".into(),
        rejected: Some("no".into()),
        ..ConfigStatus::default()
    });
    let metrics = telemetry.metrics().unwrap();
    assert!(metrics.contains("writ_config_version 7\n"), "{metrics}");
    assert!(metrics.contains("writ_config_rejected 1\n"), "{metrics}");
    assert!(metrics.contains(r#"writ_config_info{digest="sha256:a\"b"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"writ_config_verdicts{state="quarantined"} 0"#), "{metrics}");
    let build = format!("writ_build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"));
    assert!(metrics.contains(&build), "{metrics}");
    let attestation = fips::install();
    let crypto = format!(
        "writ_crypto_info{{module=\"{}\",version=\"{}\",flavour=\"{}\"",
        attestation.module, attestation.module_version, attestation.flavour
    );
    assert!(metrics.contains(&crypto), "{metrics}");
    assert!(metrics.ends_with("# EOF\n"));
}

/// What varies from record to record in the property below.
#[derive(Debug, Clone)]
struct Case {
    worker: usize,
    config: usize,
    side: usize,
    reason: usize,
    end: usize,
    status: u16,
    policy: Option<u32>,
    backend: usize,
    bytes: u32,
}

fn case() -> impl Strategy<Value = Case> {
    let status = prop_oneof![Just(0u16), Just(200), Just(404), Just(503)];
    let shape = (0usize..2, 0usize..4, 0usize..3, 0..Reason::ALL.len(), 0..Reason::ALL.len());
    (shape, status, proptest::option::of(0u32..3), 0usize..3, any::<u32>()).prop_map(
        |((worker, config, side, reason, end), status, policy, backend, bytes)| Case {
            worker,
            config,
            side,
            reason,
            end,
            status,
            policy,
            backend,
            bytes,
        },
    )
}

fn emit(case: &Case, shards: &[Rc<Shard>; 2], configs: &[Arc<ConfigFacts>], backends: &[Arc<str>]) {
    let side = [Side::Inbound, Side::Outbound, Side::Gateway][case.side];
    let mut record = allowed(&shards[case.worker], &configs[case.config], &connection(side));
    let policy = PolicyRef::from_object(case.policy);
    record.decision.deny(Stage::Authorize, Reason::ALL[case.reason], policy);
    record.ended = Some((Stage::Authorize, Reason::ALL[case.end]));
    record.status = case.status;
    record.backend = backends.get(case.backend).cloned();
    record.request_bytes = case.bytes.into();
}

/// Counts lines by what a metric is labelled with.
fn tally<'a>(lines: &[Value], label: impl Fn(&Value) -> Option<String> + 'a) -> BTreeMap<String, f64> {
    let mut tally = BTreeMap::new();
    for label in lines.iter().filter_map(label) {
        *tally.entry(label).or_default() += 1.0;
    }
    tally
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn counts_are_those_of_the_lines(cases in proptest::collection::vec(case(), 1..120)) {
        let (sender, mut receiver) = mpsc::channel(1000);
        let telemetry = Telemetry::start(Options::new(proxy(), Sink::Channel(sender))).unwrap();
        let shards = [telemetry.shard(), telemetry.shard()];
        let configs: Vec<_> = (0..4).map(config).collect();
        let backends: Vec<Arc<str>> = vec!["ratings-v1:9080".into(), "ratings-v2:9080".into()];
        for case in &cases {
            emit(case, &shards, &configs, &backends);
        }
        drop(shards);
        prop_assert!(telemetry.shutdown(std::time::Duration::from_secs(60)));
        let metrics = telemetry.metrics().unwrap();
        let mut lines = Vec::new();
        while let Ok(line) = receiver.try_recv() {
            lines.push(serde_json::from_str::<Value>(&line).unwrap());
        }
        prop_assert_eq!(lines.len(), cases.len());
        prop_assert_eq!(sum(&metrics, "writ_decisions_total", &[]), cases.len() as f64);
        prop_assert_eq!(sum(&metrics, "writ_checks_total", &[]), 5.0 * cases.len() as f64);
        for (label, family, pointer) in [
            ("reason", "writ_decisions_total", "/decision/reason"),
            ("policy_name", "writ_decisions_total", "/decision/policy/name"),
            ("reason", "writ_ended_total", "/ended/reason"),
            ("side", "writ_ended_total", "/proxy/side"),
            ("backend", "writ_requests_total", "/route/backend"),
            ("backend", "writ_request_duration_seconds_count", "/route/backend"),
            ("code", "writ_requests_total", "/response/status"),
        ] {
            let text = |line: &Value| Some(match line.pointer(pointer)? {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            });
            for (value, count) in tally(&lines, text) {
                let found = sum(&metrics, family, &[&format!("{label}=\"{value}\"")]);
                prop_assert_eq!(found, count, "{} {}={}", family, label, value);
            }
        }
        let bytes: u64 = cases.iter().map(|case| u64::from(case.bytes)).sum();
        prop_assert_eq!(sum(&metrics, "writ_bytes_total", &["received"]), bytes as f64);
    }
}

#[test]
fn a_refusal_names_the_policy_that_denied() {
    let telemetry = off();
    let shard = telemetry.shard();
    let mut record = allowed(&shard, &config(1), &connection(Side::Inbound));
    record.decision.deny(Stage::Authorize, Reason::MatchedDeny, PolicyRef::rule(VIEWER, 3));
    drop(record);
    let metrics = telemetry.metrics().unwrap();
    let having =
        [r#"outcome="deny""#, r#"reason="matched-deny""#, r#"policy_name="ratings-viewer""#, r#"rule="3""#];
    assert_eq!(sum(&metrics, "writ_decisions_total", &having), 1.0);
}
