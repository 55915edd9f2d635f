//! A worker's own share of telemetry: ids, metric cells, the buffer of lines and the list of open records. Nothing in
//! here is shared on the request path.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;

use super::cells::{Cache, Cells};
use super::later::Later;
use super::open::{Begun, OpenRecords};
use super::options::{DEFAULT_PROGRESS, ProxyFacts, ProxyFragments, Sample};
use super::queue::{Batch, Queue};
use super::record::{ConfigFacts, ConnectionFacts, Consulted, Record, Side};
use super::render;
use crate::decision::{Outcome, Reason, Stage};

/// A worker's own share of telemetry.
pub struct Shard {
    proxy: ProxyFragments,
    sample: Sample,
    /// `None`: records go nowhere.
    queue: Option<Arc<Queue>>,
    cells: Arc<Cells>,
    cache: RefCell<Cache>,
    random: RefCell<SmallRng>,
    lines: RefCell<Batch>,
    /// Age of a record at which it says that it is still there.
    progress: Duration,
    open: RefCell<OpenRecords>,
    /// Wakes the flushing half of [`Shard::run`] when it sleeps for lack of lines.
    wake: Notify,
    idle: Cell<bool>,
    cut: Cell<bool>,
}

impl Shard {
    pub(super) fn new(
        proxy: ProxyFragments,
        sample: Sample,
        queue: Option<Arc<Queue>>,
        cells: Arc<Cells>,
        progress: Duration,
    ) -> Rc<Self> {
        Rc::new(Self {
            proxy,
            sample,
            queue,
            cells,
            cache: RefCell::default(),
            random: RefCell::new(SmallRng::from_rng(&mut rand::rng())),
            lines: RefCell::default(),
            progress,
            open: RefCell::new(OpenRecords::new(progress)),
            wake: Notify::new(),
            idle: Cell::new(false),
            cut: Cell::new(false),
        })
    }

    /// A shard whose records and metrics go nowhere: for `writ explain`, which only renders.
    pub fn detached(proxy: &ProxyFacts) -> Rc<Self> {
        Self::new(ProxyFragments::new(proxy), Sample::ALL, None, Arc::default(), DEFAULT_PROGRESS)
    }

    /// The worker's telemetry task, to be spawned on its runtime: hands over lines that have waited long enough, and
    /// writes the `progress` lines of long-lived records, which `look` finds where they lie. Never ends; dropping it is how
    /// it stops.
    pub async fn run(self: Rc<Self>, look: impl Look) {
        if self.queue.is_some() {
            tokio::join!(self.flush_aged(), self.report_progress(look));
        }
    }

    /// Hands the lines written so far over to the writer.
    pub fn flush(&self) {
        let mut lines = self.lines.borrow_mut();
        if lines.bytes.is_empty() {
            return;
        }
        let Some(queue) = &self.queue else { return };
        let batch = std::mem::take(&mut *lines);
        lines.bytes = queue.push(batch).unwrap_or_else(|lost| self.lost(lost));
    }

