//! X.509-SVIDs: whether the roots of its trust domain signed a certificate, and what it then proves.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::{IdentityError, SpiffeId};
use crate::decision::Reason;

/// What a refused certificate's subject may take in memory; longer ones are left out of [`Verified`].
const MAX_SUBJECT_BYTES: usize = 1024;
/// RFC 5280, section 4.1.2.2.
const MAX_SERIAL_BYTES: usize = 20;

/// The roots of each trust domain. A root vouches for names of its own domain only.
#[derive(Debug, Clone, Default)]
pub struct Roots(BTreeMap<Arc<str>, Domain>);

#[derive(Debug, Clone, Default)]
struct Domain {
    anchors: Vec<TrustAnchor<'static>>,
    /// notAfter of each, seconds since the epoch: an anchor has none.
    not_after: Vec<i64>,
}

impl Roots {
    /// The roots of `trust_domain` become `certificates`.
    pub(super) fn insert(
        &mut self,
        trust_domain: &str,
        certificates: &[CertificateDer<'_>],
    ) -> Result<(), IdentityError> {
        let malformed = |why: String| IdentityError::Malformed { what: "bundle", why };
        let mut domain = Domain::default();
        for root in certificates {
            let anchor =
                webpki::anchor_from_trusted_cert(root).map_err(|error| malformed(error.to_string()))?;
            let (_, facts) = X509Certificate::from_der(root).map_err(|error| malformed(error.to_string()))?;
            domain.anchors.push(anchor.to_owned());
            domain.not_after.push(facts.validity().not_after.timestamp());
        }
        self.0.insert(trust_domain.into(), domain);
        Ok(())
    }

    /// The trust domains known.
    pub fn trust_domains(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|name| &**name)
    }

    fn of(&self, trust_domain: &str) -> Option<(&Arc<str>, &Domain)> {
        self.0.get_key_value(trust_domain)
    }
}

/// What a verified certificate proves.
#[derive(Debug, Clone)]
pub struct Verified {
    /// Whose it is.
    pub id: SpiffeId,
    /// Trust domain whose roots signed it.
    pub trust_domain: Arc<str>,
    /// Serial number, lower-case hex.
    pub serial: Box<str>,
    /// notBefore, seconds since the epoch.
    pub not_before: i64,
    /// notAfter, seconds since the epoch.
    pub not_after: i64,
    /// notAfter of the root that signed it.
    pub root_not_after: i64,
    /// Subject's distinguished name; empty when it has none, or one of over 1 KiB. Any text: quote it where it goes.
    pub subject: Box<str>,
}

/// Which side's certificate it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// A server's.
    Server,
    /// A client's.
    Client,
}

/// Why a certificate was not taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// One of the reasons of `service-authentication`.
    pub reason: Reason,
    /// For the operator.
    pub detail: Box<str>,
    /// What the peer is told, as its alert.
    pub(crate) alert: CertificateError,
}

impl Refusal {
    /// A refusal of a certificate that is no X.509-SVID.
    pub(crate) fn bad(detail: impl fmt::Display) -> Self {
        Self {
            reason: Reason::BadCertificate,
            detail: detail.to_string().into(),
            alert: CertificateError::BadEncoding,
        }
    }

