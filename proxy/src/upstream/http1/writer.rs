//! [`Writer`]: the request on its way out: its head, then its body as it comes, in as few writes as there can be.

use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::header::{EXPECT, UPGRADE};
use http::{Method, Request};
use http_body::Body as _;
use tokio::io::AsyncWrite;

use crate::body::{Body, BodyError};
use crate::decision::Reason;
use crate::h1::{BodyEncoder, BodyLength, LengthMismatch, buffers, encode_request_head};
use crate::upstream::Io;

/// Data up to this size is copied behind the head, or behind the data before it, rather than written on its own.
const COPIED: usize = 4 * 1024;
/// Copying stops here and writing begins.
const BATCH: usize = 16 * 1024;

/// Writes one request. Never an error of its own once bytes may have arrived: the server can have answered early.
#[derive(Debug)]
pub(super) struct Writer {
    /// Framed bytes to be written, from `written` on; a pooled buffer, or none.
    out: Vec<u8>,
    written: usize,
    /// Data to be written after `out`, not copied, and what frames its end.
    data: Bytes,
    suffix: &'static [u8],
    encoder: BodyEncoder,
    state: State,
    /// The kernel took bytes of this request.
    touched: bool,
    /// The streamed body was asked for data, so that it can't be sent again.
    asked: bool,
}

#[derive(Debug)]
enum State {
    /// The body waits for `100 Continue`.
    Held,
    /// The body is in the request, and was not looked at.
    Streaming,
    /// All is in `out` and `data`.
    Staged,
    /// All is written, and flushed.
    Whole,
    /// The server takes no more.
    Broken,
}

/// Why the request can't be written to its end.
#[derive(Debug)]
pub(super) enum WriteError {
    /// The server's doing: it may have answered before, so what it sent is read first.
    Io(io::Error),
    /// The client's doing.
    Body(BodyError),
}

impl Writer {
    /// Stages the head and, where it is all there, the body.
    pub(super) fn new(request: &Request<Body>, hold: bool) -> Self {
        let length = body_length(request);
        let mut out = buffers::take_write();
        let upgrade = asks_for_upgrade(request);
        encode_request_head(&mut out, request.method(), request.uri(), request.headers(), length, upgrade);
        let mut writer = Self {
            out,
            written: 0,
            data: Bytes::new(),
            suffix: b"",
            encoder: BodyEncoder::new(length),
            state: State::Staged,
            touched: false,
            asked: false,
        };
        match request.body() {
            Body::Full(Some(data)) => writer.stage_whole(data),
            Body::Empty | Body::Full(None) => {}
            body if body.is_end_stream() => {}
            _ if hold => writer.state = State::Held,
            _ => writer.state = State::Streaming,
        }
        writer
    }

    /// Writes what can be written now. Ready when all of the request is with the kernel.
    pub(super) fn poll(
        &mut self,
        io: &mut Io,
        body: &mut Body,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), WriteError>> {
        loop {
            if self.is_over() {
                return Poll::Ready(Ok(()));
            }
            let waiting = match self.state {
                State::Streaming => self.gather(body, cx).map_err(WriteError::Body)?,
                _ => self.is_held(),
            };
            while self.has_staged() {
                ready!(self.poll_write(io, cx)).map_err(|error| self.broken(error))?;
            }
            self.give_back();
            if matches!(self.state, State::Staged) {
                ready!(Pin::new(&mut *io).poll_flush(cx)).map_err(|error| self.broken(error))?;
                self.state = State::Whole;
            } else if waiting {
                ready!(Pin::new(&mut *io).poll_flush(cx)).map_err(|error| self.broken(error))?;
                return Poll::Pending;
            }
        }
    }

    /// The server said `100 Continue`, or took too long to.
    pub(super) fn release(&mut self) {
        if matches!(self.state, State::Held) {
            self.state = State::Streaming;
        }
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(self.state, State::Held)
    }

