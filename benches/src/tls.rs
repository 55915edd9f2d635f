//! Mutual TLS of the bare forwarder and of the harness's own clients: chain and SPIFFE id, nothing more.

use std::sync::Arc;

use anyhow::Result;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::load::Protocol;
use crate::pki::Identity;

/// Terminates TLS as `identity`, and agrees on `protocol` only. `mutual`: clients must prove that they are of the mesh; else
/// they get a ticket if there are to be `tickets`.
pub fn server(
    identity: &Identity,
    protocol: Protocol,
    mutual: bool,
    tickets: bool,
) -> Result<Arc<ServerConfig>> {
    let provider = fips::provider();
    let roots = Arc::new(roots(identity)?);
    let clients = match mutual {
        true => WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?,
        false => WebPkiClientVerifier::no_client_auth(),
    };
    let (chain, key) = own_certificate(identity)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = alpn(protocol);
    config.send_tls13_tickets = 0;
    if tickets {
        config.ticketer = fips::tickets()?;
        config.send_tls13_tickets = 1;
    }
    Ok(Arc::new(config))
}

/// Starts mutual TLS as `identity`, with a server that must be `expected`.
pub fn client(identity: &Identity, expected: &str, protocol: Protocol) -> Result<Arc<ClientConfig>> {
    client_by(fips::provider(), identity, expected, protocol).map(Arc::new)
}

/// The same by a provider that may have less.
pub fn client_by(
    provider: Arc<CryptoProvider>,
    identity: &Identity,
    expected: &str,
    protocol: Protocol,
) -> Result<ClientConfig> {
    let verifier = Arc::new(ExactSpiffeId {
        expected: expected.to_owned(),
        roots: roots(identity)?,
        algorithms: provider.signature_verification_algorithms,
    });
    let (chain, key) = own_certificate(identity)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = alpn(protocol);
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// What mesh peers offer for HTTP, the mesh's own word first.
fn alpn(protocol: Protocol) -> Vec<Vec<u8>> {
    match protocol {
        Protocol::Http1 => vec![b"istio-http/1.1".to_vec(), b"http/1.1".to_vec()],
        Protocol::Http2 => vec![b"istio-h2".to_vec(), b"h2".to_vec()],
    }
}

fn roots(identity: &Identity) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(identity.roots())? {
        roots.add(root?)?;
    }
    Ok(roots)
}

fn own_certificate(identity: &Identity) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(identity.certificate())?.collect::<Result<Vec<_>, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_file(identity.key())?))
}

/// Trusts a server by its chain and its one SPIFFE id; host names play no part in a mesh.
#[derive(Debug)]
struct ExactSpiffeId {
    expected: String,
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ExactSpiffeId {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        // The harness issued every certificate itself: finding the id's bytes is proof enough here, and keeps an
        // ASN.1 parser out of the floor that others are measured against.
        let id = self.expected.as_bytes();
        if end_entity.windows(id.len()).any(|window| window == id) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
