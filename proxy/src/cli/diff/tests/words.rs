//! What overlapping patterns are called.

use super::*;
use crate::cli::diff::compare::Change;

/// `viewer` with other sources and operations.
fn viewer(from: &str, to: &str) -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: viewer, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  rules:
  - from: [{{source: {from}}}]
    to: [{{operation: {to}}}]
"
    )
}

/// What is granted and taken, in words, by what a change is to be told.
#[track_caller]
fn assert_words(old: &str, new: &str, words: impl Fn(&Change) -> Vec<String>, expected: [&[&str]; 2]) {
    let diff = diff(old, new);
    let changes = || diff.workloads.iter().flat_map(|workload| &workload.found.changes);
    let of = |kind| changes().filter(|change| change.kind == kind).flat_map(&words).collect::<Vec<_>>();
    assert_eq!([of(Kind::Grants), of(Kind::Takes)], expected, "{:#}", diff.to_json());
    assert!(!diff.does(FailOn::Unknown));
    assert_eq!([diff.does(FailOn::Grants), diff.does(FailOn::Takes)], expected.map(|each| !each.is_empty()));
}

#[test]
fn a_prefix_grants_more_than_a_template_did() {
    let from = "{principals: [cluster.local/ns/bookinfo/sa/reviews]}";
    let diff = diff(
        &viewer(from, "{paths: ['/ratings/{*}'], methods: [GET, POST]}"),
        &viewer(from, "{paths: ['/ratings/*'], methods: [GET]}"),
    );
    assert!(diff.does(FailOn::Grants) && diff.does(FailOn::Takes));
    assert_eq!(
        diff.to_text(Paint::plain()),
        "bookinfo app=ratings (ratings-v1, ratings-v2)
  grants cluster.local/ns/bookinfo/sa/reviews
    GET /ratings/* except /ratings/{*}
    now by AuthorizationPolicy bookinfo/viewer rule 0
  takes cluster.local/ns/bookinfo/sa/reviews
    POST /ratings/{*}
    before by AuthorizationPolicy bookinfo/viewer rule 0

changed: AuthorizationPolicy bookinfo/viewer
"
    );
}

#[test]
fn paths() {
    let cases: [(&str, &str, [&[&str]; 2]); 14] = [
        ("[/a/*]", "['/a*']", [&["/a* except /a/*"], &[]]),
        ("[/a/b]", "[/a/*]", [&["/a/* except /a/b"], &[]]),
        ("['/a/{*}']", "['/a/{**}']", [&["/a/{**} except /a/{*}"], &[]]),
        ("['/{**}']", "['/{*}', /]", [&[], &["/{**} except / or /{*}"]]),
        ("['*/admin']", "[/a/*]", [&["/a/* except */admin"], &["*/admin except /a/*"]]),
        ("['/a/{*}/c']", "['/a/b/{*}']", [&["/a/b/{*} except /a/{*}/c"], &["/a/{*}/c except /a/b/{*}"]]),
        ("[/a/*], notPaths: ['*/admin']", "[/a/*]", [&["both */admin and /a/*"], &[]]),
        ("[/a/*]", "[/a/*], notPaths: [/a/b, '/a/{*}/c']", [&[], &["/a/b", "/a/{*}/c"]]),
        ("[/x]", "[/x], notPaths: [/y, '/a/{**}']", [&[], &[]]),
        ("['*']", "[/*]", [&[], &["any path except /*"]]),
        ("[/*]", "[/*], notPaths: [/a, /b, /c, /d]", [&[], &["/a", "/b", "/c", "/d"]]),
        ("[/a, /b, /c, /d]", "[/*]", [&["the rest of /*"], &[]]),
        (
            "[/x], notPaths: ['/a*']",
            "[/x, '/a*'], notPaths: [/ab, /abc, /abd, /abe]",
            [&["the rest of /a*"], &[]],
        ),
        // Two ways to write the same.
        ("['/a/{**}', /b, /a/b]", "[/b, /a/*]", [&[], &[]]),
    ];
    for (old, new, expected) in cases {
        let of = |paths: &str| viewer("{namespaces: [bookinfo]}", &format!("{{paths: {paths}}}"));
        assert_words(
            &of(old),
            &of(new),
            |change| change.calls.iter().flat_map(|calls| calls.paths.clone()).collect(),
            expected,
        );
    }
}

