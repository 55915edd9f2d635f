//! Which limits count what, and which requests they count together.

use std::collections::hash_map::DefaultHasher;

use super::*;
use crate::decision::PolicyRef;
use crate::tables::{LimitPhase, UserAttributes};

const ONE: LocalLimit = LocalLimit { requests: 1, per: Duration::from_secs(60), burst: 1 };

fn limit(key: &[(&str, Attribute)], matches: AuthorizationRule) -> RateLimitRule {
    let part = |(name, attribute): &(&str, Attribute)| KeyPart {
        name: (*name).to_owned(),
        attribute: attribute.clone(),
    };
    RateLimitRule { matches, name: None, key: key.iter().map(part).collect(), local: Some(ONE), global: None }
}

fn with_limits(rules: Vec<RateLimitRule>) -> Policy {
    let rules = rules.into_iter().enumerate().map(|(index, rule)| RateLimitRule {
        matches: AuthorizationRule { index: index as u16, ..rule.matches },
        ..rule
    });
    let rate_limits = vec![RateLimit { object: 0, rules: rules.collect(), quarantined: false }];
    Policy { objects: objects(1), rate_limits, ..Policy::default() }
}

const PEER: &str = "spiffe://cluster.local/ns/foo/sa/a";

fn connection(identity: Option<&str>) -> ConnectionAttributes<'_> {
    ConnectionAttributes {
        source_identity: identity,
        source_ip: IpAddr::from([10, 0, 0, 1]),
        remote_ip: IpAddr::from([192, 0, 2, 3]),
        destination_ip: IpAddr::from([10, 0, 0, 2]),
        destination_port: 80,
        sni: None,
    }
}

fn request<'a>(headers: &'a HeaderMap, user: Option<&'a UserAttributes>) -> RequestAttributes<'a> {
    RequestAttributes { method: "GET", host: Some("A:80"), path: "/a", headers, remote_ip: None, user }
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).fold(
        HeaderMap::new(),
        |mut headers, (name, value): (http::HeaderName, http::HeaderValue)| {
            headers.append(name, value);
            headers
        },
    )
}

