//! Issuers whose servers misbehave: what they send is bounded in size and time, their last good keys stay, nobody else
//! notices, and what is wrong is told.

use std::time::{Duration, Instant};

use fips::jws::Algorithm;
use serde_json::{Value, json};
use tests::{App, Instead, Issuer, Mesh, Reply, Server, World};

/// In which keys must be fetched here. Longer than a good server ever takes, also on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What a server does, and what the proxy calls it.
fn misbehaviours(issuers: usize) -> Vec<(&'static str, &'static str, Instead)> {
    let answer = |head: &str, body: &[u8]| {
        let length = body.len();
        let mut answer = format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        answer.extend_from_slice(body);
        answer
    };
    let keys = |count: usize| json!({"keys": vec![json!({"kty": "EC", "crv": "P-256"}); count]}).to_string();
    let chunk = [b"100000\r\n".to_vec(), vec![b' '; 0x0010_0000], b"\r\n".to_vec()].concat();
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let half = answer("200 OK", keys(1).as_bytes());
    let all = vec![
        ("10 MB", "too-large", Instead::Bytes(answer("200 OK", &vec![b' '; 10_000_000]))),
        ("no end", "too-large", Instead::Endless(chunked, chunk)),
        ("HTML", "unusable", Instead::Bytes(answer("200 OK", b"<html>Sign in</html>"))),
        ("10,000 keys", "unusable", Instead::Bytes(answer("200 OK", keys(10_000).as_bytes()))),
        ("no key of use", "unusable", Instead::Bytes(answer("200 OK", keys(1).as_bytes()))),
        ("nested", "unusable", Instead::Bytes(answer("200 OK", "[".repeat(500_000).as_bytes()))),
        (
            "away from TLS",
            "redirect",
            Instead::Bytes(answer("302 Found\r\nLocation: http://localhost:1/", b"")),
        ),
        ("in circles", "redirect", Instead::Bytes(answer("307 Temporary\r\nLocation: /keys", b""))),
        ("5xx", "status", Instead::Bytes(answer("503 Busy", b""))),
        ("no HTTP", "unreachable", Instead::Bytes(vec![0x15; 5000])),
        ("cut", "broken-off", Instead::CutAfter(half[..half.len() - 1].to_vec())),
        ("drips", "timeout", Instead::Drip(answer("200 OK", keys(100).as_bytes()))),
        ("hangs", "timeout", Instead::Hang),
    ];
    assert_eq!(all.len(), issuers);
    all
}

const ISSUERS: usize = 13;

