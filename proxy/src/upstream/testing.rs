//! Servers that misbehave on purpose, and an upstream side to send to them. Tests only.

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::{Hop, HopProtocol, HopTls, Registry, SendError, Sent, Settings, Upstream};
use crate::body::{Body, BodyError};
use crate::tls::ClientTls;

pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a test as a worker would.
pub(super) fn local<T>(test: impl Future<Output = T>) -> T {
    run(tokio::runtime::Builder::new_current_thread().enable_all(), test)
}

/// The same with a clock that jumps to the next timer whenever nothing else is to be done.
pub(super) fn local_paused<T>(test: impl Future<Output = T>) -> T {
    run(tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true), test)
}

fn run<T>(runtime: &mut tokio::runtime::Builder, test: impl Future<Output = T>) -> T {
    let runtime = runtime.build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(3600), test).await.expect("the test hangs")
    })
}

pub(super) fn upstream() -> Rc<Upstream> {
    upstream_with(Settings::default())
}

pub(super) fn upstream_with(settings: Settings) -> Rc<Upstream> {
    Upstream::new(Registry::new(), Arc::new(ClientTls::new(None)), settings)
}

/// A server of connections, each served by a script.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    accepted: Rc<Cell<usize>>,
    ended: watch::Receiver<usize>,
}

impl Server {
    /// `script` is given the number of the connection, from 0.
    pub(super) async fn start<F, S>(script: S) -> Self
    where
        F: Future<Output = ()> + 'static,
        S: Fn(usize, TcpStream) -> F + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Rc::new(Cell::new(0));
        let (left, ended) = watch::channel(0);
        let (counted, left) = (Rc::clone(&accepted), Rc::new(left));
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let number = counted.replace(counted.get() + 1);
                let (script, left) = (script(number, stream), Rc::clone(&left));
                tokio::task::spawn_local(async move {
                    script.await;
                    left.send_modify(|count| *count += 1);
                });
            }
        });
        Self { address, accepted, ended }
    }

    /// Answers every request head on every connection with the same bytes.
    pub(super) async fn answering(answer: &'static [u8]) -> Self {
        Self::start(move |_, mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                stream.write_all(answer).await.unwrap();
            }
        })
        .await
    }

    /// Answers one request head on every connection with these bytes, then closes.
    pub(super) async fn answering_once(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |_, mut stream| {
            let answer = answer.clone();
            async move {
                read_head(&mut stream).await;
                stream.write_all(&answer).await.unwrap();
            }
        })
        .await
    }

    pub(super) fn accepted(&self) -> usize {
        self.accepted.get()
    }

    /// Waits until so many connections were closed by this side, and the other has been told.
    pub(super) async fn until_ended(&self, count: usize) {
        self.ended.clone().wait_for(|ended| *ended >= count).await.unwrap();
        turn().await;
    }

    pub(super) fn hop(&self, upstream: &Upstream, protocol: HopProtocol) -> Hop {
        upstream.hop_to(self.address, HopTls::Plaintext, protocol, TIMEOUT)
    }

    pub(super) async fn send(
        &self,
        upstream: &Rc<Upstream>,
        mut request: Request<Body>,
    ) -> Result<Sent, SendError> {
        upstream.send(&self.hop(upstream, HopProtocol::Http1), &mut request).await
    }

    /// Sends a GET and gives status and body.
    pub(super) async fn get(&self, upstream: &Rc<Upstream>) -> (u16, Bytes) {
        whole(self.send(upstream, get()).await.unwrap()).await
    }
}

/// Lets the reactor report what the kernel knows, as it has in a worker by the time another request comes.
pub(super) async fn turn() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

pub(super) async fn whole(sent: Sent) -> (u16, Bytes) {
    let status = sent.response.status().as_u16();
    (status, sent.response.into_body().collect().await.unwrap().to_bytes())
}

pub(super) fn get() -> Request<Body> {
    request("GET", Body::Empty)
}

pub(super) fn request(method: &str, body: Body) -> Request<Body> {
    Request::builder().method(method).uri("/path?query").header("host", "server.test").body(body).unwrap()
}

/// A request head, up to and without the empty line; `None` at the end. Reads no byte of what follows.
pub(super) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return None,
        }
    }
    head.truncate(head.len() - 4);
    Some(String::from_utf8(head).unwrap())
}

pub(super) async fn read_exactly(stream: &mut (impl AsyncRead + Unpin), length: usize) -> String {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A body of which a test decides when what comes.
pub(super) struct Fed {
    frames: mpsc::UnboundedReceiver<Result<Frame<Bytes>, BodyError>>,
    length: Option<u64>,
}

pub(super) type Feed = mpsc::UnboundedSender<Result<Frame<Bytes>, BodyError>>;

/// A streamed body and its feed; it ends when the feed is dropped.
pub(super) fn fed(length: Option<u64>) -> (Feed, Body) {
    let (feed, frames) = mpsc::unbounded_channel();
    (feed, Body::Stream(Box::pin(Fed { frames, length })))
}

pub(super) fn data(bytes: &'static [u8]) -> Result<Frame<Bytes>, BodyError> {
    Ok(Frame::data(Bytes::from_static(bytes)))
}

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.frames.poll_recv(cx)
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
