//! Renewal: how what a source has becomes what is in force, and what stays in force when it can't.

use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use control_client::snapshot::RevocationLists;
use fips::ca::Authority;

use super::revocation::{self, List};
use super::roots::Roots;
use super::set::{Pem, Set};
use super::trust::Trust;
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
    /// Why what a source has now is not in force, or that it has nothing; by [`Part`].
    problems: [Option<Arc<str>>; 4],
    lists: Lists,
    /// Sets taken since the first.
    pub(super) rotations: u64,
    /// When the set in force was taken.
    pub(super) taken: SystemTime,
    /// How often the source had nothing that could be taken.
    pub(super) failures: u64,
}

impl Renewal {
    pub(super) fn new(digest: [u8; 32], lists: Lists) -> Self {
        let now = SystemTime::now();
        Self {
            digest,
            due: dev::due(now),
            problems: Default::default(),
            lists,
            rotations: 0,
            taken: now,
            failures: 0,
        }
    }

    /// Why what the sources have now is not in force.
    pub(super) fn problem(&self) -> Option<Arc<str>> {
        self.problems.iter().flatten().next().cloned()
    }
}

/// Revocation lists, by where they come from.
#[derive(Debug, Default)]
pub(super) struct Lists {
    files: Vec<Arc<List>>,
    configured: Vec<Arc<List>>,
    pushed: Vec<Arc<List>>,
}

impl Lists {
    fn all(&self) -> Arc<[Arc<List>]> {
        self.files.iter().chain(&self.configured).chain(&self.pushed).cloned().collect()
    }
}

/// A file of revocation lists.
#[derive(Debug)]
pub(super) struct ListFile {
    path: PathBuf,
    /// One that was asked for must be there; one that may lie beside a certificate need not.
    required: bool,
}

/// Where revocation lists are: beside the certificate, and where the operator says.
pub(super) fn list_files(source: &Source, asked: Option<PathBuf>) -> Vec<ListFile> {
    let beside = match source {
        Source::Files(dir) => Some(ListFile { path: dir.join(files::LISTS), required: false }),
        Source::Dev(_) | Source::Spiffe(_) => None,
    };
    let asked = asked.map(|path| ListFile { path, required: true });
    beside.into_iter().chain(asked).collect()
}

/// What is in all of them; lists that `known` has are taken from there.
fn read_lists(files: &[ListFile], known: &[Arc<List>]) -> Result<Vec<Arc<List>>, IdentityError> {
    let mut all = Vec::new();
    for file in files {
        all.extend(file.read(known).map_err(|error| match file.required {
            true => IdentityError::Lists { path: file.path.clone(), error: Box::new(error) },
            // Of what lies beside the certificate, `--identity` says where.
            false => error,
        })?);
    }
    Ok(all)
}

impl ListFile {
    fn read(&self, known: &[Arc<List>]) -> Result<Vec<Arc<List>>, IdentityError> {
        match files::read_lists(&self.path)? {
            Some(pem) => revocation::read_all(revocation::decode(&pem)?.iter(), known),
            None if self.required => Err(IdentityError::missing(&self.path)),
            None => Ok(Vec::new()),
        }
    }
}

/// The first set of a source.
pub(super) fn first(
    source: &Source,
    trust_domain: &str,
    own: Option<&SpiffeId>,
    lists: &[ListFile],
) -> Result<(Material, Renewal), IdentityError> {
    let files = read_lists(lists, &[])?;
    let found = Found::look(source, trust_domain, own)?;
    let digest = found.digest();
    let set = found.set(trust_domain)?;
    let lists = Lists { files, pushed: revocation::read_all(set.lists.iter(), &[])?, ..Lists::default() };
    let trust = Trust::new(trust_domain, roots(&set)?, lists.all(), Arc::default(), 1);
    let renewal = Renewal::new(digest, lists);
    Ok((Material::assemble(set.chain, &set.key, Arc::new(trust), trust_domain, 1)?, renewal))
}

