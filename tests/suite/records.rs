//! Exactly one record for each request and connection, whatever happens to it, saying where and why it ended.

use std::time::Duration;

use tests::{App, Client, H2Client, Mesh, Record, Records, Server, World, request};
use tokio::io::AsyncWriteExt as _;

async fn ratings(app: &App) -> Mesh {
    World::new().server(Server::new("ratings", app)).start().await
}

/// Waits until both sides have recorded a path, and gives every record.
async fn both_sides(mesh: Mesh, path: &str) -> Records {
    for side in ["outbound", "inbound"] {
        mesh.record(side, |record| record.side() == side && record.path() == path).await;
    }
    mesh.stop().await
}

fn ends<'r>((outbound, inbound): (&'r Record, &'r Record)) -> [String; 2] {
    [outbound.ended(), inbound.ended()]
}

#[tokio::test]
async fn a_connection_without_a_request_leaves_none() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let mut client = mesh.client().await;
    assert_eq!(client.get("/only", "").await.status, 200);
    client.finish().await;
    assert!(client.rest().await.is_empty());
    let mut waiting = mesh.client().await;
    assert_eq!(waiting.get("/also", "").await.status, 200);
    let records = mesh.stop().await;
    assert!(waiting.rest().await.is_empty());
    assert_eq!(records.all().len(), 4);
    records.pair("/only");
    records.pair("/also");
}

#[tokio::test]
async fn clients_that_leave_before_a_request() {
    const HELLO: usize = 40;
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let hello = mesh.pki.caller("productpage").client_hello();
    let inbound = mesh.inbound("ratings");
    let cases: [(&str, std::net::SocketAddr, &[u8], &str); 5] = [
        ("in detection, inbound", inbound, b"", "client-closed at detect"),
        ("in detection, outbound", mesh.entrance, b"", "client-closed at detect"),
        ("in the handshake", inbound, &hello, "handshake-failed at terminate"),
        ("in the ClientHello", inbound, &hello[..HELLO], "handshake-failed at terminate"),
        ("in the head", mesh.entrance, b"GET /head HTTP/1.1\r\nHost: rat", "client-closed at sanitize"),
    ];
    for (what, to, bytes, ended) in cases {
        let mut client = Client::connect(to).await;
        let source = client.address().to_string();
        if !bytes.is_empty() {
            client.send(bytes).await;
        }
        client.finish().await;
        client.rest().await;
        let record = mesh.record(what, |record| record.text("/source/address") == source).await;
        assert_eq!(record.ended(), ended, "{what}: {record:?}");
        assert_eq!(record.text("/decision/outcome"), "deny", "{what}");
    }
    assert_eq!(mesh.stop().await.all().len(), cases.len());
}

#[tokio::test]
async fn a_client_that_leaves_in_its_body() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let mut client = mesh.client().await;
    client.send("POST /body HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 10\r\n\r\nfour").await;
    // The server's side has a connection to the application once the head is there.
    client.finish().await;
    client.rest().await;
    let records = both_sides(mesh, "/body").await;
    let (outbound, inbound) = records.pair("/body");
    assert_eq!(
        (outbound.text("/ended/reason"), inbound.text("/ended/reason")),
        ("client-closed", "client-closed")
    );
    assert_eq!((outbound.number("/request/bytes"), inbound.number("/request/bytes")), (4, 4));
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits() {
    let app = App::silent().await;
    let mesh = ratings(&app).await;
    let mut client = mesh.client().await;
    client.send("GET /wait HTTP/1.1\r\nHost: ratings:9080\r\n\r\n").await;
    app.has_requests(1).await;
    client.reset();
    let records = both_sides(mesh, "/wait").await;
    let pair = records.pair("/wait");
    assert_eq!(
        (pair.0.text("/ended/reason"), pair.1.text("/ended/reason")),
        ("client-closed", "client-closed")
    );
    assert_eq!((pair.0.status(), pair.1.status()), (0, 0));
}

#[tokio::test]
async fn a_client_that_leaves_in_the_response() {
    let app = App::answering_bytes("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfour").await;
    let mesh = ratings(&app).await;
    let mut client = mesh.client().await;
    client.send("GET /response HTTP/1.1\r\nHost: ratings:9080\r\n\r\n").await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.bytes(4).await, b"four");
    client.reset();
    let records = both_sides(mesh, "/response").await;
    let pair = records.pair("/response");
    assert_eq!(ends(pair), ["client-closed at relay", "client-closed at relay"]);
    assert_eq!((pair.0.status(), pair.0.number("/response/bytes")), (200, 4));
}

/// What a server does to a request before it answers: the caller gets 503 of the server's sidecar.
#[tokio::test]
async fn servers_that_do_not_answer() {
    for (what, app, attempts, ended) in [
        ("refuses", App::refusing(), &["connect-refused"; 3][..], "connect-refused at connect"),
        (
            "resets",
            App::resetting_after("").await,
            &["reset-before-response"],
            "reset-before-response at send",
        ),
        ("closes", App::closing_after("").await, &["reset-before-response"], "reset-before-response at send"),
        (
            "breaks off in the head",
            App::closing_after("HTTP/1.1 200").await,
            &["reset-before-response"],
            "reset-before-response at send",
        ),
    ] {
        let mesh = ratings(&app).await;
        let reply = mesh.get("/").await;
        assert_eq!(reply.status, 503, "{what}");
        let records = mesh.stop().await;
        let (outbound, inbound) = records.pair("/");
        assert_eq!((inbound.status(), inbound.ended().as_str()), (503, ended), "{what}: {inbound:?}");
        assert_eq!(inbound.attempts(), attempts, "{what}");
        assert_eq!(
            inbound.decision(),
            "allow at authorize: no-policy",
            "{what}: what was decided stays true"
        );
        assert_eq!((outbound.status(), outbound.ended().as_str()), (503, "complete at relay"), "{what}");
    }
}

