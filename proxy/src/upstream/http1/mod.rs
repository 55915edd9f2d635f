//! The HTTP/1 client: one request and its response on a connection, in the caller's own future and without a task.

mod body;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::future::Future;
use std::io;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use http::{Request, Response, StatusCode};
use tokio::time::Sleep;

use self::body::{Ready, ResponseBody};
use self::reader::ReadBuffer;
use self::writer::{WriteError, Writer};
use super::pick::InFlight;
use super::pool::{Retires, Target};
use super::{HopFacts, Io, Sent, UpgradedUpstream, Upstream};
use crate::body::Body;
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::h1::{BodyDecoder, HeadProgress, Malformed, ResponseHead, parse_response};
use crate::tls::refused_by_server;

/// Most interim responses (1xx) to one request.
const MAX_INTERIM: u8 = 16;

/// A connection, between exchanges and during one. Boxed once, for its life.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) io: Io,
    pub(super) facts: Rc<HopFacts>,
    /// It served a request before.
    pub(super) reused: bool,
    /// The worker's epoch when it was opened.
    pub(super) epoch: u32,
    /// The sweeper's tick when it was given back.
    pub(super) idle_since: u32,
    /// From which tick on it serves no further request.
    pub(super) retires: Retires,
}

/// One request on its way and its response awaited.
#[derive(Debug)]
pub(super) struct Exchange {
    connection: Box<Connection>,
    writer: Writer,
    read: ReadBuffer,
    progress: HeadProgress,
    interim: u8,
    /// When to stop waiting for `100 Continue`.
    hold: Option<Pin<Box<Sleep>>>,
    broken: Option<io::Error>,
}

/// An exchange without response.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reject: Reject,
    pub(super) facts: Rc<HopFacts>,
    /// A reused connection ended before any byte of the response: most likely the server had closed it as idle.
    pub(super) stale: bool,
    /// The server may have seen some of the request.
    pub(super) touched: bool,
    /// The request can be sent again.
    pub(super) replayable: bool,
}

impl Exchange {
    /// Begins; nothing is written before the first poll.
    pub(super) fn new(connection: Box<Connection>, request: &Request<Body>, upstream: &Upstream) -> Self {
        let hold = writer::expects_continue(request);
        Self {
            connection,
            writer: Writer::new(request, hold),
            read: ReadBuffer::default(),
            progress: HeadProgress::default(),
            interim: 0,
            hold: hold.then(|| Box::pin(tokio::time::sleep(upstream.settings.continue_timeout))),
            broken: None,
        }
    }

