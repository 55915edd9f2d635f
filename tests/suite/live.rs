//! What is open when something changes: it goes on, or is cut, and its record says by what. That a cut comes within a
//! second is read from the record's own `after_us`, which counts from the change: how long a busy machine takes to see the
//! file change and to run this test is not the proxy's time.

use tests::{App, H2Client, Mesh, Record, Server, TlsClient, World, request};

use crate::tunnels::{UPGRADE, upgrading};

/// Ends what is under `/cut` everywhere, and all that the product page has open to the database.
const LATE: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: late, namespace: bookinfo}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {paths: [/cut/*]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: db}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/bookinfo/sa/productpage]}}]}]
";

async fn tcp(mesh: &Mesh, account: &str) -> TlsClient {
    let mut client = mesh.pki.caller(account).offering(&["istio"]).connect(mesh.inbound("db")).await;
    client.send("hello").await;
    assert_eq!(client.bytes(5).await, b"hello");
    client
}

/// The inbound record of a path that a change of policy cut, by this policy and for this reason.
async fn cut(mesh: &Mesh, path: &str, policy: &str, why: &str) -> Record {
    let of_path = |record: &Record| record.side() == "inbound" && record.path() == path;
    let record = mesh.record(path, of_path).await;
    assert_eq!(record.ended(), "policy-changed at relay", "{record:?}");
    assert_eq!((record.text("/ended/policy/name"), record.text("/ended/why")), (policy, why), "{record:?}");
    assert!(record.text("/ended/policy/digest").starts_with("sha256:"), "{record:?}");
    // What was decided stays true, and says under which version.
    assert!(record.decision().starts_with("allow at authorize: no-policy"), "{record:?}");
    let (from, to) = (record.number("/ended/config/from"), record.number("/ended/config/to"));
    assert_eq!((from, to > from), (record.number("/config/version"), true), "{record:?}");
    assert!(record.number("/ended/after_us") < 1_000_000, "{record:?}");
    record
}

#[tokio::test]
async fn a_change_of_policy_cuts_what_it_refuses_and_nothing_else() {
    let (streams, sockets) = (App::streaming().await, upgrading().await);
    let long = App::answering_bytes("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun").await;
    let (silent, db) = (App::silent().await, App::tcp_echo().await);
    let mesh = World::new()
        .server(Server::new("ratings", &streams).of("web").port_name("grpc"))
        .server(Server::new("sockets", &sockets).of("web"))
        .server(Server::new("long", &long).of("web"))
        .server(Server::new("silent", &silent).of("web"))
        .server(Server::new("db", &db).port_name("tcp"))
        .start()
        .await;

    // Of each kind one that is to be cut and one that is to stay; both streams on one connection.
    let h2 = H2Client::connect(mesh.entrance).await;
    let mut cut_stream = h2.open(request("POST", "/cut/stream", ())).await;
    let mut stream = h2.open(request("POST", "/stay/stream", ())).await;
    for each in [&mut cut_stream, &mut stream] {
        each.send("one").await;
        assert_eq!(each.data().await.unwrap(), "one");
    }
    let (mut cut_socket, mut socket) = (mesh.client().await, mesh.client().await);
    let (mut cut_body, mut body) = (mesh.client().await, mesh.client().await);
    for (client, path) in [(&mut cut_socket, "/cut/socket"), (&mut socket, "/stay/socket")] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: sockets:9080\r\n{UPGRADE}\r\n")).await;
        assert_eq!(client.head().await.status, 101);
        assert_eq!(client.bytes(8).await, b"welcome ");
    }
    for (client, path) in [(&mut cut_body, "/cut/body"), (&mut body, "/stay/body")] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: long:9080\r\n\r\n")).await;
        assert_eq!(client.head().await.status, 200);
        assert_eq!(client.bytes(5).await, b"begun");
    }
    let mut cut_waiting = mesh.client().await;
    cut_waiting.send("GET /cut/waiting HTTP/1.1\r\nHost: silent:9080\r\n\r\n").await;
    silent.has_requests(1).await;
    let (mut cut_tcp, mut tcp) = (tcp(&mesh, "productpage").await, tcp(&mesh, "reviews").await);

    mesh.config().write("late.yaml", LATE);

    assert!(cut_stream.is_reset().await);
    assert_eq!(cut_socket.rest().await, b"");
    assert_eq!(cut_body.rest().await, b"");
    // What has no answer yet gets one.
    assert_eq!(cut_waiting.reply().await.status, 503);
    assert_eq!(cut_tcp.rest().await, b"");
    for path in ["/cut/stream", "/cut/socket", "/cut/body", "/cut/waiting"] {
        cut(&mesh, path, "late", "matched-deny").await;
    }
    let of_tcp = |record: &Record| record.text("/request/protocol") == "tcp";
    let record = mesh.record("the connection", of_tcp).await;
    assert_eq!(record.ended(), "policy-changed at relay");
    assert_eq!(record.text("/ended/policy/name"), "closed");
    assert!(record.number("/ended/after_us") < 1_000_000, "{record:?}");
    assert_eq!((record.number("/request/bytes"), record.number("/response/bytes")), (5, 5));

    // The others are untouched.
    stream.send("two").await;
    assert_eq!(stream.data().await.unwrap(), "two");
    stream.finish();
    while let Some(rest) = stream.data().await {
        assert_eq!(rest, "");
    }
    socket.send("on").await;
    assert_eq!(socket.bytes(2).await, b"on");
    tcp.send("on").await;
    assert_eq!(tcp.bytes(2).await, b"on");
    drop((body, socket, tcp));
    let records = mesh.stop().await;
    assert_eq!(records.pair("/stay/stream").1.ended(), "complete at relay");
    let cut = records.all().iter().filter(|record| record.ended() == "policy-changed at relay");
    assert_eq!(cut.count(), 5, "{records:#?}");
}

async fn unending() -> App {
    App::answering_bytes("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun").await
}

#[tokio::test]
async fn an_allow_policy_that_expires_ends_what_it_allowed_and_says_so() {
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(4);
    let policy = format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: emergency, namespace: bookinfo, annotations: {{writ.dev/expires-at: '{expires}'}}}}
spec: {{rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]}}
"
    );
    let app = unending().await;
    let mesh = World::new().server(Server::new("long", &app)).policy(&policy).start().await;
    let mut client = mesh.client().await;
    client.send("GET /emergency HTTP/1.1\r\nHost: long:9080\r\n\r\n").await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.bytes(5).await, b"begun");
    assert_eq!(client.rest().await, b"");
    let of_path = |record: &Record| record.side() == "inbound" && record.path() == "/emergency";
    let record = mesh.record("the cut", of_path).await;
    assert_eq!(
        (record.ended().as_str(), record.text("/ended/why")),
        ("policy-changed at relay", "no-allow-matched")
    );
    assert_eq!(
        record.decision(),
        "allow at authorize: matched-allow by AuthorizationPolicy bookinfo/emergency rule 0"
    );
    assert!(!record.text("/decision/policy/expires_at").is_empty(), "{record:?}");
    assert!(record.number("/ended/after_us") < 1_000_000, "{record:?}");

    let mut late = mesh.client().await;
    late.send("GET /late HTTP/1.1\r\nHost: long:9080\r\n\r\n").await;
    assert_eq!(late.reply().await.status, 403);
    let of_path = |record: &Record| record.side() == "inbound" && record.path() == "/late";
    let record = mesh.record("the refusal", of_path).await;
    assert!(record.text("/considered/policies/0/failed").contains("has expired at"), "{record:?}");
    mesh.stop().await;
}
