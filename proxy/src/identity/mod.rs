//! SPIFFE ids, the current certificate, and where it comes from.

mod dev;
mod files;
#[cfg(test)]
pub(crate) mod fixture;
mod material;
mod source;
mod spiffe_id;
pub mod svid;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, Guard};
use fips::ca::Authority;
use tokio::sync::watch;

pub use material::Material;
use material::Pem;
pub use source::{InvalidSource, Source};
pub use spiffe_id::{InvalidSpiffeId, SpiffeId};

/// How often sources are looked at. Reading three small files costs less than being told of changes, and it sees symbolic
/// links swapped and directories remounted.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The process's own identity: the current certificate, key and roots. Handshakes read it, [`Identity::watch`] renews it.
pub struct Identity {
    source: Source,
    trust_domain: Box<str>,
    /// What a development leaf is made for.
    own: Option<SpiffeId>,
    current: ArcSwap<Material>,
    generation: watch::Sender<u64>,
    renewal: Mutex<Renewal>,
}

/// What [`Identity::reload`] knows from the last time.
struct Renewal {
    /// Digest of the set in force.
    digest: [u8; 32],
    /// When a development leaf is to be made again.
    due: SystemTime,
    /// Why the source's present set is not in force.
    problem: Option<Arc<str>>,
}

/// Why there is no identity, or no new one.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The directory has none of the names.
    #[error(
        "{0}: neither tls.crt nor svid.pem is there; expected tls.crt, tls.key and ca.crt, or svid.pem, svid_key.pem and svid_bundle.pem"
    )]
    NoFiles(PathBuf),
    /// A file or directory can't be read or written.
    #[error("{}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Not PEM, or not of what it should be.
    #[error("{what}: {why}")]
    Pem {
        /// `certificate`, `key` or `bundle`.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The key is of an unknown kind or of another certificate, as when only one of the two is written yet.
    #[error("key does not fit the certificate: {0}")]
    Key(rustls::Error),
    /// No peer would take the certificate.
    #[error("own certificate would be refused: {0}")]
    Certificate(svid::Refusal),
    /// The certificate is of another trust domain than this proxy.
    #[error("certificate is for {id}, but the trust domain is {expected}; see --trust-domain")]
    TrustDomain {
        /// Of the certificate.
        id: SpiffeId,
        /// Of this proxy.
        expected: Box<str>,
    },
    /// The certificate in force ran out, and the source has no other.
    #[error(
        "the certificate has expired and there is no newer one; peers refuse it. Is whatever renews it running?"
    )]
    Lapsed,
    /// A trust domain that can't be one.
    #[error("`{0}` is no trust domain: 1 to 255 of a-z, 0-9, '.', '-', '_'")]
    InvalidTrustDomain(Box<str>),
    /// A development identity needs to be told whose it is.
    #[error("dev: identities need the workload's SPIFFE id, which --workload and --service-account make")]
    NoOwnId,
    /// The authority failed.
    #[error(transparent)]
    Authority(#[from] fips::ca::CaError),
    /// To come.
    #[error(
        "{0}: the SPIFFE Workload API is not supported yet; let SPIFFE helper write files and use files:DIR"
    )]
    Unsupported(Source),
}

