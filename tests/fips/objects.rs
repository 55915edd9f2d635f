//! Objects that name what is not approved: each is refused alone, is named with field, file and line, and fails closed.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fips::ca::{Authority, KeyType, Profile};
use fips::jws::{Algorithm, PublicNumbers, SigningKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tests::{App, Pki, Server, pem, signed_by_sha1};

use crate::world;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn each_object_that_names_what_is_not_approved_is_refused_alone() {
    let (web, app, plain) = (Pki::new(), App::echo().await, App::echo().await);
    let secured = App::tls(web.website(&Profile::server(&["secured.example.com"], HOUR), None)).await;
    let outside = |name: &str, app: &App| Server::new(name, app).without_sidecar().port_name("http");
    let mesh = world()
        .server(Server::new("ratings", &app))
        .server(outside("plain", &plain))
        .server(outside("secured", &secured))
        .server(outside("weak-roots", &secured))
        .server(outside("sha1-client", &secured))
        .policy(&tls_policy("secured", &config_map("web-roots", web.root())))
        .policy(&tls_policy("weak-roots", &config_map("weak", &weak_root())))
        .policy(&mutual("sha1-client", &web))
        .policy(&request_authentication())
        .start()
        .await;

    // What is approved, or not encrypted, is as it was.
    assert_eq!(get(&mesh, "secured").await, 200);
    assert_eq!(get(&mesh, "plain").await, 200);
    for (host, named) in [
        ("weak-roots", "BackendTLSPolicy bookinfo/weak-roots"),
        ("sha1-client", "DestinationRule bookinfo/sha1-client"),
    ] {
        assert_eq!(get(&mesh, host).await, 503, "{host}");
        let refused = mesh.record(host, |record| record.path() == format!("/{host}")).await;
        assert_eq!(refused.decision(), "deny at pick: not-fips", "{refused:?}");
        assert_eq!(refused.check("encryption"), "fail not-fips", "{refused:?}");
        assert!(refused.detail().contains(named), "{refused:?}");
    }
    assert_eq!(secured.requests(), 1);
    // Which tokens the rest of a RequestAuthentication asks for nobody knows, so nobody gets past it.
    assert_eq!(get(&mesh, "ratings").await, 403);
    assert_eq!(app.requests(), 0);

    let config = mesh.admin_says("ratings", "/config", |config| config["verdicts"].is_array()).await;
    let said = |kind: &str, name: &str, field: &str| {
        let verdicts = config["verdicts"].as_array().unwrap();
        let of = verdicts.iter().find(|verdict| verdict["kind"] == kind && verdict["name"] == name);
        let of = of.unwrap_or_else(|| panic!("{kind} {name}: {config:#}"));
        // Of a rule whose TLS can't be, the rest may be in force.
        let whole = !["BackendTLSPolicy", "DestinationRule"].contains(&kind);
        assert_eq!(of["state"], if whole { "quarantined" } else { "accepted" }, "{of:#}");
        let diagnostics = of["diagnostics"].clone();
        let all = diagnostics.as_array().unwrap().clone();
        let at = all.into_iter().find(|diagnostic| diagnostic["field"] == field);
        at.unwrap_or_else(|| panic!("{kind} {name} {field}: {diagnostics:#}"))
    };
    for (kind, name, field, what) in [
        ("RequestAuthentication", "tokens", "spec.jwtRules[0].jwks", "keys[1]: an RSA key has"),
        ("RequestAuthentication", "tokens", "spec.jwtRules[0].jwks", "keys[2]: curve secp256k1"),
        ("RequestAuthentication", "tokens", "spec.jwtRules[0].jwks", "keys[3]: a secret"),
        ("BackendTLSPolicy", "weak-roots", "spec.validation.caCertificateRefs[0]", "ConfigMap bookinfo/weak"),
        ("ConfigMap", "weak", "data[ca.crt]", "an RSA key of 1024 bits"),
        ("DestinationRule", "sha1-client", "spec.trafficPolicy.tls", "Secret bookinfo/client"),
        ("Secret", "client", "stringData[tls.crt]", "sha1WithRSAEncryption is not approved"),
    ] {
        let diagnostic = said(kind, name, field);
        let text = config.to_string();
        assert!(text.contains(what), "{kind} {name}: {what} in {text}");
        assert_eq!(diagnostic["severity"], "error", "{diagnostic:#}");
        assert!(diagnostic["message"].as_str().unwrap().contains("--fips required"), "{diagnostic:#}");
        let (file, line) = (diagnostic["file"].as_str().unwrap(), diagnostic["line"].as_u64().unwrap());
        assert!(file.contains("policy-") && line > 1, "{diagnostic:#}");
    }
    let metrics = mesh.metrics("ratings").await;
    assert!(metrics.contains("\nwrit_config_verdicts{state=\"quarantined\"} 3\n"), "{metrics}");
    mesh.stop().await;
}

async fn get(mesh: &tests::Mesh, host: &str) -> u16 {
    let mut client = mesh.client().await;
    client.send(format!("GET /{host} HTTP/1.1\r\nHost: {host}:9080\r\nConnection: close\r\n\r\n")).await;
    client.reply().await.status
}

fn config_map(name: &str, pem: &str) -> (String, String) {
    let text = pem.replace('\n', "\n    ");
    let yaml = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: bookinfo}}\ndata:\n  ca.crt: |\n    {text}\n"
    );
    (name.to_owned(), yaml)
}

