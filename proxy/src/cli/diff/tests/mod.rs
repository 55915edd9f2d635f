//! Differences of whole configurations, in words.

mod overlaps;
mod words;

use super::*;
use crate::cli::table::Paint;

const CLUSTER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: ratings-v1, namespace: bookinfo, labels: {app: ratings, pod-template-hash: a1}}
spec: {serviceAccountName: ratings}
---
apiVersion: v1
kind: Pod
metadata: {name: ratings-v2, namespace: bookinfo, labels: {app: ratings, pod-template-hash: b2}}
spec: {serviceAccountName: ratings}
---
apiVersion: v1
kind: Pod
metadata: {name: productpage, namespace: bookinfo, labels: {app: productpage}}
spec: {serviceAccountName: productpage}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews, namespace: bookinfo, labels: {app: reviews}}
spec: {serviceAccountName: reviews}
---
";
const VIEWER: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: viewer, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/bookinfo/sa/productpage]}}]
    to: [{operation: {methods: [GET], paths: ['/ratings/*']}}]
";

fn diff(old: &str, new: &str) -> Diff {
    let read = |policies: &str| Resources::of_yaml(&format!("{CLUSTER}{policies}"));
    Diff::of(&read(old), &read(new), "cluster.local")
}

/// The only workloads that anything changes for, in JSON.
#[track_caller]
fn only(diff: &Diff) -> serde_json::Value {
    let json = diff.to_json();
    let workloads = json["workloads"].as_array().unwrap();
    assert_eq!(workloads.len(), 1, "{json:#}");
    workloads[0].clone()
}