impl Identity {
    /// Reads or makes the first certificate. `own` is what a development leaf is made for; other sources say themselves.
    pub fn load(
        source: Source,
        trust_domain: &str,
        own: Option<SpiffeId>,
    ) -> Result<Arc<Self>, IdentityError> {
        if !spiffe_id::is_trust_domain(trust_domain) {
            return Err(IdentityError::InvalidTrustDomain(trust_domain.into()));
        }
        let found = Found::look(&source, trust_domain, own.as_ref())?;
        let digest = found.digest();
        let material = Material::assemble(found.pem()?, trust_domain, 1)?;
        Ok(Arc::new(Self {
            source,
            trust_domain: trust_domain.into(),
            own,
            current: ArcSwap::from_pointee(material),
            generation: watch::Sender::new(1),
            renewal: Mutex::new(Renewal { digest, due: half_life(), problem: None }),
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

    /// Why what the source has now is not in force; `None` when it is.
    pub fn problem(&self) -> Option<Arc<str>> {
        self.renewal().problem.clone()
    }

    /// Follows the source for as long as it is polled. Belongs to a control thread.
    pub async fn watch(self: Arc<Self>) {
        let mut tick = tokio::time::interval(POLL_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let identity = Arc::clone(&self);
            // The outcome is logged and kept by `reload`; a cancelled task means the runtime goes down.
            let _ = tokio::task::spawn_blocking(move || identity.reload()).await;
        }
    }

    /// Takes what the source has now, if it is new and whole; else what was in force stays, and the reason is logged once.
    /// True if there is a new generation. Blocks on files.
    pub fn reload(&self) -> Result<bool, IdentityError> {
        self.reload_at(SystemTime::now())
    }

    fn reload_at(&self, now: SystemTime) -> Result<bool, IdentityError> {
        let mut renewal = self.renewal();
        let outcome = self.renew(&mut renewal, now);
        let problem = outcome.as_ref().err().map(|error| Arc::<str>::from(error.to_string()));
        if problem != renewal.problem {
            match &problem {
                Some(problem) => {
                    tracing::error!(source = %self.source, %problem, "identity not renewed; the old one stays");
                }
                None => tracing::info!(source = %self.source, "identity source is well again"),
            }
            renewal.problem = problem;
        }
        outcome
    }

    fn renew(&self, renewal: &mut Renewal, now: SystemTime) -> Result<bool, IdentityError> {
        let found = Found::look(&self.source, &self.trust_domain, self.own.as_ref())?;
        let digest = found.digest();
        let due = matches!(self.source, Source::Dev(_)) && now >= renewal.due;
        if digest == renewal.digest && !due {
            return if now < self.not_after() { Ok(false) } else { Err(IdentityError::Lapsed) };
        }
        let generation = self.generation() + 1;
        let material = Material::assemble(found.pem()?, &self.trust_domain, generation)?;
        tracing::info!(id = %material.id, generation, not_after = material.not_after, "identity renewed");
        self.current.store(Arc::new(material));
        self.generation.send_replace(generation);
        (renewal.digest, renewal.due) = (digest, half_life());
        Ok(true)
    }

    fn renewal(&self) -> std::sync::MutexGuard<'_, Renewal> {
        // What a panic left behind is still the last consistent state.
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Identity {
    /// Of some material, from nowhere.
    fn of(material: Material) -> Self {
        Self {
            source: Source::Spiffe("unix:/nowhere".into()),
            trust_domain: "cluster.local".into(),
            own: None,
            current: ArcSwap::from_pointee(material),
            generation: watch::Sender::new(1),
            renewal: Mutex::new(Renewal { digest: [0; 32], due: half_life(), problem: None }),
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

/// What a source has now, as far as needed to see whether it is new.
enum Found {
    Files(Pem),
    Dev(Box<Authority>, SpiffeId),
}

impl Found {
    fn look(source: &Source, trust_domain: &str, own: Option<&SpiffeId>) -> Result<Self, IdentityError> {
        match source {
            Source::Files(dir) => Ok(Self::Files(files::read(dir)?)),
            Source::Dev(dir) => {
                let own = own.ok_or(IdentityError::NoOwnId)?.clone();
                Ok(Self::Dev(Box::new(dev::authority(dir, trust_domain)?), own))
            }
            Source::Spiffe(_) => Err(IdentityError::Unsupported(source.clone())),
        }
    }

    fn digest(&self) -> [u8; 32] {
        match self {
            Self::Files(pem) => pem.digest(),
            Self::Dev(authority, _) => fips::sha256(authority.certificate_pem().as_bytes()),
        }
    }

    fn pem(self) -> Result<Pem, IdentityError> {
        match self {
            Self::Files(pem) => Ok(pem),
            Self::Dev(authority, own) => dev::leaf(&authority, &own),
        }
    }
}

/// When a development leaf made now is to be made again.
fn half_life() -> SystemTime {
    SystemTime::now() + dev::LEAF_LIFETIME / 2
}

#[cfg(test)]
mod tests;
