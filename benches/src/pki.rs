//! A throw-away certificate authority and the X.509-SVIDs of the two workloads, as files that every peer reads.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fips::ca::{Authority, Profile};

/// Longer than any comparison.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Who calls.
pub const CLIENT: &str = "spiffe://cluster.local/ns/bookinfo/sa/productpage";
/// Who is called.
pub const SERVER: &str = "spiffe://cluster.local/ns/bookinfo/sa/ratings";

/// The files of one workload.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Holds `tls.crt`, `tls.key` and `ca.crt`.
    pub dir: PathBuf,
}

impl Identity {
    /// Certificate chain, PEM.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("tls.crt")
    }

    /// Private key, PEM.
    pub fn key(&self) -> PathBuf {
        self.dir.join("tls.key")
    }

    /// Roots, PEM.
    pub fn roots(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }
}

/// Both identities under one root.
#[derive(Debug, Clone)]
pub struct Pki {
    /// [`CLIENT`].
    pub client: Identity,
    /// [`SERVER`].
    pub server: Identity,
    /// What signed them.
    pub authority: Arc<Authority>,
}

impl Pki {
    /// Makes everything under `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        let authority = Authority::generate("cluster.local", LIFETIME)?;
        Ok(Self {
            client: issue(&dir.join("productpage"), CLIENT, &authority)?,
            server: issue(&dir.join("ratings"), SERVER, &authority)?,
            authority: Arc::new(authority),
        })
    }
}

fn issue(dir: &Path, spiffe_id: &str, authority: &Authority) -> Result<Identity> {
    let issued = authority.issue(&Profile::workload(spiffe_id, LIFETIME))?;
    let identity = Identity { dir: dir.to_owned() };
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let files = [
        (identity.certificate(), issued.certificate_pem.as_str()),
        (identity.key(), &issued.key_pem),
        (identity.roots(), authority.certificate_pem()),
    ];
    for (path, text) in files {
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(identity)
}
