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
    let mut kept = Kept { frames: Vec::new(), next: 0, rest: Body::Empty, _reserved: budget.open() };
    let (mut bytes, mut whole) = (BytesMut::new(), false);
    let deadline = Instant::now() + within;
    // One byte more than is asked for tells whether there is more.
    while bytes.len() <= max {
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
        if let Some(data) = frame.data_ref() {
            // A copy for those who look, and the frame itself for the server.
            if !kept._reserved.grow(data.len() * 2) {
                let why = "all that may be held of request bodies for providers is held";
                return Err(Reject::because(Stage::Consult, Reason::Overloaded, why));
            }
            bytes.extend_from_slice(data);
        }
        kept.frames.push(Some(frame));
    }
    if !whole {
        kept.rest = std::mem::take(body);
    }
    let whole = whole && bytes.len() <= max;
    bytes.truncate(max);
    *body = Body::Stream(Box::pin(kept));
    Ok(Beginning { bytes: bytes.freeze(), whole })
}

/// Frames that were read already, and the body that follows them.
struct Kept {
    frames: Vec<Option<Frame<Bytes>>>,
    next: usize,
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
        if let Some(frame) = this.frames.get_mut(this.next) {
            this.next += 1;
            return Poll::Ready(frame.take().map(Ok));
        }
        Pin::new(&mut this.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.next == self.frames.len() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.frames[self.next..].iter().flatten().filter_map(Frame::data_ref);
        let left: u64 = left.map(|data| data.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(left + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(left + upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
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
