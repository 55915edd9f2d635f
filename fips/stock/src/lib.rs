//! Pairs of connections in memory, each side with a provider of its choice.

#[path = "../../src/provider/tests/pair.rs"]
mod pair;

use std::io::{Read, Write};
use std::sync::Arc;

use fips::ca::{self, KeyType};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{ClientConfig, Connection, Error, NamedGroup, ServerConfig, SupportedCipherSuite};

pub use pair::KEY_TYPES as KINDS;

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
        let mut client = pair::client_config(client, kind);
        client.resumption = Resumption::disabled();
        let mut server = pair::server_config(server, kind);
        server.send_tls13_tickets = 0;
        Self { client: client.into(), server: server.into() }
    }

    /// A finished handshake.
    pub fn shake(&self) -> Result<(Connection, Connection), Error> {
        let (mut client, mut server) = pair::connect(self.client.clone(), self.server.clone());
        pair::shake(&mut client, &mut server)?;
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
        pair::take(to, &pair::flight(from)).unwrap();
        while let Ok(count @ 1..) = to.reader().read(&mut into[received..]) {
            received += count;
        }
    }
}
