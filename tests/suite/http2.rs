//! HTTP/2 with prior knowledge through the pair, and to applications that speak HTTP/1 only.

use bytes::Bytes;
use http::HeaderMap;
use http::Response;
use tests::{App, H2Client, H2Frames, Mesh, Server, World, request};

async fn ratings(app: &App) -> Mesh {
    World::new().server(Server::new("ratings", app)).start().await
}

#[tokio::test]
async fn many_streams_share_a_connection() {
    const STREAMS: usize = 300;
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let client = H2Client::connect(mesh.entrance).await;
    let mut streams = tokio::task::JoinSet::new();
    for number in 0..STREAMS {
        let client = client.clone();
        streams.spawn(async move {
            let body = Bytes::from(format!("body of {number}"));
            let reply = client.send(request("POST", &format!("/{number}"), body.clone())).await;
            assert_eq!((reply.status, reply.body), (200, body));
        });
    }
    while let Some(done) = streams.join_next().await {
        done.unwrap();
    }
    let records = mesh.stop().await;
    for number in 0..STREAMS {
        let (outbound, inbound) = records.pair(&format!("/{number}"));
        assert_eq!(
            (outbound.text("/request/protocol"), inbound.text("/request/protocol")),
            ("HTTP/2", "HTTP/2")
        );
    }
    let mut sources: Vec<_> =
        records.side("inbound").iter().map(|record| record.text("/source/address")).collect();
    sources.sort_unstable();
    sources.dedup();
    assert!(sources.len() <= 8, "{} connections between the sidecars", sources.len());
}

#[tokio::test]
async fn streams_flow_both_ways_at_once_and_end_with_trailers() {
    let app = App::streaming().await;
    let mesh = ratings(&app).await;
    let client = H2Client::connect(mesh.entrance).await;
    let mut stream = client.open(request("POST", "/chat", ())).await;
    assert_eq!(stream.status(), 200);
    for word in ["one", "two", "three"] {
        stream.send(word).await;
        assert_eq!(stream.data().await.unwrap(), word, "comes back before the next is sent");
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "5".parse().unwrap());
    stream.finish_with(trailers).await;
    assert_eq!(stream.trailers().await["grpc-status"], "5");
    let records = mesh.stop().await;
    let (outbound, inbound) = records.pair("/chat");
    for record in [outbound, inbound] {
        assert_eq!((record.number("/request/bytes"), record.number("/response/bytes")), (11, 11));
        assert_eq!(record.number("/response/grpc_status"), 5);
        assert_eq!(record.ended(), "complete at relay");
    }
}

#[tokio::test]
async fn large_bodies_go_both_ways() {
    const LARGE: usize = 10 << 20;
    let app = App::streaming().await;
    let mesh = ratings(&app).await;
    let client = H2Client::connect(mesh.entrance).await;
    let body: Bytes = (0..LARGE).map(|at| (at % 251) as u8).collect::<Vec<_>>().into();
    let reply = client.send(request("POST", "/", body.clone())).await;
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

/// A client that may be sent everything and reads nothing: what its streams hold is little.
#[tokio::test]
async fn what_a_client_does_not_take_is_left_to_the_application() {
    const STREAMS: u32 = 100;
    static LARGE: [u8; 2 << 20] = [0; 2 << 20];
    let app = App::answering(|_| Response::new(Bytes::from_static(&LARGE))).await;
    let server = Server::new("ratings", &app).port_name("http").without_sidecar();
    let mesh = World::new().server(server).start().await;
    let mut client = mesh.client().await;
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/x"), (":authority", "ratings:9080")];
    let asked = (0..STREAMS)
        .fold(H2Frames::new().taking_all(), |frames, number| frames.headers(1 + 2 * number, &fields, true));
    asked.send(&mut client).await.unwrap();
    app.has_requests(STREAMS as usize).await;
    // Time for what would be held to come.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    drop(client);
    let records = mesh.stop().await;
    let outbound = records.side("outbound");
    assert_eq!(outbound.len(), STREAMS as usize);
    let took: u64 = outbound.iter().map(|record| record.number("/response/bytes")).sum();
    // Of this, the kernel holds up to ten megabytes for the connection.
    assert!(took < 24 << 20, "{took} bytes of {STREAMS} answers");
}

#[tokio::test]
async fn a_port_declared_http_1_is_spoken_to_in_http_1() {
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app).port_name("http")).start().await;
    let client = H2Client::connect(mesh.entrance).await;
    let reply = client.send(request("POST", "/down", Bytes::from_static(b"body"))).await;
    assert_eq!((reply.status, &reply.body[..]), (200, &b"body"[..]));
    let seen = app.only();
    assert_eq!(seen.head.version, http::Version::HTTP_11);
    assert_eq!(seen.values("host"), ["ratings:9080"]);
    let records = mesh.stop().await;
    let (outbound, inbound) = records.pair("/down");
    assert_eq!(
        (outbound.text("/request/protocol"), inbound.text("/request/protocol")),
        ("HTTP/2", "HTTP/1.1")
    );
}

