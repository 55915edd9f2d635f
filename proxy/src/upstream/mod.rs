//! Endpoint sets and their live state, picking, pools, connecting, sending.

pub mod call;
mod dial;
mod hop;
mod http1;
mod http2;
mod io;
mod pick;
mod pool;
mod registry;
mod send;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod upgraded;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;

pub use self::hop::{Hop, HopFacts, HopProtocol, HopTls};
pub use self::io::Io;
use self::pick::Balancer;
use self::pool::{Target, TargetKey};
pub use self::registry::{BackendStatus, Endpoint, EndpointStatus, Registry};
pub use self::send::Sending;
pub use self::upgraded::{Upgraded, UpgradedUpstream};
use crate::body::Body;
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::tables::{Backend, BackendId};
use crate::tls::ClientTls;

/// The upstream side of one worker: its pools, its view of the endpoint sets.
#[derive(Debug)]
pub struct Upstream {
    registry: Arc<Registry>,
    tls: Arc<ClientTls>,
    settings: Settings,
    /// By [`BackendId`].
    balancers: RefCell<Vec<Option<Rc<Balancer>>>>,
    targets: RefCell<HashMap<TargetKey, Rc<Target>, foldhash::fast::RandomState>>,
    random: RefCell<SmallRng>,
    /// Idle HTTP/1 connections of all targets.
    idle: Cell<usize>,
    /// Moves when connections of before must serve nobody any more.
    epoch: Cell<u32>,
    /// The sweeper's clock.
    tick: Cell<u32>,
    sweeping: Cell<bool>,
    /// Connections to servers that proved who they are, in use or not.
    believed: RefCell<Vec<Weak<HopFacts>>>,
    /// When the first of them expires, seconds since the epoch.
    next_expiry: Cell<Option<i64>>,
}

/// Bounds of the upstream side of one worker.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Idle HTTP/1 connections kept per endpoint and kind.
    pub max_idle_per_target: usize,
    /// Idle HTTP/1 connections kept in all.
    pub max_idle: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// How long a connection serves, idle or not; zero: no limit.
    pub max_connection_duration: Duration,
    /// Requests on one HTTP/2 connection before another is opened.
    pub max_streams: usize,
    /// HTTP/2 connections per endpoint and kind.
    pub max_h2_connections: usize,
    /// How long `Expect: 100-continue` holds the body back.
    pub continue_timeout: Duration,
    /// `SO_MARK` of outgoing sockets, so that interception rules let them pass.
    pub mark: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_idle_per_target: 256,
            max_idle: 4096,
            idle_timeout: Duration::from_secs(90),
            max_connection_duration: Duration::ZERO,
            max_streams: 100,
            max_h2_connections: 8,
            continue_timeout: Duration::from_secs(1),
            mark: None,
        }
    }
}

/// A response, and what carried it.
#[derive(Debug)]
pub struct Sent {
    /// Its head, and its body as it comes. After 101, or 2xx to CONNECT, an [`UpgradedUpstream`] is in its extensions.
    pub response: http::Response<Body>,
    /// The connection's facts.
    pub facts: Rc<HopFacts>,
}

/// No response.
#[derive(Debug)]
pub struct SendError {
    /// Why.
    pub reject: Reject,
    /// The request is whole, where it was, and can be sent again: nothing of a streamed body was taken.
    /// [`Reject::before_request`] tells whether the server can have acted on it.
    pub whole: bool,
    /// The connection's facts, if there was one.
    pub facts: Option<Rc<HopFacts>>,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reject.fmt(f)
    }
}

impl std::error::Error for SendError {}

/// A fresh connection, for what is not HTTP.
#[derive(Debug)]
pub struct Connected {
    /// Bytes both ways.
    pub io: Io,
    /// What is true of it.
    pub facts: Rc<HopFacts>,
}

impl Upstream {
    /// The upstream side of a worker. Used inside that worker's `LocalSet` only.
    pub fn new(registry: Arc<Registry>, tls: Arc<ClientTls>, settings: Settings) -> Rc<Self> {
        Rc::new(Self {
            registry,
            tls,
            settings,
            balancers: RefCell::default(),
            targets: RefCell::default(),
            random: RefCell::new(rand::make_rng()),
            idle: Cell::default(),
            epoch: Cell::default(),
            tick: Cell::default(),
            sweeping: Cell::default(),
            believed: RefCell::default(),
            next_expiry: Cell::default(),
        })
    }

    /// Chooses an endpoint of `backend`, and how to reach it. `avoid`: endpoints already tried for this request.
    pub fn pick(
        &self,
        backend: &Backend,
        request_protocol: HopProtocol,
        avoid: &[SocketAddr],
    ) -> Result<Hop, Reject> {
        let member = self
            .balancer(backend.id)
            .and_then(|balancer| balancer.choose(&mut self.random.borrow_mut(), avoid))
            .ok_or_else(|| no_endpoints(&backend.name))?;
        let protocol = hop::hop_protocol(backend.protocol, request_protocol);
        let target = member.target(&backend.tls, backend.mtls_required, protocol, || {
            let tls = HopTls::decide(&backend.tls, backend.mtls_required, &member.endpoint)?;
            let address = member.endpoint.address;
            Ok::<_, Reject>(self.target(TargetKey { address, source: None, tls, protocol }))
        })?;
        Ok(Hop { target, load: Some(Rc::clone(&member.load)), connect_timeout: backend.connect_timeout })
    }

    /// A hop to a given address: the local application, a passthrough destination, a pod.
    pub fn hop_to(
        &self,
        address: SocketAddr,
        tls: HopTls,
        protocol: HopProtocol,
        connect_timeout: Duration,
    ) -> Hop {
        self.hop_from(None, address, tls, protocol, connect_timeout)
    }

    /// As [`Upstream::hop_to`], from a chosen local address: see [`crate::net::socket::to_own_application`].
    pub fn hop_from(
        &self,
        source: Option<IpAddr>,
        address: SocketAddr,
        tls: HopTls,
        protocol: HopProtocol,
        connect_timeout: Duration,
    ) -> Hop {
        let target = self.target(TargetKey { address, source, tls, protocol });
        Hop { target, load: None, connect_timeout }
    }

    /// Sends a request from where it lies and waits for the head of its response. Dropping the future abandons it.
    pub fn send<'a>(self: &'a Rc<Self>, hop: &'a Hop, request: &'a mut http::Request<Body>) -> Sending<'a> {
        Sending::new(self, hop, request)
    }

    /// Opens a connection of its own, for a tunnel. ALPN follows from the hop's protocol.
    pub async fn connect(self: &Rc<Self>, hop: &Hop) -> Result<Connected, Reject> {
        self.dial(hop).await
    }

    fn balancer(&self, id: BackendId) -> Option<Rc<Balancer>> {
        let index = id.0 as usize;
        if let Some(balancer) = self.balancers.borrow().get(index).and_then(Option::as_ref) {
            return Some(Rc::clone(balancer));
        }
        let balancer = Rc::new(Balancer::new(self.registry.cell(id)?));
        let mut balancers = self.balancers.borrow_mut();
        for slot in balancers.iter_mut() {
            slot.take_if(|balancer| balancer.is_retired());
        }
        if balancers.len() <= index {
            balancers.resize(index + 1, None);
        }
        balancers[index] = Some(Rc::clone(&balancer));
        Some(balancer)
    }
}

fn no_endpoints(backend: &str) -> Reject {
    Reject::because(
        Stage::Pick,
        Reason::NoEndpoints,
        format_args!("{backend} has no ready endpoint; look at its pods and EndpointSlices"),
    )
}
