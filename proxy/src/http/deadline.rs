//! [`TimedBody`]: a response body that `timeouts.request` bounds like the rest of its transaction.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::body::{Body, BodyError};
use crate::decision::Reason;

/// A body that fails when it is not over at its deadline.
pub struct TimedBody {
    body: Body,
    deadline: Pin<Box<Sleep>>,
}

/// Bounds what is still to come of a body; one that is all here needs no bound.
pub fn timed(body: Body, deadline: Instant) -> Body {
    match body {
        Body::Empty | Body::Full(_) => body,
        Body::Http2(_) | Body::Stream(_) => {
            let deadline = Box::pin(tokio::time::sleep_until(deadline));
            Body::Stream(Box::pin(TimedBody { body, deadline }))
        }
    }
}

impl http_body::Body for TimedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.deadline.as_mut().poll(cx).is_ready() {
            let why = "the response was not over when the time for the request was";
            return Poll::Ready(Some(Err(BodyError::because(Reason::RequestTimeout, why))));
        }
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    /// One piece at once, and no end.
    fn endless() -> Body {
        let first = futures_util::stream::once(async { Ok(Frame::data(Bytes::from_static(b"one"))) });
        Body::Stream(Box::pin(StreamBody::new(futures_util::StreamExt::chain(
            Box::pin(first),
            futures_util::stream::pending(),
        ))))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_over_in_time_fails() {
        let mut body = timed(endless(), Instant::now() + Duration::from_secs(1));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
        assert_eq!(body.frame().await.unwrap().unwrap_err().reason, Reason::RequestTimeout);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_here_has_no_timer() {
        assert!(matches!(timed(Body::full("all"), Instant::now()), Body::Full(_)));
    }
}
