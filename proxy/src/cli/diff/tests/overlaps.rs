//! Whatever two versions of policies decide otherwise about some request, `writ diff` says.

use control_client::snapshot::*;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use proptest::sample::subsequence;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::FailOn;
use super::super::compare::compare;
use crate::decision::Outcome;
use crate::tables::{ConnectionAttributes, RequestAttributes, Tables};

const PATHS: &[&str] = &[
    "/a",
    "/a/b",
    "/ab",
    "/",
    "/a/",
    "/*",
    "/a*",
    "/a/*",
    "/a/b*",
    "/ab/*",
    "*b",
    "*/b",
    "*/",
    "*/a/b",
    "*a/b",
    "*",
    "/{*}",
    "/a/{*}",
    "/{*}/b",
    "/{*}/b/{*}",
    "/a/{**}",
    "/{**}/b",
    "/a/{**}/b",
    "/{*}/{**}",
    "/{*}/{*}/a",
    "/{**}",
];
const METHODS: &[&str] = &["GET", "POST", "GET*", "*T", "*", "P*"];
const PRINCIPALS: &[&str] = &[
    "td/ns/a/sa/x",
    "cluster.local/ns/ab/sa/y",
    "old/ns/a/sa/x",
    "td/ns/a/*",
    "td/ns/a*",
    "td/*",
    "*/sa/x",
    "*x",
    "*/ns/a/sa/x",
    "*",
];
const NAMESPACES: &[&str] = &["a", "ab", "a*", "*b", "*", "a*b"];
const SERVICE_ACCOUNTS: &[&str] = &["a/x", "ab/y"];
const TRUST_DOMAINS: &[&str] = &["td", "old", "*d", "o*", "*"];
const PORTS: &[&str] = &["9080", "80"];
const HOSTS: &[&str] = &["a.example", "*.example", "a*", "b.example:80", "*"];
const HEADERS: &[&str] = &["one", "o*", "*e", "*"];

fn value(attribute: &Attribute, text: &str) -> ValueMatch {
    match attribute {
        Attribute::DestinationPort => ValueMatch::Port(text.parse().unwrap()),
        Attribute::Path if text.contains('{') => ValueMatch::PathTemplate(text.into()),
        _ if text == "*" => ValueMatch::Present,
        Attribute::SourceNamespace if text.contains('*') => ValueMatch::Glob(text.into()),
        _ => match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(suffix), _) => ValueMatch::Suffix(suffix.into()),
            (_, Some(prefix)) => ValueMatch::Prefix(prefix.into()),
            _ => ValueMatch::Exact(text.into()),
        },
    }
}

/// Up to two positive values, or one positive and one negative.
fn condition(attribute: Attribute, texts: &'static [&'static str]) -> impl Strategy<Value = Condition> {
    (subsequence(texts, 1..=2), any::<bool>(), any::<bool>()).prop_map(move |(texts, negative, both)| {
        let mut values: Vec<_> = texts.iter().map(|text| value(&attribute, text)).collect();
        let not_values = match (negative, both) {
            (true, true) => vec![values.remove(0)],
            (true, false) => std::mem::take(&mut values),
            (false, _) => Vec::new(),
        };
        Condition { attribute: attribute.clone(), field: format!("{attribute:?}"), values, not_values }
    })
}

fn source() -> impl Strategy<Value = Vec<Condition>> {
    let one = prop_oneof![
        3 => condition(Attribute::SourcePrincipal, PRINCIPALS),
        1 => condition(Attribute::SourceNamespace, NAMESPACES),
        1 => condition(Attribute::SourceServiceAccount, SERVICE_ACCOUNTS),
        1 => condition(Attribute::SourceTrustDomain, TRUST_DOMAINS),
    ];
    prop::collection::vec(one, 1..=2)
}

fn operation() -> impl Strategy<Value = Vec<Condition>> {
    let one = prop_oneof![
        6 => condition(Attribute::Path, PATHS),
        2 => condition(Attribute::Method, METHODS),
        1 => condition(Attribute::DestinationPort, PORTS),
        1 => condition(Attribute::Host, HOSTS),
    ];
    prop::collection::vec(one, 1..=2)
}

fn rule() -> impl Strategy<Value = AuthorizationRule> {
    let list = |one: BoxedStrategy<Vec<Condition>>, max| prop::collection::vec(one, 0..=max);
    let header = condition(Attribute::Header("x-a".into()), HEADERS);
    let when = prop_oneof![9 => Just(Vec::new()), 1 => header.prop_map(|header| vec![header])];
    (list(source().boxed(), 1), list(operation().boxed(), 2), when)
        .prop_map(|(from, to, when)| AuthorizationRule { index: 0, from, to, when })
}

fn authorization() -> impl Strategy<Value = AuthorizationPolicy> {
    let action = prop_oneof![3 => Just(AuthorizationAction::Allow), 1 => Just(AuthorizationAction::Deny)];
    (action, prop::collection::vec(rule(), 0..=2)).prop_map(|(action, rules)| AuthorizationPolicy {
        object: 0,
        action,
        rules,
        dry_run: false,
        quarantined: false,
        expires: None,
        provider: None,
    })
}