fn entries(key: &[(&str, Attribute)], identity: Option<&str>, request: RequestAttributes<'_>) -> String {
    let tables = tables(&with_limits(vec![limit(key, rule(&[], &[], &[]))]));
    let connection = connection(identity);
    let on = tables.rate_limits().on(&connection);
    let both = [LimitPhase::BeforeAuthentication, LimitPhase::AfterAuthentication];
    let counting = both.map(|phase| tables.rate_limits().counting(&on, phase, &request));
    let limit = counting.iter().flatten().next().unwrap();
    let entries = limit.entries(&connection, Some(&request)).into_iter();
    entries.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_attribute_can_be_a_key() {
    let user = UserAttributes {
        issuer: "https://i".into(),
        subject: "alice".into(),
        audiences: vec!["a".into(), "b".into()],
        presenter: Some("p".into()),
        claims: serde_json::from_str(r#"{"org":{"id":"x"},"scope":"r w"}"#).unwrap(),
    };
    let lines = headers(&[("x-a", "1"), ("x-a", "2")]);
    let request = request(&lines, Some(&user));
    for (attribute, identity, expected) in [
        (Attribute::SourcePrincipal, Some(PEER), "cluster.local/ns/foo/sa/a"),
        (Attribute::SourcePrincipal, None, ""),
        (Attribute::SourceNamespace, Some(PEER), "foo"),
        (Attribute::SourceServiceAccount, Some(PEER), "foo/a"),
        (Attribute::SourceServiceAccount, Some("spiffe://cluster.local/x"), ""),
        (Attribute::SourceTrustDomain, Some(PEER), "cluster.local"),
        (Attribute::SourceIp, None, "10.0.0.1"),
        (Attribute::RemoteIp, None, "192.0.2.3"),
        (Attribute::DestinationIp, None, "10.0.0.2"),
        (Attribute::DestinationPort, None, "80"),
        (Attribute::Sni, None, ""),
        (Attribute::Host, None, "a:80"),
        (Attribute::Method, None, "GET"),
        (Attribute::Path, None, "/a"),
        (Attribute::Header("x-a".into()), None, "1,2"),
        (Attribute::Header("x-b".into()), None, ""),
        (Attribute::RequestPrincipal, None, "https://i/alice"),
        (Attribute::RequestAudiences, None, "a,b"),
        (Attribute::RequestPresenter, None, "p"),
        (Attribute::RequestClaim(vec!["org".into(), "id".into()]), None, "x"),
        (Attribute::RequestClaim(vec!["scope".into()]), None, "r,w"),
        (Attribute::RequestClaim(vec!["none".into()]), None, ""),
    ] {
        let said = format!("{attribute:?} of {identity:?}");
        assert_eq!(entries(&[("n", attribute)], identity, request), format!("n={expected}"), "{said}");
    }
    let key = [("path", Attribute::Path), ("method", Attribute::Method)];
    assert_eq!(entries(&key, None, request), "path=/a method=GET");
    assert_eq!(entries(&[], None, request), "generic_key=default");
}

fn key_of(key: &[(&str, Attribute)], pairs: &[(&'static str, &'static str)], host: &str) -> u64 {
    let tables = tables(&with_limits(vec![limit(key, rule(&[], &[], &[]))]));
    let connection = connection(None);
    let headers = headers(pairs);
    let request = RequestAttributes { host: Some(host), ..request(&headers, None) };
    let on = tables.rate_limits().on(&connection);
    let counting = tables.rate_limits().counting(&on, LimitPhase::BeforeAuthentication, &request);
    counting[0].hash(&connection, Some(&request), DefaultHasher::new())
}

#[test]
fn keys_that_differ_are_told_apart_and_absent_values_are_one() {
    let (a, b) = (Attribute::Header("x-a".into()), Attribute::Header("x-b".into()));
    let key = [("a", a), ("b", b)];
    let of = |pairs: &[(&'static str, &'static str)]| key_of(&key, pairs, "a");
    let all = [
        of(&[]),
        of(&[("x-a", "")]),
        of(&[("x-b", "")]),
        of(&[("x-a", "1")]),
        of(&[("x-b", "1")]),
        of(&[("x-a", "1"), ("x-b", "1")]),
        of(&[("x-a", "11")]),
        of(&[("x-a", "1"), ("x-a", "1")]),
    ];
    let distinct: std::collections::HashSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len());
    assert_eq!(of(&[]), of(&[("x-c", "1")]));
    // Letter case is nobody's way to a bucket of their own.
    let host = [("host", Attribute::Host)];
    assert_eq!(key_of(&host, &[], "ratings:9080"), key_of(&host, &[], "RaTings:9080"));
    assert_ne!(key_of(&host, &[], "ratings"), key_of(&host, &[], "reviews"));
}

#[test]
fn limits_count_what_they_match_in_the_phase_that_knows_their_key() {
    let claim = Attribute::RequestClaim(vec!["a".into()]);
    let policy = with_limits(vec![
        limit(&[("n", Attribute::SourceIp)], rule(&[], &[is(Attribute::Path, &["/a*"])], &[])),
        limit(&[], rule(&[is(Attribute::SourceNamespace, &["foo"])], &[], &[])),
        limit(&[("n", claim.clone())], rule(&[], &[], &[])),
        limit(&[], rule(&[], &[], &[is(claim, &["x"])])),
        limit(&[], rule(&[], &[is(Attribute::Method, &["POST"])], &[])),
        limit(&[("n", Attribute::RemoteIp)], rule(&[is(Attribute::RemoteIp, &["192.0.2.0/24"])], &[], &[])),
    ]);
    let tables = tables(&policy);
    let limits = tables.rate_limits();
    let user =
        UserAttributes { claims: serde_json::from_str(r#"{"a":"x"}"#).unwrap(), ..UserAttributes::default() };
    let none = HeaderMap::new();
    let counting = |identity, phase, user| {
        let remote_ip = Some(IpAddr::from([192, 0, 2, 1]));
        let request = RequestAttributes { remote_ip, ..request(&none, user) };
        let on = limits.on(&connection(identity));
        let counting = limits.counting(&on, phase, &request);
        counting.iter().map(|limit| limit.policy.rule_index().unwrap()).collect::<Vec<_>>()
    };
    use LimitPhase::{AfterAuthentication, BeforeAuthentication};
    assert_eq!(counting(Some(PEER), BeforeAuthentication, None), [0, 1, 5]);
    assert_eq!(counting(None, BeforeAuthentication, Some(&user)), [0, 5]);
    assert_eq!(counting(None, AfterAuthentication, Some(&user)), [2, 3]);
    assert_eq!(counting(None, AfterAuthentication, None), [2]);
    let opaque = limits.counting_connection(&connection(Some(PEER)));
    let opaque: Vec<_> = opaque.iter().map(|limit| limit.policy).collect();
    assert_eq!(opaque, [PolicyRef::rule(0, 1), PolicyRef::rule(0, 5)]);
    assert!(limits.ask_for_users() && !limits.is_empty());
    // Local ones are numbered in order, and keep their names while they stay the same.
    let local: Vec<_> = limits.local().map(|(local, keyed)| (local.number, keyed)).collect();
    assert_eq!(local, [(0, true), (1, false), (2, true), (3, false), (4, false), (5, true)]);
    let ids: std::collections::HashSet<_> = limits.local().map(|(local, _)| &*local.id).collect();
    assert_eq!(ids.len(), 6);
}

#[test]
fn what_does_not_compile_refuses_all_by_itself() {
    let bad =
        Condition { values: vec![ValueMatch::PathTemplate("/{**}/{*}".into())], ..is(Attribute::Path, &[]) };
    let mut policy = with_limits(vec![limit(&[], rule(&[], &[bad], &[]))]);
    policy.objects = objects(2);
    let good = RateLimit { object: 1, rules: vec![limit(&[], rule(&[], &[], &[]))], quarantined: false };
    policy.rate_limits.push(good);
    let tables = tables(&policy);
    assert_eq!(tables.rate_limits().quarantined, Some(PolicyRef::object(0)));
    assert_eq!(tables.refused().len(), 1);
    assert_eq!(tables.rate_limits().local().count(), 1);
}
