//! [`Set`]: certificate, key and roots as a source gives them, before anybody looked whether they fit together.

use std::collections::BTreeMap;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use zeroize::{Zeroize, Zeroizing};

use super::IdentityError;

/// What a source gives, decoded.
pub(super) struct Set {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Key,
    /// Roots by trust domain, the own one among them.
    pub roots: BTreeMap<String, Vec<CertificateDer<'static>>>,
    /// Revocation lists, from sources that give them along; no part of [`Set::digest`].
    pub lists: Vec<CertificateRevocationListDer<'static>>,
}

/// A private key that leaves nothing behind in memory.
pub(super) struct Key(PrivateKeyDer<'static>);

impl Key {
    pub(super) fn new(key: PrivateKeyDer<'static>) -> Self {
        Self(key)
    }

    /// For the module, which keeps a copy of its own.
    pub(super) fn der(&self) -> PrivateKeyDer<'static> {
        self.0.clone_key()
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Set {
    /// What tells one set from another.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut parts = Vec::new();
        for certificate in &self.chain {
            parts.extend_from_slice(&fips::sha256(certificate));
        }
        parts.extend_from_slice(&fips::sha256(self.key.0.secret_der()));
        for (name, roots) in &self.roots {
            parts.extend_from_slice(&fips::sha256(name.as_bytes()));
            for root in roots {
                parts.extend_from_slice(&fips::sha256(root));
            }
        }
        fips::sha256(&parts)
    }
}

/// The same set as PEM, as files have it.
#[derive(Default)]
pub(super) struct Pem {
    pub chain: Vec<u8>,
    pub key: Zeroizing<Vec<u8>>,
    /// Roots of the own trust domain.
    pub bundle: Vec<u8>,
    /// Roots of others, by trust domain.
    pub federated: BTreeMap<String, Vec<u8>>,
}

impl Pem {
    /// What tells one set from another, without decoding it.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut parts = Vec::new();
        let named = self.federated.iter().flat_map(|(name, pem)| [name.as_bytes(), pem]);
        for part in [self.chain.as_slice(), &self.key, &self.bundle].into_iter().chain(named) {
            parts.extend_from_slice(&fips::sha256(part));
        }
        fips::sha256(&parts)
    }

    /// Decodes it; the own bundle prevails over a federated one of the same name.
    pub(super) fn decode(&self, trust_domain: &str) -> Result<Set, IdentityError> {
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| IdentityError::Malformed { what: "key", why: error.to_string() })?;
        let mut roots = BTreeMap::new();
        for (name, bundle) in &self.federated {
            roots.insert(name.clone(), certificates("bundle", bundle)?);
        }
        roots.insert(trust_domain.to_owned(), certificates("bundle", &self.bundle)?);
        let chain = certificates("certificate", &self.chain)?;
        Ok(Set { chain, key: Key::new(key), roots, lists: Vec::new() })
    }
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => {
            Err(IdentityError::Malformed { what, why: "no certificate in it".into() })
        }
        Ok(all) => Ok(all),
        Err(error) => Err(IdentityError::Malformed { what, why: error.to_string() }),
    }
}
