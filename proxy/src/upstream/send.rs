//! [`Sending`]: a request from the hop to the head of its response. Written by hand so that it is small: what a pooled
//! connection does not need (dials, handshakes, HTTP/2) is behind a box.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use http::Request;

use super::dial::Dial;
use super::hop::{Hop, HopProtocol};
use super::http1::{Connection, Exchange, Failure};
use super::pick::InFlight;
use super::{Connected, SendError, Sent, Upstream, http2};
use crate::body::Body;

/// The future of [`Upstream::send`].
#[must_use = "nothing is sent until it is polled"]
pub struct Sending<'a> {
    upstream: &'a Rc<Upstream>,
    hop: &'a Hop,
    request: &'a mut Request<Body>,
    in_flight: Option<InFlight>,
    stage: Stage<'a>,
}

enum Stage<'a> {
    Start,
    /// With the epoch in which it began.
    Dialing(Dial<'a>, u32),
    Exchanging(Exchange),
    Http2(http2::Exchange),
    Done,
}

impl<'a> Sending<'a> {
    pub(super) fn new(upstream: &'a Rc<Upstream>, hop: &'a Hop, request: &'a mut Request<Body>) -> Self {
        let in_flight = hop.load.as_ref().map(InFlight::new);
        Self { upstream, hop, request, in_flight, stage: Stage::Start }
    }

    fn start(&mut self) -> Stage<'a> {
        if self.hop.protocol() == HopProtocol::Http2 {
            let (upstream, hop) = (Rc::clone(self.upstream), self.hop.clone());
            return Stage::Http2(http2::send(upstream, hop, mem::take(self.request), self.in_flight.take()));
        }
        match self.upstream.checkout(&self.hop.target) {
            Some(connection) => self.exchange(connection),
            None => self.dial(),
        }
    }

    fn dial(&self) -> Stage<'a> {
        Stage::Dialing(self.upstream.dial(self.hop), self.upstream.epoch.get())
    }

    fn exchange(&self, connection: Box<Connection>) -> Stage<'a> {
        Stage::Exchanging(Exchange::new(connection, self.request, self.upstream))
    }

    fn connected(&self, Connected { io, facts }: Connected, epoch: u32) -> Stage<'a> {
        self.exchange(Box::new(Connection {
            io,
            facts,
            reused: false,
            epoch,
            idle_since: 0,
            retires: self.upstream.retires(),
        }))
    }

    /// A pooled connection that the server closed says nothing about the server: once more, on a fresh one, if the
    /// request can't have been acted on, or may be twice.
    fn may_repeat(&self, failure: &Failure) -> bool {
        let harmless = !failure.touched || self.request.method().is_idempotent();
        failure.stale && failure.replayable && harmless
    }
}

fn failed(failure: Failure) -> SendError {
    SendError { reject: failure.reject, whole: failure.replayable, facts: Some(failure.facts) }
}

impl Future for Sending<'_> {
    type Output = Result<Sent, SendError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match &mut this.stage {
                Stage::Start => this.stage = this.start(),
                Stage::Dialing(dial, epoch) => match ready!(dial.as_mut().poll(cx)) {
                    Ok(connected) => {
                        let epoch = *epoch;
                        this.stage = this.connected(connected, epoch);
                    }
                    Err(reject) => {
                        return Poll::Ready(Err(SendError { reject, whole: true, facts: None }));
                    }
                },
                Stage::Exchanging(exchange) => match ready!(exchange.poll(this.request, cx)) {
                    Ok(head) => {
                        let Stage::Exchanging(exchange) = mem::replace(&mut this.stage, Stage::Done) else {
                            unreachable!("matched right above");
                        };
                        let in_flight = this.in_flight.take();
                        let target = &this.hop.target;
                        let sent = exchange.respond(head, this.request, this.upstream, target, in_flight);
                        return Poll::Ready(sent.map_err(|failure| failed(*failure)));
                    }
                    Err(failure) if this.may_repeat(&failure) => this.stage = this.dial(),
                    Err(failure) => return Poll::Ready(Err(failed(*failure))),
                },
                Stage::Http2(exchange) => {
                    let sent = ready!(exchange.as_mut().poll(cx));
                    return Poll::Ready(sent.map_err(|(error, unsent)| {
                        if let Some(request) = unsent {
                            *this.request = *request;
                        }
                        error
                    }));
                }
                Stage::Done => return Poll::Pending,
            }
        }
    }
}