#[test]
fn a_caller_more_is_a_grant_in_words() {
    let new = VIEWER.replace("sa/productpage]", "sa/productpage, cluster.local/ns/bookinfo/sa/reviews]");
    let diff = diff(VIEWER, &new);
    let text = diff.to_text(Paint::plain());
    assert_eq!(
        text,
        "bookinfo app=ratings (ratings-v1, ratings-v2)
  grants cluster.local/ns/bookinfo/sa/reviews
    GET /ratings/*
    now by AuthorizationPolicy bookinfo/viewer rule 0

changed: AuthorizationPolicy bookinfo/viewer
"
    );
    assert!(diff.does(FailOn::Grants) && !diff.does(FailOn::Takes) && !diff.does(FailOn::Warnings));
    let back = only(&super::Diff::of(
        &Resources::of_yaml(&format!("{CLUSTER}{new}")),
        &Resources::of_yaml(&format!("{CLUSTER}{VIEWER}")),
        "cluster.local",
    ));
    assert_eq!(back["changes"][0]["change"], "takes");
    assert_eq!(back["changes"][0]["before"], "AuthorizationPolicy bookinfo/viewer rule 0");
}

#[test]
fn lines_that_move_change_nothing() {
    let again = "# The same, said otherwise.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: bookinfo, name: viewer}
spec:
  rules:
  - to: [{operation: {paths: ['/ratings/*', /ratings/1], methods: [GET]}}]
    from: [{source: {principals: [cluster.local/ns/bookinfo/sa/productpage]}}]
  selector: {matchLabels: {app: ratings}}
";
    let diff = diff(VIEWER, again);
    assert_eq!(
        diff.to_text(Paint::plain()),
        "nobody may do more or less than before\nchanged: AuthorizationPolicy bookinfo/viewer\n"
    );
    assert_eq!(diff.objects[2], ["AuthorizationPolicy bookinfo/viewer"]);
}

#[test]
fn a_deny_takes_also_what_is_opaque() {
    let new = format!(
        "{VIEWER}---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: embargo, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  action: DENY
  rules: [{{to: [{{operation: {{paths: [/x]}}}}]}}]
"
    );
    let found = only(&diff(VIEWER, &new));
    let [taken] = found["changes"].as_array().unwrap().as_slice() else { panic!("{found:#}") };
    assert_eq!(
        (&taken["change"], &taken["after"]),
        (&"takes".into(), &"AuthorizationPolicy bookinfo/embargo rule 0".into())
    );
    assert_eq!(taken["calls"], serde_json::json!([{ "paths": ["/x"] }, { "opaque": true }]));
}

#[test]
fn what_hangs_on_a_header_is_a_maybe_and_says_so() {
    let new = VIEWER.replace(
        "['/ratings/*']}}]",
        "['/ratings/*']}}]\n    when: [{key: 'request.headers[x-a]', values: [b]}]",
    );
    let found = only(&diff(VIEWER, &new));
    let [change] = found["changes"].as_array().unwrap().as_slice() else { panic!("{found:#}") };
    assert_eq!(change["change"], "may-take");
    assert_eq!(change["depends_on"], serde_json::json!(["unless when[request.headers[x-a]] is one of [b]"]));
    assert_eq!(change["principals"], serde_json::json!(["cluster.local/ns/bookinfo/sa/productpage"]));
    // Who had to say so before does not gain anything by it.
    let back = only(&diff(&new, VIEWER));
    assert_eq!(back["changes"][0]["change"], "may-grant");
    assert_eq!(back["changes"][0]["depends_on"], change["depends_on"]);
}

#[test]
fn the_last_allow_is_warned_of() {
    let found = diff(VIEWER, "");
    assert!(only(&found)["warnings"][0].as_str().unwrap().contains("the last ALLOW"));
    assert!(found.does(FailOn::Warnings) && found.does(FailOn::Grants) && !found.does(FailOn::Takes));
    let dry_run = VIEWER.replace("name: viewer,", "annotations: {istio.io/dry-run: 'true'}, name: viewer,");
    assert!(diff(VIEWER, &dry_run).does(FailOn::Warnings));
}

#[test]
fn a_policy_that_is_invalid_now_refuses_and_is_not_gone() {
    let diff = diff(VIEWER, &VIEWER.replace("  rules:", "  action: Allow\n  rules:"));
    let found = only(&diff);
    let [warning] = found["warnings"].as_array().unwrap().as_slice() else { panic!("{found:#}") };
    let says = "AuthorizationPolicy bookinfo/viewer is invalid, so everything that it selects is refused; `writ check`";
    assert!(warning.as_str().unwrap().starts_with(says), "{warning}");
    assert!(diff.does(FailOn::Takes) && !diff.does(FailOn::Grants));
}

#[test]
fn an_allow_that_is_invalid_now_allows_nothing() {
    let found = only(&diff(VIEWER, &VIEWER.replace("methods: [GET]", "methods: GET")));
    let [warning] = found["warnings"].as_array().unwrap().as_slice() else { panic!("{found:#}") };
    assert!(warning.as_str().unwrap().contains("viewer is invalid, so it allows nothing"), "{warning}");
}

#[test]
fn another_trust_domain_that_becomes_ours_is_a_grant() {
    let settings = "---
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {name: mesh}
spec: {trustDomainAliases: [old.example]}
";
    let found = only(&diff(VIEWER, &format!("{VIEWER}{settings}")));
    let [grant] = found["changes"].as_array().unwrap().as_slice() else { panic!("{found:#}") };
    assert_eq!(
        (&grant["change"], &grant["principals"]),
        (&"grants".into(), &serde_json::json!(["old.example/ns/bookinfo/sa/productpage"]))
    );
}

#[test]
fn what_calls_do_not_show_is_said_to_be_unknown() {
    let settings = "---
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {name: mesh}
spec: {pathNormalization: {normalization: NONE}}
";
    let tokens = "---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  jwtRules: [{issuer: users.example, jwksUri: 'https://users.example/keys'}]
";
    let limits = "---
apiVersion: writ.dev/v1alpha1
kind: RateLimit
metadata: {name: calls, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  rules: [{local: {requests: 1, per: 1s}}]
";
    let service = |protocol: &str| {
        format!(
            "---
apiVersion: v1
kind: Service
metadata: {{name: ratings, namespace: bookinfo}}
spec: {{selector: {{app: ratings}}, ports: [{{name: {protocol}, port: 9080}}]}}
"
        )
    };
    let [http, tcp] = ["http", "tcp"].map(service);
    for (with, what) in [
        (&*http, "port 9080 is declared to be of another protocol"),
        (settings, "MeshSettings changes path"),
        (tokens, "RequestAuthentication bookinfo/users"),
        (limits, "RateLimit bookinfo/calls changes how often"),
    ] {
        let diff = diff(VIEWER, &format!("{VIEWER}{with}"));
        assert!(diff.does(FailOn::Unknown) && diff.does(FailOn::Grants));
        let json = diff.to_json();
        assert!(json["workloads"][0]["unknown"][0].as_str().unwrap().contains(what), "{json:#}");
    }
    let otherwise = diff(&format!("{VIEWER}{http}"), &format!("{VIEWER}{tcp}"));
    assert!(otherwise.does(FailOn::Unknown));
}

#[test]
fn strict_shuts_out_those_without_identity() {
    let strict = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
";
    let found = diff("", strict);
    assert_eq!(found.workloads.len(), 2, "those of bookinfo are alike; and whatever is beside the policy");
    for workload in &found.workloads {
        let [taken] = workload.found.changes.as_slice() else { panic!("{:#}", found.to_json()) };
        assert_eq!((taken.kind, taken.principals.len()), (Kind::Takes, 1));
        assert_eq!(taken.after, "PeerAuthentication istio-system/default");
    }
}
