//! Revocation lists (RFC 5280, section 5): who is on one, and whose list it is.
//!
//! webpki can look lists up itself, but takes the first one of an issuer's *name* for that issuer's, and refuses everybody
//! when another authority of the same name signed it. Authorities share a name while one replaces the other, so here a list
//! belongs to who signed it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls_pki_types::{CertificateRevocationListDer, SubjectPublicKeyInfoDer};
use webpki::{CertRevocationList, RawPublicKeyEntity};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::IdentityError;
use super::proof::Link;

/// Issuers of one name that a list remembers. More than any rotation has.
const MAX_SIGNERS: usize = 64;

/// One list, complete: deltas and indirect ones are refused when they are read.
pub(super) struct List {
    /// Of its DER: what tells it from others.
    pub(super) digest: [u8; 32],
    revoked: CertRevocationList<'static>,
    signed: Box<[u8]>,
    signature: Box<[u8]>,
    /// When the next one should be there, seconds since the epoch.
    next_update: Option<i64>,
    issuer: Box<str>,
    /// Keys of issuers of its name, and whether they signed it: one signature is verified once.
    signers: Mutex<Vec<(SubjectPublicKeyInfoDer<'static>, bool)>>,
}

impl List {
    /// Reads one.
    pub(super) fn read(der: &[u8]) -> Result<Self, IdentityError> {
        let malformed = |why: String| IdentityError::Malformed { what: "revocation list", why };
        let revoked = fips::revocation::read(der).map_err(malformed)?;
        let (_, list) =
            CertificateRevocationList::from_der(der).map_err(|error| malformed(error.to_string()))?;
        Ok(Self {
            digest: fips::sha256(der),
            revoked: revoked.into(),
            signed: list.tbs_cert_list.as_ref().into(),
            signature: list.signature_value.data.as_ref().into(),
            next_update: list.next_update().map(|time| time.timestamp()),
            issuer: list.issuer().to_string().into(),
            signers: Mutex::default(),
        })
    }

    /// Whether `link` is on it.
    pub(super) fn revokes(&self, link: &Link) -> bool {
        *self.revoked.issuer() == *link.issuer
            // A list that can't be searched names everybody.
            && self.revoked.find_serial(&link.serial).map_or(true, |found| found.is_some())
            && self.is_signed_by(&link.issuer_key)
    }

    fn is_signed_by(&self, key: &SubjectPublicKeyInfoDer<'static>) -> bool {
        let signers = || self.signers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, signed)) = signers().iter().find(|(known, _)| known == key) {
            return *signed;
        }
        let signed = self.verify(key);
        let mut signers = signers();
        if signers.len() < MAX_SIGNERS {
            signers.push((key.clone(), signed));
        }
        signed
    }

    fn verify(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        let Ok(key) = RawPublicKeyEntity::try_from(key) else { return false };
        let algorithms = fips::provider().signature_verification_algorithms.all;
        algorithms
            .iter()
            .any(|algorithm| key.verify_signature(*algorithm, &self.signed, &self.signature).is_ok())
    }

    /// Says so when its successor is late at `now`. It stays in force: who is revoked stays revoked.
    pub(super) fn late(&self, now: i64) -> Option<String> {
        self.next_update
            .filter(|&next| next < now)
            .map(|_| format!("the revocation list of {:?} is out of date, and stays in force", &*self.issuer))
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("List").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// The DER of each list in `pem`.
pub(super) fn decode(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, IdentityError> {
    fips::revocation::lists_in(pem).map_err(|why| IdentityError::Malformed { what: "revocation list", why })
}

/// Reads all; those that `known` has are taken from it, with what they remember.
pub(super) fn read_all<'a>(
    lists: impl Iterator<Item = &'a CertificateRevocationListDer<'static>>,
    known: &[Arc<List>],
) -> Result<Vec<Arc<List>>, IdentityError> {
    lists
        .map(|der| {
            let digest = fips::sha256(der);
            match known.iter().find(|list| list.digest == digest) {
                Some(list) => Ok(Arc::clone(list)),
                None => List::read(der).map(Arc::new),
            }
        })
        .collect()
}
