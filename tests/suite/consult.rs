//! External authorization: what providers are asked, what their answers change, and that nothing but an answer allows.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use fips::jws::Algorithm;
use http::Response;
use proxy::worker::Deadlines;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use tests::protobuf::{self, Message};
use tests::{App, Client, H2Client, Issuer, Mesh, Record, Server, World, request, soon};

/// A mesh whose ratings ask `provider` about everything under `/asked`. `settings` are further fields of it, `phase` too.
pub(crate) async fn mesh(app: &App, provider: &App, kind: &str, settings: &str, phase: &str) -> Mesh {
    world(app, provider, kind, settings, phase).start().await
}

pub(crate) fn world(app: &App, provider: &App, kind: &str, settings: &str, phase: &str) -> World {
    World::new()
        .server(Server::new("ratings", app))
        .server(Server::new("authz", provider).without_sidecar())
        .policy(&provider_of(kind, settings, phase))
        .policy(ASK)
}

pub(crate) fn provider_of(kind: &str, settings: &str, phase: &str) -> String {
    format!(
        "
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {{name: mesh}}
spec:
  extensionProviders:
  - name: authz
    phase: {phase}
    {kind}: {{service: authz.bookinfo.svc.cluster.local, port: 9080{settings}}}
"
    )
}

pub(crate) const ASK: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  action: CUSTOM
  provider: {name: authz}
  rules: [{to: [{operation: {paths: [/asked*]}}]}]
";
pub(crate) const GRPC: &str = "envoyExtAuthzGrpc";
const HTTP: &str = "envoyExtAuthzHttp";
pub(crate) const BEFORE: &str = "before-authentication";
pub(crate) const AFTER: &str = "after-authorization";

/// `CheckResponse` with status OK, and what else is in it.
pub(crate) fn ok() -> Message {
    Message::default().message(1, Message::default())
}

pub(crate) fn header(name: &str, value: &str) -> Message {
    Message::default().message(1, Message::default().text(1, name).text(2, value))
}

fn denied(status: u64, body: &str) -> Message {
    let response = Message::default()
        .message(1, Message::default().number(1, status))
        .message(2, header("x-why", "because"))
        .text(3, body);
    Message::default().message(1, Message::default().number(1, 7)).message(2, response)
}

fn consulted(record: &Record) -> String {
    let first = &record.json()["consulted"][0];
    format!(
        "{} {}",
        first["provider"].as_str().unwrap_or_default(),
        first["outcome"].as_str().unwrap_or_default()
    )
}

