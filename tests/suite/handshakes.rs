//! Handshakes that must fail: each is refused for a reason of its own, the record says which, and others are served.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use fips::ca::{Authority, KeyUsage, Profile, Purpose};
use rustls_pki_types::CertificateDer;
use tests::{App, Caller, Client, Maker, Mesh, Server, World, soon};
use webpki::EndEntityCert;

const HOUR: Duration = Duration::from_secs(3600);
const CALLER: &str = "spiffe://cluster.local/ns/bookinfo/sa/productpage";
const PARTNER: &str = "partner.example";
const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
";

/// A caller that is refused, and how: reason of `service-authentication`, and words of the detail.
struct Refused(&'static str, Caller, &'static str, &'static str);

/// Every way for a certificate to prove nothing.
#[tokio::test]
async fn certificates_that_prove_nothing_are_refused_each_for_its_reason() {
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).with_files().start().await;
    let partner = Authority::generate(PARTNER, HOUR).unwrap();
    mesh.credentials("ratings").put(&[("partner.example.bundle.pem", partner.certificate_pem())]);
    let federated =
        Caller::of(&partner.issue(&Profile::workload("spiffe://partner.example/billing", HOUR)).unwrap());
    until_served(&mesh, &federated).await;

    let table = by_profile(&mesh, &partner).into_iter().chain(by_chain(&mesh));
    for Refused(name, caller, reason, detail) in table {
        refused(&mesh, name, &caller, reason, detail).await;
        // Nothing is remembered of a refusal, and nothing of it stands in another's way.
        refused(&mesh, name, &caller, reason, detail).await;
    }
    until_served(&mesh, &mesh.pki.caller("productpage")).await;
    let between = mesh.pki.maker().authority("between", Some(0));
    until_served(&mesh, &between.caller(CALLER, vec![between.der()])).await;
    mesh.stop().await;
}

fn by_profile(mesh: &Mesh, partner: &Authority) -> Vec<Refused> {
    let good = Profile::workload(CALLER, HOUR);
    let (now, of) = (SystemTime::now(), |profile: Profile| mesh.pki.caller_with(&profile));
    let dates = |not_before, not_after| of(Profile { not_before, not_after, ..good.clone() });
    let uris =
        |uris: &[&str]| of(Profile { uris: uris.iter().map(ToString::to_string).collect(), ..good.clone() });
    let usages = |key_usages: &[KeyUsage]| of(Profile { key_usages: key_usages.to_vec(), ..good.clone() });
    let by = |authority: &Authority| Caller::of(&authority.issue(&good).unwrap());
    let stranger = Authority::generate("cluster.local", HOUR).unwrap();
    use KeyUsage::*;
    vec![
        Refused("expired", dates(now - 2 * HOUR, now - HOUR), "expired", "expired at"),
        Refused("not yet valid", dates(now + HOUR, now + 2 * HOUR), "not-yet-valid", "compare the clocks"),
        Refused(
            "wrong trust domain",
            uris(&["spiffe://b.example/a"]),
            "untrusted-root",
            "no roots are known for trust domain b.example",
        ),
        Refused(
            "forged by a federated root",
            by(partner),
            "untrusted-root",
            "no root of trust domain cluster.local signed it",
        ),
        Refused(
            "forged for the federated domain",
            uris(&["spiffe://partner.example/billing"]),
            "untrusted-root",
            "no root of trust domain partner.example signed it",
        ),
        Refused("unknown root", by(&stranger), "untrusted-root", "no root of trust domain"),
        Refused(
            "two URI names",
            uris(&[CALLER, "spiffe://cluster.local/x"]),
            "bad-certificate",
            "more than one URI",
        ),
        Refused("no URI name", uris(&[]), "bad-certificate", "no URI name"),
        Refused("a web name", uris(&["https://a.example/"]), "bad-certificate", "no SPIFFE id"),
        Refused(
            "a trust domain alone",
            uris(&["spiffe://cluster.local"]),
            "bad-certificate",
            "not a workload",
        ),
        Refused(
            "CA as leaf",
            of(Profile { ca: true, ..good.clone() }),
            "bad-certificate",
            "is a CA certificate",
        ),
        Refused(
            "signs certificates",
            usages(&[DigitalSignature, CertificateSign]),
            "bad-certificate",
            "lets a leaf sign",
        ),
        Refused("signs lists", usages(&[DigitalSignature, CrlSign]), "bad-certificate", "lets a leaf sign"),
        Refused("signs nothing", usages(&[KeyEncipherment]), "bad-certificate", "lacks digitalSignature"),
        Refused("no key usage", usages(&[]), "bad-certificate", "has no key usage"),
        Refused(
            "a server's only",
            of(Profile { purposes: vec![Purpose::Server], ..good.clone() }),
            "bad-certificate",
            "extended key usage",
        ),
        Refused("no certificate", Caller::anonymous(), "no-identity", "has no certificate"),
    ]
}

