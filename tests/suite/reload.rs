//! Changes of configuration under load: no request fails, none is decided by two versions, and nobody's mistake is
//! another's outage.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Response;
use serde_json::Value;
use tests::{App, Mesh, Record, Server, World, soon};
use tokio::sync::watch;

const REQUESTS: usize = 50_000;
const RELOADS: u32 = 20;
const BAD: [u32; 2] = [7, 14];
/// Services whose endpoints all move with every second reload: in all a thousand changes of endpoints.
const OTHERS: usize = 100;
const CLIENTS: usize = 8;

/// One version of what people write: everything in it tells the version.
fn policy(version: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: ratings, namespace: bookinfo}}
spec:
  parentRefs: [{{group: '', kind: Service, name: ratings, port: 9080}}]
  rules:
  - filters:
    - {{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-request-version, value: '{version}'}}]}}}}
    - {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-response-version, value: '{version}'}}]}}}}
    backendRefs: [{{name: ratings-v1, port: 9080, weight: {version}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: allow-{version}, namespace: bookinfo}}
spec: {{selector: {{matchLabels: {{app: ratings}}}}, rules: [{{}}]}}
"
    )
}

/// An update of the same objects with a mistake in each.
fn mistaken(version: u32) -> String {
    policy(version).replace("backendRefs", "backendRef").replace("rules: [{}]", "rule: [{}]")
}

/// What records say about versions, by proxy and its version of the configuration.
#[derive(Default)]
struct Versions {
    by_config: BTreeMap<(String, u64), Vec<String>>,
    records: BTreeMap<String, usize>,
    failed: usize,
}

impl Versions {
    fn look_at(&mut self, record: &Record) {
        *self.records.entry(record.side().to_owned()).or_default() += 1;
        self.failed += usize::from(record.status() != 200);
        let decided_by = match record.side() {
            "outbound" => record.text("/route/weight").split('/').next().unwrap_or_default().to_owned(),
            _ => record.text("/decision/policy/name").trim_start_matches("allow-").to_owned(),
        };
        let key = (record.text("/proxy/workload").to_owned(), record.number("/config/version"));
        let seen = self.by_config.entry(key).or_default();
        if !seen.contains(&decided_by) {
            seen.push(decided_by);
        }
    }
}

/// Clients that ask as fast as they can until told to stop.
struct Load {
    answered: Arc<AtomicUsize>,
    /// Version and application of the last answer.
    last: watch::Receiver<(u32, String)>,
    stop: watch::Sender<bool>,
    clients: tokio::task::JoinSet<()>,
}

impl Load {
    fn start(mesh: &Mesh) -> Self {
        let (answered, (seen, last), stop) = (
            Arc::<AtomicUsize>::default(),
            watch::channel(<(u32, String)>::default()),
            watch::Sender::new(false),
        );
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..CLIENTS {
            let (answered, seen, stopped) = (Arc::clone(&answered), seen.clone(), stop.subscribe());
            let entrance = mesh.entrance;
            clients.spawn(async move {
                let mut client = tests::Client::connect(entrance).await;
                while !*stopped.borrow() {
                    let reply = client.get("/ratings/1", "").await;
                    assert_eq!(reply.status, 200, "{reply:?}");
                    let version = reply.header("x-response-version").expect("a version");
                    assert_eq!(reply.header("x-seen-version"), Some(version), "one request, two versions");
                    answered.fetch_add(1, Ordering::Relaxed);
                    seen.send_replace((version.parse().expect("a number"), reply.text().to_owned()));
                }
            });
        }
        Self { answered, last, stop, clients }
    }

    async fn sees(&mut self, what: &str, wanted: impl Fn(&(u32, String)) -> bool) {
        let seen = soon(what, self.last.wait_for(|last| wanted(last))).await.is_ok();
        assert!(seen, "the clients ended before {what}");
    }

    async fn has_answered(&mut self, count: usize) {
        let wanted = self.last.wait_for(|_| self.answered.load(Ordering::Relaxed) >= count);
        let enough = tokio::time::timeout(3 * tests::PATIENCE, wanted).await;
        assert!(enough.is_ok_and(|enough| enough.is_ok()), "the clients ended or are too slow");
    }