#[tokio::test]
async fn a_grpc_provider_is_told_who_asks_for_what_and_may_change_headers() {
    let app = App::answering(|_| Response::builder().header("x-app", "1").body(Bytes::new()).unwrap()).await;
    let provider = App::grpc(|_| {
        let response = Message::default()
            .message(2, header("x-user", "alice"))
            .message(2, header(":path", "/elsewhere"))
            .message(2, header("host", "elsewhere"))
            .text(5, "x-secret")
            .message(6, header("x-checked", "yes"))
            .message(7, Message::default().text(1, "page").text(2, "1"));
        let value = Message::default().text(3, "gold");
        let metadata = Message::default().message(1, Message::default().text(1, "tier").message(2, value));
        ok().message(3, response).message(4, metadata)
    })
    .await;
    let mesh = mesh(&app, &provider, GRPC, ", timeout: 5s", BEFORE).await;
    let headers = "X-Secret: s\r\nX-User: mallory\r\nX-List: 1\r\nX-List: 2\r\n";
    let reply = mesh.client().await.get("/asked/1?page=9&a=b", headers).await;
    assert_eq!(
        (reply.status, reply.header("x-checked"), reply.header("x-app")),
        (200, Some("yes"), Some("1"))
    );
    assert_eq!(mesh.get("/free").await.status, 200, "nobody is asked about it");

    let seen = provider.only();
    assert_eq!(seen.head.uri.path(), "/envoy.service.auth.v3.Authorization/Check");
    let question = protobuf::question(&seen);
    let text = |path: &[u32]| protobuf::text(question, path);
    assert_eq!(text(&[1, 1, 4]), "spiffe://cluster.local/ns/bookinfo/sa/productpage");
    assert_eq!(text(&[1, 1, 1, 1, 2]), "127.0.0.1");
    assert_eq!(text(&[1, 2, 4]), "spiffe://cluster.local/ns/bookinfo/sa/ratings");
    let http = |tag| text(&[1, 4, 2, tag]);
    assert_eq!((http(2).as_str(), http(4).as_str()), ("GET", "/asked/1?page=9&a=b"));
    assert_eq!(
        (http(5).as_str(), http(6).as_str(), http(10).as_str()),
        ("ratings:9080", "https", "HTTP/1.1")
    );
    let request = protobuf::fields(protobuf::fields(protobuf::fields(question, 1)[0], 4)[0], 2)[0];
    let pairs = protobuf::fields(request, 3).into_iter();
    let pairs: Vec<_> = pairs.map(|pair| (protobuf::text(pair, &[1]), protobuf::text(pair, &[2]))).collect();
    assert!(pairs.contains(&("x-list".into(), "1,2".into())), "{pairs:?}");
    assert!(pairs.contains(&(":method".into(), "GET".into())), "{pairs:?}");
    assert_eq!(text(&[1, 10, 2]), "bookinfo/ask");

    let reached = &app.seen()[0];
    assert_eq!(reached.head.uri, "/asked/1?page=1&a=b");
    assert_eq!((reached.values("x-user"), reached.values("x-secret")), (vec!["alice"], vec![]));
    assert_eq!(reached.values("host"), ["ratings:9080"]);

    let records = mesh.stop().await;
    let record = records.of("inbound", "/asked/1");
    assert_eq!(
        record.decision(),
        "allow at consult: provider-allowed by AuthorizationPolicy bookinfo/ask rule 0"
    );
    assert_eq!(
        record.check("service-authorization"),
        "pass provider-allowed by AuthorizationPolicy bookinfo/ask rule 0"
    );
    let first = &record.json()["consulted"][0];
    assert_eq!(
        (&first["metadata"], &first["ignored"]),
        (&json!({"tier": "gold"}), &json!([":path", "host"]))
    );
    assert!(first["us"].as_u64().unwrap() > 0);
    assert_eq!(records.of("inbound", "/free").decision(), "allow at authorize: no-policy");
}

fn percent_decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |decoded, part| {
        let byte = u8::from_str_radix(&part[..2], 16).unwrap();
        format!("{decoded}{}{}", char::from(byte), &part[2..])
    })
}

