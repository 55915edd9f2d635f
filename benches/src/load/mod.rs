//! The load generator: a fixed number of requests in flight over kept-alive connections, as fast as they are answered.

mod h1;
mod h2;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;
use tokio::task::{LocalSet, spawn_local};

use crate::histogram::Histogram;

pub use h1::{encode, exchange};

/// What is spoken on a hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1.
    #[value(name = "h1")]
    Http1,
    /// HTTP/2, with prior knowledge where there is no TLS.
    #[value(name = "h2")]
    Http2,
}

/// The one request that is sent again and again.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Authority, by which the outbound proxy routes.
    pub authority: &'static str,
    /// Path.
    pub path: &'static str,
    /// Value of `x-tenant`, which the policy looks at.
    pub tenant: Option<&'static str>,
    /// Bearer token of the end user.
    pub token: Option<&'static str>,
}

/// How it is sent.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// What the client speaks.
    pub protocol: Protocol,
    /// Connections.
    pub connections: usize,
    /// Requests in flight on each; 1 for HTTP/1.
    pub streams: usize,
}

/// A running generator.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<Histogram>,
}

/// What the measuring thread sees of the generator, and tells it.
#[derive(Debug, Default)]
struct Shared {
    /// The status that is no error.
    expected: u16,
    completed: AtomicU64,
    errors: AtomicU64,
    recording: AtomicBool,
    stopping: AtomicBool,
    first_error: std::sync::Mutex<Option<String>>,
}

impl Load {
    /// Starts sending, on a thread of its own which inherits the core of the calling thread. `expected`: the status that
    /// is no error.
    pub fn start(target: SocketAddr, request: Request, expected: u16, shape: Shape) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::new(Shared { expected, ..Shared::default() });
        let thread = std::thread::Builder::new().name("load".into()).spawn({
            let shared = shared.clone();
            move || LocalSet::new().block_on(&runtime, generate(target, request, shape, shared))
        })?;
        Ok(Self { shared, thread })
    }

    /// Requests answered as expected so far.
    pub fn completed(&self) -> u64 {
        self.shared.completed.load(Ordering::Relaxed)
    }

    /// Other answers and broken connections so far.
    pub fn errors(&self) -> u64 {
        self.shared.errors.load(Ordering::Relaxed)
    }

    /// What the first of the errors was.
    pub fn first_error(&self) -> Option<String> {
        self.shared.first_error.lock().ok()?.clone()
    }

    /// From now on latencies are kept.
    pub fn record(&self) {
        self.shared.recording.store(true, Ordering::Relaxed);
    }

    /// Lets the requests in flight end, then gives the latencies that were kept, and how many requests were answered as
    /// expected.
    pub fn stop(self) -> Result<(Histogram, u64)> {
        self.shared.recording.store(false, Ordering::Relaxed);
        self.shared.stopping.store(true, Ordering::Relaxed);
        let latencies = self.thread.join().map_err(|_| anyhow!("the load generator panicked"))?;
        Ok((latencies, self.shared.completed.load(Ordering::Relaxed)))
    }
}

/// One request on a fresh connection: its status.
pub async fn ask(target: SocketAddr, protocol: Protocol, request: Request) -> Result<u16> {
    let answered = async {
        match protocol {
            Protocol::Http1 => h1::ask(target, request).await,
            Protocol::Http2 => h2::ask(target, request).await,
        }
    };
    tokio::time::timeout(Duration::from_secs(5), answered).await.context("no answer within 5 s")?
}

async fn generate(target: SocketAddr, request: Request, shape: Shape, shared: Arc<Shared>) -> Histogram {
    let counts = Rc::new(Counts { shared, latencies: RefCell::default(), failures_in_a_row: Cell::new(0) });
    let connections: Vec<_> = (0..shape.connections)
        .map(|_| spawn_local(keep_sending(target, request, shape, counts.clone())))
        .collect();
    for connection in connections {
        if let Err(panicked) = connection.await {
            counts.failed(&panicked);
        }
    }
    counts.latencies.take()
}

/// One connection, made again when it breaks.
async fn keep_sending(target: SocketAddr, request: Request, shape: Shape, counts: Rc<Counts>) {
    while !counts.stopping() {
        let ended = match shape.protocol {
            Protocol::Http1 => h1::send(target, request, &counts).await,
            Protocol::Http2 => h2::send(target, request, shape.streams, &counts).await,
        };
        if let Err(error) = ended {
            counts.failed(&error);
            tokio::time::sleep(counts.pause()).await;
        }
    }
}

/// The generator's own side of the figures; one thread, so plain cells.
struct Counts {
    shared: Arc<Shared>,
    latencies: RefCell<Histogram>,
    failures_in_a_row: Cell<u32>,
}

impl Counts {
    fn stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Relaxed)
    }

    fn answered(&self, status: u16, sent: Instant) {
        if status != self.shared.expected {
            return self.failed(&format_args!("status {status}"));
        }
        self.failures_in_a_row.set(0);
        self.shared.completed.fetch_add(1, Ordering::Relaxed);
        if self.shared.recording.load(Ordering::Relaxed) {
            self.latencies.borrow_mut().record(sent.elapsed());
        }
    }

    fn failed(&self, error: &dyn std::fmt::Display) {
        self.failures_in_a_row.set(self.failures_in_a_row.get().saturating_add(1));
        if self.shared.errors.fetch_add(1, Ordering::Relaxed) == 0
            && let Ok(mut first) = self.shared.first_error.lock()
        {
            *first = Some(format!("{error:#}"));
        }
    }

    /// A proxy that is gone is not to be stormed with connections; one broken connection costs nothing.
    fn pause(&self) -> Duration {
        Duration::from_millis(u64::from(self.failures_in_a_row.get().min(100)))
    }
}

/// hyper's tasks on the calling thread.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}
