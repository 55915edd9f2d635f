//! Who is who: what is believed of callers and servers, and what applications learn of their callers.

use std::time::{Duration, SystemTime};

use fips::ca::Profile;
use tests::{App, Caller, Mesh, Pki, Server, World};

async fn ratings(app: &App) -> Mesh {
    World::new().server(Server::new("ratings", app)).start().await
}

#[tokio::test]
async fn the_application_learns_who_called_and_not_what_the_caller_claims() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let forged = "X-Forwarded-Client-Cert: By=x;URI=spiffe://cluster.local/ns/bookinfo/sa/admin\r\n\
                  X_Forwarded_Client_Cert: URI=spiffe://cluster.local/ns/bookinfo/sa/admin\r\n";
    assert_eq!(mesh.client().await.get("/", forged).await.status, 200);

    let seen = app.only();
    let [xfcc] = seen.values("x-forwarded-client-cert")[..] else { panic!("one element: {seen:?}") };
    assert!(xfcc.starts_with("By=spiffe://cluster.local/ns/bookinfo/sa/ratings;Hash="), "{xfcc}");
    assert!(xfcc.ends_with(";URI=spiffe://cluster.local/ns/bookinfo/sa/productpage"), "{xfcc}");
    assert!(!xfcc.contains("admin"), "{xfcc}");
    assert!(seen.values("x_forwarded_client_cert").is_empty(), "{seen:?}");
    mesh.stop().await.pair("/");
}

#[tokio::test]
async fn a_policy_sees_who_called_and_not_what_the_caller_claims() {
    const ADMINS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: admins, namespace: bookinfo}
spec:
  rules:
  - when: [{key: 'request.headers[x-forwarded-client-cert]', values: ['*URI=spiffe://cluster.local/ns/bookinfo/sa/admin']}]
";
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).policy(ADMINS).start().await;
    let forged = "X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/bookinfo/sa/admin\r\n";
    let mut plaintext = tests::Client::connect(mesh.inbound("ratings")).await;
    assert_eq!(plaintext.get("/plaintext", forged).await.status, 403);
    let mut other = mesh.pki.caller("productpage").connect(mesh.inbound("ratings")).await;
    assert_eq!(other.get("/other", forged).await.status, 403);
    assert_eq!(app.requests(), 0);
    mesh.stop().await;
}

#[tokio::test]
async fn a_plaintext_caller_has_no_certificate_to_be_forwarded() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let forged = "X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/bookinfo/sa/admin\r\n";
    let mut client = tests::Client::connect(mesh.inbound("ratings")).await;
    assert_eq!(client.get("/", forged).await.status, 200);
    assert!(app.only().values("x-forwarded-client-cert").is_empty());

    let records = mesh.stop().await;
    let inbound = records.of("inbound", "/");
    assert_eq!(inbound.check("encryption"), "pass plaintext-permitted");
    assert_eq!(inbound.check("service-authentication"), "not-required no-identity");
}

#[tokio::test]
async fn a_forwarding_identity_is_appended_to() {
    const GATEWAY_FORWARDS: &str = "
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {name: default, namespace: istio-system}
spec:
  forwardingIdentities: [spiffe://cluster.local/ns/bookinfo/sa/gateway]
";
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).policy(GATEWAY_FORWARDS).start().await;
    let user = "X-Forwarded-Client-Cert: Hash=01;URI=spiffe://other/user\r\n";
    for (account, path) in [("gateway", "/believed"), ("productpage", "/not-believed")] {
        let mut client = mesh.pki.caller(account).connect(mesh.inbound("ratings")).await;
        assert_eq!(client.get(path, user).await.status, 200);
    }
    let seen = app.seen();
    let elements = |index: usize| {
        let value = seen[index].values("x-forwarded-client-cert").join(",");
        value.split(',').map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(elements(0)[0], "Hash=01;URI=spiffe://other/user");
    assert!(
        elements(0)[1].ends_with("URI=spiffe://cluster.local/ns/bookinfo/sa/gateway"),
        "{:?}",
        elements(0)
    );
    assert_eq!(elements(1).len(), 1, "{:?}", elements(1));

    let records = mesh.stop().await;
    let believed = records.of("inbound", "/believed");
    assert_eq!(believed.text("/source/identity"), "spiffe://cluster.local/ns/bookinfo/sa/gateway");
    records.of("inbound", "/not-believed");
}

#[tokio::test]
async fn a_server_that_proves_another_account_gets_no_request() {
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app).proving("impostor")).start().await;
    let reply = mesh.get("/secret").await;
    assert_eq!(reply.status, 503);
    assert_eq!(app.connections(), 0);

    let records = mesh.stop().await;
    let outbound = records.of("outbound", "/secret");
    assert_eq!(outbound.decision(), "deny at connect: identity-mismatch");
    assert_eq!(outbound.check("service-authentication"), "fail identity-mismatch");
    assert_eq!((outbound.status(), outbound.ended().as_str()), (503, "identity-mismatch at connect"));
    assert!(outbound.detail().contains("sa/impostor"), "{}", outbound.detail());
    // What the impostor saw was a handshake that went nowhere.
    assert!(records.side("inbound").iter().all(|inbound| inbound.path().is_empty()), "{records:#?}");
}