#[tokio::test]
async fn a_grpc_provider_is_told_beyond_the_request_what_its_settings_say() {
    let (app, issuer) = (App::echo().await, Issuer::start(Algorithm::Es256).await);
    let mut claims = issuer.claims();
    (claims["scope"], claims["groups"]) = ("read write".into(), json!(["users", {"a": 1.5, "b": null}]));
    let token = format!("Authorization: Bearer {}\r\n", issuer.token(&claims));
    let users = format!(
        "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: users, namespace: bookinfo}}
spec: {{selector: {{matchLabels: {{app: ratings}}}}, jwtRules: [{{issuer: {}}}]}}
",
        issuer.name()
    );
    for (settings, told) in [
        ("", false),
        (
            ", includePeerCertificate: true, metadataContextNamespaces: [envoy.filters.http.jwt_authn], \
             contextExtensions: {tier: gold}",
            true,
        ),
    ] {
        let provider = App::grpc(|_| ok()).await;
        let mesh = world(&app, &provider, GRPC, settings, AFTER).issuer(&issuer).policy(&users).start().await;
        assert_eq!(mesh.client().await.get("/asked/user", &token).await.status, 200);
        assert_eq!(mesh.get("/asked/nobody").await.status, 200);
        let [of_user, of_nobody] = [0, 1].map(|number| provider.seen()[number].clone());
        let (of_user, of_nobody) = (protobuf::question(&of_user), protobuf::question(&of_nobody));

        let certificate = protobuf::text(of_user, &[1, 1, 5]);
        let pem = percent_decoded(&certificate);
        let lines: Vec<_> = pem.lines().collect();
        if told {
            assert_eq!((lines[0], pem.ends_with('\n')), ("-----BEGIN CERTIFICATE-----", true));
            assert_eq!((lines[1].len(), *lines.last().unwrap()), (64, "-----END CERTIFICATE-----"));
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            let id = b"spiffe://cluster.local/ns/bookinfo/sa/productpage";
            assert!(der.windows(id.len()).any(|window| window == id), "it is the caller's");
        } else {
            assert_eq!(certificate, "");
        }

        let pairs = |message: &[u8], tag| {
            let pairs = protobuf::fields(message, tag).into_iter();
            let pair = |pair: &[u8]| (protobuf::text(pair, &[1]), protobuf::fields(pair, 2)[0].to_vec());
            pairs.map(pair).collect::<BTreeMap<_, _>>()
        };
        let attributes = |question| protobuf::fields(question, 1)[0];
        let extensions = pairs(attributes(of_user), 10);
        assert_eq!(extensions["policy"], b"bookinfo/ask");
        assert_eq!(extensions.get("tier").map(Vec::as_slice), told.then_some(&b"gold"[..]));

        let metadata =
            |question| protobuf::fields(attributes(question), 11).first().map(|found| pairs(found, 1));
        assert_eq!(metadata(of_nobody), None, "nobody claims anything");
        let Some(namespaces) = metadata(of_user) else {
            assert!(!told);
            mesh.stop().await;
            continue;
        };
        assert!(told);
        let namespace = pairs(&namespaces["envoy.filters.http.jwt_authn"], 1);
        let payload = pairs(protobuf::fields(&namespace["payload"], 5)[0], 1);
        assert_eq!(protobuf::text(&payload["sub"], &[3]), "alice");
        let texts = |value: &[u8]| {
            let values = protobuf::fields(protobuf::fields(value, 6)[0], 1);
            values.into_iter().map(|value| protobuf::text(value, &[3])).collect::<Vec<_>>()
        };
        assert_eq!(texts(&payload["scope"]), ["read", "write"], "as Istio has it");
        assert_eq!(texts(&payload["groups"]), ["users", ""]);

        let mut direct = mesh.pki.caller("productpage").connect(mesh.inbound("ratings")).await;
        assert_eq!(direct.get("/asked/sni", "").await.status, 200);
        let of_sni = provider.seen()[2].clone();
        let sni = protobuf::text(protobuf::question(&of_sni), &[1, 12, 1]);
        assert_eq!(sni, "ratings.bookinfo.svc.cluster.local");

        let metrics = mesh.metrics("ratings").await;
        let count =
            "writ_provider_duration_seconds_count{provider=\"authz\",outcome=\"provider-allowed\"} 3\n";
        assert!(metrics.contains(count), "{metrics}");
        mesh.stop().await;
    }
}

#[tokio::test]
async fn a_denial_has_the_provider_s_status_headers_and_words() {
    let app = App::echo().await;
    let provider = App::grpc(|_| denied(401, "who are you? 100%")).await;
    let mesh = mesh(&app, &provider, GRPC, "", BEFORE).await;
    let reply = mesh.get("/asked").await;
    assert_eq!(
        (reply.status, reply.text(), reply.header("x-why")),
        (401, "who are you? 100%", Some("because"))
    );
    assert!(reply.header("x-writ-decision-id").is_some());

    let mut grpc = request("POST", "/asked/grpc", Bytes::new());
    grpc.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let reply = H2Client::connect(mesh.entrance).await.send(grpc).await;
    assert_eq!((reply.status, &reply.headers["grpc-status"]), (200, &"16".parse().unwrap()));
    assert_eq!(reply.headers["grpc-message"], "who are you? 100%25");
    assert_eq!(app.requests(), 0);

    let records = mesh.stop().await;
    let record = records.of("inbound", "/asked");
    assert_eq!(
        record.decision(),
        "deny at consult: provider-denied by AuthorizationPolicy bookinfo/ask rule 0"
    );
    assert_eq!(
        record.check("service-authorization"),
        "fail provider-denied by AuthorizationPolicy bookinfo/ask rule 0"
    );
    assert_eq!((record.status(), record.ended().as_str()), (401, "provider-denied at consult"));
    assert_eq!(consulted(record), "authz provider-denied");
}

