//! The HTTP/2 client: few connections per target, each with a task of its own, many requests on each.

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::error::Error as _;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{Shared as SharedFuture, WeakShared};
use http::header::{CONNECTION, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, Uri, Version};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinHandle;

use super::hop::{Hop, HopFacts, HopTls};
use super::pick::InFlight;
use super::pool::Retires;
use super::{Connected, SendError, Sent, Upstream};
use crate::body::{Body, BodyError};
use crate::clock::Moment;
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::h1::is_padded;

/// Receive window of a stream and of a connection: large and fixed, which measured faster than adaptive ones.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// What a stream holds of its request for the server to take.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Longest response head, as over HTTP/1.
const MAX_HEADER_LIST: u32 = crate::h1::MAX_HEAD as u32;

/// A send under way.
pub(super) type Exchange = Pin<Box<dyn Future<Output = Result<Sent, Failed>>>>;

/// Why there is no response, and the request if it is whole.
type Failed = (SendError, Option<Box<Request<Body>>>);

/// Sends a request over one of the target's connections, opened if need be.
pub(super) fn send(
    upstream: Rc<Upstream>,
    hop: Hop,
    request: Request<Body>,
    in_flight: Option<InFlight>,
) -> Exchange {
    Box::pin(async move {
        let mut request = match translate(request, hop.tls()) {
            Ok(request) => request,
            Err((reject, request)) => return Err(unsent(reject, request, None)),
        };
        // A connection can close between choosing it and sending; a fresh one hardly does.
        for _ in 0..MAX_CONNECTIONS_TRIED {
            let mut lease = match acquire(&upstream, &hop).await {
                Ok(lease) => lease,
                Err(reject) => return Err(unsent(reject, request, None)),
            };
            let facts = Rc::clone(&lease.connection.facts);
            let sent = lease.connection.sender.borrow_mut().try_send_request(request);
            let sent = sent.await;
            lease.answered();
            match sent {
                Ok(response) => return Ok(Sent { response: receive(response, lease, in_flight), facts }),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => {
                        let reject = reject(&error.into_error(), &facts);
                        return Err((SendError { reject, whole: false, facts: Some(facts) }, None));
                    }
                },
            }
        }
        Err(unsent(no_use(&hop), request, None))
    })
}

fn no_use(hop: &Hop) -> Reject {
    let detail = format_args!("{} closes every HTTP/2 connection before a request", hop.address());
    Reject::because(Stage::Send, Reason::IdleRace, detail)
}

const MAX_CONNECTIONS_TRIED: usize = 3;

fn unsent(reject: Reject, request: Request<Body>, facts: Option<Rc<HopFacts>>) -> Failed {
    (SendError { reject, whole: true, facts }, Some(Box::new(request)))
}

/// The HTTP/2 connections of a target.
#[derive(Debug, Default)]
pub(super) struct Shared {
    connections: RefCell<Vec<Rc<Connection>>>,
    /// The dial that everybody waits for who finds no room; dropped when nobody waits any more.
    dialing: RefCell<Option<WeakShared<Dialing>>>,
}

type Dialing = Pin<Box<dyn Future<Output = Result<(), Rc<Reject>>>>>;

/// A connection; closed when the pool and the last stream have let go of it.
struct Connection {
    sender: RefCell<SendRequest<Body>>,
    streams: Cell<usize>,
    /// Streams given up without a response since the last response.
    unanswered: Cell<u32>,
    facts: Rc<HopFacts>,
    idle_since: Cell<u32>,
    retires: Retires,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("facts", &self.facts).field("streams", &self.streams).finish()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// A path that swallows everything looks like a slow server for many minutes, so streams given up one after the
    /// other are a reason to try another connection.
    fn answers(&self) -> bool {
        self.unanswered.get() < MAX_UNANSWERED
    }

    /// Whether it is to be kept: one that does not answer counts for as long as it has streams, so that nobody can have
    /// connections opened without end.
    fn is_of_use(&self) -> bool {
        !self.sender.borrow().is_closed() && (self.answers() || self.streams.get() > 0)
    }
}

/// Streams given up in a row before a connection gets no more of them, unless there may be no other.
const MAX_UNANSWERED: u32 = 5;
/// A stream that is given up sooner says nothing about the server.
const TIME_TO_ANSWER: Duration = Duration::from_millis(100);

