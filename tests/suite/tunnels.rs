//! What begins as HTTP and becomes a tunnel.

use tests::{App, Server, World, request_head};
use tokio::io::AsyncWriteExt as _;

/// HTTP/1: switches to a protocol that repeats what it hears.
pub async fn upgrading() -> App {
    App::raw(|mut socket, log| async move {
        if !request_head(&mut socket).await {
            return;
        }
        log.request();
        let switched =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nwelcome ";
        let _ = socket.write_all(switched.as_bytes()).await;
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

pub const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: echo\r\n";

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel_with_the_record_of_its_request() {
    let app = upgrading().await;
    let mesh = World::new().server(Server::new("ratings", &app)).start().await;
    let mut client = mesh.client().await;
    // What follows the head at once belongs to the tunnel.
    client.send(format!("GET /socket HTTP/1.1\r\nHost: ratings:9080\r\n{UPGRADE}\r\n")).await;
    let head = client.head().await;
    assert_eq!((head.status, head.header("upgrade")), (101, Some("echo")));
    assert_eq!(client.bytes(8).await, b"welcome ");
    for word in ["one", "two"] {
        client.send(word).await;
        assert_eq!(client.bytes(3).await, word.as_bytes());
    }
    client.finish().await;
    assert!(client.rest().await.is_empty());

    let records = mesh.stop().await;
    let (outbound, inbound) = records.pair("/socket");
    for record in [outbound, inbound] {
        assert_eq!((record.status(), record.ended().as_str()), (101, "complete at relay"));
        assert_eq!((record.number("/request/bytes"), record.number("/response/bytes")), (6, 14));
    }
}

#[tokio::test]
async fn an_upgrade_is_authorized_like_any_request() {
    let app = upgrading().await;
    let mesh =
        World::new().server(Server::new("ratings", &app)).policy(crate::policy::POLICIES).start().await;
    assert_eq!(mesh.client().await.get("/socket", UPGRADE).await.status, 403);
    let records = mesh.stop().await;
    assert_eq!(records.pair("/socket").1.decision(), "deny at authorize: no-allow-matched");
    assert_eq!(app.connections(), 0);
}

#[tokio::test]
async fn an_application_that_does_not_switch_just_answers() {
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).start().await;
    let mut client = mesh.client().await;
    assert_eq!(client.get("/no", UPGRADE).await.text(), "hello");
    assert_eq!(
        client.get("/h2c", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n").await.text(),
        "hello"
    );
    let seen = app.seen();
    assert_eq!((seen[0].values("upgrade").len(), seen[1].values("upgrade").len()), (1, 0));
    let records = mesh.stop().await;
    records.pair("/no");
    records.pair("/h2c");
}

#[tokio::test]
async fn connect_to_a_workload_is_no_open_relay() {
    let app = App::tcp_echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).start().await;
    let mut client = mesh.pki.caller("productpage").connect(mesh.inbound("ratings")).await;
    client.send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", app.address())).await;
    assert_eq!(client.reply().await.status, 404);
    let records = mesh.stop().await;
    assert_eq!(records.only("inbound").ended(), "no-route at route");
    assert_eq!(app.connections(), 0);
}

/// Whoever goes by the authority alone reaches a service by its address as by its name: never its address as it is, where
/// nothing would be known of the server.
#[tokio::test]
async fn the_address_of_a_service_means_the_service() {
    const AT_AN_ADDRESS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: bookinfo}
spec: {clusterIP: 127.9.9.9, ports: [{name: http, port: 9080}]}
";
    let mesh = World::new().policy(AT_AN_ADDRESS).start().await;
    for (authority, ended) in [
        ("127.9.9.9:9080", "no-endpoints at pick"),
        ("[::ffff:127.9.9.9]:9080", "no-endpoints at pick"),
        ("127.9.9.9:9081", "unknown-destination at route"),
        ("[::ffff:127.9.9.9]:9081", "unknown-destination at route"),
    ] {
        for asked in ["GET /", &format!("CONNECT {authority}")] {
            let mut client = mesh.client().await;
            client.send(format!("{asked} HTTP/1.1\r\nHost: {authority}\r\n\r\n")).await;
            let status = client.reply().await.status;
            let method = asked.split(' ').next().unwrap();
            let record = mesh
                .record(asked, |record| {
                    record.text("/request/method") == method && record.text("/request/authority") == authority
                })
                .await;
            assert_eq!((record.ended().as_str(), record.status()), (ended, u64::from(status)), "{record:?}");
        }
    }
    mesh.stop().await;
}

#[tokio::test]
async fn connect_on_loopback_opens_a_tunnel() {
    let app = App::tcp_echo().await;
    let mesh = World::new().start().await;
    let mut client = mesh.client().await;
    client.send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", app.address())).await;
    assert_eq!(client.head().await.status, 200);
    client.send("over the tunnel").await;
    assert_eq!(client.bytes(15).await, b"over the tunnel");
    client.finish().await;
    assert!(client.rest().await.is_empty());
    let records = mesh.stop().await;
    let outbound = records.only("outbound");
    assert_eq!((outbound.status(), outbound.text("/request/method")), (200, "CONNECT"));
    assert_eq!((outbound.number("/request/bytes"), outbound.number("/response/bytes")), (15, 15));
    assert_eq!(outbound.ended(), "complete at relay");
}
