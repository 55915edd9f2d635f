//! Clients that stall, at every place where something is waited for: each meets its deadline, and its record says where.

use std::time::Duration;

use http::Response;
use proxy::worker::Deadlines;
use tests::{App, Client, H2Client, Mesh, Record, Server, World, request, soon};

/// Long enough for what is well, short enough for a test to wait for.
const SHORT: Duration = Duration::from_millis(300);
const STRICT: &str = crate::policy::POLICIES;

async fn ratings(app: &App, deadlines: Deadlines) -> Mesh {
    World::new().server(Server::new("ratings", app)).deadlines(deadlines).start().await
}

/// With one proxy on the way: of two with the same deadline, either may be first.
async fn unguarded(app: &App, deadlines: Deadlines) -> Mesh {
    World::new().server(Server::new("ratings", app).without_sidecar()).deadlines(deadlines).start().await
}

/// Sends bytes, then stalls: what came back until the proxy ended the connection, and the record.
async fn stalled(mesh: &Mesh, to: std::net::SocketAddr, bytes: &[u8]) -> (String, Record) {
    let mut client = Client::connect(to).await;
    let source = client.address().to_string();
    client.send(bytes).await;
    let rest = String::from_utf8_lossy(&client.rest().await).into_owned();
    let what = String::from_utf8_lossy(bytes).into_owned();
    (rest, mesh.record(&what, |record| record.text("/source/address") == source).await)
}

#[tokio::test]
async fn in_detection() {
    let app = App::echo().await;
    let deadlines = Deadlines { detect: SHORT, handshake: SHORT, idle: SHORT, ..Deadlines::default() };
    let mesh = ratings(&app, deadlines).await;
    for (to, bytes) in [(mesh.entrance, ""), (mesh.entrance, "GE"), (mesh.inbound("ratings"), "GE")] {
        let (rest, record) = stalled(&mesh, to, bytes.as_bytes()).await;
        assert_eq!(
            (rest.as_str(), record.ended().as_str()),
            ("", "not-detected at detect"),
            "{bytes:?}: {record:?}"
        );
    }
    // A silent client of a permissive port may be waiting for its server; the server is silent as well.
    let (rest, record) = stalled(&mesh, mesh.inbound("ratings"), b"").await;
    assert_eq!((rest.as_str(), record.ended().as_str()), ("", "client-stalled at relay"), "{record:?}");
    assert_eq!(mesh.stop().await.all().len(), 4);
}

#[tokio::test]
async fn in_the_handshake() {
    let app = App::echo().await;
    let deadlines = Deadlines { handshake: SHORT, ..Deadlines::default() };
    let mesh =
        World::new().server(Server::new("ratings", &app)).policy(STRICT).deadlines(deadlines).start().await;
    let hello = mesh.pki.caller("productpage").client_hello();
    for bytes in [&hello[..], &hello[..40]] {
        let (_, record) = stalled(&mesh, mesh.inbound("ratings"), bytes).await;
        assert_eq!(record.ended(), "handshake-failed at terminate", "{record:?}");
        assert!(record.detail().contains("the client stalled"), "{record:?}");
    }
    let (rest, record) = stalled(&mesh, mesh.inbound("ratings"), b"").await;
    assert_eq!((rest.as_str(), record.text("/decision/outcome")), ("", "deny"), "{record:?}");
    assert_eq!(app.connections(), 0);
    assert_eq!(mesh.stop().await.all().len(), 3);
}

/// Where plaintext is permitted as well, half a ClientHello is still no plaintext.
#[tokio::test]
async fn in_the_handshake_of_a_permissive_port() {
    let app = App::tcp_echo().await;
    let mesh = ratings(&app, Deadlines { handshake: SHORT, ..Deadlines::default() }).await;
    let hello = mesh.pki.caller("productpage").client_hello();
    let (_, record) = stalled(&mesh, mesh.inbound("ratings"), &hello[..40]).await;
    assert_eq!(record.ended(), "handshake-failed at terminate", "{record:?}");
    assert_eq!(app.connections(), 0);
    mesh.stop().await.only("inbound");
}