    /// All of the request is with the kernel.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.state, State::Whole)
    }

    /// Nothing more can or need be written.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Whole | State::Broken)
    }

    /// The server may have seen some of it.
    pub(super) fn is_touched(&self) -> bool {
        self.touched
    }

    /// The request is as it was before, and can be sent again.
    pub(super) fn is_replayable(&self) -> bool {
        !self.asked
    }

    fn broken(&mut self, error: io::Error) -> WriteError {
        self.state = State::Broken;
        WriteError::Io(error)
    }

    fn has_staged(&self) -> bool {
        self.written < self.out.len() || !self.data.is_empty() || !self.suffix.is_empty()
    }

    /// Takes from the body until enough is staged for one write, or it has no more for now: then true.
    fn gather(&mut self, body: &mut Body, cx: &mut Context<'_>) -> Result<bool, BodyError> {
        self.asked = true;
        while matches!(self.state, State::Streaming)
            && self.data.is_empty()
            && self.suffix.is_empty()
            && self.out.len() < BATCH
        {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => return Ok(true),
                Poll::Ready(None) => self.finish(None)?,
                Poll::Ready(Some(Err(error))) => return Err(error),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.stage(data)?,
                    Err(frame) => self.finish(frame.trailers_ref())?,
                },
            }
        }
        Ok(false)
    }

    fn stage(&mut self, data: Bytes) -> Result<(), BodyError> {
        if data.is_empty() {
            return Ok(());
        }
        let frame = self.encoder.frame(data.len()).map_err(mismatch)?;
        self.borrow_buffer();
        self.out.extend_from_slice(frame.prefix());
        if data.len() <= COPIED {
            self.out.extend_from_slice(&data);
            self.out.extend_from_slice(frame.suffix);
        } else {
            self.data = data;
            self.suffix = frame.suffix;
        }
        // A body of known length is over with its last byte: its end goes out with it and needs no further look.
        if self.encoder.is_whole() {
            self.state = State::Staged;
        }
        Ok(())
    }

    /// A body that is all here has a stated length, so that nothing frames it.
    fn stage_whole(&mut self, data: &Bytes) {
        if data.len() <= COPIED {
            self.out.extend_from_slice(data);
        } else {
            self.data = data.clone();
        }
    }

    fn finish(&mut self, trailers: Option<&http::HeaderMap>) -> Result<(), BodyError> {
        self.borrow_buffer();
        self.encoder.finish(&mut self.out, trailers).map_err(mismatch)?;
        self.state = State::Staged;
        Ok(())
    }

    fn poll_write(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let io = Pin::new(io);
        let staged = &self.out[self.written..];
        let mut count = ready!(if self.data.is_empty() && self.suffix.is_empty() {
            io.poll_write(cx, staged)
        } else {
            let slices = [IoSlice::new(staged), IoSlice::new(&self.data), IoSlice::new(self.suffix)];
            io.poll_write_vectored(cx, if staged.is_empty() { &slices[1..] } else { &slices })
        })?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.touched = true;
        let of_out = count.min(staged.len());
        self.written += of_out;
        count -= of_out;
        let of_data = count.min(self.data.len());
        self.data.advance(of_data);
        self.suffix = &self.suffix[count - of_data..];
        Poll::Ready(Ok(()))
    }

    fn borrow_buffer(&mut self) {
        if self.out.capacity() == 0 {
            self.out = buffers::take_write();
        }
    }

    fn give_back(&mut self) {
        self.written = 0;
        if self.out.capacity() > 0 {
            buffers::give_write(mem::take(&mut self.out));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// A stream that yields more or less than its stated length: the message can't be passed on with a single meaning.
fn mismatch(_: LengthMismatch) -> BodyError {
    BodyError::because(Reason::MalformedRequest, "the request's body is not as long as its head says")
}

/// An Upgrade field that is still in the request asks for the upgrade: whoever strips hop-by-hop fields removes others.
pub(super) fn asks_for_upgrade(request: &Request<Body>) -> bool {
    request.headers().contains_key(UPGRADE)
}

/// The client waits for `100 Continue` before it sends its body, so that the body must not be asked for yet.
pub(super) fn expects_continue(request: &Request<Body>) -> bool {
    matches!(request.body(), Body::Stream(_) | Body::Http2(_)) && request.headers().contains_key(EXPECT)
}

/// How the body's length is stated (RFC 9110 section 8.6: also where a method that has a body has none).
fn body_length(request: &Request<Body>) -> BodyLength {
    match request.body().size_hint().exact() {
        _ if *request.method() == Method::CONNECT => BodyLength::None,
        Some(0) if request.body().is_end_stream() && !has_meaningful_body(request) => BodyLength::None,
        Some(length) => BodyLength::Fixed(length),
        None => BodyLength::Chunked,
    }
}

fn has_meaningful_body(request: &Request<Body>) -> bool {
    matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH)
        || request.headers().contains_key(http::header::CONTENT_LENGTH)
}
