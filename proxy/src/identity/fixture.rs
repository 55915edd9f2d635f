//! For tests: directories, authorities, and identities that no source would give.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fips::ca::{Authority, Issued, Profile};

use super::material::Material;
use super::set::Pem;
use super::{Identity, Source};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A directory of its own, gone at the end.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("writ-{}", ulid::Ulid::new()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes the set under Kubernetes' names.
    pub(crate) fn write(&self, issued: &Issued, bundle: &str) {
        self.put("tls.crt", &issued.certificate_pem);
        self.put("tls.key", &issued.key_pem);
        self.put("ca.crt", bundle);
    }

    pub(crate) fn put(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    pub(crate) fn source(&self) -> Source {
        Source::Files(self.0.clone())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn authority(trust_domain: &str) -> Authority {
    Authority::generate(trust_domain, 24 * HOUR).unwrap()
}

/// An identity of any certificate, valid or not, that knows the roots of some trust domains.
pub(crate) fn identity(signer: &Authority, profile: &Profile, roots: &[(&str, &Authority)]) -> Arc<Identity> {
    let issued = signer.issue(profile).unwrap();
    let federated = roots
        .iter()
        .map(|(name, authority)| ((*name).to_owned(), authority.certificate_pem().as_bytes().to_vec()));
    let pem = Pem {
        chain: issued.certificate_pem.into_bytes(),
        key: issued.key_pem.into_bytes().into(),
        bundle: signer.certificate_pem().as_bytes().to_vec(),
        federated: federated.collect(),
    };
    let mut set = pem.decode("unused.example").unwrap();
    set.roots.remove("unused.example");
    Arc::new(Identity::of(Material::unchecked(set)))
}