#[tokio::test]
async fn in_the_head() {
    let app = App::echo().await;
    let mesh = ratings(&app, Deadlines { head: SHORT, ..Deadlines::default() }).await;
    let (rest, record) = stalled(&mesh, mesh.entrance, b"GET /stalled HTTP/1.1\r\nHost: rat").await;
    assert!(rest.starts_with("HTTP/1.1 408 "), "{rest}");
    assert_eq!((record.status(), record.ended().as_str()), (408, "client-stalled at sanitize"));
    assert_eq!((record.text("/request/method"), record.path()), ("GET", "/stalled"));
    assert_eq!(mesh.stop().await.all().len(), 1);
}

/// A head that comes byte by byte gets no more time than one that stops.
#[tokio::test]
async fn in_a_head_that_drips() {
    let app = App::echo().await;
    let mesh = ratings(&app, Deadlines { head: SHORT, ..Deadlines::default() }).await;
    let mut client = mesh.client().await;
    client.send("GET / HTTP/1.1\r\nHost: ratings:9080\r\nX-Long: ").await;
    let dripping = async {
        let mut interval = tokio::time::interval(SHORT / 20);
        while client.try_send("x").await.is_ok() {
            interval.tick().await;
        }
    };
    soon("the end of a dripping head", dripping).await;
    assert_eq!(mesh.stop().await.only("outbound").ended(), "client-stalled at sanitize");
}

