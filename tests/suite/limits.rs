//! Rate limits: what is counted together, what a caller learns of it, and that nothing passes uncounted.

use bytes::Bytes;
use fips::jws::Algorithm;
use serde_json::json;
use tests::protobuf::{self, Message};
use tests::{App, Client, H2Client, Issuer, Mesh, Record, Reply, Server, World, request};

/// A RateLimit for ratings with these rules.
fn limit(name: &str, rules: &str) -> String {
    format!(
        "
apiVersion: writ.dev/v1alpha1
kind: RateLimit
metadata: {{name: {name}, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  rules:
{rules}
"
    )
}

async fn mesh(app: &App, rules: &str) -> Mesh {
    World::new().server(Server::new("ratings", app)).policy(&limit("calls", rules)).start().await
}

/// `LIMIT / POLICY` of what a caller is told, without the time.
fn told(reply: &Reply) -> String {
    let header = |name: &str| reply.header(name).unwrap_or("none").to_owned();
    let limit = header("ratelimit");
    format!("{} / {}", limit.split(";t=").next().unwrap_or_default(), header("ratelimit-policy"))
}

/// Seconds until there is more, as a caller is told: these, or less by what the test took.
fn is_told_to_wait(reply: &Reply, seconds: u64) {
    let limit = reply.header("ratelimit").unwrap_or_default();
    let told = limit.split(";t=").nth(1).and_then(|seconds| seconds.parse().ok());
    assert!(told.is_some_and(|told: u64| told <= seconds && told + 5 >= seconds), "{limit}: {seconds}");
    if reply.status == 429 {
        assert_eq!(reply.header("retry-after").map(str::to_owned), told.map(|told| told.to_string()));
    }
}

const EXCEEDED: &str = "deny at limit: limit-exceeded by RateLimit bookinfo/calls rule 0";

#[tokio::test]
async fn each_identity_has_its_own_and_what_is_too_much_never_arrives() {
    let app = App::echo().await;
    let mesh = mesh(
        &app,
        "  - {name: per-caller, key: [source.principal], local: {requests: 10, per: 1h, burst: 2}}",
    )
    .await;
    for left in [1, 0] {
        let reply = mesh.get("/within").await;
        let expected = format!("\"per-caller\";r={left} / \"per-caller\";q=10;w=3600");
        assert_eq!((reply.status, told(&reply)), (200, expected));
        is_told_to_wait(&reply, 360);
        assert_eq!(reply.header("retry-after"), None);
    }
    let refused = mesh.get("/beyond").await;
    assert_eq!((refused.status, refused.text()), (429, "Too Many Requests"));
    assert_eq!(told(&refused), "\"per-caller\";r=0 / \"per-caller\";q=10;w=3600");
    is_told_to_wait(&refused, 360);
    let mut other = mesh.pki.caller("reviews").connect(mesh.inbound("ratings")).await;
    assert_eq!(other.get("/other", "").await.status, 200);
    // Who has no identity is one as well.
    for status in [200, 200, 429] {
        assert_eq!(Client::connect(mesh.inbound("ratings")).await.get("/nobody", "").await.status, status);
    }
    assert_eq!(app.requests(), 5);
    let metrics = mesh.metrics("ratings").await;
    let counted = metrics.lines().find(|line| line.contains("limit-exceeded") && line.contains("calls"));
    assert!(counted.is_some_and(|line| line.ends_with(" 2")), "{counted:?}");
    mesh.admin_says("ratings", "/coverage", |coverage| {
        coverage["hit"]
            .as_array()
            .unwrap()
            .iter()
            .any(|rule| rule["kind"] == "RateLimit" && rule["hits"] == 2)
    })
    .await;

    let records = mesh.stop().await;
    let record = records.of("inbound", "/beyond");
    assert_eq!((record.decision().as_str(), record.ended().as_str()), (EXCEEDED, "limit-exceeded at limit"));
    assert!(record.text("/decision/policy/digest").starts_with("sha256:"));
    assert_eq!(record.check("service-authorization"), "not-reached not-reached");
    assert_eq!(record.check("service-authentication"), "pass svid-verified");
    assert_eq!(records.of("inbound", "/other").decision(), "allow at authorize: no-policy");
}

#[tokio::test]
async fn a_header_s_value_counts_and_so_does_its_absence() {
    let app = App::echo().await;
    let rules = "  - {key: ['request.headers[X-Tenant]', request.path], local: {requests: 1, per: 1h}}";
    let mesh = mesh(&app, rules).await;
    let mut client = mesh.client().await;
    for (path, headers, status) in [
        ("/a", "X-Tenant: one\r\n", 200),
        ("/a", "X-Tenant: two\r\n", 200),
        ("/a", "X-Tenant: one\r\n", 429),
        ("/a", "X-Tenant: one\r\nX-Tenant: two\r\n", 200),
        ("/a", "", 200),
        ("/a", "", 429),
        ("/a", "X-Other: one\r\n", 429),
        ("/a", "X-Tenant: \r\n", 200),
        ("/b", "X-Tenant: one\r\n", 200),
        // One path in two forms.
        ("/./b", "X-Tenant: one\r\n", 429),
    ] {
        assert_eq!(client.get(path, headers).await.status, status, "{path} {headers}");
    }
    mesh.stop().await;
}

#[tokio::test]
async fn users_are_counted_by_their_claims_once_they_are_known() {
    let (app, issuer) = (App::echo().await, Issuer::start(Algorithm::Es256).await);
    let users = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: users, namespace: bookinfo}}\nspec:\n  \
         selector: {{matchLabels: {{app: ratings}}}}\n  jwtRules: [{{issuer: {}}}]\n",
        issuer.name()
    );
    let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: never, namespace: bookinfo}\nspec:\n  \
                selector: {matchLabels: {app: ratings}}\n  action: DENY\n  rules: [{to: [{operation: {paths: [/denied]}}]}]\n";
    let rules = "  - {key: ['request.auth.claims[org][id]'], local: {requests: 2, per: 1h}}";
    let world = World::new().server(Server::new("ratings", &app)).issuer(&issuer);
    let mesh = world.policy(&users).policy(deny).policy(&limit("calls", rules)).start().await;
    let token = |organisation: &str| {
        let mut claims = issuer.claims();
        claims["org"] = json!({ "id": organisation });
        issuer.token(&claims)
    };
    let get = async |path: &str, token: &str| {
        let header = format!("Authorization: Bearer {token}\r\n");
        mesh.client().await.get(path, &header).await
    };
    assert_eq!(get("/bad", "bad").await.status, 401, "and it takes nothing");
    assert_eq!(get("/a", &token("a")).await.status, 200);
    assert_eq!(get("/b", &token("b")).await.status, 200);
    // What is denied afterwards was counted.
    assert_eq!(get("/denied", &token("a")).await.status, 403);
    assert_eq!(get("/beyond", &token("a")).await.status, 429);
    assert_eq!(get("/b", &token("b")).await.status, 200);
    for status in [200, 200, 429] {
        assert_eq!(mesh.get("/no-user").await.status, status);
    }
    let records = mesh.stop().await;
    let record = records.of("inbound", "/beyond");
    assert_eq!(record.decision(), EXCEEDED);
    assert_eq!(
        record.check("user-authentication"),
        "pass jwt-verified by RequestAuthentication bookinfo/users rule 0"
    );
    assert_eq!(record.check("user-authorization"), "not-reached not-reached");
}