#[tokio::test]
async fn a_port_declared_http_2_is_spoken_to_in_http_2() {
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app).port_name("grpc")).start().await;
    assert_eq!(mesh.get("/up").await.text(), "hello");
    let seen = app.only();
    assert_eq!(seen.head.version, http::Version::HTTP_2);
    assert_eq!(seen.head.uri.authority().map(http::uri::Authority::as_str), Some("ratings:9080"));
    let records = mesh.stop().await;
    let (outbound, inbound) = records.pair("/up");
    assert_eq!(
        (outbound.text("/request/protocol"), inbound.text("/request/protocol")),
        ("HTTP/1.1", "HTTP/2")
    );
}

#[tokio::test]
async fn a_refused_grpc_call_gets_its_status_in_grpc() {
    let app = App::echo().await;
    let mesh =
        World::new().server(Server::new("ratings", &app)).policy(crate::policy::POLICIES).start().await;
    let client = H2Client::connect(mesh.entrance).await;
    let mut call = request("POST", "/ratings.Ratings/Get", Bytes::new());
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let reply = client.send(call).await;
    assert_eq!((reply.status, &reply.headers["grpc-status"]), (200, &"7".parse().unwrap()));
    let records = mesh.stop().await;
    let (_, inbound) = records.pair("/ratings.Ratings/Get");
    assert_eq!(inbound.decision(), "deny at authorize: no-allow-matched");
    assert_eq!(inbound.number("/response/grpc_status"), 7);
}

#[tokio::test]
async fn a_stream_that_its_client_resets_is_recorded_as_left() {
    let app = App::streaming().await;
    let mesh = ratings(&app).await;
    let client = H2Client::connect(mesh.entrance).await;
    let mut stream = client.open(request("POST", "/left", ())).await;
    stream.send("one").await;
    stream.data().await.unwrap();
    drop(stream);
    let record = mesh.record("the outbound record", |record| record.side() == "outbound").await;
    assert_eq!(record.text("/ended/reason"), "client-closed");
    // The connection and its other streams go on.
    assert_eq!(client.get("/after").await.status, 200);
    let records = mesh.stop().await;
    let (_, inbound) = records.pair("/left");
    assert_eq!(inbound.text("/ended/reason"), "client-closed");
    records.pair("/after");
}

/// As in Envoy, where `host` is another name of `:authority`.
#[tokio::test]
async fn policies_find_header_host_over_http2_too() {
    const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: by-host, namespace: bookinfo}
spec:
  action: DENY
  rules: [{when: [{key: 'request.headers[host]', values: ['ratings:9080']}]}]
";
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).policy(DENY).start().await;
    assert_eq!(H2Client::connect(mesh.entrance).await.get("/x").await.status, 403);
    assert_eq!(mesh.get("/x").await.status, 403);
    assert_eq!(app.requests(), 0);
    mesh.stop().await;
}
