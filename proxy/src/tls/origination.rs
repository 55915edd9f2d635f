//! TLS towards servers outside of the mesh: which names a server must prove, under which roots, and what we present.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use control_client::snapshot::{Pem, ServerId, TlsOrigination};
use fips::NotApproved;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::HopAlpn;
use super::verify::{signature_schemes, tls12_signature, tls13_signature};
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::identity::svid::{Refusal, hex};
use crate::telemetry::CertificateEvidence;

/// How long a configuration is used before its files are read again.
const REREAD_INTERVAL: Duration = Duration::from_secs(30);
/// Configurations kept. There are as many as DestinationRules that ask for TLS; past this all are read anew.
const MAX_KEPT: usize = 1024;

/// The configurations in use, by what they were made from.
#[derive(Default)]
pub(super) struct Originations(Mutex<HashMap<Key, Kept>>);

type Key = (Arc<TlsOrigination>, HopAlpn);

struct Kept {
    config: Arc<ClientConfig>,
    read: Instant,
}

impl Originations {
    /// The configuration for a dial. Its files are read off the worker, once in a while; if they can't be, what was read
    /// before stays in use.
    pub(super) async fn config(
        &self,
        tls: &Arc<TlsOrigination>,
        alpn: HopAlpn,
    ) -> Result<Arc<ClientConfig>, Reject> {
        let key = (Arc::clone(tls), alpn);
        let before = match self.kept(&key) {
            Some((config, age)) if age < REREAD_INTERVAL || !reads_files(tls) => return Ok(config),
            before => before.map(|(config, _)| config),
        };
        let again = key.clone();
        let read = tokio::task::spawn_blocking(move || build(&again.0, again.1)).await;
        let config = match (read.unwrap_or_else(|error| Err(error.to_string().into())), before) {
            (Ok(config), _) => Arc::new(config),
            (Err(why), Some(before)) => {
                tracing::warn!(%why, "files for TLS to a backend not reread; the old ones stay in use");
                before
            }
            (Err(why), None) => return Err(why.into()),
        };
        self.keep(key, Arc::clone(&config));
        Ok(config)
    }

    fn kept(&self, key: &Key) -> Option<(Arc<ClientConfig>, Duration)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(key).map(|kept| (Arc::clone(&kept.config), kept.read.elapsed()))
    }

    fn keep(&self, key: Key, config: Arc<ClientConfig>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_KEPT && !all.contains_key(&key) {
            all.clear();
        }
        all.insert(key, Kept { config, read: Instant::now() });
    }
}

/// What an object holds changes with the configuration, what a file holds without.
fn reads_files(tls: &TlsOrigination) -> bool {
    let client = tls.client.iter().flat_map(|(certificate, key)| [certificate, key]);
    tls.roots.iter().chain(client).any(|pem| matches!(pem, Pem::File(_)))
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
enum NoConfig {
    /// It can't be read or put together.
    #[error("{0}")]
    Unusable(String),
    /// It is not approved, and must be.
    #[error("{0}: {1}")]
    NotApproved(String, NotApproved),
}

impl From<String> for NoConfig {
    fn from(why: String) -> Self {
        Self::Unusable(why)
    }
}

impl From<NoConfig> for Reject {
    fn from(why: NoConfig) -> Self {
        let reason = match why {
            NoConfig::Unusable(_) => Reason::TlsFailed,
            NoConfig::NotApproved(..) => Reason::NotFips,
        };
        Self::because(Stage::Connect, reason, why)
    }
}

fn build(tls: &TlsOrigination, alpn: HopAlpn) -> Result<ClientConfig, NoConfig> {
    let builder = ClientConfig::builder_with_provider(fips::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NameVerifier::read(tls)?));
    let mut config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            for each in &chain {
                fips::approve::certificate(each)
                    .map_err(|why| NoConfig::NotApproved(certificate.name().to_owned(), why))?;
            }
            builder
                .with_client_auth_cert(chain, private_key(key)?)
                .map_err(|error| format!("{} with {}: {error}", certificate.name(), key.name()))?
        }
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.plain();
    let name = "TLS to servers outside of the mesh";
    fips::client(name, config).map_err(|why| NoConfig::NotApproved(name.to_owned(), why))
}

fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = match pem {
        Pem::File(path) => CertificateDer::pem_file_iter(path).and_then(Iterator::collect),
        Pem::Object(object) => CertificateDer::pem_slice_iter(object.text().as_bytes()).collect(),
    };
    match read.map_err(|error: rustls_pki_types::pem::Error| error.to_string()) {
        Ok(all) if Vec::is_empty(&all) => Err(format!("{}: no certificate in it", pem.name())),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("{}: {error}", pem.name())),
    }
}

fn private_key(pem: &Pem) -> Result<PrivateKeyDer<'static>, String> {
    let read = match pem {
        Pem::File(path) => PrivateKeyDer::from_pem_file(path),
        Pem::Object(object) => PrivateKeyDer::from_pem_slice(object.text().as_bytes()),
    };
    read.map_err(|error| format!("{}: {error}", pem.name()))
}