#[tokio::test]
async fn what_needs_no_user_is_counted_before_any_token_is_looked_at() {
    let (app, issuer) = (App::echo().await, Issuer::start(Algorithm::Es256).await);
    let users = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: users, namespace: bookinfo}}\nspec: {{jwtRules: [{{issuer: {}}}]}}\n",
        issuer.name()
    );
    let rules = "  - {key: [source.ip], local: {requests: 1, per: 1h}}";
    let world = World::new().server(Server::new("ratings", &app)).issuer(&issuer).policy(&users);
    let mesh = world.policy(&limit("calls", rules)).start().await;
    let bad = "Authorization: Bearer bad\r\n";
    assert_eq!(mesh.client().await.get("/1", bad).await.status, 401);
    assert_eq!(mesh.client().await.get("/2", bad).await.status, 429);
    let records = mesh.stop().await;
    assert_eq!(records.of("inbound", "/2").check("user-authentication"), "not-reached not-reached");
}

#[tokio::test]
async fn the_client_behind_a_trusted_forwarder_is_who_is_counted() {
    let app = App::echo().await;
    let settings = "apiVersion: writ.dev/v1alpha1\nkind: MeshSettings\nmetadata: {name: mesh}\nspec: {trustedForwarders: \
                    {identities: ['spiffe://cluster.local/ns/bookinfo/sa/gateway']}}\n";
    let rules = "  - {key: [remote.ip], local: {requests: 1, per: 1h}}";
    let world = World::new().server(Server::new("ratings", &app)).policy(settings);
    let mesh = world.policy(&limit("calls", rules)).start().await;
    let mut gateway = mesh.pki.caller("gateway").connect(mesh.inbound("ratings")).await;
    let mut other = mesh.pki.caller("other").connect(mesh.inbound("ratings")).await;
    let from = |address: &str| format!("X-Forwarded-For: {address}\r\n");
    assert_eq!(gateway.get("/", &from("192.0.2.1")).await.status, 200);
    assert_eq!(gateway.get("/", &from("192.0.2.1")).await.status, 429);
    assert_eq!(gateway.get("/", &from("192.0.2.2")).await.status, 200);
    assert_eq!(other.get("/", &from("192.0.2.3")).await.status, 200, "as 127.0.0.1");
    assert_eq!(other.get("/", &from("192.0.2.4")).await.status, 429);
    mesh.stop().await;
}