    async fn stop(mut self) -> usize {
        self.stop.send_replace(true);
        while let Some(client) = self.clients.join_next().await {
            client.expect("no request failed");
        }
        self.answered.load(Ordering::Relaxed)
    }
}

/// Says who it is, and which version its request came by.
async fn versioned(name: &'static str) -> App {
    App::answering(move |seen| {
        let version = seen.values("x-request-version").concat();
        Response::builder()
            .header("x-seen-version", version)
            .body(Bytes::from_static(name.as_bytes()))
            .unwrap()
    })
    .await
}

fn others(moved: u32) -> String {
    let mut yaml = String::new();
    for number in 0..OTHERS {
        write!(
            yaml,
            "apiVersion: v1
kind: Service
metadata: {{name: other-{number}, namespace: bookinfo}}
spec: {{ports: [{{name: port, port: 9080}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: other-{number}, namespace: bookinfo, labels: {{kubernetes.io/service-name: other-{number}}}}}
addressType: IPv4
ports: [{{name: port, port: 9080}}]
endpoints: [{{addresses: [10.{moved}.0.{number}]}}]
---
"
        )
        .unwrap();
    }
    yaml
}

#[tokio::test]
async fn under_load_no_request_fails_and_none_is_decided_by_two_versions() {
    let (a, b) = (versioned("a").await, versioned("b").await);
    let versions = Arc::<Mutex<Versions>>::default();
    let looking = Arc::clone(&versions);
    let mesh = World::new()
        .service("ratings")
        .server(Server::new("ratings-v1", &a).of("ratings"))
        .server(Server::new("ratings-v2", &b).of("ratings"))
        .policy(&policy(1))
        .policy(&others(1))
        .tap(move |record| looking.lock().unwrap().look_at(record))
        .start()
        .await;
    let mut load = Load::start(&mesh);
    load.sees("the first version", |(version, _)| *version == 1).await;

    for version in 2..=RELOADS + 1 {
        if BAD.contains(&version) {
            mesh.config().write("policy-0.yaml", &mistaken(version - 1));
            mesh.config_is("the mistake", |config| kept(config, "HTTPRoute", "ratings")).await;
        } else {
            mesh.config().write("policy-0.yaml", &policy(version));
            load.sees("the next version", |(seen, _)| *seen == version).await;
            let name = format!("allow-{version}");
            mesh.config_is("the next version", |config| {
                state(config, "AuthorizationPolicy", &name) == "accepted"
            })
            .await;
        }
        if version % 2 == 0 {
            let to_b = version % 4 == 0;
            let server = mesh.inbound(if to_b { "ratings-v2" } else { "ratings-v1" });
            mesh.config().write("endpoints.yaml", &mesh.endpoints_with("ratings-v1", &[server]));
            mesh.config().write("policy-1.yaml", &others(version));
            load.sees("the moved endpoint", |(_, app)| app == if to_b { "b" } else { "a" }).await;
        }
    }
    load.has_answered(REQUESTS).await;
    let answered = load.stop().await;
    drop(mesh.stop().await);

    let versions = versions.lock().unwrap();
    assert_eq!(
        (versions.failed, &versions.records),
        (0, &BTreeMap::from([("inbound".into(), answered), ("outbound".into(), answered)]))
    );
    for (config, decided_by) in &versions.by_config {
        assert_eq!(decided_by.len(), 1, "{config:?} decided by {decided_by:?}");
    }
    // Endpoints moved a thousand times and made no new version of what people wrote; nor did mistakes.
    let outbound = versions.by_config.keys().filter(|(proxy, _)| proxy == "bookinfo/productpage").count();
    assert_eq!(outbound, RELOADS as usize + 1 - BAD.len(), "{:#?}", versions.by_config.keys());
}

/// What became of an object.
fn state<'c>(config: &'c Value, kind: &str, name: &str) -> &'c str {
    let verdicts = config["verdicts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = verdicts.iter().find(|verdict| verdict["kind"] == kind && verdict["name"] == name);
    found.and_then(|verdict| verdict["state"].as_str()).unwrap_or_default()
}

fn kept(config: &Value, kind: &str, name: &str) -> bool {
    state(config, kind, name) == "kept-last-good"
}

const ALLOW_GET: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: viewer, namespace: bookinfo}
spec: {selector: {matchLabels: {app: ratings}}, rules: [{to: [{operation: {methods: [GET]}}]}]}
";

