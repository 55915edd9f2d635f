//! SPIFFE ids, the current certificate, and where it comes from.

mod chains;
mod dev;
mod error;
mod files;
#[cfg(test)]
pub(crate) mod fixture;
mod material;
mod proof;
mod renewal;
mod revocation;
mod roots;
mod set;
mod source;
mod spiffe_id;
mod status;
pub mod svid;
mod trust;
mod workload_api;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

pub use dev::authority as development_authority;
pub use error::IdentityError;
pub use material::Material;
pub use proof::{CLOCK_SKEW_SECONDS, Proof};
use renewal::{ListFile, Renewal};
pub use source::{InvalidSource, Source, WorkloadApi};
pub use spiffe_id::{InvalidSpiffeId, SpiffeId};
pub use status::{Health, Status};
pub use trust::Trust;

/// The process's own identity: the current certificate, key and roots. Handshakes read it, [`Identity::watch`] renews it.
pub struct Identity {
    source: Source,
    trust_domain: Box<str>,
    /// What a development leaf is made for, and which SVID of several is meant.
    own: Option<SpiffeId>,
    current: ArcSwap<Material>,
    generation: watch::Sender<u64>,
    trust: watch::Sender<u64>,
    list_files: Vec<ListFile>,
    renewal: Mutex<Renewal>,
}

impl Identity {
    /// Reads or makes the first certificate, and waits for it where it comes over a Workload API. `own` is what a
    /// development leaf is made for; other sources say themselves. `lists`: a file of revocation lists, besides the one that
    /// may lie beside the certificate.
    pub fn load(
        source: Source,
        trust_domain: &str,
        own: Option<SpiffeId>,
        lists: Option<PathBuf>,
    ) -> Result<Arc<Self>, IdentityError> {
        if !spiffe_id::is_trust_domain(trust_domain) {
            return Err(IdentityError::InvalidTrustDomain(trust_domain.into()));
        }
        let list_files = renewal::list_files(&source, lists);
        let (material, renewal) = renewal::first(&source, trust_domain, own.as_ref(), &list_files)?;
        Ok(Arc::new(Self {
            source,
            trust_domain: trust_domain.into(),
            own,
            generation: watch::Sender::new(material.generation),
            trust: watch::Sender::new(material.trust.generation()),
            current: ArcSwap::from_pointee(material),
            list_files,
            renewal: Mutex::new(renewal),
        }))
    }

    /// What is in force now.
    pub fn current(&self) -> Guard<Arc<Material>> {
        self.current.load()
    }

    /// Whose it is.
    pub fn id(&self) -> SpiffeId {
        self.current.load().id.clone()
    }

    /// The trust domain of this proxy.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Moves whenever certificate or roots do; from 1.
    pub fn generation(&self) -> u64 {
        self.current.load().generation
    }

    /// Tells each new generation.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// When the certificate in force expires.
    pub fn not_after(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(self.current.load().not_after).unwrap_or_default())
    }
}

#[cfg(test)]
impl Identity {
    /// Of some material, from nowhere.
    fn of(material: Material) -> Self {
        Self {
            source: Source::Files("/nowhere".into()),
            trust_domain: "cluster.local".into(),
            own: None,
            current: ArcSwap::from_pointee(material),
            generation: watch::Sender::new(1),
            trust: watch::Sender::new(1),
            list_files: Vec::new(),
            renewal: Mutex::new(Renewal::new([0; 32], renewal::Lists::default())),
        }
    }
}

impl fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("source", &self.source)
            .field("current", &*self.current.load())
            .finish()
    }
}

#[cfg(test)]
mod tests;
