//! What a change of policy would do, seen beforehand: a candidate configuration, dry-run policies, and coverage.

use serde_json::Value;
use tests::{App, Client, Server, World};

/// Three callers may read ratings; `reviews` may write, which nobody does.
const LIVE: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/bookinfo/sa/productpage]}}]
  - from: [{source: {principals: [cluster.local/ns/bookinfo/sa/reviews, cluster.local/ns/bookinfo/sa/batch]}}]
    to: [{operation: {methods: [GET]}}]
  - from: [{source: {principals: [cluster.local/ns/bookinfo/sa/reviews]}}]
    to: [{operation: {methods: [PUT]}}]
";

/// The same without `batch`, and with `stranger`.
fn next() -> String {
    LIVE.replace(", cluster.local/ns/bookinfo/sa/batch]", ", cluster.local/ns/bookinfo/sa/stranger]")
}

const CALLERS: [&str; 4] = ["productpage", "reviews", "batch", "stranger"];

/// GET by each caller over mTLS of its own, with a header that nobody is to see again; the statuses.
async fn ask(mesh: &tests::Mesh) -> Vec<u16> {
    let mut statuses = Vec::new();
    for account in CALLERS {
        let mut client = mesh.pki.caller(account).connect(mesh.inbound("ratings")).await;
        statuses.push(client.get("/ratings/1?token=secret", "x-secret: hidden\r\n").await.status);
    }
    statuses
}

fn changes<'r>(report: &'r Value, change: &str) -> Vec<&'r Value> {
    let all = report["changes"].as_array().unwrap();
    all.iter().filter(|found| found["change"] == change).collect()
}

#[tokio::test]
async fn a_candidate_that_would_cut_one_caller_of_three_says_so_before_and_is_right() {
    let app = App::echo().await;
    let mesh =
        World::new().server(Server::new("ratings", &app)).policy(LIVE).candidate(&next()).start().await;
    assert_eq!(ask(&mesh).await, [200, 200, 200, 403]);

    let report = mesh.admin_says("ratings", "/candidate", |report| report["sampled"] == 4).await;
    let [cut] = changes(&report, "allowed-to-refused")[..] else { panic!("{report:#}") };
    assert_eq!(
        (&cut["live"]["policy"]["name"], &cut["live"]["policy"]["rule"]),
        (&"readers".into(), &1.into())
    );
    assert_eq!(cut["candidate"]["reason"], "no-allow-matched");
    assert_eq!(cut["count"], 1);
    let example = &cut["examples"][0];
    assert_eq!(example["source"], "spiffe://cluster.local/ns/bookinfo/sa/batch");
    assert_eq!((&example["method"], &example["path"]), (&"GET".into(), &"/ratings/1".into()));
    let [let_in] = changes(&report, "refused-to-allowed")[..] else { panic!("{report:#}") };
    assert_eq!(let_in["candidate"]["policy"]["name"], "readers");
    assert_eq!(let_in["examples"][0]["source"], "spiffe://cluster.local/ns/bookinfo/sa/stranger");
    for secret in ["hidden", "secret"] {
        assert!(!report.to_string().contains(secret), "{report:#}");
    }

    let digest = report["digest"].as_str().unwrap().to_owned();
    mesh.config().write("policy-0.yaml", &next());
    mesh.config_is("the candidate in force", |config| config["digest"] == digest.as_str()).await;
    assert_eq!(ask(&mesh).await, [200, 200, 403, 200]);
    // Against itself it changes nothing.
    let after = mesh.admin_says("ratings", "/candidate", |report| report["live_digest"] == digest).await;
    assert_eq!(after["changes"], Value::Array(Vec::new()), "{after:#}");
    mesh.stop().await;
}

#[tokio::test]
async fn a_candidate_is_asked_about_opaque_connections_too() {
    const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: echo}}