    /// From here on what ends without having said how was cut: the drain's deadline has passed.
    pub fn cut(&self) {
        self.cut.set(true);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// Takes a record off the list of open ones without a trace.
    pub(super) fn forget(&self, record: &Record) {
        self.open.borrow_mut().remove(record.slot);
    }

    /// Counts a connection as open until the guard is dropped.
    pub fn connection(self: &Rc<Self>, side: Side) -> ConnectionGuard {
        self.cells.connections_opened[side as usize].add(1);
        ConnectionGuard { shard: Rc::clone(self), side }
    }

    /// Counts what a provider said about a request that this configuration decides, and how long that took.
    pub(super) fn consulted(&self, config: &Arc<ConfigFacts>, consulted: &Consulted) {
        self.cache.borrow_mut().consulted(&self.cells, config, consulted);
    }

    /// Counts a connection to this port of the workload that is taken in plaintext.
    pub fn plaintext(&self, port: u16) {
        self.cells.plaintext.cell(port, |_| 0).add(1);
    }

    /// Counts a connection that was ended between two requests.
    pub fn cut_off(&self, side: Side, reason: Reason) {
        self.cells.cut(side, reason, None);
    }

    /// Counts a connection that was told to finish for its age.
    pub fn aged(&self, side: Side) {
        self.cells.connections_aged[side as usize].add(1);
    }

    /// Counts a sweep over what is open: how many requests and tunnels were asked about, in what time.
    pub fn swept(&self, asked: u64, spent: Duration) {
        self.cells.sweeps.add(1);
        self.cells.swept.add(asked);
        self.cells.swept_us.add(u64::try_from(spent.as_micros()).unwrap_or(u64::MAX));
    }

    pub(super) fn proxy(&self) -> &ProxyFragments {
        &self.proxy
    }

    /// A ULID: milliseconds since the epoch and 80 random bits.
    pub(super) fn next_id(&self, time: SystemTime) -> u128 {
        let millis = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
        let mut random = self.random.borrow_mut();
        let bits = u128::from(random.next_u64()) << 64 | u128::from(random.next_u64());
        (millis << 80) | (bits & ((1 << 80) - 1))
    }

    pub(super) fn opened(
        &self,
        id: u128,
        time: SystemTime,
        started: Instant,
        connection: &Rc<ConnectionFacts>,
    ) -> u32 {
        self.open.borrow_mut().insert(id, time, started, connection)
    }

    pub(super) fn begun(&self, record: &Record) {
        self.open.borrow_mut().begun(record.slot, Begun::of(record));
    }

    pub(super) fn lies_at(&self, record: &Record, place: usize) {
        self.open.borrow_mut().lies_at(record.slot, place);
    }

    /// Counts a record that ends now, and writes its line. `considered`: found out behind it.
    pub(super) fn emit(&self, record: &Record, considered: Option<Later>) {
        self.open.borrow_mut().remove(record.slot);
        self.cells.records.add(1);
        let elapsed_us = record.elapsed_us();
        self.cache.borrow_mut().count(&self.cells, record, elapsed_us);
        if let Some((
            _,
            reason @ (Reason::PolicyChanged | Reason::CertificateRevoked | Reason::CredentialExpired),
        )) = record.ended
        {
            self.cells.cut(record.connection.side, reason, record.cut.as_deref());
        }
        if self.queue.is_none() {
            return;
        }
        if !self.sample.keeps(record.id) && !refused(record) {
            self.cells.sampled_out.add(1);
            return;
        }
        self.write(1, |proxy, lines| {
            render::line(record, elapsed_us, proxy, &mut lines.bytes);
            if let Some(considered) = considered {
                lines.considers(considered);
            }
        });
    }

    /// Appends lines to the buffer; a full one leaves at once, another by [`Shard::flush_aged`].
    fn write(&self, records: u64, render: impl FnOnce(&ProxyFragments, &mut Batch)) {
        let mut lines = self.lines.borrow_mut();
        if lines.bytes.capacity() == 0 {
            lines.bytes.reserve_exact(BUFFER_BYTES);
        }
        render(&self.proxy, &mut lines);
        lines.records += records;
        let full = lines.bytes.len() >= BATCH_BYTES;
        drop(lines);
        if full {
            self.flush();
        } else if self.idle.replace(false) {
            self.wake.notify_one();
        }
    }

    async fn flush_aged(&self) {
        loop {
            if self.lines.borrow().bytes.is_empty() {
                self.idle.set(true);
                self.wake.notified().await;
            }
            tokio::time::sleep(FLUSH_INTERVAL).await;
            self.flush();
        }
    }

    async fn report_progress(&self, look: impl Look) {
        loop {
            tokio::time::sleep(self.progress / PROGRESS_SCANS).await;
            self.report_overdue(Instant::now(), &look);
        }
    }

    pub(super) fn report_overdue(&self, now: Instant, look: &impl Look) {
        let mut open = self.open.borrow_mut();
        open.overdue(now, |due| {
            let mut shown = false;
            if let Some(place) = due.place {
                look(place, &mut |record| {
                    if record.id == due.id {
                        self.write(0, |proxy, lines| render::progress(record, now, proxy, &mut lines.bytes));
                        shown = true;
                    }
                });
            }
            if !shown {
                self.write(0, |proxy, lines| due.render(now, proxy, &mut lines.bytes));
            }
        });
    }

    /// Counts what no place was found for; its buffer serves again.
    fn lost(&self, mut batch: Batch) -> Vec<u8> {
        self.cells.dropped.add(batch.records);
        batch.bytes.clear();
        batch.bytes
    }
}

impl Drop for Shard {
    /// The worker ends: its last lines wait for a place in the queue rather than being dropped.
    fn drop(&mut self) {
        let batch = std::mem::take(self.lines.get_mut());
        if batch.bytes.is_empty() {
            return;
        }
        if let Some(queue) = &self.queue
            && let Err(lost) = queue.push_last(batch, LAST_PATIENCE)
        {
            self.cells.dropped.add(lost.records);
        }
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").finish_non_exhaustive()
    }
}

/// Shows the record that lies at a place, if one does: those of long requests and tunnels do.
pub trait Look: Fn(usize, &mut dyn FnMut(&Record)) {}

impl<F: Fn(usize, &mut dyn FnMut(&Record))> Look for F {}

/// Refusals and failures are written whatever the sample.
fn refused(record: &Record) -> bool {
    record.decision.outcome == Outcome::Deny || record.ended.is_some_and(|(stage, _)| stage < Stage::Relay)
}

/// An open connection, for metrics.
#[derive(Debug)]
pub struct ConnectionGuard {
    shard: Rc<Shard>,
    side: Side,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.shard.cells.connections_closed[self.side as usize].add(1);
    }
}

/// Lines are handed over when there are this many bytes of them.
const BATCH_BYTES: usize = 128 * 1024;
/// A batch and one more line.
const BUFFER_BYTES: usize = BATCH_BYTES + 4 * 1024;
/// Lines are handed over when they are this old.
const FLUSH_INTERVAL: Duration = Duration::from_millis(20);
/// Looks for records that are due a `progress` line in the time after which they are.
const PROGRESS_SCANS: u32 = 6;
/// How long a worker that ends waits for a place for its last lines.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
