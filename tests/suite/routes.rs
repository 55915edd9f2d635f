//! Where requests go: HTTPRoute matches, filters and timeouts, and what is answered when there is nowhere to go.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use tests::{App, Mesh, Server, World};

/// A service of two versions, and an HTTPRoute for it with these rules.
async fn routed(v1: &App, v2: &App, rules: &str) -> Mesh {
    World::new()
        .service("ratings")
        .server(Server::new("ratings-v1", v1).of("ratings"))
        .server(Server::new("ratings-v2", v2).of("ratings"))
        .policy(&route(rules))
        .start()
        .await
}

fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: ratings, namespace: bookinfo}}
spec:
  parentRefs: [{{group: '', kind: Service, name: ratings, port: 9080}}]
  rules: [{rules}]
"
    )
}

async fn version(version: &'static str) -> App {
    App::answering(move |_| Response::new(Bytes::from_static(version.as_bytes()))).await
}

#[tokio::test]
async fn the_most_specific_match_takes_the_request() {
    let (v1, v2) = (version("v1").await, version("v2").await);
    let mesh = routed(
        &v1,
        &v2,
        "{matches: [{path: {type: PathPrefix, value: /}}], backendRefs: [{name: ratings-v1, port: 9080}]},
         {matches: [{path: {type: PathPrefix, value: /v2}}, {headers: [{name: x-canary, value: 'yes'}]},
                    {queryParams: [{name: v, value: '2'}]}, {method: PUT}],
          backendRefs: [{name: ratings-v2, port: 9080}]},
         {matches: [{path: {type: Exact, value: /v2/not}}], backendRefs: [{name: ratings-v1, port: 9080}]}",
    )
    .await;
    let mut client = mesh.client().await;
    for (path, headers, expected, rule) in [
        ("/", "", "v1", 0),
        ("/v2", "", "v2", 1),
        ("/v2/", "", "v2", 1),
        ("/v2/deeper", "", "v2", 1),
        ("/v22", "", "v1", 0),
        ("/v2/not", "", "v1", 2),
        ("/canary", "X-Canary: yes\r\n", "v2", 1),
        ("/no-canary", "X-Canary: no\r\n", "v1", 0),
        ("/query?v=2", "", "v2", 1),
        ("/dots/../v2", "", "v2", 1),
    ] {
        let reply = client.get(path, headers).await;
        assert_eq!((reply.status, reply.text()), (200, expected), "{path}");
        let record =
            mesh.record(path, |record| record.side() == "outbound" && path_of(record.path(), path)).await;
        assert_eq!(record.route(), format!("HTTPRoute bookinfo/ratings rule {rule}"), "{path}");
    }
    client.send("PUT /put HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.reply().await.text(), "v2");
    mesh.stop().await.pair("/put");
}

/// Records show a path as it was asked, without its query.
fn path_of(recorded: &str, asked: &str) -> bool {
    asked.split('?').next() == Some(recorded)
}

#[tokio::test]
async fn filters_edit_what_goes_and_what_comes() {
    let app = version("v1").await;
    let mesh = routed(
        &app,
        &app,
        "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: new}],
           add: [{name: x-added, value: two}], remove: [x-gone]}},
          {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-answer, value: edited}]}}],
          backendRefs: [{name: ratings-v1, port: 9080}]}",
    )
    .await;
    let reply =
        mesh.client().await.get("/", "X-Set: old\r\nX-Added: one\r\nX-Gone: 1\r\nX-Kept: 1\r\n").await;
    assert_eq!(reply.header("x-answer"), Some("edited"));
    let seen = app.only();
    assert_eq!(seen.values("x-set"), ["new"]);
    assert_eq!(seen.values("x-added"), ["one", "two"]);
    assert_eq!((seen.values("x-gone").len(), seen.values("x-kept")), (0, vec!["1"]));
    mesh.stop().await.pair("/");
}

