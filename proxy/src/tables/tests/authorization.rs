//! AuthorizationPolicy by cases: what decides, what is charged, and what `consider` says of it.

use std::sync::Arc;

use control_client::snapshot::AuthorizationAction::{Allow, Audit, Custom, Deny};
use control_client::snapshot::*;
use http::{HeaderMap, HeaderValue};

use super::*;
use crate::decision::{CheckOutcome, Outcome, PolicyRef, Reason};
use crate::tables::{
    Authorization, Considered, HeaderNames, Kept, Lacking, Reauthorization, RequestAttributes, UserAttributes,
};

const REVIEWS: &str = "spiffe://cluster.local/ns/bookinfo/sa/reviews";
const OTHER: &str = "spiffe://cluster.local/ns/bookinfo/sa/other";

fn ask(policies: Vec<AuthorizationPolicy>, identity: Option<&str>, path: &str) -> Authorization {
    let tables = tables(&with_authorization(policies));
    let remainder = tables.admit(&from(identity));
    tables.authorize(&remainder, &get(path, &HeaderMap::new()))
}

fn principal(name: &str) -> Condition {
    condition(Attribute::SourcePrincipal, "from.principals", &[name], &[])
}

fn path(value: &str) -> Condition {
    condition(Attribute::Path, "to.paths", &[value], &[])
}

fn reviews() -> Condition {
    principal("cluster.local/ns/bookinfo/sa/reviews")
}

fn always() -> AuthorizationRule {
    AuthorizationRule::default()
}

#[test]
fn who_decides() {
    let allow_reviews = || policy(1, Allow, vec![rule(&[reviews()], &[], &[])]);
    let deny_admin = || policy(0, Deny, vec![rule(&[], &[path("/admin*")], &[])]);
    let custom_admin = || policy(2, Custom, vec![rule(&[], &[path("/admin*")], &[])]);
    let nothing = || policy(3, Allow, vec![]);
    let none = PolicyRef::NONE;
    for (policies, identity, path, outcome, reason, by) in [
        (vec![], None, "/", Outcome::Allow, Reason::NoPolicy, none),
        (vec![deny_admin()], None, "/", Outcome::Allow, Reason::NoPolicy, none),
        (vec![deny_admin()], None, "/admin/1", Outcome::Deny, Reason::MatchedDeny, PolicyRef::rule(0, 0)),
        (
            vec![allow_reviews()],
            Some(REVIEWS),
            "/",
            Outcome::Allow,
            Reason::MatchedAllow,
            PolicyRef::rule(1, 0),
        ),
        (vec![allow_reviews()], Some(OTHER), "/", Outcome::Deny, Reason::NoAllowMatched, none),
        (vec![allow_reviews()], None, "/", Outcome::Deny, Reason::NoAllowMatched, none),
        (
            vec![allow_reviews(), deny_admin()],
            Some(REVIEWS),
            "/admin",
            Outcome::Deny,
            Reason::MatchedDeny,
            PolicyRef::rule(0, 0),
        ),
        (
            vec![deny_admin(), custom_admin(), allow_reviews()],
            Some(REVIEWS),
            "/admin",
            Outcome::Deny,
            Reason::ProviderUnavailable,
            PolicyRef::rule(2, 0),
        ),
        (vec![nothing()], Some(REVIEWS), "/", Outcome::Deny, Reason::NoAllowMatched, none),
        (
            vec![nothing(), policy(4, Allow, vec![always()])],
            None,
            "/",
            Outcome::Allow,
            Reason::MatchedAllow,
            PolicyRef::rule(4, 0),
        ),
        (vec![policy(0, Deny, vec![])], None, "/", Outcome::Allow, Reason::NoPolicy, none),
        (vec![policy(0, Audit, vec![always()])], None, "/", Outcome::Allow, Reason::NoPolicy, none),
    ] {
        let found = ask(policies.clone(), identity, path);
        assert_eq!((found.outcome, found.reason, found.policy), (outcome, reason, by), "{policies:?} {path}");
    }
}

