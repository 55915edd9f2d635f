//! Who may do what: by mTLS identity, by rule, by default; and what the records of both sides say.

use http::Response;
use tests::{App, Client, Server, World};

/// STRICT everywhere; productpage may GET `/ratings/*`, nobody `/ratings/embargoed/*`.
pub const POLICIES: &str = include_str!("policy.yaml");

/// The same without the first two.
pub const DENY_EMBARGOED: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: embargo, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  action: DENY
  rules: [{to: [{operation: {paths: [/ratings/embargoed/*]}}]}]
";

/// What a sidecar says of a call that reached its server by mTLS.
const DECIDED_BY_SERVER: [&str; 5] = [
    "pass mtls",
    "pass svid-verified",
    "not-applicable decided-by-server",
    "not-applicable decided-by-server",
    "not-applicable decided-by-server",
];

async fn ratings(app: &App) -> tests::Mesh {
    World::new().server(Server::new("ratings", app)).policy(POLICIES).start().await
}

#[tokio::test]
async fn a_matching_allow_rule_allows_and_is_named() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let reply = mesh.get("/ratings/1").await;
    assert_eq!((reply.status, reply.text()), (200, "hello"));

    let records = mesh.stop().await;
    let (outbound, inbound) = records.pair("/ratings/1");
    assert_eq!(outbound.decision(), "allow at route: decided-by-server");
    assert_eq!(outbound.checks(), DECIDED_BY_SERVER);
    assert_eq!(
        inbound.decision(),
        "allow at authorize: matched-allow by AuthorizationPolicy bookinfo/ratings-viewer rule 0"
    );
    assert_eq!(
        inbound.checks(),
        [
            "pass mtls by PeerAuthentication istio-system/default",
            "pass svid-verified",
            "pass matched-allow by AuthorizationPolicy bookinfo/ratings-viewer rule 0",
            "not-required no-request-authentication",
            "not-required no-user-condition",
        ]
    );
    assert_eq!(inbound.text("/source/identity"), "spiffe://cluster.local/ns/bookinfo/sa/productpage");
    assert_eq!(inbound.text("/destination/service"), "ratings.bookinfo.svc.cluster.local:9080");
    for record in [outbound, inbound] {
        assert_eq!((record.status(), record.ended().as_str()), (200, "complete at relay"));
        assert_eq!((record.number("/request/bytes"), record.number("/response/bytes")), (0, 5));
        assert_eq!(record.attempts(), ["ok"]);
    }
}

#[tokio::test]
async fn a_matching_deny_rule_denies_and_is_named() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let reply = mesh.get("/ratings/embargoed/1").await;
    assert_eq!((reply.status, reply.text()), (403, "RBAC: access denied"));
    assert_eq!(app.requests(), 0);

    let records = mesh.stop().await;
    let (outbound, inbound) = records.pair("/ratings/embargoed/1");
    assert_eq!(
        reply.header("x-writ-decision-id"),
        Some(inbound.id()),
        "the caller can ask about its refusal"
    );
    assert_eq!(
        inbound.decision(),
        "deny at authorize: matched-deny by AuthorizationPolicy bookinfo/embargo rule 0"
    );
    assert_eq!(
        inbound.check("service-authorization"),
        "fail matched-deny by AuthorizationPolicy bookinfo/embargo rule 0"
    );
    assert_eq!(inbound.check("user-authorization"), "not-reached not-reached");
    assert_eq!((inbound.status(), inbound.ended().as_str()), (403, "matched-deny at authorize"));
    assert!(inbound.attempts().is_empty());
    // The caller's side did its part: that the server said no is an answer like any other.
    assert_eq!((outbound.status(), outbound.ended().as_str()), (403, "complete at relay"));
    assert_eq!(outbound.checks(), DECIDED_BY_SERVER);
}

#[tokio::test]
async fn what_nothing_allows_is_denied_by_nobody() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let reply = mesh.get("/metrics").await;
    assert_eq!(reply.status, 403);
    assert_eq!(app.requests(), 0);

    let records = mesh.stop().await;
    let (_, inbound) = records.pair("/metrics");
    assert_eq!(inbound.decision(), "deny at authorize: no-allow-matched");
    assert_eq!(inbound.check("service-authorization"), "fail no-allow-matched");
    assert_eq!(inbound.ended(), "no-allow-matched at authorize");
}

#[tokio::test]
async fn without_an_authorization_policy_nothing_decided_and_the_record_says_so() {
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).start().await;
    assert_eq!(mesh.get("/").await.status, 200);

    let records = mesh.stop().await;
    let (_, inbound) = records.pair("/");
    assert_eq!(inbound.decision(), "allow at authorize: no-policy");
    assert_eq!(
        inbound.checks(),
        [
            "pass mtls",
            "pass svid-verified",
            "not-required no-policy",
            "not-required no-request-authentication",
            "not-required no-user-condition",
        ]
    );
}

#[tokio::test]
async fn plaintext_under_strict_is_refused_by_the_policy_that_demands_mtls() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let reply = Client::connect(mesh.inbound("ratings")).await.get("/ratings/1", "").await;
    assert_eq!(reply.status, 403);
    assert_eq!(app.connections(), 0);

    let records = mesh.stop().await;
    let inbound = records.of("inbound", "/ratings/1");
    assert_eq!(
        inbound.decision(),
        "deny at admit: plaintext-under-strict by PeerAuthentication istio-system/default"
    );
    assert_eq!(
        inbound.checks(),
        [
            "fail plaintext-under-strict by PeerAuthentication istio-system/default",
            "not-reached not-reached",
            "not-reached not-reached",
            "not-reached not-reached",
            "not-reached not-reached",
        ]
    );
    assert_eq!((inbound.text("/source/identity"), inbound.text("/previous")), ("", ""));
}

#[tokio::test]
async fn only_a_verified_caller_can_name_the_previous_record() {
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).start().await;
    let forged = "X-Writ-Decision-Id: 01M85QJ9AEV4RTX6RP2K77WE83\r\n";
    let reply = Client::connect(mesh.inbound("ratings")).await.get("/plain", forged).await;
    assert_eq!(reply.status, 200);
    assert_eq!(mesh.client().await.get("/mesh", forged).await.status, 200);

    let records = mesh.stop().await;
    assert_eq!(records.of("inbound", "/plain").text("/previous"), "");
    records.pair("/mesh");
}

/// A canary, nine to one.
const SPLIT: &str = include_str!("split.yaml");
const SPLIT_REQUESTS: usize = 3_000;

#[tokio::test]
async fn a_split_is_kept_within_a_point() {
    let [v1, v2] = ["v1", "v2"].map(|version| async move {
        App::answering(move |_| Response::new(bytes::Bytes::from_static(version.as_bytes()))).await
    });
    let (v1, v2) = (v1.await, v2.await);
    let mesh = World::new()
        .service("ratings")
        .server(Server::new("ratings-v1", &v1).of("ratings"))
        .server(Server::new("ratings-v2", &v2).of("ratings"))
        .policy(SPLIT)
        .policy(POLICIES)
        .start()
        .await;
    let mut client = mesh.client().await;
    for _ in 0..SPLIT_REQUESTS {
        assert_eq!(client.get("/ratings/1", "").await.status, 200);
    }
    let records = mesh.stop().await;
    let outbound = records.side("outbound");
    assert_eq!((outbound.len(), records.side("inbound").len()), (SPLIT_REQUESTS, SPLIT_REQUESTS));
    let to_v2 =
        outbound.iter().filter(|record| record.text("/route/backend").starts_with("ratings-v2")).count();
    let share = to_v2 as f64 * 100.0 / SPLIT_REQUESTS as f64;
    assert!((9.0..=11.0).contains(&share), "{share} % went to v2");
    assert_eq!((v1.requests(), v2.requests()), (SPLIT_REQUESTS - to_v2, to_v2), "the records tell the truth");
    for record in outbound {
        assert_eq!(record.route(), "HTTPRoute bookinfo/ratings rule 0");
        let weight = if record.text("/route/backend").contains("v2") { "10/100" } else { "90/100" };
        assert_eq!(record.text("/route/weight"), weight);
    }
}