#[tokio::test]
async fn a_caller_of_grpc_reads_resource_exhausted() {
    let app = App::echo().await;
    let mesh = mesh(&app, "  - {local: {requests: 1, per: 1h}}").await;
    let client = H2Client::connect(mesh.entrance).await;
    let call = || {
        let mut call = request("POST", "/a.B/C", Bytes::new());
        call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        call
    };
    assert_eq!(client.send(call()).await.headers["ratelimit-policy"], "\"default\";q=1;w=3600");
    let refused = client.send(call()).await;
    assert_eq!((refused.status, &refused.headers["grpc-status"]), (200, &"8".parse().unwrap()));
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(app.requests(), 1);
    mesh.stop().await;
}

#[tokio::test]
async fn what_one_limit_refuses_takes_nothing_of_another() {
    let app = App::echo().await;
    let rules = "  - {local: {requests: 3, per: 1h}}
  - {key: [source.principal], local: {requests: 1, per: 1h}}";
    let mesh = mesh(&app, rules).await;
    for status in [200, 429, 429, 429, 429] {
        assert_eq!(mesh.get("/one").await.status, status);
    }
    let mut shared = Vec::new();
    for account in ["a", "b", "c"] {
        let mut client = mesh.pki.caller(account).connect(mesh.inbound("ratings")).await;
        let reply = client.get("/others", "").await;
        shared.push((reply.status, told(&reply)));
    }
    // What leaves least is told: of each caller its own.
    let own = "\"default\";r=0 / \"default\";q=1;w=3600";
    let all = "\"default\";r=0 / \"default\";q=3;w=3600";
    assert_eq!(shared, [(200, own.into()), (200, all.into()), (429, all.into())]);
    mesh.stop().await;
}

#[tokio::test]
async fn two_workers_share_one_limit_and_one_smaller_than_their_number_still_serves() {
    const CALLS: usize = 40;
    for burst in [1, 10] {
        let app = App::echo().await;
        let rules = format!("  - {{local: {{requests: 1, per: 1h, burst: {burst}}}}}");
        let world = World::new().workers(2).server(Server::new("ratings", &app));
        let mesh = world.policy(&limit("calls", &rules)).start().await;
        let calls = (0..CALLS).map(|_| mesh.get("/"));
        let replies = futures_util::future::join_all(calls).await;
        let within = replies.iter().filter(|reply| reply.status == 200).count();
        assert_eq!((within, app.requests()), (burst, burst));
        assert!(replies.iter().all(|reply| [200, 429].contains(&reply.status)));
        mesh.stop().await;
    }
}