#[tokio::test]
async fn in_the_body() {
    let app = App::echo().await;
    let mesh = unguarded(&app, Deadlines { body: SHORT, ..Deadlines::default() }).await;
    let request = "POST /body HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 10\r\n\r\nfour";
    let (rest, record) = stalled(&mesh, mesh.entrance, request.as_bytes()).await;
    assert!(rest.starts_with("HTTP/1.1 408 "), "{rest}");
    assert_eq!((record.status(), record.text("/ended/reason")), (408, "client-stalled"), "{record:?}");
    assert_eq!(record.number("/request/bytes"), 4);
    assert_eq!(mesh.stop().await.all().len(), 1);
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn in_the_body_of_a_stream() {
    let app = App::echo().await;
    let mesh = unguarded(&app, Deadlines { body: SHORT, ..Deadlines::default() }).await;
    let client = H2Client::connect(mesh.entrance).await;
    let stream = client.open(request("POST", "/body", ())).await;
    assert_eq!(stream.status(), 408);
    let record = mesh.record("the outbound record", |record| record.path() == "/body").await;
    assert_eq!((record.status(), record.text("/ended/reason")), (408, "client-stalled"), "{record:?}");
    assert_eq!(client.get("/next").await.status, 200, "the connection's other streams go on");
    assert_eq!(mesh.stop().await.all().len(), 2);
    assert_eq!(app.requests(), 1);
}

/// What a server began to answer may wait long for more of its request, but not for ever.
#[tokio::test]
async fn in_a_stream_that_is_being_answered() {
    let app = App::streaming().await;
    let deadlines = Deadlines { body: SHORT, write: SHORT, idle: 4 * SHORT, ..Deadlines::default() };
    let mesh = unguarded(&app, deadlines).await;
    let client = H2Client::connect(mesh.entrance).await;
    let mut stream = client.open(request("POST", "/chat", ())).await;
    stream.send("one").await;
    assert_eq!(stream.data().await.unwrap(), "one");
    assert!(stream.is_reset().await);
    let record = mesh.record("the outbound record", |record| record.path() == "/chat").await;
    assert_eq!(record.ended(), "client-stalled at relay", "{record:?}");
    assert!(record.number("/duration_us/total") >= (4 * SHORT).as_micros() as u64, "{record:?}");
    assert_eq!(mesh.stop().await.all().len(), 1);
}

/// A gRPC call on which nobody has anything to say for a while is no client that stalls.
#[tokio::test]
async fn a_quiet_call_is_left_alone() {
    let app = App::streaming().await;
    let deadlines = Deadlines { body: SHORT, write: SHORT, ..Deadlines::default() };
    let mesh = ratings(&app, deadlines).await;
    let client = H2Client::connect(mesh.entrance).await;
    let mut head = request("POST", "/chat", ());
    head.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let mut stream = client.open(head).await;
    for word in ["one", "two"] {
        stream.send(word).await;
        assert_eq!(stream.data().await.unwrap(), word);
        tokio::time::sleep(4 * SHORT).await;
    }
    stream.finish();
    assert!(!stream.is_reset().await);
    let records = mesh.stop().await;
    let (outbound, inbound) = records.pair("/chat");
    assert_eq!((outbound.ended(), inbound.ended()), ("complete at relay".into(), "complete at relay".into()));
}

#[tokio::test]
async fn between_requests() {
    let app = App::echo().await;
    let mesh = ratings(&app, Deadlines { idle: SHORT, ..Deadlines::default() }).await;
    let mut client = mesh.client().await;
    assert_eq!(client.get("/", "").await.status, 200);
    assert!(client.rest().await.is_empty());
    let records = mesh.stop().await;
    assert_eq!(records.all().len(), 2, "an idle connection that is closed is no request");
    records.pair("/");
}

#[tokio::test]
async fn in_taking_the_answer() {
    // More than the kernel's buffers on all hops take.
    const LARGE: usize = 64 << 20;
    let app = App::answering_bytes(
        [format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").as_bytes(), &vec![b'x'; LARGE]]
            .concat(),
    )
    .await;
    let mesh = unguarded(&app, Deadlines { write: SHORT, ..Deadlines::default() }).await;
    let mut client = mesh.client().await;
    client.send("GET /untaken HTTP/1.1\r\nHost: ratings:9080\r\n\r\n").await;
    let record = mesh.record("the outbound record", |record| record.side() == "outbound").await;
    assert_eq!(record.ended(), "client-stalled at relay", "{record:?}");
    assert!(record.number("/response/bytes") < LARGE as u64);
    drop(client);
    assert_eq!(mesh.stop().await.all().len(), 1);
}

#[tokio::test]
async fn in_taking_the_answer_of_a_stream() {
    // More than the client's window.
    const LARGE: usize = 8 << 20;
    let app = App::answering(|_| Response::new(vec![b'x'; LARGE].into())).await;
    let mesh = unguarded(&app, Deadlines { write: SHORT, ..Deadlines::default() }).await;
    let client = H2Client::connect(mesh.entrance).await;
    let mut stream = client.ask(request("GET", "/untaken", ())).await;
    let record = mesh.record("the outbound record", |record| record.side() == "outbound").await;
    assert_eq!(record.ended(), "client-stalled at relay", "{record:?}");
    assert!(record.number("/response/bytes") < LARGE as u64);
    assert!(stream.is_reset().await);
    assert_eq!(mesh.stop().await.all().len(), 1);
}

#[tokio::test]
async fn in_a_tunnel() {
    let app = App::tcp_echo().await;
    let mesh = World::new()
        .server(Server::new("ratings", &app).port_name("tcp"))
        .deadlines(Deadlines { idle: SHORT, ..Deadlines::default() })
        .start()
        .await;
    let mut client = Client::connect(mesh.inbound("ratings")).await;
    client.send("once").await;
    assert_eq!(client.bytes(4).await, b"once");
    assert!(client.rest().await.is_empty());
    let records = mesh.stop().await;
    let record = records.only("inbound");
    assert_eq!(record.ended(), "client-stalled at relay");
    assert_eq!((record.number("/request/bytes"), record.number("/response/bytes")), (4, 4));
}

/// A client that half-closes may only be done asking; it gets its answer, but not for ever.
#[tokio::test]
async fn behind_a_half_close() {
    let app = App::silent().await;
    let mesh = ratings(&app, Deadlines { half_close: SHORT, ..Deadlines::default() }).await;
    let mut client = mesh.client().await;
    client.send("GET /half HTTP/1.1\r\nHost: ratings:9080\r\n\r\n").await;
    client.finish().await;
    assert!(client.rest().await.is_empty());
    let record = mesh.record("the outbound record", |record| record.side() == "outbound").await;
    assert_eq!(record.text("/ended/reason"), "client-closed");
    mesh.stop().await.pair("/half");
}
