//! Revocation lists from wherever they come: what a revoked caller has open ends within a second of the list, and no list that
//! can't be read takes the place of one that can.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tests::{App, Caller, Mesh, Pki, Record, Server, TlsClient, World, soon};
use webpki::EndEntityCert;

const HOUR: Duration = Duration::from_secs(3600);

/// A list with these certificates and no other, PEM.
fn list(pki: &Pki, revoked: &[&CertificateDer<'_>]) -> String {
    let serials: Vec<_> =
        revoked.iter().map(|leaf| EndEntityCert::try_from(*leaf).unwrap().serial().to_vec()).collect();
    let serials: Vec<_> = serials.iter().map(Vec::as_slice).collect();
    pki.authority().revocation_list(&serials, SystemTime::now() + HOUR).unwrap()
}

/// As istiod publishes them.
fn published(lists: &str) -> String {
    let lists = lists.replace('\n', "\n    ");
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio-ca-crl, namespace: istio-system}}\ndata:\n  ca-crl.pem: |\n    {lists}\n"
    )
}

/// A server whose answers never end, and one whose do.
fn world(long: &App, echo: &App) -> World {
    World::new().server(Server::new("long", long)).server(Server::new("ratings", echo))
}

async fn unending() -> App {
    App::answering_bytes("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun").await
}

async fn begun(mesh: &Mesh, caller: &Caller, path: &str) -> TlsClient {
    let mut client = caller.connect(mesh.inbound("long")).await;
    client.send(format!("GET {path} HTTP/1.1\r\nHost: long:9080\r\n\r\n")).await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.bytes(5).await, b"begun");
    client
}

async fn is_cut(mesh: &Mesh, mut client: TlsClient, path: &str) {
    assert_eq!(client.rest().await, b"");
    let record = mesh.record(path, |record| record.path() == path).await;
    assert_eq!(
        (record.ended().as_str(), record.text("/ended/why")),
        ("certificate-revoked at relay", "revoked")
    );
    assert_eq!(record.decision(), "allow at authorize: no-policy", "what was decided stays true");
    assert!(record.number("/ended/after_us") < 1_000_000, "{record:?}");
}

/// Whether a new connection of this caller is served.
async fn served(mesh: &Mesh, caller: &Caller) -> bool {
    let Ok(mut client) = caller.try_connect(mesh.inbound("ratings")).await else { return false };
    let _ = client.try_send("GET / HTTP/1.1\r\nHost: ratings\r\nConnection: close\r\n\r\n").await;
    matches!(client.try_reply().await, Ok(Some(reply)) if reply.status == 200)
}

#[tokio::test]
async fn a_list_in_the_config_map_of_the_mesh_cuts_who_is_on_it() {
    let (app, echo) = (unending().await, App::echo().await);
    let mesh = world(&app, &echo).start().await;
    let (revoked, other) = (mesh.pki.caller("productpage"), mesh.pki.caller("reviews"));
    // Where there is nothing to revoke, istiod publishes nothing in it.
    mesh.config().write("crl.yaml", &published(""));
    let (cut, stays) = (begun(&mesh, &revoked, "/cut").await, begun(&mesh, &other, "/stay").await);
    let digest = mesh.admin_says("long", "/config", |_| true).await["digest"].clone();

    mesh.config().write("crl.yaml", &published(&list(&mesh.pki, &[&revoked.leaf()])));
    is_cut(&mesh, cut, "/cut").await;
    refused(&mesh, &revoked).await;
    assert!(served(&mesh, &other).await);
    let config = mesh.admin_says("long", "/config", |_| true).await;
    assert_eq!(config["digest"], digest, "who is revoked is no policy");

    // What can't be read is told with its place, and leaves revoked who is.
    let unreadable =
        published(&format!("{}-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----", list(&mesh.pki, &[])));
    mesh.config().write("crl.yaml", &unreadable);
    let kept = |verdict: &serde_json::Value| {
        verdict["name"] == "istio-ca-crl" && verdict["state"] == "kept-last-good"
    };
    let config = mesh
        .admin_says("long", "/config", |config| config["verdicts"].as_array().unwrap().iter().any(kept))
        .await;
    let verdict = config["verdicts"].as_array().unwrap().iter().find(|verdict| kept(verdict)).unwrap();
    let told = &verdict["diagnostics"][0];
    assert_eq!((&told["field"], &told["line"]), (&"data[ca-crl.pem]".into(), &5.into()), "{verdict:#}");
    assert!(told["file"].as_str().unwrap().ends_with("crl.yaml"), "{verdict:#}");
    assert!(told["message"].as_str().unwrap().starts_with("list 2: "), "{verdict:#}");
    refused(&mesh, &revoked).await;

    // Nor does a file that can't be read at all.
    mesh.config().write("crl.yaml", "apiVersion: v1\nkind: [");
    mesh.config_is("a broken file", |config| config["verdicts"].to_string().contains("\"File\"")).await;
    refused(&mesh, &revoked).await;
    mesh.config().write("crl.yaml", &published(&list(&mesh.pki, &[])));
    soon("a caller that is not revoked any more", async {
        while !served(&mesh, &revoked).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    drop(stays);
    let records = mesh.stop().await;
    assert_ne!(records.of("inbound", "/stay").text("/ended/reason"), "certificate-revoked");
}

#[tokio::test]
async fn a_list_of_the_workload_api_cuts_who_is_on_it() {
    let (app, echo) = (unending().await, App::echo().await);
    let mesh = world(&app, &echo).with_agent().start().await;
    let (revoked, other) = (mesh.pki.caller("productpage"), mesh.pki.caller("reviews"));
    let (cut, stays) = (begun(&mesh, &revoked, "/cut").await, begun(&mesh, &other, "/stay").await);
    mesh.agent().revoke(&list(&mesh.pki, &[&revoked.leaf()]));
    is_cut(&mesh, cut, "/cut").await;
    refused(&mesh, &revoked).await;
    assert!(served(&mesh, &other).await);
    drop(stays);
    mesh.stop().await;
}

/// A list that nobody can read is no list at all, so a proxy that has no other does not start.
#[tokio::test]
async fn a_start_without_a_list_that_can_be_read_is_refused() {
    let app = App::echo().await;
    let world = World::new().server(Server::new("ratings", &app));
    let started = world.policy(&published("not a list")).try_start().await;
    let why = format!("{:#}", started.err().expect("a refusal"));
    for named in
        ["ConfigMap istio-system/istio-ca-crl", "data[ca-crl.pem]", "policy-0.yaml:5", "no revocation list"]
    {
        assert!(why.contains(named), "{named} in {why}");
    }
}

async fn refused(mesh: &Mesh, caller: &Caller) {
    let (source, connected) = caller.attempt(mesh.inbound("ratings")).await;
    if let Ok(mut client) = connected {
        assert!(client.rest().await.is_empty());
    }
    let of_source = |record: &Record| record.text("/source/address") == source.to_string();
    assert_eq!(mesh.record("the refusal", of_source).await.ended(), "revoked at terminate");
}