#[tokio::test]
async fn a_reload_keeps_what_was_counted_unless_the_limit_is_another() {
    let app = App::echo().await;
    let rule = "  - {local: {requests: 2, per: 1h}}";
    let mesh = mesh(&app, rule).await;
    let file = "policy-0.yaml";
    let version = |version: u64| {
        mesh.config_is("the next version", move |config| config["version"].as_u64() >= Some(version))
    };
    assert_eq!(mesh.get("/").await.status, 200);
    // Another object, and another condition of this rule.
    let narrower = "  - {to: [{operation: {methods: [GET]}}], local: {requests: 2, per: 1h}}";
    let other = limit("other", "  - {local: {requests: 100, per: 1h}}");
    mesh.config().write(file, &format!("{}---{other}", limit("calls", narrower)));
    version(2).await;
    assert_eq!(mesh.get("/").await.status, 200);
    assert_eq!(mesh.get("/").await.status, 429);
    // A mistake keeps the last good version, with what it has counted.
    mesh.config().write(file, &limit("calls", "  - {local: {requests: none, per: 1h}}"));
    mesh.config_is("the verdict", |config| {
        config["verdicts"].as_array().unwrap().iter().any(|verdict| verdict["state"] == "kept-last-good")
    })
    .await;
    assert_eq!(mesh.get("/").await.status, 429);
    mesh.config().write(file, &limit("calls", "  - {local: {requests: 3, per: 1h}}"));
    mesh.config_is("the new limit", |config| {
        config["verdicts"].as_array().unwrap().iter().all(|verdict| verdict["state"] == "accepted")
    })
    .await;
    assert_eq!(mesh.get("/").await.status, 200);
    mesh.stop().await;
}

#[tokio::test]
async fn a_limit_that_is_not_understood_refuses_what_it_selects() {
    let app = App::echo().await;
    let broken = limit("calls", "  - {locally: {requests: 1, per: 1h}}");
    let world = World::new().server(Server::new("ratings", &app)).server(Server::new("reviews", &app));
    let mesh = world.policy(&broken).start().await;
    let refused = mesh.get("/refused").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, None));
    let mut client = Client::connect(mesh.inbound("reviews")).await;
    assert_eq!(client.get("/elsewhere", "").await.status, 200);
    let config = mesh.admin_says("ratings", "/config", |_| true).await;
    let verdict = config["verdicts"].as_array().unwrap().iter().find(|each| each["kind"] == "RateLimit");
    assert_eq!(verdict.unwrap()["state"], "quarantined");
    let records = mesh.stop().await;
    let record = records.of("inbound", "/refused");
    assert_eq!(record.decision(), "deny at limit: quarantined-policy by RateLimit bookinfo/calls");
}

#[tokio::test]
async fn an_opaque_connection_is_counted_by_who_its_peer_is() {
    let app = App::speaking_first("welcome").await;
    let rules = "  - {key: [source.principal], local: {requests: 1, per: 1h}}
  - {key: [request.path], local: {requests: 1, per: 1h}}";
    let world = World::new().server(Server::new("ratings", &app).port_name("tcp"));
    let mesh = world.policy(&limit("calls", rules)).start().await;
    for account in ["a", "b"] {
        let caller = mesh.pki.caller(account);
        let mut client = caller.connect(mesh.inbound("ratings")).await;
        assert_eq!(client.bytes(7).await, b"welcome");
        let mut client = caller.connect(mesh.inbound("ratings")).await;
        assert!(client.rest().await.is_empty());
    }
    let records = mesh.stop().await;
    let decisions = records.side("inbound").into_iter().map(Record::decision);
    assert_eq!(decisions.filter(|decision| decision == EXCEEDED).count(), 2);
}

