//! For tests: directories, authorities, and identities that no source would give.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fips::ca::{Authority, Issued, Profile};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::material::Material;
use super::roots::Roots;
use super::set::Pem;
use super::{Identity, Source, Trust, revocation};

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
    holding(&signer.issue(profile).unwrap(), trust(roots, &[], &[]))
}

/// An identity of a certificate from anywhere.
pub(crate) fn holding(issued: &Issued, trust: Trust) -> Arc<Identity> {
    let pem = Pem {
        chain: issued.certificate_pem.clone().into_bytes(),
        key: issued.key_pem.clone().into_bytes().into(),
        bundle: issued.certificate_pem.clone().into_bytes(),
        ..Pem::default()
    };
    let set = pem.decode("unused.example").unwrap();
    Arc::new(Identity::of(Material::unchecked(set.chain, &set.key, Arc::new(trust))))
}

/// Belief in roots by trust domain, revocation lists (PEM) and aliases of `cluster.local`.
pub(crate) fn trust(roots: &[(&str, &Authority)], lists: &[String], aliases: &[&str]) -> Trust {
    let mut known = Roots::default();
    for (name, authority) in roots {
        let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap();
        known.insert(name, &[root]).unwrap();
    }
    let ders: Vec<_> = lists.iter().flat_map(|pem| revocation::decode(pem.as_bytes()).unwrap()).collect();
    let lists = revocation::read_all(ders.iter(), &[]).unwrap().into();
    Trust::new("cluster.local", known, lists, aliases.iter().map(|&alias| alias.into()).collect(), 1)
}
