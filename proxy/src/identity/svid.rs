//! X.509-SVIDs: whether the roots of its trust domain signed a certificate, and what it then proves.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fips::NotApproved;
use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::SpiffeId;
use super::proof::{self, CLOCK_SKEW_SECONDS, Proof};
use super::roots::Domain;
use super::trust::Trust;
use crate::decision::Reason;

/// What a refused certificate's subject may take in memory; longer ones are left out of [`Verified`].
const MAX_SUBJECT_BYTES: usize = 1024;
/// RFC 5280, section 4.1.2.2.
const MAX_SERIAL_BYTES: usize = 20;
/// Certificates that a peer may present besides its own. webpki walks at most 6 of them; what is more costs time only.
const MAX_INTERMEDIATES: usize = 8;
/// RSA keys of fewer bits are refused wherever they stand in a chain.
const MIN_RSA_BITS: usize = 2048;

/// What a verified certificate proves.
#[derive(Debug)]
pub struct Verified {
    /// Whose it is.
    pub id: SpiffeId,
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
    /// What it rests on.
    pub proof: Arc<Proof>,
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
    /// One of the reasons of `service-authentication`; `not-fips` of `encryption`.
    pub reason: Reason,
    /// For the operator.
    pub detail: Box<str>,
    /// What the peer is told, as its alert.
    pub(crate) alert: CertificateError,
}

impl Refusal {
    /// A refusal of what is not approved, and must be.
    pub(crate) fn not_approved(who: impl fmt::Display, why: &NotApproved) -> Self {
        Self {
            reason: Reason::NotFips,
            detail: format!("{who}: {why}").into(),
            alert: CertificateError::BadSignature,
        }
    }

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
            PathLenConstraintViolated | MaximumPathDepthExceeded => (
                Reason::BadCertificate,
                "too many authorities on the way to a root, or more than one of them allows".to_owned(),
                CertificateError::BadEncoding,
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

/// Refuses chains that are longer than any use has.
pub(super) fn bound(intermediates: &[CertificateDer<'_>]) -> Result<(), Refusal> {
    if intermediates.len() > MAX_INTERMEDIATES {
        return Err(Refusal::bad(format_args!(
            "{} certificates presented besides the leaf; {MAX_INTERMEDIATES} at most",
            intermediates.len()
        )));
    }
    Ok(())
}

/// Verifies a chain as X509-SVID (sections 4 and 5) and RFC 5280 ask: one SPIFFE id, signed under the roots of its trust
/// domain, not revoked, in its dates (with an allowance for clocks), fit for `usage`, and a leaf that can't sign certificates
/// itself. An authority on the way whose name constraints speak of URIs is refused, permitted or not: webpki can't apply them.
pub fn verify(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    trust: &Trust,
    usage: Usage,
    now: UnixTime,
) -> Result<Verified, Refusal> {
    let certificate =
        EndEntityCert::try_from(leaf).map_err(|error| Refusal::bad(format_args!("not readable: {error}")))?;
    let id = spiffe_id(&certificate)?;
    let Some((trust_domain, domain)) = trust.domain(id.trust_domain()) else {
        return Err(unknown_trust_domain(&id));
    };
    let walk = Walk { certificate: &certificate, intermediates, trust, trust_domain, domain, usage };
    let (proof, root_not_after) = match walk.to_root(now) {
        Err(error) => match on_a_clock_nearby(&error, now) {
            Some(nearby) => walk.to_root(nearby),
            None => Err(error),
        },
        found => found,
    }
    .map_err(|error| explain(&id, leaf, intermediates, &error))?;
    leaf_facts(leaf, id, Arc::new(proof), root_not_after)
}

/// A way from a leaf to a root.
struct Walk<'a> {
    certificate: &'a EndEntityCert<'a>,
    intermediates: &'a [CertificateDer<'a>],
    trust: &'a Trust,
    trust_domain: &'a Arc<str>,
    domain: &'a Domain,
    usage: Usage,
}

impl Walk<'_> {
    /// What the first way rests on that leads to a root in its dates and meets nothing revoked; and the root's notAfter.
    fn to_root(&self, now: UnixTime) -> Result<(Proof, i64), webpki::Error> {
        let algorithms = fips::provider().signature_verification_algorithms.all;
        let key_usage = match self.usage {
            Usage::Server => KeyUsage::server_auth(),
            Usage::Client => KeyUsage::client_auth(),
        };
        let found = Cell::new(None);
        let accept = |path: &webpki::VerifiedPath<'_>| {
            let root = self.domain.root(path.anchor()).ok_or(webpki::Error::UnknownIssuer)?;
            let proof = Proof::of(self.trust_domain, root, path).ok_or(webpki::Error::BadDer)?;
            if self.trust.revokes(&proof) {
                return Err(webpki::Error::CertRevoked);
            }
            if root.not_after < proof::seconds(now) {
                return Err(expired(root.not_after, now));
            }
            found.set(Some((proof, root.not_after)));
            Ok(())
        };
        self.certificate.verify_for_usage(
            algorithms,
            &self.domain.anchors,
            self.intermediates,
            now,
            key_usage,
            None,
            Some(&accept),
        )?;
        found.take().ok_or(webpki::Error::UnknownIssuer)
    }
}