#[tokio::test]
async fn explaining_tells_what_would_be_taken_and_takes_nothing() {
    let app = App::echo().await;
    let rules = "  - {to: [{operation: {paths: [/a]}}], local: {requests: 1, per: 1h}}
  - {global: {provider: nobody, domain: d, failOpen: true}}";
    let mesh = mesh(&app, rules).await;
    // Whom it would ask is not there, so that it refuses whatever `failOpen` says.
    assert_eq!(mesh.get("/b").await.status, 503);
    let record = mesh.record("the refusal", |record| record.side() == "inbound").await;
    assert_eq!(record.decision(), "deny at limit: limiter-unavailable by RateLimit bookinfo/calls rule 1");
    let explained = mesh.explain(&record, &[]).await;
    assert_eq!(explained.decision(), "allow at authorize: no-policy");
    let limits = explained.json()["limits"].as_array().unwrap().clone();
    assert_eq!((limits.len(), &limits[0]["outcome"]), (1, &json!("not-reached")));
    assert_eq!(limits[0]["policy"]["rule"], 1);
    mesh.stop().await;
}

#[tokio::test]
async fn a_candidate_is_not_said_to_allow_what_only_was_too_much() {
    let app = App::echo().await;
    let world = World::new().server(Server::new("ratings", &app));
    let calls = limit("calls", "  - {local: {requests: 1, per: 1h}}");
    let mesh = world.policy(&calls).candidate("").start().await;
    for status in [200, 429] {
        assert_eq!(mesh.get("/").await.status, status);
    }
    let report = mesh.admin_says("ratings", "/candidate", |report| report["sampled"] == 2).await;
    assert_eq!((&report["undecided"], &report["changes"]), (&json!(1), &json!([])));
    mesh.stop().await;
}

/// A mesh whose ratings ask `service` about each path.
async fn global(app: &App, service: &App, settings: &str) -> Mesh {
    let mesh_settings = "
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {name: mesh}
spec: {extensionProviders: [{name: limiter, envoyRateLimitGrpc: {service: limiter.bookinfo, port: 9080, timeout: 300ms}}]}
";
    let rules = format!(
        "  - {{name: paths, key: [source.principal, request.path], global: {{provider: limiter, domain: ratings{settings}}}}}"
    );
    World::new()
        .server(Server::new("ratings", app))
        .server(Server::new("limiter", service).without_sidecar())
        .policy(mesh_settings)
        .policy(&limit("calls", &rules))
        .start()
        .await
}

fn header(name: &str, value: &str) -> Message {
    Message::default().text(1, name).text(2, value)
}

/// `RateLimitResponse` with this code, of a limit of 100 a minute.
fn answer(code: u64, remaining: u64) -> Message {
    let limit = Message::default().number(1, 100).number(2, 2);
    let reset = Message::default().number(1, 17).number(2, 1);
    let status = Message::default().number(1, code).message(2, limit).number(3, remaining).message(4, reset);
    Message::default().number(1, code).message(2, status)
}