";
    let app = App::tcp_echo().await;
    let server = Server::new("echo", &app).port_name("tcp");
    let mesh = World::new().server(server).candidate(DENY).start().await;
    let mut client = Client::connect(mesh.inbound("echo")).await;
    client.send("hello").await;
    assert_eq!(client.bytes(5).await, b"hello");
    let report = mesh.admin_says("echo", "/candidate", |report| report["sampled"] == 1).await;
    let [cut] = changes(&report, "allowed-to-refused")[..] else { panic!("{report:#}") };
    assert_eq!(
        (&cut["live"]["reason"], &cut["examples"][0]["protocol"]),
        (&"no-policy".into(), &"tcp".into())
    );
    drop(client);
    mesh.stop().await;
}

#[tokio::test]
async fn a_dry_run_policy_is_heard_in_records_and_metrics() {
    const DRY_RUN: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: later, namespace: bookinfo, annotations: {istio.io/dry-run: 'true'}}
spec:
  selector: {matchLabels: {app: ratings}}
  action: DENY
  rules: [{to: [{operation: {paths: [/ratings/*]}}]}]
";
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).policy(DRY_RUN).start().await;
    assert_eq!(mesh.get("/ratings/1").await.status, 200);
    assert_eq!(mesh.get("/other").await.status, 200);
    let metrics = mesh.metrics("ratings").await;
    let wanted = "writ_shadow_total{outcome=\"deny\",reason=\"matched-deny\",\
                  policy_kind=\"AuthorizationPolicy\",policy_namespace=\"bookinfo\",policy_name=\"later\",rule=\"0\"} 1";
    assert!(metrics.lines().any(|line| line == wanted), "{metrics}");
    let records = mesh.stop().await;
    let shadow = &records.of("inbound", "/ratings/1").json()["shadow"][0];
    assert_eq!((&shadow["outcome"], &shadow["policy"]["name"]), (&"deny".into(), &"later".into()));
    assert!(records.of("inbound", "/other").json().get("shadow").is_none());
}

#[tokio::test]
async fn coverage_names_the_rules_that_nothing_met_and_what_nobody_decided() {
    let app = App::echo().await;
    let other = App::echo().await;
    let mesh = World::new()
        .server(Server::new("ratings", &app))
        .server(Server::new("details", &other))
        .policy(LIVE)
        .start()
        .await;
    assert_eq!(ask(&mesh).await, [200, 200, 200, 403]);
    let hits = |coverage: &Value, list: &str| -> Vec<(u64, u64)> {
        let rules = coverage[list].as_array().unwrap().iter();
        rules.map(|rule| (rule["rule"].as_u64().unwrap(), rule["hits"].as_u64().unwrap_or(0))).collect()
    };
    let coverage = mesh.admin_says("ratings", "/coverage", |coverage| hits(coverage, "hit").len() == 2).await;
    assert_eq!(hits(&coverage, "hit"), [(0, 1), (1, 2)]);
    assert_eq!(hits(&coverage, "never_hit"), [(2, 0)]);
    assert_eq!(coverage["no_policy"], Value::Array(Vec::new()));
    let metrics = mesh.metrics("ratings").await;
    for wanted in [
        "writ_policy_never_hit{policy_kind=\"AuthorizationPolicy\",policy_namespace=\"bookinfo\",policy_name=\"readers\",rule=\"2\"} 1",
        "writ_policy_rules{policy_kind=\"AuthorizationPolicy\",state=\"never-hit\"} 1",
        "writ_policy_rules{policy_kind=\"AuthorizationPolicy\",state=\"hit\"} 2",
    ] {
        assert!(metrics.lines().any(|line| line == wanted), "no {wanted} in {metrics}");
    }

    let mut client = mesh.pki.caller("reviews").connect(mesh.inbound("details")).await;
    assert_eq!(client.get("/details/1", "").await.status, 200);
    let gap =
        mesh.admin_says("details", "/coverage", |coverage| coverage["no_policy"][0]["count"] == 1).await;
    assert_eq!(gap["no_policy"][0]["service"], "details.bookinfo.svc.cluster.local:9080");
    mesh.stop().await;
}
