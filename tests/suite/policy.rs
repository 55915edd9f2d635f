//! Who may do what: by mTLS identity, by rule, by default; and what the records of both sides say.

use tests::{App, Server, World};

const POLICIES: &str = include_str!("policy.yaml");

#[tokio::test]
async fn allowed() {
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).policy(POLICIES).start().await;
    let reply = mesh.get("/ratings/1").await;
    assert_eq!((reply.status, reply.text()), (200, "hello"));
    let records = mesh.stop().await;
    let (outbound, inbound) = records.pair("/ratings/1");
    println!("{outbound:?}\n{inbound:?}");
}