/// One stream of a connection.
#[derive(Debug)]
struct Lease {
    connection: Rc<Connection>,
    began: Moment,
    answered: bool,
}

impl Lease {
    fn new(connection: &Rc<Connection>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        Self { connection: Rc::clone(connection), began: Moment::now(), answered: false }
    }

    /// The server gave a sign of life.
    fn answered(&mut self) {
        self.answered = true;
        self.connection.unanswered.set(0);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.streams.set(connection.streams.get() - 1);
        if !self.answered && self.began.elapsed() >= TIME_TO_ANSWER {
            connection.unanswered.set(connection.unanswered.get() + 1);
        }
    }
}

impl Shared {
    pub(super) fn is_empty(&self) -> bool {
        self.connections.borrow().is_empty()
    }

    /// Takes no new stream on any connection of now; those under way go on.
    pub(super) fn retire_all(&self) {
        self.connections.borrow_mut().clear();
        self.dialing.borrow_mut().take();
    }

    /// Drops connections that closed, or had no stream for `idle_ticks`.
    pub(super) fn sweep(&self, tick: u32, idle_ticks: u32) {
        self.connections.borrow_mut().retain(|connection| {
            if connection.streams.get() > 0 {
                connection.idle_since.set(tick);
            }
            tick.wrapping_sub(connection.idle_since.get()) < idle_ticks
                && !connection.retires.by(tick)
                && connection.is_of_use()
        });
    }

    /// Lets go of connections to servers that are no longer believed.
    pub(super) fn let_go_of_disbelieved(&self) {
        self.connections.borrow_mut().retain(|connection| connection.facts.belief.lost().is_none());
    }

    /// The least busy connection, of those that answer if one does, unless all are full and another may be opened.
    fn lease(&self, max_streams: usize, max_connections: usize) -> Option<Lease> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| connection.is_of_use());
        let full = connections.len() >= max_connections;
        let least = connections.iter().min_by_key(|each| (!each.answers(), each.streams.get()))?;
        (full || least.answers() && least.streams.get() < max_streams).then(|| Lease::new(least))
    }
}

/// A stream on a connection with room. Those who wait for a new connection wait for the same one.
async fn acquire(upstream: &Rc<Upstream>, hop: &Hop) -> Result<Lease, Reject> {
    let shared = &hop.target.shared;
    let settings = &upstream.settings;
    // Each dial adds a connection that is of use or not; with as many as there may be, one is shared.
    for _ in 0..settings.max_h2_connections + MAX_CONNECTIONS_TRIED {
        if let Some(lease) = shared.lease(settings.max_streams, settings.max_h2_connections) {
            return Ok(lease);
        }
        let waiting = shared.dialing.borrow().as_ref().and_then(WeakShared::upgrade);
        // One that is over, though others have yet to wake from it, gives nothing more to wait for.
        let dialing = waiting.filter(|dialing| dialing.peek().is_none()).unwrap_or_else(|| {
            let dialing: Dialing = Box::pin(open(Rc::clone(upstream), hop.clone()));
            let dialing = dialing.shared();
            *shared.dialing.borrow_mut() = SharedFuture::downgrade(&dialing);
            dialing
        });
        dialing.await.map_err(|reject| again(&reject))?;
    }
    Err(no_use(hop))
}

/// The same rejection for another who waited.
fn again(reject: &Reject) -> Reject {
    Reject {
        stage: reject.stage,
        reason: reject.reason,
        detail: reject.detail.clone(),
        status: reject.status,
    }
}

/// Opens a connection and puts it into the pool.
async fn open(upstream: Rc<Upstream>, hop: Hop) -> Result<(), Rc<Reject>> {
    let epoch = upstream.epoch.get();
    let Connected { io, facts } = upstream.connect(&hop).await.map_err(Rc::new)?;
    let handshake = Builder::new(LocalExec)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .adaptive_window(false)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .handshake(TokioIo::new(io));
    let (sender, connection) = handshake.await.map_err(|error| Rc::new(reject(&error, &facts)))?;
    // Its end is told to each stream, and seen as `is_closed` by the pool.
    let task = tokio::task::spawn_local(connection.map(drop));
    if epoch == upstream.epoch.get() {
        let sender = RefCell::new(sender);
        let idle_since = Cell::new(upstream.tick.get());
        let retires = upstream.retires();
        facts.belief.served_by(task.abort_handle());
        let (streams, unanswered) = (Cell::default(), Cell::default());
        let connection =
            Rc::new(Connection { sender, streams, unanswered, facts, idle_since, retires, task });
        hop.target.shared.connections.borrow_mut().push(connection);
        upstream.ensure_swept();
    }
    Ok(())
}