#[test]
fn principals() {
    let cases: [(&str, &str, [&[&str]; 2]); 7] = [
        (
            "{principals: [cluster.local/ns/a/*]}",
            "{namespaces: [a]}",
            [&["namespace a except cluster.local/ns/a/*"], &[]],
        ),
        (
            "{principals: ['cluster.local/ns/a/*']}",
            "{principals: ['cluster.local/ns/a*']}",
            [&["cluster.local/ns/a* except cluster.local/ns/a/*"], &[]],
        ),
        (
            "{namespaces: [a], principals: ['*/sa/x']}",
            "{namespaces: [a, b], principals: ['*/sa/x']}",
            [&["both */sa/x and namespace b"], &[]],
        ),
        (
            "{serviceAccounts: [a/x]}",
            "{principals: [cluster.local/ns/a/sa/x]}",
            [&[], &["service account a/x except cluster.local/ns/a/sa/x"]],
        ),
        (
            "{trustDomains: ['*.example']}",
            "{trustDomains: ['*.example'], notNamespaces: [a]}",
            [&[], &["both namespace a and trust domain *.example"]],
        ),
        (
            "{principals: ['*']}",
            "{notPrincipals: [cluster.local/ns/a/sa/x]}",
            [&["callers without identity (plaintext)"], &["cluster.local/ns/a/sa/x"]],
        ),
        (
            "{namespaces: [a]}",
            "{notNamespaces: [b]}",
            [
                &["any identity except namespace a or namespace b", "callers without identity (plaintext)"],
                &[],
            ],
        ),
    ];
    for (old, new, expected) in cases {
        let of = |from: &str| viewer(from, "{paths: [/x]}");
        assert_words(&of(old), &of(new), |change| change.principals.clone(), expected);
    }
}

#[test]
fn everybody_is_one_word() {
    let deny = |paths: &str| {
        viewer("{}", &format!("{{paths: {paths}}}")).replace("rules:", "action: DENY\n  rules:")
    };
    let words = |change: &Change| change.principals.clone();
    let deny = |paths| deny(paths).replace("  - from: [{source: {}}]\n    to:", "  - to:");
    assert_words(&deny("[/a]"), &deny("[/a, /b]"), words, [&[], &["anybody"]]);
}

#[test]
fn what_overlaps_in_too_many_ways_is_unknown() {
    // Each asks for one segment: any set of them has a path of its own.
    let templates: Vec<_> = (0..20)
        .map(|at| {
            let mut segments = vec!["{*}"; 20];
            segments[at] = "x";
            format!("'/{}'", segments.join("/"))
        })
        .collect();
    let of =
        |templates: &[String]| viewer("{namespaces: [a]}", &format!("{{paths: [{}]}}", templates.join(", ")));
    let diff = diff(&of(&templates[1..]), &of(&templates));
    let found = only(&diff);
    assert_eq!(found["unknown"][0], "the policies name paths that overlap in more ways than are tried");
    assert!(diff.does(FailOn::Grants) && diff.does(FailOn::Takes) && diff.does(FailOn::Unknown));
}

