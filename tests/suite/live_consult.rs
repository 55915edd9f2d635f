//! What is open when somebody is to be asked who was not, or another than was: it ends.

use std::time::Duration;

use tests::protobuf::Message;
use tests::{App, H2Client, Record, Server, request, soon};

use crate::consult::{AFTER, ASK, BEFORE, GRPC, header, mesh, ok, provider_of, world};

/// Asks about what is under `/late`, and about all that is opaque.
const LATE: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: late, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  action: CUSTOM
  provider: {name: authz}
  rules: [{to: [{operation: {paths: [/late*]}}]}]
";

#[tokio::test]
async fn what_is_open_ends_when_a_provider_would_have_to_be_asked_that_was_not() {
    const UNRELATED: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: unrelated, namespace: bookinfo}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/unrelated]}}]}]}
";
    for phase in [BEFORE, AFTER] {
        let app = App::streaming().await;
        // What it writes into the request matches its rule again, and one of its own phase that did not match then.
        let provider =
            App::grpc(|_| ok().message(3, Message::default().message(2, header("x-role", "admin")))).await;
        let also = ASK.replace("name: ask,", "name: ask-admins,").replace(
            "rules: [{to: [{operation: {paths: [/asked*]}}]}]",
            "rules: [{when: [{key: 'request.headers[x-role]', values: [admin]}]}]",
        );
        let mesh = world(&app, &provider, GRPC, "", phase).policy(&also).start().await;
        let h2 = H2Client::connect(mesh.entrance).await;
        let mut streams = Vec::new();
        for path in ["/asked/stream", "/late/stream", "/free/stream"] {
            let mut stream = h2.open(request("POST", path, ())).await;
            stream.send("one").await;
            assert_eq!(stream.data().await.unwrap(), "one", "{path}");
            streams.push(stream);
        }
        assert_eq!(provider.requests(), 1);

        let digest = |config: &serde_json::Value| config["digest"].as_str().unwrap_or_default().to_owned();
        let before = digest(&mesh.admin_says("ratings", "/config", |_| true).await);
        mesh.config().write("unrelated.yaml", UNRELATED);
        mesh.admin_says("ratings", "/config", |config| digest(config) != before).await;
        mesh.config().write("late.yaml", LATE);
        let [asked, late, free] = &mut streams[..] else { panic!() };
        assert!(late.is_reset().await, "{phase}");
        for stream in [asked, free] {
            stream.send("two").await;
            assert_eq!(stream.data().await.unwrap(), "two", "{phase}");
        }
        drop(streams);
        let records = mesh.stop().await;
        let record = records.of("inbound", "/late/stream");
        assert_eq!(record.ended(), "policy-changed at relay", "{record:?}");
        assert_eq!(record.text("/ended/policy/name"), "late", "{record:?}");
        for path in ["/asked/stream", "/free/stream"] {
            let record = records.of("inbound", path);
            assert_ne!(record.ended(), "policy-changed at relay", "{record:?}");
        }
        assert_eq!(provider.requests(), 1, "what has begun is not asked about");
    }
}