#[tokio::test]
async fn headers_of_a_hop_end_with_it() {
    let app = App::answering(|_| {
        let response = Response::builder()
            .header("connection", "x-backend-hop")
            .header("x-backend-hop", "1")
            .header("keep-alive", "timeout=5")
            .header("x-end", "1");
        response.body(Bytes::new()).unwrap()
    })
    .await;
    let mesh = World::new().server(Server::new("ratings", &app)).start().await;
    let hop = "Connection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\nProxy-Connection: keep-alive\r\n\
               TE: trailers, gzip\r\nX-Envoy-Internal: true\r\nX-Writ-Anything: 1\r\nX-End: 1\r\n";
    let reply = mesh.client().await.get("/", hop).await;
    assert_eq!(reply.header("x-end"), Some("1"));
    for gone in ["x-backend-hop", "keep-alive"] {
        assert_eq!(reply.header(gone), None, "{gone} came back: {reply:?}");
    }
    let seen = app.only();
    for gone in ["x-hop", "keep-alive", "proxy-connection", "x-envoy-internal", "x-writ-anything"] {
        assert!(seen.values(gone).is_empty(), "{gone} reached the application: {seen:?}");
    }
    assert_eq!((seen.values("te"), seen.values("x-end")), (vec!["trailers"], vec!["1"]));
    mesh.stop().await.pair("/");
}

#[tokio::test]
async fn a_request_that_no_rule_matches_is_not_found() {
    let app = version("v1").await;
    let mesh = routed(
        &app,
        &app,
        "{matches: [{path: {type: PathPrefix, value: /known}}], backendRefs: [{name: ratings-v1, port: 9080}]}",
    )
    .await;
    assert_eq!(mesh.get("/unknown").await.status, 404);
    let records = mesh.stop().await;
    let outbound = records.only("outbound");
    assert_eq!(outbound.decision(), "deny at route: no-route");
    assert_eq!((outbound.status(), outbound.ended().as_str()), (404, "no-route at route"));
    assert_eq!(app.connections(), 0);
}

const SHARED_REQUESTS: usize = 160;

#[tokio::test]
async fn an_invalid_backend_keeps_its_share_and_answers_500() {
    let app = version("v1").await;
    let mesh = routed(
        &app,
        &app,
        "{backendRefs: [{name: ratings-v1, port: 9080, weight: 1}, {name: missing, port: 9080, weight: 1}]}",
    )
    .await;
    let mut client = mesh.client().await;
    let mut failed = 0;
    for _ in 0..SHARED_REQUESTS {
        match client.get("/", "").await.status {
            200 => {}
            500 => failed += 1,
            status => panic!("{status}"),
        }
    }
    // A split is even by the dozen, not by the request.
    assert!((SHARED_REQUESTS / 2).abs_diff(failed) <= SHARED_REQUESTS / 10, "{failed} of {SHARED_REQUESTS}");
    let records = mesh.stop().await;
    let refused = records.side("outbound").into_iter().filter(|record| record.status() == 500);
    assert_eq!(refused.clone().count(), failed);
    for record in refused {
        assert_eq!(record.ended(), "invalid-backend at split");
        assert_eq!(record.decision(), "deny at split: invalid-backend by HTTPRoute bookinfo/ratings rule 0");
        assert!(record.detail().contains("missing"), "{}", record.detail());
        assert_eq!(record.route(), "HTTPRoute bookinfo/ratings rule 0");
    }
}

