//! TLS to servers outside of the mesh: who is believed, and what the records say of those who are not.

use std::time::{Duration, SystemTime};

use fips::ca::{Profile, Purpose};
use tests::{App, Mesh, Pki, Server, World};

const HOUR: Duration = Duration::from_secs(3600);

fn config_map(name: &str, pem: &str) -> String {
    let pem = pem.replace('\n', "\n    ");
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: bookinfo}}\ndata:\n  ca.crt: |\n    {pem}\n"
    )
}

pub(crate) fn secret(name: &str, values: &[(&str, &str)]) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: bookinfo}}\nstringData:\n"
    );
    for (key, value) in values {
        yaml.push_str(&format!("  {key}: |\n    {}\n", value.replace('\n', "\n    ")));
    }
    yaml
}

const POLICY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: ratings-tls, namespace: bookinfo}
spec:
  targetRefs: [{group: '', kind: Service, name: ratings}]
  validation:
    hostname: ratings.example.com
    caCertificateRefs: [{group: '', kind: ConfigMap, name: web-roots}]
";

async fn mesh(app: &App, documents: &[&str]) -> Mesh {
    let world = World::new().server(Server::new("ratings", app).without_sidecar().port_name("http"));
    documents.iter().fold(world, |world, yaml| world.policy(yaml)).start().await
}

#[tokio::test]
async fn a_server_that_proves_its_name_is_asked_and_the_record_says_what_it_proved() {
    let web = Pki::new();
    let app = App::tls(web.website(&Profile::server(&["ratings.example.com"], HOUR), None)).await;
    let mesh = mesh(&app, &[POLICY, &config_map("web-roots", web.root())]).await;
    for path in ["/1", "/2"] {
        assert_eq!(mesh.get(path).await.status, 200);
    }
    assert_eq!(app.requests(), 2);
    let records = mesh.stop().await;
    let outbound = records.of("outbound", "/1");
    assert_eq!(outbound.check("encryption"), "pass tls");
    assert_eq!(outbound.check("service-authentication"), "pass name-verified");
    let evidence = |pointer: &str| outbound.text(&format!("/decision/checks/{pointer}")).to_owned();
    assert_eq!(
        (evidence("0/evidence/tls"), evidence("0/evidence/sni")),
        ("1.3".into(), "ratings.example.com".into())
    );
    assert!(!evidence("1/evidence/serial").is_empty() && !evidence("1/evidence/not_after").is_empty());
    assert_eq!(outbound.text("/route/attempts/0/identity"), "ratings.example.com");
}

#[tokio::test]
async fn a_server_that_does_not_gets_no_request() {
    let (web, stranger) = (Pki::new(), Pki::new());
    let (good, now) = (Profile::server(&["ratings.example.com"], HOUR), SystemTime::now());
    let cases = [
        ("identity-mismatch", web.website(&Profile::server(&["other.example.com"], HOUR), None)),
        (
            "expired",
            web.website(&Profile { not_before: now - 2 * HOUR, not_after: now - HOUR, ..good.clone() }, None),
        ),
        (
            "not-yet-valid",
            web.website(&Profile { not_before: now + HOUR, not_after: now + 2 * HOUR, ..good.clone() }, None),
        ),
        ("untrusted-root", stranger.website(&good, None)),
        ("bad-certificate", web.website(&Profile { purposes: vec![Purpose::Client], ..good.clone() }, None)),
    ];
    for (reason, config) in cases {
        let app = App::tls(config).await;
        let mesh = mesh(&app, &[POLICY, &config_map("web-roots", web.root())]).await;
        assert_eq!(mesh.get("/secret").await.status, 503, "{reason}");
        assert_eq!(app.requests(), 0, "{reason}");
        let records = mesh.stop().await;
        let outbound = records.of("outbound", "/secret");
        assert_eq!(outbound.decision(), format!("deny at connect: {reason}"));
        assert_eq!(outbound.check("service-authentication"), format!("fail {reason}"));
        assert_eq!(outbound.ended(), format!("{reason} at connect"));
    }
}

