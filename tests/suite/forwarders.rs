//! Where a request comes from: whose X-Forwarded-For and whose PROXY protocol header is believed.

use tests::{App, Client, Mesh, Server, World};

const FROM_OFFICE: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: from-office, namespace: bookinfo}
spec:
  action: ALLOW
  rules: [{from: [{source: {remoteIpBlocks: [203.0.113.0/24]}}]}]
";

async fn mesh(app: &App, settings: &str) -> Mesh {
    let settings = format!(
        "apiVersion: writ.dev/v1alpha1\nkind: MeshSettings\nmetadata: {{name: mesh}}\nspec: {settings}\n"
    );
    World::new().server(Server::new("ratings", app)).policy(FROM_OFFICE).policy(&settings).start().await
}

const OFFICE: &str = "X-Forwarded-For: 198.51.100.1, 203.0.113.9\r\n";

#[tokio::test]
async fn a_trusted_identity_is_believed_and_others_are_not() {
    let app = App::echo().await;
    let trusted = "{trustedForwarders: {identities: ['spiffe://cluster.local/ns/bookinfo/sa/gateway']}}";
    let mesh = mesh(&app, trusted).await;
    for (account, path, status) in [("gateway", "/believed", 200), ("productpage", "/not", 403)] {
        let mut client = mesh.pki.caller(account).connect(mesh.inbound("ratings")).await;
        assert_eq!(client.get(path, OFFICE).await.status, status, "{path}");
    }
    let mut gateway = mesh.pki.caller("gateway").connect(mesh.inbound("ratings")).await;
    assert_eq!(gateway.get("/elsewhere", "X-Forwarded-For: 203.0.113.9, 198.51.100.1\r\n").await.status, 403);
    assert_eq!(gateway.get("/itself", "").await.status, 403);

    let records = mesh.stop().await;
    let remote = |path: &str| records.of("inbound", path).text("/request/remote").to_owned();
    assert_eq!([remote("/believed"), remote("/not")], ["203.0.113.9", ""]);
    assert_eq!([remote("/elsewhere"), remote("/itself")], ["198.51.100.1", ""]);
}

#[tokio::test]
async fn a_trusted_address_is_believed_and_proxies_in_front_of_it_are_passed_over() {
    let app = App::echo().await;
    let trusted = "{trustedForwarders: {ipBlocks: [127.0.0.0/8], numTrustedProxies: 1}}";
    let mesh = mesh(&app, trusted).await;
    for (path, forwarded, status) in [
        ("/1", "X-Forwarded-For: 203.0.113.9, 198.51.100.1\r\n", 200),
        ("/2", "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 198.51.100.1\r\n", 200),
        ("/3", "X-Forwarded-For: 198.51.100.1, 203.0.113.9\r\n", 403),
        ("/4", "X-Forwarded-For: 203.0.113.9\r\n", 403),
        ("/5", "X-Forwarded-For: 203.0.113.9 or so, 198.51.100.1\r\n", 403),
    ] {
        let mut client = Client::connect(mesh.inbound("ratings")).await;
        assert_eq!(client.get(path, forwarded).await.status, status, "{path}");
    }
    mesh.stop().await;
}

#[tokio::test]
async fn a_balancer_says_by_proxy_protocol_for_whom_it_connects() {
    let app = App::echo().await;
    let port = app.address().port();
    let mesh = mesh(&app, &format!("{{proxyProtocol: {{ports: [{port}], ipBlocks: [127.0.0.0/8]}}}}")).await;
    let v1 = b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\r\n";
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x09\xc0\0\x02\x01\x12\x67\x01\xbb";
    for (path, header) in [("/v1", &v1[..]), ("/v2", &v2[..])] {
        let mut client = Client::connect(mesh.inbound("ratings")).await;
        client.send(header.to_vec()).await;
        assert_eq!(client.get(path, "").await.status, 200, "{path}");
        // Its word is on the connection, and the X-Forwarded-For of a client that nobody trusts adds nothing.
        assert_eq!(client.get("/again", "X-Forwarded-For: 198.51.100.1\r\n").await.status, 200);
    }
    let caller = mesh.pki.caller("productpage");
    let mut client = caller.connect_behind(mesh.inbound("ratings"), v2).await;
    assert_eq!(client.get("/mtls", "").await.status, 200);
    let mut client = Client::connect(mesh.inbound("ratings")).await;
    client.send(b"PROXY UNKNOWN\r\n".to_vec()).await;
    assert_eq!(client.get("/itself", "").await.status, 403);

    let mut client = Client::connect(mesh.inbound("ratings")).await;
    client.send(b"GET /headless HTTP/1.1\r\nHost: ratings\r\n\r\n".to_vec()).await;
    assert!(client.rest().await.is_empty());
    let refused = mesh.record("the refusal", |record| record.ended() == "not-detected at detect").await;
    assert!(refused.detail().contains("PROXY protocol"), "{}", refused.detail());

    let records = mesh.stop().await;
    for path in ["/v1", "/v2", "/mtls"] {
        assert_eq!(records.of("inbound", path).text("/request/remote"), "203.0.113.9", "{path}");
        assert!(records.of("inbound", path).text("/source/address").starts_with("127.0.0.1:"), "{path}");
    }
    assert_eq!(records.of("inbound", "/mtls").check("encryption"), "pass mtls");
}