#[test]
fn the_lowest_object_and_rule_is_named() {
    let both =
        |object| policy(object, Allow, vec![rule(&[], &[path("/x")], &[]), rule(&[], &[path("/*")], &[])]);
    let found = ask(vec![both(3), both(1), both(2)], None, "/y");
    assert_eq!(found.policy, PolicyRef::rule(1, 1));
}

#[test]
fn quarantined_policies_are_named() {
    let deny = AuthorizationPolicy { quarantined: true, ..policy(0, Deny, vec![always()]) };
    let found = ask(vec![deny], None, "/");
    assert_eq!((found.reason, found.policy), (Reason::QuarantinedPolicy, PolicyRef::rule(0, 0)));

    let allow = AuthorizationPolicy { quarantined: true, ..policy(1, Allow, vec![]) };
    let found = ask(vec![allow.clone()], None, "/");
    assert_eq!((found.outcome, found.reason), (Outcome::Deny, Reason::QuarantinedPolicy));
    assert_eq!(found.policy, PolicyRef::object(1));
    // One team's mistake takes nothing from another's rule.
    assert_eq!(ask(vec![allow, policy(0, Allow, vec![always()])], None, "/").outcome, Outcome::Allow);
}

#[test]
fn dry_run_counts_for_nothing_and_says_what_it_would_do() {
    let dry = |each| AuthorizationPolicy { dry_run: true, ..each };
    let found = ask(vec![dry(policy(0, Allow, vec![])), dry(policy(1, Deny, vec![always()]))], None, "/");
    assert_eq!((found.outcome, found.reason), (Outcome::Allow, Reason::NoPolicy));
    let shadow: Vec<_> = found.shadow.iter().map(|each| (each.policy, each.reason)).collect();
    assert_eq!(
        shadow,
        [(PolicyRef::object(0), Reason::NoAllowMatched), (PolicyRef::rule(1, 0), Reason::MatchedDeny),]
    );
}

#[test]
fn audit_marks() {
    let found = ask(vec![policy(5, Audit, vec![rule(&[], &[path("/a")], &[])])], None, "/a");
    assert_eq!((found.outcome, found.audit), (Outcome::Allow, PolicyRef::rule(5, 0)));
}

#[test]
fn charges() {
    let user = is(Attribute::RequestPrincipal, &["iss/sub"]);
    let policies = vec![policy(0, Allow, vec![rule(&[reviews()], &[], &[user])])];
    let tables = tables(&with_authorization(policies));
    let headers = HeaderMap::new();
    let sub = UserAttributes { issuer: "iss".into(), subject: "sub".into(), ..Default::default() };
    let outcomes = |identity, user| {
        let remainder = tables.admit(&from(identity));
        let found = tables.authorize(&remainder, &RequestAttributes { user, ..get("/", &headers) });
        (found.service.outcome, found.user.outcome, found.user.reason)
    };
    use CheckOutcome::{Fail, NotReached, Pass};
    assert_eq!(outcomes(Some(REVIEWS), Some(&sub)), (Pass, Pass, Reason::MatchedAllow));
    assert_eq!(outcomes(Some(REVIEWS), None), (Pass, Fail, Reason::NoAllowMatched));
    assert_eq!(outcomes(Some(OTHER), Some(&sub)), (Fail, NotReached, Reason::NotReached));
}

#[test]
fn negative_conditions_match_what_is_absent() {
    let deny = vec![policy(0, Deny, vec![rule(&[is_not(Attribute::SourcePrincipal, &["*"])], &[], &[])])];
    assert_eq!(ask(deny.clone(), None, "/").outcome, Outcome::Deny);
    assert_eq!(ask(deny, Some(REVIEWS), "/").outcome, Outcome::Allow);
    let no_header = is_not(Attribute::Header("x-a".into()), &["1"]);
    assert_eq!(
        ask(vec![policy(0, Deny, vec![rule(&[], &[], &[no_header])])], None, "/").outcome,
        Outcome::Deny
    );
}

