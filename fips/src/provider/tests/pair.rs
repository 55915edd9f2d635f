//! Both ends of a mutual handshake in memory, and what passes between them. `fips/stock` has this file by its path.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, Connection, Error, RootCertStore, ServerConfig, ServerConnection,
};

use super::ca::{Authority, Issued, KeyType, Profile};

/// The kinds of certificate that there are.
pub const KEY_TYPES: [KeyType; 4] = [KeyType::P256, KeyType::P384, KeyType::Rsa2048, KeyType::Ed25519];

/// A client that has a certificate of this kind, and believes a server of it.
pub fn client_config(provider: &CryptoProvider, key_type: KeyType) -> ClientConfig {
    let provider = Arc::new(provider.clone());
    let pki = Pki::of(key_type);
    let verifier =
        WebPkiServerVerifier::builder_with_provider(pki.roots.clone(), provider.clone()).build().unwrap();
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(pki.chain(), pki.key())
        .unwrap()
}

/// A server that has a certificate of this kind, and believes a client of it.
pub fn server_config(provider: &CryptoProvider, key_type: KeyType) -> ServerConfig {
    let provider = Arc::new(provider.clone());
    let pki = Pki::of(key_type);
    let verifier =
        WebPkiClientVerifier::builder_with_provider(pki.roots.clone(), provider.clone()).build().unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(pki.chain(), pki.key())
        .unwrap()
}

/// A connection between them that has not begun.
pub fn connect(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> (Connection, Connection) {
    let name = "server.example".try_into().unwrap();
    let client = ClientConnection::new(client, name).unwrap();
    (client.into(), ServerConnection::new(server).unwrap().into())
}

/// Passes flights between both until neither has more to say.
pub fn shake(client: &mut Connection, server: &mut Connection) -> Result<(), Error> {
    shake_changing(client, server, |_, _| ())
}

/// The same; each flight, by its number, may be changed on its way.
pub fn shake_changing(
    client: &mut Connection,
    server: &mut Connection,
    mut change: impl FnMut(usize, &mut [u8]),
) -> Result<(), Error> {
    for number in 0.. {
        let (from, to) =
            if number % 2 == 0 { (&mut *client, &mut *server) } else { (&mut *server, &mut *client) };
        let mut flight = flight(from);
        if flight.is_empty() && number > 0 {
            break;
        }
        change(number, &mut flight);
        take(to, &flight)?;
    }
    // A record that claims more than ever came leaves both waiting.
    if client.is_handshaking() || server.is_handshaking() {
        return Err(Error::HandshakeNotComplete);
    }
    Ok(())
}

/// What one end has to send.
pub fn flight(from: &mut Connection) -> Vec<u8> {
    let mut flight = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut flight).unwrap();
    }
    flight
}

/// Gives it to the other.
pub fn take(to: &mut Connection, mut flight: &[u8]) -> Result<(), Error> {
    while !flight.is_empty() {
        to.read_tls(&mut flight).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

/// A root and a leaf with keys of one type. Made once: RSA takes its time.
struct Pki {
    roots: Arc<RootCertStore>,
    leaf: Issued,
}

impl Pki {
    fn of(key_type: KeyType) -> &'static Self {
        static PKIS: [OnceLock<Pki>; 4] = [const { OnceLock::new() }; 4];
        let index = KEY_TYPES.iter().position(|&of| of == key_type).unwrap();
        PKIS[index].get_or_init(|| {
            let hour = Duration::from_secs(3600);
            let authority = Authority::generate_with(key_type, "cluster.local", hour).unwrap();
            let profile = Profile::server(&["server.example"], hour);
            let leaf = authority.issue(&Profile { key_type, ..profile }).unwrap();
            let mut roots = RootCertStore::empty();
            roots
                .add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap())
                .unwrap();
            Self { roots: Arc::new(roots), leaf }
        })
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(self.leaf.certificate_pem.as_bytes()).unwrap()]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.leaf.key_pem.as_bytes()).unwrap()
    }
}
