//! What `/explain` says about a request is what its record says: the same stage, reason, policy and checks.

use tests::{App, Client, Mesh, Record, Server, World};

const MORE_POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: canary-only, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  action: DENY
  rules:
  - to: [{operation: {paths: [/ratings/canary]}}]
    when: [{key: 'request.headers[x-canary]', notValues: ['yes']}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: internal, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  rules:
  - from: [{source: {namespaces: [bookinfo]}}]
    to: [{operation: {methods: [POST], paths: [/internal/*]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: ratings, namespace: bookinfo}
spec:
  parentRefs: [{group: '', kind: Service, name: ratings, port: 9080}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /}}]
    backendRefs: [{name: ratings-v1, port: 9080}]
  - matches: [{path: {type: PathPrefix, value: /broken}}]
    backendRefs: [{name: missing, port: 9080}]
";

async fn mesh(app: &App) -> Mesh {
    World::new()
        .service("ratings")
        .server(Server::new("ratings-v1", app).of("ratings"))
        .policy(crate::policy::POLICIES)
        .policy(MORE_POLICIES)
        .start()
        .await
}

type Headers = &'static [(&'static str, &'static str)];

#[track_caller]
fn assert_explained(what: &str, record: &Record, explained: &Record) {
    assert_eq!(explained.decision(), record.decision(), "{what}");
    assert_eq!(explained.text("/decision/policy/digest"), record.text("/decision/policy/digest"), "{what}");
    assert_eq!(explained.route(), record.route(), "{what}");
    assert_eq!(explained.text("/destination/service"), record.text("/destination/service"), "{what}");
    assert_eq!(explained.text("/config/digest"), record.text("/config/digest"), "{what}");
    match record.side() {
        "inbound" => assert_eq!(explained.checks(), record.checks(), "{what}"),
        // What a hop proves is known when there is one.
        _ => assert_eq!(explained.checks()[2..], record.checks()[2..], "{what}"),
    }
    if record.text("/decision/outcome") == "deny" {
        assert_eq!((explained.status(), explained.ended()), (record.status(), record.ended()), "{what}");
    }
}

#[tokio::test]
async fn of_requests_through_the_pair() {
    let app = App::echo().await;
    let mesh = mesh(&app).await;
    let requests: [(&str, &str, Headers, u16); 9] = [
        ("GET", "/ratings/1", &[], 200),
        ("GET", "/ratings/embargoed/1", &[], 403),
        ("GET", "/metrics", &[], 403),
        ("PUT", "/ratings/2", &[], 403),
        ("POST", "/internal/rebuild", &[], 200),
        ("GET", "/ratings/canary", &[("x-canary", "yes")], 200),
        ("POST", "/ratings/canary", &[("x-canary", "no")], 403),
        ("GET", "/ratings/../metrics/x", &[], 403),
        ("GET", "/broken/1", &[], 500),
    ];
    let mut client = mesh.client().await;
    for (method, path, headers, status) in requests {
        let what = format!("{method} {path} {headers:?}");
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        client
            .send(format!(
                "{method} {path} HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 0\r\n{lines}\r\n"
            ))
            .await;
        assert_eq!(client.reply().await.status, status, "{what}");
        let outbound =
            mesh.record(&what, |record| record.side() == "outbound" && asks(record, method, path)).await;
        assert_explained(&what, &outbound, &mesh.explain(&outbound, headers).await);
        if status != 500 {
            let inbound = mesh.record(&what, |record| record.text("/previous") == outbound.id()).await;
            assert_explained(&what, &inbound, &mesh.explain(&inbound, headers).await);
        }
    }
    mesh.stop().await;
}

fn asks(record: &Record, method: &str, path: &str) -> bool {
    record.text("/request/method") == method && record.path() == path
}

#[tokio::test]
async fn of_a_plaintext_request() {
    let app = App::echo().await;
    let mesh = mesh(&app).await;
    assert_eq!(Client::connect(mesh.inbound("ratings-v1")).await.get("/ratings/1", "").await.status, 403);
    let record = mesh.record("the record", |record| record.side() == "inbound").await;
    assert_explained("plaintext", &record, &mesh.explain(&record, &[]).await);
    mesh.stop().await;
}

#[tokio::test]
async fn names_what_came_near_when_nothing_allowed() {
    let app = App::echo().await;
    let mesh = mesh(&app).await;
    assert_eq!(mesh.get("/metrics").await.status, 403);
    let record = mesh.record("the record", |record| record.side() == "inbound").await;
    let explained = mesh.explain(&record, &[]).await;
    let near = explained.json()["considered"]["policies"].as_array().unwrap();
    let names: Vec<_> = near.iter().map(|near| near["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["ratings-viewer", "internal"]);
    assert!(near[0]["failed"].as_str().unwrap().contains("/metrics"), "{near:?}");
    mesh.stop().await;
}
