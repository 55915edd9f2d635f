//! Records, metrics, logs: what leaves the proxy about what it decided.
//!
//! A [`Record`] is begun before anything can fail and emits itself when it is dropped: it counts in the worker's own
//! metric cells and leaves a JSON line in the worker's own buffer. Full buffers go to the one writer thread.
//! [`Telemetry`] is what all of that comes together in: started once, it outlives the workers and ends last.

mod cells;
mod collect;
mod coverage;
mod fragments;
mod identity;
mod issuers;
mod json;
mod later;
mod open;
mod options;
mod queue;
mod record;
mod render;
mod shard;
mod status;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;

use self::cells::Cells;
use self::collect::Scrape;
use self::coverage::Coverage;
pub use self::fragments::{ConfigFragment, ConnectionFragments};
pub use self::later::Later;
use self::options::ProxyFragments;
pub use self::options::{DEFAULT_PROGRESS, Options, ProxyFacts, Sample, Sink};
use self::queue::Queue;
pub use self::record::{
    Asked, Attempt, CertificateEvidence, ConfigFacts, ConnectionFacts, Consulted, Cut, Limited, Marks, Quota,
    Record, Side, TlsEvidence, Upload, UserEvidence,
};
pub use self::shard::{ConnectionGuard, Look, Shard};
pub use self::status::ConfigStatus;
use self::writer::Losses;
use crate::identity::Identity;
use crate::jwks;

/// What all workers' telemetry comes together in.
#[derive(Debug)]
pub struct Telemetry {
    proxy: ProxyFragments,
    sample: Sample,
    progress: Duration,
    /// `None`: records go nowhere.
    queue: Option<Arc<Queue>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    shared: Arc<Shared>,
    registry: Registry,
}

/// What a scrape reads.
#[derive(Debug, Default)]
struct Shared {
    workers: Mutex<Vec<Arc<Cells>>>,
    losses: Arc<Losses>,
    config: ArcSwap<ConfigStatus>,
    candidate: OnceLock<Arc<CandidateCounts>>,
    /// The proxy's own; a scrape asks it how it stands.
    identity: OnceLock<Arc<Identity>>,
    /// Keys of the issuers of tokens; likewise.
    issuers: OnceLock<Arc<jwks::Store>>,
}

/// Of what was decided, how a sample would have come out under the candidate configuration.
#[derive(Debug, Default)]
pub struct CandidateCounts {
    /// As it did.
    pub unchanged: AtomicU64,
    /// Allowed, and would be refused.
    pub allowed_to_refused: AtomicU64,
    /// Refused, and would be allowed.
    pub refused_to_allowed: AtomicU64,
    /// The candidate can't tell without asking a provider.
    pub undecided: AtomicU64,
    /// Chosen, and not asked about: there were too many at once.
    pub dropped: AtomicU64,
}

impl Shared {
    fn workers(&self) -> Vec<Arc<Cells>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Telemetry {
    /// Opens the sink and starts the thread that writes to it.
    ///
    /// # Errors
    /// When the record file can't be opened; the error names it.
    pub fn start(options: Options) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared::default());
        let queue = Arc::new(Queue::new(QUEUE_BATCHES));
        let writer = writer::start(&options.sink, &queue, &shared.losses)?;
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scrape(Arc::clone(&shared))));
        Ok(Arc::new(Self {
            proxy: ProxyFragments::new(&options.proxy),
            sample: options.sample,
            progress: options.progress,
            queue: writer.is_some().then_some(queue),
            writer: Mutex::new(writer),
            shared,
            registry,
        }))
    }

    /// A worker's own share. Called on the worker's thread, so that its cells lie in its own memory.
    pub fn shard(&self) -> Rc<Shard> {
        let cells = Arc::<Cells>::default();
        self.shared.workers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&cells));
        Shard::new(self.proxy.clone(), self.sample, self.queue.clone(), cells, self.progress)
    }

    /// All metrics, as OpenMetrics text ([`METRICS_CONTENT_TYPE`]).
    ///
    /// # Errors
    /// None in practice: writing to a string does not fail.
    pub fn metrics(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Which rules in force anything ever met, and what no policy decided: what `/coverage` says.
    pub fn coverage(&self) -> serde_json::Value {
        let (config, workers) = (self.config(), self.shared.workers());
        Coverage::of(&config, &workers).to_json(&config, &workers)
    }

    /// What a candidate configuration would change, for metrics. The first call makes them appear.
    pub fn candidate(&self) -> Arc<CandidateCounts> {
        Arc::clone(self.shared.candidate.get_or_init(Arc::default))
    }

    /// Says which configuration is in force from now on.
    pub fn set_config(&self, status: ConfigStatus) {
        self.shared.config.store(Arc::new(status));
    }

    /// Whose renewals the metrics tell from now on; the first one stays.
    pub fn set_identity(&self, identity: Arc<Identity>) {
        let _ = self.shared.identity.set(identity);
    }

    /// Whose keys the metrics tell of from now on; the first one stays.
    pub fn set_issuers(&self, keys: Arc<jwks::Store>) {
        let _ = self.shared.issuers.set(keys);
    }

    /// How the keys of issuers stand: what `/jwks` says.
    pub fn issuers(&self) -> serde_json::Value {
        self.shared.issuers.get().map_or_else(|| serde_json::json!([]), |keys| keys.to_json())
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<ConfigStatus> {
        self.shared.config.load_full()
    }

    /// Opens the record file anew, as after a rotation (which is noticed by itself within a second of traffic).
    pub fn reopen(&self) {
        if let Some(queue) = &self.queue {
            queue.reopen();
        }
    }

    /// Waits until the writer has written everything that workers handed over; false when that takes longer.
    /// Blocks: never to be called on a worker.
    pub fn flush(&self, patience: Duration) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue.drain(patience))
    }

    /// The end: writes what workers handed over and stops the writer. Workers end first, since a worker's [`Shard`]
    /// hands over its last lines when it is dropped. False when something is left unwritten after `patience`.
    /// Blocks: never to be called on a worker.
    pub fn shutdown(&self, patience: Duration) -> bool {
        let written = self.flush(patience);
        if let Some(queue) = &self.queue {
            queue.close();
        }
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        match writer {
            // A writer that is stuck (a pipe that nobody reads) is left behind rather than waited for.
            Some(writer) if written => writer.join().is_ok(),
            _ => written,
        }
    }
}

impl Drop for Telemetry {
    /// Lets the writer end by itself where nobody waited for it.
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.close();
        }
    }
}

/// What [`Telemetry::metrics`] is.
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Batches between the workers and the writer: 8 MiB in all.
const QUEUE_BATCHES: usize = 64;
