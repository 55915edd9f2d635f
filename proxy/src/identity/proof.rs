//! [`Proof`]: what a verified chain rests on, kept so that it can be asked at any later time, and cheaply, whether it still
//! holds.

use std::sync::Arc;

use rustls_pki_types::{SubjectPublicKeyInfoDer, UnixTime};
use webpki::VerifiedPath;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::roots::Root;

/// How far clocks may be apart: a certificate counts for so much longer than it says, at either end. (SPIRE and Istio date
/// theirs back by less.)
pub const CLOCK_SKEW_SECONDS: i64 = 30;

/// What a verified chain rests on: its root, its dates, and each certificate that could be revoked.
#[derive(Debug)]
pub struct Proof {
    /// Trust domain whose roots signed it.
    pub trust_domain: Arc<str>,
    /// [`Root::digest`] of the root.
    pub(super) root: [u8; 32],
    /// The latest notBefore and the earliest notAfter of the chain, root included; seconds since the epoch.
    not_before: i64,
    not_after: i64,
    /// From the leaf upwards, without the root.
    pub(super) links: Box<[Link]>,
    /// DER of the leaf.
    leaf: Box<[u8]>,
}

/// A certificate as revocation lists know it. Two authorities may have one name, as they do while one replaces the other, so
/// the key is part of who the issuer is.
#[derive(Debug)]
pub(super) struct Link {
    /// DER of the name, without its outer tag.
    pub issuer: Box<[u8]>,
    pub issuer_key: SubjectPublicKeyInfoDer<'static>,
    /// DER of the integer, without its tag.
    pub serial: Box<[u8]>,
}

impl Proof {
    /// Of a path that webpki found. `None`: a certificate in it can't be read.
    pub(super) fn of(trust_domain: &Arc<str>, root: Root, path: &VerifiedPath<'_>) -> Option<Self> {
        let leaf: &webpki::Cert<'_> = path.end_entity();
        let certificates: Vec<_> = std::iter::once(leaf).chain(path.intermediate_certificates()).collect();
        let (mut not_before, mut not_after) = (i64::MIN, root.not_after);
        let mut links = Vec::with_capacity(certificates.len());
        for (index, certificate) in certificates.iter().enumerate() {
            let der = certificate.der();
            let (_, dated) = X509Certificate::from_der(&der).ok()?;
            not_before = not_before.max(dated.validity().not_before.timestamp());
            not_after = not_after.min(dated.validity().not_after.timestamp());
            let issuer = certificates.get(index + 1);
            links.push(Link {
                issuer: certificate.issuer().into(),
                issuer_key: issuer.map_or_else(
                    || webpki::spki_for_anchor(path.anchor()),
                    |issuer| issuer.subject_public_key_info(),
                ),
                serial: certificate.serial().into(),
            });
        }
        Some(Self {
            trust_domain: Arc::clone(trust_domain),
            root: root.digest,
            not_before,
            not_after,
            links: links.into(),
            leaf: leaf.der().to_vec().into(),
        })
    }

    /// The certificate at the end of the chain, DER.
    pub fn leaf(&self) -> &[u8] {
        &self.leaf
    }

    /// When it ends to hold, seconds since the epoch, the allowance for clocks included.
    pub fn expires(&self) -> i64 {
        self.not_after.saturating_add(CLOCK_SKEW_SECONDS)
    }

    /// Whether it has begun.
    pub(super) fn has_begun(&self, now: i64) -> bool {
        now.saturating_add(CLOCK_SKEW_SECONDS) >= self.not_before
    }

    pub(super) fn has_expired(&self, now: i64) -> bool {
        now > self.expires()
    }
}

#[cfg(test)]
impl Proof {
    /// Of nothing.
    pub(super) fn nothing() -> Self {
        Self {
            trust_domain: "".into(),
            root: [0; 32],
            not_before: 0,
            not_after: 0,
            links: Box::default(),
            leaf: Box::default(),
        }
    }
}

/// Seconds since the epoch.
pub(super) fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}