#[test]
fn header_lines_are_joined_and_empty_is_not_present() {
    let value = |text| is(Attribute::Header("x-a".into()), &[text]);
    let allows = |condition: Condition, lines: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-a", HeaderValue::from_static(line));
        }
        let tables = tables(&with_authorization(vec![policy(0, Allow, vec![rule(&[], &[], &[condition])])]));
        let remainder = tables.admit(&from(None));
        tables.authorize(&remainder, &get("/", &headers)).outcome == Outcome::Allow
    };
    assert!(allows(value("1"), &["1"]));
    assert!(!allows(value("1"), &["1", "2"]));
    assert!(allows(value("1,2"), &["1", "2"]));
    assert!(allows(value("*2"), &["1", "2"]));
    assert!(!allows(value("*"), &[""]));
    assert!(!allows(value("*"), &[]));
}

#[test]
fn scope_is_a_list_of_words() {
    let scope = is(Attribute::RequestClaim(vec!["scope".into()]), &["write"]);
    let tables = tables(&with_authorization(vec![policy(0, Allow, vec![rule(&[], &[], &[scope])])]));
    let claims = serde_json::json!({ "scope": "read write" }).as_object().unwrap().clone();
    let user = UserAttributes { claims, ..Default::default() };
    let headers = HeaderMap::new();
    let request = RequestAttributes { user: Some(&user), ..get("/", &headers) };
    assert_eq!(tables.authorize(&tables.admit(&from(None)), &request).outcome, Outcome::Allow);
}

#[test]
fn trust_domain_aliases() {
    let allows = |aliases: &[&str], principal: &str, identity: &str| {
        let mut policy = with_authorization(vec![policy(
            0,
            Allow,
            vec![rule(&[is(Attribute::SourcePrincipal, &[principal])], &[], &[])],
        )]);
        policy.mesh.trust_domain = "td1".into();
        policy.mesh.trust_domain_aliases = aliases.iter().map(|alias| (*alias).into()).collect();
        let tables = tables(&policy);
        let remainder = tables.admit(&from(Some(identity)));
        tables.authorize(&remainder, &get("/", &HeaderMap::new())).outcome == Outcome::Allow
    };
    for (aliases, principal, identity, expected) in [
        (&[][..], "cluster.local/ns/a/sa/b", "spiffe://td1/ns/a/sa/b", true),
        (&[], "cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/b", false),
        (&["cluster.local"], "cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/b", true),
        (&["cluster.local", "some-td"], "some-td/ns/a/sa/b", "spiffe://td1/ns/a/sa/b", true),
        (&["cluster.local", "some-td"], "td1/ns/a/sa/b", "spiffe://some-td/ns/a/sa/b", true),
        (&["some-td"], "elsewhere/ns/a/sa/b", "spiffe://some-td/ns/a/sa/b", false),
        (&["some-td"], "elsewhere/ns/a/sa/b", "spiffe://elsewhere/ns/a/sa/b", true),
        (&["some-td"], "*-td/ns/a/sa/b", "spiffe://td1/ns/a/sa/b", true),
        (&["some-td"], "*/ns/a/sa/b", "spiffe://any/ns/a/sa/b", true),
    ] {
        assert_eq!(allows(aliases, principal, identity), expected, "{aliases:?} {principal} {identity}");
    }
}

#[test]
fn opaque_connections() {
    let post = is(Attribute::Method, &["POST"]);
    let port = is(Attribute::DestinationPort, &["9080"]);
    let remote = is(Attribute::RemoteIp, &["10.3.0.0/16"]);
    let balancer = is(Attribute::RemoteIp, &["10.1.0.0/16"]);
    for (action, conditions, outcome) in [
        // An ALLOW rule that asks for HTTP is dropped, and its policy still counts.
        (Allow, vec![post.clone()], Outcome::Deny),
        (Allow, vec![port.clone(), post.clone()], Outcome::Deny),
        (Allow, vec![port.clone()], Outcome::Allow),
        // Any other rule gets wider.
        (Deny, vec![post.clone()], Outcome::Deny),
        (Deny, vec![port, post.clone()], Outcome::Deny),
        (Deny, vec![is(Attribute::DestinationPort, &["1"]), post.clone()], Outcome::Allow),
        (Custom, vec![post], Outcome::Deny),
        // Connections have a remote address, which is not that of the balancer before them.
        (Allow, vec![remote.clone()], Outcome::Allow),
        (Deny, vec![remote], Outcome::Deny),
        (Allow, vec![balancer.clone()], Outcome::Deny),
        (Deny, vec![balancer], Outcome::Allow),
    ] {
        let rules = vec![rule(&[], &conditions, &[])];
        let tables = tables(&with_authorization(vec![policy(0, action, rules)]));
        let remainder = tables.admit(&from(None));
        let found = tables.authorize_tcp(&remainder);
        assert_eq!(found.outcome, outcome, "{action:?} {conditions:?}");
    }
}

