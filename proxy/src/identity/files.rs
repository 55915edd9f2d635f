//! A certificate, its key and its roots in a directory, as Kubernetes Secrets and SPIFFE helper write them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::IdentityError;
use super::set::Pem;
use super::spiffe_id::is_trust_domain;

/// More than any chain or bundle needs.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Lists grow with what is revoked: 16 MiB hold some 400,000 entries.
const MAX_LISTS_BYTES: u64 = 16 << 20;
/// Revocation lists that may lie beside a certificate.
pub(super) const LISTS: &str = "crl.pem";
/// What comes after the trust domain in the name of a federated bundle.
const BUNDLE_SUFFIX: &str = ".bundle.pem";

/// The names that a certificate, its key and its roots go by.
const NAMES: [[&str; 3]; 2] =
    [["tls.crt", "tls.key", "ca.crt"], ["svid.pem", "svid_key.pem", "svid_bundle.pem"]];

/// Reads all of the set. It may be torn between two writes: who takes it checks that it fits together.
pub(super) fn read(dir: &Path) -> Result<Pem, IdentityError> {
    let [chain, key, bundle] = names(dir)?.map(|name| dir.join(name));
    Ok(Pem {
        chain: read_file(chain)?,
        key: read_file(key)?.into(),
        bundle: read_file(bundle)?,
        federated: federated(dir)?,
    })
}

fn names(dir: &Path) -> Result<[&'static str; 3], IdentityError> {
    NAMES
        .into_iter()
        .find(|[certificate, ..]| dir.join(certificate).exists())
        .ok_or_else(|| IdentityError::NoFiles(dir.to_owned()))
}

fn federated(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>, IdentityError> {
    let failed = |error| IdentityError::Read { path: dir.to_owned(), error };
    let mut bundles = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(trust_domain) = name.and_then(|name| name.strip_suffix(BUNDLE_SUFFIX))
            && is_trust_domain(trust_domain)
        {
            bundles.insert(trust_domain.to_owned(), read_file(path)?);
        }
    }
    Ok(bundles)
}

/// Revocation lists, PEM; `None`: there is no such file.
pub(super) fn read_lists(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    match read_bounded(path.to_owned(), MAX_LISTS_BYTES) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(IdentityError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn read_file(path: PathBuf) -> Result<Vec<u8>, IdentityError> {
    read_bounded(path, MAX_FILE_BYTES)
}

fn read_bounded(path: PathBuf, limit: u64) -> Result<Vec<u8>, IdentityError> {
    let mut bytes = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 > limit => {
            let why = format!("larger than {} MiB", limit >> 20);
            Err(IdentityError::Read { path, error: io::Error::other(why) })
        }
        Ok(_) => Ok(bytes),
        Err(error) => Err(IdentityError::Read { path, error }),
    }
}
