//! Running out of file descriptors: accepting stops, waits, and goes on when there are some again.

use std::fs::File;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tests::{App, Client, Server, World};
use tokio::net::TcpSocket;

/// The limit is the whole process's, so the test runs itself again in one of its own.
const IN_CHILD: &str = "WRIT_SUITE_DESCRIPTORS";

#[test]
fn accepting_survives_running_out() {
    if std::env::var_os(IN_CHILD).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(in_child());
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "descriptors::accepting_survives_running_out", "--nocapture"])
        .env(IN_CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "the child ran the test: {said}");
}

async fn in_child() {
    const WAITING: usize = 20;
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).start().await;
    let mut before = mesh.client().await;
    assert_eq!(before.get("/before", "").await.status, 200);
    let sockets: Vec<_> = (0..WAITING).map(|_| TcpSocket::new_v4().unwrap()).collect();

    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum: limit.maximum }).unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    // The kernel takes these connections, and no proxy can.
    let mut waiting = Vec::new();
    for socket in sockets {
        let mut client = Client::over(socket.connect(mesh.entrance).await.unwrap());
        client.send("GET /waiting HTTP/1.1\r\nHost: ratings:9080\r\n\r\n").await;
        waiting.push(client);
    }
    // What has its descriptors goes on. The worker that serves it has tried to accept by the time it answers.
    assert_eq!(before.get("/meanwhile", "").await.status, 200);
    drop(taken);
    for mut client in waiting {
        assert_eq!(client.reply().await.status, 200);
    }
    let records = mesh.stop().await;
    records.pair("/before");
    records.pair("/meanwhile");
    let waiting = records.side("outbound").into_iter().filter(|record| record.path() == "/waiting");
    assert_eq!(waiting.count(), WAITING);
}