#[tokio::test]
async fn what_leads_nowhere_is_refused_and_says_why() {
    let app = version("v1").await;
    let mesh = routed(&app, &app, "{backendRefs: [{name: ratings-v1, port: 9080, weight: 0}]}").await;
    let mut client = mesh.client().await;
    assert_eq!(client.get("/", "").await.status, 500);
    client.send("GET /port HTTP/1.1\r\nHost: ratings\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 502);
    let records = mesh.stop().await;
    let [weightless, portless] = records.side("outbound")[..] else { panic!("{records:#?}") };
    assert_eq!(weightless.decision(), "deny at split: invalid-backend by HTTPRoute bookinfo/ratings rule 0");
    assert_eq!(weightless.detail(), "no backendRef has a weight of more than 0: ratings-v1:9080");
    assert_eq!(portless.decision(), "deny at route: unknown-destination");
    assert_eq!(portless.detail(), "bookinfo/ratings has no port 80, only 9080");
}

#[tokio::test]
async fn a_service_without_endpoints_is_unavailable() {
    let mesh = World::new().service("ratings").start().await;
    assert_eq!(mesh.get("/").await.status, 503);
    let records = mesh.stop().await;
    let outbound = records.only("outbound");
    assert_eq!((outbound.status(), outbound.ended().as_str()), (503, "no-endpoints at pick"));
    assert!(outbound.attempts().is_empty());
}

#[tokio::test]
async fn a_destination_that_no_service_owns_follows_the_mesh_setting() {
    const REGISTRY_ONLY: &str = "
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {name: default, namespace: istio-system}
spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}
";
    let app = App::echo().await;
    let mesh = World::new().start().await;
    let ask = |to: String| format!("GET / HTTP/1.1\r\nHost: {to}\r\n\r\n");
    let mut client = mesh.client().await;
    client.send(ask(app.address().to_string())).await;
    assert_eq!(client.reply().await.status, 200);
    client.send(ask("nowhere.example:80".into())).await;
    assert_eq!(client.reply().await.status, 502);
    let records = mesh.stop().await;
    let [known, unknown] = records.side("outbound")[..] else { panic!("two records: {records:#?}") };
    assert_eq!(known.decision(), "allow at route: no-policy");
    assert_eq!(unknown.ended(), "unknown-destination at route");

    let mesh = World::new().policy(REGISTRY_ONLY).start().await;
    let mut client = mesh.client().await;
    client.send(ask(app.address().to_string())).await;
    assert_eq!(client.reply().await.status, 502);
    assert_eq!(mesh.stop().await.only("outbound").ended(), "unknown-destination at route");
}

#[tokio::test]
async fn a_request_timeout_ends_all_attempts() {
    let app = App::silent().await;
    let mesh = routed(
        &app,
        &app,
        "{timeouts: {request: 300ms, backendRequest: 200ms}, retry: {attempts: 5, codes: [503]},
          backendRefs: [{name: ratings-v1, port: 9080}]}",
    )
    .await;
    let started = Instant::now();
    assert_eq!(mesh.get("/").await.status, 504);
    assert!(started.elapsed() >= Duration::from_millis(300));
    let records = mesh.stop().await;
    let outbound = records.only("outbound");
    assert_eq!((outbound.status(), outbound.ended().as_str()), (504, "request-timeout at send"));
    assert_eq!(outbound.attempts()[0], "backend-timeout", "a backend's timeout is retried: {outbound:?}");
}

#[tokio::test]
async fn a_backend_timeout_ends_one_attempt() {
    let app = App::silent().await;
    let mesh = routed(
        &app,
        &app,
        "{timeouts: {backendRequest: 200ms}, backendRefs: [{name: ratings-v1, port: 9080}]}",
    )
    .await;
    assert_eq!(mesh.get("/").await.status, 504);
    app.has_requests(1).await;
    let records = mesh.stop().await;
    let outbound = records.only("outbound");
    assert_eq!((outbound.status(), outbound.ended().as_str()), (504, "backend-timeout at send"));
    assert_eq!(outbound.attempts(), ["backend-timeout"]);
    // The server's sidecar was left by its caller while it waited for the application.
    let inbound = records.only("inbound");
    assert_eq!((inbound.status(), inbound.text("/ended/reason")), (0, "client-closed"));
}

#[tokio::test]
async fn a_retry_is_an_attempt_and_never_a_second_record() {
    let failing = App::answering(|_| Response::builder().status(503).body(Bytes::new()).unwrap()).await;
    let mesh = routed(
        &failing,
        &failing,
        "{retry: {attempts: 2, codes: [503]}, backendRefs: [{name: ratings-v1, port: 9080}]}",
    )
    .await;
    assert_eq!(mesh.get("/").await.status, 503);
    assert_eq!(failing.requests(), 3);
    let records = mesh.stop().await;
    let outbound = records.only("outbound");
    assert_eq!(outbound.attempts().len(), 3);
    assert_eq!(records.side("inbound").len(), 3, "each attempt was a request to the server's side");
}
