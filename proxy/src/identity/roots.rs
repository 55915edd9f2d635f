//! [`Roots`]: the authorities of each trust domain.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::{IdentityError, svid};

/// The roots of each trust domain. A root vouches for names of its own domain only.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    domains: BTreeMap<Arc<str>, Domain>,
}

/// The roots of one trust domain.
#[derive(Debug, Clone, Default)]
pub(super) struct Domain {
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    facts: Vec<Root>,
}

/// What a [`TrustAnchor`] does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Root {
    /// Of its name, key and constraints: what it is whatever its dates, for a root is often issued anew with its old key.
    pub(super) digest: [u8; 32],
    /// notAfter, seconds since the epoch.
    pub(super) not_after: i64,
}

impl Roots {
    /// The roots of `trust_domain` become `certificates`; none: the domain is known, and nothing of it believed.
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
            let (_, certificate) =
                X509Certificate::from_der(root).map_err(|error| malformed(error.to_string()))?;
            if let Some(bits) = svid::weak_rsa(&certificate) {
                return Err(malformed(format!("a root of {trust_domain} has an RSA key of {bits} bits")));
            }
            fips::approve::root(root).map_err(|why| IdentityError::NotApproved { what: "bundle", why })?;
            domain.facts.push(Root {
                digest: digest(&anchor),
                not_after: certificate.validity().not_after.timestamp(),
            });
            domain.anchors.push(anchor.to_owned());
        }
        self.domains.insert(trust_domain.into(), domain);
        Ok(())
    }

    /// The trust domains known.
    pub fn trust_domains(&self) -> impl Iterator<Item = &str> {
        self.domains.keys().map(|name| &**name)
    }

    pub(super) fn of(&self, trust_domain: &str) -> Option<(&Arc<str>, &Domain)> {
        self.domains.get_key_value(trust_domain)
    }

    /// What tells these from others.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut parts = Vec::new();
        for (name, domain) in &self.domains {
            parts.extend_from_slice(&fips::sha256(name.as_bytes()));
            for root in &domain.facts {
                parts.extend_from_slice(&root.digest);
                parts.extend_from_slice(&root.not_after.to_be_bytes());
            }
        }
        fips::sha256(&parts)
    }
}

impl Domain {
    /// What is known of one of its anchors.
    pub(super) fn root(&self, anchor: &TrustAnchor<'_>) -> Option<Root> {
        let found = self.anchors.iter().zip(&self.facts).find(|(known, _)| *known == anchor);
        found.map(|(_, root)| *root)
    }

    /// Whether a root of this digest is among them.
    pub(super) fn has(&self, digest: &[u8; 32]) -> bool {
        self.facts.iter().any(|root| root.digest == *digest)
    }
}

fn digest(anchor: &TrustAnchor<'_>) -> [u8; 32] {
    let constraints = anchor.name_constraints.as_deref().unwrap_or_default();
    let mut parts = Vec::new();
    for part in [&*anchor.subject, &*anchor.subject_public_key_info, constraints] {
        parts.extend_from_slice(&fips::sha256(part));
    }
    fips::sha256(&parts)
}
