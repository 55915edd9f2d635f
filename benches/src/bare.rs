//! The floor: a forwarder of hyper, rustls and a pool, with neither policy nor routes nor telemetry.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Args;
use http::header::{CONNECTION, HOST};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::load::{LocalExecutor, Protocol};
use crate::pki::Identity;
use crate::tls;

/// What one forwarder does.
#[derive(Debug, Clone, Args)]
pub struct Forward {
    /// Where it listens.
    #[arg(long)]
    pub listen: SocketAddr,
    /// Where it sends everything.
    #[arg(long)]
    pub target: SocketAddr,
    /// Spoken on both sides.
    #[arg(long)]
    pub protocol: Protocol,
    /// Directory of its certificate, when one side is mutual TLS.
    #[arg(long)]
    pub identity: PathBuf,
    /// Which side is mutual TLS: the SPIFFE id expected of the target, or nothing when it is the listening side.
    #[arg(long)]
    pub expect: Option<String>,
    /// The listening side asks for no certificate.
    #[arg(long)]
    pub server_only: bool,
    /// And gives a session ticket.
    #[arg(long)]
    pub tickets: bool,
}

/// Forwards until killed.
pub fn run(forward: &Forward) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, accept(forward))
}

async fn accept(forward: &Forward) -> Result<()> {
    let identity = Identity { dir: forward.identity.clone() };
    let protocol = forward.protocol;
    let (acceptor, connector) = match &forward.expect {
        Some(id) => (None, Some(TlsConnector::from(tls::client(&identity, id, protocol)?))),
        None => (
            Some(TlsAcceptor::from(tls::server(&identity, protocol, !forward.server_only, forward.tickets)?)),
            None,
        ),
    };
    let listener = TcpListener::bind(forward.listen).await.context("listen")?;
    let pool = Rc::new(Pool { target: forward.target, connector, protocol, idle: RefCell::default() });
    loop {
        let (stream, _) = listener.accept().await.context("accept")?;
        stream.set_nodelay(true)?;
        let pool = pool.clone();
        match acceptor.clone() {
            Some(acceptor) => spawn_local(Box::pin(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream, pool).await;
                }
            })),
            None => spawn_local(Box::pin(serve(stream, pool))),
        };
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, pool: Rc<Pool>) {
    let protocol = pool.protocol;
    // Boxed: a pooled request must not carry the room that a dial needs.
    let service = service_fn(move |request| Box::pin(handle(pool.clone(), request)));
    // A connection that breaks is the load generator's to report.
    let _ = match protocol {
        Protocol::Http1 => http1_server().serve_connection(TokioIo::new(stream), service).await,
        Protocol::Http2 => http2_server().serve_connection(TokioIo::new(stream), service).await,
    };
}

fn http1_server() -> hyper::server::conn::http1::Builder {
    hyper::server::conn::http1::Builder::new()
}

fn http2_server() -> hyper::server::conn::http2::Builder<LocalExecutor> {
    hyper::server::conn::http2::Builder::new(LocalExecutor)
}

type Answer = Response<Either<Incoming, Empty<Bytes>>>;

async fn handle(pool: Rc<Pool>, request: Request<Incoming>) -> Result<Answer, std::convert::Infallible> {
    Ok(match pool.send(request).await {
        Ok(response) => response.map(Either::Left),
        Err(_) => {
            let mut response = Response::new(Either::Right(Empty::new()));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    })
}

/// Connections to the one target: taken and given back (HTTP/1), or one that is shared (HTTP/2).
struct Pool {
    target: SocketAddr,
    connector: Option<TlsConnector>,
    protocol: Protocol,
    idle: RefCell<Vec<Sender>>,
}

enum Sender {
    Http1(http1::SendRequest<Incoming>),
    Http2(http2::SendRequest<Incoming>),
}

impl Pool {
    async fn send(&self, mut request: Request<Incoming>) -> Result<Response<Incoming>> {
        let taken = self.take();
        let mut sender = match taken {
            Some(sender) => sender,
            None => Box::pin(self.connect()).await?,
        };
        prepare(&mut request, self.protocol)?;
        let response = match &mut sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => return Ok(sender.send_request(request).await?),
        };
        self.idle.borrow_mut().push(sender);
        Ok(response)
    }

    fn take(&self) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        if let Some(Sender::Http2(shared)) = idle.first() {
            if !shared.is_closed() {
                return Some(Sender::Http2(shared.clone()));
            }
            idle.clear();
        }
        // Given back when its response began: one whose body is still under way is left for later.
        let free =
            idle.iter().rposition(|sender| matches!(sender, Sender::Http1(sender) if sender.is_ready()))?;
        Some(idle.swap_remove(free))
    }

    async fn connect(&self) -> Result<Sender> {
        let stream = TcpStream::connect(self.target).await.context("connect")?;
        stream.set_nodelay(true)?;
        let Some(connector) = &self.connector else { return self.speak(stream).await };
        let name = ServerName::try_from("mesh.invalid")?;
        let connector = TlsConnector::from(Arc::clone(connector.config()));
        self.speak(connector.connect(name, stream).await.context("TLS")?).await
    }

    async fn speak(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Sender> {
        let io = TokioIo::new(stream);
        Ok(match self.protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                spawn_local(async { drop(connection.await) });
                Sender::Http1(sender)
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::handshake(LocalExecutor, io).await?;
                spawn_local(async { drop(connection.await) });
                self.idle.borrow_mut().push(Sender::Http2(sender.clone()));
                Sender::Http2(sender)
            }
        })
    }
}

/// What any forwarder must change: hop-by-hop headers go, and the target's form is that of the next hop.
fn prepare(request: &mut Request<Incoming>, protocol: Protocol) -> Result<()> {
    request.headers_mut().remove(CONNECTION);
    if protocol == Protocol::Http1 {
        *request.version_mut() = Version::HTTP_11;
        return Ok(());
    }
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(HOST);
    let uri = std::mem::take(request.uri_mut());
    let mut parts = uri.into_parts();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    *request.uri_mut() = Uri::from_parts(parts)?;
    Ok(())
}
