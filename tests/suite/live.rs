//! What is open when something changes: it goes on, or is cut, and its record says by what. That a cut comes within a
//! second is read from the record's own `after_us`, which counts from the change: how long a busy machine takes to see the
//! file change and to run this test is not the proxy's time.

use std::time::{Duration, SystemTime};

use fips::ca::Profile;
use proxy::worker::Deadlines;
use tests::{App, Caller, Client, H2Client, H2Frames, Mesh, Record, Server, TlsClient, World, request};

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

/// A body that begins and never ends, asked of the server by a caller of its own.
async fn begun(mesh: &Mesh, caller: &Caller, path: &str) -> TlsClient {
    let mut client = caller.connect(mesh.inbound("long")).await;
    client.send(format!("GET {path} HTTP/1.1\r\nHost: long:9080\r\n\r\n")).await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.bytes(5).await, b"begun");
    client
}

async fn unending() -> App {
    App::answering_bytes("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun").await
}

#[tokio::test]
async fn a_revoked_caller_loses_what_it_has_open_and_no_other_does() {
    let app = unending().await;
    let mesh = World::new().server(Server::new("long", &app)).start().await;
    let (revoked, other) = (mesh.pki.caller("productpage"), mesh.pki.caller("reviews"));
    let (mut cut, other) = (begun(&mesh, &revoked, "/cut").await, begun(&mesh, &other, "/stay").await);
    let mut idle = revoked.connect(mesh.inbound("long")).await;
    let mut h2 = revoked.clone().offering(&["istio-h2", "istio", "h2"]).connect(mesh.inbound("long")).await;
    mesh.pki.revoke(&revoked.leaf());

    assert_eq!(cut.rest().await, b"");
    assert_eq!(idle.rest().await, b"");
    // A connection of many requests is told first.
    let answers = H2Frames::new().exchange(&mut h2, 1).await;
    assert_eq!(answers.first().map(|(kind, _)| *kind), Some(H2Frames::GOAWAY), "{answers:?}");
    h2.rest().await;
    let record = mesh.record("the cut", |record| record.path() == "/cut").await;
    assert_eq!(
        (record.ended().as_str(), record.text("/ended/why")),
        ("certificate-revoked at relay", "revoked")
    );
    assert_eq!(record.decision(), "allow at authorize: no-policy");
    assert!(record.number("/ended/after_us") < 1_000_000, "{record:?}");
    drop(other);
    let records = mesh.stop().await;
    assert_ne!(records.of("inbound", "/stay").text("/ended/reason"), "certificate-revoked");
}

#[tokio::test]
async fn a_caller_whose_certificate_expires_loses_what_it_has_open_unless_that_is_to_be_kept() {
    const KEEP: &str = "
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {name: default, namespace: istio-system}
spec: {expiredCredentials: KEEP}
";
    for keep in [false, true] {
        let app = unending().await;
        let world = World::new().server(Server::new("long", &app));
        let mesh = if keep { world.policy(KEEP) } else { world }.start().await;
        // Clocks may differ, so it counts for a little longer than it says: by now for less than two seconds.
        let now = SystemTime::now();
        let allowance = u64::try_from(proxy::identity::CLOCK_SKEW_SECONDS).unwrap();
        let not_after = now - Duration::from_secs(allowance) + Duration::from_secs(2);
        let id = "spiffe://cluster.local/ns/bookinfo/sa/productpage";
        let profile = Profile {
            not_before: not_after - Duration::from_secs(60),
            not_after,
            ..Profile::workload(id, Duration::from_secs(60))
        };
        let mut cut = begun(&mesh, &mesh.pki.caller_with(&profile), "/expires").await;
        if keep {
            let longer = tokio::time::timeout(Duration::from_secs(4), cut.rest()).await;
            assert!(longer.is_err(), "it goes on");
            drop(cut);
            mesh.stop().await;
            continue;
        }
        assert_eq!(cut.rest().await, b"");
        let record = mesh.record("the cut", |record| record.path() == "/expires").await;
        assert_eq!(
            (record.ended().as_str(), record.text("/ended/why")),
            ("credential-expired at relay", "expired")
        );
        mesh.stop().await;
    }
}

#[tokio::test]
async fn a_server_that_is_revoked_gets_no_more_of_what_is_under_way() {
    let app = unending().await;
    let mesh = World::new().server(Server::new("long", &app)).start().await;
    let server = mesh.pki.caller("productpage").connect(mesh.inbound("long")).await.server();
    let mut client = mesh.client().await;
    client.send("GET /outbound HTTP/1.1\r\nHost: long:9080\r\n\r\n").await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.bytes(5).await, b"begun");
    mesh.pki.revoke(&server);
    assert_eq!(client.rest().await, b"");
    let of_path = |record: &Record| record.side() == "outbound" && record.path() == "/outbound";
    let record = mesh.record("the outbound record", of_path).await;
    assert_eq!(record.ended(), "certificate-revoked at relay");
    mesh.stop().await;
}

#[tokio::test]
async fn roots_that_are_replaced_take_with_them_what_they_vouched_for() {
    let app = unending().await;
    let mesh = World::new().server(Server::new("long", &app)).start().await;
    let mut cut = begun(&mesh, &mesh.pki.caller("productpage"), "/root").await;
    mesh.pki.replace();
    assert_eq!(cut.rest().await, b"");
    let record = mesh.record("the cut", |record| record.path() == "/root").await;
    assert_eq!(record.ended(), "certificate-revoked at relay");
    assert_eq!(record.text("/ended/why"), "untrusted-root");
    mesh.stop().await;
}

