//! The one body type of the path: what a request or response carries, whichever connection it comes from.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::decision::Reason;

/// A body. Small and known ones cost nothing; streams are boxed by who makes them.
#[derive(Default)]
pub enum Body {
    /// No bytes.
    #[default]
    Empty,
    /// All of it, already here. `None` once taken.
    Full(Option<Bytes>),
    /// From an HTTP/2 connection.
    Http2(hyper::body::Incoming),
    /// From anything else.
    Stream(BodyStream),
}

/// A body made by its owner.
pub type BodyStream = Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError>>>;

/// Why a body ended early.
#[derive(Debug)]
pub struct BodyError {
    /// `client-closed`, `client-stalled`, `upstream-reset`, `malformed-request`, `bad-response`, ...
    pub reason: Reason,
    /// For the operator.
    pub detail: Option<Box<str>>,
}

impl BodyError {
    /// An error without detail.
    pub const fn new(reason: Reason) -> Self {
        Self { reason, detail: None }
    }
    /// An error with a text for the operator.
    pub fn because(reason: Reason, detail: impl fmt::Display) -> Self {
        Self { reason, detail: Some(detail.to_string().into()) }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) => write!(f, "{}: {detail}", self.reason.as_str()),
            None => f.write_str(self.reason.as_str()),
        }
    }
}

impl std::error::Error for BodyError {}

impl Body {
    /// A body of bytes already here.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::Empty } else { Self::Full(Some(bytes)) }
    }
}

/// A stream that breaks the protocol is malformed; any other that fails was left by its sender, who is the server unless
/// whoever reads a request says otherwise.
fn http2_reason(error: &hyper::Error) -> Reason {
    let broken = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<h2::Error>())
        .is_some_and(|error| error.is_library() && error.reason() == Some(h2::Reason::PROTOCOL_ERROR));
    if broken { Reason::MalformedRequest } else { Reason::UpstreamReset }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Full(_) => "Full",
            Self::Http2(_) => "Http2",
            Self::Stream(_) => "Stream",
        })
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Http2(incoming) => Pin::new(incoming).poll_frame(cx).map(|frame| {
                frame.map(|frame| frame.map_err(|error| BodyError::because(http2_reason(&error), error)))
            }),
            Self::Stream(stream) => stream.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Http2(incoming) => incoming.is_end_stream(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Full(None) => SizeHint::with_exact(0),
            Self::Full(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Http2(incoming) => incoming.size_hint(),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}