/// Chains that no sound authority makes.
fn by_chain(mesh: &Mesh) -> Vec<Refused> {
    let root = mesh.pki.maker();
    let path = |names: &[&str], lengths: &[Option<u8>]| {
        let mut signers = Vec::<Maker>::new();
        for (name, length) in names.iter().zip(lengths) {
            let signer = signers.last().unwrap_or(&root).authority(name, *length);
            signers.push(signer);
        }
        let signer = signers.last().unwrap_or(&root);
        signer.caller(CALLER, signers.iter().rev().map(Maker::der).collect())
    };
    let names = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    let weak = root.weak_authority("weak");
    let heavy = CertificateDer::from(vec![0x30; 1 << 20]);
    vec![
        Refused(
            "path too long",
            path(&names[..2], &[Some(0), None]),
            "bad-certificate",
            "too many authorities",
        ),
        Refused("a path of seven", path(&names[..7], &[None; 7]), "bad-certificate", "too many authorities"),
        Refused(
            "nine besides the leaf",
            path(&names, &[None; 9]),
            "bad-certificate",
            "9 certificates presented",
        ),
        Refused("self-signed", root.self_signed(CALLER), "untrusted-root", "it is self-signed"),
        Refused(
            "weak RSA leaf",
            root.rsa_caller(CALLER, 1024, 65537),
            "bad-certificate",
            "an RSA key of 1024 bits",
        ),
        Refused(
            "weak RSA on the way",
            weak.caller(CALLER, vec![weak.der()]),
            "bad-certificate",
            "an RSA key of 1024 bits",
        ),
        Refused(
            "not a certificate",
            root.presenting(vec![CertificateDer::from(vec![0x30; 64])]),
            "bad-certificate",
            "not readable",
        ),
        Refused(
            "10 MB of certificates",
            root.caller(CALLER, vec![heavy; 10]),
            "",
            "a handshake message of over 64 KiB",
        ),
    ]
}

/// Whoever is revoked is refused as soon as the list is there, and whoever is not is served.
#[tokio::test]
async fn who_is_revoked_is_refused() {
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).with_files().start().await;
    let caller = mesh.pki.caller_with(&Profile::workload(CALLER, HOUR));
    let leaf = caller.leaf();
    let serial = EndEntityCert::try_from(&leaf).unwrap().serial().to_vec();
    until_served(&mesh, &caller).await;
    let list = mesh.pki.authority().revocation_list(&[&serial], SystemTime::now() + HOUR).unwrap();
    mesh.credentials("ratings").put(&[("crl.pem", &list)]);
    until_refused(&mesh, &caller).await;
    refused(&mesh, "revoked", &caller, "revoked", "revoked").await;
    until_served(&mesh, &mesh.pki.caller("productpage")).await;
    mesh.stop().await;
}

/// Trust domains that MeshSettings call ours are vouched for by our roots, as soon as they are called so.
#[tokio::test]
async fn an_alias_of_the_trust_domain_is_believed_as_long_as_it_is_one() {
    let settings = |aliases: &str| {
        format!(
            "
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {{name: default, namespace: istio-system}}
spec: {{trustDomainAliases: [{aliases}]}}
"
        )
    };
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).policy(&settings("old.local")).start().await;
    let former =
        mesh.pki.caller_with(&Profile::workload("spiffe://old.local/ns/bookinfo/sa/productpage", HOUR));
    until_served(&mesh, &former).await;
    mesh.config().write("policy-0.yaml", &settings(""));
    until_refused(&mesh, &former).await;
    refused(&mesh, "no alias any more", &former, "untrusted-root", "no roots are known").await;
    mesh.stop().await;
}

