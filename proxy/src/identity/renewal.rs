//! Renewal: how what a source has becomes what is in force, and what stays in force when it can't.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fips::ca::Authority;

use super::set::{Pem, Set};
use super::{Identity, IdentityError, Material, Source, SpiffeId, dev, files, workload_api};

/// How often files are looked at. Reading a few small ones costs less than being told of changes, and it sees symbolic
/// links swapped and directories remounted.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long a start waits for a Workload API: its agent may start after the proxy, and learn of the workload later still.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// The least time for which a Workload API may say nothing.
const LEAST_SILENCE: Duration = Duration::from_secs(10);

/// What a renewal knows from the last time.
pub(super) struct Renewal {
    /// Digest of the set in force.
    digest: [u8; 32],
    /// When a development leaf is to be made again.
    due: SystemTime,
    /// Why what the source has now is not in force, or that it has nothing.
    pub(super) problem: Option<Arc<str>>,
    /// Sets taken since the first.
    pub(super) rotations: u64,
    /// When the set in force was taken.
    pub(super) taken: SystemTime,
    /// How often the source had nothing that could be taken.
    pub(super) failures: u64,
}

impl Renewal {
    pub(super) fn new(digest: [u8; 32]) -> Self {
        let now = SystemTime::now();
        Self { digest, due: dev::due(now), problem: None, rotations: 0, taken: now, failures: 0 }
    }
}

/// The first set of a source.
pub(super) fn first(
    source: &Source,
    trust_domain: &str,
    own: Option<&SpiffeId>,
) -> Result<(Material, Renewal), IdentityError> {
    let found = match source {
        Source::Spiffe(_) => Found::Pushed(first_pushed(source, own)?),
        _ => Found::look(source, trust_domain, own)?,
    };
    let renewal = Renewal::new(found.digest());
    Ok((Material::assemble(found.set(trust_domain)?, trust_domain, 1)?, renewal))
}

/// The first set that a Workload API gives, on a thread and a runtime of its own: whoever starts may be in one already.
fn first_pushed(source: &Source, own: Option<&SpiffeId>) -> Result<Set, IdentityError> {
    let Source::Spiffe(api) = source else { return Err(IdentityError::NoOwnId) };
    let wait = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(IdentityError::Runtime)?.block_on(workload_api::first(api, own, START_PATIENCE))
    };
    std::thread::scope(|scope| scope.spawn(wait).join())
        .unwrap_or_else(|_| Err(IdentityError::Runtime(std::io::Error::other("its thread panicked"))))
}

impl Identity {
    /// Follows the source for as long as it is polled. Belongs to a control thread.
    pub async fn watch(self: Arc<Self>) {
        if let Source::Spiffe(api) = &self.source {
            let take = |update| {
                // The outcome is logged and kept.
                let _ = self.settle(|renewal| self.take_pushed(renewal, update?));
                self.patience(SystemTime::now())
            };
            return workload_api::follow(api, self.own.as_ref(), take).await;
        }
        let mut tick = tokio::time::interval(POLL_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let identity = Arc::clone(&self);
            // The outcome is logged and kept by `reload`; a cancelled task means the runtime goes down.
            let _ = tokio::task::spawn_blocking(move || identity.reload()).await;
        }
    }

    /// Takes what files or the development authority have now, if it is new and whole; else what was in force stays, and the
    /// reason is logged once. True if there is a new generation. Blocks on files.
    pub fn reload(&self) -> Result<bool, IdentityError> {
        self.reload_at(SystemTime::now())
    }

    pub(super) fn reload_at(&self, now: SystemTime) -> Result<bool, IdentityError> {
        self.settle(|renewal| {
            let found = Found::look(&self.source, &self.trust_domain, self.own.as_ref())?;
            let due = matches!(self.source, Source::Dev(_)) && now >= renewal.due;
            if found.digest() == renewal.digest && !due {
                return if now < self.not_after() { Ok(false) } else { Err(IdentityError::Lapsed) };
            }
            self.take(renewal, found, now)
        })
    }

    fn take_pushed(&self, renewal: &mut Renewal, set: Set) -> Result<bool, IdentityError> {
        let found = Found::Pushed(set);
        // After a reconnection the same comes again.
        if found.digest() == renewal.digest {
            return Ok(false);
        }
        self.take(renewal, found, SystemTime::now())
    }

    fn take(&self, renewal: &mut Renewal, found: Found, now: SystemTime) -> Result<bool, IdentityError> {
        let digest = found.digest();
        let generation = self.generation() + 1;
        let material = Material::assemble(found.set(&self.trust_domain)?, &self.trust_domain, generation)?;
        tracing::info!(id = %material.id, generation, not_after = material.not_after, "identity renewed");
        self.current.store(Arc::new(material));
        self.generation.send_replace(generation);
        *renewal = Renewal {
            digest,
            due: dev::due(now),
            rotations: renewal.rotations + 1,
            taken: now,
            problem: None,
            ..*renewal
        };
        Ok(true)
    }

    /// Keeps and tells what came of an attempt to renew: a problem once, and once that it is over.
    fn settle(
        &self,
        attempt: impl FnOnce(&mut Renewal) -> Result<bool, IdentityError>,
    ) -> Result<bool, IdentityError> {
        let mut renewal = self.renewal();
        let before = renewal.problem.take();
        let outcome = attempt(&mut renewal);
        let problem = outcome.as_ref().err().map(|error| Arc::<str>::from(error.to_string()));
        if let Some(problem) = &problem {
            renewal.failures += 1;
            if before.as_ref() != Some(problem) {
                tracing::error!(source = %self.source, %problem, "identity not renewed; the old one stays");
            }
        } else if before.is_some() {
            tracing::info!(source = %self.source, "identity source is well again");
        }
        renewal.problem = problem;
        outcome
    }

    /// How long a Workload API may say nothing: until the certificate in force should have been replaced. Then it is asked
    /// anew, for an agent that hangs keeps its connections.
    fn patience(&self, now: SystemTime) -> Duration {
        let current = self.current();
        let overdue = self.not_after() - current.lifetime() / 4;
        overdue.duration_since(now).unwrap_or_default().max(LEAST_SILENCE)
    }

    pub(super) fn renewal(&self) -> MutexGuard<'_, Renewal> {
        // What a panic left behind is still the last consistent state.
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a source has now, as far as needed to see whether it is new.
enum Found {
    Files(Pem),
    Dev(Box<Authority>, SpiffeId),
    Pushed(Set),
}

impl Found {
    fn look(source: &Source, trust_domain: &str, own: Option<&SpiffeId>) -> Result<Self, IdentityError> {
        match source {
            Source::Files(dir) => Ok(Self::Files(files::read(dir)?)),
            Source::Dev(dir) => {
                let own = own.ok_or(IdentityError::NoOwnId)?.clone();
                Ok(Self::Dev(Box::new(dev::authority(dir, trust_domain)?), own))
            }
            Source::Spiffe(_) => Ok(Self::Pushed(first_pushed(source, own)?)),
        }
    }

    fn digest(&self) -> [u8; 32] {
        match self {
            Self::Files(pem) => pem.digest(),
            Self::Dev(authority, _) => fips::sha256(authority.certificate_pem().as_bytes()),
            Self::Pushed(set) => set.digest(),
        }
    }

    fn set(self, trust_domain: &str) -> Result<Set, IdentityError> {
        match self {
            Self::Files(pem) => pem.decode(trust_domain),
            Self::Dev(authority, own) => dev::leaf(&authority, &own)?.decode(trust_domain),
            Self::Pushed(set) => Ok(set),
        }
    }
}