#[tokio::test]
async fn a_plaintext_server_is_not_asked_where_tls_is_ordered() {
    let web = Pki::new();
    let app = App::echo().await;
    let mesh = mesh(&app, &[POLICY, &config_map("web-roots", web.root())]).await;
    assert_eq!(mesh.get("/secret").await.status, 503);
    assert_eq!(app.requests(), 0);
    assert_eq!(mesh.stop().await.of("outbound", "/secret").ended(), "tls-failed at connect");
}

#[tokio::test]
async fn without_usable_roots_nothing_is_sent() {
    let app = App::echo().await;
    let mesh = mesh(&app, &[POLICY]).await;
    assert_eq!(mesh.get("/secret").await.status, 503);
    assert_eq!(app.connections(), 0);
    let records = mesh.stop().await;
    let outbound = records.of("outbound", "/secret");
    assert_eq!(outbound.ended(), "tls-failed at pick");
    assert!(outbound.detail().contains("BackendTLSPolicy bookinfo/ratings-tls"), "{}", outbound.detail());
}

#[tokio::test]
async fn a_server_is_known_by_its_uri_where_that_is_ordered() {
    let web = Pki::new();
    let id = "spiffe://elsewhere.example/ratings";
    let app = App::tls(web.website(&Profile::workload(id, HOUR), None)).await;
    let by_uri = POLICY
        .replace("    caCert", &format!("    subjectAltNames: [{{type: URI, uri: '{id}'}}]\n    caCert"));
    let mesh = mesh(&app, &[&by_uri, &config_map("web-roots", web.root())]).await;
    assert_eq!(mesh.get("/").await.status, 200);
    let records = mesh.stop().await;
    let outbound = records.of("outbound", "/");
    assert_eq!(outbound.text("/route/attempts/0/identity"), id);
    assert_eq!(outbound.text("/decision/checks/0/evidence/sni"), "ratings.example.com");
}

#[tokio::test]
async fn a_client_certificate_comes_from_a_secret_and_a_new_one_is_used_at_once() {
    const MUTUAL: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ratings, namespace: bookinfo}
spec: {host: ratings, trafficPolicy: {tls: {mode: MUTUAL, credentialName: client, sni: ratings.example.com}}}
";
    let (web, clients, strangers) = (Pki::new(), Pki::new(), Pki::new());
    let profile = Profile::server(&["ratings.example.com"], HOUR);
    let app = App::tls(web.website(&profile, Some(&clients))).await;
    let credential = |authority: &Pki| {
        let (certificate, key) = authority.issue(&Profile::server(&["productpage"], HOUR));
        secret("client", &[("tls.crt", &certificate), ("tls.key", &key), ("ca.crt", web.root())])
    };
    let mesh = mesh(&app, &[MUTUAL]).await;
    assert_eq!(mesh.get("/none").await.status, 503, "no Secret");
    mesh.config().write("secret.yaml", &credential(&strangers));
    let named = |config: &serde_json::Value| !config.to_string().contains("no Secret bookinfo/client");
    mesh.config_is("the Secret", named).await;
    assert_eq!(mesh.get("/stranger").await.status, 503);
    let digest =
        |config: &serde_json::Value| config["runtime_digest"].as_str().unwrap_or_default().to_owned();
    let before = std::sync::Mutex::new(String::new());
    mesh.config_is("the digest", |config| {
        *before.lock().unwrap() = digest(config);
        true
    })
    .await;
    mesh.config().write("secret.yaml", &credential(&clients));
    mesh.config_is("the new Secret", |config| digest(config) != *before.lock().unwrap()).await;
    assert_eq!(mesh.get("/known").await.status, 200);
    let records = mesh.stop().await;
    assert_eq!(records.of("outbound", "/none").ended(), "tls-failed at pick");
    assert_eq!(records.of("outbound", "/known").check("service-authentication"), "pass name-verified");
    assert!(!format!("{records:?}").contains("PRIVATE KEY"));
}