fn expired(not_after: i64, time: UnixTime) -> webpki::Error {
    let not_after = Duration::from_secs(u64::try_from(not_after).unwrap_or_default());
    webpki::Error::CertExpired { time, not_after: UnixTime::since_unix_epoch(not_after) }
}

/// The time on a peer's clock, no further off than clocks may be, at which the dates would fit.
fn on_a_clock_nearby(error: &webpki::Error, now: UnixTime) -> Option<UnixTime> {
    let (now, skew) = (now.as_secs(), CLOCK_SKEW_SECONDS.unsigned_abs());
    let (earlier, later) = (now.saturating_sub(skew), now.saturating_add(skew));
    let nearby = match error {
        webpki::Error::CertExpired { not_after, .. } if not_after.as_secs() >= earlier => earlier,
        webpki::Error::CertNotValidYet { not_before, .. } if not_before.as_secs() <= later => later,
        _ => return None,
    };
    Some(UnixTime::since_unix_epoch(Duration::from_secs(nearby)))
}

/// Says more than webpki where what is at fault is seen elsewhere than where it fails.
fn explain(
    id: &SpiffeId,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    error: &webpki::Error,
) -> Refusal {
    let refusal = Refusal::of_chain(id, format_args!("trust domain {}", id.trust_domain()), error);
    let parsed = |der| X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate);
    if let Err(why) =
        std::iter::once(leaf).chain(intermediates).try_for_each(|der| fips::approve::certificate(der))
    {
        return Refusal::not_approved(id, &why);
    }
    for (index, der) in std::iter::once(leaf).chain(intermediates).enumerate() {
        let Some(certificate) = parsed(der) else { continue };
        if let Some(bits) = weak_rsa(&certificate) {
            return weak(id, bits);
        }
        if index == 0
            && refusal.reason == Reason::UntrustedRoot
            && certificate.issuer().as_raw() == certificate.subject().as_raw()
            && is_self_signed(leaf, &certificate)
        {
            return Refusal { detail: format!("{id}: it is self-signed").into(), ..refusal };
        }
    }
    refusal
}

fn is_self_signed(leaf: &CertificateDer<'_>, certificate: &X509Certificate<'_>) -> bool {
    let Ok(key) = EndEntityCert::try_from(leaf) else { return false };
    let algorithms = fips::provider().signature_verification_algorithms.all;
    let (signed, signature) = (certificate.tbs_certificate.as_ref(), &certificate.signature_value.data);
    algorithms.iter().any(|algorithm| key.verify_signature(*algorithm, signed, signature).is_ok())
}

/// The bits of an RSA key that has too few.
pub(super) fn weak_rsa(certificate: &X509Certificate<'_>) -> Option<usize> {
    let Ok(PublicKey::RSA(key)) = certificate.public_key().parsed() else { return None };
    let first = key.modulus.iter().position(|&byte| byte != 0)?;
    let modulus = &key.modulus[first..];
    let bits = modulus.len() * 8 - modulus[0].leading_zeros() as usize;
    (bits < MIN_RSA_BITS).then_some(bits)
}

fn weak(id: &SpiffeId, bits: usize) -> Refusal {
    let why = format_args!("{id}: an RSA key of {bits} bits in the chain; {MIN_RSA_BITS} at least");
    Refusal { alert: CertificateError::BadSignature, ..Refusal::bad(why) }
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
    proof: Arc<Proof>,
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
    fips::approve::certificate(leaf).map_err(|why| Refusal::not_approved(&id, &why))?;
    if let Some(bits) = weak_rsa(&certificate) {
        return Err(weak(&id, bits));
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
        proof,
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
mod tests;
