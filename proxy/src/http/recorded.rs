//! Bodies that know their record: the response's carries it and ends it, the request's counts for it.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use ::http::HeaderMap;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::streams::{Stream, Underway};
use super::vouched;
use crate::body::{Body, BodyError};
use crate::decision::{Reason, Stage};
use crate::generation::Held;
use crate::live::Place;
use crate::telemetry::{Record, Upload};

/// A response body with its record, which is emitted when the body ends, fails or is dropped.
pub struct RecordedBody {
    body: Body,
    record: Option<Box<Record>>,
    /// Where the record is instead, if it may last.
    place: Option<Place>,
    underway: Option<Underway>,
}

impl RecordedBody {
    /// Ties a body to its record.
    pub fn new(body: Body, record: Box<Record>) -> Self {
        Self { body, record: Some(record), place: None, underway: None }
    }

    /// Keeps the place of its request, and in it the record of a body that has yet to come.
    pub fn at(mut self, place: Option<Place>) -> Self {
        if let Some(place) = &place
            && matches!(self.body, Body::Http2(_) | Body::Stream(_))
            && let Some(record) = self.record.take()
        {
            place.hold(record);
        }
        self.place = place;
        self
    }

    /// Holds an HTTP/2 connection's guard for as long as the request may have something to record.
    pub fn while_underway(mut self, underway: Underway) -> Self {
        underway.stream().answers();
        if let (Some(place), Some(task)) = (&self.place, underway.stream().task()) {
            place.served_by(task);
        }
        self.underway = Some(underway);
        self
    }

    /// Takes the record out, and the place, for a tunnel that goes on after the response.
    pub fn take_record(&mut self) -> Option<(Box<Record>, Option<Place>)> {
        let record = self.take()?;
        Some((record, self.place.take()))
    }

    /// Whether its request was ended from elsewhere.
    pub fn is_ended(&self) -> bool {
        self.record.is_none() && self.place.as_ref().is_some_and(Place::is_ended)
    }

    fn take(&mut self) -> Option<Box<Record>> {
        self.record.take().or_else(|| self.place.as_ref()?.take())
    }

    fn write(&mut self, write: impl FnOnce(&mut Record)) {
        match (&mut self.record, &self.place) {
            (Some(record), _) => write(record),
            (None, Some(place)) => place.write(write),
            (None, None) => {}
        }
    }

    /// Writes down that the client does not take it.
    pub fn untaken(&mut self) {
        self.finish(Stage::Relay, Reason::ClientStalled);
    }

    fn finish(&mut self, stage: Stage, reason: Reason) {
        if let Some(mut record) = self.take() {
            if let (Some(Reason::MalformedRequest), Some(underway)) = (upload_failed(&record), &self.underway)
            {
                underway.recorded();
            }
            // An answer of the proxy's own already says how the request ended.
            record.ended.get_or_insert((stage, reason));
        }
    }

    fn count(&mut self, frame: &Frame<Bytes>) {
        self.write(|record| {
            if let Some(data) = frame.data_ref() {
                record.response_bytes += data.len() as u64;
            } else if let Some(trailers) = frame.trailers_ref() {
                record.grpc_status = grpc_status(trailers).or(record.grpc_status);
            }
        });
    }
}

fn upload_failed(record: &Record) -> Option<Reason> {
    record.upload.as_ref()?.failed.get()
}

/// `grpc-status` of a head or of trailers.
pub fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

