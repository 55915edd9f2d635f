//! The SPIFFE verifier of both sides, and how a handshake learns what it verified.
//!
//! A configuration serves all connections, but what a client expects and what a verification found belong to one handshake.
//! Both stand in [`Handshake`], which is in scope while that handshake is polled and at no other time. Outside of a scope
//! the verifier refuses.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::decision::Reason;
use crate::identity::svid::{Refusal, Usage, Verified};
use crate::identity::{Identity, SpiffeId, Trust};

tokio::task_local! {
    static HANDSHAKE: Rc<Handshake>;
}

/// One handshake: what is expected, and what came out.
#[derive(Default)]
pub(super) struct Handshake {
    /// Ids of which a server must prove one.
    expected: Box<[Arc<str>]>,
    verdict: RefCell<Option<Verdict>>,
}

/// What a verification found.
pub(super) type Verdict = Result<Arc<Verified>, Refusal>;

impl Handshake {
    /// A client's, that takes a server with one of these ids and no other.
    pub(super) fn expecting(ids: &[Arc<str>]) -> Self {
        Self { expected: ids.into(), verdict: RefCell::default() }
    }

    /// Runs `handshake`; gives its outcome, and the verdict on the peer's certificate, if there was one.
    pub(super) async fn run<F: Future>(self, handshake: F) -> (F::Output, Option<Verdict>) {
        let this = Rc::new(self);
        let outcome = HANDSHAKE.scope(Rc::clone(&this), handshake).await;
        let verdict = this.verdict.take();
        (outcome, verdict)
    }

    /// Keeps the verdict and answers rustls, which tells the peer by its alert.
    fn decide(&self, verdict: Verdict) -> Result<(), Error> {
        let answer = verdict.as_ref().map(drop).map_err(|refusal| refusal.alert.clone().into());
        self.verdict.replace(Some(verdict));
        answer
    }

    fn expect(&self, verified: Arc<Verified>, trust: &Trust) -> Verdict {
        if self.expected.iter().any(|id| trust.is(id, &verified.id)) {
            return Ok(verified);
        }
        Err(Refusal {
            reason: Reason::IdentityMismatch,
            detail: mismatch(&self.expected, &verified.id).into(),
            alert: CertificateError::NotValidForName,
        })
    }
}

fn mismatch(expected: &[Arc<str>], found: &SpiffeId) -> String {
    format!("expected {}; found {found}", expected.join(" or "))
}

/// Takes certificates by the roots that are in force when they come.
pub(super) struct SpiffeVerifier(pub(super) Arc<Identity>);

impl SpiffeVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), Error> {
        let judge = |handshake: &Rc<Handshake>| {
            let trust = Arc::clone(&self.0.current().trust);
            let verdict = trust.verify(leaf, intermediates, usage, now);
            handshake.decide(match usage {
                Usage::Server => verdict.and_then(|verified| handshake.expect(verified, &trust)),
                Usage::Client => verdict,
            })
        };
        let outside = || Error::General("verification outside of a handshake".into());
        HANDSHAKE.try_with(judge).unwrap_or_else(|_| Err(outside()))
    }
}

impl fmt::Debug for SpiffeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SpiffeVerifier")
    }
}

impl ServerCertVerifier for SpiffeVerifier {
    /// The name asked for plays no part: identities are SPIFFE ids.
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, Usage::Server, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature_schemes()
    }
}

impl ClientCertVerifier for SpiffeVerifier {
    /// None: the roots change while a configuration lives.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, Usage::Client, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature_schemes()
    }
}

pub(super) fn tls12_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = &fips::provider().signature_verification_algorithms;
    verify_tls12_signature(message, certificate, signature, algorithms)
}

pub(super) fn tls13_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = &fips::provider().signature_verification_algorithms;
    verify_tls13_signature(message, certificate, signature, algorithms)
}

pub(super) fn signature_schemes() -> Vec<SignatureScheme> {
    fips::provider().signature_verification_algorithms.supported_schemes()
}