fn tls_policy(service: &str, (roots, yaml): &(String, String)) -> String {
    format!(
        "{yaml}---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{name: {service}, namespace: bookinfo}}
spec:
  targetRefs: [{{group: '', kind: Service, name: {service}}}]
  validation:
    hostname: secured.example.com
    caCertificateRefs: [{{group: '', kind: ConfigMap, name: {roots}}}]
"
    )
}

fn weak_root() -> String {
    pem("CERTIFICATE", &Pki::new().maker().weak_authority("weak").der())
}

/// A client certificate that is signed by SHA-1.
fn mutual(service: &str, web: &Pki) -> String {
    let authority = Authority::generate_with(KeyType::Rsa2048, "web.example", HOUR).unwrap();
    let issued = authority.issue(&Profile::server(&["client.example.com"], HOUR)).unwrap();
    let certificate = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    let indented = |pem: &str| pem.replace('\n', "\n    ");
    format!(
        "apiVersion: v1
kind: Secret
metadata: {{name: client, namespace: bookinfo}}
stringData:
  ca.crt: |
    {}
  tls.crt: |
    {}
  tls.key: |
    {}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {service}, namespace: bookinfo}}
spec:
  host: {service}
  trafficPolicy:
    tls: {{mode: MUTUAL, credentialName: client, sni: secured.example.com}}
",
        indented(web.root()),
        indented(&pem("CERTIFICATE", &signed_by_sha1(&certificate))),
        indented(&issued.key_pem),
    )
}

/// A set with a good key, and others that are not approved.
fn request_authentication() -> String {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let PublicNumbers::Ec(own, x, y) = SigningKey::generate(Algorithm::Es256).unwrap().public() else {
        panic!("a key on a curve");
    };
    let curve = |name: &str| json!({"kty": "EC", "crv": name, "x": encode(&x), "y": encode(&y)});
    let (good, strange) = (curve(own), curve("secp256k1"));
    let weak = json!({"kty": "RSA", "n": encode(&[0xc1; 128]), "e": "AQAB"});
    let secret = json!({"kty": "oct", "alg": "HS256", "k": "c2VjcmV0"});
    let keys: Value = json!({"keys": [good, weak, strange, secret]});
    format!(
        "apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  jwtRules:
  - issuer: https://issuer.example
    jwks: '{keys}'
"
    )
}
