//! What can't be weakened, and what plaintext is still taken.

use tests::{App, Client, Server, World};

const ENFORCED: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system, annotations: {writ.dev/enforced: 'true'}}
spec: {mtls: {mode: STRICT}}
";

fn ignored<'a>(config: &'a serde_json::Value, name: &str) -> Option<&'a str> {
    let verdicts = config["verdicts"].as_array()?;
    let verdict = verdicts.iter().find(|verdict| verdict["name"] == name)?;
    (verdict["state"] == "ignored").then(|| verdict["diagnostics"][0]["message"].as_str())?
}

#[tokio::test]
async fn an_enforced_level_holds_against_namespace_port_and_client() {
    const WEAKER: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: lax, namespace: bookinfo}
spec: {mtls: {mode: PERMISSIVE}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: lax-port, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  portLevelMtls: {9080: {mode: DISABLE}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: plain, namespace: bookinfo}
spec: {host: ratings, trafficPolicy: {tls: {mode: DISABLE}}}
";
    let app = App::echo().await;
    let mesh =
        World::new().server(Server::new("ratings", &app)).policy(ENFORCED).policy(WEAKER).start().await;
    mesh.config_is("every weaker object ignored, naming what it would weaken", |config| {
        let named = |name| ignored(config, name).is_some_and(|why| why.contains("istio-system/default"));
        ["lax", "lax-port", "plain"].into_iter().all(named)
    })
    .await;
    assert_eq!(mesh.get("/mtls").await.status, 200);
    assert_eq!(Client::connect(mesh.inbound("ratings")).await.get("/plain", "").await.status, 403);
    let metrics = mesh.metrics("ratings").await;
    assert!(metrics.contains("writ_config_verdicts{state=\"ignored\"} 3"), "{metrics}");
    assert!(!metrics.contains("writ_plaintext_connections_total{"), "{metrics}");

    let records = mesh.stop().await;
    assert_eq!(records.pair("/mtls").0.check("encryption"), "pass mtls");
    let by = "by PeerAuthentication istio-system/default";
    let refused = records.of("inbound", "/plain");
    assert_eq!(refused.check("encryption"), format!("fail plaintext-under-strict {by}"));
}

#[tokio::test]
async fn under_an_enforced_level_a_server_without_mtls_gets_nothing() {
    let app = App::echo().await;
    let server = Server::new("ratings", &app).without_sidecar();
    let mesh = World::new().server(server).policy(ENFORCED).start().await;
    assert_eq!(mesh.get("/secret").await.status, 503);
    assert_eq!(app.connections(), 0);
    let records = mesh.stop().await;
    assert_eq!(records.only("outbound").decision(), "deny at pick: mtls-unavailable");
}

#[tokio::test]
async fn plaintext_is_counted_by_port() {
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).start().await;
    for path in ["/1", "/2"] {
        assert_eq!(Client::connect(mesh.inbound("ratings")).await.get(path, "").await.status, 200);
    }
    assert_eq!(mesh.get("/mtls").await.status, 200);
    let metrics = mesh.metrics("ratings").await;
    let counted = format!("writ_plaintext_connections_total{{port=\"{}\"}} 2", app.address().port());
    assert!(metrics.contains(&counted), "{metrics}");
    mesh.stop().await;
}
