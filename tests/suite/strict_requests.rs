//! Requests with more than one meaning, or none: refused on either side, never forwarded, and recorded once.

use tests::{App, Client, Mesh, Reply, Server, World};
use tokio::io::{AsyncRead, AsyncWrite};

/// What is wrong, the bytes, and the answer: status, and how the record says it ended.
type Case = (&'static str, &'static str, u16, &'static str);

const MALFORMED: &str = "malformed-request at sanitize";
const AMBIGUOUS: &str = "ambiguous-length at sanitize";

#[rustfmt::skip]
const CASES: &[Case] = &[
    // Two lengths, or one that can be read two ways.
    ("Content-Length and Transfer-Encoding", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, AMBIGUOUS),
    ("the same the other way round", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400, AMBIGUOUS),
    ("two lengths that differ", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody!", 400, AMBIGUOUS),
    ("two lengths that agree", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nbody", 400, AMBIGUOUS),
    ("a list of lengths", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 4, 4\r\n\r\nbody", 400, AMBIGUOUS),
    ("a signed length", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: +4\r\n\r\nbody", 400, AMBIGUOUS),
    ("a hexadecimal length", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 0x4\r\n\r\nbody", 400, AMBIGUOUS),
    ("an empty length", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length:\r\n\r\nbody", 400, AMBIGUOUS),
    ("a length beyond 64 bits", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 18446744073709551616\r\n\r\nbody", 400, AMBIGUOUS),
    ("chunked twice", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, AMBIGUOUS),
    ("chunked in a list", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", 400, AMBIGUOUS),
    ("an unknown coding", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, AMBIGUOUS),
    ("a coding with a parameter", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", 400, AMBIGUOUS),
    ("HTTP/1.0 without Host", "GET / HTTP/1.0\r\n\r\n", 400, MALFORMED),
    ("chunks in HTTP/1.0", "POST / HTTP/1.0\r\nHost: ratings:9080\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, AMBIGUOUS),
    ("CONNECT with a body", "CONNECT ratings:9080 HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 4\r\n\r\nbody", 400, AMBIGUOUS),
    // Lines that end, or don't.
    ("a bare LF after the request line", "GET / HTTP/1.1\nHost: ratings:9080\r\n\r\n", 400, MALFORMED),
    ("a bare LF after a field", "GET / HTTP/1.1\r\nHost: ratings:9080\nX-A: 1\r\n\r\n", 400, MALFORMED),
    ("a bare LF at the end", "GET / HTTP/1.1\r\nHost: ratings:9080\r\n\n", 400, MALFORMED),
    ("a bare CR in a value", "GET / HTTP/1.1\r\nHost: ratings:9080\r\nX-A: 1\rX-B: 2\r\n\r\n", 400, MALFORMED),
    ("a folded field", "GET / HTTP/1.1\r\nHost: ratings:9080\r\nX-A: 1\r\n 2\r\n\r\n", 400, MALFORMED),
    ("a NUL in a value", "GET / HTTP/1.1\r\nHost: ratings:9080\r\nX-A: 1\x002\r\n\r\n", 400, MALFORMED),
    ("a space before the colon", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length : 4\r\n\r\nbody", 400, MALFORMED),
    ("a space before the first field", "GET / HTTP/1.1\r\n Host: ratings:9080\r\n\r\n", 400, MALFORMED),
    ("a field without a colon", "GET / HTTP/1.1\r\nHost: ratings:9080\r\nX-A\r\n\r\n", 400, MALFORMED),
    ("a field without a name", "GET / HTTP/1.1\r\nHost: ratings:9080\r\n: 1\r\n\r\n", 400, MALFORMED),
    // The request line.
    ("a space in the target", "GET /a b HTTP/1.1\r\nHost: ratings:9080\r\n\r\n", 400, MALFORMED),
    ("a fragment in the target", "GET /a#b HTTP/1.1\r\nHost: ratings:9080\r\n\r\n", 400, MALFORMED),
    ("a target that is not one", "GET a HTTP/1.1\r\nHost: ratings:9080\r\n\r\n", 400, MALFORMED),
    ("a version to come", "GET / HTTP/1.2\r\nHost: ratings:9080\r\n\r\n", 400, MALFORMED),
    ("an asterisk that is not OPTIONS'", "GET * HTTP/1.1\r\nHost: ratings:9080\r\n\r\n", 400, MALFORMED),
    // Who is meant.
    ("no Host", "GET / HTTP/1.1\r\n\r\n", 400, MALFORMED),
    ("two Hosts", "GET / HTTP/1.1\r\nHost: ratings:9080\r\nHost: admin\r\n\r\n", 400, MALFORMED),
    ("a Host with user information", "GET / HTTP/1.1\r\nHost: user@ratings:9080\r\n\r\n", 400, MALFORMED),
    ("a Host with a path", "GET / HTTP/1.1\r\nHost: ratings:9080/admin\r\n\r\n", 400, MALFORMED),
    ("a Host with a port that is none", "GET / HTTP/1.1\r\nHost: ratings:port\r\n\r\n", 400, MALFORMED),
    ("a target and a Host that disagree", "GET http://admin/ HTTP/1.1\r\nHost: ratings:9080\r\n\r\n", 400, MALFORMED),
    ("Connection that names Host", "GET / HTTP/1.1\r\nHost: ratings:9080\r\nConnection: host\r\n\r\n", 400, MALFORMED),
    ("Connection that names Content-Length", "POST / HTTP/1.1\r\nHost: ratings:9080\r\nConnection: content-length\r\nContent-Length: 4\r\n\r\nbody", 400, MALFORMED),
    ("an expectation that nobody knows", "GET / HTTP/1.1\r\nHost: ratings:9080\r\nExpect: 200-ok\r\n\r\n", 400, MALFORMED),
];

async fn ratings(app: &App) -> Mesh {
    World::new().server(Server::new("ratings", app)).start().await
}

/// Sends a case on a connection of its own; the refusal must be the last thing on it.
async fn refused<IO: AsyncRead + AsyncWrite + Unpin>(
    client: &mut Client<IO>,
    what: &str,
    bytes: &str,
) -> Reply {
    client.send(bytes).await;
    let reply = client.try_reply().await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let reply = reply.unwrap_or_else(|| panic!("{what}: no answer"));
    // Another request on such a connection would be a guess at where it begins.
    assert!(client.rest().await.is_empty(), "{what}: more follows");
    reply
}

#[tokio::test]
async fn outbound() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    for (what, bytes, status, ended) in CASES {
        let reply = refused(&mut mesh.client().await, what, bytes).await;
        assert_eq!(reply.status, *status, "{what}");
        let id =
            reply.header("x-writ-decision-id").unwrap_or_else(|| panic!("{what}: no record id")).to_owned();
        let record = mesh.record(what, |record| record.id() == id).await;
        assert_eq!(
            (record.ended().as_str(), record.status()),
            (*ended, u64::from(*status)),
            "{what}: {record:?}"
        );
        assert!(!record.detail().is_empty(), "{what}: the operator is told what is wrong");
    }
    assert_eq!(app.connections(), 0, "nothing went further");
    let records = mesh.stop().await;
    assert_eq!((records.side("outbound").len(), records.side("inbound").len()), (CASES.len(), 0));
}

#[tokio::test]
async fn inbound() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let caller = mesh.pki.caller("productpage");
    for (what, bytes, status, ended) in CASES {
        let mut client = caller.connect(mesh.inbound("ratings")).await;
        let reply = refused(&mut client, what, bytes).await;
        assert_eq!(reply.status, *status, "{what}");
        let id =
            reply.header("x-writ-decision-id").unwrap_or_else(|| panic!("{what}: no record id")).to_owned();
        let record = mesh.record(what, |record| record.id() == id).await;
        assert_eq!(
            (record.ended().as_str(), record.status()),
            (*ended, u64::from(*status)),
            "{what}: {record:?}"
        );
        assert_eq!(record.text("/source/identity"), "spiffe://cluster.local/ns/bookinfo/sa/productpage");
    }
    assert_eq!(app.connections(), 0, "nothing went further");
    assert_eq!(mesh.stop().await.side("inbound").len(), CASES.len());
}

/// Bodies that break after a head that was good: the application may have seen the head, and never a whole request.
#[tokio::test]
async fn broken_chunks() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    for (what, chunks) in [
        ("a size that is none", "x\r\nbody\r\n0\r\n\r\n"),
        ("a negative size", "-1\r\n\r\n0\r\n\r\n"),
        ("a size with a prefix", "0x4\r\nbody\r\n0\r\n\r\n"),
        ("a size beyond 64 bits", "10000000000000000\r\nbody\r\n0\r\n\r\n"),
        ("a chunk without its end", "4\r\nbodyX\r\n0\r\n\r\n"),
        ("a bare LF after a size", "4\nbody\r\n0\r\n\r\n"),
        ("a bare LF after a chunk", "4\r\nbody\n0\r\n\r\n"),
        ("a bare LF in an extension", "4;a\nb\r\nbody\r\n0\r\n\r\n"),
        ("a trailer that frames", "4\r\nbody\r\n0\r\nContent-Length: 4\r\n\r\n"),
        ("a trailer that is none", "4\r\nbody\r\n0\r\nX A: 4\r\n\r\n"),
    ] {
        let path = format!("/{}", what.replace(' ', "-"));
        let mut client = mesh.client().await;
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: ratings:9080\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(head + chunks).await;
        let reply = client.try_reply().await.unwrap();
        assert_eq!(reply.map(|reply| reply.status), Some(400), "{what}");
        assert!(client.rest().await.is_empty(), "{what}: more follows");
        let record = mesh.record(what, |record| record.side() == "outbound" && record.path() == path).await;
        assert!(
            ["ambiguous-length", "malformed-request"].contains(&record.text("/ended/reason")),
            "{what}: {record:?}"
        );
    }
    assert_eq!(app.requests(), 0, "no request was ever whole");
    assert_eq!(mesh.stop().await.side("outbound").len(), 10);
}

/// The framing of such a request is sound, so that its connection can go on.
#[tokio::test]
async fn a_path_with_a_hidden_end() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let mut client = mesh.client().await;
    assert_eq!(client.get("/public%00/../admin", "").await.status, 400);
    assert_eq!(client.get("/after", "").await.status, 200);
    let records = mesh.stop().await;
    assert_eq!(records.of("outbound", "/public%00/../admin").ended(), MALFORMED);
    records.pair("/after");
}

/// One policy, many spellings: what reaches the application is what the policy looked at, or nothing does.
#[tokio::test]
async fn a_denied_path_has_no_second_spelling() {
    const DENY_ADMIN: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-admin, namespace: bookinfo}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/admin, /admin/*, '/caf%c3%a9']}}]}]
";
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).policy(DENY_ADMIN).start().await;
    for (path, status, seen) in [
        ("/admin/x", 403, None),
        ("/x/../admin", 403, None),
        ("/%61dmin/x", 403, None),
        ("/x/%2e%2e/admin", 403, None),
        ("/x\\..\\admin", 403, None),
        ("/x%2f..%2fadmin", 400, None),
        ("/x/%252e%252e/admin", 400, None),
        ("/x/..;/admin", 400, None),
        ("/x/%c0%ae%c0%ae/admin", 400, None),
        ("/x/../public/./y", 200, Some("/public/y")),
        ("/@scope%2fname", 200, Some("/@scope%2Fname")),
        ("/caf%c3%a9", 403, None),
        ("/caf%C3%A9", 403, None),
        ("/caf%c3%A8", 200, Some("/caf%C3%A8")),
    ] {
        let before = app.requests();
        // On a connection of its own: straight to the server's sidecar, as the mesh's own client would normalise first.
        let mut client = tests::Client::connect(mesh.inbound("ratings")).await;
        assert_eq!(client.get(path, "").await.status, status, "{path}");
        match seen {
            Some(seen) => assert_eq!(app.seen().last().unwrap().head.uri.path(), seen),
            None => assert_eq!(app.requests(), before, "{path}"),
        }
    }
    mesh.stop().await;
}

#[tokio::test]
async fn what_is_too_large() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let host = "Host: ratings:9080\r\n";
    let many: String = (0..101).map(|number| format!("X-{number}: 1\r\n")).collect();
    let long = "a".repeat(64 << 10);
    for (what, bytes) in [
        ("many fields", format!("GET / HTTP/1.1\r\n{host}{many}\r\n")),
        ("a long field", format!("GET / HTTP/1.1\r\n{host}X-A: {long}\r\n\r\n")),
        ("a long name", format!("GET / HTTP/1.1\r\n{host}{long}: 1\r\n\r\n")),
        ("a long target", format!("GET /{long} HTTP/1.1\r\n{host}\r\n")),
        // What never ends must not be waited for.
        ("an endless field", format!("GET / HTTP/1.1\r\n{host}X-A: {long}")),
    ] {
        let mut client = mesh.client().await;
        client.send(bytes).await;
        let reply = client.reply().await;
        assert_eq!(reply.status, 431, "{what}");
        let id = reply.header("x-writ-decision-id").unwrap().to_owned();
        let record = mesh.record(what, |record| record.id() == id).await;
        assert_eq!(record.ended(), "header-too-large at sanitize", "{what}");
    }
    assert_eq!(app.connections(), 0);
    assert_eq!(mesh.stop().await.all().len(), 5);
}

/// A smuggled second request must be neither answered nor recorded: it is not one.
#[tokio::test]
async fn what_follows_a_refused_request_is_not_looked_at() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let smuggled = "GET /admin HTTP/1.1\r\nHost: ratings:9080\r\n\r\n";
    let mut client = mesh.client().await;
    let head = "POST /front HTTP/1.1\r\nHost: ratings:9080\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(format!("{head}0\r\n\r\n{smuggled}")).await;
    assert_eq!(client.reply().await.status, 400);
    assert!(client.rest().await.is_empty());
    assert_eq!(app.connections(), 0);
    let records = mesh.stop().await;
    assert_eq!(records.all().len(), 1);
    assert_eq!(records.only("outbound").path(), "/front");
}
