//! A client that speaks HTTP/2 with prior knowledge.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::soon;

/// A connection. Cheap to clone: its requests are streams of the same connection.
#[derive(Debug, Clone)]
pub struct H2Client(SendRequest<Sent>);

type Sent = BoxBody<Bytes, Infallible>;

/// A response whose body is all here.
#[derive(Debug)]
pub struct H2Reply {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Trailers.
    pub trailers: Option<HeaderMap>,
}

/// A request whose body is still being sent, and whose response is being read.
#[derive(Debug)]
pub struct H2Stream {
    frames: Option<mpsc::Sender<Frame<Bytes>>>,
    response: Response<Incoming>,
}

impl H2Client {
    /// Connects.
    pub async fn connect(to: SocketAddr) -> Self {
        let socket = soon("a connection", TcpStream::connect(to)).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self::over(socket).await
    }

    /// Over a connection that is there.
    pub async fn over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let handshake = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(1 << 22)
            .handshake(TokioIo::new(io));
        let (sender, connection) = soon("a handshake", handshake).await.unwrap();
        // Ends with the last clone of the sender.
        tokio::spawn(connection);
        Self(sender)
    }

    /// Waits until the connection takes no further request.
    pub async fn is_closed(&self) {
        let mut sender = self.0.clone();
        soon("the end of the connection", async {
            while sender.ready().await.is_ok() {
                tokio::task::yield_now().await
            }
        })
        .await;
    }

    /// Sends a request whose body is all here, and gives the response, whole.
    pub async fn send(&self, request: Request<Bytes>) -> H2Reply {
        self.try_send(request).await.expect("a response")
    }

    /// The same where there may be none.
    pub async fn try_send(&self, request: Request<Bytes>) -> hyper::Result<H2Reply> {
        let request = request.map(|body| Full::new(body).boxed());
        soon("a response", async {
            let (head, body) = self.0.clone().send_request(request).await?.into_parts();
            let collected = body.collect().await?;
            let trailers = collected.trailers().cloned();
            Ok(H2Reply {
                status: head.status.as_u16(),
                headers: head.headers,
                body: collected.to_bytes(),
                trailers,
            })
        })
        .await
    }

    /// GET of `http://ratings:9080PATH`.
    pub async fn get(&self, path: &str) -> H2Reply {
        self.send(request("GET", path, Bytes::new())).await
    }

    /// Sends a request without a body and waits for the response's head; its body follows as it is read.
    pub async fn ask(&self, head: Request<()>) -> H2Stream {
        let request = head.map(|()| Full::default().boxed());
        let response = soon("a response", self.0.clone().send_request(request)).await.unwrap();
        H2Stream { frames: None, response }
    }

    /// Sends a head and waits for the response's; bodies follow as they are sent and read.
    pub async fn open(&self, head: Request<()>) -> H2Stream {
        let (frames, mut queue) = mpsc::channel::<Frame<Bytes>>(1);
        let stream = futures_util::stream::poll_fn(move |cx| queue.poll_recv(cx).map(|frame| frame.map(Ok)));
        let request = head.map(|()| StreamBody::new(stream).boxed());
        let response = soon("a response", self.0.clone().send_request(request)).await.unwrap();
        H2Stream { frames: Some(frames), response }
    }
}

/// A request to `http://ratings:9080PATH`.
pub fn request<B>(method: &str, path: &str, body: B) -> Request<B> {
    Request::builder().method(method).uri(format!("http://ratings:9080{path}")).body(body).unwrap()
}

impl H2Stream {
    /// Status of the response.
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// Sends a piece of the request body.
    pub async fn send(&mut self, data: impl Into<Bytes>) {
        self.send_frame(Frame::data(data.into())).await;
    }

    /// Sends trailers and ends the request body.
    pub async fn finish_with(&mut self, trailers: HeaderMap) {
        self.send_frame(Frame::trailers(trailers)).await;
        self.frames = None;
    }

    /// Ends the request body.
    pub fn finish(&mut self) {
        self.frames = None;
    }

    async fn send_frame(&mut self, frame: Frame<Bytes>) {
        let frames = self.frames.as_ref().expect("the body is not finished");
        soon("room to send", frames.send(frame)).await.unwrap();
    }

    /// The next piece of the response body; `None` at its end.
    pub async fn data(&mut self) -> Option<Bytes> {
        let frame = soon("a frame", self.response.body_mut().frame()).await?;
        Some(frame.unwrap().into_data().expect("data, not trailers"))
    }

    /// Whether the response is reset before its end. What comes before that is read.
    pub async fn is_reset(&mut self) -> bool {
        soon("the end of the response", async {
            while let Some(frame) = self.response.body_mut().frame().await {
                if frame.is_err() {
                    return true;
                }
            }
            false
        })
        .await
    }

    /// The trailers, which must be what is left of the response.
    pub async fn trailers(&mut self) -> HeaderMap {
        let frame = soon("trailers", self.response.body_mut().frame()).await;
        frame.expect("trailers before the end").unwrap().into_trailers().expect("trailers, not data")
    }
}
