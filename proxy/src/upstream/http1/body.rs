//! [`ResponseBody`]: a body that was not all there with its head. It owns the connection, and sends on what is left of
//! the request, until both are over.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use smallvec::{SmallVec, smallvec};

use super::Connection;
use super::reader::ReadBuffer;
use super::writer::{WriteError, Writer};
use crate::body::{Body, BodyError};
use crate::decision::Reason;
use crate::h1::{BodyDecoder, Decoded, Malformed};
use crate::upstream::Upstream;
use crate::upstream::pick::InFlight;
use crate::upstream::pool::Target;

/// What came right behind a head.
pub(super) enum Ready {
    /// All of the body.
    Whole(Body),
    /// Some frames of it, first one first.
    Part(Frames),
}

type Frames = SmallVec<[Frame<Bytes>; 2]>;

/// Decodes what is there, far enough to see whether it is all.
pub(super) fn decode_ready(decoder: &mut BodyDecoder, read: &mut BytesMut) -> Result<Ready, Malformed> {
    let data = match decoder.decode(read)? {
        Decoded::End => return Ok(Ready::Whole(Body::Empty)),
        Decoded::NeedMore => return Ok(Ready::Part(Frames::new())),
        Decoded::Trailers(trailers) => return Ok(Ready::Part(smallvec![Frame::trailers(trailers)])),
        Decoded::Data(data) if decoder.is_done() => return Ok(Ready::Whole(Body::full(data))),
        Decoded::Data(data) => data,
    };
    Ok(match decoder.decode(read)? {
        Decoded::End => Ready::Whole(Body::full(data)),
        Decoded::NeedMore => Ready::Part(smallvec![Frame::data(data)]),
        Decoded::Data(more) => Ready::Part(smallvec![Frame::data(data), Frame::data(more)]),
        Decoded::Trailers(trailers) => Ready::Part(smallvec![Frame::data(data), Frame::trailers(trailers)]),
    })
}

/// The rest of an exchange.
#[derive(Debug)]
pub(super) struct ResponseBody {
    /// `None` once the body is over or failed.
    pub(super) connection: Option<Box<Connection>>,
    pub(super) keep_alive: bool,
    pub(super) decoder: BodyDecoder,
    pub(super) ready: Frames,
    pub(super) read: ReadBuffer,
    pub(super) writer: Writer,
    pub(super) request_body: Body,
    pub(super) upstream: Rc<Upstream>,
    pub(super) target: Rc<Target>,
    pub(super) in_flight: Option<InFlight>,
}

impl ResponseBody {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.ready.is_empty() {
            return Poll::Ready(Some(Ok(self.ready.remove(0))));
        }
        loop {
            let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
            if let Some(reason) = connection.facts.belief.lost() {
                return Poll::Ready(Some(Err(self.fail(BodyError::new(reason)))));
            }
            if !self.writer.is_over() {
                let written = self.writer.poll(&mut connection.io, &mut self.request_body, cx);
                if let Poll::Ready(Err(WriteError::Body(error))) = written {
                    return Poll::Ready(Some(Err(self.fail(error))));
                }
            }
            match self.decoder.decode(&mut self.read) {
                Ok(Decoded::Data(data)) => {
                    // Known to be over: give the connection back now, not when somebody looks for an end.
                    if self.decoder.is_done() {
                        self.end(self.keep_alive);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::Trailers(trailers)) => {
                    self.end(self.keep_alive);
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Decoded::End) => self.end(self.keep_alive),
                Ok(Decoded::NeedMore) => match self.poll_read(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(self.fail(error)))),
                },
                Err(malformed) => {
                    let error = BodyError::because(Reason::BadResponse, malformed);
                    return Poll::Ready(Some(Err(self.fail(error))));
                }
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let Some(connection) = &mut self.connection else { return Poll::Ready(Ok(())) };
        let endpoint = connection.facts.endpoint;
        let reset = |how: &dyn std::fmt::Display| {
            let detail = format_args!("{endpoint} ended the connection in the middle of a response: {how}");
            BodyError::because(Reason::UpstreamReset, detail)
        };
        self.read.poll_fill(&mut connection.io, self.decoder.left(), cx).map(|read| match read {
            Ok(0) => match self.decoder.eof() {
                Ok(()) => {
                    self.end(false);
                    Ok(())
                }
                Err(truncated) => Err(reset(&truncated)),
            },
            Ok(_) => Ok(()),
            Err(error) => Err(reset(&error)),
        })
    }

    /// The body is over. A request that isn't is stopped, and its connection closed.
    fn end(&mut self, keep_alive: bool) {
        if let Some(connection) = self.connection.take()
            && keep_alive
            && self.writer.is_whole()
            && self.read.is_empty()
        {
            self.upstream.give_back(&self.target, connection);
        }
        self.in_flight = None;
        self.request_body = Body::Empty;
    }

    fn fail(&mut self, error: BodyError) -> BodyError {
        self.end(false);
        error
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.get_mut().poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.connection.is_none() && self.ready.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let ready: usize = self.ready.iter().filter_map(Frame::data_ref).map(Bytes::len).sum();
        match self.decoder.left() {
            Some(left) => SizeHint::with_exact(left + ready as u64),
            None => SizeHint::default(),
        }
    }
}
