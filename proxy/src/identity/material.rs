//! [`Material`]: one consistent set of certificate, key and roots, made from PEM.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};

use super::svid::{self, Roots, Usage, Verified};
use super::{IdentityError, SpiffeId};

/// One consistent set of certificate, key and roots. Never half of one and half of another.
pub struct Material {
    /// Whose it is.
    pub id: SpiffeId,
    /// Chain and key, as handshakes take them.
    pub certified: Arc<CertifiedKey>,
    /// Roots of each trust domain, the own one among them.
    pub roots: Roots,
    /// notAfter of the certificate, seconds since the epoch.
    pub not_after: i64,
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

/// The same set as PEM, as a source gives it.
#[derive(Default)]
pub(super) struct Pem {
    pub chain: Vec<u8>,
    pub key: Vec<u8>,
    /// Roots of the own trust domain.
    pub bundle: Vec<u8>,
    /// Roots of others, by trust domain.
    pub federated: BTreeMap<String, Vec<u8>>,
}

impl Pem {
    /// What tells one set from another.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut parts = Vec::new();
        let named = self.federated.iter().flat_map(|(name, pem)| [name.as_bytes(), pem]);
        for part in [self.chain.as_slice(), &self.key, &self.bundle].into_iter().chain(named) {
            parts.extend_from_slice(&fips::sha256(part));
        }
        fips::sha256(&parts)
    }
}

impl Material {
    /// Takes a set only if it is whole: the key belongs to the certificate, and the certificate is one that a peer with
    /// the same roots would take from this workload, as server and as client.
    pub(super) fn assemble(pem: Pem, trust_domain: &str, generation: u64) -> Result<Self, IdentityError> {
        let chain = certificates("certificate", &pem.chain)?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key)
            .map_err(|error| IdentityError::Pem { what: "key", why: error.to_string() })?;
        let mut roots = Roots::default();
        for (name, bundle) in &pem.federated {
            roots.insert(name, anchors(bundle)?);
        }
        roots.insert(trust_domain, anchors(&pem.bundle)?);
        let verified = verify_own(&chain, &roots, trust_domain)?;
        let certified = CertifiedKey::from_der(chain, key, &fips::provider()).map_err(IdentityError::Key)?;
        Ok(Self {
            id: verified.id,
            certified: Arc::new(certified),
            roots,
            not_after: verified.not_after,
            generation,
        })
    }
}

#[cfg(test)]
impl Material {
    /// Takes anything, as an attacker would.
    pub(super) fn unchecked(pem: &Pem) -> Self {
        let chain = certificates("certificate", &pem.chain).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&pem.key).unwrap();
        let mut roots = Roots::default();
        for (name, bundle) in &pem.federated {
            roots.insert(name, anchors(bundle).unwrap());
        }
        Self {
            id: "spiffe://cluster.local/unchecked".parse().unwrap(),
            certified: Arc::new(CertifiedKey::from_der(chain, key, &fips::provider()).unwrap()),
            roots,
            not_after: 0,
            generation: 1,
        }
    }
}

fn verify_own(
    chain: &[CertificateDer<'static>],
    roots: &Roots,
    trust_domain: &str,
) -> Result<Verified, IdentityError> {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(IdentityError::Pem { what: "certificate", why: "none in the file".into() });
    };
    let now = UnixTime::now();
    svid::verify(leaf, intermediates, roots, Usage::Client, now).map_err(IdentityError::Certificate)?;
    let verified =
        svid::verify(leaf, intermediates, roots, Usage::Server, now).map_err(IdentityError::Certificate)?;
    if *verified.trust_domain != *trust_domain {
        return Err(IdentityError::TrustDomain { id: verified.id, expected: trust_domain.into() });
    }
    Ok(verified)
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(IdentityError::Pem { what, why: "no certificate in it".into() }),
        Ok(all) => Ok(all),
        Err(error) => Err(IdentityError::Pem { what, why: error.to_string() }),
    }
}

fn anchors(pem: &[u8]) -> Result<Vec<TrustAnchor<'static>>, IdentityError> {
    certificates("bundle", pem)?
        .iter()
        .map(|root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()))
        .collect::<Result<_, _>>()
        .map_err(|error| IdentityError::Pem { what: "bundle", why: error.to_string() })
}
