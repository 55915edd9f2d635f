//! HTTP/1 through the pair: versions, connections, framings, interim responses.

use bytes::Bytes;
use http::Response;
use tests::{App, Mesh, Server, World};

async fn ratings(app: &App) -> Mesh {
    World::new().server(Server::new("ratings", app)).start().await
}

#[tokio::test]
async fn http_1_0_is_answered_and_closed() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let mut client = mesh.client().await;
    client.send("GET /old HTTP/1.0\r\nHost: ratings:9080\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.text(), reply.chunked), (200, "hello", false));
    assert!(client.rest().await.is_empty());
    let records = mesh.stop().await;
    let (outbound, _) = records.pair("/old");
    assert_eq!(outbound.text("/request/protocol"), "HTTP/1.0");
}

#[tokio::test]
async fn http_1_0_can_ask_to_be_kept() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let mut client = mesh.client().await;
    for path in ["/1", "/2"] {
        client
            .send(format!("GET {path} HTTP/1.0\r\nHost: ratings:9080\r\nConnection: keep-alive\r\n\r\n"))
            .await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.header("connection")), (200, Some("keep-alive")));
    }
    let records = mesh.stop().await;
    records.pair("/1");
    records.pair("/2");
}

#[tokio::test]
async fn connections_are_kept_on_every_hop() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let mut client = mesh.client().await;
    for path in ["/1", "/2", "/3"] {
        assert_eq!(client.get(path, "").await.status, 200);
    }
    assert_eq!(app.connections(), 1);
    client.send("GET /last HTTP/1.1\r\nHost: ratings:9080\r\nConnection: close\r\n\r\n").await;
    assert_eq!(client.reply().await.header("connection"), Some("close"));
    assert!(client.rest().await.is_empty());

    let records = mesh.stop().await;
    let sources: Vec<_> =
        ["/1", "/2", "/3", "/last"].iter().map(|path| records.pair(path).1.text("/source/address")).collect();
    assert!(
        sources.iter().all(|source| source == &sources[0]),
        "one connection between the sidecars: {sources:?}"
    );
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let app = App::answering(|seen| Response::new(Bytes::from(seen.head.uri.path().to_owned()))).await;
    let mesh = ratings(&app).await;
    let mut client = mesh.client().await;
    let requests: String =
        (0..20).map(|number| format!("GET /{number} HTTP/1.1\r\nHost: ratings:9080\r\n\r\n")).collect();
    client.send(requests).await;
    for number in 0..20 {
        assert_eq!(client.reply().await.text(), format!("/{number}"));
    }
    let records = mesh.stop().await;
    for number in 0..20 {
        records.pair(&format!("/{number}"));
    }
}

#[tokio::test]
async fn chunks_and_trailers_go_both_ways() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let mut client = mesh.client().await;
    client
        .send(
            "POST /up HTTP/1.1\r\nHost: ratings:9080\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
             4\r\nwiki\r\n5;extension=1\r\npedia\r\n0\r\nX-Sum: 9\r\n\r\n",
        )
        .await;
    assert_eq!(client.reply().await.text(), "wikipedia");
    let seen = app.only();
    assert_eq!(seen.body, "wikipedia");
    assert_eq!(seen.trailers.unwrap()["x-sum"], "9");
    let records = mesh.stop().await;
    let (outbound, inbound) = records.pair("/up");
    for record in [outbound, inbound] {
        assert_eq!((record.number("/request/bytes"), record.number("/response/bytes")), (9, 9));
    }

    let app = App::answering_bytes(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         4\r\nwiki\r\n5\r\npedia\r\n0\r\nX-Sum: 9\r\n\r\n",
    )
    .await;
    let mesh = ratings(&app).await;
    let reply = mesh.client().await.get("/down", "TE: trailers\r\n").await;
    assert_eq!((reply.text(), reply.chunked), ("wikipedia", true));
    assert_eq!(reply.trailers, [("x-sum".into(), "9".into())]);
    mesh.stop().await.pair("/down");
}

#[tokio::test]
async fn a_client_that_expects_100_continue_is_told_to_go_on() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let mut client = mesh.client().await;
    let head = "POST / HTTP/1.1\r\nHost: ratings:9080\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    client.send(head).await;
    assert_eq!(client.head().await.status_line, "HTTP/1.1 100 Continue");
    client.send("body").await;
    assert_eq!(client.reply().await.text(), "body");
    mesh.stop().await.pair("/");
}

