//! Stopping: what is under way finishes, what can't is cut and recorded, and callers with another server notice nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tests::{App, Client, Server, World, request_head, soon};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Notify, watch};

#[tokio::test]
async fn a_server_that_stops_under_load_costs_no_request() {
    const CLIENTS: usize = 8;
    let (a, b) = (App::echo().await, App::echo().await);
    let mut mesh = World::new()
        .server(Server::new("ratings", &a))
        .server(Server::new("ratings-b", &b).of("ratings"))
        .drain(Duration::from_secs(20))
        .start()
        .await;
    let both = [mesh.inbound("ratings"), mesh.inbound("ratings-b")];
    mesh.config().write("endpoints.yaml", &mesh.endpoints_with("ratings", &both));

    let (answered, stop) = (Arc::<AtomicUsize>::default(), watch::Sender::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (answered, stopped, entrance) = (Arc::clone(&answered), stop.subscribe(), mesh.entrance);
        clients.spawn(async move {
            let mut client = Client::connect(entrance).await;
            while !*stopped.borrow() {
                let reply = client.get("/", "").await;
                assert_eq!(reply.status, 200, "{reply:?}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    a.has_requests(100).await;
    b.has_requests(100).await;
    assert_eq!(mesh.stop_server("ratings").await, 0, "connections that had to be cut");
    let (stopped_at, moved_at) = (a.requests(), b.requests());
    b.has_requests(moved_at + 1_000).await;
    stop.send_replace(true);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert_eq!(a.requests(), stopped_at, "what is stopped serves nobody");

    let answered = answered.load(Ordering::Relaxed);
    let records = mesh.stop().await;
    let outbound = records.side("outbound");
    assert_eq!(outbound.len(), answered);
    assert!(outbound.iter().all(|record| record.ended() == "complete at relay" && record.status() == 200));
    assert_eq!(records.side("inbound").len(), answered, "a try that met a closed door was no request");
}

#[tokio::test]
async fn what_the_drain_deadline_cuts_says_so() {
    for side in ["outbound", "inbound"] {
        let app = App::silent().await;
        let mut server = Server::new("ratings", &app);
        if side == "outbound" {
            // One proxy on the way: of two, the one that is cut second answers for the first.
            server = server.without_sidecar();
        }
        let mesh = World::new().server(server).drain(Duration::from_millis(100)).start().await;
        let to = if side == "outbound" { mesh.entrance } else { mesh.inbound("ratings") };
        let mut waiting = Client::connect(to).await;
        waiting.send("GET /cut HTTP/1.1\r\nHost: ratings:9080\r\n\r\n").await;
        app.has_requests(1).await;
        let (records, cut) = mesh.stop_counting().await;
        assert!(waiting.rest().await.is_empty());
        assert_eq!(cut, 1);
        assert_eq!(records.of(side, "/cut").text("/ended/reason"), "drain-deadline");
        assert_eq!(records.all().len(), 1);
    }
}

#[tokio::test]
async fn a_request_under_way_outlives_the_drain() {
    let (app, go_on) = answering_when_told().await;
    let mesh = World::new().server(Server::new("ratings", &app)).drain(Duration::from_secs(20)).start().await;
    let mut client = mesh.client().await;
    client.send("GET /finishes HTTP/1.1\r\nHost: ratings:9080\r\n\r\n").await;
    app.has_requests(1).await;
    let entrance = mesh.entrance;
    let stopping = tokio::spawn(mesh.stop_counting());
    // The drain has begun when nobody accepts any more.
    soon("the drain", async {
        while tokio::net::TcpStream::connect(entrance).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    go_on.notify_one();
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.text(), reply.header("connection")), (200, "ok", Some("close")));
    assert!(client.rest().await.is_empty());
    let (records, cut) = stopping.await.unwrap();
    let (outbound, inbound) = records.pair("/finishes");
    assert_eq!(
        (cut, outbound.ended(), inbound.ended()),
        (0, "complete at relay".into(), "complete at relay".into())
    );
}

async fn answering_when_told() -> (App, Arc<Notify>) {
    let go_on = Arc::<Notify>::default();
    let told = Arc::clone(&go_on);
    let app = App::raw(move |mut socket, log| {
        let told = Arc::clone(&told);
        async move {
            while request_head(&mut socket).await {
                log.request();
                told.notified().await;
                let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    (app, go_on)
}