fn roots(set: &Set) -> Result<Roots, IdentityError> {
    let mut roots = Roots::default();
    for (name, certificates) in &set.roots {
        roots.insert(name, certificates)?;
    }
    Ok(roots)
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
    /// Follows the sources for as long as it is polled. Belongs to a control thread.
    pub async fn watch(self: Arc<Self>) {
        let Source::Spiffe(api) = &self.source else { return Arc::clone(&self).poll().await };
        let take = |update| {
            // The outcomes are logged and kept. Who is revoked comes first.
            if let Ok(set) = &update {
                let _ = self.settle(Part::PushedLists, |renewal| self.take_pushed_lists(renewal, set));
            }
            let _ = self.settle(Part::Set, |renewal| self.take_pushed(renewal, update?));
            self.patience(SystemTime::now())
        };
        tokio::join!(workload_api::follow(api, self.own.as_ref(), take), Arc::clone(&self).poll());
    }

    /// Looks at files as long as it is polled.
    async fn poll(self: Arc<Self>) {
        let mut tick = tokio::time::interval(POLL_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let identity = Arc::clone(&self);
            let look = move || {
                // The outcomes are logged and kept.
                let _ = identity.reload_lists();
                if !matches!(identity.source, Source::Spiffe(_)) {
                    let _ = identity.reload();
                }
            };
            // A cancelled task means the runtime goes down.
            let _ = tokio::task::spawn_blocking(look).await;
        }
    }

    /// Takes what the files of revocation lists have now; what can't be read leaves the lists as they were. True if they are
    /// others. Blocks on files.
    pub fn reload_lists(&self) -> Result<bool, IdentityError> {
        self.settle(Part::ListFiles, |renewal| {
            renewal.lists.files = read_lists(&self.list_files, self.current.load().trust.lists())?;
            Ok(self.believe_lists(renewal))
        })
    }

    /// Takes what the configuration says of who is revoked; what can't be read leaves the lists as they were. True if they are
    /// others.
    pub fn set_lists(&self, lists: &RevocationLists) -> Result<bool, IdentityError> {
        self.settle(Part::ConfiguredLists, |renewal| {
            let ders = match lists {
                RevocationLists::Lists(pem) if !pem.text().trim().is_empty() => {
                    revocation::decode(pem.text().as_bytes())?
                }
                RevocationLists::Unreadable(why) => return Err(IdentityError::Configured(why.clone())),
                RevocationLists::Absent | RevocationLists::Lists(_) => Vec::new(),
            };
            renewal.lists.configured = revocation::read_all(ders.iter(), self.current.load().trust.lists())?;
            Ok(self.believe_lists(renewal))
        })
    }

    fn take_pushed_lists(&self, renewal: &mut Renewal, set: &Set) -> Result<bool, IdentityError> {
        renewal.lists.pushed = revocation::read_all(set.lists.iter(), self.current.load().trust.lists())?;
        Ok(self.believe_lists(renewal))
    }

    fn believe_lists(&self, renewal: &Renewal) -> bool {
        let current = self.current.load_full();
        self.believe(&current, renewal.lists.all(), current.trust.aliases())
    }

    /// Trust domains that are to be treated as the own one from now on (MeshSettings `trustDomainAliases`).
    pub fn set_aliases(&self, aliases: &[String]) {
        let _renewal = self.renewal();
        let current = self.current.load_full();
        let aliases = aliases.iter().map(|alias| alias.as_str().into()).collect();
        self.believe(&current, current.trust.shared_lists(), aliases);
    }

    /// Believes `lists` and `aliases` from now on. Called by who holds the renewal.
    fn believe(&self, current: &Material, lists: Arc<[Arc<List>]>, aliases: Arc<[Box<str>]>) -> bool {
        let trust = &current.trust;
        if trust.means(trust.roots(), &lists, &aliases) {
            return false;
        }
        let generation = trust.generation() + 1;
        tracing::info!(generation, lists = lists.len(), aliases = aliases.len(), "trust changed");
        self.put(current.trusting(Arc::new(trust.with(lists, aliases, generation))));
        true
    }

    /// Puts `material` in force, then tells who waits for it.
    fn put(&self, material: Material) {
        let (generation, trust) = (material.generation, material.trust.generation());
        self.current.store(Arc::new(material));
        self.generation.send_replace(generation);
        self.trust.send_if_modified(|known| std::mem::replace(known, trust) != trust);
    }

    /// Takes what files or the development authority have now, if it is new and whole; else what was in force stays, and the
    /// reason is logged once. True if there is a new generation. Blocks on files.
    pub fn reload(&self) -> Result<bool, IdentityError> {
        self.reload_at(SystemTime::now())
    }

    pub(super) fn reload_at(&self, now: SystemTime) -> Result<bool, IdentityError> {
        self.settle(Part::Set, |renewal| {
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
        let set = found.set(&self.trust_domain)?;
        let roots = roots(&set)?;
        let current = self.current.load_full();
        let (known, generation) = (&current.trust, current.generation + 1);
        let (lists, aliases) = (known.shared_lists(), known.aliases());
        let trust = if known.means(&roots, &lists, &aliases) {
            Arc::clone(known)
        } else {
            Arc::new(Trust::new(&self.trust_domain, roots, lists, aliases, known.generation() + 1))
        };
        let material = Material::assemble(set.chain, &set.key, trust, &self.trust_domain, generation)?;
        tracing::info!(
            id = %material.id,
            generation,
            trust = material.trust.generation(),
            not_after = material.not_after,
            "identity renewed"
        );
        self.put(material);
        renewal.digest = digest;
        renewal.due = dev::due(now);
        renewal.rotations += 1;
        renewal.taken = now;
        Ok(true)
    }

    /// Keeps and tells what came of an attempt to renew a part: a problem once, and once that it is over.
    fn settle(
        &self,
        part: Part,
        attempt: impl FnOnce(&mut Renewal) -> Result<bool, IdentityError>,
    ) -> Result<bool, IdentityError> {
        let mut renewal = self.renewal();
        let outcome = attempt(&mut renewal);
        let problem = outcome.as_ref().err().map(|error| Arc::<str>::from(error.to_string()));
        renewal.failures += u64::from(problem.is_some());
        let what = part.what();
        let before = std::mem::replace(&mut renewal.problems[part as usize], problem.clone());
        match problem {
            Some(problem) if before.as_ref() != Some(&problem) => {
                tracing::error!(source = %self.source, %problem, "{what} not renewed; the old stays");
            }
            None if before.is_some() => tracing::info!(source = %self.source, "{what} renewed again"),
            _ => {}
        }
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

/// What is renewed apart from the rest.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// Certificate, key and roots.
    Set,
    /// Revocation lists in files.
    ListFiles,
    /// Those of the configuration.
    ConfiguredLists,
    /// Those that a Workload API gives.
    PushedLists,
}

impl Part {
    const fn what(self) -> &'static str {
        match self {
            Self::Set => "identity",
            Self::ListFiles => "revocation lists in files",
            Self::ConfiguredLists => "revocation lists of the configuration",
            Self::PushedLists => "revocation lists of the Workload API",
        }
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