#[tokio::test]
async fn a_bad_update_keeps_the_last_good_version_of_its_object_alone() {
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).policy(ALLOW_GET).start().await;
    assert_eq!(mesh.get("/before").await.status, 200);
    mesh.config().write("policy-0.yaml", &ALLOW_GET.replace("methods", "method"));
    // Another team's object changes in the meantime, and is in force.
    mesh.config().write("other-team.yaml", crate::policy::DENY_EMBARGOED);
    mesh.config_is("the mistake", |config| kept(config, "AuthorizationPolicy", "viewer")).await;
    mesh.config_is("the other team's", |config| {
        state(config, "AuthorizationPolicy", "embargo") == "accepted"
    })
    .await;
    assert_eq!(mesh.get("/after").await.status, 200);
    assert_eq!(mesh.get("/ratings/embargoed/1").await.status, 403);

    let records = mesh.stop().await;
    let (before, after) = (records.pair("/before").1, records.pair("/after").1);
    assert_eq!(before.decision(), after.decision());
    assert_eq!(
        after.decision(),
        "allow at authorize: matched-allow by AuthorizationPolicy bookinfo/viewer rule 0"
    );
    assert_eq!(before.text("/decision/policy/digest"), after.text("/decision/policy/digest"));
}

#[tokio::test]
async fn a_bad_new_security_object_fails_closed_for_what_it_selects_and_no_further() {
    const BAD_ALLOW: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: typo, namespace: bookinfo}
spec: {selector: {matchLabels: {app: ratings}}, rules: [{to: [{operation: {methodz: [GET]}}]}]}
";
    let (ratings, details) = (App::echo().await, App::echo().await);
    let mesh = World::new()
        .server(Server::new("ratings", &ratings))
        .server(Server::new("details", &details))
        .policy(BAD_ALLOW)
        .start()
        .await;
    let refused = mesh.get("/ratings").await;
    assert_eq!(refused.status, 403);
    assert!(!format!("{refused:?}").contains("methodz"), "{refused:?}");
    let mut client = mesh.client().await;
    client.send("GET /details HTTP/1.1\r\nHost: details:9080\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 200);
    let records = mesh.stop().await;
    assert_eq!(
        records.pair("/ratings").1.decision(),
        "deny at authorize: quarantined-policy by AuthorizationPolicy bookinfo/typo"
    );
    let detail = records.pair("/ratings").1.detail();
    assert!(detail.contains("policy-0.yaml:5: spec.rules[0].to[0].operation.methodz: "), "{detail}");
    assert_eq!(records.pair("/details").1.decision(), "allow at authorize: no-policy");
}

#[tokio::test]
async fn a_policy_holds_for_the_next_request_of_an_open_connection() {
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).start().await;
    let mut client = mesh.client().await;
    assert_eq!(client.get("/ratings/embargoed/1", "").await.status, 200);
    mesh.config().write("late.yaml", crate::policy::DENY_EMBARGOED);
    mesh.config_is("the policy", |config| state(config, "AuthorizationPolicy", "embargo") == "accepted")
        .await;
    assert_eq!(client.get("/ratings/embargoed/2", "").await.status, 403);
    let records = mesh.stop().await;
    let (first, second) = (records.pair("/ratings/embargoed/1").1, records.pair("/ratings/embargoed/2").1);
    assert_eq!(first.text("/source/address"), second.text("/source/address"), "the same connection");
    assert!(first.number("/config/version") < second.number("/config/version"));
}
