//! The five checks of NIST SP 800-207A end to end, by peers that are nobody's mock: each fails once for a reason of its own, and
//! one request passes all of them. Two sidecars over mutual TLS, users of an OpenID provider, and OPA as authorization provider.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use fips::ca::KeyType;
use serde_json::{Value, json};
use tests::App;
use tests::program::{beside, writ};

use crate::oidc::Provider;
use crate::opa::Opa;
use crate::records::{Records, check, checks, text};
use crate::tls::house::{Application, House, Identity, Sidecar, curl, id};

const CHECKS: [&str; 5] = [
    "encryption",
    "service-authentication",
    "service-authorization",
    "user-authentication",
    "user-authorization",
];

#[test]
fn each_of_the_five_checks_fails_for_a_reason_of_its_own_and_one_request_passes_all() {
    let test = "each_of_the_five_checks_fails_for_a_reason_of_its_own_and_one_request_passes_all";
    let house = House::new();
    let Some(users) = Provider::start(test, &house) else { return };
    let Some(opa) = Opa::start(test, &beside("interop/accounts.rego")) else { return };
    let app = Application::start(App::echo);
    house.configure("policy.yaml", &policies(&users.issuer, opa.address));
    let issuer_ca = format!("--issuer-ca={}", users.authority.display());
    let server = house.serving_with(
        writ(),
        &files(&house.identity("server", KeyType::P256)),
        app.address(),
        &[&issuer_ca],
    );
    let servers = BTreeMap::from([("accounts".to_owned(), server.address)]);
    let calling =
        |account: &str, identity: &Identity| house.calling_as(writ(), account, &files(identity), &servers);
    let caller = calling("caller", &house.identity("caller", KeyType::P256));
    let stranger = calling("stranger", &house.identity("stranger", KeyType::P256));
    let forged = house.forged("caller");
    let (alice, admin) = (users.log_in("alice", "ratings"), users.log_in("admin", "ratings"));
    let records = server.records();

    // All as it should be but for one thing each.
    let failing = [
        ("encryption", "plaintext-under-strict", "403", Ask::by(&server, "/accounts/alice?1", &alice)),
        // A handshake that is refused has no status.
        ("service-authentication", "untrusted-root", "000", Ask::with(&forged, &server, &alice)),
        ("service-authorization", "no-allow-matched", "403", Ask::by(&stranger, "/accounts/alice?3", &alice)),
        ("user-authentication", "jwt-invalid", "401", Ask::by(&caller, "/accounts/alice?4", &forge(&alice))),
        ("user-authorization", "provider-denied", "403", Ask::by(&caller, "/accounts/bob", &alice)),
    ];
    let mut pairs = BTreeSet::new();
    for (number, (failed, reason, status, ask)) in failing.into_iter().enumerate() {
        assert_eq!(ask.status(), status, "{failed}");
        let record = nth(&records, number);
        assert_eq!(names(&record), CHECKS, "{record:#}");
        assert_eq!(text(&record, "/decision/outcome"), "deny", "{record:#}");
        assert_eq!(text(&record, "/decision/reason"), reason, "{record:#}");
        let of_check = check(&record, failed);
        assert_eq!((text(of_check, "/outcome"), text(of_check, "/reason")), ("fail", reason), "{record:#}");
        let others = CHECKS.iter().filter(|name| **name != failed);
        assert!(others.into_iter().all(|name| check(&record, name)["outcome"] != "fail"), "{record:#}");
        pairs.insert((failed, text(of_check, "/reason").to_owned()));
    }
    assert_eq!(pairs.len(), 5, "{pairs:?}");
    assert_eq!(app.requests(), 0, "nothing that was refused came through");

    let passing = Ask::by(&caller, "/accounts/alice", &alice);
    assert_eq!(passing.status(), "200");
    let record = nth(&records, 5);
    assert_eq!(
        checks(&record),
        ["pass mtls", "pass svid-verified", "pass matched-allow", "pass jwt-verified", "pass matched-allow"],
        "{record:#}"
    );
    assert_eq!(record["consulted"][0]["outcome"], "provider-allowed", "{record:#}");
    let metadata = &record["consulted"][0]["metadata"];
    assert_eq!(metadata["owner"], "alice", "{record:#}");
    assert_eq!(app.only().values("x-checked-for"), ["alice"], "what OPA adds reaches the application");
    assert_eq!(app.only().values("authorization"), [""; 0], "the token does not");

    // What it decided by is what Envoy would have shown it.
    let said = opa.decided("/accounts/alice");
    assert_eq!(said["decision_id"], metadata["decision_id"], "the record leads to OPA's own log");
    let attributes = &said["input"]["attributes"];
    assert_eq!(text(attributes, "/source/principal"), id("caller"), "{said:#}");
    assert_eq!(text(attributes, "/destination/principal"), id("server"), "{said:#}");
    assert_eq!(text(attributes, "/request/http/headers/x-purpose"), "reading", "{said:#}");
    let payload = &attributes["metadataContext"]["filterMetadata"]["envoy.filters.http.jwt_authn"]["payload"];
    assert_eq!((&payload["sub"], &payload["iss"]), (&"alice".into(), &users.issuer.as_str().into()));
    assert_eq!(payload["scope"], json!(["read"]), "a list of words, as Istio shows it");

    // The same provider and the same policies let others do other things.
    assert_eq!(Ask::by(&caller, "/accounts/bob?6", &admin).status(), "200");
    let other = users.log_in("alice", "reviews");
    assert_eq!(Ask::by(&caller, "/accounts/alice?7", &other).status(), "403");
    let record = nth(&records, 7);
    assert_eq!(check(&record, "user-authentication")["reason"], "jwt-audience", "{record:#}");
    assert_eq!(app.requests(), 2);
}