impl http_body::Body for RecordedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.record.is_none()
            && let Some(place) = &this.place
            && let Err(ended) = place.look(cx)
        {
            // Nothing more is asked of the server.
            this.body = Body::Empty;
            this.place = None;
            return Poll::Ready(Some(Err(BodyError { reason: ended.reason, detail: ended.detail })));
        }
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let Some(underway) = &this.underway {
            match &polled {
                Poll::Ready(Some(Ok(_))) => underway.stream().gave(),
                _ => underway.stream().taken(),
            }
        }
        match &polled {
            Poll::Ready(Some(Ok(frame))) => this.count(frame),
            Poll::Ready(None) => this.finish(Stage::Relay, Reason::Complete),
            Poll::Ready(Some(Err(error))) => {
                let mut caller = None;
                this.write(|record| {
                    caller = upload_failed(record);
                    record.detail = error.detail.clone();
                });
                // What breaks the protocol here came from the server.
                let server = match error.reason {
                    Reason::MalformedRequest | Reason::AmbiguousLength => Reason::BadResponse,
                    reason => reason,
                };
                this.finish(Stage::Relay, caller.unwrap_or(server));
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RecordedBody {
    fn drop(&mut self) {
        if self.underway.as_ref().is_some_and(|underway| underway.stream().is_stalled()) {
            self.untaken();
        }
        // Whoever sends a body may stop asking once it knows that nothing follows. What else is dropped was left by its
        // client, or cut: the record knows which.
        if self.body.is_end_stream() {
            self.finish(Stage::Relay, Reason::Complete);
        }
    }
}

/// A request body that counts what passes.
pub struct CountedBody {
    body: Body,
    upload: Rc<Upload>,
    /// The HTTP/2 stream it comes by.
    stream: Option<Rc<Stream>>,
    /// Says what its trailers may not.
    held: Rc<Held>,
}

/// Wraps a request body that has yet to come; one that is already here is counted by its length.
pub fn counted(body: &mut Body, stream: Option<Rc<Stream>>, held: &Rc<Held>) -> Option<Rc<Upload>> {
    if matches!(body, Body::Empty | Body::Full(_)) {
        return None;
    }
    let upload = Rc::new(Upload::default());
    let (upload_counts, held) = (Rc::clone(&upload), Rc::clone(held));
    let counted = CountedBody { body: std::mem::take(body), upload: upload_counts, stream, held };
    *body = Body::Stream(Box::pin(counted));
    Some(upload)
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(reason) = this.upload.failed.get() {
            return Poll::Ready(Some(Err(BodyError::new(reason))));
        }
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let Some(stream) = &this.stream {
            match &polled {
                Poll::Ready(Some(Ok(_))) => stream.received(),
                Poll::Ready(_) => stream.done_reading(),
                Poll::Pending if stream.is_stalled() => {
                    this.upload.failed.set(Some(Reason::ClientStalled));
                    return Poll::Ready(Some(Err(BodyError::new(Reason::ClientStalled))));
                }
                Poll::Pending => stream.wants(cx),
            }
        }
        if polled.is_pending() {
            let mut reader = this.upload.reader.borrow_mut();
            if reader.as_ref().is_none_or(|reader| !reader.will_wake(cx.waker())) {
                *reader = Some(cx.waker().clone());
            }
        }
        match polled {
            Poll::Ready(Some(Ok(mut frame))) => {
                let data = frame.data_ref().map_or(0, |data| data.len() as u64);
                if let Some(trailers) = frame.trailers_mut() {
                    vouched::trailers(&this.held, trailers);
                }
                this.upload.bytes.set(this.upload.bytes.get() + data);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(mut error))) => {
                // A caller's HTTP/2 stream that fails is the caller's doing, whatever the library calls it.
                if matches!(this.body, Body::Http2(_)) && error.reason != Reason::MalformedRequest {
                    error.reason = Reason::ClientClosed;
                }
                this.upload.failed.set(Some(error.reason));
                Poll::Ready(Some(Err(error)))
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for CountedBody {
    fn drop(&mut self) {
        if let Some(stream) = &self.stream {
            stream.done_reading();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;
    use crate::reload::tests::generation_of;
    use crate::telemetry::{ConnectionFacts, ProxyFacts, Shard, Side};

    fn record() -> Box<Record> {
        let proxy = ProxyFacts {
            role: String::new(),
            workload: String::new(),
            identity: None,
            version: String::new(),
        };
        let anywhere = ([127, 0, 0, 1], 1).into();
        let facts = Rc::new(ConnectionFacts::new(Side::Inbound, anywhere, anywhere));
        Record::begin(&Shard::detached(&proxy), &Default::default(), &facts)
    }

    fn stream(frames: Vec<Result<Frame<Bytes>, BodyError>>) -> Body {
        Body::Stream(Box::pin(StreamBody::new(futures_util::stream::iter(frames))))
    }

    fn data(text: &'static str) -> Result<Frame<Bytes>, BodyError> {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    /// What the record would say, were it to end here.
    fn ended(body: &RecordedBody) -> Option<(Stage, Reason)> {
        body.record.as_ref().and_then(|record| record.ended)
    }

    #[tokio::test]
    async fn bytes_and_trailers_of_a_response_are_in_its_record() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", 5.into());
        let frames = vec![data("four"), data("five5"), Ok(Frame::trailers(trailers))];
        let mut body = RecordedBody::new(stream(frames), record());
        for _ in 0..3 {
            body.frame().await.unwrap().unwrap();
        }
        let (record, _) = body.take_record().unwrap();
        assert_eq!((record.response_bytes, record.grpc_status, record.ended), (9, Some(5), None));
    }

    #[tokio::test]
    async fn the_record_ends_once_with_the_body() {
        let mut body = RecordedBody::new(stream(vec![data("four")]), record());
        body.frame().await.unwrap().unwrap();
        assert_eq!(ended(&body), None);
        assert!(body.frame().await.is_none());
        assert!(body.take_record().is_none(), "it was emitted");
    }

    #[tokio::test]
    async fn a_broken_request_is_why_its_response_broke() {
        let mut one = record();
        one.upload = Some(Rc::new(Upload::default()));
        one.upload.as_ref().unwrap().failed.set(Some(Reason::ClientStalled));
        let mut body = RecordedBody::new(stream(vec![Err(BodyError::new(Reason::UpstreamReset))]), one);
        assert_eq!(body.record.as_deref().and_then(upload_failed), Some(Reason::ClientStalled));
        assert!(body.frame().await.unwrap().is_err());
        assert!(body.take_record().is_none());
    }

    #[tokio::test]
    async fn request_bodies_that_come_are_counted_and_those_that_are_here_need_not_be() {
        let held = Held::of(Arc::new(generation_of(1, "")));
        assert!(counted(&mut Body::full("here"), None, &held).is_none());
        assert!(counted(&mut Body::Empty, None, &held).is_none());
        let mut body = stream(vec![data("four"), Err(BodyError::new(Reason::ClientClosed))]);
        let upload = counted(&mut body, None, &held).unwrap();
        body.frame().await.unwrap().unwrap();
        assert_eq!((upload.bytes.get(), upload.failed.get()), (4, None));
        body.frame().await.unwrap().unwrap_err();
        assert_eq!(upload.failed.get(), Some(Reason::ClientClosed));
    }
}
