//! Pairs of connections in memory, each side with a provider of its choice.

use std::io::{Read, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fips::ca::{Authority, Issued, KeyType, Profile};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, Connection, Error, NamedGroup, RootCertStore, ServerConfig,
    ServerConnection, SupportedCipherSuite,
};

/// The kinds of certificate that both know.
pub const KINDS: [KeyType; 4] = [KeyType::P256, KeyType::P384, KeyType::Rsa2048, KeyType::Ed25519];

/// Ours.
pub fn own() -> CryptoProvider {
    (*fips::provider()).clone()
}

/// The one that rustls carries, with the same suites and groups.
pub fn stock() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ],
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
            kx_group::SECP256R1MLKEM768,
        ],
        ..rustls::crypto::aws_lc_rs::default_provider()
    }
}

/// A provider with one suite and these groups of its own, in this order.
pub fn only(provider: &CryptoProvider, suite: SupportedCipherSuite, groups: &[NamedGroup]) -> CryptoProvider {
    let of_its_own = |name: &NamedGroup| -> &'static dyn SupportedKxGroup {
        *provider.kx_groups.iter().find(|group| group.name() == *name).expect("both have it")
    };
    CryptoProvider {
        cipher_suites: provider
            .cipher_suites
            .iter()
            .filter(|own| own.suite() == suite.suite())
            .copied()
            .collect(),
        kx_groups: groups.iter().map(of_its_own).collect(),
        ..provider.clone()
    }
}

/// Both ends of a mutual handshake, made once and used for many.
pub struct Ends {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Ends {
    /// With certificates of a kind.
    pub fn new(client: &CryptoProvider, server: &CryptoProvider, kind: KeyType) -> Self {
        let pki = Pki::of(kind);
        let (client, server) = (Arc::new(client.clone()), Arc::new(server.clone()));
        let verifier =
            WebPkiServerVerifier::builder_with_provider(pki.roots.clone(), client.clone()).build().unwrap();
        let mut client = ClientConfig::builder_with_provider(client)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(pki.chain(), pki.key())
            .unwrap();
        client.resumption = rustls::client::Resumption::disabled();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(pki.roots.clone(), server.clone()).build().unwrap();
        let mut server = ServerConfig::builder_with_provider(server)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(pki.chain(), pki.key())
            .unwrap();
        server.send_tls13_tickets = 0;
        Self { client: client.into(), server: server.into() }
    }

    /// A finished handshake.
    pub fn shake(&self) -> Result<(Connection, Connection), Error> {
        let name = "server.example".try_into().unwrap();
        let mut client: Connection = ClientConnection::new(self.client.clone(), name)?.into();
        let mut server: Connection = ServerConnection::new(self.server.clone())?.into();
        while client.is_handshaking() || server.is_handshaking() {
            carry(&mut client, &mut server)?;
            carry(&mut server, &mut client)?;
        }
        Ok((client, server))
    }
}

/// Sends data and reads it at the other end.
pub fn send(from: &mut Connection, to: &mut Connection, data: &[u8], into: &mut [u8]) {
    let (mut sent, mut received) = (0, 0);
    while received < data.len() {
        // A record at a time: what has arrived and isn't read yet has a bound.
        let end = data.len().min(sent + 16_384);
        sent += from.writer().write(&data[sent..end]).unwrap();
        carry(from, to).unwrap();
        while let Ok(count @ 1..) = to.reader().read(&mut into[received..]) {
            received += count;
        }
    }
}

fn carry(from: &mut Connection, to: &mut Connection) -> Result<(), Error> {
    let mut flight = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut flight).unwrap();
    }
    let mut flight = &flight[..];
    while !flight.is_empty() {
        to.read_tls(&mut flight).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

struct Pki {
    roots: Arc<RootCertStore>,
    leaf: Issued,
}

impl Pki {
    fn of(kind: KeyType) -> &'static Self {
        static PKIS: [OnceLock<Pki>; 4] = [const { OnceLock::new() }; 4];
        let index = KINDS.iter().position(|&of| of == kind).unwrap();
        PKIS[index].get_or_init(|| {
            let hour = Duration::from_secs(3600);
            let authority = Authority::generate_with(kind, "cluster.local", hour).unwrap();
            let profile = Profile { key_type: kind, ..Profile::server(&["server.example"], hour) };
            let leaf = authority.issue(&profile).unwrap();
            let mut roots = RootCertStore::empty();
            roots
                .add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap())
                .unwrap();
            Self { roots: roots.into(), leaf }
        })
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(self.leaf.certificate_pem.as_bytes()).unwrap()]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.leaf.key_pem.as_bytes()).unwrap()
    }
}
