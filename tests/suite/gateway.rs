//! The edge: a proxy that serves a Gateway. TLS that ends there, its routes and policies, and what its records say.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use fips::ca::Profile;
use fips::jws::Algorithm;
use http::Request;
use tests::{
    App, Caller, Client, Directory, H2Client, Issuer, Mesh, Pki, Reply, Server, TlsClient, World, free_port,
};

use crate::backend_tls;

const HOUR: Duration = Duration::from_secs(3600);

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Ports of a Gateway.
struct Ports {
    web: u16,
    tls: u16,
}

impl Ports {
    fn free() -> Self {
        Self { web: free_port(), tls: free_port() }
    }

    /// Plaintext for any host; TLS for `*.example.com` and, as a listener of its own, for `other.test`.
    fn gateway(&self) -> String {
        let tls = |name: &str, hostname: &str| {
            format!(
                "{{name: {name}, port: {}, protocol: HTTPS, hostname: '{hostname}', tls: {{certificateRefs: [{{name: {name}}}]}}}}",
                self.tls
            )
        };
        gateway(&[
            format!("{{name: web, port: {}, protocol: HTTP}}", self.web),
            tls("shop", "*.example.com"),
            tls("other", "other.test"),
        ])
    }

    async fn tls_client(&self, name: &str) -> TlsClient {
        browser().connect_to(at(self.tls), name).await
    }
}

fn gateway(listeners: &[String]) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: front, namespace: bookinfo}}
spec:
  gatewayClassName: writ
  addresses: [{{value: 127.0.0.1}}]
  listeners: [{}]
",
        listeners.join(", ")
    )
}

fn browser() -> Caller {
    Caller::anonymous().offering(&["http/1.1"])
}

fn secret(name: &str, (certificate, key): &(String, String)) -> String {
    backend_tls::secret(name, &[("tls.crt", certificate), ("tls.key", key)])
}

