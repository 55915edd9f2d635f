//! TLS to backends: DestinationRules and BackendTLSPolicies with what they name, and what fails closed.

use super::*;
use crate::snapshot::{BackendTls, Pem, ServerId, TlsOrigination};

const SERVICE: &str = "---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: foo}
spec: {clusterIP: 10.0.0.1, ports: [{name: https, port: 443}, {name: admin, port: 8443}]}
";
const ENTRY: &str = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: foo}
spec: {hosts: [out.example.com], location: MESH_EXTERNAL, resolution: STATIC, ports: [{number: 443, name: tls, protocol: TCP}], endpoints: [{address: 192.0.2.1}]}
";

fn config_map(name: &str, key: &str, text: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("foo", name));
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\ndata: {{{key}: '{text}'}}\n"
    )
}

fn secret(name: &str, data: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("foo", name));
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\nstringData: {{{data}}}\n"
    )
}

fn roots(name: &str) -> String {
    config_map(name, "ca.crt", "-----BEGIN CERTIFICATE-----")
}

fn policy(name: &str, created: u32, target: &str, validation: &str) -> String {
    let spec = format!(
        "{{targetRefs: [{{group: '', kind: Service, name: api{target}}}], validation: {{{validation}}}}}"
    );
    object("BackendTLSPolicy", name, &spec).replacen(
        "metadata: {",
        &format!("metadata: {{creationTimestamp: '2024-01-01T00:00:{created:02}Z', "),
        1,
    )
}

fn rule(host: &str, tls: &str) -> String {
    object("DestinationRule", "rule", &format!("{{host: {host}, trafficPolicy: {{tls: {{{tls}}}}}}}"))
}

const CA: &str = "hostname: api.example.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]";

/// TLS to a backend, and the object that ordered it.
fn tls(loaded: &Loaded, id: &str) -> (BackendTls, String) {
    let policy = &loaded.snapshot.policy;
    let backend = policy.backends.iter().find(|backend| backend.id == id).unwrap();
    (backend.tls.clone(), object_name(policy, backend.object))
}

fn originated(loaded: &Loaded, id: &str) -> TlsOrigination {
    match tls(loaded, id).0 {
        BackendTls::Tls(tls) => TlsOrigination::clone(&tls),
        other => panic!("{other:?}"),
    }
}

