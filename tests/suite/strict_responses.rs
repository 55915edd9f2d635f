//! Responses with more than one meaning, or none: the caller gets 502 of the proxy's own, and the record says why.

use std::sync::Arc;

use tests::{App, Mesh, Server, World, request_head};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;

#[rustfmt::skip]
const CASES: &[(&str, &str)] = &[
    ("not HTTP", "SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    ("HTTP/2 in HTTP/1", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("a status of four digits", "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"),
    ("a status of letters", "HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n"),
    ("a bare LF after the status line", "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n"),
    ("a bare LF after a field", "HTTP/1.1 200 OK\r\nX-A: 1\nContent-Length: 0\r\n\r\n"),
    ("a bare LF at the end", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n"),
    ("a bare CR in a value", "HTTP/1.1 200 OK\r\nX-A: 1\rX-B: 2\r\nContent-Length: 0\r\n\r\n"),
    ("a NUL in a value", "HTTP/1.1 200 OK\r\nX-A: 1\x002\r\nContent-Length: 0\r\n\r\n"),
    ("a folded field", "HTTP/1.1 200 OK\r\nX-A: 1\r\n 2\r\nContent-Length: 0\r\n\r\n"),
    ("a space before the colon", "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n"),
    ("a field without a colon", "HTTP/1.1 200 OK\r\nX-A\r\nContent-Length: 0\r\n\r\n"),
    ("Content-Length and Transfer-Encoding", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody!"),
    ("a list of lengths", "HTTP/1.1 200 OK\r\nContent-Length: 4, 4\r\n\r\nbody"),
    ("a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\nbody"),
    ("an unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("chunks in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("a body that 204 can't have", "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nbody"),
    ("a switch that nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"),
];

async fn ratings(app: &App) -> Mesh {
    World::new().server(Server::new("ratings", app)).start().await
}

async fn answered_502(what: &str, app: App) {
    let mesh = ratings(&app).await;
    let reply = mesh.get("/").await;
    assert_eq!((reply.status, reply.text()), (502, "Bad Gateway"), "{what}");
    let records = mesh.stop().await;
    let (outbound, inbound) = records.pair("/");
    assert_eq!(
        (inbound.status(), inbound.ended().as_str()),
        (502, "bad-response at send"),
        "{what}: {inbound:?}"
    );
    assert_eq!(inbound.attempts(), ["bad-response"], "{what}: asked once, since it may have acted");
    assert_eq!(inbound.decision(), "allow at authorize: no-policy", "{what}: what was decided stays true");
    assert!(!inbound.detail().is_empty(), "{what}: the operator is told what is wrong");
    assert_eq!((outbound.status(), outbound.ended().as_str()), (502, "complete at relay"), "{what}");
    assert_eq!(app.requests(), 1, "{what}");
}

#[tokio::test]
async fn heads() {
    for (what, bytes) in CASES {
        answered_502(what, App::answering_bytes(*bytes).await).await;
    }
}

#[tokio::test]
async fn heads_without_bounds() {
    let many: String = (0..101).map(|number| format!("X-{number}: 1\r\n")).collect();
    answered_502("many fields", App::answering_bytes(format!("HTTP/1.1 200 OK\r\n{many}\r\n")).await).await;
    let endless = format!("HTTP/1.1 200 OK\r\nX-A: {}", "a".repeat(256 << 10));
    answered_502("an endless field", App::answering_bytes(endless).await).await;
    let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(1000);
    answered_502("endless interim responses", App::answering_bytes(interim).await).await;
}

/// The head is out when the body breaks: what is left must not end in a way that would make it look whole.
#[tokio::test]
async fn bodies() {
    for (what, rest) in [
        ("a size that is none", "x\r\n"),
        ("a chunk without its end", "4\r\nbodyX\r\n0\r\n\r\n"),
        ("a bare LF after a size", "4\nbody\r\n0\r\n\r\n"),
        ("a size beyond 64 bits", "10000000000000000\r\n"),
    ] {
        let (app, go_on) = breaking(rest).await;
        let mesh = ratings(&app).await;
        let mut client = mesh.client().await;
        client.send("GET / HTTP/1.1\r\nHost: ratings:9080\r\n\r\n").await;
        assert_eq!(client.head().await.status, 200);
        assert_eq!(client.bytes(9).await, b"4\r\ngood\r\n");
        go_on.notify_one();
        let rest = String::from_utf8(client.rest().await).unwrap();
        assert!(!rest.contains("0\r\n\r\n"), "{what}: looks whole: {rest:?}");
        let records = mesh.stop().await;
        let (outbound, inbound) = records.pair("/");
        assert_eq!(inbound.ended(), "bad-response at relay", "{what}: {inbound:?}");
        assert_eq!(outbound.ended(), "upstream-reset at relay", "{what}: {outbound:?}");
        assert_eq!(inbound.status(), 200, "{what}");
        assert_eq!(inbound.decision(), "allow at authorize: no-policy", "{what}");
    }
}

/// Answers with a good head and chunk, and with `rest` when told.
async fn breaking(rest: &'static str) -> (App, Arc<Notify>) {
    let go_on = Arc::<Notify>::default();
    let told = Arc::clone(&go_on);
    let app = App::raw(move |mut socket, log| {
        let told = Arc::clone(&told);
        async move {
            if !request_head(&mut socket).await {
                return;
            }
            log.request();
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n";
            let _ = socket.write_all(head.as_bytes()).await;
            told.notified().await;
            let _ = socket.write_all(rest.as_bytes()).await;
            // Stays open: only what it said can end it.
            request_head(&mut socket).await;
        }
    })
    .await;
    (app, go_on)
}

/// Bytes after the end of a response are not the beginning of the next one.
#[tokio::test]
async fn what_follows_a_response_is_not_the_next_one() {
    let app = App::answering_bytes(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npoison!",
    )
    .await;
    let mesh = ratings(&app).await;
    for path in ["/1", "/2"] {
        assert_eq!(mesh.get(path).await.text(), "ok");
    }
    assert_eq!(app.connections(), 2, "a connection that said too much serves nobody again");
    let records = mesh.stop().await;
    records.pair("/1");
    records.pair("/2");
}