#[tokio::test]
async fn servers_that_break_off_within_the_response() {
    for (what, app) in [
        ("resets", App::resetting_after("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfour").await),
        ("closes", App::closing_after("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfour").await),
        (
            "closes in a chunk",
            App::closing_after("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nA\r\nfour").await,
        ),
        (
            "closes without a last chunk",
            App::closing_after("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n").await,
        ),
    ] {
        let mesh = ratings(&app).await;
        let mut client = mesh.client().await;
        client.send("GET / HTTP/1.1\r\nHost: ratings:9080\r\n\r\n").await;
        assert_eq!(client.head().await.status, 200, "{what}");
        let rest = client.rest().await;
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{what}: looks whole");
        let records = mesh.stop().await;
        let pair = records.pair("/");
        assert_eq!(ends(pair), ["upstream-reset at relay", "upstream-reset at relay"], "{what}: {pair:?}");
        assert_eq!((pair.0.status(), pair.1.status()), (200, 200), "{what}");
    }
}

#[tokio::test]
async fn a_pooled_connection_that_the_server_closed_costs_no_request() {
    const REQUESTS: usize = 50;
    let app = App::closing_after("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let mesh = ratings(&app).await;
    let mut client = mesh.client().await;
    for number in 0..REQUESTS {
        assert_eq!(client.get(&format!("/{number}"), "").await.text(), "ok");
    }
    assert_eq!(app.requests(), REQUESTS);
    let records = mesh.stop().await;
    for number in 0..REQUESTS {
        assert_eq!(ends(records.pair(&format!("/{number}"))), ["complete at relay", "complete at relay"]);
    }
}

#[tokio::test]
async fn tunnels_that_break_off() {
    for (what, ended) in [("the client", "client-closed at relay"), ("the server", "upstream-reset at relay")]
    {
        let app = App::raw(|mut socket, log| async move {
            let _ = socket.write_all(b"hello").await;
            // `x` makes it reset.
            while let Ok(byte) = tokio::io::AsyncReadExt::read_u8(&mut socket).await {
                log.request();
                if byte == b'x' {
                    return socket.set_zero_linger().unwrap();
                }
            }
        })
        .await;
        let mesh = World::new().server(Server::new("ratings", &app).port_name("tcp")).start().await;
        let mut client = Client::connect(mesh.inbound("ratings")).await;
        assert_eq!(client.bytes(5).await, b"hello");
        client.send("abc").await;
        app.has_requests(3).await;
        if what == "the client" {
            client.reset();
        } else {
            client.send("x").await;
            client.rest().await;
        }
        let record = mesh.record(what, |record| record.side() == "inbound").await;
        assert_eq!(record.ended(), ended, "{record:?}");
        let sent = if what == "the client" { 3 } else { 4 };
        assert_eq!((record.number("/request/bytes"), record.number("/response/bytes")), (sent, 5));
        assert_eq!(mesh.stop().await.all().len(), 1);
    }
}

#[tokio::test]
async fn what_goes_on_for_long_says_so_with_its_bytes_so_far() {
    let (app, silent) = (App::streaming().await, App::silent().await);
    let mesh = World::new()
        .server(Server::new("ratings", &app))
        .server(Server::new("reviews", &silent))
        .progress(Duration::from_millis(300))
        .start()
        .await;
    let client = H2Client::connect(mesh.entrance).await;
    let mut stream = client.open(request("POST", "/long", ())).await;
    let mut id = None;
    for (word, bytes) in [("one", 3), ("three", 8)] {
        stream.send(word).await;
        assert_eq!(stream.data().await.unwrap(), word);
        for side in ["outbound", "inbound"] {
            let so_far = |record: &Record| {
                (record.side(), record.path()) == (side, "/long") && record.number("/response/bytes") == bytes
            };
            let progress = mesh.progress("a progress line", so_far).await;
            assert_eq!(progress.number("/request/bytes"), bytes, "{progress:?}");
            assert_eq!(progress.status(), 200, "{progress:?}");
            assert!(progress.number("/progress/total_us") >= 300_000, "{progress:?}");
            assert!(progress.decision().starts_with("allow"), "{progress:?}");
            if side == "inbound" {
                assert_eq!(*id.get_or_insert(progress.id().to_owned()), progress.id());
            }
        }
    }
    // What has no answer yet says what it asks, and how much of it came.
    let mut slow = mesh.client().await;
    slow.send("POST /slow HTTP/1.1\r\nHost: reviews:9080\r\nContent-Length: 100\r\n\r\n0123456789").await;
    let unanswered = |record: &Record| record.path() == "/slow" && record.number("/request/bytes") == 10;
    let progress = mesh.progress("a progress line", unanswered).await;
    assert_eq!(progress.text("/request/method"), "POST", "{progress:?}");
    stream.finish();
    assert!(!stream.is_reset().await);
    drop(slow);
    let records = mesh.stop().await;
    assert_eq!(records.of("inbound", "/long").id(), id.unwrap());
}
