//! Applications behind the proxies: those that answer, and those that misbehave, by name.

use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, request};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::soon;

/// An application on a port of its own, gone when dropped.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    log: Log,
    _serving: Option<Serving>,
    /// Holds the port of one that does not listen.
    _bound: Option<TcpSocket>,
}

/// Where an application notes what reaches it.
#[derive(Debug, Clone, Default)]
pub struct Log {
    requests: watch::Sender<usize>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Log {
    /// A request came.
    pub fn request(&self) {
        self.requests.send_modify(|count| *count += 1);
    }

    fn saw(&self, seen: Seen) {
        self.seen.lock().unwrap().push(seen);
        self.request();
    }
}

#[derive(Debug)]
struct Serving(JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A request as it reached an application.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method, target, version and headers.
    pub head: request::Parts,
    /// Body, whole.
    pub body: Bytes,
    /// Trailers, if there were any.
    pub trailers: Option<HeaderMap>,
}

impl Seen {
    /// All values of a header.
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.head.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect()
    }
}

/// The body of an answer, frame by frame.
type Frames = StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

impl App {
    /// HTTP/1 and HTTP/2: answers 200 with the request's own body and trailers, once it has them.
    pub async fn echo() -> Self {
        Self::answering(|seen| {
            let mut response = Response::new(seen.body.clone());
            if seen.body.is_empty() {
                *response.body_mut() = Bytes::from_static(b"hello");
            }
            response
        })
        .await
    }

    /// HTTP/1 and HTTP/2: answers what `answer` makes of each request, and the request's trailers after it.
    pub async fn answering(
        answer: impl Fn(&Seen) -> Response<Bytes> + Send + Sync + Clone + 'static,
    ) -> Self {
        Self::answering_with(move |seen| (answer(seen), seen.trailers.clone())).await
    }

    /// The same with trailers of its own.
    pub async fn answering_with(
        answer: impl Fn(&Seen) -> (Response<Bytes>, Option<HeaderMap>) + Send + Sync + Clone + 'static,
    ) -> Self {
        Self::raw(move |socket, log| {
            let answer = answer.clone();
            serve_http(socket, move |seen| {
                let response = answer(&seen);
                log.saw(seen);
                response
            })
        })
        .await
    }

