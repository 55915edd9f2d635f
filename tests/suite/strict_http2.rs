//! HTTP/2 requests that would mean something else in HTTP/1: refused before they are translated, and recorded once.

use std::time::Duration;

use tests::{App, Client, H2Frames, Mesh, Server, World};

const RST_STREAM: u8 = 0x3;
const GOAWAY: u8 = 0x7;

/// A port that is spoken to in HTTP/1, whatever the caller speaks.
async fn ratings(app: &App) -> Mesh {
    World::new().server(Server::new("ratings", app).port_name("http")).start().await
}

const GOOD: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "ratings:9080")];

/// Sends a request of the good fields with others after them.
async fn with(client: &mut Client, others: &[(&str, &str)]) -> Vec<(u8, Vec<u8>)> {
    let fields: Vec<_> = GOOD.iter().chain(others).copied().collect();
    H2Frames::new().headers(1, &fields, true).exchange(client, 1).await
}

#[tokio::test]
async fn the_frames_of_a_good_request_are_taken() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let answers = with(&mut mesh.client().await, &[("x-a", "1")]).await;
    assert!(answers.iter().all(|(kind, _)| ![RST_STREAM, GOAWAY].contains(kind)), "{answers:?}");
    assert_eq!(app.requests(), 1);
    mesh.stop().await.pair("/");
}

#[tokio::test]
async fn fields_that_frame_http_1_or_break_its_lines() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("connection", &[("connection", "close")]),
        ("transfer-encoding", &[("transfer-encoding", "chunked")]),
        ("keep-alive", &[("keep-alive", "timeout=5")]),
        ("proxy-connection", &[("proxy-connection", "keep-alive")]),
        ("upgrade", &[("upgrade", "websocket")]),
        ("te other than trailers", &[("te", "gzip")]),
        ("CR LF in a value", &[("x-a", "1\r\nx-b: 2")]),
        ("LF in a value", &[("x-a", "1\nx-b: 2")]),
        ("NUL in a value", &[("x-a", "1\0")]),
        ("a space before a value", &[("x-a", " 1")]),
        ("a tab after a value", &[("x-a", "1\t")]),
        ("an upper-case name", &[("X-A", "1")]),
        ("a colon in a name", &[("x-a: 1\r\nx-b", "2")]),
        ("a pseudo-field after fields", &[("x-a", "1"), (":path", "/admin")]),
        ("a second path", &[(":path", "/admin")]),
        ("a host that disagrees", &[("host", "admin")]),
        ("a length that the body has not", &[("content-length", "5")]),
    ];
    for (number, (what, fields)) in cases.iter().enumerate() {
        let answers = with(&mut mesh.client().await, fields).await;
        let refused = answers.iter().any(|(kind, _)| [RST_STREAM, GOAWAY].contains(kind))
            || answers.first().is_some_and(|(_, block)| is_status_400(block));
        assert!(refused, "{what}: {answers:?}");
        mesh.record(what, |record| record.text("/ended/reason") == "malformed-request").await;
        assert_eq!(app.requests(), 0, "{what} of case {number} reached the application");
    }
    let records = mesh.stop().await;
    let outbound = records.side("outbound");
    assert_eq!((outbound.len(), records.side("inbound").len()), (cases.len(), 0), "{records:#?}");
    assert!(
        outbound.iter().all(|record| record.text("/ended/reason") == "malformed-request"),
        "{records:#?}"
    );
}

/// Status 400 stands in the static table (RFC 7541 appendix A, index 12).
fn is_status_400(block: &[u8]) -> bool {
    block.first() == Some(&(0x80 | 12))
}

#[tokio::test]
async fn a_request_without_an_authority_that_means_something() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    for (what, authority) in
        [("user information", "user@ratings:9080"), ("nothing", ""), ("no port", "ratings:port")]
    {
        let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", authority)];
        let mut client = mesh.client().await;
        let answers = H2Frames::new().headers(1, &fields, true).exchange(&mut client, 1).await;
        let refused = answers.iter().any(|(kind, _)| [RST_STREAM, GOAWAY].contains(kind))
            || answers.first().is_some_and(|(_, block)| is_status_400(block));
        assert!(refused, "{what}: {answers:?}");
    }
    assert_eq!(app.connections(), 0);
    let records = mesh.stop().await;
    assert_eq!(records.side("outbound").len(), 3, "{records:#?}");
}

/// The attack that is called rapid reset, at a pace at which each request is sent on before it is given up.
#[tokio::test]
async fn requests_that_are_given_up_without_end() {
    let app = App::silent().await;
    let server = Server::new("ratings", &app).port_name("http").without_sidecar();
    let mesh = World::new().server(server).start().await;
    let mut client = mesh.client().await;
    H2Frames::new().send(&mut client).await.unwrap();
    let mut streams = (1..).step_by(2);
    for round in 1..=5 {
        let batch: Vec<u32> = streams.by_ref().take(50).collect();
        let asked =
            batch.iter().fold(H2Frames::more(), |frames, &stream| frames.headers(stream, &GOOD, true));
        asked.send(&mut client).await.unwrap();
        app.has_requests(50 * round).await;
        let given_up = batch.iter().fold(H2Frames::more(), |frames, &stream| frames.reset(stream));
        given_up.send(&mut client).await.unwrap();
    }
    // It may ask on until that is seen.
    for stream in streams.take(20) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let _ = H2Frames::more().headers(stream, &GOOD, true).send(&mut client).await;
    }
    client.rest().await;
    let records = mesh.stop().await;
    let ended: Vec<_> = records.all().iter().map(|record| record.ended()).collect();
    assert_eq!(ended.iter().filter(|ended| *ended == "overloaded at admit").count(), 1, "{ended:?}");
}

/// What is read as a header that a policy asks for is not to come by another way.
#[tokio::test]
async fn headers_that_policies_ask_for_have_no_twins() {
    const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: by-header, namespace: bookinfo}
spec:
  action: DENY
  rules: [{when: [{key: 'request.headers[x-bad]', values: ['1']}]}]
";
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app).port_name("http")).policy(DENY).start().await;
    let mut client = mesh.client().await;
    assert_eq!(client.get("/refused", "X-Bad: 1\r\n").await.status, 403);
    assert_eq!(client.get("/twin", "X_Bad: 1\r\nX_Good: 1\r\n").await.status, 200);
    let chunked = "POST /trailer HTTP/1.1\r\nHost: ratings:9080\r\nTransfer-Encoding: chunked\r\n\r\n\
                   0\r\nX-Bad: 1\r\nX_Bad: 1\r\nX-Good: 1\r\n\r\n";
    client.send(chunked).await;
    assert_eq!(client.reply().await.status, 200);
    let seen = app.seen();
    assert_eq!((seen[0].values("x_bad").len(), seen[0].values("x_good").len()), (0, 1));
    let trailers = seen[1].trailers.as_ref().unwrap();
    assert_eq!(trailers.keys().collect::<Vec<_>>(), ["x-good"]);
    mesh.stop().await;
}

/// HTTP/1 has no such target, and it would be another way to write one that is escaped.
#[tokio::test]
async fn a_path_with_characters_that_are_to_be_escaped() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    for path in ["/café", "/a?q=é"] {
        let fields =
            [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "ratings:9080")];
        let mut client = mesh.client().await;
        let answers = H2Frames::new().headers(1, &fields, true).exchange(&mut client, 1).await;
        assert!(answers.first().is_some_and(|(_, block)| is_status_400(block)), "{path}: {answers:?}");
    }
    assert_eq!(app.connections(), 0);
    mesh.stop().await;
}
