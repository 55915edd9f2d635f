//! What one worker has to itself: its view of the tables, its pools, its share of telemetry.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::drain::DrainSignal;
use crate::generation::Current;
use crate::h1::Timeouts;
use crate::identity::Identity;
use crate::jwt::Tokens;
use crate::limits::Budget;
use crate::live::Live;
use crate::memory::Memory;
use crate::net::OwnListeners;
use crate::sample::Sampler;
use crate::telemetry::Shard;
use crate::tls::{GatewayTls, ServerTls};
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
    /// What is open, so that changes reach it.
    pub live: Rc<Live>,
    /// What decisions leave behind for later ones.
    pub memory: Memory,
    /// Samples what is decided for a candidate configuration; `None`: there is none.
    pub sampler: Option<Sampler>,
    /// Verifies end users' tokens.
    pub tokens: Tokens,
    /// What all workers may hold of request bodies for providers to see.
    pub held_bodies: Arc<Budget>,
    /// This proxy's identity; `None`: plaintext only.
    pub identity: Option<Arc<Identity>>,
    /// Terminates mesh mTLS; `None`: plaintext only.
    pub server_tls: Option<Arc<ServerTls>>,
    /// Terminates TLS at a Gateway.
    pub gateway_tls: Arc<GatewayTls>,
    /// Our own listeners, never to be connected to.
    pub own: Arc<OwnListeners>,
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
    /// For an HTTP connection without a request, a tunnel without a byte, and an HTTP/2 stream that is being answered and
    /// still owes bytes of its request, without one either way.
    pub idle: Duration,
    /// For a whole HTTP/1 head, from its first byte.
    pub head: Duration,
    /// For the next bytes of a request body that the server waits for (over HTTP/2: before it answers, and not of a gRPC
    /// call, for whose next message `idle` is the bound).
    pub body: Duration,
    /// For a client to take any of its answer.
    pub write: Duration,
    /// For the answer to a client that closed its sending side.
    pub half_close: Duration,
    /// Longest life of an HTTP connection, callers' and upstream; zero: no limit. Each lives for 90 to 100 % of it, and
    /// ends after the requests under way.
    pub max_connection_duration: Duration,
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
            max_connection_duration: Duration::from_secs(3600),
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