fn policy(aliases: &[&str], mut authorization: Vec<AuthorizationPolicy>) -> Policy {
    for (object, each) in authorization.iter_mut().enumerate() {
        each.object = object as u32;
        each.rules.iter_mut().enumerate().for_each(|(index, rule)| rule.index = index as u16);
    }
    let object = |index| ObjectRef {
        kind: "AuthorizationPolicy".into(),
        namespace: "ns".into(),
        name: format!("p{index}"),
        digest: String::new(),
    };
    let mesh =
        Mesh { trust_domain_aliases: aliases.iter().map(|&alias| alias.into()).collect(), ..Mesh::default() };
    Policy {
        objects: (0..authorization.len()).map(object).collect(),
        mesh,
        authorization,
        ..Policy::default()
    }
}

/// Two versions: in part the same, so that what differs is often a detail.
fn versions() -> impl Strategy<Value = [Policy; 2]> {
    let some = |max| prop::collection::vec(authorization(), 0..=max);
    let aliases = || prop_oneof![9 => Just(&[][..]), 1 => Just(&["old"][..])];
    (some(1), some(2), some(2), aliases(), aliases()).prop_map(|(both, old, new, before, after)| {
        let of = |own: Vec<_>| both.iter().cloned().chain(own).collect();
        [policy(before, of(old)), policy(after, of(new))]
    })
}

/// A connection and what is asked on it.
#[derive(Debug)]
struct Calls {
    identity: Option<String>,
    port: u16,
    requests: Vec<Call>,
}

#[derive(Debug)]
struct Call {
    method: &'static str,
    path: String,
    host: Option<&'static str>,
    headers: HeaderMap,
}

fn one_of<T: Copy>(random: &mut SmallRng, of: &[T]) -> T {
    of[random.random_range(0..of.len())]
}

fn calls(random: &mut SmallRng) -> Calls {
    let kubernetes = |random: &mut SmallRng| {
        let (domain, namespace) = (one_of(random, &["td", "old"]), one_of(random, &["a", "ab", "b"]));
        format!("spiffe://{domain}/ns/{namespace}/sa/{}", one_of(random, &["x", "yx", "y"]))
    };
    let strange = ["spiffe://old", "spiffe://td/ns/a/sa/x/more", "spiffe://bad/x"];
    let identity = match random.random_range(0..8) {
        0 => None,
        1 => Some(one_of(random, &strange).to_owned()),
        _ => Some(kubernetes(random)),
    };
    let port = one_of(random, &[9080, 80, 7]);
    Calls { identity, port, requests: (0..12).map(|_| call(random)).collect() }
}

fn call(random: &mut SmallRng) -> Call {
    let segments = random.random_range(1..=5);
    let path: String = (0..segments).map(|_| one_of(random, &["/a", "/b", "/ab", "/c", "/"])).collect();
    let header = one_of(random, &[None, Some("one"), Some("on"), Some("e"), Some("x")]);
    Call {
        method: one_of(random, &["GET", "POST", "PUT", "GETS"]),
        path,
        host: one_of(random, &[None, Some("a.example"), Some("b.example:80"), Some("c")]),
        headers: header
            .into_iter()
            .map(|value| (HeaderName::from_static("x-a"), HeaderValue::from_static(value)))
            .collect(),
    }
}

fn outcomes(policy: &Policy, calls: &Calls) -> Vec<Outcome> {
    let tables = Tables::compile(policy, &[]).unwrap();
    let address = [192, 0, 2, 1].into();
    let remainder = tables.admit(&ConnectionAttributes {
        source_identity: calls.identity.as_deref(),
        source_ip: address,
        remote_ip: address,
        destination_ip: address,
        destination_port: calls.port,
        sni: None,
    });
    let outcome = |call: &Call| {
        let Call { method, path, host, headers } = call;
        let request = RequestAttributes { method, host: *host, path, headers, remote_ip: None, user: None };
        tables.authorize(&remainder, &request).outcome
    };
    calls.requests.iter().map(outcome).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_decided_otherwise_is_found([old, new] in versions(), seed: u64) {
        let found = compare(&old, &new);
        let mut random = SmallRng::seed_from_u64(seed);
        for _ in 0..5 {
            let calls = calls(&mut random);
            let (before, after) = (outcomes(&old, &calls), outcomes(&new, &calls));
            for (outcomes, call) in before.iter().zip(&after).zip(&calls.requests) {
                let what = match outcomes {
                    (Outcome::Deny, Outcome::Allow) => FailOn::Grants,
                    (Outcome::Allow, Outcome::Deny) => FailOn::Takes,
                    _ => continue,
                };
                let (identity, port) = (&calls.identity, calls.port);
                prop_assert!(found.say(what), "{what:?} {call:?} of {identity:?} on {port}, not in {found:#?}");
            }
        }
    }
}