/// `/ratings/*` is for users of any of the issuers, `/open` for everyone.
fn policies(issuers: &[Issuer], host: &str) -> String {
    let rule = |issuer: &Issuer| {
        let (name, timeout) = (issuer.name(), TIMEOUT.as_secs());
        let keys = name.replace("localhost", host);
        format!("  - {{issuer: '{name}', jwksUri: '{keys}/keys', timeout: {timeout}s}}\n")
    };
    format!(
        "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: users, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  jwtRules:
{}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: for-users, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  rules:
  - from: [{{source: {{requestPrincipals: ['*']}}}}]
    to: [{{operation: {{paths: [/ratings/*]}}}}]
  - to: [{{operation: {{paths: [/open]}}}}]
",
        issuers.iter().map(rule).collect::<String>()
    )
}

/// One good issuer, and so many others for whose servers the same root vouches.
async fn issuers() -> (Issuer, Vec<Issuer>) {
    let good = Issuer::start(Algorithm::Es256).await;
    let mut others = Vec::new();
    for _ in 0..ISSUERS {
        others.push(good.beside().await);
    }
    (good, others)
}

async fn mesh(app: &App, good: &Issuer, policies: &str) -> Mesh {
    World::new().server(Server::new("ratings", app)).issuer(good).policy(policies).start().await
}

async fn get(mesh: &Mesh, path: &str, token: &str) -> Reply {
    mesh.client().await.get(path, &format!("Authorization: Bearer {token}\r\n")).await
}

/// What `/jwks` says of an issuer.
fn of<'v>(said: &'v Value, issuer: &Issuer) -> &'v Value {
    let all = said.as_array().unwrap();
    all.iter().find(|set| set["source"] == format!("{}/keys", issuer.name())).unwrap()
}

/// The count of fetches that came out so.
fn fetches(metrics: &str, issuer: &Issuer, outcome: &str) -> u64 {
    let source = format!("{}/keys", issuer.name());
    let line = format!("writ_jwks_fetches_total{{source=\"{source}\",outcome=\"{outcome}\"}} ");
    let count = metrics.lines().find_map(|found| found.strip_prefix(&line));
    count.unwrap_or_else(|| panic!("{line} in\n{metrics}")).parse().unwrap()
}

#[tokio::test]
async fn last_good_keys_stay_whatever_an_issuer_sends_and_nobody_else_notices() {
    let (app, (good, mut others)) = (App::echo().await, issuers().await);
    let (issuers, all) = (misbehaviours(ISSUERS), others.len());
    let mut named: Vec<Issuer> = std::mem::take(&mut others);
    named.push(good);
    let mesh = mesh(&app, &named[all], &policies(&named, "localhost")).await;
    let good = named.pop().unwrap();
    for ((what, _, instead), issuer) in issuers.iter().zip(&mut named) {
        let (first, before) = (issuer.alice(), issuer.fetches());
        assert_eq!(get(&mesh, "/ratings/1", &first).await.status, 200, "{what}");
        issuer.instead(instead.clone());
        issuer.rotate("unknown");
        let asked = Instant::now();
        assert_eq!(get(&mesh, "/ratings/2", &issuer.alice()).await.status, 401, "{what}");
        let waited = asked.elapsed();
        assert!(waited < TIMEOUT + Duration::from_secs(3), "{what}: {waited:?}");
        assert_eq!(get(&mesh, "/ratings/3", &first).await.status, 200, "{what}: the last good keys stay");
        for _ in 0..10 {
            assert_eq!(get(&mesh, "/ratings/4", &issuer.alice()).await.status, 401, "{what}");
        }
        // The first, the one out of turn (a redirect is followed three times), and those that come by themselves.
        let asked = issuer.fetches() - before.max(1);
        assert!(asked <= 8, "{what}: a caller can't make the proxy ask as often as it likes: {asked}");
        assert_eq!(get(&mesh, "/ratings/5", &good.alice()).await.status, 200, "{what}");
        assert_eq!(mesh.get("/open").await.status, 200, "{what}");
    }
    let said = mesh.admin_says("ratings", "/jwks", |_| true).await;
    let metrics = mesh.metrics("ratings").await;
    for ((what, failure, _), issuer) in issuers.iter().zip(&named) {
        let set = of(&said, issuer);
        assert_eq!((&set["keys"], &set["problem"]["failure"]), (&json!(1), &json!(failure)), "{what}: {set}");
        assert_ne!(set["fetched"], json!(null), "{what}");
        assert!(fetches(&metrics, issuer, failure) >= 1, "{what}");
        assert_eq!(fetches(&metrics, issuer, "ok"), 1, "{what}");
    }
    assert_eq!((&of(&said, &good)["keys"], &of(&said, &good)["failures"]), (&json!(1), &json!(0)));
    let keys = format!("writ_jwks_keys{{source=\"{}/keys\"}} 1\n", good.name());
    assert!(metrics.contains(&keys), "{metrics}");
    mesh.stop().await;
}

#[tokio::test]
async fn keys_that_never_came_prove_nobody_and_stop_nobody_else() {
    let (app, (good, mut named)) = (App::echo().await, issuers().await);
    let misbehaviours = misbehaviours(ISSUERS);
    for ((_, _, instead), issuer) in misbehaviours.iter().zip(&named) {
        issuer.instead(instead.clone());
    }
    named.push(good);
    let mesh = mesh(&app, &named[ISSUERS], &policies(&named, "localhost")).await;
    let good = named.pop().unwrap();
    for ((what, failure, _), issuer) in misbehaviours.iter().zip(&named) {
        for path in ["/ratings/none", "/open"] {
            assert_eq!(get(&mesh, path, &issuer.alice()).await.status, 401, "{what} {path}");
        }
        let path = format!("/ratings/{}", issuer.name().len());
        assert_eq!(get(&mesh, &path, &good.alice()).await.status, 200, "{what}");
        let failed = |said: &Value| of(said, issuer)["problem"]["failure"] == *failure;
        let said = mesh.admin_says("ratings", "/jwks", failed).await;
        assert_eq!(of(&said, issuer)["keys"], 0, "{what}");
    }
    assert_eq!(mesh.get("/open").await.status, 200, "who shows no token needs no issuer");
    let records = mesh.stop().await;
    let refused = records.all().iter().filter(|record| record.status() == 401 && record.side() == "inbound");
    for record in refused {
        assert!(record.check("user-authentication").starts_with("fail jwt-invalid"), "{record:?}");
    }
}

#[tokio::test]
async fn a_server_under_another_name_proves_nothing_and_a_redirect_within_tls_is_followed() {
    let (app, issuer) = (App::echo().await, Issuer::start(Algorithm::Es256).await);
    // Its certificate is for `localhost`.
    let issuers = [issuer];
    let mesh = mesh(&app, &issuers[0], &policies(&issuers, "127.0.0.1")).await;
    assert_eq!(get(&mesh, "/ratings/1", &issuers[0].alice()).await.status, 401);
    let says_tls = |said: &Value| said[0]["problem"]["failure"] == "tls";
    mesh.admin_says("ratings", "/jwks", says_tls).await;
    assert_eq!(issuers[0].fetches(), 0);

    let moved = b"HTTP/1.1 308 Moved\r\nLocation: /moved\r\nContent-Length: 0\r\n\r\n";
    issuers[0].instead(Instead::Bytes(moved.to_vec()));
    mesh.config().write("policy-0.yaml", &policies(&issuers, "localhost"));
    mesh.config_is("the right name", |config| config["version"] == 2).await;
    assert_eq!(get(&mesh, "/ratings/2", &issuers[0].alice()).await.status, 200);
    assert_eq!(issuers[0].fetches(), 2);
    mesh.stop().await;
}