#[tokio::test]
async fn what_was_asked_about_ends_when_who_is_to_be_asked_is_another() {
    let app = App::streaming().await;
    let provider = App::grpc(|_| ok()).await;
    for (settings, ends) in [(", failOpen: true", true), (", timeout: 7s", false)] {
        let mesh = mesh(&app, &provider, GRPC, "", BEFORE).await;
        let h2 = H2Client::connect(mesh.entrance).await;
        let mut streams = Vec::new();
        for path in ["/asked/stream", "/free/stream", "/late/stream"] {
            let mut stream = h2.open(request("POST", path, ())).await;
            stream.send("one").await;
            assert_eq!(stream.data().await.unwrap(), "one", "{path}");
            streams.push(stream);
        }
        let [asked, free, late] = &mut streams[..] else { panic!() };
        let digest = |config: &serde_json::Value| config["digest"].as_str().unwrap_or_default().to_owned();
        let before = digest(&mesh.admin_says("ratings", "/config", |_| true).await);
        mesh.config().write("policy-0.yaml", &provider_of(GRPC, settings, BEFORE));
        mesh.admin_says("ratings", "/config", |config| digest(config) != before).await;
        // Where that ends nothing, this does, after it.
        mesh.config().write("late.yaml", LATE);
        assert!(late.is_reset().await);
        if ends {
            assert!(asked.is_reset().await);
        } else {
            asked.send("two").await;
            assert_eq!(asked.data().await.unwrap(), "two");
        }
        free.send("two").await;
        assert_eq!(free.data().await.unwrap(), "two");
        drop(streams);
        let records = mesh.stop().await;
        let record = records.of("inbound", "/asked/stream");
        assert_eq!(record.ended() == "policy-changed at relay", ends, "{record:?}");
        if ends {
            assert_eq!(record.text("/ended/policy/name"), "ask", "{record:?}");
            assert!(record.detail().contains("provider"), "{record:?}");
        }
    }
}

#[tokio::test]
async fn an_open_connection_ends_when_a_provider_would_have_to_be_asked_that_was_not() {
    let (db, provider) = (App::tcp_echo().await, App::grpc(|_| ok()).await);
    let mesh = world(&db, &provider, GRPC, "", BEFORE)
        .server(Server::new("db", &db).port_name("tcp"))
        .policy(&ASK.replace("name: ask,", "name: ask-db,").replace("app: ratings", "app: db").replace(
            "rules: [{to: [{operation: {paths: [/asked*]}}]}]",
            "rules: [{from: [{source: {principals: [cluster.local/ns/bookinfo/sa/productpage]}}]}]",
        ))
        .start()
        .await;
    let mut clients = Vec::new();
    for account in ["productpage", "reviews"] {
        let mut client = mesh.pki.caller(account).offering(&["istio"]).connect(mesh.inbound("db")).await;
        client.send("hello").await;
        assert_eq!(client.bytes(5).await, b"hello");
        clients.push(client);
    }
    assert_eq!(provider.requests(), 1);
    mesh.config().write(
        "late.yaml",
        &LATE.replace("app: ratings", "app: db").replace(
            "rules: [{to: [{operation: {paths: [/late*]}}]}]",
            "rules: [{from: [{source: {principals: [cluster.local/ns/bookinfo/sa/reviews]}}]}]",
        ),
    );
    let [asked, late] = &mut clients[..] else { panic!() };
    assert_eq!(late.rest().await, b"");
    asked.send("on").await;
    assert_eq!(asked.bytes(2).await, b"on");
    drop(clients);
    let records = mesh.stop().await;
    let cut: Vec<_> =
        records.all().iter().filter(|record| record.ended() == "policy-changed at relay").collect();
    assert_eq!(cut.len(), 1, "{cut:?}");
    assert_eq!(cut[0].text("/ended/policy/name"), "late");
}

/// Trust changes while nobody knows yet whether a request goes on.
#[tokio::test]
async fn a_caller_that_is_revoked_while_a_provider_is_asked_loses_what_then_begins() {
    let app = App::answering_bytes("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun").await;
    let provider = App::silent().await;
    let mesh = mesh(&app, &provider, GRPC, ", timeout: 4s, failOpen: true", BEFORE).await;
    let caller = mesh.pki.caller("productpage");
    let mut client = caller.connect(mesh.inbound("ratings")).await;
    client.send("GET /asked/late HTTP/1.1\r\nHost: ratings:9080\r\n\r\n").await;
    soon("the question", async {
        while provider.connections() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    mesh.pki.revoke(&caller.leaf());
    client.rest().await;
    let of_path = |record: &Record| record.side() == "inbound" && record.path() == "/asked/late";
    let record = mesh.record("the cut", of_path).await;
    assert!(record.ended().starts_with("certificate-revoked"), "{record:?}");
    mesh.stop().await;
}