fn why(loaded: &Loaded, id: &str) -> String {
    match tls(loaded, id).0 {
        BackendTls::Unusable { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

const API: &str = "api.foo.svc.cluster.local:443";
const ADMIN: &str = "api.foo.svc.cluster.local:8443";
const OUT: &str = "out.example.com:443";

#[test]
fn a_backend_tls_policy_says_whom_to_expect() {
    let loaded = load(&(SERVICE.to_owned() + &roots("ca") + &policy("p", 1, "", CA)));
    assert_eq!(texts(&loaded), [] as [String; 0]);
    for id in [API, ADMIN] {
        let tls = originated(&loaded, id);
        assert_eq!(tls.sni.as_deref(), Some("api.example.com"));
        assert_eq!(tls.names, [ServerId::Host("api.example.com".into())]);
        assert_eq!(tls.roots.iter().map(Pem::name).collect::<Vec<_>>(), ["ConfigMap foo/ca"]);
        assert_eq!(tls.client, None);
    }
    assert_eq!(tls(&loaded, API).1, "p");
    // Other names take the host name's place, except as SNI.
    let other = format!("{CA}, subjectAltNames: [{{type: URI, uri: 'spiffe://x/y'}}]");
    let loaded = load(&(SERVICE.to_owned() + &roots("ca") + &policy("p", 1, "", &other)));
    let tls = originated(&loaded, API);
    assert_eq!(
        (tls.sni.as_deref(), &*tls.names),
        (Some("api.example.com"), &[ServerId::Uri("spiffe://x/y".into())][..])
    );
}

#[test]
fn the_port_before_the_service_and_the_older_before_the_younger() {
    let named = |host: &str| CA.replace("api.example.com", host);
    let yaml = [
        SERVICE,
        &roots("ca"),
        &policy("young", 9, "", &named("young")),
        &policy("old", 1, "", &named("old")),
        &policy("port", 5, ", sectionName: admin", &named("port")),
    ]
    .concat();
    let loaded = load(&yaml);
    assert_eq!(originated(&loaded, API).sni.as_deref(), Some("old"));
    assert_eq!(originated(&loaded, ADMIN).sni.as_deref(), Some("port"));
    assert_eq!(
        texts(&loaded),
        ["young spec.targetRefs[0]: BackendTLSPolicy old is older, for the same target, and in force"]
    );
}

#[test]
fn a_destination_rule_before_a_backend_tls_policy() {
    let both = SERVICE.to_owned() + &roots("ca") + &policy("p", 1, "", CA);
    let loaded = load(&(both.clone() + &rule("api", "mode: DISABLE")));
    assert_eq!(tls(&loaded, API), (BackendTls::Plaintext, "rule".into()));
    // A rule that doesn't speak of TLS leaves it to the policy.
    let silent = "{host: api, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1s}}}}";
    let loaded = load(&(both + &object("DestinationRule", "rule", silent)));
    assert_eq!(tls(&loaded, API).1, "p");
}

#[test]
fn what_can_not_be_followed_gets_nothing_and_is_reported() {
    let cases = [
        (policy("p", 1, "", CA), "p spec.validation.caCertificateRefs[0]: no ConfigMap foo/ca"),
        (config_map("ca", "ca.crt", "x") + &policy("p", 1, "", CA), "under ca.crt"),
        (roots("bar/ca") + &policy("p", 1, "", CA), "no ConfigMap foo/ca"),
        (policy("p", 1, "", "hostname: a, wellKnownCACertificates: System"), "systemRoots"),
        (policy("p", 1, "", "hostname: a"), "caCertificateRefs: is required"),
        (rule("api", "mode: SIMPLE"), "rule spec.trafficPolicy.tls: no caCertificates"),
        (rule("api", "mode: SIMPLE, credentialName: c"), "no Secret foo/c"),
        (secret("bar/c", "ca.crt: x") + &rule("api", "mode: SIMPLE, credentialName: c"), "no Secret foo/c"),
        (
            secret("c", "ca.crt: x, tls.crt: x") + &rule("api", "mode: MUTUAL, credentialName: c"),
            "tls.key or key",
        ),
        (rule("api", "mode: SIMPLE, caCertificates: /ca, insecureSkipVerify: true"), "could be anyone"),
    ];
    for (yaml, wanted) in cases {
        let loaded = load(&(SERVICE.to_owned() + &yaml));
        assert!(texts(&loaded).join("\n").contains(wanted), "{wanted}: {:?}", texts(&loaded));
        // Told once, for all ports.
        assert_eq!(texts(&loaded).len(), 1, "{:?}", texts(&loaded));
        assert!(!why(&loaded, API).is_empty() && !why(&loaded, ADMIN).is_empty(), "{wanted}");
    }
    // Roots of which one is missing: the others stay.
    let two = "hostname: a, caCertificateRefs: [{group: '', kind: ConfigMap, name: gone}, {group: '', kind: ConfigMap, name: ca}]";
    let loaded = load(&(SERVICE.to_owned() + &roots("ca") + &policy("p", 1, "", two)));
    assert_eq!((originated(&loaded, API).roots.len(), texts(&loaded).len()), (1, 1));
}

#[test]
fn a_policy_for_nobody_knows_whom_covers_its_namespace() {
    let spec = "{targetRefs: [{kind: Pod, name: api}], validation: {hostname: a}}";
    let other = SERVICE.replace("namespace: foo", "namespace: bar");
    let loaded = load(&(SERVICE.to_owned() + &other + &object("BackendTLSPolicy", "p", spec)));
    assert!(why(&loaded, API).contains("BackendTLSPolicy foo/p"));
    assert_eq!(tls(&loaded, "api.bar.svc.cluster.local:443").0, BackendTls::Auto);
    let nobody = [
        (policy("p", 1, "", CA).replace("name: api", "name: y"), "no Service foo/y"),
        (policy("p", 1, ", sectionName: x", CA), "no port named x"),
    ];
    for (policy, wanted) in nobody {
        let loaded = load(&(SERVICE.to_owned() + &roots("ca") + &policy));
        assert!(texts(&loaded)[0].contains(wanted), "{:?}", texts(&loaded));
        assert_eq!(tls(&loaded, API).0, BackendTls::Auto);
    }
}

#[test]
fn a_destination_rule_says_whom_to_expect() {
    let names =
        |tls: &TlsOrigination| tls.names.iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>();
    let of = |yaml: &str| {
        let loaded = load(&(ENTRY.to_owned() + yaml));
        assert_eq!(texts(&loaded), [] as [String; 0]);
        originated(&loaded, OUT)
    };
    let simple = of(&rule("out.example.com", "mode: SIMPLE, caCertificates: /ca.crt"));
    assert_eq!(
        (simple.sni.as_deref(), names(&simple)),
        (Some("out.example.com"), vec!["out.example.com".into()])
    );
    assert_eq!(simple.roots, [Pem::File("/ca.crt".into())]);
    let named = of(&rule(
        "out.example.com",
        "mode: SIMPLE, caCertificates: /ca, sni: a, subjectAltNames: [b, 'spiffe://c/d']",
    ));
    assert_eq!((named.sni.as_deref(), names(&named)), (Some("a"), vec!["b".into(), "spiffe://c/d".into()]));
    let mutual = of(&rule(
        "out.example.com",
        "mode: MUTUAL, caCertificates: /ca, clientCertificate: /c, privateKey: /k",
    ));
    assert_eq!(mutual.client, Some((Pem::File("/c".into()), Pem::File("/k".into()))));

    let settings = object("MeshSettings", "mesh", "{systemRoots: /etc/ssl/certs/ca-certificates.crt}");
    let system = of(&(settings + &rule("out.example.com", "mode: SIMPLE")));
    assert_eq!(system.roots, [Pem::File("/etc/ssl/certs/ca-certificates.crt".into())]);

    // The entry's names count where the rule has none.
    let entry = ENTRY.replace("{hosts", "{subjectAltNames: ['spiffe://e/f'], hosts");
    let loaded = load(&(entry + &rule("out.example.com", "mode: SIMPLE, caCertificates: /ca")));
    assert_eq!(names(&originated(&loaded, OUT)), ["spiffe://e/f"]);
}

#[test]
fn a_credential_is_a_secret_of_the_clients_namespace() {
    let mutual = rule("out.example.com", "mode: MUTUAL, credentialName: c");
    for data in
        ["tls.crt: certificate, tls.key: key, ca.crt: roots", "cert: certificate, key: key, cacert: roots"]
    {
        let loaded = load(&(ENTRY.to_owned() + &mutual + &secret("c", data)));
        let tls = originated(&loaded, OUT);
        let text = |pem: &Pem| match pem {
            Pem::Object(object) => object.text().to_owned(),
            Pem::File(path) => panic!("{path}"),
        };
        let (certificate, key) = tls.client.as_ref().unwrap();
        assert_eq!([text(certificate), text(key), text(&tls.roots[0])], ["certificate", "key", "roots"]);
        assert!(!format!("{tls:?}").contains("\"key\""), "{tls:?}");
    }
    let apart = secret("c", "cert: certificate, key: key") + &secret("c-cacert", "cacert: roots");
    let loaded = load(&(ENTRY.to_owned() + &mutual + &apart));
    assert_eq!(originated(&loaded, OUT).roots[0].name(), "roots of Secret foo/c");
    // Another key is another policy, though nobody wrote another one.
    let with = |key: &str| {
        load(&(ENTRY.to_owned() + &mutual + &secret("c", &format!("cert: a, key: {key}, cacert: b"))))
            .snapshot
    };
    assert_ne!(with("one").policy, with("two").policy);
    assert_eq!(with("one").policy.digest, with("two").policy.digest);
    assert_ne!(with("one").runtime_digest, with("two").runtime_digest);
}
