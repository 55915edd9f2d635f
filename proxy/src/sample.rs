//! A bounded sample of what is decided, for a candidate configuration to be asked about as well: taken on the workers, at
//! a cost that traffic does not drive up, and looked at on the control thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, Request, Uri, Version};
use tokio::sync::mpsc;

use crate::decision::{Outcome, PolicyRef, Reason, Stage};
use crate::error::Reject;
use crate::telemetry::{CandidateCounts, ConfigFacts, ConnectionFacts, Record};

/// A request or opaque connection, and what was decided about it.
#[derive(Debug)]
pub struct Sampled {
    /// The caller's connection.
    pub connection: ConnectionFacts,
    /// Where it wanted to go; `None`: wherever its authority says.
    pub destination: Option<SocketAddr>,
    /// What was asked.
    pub asked: Asked,
    /// Which configuration decided.
    pub config: Arc<ConfigFacts>,
    /// Whether it could go on.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// What decided.
    pub policy: PolicyRef,
}

/// What was asked.
#[derive(Debug)]
pub enum Asked {
    /// A request, as it came, without its body.
    Request(Box<Head>),
    /// An opaque connection, by the word of its record: `tcp` or `tls`.
    Opaque(&'static str),
}

/// The head of a request.
#[derive(Debug)]
pub struct Head {
    /// Method.
    pub method: Method,
    /// As it came.
    pub uri: Uri,
    /// HTTP/1.1 or another.
    pub version: Version,
    /// All of them. They never leave the process.
    pub headers: HeaderMap,
}

impl Head {
    fn of<B>(request: &Request<B>) -> Box<Self> {
        Box::new(Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
        })
    }
}

/// Chosen to be sampled, and not decided yet.
pub struct Chosen(Asked, Option<SocketAddr>);

/// Where samples go; each worker makes its own [`Sampler`] of it.
#[derive(Clone)]
pub struct Samples {
    to: mpsc::Sender<Box<Sampled>>,
    counts: Arc<CandidateCounts>,
}

impl Samples {
    /// A queue's two ends.
    pub fn queue(counts: Arc<CandidateCounts>) -> (Self, mpsc::Receiver<Box<Sampled>>) {
        let (to, from) = mpsc::channel(QUEUE);
        (Self { to, counts }, from)
    }

    /// For one worker.
    pub fn sampler(&self) -> Sampler {
        Sampler { samples: self.clone(), second: RefCell::default() }
    }
}

/// One worker's way to give samples away.
pub struct Sampler {
    samples: Samples,
    second: RefCell<Second>,
}

#[derive(Default)]
struct Second {
    began: Option<Instant>,
    taken: usize,
    /// By caller, so that a busy one leaves room for others.
    callers: HashMap<Option<Arc<str>>, usize>,
}

/// Samples of one worker in one second,
const SAMPLES_PER_SECOND: usize = 100;
/// and of one caller among them.
const SAMPLES_OF_A_CALLER: usize = 20;
/// Samples that wait for the control thread.
const QUEUE: usize = 256;

impl Sampler {
    /// Chooses a request, or not. Before it is decided, since deciding rewrites it.
    pub fn request<B>(
        &self,
        record: &Record,
        destination: Option<SocketAddr>,
        request: &Request<B>,
    ) -> Option<Chosen> {
        self.takes(record).then(|| Chosen(Asked::Request(Head::of(request)), destination))
    }

    /// Chooses an opaque connection, or not.
    pub fn opaque(&self, record: &Record, destination: Option<SocketAddr>) -> Option<Chosen> {
        self.takes(record).then_some(Chosen(Asked::Opaque(record.protocol), destination))
    }

    /// Gives away what was chosen, with what was decided.
    pub fn decided(&self, chosen: Chosen, record: &Record, refused: Option<&Reject>) {
        // The next such request is another backend's.
        if record.was_refused_by_turn() {
            return;
        }
        let Chosen(asked, destination) = chosen;
        let decision = &record.decision;
        let (outcome, reason) = match refused {
            // Refused before any policy decided.
            Some(reject) if decision.stage == Stage::Accept => (Outcome::Deny, reject.reason),
            _ => (decision.outcome, decision.reason),
        };
        let from = &record.connection;
        let sampled = Sampled {
            connection: ConnectionFacts {
                source_identity: from.source_identity.clone(),
                tls: from.tls.clone(),
                ..ConnectionFacts::new(from.side, from.source, from.destination)
            },
            destination,
            asked,
            config: Arc::clone(&record.config),
            outcome,
            reason,
            policy: decision.policy,
        };
        if self.samples.to.try_send(Box::new(sampled)).is_err() {
            self.samples.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn takes(&self, record: &Record) -> bool {
        self.second.borrow_mut().takes(record.started, record.connection.source_identity.as_ref())
    }
}

impl Second {
    fn takes(&mut self, now: Instant, caller: Option<&Arc<str>>) -> bool {
        if self.began.is_none_or(|began| now.duration_since(began) >= Duration::from_secs(1)) {
            (self.began, self.taken) = (Some(now), 0);
            self.callers.clear();
        }
        if self.taken >= SAMPLES_PER_SECOND {
            return false;
        }
        let of_caller = self.callers.entry(caller.cloned()).or_default();
        if *of_caller >= SAMPLES_OF_A_CALLER {
            return false;
        }
        *of_caller += 1;
        self.taken += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_caller_leaves_room_for_others_and_all_together_are_bounded() {
        let mut second = Second::default();
        let start = Instant::now();
        let callers: Vec<Arc<str>> = (0..20).map(|n| format!("spiffe://a/{n}").into()).collect();
        let taken = |second: &mut Second, caller: usize, at| {
            (0..1_000).filter(|_| second.takes(at, Some(&callers[caller]))).count()
        };
        assert_eq!(taken(&mut second, 0, start), SAMPLES_OF_A_CALLER);
        let all: usize = (1..20).map(|caller| taken(&mut second, caller, start)).sum();
        assert_eq!(all, SAMPLES_PER_SECOND - SAMPLES_OF_A_CALLER);
        assert!(second.callers.len() <= SAMPLES_PER_SECOND);
        assert_eq!(taken(&mut second, 7, start + Duration::from_secs(1)), SAMPLES_OF_A_CALLER);
    }
}