/// `/ratings` of any host goes to ratings; of `a.example.com` also `/own`.
const ROUTES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: any, namespace: bookinfo}
spec:
  parentRefs: [{name: front}]
  rules: [{matches: [{path: {value: /ratings}}], backendRefs: [{name: ratings, port: 9080}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: own, namespace: bookinfo}
spec:
  parentRefs: [{name: front}]
  hostnames: [a.example.com]
  rules: [{matches: [{path: {value: /own}}], backendRefs: [{name: ratings, port: 9080}]}]
";

/// A mesh whose application is ratings, behind a sidecar; certificates are of `web`.
fn world(app: &App, web: &Pki, ports: &Ports) -> World {
    world_of(app, web, &ports.gateway(), ROUTES)
}

/// The same by another Gateway and routes.
fn world_of(app: &App, web: &Pki, gateway: &str, routes: &str) -> World {
    let pair = |name: &str| web.issue(&Profile::server(&[name], HOUR));
    World::new()
        .server(Server::new("ratings", app))
        .with_gateway()
        .policy(gateway)
        .policy(routes)
        .policy(&secret("shop", &pair("*.example.com")))
        .policy(&secret("other", &pair("other.test")))
}

async fn ask<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    client: &mut Client<IO>,
    host: &str,
    path: &str,
    headers: &str,
) -> Reply {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n")).await;
    client.reply().await
}

async fn until_closed(port: u16) {
    tests::soon("the end of the port", async {
        while tokio::net::TcpStream::connect(at(port)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn until_ready(mesh: &Mesh, asked: impl Fn(&str) -> bool) {
    tests::soon("readiness", async {
        while !asked(&mesh.ready("front").await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn requests_from_outside_go_where_routes_say_and_over_mutual_tls() {
    let (app, web, ports) = (App::echo().await, Pki::new(), Ports::free());
    let mesh = world(&app, &web, &ports).start().await;
    let mut client = ports.tls_client("a.example.com").await;
    let spoofed = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: ftp\r\nForwarded: for=192.0.2.1\r\n\
                   X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/a/sa/b\r\n";
    for (host, path, status) in [
        ("a.example.com", "/ratings/1", 200),
        ("A.example.com:443", "/own", 200),
        ("b.example.com", "/ratings/2", 200),
        ("b.example.com", "/own", 404),
        ("a.example.com", "/nowhere", 404),
        ("other.test", "/ratings/3", 421),
        ("unknown.test", "/ratings/4", 404),
    ] {
        assert_eq!(ask(&mut client, host, path, spoofed).await.status, status, "{host}{path}");
    }
    let mut plain = Client::connect(at(ports.web)).await;
    assert_eq!(ask(&mut plain, "unknown.test", "/ratings/plain", "").await.status, 200);

    let seen = app.seen();
    assert_eq!(seen.len(), 4);
    assert_eq!(seen[0].values("x-forwarded-for"), ["192.0.2.1, 127.0.0.1"]);
    assert_eq!(seen[0].values("x-forwarded-proto"), ["https"]);
    assert_eq!(seen[0].values("forwarded"), [] as [&str; 0]);
    assert!(
        seen[0].values("x-forwarded-client-cert")[0].contains("/sa/front"),
        "the gateway's own, and no other"
    );
    assert_eq!(seen[0].values("host"), ["a.example.com"]);
    assert_eq!(seen[3].values("x-forwarded-proto"), ["http"]);

    let records = mesh.stop().await;
    let edge = records.of("gateway", "/ratings/1");
    assert_eq!(edge.check("encryption"), "pass tls by Gateway bookinfo/front");
    assert_eq!(edge.text("/decision/checks/0/policy/kind"), "Gateway");
    assert_eq!(edge.text("/decision/checks/0/evidence/sni"), "a.example.com");
    assert_eq!(edge.check("service-authentication"), "not-required no-identity");
    assert_eq!(
        (edge.route(), edge.text("/destination/service")),
        ("HTTPRoute bookinfo/any rule 0".into(), "front.bookinfo/shop")
    );
    assert_eq!(edge.text("/route/attempts/0/identity"), "spiffe://cluster.local/ns/bookinfo/sa/ratings");
    let inbound = records.of("inbound", "/ratings/1");
    assert_eq!(inbound.text("/source/identity"), "spiffe://cluster.local/ns/bookinfo/sa/front");
    assert_eq!(inbound.text("/previous"), edge.id());
    assert_eq!(records.of("gateway", "/ratings/3").ended(), "misdirected at route");
    assert_eq!(records.of("gateway", "/nowhere").ended(), "no-route at route");
    assert_eq!(
        records.of("gateway", "/ratings/plain").check("encryption"),
        "pass plaintext-permitted by Gateway bookinfo/front"
    );
}

#[tokio::test]
async fn browsers_speak_http2_and_servers_need_not() {
    let (web, ports) = (Pki::new(), Ports::free());
    let app =
        App::answering(|seen| http::Response::new(Bytes::from(format!("{:?}", seen.head.version)))).await;
    let pair = web.issue(&Profile::server(&["*.example.com"], HOUR));
    let mesh = World::new()
        .server(Server::new("ratings", &app).without_sidecar())
        .with_gateway()
        .policy(&ports.gateway())
        .policy(ROUTES)
        .policy(&secret("shop", &pair))
        .start()
        .await;
    let client = browser().offering(&["h2", "http/1.1"]).connect_to(at(ports.tls), "a.example.com").await;
    let client = H2Client::over(client.into_io()).await;
    let get = |path: &str| Request::get(format!("https://a.example.com{path}")).body(Bytes::new()).unwrap();
    let reply = client.send(get("/ratings/1")).await;
    assert_eq!((reply.status, &reply.body[..]), (200, &b"HTTP/1.1"[..]));
    let mut grpc = get("/ratings/grpc");
    grpc.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    assert_eq!(client.send(grpc).await.body, "HTTP/2.0");
    let records = mesh.stop().await;
    assert_eq!(records.of("gateway", "/ratings/1").text("/request/protocol"), "HTTP/2");
}

#[tokio::test]
async fn policies_of_the_gateway_decide_before_its_routes() {
    let (app, web, ports) = (App::echo().await, Pki::new(), Ports::free());
    let issuer = Issuer::start(Algorithm::Es256).await;
    let target = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: front}]";
    let policies = format!(
        "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: users, namespace: bookinfo}}
spec:
  {target}
  jwtRules:
  - issuer: {issuer}
    audiences: [ratings]
    outputClaimToHeaders: [{{header: x-user, claim: sub}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: users-only, namespace: bookinfo}}
spec:
  {target}
  rules: [{{from: [{{source: {{requestPrincipals: ['*']}}}}]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: from-the-edge, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  rules: [{{from: [{{source: {{principals: [cluster.local/ns/bookinfo/sa/front]}}}}]}}]
",
        issuer = issuer.name()
    );
    let mesh = world(&app, &web, &ports).issuer(&issuer).policy(&policies).start().await;
    let mut client = ports.tls_client("a.example.com").await;
    let bearer = format!("Authorization: Bearer {}\r\nX-User: root\r\n", issuer.alice());
    assert_eq!(ask(&mut client, "a.example.com", "/ratings/1", &bearer).await.status, 200);
    assert_eq!(ask(&mut client, "a.example.com", "/ratings/2", "X-User: root\r\n").await.status, 403);
    assert_eq!(
        ask(&mut client, "a.example.com", "/nowhere", "").await.status,
        403,
        "who may not is told nothing"
    );
    assert_eq!(ask(&mut client, "a.example.com", "/nowhere", &bearer).await.status, 404);
    assert_eq!(
        ask(&mut client, "a.example.com", "/ratings/3", "Authorization: Bearer x.y.z\r\n").await.status,
        401
    );
    assert_eq!(app.only().values("x-user"), ["alice"]);
    // Whoever is not the gateway is not let in beside it.
    assert_eq!(mesh.get("/ratings/beside").await.status, 403);
    let records = mesh.stop().await;
    let edge = records.of("gateway", "/ratings/1");
    assert_eq!(edge.checks().len(), 5);
    assert_eq!(
        edge.check("user-authentication"),
        "pass jwt-verified by RequestAuthentication bookinfo/users rule 0"
    );
    assert_eq!(
        edge.check("user-authorization"),
        "pass matched-allow by AuthorizationPolicy bookinfo/users-only rule 0"
    );
    assert_eq!(edge.text("/decision/policy/name"), "users-only");
    assert_eq!(records.of("gateway", "/ratings/2").ended(), "no-allow-matched at authorize");
}

#[tokio::test]
async fn what_was_allowed_ends_when_a_policy_of_the_gateway_no_longer_allows_it() {
    let (app, web, ports) = (
        App::answering_bytes("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun").await,
        Pki::new(),
        Ports::free(),
    );
    let mesh = world(&app, &web, &ports).start().await;
    let mut client = ports.tls_client("a.example.com").await;
    client.send("GET /ratings/stream HTTP/1.1\r\nHost: a.example.com\r\n\r\n").await;
    assert_eq!(client.head().await.status, 200);
    mesh.config().write(
        "deny.yaml",
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: bookinfo}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: front}]
  action: DENY
  rules: [{to: [{operation: {paths: [/ratings/stream]}}]}]
",
    );
    let cut = mesh.record("the cut stream", |record| record.side() == "gateway").await;
    assert_eq!(cut.text("/ended/reason"), "policy-changed");
    assert_eq!(
        ask(&mut ports.tls_client("a.example.com").await, "a.example.com", "/ratings/stream", "")
            .await
            .status,
        403
    );
}

#[tokio::test]
async fn listeners_come_and_go_with_the_gateway() {
    let (app, ports) = (App::echo().await, Ports::free());
    let one = |port: u16| gateway(&[format!("{{name: web, port: {port}, protocol: HTTP}}")]);
    let mesh = World::new().server(Server::new("ratings", &app)).with_gateway().policy(ROUTES).start().await;
    let not_ready = mesh.ready("front").await;
    assert!(
        not_ready.contains("gateway: bookinfo/front: the configuration has no such Gateway"),
        "{not_ready}"
    );
    mesh.config().write("gateway.yaml", &one(ports.web));
    until_ready(&mesh, |ready| ready == "ready\n").await;
    let mut kept = Client::connect(at(ports.web)).await;
    assert_eq!(ask(&mut kept, "a", "/ratings/1", "").await.status, 200);

    // Another port instead, which is taken at first.
    let taken = std::net::TcpListener::bind(at(ports.tls)).unwrap();
    mesh.config().write("gateway.yaml", &one(ports.tls));
    until_closed(ports.web).await;
    until_ready(&mesh, |ready| ready.contains("another process is there")).await;
    kept.rest().await;
    drop(taken);
    until_ready(&mesh, |ready| ready == "ready\n").await;
    assert_eq!(ask(&mut Client::connect(at(ports.tls)).await, "a", "/ratings/3", "").await.status, 200);
}

#[tokio::test]
async fn certificates_are_replaced_and_one_that_does_not_fit_replaces_nothing() {
    let (app, web, ports) = (App::echo().await, Pki::new(), Ports::free());
    let mesh = world(&app, &web, &ports).start().await;
    let (first, second) = (
        web.issue(&Profile::server(&["a.example.com"], HOUR)),
        web.issue(&Profile::server(&["*.example.com"], HOUR)),
    );
    let shown = |client: &TlsClient| client.server();
    let mut kept = ports.tls_client("a.example.com").await;
    let before = shown(&kept);
    let config = mesh.config();
    // The third document of the world.
    let replace = |pair: &(String, String)| config.write("policy-2.yaml", &secret("shop", pair));
    replace(&first);
    let changed = async |before: &rustls::pki_types::CertificateDer<'static>| {
        tests::soon("another certificate", async {
            loop {
                let now = shown(&ports.tls_client("a.example.com").await);
                if now != *before {
                    return now;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    };
    let one = changed(&before).await;
    assert_eq!(ask(&mut kept, "a.example.com", "/ratings/1", "").await.status, 200, "no connection is lost");
    replace(&(second.0.clone(), first.1.clone()));
    let told = mesh
        .admin_says("front", "/config", |config| config.to_string().contains("the one before stays in use"))
        .await;
    assert!(told.to_string().contains("the key is not that of the certificate"), "{told}");
    assert_eq!(shown(&ports.tls_client("a.example.com").await), one);
    replace(&second);
    changed(&one).await;
}

#[tokio::test]
async fn sessions_are_resumed_by_the_listener_that_gave_the_ticket_and_by_no_other() {
    let (app, web, ports) = (App::echo().await, Pki::new(), Ports::free());
    let mesh = world(&app, &web, &ports).start().await;
    let caller = browser();
    let connect = async |name: &str| {
        let mut client = caller.connect_to(at(ports.tls), name).await;
        // The ticket comes with the answer.
        assert_eq!(ask(&mut client, name, "/ratings/1", "").await.status, 200);
        client.is_resumed()
    };
    assert!(!connect("a.example.com").await);
    assert!(connect("a.example.com").await);
    assert!(!connect("b.example.com").await, "another name");
    assert!(!connect("other.test").await, "another listener");
    let other = web.issue(&Profile::server(&["*.example.com"], HOUR));
    mesh.config().write("policy-2.yaml", &secret("shop", &other));
    tests::soon("a full handshake", async {
        while connect("a.example.com").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let records = mesh.stop().await;
    for record in records.side("gateway") {
        assert_eq!(record.check("encryption"), "pass tls by Gateway bookinfo/front");
        assert_eq!(record.text("/decision/checks/0/evidence/group"), "X25519MLKEM768");
    }
}

#[tokio::test]
async fn what_is_no_tls_of_a_listener_is_refused_and_recorded() {
    let (app, web, ports) = (App::echo().await, Pki::new(), Ports::free());
    let pair = web.issue(&Profile::server(&["*.example.com"], HOUR));
    let mesh = World::new()
        .server(Server::new("ratings", &app))
        .with_gateway()
        .policy(&ports.gateway())
        .policy(ROUTES)
        .policy(&secret("shop", &pair))
        .start()
        .await;
    let mut plain = Client::connect(at(ports.tls)).await;
    plain.send("GET /ratings/1 HTTP/1.1\r\nHost: a.example.com\r\n\r\n").await;
    plain.rest().await;
    for name in ["nobody.test", "other.test", "127.0.0.1"] {
        assert!(browser().try_connect_to(at(ports.tls), name).await.is_err(), "{name}");
    }
    // Not HTTP on a port of HTTP.
    let mut opaque = Client::connect(at(ports.web)).await;
    opaque.send(b"\x00\x01\x02\x03 no request").await;
    opaque.rest().await;
    assert_eq!(app.connections(), 0);
    let records = mesh.stop().await;
    let told: Vec<_> = records
        .side("gateway")
        .iter()
        .map(|record| format!("{}: {}", record.ended(), record.detail()))
        .collect();
    for wanted in [
        "no listener is for server name nobody.test",
        "no Secret bookinfo/other",
        "the client names no server, and no listener is for any",
        "not-detected at detect",
    ] {
        assert!(told.iter().any(|told| told.contains(wanted)), "{wanted}: {told:?}");
    }
    assert_eq!(told.len(), 5, "{told:?}");
}

#[tokio::test]
async fn routes_redirect_and_rewrite() {
    let (app, web, ports) = (App::echo().await, Pki::new(), Ports::free());
    let to_https = free_port();
    let listeners = ports
        .gateway()
        .replace("listeners: [", &format!("listeners: [{{name: moved, port: {to_https}, protocol: HTTP}}, "));
    let routes = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: to-https, namespace: bookinfo}
spec:
  parentRefs: [{name: front, sectionName: moved}]
  rules: [{filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, namespace: bookinfo}
spec:
  parentRefs: [{name: front, sectionName: shop}]
  rules:
  - matches: [{path: {value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]
  - matches: [{path: {value: /api}}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: ratings.test, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: ratings, port: 9080}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-there, namespace: bookinfo}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: front}]
  action: DENY
  rules: [{to: [{operation: {paths: [/old/closed, /secret]}}]}]
";
    let mesh = world_of(&app, &web, &listeners, routes).start().await;
    let mut plain = Client::connect(at(to_https)).await;
    for path in ["/a?b=c", "/secret"] {
        let reply = ask(&mut plain, &format!("a.example.com:{to_https}"), path, "").await;
        let location = format!("https://a.example.com{path}");
        assert_eq!((reply.status, reply.header("location")), (301, Some(location.as_str())));
    }
    let mut client = ports.tls_client("a.example.com").await;
    let reply = ask(&mut client, "a.example.com", "/old/x", "").await;
    let location = format!("https://a.example.com:{}/new/x", ports.tls);
    assert_eq!((reply.status, reply.header("location")), (302, Some(location.as_str())));
    assert_eq!(ask(&mut client, "a.example.com", "/old/closed", "").await.status, 403, "policies come first");
    assert_eq!(ask(&mut client, "a.example.com", "/api/v1?q=1", "").await.status, 200);
    let seen = app.only();
    assert_eq!((seen.head.uri.to_string().as_str(), seen.values("host")), ("/v1?q=1", vec!["ratings.test"]));
    let records = mesh.stop().await;
    let moved = records.of("gateway", "/secret");
    assert_eq!(moved.ended(), "redirected at route");
    assert_eq!(
        (moved.text("/decision/outcome"), moved.route()),
        ("allow", "HTTPRoute bookinfo/to-https rule 0".into())
    );
    assert_eq!(records.of("gateway", "/api/v1").status(), 200, "the record has what was asked");
}

#[tokio::test]
async fn no_port_behind_a_host_slips_by_a_policy_and_nobody_says_for_the_edge_how_a_request_came() {
    let (app, web, ports) = (App::echo().await, Pki::new(), Ports::free());
    let policies = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-these, namespace: bookinfo}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: front}]
  action: DENY
  rules: [{to: [{operation: {hosts: [admin.example.com, 'other.example.com:8080', 'third.example.com:*']}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: forged, namespace: bookinfo}
spec:
  parentRefs: [{name: front}]
  rules:
  - matches: [{path: {value: /forged}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Forwarded-For, value: 192.0.2.9}]}}]
    backendRefs: [{name: ratings, port: 9080}]
";
    let _mesh = world(&app, &web, &ports).policy(policies).start().await;
    let mut client = Client::connect(at(ports.web)).await;
    for host in ["admin.example.com", "other.example.com", "third.example.com"] {
        for port in ["", ":80", ":8080", ":1"] {
            assert_eq!(
                ask(&mut client, &format!("{host}{port}"), "/ratings/1", "").await.status,
                403,
                "{host}{port}"
            );
        }
    }
    let twins = "X_Forwarded_Proto: https\r\nX-Forwarded_For: 127.0.0.1\r\nX_Forwarded_Host: a\r\n";
    assert_eq!(ask(&mut client, "a.example.com:99", "/forged", twins).await.status, 200);
    let seen = app.only();
    assert_eq!(seen.values("x-forwarded-for"), ["192.0.2.9, 127.0.0.1"]);
    assert!(seen.head.headers.keys().all(|name| !name.as_str().contains('_')), "{:?}", seen.head.headers);
}

#[tokio::test]
async fn what_leads_back_to_the_edge_goes_nowhere() {
    let ports = Ports::free();
    let back = format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: back, namespace: bookinfo}}
spec: {{ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: back, namespace: bookinfo, labels: {{kubernetes.io/service-name: back}}}}
addressType: IPv4
ports: [{{port: {}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: back, namespace: bookinfo}}
spec:
  parentRefs: [{{name: front}}]
  rules: [{{backendRefs: [{{name: back, port: 80}}]}}]
",
        ports.web
    );
    let mesh = World::new()
        .with_gateway()
        .policy(&gateway(&[format!("{{name: web, port: {}, protocol: HTTP}}", ports.web)]))
        .policy(&back)
        .start()
        .await;
    let mut client = Client::connect(at(ports.web)).await;
    assert!(ask(&mut client, "a", "/loop", "").await.status >= 500);
    let records = mesh.stop().await;
    assert_eq!(records.only("gateway").ended(), "loop-detected at pick");
}

#[test]
fn explain_knows_the_edge() {
    let (web, ports) = (Pki::new(), Ports::free());
    let directory = Directory::new();
    let pair = web.issue(&Profile::server(&["*.example.com"], HOUR));
    directory.write("gateway.yaml", &ports.gateway());
    directory.write("routes.yaml", ROUTES);
    directory.write("secret.yaml", &secret("shop", &pair));
    let explain = |url: &str| {
        let mut command = std::process::Command::new(tests::program::writ());
        command
            .args(["explain", "--gateway", "bookinfo/front", "--url", url, "--config"])
            .arg(directory.path());
        let out = tests::program::Finished::of(&mut command).well();
        serde_json::from_str::<serde_json::Value>(&out).unwrap()
    };
    let found = explain(&format!("https://a.example.com:{}/nowhere", ports.tls));
    assert_eq!(found["decision"]["reason"], "no-route");
    assert_eq!(found["destination"]["service"], "front.bookinfo/shop");
    let found = explain(&format!("http://a.example.com:{}/ratings/1", ports.tls));
    assert_eq!(found["decision"]["reason"], "policy-changed", "plaintext where TLS is asked for");
}