#[test]
fn alike_connections_share_a_remainder() {
    let tables = tables(&with_authorization(vec![policy(0, Allow, vec![rule(&[reviews()], &[], &[])])]));
    let one = from(Some(REVIEWS));
    let elsewhere = ConnectionAttributes { source_ip: [10, 9, 9, 9].into(), sni: Some("x"), ..one };
    // Nothing looks at the address or the name.
    assert!(Arc::ptr_eq(&tables.admit(&one), &tables.admit(&elsewhere)));
    assert!(!Arc::ptr_eq(&tables.admit(&one), &tables.admit(&from(Some(OTHER)))));
}

#[test]
fn remembered_connections_are_bounded() {
    let source = is(Attribute::SourceIp, &["10.0.0.0/8"]);
    let tables = tables(&with_authorization(vec![policy(0, Allow, vec![rule(&[source], &[], &[])])]));
    let attributes =
        |n: u32| ConnectionAttributes { source_ip: std::net::Ipv4Addr::from(n).into(), ..from(None) };
    let first = tables.admit(&attributes(0));
    for n in 1..10_000 {
        tables.admit(&attributes(n));
    }
    assert!(!Arc::ptr_eq(&first, &tables.admit(&attributes(0))), "the first is still remembered");
}

fn consider(policies: Vec<AuthorizationPolicy>, request: &RequestAttributes<'_>, limit: usize) -> Considered {
    tables(&with_authorization(policies)).consider(&from(Some(OTHER)), Some(request), limit)
}

#[test]
fn considered_names_the_nearest_and_what_failed() {
    let ratings = || condition(Attribute::Path, "to.paths", &["/ratings*"], &["/ratings/admin"]);
    let policies = vec![
        policy(0, Allow, vec![]),
        policy(1, Allow, vec![rule(&[reviews()], &[ratings()], &[])]),
        policy(2, Allow, vec![rule(&[principal("*/sa/other")], &[ratings()], &[])]),
        policy(3, Deny, vec![rule(&[], &[path("/x")], &[])]),
    ];
    let headers = HeaderMap::new();
    let found = consider(policies.clone(), &get("/admin", &headers), 2);
    let texts: Vec<_> = found.nearest.iter().map(|miss| (miss.policy, &*miss.failed)).collect();
    assert_eq!(
        texts,
        [
            (PolicyRef::rule(2, 0), "to.paths: /admin is none of [/ratings*]"),
            (PolicyRef::object(0), "the policy has no rules, so it allows nothing"),
        ]
    );
    assert_eq!(found.others, 1);

    let found = consider(policies, &get("/ratings/admin", &headers), 1);
    assert_eq!(found.nearest[0].failed, "to.paths: /ratings/admin is excluded by [/ratings/admin]");
}

#[test]
fn considered_never_shows_headers_or_claims() {
    let secret =
        condition(Attribute::Header("x-key".into()), "when[request.headers[x-key]]", &["s3cret"], &[]);
    let mut headers = HeaderMap::new();
    headers.insert("x-key", HeaderValue::from_static("guess"));
    let policies = vec![policy(0, Allow, vec![rule(&[], &[], &[secret])])];
    let found = consider(policies.clone(), &get("/", &headers), 8);
    let text = &found.nearest[0].failed;
    assert!(text.starts_with("when[request.headers[x-key]]: what was sent"), "{text}");
    assert!(!text.contains("s3cret") && !text.contains("guess"), "{text}");
    let none = HeaderMap::new();
    let text = &consider(policies, &get("/", &none), 8).nearest[0].failed;
    assert_eq!(text, "when[request.headers[x-key]]: it was not sent");

    let principal = condition(Attribute::RequestPrincipal, "from.requestPrincipals", &["*"], &[]);
    let policies = vec![policy(0, Allow, vec![rule(&[principal], &[], &[])])];
    let text = &consider(policies, &get("/", &none), 8).nearest[0].failed;
    assert_eq!(text, "from.requestPrincipals: no verified token came along");
}

