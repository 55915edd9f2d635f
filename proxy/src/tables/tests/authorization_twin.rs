//! Authorization against the naive twin, over random policies, connections and requests.

use control_client::snapshot::*;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::naive::Call;
use super::{condition, objects, tables};
use crate::decision::{Outcome, Reason};
use crate::tables::{
    ConnectionAttributes, HeaderNames, Kept, Reauthorization, RequestAttributes, Tables, UserAttributes,
};

const IDENTITIES: &[&str] = &[
    "spiffe://cluster.local/ns/foo/sa/a",
    "spiffe://cluster.local/ns/bar/sa/b",
    "spiffe://td1/ns/foo/sa/a",
    "spiffe://td1/ns/foobar/sa/ab",
    "spiffe://old-td/ns/bar/sa/a",
    "spiffe://elsewhere/ns/foo/sa/b",
    "spiffe://td1/region/ns/foo/x/sa/a/extra",
    "spiffe://td1/workload",
];
const PRINCIPALS: &[&str] = &[
    "cluster.local/ns/foo/sa/a",
    "td1/ns/foo/sa/a",
    "elsewhere/ns/foo/sa/b",
    "*-td/ns/bar/sa/a",
    "cluster.local/ns/foo/sa/*",
    "cluster.local/ns/foo/*",
    "*/ns/foo/sa/a",
    "*/sa/b",
    "*",
];
const NAMESPACES: &[&str] = &["foo", "bar", "foo*", "*bar", "f*r", "*"];
const ACCOUNTS: &[&str] = &["foo/a", "bar/b", "foobar/ab"];
const DOMAINS: &[&str] = &["td1", "cluster.local", "*-td", "e*", "*"];
const PATHS: &[&str] =
    &["/", "/a", "/a/b", "/a/b/c", "/a/bc", "/b", "/b/x", "/c/1/d", "/c/2/d", "/c/2/e", "/public/x"];
const PATH_VALUES: &[&str] = &[
    "/a",
    "/a/b",
    "/a*",
    "/a/*",
    "/a/b*",
    "/b/*",
    "/b",
    "/c/{*}/d",
    "/c/{**}",
    "/{**}/d",
    "*/x",
    "/public/*",
    "*",
    "/*",
];
const METHODS: &[&str] = &["GET", "POST", "PUT"];
const METHOD_VALUES: &[&str] = &["GET", "POST", "P*", "*T", "*"];
const HOSTS: &[&str] = &["a.example.com", "A.Example.com:80", "b", "other.org"];
const HOST_VALUES: &[&str] = &["a.example.com", "B", "*.Example.com", "a.*", "*:80", "*"];
const HEADERS: &[&str] = &["x-a", "x-b", "x-c"];
const HEADER_VALUES: &[&str] = &["1", "2", "1,2", "1*", "*2", "*", "other"];
const NETS: &[&str] = &["10.0.0.0/8", "10.1.0.1/32", "192.168.0.0/16", "fd00::/8", "0.0.0.0/0"];
const ADDRESSES: &[&str] = &["10.1.0.1", "10.2.0.1", "192.168.1.1", "fd00::1"];
const PORTS: &[&str] = &["80", "90"];
const SNIS: &[&str] = &["a.example.com", "b"];
const USERS: &[&str] = &[
    "iss/sub",
    "iss/other",
    "https://idp/a/sub",
    "https://idp/*",
    "iss/s*",
    "*/sub",
    "*idp/a/sub",
    "is*",
    "*ub",
    "iss",
    "/sub",
    "*",
];
const ISSUERS: &[&str] = &["iss", "https://idp", "https://idp/a", ""];
const SUBJECTS: &[&str] = &["sub", "other", "third", "a/sub", ""];
const AUDIENCES: &[&str] = &["aud1", "aud2", "*", "aud*", "*2", "x"];
/// Paths of claims, and how the values of each are written.
const CLAIMS: &[(&[&str], &[&str])] = &[
    (&["a", "b"], AUDIENCES),
    (&["a"], &["1", "2", "*"]),
    (&["a", "c", "d"], &["1", "2", "1*", "*"]),
    (&["scope"], &["read", "write", "read write", "re*", "*ite", "*"]),
    (&["team"], &["blue", "red", "b*", "*"]),
];

