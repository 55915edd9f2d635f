//! Peers whose certificates are not approved: refused for `not-fips`, which is a matter of encryption and not of who they are.

use std::time::Duration;

use fips::ca::{Authority, KeyType, Profile};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tests::{App, Caller, Mesh, Pki, Record, Server, signed_by_sha1};

use crate::world;

const HOUR: Duration = Duration::from_secs(3600);
const CALLER: &str = "spiffe://cluster.local/ns/bookinfo/sa/productpage";

#[tokio::test]
async fn a_caller_whose_certificate_is_not_approved_is_refused_and_the_record_says_what_it_was() {
    let app = App::echo().await;
    let mesh = world().server(Server::new("ratings", &app)).start().await;
    let root = mesh.pki.maker();
    let weak = root.weak_authority("weak");
    let unapproved = [
        ("an RSA key of 1024 bits", root.rsa_caller(CALLER, 1024, 65537)),
        ("an RSA key of 2056 bits", root.rsa_caller(CALLER, 2056, 65537)),
        ("an RSA key of 2048 bits with exponent 3", root.rsa_caller(CALLER, 2048, 3)),
        ("an RSA key of 1024 bits", weak.caller(CALLER, vec![weak.der()])),
        ("a key of 1.2.840.10045.3.1.99 is not approved", root.strange_caller(CALLER)),
        ("a signature by sha1WithRSAEncryption is not approved", by_sha1()),
    ];
    for (what, caller) in unapproved {
        let record = refused(&mesh, what, &caller).await;
        assert_eq!(record.ended(), "not-fips at terminate", "{record:?}");
        assert_eq!(record.decision(), "deny at terminate: not-fips");
        assert_eq!(record.check("encryption"), "fail not-fips", "{record:?}");
        assert!(record.check("service-authentication").starts_with("not-reached"), "{record:?}");
        assert!(record.detail().contains(what), "{what}: {record:?}");
        assert!(record.detail().contains("--fips required"), "{record:?}");
    }
    assert_eq!(app.connections(), 0);
    for key_type in [KeyType::P256, KeyType::P384, KeyType::Rsa2048, KeyType::Ed25519] {
        let caller = mesh.pki.caller_with(&Profile { key_type, ..Profile::workload(CALLER, HOUR) });
        let mut client = caller.connect(mesh.inbound("ratings")).await;
        assert_eq!(client.get("/", "").await.status, 200, "{key_type:?}");
    }
    let served = mesh.stop().await;
    for record in served.all().iter().filter(|record| record.status() == 200) {
        assert_eq!(record.check("encryption"), "pass mtls");
        assert_eq!(record.json().pointer("/decision/checks/0/evidence/fips").unwrap(), true, "{record:?}");
    }
}

#[tokio::test]
async fn a_server_outside_of_the_mesh_whose_certificate_is_not_approved_is_sent_nothing() {
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
    let web = Authority::generate_with(KeyType::Rsa2048, "web.example", HOUR).unwrap();
    let issued = web.issue(&Profile::server(&["ratings.example.com"], HOUR)).unwrap();
    let certificate = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    let roots = web.certificate_pem().replace('\n', "\n    ");
    let roots = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: web-roots, namespace: bookinfo}}\ndata:\n  ca.crt: |\n    {roots}\n"
    );
    for (chain, served) in [(certificate.clone(), true), (signed_by_sha1(&certificate), false)] {
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
        let app = App::tls(Pki::website_of(vec![chain], key)).await;
        let world = world().server(Server::new("ratings", &app).without_sidecar().port_name("http"));
        let mesh = world.policy(POLICY).policy(&roots).start().await;
        assert_eq!(mesh.get("/").await.status, if served { 200 } else { 503 });
        assert_eq!(app.requests(), usize::from(served));
        let records = mesh.stop().await;
        let outbound = records.of("outbound", "/");
        if served {
            assert_eq!(outbound.check("encryption"), "pass tls");
        } else {
            assert_eq!(outbound.decision(), "deny at connect: not-fips");
            assert_eq!(outbound.check("encryption"), "fail not-fips");
            assert!(outbound.detail().contains("sha1WithRSAEncryption"), "{outbound:?}");
        }
    }
}

/// Of an authority that signs with RSA; whether it is believed is not asked any more.
fn by_sha1() -> Caller {
    let authority = Authority::generate_with(KeyType::Rsa2048, "cluster.local", HOUR).unwrap();
    let issued = authority.issue(&Profile::workload(CALLER, HOUR)).unwrap();
    let certificate = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    Caller::presenting(vec![signed_by_sha1(&certificate)], key)
}

async fn refused(mesh: &Mesh, what: &str, caller: &Caller) -> Record {
    let (source, connected) = caller.attempt(mesh.inbound("ratings")).await;
    // TLS 1.3 tells a client that it was refused only when it reads.
    if let Ok(mut client) = connected {
        let _ = client.try_send("GET / HTTP/1.1\r\nHost: ratings\r\n\r\n").await;
        assert!(client.rest().await.is_empty(), "{what}");
    }
    mesh.record(what, |record| record.text("/source/address") == source.to_string()).await
}