    /// The same as [`App::echo`] over TLS, which it ends itself.
    pub async fn tls(config: Arc<rustls::ServerConfig>) -> Self {
        Self::raw(move |socket, log| {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&config));
            async move {
                // A caller that refuses the certificate is what some tests are about.
                let Ok(stream) = acceptor.accept(socket).await else { return };
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let answer = move |request: Request<Incoming>| {
                    let log = log.clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes();
                        log.saw(Seen { head, body: body.clone(), trailers: None });
                        Ok::<_, hyper::Error>(Response::new(frames(body, None)))
                    }
                };
                serve_over(stream, http2, answer).await;
            }
        })
        .await
    }

    /// HTTP/1 and HTTP/2: answers 200 at once, and then with each frame of the request as it comes.
    pub async fn streaming() -> Self {
        Self::raw(|socket, log| {
            serve_with(socket, move |request: Request<Incoming>| {
                log.request();
                std::future::ready(Ok::<_, Infallible>(Response::new(request.into_body())))
            })
        })
        .await
    }

    /// Whatever `serve` does with each connection.
    pub async fn raw<F, S>(serve: F) -> Self
    where
        F: Fn(TcpStream, Log) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, log) = (Arc::<AtomicUsize>::default(), Log::default());
        let (counted, noted) = (Arc::clone(&connections), log.clone());
        let serving = tokio::spawn(async move {
            let mut serving = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        // Running out of descriptors is what some tests are about.
                        let Ok((socket, _)) = accepted else { continue };
                        counted.fetch_add(1, Ordering::Relaxed);
                        serving.spawn(serve(socket, noted.clone()));
                    }
                    Some(served) = serving.join_next() => served.expect("an application panicked"),
                }
            }
        });
        Self { address, connections, log, _serving: Some(Serving(serving)), _bound: None }
    }

    /// HTTP/1: answers each request head with these bytes, and says no more.
    pub async fn answering_bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::raw(move |mut socket, log| {
            let bytes = bytes.clone();
            async move {
                while request_head(&mut socket).await {
                    log.request();
                    let _ = socket.write_all(&bytes).await;
                }
            }
        })
        .await
    }

    /// HTTP/1: answers the first request head of a connection with these bytes, then ends the connection properly.
    pub async fn closing_after(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::raw(move |mut socket, log| {
            let bytes = bytes.clone();
            async move {
                if request_head(&mut socket).await {
                    log.request();
                    let _ = socket.write_all(&bytes).await;
                    let _ = socket.shutdown().await;
                    drain(socket).await;
                }
            }
        })
        .await
    }

    /// HTTP/1: answers a request head with these bytes, then resets the connection.
    pub async fn resetting_after(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::raw(move |mut socket, log| {
            let bytes = bytes.clone();
            async move {
                if request_head(&mut socket).await {
                    log.request();
                    let _ = socket.write_all(&bytes).await;
                    socket.set_zero_linger().unwrap();
                }
            }
        })
        .await
    }

    /// HTTP/1: takes requests and never answers.
    pub async fn silent() -> Self {
        Self::answering_bytes("").await
    }

    /// Nobody listens: connections are refused.
    pub fn refusing() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Self {
            address: socket.local_addr().unwrap(),
            connections: Arc::default(),
            log: Log::default(),
            _serving: None,
            _bound: Some(socket),
        }
    }

    /// TCP: sends back what it gets, and ends when its client has.
    pub async fn tcp_echo() -> Self {
        Self::raw(|mut socket, _| async move {
            let (mut read, mut write) = socket.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        })
        .await
    }

    /// TCP: says this first, then behaves like [`App::tcp_echo`].
    pub async fn speaking_first(words: &'static str) -> Self {
        Self::raw(move |mut socket, _| async move {
            let _ = socket.write_all(words.as_bytes()).await;
            let (mut read, mut write) = socket.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        })
        .await
    }

    /// TCP: takes all there is, and answers with its length when its client has ended its side.
    pub async fn measuring() -> Self {
        Self::raw(|mut socket, _| async move {
            let mut all = Vec::new();
            if socket.read_to_end(&mut all).await.is_ok() {
                let _ = socket.write_all(all.len().to_string().as_bytes()).await;
            }
        })
        .await
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        *self.log.requests.borrow()
    }

    /// Waits until so many requests have come.
    pub async fn has_requests(&self, count: usize) {
        let mut requests = self.log.requests.subscribe();
        soon("a request at the application", requests.wait_for(|&seen| seen >= count)).await.unwrap();
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.log.seen.lock().unwrap().clone()
    }

    /// The only request so far.
    #[track_caller]
    pub fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "one request reached the application: {seen:#?}");
        seen.into_iter().next().unwrap()
    }
}

/// Reads up to the end of a request head; false at the end of the connection.
pub async fn request_head(socket: &mut TcpStream) -> bool {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        match socket.read_u8().await {
            Ok(byte) => read.push(byte),
            Err(_) => return false,
        }
    }
    true
}

async fn drain(mut socket: TcpStream) {
    let mut sink = [0; 4096];
    while socket.read(&mut sink).await.is_ok_and(|count| count > 0) {}
}

async fn serve_http(
    socket: TcpStream,
    answer: impl Fn(Seen) -> (Response<Bytes>, Option<HeaderMap>) + Send + Sync + 'static,
) {
    let answer = Arc::new(answer);
    serve_with(socket, move |request: Request<Incoming>| {
        let answer = Arc::clone(&answer);
        async move {
            let (head, body) = request.into_parts();
            // A caller that breaks off leaves nothing to see.
            let collected = body.collect().await?;
            let trailers = collected.trailers().cloned();
            let (response, trailers) = answer(Seen { head, body: collected.to_bytes(), trailers });
            Ok::<_, hyper::Error>(response.map(|body| frames(body, trailers)))
        }
    })
    .await;
}

/// HTTP/1 or HTTP/2, as the first bytes say.
async fn serve_with<A, F, B, E>(socket: TcpStream, answer: A)
where
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    E: Into<BoxError>,
{
    let mut start = [0; 4];
    let http2 = socket.peek(&mut start).await.is_ok() && &start == b"PRI ";
    serve_over(socket, http2, answer).await;
}

pub(crate) async fn serve_over<IO, A, F, B, E>(socket: IO, http2: bool, answer: A)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    E: Into<BoxError>,
{
    let (io, service) = (TokioIo::new(socket), service_fn(answer));
    // How a connection ends is its caller's affair.
    let _ = if http2 {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
    } else {
        hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
    };
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn frames(body: Bytes, trailers: Option<HeaderMap>) -> Frames {
    let trailers = trailers.map(Frame::trailers);
    let frames: Vec<_> = std::iter::once(Frame::data(body)).chain(trailers).map(Ok).collect();
    StreamBody::new(futures_util::stream::iter(frames))
}
