//! What end users have open: it ends with the token, and when no rule in force would take it any more.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fips::jws::Algorithm;
use serde_json::json;
use tests::{App, H2Client, H2Stream, Issuer, Mesh, Record, Server, World, request};

use crate::jwt::{mesh, policies};

/// A stream outlives nobody's token: what its user began ends with it, and what another user began goes on.
#[tokio::test]
async fn what_a_user_began_ends_with_the_token() {
    let (app, issuer) = (App::streaming().await, Issuer::start(Algorithm::Es256).await);
    let mesh = mesh(&app, &issuer, "").await;
    let client = H2Client::connect(mesh.entrance).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let open = async |path, expires: i64| {
        let mut claims = issuer.claims();
        claims["exp"] = expires.into();
        let token = issuer.token(&claims);
        let mut head = request("POST", path, ());
        head.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let mut stream = client.open(head).await;
        stream.send("one").await;
        assert_eq!(stream.data().await.unwrap(), "one");
        stream
    };
    let mut long = open("/ratings/long", now + 600).await;
    // In force for as long as clocks may differ.
    let mut brief = open("/ratings/brief", now + 3 - proxy::jwt::CLOCK_SKEW).await;
    assert!(brief.is_reset().await);
    let of_brief = |record: &Record| record.side() == "inbound" && record.path() == "/ratings/brief";
    let record = mesh.record("the inbound record", of_brief).await;
    assert_eq!(record.ended(), "credential-expired at relay", "{record:?}");
    assert!(record.decision().starts_with("allow at authorize: matched-allow"), "{record:?}");
    long.send("two").await;
    assert_eq!(long.data().await.unwrap(), "two");
    long.finish();
    assert!(!long.is_reset().await);
    let records = mesh.stop().await;
    assert_eq!(records.pair("/ratings/long").1.ended(), "complete at relay");
}

/// The inbound record of what a user began, once it was cut: why, and by what.
async fn cut(mesh: &Mesh, path: &str) -> String {
    let of_path = |record: &Record| record.side() == "inbound" && record.path() == path;
    let record = mesh.record(path, of_path).await;
    assert!(record.decision().starts_with("allow at authorize: matched-allow"), "{record:?}");
    assert!(record.number("/ended/after_us") < 1_000_000, "{record:?}");
    let policy = record.text("/ended/policy/name");
    format!("{}: {} by {policy}", record.ended(), record.text("/ended/why"))
}

async fn stream(client: &H2Client, path: &str, token: Option<&str>) -> H2Stream {
    let mut head = request("POST", path, ());
    if let Some(token) = token {
        head.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let mut stream = client.open(head).await;
    stream.send("one").await;
    assert_eq!(stream.data().await.unwrap(), "one");
    stream
}

async fn goes_on(stream: &mut H2Stream) {
    stream.send("two").await;
    assert_eq!(stream.data().await.unwrap(), "two");
}

#[tokio::test]
async fn what_a_user_began_ends_when_no_rule_takes_the_token_any_more() {
    let (app, issuer) = (App::streaming().await, Issuer::start(Algorithm::Es256).await);
    let rules = policies(&issuer, "");
    let other_key = format!(
        "    jwks: '{}'\n    outputClaimToHeaders",
        json!({"keys": [Issuer::start(Algorithm::Es256).await.jwk()]})
    );
    let changes = [
        ("another audience", rules.replacen("[ratings]", "[reviews]", 1), "jwt-audience by users"),
        (
            "another issuer",
            rules.replacen("issuer: https://", "issuer: https://not-", 1),
            "jwt-invalid by users",
        ),
        ("another key", rules.replacen("    outputClaimToHeaders", &other_key, 1), "jwt-invalid by users"),
        ("nobody asks", rules.split_once("---").unwrap().1.to_owned(), "no-allow-matched by "),
    ];
    for (what, then, why) in changes {
        let mesh = mesh(&app, &issuer, "").await;
        let client = H2Client::connect(mesh.entrance).await;
        let mut user = stream(&client, "/ratings/user", Some(&issuer.alice())).await;
        let mut nobody = stream(&client, "/open", None).await;
        // The same rules again, and more of them, concern nobody.
        mesh.config().write("policy-0.yaml", &rules.replacen("[ratings]", "[ratings, more]", 1));
        mesh.config().write("policy-0.yaml", &then);
        assert!(user.is_reset().await, "{what}");
        assert_eq!(cut(&mesh, "/ratings/user").await, format!("policy-changed at relay: {why}"), "{what}");
        goes_on(&mut nobody).await;
        mesh.stop().await;
    }
}

#[tokio::test]
async fn what_a_user_began_ends_when_the_issuer_withdraws_the_key() {
    let (app, mut issuer) = (App::streaming().await, Issuer::start(Algorithm::Es256).await);
    let mesh = mesh(&app, &issuer, "").await;
    let client = H2Client::connect(mesh.entrance).await;
    let mut first = stream(&client, "/ratings/first", Some(&issuer.alice())).await;
    issuer.rotate("second");
    issuer.publish();
    let mut second = stream(&client, "/ratings/second", Some(&issuer.alice())).await;
    goes_on(&mut first).await;
    issuer.withdraw("first");
    // Told early by a key that is not known; the proxy asks again no sooner than ten seconds after it did.
    tokio::time::sleep(Duration::from_secs(10)).await;
    issuer.rotate("third");
    let unknown = issuer.alice();
    mesh.client().await.get("/ratings/unknown", &format!("Authorization: Bearer {unknown}\r\n")).await;
    assert!(first.is_reset().await);
    assert_eq!(cut(&mesh, "/ratings/first").await, "credential-expired at relay: jwt-invalid by users");
    goes_on(&mut second).await;
    mesh.stop().await;
}

#[tokio::test]
async fn what_began_when_nobody_asked_who_the_user_is_ends_when_that_matters() {
    let (app, issuer) = (App::streaming().await, Issuer::start(Algorithm::Es256).await);
    const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-mallory, namespace: bookinfo}
spec:
  action: DENY
  rules: [{from: [{source: {requestPrincipals: ['*/mallory']}}], to: [{operation: {paths: [/ratings/*]}}]}]
";
    let world = World::new().server(Server::new("ratings", &app)).issuer(&issuer);
    let mesh = world.policy("").start().await;
    let client = H2Client::connect(mesh.entrance).await;
    let mut open = stream(&client, "/ratings/open", Some(&issuer.alice())).await;
    let mut elsewhere = stream(&client, "/elsewhere", None).await;
    let rules = policies(&issuer, "");
    mesh.config().write("policy-0.yaml", &format!("{}---{DENY}", rules.split_once("---").unwrap().0));
    assert!(open.is_reset().await);
    let of_path = |record: &Record| record.side() == "inbound" && record.path() == "/ratings/open";
    let record = mesh.record("the cut", of_path).await;
    assert_eq!(
        (record.ended().as_str(), record.text("/ended/policy/name")),
        ("policy-changed at relay", "not-mallory")
    );
    assert!(record.detail().contains("end user"), "{record:?}");
    goes_on(&mut elsewhere).await;
    mesh.stop().await;
}