/// Access that ends, and access that doesn't: whatever policies are called that give it.
#[test]
fn until_when_a_policy_allows() {
    let until = |end: &str| {
        VIEWER.replace(
            "name: viewer,",
            &format!("annotations: {{writ.dev/expires-at: '{end}'}}, name: viewer,"),
        )
    };
    let temporary = until("2998-01-01T00:00:00Z");
    let for_ever = VIEWER.replace("name: viewer,", "name: for-ever,");
    let wider = for_ever.replace("methods: [GET], ", "");
    let early = "unless it is before 2998-01-01T00:00:00Z";
    let late = "only if it is before 2999-01-01T00:00:00Z";
    for (old, new, kind, depends_on) in [
        (&temporary, &until("2999-01-01T00:00:00Z"), Kind::MayGrant, vec![early, late]),
        (&until("2999-01-01T00:00:00Z"), &temporary, Kind::MayTake, vec![late, early]),
        (&temporary, &VIEWER.to_owned(), Kind::MayGrant, vec![early]),
        (&temporary, &for_ever, Kind::MayGrant, vec![early]),
        (&temporary, &format!("{temporary}---{for_ever}"), Kind::MayGrant, vec![early]),
        (&temporary, &format!("{temporary}---{wider}"), Kind::MayGrant, vec![early]),
    ] {
        let diff = diff(old, new);
        let changes: Vec<_> = diff.workloads.iter().flat_map(|workload| &workload.found.changes).collect();
        let found = changes.iter().find(|change| change.kind == kind && change.depends_on == depends_on);
        assert!(found.is_some(), "{:#}", diff.to_json());
        assert!(diff.does(if kind == Kind::MayGrant { FailOn::Grants } else { FailOn::Takes }));
    }
}

/// A trust domain may have the name of a part of identities.
#[test]
fn trust_domains_called_sa_and_ns() {
    for domain in ["sa", "ns"] {
        let read = |account: &str| {
            let from = format!("{{principals: [{domain}/ns/ns/sa/{account}]}}");
            Resources::of_yaml(&format!("{CLUSTER}{}", viewer(&from, "{methods: [GET]}")))
        };
        let diff = Diff::of(&read("sa"), &read("other"), domain);
        assert!(diff.does(FailOn::Grants) && diff.does(FailOn::Takes), "{:#}", diff.to_json());
    }
}

#[test]
fn whom_a_policy_asks_is_no_call() {
    let asking = |port: u16| {
        format!(
            "
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {{name: mesh}}
spec:
  extensionProviders:
  - name: other
    envoyExtAuthzGrpc: {{service: other.bookinfo.svc.cluster.local, port: 9000}}
  - name: authz
    envoyExtAuthzGrpc: {{service: authz.bookinfo.svc.cluster.local, port: {port}}}
---
apiVersion: v1
kind: Service
metadata: {{name: authz, namespace: bookinfo}}
spec: {{ports: [{{name: grpc, port: 9000}}, {{name: grpc-new, port: 9001}}]}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: ask, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  action: CUSTOM
  provider: {{name: authz}}
  rules: [{{to: [{{operation: {{paths: [/asked]}}}}]}}]
"
        )
    };
    let found = only(&diff(&asking(9000), &asking(9001)));
    assert_eq!(
        found["unknown"][0],
        "AuthorizationPolicy bookinfo/ask asks another provider, or in another way"
    );
    let again = asking(9000).replace("- name: other", "- name: new");
    assert_eq!(diff(&asking(9000), &again).to_json()["workloads"], serde_json::json!([]));
}

/// A grant among many rules that hang on headers, which nobody could try each both ways.
#[test]
fn what_many_others_may_allow_is_a_maybe_and_says_so_once() {
    let others: String = (0..40)
        .map(|number| {
            format!(
                "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: other-{number}, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  rules: [{{when: [{{key: 'request.headers[x-{number}]', values: [a]}}]}}]
"
            )
        })
        .collect();
    let from = "{principals: [cluster.local/ns/bookinfo/sa/reviews]}";
    let versions = ["[GET]", "[GET, POST]"].map(|methods| {
        format!("{}{others}", viewer(from, &format!("{{paths: [/ratings/*], methods: {methods}}}")))
    });
    assert_eq!(
        diff(&versions[0], &versions[1]).to_text(Paint::plain()),
        "bookinfo app=ratings (ratings-v1, ratings-v2)
  may grant cluster.local/ns/bookinfo/sa/reviews
    POST /ratings/*
    unless other rules allow it as well
    now by AuthorizationPolicy bookinfo/viewer rule 0

changed: AuthorizationPolicy bookinfo/viewer
"
    );
}
