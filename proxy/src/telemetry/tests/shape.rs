//! The line is the one that the decision record describes, and JSON whatever is in it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::options::ProxyFragments;
use super::super::{
    Attempt, CertificateEvidence, ConfigFacts, ConnectionFacts, Marks, ProxyFacts, Record, Shard, Side,
    TlsEvidence, render,
};
use super::{ROUTE, allowed, config, connection, object, proxy};
use crate::decision::{Check, CheckOutcome, CheckResult, Objects, Outcome, PolicyRef, Reason, Shadow, Stage};

/// The example of the decision record, with its `..` filled in, the verdicts' policies repeated by the checks that
/// they belong to, and `not_after` as a time.
const INBOUND: &str = concat!(
    r#"{"time":"2026-11-23T21:00:00.123456Z","id":"01J00000000000000000000001","#,
    r#""trace_id":"0af7651916cd43dd8448eb211c80319c","span_id":"00f067aa0ba902b7","#,
    r#""previous":"01H00000000000000000000001","#,
    r#""proxy":{"role":"sidecar","side":"inbound","workload":"bookinfo/ratings-v1","#,
    r#""identity":"spiffe://cluster.local/ns/bookinfo/sa/ratings","version":"0.1.0"},"#,
    r#""config":{"version":42,"digest":"sha256:9f","revision":"git:1c0ffee","stale":false},"#,
    r#""source":{"address":"10.1.0.7:41234","identity":"spiffe://cluster.local/ns/bookinfo/sa/reviews"},"#,
    r#""destination":{"address":"10.1.0.9:9080","service":"ratings.bookinfo.svc.cluster.local:9080"},"#,
    r#""request":{"protocol":"HTTP/1.1","method":"GET","authority":"ratings:9080","path":"/ratings/1","bytes":0},"#,
    r#""response":{"status":200,"bytes":48},"#,
    r#""duration_us":{"total":812,"policy":9},"#,
    r#""decision":{"outcome":"allow","stage":"authorize","reason":"matched-allow","#,
    r#""policy":{"kind":"AuthorizationPolicy","namespace":"bookinfo","name":"ratings-viewer","rule":0,"#,
    r#""digest":"sha256:77"},"checks":["#,
    r#"{"check":"encryption","outcome":"pass","reason":"mtls","#,
    r#""policy":{"kind":"PeerAuthentication","namespace":"istio-system","name":"default"},"#,
    r#""evidence":{"tls":"1.3","suite":"TLS_AES_256_GCM_SHA384","group":"X25519MLKEM768","fips":true}},"#,
    r#"{"check":"service-authentication","outcome":"pass","reason":"svid-verified","#,
    r#""evidence":{"trust_domain":"cluster.local","serial":"0a1b","not_after":"2026-11-24T21:00:00Z"}},"#,
    r#"{"check":"service-authorization","outcome":"pass","reason":"matched-allow","#,
    r#""policy":{"kind":"AuthorizationPolicy","namespace":"bookinfo","name":"ratings-viewer","rule":0}},"#,
    r#"{"check":"user-authentication","outcome":"not-required","reason":"no-request-authentication"},"#,
    r#"{"check":"user-authorization","outcome":"not-required","reason":"no-user-condition"}]},"#,
    r#""ended":{"stage":"relay","reason":"complete"}}"#,
    "\n"
);

fn evidence() -> TlsEvidence {
    TlsEvidence {
        version: "1.3",
        suite: "TLS_AES_256_GCM_SHA384",
        group: "X25519MLKEM768",
        fips: true,
        sni: None,
    }
}