#[tokio::test]
async fn a_refused_expectation_needs_no_body() {
    let app = App::echo().await;
    let mesh =
        World::new().server(Server::new("ratings", &app)).policy(crate::policy::POLICIES).start().await;
    let mut client = mesh.client().await;
    let head =
        "POST /denied HTTP/1.1\r\nHost: ratings:9080\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    client.send(head).await;
    assert_eq!(client.reply().await.status, 403);
    let records = mesh.stop().await;
    let (_, inbound) = records.pair("/denied");
    assert_eq!(inbound.number("/request/bytes"), 0);
    assert_eq!(app.connections(), 0);
}

#[tokio::test]
async fn head_and_bodiless_answers_leave_the_connection_in_step() {
    let app = App::answering(|seen| {
        let status = seen.head.uri.path().trim_start_matches('/').parse().unwrap_or(200);
        let body = if status == 200 { Bytes::from_static(b"12345") } else { Bytes::new() };
        let mut response = Response::builder().status(status);
        if seen.head.method == http::Method::HEAD {
            response = response.header("content-length", body.len());
        }
        response.body(body).unwrap()
    })
    .await;
    let mesh = ratings(&app).await;
    let mut client = mesh.client().await;
    client.send("HEAD /head HTTP/1.1\r\nHost: ratings:9080\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("5")));
    for status in [204, 304] {
        client.send(format!("GET /{status} HTTP/1.1\r\nHost: ratings:9080\r\n\r\n")).await;
        assert_eq!(client.head().await.status, status);
    }
    assert_eq!(client.get("/after", "").await.text(), "12345");
    let records = mesh.stop().await;
    for path in ["/head", "/204", "/304"] {
        let (outbound, inbound) = records.pair(path);
        assert_eq!((outbound.number("/response/bytes"), inbound.number("/response/bytes")), (0, 0), "{path}");
        assert_eq!(outbound.ended(), "complete at relay", "{path}");
    }
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_whole() {
    let app = App::closing_after("HTTP/1.0 200 OK\r\nX-Old: 1\r\n\r\nup to the end").await;
    let mesh = ratings(&app).await;
    let reply = mesh.get("/").await;
    assert_eq!((reply.status, reply.text()), (200, "up to the end"));
    let records = mesh.stop().await;
    assert_eq!(records.pair("/").1.ended(), "complete at relay");
}

#[tokio::test]
async fn interim_responses_are_not_taken_for_the_answer() {
    let app = App::answering_bytes(
        "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfinal",
    )
    .await;
    let mesh = ratings(&app).await;
    let mut client = mesh.client().await;
    client.send("GET / HTTP/1.1\r\nHost: ratings:9080\r\n\r\n").await;
    let reply = loop {
        let reply = client.reply().await;
        if reply.status != 103 {
            break reply;
        }
    };
    assert_eq!((reply.status, reply.text()), (200, "final"));
    let records = mesh.stop().await;
    assert_eq!(records.pair("/").0.status(), 200);
}

const LARGE: usize = 10 << 20;

#[tokio::test]
async fn large_bodies_go_both_ways() {
    let app = App::streaming().await;
    let mesh = ratings(&app).await;
    let client = tokio::net::TcpStream::connect(mesh.entrance).await.unwrap();
    let (read, mut write) = client.into_split();
    // A prime, so that no boundary of any buffer falls on that of the pattern.
    let body: Vec<u8> = (0..LARGE).map(|at| (at % 251) as u8).collect();
    let sent = body.clone();
    let sending = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        let head = format!("POST / HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: {LARGE}\r\n\r\n");
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(&sent).await.unwrap();
        write
    });
    let mut reading = tests::Client::over(tokio::io::join(read, tokio::io::sink()));
    let reply = reading.reply().await;
    sending.await.unwrap();
    assert!(reply.body == body, "{} bytes came back, and not the same", reply.body.len());
    let records = mesh.stop().await;
    let (outbound, inbound) = records.pair("/");
    for record in [outbound, inbound] {
        assert_eq!(
            (record.number("/request/bytes"), record.number("/response/bytes")),
            (LARGE as u64, LARGE as u64)
        );
    }
}