/// What is no handshake, or none that is still made.
#[tokio::test]
async fn bytes_that_are_no_handshake_are_refused_each_for_its_reason() {
    let app = App::echo().await;
    let mesh = World::new().server(Server::new("ratings", &app)).policy(STRICT).start().await;
    let hello = mesh.pki.caller("productpage").client_hello();
    let mut random = hello.clone();
    random.extend([23, 3, 3, 0, 64].iter().chain(&[0x55; 64]));
    let mut endless = vec![1, 0xff, 0xff, 0xff, 3, 3];
    endless.resize(1 << 18, 0x55);
    let failed = "handshake-failed at terminate";
    let table: Vec<(&str, Vec<u8>, &str, &str)> = vec![
        ("TLS 1.0", hello_of(0x0301, &CBC, &[]), failed, "older than 1.2"),
        ("TLS 1.1", hello_of(0x0302, &CBC, &[]), failed, "older than 1.2"),
        (
            "export suites",
            hello_of(0x0303, &EXPORT, &TLS_1_2),
            failed,
            "no version, suite or group in common",
        ),
        ("CBC suites", hello_of(0x0303, &CBC, &TLS_1_2), failed, "no version, suite or group in common"),
        (
            "SSL 2",
            [&[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 16][..], &[0; 40]].concat(),
            "plaintext-under-strict at admit",
            "",
        ),
        (
            "plain HTTP",
            b"GET / HTTP/1.1\r\nHost: ratings\r\nConnection: close\r\n\r\n".to_vec(),
            "plaintext-under-strict at admit",
            "",
        ),
        ("cut short", hello[..hello.len() / 2].to_vec(), failed, "closed the connection"),
        ("cut in its first record's header", hello[..3].to_vec(), failed, "closed the connection"),
        (
            "a record too large",
            [&hello[..], &[23, 3, 3, 0xff, 0xff], &[0; 4096]].concat(),
            failed,
            "record larger than any may be",
        ),
        ("a handshake without end", records(&endless), failed, "a handshake message of over 64 KiB"),
        (
            "no hello in the record",
            [&[22, 3, 1, 0, 64][..], &[0; 64]].concat(),
            "plaintext-under-strict at admit",
            "",
        ),
        ("noise after the hello", random, failed, ""),
    ];
    let mut wrong = Vec::new();
    for (name, bytes, ended, detail) in table {
        let mut client = Client::connect(mesh.inbound("ratings")).await;
        let source = client.address().to_string();
        let _ = client.try_send(&bytes).await;
        if name.starts_with("cut") {
            client.finish().await;
        }
        client.rest().await;
        let record = mesh.record(name, |record| record.text("/source/address") == source).await;
        if record.ended() != ended
            || !record.detail().contains(detail)
            || record.text("/decision/outcome") != "deny"
        {
            wrong.push(format!("{name}: {} ({})", record.ended(), record.detail()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(app.connections(), 0);
    until_served(&mesh, &mesh.pki.caller("productpage")).await;
    mesh.stop().await;
}

/// With 40-bit RC4, RC2 and DES.
const EXPORT: [u16; 7] = [0x0003, 0x0006, 0x0008, 0x000b, 0x0014, 0x0017, 0x0019];
const CBC: [u16; 3] = [0x002f, 0x0035, 0xc013];
/// Extensions that TLS 1.2 has: supported groups P-256, and signatures by ECDSA and RSA with SHA-256.
const TLS_1_2: [u8; 18] = [0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 6, 0, 4, 4, 3, 4, 1];

/// A ClientHello of `version`.
fn hello_of(version: u16, suites: &[u16], extensions: &[u8]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    body.extend([7; 32]);
    body.push(0);
    body.extend(((suites.len() * 2) as u16).to_be_bytes());
    body.extend(suites.iter().flat_map(|suite| suite.to_be_bytes()));
    body.extend([1, 0]);
    if !extensions.is_empty() {
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
    }
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    records(&message)
}

/// A handshake message in as many records as it takes.
fn records(message: &[u8]) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
    message.chunks(16 * 1024).flat_map(record).collect()
}

async fn refused(mesh: &Mesh, name: &str, caller: &Caller, reason: &str, detail: &str) {
    let source = attempt(mesh.inbound("ratings"), caller).await.1;
    let record = mesh.record(name, |record| record.text("/source/address") == source.to_string()).await;
    println!("{name}: {} ({})", record.ended(), record.detail());
    let (check, ended) = match reason {
        "" => ("not-reached no-identity".to_owned(), "handshake-failed at terminate".to_owned()),
        reason => (format!("fail {reason}"), format!("{reason} at terminate")),
    };
    assert_eq!(record.ended(), ended, "{name}: {record:?}");
    if !reason.is_empty() {
        assert_eq!(record.check("service-authentication"), check, "{name}: {record:?}");
    }
    assert!(record.detail().contains(detail), "{name}: {record:?}");
}

async fn until_served(mesh: &Mesh, caller: &Caller) {
    soon("a caller that is served", async {
        while !served(mesh, caller).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn until_refused(mesh: &Mesh, caller: &Caller) {
    soon("a caller that is refused", async {
        while served(mesh, caller).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn served(mesh: &Mesh, caller: &Caller) -> bool {
    attempt(mesh.inbound("ratings"), caller).await.0
}

/// Whether a request on a new connection is answered, and where it came from.
async fn attempt(to: SocketAddr, caller: &Caller) -> (bool, SocketAddr) {
    let (source, connected) = caller.attempt(to).await;
    // TLS 1.3 tells a client that it was refused only when it reads.
    let Ok(mut client) = connected else { return (false, source) };
    let _ = client.try_send("GET / HTTP/1.1\r\nHost: ratings\r\nConnection: close\r\n\r\n").await;
    (matches!(client.try_reply().await, Ok(Some(reply)) if reply.status == 200), source)
}