/// A request as it should be, but for who sends it and what it asks.
struct Ask {
    arguments: Vec<String>,
    token: String,
}

impl Ask {
    /// Through a sidecar, in plaintext up to there.
    fn by(sidecar: &Sidecar, path: &str, token: &str) -> Self {
        Self { arguments: vec![format!("http://{}{path}", sidecar.address)], token: token.into() }
    }

    /// Without a sidecar of its own, by an identity; whose server it is does not matter.
    fn with(identity: &Identity, server: &Sidecar, token: &str) -> Self {
        let [certificate, key] =
            [identity.certificate(), identity.key()].map(|path| path.display().to_string());
        let url = format!("https://{}/accounts/alice?2", server.address);
        let arguments = ["--insecure", "--cert", &certificate, "--key", &key, &url].map(str::to_owned);
        Self { arguments: arguments.into(), token: token.into() }
    }

    fn status(&self) -> String {
        let token = format!("Authorization: Bearer {}", self.token);
        let mut all = vec!["--output", "/dev/null", "--write-out", "%{http_code}"];
        for header in [&token, "Host: accounts.shop", "X-Purpose: reading"] {
            all.extend(["--header", header]);
        }
        all.extend(self.arguments.iter().map(String::as_str));
        curl(&all).stdout
    }
}

/// The record of the request of this number, from 0.
fn nth(records: &Records<'_>, number: usize) -> Value {
    records.wait(number + 1, |_| true).remove(number)
}

fn names(record: &Value) -> Vec<&str> {
    let all = record["decision"]["checks"].as_array().unwrap();
    all.iter().map(|check| check["check"].as_str().unwrap()).collect()
}

fn files(identity: &Identity) -> String {
    format!("files:{}", identity.dir.display())
}

/// The same token for somebody else, by the signature of what it was.
fn forge(token: &str) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let payload = String::from_utf8(URL_SAFE_NO_PAD.decode(&parts[1]).unwrap()).unwrap();
    parts[1] = URL_SAFE_NO_PAD.encode(payload.replace("alice", "admin"));
    parts.join(".")
}

fn policies(issuer: &str, opa: SocketAddr) -> String {
    let (host, port) = (opa.ip(), opa.port());
    format!(
        "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: server, namespace: shop}}
spec: {{selector: {{matchLabels: {{app: server}}}}, mtls: {{mode: STRICT}}}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: users, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: server}}}}
  jwtRules: [{{issuer: '{issuer}', audiences: [ratings]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: accounts, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: server}}}}
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/shop/sa/caller], requestPrincipals: ['{issuer}/*']}}}}]
    to: [{{operation: {{methods: [GET], paths: [/accounts/*]}}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: ask-opa, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: server}}}}
  action: CUSTOM
  provider: {{name: opa}}
  rules: [{{from: [{{source: {{requestPrincipals: ['*']}}}}]}}]
---
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {{name: mesh}}
spec:
  extensionProviders:
  - name: opa
    phase: after-authorization
    envoyExtAuthzGrpc:
      service: opa.shop.svc.cluster.local
      port: 9191
      includePeerCertificate: true
      metadataContextNamespaces: [envoy.filters.http.jwt_authn]
      contextExtensions: {{tenant: shop}}
---
apiVersion: v1
kind: Service
metadata: {{name: opa, namespace: shop}}
spec: {{ports: [{{name: grpc, port: 9191, targetPort: {port}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: opa, namespace: shop, labels: {{kubernetes.io/service-name: opa}}}}
addressType: IPv4
ports: [{{name: grpc, port: {port}}}]
endpoints: [{{addresses: ['{host}']}}]
"
    )
}