/// What a provider can do wrong, and nothing of it may open anything.
async fn broken() -> Vec<(&'static str, App, &'static str)> {
    let answer = |head: &'static str| {
        App::answering_with(move |_| {
            let mut response = protobuf::grpc(Bytes::from_static(&[0, 0, 0, 0, 0]));
            let (name, value) = head.split_once(": ").unwrap();
            match name {
                "status" => *response.status_mut() = value.parse().unwrap(),
                "body" => *response.body_mut() = Bytes::from_static(value.as_bytes()),
                "long" => *response.body_mut() = Bytes::from(vec![0; 300_000]),
                _ => drop(response.headers_mut().insert("grpc-status", value.parse().unwrap())),
            }
            (response, None)
        })
    };
    vec![
        ("hangs", App::silent().await, "unavailable"),
        ("refuses", App::refusing(), "unavailable"),
        ("closes", App::closing_after("").await, "unavailable"),
        ("speaks another protocol", App::answering_bytes("HTTP/1.1 200 OK\r\n\r\n").await, "unavailable"),
        ("is out of order", answer("status: 503").await, "unavailable"),
        ("fails", answer("grpc-status: 13").await, "unavailable"),
        ("says nothing", App::grpc(|_| Message::default()).await, "garbage"),
        ("allows and denies", App::grpc(|_| ok().message(2, Message::default())).await, "garbage"),
        ("answers garbage", answer("body: xxxxx").await, "garbage"),
        ("answers no status", answer("body: ").await, "garbage"),
        ("answers too much", answer("long: ").await, "garbage"),
        ("is no gRPC service", answer("status: 404").await, "garbage"),
        (
            "sends a header that is none",
            App::grpc(|_| ok().message(3, Message::default().message(2, header("x-a", "a\r\nb")))).await,
            "garbage",
        ),
    ]
}

#[tokio::test]
async fn a_provider_that_does_not_answer_refuses_and_one_that_answers_wrongly_never_allows() {
    for (what, provider, kind) in broken().await {
        for fail_open in [false, true] {
            let app = App::echo().await;
            let settings = format!(", timeout: 300ms, statusOnError: '503', failOpen: {fail_open}");
            let mesh = mesh(&app, &provider, GRPC, &settings, BEFORE).await;
            let reply = mesh.get("/asked").await;
            let opens = fail_open && kind == "unavailable";
            assert_eq!(reply.status, if opens { 200 } else { 503 }, "{what} {fail_open}");
            assert_eq!(app.requests(), usize::from(opens), "{what}");
            let records = mesh.stop().await;
            let record = records.of("inbound", "/asked");
            assert_eq!(consulted(record), "authz provider-unavailable", "{what}");
            let outcome = if opens { "allow" } else { "deny" };
            assert_eq!(
                record.decision(),
                format!(
                    "{outcome} at consult: provider-unavailable by AuthorizationPolicy bookinfo/ask rule 0"
                ),
                "{what}"
            );
            assert_ne!(record.json()["consulted"][0]["detail"], json!(null), "{what}: {record:?}");
        }
    }
}