#[tokio::test]
async fn an_old_connection_ends_between_two_requests() {
    let (app, long) = (App::echo().await, App::streaming().await);
    let deadlines = Deadlines { max_connection_duration: Duration::from_millis(300), ..Deadlines::default() };
    let mesh = World::new()
        .server(Server::new("ratings", &app))
        .server(Server::new("streams", &long).port_name("grpc"))
        .deadlines(deadlines)
        .start()
        .await;
    let h2 = H2Client::connect(mesh.entrance).await;
    let mut head = request("POST", "/stream", ());
    *head.uri_mut() = "http://streams:9080/stream".parse().unwrap();
    let mut stream = h2.open(head).await;
    let mut idle = mesh.client().await;
    assert_eq!(idle.get("/first", "").await.status, 200);
    // Idle ones are closed; what is under way on others goes on.
    assert_eq!(idle.rest().await, b"");
    stream.send("one").await;
    assert_eq!(stream.data().await.unwrap(), "one");
    stream.finish();
    assert!(!stream.is_reset().await);
    h2.is_closed().await;
    let records = mesh.stop().await;
    assert_eq!(records.of("outbound", "/stream").ended(), "complete at relay");
    assert_eq!(records.of("inbound", "/stream").ended(), "complete at relay");
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

/// MeshSettings beside a policy that lets in who comes from the office, and anybody to what is free.
fn settings(spec: &str) -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: from-office, namespace: bookinfo}}
spec:
  rules:
  - from: [{{source: {{remoteIpBlocks: [203.0.113.0/24]}}}}]
  - to: [{{operation: {{paths: [/free]}}}}]
---
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {{name: mesh}}
spec: {spec}
"
    )
}

const OFFICE: &str = "X-Forwarded-For: 198.51.100.1, 203.0.113.9\r\n";

#[tokio::test]
async fn what_is_open_is_asked_again_when_others_are_believed_about_where_it_comes_from() {
    let trusting = |identity: &str, proxies: u8| {
        settings(&format!(
            "{{trustedForwarders: {{identities: ['spiffe://cluster.local/ns/bookinfo/sa/{identity}'], numTrustedProxies: {proxies}}}}}"
        ))
    };
    for (what, then) in [("others", trusting("other", 0)), ("proxies in front", trusting("gateway", 1))] {
        let app = unending().await;
        let policy = trusting("gateway", 0);
        let mesh = World::new().server(Server::new("long", &app)).policy(&policy).start().await;
        let mut open = Vec::new();
        for path in ["/office", "/free"] {
            let mut client = mesh.pki.caller("gateway").connect(mesh.inbound("long")).await;
            client.send(format!("GET {path} HTTP/1.1\r\nHost: long:9080\r\n{OFFICE}\r\n")).await;
            assert_eq!(client.head().await.status, 200, "{what}");
            assert_eq!(client.bytes(5).await, b"begun");
            open.push(client);
        }
        mesh.config().write("policy-0.yaml", &then);
        let [office, _free] = &mut open[..] else { panic!() };
        assert_eq!(office.rest().await, b"", "{what}");
        let of_path = |record: &Record| record.side() == "inbound" && record.path() == "/office";
        let record = mesh.record("the cut", of_path).await;
        assert_eq!(
            (record.ended().as_str(), record.text("/ended/why")),
            ("policy-changed at relay", "no-allow-matched"),
            "{what}"
        );
        drop(open);
        let records = mesh.stop().await;
        assert_ne!(records.of("inbound", "/free").ended(), "policy-changed at relay", "{what}");
    }
}

#[tokio::test]
async fn a_connection_ends_that_would_have_to_begin_otherwise_to_say_where_it_comes_from() {
    const HEADER: &[u8] = b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\r\n";
    for was_expected in [true, false] {
        let app = unending().await;
        let port = app.address().port();
        let expecting = settings(&format!("{{proxyProtocol: {{ports: [{port}], ipBlocks: [127.0.0.0/8]}}}}"));
        let [before, after] = match was_expected {
            true => [expecting, settings("{}")],
            false => [settings("{}"), expecting],
        };
        let mesh = World::new().server(Server::new("long", &app)).policy(&before).start().await;
        let mut open = Vec::new();
        for _ in 0..2 {
            let mut client = Client::connect(mesh.inbound("long")).await;
            if was_expected {
                client.send(HEADER).await;
            }
            open.push(client);
        }
        let [busy, idle] = &mut open[..] else { panic!() };
        busy.send("GET /free HTTP/1.1\r\nHost: long:9080\r\n\r\n").await;
        assert_eq!(busy.head().await.status, 200);
        assert_eq!(busy.bytes(5).await, b"begun");
        mesh.config().write("policy-0.yaml", &after);
        assert_eq!(busy.rest().await, b"");
        // Nobody knew what it carries; what comes on it now is refused, or finds it closed.
        let _ = idle.try_send("GET /late HTTP/1.1\r\nHost: long:9080\r\n\r\n").await;
        if let Ok(Some(reply)) = idle.try_reply().await {
            assert_eq!(reply.status, 503);
        }
        let of_path =
            |record: &Record| record.path() == "/free" && record.text("/decision/outcome") == "allow";
        let record = mesh.record("the cut", of_path).await;
        assert_eq!(record.ended(), "policy-changed at relay");
        assert!(record.detail().contains("PROXY protocol header"), "{record:?}");
        mesh.stop().await;
    }
}
