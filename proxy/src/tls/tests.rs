//! Handshakes in memory: who gets in, and for which reason others don't.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use control_client::snapshot::{Pem, PemObject, ServerId, TlsOrigination};
use fips::ca::{Authority, KeyUsage, Profile, Purpose};
use rustls::{ClientConfig, HandshakeKind, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::client::ClientConnected;
use super::*;
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::identity::Identity;
use crate::identity::fixture::{Dir, HOUR, authority, identity};

const DEADLINE: Duration = Duration::from_secs(10);
const SERVER: &str = "spiffe://cluster.local/ns/bookinfo/sa/ratings";
const CLIENT: &str = "spiffe://cluster.local/ns/bookinfo/sa/reviews";

type Served = Result<Accepted<DuplexStream>, Reject>;
type Dialled = Result<ClientConnected<DuplexStream>, Reject>;

fn member(root: &Authority, uri: &str) -> Arc<Identity> {
    identity(root, &Profile::workload(uri, HOUR), &[("cluster.local", root)])
}

/// Both sides of a handshake.
async fn shake_hands(
    server: &ServerTls,
    client: &ClientTls,
    expected: &str,
    alpn: HopAlpn,
) -> (Served, Dialled) {
    let (near, far) = duplex(64 * 1024);
    let expected = [Arc::from(expected)];
    tokio::join!(
        server.accept(far, DEADLINE),
        client.connect_mesh(near, &expected, alpn, Some("ratings.bookinfo"))
    )
}

async fn between(server: Arc<Identity>, client: Arc<Identity>) -> (Served, Dialled) {
    let (server, client) = (ServerTls::mesh(server), ClientTls::new(Some(client)));
    shake_hands(&server, &client, SERVER, HopAlpn::Http1).await
}

async fn echo(accepted: &mut Accepted<DuplexStream>, connected: &mut ClientConnected<DuplexStream>) {
    let mut bytes = [0; 4];
    connected.stream.write_all(b"ping").await.unwrap();
    connected.stream.flush().await.unwrap();
    accepted.stream.read_exact(&mut bytes).await.unwrap();
    accepted.stream.write_all(&bytes).await.unwrap();
    accepted.stream.flush().await.unwrap();
    connected.stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(
    outcome: &Result<T, Reject>,
    stage: Stage,
    reason: Reason,
    detail: &str,
) {
    let reject = outcome.as_ref().expect_err("refused");
    assert_eq!((reject.stage, reject.reason), (stage, reason), "{reject}");
    assert!(reject.detail.as_deref().unwrap_or_default().contains(detail), "{reject} lacks `{detail}`");
}

#[tokio::test]
async fn both_sides_know_each_other_and_what_was_agreed() {
    let root = authority("cluster.local");
    let (server, client) = (member(&root, SERVER), member(&root, CLIENT));
    let leaf = client.current().certified.cert[0].clone();
    let (accepted, connected) = between(server, client).await;
    let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
    echo(&mut accepted, &mut connected).await;

    let peer = &accepted.peer;
    assert_eq!(peer.identity.as_ref().unwrap().as_str(), CLIENT);
    assert_eq!(peer.fingerprint, Some(fips::sha256(&leaf)));
    assert_eq!(&*peer.subject, "");
    assert_eq!(connected.identity.as_ref().unwrap().as_str(), SERVER);
    for (tls, certificate) in [
        (&peer.evidence, peer.certificate.as_ref().unwrap()),
        (&*connected.evidence, connected.certificate.as_ref().unwrap()),
    ] {
        assert_eq!((tls.version, tls.suite), ("1.3", "TLS_AES_128_GCM_SHA256"));
        let attestation = fips::install();
        assert_eq!((tls.group, tls.fips), (&*attestation.groups[0].name, attestation.fips));
        assert_eq!(tls.sni.as_deref(), Some("ratings.bookinfo"));
        assert_eq!(&*certificate.trust_domain, "cluster.local");
        assert_eq!(certificate.serial.len(), 32, "{}", certificate.serial);
        let left = certificate.not_after - jiff::Timestamp::now().as_second();
        assert!((3500..=3600).contains(&left), "{left}");
    }
}

#[tokio::test]
async fn alpn_tells_the_protocol_and_agrees_to_the_plain_name() {
    let root = authority("cluster.local");
    let (server, client) =
        (ServerTls::mesh(member(&root, SERVER)), ClientTls::new(Some(member(&root, CLIENT))));
    for (offered, understood, agreed) in [
        (HopAlpn::Http1, Alpn::Http1, Some(HopAlpn::Http1)),
        (HopAlpn::Http2, Alpn::Http2, Some(HopAlpn::Http2)),
        (HopAlpn::Tcp, Alpn::Tcp, None),
    ] {
        let (accepted, connected) = shake_hands(&server, &client, SERVER, offered).await;
        let (accepted, connected) = (accepted.unwrap(), connected.unwrap());
        assert_eq!((accepted.alpn, accepted.mesh, connected.alpn), (understood, true, agreed));
    }
}

/// Every way in which a certificate can be no proof, with its reason.
fn faulty() -> Vec<(&'static str, Profile, Reason, &'static str)> {
    let good = Profile::workload(SERVER, HOUR);
    let (past, future) = (SystemTime::now() - HOUR, SystemTime::now() + HOUR);
    let uris =
        |uris: &[&str]| Profile { uris: uris.iter().map(ToString::to_string).collect(), ..good.clone() };
    let usages = |key_usages: &[KeyUsage]| Profile { key_usages: key_usages.to_vec(), ..good.clone() };
    use KeyUsage::*;
    use Reason::*;
    vec![
        (
            "expired",
            Profile { not_before: past - HOUR, not_after: past, ..good.clone() },
            Expired,
            "expired at",
        ),
        (
            "early",
            Profile { not_before: future, not_after: future + HOUR, ..good.clone() },
            NotYetValid,
            "compare the clocks",
        ),
        (
            "elsewhere",
            uris(&["spiffe://b.example/a"]),
            UntrustedRoot,
            "no roots are known for trust domain b.example",
        ),
        (
            "two names",
            uris(&[SERVER, "spiffe://cluster.local/admin"]),
            BadCertificate,
            "more than one URI name",
        ),
        ("two odd names", uris(&["https://a.example/", SERVER]), BadCertificate, "more than one URI name"),
        ("no name", uris(&[]), BadCertificate, "no URI name"),
        ("web name", uris(&["https://a.example/"]), BadCertificate, "no SPIFFE id"),
        ("escaped name", uris(&["spiffe://cluster.local/ns/a/../b"]), BadCertificate, "no SPIFFE id"),
        ("domain", uris(&["spiffe://cluster.local"]), BadCertificate, "not a workload"),
        ("authority", Profile { ca: true, ..good.clone() }, BadCertificate, "is a CA certificate"),
        ("signs", usages(&[DigitalSignature, CertificateSign]), BadCertificate, "lets a leaf sign"),
        ("revokes", usages(&[DigitalSignature, CrlSign]), BadCertificate, "lets a leaf sign"),
        ("decrypts", usages(&[KeyEncipherment]), BadCertificate, "lacks digitalSignature"),
        ("any use", usages(&[]), BadCertificate, "has no key usage"),
    ]
}

#[tokio::test]
async fn a_client_without_proof_is_refused_for_its_reason() {
    let root = authority("cluster.local");
    for (name, profile, reason, detail) in faulty() {
        let client = identity(&root, &profile, &[("cluster.local", &root)]);
        let (accepted, connected) = between(member(&root, SERVER), client).await;
        println!("{name}");
        assert_refused(&accepted, Stage::Terminate, reason, detail);
        drop(accepted);
        // The client's handshake is over by then: it learns by its first read.
        let error = connected.unwrap().stream.read_u8().await.unwrap_err();
        let refused = refused_by_server(&error).expect("an alert about the certificate");
        assert_eq!((refused.stage, refused.reason), (Stage::Connect, Reason::TlsFailed));
    }
}

#[tokio::test]
async fn a_server_without_proof_is_refused_for_its_reason() {
    let root = authority("cluster.local");
    for (name, profile, reason, detail) in faulty() {
        let server = identity(&root, &profile, &[("cluster.local", &root)]);
        let (accepted, connected) = between(server, member(&root, CLIENT)).await;
        println!("{name}");
        assert_refused(&connected, Stage::Connect, reason, detail);
        assert_refused(
            &accepted,
            Stage::Terminate,
            Reason::HandshakeFailed,
            "refused this proxy's certificate",
        );
    }
}

#[tokio::test]
async fn a_certificate_for_one_side_does_not_serve_on_the_other() {
    let root = authority("cluster.local");
    let only = |uri, purpose| {
        let profile = Profile { purposes: vec![purpose], ..Profile::workload(uri, HOUR) };
        identity(&root, &profile, &[("cluster.local", &root)])
    };
    let (accepted, _) = between(only(SERVER, Purpose::Server), only(CLIENT, Purpose::Server)).await;
    assert_refused(&accepted, Stage::Terminate, Reason::BadCertificate, "extended key usage");
    let (_, connected) = between(only(SERVER, Purpose::Client), only(CLIENT, Purpose::Client)).await;
    assert_refused(&connected, Stage::Connect, Reason::BadCertificate, "extended key usage");
    let (accepted, connected) = between(only(SERVER, Purpose::Server), only(CLIENT, Purpose::Client)).await;
    accepted.unwrap();
    connected.unwrap();
}

#[tokio::test]
async fn a_root_of_the_same_name_is_not_the_root() {
    let (root, forger) = (authority("cluster.local"), authority("cluster.local"));
    let forged = |uri| identity(&forger, &Profile::workload(uri, HOUR), &[("cluster.local", &root)]);
    let (accepted, _) = between(member(&root, SERVER), forged(CLIENT)).await;
    assert_refused(
        &accepted,
        Stage::Terminate,
        Reason::UntrustedRoot,
        "no root of trust domain cluster.local",
    );
    let (_, connected) = between(forged(SERVER), member(&root, CLIENT)).await;
    assert_refused(
        &connected,
        Stage::Connect,
        Reason::UntrustedRoot,
        "no root of trust domain cluster.local",
    );
}

#[tokio::test]
async fn a_federated_root_vouches_for_its_own_domain_only() {
    let (root, partner) = (authority("cluster.local"), authority("partner.example"));
    let roots = [("cluster.local", &root), ("partner.example", &partner)];
    let server = || identity(&root, &Profile::workload(SERVER, HOUR), &roots);
    let client = |uri| identity(&partner, &Profile::workload(uri, HOUR), &roots);

    let (accepted, _) = between(server(), client("spiffe://partner.example/billing")).await;
    assert_eq!(accepted.unwrap().peer.identity.unwrap().trust_domain(), "partner.example");
    let (accepted, _) = between(server(), client(CLIENT)).await;
    assert_refused(
        &accepted,
        Stage::Terminate,
        Reason::UntrustedRoot,
        "no root of trust domain cluster.local",
    );
}

#[tokio::test]
async fn a_server_with_another_identity_learns_nothing_of_the_client() {
    let root = authority("cluster.local");
    let other = "spiffe://cluster.local/ns/bookinfo/sa/details";
    let (accepted, connected) = between(member(&root, other), member(&root, CLIENT)).await;
    assert_refused(
        &connected,
        Stage::Connect,
        Reason::IdentityMismatch,
        &format!("expected {SERVER}; found {other}"),
    );
    // Had the client's certificate come, there would be a verdict on it.
    assert_refused(&accepted, Stage::Terminate, Reason::HandshakeFailed, "BadCertificate");
}

#[tokio::test]
async fn one_of_several_expected_identities_is_enough_and_none_is_not() {
    let root = authority("cluster.local");
    let client = ClientTls::new(Some(member(&root, CLIENT)));
    let server = ServerTls::mesh(member(&root, SERVER));
    let dial = async |client: &ClientTls, expected: &[Arc<str>]| {
        let (near, far) = duplex(64 * 1024);
        let dialled = client.connect_mesh(near, expected, HopAlpn::Tcp, None);
        tokio::join!(server.accept(far, DEADLINE), dialled).1
    };
    let either = ["spiffe://cluster.local/x".into(), SERVER.into()];
    assert_eq!(dial(&client, &either).await.unwrap().evidence.sni, None);
    assert_refused(
        &dial(&client, &[]).await,
        Stage::Connect,
        Reason::MtlsUnavailable,
        "no identity is known",
    );
    let stranger = ClientTls::new(None);
    assert_refused(&dial(&stranger, &either).await, Stage::Connect, Reason::MtlsUnavailable, "--identity");
}

/// Takes any server, as an attacker's or a careless client would, under a given version.
fn careless(version: &'static rustls::SupportedProtocolVersion, own: Option<&Identity>) -> ClientConfig {
    #[derive(Debug)]
    struct Anyone;
    impl rustls::client::danger::ServerCertVerifier for Anyone {
        fn verify_server_cert(
            &self,
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &[rustls_pki_types::CertificateDer<'_>],
            _: &rustls_pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls_pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            verify::tls12_signature(message, certificate, signature)
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            verify::tls13_signature(message, certificate, signature)
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            verify::signature_schemes()
        }
    }
    let builder = ClientConfig::builder_with_provider(fips::provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let certified = Arc::clone(&own.current().certified);
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                (*certified).clone(),
            )))
        }
    }
}