#[test]
fn considered_of_an_opaque_connection() {
    let policies = vec![policy(0, Allow, vec![rule(&[], &[path("/a")], &[])])];
    let found = tables(&with_authorization(policies)).consider(&from(None), None, 8);
    assert_eq!(
        found.nearest[0].failed,
        "to.paths: only HTTP requests have it, so the rule matches no opaque connection"
    );
}

#[test]
fn what_was_not_kept_ends_what_it_could_end_and_nothing_else() {
    let header = |name: &str, value: &str| is(Attribute::Header(name.into()), &[value]);
    let deny = |conditions: &[Condition]| policy(0, Deny, vec![rule(&[], &[], conditions)]);
    let allow = |conditions: &[Condition]| policy(1, Allow, vec![rule(&[], &[], conditions)]);
    let (lacks, named) = (HeaderNames::default(), HeaderNames::of(["x-a"].iter()));
    let by = PolicyRef::rule(0, 0);
    let x_a = || Lacking::Header(http::HeaderName::from_static("x-a"));
    for (what, policies, kept, expected) in [
        ("nobody asks", vec![allow(&[path("/*")])], &lacks, Reauthorization::Allowed),
        ("a DENY asks", vec![deny(&[header("x-a", "1")])], &lacks, Reauthorization::Unknown(by, x_a())),
        ("it was kept, and not there", vec![deny(&[header("x-a", "1")])], &named, Reauthorization::Allowed),
        (
            "a DENY asks that can't match anyway",
            vec![deny(&[header("x-a", "1"), path("/other")])],
            &lacks,
            Reauthorization::Allowed,
        ),
        (
            "an ALLOW asks, and nothing else allows",
            vec![allow(&[header("x-a", "1")])],
            &lacks,
            Reauthorization::Refused(Reason::NoAllowMatched, PolicyRef::NONE),
        ),
        (
            "an ALLOW asks for its absence",
            vec![allow(&[is_not(Attribute::Header("x-a".into()), &["1"])])],
            &lacks,
            Reauthorization::Refused(Reason::NoAllowMatched, PolicyRef::NONE),
        ),
        (
            "an ALLOW asks, and another allows",
            vec![allow(&[header("x-a", "1")]), policy(2, Allow, vec![always()])],
            &lacks,
            Reauthorization::Allowed,
        ),
    ] {
        let tables = tables(&with_authorization(policies));
        let remainder = tables.admit(&from(None));
        let headers = HeaderMap::new();
        let kept = Kept { headers: Some(kept), remote_ip: true, user: true };
        let said = tables.reauthorize(&remainder, &get("/", &headers), kept);
        assert_eq!(said, expected, "{what}");
    }
    // The same of the client's address.
    let address = |value: &str| is(Attribute::RemoteIp, &[value]);
    let unknown = Reauthorization::Unknown(by, Lacking::RemoteIp);
    let none = Reauthorization::Refused(Reason::NoAllowMatched, PolicyRef::NONE);
    for (policies, expected) in [
        (vec![allow(&[path("/*")])], Reauthorization::Allowed),
        (vec![deny(&[address("198.51.100.0/24")])], unknown),
        (vec![allow(&[address("0.0.0.0/0")])], none),
    ] {
        let (tables, headers) = (tables(&with_authorization(policies)), HeaderMap::new());
        let request = RequestAttributes { remote_ip: None, ..get("/", &headers) };
        let kept = Kept { headers: None, remote_ip: false, user: true };
        assert_eq!(tables.reauthorize(&tables.admit(&from(None)), &request, kept), expected);
    }
}