/// Spawns hyper's futures as they are: wrapping them costs a copy per request.
#[derive(Debug, Clone, Copy)]
struct LocalExec;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Makes a request that HTTP/2 can carry: absolute target, no hop-by-hop fields (RFC 9113 section 8.2.2), no padded values,
/// which a route or a provider may have set.
#[expect(clippy::result_large_err, reason = "the request is handed back as it is")]
fn translate(mut request: Request<Body>, tls: &HopTls) -> Result<Request<Body>, (Reject, Request<Body>)> {
    let Some(authority) = authority(&request) else {
        let reject =
            Reject::because(Stage::Send, Reason::MalformedRequest, "the request has no valid authority");
        return Err((reject, request));
    };
    let headers = request.headers_mut();
    for name in [HOST, CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|te| te != "trailers") {
        headers.remove(TE);
    }
    for padded in headers.values_mut().filter(|value| is_padded(value)) {
        // A part of a value is one.
        if let Ok(value) = HeaderValue::from_bytes(padded.as_bytes().trim_ascii()) {
            *padded = value;
        }
    }
    let mut parts = http::uri::Parts::default();
    parts.authority = Some(authority);
    if *request.method() != Method::CONNECT {
        parts.scheme = Some(if *tls == HopTls::Plaintext { Scheme::HTTP } else { Scheme::HTTPS });
        let path = request.uri().path_and_query().cloned();
        parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    }
    match Uri::from_parts(parts) {
        Ok(uri) => *request.uri_mut() = uri,
        Err(error) => return Err((Reject::because(Stage::Send, Reason::MalformedRequest, error), request)),
    }
    *request.version_mut() = Version::HTTP_2;
    Ok(request)
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Host wins over the target, as in the HTTP/1 codec.
fn authority(request: &Request<Body>) -> Option<Authority> {
    match request.headers().get(HOST) {
        Some(host) => Authority::try_from(host.as_bytes()).ok(),
        None => request.uri().authority().cloned(),
    }
}

fn reject(error: &hyper::Error, facts: &HopFacts) -> Reject {
    let endpoint = facts.endpoint;
    if let Some(reason) = facts.belief.lost() {
        return Reject::new(Stage::Relay, reason);
    }
    let h2 = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    let reason = match h2.and_then(h2::Error::reason) {
        Some(h2::Reason::REFUSED_STREAM) => Reason::IdleRace,
        Some(h2::Reason::PROTOCOL_ERROR) if h2.is_some_and(|error| !error.is_remote()) => Reason::BadResponse,
        _ => Reason::ResetBeforeResponse,
    };
    match h2 {
        Some(h2) => Reject::because(Stage::Send, reason, format_args!("{endpoint}: {h2}")),
        None => Reject::because(Stage::Send, reason, format_args!("{endpoint}: {error}")),
    }
}

fn receive(response: Response<Incoming>, lease: Lease, in_flight: Option<InFlight>) -> Response<Body> {
    response.map(|incoming| {
        if incoming.is_end_stream() {
            return Body::Empty;
        }
        Body::Stream(Box::pin(ResponseBody { incoming, lease: Some((lease, in_flight)) }))
    })
}

/// A body with the stream that carries it.
#[derive(Debug)]
struct ResponseBody {
    incoming: Incoming,
    /// Let go of as soon as the body is over.
    lease: Option<(Lease, Option<InFlight>)>,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.incoming).poll_frame(cx);
        let lost = self.lease.as_ref().and_then(|(lease, _)| lease.connection.facts.belief.lost());
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) || self.incoming.is_end_stream() {
            self.lease = None;
        }
        frame.map_err(|error| {
            if let Some(reason) = lost {
                return BodyError::new(reason);
            }
            let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            BodyError::because(Reason::UpstreamReset, cause)
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
