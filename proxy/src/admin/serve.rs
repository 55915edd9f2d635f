//! Accepts admin connections and answers one request on each, within bounds of number and time.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::LocalSet;

use super::answer::answer;
use super::{AdminState, Kind, Socket};

/// A listener of the admin runtime.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub(super) fn new(socket: Socket) -> io::Result<Self> {
        match socket {
            Socket::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Self::Tcp)
            }
            Socket::Unix(listener) => {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener).map(Self::Unix)
            }
        }
    }
}

/// Answers on all listeners until `stopped` resolves.
pub(super) async fn until_stopped(
    listeners: Vec<(Listener, Kind)>,
    state: AdminState,
    stopped: oneshot::Receiver<()>,
) {
    let state = Rc::new(state);
    let tasks = LocalSet::new();
    for (listener, kind) in listeners {
        tasks.spawn_local(accept(listener, kind, Rc::clone(&state)));
    }
    // Sent or dropped, it means stop.
    let _ = tasks.run_until(stopped).await;
}

/// Accepts for ever. Each listener has its own bound, so that nobody's slow scrapes keep a probe from its answer.
async fn accept(listener: Listener, kind: Kind, state: Rc<AdminState>) {
    let places = Arc::new(Semaphore::new(CONNECTION_LIMIT));
    loop {
        // The permit comes first: what finds no place waits in the kernel's queue.
        let Ok(permit) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(io, _)| spawn(io, permit, kind, &state)),
            Listener::Unix(listener) => {
                listener.accept().await.map(|(io, _)| spawn(io, permit, kind, &state))
            }
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, ?kind, "admin connection not accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

pub(super) fn spawn(
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    permit: OwnedSemaphorePermit,
    kind: Kind,
    state: &Rc<AdminState>,
) {
    let state = Rc::clone(state);
    tokio::task::spawn_local(async move {
        let _permit = permit;
        let service = service_fn(|request: Request<Incoming>| {
            let response: Result<Response<Full<Bytes>>, Infallible> = Ok(answer(&request, kind, &state));
            std::future::ready(response)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .keep_alive(false)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(io), service);
        // A client that breaks off, or is too slow, is no news.
        let _ = tokio::time::timeout(CONNECTION_TIMEOUT, pin!(connection)).await;
    });
}

/// Connections a listener answers at a time.
pub(super) const CONNECTION_LIMIT: usize = 64;
/// Until the head of the request is there.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Until the answer is taken.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// After a failed accept, as when descriptors are exhausted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bounds the head of a request.
const BUFFER_BYTES: usize = 16 * 1024;