    /// What webpki says of the chain of `who` under the roots of `authority`.
    pub(crate) fn of_chain(
        who: impl fmt::Display,
        authority: impl fmt::Display,
        error: &webpki::Error,
    ) -> Self {
        use webpki::Error::*;
        let (reason, why, alert) = match error {
            CertExpired { time, not_after } => (
                Reason::Expired,
                format!("expired at {}", date(*not_after)),
                CertificateError::ExpiredContext { time: *time, not_after: *not_after },
            ),
            CertNotValidYet { time, not_before } => (
                Reason::NotYetValid,
                format!("not valid before {}; compare the clocks", date(*not_before)),
                CertificateError::NotValidYetContext { time: *time, not_before: *not_before },
            ),
            UnknownIssuer | InvalidSignatureForPublicKey => (
                Reason::UntrustedRoot,
                format!("no root of {authority} signed it"),
                CertificateError::UnknownIssuer,
            ),
            CertRevoked => (Reason::Revoked, "revoked".to_owned(), CertificateError::Revoked),
            CaUsedAsEndEntity => {
                (Reason::BadCertificate, "is a CA certificate".to_owned(), CertificateError::InvalidPurpose)
            }
            RequiredEkuNotFoundContext(_) => (
                Reason::BadCertificate,
                "its extended key usage does not cover this side of TLS".to_owned(),
                CertificateError::InvalidPurpose,
            ),
            other => (Reason::BadCertificate, other.to_string(), CertificateError::BadEncoding),
        };
        Self { reason, detail: format!("{who}: {why}").into(), alert }
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.detail)
    }
}

/// Verifies a chain as X509-SVID (sections 4 and 5) and RFC 5280 ask: one SPIFFE id, signed under the roots of its trust
/// domain, in its dates, fit for `usage`, and a leaf that can't sign certificates itself. An authority on the way whose name
/// constraints speak of URIs is refused, permitted or not: webpki can't apply them.
pub fn verify(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &Roots,
    usage: Usage,
    now: UnixTime,
) -> Result<Verified, Refusal> {
    let certificate =
        EndEntityCert::try_from(leaf).map_err(|error| Refusal::bad(format_args!("not readable: {error}")))?;
    let id = spiffe_id(&certificate)?;
    let Some((trust_domain, domain)) = roots.of(id.trust_domain()) else {
        return Err(unknown_trust_domain(&id));
    };
    let algorithms = fips::provider().signature_verification_algorithms.all;
    let key_usage = match usage {
        Usage::Server => KeyUsage::server_auth(),
        Usage::Client => KeyUsage::client_auth(),
    };
    let path = certificate
        .verify_for_usage(algorithms, &domain.anchors, intermediates, now, key_usage, None, None)
        .map_err(|error| {
            Refusal::of_chain(&id, format_args!("trust domain {}", id.trust_domain()), &error)
        })?;
    let signer = domain.anchors.iter().position(|anchor| anchor == path.anchor());
    let root_not_after = signer.map_or(i64::MAX, |index| domain.not_after[index]);
    leaf_facts(leaf, id, trust_domain, root_not_after)
}

/// X509-SVID section 2: exactly one URI name, and that a SPIFFE id; section 3.1: a leaf's has a path.
fn spiffe_id(certificate: &EndEntityCert<'_>) -> Result<SpiffeId, Refusal> {
    let mut uris = certificate.valid_uri_names();
    let uri = uris.next().ok_or_else(|| Refusal::bad("no URI name, so no SPIFFE id"))?;
    if uris.next().is_some() {
        return Err(Refusal::bad("more than one URI name"));
    }
    let id = SpiffeId::try_from(uri)
        .map_err(|why| Refusal::bad(format_args!("URI name is no SPIFFE id: {why}")))?;
    if id.path().is_empty() {
        return Err(Refusal::bad(format_args!("{id} names a trust domain, not a workload")));
    }
    Ok(id)
}

fn unknown_trust_domain(id: &SpiffeId) -> Refusal {
    Refusal {
        reason: Reason::UntrustedRoot,
        detail: format!(
            "{id}: no roots are known for trust domain {}; federation needs its bundle",
            id.trust_domain()
        )
        .into(),
        alert: CertificateError::UnknownIssuer,
    }
}

