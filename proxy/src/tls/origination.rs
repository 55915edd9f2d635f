//! TLS towards servers outside of the mesh: which names a server must prove, under which roots, and what we present.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::HopAlpn;
use super::verify::{signature_schemes, tls12_signature, tls13_signature};
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::identity::svid::Refusal;

/// How long a configuration is used before its files are read again.
const REREAD_INTERVAL: Duration = Duration::from_secs(30);
/// Configurations kept. There are as many as DestinationRules that ask for TLS; past this all are read anew.
const MAX_KEPT: usize = 1024;

/// TLS as a DestinationRule orders it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TlsOptions {
    /// Server name to send.
    pub sni: Option<String>,
    /// `subjectAltNames`: names of which the server must prove one; empty: it must prove `sni`.
    pub sans: Vec<String>,
    /// Roots, PEM. `None`: those of the system, which Writ does not carry: refused.
    pub ca_file: Option<String>,
    /// Client certificate and key, PEM (MUTUAL).
    pub client_files: Option<(String, String)>,
}

/// The configurations in use, by what they were made from.
#[derive(Default)]
pub(super) struct Originations(Mutex<HashMap<(TlsOptions, HopAlpn), Kept>>);

struct Kept {
    config: Arc<ClientConfig>,
    read: Instant,
}

impl Originations {
    /// The configuration for a dial. Its files are read off the worker, once in a while; if they can't be, what was read
    /// before stays in use.
    pub(super) async fn config(
        &self,
        options: &TlsOptions,
        alpn: HopAlpn,
    ) -> Result<Arc<ClientConfig>, Reject> {
        let key = (options.clone(), alpn);
        let before = match self.kept(&key) {
            Some((config, age)) if age < REREAD_INTERVAL => return Ok(config),
            before => before.map(|(config, _)| config),
        };
        let again = key.clone();
        let read = tokio::task::spawn_blocking(move || build(&again.0, again.1)).await;
        let config = match (read.unwrap_or_else(|error| Err(error.to_string())), before) {
            (Ok(config), _) => Arc::new(config),
            (Err(why), Some(before)) => {
                tracing::warn!(%why, "TLS files of a DestinationRule not reread; the old ones stay in use");
                before
            }
            (Err(why), None) => return Err(Reject::because(Stage::Connect, Reason::TlsFailed, why)),
        };
        self.keep(key, Arc::clone(&config));
        Ok(config)
    }

    fn kept(&self, key: &(TlsOptions, HopAlpn)) -> Option<(Arc<ClientConfig>, Duration)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(key).map(|kept| (Arc::clone(&kept.config), kept.read.elapsed()))
    }

    fn keep(&self, key: (TlsOptions, HopAlpn), config: Arc<ClientConfig>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_KEPT && !all.contains_key(&key) {
            all.clear();
        }
        all.insert(key, Kept { config, read: Instant::now() });
    }
}

fn build(options: &TlsOptions, alpn: HopAlpn) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(fips::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NameVerifier::read(options)?));
    let mut config = match &options.client_files {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|error| format!("client certificate {certificate} with key {key}: {error}"))?,
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.plain();
    Ok(config)
}

fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(all) if all.is_empty() => Err(format!("{path}: no certificate in it")),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

fn private_key(path: &str) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| format!("{path}: {error}"))
}

/// Takes a server that some root of a file vouches for and that has one of some names.
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
    fn read(options: &TlsOptions) -> Result<Self, String> {
        let authority = options.ca_file.clone().ok_or(
            "no caCertificates in the DestinationRule; Writ carries no system roots, so it must name a file",
        )?;
        let anchors = certificates(&authority)?
            .iter()
            .map(|root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()))
            .collect::<Result<_, _>>()
            .map_err(|error| format!("{authority}: {error}"))?;
        let written = if options.sans.is_empty() { options.sni.as_slice() } else { &options.sans };
        if written.is_empty() {
            return Err(
                "the DestinationRule has neither sni nor subjectAltNames to know the server by".into()
            );
        }
        let names = written.iter().map(|name| Name::read(name)).collect::<Result<_, _>>()?;
        Ok(Self { authority, anchors, names })
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
            .map_err(|error| Refusal::of_chain("server certificate", &self.authority, &error))?;
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

impl Name {
    fn read(name: &str) -> Result<Self, String> {
        if name.contains("://") {
            return Ok(Self::Uri(name.to_owned()));
        }
        ServerName::try_from(name.to_owned())
            .map(Self::Server)
            .map_err(|_| format!("`{name}` is no name a server can prove"))
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