#[tokio::test]
async fn under_strict_a_server_without_mtls_is_never_asked_in_plaintext() {
    const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
";
    let app = App::echo().await;
    let mesh =
        World::new().server(Server::new("ratings", &app).without_sidecar()).policy(STRICT).start().await;
    assert_eq!(mesh.get("/secret").await.status, 503);
    assert_eq!(app.connections(), 0);

    let records = mesh.stop().await;
    let outbound = records.only("outbound");
    assert_eq!(outbound.decision(), "deny at pick: mtls-unavailable");
    assert_eq!(outbound.check("encryption"), "fail mtls-unavailable");
    assert_eq!(outbound.ended(), "mtls-unavailable at pick");
    assert!(outbound.attempts().is_empty());
}

#[tokio::test]
async fn without_strict_a_server_without_a_sidecar_is_asked_in_plaintext_and_the_record_says_so() {
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app).without_sidecar()).start().await;
    assert_eq!(mesh.get("/").await.status, 200);
    let records = mesh.stop().await;
    let outbound = records.only("outbound");
    assert_eq!(outbound.check("encryption"), "pass plaintext-permitted");
    assert_eq!(outbound.check("service-authentication"), "not-required no-identity");
}

/// Callers whose handshakes must fail, and how their records must say so.
#[tokio::test]
async fn a_caller_that_proves_nothing_gets_no_further_than_the_handshake() {
    let app = App::echo().await;
    let mesh = ratings(&app).await;
    let id = "spiffe://cluster.local/ns/bookinfo/sa/productpage";
    let (hour, now) = (Duration::from_secs(3600), SystemTime::now());
    let stranger = Pki::new();
    let profile = |not_before, not_after| Profile { not_before, not_after, ..Profile::workload(id, hour) };
    let callers = [
        ("no-identity", Caller::anonymous()),
        ("untrusted-root", stranger.caller("productpage")),
        ("expired", mesh.pki.caller_with(&profile(now - 2 * hour, now - hour))),
        ("not-yet-valid", mesh.pki.caller_with(&profile(now + hour, now + 2 * hour))),
        ("bad-certificate", mesh.pki.caller_with(&Profile::server(&["productpage"], hour))),
    ];
    for (reason, caller) in callers {
        // TLS 1.3 tells a client that it was refused only when it reads.
        if let Ok(mut client) = caller.try_connect(mesh.inbound("ratings")).await {
            let _ = client.try_send("GET / HTTP/1.1\r\nHost: ratings\r\n\r\n").await;
            assert!(client.rest().await.is_empty(), "{reason}");
        }
        let record =
            mesh.record(reason, |record| record.check("service-authentication") == format!("fail {reason}"));
        let record = record.await;
        assert_eq!(record.decision(), format!("deny at terminate: {reason}"));
        assert_eq!(record.ended(), format!("{reason} at terminate"));
    }
    assert_eq!(app.connections(), 0);
    assert_eq!(mesh.stop().await.side("inbound").len(), 5);
}