/// X509-SVID section 4.3: a leaf signs handshakes, never certificates or revocation lists. webpki has no eye for that.
fn leaf_facts(
    leaf: &CertificateDer<'_>,
    id: SpiffeId,
    trust_domain: &Arc<str>,
    root_not_after: i64,
) -> Result<Verified, Refusal> {
    let bad = |why: &str| Refusal::bad(format_args!("{id}: {why}"));
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| bad("not readable"))?;
    if !is_only_uri(&certificate, id.as_str()) {
        return Err(bad("its subject alternative names are not one URI, or not readable"));
    }
    let usage = certificate.key_usage().map_err(|_| bad("key usage is not readable"))?;
    let usage = usage.ok_or_else(|| bad("has no key usage"))?.value;
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err(bad("its key usage lets a leaf sign certificates or revocation lists"));
    }
    if !usage.digital_signature() {
        return Err(bad("its key usage lacks digitalSignature"));
    }
    let serial = certificate.raw_serial();
    let serial = serial.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(serial);
    if serial.len() > MAX_SERIAL_BYTES {
        return Err(bad("serial number of over 20 octets"));
    }
    Ok(Verified {
        serial: hex(serial),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        root_not_after,
        subject: subject(&certificate),
        trust_domain: Arc::clone(trust_domain),
        id,
    })
}

/// Whether `uri` is the only URI name to a second parser too: webpki passes over names that it can't read.
fn is_only_uri(certificate: &X509Certificate<'_>, uri: &str) -> bool {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    let mut uris = 0;
    names.value.general_names.iter().all(|name| match name {
        GeneralName::URI(name) => {
            uris += 1;
            *name == uri
        }
        GeneralName::Invalid(..) => false,
        _ => true,
    }) && uris == 1
}

fn subject(certificate: &X509Certificate<'_>) -> Box<str> {
    let name = certificate.subject();
    if name.as_raw().len() > MAX_SUBJECT_BYTES { Box::default() } else { name.to_string().into() }
}

fn date(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| format!("{} s", time.as_secs()), |time| time.to_string())
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> Box<str> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte)]).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use fips::ca::Profile;
    use rustls_pki_types::pem::PemObject;

    use super::*;
    use crate::identity::fixture::{HOUR, authority};

    #[test]
    fn a_second_name_that_one_parser_passes_over_is_seen_by_the_other() {
        let (first, second) = ("spiffe://cluster.local/a", "spiffe://cluster.local/b");
        let mut profile = Profile::workload(first, HOUR);
        profile.uris.push(second.to_owned());
        let issued = authority("cluster.local").issue(&profile).unwrap();
        let mut der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap().to_vec();
        let at = der.windows(second.len()).position(|window| window == second.as_bytes()).unwrap();
        der[at..at + second.len()].fill(0xff);

        let der = CertificateDer::from(der);
        let certificate = EndEntityCert::try_from(&der).unwrap();
        assert_eq!(spiffe_id(&certificate).unwrap().as_str(), first, "webpki sees one name");
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert!(!is_only_uri(&certificate, first));
    }

    #[test]
    fn a_single_name_is_one_to_both() {
        let profile = Profile::workload("spiffe://cluster.local/a", HOUR);
        let issued = authority("cluster.local").issue(&profile).unwrap();
        let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert!(is_only_uri(&certificate, "spiffe://cluster.local/a"));
        assert!(!is_only_uri(&certificate, "spiffe://cluster.local/b"));
    }

    #[test]
    fn hex_is_of_lower_case_and_two_digits() {
        assert_eq!(&*hex(&[0x0a, 0xff, 0x00]), "0aff00");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(flips in proptest::collection::vec((0usize..2000, proptest::num::u8::ANY), 1..8)) {
            let authority = authority("cluster.local");
            let issued = authority.issue(&Profile::workload("spiffe://cluster.local/a", HOUR)).unwrap();
            let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap();
            let mut roots = Roots::default();
            roots.insert("cluster.local", &[root]).unwrap();
            let mut der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap().to_vec();
            let (before, len) = (der.clone(), der.len());
            for (at, byte) in flips {
                der[at % len] = byte;
            }
            let outcome = verify(&der.clone().into(), &[], &roots, Usage::Client, UnixTime::now());
            assert_eq!(outcome.is_ok(), der == before);
        }
    }
}