#[test]
fn what_has_begun_is_only_asked_about_by_custom_policies_that_are_others() {
    let provider = |name: &str, phase| Provider {
        name: name.into(),
        backend: None,
        phase,
        timeout: std::time::Duration::from_secs(1),
        fail_open: false,
        status_on_error: 403,
        body: None,
        protocol: ProviderProtocol::Grpc(GrpcCheck::default()),
    };
    // #0 asks by path, #1 by a header; #2, last of all, about users; #3, before there is one, about those who are none.
    let custom = |object, asks, condition: Condition| AuthorizationPolicy {
        provider: Some(asks),
        ..policy(object, Custom, vec![rule(&[], &[], &[condition])])
    };
    let user = |values: &[&str], not_values: &[&str]| {
        condition(Attribute::RequestPrincipal, "requestPrincipals", values, not_values)
    };
    let policies = [
        custom(0, 0, path("/asked")),
        custom(1, 0, is(Attribute::Header("x-a".into()), &["1"])),
        custom(2, 1, user(&["iss/alice"], &[])),
        custom(3, 0, user(&[], &["*"])),
    ];
    let compile = |which: &[usize], change: fn(&mut Policy)| {
        let chosen = which.iter().map(|&index| policies[index].clone()).collect();
        let mut policy = Policy {
            providers: vec![
                provider("early", ProviderPhase::BeforeAuthentication),
                provider("late", ProviderPhase::AfterAuthorization),
            ],
            ..with_authorization(chosen)
        };
        change(&mut policy);
        tables(&policy)
    };
    let same = |_: &mut Policy| {};
    let asks = |object| Reauthorization::Asks(PolicyRef::rule(object, 0));
    let alice = UserAttributes { issuer: "iss".into(), subject: "alice".into(), ..UserAttributes::default() };
    let x_a = Lacking::Header(http::HeaderName::from_static("x-a"));
    let unknown = Reauthorization::Unknown(PolicyRef::rule(1, 0), x_a);
    for (what, before, after, change, at, user, expected) in [
        ("nobody asked, and nobody does", &[][..], &[][..], same, "/", None, Reauthorization::Allowed),
        ("asked already", &[0], &[0], same, "/asked", None, Reauthorization::Allowed),
        ("another that does not match", &[0], &[0, 2], same, "/asked", None, Reauthorization::Allowed),
        ("new", &[], &[0], same, "/asked", None, asks(0)),
        ("new beside an old one", &[0], &[0, 2], same, "/asked", Some(&alice), asks(2)),
        ("new, by what was not kept", &[0], &[0, 1], same, "/asked", None, unknown),
        ("asked when no user is known", &[0], &[0, 3], same, "/asked", Some(&alice), asks(3)),
        ("another version", &[0], &[0], |policy| policy.objects[0].digest.push('1'), "/asked", None, asks(0)),
        (
            "who is meant is another",
            &[0],
            &[0],
            |policy| policy.mesh.trust_domain_aliases.push("old".into()),
            "/asked",
            None,
            asks(0),
        ),
        (
            "it asks at another place",
            &[0],
            &[0],
            |policy| {
                policy.backends.push(super::backend("elsewhere"));
                policy.providers[0].backend = Some(0);
            },
            "/asked",
            None,
            asks(0),
        ),
        (
            "who is asked lets pass more",
            &[0],
            &[0],
            |p| p.providers[0].fail_open = true,
            "/asked",
            None,
            asks(0),
        ),
        (
            "who is asked has more time, and another changed",
            &[0],
            &[0],
            |policy| {
                policy.providers[0].timeout *= 2;
                policy.providers[1].fail_open = true;
            },
            "/asked",
            None,
            Reauthorization::Allowed,
        ),
    ]
        as [(&str, &[usize], &[usize], fn(&mut Policy), &str, Option<&UserAttributes>, Reauthorization); 12]
    {
        let (before, after) = (compile(before, same), compile(after, change));
        let (remainder, headers) = (after.admit(&from(None)), HeaderMap::new());
        let request = RequestAttributes { user, ..get(at, &headers) };
        let kept = Kept { headers: Some(&**before.header_names()), remote_ip: true, user: true };
        let known = before.custom().map(|custom| &**custom);
        assert_eq!(after.asks_anew(&remainder, &request, kept, known), expected, "{what}");
    }
}