/// Everything in a case, from one seed; and how many conditions it has by now, to tell them apart.
struct Dice(SmallRng, usize);

impl Dice {
    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of.choose(&mut self.0).unwrap()
    }

    fn some<'a>(&mut self, of: &[&'a str]) -> Vec<&'a str> {
        let count = self.0.random_range(1..=2);
        (0..count).map(|_| self.one(of)).collect()
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.0.random_range(0..100) < percent
    }

    fn condition(&mut self, of: Option<(Attribute, &'static [&'static str])>) -> Condition {
        let (attribute, values) = of.unwrap_or_else(|| self.attribute());
        let sides = self.0.random_range(0..10);
        let is = if sides < 7 { self.some(values) } else { Vec::new() };
        let not = if sides >= 6 { self.some(values) } else { Vec::new() };
        self.1 += 1;
        condition(attribute, &format!("field{}", self.1), &is, &not)
    }

    fn attribute(&mut self) -> (Attribute, &'static [&'static str]) {
        match self.0.random_range(0..14) {
            0 => (Attribute::SourcePrincipal, PRINCIPALS),
            1 => (Attribute::SourceNamespace, NAMESPACES),
            2 => (Attribute::SourceServiceAccount, ACCOUNTS),
            3 => (Attribute::SourceTrustDomain, DOMAINS),
            4 => (Attribute::SourceIp, NETS),
            5 => (Attribute::DestinationIp, NETS),
            6 => (Attribute::DestinationPort, PORTS),
            7 => (Attribute::Sni, SNIS),
            _ => self.request_attribute(),
        }
    }

    fn request_attribute(&mut self) -> (Attribute, &'static [&'static str]) {
        match self.0.random_range(0..13) {
            0..=2 => (Attribute::Path, PATH_VALUES),
            3 => (Attribute::Method, METHOD_VALUES),
            4 => (Attribute::Host, HOST_VALUES),
            5 => (Attribute::RemoteIp, NETS),
            6 | 7 => (Attribute::Header(self.one(HEADERS).into()), HEADER_VALUES),
            8 => (Attribute::RequestPrincipal, USERS),
            9 => (Attribute::RequestAudiences, AUDIENCES),
            10 => (Attribute::RequestPresenter, AUDIENCES),
            _ => {
                let (path, values) = *CLAIMS.choose(&mut self.0).unwrap();
                (Attribute::RequestClaim(path.iter().map(|name| (*name).into()).collect()), values)
            }
        }
    }

    fn clauses(&mut self, of_requests: bool) -> Vec<Vec<Condition>> {
        let clauses = self.0.random_range(0..=2);
        (0..clauses).map(|_| self.clause(of_requests)).collect()
    }

    fn clause(&mut self, of_requests: bool) -> Vec<Condition> {
        let conditions = if self.chance(3) { 0 } else { self.0.random_range(1..=2) };
        let pick = |dice: &mut Self| {
            let of = of_requests.then(|| dice.request_attribute());
            dice.condition(of)
        };
        (0..conditions).map(|_| pick(self)).collect()
    }

    fn rule(&mut self, requests_only: bool) -> AuthorizationRule {
        let conditions = self.0.random_range(0..=2);
        let pick = |dice: &mut Self| {
            let of = requests_only.then(|| dice.request_attribute());
            dice.condition(of)
        };
        AuthorizationRule {
            index: 0,
            from: self.clauses(requests_only),
            to: self.clauses(true),
            when: (0..conditions).map(|_| pick(self)).collect(),
        }
    }

    /// `narrow`: several conditions must hold, so that not the first rule decides everything.
    fn policy(&mut self, object: u32, dry_run_percent: u32) -> AuthorizationPolicy {
        let action = match self.0.random_range(0..20) {
            0 => AuthorizationAction::Custom,
            1 => AuthorizationAction::Audit,
            2..9 => AuthorizationAction::Deny,
            _ => AuthorizationAction::Allow,
        };
        let requests_only = self.chance(40);
        let rules = self.0.random_range(0..=3);
        let rules = (0..rules).map(|_| {
            let mut rule = self.rule(requests_only);
            for _ in 0..3 {
                if rule.when.len() < 3 && self.chance(60) {
                    let of = requests_only.then(|| self.request_attribute());
                    rule.when.push(self.condition(of));
                }
            }
            rule
        });
        let rules = super::numbered(rules.collect());
        AuthorizationPolicy {
            object,
            action,
            rules,
            dry_run: self.chance(dry_run_percent),
            quarantined: self.chance(4),
            expires: None,
            provider: None,
        }
    }

    fn mesh(&mut self) -> Mesh {
        let aliases: &[&str] = match self.0.random_range(0..3) {
            0 => &[],
            1 => &["old-td"],
            _ => &["old-td", "cluster.local"],
        };
        Mesh {
            trust_domain: self.one(&["td1", "cluster.local"]).into(),
            trust_domain_aliases: aliases.iter().map(|alias| (*alias).into()).collect(),
            ..Mesh::default()
        }
    }

    fn connection(&mut self) -> ConnectionAttributes<'static> {
        ConnectionAttributes {
            source_identity: (!self.chance(20)).then(|| self.one(IDENTITIES)),
            source_ip: self.one(ADDRESSES).parse().unwrap(),
            remote_ip: self.one(ADDRESSES).parse().unwrap(),
            destination_ip: self.one(ADDRESSES).parse().unwrap(),
            destination_port: self.one(PORTS).parse().unwrap(),
            sni: self.chance(50).then(|| self.one(SNIS)),
        }
    }

    fn headers(&mut self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("accept", HeaderValue::from_static("*/*"));
        headers.insert("user-agent", HeaderValue::from_static("test"));
        for _ in 0..self.0.random_range(0..4) {
            let name = HeaderName::from_static(self.one(HEADERS));
            headers.append(name, HeaderValue::from_static(self.one(&["1", "2", "12", ""])));
        }
        headers
    }

    fn user(&mut self) -> Option<UserAttributes> {
        if self.chance(35) {
            return None;
        }
        let a = match self.0.random_range(0..3) {
            0 => serde_json::json!(self.one(&["1", "2", ""])),
            1 => serde_json::json!({ "b": self.some(AUDIENCES), "c": { "d": self.one(&["1", "2", "12"]) } }),
            _ => serde_json::json!({ "b": [self.one(AUDIENCES), 7], "c": self.one(&["1"]) }),
        };
        let team: Vec<_> = (0..self.0.random_range(0..9)).map(|_| self.one(&["blue", "black", ""])).collect();
        let mut claims = serde_json::json!({ "a": a, "team": team, "iat": 7 });
        if self.chance(50) {
            claims["scope"] = self.one(&["read", "read write", " write", ""]).into();
        }
        let audiences = self.0.random_range(0..3);
        Some(UserAttributes {
            issuer: self.one(ISSUERS).into(),
            subject: self.one(SUBJECTS).into(),
            audiences: (0..audiences).map(|_| self.one(&["aud1", "aud2", "x"]).into()).collect(),
            presenter: self.chance(50).then(|| self.one(&["aud1", "x"]).into()),
            claims: claims.as_object().unwrap().clone(),
        })
    }
}