#[tokio::test]
async fn an_http_provider_sees_what_it_is_to_see_and_changes_what_it_may() {
    let app = App::echo().await;
    let provider = App::answering(|seen| {
        let answer =
            Response::builder().header("x-user", "alice").header("x-other", "1").header("x-down", "2");
        let answer = answer.header("x-envoy-auth-headers-to-remove", "x-secret, x-forwarded-client-cert");
        let status = match seen.head.uri.path() {
            "/check/asked/no" => 302,
            "/check/asked/broken" => 500,
            "/check/asked/created" => 201,
            _ => 200,
        };
        answer.header("location", "/login").status(status).body(Bytes::from_static(b"words")).unwrap()
    })
    .await;
    let settings = ", pathPrefix: /check, includeRequestHeadersInCheck: [x-shown*], includeAdditionalHeadersInCheck: {x-from: mesh}, \
                    headersToUpstreamOnAllow: [x-user], headersToDownstreamOnAllow: [x-down], headersToDownstreamOnDeny: [x-user]";
    let mesh = mesh(&app, &provider, HTTP, settings, BEFORE).await;
    let headers = "X-Shown-1: a\r\nX-Secret: b\r\nAuthorization: c\r\n";
    let reply = mesh.client().await.get("/asked/yes?q=1", headers).await;
    assert_eq!((reply.status, reply.header("x-down"), reply.header("x-other")), (200, Some("2"), None));
    let asked = provider.only();
    assert_eq!(
        (asked.head.method.as_str(), asked.head.uri.to_string().as_str()),
        ("GET", "/check/asked/yes?q=1")
    );
    assert_eq!(asked.values("host"), ["ratings:9080"]);
    assert_eq!((asked.values("x-shown-1"), asked.values("authorization")), (vec!["a"], vec!["c"]));
    assert_eq!((asked.values("x-secret"), asked.values("x-from")), (vec![], vec!["mesh"]));
    let reached = app.only();
    assert_eq!((reached.values("x-user"), reached.values("x-secret")), (vec!["alice"], vec![]));
    assert_eq!(reached.values("x-other"), [""; 0]);
    assert_eq!(
        reached.values("x-forwarded-client-cert").len(),
        1,
        "who calls is not the provider's to change"
    );

    let reply = mesh.get("/asked/no").await;
    assert_eq!((reply.status, reply.text(), reply.header("location")), (302, "words", Some("/login")));
    assert_eq!((reply.header("x-user"), reply.header("x-down")), (Some("alice"), None));
    assert_eq!(mesh.get("/asked/created").await.status, 201, "only 200 allows");
    assert_eq!(mesh.get("/asked/broken").await.status, 403);
    assert_eq!(app.requests(), 1);
    mesh.stop().await;
}

#[tokio::test]
async fn a_provider_can_not_loosen_a_deny_and_is_asked_last_where_its_phase_says_so() {
    const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admins, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  action: DENY
  rules:
  - to: [{operation: {paths: [/asked/denied]}}]
  - when: [{key: 'request.headers[x-role]', values: [admin]}]
";
    for (phase, asked) in [(BEFORE, 2), (AFTER, 1)] {
        let app = App::echo().await;
        // It makes everyone an admin.
        let provider =
            App::grpc(|_| ok().message(3, Message::default().message(2, header("x-role", "admin")))).await;
        let mesh = world(&app, &provider, GRPC, "", phase).policy(DENY).start().await;
        assert_eq!(mesh.get("/asked/denied").await.status, 403, "{phase}");
        assert_eq!(
            mesh.get("/asked/other").await.status,
            403,
            "{phase}: what is forwarded is what was authorised"
        );
        assert_eq!((provider.requests(), app.requests()), (asked, 0), "{phase}");
        let records = mesh.stop().await;
        let of = |path| records.of("inbound", path).decision();
        let denied = |rule| {
            format!("deny at authorize: matched-deny by AuthorizationPolicy bookinfo/no-admins rule {rule}")
        };
        assert_eq!((of("/asked/denied"), of("/asked/other")), (denied(0), denied(1)), "{phase}");
    }
}

#[tokio::test]
async fn bodies_are_shown_up_to_a_bound_and_sent_on_whole() {
    let app = App::echo().await;
    let provider = App::grpc(|_| ok()).await;
    let body = "b".repeat(100);
    for (settings, status, shown) in [
        ("{maxRequestBytes: 100}", 200, 100),
        ("{maxRequestBytes: 99}", 413, 0),
        ("{maxRequestBytes: 60, allowPartialMessage: true}", 200, 60),
        ("{maxRequestBytes: 60, allowPartialMessage: true, packAsBytes: true}", 200, 60),
    ] {
        let seen = provider.requests();
        let settings_with = format!(", includeRequestBodyInCheck: {settings}");
        let mesh = mesh(&app, &provider, GRPC, &settings_with, BEFORE).await;
        let mut client = mesh.client().await;
        client
            .send(format!("POST /asked HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 100\r\n\r\n{body}"))
            .await;
        let reply = client.reply().await;
        assert_eq!(reply.status, status, "{settings}");
        if status == 200 {
            assert_eq!(reply.text(), body);
            let seen = &provider.seen()[seen];
            let tag = if settings.contains("packAsBytes") { 12 } else { 11 };
            let text = protobuf::text(protobuf::question(seen), &[1, 4, 2, tag]);
            assert_eq!(text.len(), shown, "{settings}");
        }
        let records = mesh.stop().await;
        assert_eq!(records.of("inbound", "/asked").number("/request/bytes"), 100, "{settings}");
    }
}

