//! The beginning of a request body, kept so that others can look at it, and then sent on as if nobody had.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use crate::body::{Body, BodyError};
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::limits::{Budget, Reserved};

/// What was kept of a body.
#[derive(Debug, Default)]
pub struct Beginning {
    /// Its bytes.
    pub bytes: Bytes,
    /// That is all of it.
    pub whole: bool,
}

/// Reads up to `max` bytes of a body, or what has come of it `within` a time, and puts them back. What is held counts
/// against the budget of the process until it is sent on.
pub async fn beginning(
    body: &mut Body,
    max: usize,
    within: Duration,
    budget: &std::sync::Arc<Budget>,
) -> Result<Beginning, Reject> {
    match body {
        Body::Empty | Body::Full(None) => return Ok(Beginning { bytes: Bytes::new(), whole: true }),
        Body::Full(Some(bytes)) => {
            let whole = bytes.len() <= max;
            return Ok(Beginning { bytes: bytes.slice(..max.min(bytes.len())), whole });
        }
        Body::Http2(_) | Body::Stream(_) => {}
    }
    let (mut held, mut reserved) = (BytesMut::new(), budget.open());
    let (mut trailers, mut whole) = (None, false);
    let deadline = Instant::now() + within;
    // One byte more than is asked for tells whether there is more.
    while held.len() <= max {
        let frame = match timeout_at(deadline, body.frame()).await {
            Err(_) => break,
            Ok(None) => {
                whole = true;
                break;
            }
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                let detail = error.to_string();
                return Err(Reject::because(Stage::Consult, error.reason, detail));
            }
        };
        match frame.into_data() {
            Ok(data) => {
                // What grows has room for up to twice of what is in it.
                if !reserved.grow(data.len() * 2) {
                    let why = "all that may be held of request bodies for providers is held";
                    return Err(Reject::because(Stage::Consult, Reason::Overloaded, why));
                }
                held.extend_from_slice(&data);
            }
            // The last of a body; the codecs bound how much it is.
            Err(last) => {
                trailers = Some(last);
                whole = true;
                break;
            }
        }
    }
    let rest = if whole { Body::Empty } else { std::mem::take(body) };
    let whole = whole && held.len() <= max;
    let held = held.freeze();
    let bytes = held.slice(..max.min(held.len()));
    *body = Body::Stream(Box::pin(Kept { held, trailers, rest, _reserved: reserved }));
    Ok(Beginning { bytes, whole })
}

/// What was read already, as one frame, and the body that follows it.
struct Kept {
    held: Bytes,
    trailers: Option<Frame<Bytes>>,
    rest: Body,
    _reserved: Reserved,
}

impl http_body::Body for Kept {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if !this.held.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.held)))));
        }
        if let Some(trailers) = this.trailers.take() {
            return Poll::Ready(Some(Ok(trailers)));
        }
        Pin::new(&mut this.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.trailers.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (held, rest) = (self.held.len() as u64, self.rest.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(held + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(held + upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};
    use http_body_util::StreamBody;

    use super::*;

    fn stream(pieces: &[&'static str]) -> Body {
        let frames: Vec<_> =
            pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).collect();
        Body::Stream(Box::pin(StreamBody::new(futures_util::stream::iter(frames))))
    }

    async fn read(body: Body) -> Bytes {
        body.collect().await.unwrap().to_bytes()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_was_looked_at_is_sent_on_whole() {
        let budget = Budget::new(1000);
        for (max, seen, whole) in [(100, "onetwothree", true), (11, "onetwothree", true), (5, "onetw", false)]
        {
            let mut body = stream(&["one", "two", "three"]);
            let beginning = beginning(&mut body, max, LONG, &budget).await.unwrap();
            assert_eq!((&beginning.bytes[..], beginning.whole), (seen.as_bytes(), whole), "{max}");
            assert_eq!(read(body).await, "onetwothree");
        }
        assert!(budget.open().grow(1000), "all of it came back");
    }

    #[tokio::test]
    async fn many_small_pieces_are_held_as_one_with_the_trailers_after_it() {
        let budget = Budget::new(1000);
        let trailers =
            HeaderMap::from_iter([(HeaderName::from_static("x-sum"), HeaderValue::from_static("1"))]);
        let mut frames: Vec<_> = (0..100).map(|_| Ok(Frame::data(Bytes::from_static(b"a")))).collect();
        frames.push(Ok(Frame::trailers(trailers.clone())));
        let mut body = Body::Stream(Box::pin(StreamBody::new(futures_util::stream::iter(frames))));
        let beginning = beginning(&mut body, 500, LONG, &budget).await.unwrap();
        assert_eq!((beginning.bytes.len(), beginning.whole), (100, true));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 100);
        assert_eq!(body.frame().await.unwrap().unwrap().into_trailers().unwrap(), trailers);
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_body_that_is_here_is_not_held_twice() {
        let budget = Budget::new(0);
        let mut body = Body::full("all of it");
        let beginning = beginning(&mut body, 3, LONG, &budget).await.unwrap();
        assert_eq!((&beginning.bytes[..], beginning.whole), (&b"all"[..], false));
        assert_eq!(read(body).await, "all of it");
    }

    #[tokio::test]
    async fn more_than_the_process_may_hold_is_refused() {
        let budget = Budget::new(10);
        let mut body = stream(&["one", "two"]);
        let error = beginning(&mut body, 100, LONG, &budget).await.unwrap_err();
        assert_eq!((error.stage, error.reason), (Stage::Consult, Reason::Overloaded));
        assert!(budget.open().grow(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let budget = Budget::new(100);
        let mut body = Body::Stream(Box::pin(StreamBody::new(futures_util::stream::pending())));
        let beginning = beginning(&mut body, 100, LONG, &budget).await.unwrap();
        assert_eq!((beginning.bytes.len(), beginning.whole), (0, false));
    }
}
