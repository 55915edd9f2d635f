//! What one worker has to itself: its view of the tables, its pools, its share of telemetry, its splits.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::drain::DrainSignal;
use crate::generation::Current;
use crate::h1::Timeouts;
use crate::identity::Identity;
use crate::net::OwnListeners;
use crate::tables::{Rule, SplitKey, SplitState};
use crate::telemetry::Shard;
use crate::tls::ServerTls;
use crate::upstream::{Registry, Upstream};

/// One data thread.
pub struct Worker {
    /// The tables to decide by.
    pub current: Current,
    /// Where records go.
    pub shard: Rc<Shard>,
    /// Pools and picking.
    pub upstream: Rc<Upstream>,
    /// Endpoint sets, and who is behind an address.
    pub registry: Arc<Registry>,
    /// What decisions leave behind for later ones.
    pub memory: Memory,
    /// This proxy's identity; `None`: plaintext only.
    pub identity: Option<Arc<Identity>>,
    /// Terminates mesh mTLS; `None`: plaintext only.
    pub server_tls: Option<Arc<ServerTls>>,
    /// Our own listeners, never to be connected to.
    pub own: Arc<OwnListeners>,
    /// Outbound destinations where the server spoke first, until when that is believed.
    pub server_first: ServerFirst,
    /// Deadlines.
    pub deadlines: Deadlines,
    /// Those of HTTP/1 connections.
    pub http1: Rc<Timeouts>,
    /// Tells this worker's connections to finish what they have.
    pub draining: DrainSignal,
}

/// Every deadline of the data path.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// For the first byte of a client whose protocol is not known.
    pub detect: Duration,
    /// For what completes a detection once it began, and for a TLS handshake.
    pub handshake: Duration,
    /// For an HTTP connection without a request, and a tunnel without a byte.
    pub idle: Duration,
    /// For a whole HTTP/1 head, from its first byte.
    pub head: Duration,
    /// For the next bytes of an HTTP/1 request body that the server waits for.
    pub body: Duration,
    /// For a client to take any of its HTTP/1 answer.
    pub write: Duration,
    /// For the answer to a client that closed its sending side.
    pub half_close: Duration,
}

impl Default for Deadlines {
    /// Envoy's stream and connection idle timeouts where it has them.
    fn default() -> Self {
        let Timeouts { head, idle, body, write, half_close } = Timeouts::default();
        Self {
            detect: Duration::from_millis(100),
            handshake: Duration::from_secs(10),
            idle,
            head,
            body,
            write,
            half_close,
        }
    }
}

impl Deadlines {
    /// Those of HTTP/1 connections.
    pub fn http1(&self) -> Timeouts {
        let Self { idle, head, body, write, half_close, .. } = *self;
        Timeouts { head, idle, body, write, half_close }
    }
}

/// What decisions leave behind for later ones.
#[derive(Default)]
pub struct Memory {
    /// Where each route's split stands.
    pub splits: Splits,
    /// Who was told lately what else was considered.
    pub considered: Considered,
}

/// Bounds how often a refusal is explained in its record: once a second for a caller, some times a second in all.
/// Reading every policy costs more than the refusal itself, and a refused caller must not choose how often.
#[derive(Default)]
pub struct Considered {
    second: RefCell<Second>,
}

/// Who had a refusal explained since when.
#[derive(Default)]
struct Second {
    began: Option<Instant>,
    callers: HashSet<Option<Arc<str>>>,
}

/// Explained refusals of one worker in one second.
const CONSIDERED_PER_SECOND: usize = 5;

impl Considered {
    /// Whether this refusal of `caller` may be explained.
    pub fn allows(&self, caller: Option<&Arc<str>>) -> bool {
        let mut second = self.second.borrow_mut();
        let now = Instant::now();
        if second.began.is_none_or(|began| now.duration_since(began) >= Duration::from_secs(1)) {
            second.began = Some(now);
            second.callers.clear();
        }
        second.callers.len() < CONSIDERED_PER_SECOND && second.callers.insert(caller.cloned())
    }
}

/// Where the splits of this worker stand, by route. Survives a change of tables.
#[derive(Default)]
pub struct Splits {
    states: RefCell<HashMap<SplitKey, SplitState, foldhash::fast::RandomState>>,
}

/// More routes than a worker has seen splits for at once: those no longer named are forgotten by starting over.
const MAX_SPLITS: usize = 100_000;

impl Splits {
    /// Index of the backend that the next request of `rule` goes to; `None` when no backend has a weight.
    pub fn choose(&self, rule: &Rule) -> Option<usize> {
        match rule.split.constant() {
            Some(constant) => constant,
            None => {
                let mut states = self.states.borrow_mut();
                if states.len() > MAX_SPLITS {
                    states.clear();
                }
                states.entry(rule.key).or_default().choose(&rule.split)
            }
        }
    }
}

/// Outbound destinations where the server spoke first, so that the next client need not wait for detection.
#[derive(Default)]
pub struct ServerFirst {
    until: RefCell<HashMap<SocketAddr, Instant, foldhash::fast::RandomState>>,
}

/// How long "the server spoke first" is believed.
const SERVER_FIRST_FOR: Duration = Duration::from_secs(60);
/// Destinations remembered at once.
const SERVER_FIRST_MAX: usize = 1024;

impl ServerFirst {
    /// The server at `destination` spoke first a short while ago.
    pub fn believes(&self, destination: SocketAddr) -> bool {
        let mut until = self.until.borrow_mut();
        match until.get(&destination) {
            Some(&end) if end > Instant::now() => true,
            Some(_) => {
                until.remove(&destination);
                false
            }
            None => false,
        }
    }

    /// It did just now.
    pub fn note(&self, destination: SocketAddr) {
        let mut until = self.until.borrow_mut();
        if until.len() >= SERVER_FIRST_MAX {
            let now = Instant::now();
            until.retain(|_, end| *end > now);
            if until.len() >= SERVER_FIRST_MAX {
                return;
            }
        }
        until.insert(destination, Instant::now() + SERVER_FIRST_FOR);
    }
}
