//! A connection, served to clients that behave and to clients that don't.

mod bodies;
mod endings;
mod exchanges;
mod memory;
mod sockets;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

use super::*;
use crate::decision::Reason;
use crate::drain::DrainSignal;
use crate::h1;

type Answer = Pin<Box<dyn Future<Output = Response<Body>>>>;

/// A handler from a closure; what it refused, and how many answers were dropped unfinished.
#[derive(Clone)]
struct Site {
    answer: Rc<dyn Fn(Request<Body>) -> Answer>,
    refused: Rc<RefCell<Vec<(Reason, Partial)>>>,
    abandoned: Rc<Cell<usize>>,
}

impl Site {
    fn new<F>(answer: impl Fn(Request<Body>) -> F + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + 'static,
    {
        Self {
            answer: Rc::new(move |request| Box::pin(answer(request))),
            refused: Rc::default(),
            abandoned: Rc::default(),
        }
    }

    /// Says what it was asked.
    fn hello() -> Self {
        Self::new(|request| async move {
            Response::new(Body::full(format!("{} {}", request.method(), request.uri().path())))
        })
    }

    /// Gives the request body back, as it comes.
    fn echo() -> Self {
        Self::new(|request| async move { Response::new(request.into_body()) })
    }

    /// Never answers.
    fn silent() -> Self {
        Self::new(|_| std::future::pending())
    }

    /// Reads the whole request body, then says how long it was or how it failed.
    fn count() -> Self {
        Self::new(|request| async move {
            Response::new(Body::full(match request.into_body().collect().await {
                Ok(body) => body.to_bytes().len().to_string(),
                Err(error) => error.reason.as_str().to_owned(),
            }))
        })
    }

    fn refusals(&self) -> Vec<Reason> {
        self.refused.borrow().iter().map(|(reason, _)| *reason).collect()
    }
}

/// Counts itself if it is dropped before it was answered.
struct Watched {
    answer: Answer,
    abandoned: Option<Rc<Cell<usize>>>,
}

impl Future for Watched {
    type Output = Response<Body>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.answer.as_mut().poll(cx);
        if answer.is_ready() {
            self.abandoned = None;
        }
        answer
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(abandoned) = &self.abandoned {
            abandoned.set(abandoned.get() + 1);
        }
    }
}

impl Handler for Site {
    type Body = Body;

    fn handle(&self, request: Request<Body>) -> Answer {
        Box::pin(Watched { answer: (self.answer)(request), abandoned: Some(self.abandoned.clone()) })
    }

    fn refuse(&self, reject: Reject, partial: Partial) -> Response<Body> {
        let mut response = Response::new(Body::full(reject.reason.as_str()));
        *response.status_mut() = reject.status();
        self.refused.borrow_mut().push((reject.reason, partial));
        response
    }
}

fn control(timeouts: Timeouts) -> Control {
    Control { timeouts: Rc::new(timeouts), drain: Rc::new(DrainSignal::new().watch()) }
}

/// Serves one end of a pipe to a client at the other, and says how serving ended.
async fn run<F>(
    site: &Site,
    timeouts: Timeouts,
    client: impl FnOnce(DuplexStream) -> F,
) -> Ended<Counted, Body>
where
    F: Future<Output = ()>,
{
    let (near, far) = tokio::io::duplex(256 * 1024);
    let served = serve(Counted::new(near), site.clone(), control(timeouts));
    let (ended, ()) = tokio::join!(served, client(far));
    ended
}

async fn send(client: &mut (impl AsyncWrite + Unpin), text: impl AsRef<[u8]>) {
    client.write_all(text.as_ref()).await.unwrap();
}

/// Reads exactly that.
async fn expect(client: &mut (impl AsyncRead + Unpin), text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    let mut read = vec![0; text.len()];
    let mut filled = 0;
    while filled < text.len() {
        match client.read(&mut read[filled..]).await.unwrap() {
            0 => break,
            count => filled += count,
        }
    }
    assert_eq!(read[..filled].escape_ascii().to_string(), text.escape_ascii().to_string());
}

/// Reads that, and then the end.
async fn expect_last(client: &mut (impl AsyncRead + Unpin), text: impl AsRef<[u8]>) {
    expect(client, text).await;
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest.escape_ascii().to_string(), "");
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn ok_last(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

/// Counts the calls that a socket would have turned into system calls.
struct Counted<IO = DuplexStream> {
    io: IO,
    reads: Rc<Cell<usize>>,
    writes: Rc<Cell<usize>>,
}

impl<IO> Counted<IO> {
    fn new(io: IO) -> Self {
        Self { io, reads: Rc::default(), writes: Rc::default() }
    }
}

impl<IO> std::fmt::Debug for Counted<IO> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} reads, {} writes", self.reads.get(), self.writes.get())
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.reads.set(self.reads.get() + usize::from(read.is_ready()));
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.set(self.writes.get() + 1);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes.set(self.writes.get() + 1);
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A body fed by hand from elsewhere.
fn channel() -> (tokio::sync::mpsc::UnboundedSender<Result<http_body::Frame<Bytes>, BodyError>>, Body) {
    struct Fed(tokio::sync::mpsc::UnboundedReceiver<Result<http_body::Frame<Bytes>, BodyError>>);
    impl http_body::Body for Fed {
        type Data = Bytes;
        type Error = BodyError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
            self.0.poll_recv(cx)
        }
    }
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    (sender, Body::Stream(Box::pin(Fed(receiver))))
}