fn compare(seed: u64) -> Result<(), TestCaseError> {
    let mut dice = Dice(SmallRng::seed_from_u64(seed), 0);
    let count = *[1usize, 4, 12, 40, 120, 300].choose(&mut dice.0).unwrap();
    let dry_run_percent = if dice.chance(30) { 30 } else { 0 };
    let mut authorization: Vec<_> =
        (0..count as u32).map(|object| dice.policy(object, dry_run_percent)).collect();
    // One quarter has only what allows, one only what denies, so that large sets are searched to the end.
    match dice.0.random_range(0..4) {
        0 => authorization.iter_mut().for_each(|each| each.action = AuthorizationAction::Allow),
        1 => authorization.iter_mut().for_each(|each| each.action = AuthorizationAction::Deny),
        _ => {}
    }
    authorization.reverse();
    let policy = Policy { objects: objects(count), authorization, mesh: dice.mesh(), ..Policy::default() };
    let tables = tables(&policy);
    for _ in 0..6 {
        let connection = dice.connection();
        let remainder = tables.admit(&connection);
        let opaque = Call { policy: &policy, connection: &connection, request: None };
        prop_assert_eq!(tables.authorize_tcp(&remainder).clone(), opaque.authorize());
        for _ in 0..6 {
            let (headers, user) = (dice.headers(), dice.user());
            let request = RequestAttributes {
                method: dice.one(METHODS),
                host: dice.chance(90).then(|| dice.one(HOSTS)),
                path: dice.one(PATHS),
                headers: &headers,
                remote_ip: dice.chance(80).then(|| dice.one(ADDRESSES).parse().unwrap()),
                user: user.as_ref(),
            };
            let call = Call { policy: &policy, connection: &connection, request: Some(&request) };
            let expected = call.authorize();
            prop_assert_eq!(tables.authorize(&remainder, &request), expected.clone(), "{:?}", request);

            let reauthorized = |request: &RequestAttributes<'_>, kept: Kept<'_>| {
                tables.reauthorize(&remainder, request, kept) == Reauthorization::Allowed
            };
            let allowed = expected.outcome == Outcome::Allow;
            prop_assert_eq!(reauthorized(&request, Kept::ALL), allowed, "{:?}", request);
            // Of some headers, kept under other policies: what could be refused never stays.
            let names = HeaderNames::of(HEADERS.iter().filter(|_| dice.chance(50)));
            let some = names.keep(&headers).to_map();
            let remote_ip = dice.chance(70);
            let kept = Kept { headers: Some(&names), remote_ip, user: true };
            let known = request.remote_ip.filter(|_| remote_ip);
            let stays =
                reauthorized(&RequestAttributes { headers: &some, remote_ip: known, ..request }, kept);
            prop_assert!(allowed || !stays, "{:?} kept {:?}", request, some);
            if tables.header_names().are_within(&names) && remote_ip {
                prop_assert_eq!(stays, allowed, "{:?} kept {:?}", request, some);
            }

            if expected.reason == Reason::NoAllowMatched {
                assert_considered(&tables, call, &mut dice)?;
            }
        }
        if opaque.authorize().reason == Reason::NoAllowMatched {
            assert_considered(&tables, opaque, &mut dice)?;
        }
    }
    Ok(())
}

/// The same policies, rules and first failed conditions, in the same order.
fn assert_considered(tables: &Tables, call: Call<'_>, dice: &mut Dice) -> Result<(), TestCaseError> {
    let limit = *[0usize, 1, 3, 8, usize::MAX].choose(&mut dice.0).unwrap();
    let considered = tables.consider(call.connection, call.request, limit);
    let field = |failed: &str| failed.split_once(": ").map(|(field, _)| field.to_owned());
    let nearest: Vec<_> = considered.nearest.iter().map(|near| (near.policy, field(&near.failed))).collect();
    prop_assert_eq!((nearest, considered.others), call.considered(limit));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn no_answer_differs_from_the_naive_one(seed: u64) {
        compare(seed)?;
    }
}