#[tokio::test]
async fn a_client_without_certificate_has_no_identity() {
    let root = authority("cluster.local");
    let server = ServerTls::mesh(member(&root, SERVER));
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let (near, far) = duplex(64 * 1024);
        let client = TlsConnector::from(Arc::new(careless(version, None)));
        let dialled = client.connect("ratings".try_into().unwrap(), near);
        let (accepted, _) = tokio::join!(server.accept(far, DEADLINE), dialled);
        assert_refused(&accepted, Stage::Terminate, Reason::NoIdentity, "has no certificate");
    }
}

#[tokio::test]
async fn tls_1_2_is_taken_and_told_apart() {
    let root = authority("cluster.local");
    let (server, client) = (ServerTls::mesh(member(&root, SERVER)), member(&root, CLIENT));
    let (near, far) = duplex(64 * 1024);
    let client = TlsConnector::from(Arc::new(careless(&rustls::version::TLS12, Some(&client))));
    let dialled = client.connect("ratings".try_into().unwrap(), near);
    let (accepted, dialled) = tokio::join!(server.accept(far, DEADLINE), dialled);
    dialled.unwrap();
    let accepted = accepted.unwrap();
    assert_eq!((accepted.alpn, accepted.mesh), (Alpn::None, false));
    let tls = accepted.peer.evidence;
    assert_eq!((tls.version, tls.suite), ("1.2", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"));
    let group = if fips::install().fips { "secp256r1" } else { "x25519" };
    assert_eq!((tls.group, tls.sni.as_deref()), (group, Some("ratings")));
}

#[tokio::test]
async fn no_session_is_ever_resumed() {
    let root = authority("cluster.local");
    let (server, client) = (ServerTls::mesh(member(&root, SERVER)), member(&root, CLIENT));
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let connector = TlsConnector::from(Arc::new(careless(version, Some(&client))));
        for _ in 0..3 {
            let (near, far) = duplex(64 * 1024);
            let dialled = connector.connect("ratings".try_into().unwrap(), near);
            let (accepted, dialled) = tokio::join!(server.accept(far, DEADLINE), dialled);
            let (mut accepted, mut dialled) = (accepted.unwrap(), dialled.unwrap());
            // Tickets would come with the first bytes.
            accepted.stream.write_all(b"x").await.unwrap();
            accepted.stream.flush().await.unwrap();
            dialled.read_u8().await.unwrap();
            let (_, connection) = dialled.get_ref();
            assert_ne!(connection.handshake_kind(), Some(HandshakeKind::Resumed));
            assert_eq!(connection.tls13_tickets_received(), 0);
        }
    }
}

#[tokio::test]
async fn what_is_not_tls_is_said_to_be_that() {
    let root = authority("cluster.local");
    let server = ServerTls::mesh(member(&root, SERVER));
    let (mut near, far) = duplex(64 * 1024);
    near.write_all(b"GET / HTTP/1.1\r\nHost: ratings\r\n\r\n").await.unwrap();
    let accepted = server.accept(far, DEADLINE).await;
    assert_refused(&accepted, Stage::Terminate, Reason::HandshakeFailed, "plaintext sent to a TLS port?");

    let client = ClientTls::new(Some(member(&root, CLIENT)));
    let (near, mut far) = duplex(64 * 1024);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let dialled = client.connect_mesh(near, &[SERVER.into()], HopAlpn::Http1, None).await;
    assert_refused(&dialled, Stage::Connect, Reason::TlsFailed, "what came is not TLS");
}

#[tokio::test]
async fn a_client_that_leaves_midway_is_a_failed_handshake() {
    let root = authority("cluster.local");
    let server = ServerTls::mesh(member(&root, SERVER));
    for sent in [&b""[..], b"\x16\x03\x01"] {
        let (mut near, far) = duplex(64 * 1024);
        near.write_all(sent).await.unwrap();
        drop(near);
        let accepted = server.accept(far, DEADLINE).await;
        assert_refused(&accepted, Stage::Terminate, Reason::HandshakeFailed, "closed the connection");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stalls_meets_the_deadline() {
    let root = authority("cluster.local");
    let server = ServerTls::mesh(member(&root, SERVER));
    let (mut near, far) = duplex(64 * 1024);
    near.write_all(b"\x16\x03\x01").await.unwrap();
    let started = tokio::time::Instant::now();
    let accepted = server.accept(far, DEADLINE).await;
    assert_refused(&accepted, Stage::Terminate, Reason::HandshakeFailed, "stalled");
    assert_eq!(started.elapsed().as_secs(), DEADLINE.as_secs());
}

#[tokio::test]
async fn renewal_reaches_new_connections_and_spares_old_ones() {
    let (first, second) = (authority("cluster.local"), authority("cluster.local"));
    let both = format!("{}{}", first.certificate_pem(), second.certificate_pem());
    let issue = |root: &Authority, uri| root.issue(&Profile::workload(uri, HOUR)).unwrap();
    let dir = Dir::new();
    dir.write(&issue(&first, SERVER), &both);
    let identity = Identity::load(dir.source(), "cluster.local", None, None).unwrap();
    let server = ServerTls::mesh(Arc::clone(&identity));
    let trusting = [("cluster.local", &first)];
    let old = ClientTls::new(Some(crate::identity::fixture::identity(
        &first,
        &Profile::workload(CLIENT, HOUR),
        &trusting,
    )));
    let (accepted, connected) = shake_hands(&server, &old, SERVER, HopAlpn::Http1).await;
    let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());

    // The server moves to the second root and forgets the first.
    dir.write(&issue(&second, SERVER), second.certificate_pem());
    assert!(identity.reload().unwrap());
    echo(&mut accepted, &mut connected).await;

    let (_, refused) = shake_hands(&server, &old, SERVER, HopAlpn::Http1).await;
    assert_refused(&refused, Stage::Connect, Reason::UntrustedRoot, "no root of trust domain");
    let careless =
        TlsConnector::from(Arc::new(careless(&rustls::version::TLS13, Some(&member(&first, CLIENT)))));
    let (near, far) = duplex(64 * 1024);
    let dialled = careless.connect("ratings".try_into().unwrap(), near);
    let (accepted, _) = tokio::join!(server.accept(far, DEADLINE), dialled);
    assert_refused(&accepted, Stage::Terminate, Reason::UntrustedRoot, "no root of trust domain");

    let new = ClientTls::new(Some(member(&second, CLIENT)));
    let (accepted, connected) = shake_hands(&server, &new, SERVER, HopAlpn::Http1).await;
    accepted.unwrap();
    connected.unwrap();
}

#[tokio::test]
async fn a_verifier_out_of_its_handshake_refuses() {
    let root = authority("cluster.local");
    let identity = member(&root, SERVER);
    let verifier = verify::SpiffeVerifier(Arc::clone(&identity));
    let certified = Arc::clone(&identity.current().certified);
    let now = rustls_pki_types::UnixTime::now();
    use rustls::server::danger::ClientCertVerifier;
    assert!(verifier.verify_client_cert(&certified.cert[0], &[], now).is_err());
}

#[test]
fn an_open_connection_does_not_carry_its_handshake() {
    let root = authority("cluster.local");
    let server = ServerTls::mesh(member(&root, SERVER));
    let client = ClientTls::new(Some(member(&root, CLIENT)));
    let (near, far) = duplex(1);
    let expected = [SERVER.into()];
    let dial = client.connect_mesh(near, &expected, HopAlpn::Http1, None);
    let sizes = [size_of_val(&server.accept(far, DEADLINE)), size_of_val(&dial)];
    assert!(sizes.iter().all(|&size| size <= 640), "{sizes:?}");
}

/// A server outside of the mesh.
fn website(root: &Authority, profile: &Profile) -> ServerConfig {
    let own = identity(root, profile, &[]);
    let certified = Arc::clone(&own.current().certified);
    ServerConfig::builder_with_provider(fips::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from((*certified).clone())))
}

#[tokio::test]
async fn a_server_outside_of_the_mesh_proves_a_name() {
    let (root, dir) = (authority("web.example"), Dir::new());
    dir.put("roots.pem", root.certificate_pem());
    let ca_file = dir.path().join("roots.pem").to_str().unwrap().to_owned();
    let named = |sni: &str, names: &[&str]| {
        Arc::new(TlsOrigination {
            sni: Some(sni.to_owned()),
            names: names.iter().map(|name| ServerId::of_any_kind(name)).collect(),
            roots: vec![Pem::File(ca_file.clone())],
            client: None,
        })
    };
    let mut site = website(&root, &Profile::server(&["*.web.example"], HOUR));
    site.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (site, client) = (TlsAcceptor::from(Arc::new(site)), ClientTls::new(None));
    let dial = async |tls: &Arc<TlsOrigination>| {
        let (near, far) = duplex(64 * 1024);
        tokio::join!(site.accept(far), client.connect_tls(near, tls, HopAlpn::Http2)).1
    };

    let connected = dial(&named("api.web.example", &["api.web.example"])).await.unwrap();
    assert_eq!((connected.identity, connected.alpn), (None, Some(HopAlpn::Http2)));
    assert_eq!(connected.name.as_deref(), Some("api.web.example"));
    assert!(!connected.certificate.unwrap().serial.is_empty());
    assert_eq!(connected.evidence.sni.as_deref(), Some("api.web.example"));
    let other = dial(&named("front.example", &["other.example", "a.web.example"])).await.unwrap();
    assert_eq!(other.name.as_deref(), Some("a.web.example"), "the one of several that it proved");

    let refused =
        |outcome: &Dialled, reason, detail: &str| assert_refused(outcome, Stage::Connect, reason, detail);
    let wrong = dial(&named("api.example", &["api.example"])).await;
    refused(&wrong, Reason::IdentityMismatch, "expected api.example; the certificate has *.web.example");
    let by_uri = dial(&named("a.web.example", &["spiffe://a.web.example/x"])).await;
    refused(&by_uri, Reason::IdentityMismatch, "expected spiffe://a.web.example/x");
    let nowhere = TlsOrigination {
        roots: vec![Pem::File("/nowhere".into())],
        ..TlsOrigination::clone(&named("a.web.example", &["a.web.example"]))
    };
    refused(&dial(&Arc::new(nowhere)).await, Reason::TlsFailed, "/nowhere");
    let inline = |text: &str| {
        let roots = vec![Pem::Object(PemObject::new("ConfigMap a/b", text))];
        Arc::new(TlsOrigination {
            roots,
            ..TlsOrigination::clone(&named("a.web.example", &["a.web.example"]))
        })
    };
    dial(&inline(root.certificate_pem())).await.unwrap();
    refused(&dial(&inline("no PEM")).await, Reason::TlsFailed, "ConfigMap a/b: no certificate in it");
    let other = authority("web.example");
    refused(&dial(&inline(other.certificate_pem())).await, Reason::UntrustedRoot, "ConfigMap a/b signed it");
    dir.put("roots.pem", other.certificate_pem());
    let untrusted = dial(&named("b.web.example", &["b.web.example"])).await;
    refused(&untrusted, Reason::UntrustedRoot, "roots.pem signed it");
}

#[tokio::test]
async fn a_client_certificate_is_presented_where_one_is_ordered() {
    let (root, dir) = (authority("cluster.local"), Dir::new());
    let server = ServerTls::mesh(member(&root, SERVER));
    dir.write(&root.issue(&Profile::workload(CLIENT, HOUR)).unwrap(), root.certificate_pem());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let tls = TlsOrigination {
        sni: None,
        names: vec![ServerId::Uri(SERVER.to_owned())],
        roots: vec![Pem::File(path("ca.crt"))],
        client: Some((Pem::File(path("tls.crt")), Pem::File(path("tls.key")))),
    };
    let tls = Arc::new(tls);
    let (near, far) = duplex(64 * 1024);
    let client = ClientTls::new(None);
    let dialled = client.connect_tls(near, &tls, HopAlpn::Http1);
    let (accepted, dialled) = tokio::join!(server.accept(far, DEADLINE), dialled);
    dialled.unwrap();
    let accepted = accepted.unwrap();
    assert_eq!(accepted.peer.identity.unwrap().as_str(), CLIENT);
    assert_eq!((accepted.alpn, accepted.mesh), (Alpn::Http1, false));
}
