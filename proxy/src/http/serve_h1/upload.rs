//! A request body on its way from the connection to whoever reads it.
//!
//! The connection alone touches the socket. It reads when the body was polled and found nothing, so a body that nobody polls
//! leaves its bytes with the client.

use std::cell::RefCell;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};

use crate::body::{Body, BodyError};
use crate::decision::Reason;
use crate::h1::{BodyDecoder, BodyLength, Decoded, Malformed};

/// What the connection and the body share.
#[derive(Debug)]
pub(super) struct Upload {
    decoder: BodyDecoder,
    /// The connection's read buffer, for as long as the body is in it.
    pub(super) buffer: BytesMut,
    /// Whether the client waits for `100 Continue`.
    expect_continue: bool,
    /// The body was polled and found nothing.
    wanted: bool,
    /// Whoever holds the body may still poll it.
    held: bool,
    failed: Option<Failure>,
    /// The connection is polling the handler, and will look itself.
    connection_looks: bool,
    reader: Option<Waker>,
    connection: Option<Waker>,
}

#[derive(Debug, Clone, Copy)]
enum Failure {
    Malformed(Malformed),
    Ended(Reason),
}

/// The connection's end.
pub(super) type SharedUpload = Rc<RefCell<Upload>>;

impl Upload {
    /// Both ends of a body that begins in `buffer`.
    pub(super) fn new(length: BodyLength, expect_continue: bool, buffer: BytesMut) -> (SharedUpload, Body) {
        let shared = Rc::new(RefCell::new(Self {
            decoder: BodyDecoder::new(length),
            buffer,
            expect_continue,
            wanted: false,
            held: true,
            failed: None,
            connection_looks: false,
            reader: None,
            connection: None,
        }));
        let body = Body::Stream(Box::pin(RequestBody(shared.clone())));
        (shared, body)
    }

    /// Whether all of the body was taken out of the buffer.
    pub(super) fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// Whether the next bytes are waited for.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted && self.failed.is_none()
    }

    /// Whether the rest can't be read, or it isn't worth it: then the connection can't be used again.
    pub(super) fn ends_connection(&self, worth: u64) -> bool {
        if self.is_done() {
            return false;
        }
        let too_long = !self.held && self.decoder.left().is_some_and(|left| left > worth);
        self.failed.is_some() || self.expect_continue || too_long
    }

    /// Whether `100 Continue` is due: the body is wanted, and nothing of it came yet. Says so once.
    pub(super) fn take_continue(&mut self) -> bool {
        self.wanted && mem::take(&mut self.expect_continue) && self.buffer.is_empty()
    }

    /// That the connection polls the handler now, or has polled it.
    pub(super) fn connection_looks(&mut self, looks: bool) {
        self.connection_looks = looks;
    }

    /// Whom to wake when the body is polled by another task.
    pub(super) fn wake_connection_with(&mut self, cx: &Context<'_>) {
        keep_waker(&mut self.connection, cx.waker());
    }

    /// That bytes were added to the buffer.
    pub(super) fn arrived(&mut self, cx: &Context<'_>) {
        self.wanted = false;
        self.wake_reader(Some(cx.waker()));
    }

    /// That nothing more comes, and why.
    pub(super) fn end(&mut self, reason: Reason) {
        if !self.is_done() && self.failed.is_none() {
            self.failed = Some(Failure::Ended(reason));
            self.wake_reader(None);
        }
    }

    /// Takes the next bytes of a body that nobody reads; how many, or `None` at its end.
    pub(super) fn discard(&mut self) -> Poll<Result<Option<usize>, Malformed>> {
        match self.decoder.decode(&mut self.buffer) {
            Ok(Decoded::Data(data)) => Poll::Ready(Ok(Some(data.len()))),
            Ok(Decoded::Trailers(_)) => Poll::Ready(Ok(Some(0))),
            Ok(Decoded::End) => Poll::Ready(Ok(None)),
            Ok(Decoded::NeedMore) => Poll::Pending,
            Err(malformed) => Poll::Ready(Err(malformed)),
        }
    }

    /// Wakes who reads the body, unless that is who is running.
    fn wake_reader(&mut self, running: Option<&Waker>) {
        match &self.reader {
            Some(reader) if running.is_some_and(|running| running.will_wake(reader)) => {}
            _ => {
                if let Some(reader) = self.reader.take() {
                    reader.wake();
                }
            }
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(failure) = self.failed {
            return Poll::Ready(Some(Err(failure.into())));
        }
        match self.decoder.decode(&mut self.buffer) {
            Ok(Decoded::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Ok(Decoded::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(Decoded::End) => Poll::Ready(None),
            Ok(Decoded::NeedMore) => {
                keep_waker(&mut self.reader, cx.waker());
                self.wanted = true;
                if !self.connection_looks
                    && let Some(connection) = &self.connection
                {
                    connection.wake_by_ref();
                }
                Poll::Pending
            }
            Err(malformed) => {
                let failure = Failure::Malformed(malformed);
                self.failed = Some(failure);
                Poll::Ready(Some(Err(failure.into())))
            }
        }
    }
}

fn keep_waker(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(kept) if kept.will_wake(waker) => {}
        _ => *place = Some(waker.clone()),
    }
}

impl From<Failure> for BodyError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Malformed(malformed) => Self::because(malformed.reason, malformed.what),
            Failure::Ended(reason) => Self::new(reason),
        }
    }
}

/// The reader's end. Dropping it leaves the rest to the connection.
struct RequestBody(SharedUpload);

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.borrow_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.borrow().is_done()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.borrow().decoder.left().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let mut upload = self.0.borrow_mut();
        upload.held = false;
        upload.wanted = false;
        upload.reader = None;
    }
}