fn line(record: &Record, elapsed_us: u64) -> String {
    let mut out = Vec::new();
    render::line(record, elapsed_us, &ProxyFragments::new(&proxy()), &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn inbound_is_as_in_the_decision_record() {
    let shard = Shard::detached(&proxy());
    let mut facts = ConnectionFacts::new(
        Side::Inbound,
        "10.1.0.7:41234".parse().unwrap(),
        "10.1.0.9:9080".parse().unwrap(),
    );
    facts.source_identity = Some("spiffe://cluster.local/ns/bookinfo/sa/reviews".into());
    facts.tls = Some(evidence());
    facts.certificate = Some(CertificateEvidence {
        trust_domain: "cluster.local".into(),
        serial: "0a1b".into(),
        not_after: 1_795_554_000,
    });
    let mut record = allowed(&shard, &config(42), &Rc::new(facts));
    record.time = UNIX_EPOCH + Duration::from_micros(1_795_467_600_123_456);
    record.id = "01J00000000000000000000001".parse::<ulid::Ulid>().unwrap().0;
    record.previous = Some("01H00000000000000000000001".parse::<ulid::Ulid>().unwrap().0);
    record.trace = Some((0x0af7651916cd43dd8448eb211c80319c, 0x00f067aa0ba902b7));
    record.service = Some("ratings.bookinfo.svc.cluster.local:9080".into());
    record.policy_us = 9;
    assert_eq!(line(&record, 812), INBOUND);
}

#[test]
fn outbound_speaks_of_the_hop_to_the_server() {
    use {CheckOutcome::*, Reason::*};
    let shard = Shard::detached(&proxy());
    let mut record = Record::begin(&shard, &config(1), &connection(Side::Outbound));
    let decision = &mut record.decision;
    decision.check(Check::Encryption, CheckResult::new(Pass, Mtls, PolicyRef::NONE));
    decision.check(
        Check::ServiceAuthorization,
        CheckResult::new(NotApplicable, DecidedByServer, PolicyRef::NONE),
    );
    decision.route = PolicyRef::rule(ROUTE, 1);
    record.backend = Some("ratings-v2:9080".into());
    record.weight = Some((10, 100));
    record.grpc_status = Some(14);
    record.status = 200;
    record.upstream_us = 640;
    let tls = Some(Arc::new(TlsEvidence { sni: Some("ratings".into()), ..evidence() }));
    for (identity, tls, failed) in [
        (None, None, Some(ConnectRefused)),
        (Some("spiffe://cluster.local/ns/bookinfo/sa/ratings".into()), tls, None),
    ] {
        record.attempts.push(Attempt {
            certificate: None,
            endpoint: "10.1.0.9:9080".parse().unwrap(),
            identity,
            tls,
            failed,
            us: 640,
        });
    }
    let shown: Value = serde_json::from_str(&record.render()).unwrap();
    assert_eq!(
        shown["route"],
        json!({
            "policy": {"kind": "HTTPRoute", "namespace": "bookinfo", "name": "ratings", "rule": 1, "digest": "sha256:99"},
            "backend": "ratings-v2:9080", "weight": "10/100",
            "attempts": [
                {"endpoint": "10.1.0.9:9080", "outcome": "connect-refused", "us": 640},
                {"endpoint": "10.1.0.9:9080", "identity": "spiffe://cluster.local/ns/bookinfo/sa/ratings",
                 "outcome": "ok", "us": 640}
            ]
        })
    );
    assert_eq!(shown["proxy"]["side"], "outbound");
    assert_eq!(shown["response"], json!({"status": 200, "grpc_status": 14, "bytes": 0}));
    assert_eq!(shown["duration_us"]["upstream"], 640);
    assert_eq!(shown["decision"]["checks"][0]["evidence"]["sni"], "ratings");
    assert_eq!(
        shown["decision"]["checks"][2],
        json!({"check": "service-authorization", "outcome": "not-applicable", "reason": "decided-by-server"})
    );
    assert_eq!(shown.get("ended"), None, "it has not ended");
}

#[test]
fn audit_and_dry_run_policies_are_named() {
    let shard = Shard::detached(&proxy());
    let mut record = allowed(&shard, &config(42), &connection(Side::Inbound));
    let (policy, reason) = (PolicyRef::object(0), Reason::NoAllowMatched);
    let shadow = Box::new([Shadow { policy, outcome: Outcome::Deny, reason }]);
    record.marks = Some(Box::new(Marks { audit: PolicyRef::rule(0, 1), shadow }));
    let line: Value = serde_json::from_str(&line(&record, 1)).unwrap();
    let named = json!({"kind": "AuthorizationPolicy", "namespace": "bookinfo", "name": "ratings-viewer",
        "digest": "sha256:77"});
    assert_eq!(line["shadow"], json!([{"outcome": "deny", "reason": "no-allow-matched", "policy": named}]));
    assert_eq!(line["audit"]["rule"], 1);
}

#[test]
fn a_bare_record_leaves_out_what_is_absent() {
    let shard = Shard::detached(&ProxyFacts { identity: None, ..proxy() });
    let config = Arc::new(ConfigFacts::default());
    let record = Record::begin(&shard, &config, &connection(Side::Gateway));
    let shown: Value = serde_json::from_str(&record.render()).unwrap();
    let keys: Vec<&str> = shown.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        ["time", "id", "proxy", "config", "source", "destination", "request", "duration_us", "decision"]
    );
    assert_eq!(shown["request"], json!({"bytes": 0}));
    assert_eq!(shown["proxy"].get("identity"), None);
    assert_eq!(shown["config"].get("revision"), None);
    assert_eq!(shown["decision"]["outcome"], "deny");
    assert_eq!(shown["decision"].get("policy"), None);
    assert_eq!(shown["decision"]["checks"].as_array().unwrap().len(), 5);
}

#[test]
fn a_line_is_bounded() {
    let shard = Shard::detached(&proxy());
    let mut record = allowed(&shard, &config(1), &connection(Side::Inbound));
    let long = "x".repeat(1 << 20);
    (record.path, record.authority) = (Some(long.as_str().into()), Some(long.as_str().into()));
    record.detail = Some(long.into());
    record.service = Some("s".repeat(1 << 20).into());
    record.backend = Some("b".repeat(1 << 20).into());
    for _ in 0..1000 {
        record.attempts.push(Attempt {
            certificate: None,
            endpoint: "10.1.0.9:9080".parse().unwrap(),
            identity: Some("i".repeat(1 << 20).into()),
            tls: None,
            failed: None,
            us: 0,
        });
    }
    assert!(record.render().len() < 20_000, "{}", record.render().len());
}

proptest! {
    #[test]
    fn any_content_is_json(
        texts in proptest::collection::vec("\\PC*|[\\x00-\\x7f]*|.{0,40}", 12),
        source in any::<std::net::IpAddr>(),
        numbers in any::<(u64, u64, u16, u16, u32, u128, i64)>(),
        reasons in proptest::collection::vec(0..Reason::ALL.len(), 7),
        objects in 0usize..3,
        policy in (0u32..4, proptest::option::of(any::<u16>())),
    ) {
        let shard = Shard::detached(&ProxyFacts { workload: texts[0].clone(), ..proxy() });
        let mut facts = ConnectionFacts::new(Side::Inbound, SocketAddr::new(source, numbers.2), "[::1]:1".parse().unwrap());
        facts.source_identity = Some(texts[1].as_str().into());
        facts.tls = Some(TlsEvidence { sni: Some(texts[2].as_str().into()), ..evidence() });
        facts.certificate = Some(CertificateEvidence {
            trust_domain: texts[3].as_str().into(), serial: texts[4].as_str().into(), not_after: numbers.6 >> 28,
        });
        let config = Arc::new(ConfigFacts {
            digest: texts[5].clone(),
            revision: Some(texts[6].clone()),
            objects: Objects((0..objects).map(|_| object("A", &texts[7], &texts[8], &texts[5])).collect()),
            ..ConfigFacts::default()
        });
        let mut record = Record::begin(&shard, &config, &Rc::new(facts));
        let reason = |at: usize| Reason::ALL[reasons[at]];
        let policy = policy.1.map_or(PolicyRef::object(policy.0), |rule| PolicyRef::rule(policy.0, rule));
        record.decision.deny(Stage::Authorize, reason(0), policy);
        record.decision.route = policy;
        for (at, check) in Check::ALL.into_iter().enumerate() {
            record.decision.check(check, CheckResult::new(CheckOutcome::Fail, reason(at + 1), policy));
        }
        record.ended = Some((Stage::Relay, reason(6)));
        (record.request_bytes, record.response_bytes, record.status, record.grpc_status, record.policy_us) =
            (numbers.0, numbers.1, numbers.2, Some(numbers.3), numbers.4);
        (record.id, record.previous, record.trace) =
            (numbers.5, Some(numbers.5), Some((numbers.5, numbers.0)));
        record.path = Some(texts[9].as_str().into());
        record.authority = Some(texts[10].as_str().into());
        record.detail = Some(texts[11].as_str().into());
        record.backend = Some(texts[0].as_str().into());

        let line = line(&record, numbers.0);
        prop_assert_eq!(line.matches('\n').count(), 1);
        let shown: Value = serde_json::from_str(&line).unwrap();
        prop_assert_eq!(shown["request"]["path"].as_str(), Some(texts[9].as_str()));
        prop_assert_eq!(shown["source"]["identity"].as_str(), Some(texts[1].as_str()));
        prop_assert_eq!(shown["ended"]["reason"].as_str(), Some(reason(6).as_str()));
        prop_assert_eq!(shown["decision"].get("policy").is_some(), policy.object_index().unwrap() < objects as u32);
        prop_assert_eq!(shown["request"]["bytes"].as_u64(), Some(numbers.0));
    }
}