    /// Writes, and reads until the response's head is there.
    pub(super) fn poll(
        &mut self,
        request: &mut Request<Body>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, Box<Failure>>> {
        if let Some(reason) = self.connection.facts.belief.lost() {
            return Poll::Ready(Err(self.failure(Reject::new(Stage::Relay, reason))));
        }
        if let Some(hold) = &mut self.hold
            && hold.as_mut().poll(cx).is_ready()
        {
            self.release();
        }
        loop {
            self.drive_writer(request, cx).map_err(|reject| self.failure(reject))?;
            match ready!(self.read.poll_fill(&mut self.connection.io, None, cx)) {
                Ok(0) => return Poll::Ready(Err(self.lost(None))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(self.lost(Some(error)))),
            }
            let parsed = self.parse(request);
            if let Some(head) = parsed.map_err(|malformed| self.malformed(malformed.what))? {
                return Poll::Ready(Ok(head));
            }
        }
    }

    /// Makes the response, and gives the connection back if that was all of it.
    pub(super) fn respond(
        mut self,
        head: ResponseHead,
        request: &mut Request<Body>,
        upstream: &Rc<Upstream>,
        target: &Rc<Target>,
        in_flight: Option<InFlight>,
    ) -> Result<Sent, Box<Failure>> {
        let facts = Rc::clone(&self.connection.facts);
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        if head.upgrade {
            let read_ahead = self.read.split().freeze();
            let proof = facts.proof.clone();
            response.extensions_mut().insert(UpgradedUpstream::new(self.connection.io, read_ahead, proof));
            return Ok(Sent { response, facts });
        }
        let mut decoder = BodyDecoder::new(head.length);
        let ready = body::decode_ready(&mut decoder, &mut self.read);
        let ready = match ready.map_err(|malformed| self.malformed(malformed.what))? {
            Ready::Whole(body) => {
                *response.body_mut() = body;
                if head.keep_alive && self.writer.is_whole() && self.read.is_empty() {
                    upstream.give_back(target, self.connection);
                }
                return Ok(Sent { response, facts });
            }
            Ready::Part(ready) => ready,
        };
        let request_body = mem::replace(request.body_mut(), Body::Empty);
        *response.body_mut() = Body::Stream(Box::pin(ResponseBody {
            connection: Some(self.connection),
            keep_alive: head.keep_alive,
            decoder,
            ready,
            read: self.read,
            writer: self.writer,
            request_body,
            upstream: Rc::clone(upstream),
            target: Rc::clone(target),
            in_flight,
        }));
        Ok(Sent { response, facts })
    }

    /// A server that stops reading may have answered before, so its error counts only when nothing can be read.
    fn drive_writer(&mut self, request: &mut Request<Body>, cx: &mut Context<'_>) -> Result<(), Reject> {
        if self.writer.is_over() {
            return Ok(());
        }
        match self.writer.poll(&mut self.connection.io, request.body_mut(), cx) {
            Poll::Ready(Err(WriteError::Io(error))) => self.broken = Some(error),
            Poll::Ready(Err(WriteError::Body(error))) => {
                return Err(Reject { detail: error.detail, ..Reject::new(Stage::Send, error.reason) });
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        Ok(())
    }

    /// The final head, once it is there; interim ones are skipped.
    fn parse(&mut self, request: &Request<Body>) -> Result<Option<ResponseHead>, Malformed> {
        loop {
            if self.read.is_empty() || !self.progress.worth_parsing(&self.read) {
                return Ok(None);
            }
            let Some(head) = parse_response(&mut self.read, request.method())? else { return Ok(None) };
            self.progress = HeadProgress::default();
            match head.status {
                StatusCode::SWITCHING_PROTOCOLS if !writer::asks_for_upgrade(request) => {
                    return Err(refused("it switches protocols without being asked to"));
                }
                StatusCode::SWITCHING_PROTOCOLS => return Ok(Some(head)),
                status if !status.is_informational() => return Ok(Some(head)),
                StatusCode::CONTINUE => self.release(),
                _ => {}
            }
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err(refused("there are more than 16 interim responses"));
            }
        }
    }

    /// Lets the body flow.
    fn release(&mut self) {
        self.hold = None;
        self.writer.release();
    }

    /// The connection ended before a response's head did.
    fn lost(&mut self, error: Option<io::Error>) -> Box<Failure> {
        let silent = self.read.is_empty() && self.interim == 0;
        let error = error.or_else(|| self.broken.take());
        let endpoint = self.connection.facts.endpoint;
        // With TLS 1.3 the server refuses a client's certificate only after the handshake.
        let refusal = error.as_ref().filter(|_| silent && !self.connection.reused);
        if let Some(refusal) = refusal.and_then(refused_by_server) {
            return self.failure(refusal);
        }
        let how = if silent { "before a response" } else { "in the middle of a response's head" };
        let detail = match error {
            Some(error) => format!("{endpoint} ended the connection {how}: {error}"),
            None => format!("{endpoint} closed the connection {how}"),
        };
        let stale = silent && self.connection.reused;
        let reason =
            if stale && !self.writer.is_touched() { Reason::IdleRace } else { Reason::ResetBeforeResponse };
        let mut failure = self.failure(Reject::because(Stage::Send, reason, detail));
        failure.stale = stale;
        failure
    }

    fn malformed(&self, what: &str) -> Box<Failure> {
        let endpoint = self.connection.facts.endpoint;
        let detail = format_args!("the response of {endpoint} was refused: {what}");
        self.failure(Reject::because(Stage::Send, Reason::BadResponse, detail))
    }

    fn failure(&self, reject: Reject) -> Box<Failure> {
        Box::new(Failure {
            reject,
            facts: Rc::clone(&self.connection.facts),
            stale: false,
            touched: self.writer.is_touched(),
            replayable: self.writer.is_replayable(),
        })
    }
}

const fn refused(what: &'static str) -> Malformed {
    Malformed { reason: Reason::BadResponse, what }
}
