//! End users, by tokens of an issuer that proxies ask for its keys over TLS: over mutual TLS, with what records say.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fips::jws::Algorithm;
use serde_json::{Value, json};
use tests::{App, Client, Issuer, Mesh, Record, Reply, Server, World};

/// productpage may call for anyone; `/ratings/*` is for users of the issuer, `/admin` for those of a group.
pub(crate) fn policies(issuer: &Issuer, more: &str) -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: users, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  jwtRules:
  - issuer: {issuer}
    audiences: [ratings]
    outputClaimToHeaders: [{{header: x-user, claim: sub}}]
{more}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: for-users, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/bookinfo/sa/productpage], requestPrincipals: ['{issuer}/*']}}}}]
    to: [{{operation: {{paths: [/ratings/*]}}}}]
  - from: [{{source: {{principals: [cluster.local/ns/bookinfo/sa/productpage]}}}}]
    to: [{{operation: {{paths: [/admin]}}}}]
    when:
    - {{key: 'request.auth.claims[realm][groups]', values: [admins]}}
    - {{key: 'request.auth.audiences', values: [ratings]}}
  - to: [{{operation: {{paths: [/open]}}}}]
",
        issuer = issuer.name()
    )
}

pub(crate) async fn mesh(app: &App, issuer: &Issuer, more: &str) -> Mesh {
    let server = Server::new("ratings", app);
    World::new().server(server).issuer(issuer).policy(&policies(issuer, more)).start().await
}

async fn get(mesh: &Mesh, path: &str, token: &str) -> Reply {
    mesh.client().await.get(path, &format!("Authorization: Bearer {token}\r\n")).await
}

fn with(mut claims: Value, name: &str, value: impl Into<Value>) -> Value {
    claims[name] = value.into();
    claims
}

#[tokio::test]
async fn a_user_passes_all_five_checks() {
    let (app, issuer) = (App::echo().await, Issuer::start(Algorithm::Es256).await);
    let mesh = mesh(&app, &issuer, "").await;
    let mut client = mesh.client().await;
    let headers = format!("Authorization: Bearer {}\r\nX-User: root\r\n", issuer.alice());
    assert_eq!(client.get("/ratings/1", &headers).await.status, 200);
    assert_eq!(client.get("/ratings/2", &headers).await.status, 200);
    for seen in app.seen() {
        assert_eq!(seen.values("x-user"), ["alice"], "what the caller says of itself counts nothing");
        assert_eq!(seen.values("authorization"), [] as [&str; 0], "the token is not forwarded");
    }
    let records = mesh.stop().await;
    for path in ["/ratings/1", "/ratings/2"] {
        let (outbound, inbound) = records.pair(path);
        assert_eq!(outbound.check("user-authentication"), "not-applicable decided-by-server");
        assert_eq!(
            inbound.decision(),
            "allow at authorize: matched-allow by AuthorizationPolicy bookinfo/for-users rule 0"
        );
        assert_eq!(
            inbound.checks(),
            [
                "pass mtls",
                "pass svid-verified",
                "pass matched-allow by AuthorizationPolicy bookinfo/for-users rule 0",
                "pass jwt-verified by RequestAuthentication bookinfo/users rule 0",
                "pass matched-allow by AuthorizationPolicy bookinfo/for-users rule 0",
            ]
        );
        let evidence = inbound.json()["decision"]["checks"][3]["evidence"].clone();
        assert_eq!(evidence["issuer"], issuer.name());
        assert_eq!(evidence["subject"], "alice");
        assert!(evidence["expires"].as_str().unwrap().ends_with('Z'));
        assert_eq!(evidence.as_object().unwrap().len(), 3, "no claim is in a record");
    }
}

#[tokio::test]
async fn each_way_to_fail_has_a_check_and_reason_of_its_own() {
    let (app, issuer) = (App::echo().await, Issuer::start(Algorithm::Rs256).await);
    let mesh = mesh(&app, &issuer, "").await;
    let stranger = Issuer::start(Algorithm::Rs256).await;
    let claims = issuer.claims();
    let admin = with(claims.clone(), "realm", json!({"groups": ["users", "admins"]}));
    let forged = with(stranger.claims(), "iss", issuer.name());

    // First, since a caller's refusals are explained once a second.
    assert_eq!(mesh.get("/ratings/none").await.status, 403);
    for (path, token, status) in [
        ("/ratings/bad", "bad".to_owned(), 401),
        ("/ratings/expired", issuer.token(&with(claims.clone(), "exp", 1)), 401),
        ("/ratings/forged", stranger.token(&forged), 401),
        ("/ratings/stranger", stranger.alice(), 401),
        ("/ratings/audience", issuer.token(&with(claims.clone(), "aud", "other")), 403),
        ("/open?token=bad", "bad".into(), 401),
        ("/admin?who=alice", issuer.alice(), 403),
        ("/admin?who=admin", issuer.token(&admin), 200),
    ] {
        let reply = get(&mesh, path, &token).await;
        assert_eq!(reply.status, status, "{path}");
        let challenge = (status == 401).then_some("Bearer error=\"invalid_token\"");
        assert_eq!(reply.header("www-authenticate"), challenge, "{path}");
    }
    assert_eq!(mesh.get("/open").await.status, 200);
    assert_eq!(app.requests(), 2);

    let records = mesh.stop().await;
    for (path, check, said, why) in [
        ("/ratings/bad", "user-authentication", "fail jwt-invalid", "not a signed token"),
        ("/ratings/expired", "user-authentication", "fail jwt-invalid", "it has expired"),
        ("/ratings/forged", "user-authentication", "fail jwt-invalid", "made this signature"),
        ("/ratings/stranger", "user-authentication", "fail jwt-invalid", "no rule is for its issuer"),
        ("/ratings/audience", "user-authentication", "fail jwt-audience", "another audience"),
    ] {
        let (_, inbound) = records.pair(path);
        let said = format!("{said} by RequestAuthentication bookinfo/users rule 0");
        assert_eq!(inbound.check(check), said, "{path}");
        assert_eq!(inbound.check("user-authorization"), "not-reached not-reached");
        assert!(inbound.text("/ended/detail").contains(why), "{path}: {inbound:?}");
        assert_eq!(inbound.text("/ended/stage"), "authenticate");
    }
    let (_, inbound) = records.pair("/ratings/none");
    assert_eq!(inbound.decision(), "deny at authorize: no-allow-matched");
    assert_eq!(inbound.check("user-authentication"), "not-required no-token");
    assert_eq!(
        inbound.check("service-authorization"),
        "pass matched-allow by AuthorizationPolicy bookinfo/for-users rule 0"
    );
    assert_eq!(inbound.check("user-authorization"), "fail no-allow-matched");
    let considered = inbound.json()["considered"]["policies"][0]["failed"].as_str().unwrap();
    assert_eq!(considered, "from.requestPrincipals: no verified token came along");
}

/// A token by HMAC with SHA-256 (RFC 2104), which needs nothing but what an issuer publishes.
fn by_hmac(secret: &[u8], claims: &Value) -> String {
    let mut key = [0; 64];
    let hashed = fips::sha256(secret);
    let secret = if secret.len() > key.len() { &hashed[..] } else { secret };
    key[..secret.len()].copy_from_slice(secret);
    let pad = |with: u8, message: &[u8]| fips::sha256(&[&key.map(|byte| byte ^ with)[..], message].concat());
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let header = json!({"alg": "HS256", "kid": "first", "typ": "JWT"});
    let signed =
        format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
    format!("{signed}.{}", encode(&pad(0x5c, &pad(0x36, signed.as_bytes()))))
}

#[tokio::test]
async fn tokens_that_need_no_key_or_bring_their_own_are_nobody_s() {
    let (app, issuer) = (App::echo().await, Issuer::start(Algorithm::Es256).await);
    let mesh = mesh(&app, &issuer, "").await;
    // Its server is one that the proxy would verify.
    let attacker = issuer.beside().await;
    let (claims, jwk) = (issuer.claims(), issuer.jwk());
    let text = claims.to_string();
    let unsigned =
        |header: &str| format!("{}.{}.", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(&text));
    let bringing = |name: &str, value: Value| {
        let header = with(issuer.header(), name, value);
        attacker.sign(&header.to_string(), &text)
    };
    let point = [&jwk["x"], &jwk["y"]].map(|half| URL_SAFE_NO_PAD.decode(half.as_str().unwrap()).unwrap());
    for (what, token, why) in [
        ("none", unsigned(r#"{"alg":"none"}"#), "not an approved"),
        ("None", unsigned(r#"{"alg":"None","kid":"first"}"#), "not an approved"),
        ("HMAC by the key as published", by_hmac(jwk.to_string().as_bytes(), &claims), "not an approved"),
        ("HMAC by the point", by_hmac(&[&[4][..], &point.concat()].concat(), &claims), "not an approved"),
        ("jwk", bringing("jwk", attacker.jwk()), "made this signature"),
        ("jku", bringing("jku", format!("{}/keys", attacker.name()).into()), "made this signature"),
        ("x5u", bringing("x5u", format!("{}/keys", attacker.name()).into()), "made this signature"),
        ("kid is a path", bringing("kid", "../../../dev/null".into()), "has its kid and alg"),
        ("kid is a query", bringing("kid", "' UNION SELECT 'x".into()), "has its kid and alg"),
    ] {
        let path = format!("/ratings/{}", what.replace([' ', ','], "-"));
        assert_eq!(get(&mesh, &path, &token).await.status, 401, "{what}");
        let left = |record: &Record| record.side() == "inbound" && record.path() == path;
        let record = mesh.record(what, left).await;
        assert!(record.text("/ended/detail").contains(why), "{what}: {record:?}");
    }
    assert_eq!(attacker.fetches(), 0, "what a token points to is not looked at");
    assert_eq!(app.requests(), 0);
    mesh.stop().await;
}

#[tokio::test]
async fn tokens_that_could_be_read_in_two_ways_are_not_read() {
    let (app, issuer) = (App::echo().await, Issuer::start(Algorithm::Es256).await);
    let mesh = mesh(
        &app,
        &issuer,
        "    fromHeaders: [{name: authorization, prefix: 'Bearer '}]\n    fromParams: [t]",
    )
    .await;
    let (claims, header) = (issuer.claims(), issuer.header().to_string());
    let twice = format!(r#"{{"sub":"root",{}"#, &claims.to_string()[1..]);
    let nested = format!(r#"{{"a":{}{},{}"#, "[".repeat(5000), "]".repeat(5000), &claims.to_string()[1..]);
    let huge = issuer.token(&with(claims.clone(), "x", "y".repeat(40_000)));
    let bob = issuer.token(&with(claims.clone(), "sub", "bob"));
    for (path, token, status, why) in [
        ("/ratings/twice", issuer.sign(&header, &twice), 401, "a name is written twice"),
        ("/ratings/nested", issuer.sign(&header, &nested), 401, "too deeply"),
        ("/ratings/huge", huge, 401, "longer than"),
        ("/ratings/exp", issuer.token(&with(claims.clone(), "exp", "1900000000")), 401, "exp is not a time"),
        (
            "/ratings/aud",
            issuer.token(&with(claims.clone(), "aud", json!({"ratings": 1}))),
            401,
            "aud is neither",
        ),
        ("/ratings/two", bob, 401, "two tokens that differ"),
    ] {
        let target = if path.ends_with("two") { format!("{path}?t={}", issuer.alice()) } else { path.into() };
        assert_eq!(get(&mesh, &target, &token).await.status, status, "{path}");
        let record = mesh.record(path, |record| record.side() == "inbound" && record.path() == path).await;
        assert!(record.text("/ended/detail").contains(why), "{path}: {record:?}");
    }
    // More than a head may have is no request to begin with.
    let reply = get(&mesh, "/ratings/head", &"a".repeat(1 << 20)).await;
    assert_eq!(reply.status, 431);
    assert_eq!(app.requests(), 0);
    mesh.stop().await;
}

#[tokio::test]
async fn a_grpc_caller_learns_that_it_is_unauthenticated() {
    let (app, issuer) = (App::echo().await, Issuer::start(Algorithm::Es256).await);
    let mesh = mesh(&app, &issuer, "").await;
    let headers = "Content-Type: application/grpc\r\nAuthorization: Bearer bad\r\n";
    let reply = mesh.client().await.get("/ratings/1", headers).await;
    assert_eq!((reply.status, reply.header("grpc-status")), (200, Some("16")));
    drop(mesh.stop().await);
}

#[tokio::test]
async fn a_key_that_is_not_known_is_asked_for_once_and_last_good_keys_stay() {
    let (app, mut issuer) = (App::echo().await, Issuer::start(Algorithm::EdDsa).await);
    let mesh = mesh(&app, &issuer, "").await;
    let first = issuer.alice();
    assert_eq!(get(&mesh, "/ratings/1", &first).await.status, 200);
    assert_eq!(issuer.fetches(), 1);

    issuer.rotate("second");
    issuer.publish();
    assert_eq!(get(&mesh, "/ratings/2", &issuer.alice()).await.status, 200, "after asking for the key");
    assert_eq!(issuer.fetches(), 2);
    assert_eq!(get(&mesh, "/ratings/3", &first).await.status, 200, "the old key is still published");

    // Nobody knows the third, and its holder can't make the proxy ask as often as it likes.
    issuer.rotate("third");
    for _ in 0..5 {
        assert_eq!(get(&mesh, "/ratings/4", &issuer.alice()).await.status, 401);
    }
    assert_eq!(issuer.fetches(), 2);
    issuer.go_down();
    assert_eq!(get(&mesh, "/ratings/5", &first).await.status, 200);
    let records = mesh.stop().await;
    let refused = records.pair("/ratings/5").1;
    assert_eq!(
        refused.check("user-authentication"),
        "pass jwt-verified by RequestAuthentication bookinfo/users rule 0"
    );
}

#[tokio::test]
async fn keys_from_a_server_that_nobody_vouches_for_prove_nothing() {
    let (app, issuer, other) =
        (App::echo().await, Issuer::start(Algorithm::Es256).await, Issuer::start(Algorithm::Es256).await);
    let world = World::new().server(Server::new("ratings", &app)).issuer(&other);
    let mesh = world.policy(&policies(&issuer, "")).start().await;
    assert_eq!(get(&mesh, "/open", &issuer.alice()).await.status, 401);
    assert_eq!(mesh.get("/open").await.status, 200, "who shows no token needs no issuer");
    let records = mesh.stop().await;
    let refused = records.all().iter().find(|record| record.status() == 401 && record.side() == "inbound");
    let detail = refused.unwrap().text("/ended/detail");
    assert!(detail.contains("keys are not there") && detail.contains("invalid peer certificate"), "{detail}");
}

#[tokio::test]
async fn an_object_that_is_not_understood_closes_what_it_selects() {
    let (app, issuer) = (App::echo().await, Issuer::start(Algorithm::Es256).await);
    let mesh = mesh(&app, &issuer, "    fromHeader: [{name: x-jwt}]").await;
    for reply in [mesh.get("/open").await, get(&mesh, "/open", &issuer.alice()).await] {
        assert_eq!(reply.status, 403);
    }
    let records = mesh.stop().await;
    let inbound = records.all().iter().find(|record| record.side() == "inbound").unwrap();
    assert_eq!(
        inbound.decision(),
        "deny at authenticate: quarantined-policy by RequestAuthentication bookinfo/users"
    );
    assert_eq!(
        inbound.check("user-authentication"),
        "fail quarantined-policy by RequestAuthentication bookinfo/users"
    );
    assert!(inbound.detail().contains("fromHeader: "), "{}", inbound.detail());
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn places_and_what_is_forwarded_follow_a_change_of_policy() {
    let (app, issuer) = (App::echo().await, Issuer::start(Algorithm::Es256).await);
    let mesh = mesh(&app, &issuer, "    fromParams: [t]\n    fromCookies: [session]").await;
    let token = issuer.alice();
    assert_eq!(mesh.get(&format!("/ratings/query?t={token}&x=1")).await.status, 200);
    let cookie = format!("Cookie: a=1; session={token}\r\n");
    assert_eq!(mesh.client().await.get("/ratings/cookie", &cookie).await.status, 200);
    assert_eq!(get(&mesh, "/ratings/header", &token).await.status, 403, "not a place of this rule");
    let seen = app.seen();
    assert_eq!(seen[0].head.uri, "/ratings/query?x=1");
    assert_eq!(seen[1].values("cookie"), ["a=1"]);

    mesh.config().write("policy-0.yaml", &policies(&issuer, "    forwardOriginalToken: true"));
    mesh.config_is("the new policy", |config| config["version"] == 2).await;
    assert_eq!(get(&mesh, "/ratings/header", &token).await.status, 200);
    assert_eq!(app.seen()[2].values("authorization"), [format!("Bearer {token}")]);
    drop(mesh.stop().await);
}

#[tokio::test]
async fn what_is_explained_of_a_token_is_what_was_decided() {
    let (app, issuer) = (App::echo().await, Issuer::start(Algorithm::Es256).await);
    let mesh = mesh(&app, &issuer, "").await;
    for (path, token) in [("/ratings/1", issuer.alice()), ("/admin", issuer.alice()), ("/open", "bad".into())]
    {
        get(&mesh, path, &token).await;
        let record = mesh.record(path, |record| record.side() == "inbound" && record.path() == path).await;
        let explained = mesh.explain(&record, &[("authorization", &format!("Bearer%20{token}"))]).await;
        assert_eq!(record.differs(&explained), None, "{path}");
    }
    drop(mesh.stop().await);
}

#[tokio::test]
async fn plaintext_callers_have_users_too() {
    let (app, issuer) = (App::echo().await, Issuer::start(Algorithm::Es256).await);
    let mesh = mesh(&app, &issuer, "").await;
    let mut client = Client::connect(mesh.inbound("ratings")).await;
    let reply = client.get("/open", &format!("Authorization: Bearer {}\r\n", issuer.alice())).await;
    assert_eq!(reply.status, 200);
    let records = mesh.stop().await;
    assert!(records.of("inbound", "/open").check("user-authentication").starts_with("pass jwt-verified"));
}
