//! Opaque TCP, and how PeerAuthentication decides between plaintext and mTLS for each port.

use tests::{App, Caller, Client, Mesh, Server, TlsClient, World};

async fn with_mode(app: &App, mode: &str) -> Mesh {
    World::new().server(Server::new("ratings", app)).policy(&peer_authentication(mode)).start().await
}

fn peer_authentication(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: istio-system}}
spec: {{mtls: {{mode: {mode}}}}}
"
    )
}

/// What a sidecar offers for bytes that are not HTTP.
async fn opaque(mesh: &Mesh) -> TlsClient {
    mesh.pki.caller("productpage").offering(&["istio"]).connect(mesh.inbound("ratings")).await
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_half_closes_by_itself() {
    let app = App::measuring().await;
    let mesh = with_mode(&app, "PERMISSIVE").await;
    let mut client = Client::connect(mesh.inbound("ratings")).await;
    client.send(b"\x00\x01opaque").await;
    client.finish().await;
    assert_eq!(client.rest().await, b"8", "the answer comes after our half is closed");

    let records = mesh.stop().await;
    let inbound = records.only("inbound");
    assert_eq!((inbound.text("/request/protocol"), inbound.ended().as_str()), ("tcp", "complete at relay"));
    assert_eq!((inbound.number("/request/bytes"), inbound.number("/response/bytes")), (8, 1));
    assert_eq!(
        inbound.check("encryption"),
        "pass plaintext-permitted by PeerAuthentication istio-system/default"
    );
    assert_eq!(inbound.decision(), "allow at authorize: no-policy");
}

#[tokio::test]
async fn opaque_bytes_over_mtls() {
    let app = App::measuring().await;
    for mode in ["PERMISSIVE", "STRICT"] {
        let mesh = with_mode(&app, mode).await;
        let mut client = opaque(&mesh).await;
        client.send(b"\x00\x01opaque").await;
        client.finish().await;
        assert_eq!(client.rest().await, b"8", "{mode}");
        let records = mesh.stop().await;
        let inbound = records.only("inbound");
        assert_eq!(inbound.check("encryption"), "pass mtls by PeerAuthentication istio-system/default");
        assert_eq!(inbound.text("/source/identity"), "spiffe://cluster.local/ns/bookinfo/sa/productpage");
        assert_eq!((inbound.number("/request/bytes"), inbound.number("/response/bytes")), (8, 1));
        assert_eq!(inbound.ended(), "complete at relay");
    }
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    let app = App::speaking_first("220 ready\r\n").await;
    let mesh = with_mode(&app, "PERMISSIVE").await;
    let mut client = Client::connect(mesh.inbound("ratings")).await;
    assert_eq!(client.bytes(11).await, b"220 ready\r\n");
    client.send("QUIT").await;
    assert_eq!(client.bytes(4).await, b"QUIT");
    client.finish().await;
    assert!(client.rest().await.is_empty());

    let mut secure = opaque(&mesh).await;
    assert_eq!(secure.bytes(11).await, b"220 ready\r\n");
    secure.finish().await;
    assert!(secure.rest().await.is_empty());

    let records = mesh.stop().await;
    let [plain, mtls] = records.side("inbound")[..] else { panic!("two records: {records:#?}") };
    assert_eq!((plain.number("/request/bytes"), plain.number("/response/bytes")), (4, 15));
    assert_eq!((mtls.number("/request/bytes"), mtls.number("/response/bytes")), (0, 11));
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_under_strict_by_mtls_only() {
    let app = App::speaking_first("220 ready\r\n").await;
    let mesh = with_mode(&app, "STRICT").await;
    let mut secure = opaque(&mesh).await;
    assert_eq!(secure.bytes(11).await, b"220 ready\r\n");
    drop(secure);
    // A plaintext client gets nothing of it, however it behaves.
    let mut plain = Client::connect(mesh.inbound("ratings")).await;
    plain.send("EHLO\r\n").await;
    assert!(plain.rest().await.is_empty());
    let refused = mesh.record("the refusal", |record| record.text("/source/identity").is_empty()).await;
    assert_eq!(
        refused.decision(),
        "deny at admit: plaintext-under-strict by PeerAuthentication istio-system/default"
    );
    assert_eq!(
        (refused.ended().as_str(), refused.number("/response/bytes")),
        ("plaintext-under-strict at admit", 0)
    );
    assert_eq!(app.connections(), 1);
    assert_eq!(mesh.stop().await.side("inbound").len(), 2);
}

#[tokio::test]
async fn permissive_takes_both() {
    let app = App::echo().await;
    let mesh = with_mode(&app, "PERMISSIVE").await;
    assert_eq!(Client::connect(mesh.inbound("ratings")).await.get("/plain", "").await.status, 200);
    assert_eq!(mesh.get("/mtls").await.status, 200);
    let records = mesh.stop().await;
    let by = "by PeerAuthentication istio-system/default";
    assert_eq!(records.of("inbound", "/plain").check("encryption"), format!("pass plaintext-permitted {by}"));
    assert_eq!(records.pair("/mtls").1.check("encryption"), format!("pass mtls {by}"));
}

#[tokio::test]
async fn under_permissive_tls_that_is_not_the_meshs_goes_through_as_it_is() {
    let app = App::tcp_echo().await;
    let mesh = with_mode(&app, "PERMISSIVE").await;
    let mut client = Client::connect(mesh.inbound("ratings")).await;
    // A ClientHello without ALPN, as it would be sent to an application that ends TLS itself.
    let hello = Caller::anonymous().offering(&[]).client_hello();
    client.send(&hello).await;
    assert_eq!(client.bytes(hello.len()).await, hello);
    drop(client);
    let record = mesh.record("the record", |record| record.side() == "inbound").await;
    assert_eq!(record.text("/request/protocol"), "tls");
    mesh.stop().await;
}

#[tokio::test]
async fn disable_takes_plaintext_and_does_not_end_tls() {
    let app = App::echo().await;
    let mesh = with_mode(&app, "DISABLE").await;
    assert_eq!(Client::connect(mesh.inbound("ratings")).await.get("/plain", "").await.status, 200);
    assert!(mesh.pki.caller("productpage").try_connect(mesh.inbound("ratings")).await.is_err());
    let records = mesh.stop().await;
    let plain = records.of("inbound", "/plain");
    assert_eq!(
        plain.check("encryption"),
        "pass plaintext-permitted by PeerAuthentication istio-system/default"
    );
}

#[tokio::test]
async fn a_port_level_mode_is_that_ports_alone() {
    let (lax, strict) = (App::echo().await, App::echo().await);
    let policy = format!(
        "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: lax-port, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: lax}}}}
  mtls: {{mode: STRICT}}
  portLevelMtls: {{{}: {{mode: PERMISSIVE}}}}
",
        lax.address().port()
    );
    let mesh = World::new()
        .server(Server::new("lax", &lax))
        .server(Server::new("strict", &strict))
        .policy(&peer_authentication("STRICT"))
        .policy(&policy)
        .start()
        .await;
    assert_eq!(Client::connect(mesh.inbound("lax")).await.get("/lax", "").await.status, 200);
    assert_eq!(Client::connect(mesh.inbound("strict")).await.get("/strict", "").await.status, 403);
    let records = mesh.stop().await;
    assert_eq!(
        records.of("inbound", "/lax").check("encryption"),
        "pass plaintext-permitted by PeerAuthentication bookinfo/lax-port"
    );
    assert_eq!(
        records.of("inbound", "/strict").check("encryption"),
        "fail plaintext-under-strict by PeerAuthentication istio-system/default"
    );
}

/// What lenient servers take for a request: RFC 9112 section 3 names the whitespace, and Python's `http.server` takes more.
const NEARLY_HTTP: [&[u8]; 7] = [
    b" GET /admin HTTP/1.1\r\nHost: ratings\r\n\r\n",
    b"\t\r\n\x0bGET /admin HTTP/1.1\r\nHost: ratings\r\n\r\n",
    b"GET\x0c/admin HTTP/1.1\r\nHost: ratings\r\n\r\n",
    b"GET\r/admin HTTP/1.1\r\nHost: ratings\r\n\r\n",
    b"purge-all /admin\x0bHTTP/1.1\r\nHost: ratings\r\n\r\n",
    b"purge-all\x1f/admin\xa0HTTP/1.1\r\nHost: ratings\r\n\r\n",
    b"a-method-that-is-longer-than-any-that-is-registered /admin\rHTTP/1.1\r\nHost: ratings\r\n\r\n",
];

#[tokio::test]
async fn what_a_lenient_server_takes_for_a_request_does_not_pass_as_opaque() {
    let app = App::tcp_echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).start().await;
    for bytes in NEARLY_HTTP {
        let shown = String::from_utf8_lossy(bytes);
        let mut client = Client::connect(mesh.inbound("ratings")).await;
        client.send(bytes).await;
        assert_eq!(client.reply().await.status, 400, "{shown:?}");
        let mut client = mesh.pki.caller("productpage").connect(mesh.inbound("ratings")).await;
        client.send(bytes).await;
        assert_eq!(client.reply().await.status, 400, "{shown:?}");
    }
    assert_eq!(app.connections(), 0);
    let records = mesh.stop().await;
    let refused = records.side("inbound");
    assert_eq!(refused.len(), 2 * NEARLY_HTTP.len());
    assert!(refused.iter().all(|record| record.ended() == "malformed-request at sanitize"), "{records:#?}");

    // What is declared opaque is nobody's to read.
    let mesh = World::new().server(Server::new("ratings", &app).port_name("tcp")).start().await;
    let mut client = Client::connect(mesh.inbound("ratings")).await;
    client.send(NEARLY_HTTP[0]).await;
    assert_eq!(client.bytes(NEARLY_HTTP[0].len()).await, NEARLY_HTTP[0]);
    drop(client);
    mesh.stop().await;
}

#[tokio::test]
async fn a_port_declared_tcp_is_never_read_as_http() {
    let app = App::tcp_echo().await;
    let mesh = World::new().server(Server::new("ratings", &app).port_name("tcp")).start().await;
    let mut client = Client::connect(mesh.inbound("ratings")).await;
    let bytes = "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    client.send(bytes).await;
    assert_eq!(client.bytes(bytes.len()).await, bytes.as_bytes());
    client.finish().await;
    assert!(client.rest().await.is_empty());
    let records = mesh.stop().await;
    assert_eq!(records.only("inbound").text("/request/protocol"), "tcp");
}

#[tokio::test]
async fn a_port_declared_http_takes_nothing_else() {
    let app = App::tcp_echo().await;
    let mesh = World::new().server(Server::new("ratings", &app).port_name("http")).start().await;
    let mut client = Client::connect(mesh.inbound("ratings")).await;
    client.send(b"\x00\x01\x02\x03").await;
    assert!(client.rest().await.is_empty());
    let records = mesh.stop().await;
    assert_eq!(records.only("inbound").ended(), "not-detected at detect");
    assert_eq!(app.connections(), 0);
}

#[tokio::test]
async fn denied_tcp_is_closed_and_the_policy_named() {
    // HTTP-only conditions make an ALLOW nothing and a DENY everything for opaque bytes.
    const HTTP_ONLY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-posts, namespace: bookinfo}
spec:
  action: DENY
  rules: [{to: [{operation: {methods: [POST]}}]}]
";
    let app = App::tcp_echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).policy(HTTP_ONLY).start().await;
    let mut client = Client::connect(mesh.inbound("ratings")).await;
    client.send(b"\x00\x01\x02\x03").await;
    assert!(client.rest().await.is_empty());
    let records = mesh.stop().await;
    let inbound = records.only("inbound");
    assert_eq!(
        inbound.decision(),
        "deny at authorize: matched-deny by AuthorizationPolicy bookinfo/no-posts rule 0"
    );
    assert_eq!(inbound.ended(), "matched-deny at authorize");
    assert_eq!(app.connections(), 0);
}