#[tokio::test]
async fn from_others_a_proxy_header_is_not_read() {
    let app = App::tcp_echo().await;
    let port = app.address().port();
    let settings = format!(
        "apiVersion: writ.dev/v1alpha1\nkind: MeshSettings\nmetadata: {{name: mesh}}\nspec: {{proxyProtocol: {{ports: [{port}], ipBlocks: [192.0.2.0/24]}}}}\n"
    );
    let mesh = World::new().server(Server::new("ratings", &app)).policy(&settings).start().await;
    let mut client = Client::connect(mesh.inbound("ratings")).await;
    let header = b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\r\n";
    client.send(header.to_vec()).await;
    assert_eq!(client.bytes(header.len()).await, header, "it is the application's");
    drop(client);
    mesh.record("the record", |record| record.side() == "inbound").await;
    mesh.stop().await;
}

const REMOTE_LIMIT: &str = "
apiVersion: writ.dev/v1alpha1
kind: RateLimit
metadata: {name: each-client, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  rules: [{key: [remote.ip], local: {requests: 1, per: 1h, burst: 1}}]
";

/// Bytes that are not HTTP, from clients behind a balancer: what comes back, and the refused connections' ends.
async fn behind_a_balancer(policy: &str, clients: &[&str]) -> (Vec<bool>, Vec<(String, String)>) {
    let app = App::tcp_echo().await;
    let port = app.address().port();
    let settings = format!(
        "apiVersion: writ.dev/v1alpha1\nkind: MeshSettings\nmetadata: {{name: mesh}}\nspec: {{proxyProtocol: {{ports: [{port}], ipBlocks: [127.0.0.0/8]}}}}\n"
    );
    let world = World::new().server(Server::new("ratings", &app)).policy(&settings).policy(policy);
    let mesh = world.start().await;
    let mut passed = Vec::new();
    for address in clients {
        let mut client = Client::connect(mesh.inbound("ratings")).await;
        client.send(format!("PROXY TCP4 {address} 192.0.2.1 4711 443\r\n\0\x01opaque")).await;
        client.finish().await;
        passed.push(client.rest().await == b"\0\x01opaque");
    }
    let records = mesh.stop().await;
    let seen = |record: &&tests::Record| (record.text("/request/remote").to_owned(), record.decision());
    let seen = records.side("inbound").iter().map(seen).collect();
    (passed, seen)
}

#[tokio::test]
async fn an_opaque_connection_comes_from_whom_its_balancer_names() {
    let clients = ["203.0.113.9", "198.51.100.1"];
    let (passed, seen) = behind_a_balancer(FROM_OFFICE, &clients).await;
    assert_eq!(passed, [true, false]);
    assert_eq!(seen.iter().map(|(remote, _)| &**remote).collect::<Vec<_>>(), clients);
    assert!(seen[1].1.starts_with("deny at authorize"), "{seen:?}");

    let not_from_office = FROM_OFFICE.replace("ALLOW", "DENY");
    assert_eq!(behind_a_balancer(&not_from_office, &clients).await.0, [false, true]);
    // The balancer itself is nobody's client.
    let loopback = FROM_OFFICE.replace("203.0.113.0/24", "127.0.0.0/8");
    assert_eq!(behind_a_balancer(&loopback, &clients).await.0, [false, false]);
    let balancer = loopback.replace("remoteIpBlocks", "ipBlocks");
    assert_eq!(behind_a_balancer(&balancer, &clients).await.0, [true, true]);
}

#[tokio::test]
async fn opaque_connections_are_counted_by_whom_their_balancer_names() {
    let clients = ["203.0.113.9", "198.51.100.1", "203.0.113.9"];
    assert_eq!(behind_a_balancer(REMOTE_LIMIT, &clients).await.0, [true, true, false]);
}