/// What may be shown by part is what is too long, not what comes too slowly.
#[tokio::test]
async fn a_body_that_drips_is_not_shown_by_part() {
    let (app, provider) = (App::echo().await, App::grpc(|_| ok()).await);
    let settings = ", includeRequestBodyInCheck: {maxRequestBytes: 60, allowPartialMessage: true}";
    let deadlines = Deadlines { body: Duration::from_millis(500), ..Deadlines::default() };
    let mesh = world(&app, &provider, GRPC, settings, BEFORE).deadlines(deadlines).start().await;
    let mut client = mesh.client().await;
    client.send("POST /asked HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 5\r\n\r\n").await;
    for byte in ["e", "v", "i", "l"] {
        let _ = client.try_send(byte).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(client.reply().await.status, 408);
    assert_eq!((provider.requests(), app.requests()), (0, 0));
    mesh.stop().await;
}

#[tokio::test]
async fn missing_providers_deny_and_several_are_each_asked_once() {
    const MORE: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: again, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  action: CUSTOM
  provider: {name: authz}
  rules: [{to: [{operation: {methods: [GET]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  action: CUSTOM
  provider: {name: nobody}
  rules: [{to: [{operation: {paths: [/asked/nobody]}}]}]
";
    let app = App::echo().await;
    let provider = App::grpc(|_| ok()).await;
    let mesh = world(&app, &provider, GRPC, ", failOpen: true", BEFORE).policy(MORE).start().await;
    assert_eq!(mesh.get("/asked/nobody").await.status, 403);
    assert_eq!(mesh.get("/asked/one").await.status, 200);
    assert_eq!(provider.requests(), 2, "once for each request");
    let records = mesh.stop().await;
    assert_eq!(
        records.of("inbound", "/asked/nobody").decision(),
        "deny at authorize: provider-unavailable by AuthorizationPolicy bookinfo/nobody rule 0"
    );
    assert_eq!(provider.connections(), 1, "and over one connection");
}

/// Whoever matches what is forwarded is asked about it, and so is who matched it as it came.
#[tokio::test]
async fn a_provider_is_asked_about_what_another_made_of_the_request() {
    const POLICIES: &str = "
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {name: mesh}
spec:
  extensionProviders:
  - {name: authz, envoyExtAuthzGrpc: {service: authz.bookinfo.svc.cluster.local, port: 9080}}
  - name: second
    envoyExtAuthzGrpc:
      service: second.bookinfo.svc.cluster.local
      port: 9080
      includeRequestBodyInCheck: {maxRequestBytes: 100}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: gold, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  action: CUSTOM
  provider: {name: second}
  rules: [{when: [{key: 'request.headers[x-tier]', values: [gold]}]}]
";
    let app = App::echo().await;
    let tier = std::sync::Arc::new(std::sync::Mutex::new("gold"));
    let given = std::sync::Arc::clone(&tier);
    let first = App::grpc(move |_| {
        ok().message(3, Message::default().message(2, header("x-tier", &given.lock().unwrap())))
    })
    .await;
    let second = App::grpc(|_| denied(403, "not for gold")).await;
    let mesh = World::new()
        .server(Server::new("ratings", &app))
        .server(Server::new("authz", &first).without_sidecar())
        .server(Server::new("second", &second).without_sidecar())
        .policy(POLICIES)
        .policy(ASK)
        .start()
        .await;
    let mut client = mesh.client().await;
    let post = "POST /asked/made HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 4\r\n\r\nbody";
    client.send(post).await;
    assert_eq!(client.reply().await.status, 403);
    assert_eq!(protobuf::text(protobuf::question(&second.only()), &[1, 4, 2, 11]), "body");
    *tier.lock().unwrap() = "silver";
    let mut client = mesh.client().await;
    assert_eq!(client.get("/asked/silver", "").await.status, 200);
    assert_eq!(client.get("/asked/came", "X-Tier: gold\r\n").await.status, 403, "not evaded by an edit");
    assert_eq!(second.requests(), 2);
    let records = mesh.stop().await;
    assert_eq!(
        records.of("inbound", "/asked/made").decision(),
        "deny at consult: provider-denied by AuthorizationPolicy bookinfo/gold rule 0"
    );
}

#[tokio::test]
async fn an_opaque_connection_is_asked_about_by_who_its_peer_is() {
    const OPAQUE: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask-all, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  action: CUSTOM
  provider: {name: authz}
  rules: [{}]
";
    for (allowed, answer) in [(true, ok()), (false, denied(403, ""))] {
        let app = App::speaking_first("welcome").await;
        let provider = App::grpc(move |_| answer.clone()).await;
        let world = World::new()
            .server(Server::new("ratings", &app).port_name("tcp"))
            .server(Server::new("authz", &provider).without_sidecar());
        let settings = "apiVersion: writ.dev/v1alpha1\nkind: MeshSettings\nmetadata: {name: mesh}\nspec:\n  extensionProviders:\n  \
                        - name: authz\n    envoyExtAuthzGrpc: {service: authz.bookinfo.svc.cluster.local, port: 9080}\n";
        let mesh = world.policy(settings).policy(OPAQUE).start().await;
        let mut client = Client::connect(mesh.inbound("ratings")).await;
        if allowed {
            assert_eq!(client.bytes(7).await, b"welcome");
        }
        let seen = soon("the question", async {
            provider.has_requests(1).await;
            provider.only()
        })
        .await;
        assert_eq!(protobuf::text(protobuf::question(&seen), &[1, 4, 2]), "", "nothing of HTTP");
        client.finish().await;
        assert_eq!(client.rest().await, b"");
        let records = mesh.stop().await;
        let record = records.only("inbound");
        let expected =
            if allowed { "allow at consult: provider-allowed" } else { "deny at consult: provider-denied" };
        assert!(record.decision().starts_with(expected), "{record:?}");
    }
}

#[tokio::test]
async fn a_provider_may_give_the_token_by_which_the_user_is_authenticated_and_be_asked_about_that_user() {
    let (app, issuer) = (App::echo().await, Issuer::start(Algorithm::Es256).await);
    let token = format!("Bearer {}", issuer.alice());
    // The first turns a cookie into a token; the second is asked about users only.
    let tokens = App::grpc(move |question| {
        let request = protobuf::fields(protobuf::fields(protobuf::fields(question, 1)[0], 4)[0], 2)[0];
        let mut headers = protobuf::fields(request, 3).into_iter();
        let response = Message::default().message(2, header("authorization", &token));
        if headers.any(|pair| protobuf::text(pair, &[2]) == "session=alice") {
            ok().message(3, response)
        } else {
            ok()
        }
    })
    .await;
    let users = App::grpc(|_| denied(402, "pay first")).await;
    let policies = format!(
        "
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {{name: mesh}}
spec:
  extensionProviders:
  - name: tokens
    envoyExtAuthzGrpc: {{service: tokens.bookinfo.svc.cluster.local, port: 9080}}
  - name: users
    phase: after-authorization
    envoyExtAuthzGrpc: {{service: users.bookinfo.svc.cluster.local, port: 9080}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: users, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  jwtRules: [{{issuer: {issuer}, audiences: [ratings]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: tokens, namespace: bookinfo}}
spec: {{selector: {{matchLabels: {{app: ratings}}}}, action: CUSTOM, provider: {{name: tokens}}, rules: [{{}}]}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: users, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  action: CUSTOM
  provider: {{name: users}}
  rules:
  - from: [{{source: {{requestPrincipals: ['{issuer}/alice']}}}}]
    to: [{{operation: {{paths: [/paid]}}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: for-users, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  rules: [{{from: [{{source: {{requestPrincipals: ['{issuer}/*']}}}}]}}]
",
        issuer = issuer.name()
    );
    let mesh = World::new()
        .server(Server::new("ratings", &app))
        .server(Server::new("tokens", &tokens).without_sidecar())
        .server(Server::new("users", &users).without_sidecar())
        .issuer(&issuer)
        .policy(&policies)
        .candidate(&policies)
        .start()
        .await;
    assert_eq!(mesh.get("/nobody").await.status, 403);
    let alice = "Cookie: session=alice\r\n";
    assert_eq!(mesh.client().await.get("/alice", alice).await.status, 200);
    assert_eq!(mesh.client().await.get("/paid", alice).await.status, 402);
    assert_eq!((tokens.requests(), users.requests(), app.requests()), (3, 1, 1));
    // Nobody is asked on behalf of a candidate, so it can't tell what an answer would have brought.
    let report = mesh.admin_says("ratings", "/candidate", |report| report["sampled"] == 3).await;
    assert_eq!((&report["undecided"], &report["changes"]), (&3.into(), &json!([])), "{report:#}");
    let records = mesh.stop().await;
    let record = records.of("inbound", "/alice");
    assert_eq!(
        record.check("user-authentication"),
        "pass jwt-verified by RequestAuthentication bookinfo/users rule 0"
    );
    assert!(record.decision().starts_with("allow at authorize: matched-allow"), "{record:?}");
    let record = records.of("inbound", "/paid");
    assert_eq!(
        record.decision(),
        "deny at consult: provider-denied by AuthorizationPolicy bookinfo/users rule 0"
    );
    assert_eq!(
        record.check("user-authorization"),
        "fail provider-denied by AuthorizationPolicy bookinfo/users rule 0"
    );
}

#[tokio::test]
async fn explain_says_who_would_be_asked() {
    let app = App::echo().await;
    let provider = App::grpc(|_| ok()).await;
    let mesh = mesh(&app, &provider, GRPC, "", AFTER).await;
    assert_eq!(mesh.get("/asked").await.status, 200);
    let record = mesh.record("the record", |record| record.side() == "inbound").await;
    let explained = mesh.explain(&record, &[]).await;
    assert_eq!(explained.decision(), record.decision());
    assert_eq!(consulted(&explained), "authz not-reached");
    assert_eq!(provider.requests(), 1, "and it is not asked");
    mesh.stop().await;
}

#[tokio::test]
async fn a_provider_of_the_mesh_is_asked_over_mutual_tls() {
    let app = App::echo().await;
    let provider = App::grpc(|_| ok()).await;
    let mesh = World::new()
        .server(Server::new("ratings", &app))
        .server(Server::new("authz", &provider).port_name("grpc"))
        .policy("apiVersion: writ.dev/v1alpha1\nkind: MeshSettings\nmetadata: {name: mesh}\nspec:\n  extensionProviders:\n  - name: authz\n    envoyExtAuthzGrpc: {service: authz.bookinfo, port: 9080}\n")
        .policy(ASK)
        .policy("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n")
        .start()
        .await;
    // The sidecar of ratings started before it could be told where that of authz is.
    soon("an answer", async {
        while mesh.get("/asked").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let check = "/envoy.service.auth.v3.Authorization/Check";
    let check = mesh.record("the question", |each| each.side() == "inbound" && each.path() == check).await;
    assert_eq!(check.text("/source/identity"), "spiffe://cluster.local/ns/bookinfo/sa/ratings");
    mesh.stop().await;
}

#[tokio::test]
async fn a_provider_that_hangs_holds_nobody_else() {
    let app = App::echo().await;
    let provider = App::silent().await;
    let mesh = mesh(&app, &provider, GRPC, ", timeout: 2s", BEFORE).await;
    let mut held = mesh.client().await;
    held.send("GET /asked HTTP/1.1\r\nHost: ratings:9080\r\n\r\n").await;
    soon("the connection", async {
        while provider.connections() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(mesh.get("/free").await.status, 200, "while the other waits");
    assert_eq!(held.reply().await.status, 403);
    mesh.stop().await;
}
