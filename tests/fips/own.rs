//! The proxy's own certificate and roots: one that is not approved is not started with, and does not replace one that is.

use std::time::Duration;

use fips::ca::{Authority, Issued, KeyType, Profile};
use proxy::identity::Identity;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tests::{App, Credentials, Pki, Server, pem, signed_by_sha1};

use crate::world;

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_start_with_what_is_not_approved_is_refused_by_name() {
    fips::require().unwrap();
    let pki = Pki::new();
    let id = "spiffe://cluster.local/ns/bookinfo/sa/ratings";
    for key_type in [KeyType::P256, KeyType::P384, KeyType::Rsa2048, KeyType::Ed25519] {
        let credentials = pki.credentials("ratings");
        let profile = Profile { key_type, ..Profile::workload(id, HOUR) };
        credentials.renew(&pki.authority().issue(&profile).unwrap(), pki.root());
        load(&credentials).unwrap_or_else(|why| panic!("{key_type:?}: {why}"));
    }

    let credentials = pki.credentials("ratings");
    let rsa = Authority::generate_with(KeyType::Rsa2048, "cluster.local", HOUR).unwrap();
    credentials.renew(&by_sha1(&rsa, id), rsa.certificate_pem());
    let why = load(&credentials).unwrap_err();
    assert!(why.contains("own certificate") && why.contains("sha1WithRSAEncryption"), "{why}");

    let credentials = pki.credentials("ratings");
    let weak = pki.maker().weak_authority("weak");
    let bundle = format!("{}{}", pki.root(), pem("CERTIFICATE", &weak.der()));
    credentials.put(&[("ca.crt", &bundle)]);
    let why = load(&credentials).unwrap_err();
    assert!(why.contains("bundle") && why.contains("1024 bits"), "{why}");

    let credentials = pki.credentials("ratings");
    let strange = pki.maker().strange_caller(id);
    credentials.put(&[("tls.crt", &pem("CERTIFICATE", &strange.leaf()))]);
    let why = load(&credentials).unwrap_err();
    assert!(why.contains("a key of 1.2.840.10045.3.1.99 is not approved"), "{why}");
}

#[tokio::test]
async fn a_renewal_with_what_is_not_approved_leaves_the_old_in_force() {
    let app = App::echo().await;
    let mesh = world().server(Server::new("ratings", &app)).with_files().start().await;
    let rsa = Authority::generate_with(KeyType::Rsa2048, "cluster.local", HOUR).unwrap();
    let roots = format!("{}{}", mesh.pki.root(), rsa.certificate_pem());
    let credentials = mesh.credentials("ratings");
    credentials.renew(&by_sha1(&rsa, credentials.id()), &roots);
    let problem = tests::soon("the problem in the metrics", async {
        loop {
            let metrics = mesh.metrics("ratings").await;
            if metrics.lines().any(|line| line == "writ_identity_problem 1") {
                return metrics;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(problem.contains("sha1WithRSAEncryption is not approved"), "{problem}");
    assert_eq!(mesh.get("/").await.status, 200);
    mesh.stop().await;
}

fn load(credentials: &Credentials) -> Result<(), String> {
    let loaded = Identity::load(credentials.source(), "cluster.local", None, None);
    loaded.map(drop).map_err(|error| error.to_string())
}

fn by_sha1(authority: &Authority, id: &str) -> Issued {
    let issued = authority.issue(&Profile::workload(id, HOUR)).unwrap();
    let certificate = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    Issued { certificate_pem: pem("CERTIFICATE", &signed_by_sha1(&certificate)), ..issued }
}