#[tokio::test]
async fn a_service_counts_for_all_proxies() {
    let app = App::echo().await;
    let service = App::grpc(|question| {
        let over = String::from_utf8_lossy(question).contains("/over");
        let answer = if over { answer(2, 0) } else { answer(1, 41) };
        answer
            .message(3, header("x-limited", "by service"))
            .message(4, header("x-tier", "gold"))
            .message(4, header("host", "elsewhere"))
            .bytes(5, b"come back later")
    })
    .await;
    let mesh = global(&app, &service, ", hitsAddend: 3").await;
    let reply = mesh.get("/within").await;
    assert_eq!((reply.status, reply.header("x-limited")), (200, Some("by service")));
    assert_eq!(told(&reply), "\"paths\";r=41 / \"paths\";q=100;w=60");
    is_told_to_wait(&reply, 18);
    let reached = app.only();
    assert_eq!((reached.values("x-tier"), reached.values("host")), (vec!["gold"], vec!["ratings:9080"]));

    let seen = service.only();
    assert_eq!(seen.head.uri.path(), "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");
    let question = protobuf::question(&seen);
    assert_eq!(protobuf::text(question, &[1]), "ratings");
    let entries = protobuf::fields(protobuf::fields(question, 2)[0], 1);
    let entries: Vec<_> =
        entries.iter().map(|entry| [1, 2].map(|tag| protobuf::text(entry, &[tag]))).collect();
    assert_eq!(
        entries,
        [["source.principal", "cluster.local/ns/bookinfo/sa/productpage"], ["request.path", "/within"]]
    );
    assert!(question.ends_with(&[3 << 3, 3]), "hits_addend: {question:?}");

    let refused = mesh.get("/over").await;
    assert_eq!((refused.status, refused.text()), (429, "come back later"));
    assert_eq!(told(&refused), "\"paths\";r=0 / \"paths\";q=100;w=60");
    assert_eq!(
        (refused.header("retry-after"), refused.header("x-limited")),
        (Some("18"), Some("by service"))
    );
    assert_eq!(app.requests(), 1);
    assert_eq!(service.connections(), 1);

    let records = mesh.stop().await;
    let within = &records.of("inbound", "/within").json()["limits"][0];
    assert_eq!((&within["outcome"], &within["provider"]), (&json!("within-limit"), &json!("limiter")));
    assert_eq!(within["detail"], "it may not add host");
    let record = records.of("inbound", "/over");
    assert_eq!((record.decision().as_str(), record.status()), (EXCEEDED, 429));
    assert_eq!(record.json()["limits"][0]["outcome"], "limit-exceeded");
}

/// What a service can do wrong, and nothing of it may open anything unless it is out of order and said to be let pass.
async fn broken() -> Vec<(&'static str, App, bool)> {
    let with_status = |status: &'static str| {
        App::answering_with(move |_| {
            let mut response = protobuf::grpc(Bytes::from_static(&[0, 0, 0, 0, 0]));
            response.headers_mut().insert("grpc-status", status.parse().unwrap());
            (response, None)
        })
    };
    let garbage = App::answering_with(|_| (protobuf::grpc(Bytes::from_static(b"xxxxx")), None)).await;
    vec![
        ("hangs", App::silent().await, true),
        ("refuses", App::refusing(), true),
        ("closes", App::closing_after("").await, true),
        ("speaks another protocol", App::answering_bytes("HTTP/1.1 200 OK\r\n\r\n").await, true),
        ("fails", with_status("13").await, true),
        ("answers garbage", garbage, false),
        ("says nothing", App::grpc(|_| Message::default()).await, false),
        ("says what nobody knows", App::grpc(|_| answer(9, 1)).await, false),
        (
            "sends a header that is none",
            App::grpc(|_| answer(1, 1).message(4, header("x-a", "a\r\nb"))).await,
            false,
        ),
    ]
}

#[tokio::test]
async fn a_service_that_does_not_answer_refuses_unless_it_is_said_to_be_let_pass() {
    for (what, service, unavailable) in broken().await {
        for fail_open in [false, true] {
            let app = App::echo().await;
            let mesh = global(&app, &service, &format!(", failOpen: {fail_open}")).await;
            let reply = mesh.get("/asked").await;
            let opens = fail_open && unavailable;
            assert_eq!(reply.status, if opens { 200 } else { 503 }, "{what} {fail_open}");
            assert_eq!(app.requests(), usize::from(opens), "{what}");
            let records = mesh.stop().await;
            let record = records.of("inbound", "/asked");
            assert_eq!(record.json()["limits"][0]["outcome"], "limiter-unavailable", "{what}");
            assert_ne!(record.json()["limits"][0]["detail"], json!(null), "{what}");
            if opens {
                assert_eq!(record.decision(), "allow at authorize: no-policy");
            } else {
                let by = "limiter-unavailable by RateLimit bookinfo/calls rule 0";
                assert_eq!(record.decision(), format!("deny at limit: {by}"), "{what}");
            }
        }
    }
}
