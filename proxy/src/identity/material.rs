//! [`Material`]: one consistent set of certificate, key and roots, made from what a source gives.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::proof::Proof;
use super::set::Key;
use super::svid::{self, Usage, Verified};
use super::trust::Trust;
use super::{IdentityError, SpiffeId};

/// One consistent set of certificate, key and roots. Never half of one and half of another.
pub struct Material {
    /// Whose it is.
    pub id: SpiffeId,
    /// Chain and key, as handshakes take them.
    pub certified: Arc<CertifiedKey>,
    /// What the certificate rests on.
    pub proof: Arc<Proof>,
    /// Whom to believe.
    pub trust: Arc<Trust>,
    /// notBefore of the certificate, seconds since the epoch.
    pub not_before: i64,
    /// notAfter of the certificate, seconds since the epoch.
    pub not_after: i64,
    /// notAfter of the root that vouches for it.
    pub root_not_after: i64,
    /// Counts the sets taken since start, from 1.
    pub generation: u64,
}

impl fmt::Debug for Material {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material")
            .field("id", &self.id)
            .field("not_after", &self.not_after)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl Material {
    /// Takes a set only if it is whole: the key belongs to the certificate, and the certificate is one that a peer with
    /// the same roots would take from this workload, as server and as client. All of it is approved where it must be.
    pub(super) fn assemble(
        chain: Vec<CertificateDer<'static>>,
        key: &Key,
        trust: Arc<Trust>,
        trust_domain: &str,
        generation: u64,
    ) -> Result<Self, IdentityError> {
        for certificate in &chain {
            fips::approve::certificate(certificate)
                .map_err(|why| IdentityError::NotApproved { what: "own certificate", why })?;
        }
        let verified = verify_own(&chain, &trust, trust_domain)?;
        let certified =
            CertifiedKey::from_der(chain, key.der(), &fips::provider()).map_err(IdentityError::Key)?;
        Ok(Self {
            id: verified.id,
            certified: Arc::new(certified),
            not_before: verified.not_before,
            not_after: verified.not_after,
            root_not_after: verified.root_not_after,
            proof: verified.proof,
            trust,
            generation,
        })
    }

    /// The same with another trust, under which it may be revoked itself.
    pub(super) fn trusting(&self, trust: Arc<Trust>) -> Self {
        Self {
            id: self.id.clone(),
            certified: Arc::clone(&self.certified),
            proof: Arc::clone(&self.proof),
            trust,
            generation: self.generation + 1,
            ..*self
        }
    }

    /// How long the certificate is valid in all.
    pub fn lifetime(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.not_after - self.not_before).unwrap_or_default())
    }
}

#[cfg(test)]
impl Material {
    /// Takes anything, as an attacker would.
    pub(super) fn unchecked(chain: Vec<CertificateDer<'static>>, key: &Key, trust: Arc<Trust>) -> Self {
        Self {
            id: "spiffe://cluster.local/unchecked".parse().unwrap(),
            certified: Arc::new(CertifiedKey::from_der(chain, key.der(), &fips::provider()).unwrap()),
            proof: Arc::new(Proof::nothing()),
            trust,
            not_before: 0,
            not_after: 0,
            root_not_after: 0,
            generation: 1,
        }
    }
}

fn verify_own(
    chain: &[CertificateDer<'static>],
    trust: &Trust,
    trust_domain: &str,
) -> Result<Verified, IdentityError> {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(IdentityError::Malformed { what: "certificate", why: "there is none".into() });
    };
    let now = UnixTime::now();
    svid::verify(leaf, intermediates, trust, Usage::Client, now).map_err(IdentityError::Certificate)?;
    let verified =
        svid::verify(leaf, intermediates, trust, Usage::Server, now).map_err(IdentityError::Certificate)?;
    if verified.id.trust_domain() != trust_domain {
        return Err(IdentityError::TrustDomain { id: verified.id, expected: trust_domain.into() });
    }
    Ok(verified)
}