/// The roots in `pem`. What can't be read of many, as the system's are, or is not approved where it must be, is left out: that
/// trusts less, not more.
fn anchors(pem: &Pem) -> Result<Vec<TrustAnchor<'static>>, NoConfig> {
    let mut failed = None;
    let mut anchors = Vec::new();
    for root in certificates(pem)? {
        let approved = fips::approve::root(&root);
        match (webpki::anchor_from_trusted_cert(&root), approved) {
            (Ok(anchor), Ok(())) => anchors.push(anchor.to_owned()),
            (Err(error), _) => failed = Some(NoConfig::Unusable(format!("{}: {error}", pem.name()))),
            (_, Err(why)) => failed = Some(NoConfig::NotApproved(pem.name().to_owned(), why)),
        }
    }
    match failed {
        Some(failed) if anchors.is_empty() => Err(failed),
        _ => Ok(anchors),
    }
}

/// What a server proved: the name that was expected of it, and by which certificate.
pub(super) fn proven(
    tls: &TlsOrigination,
    leaf: &CertificateDer<'_>,
) -> Option<(Arc<str>, CertificateEvidence)> {
    let certificate = EndEntityCert::try_from(leaf).ok()?;
    let proves = |id: &&ServerId| Name::read(id).is_ok_and(|name| name.is_of(&certificate));
    let name = tls.names.iter().find(proves)?.as_str();
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    let evidence = CertificateEvidence {
        trust_domain: "".into(),
        serial: (&*hex(parsed.raw_serial())).into(),
        not_after: parsed.validity().not_after.timestamp(),
    };
    Some((name.into(), evidence))
}

/// Takes a server that some root vouches for and that has one of some names.
struct NameVerifier {
    authority: String,
    anchors: Vec<TrustAnchor<'static>>,
    names: Vec<Name>,
}

/// What a server can be known by.
enum Name {
    /// A DNS name, which a wildcard in the certificate may cover, or an address.
    Server(ServerName<'static>),
    /// A URI, to the letter.
    Uri(String),
}

impl NameVerifier {
    fn read(tls: &TlsOrigination) -> Result<Self, NoConfig> {
        let authority = tls.roots.iter().map(Pem::name).collect::<Vec<_>>().join(", ");
        let anchors: Vec<Vec<_>> = tls.roots.iter().map(anchors).collect::<Result<_, _>>()?;
        let names = tls.names.iter().map(Name::read).collect::<Result<_, _>>()?;
        Ok(Self { authority, anchors: anchors.concat(), names })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let certificate = EndEntityCert::try_from(leaf)
            .map_err(|error| Refusal::bad(format_args!("not readable: {error}")))?;
        let algorithms = fips::provider().signature_verification_algorithms.all;
        let usage = KeyUsage::server_auth();
        certificate
            .verify_for_usage(algorithms, &self.anchors, intermediates, now, usage, None, None)
            .map_err(|error| match approved(leaf, intermediates) {
                Err(refusal) => refusal,
                Ok(()) => Refusal::of_chain(WHO, &self.authority, &error),
            })?;
        approved(leaf, &[])?;
        if self.names.iter().any(|name| name.is_of(&certificate)) {
            return Ok(());
        }
        Err(Refusal {
            reason: Reason::IdentityMismatch,
            detail: format!(
                "expected {}; the certificate has {}",
                list(&self.names),
                presented(&certificate)
            )
            .into(),
            alert: CertificateError::NotValidForName,
        })
    }
}

/// Who is refused.
const WHO: &str = "server certificate";

fn approved(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), Refusal> {
    let mut chain = std::iter::once(leaf).chain(intermediates);
    chain
        .try_for_each(|each| fips::approve::certificate(each))
        .map_err(|why| Refusal::not_approved(WHO, &why))
}

impl Name {
    fn read(id: &ServerId) -> Result<Self, String> {
        match id {
            ServerId::Uri(uri) => Ok(Self::Uri(uri.clone())),
            ServerId::Host(name) => ServerName::try_from(name.clone())
                .map(Self::Server)
                .map_err(|_| format!("`{name}` is no name a server can prove")),
        }
    }

    fn is_of(&self, certificate: &EndEntityCert<'_>) -> bool {
        match self {
            Self::Server(name) => certificate.verify_is_valid_for_subject_name(name).is_ok(),
            Self::Uri(uri) => certificate.valid_uri_names().any(|name| name == uri),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(name) => f.write_str(&name.to_str()),
            Self::Uri(uri) => f.write_str(uri),
        }
    }
}

fn list(names: &[Name]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// The first names of a certificate that is not the expected one.
fn presented(certificate: &EndEntityCert<'_>) -> String {
    let names: Vec<_> = certificate.valid_dns_names().chain(certificate.valid_uri_names()).take(4).collect();
    if names.is_empty() { "no name".to_owned() } else { names.join(", ") }
}

impl fmt::Debug for NameVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NameVerifier({})", list(&self.names))
    }
}

impl ServerCertVerifier for NameVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, now).map_err(|refusal| {
            Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
        })?;
        Ok(ServerCertVerified::assertion())
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
