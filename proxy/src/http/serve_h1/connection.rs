//! The state machine of one connection: which state it is in, what each waits for, and what comes next.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::{io, mem};

use bytes::BytesMut;
use http::Response;
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::Instant;

use super::exchange::{self, Exchange};
use super::outgoing::Outgoing;
use super::timer::{self, Timer};
use super::{Control, Ended, Handler};
use crate::decision::{Reason, Stage};
use crate::drain::{DrainWatch, Word};
use crate::error::Reject;
use crate::h1::{self, BodyEncoder, HeadProgress, RequestHead, Timeouts, buffers};

/// A read is not attempted into less room than this.
const READ_MIN: usize = 2 * 1024;

/// A connection being served.
pub struct Connection<IO, H: Handler> {
    /// Until it is handed on.
    io: Option<IO>,
    handler: H,
    pub(super) timeouts: Rc<Timeouts>,
    drain: Rc<DrainWatch>,
    /// What was read and not yet understood. During an upload, that has it.
    pub(super) read: BytesMut,
    pub(super) out: Outgoing,
    timer: Timer,
    /// Runs while the client owes something.
    pub(super) read_deadline: Option<Instant>,
    /// Runs while the client takes nothing.
    write_deadline: Option<Instant>,
    pub(super) exchange: Exchange,
    pub(super) state: State<H::Body>,
}

/// Nothing in it is pinned in place: what needs that is boxed.
impl<IO, H: Handler> Unpin for Connection<IO, H> {}

pub(super) enum State<B> {
    /// For a request.
    Waiting(HeadProgress),
    /// The handler has it.
    Handling(Pin<Box<dyn Future<Output = Response<B>>>>),
    /// The head of the answer is written; this follows.
    Responding(B, BodyEncoder),
    /// The answer is written; the rest of the request is in the way.
    Discarding { left: u64 },
    /// The answer is written, and what follows is not HTTP.
    Tunnelling(Option<Box<Response<B>>>),
    /// Nothing follows.
    Closing { shut: bool, linger: Option<usize> },
}

/// What a state came to.
pub(super) enum Step<E> {
    /// Look again: the state changed, or may.
    Again,
    /// Nothing until something wakes the task.
    Wait,
    /// The end.
    End(E),
}

impl<IO, H> Future for Connection<IO, H>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    type Output = Ended<IO, H::Body>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let connection = self.get_mut();
        let Some(mut io) = connection.io.take() else { return Poll::Ready(Ended::Closed) };
        loop {
            let step = match &connection.state {
                State::Waiting(_) => connection.poll_request(&mut io, cx),
                State::Handling(_) => connection.poll_answer(&mut io, cx),
                State::Responding(..) => connection.poll_body(&mut io, cx),
                State::Discarding { .. } => connection.poll_discard(&mut io, cx),
                State::Tunnelling(_) => connection.poll_tunnel(&mut io, cx),
                State::Closing { .. } => connection.poll_close(&mut io, cx),
            };
            let step = if matches!(step, Step::Wait) { connection.wait(&mut io, cx) } else { step };
            match step {
                Step::Again => {}
                Step::Wait => {
                    connection.io = Some(io);
                    return Poll::Pending;
                }
                Step::End(None) => return Poll::Ready(Ended::Closed),
                Step::End(Some(response)) => {
                    let read_ahead = mem::take(&mut connection.read).freeze();
                    return Poll::Ready(Ended::Tunnel { io, read_ahead, response });
                }
            }
        }
    }
}

/// The answer that a tunnel follows, or nothing.
pub(super) type End<B> = Option<Box<Response<B>>>;

impl<IO, H> Connection<IO, H>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    pub(super) fn new(io: IO, handler: H, control: Control) -> Self {
        Self {
            io: Some(io),
            handler,
            drain: control.drain,
            timeouts: control.timeouts,
            read: BytesMut::new(),
            out: Outgoing::default(),
            timer: Timer::default(),
            read_deadline: None,
            write_deadline: None,
            exchange: Exchange::default(),
            state: State::Waiting(HeadProgress::default()),
        }
    }

    /// `Waiting`: what was read is parsed before more is read, and what is owed is written before either is waited for.
    fn poll_request(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Step<End<H::Body>> {
        if !self.out.has_room()
            && let Err(step) = self.flush(io, cx)
        {
            return step;
        }
        if let State::Waiting(progress) = &mut self.state
            && !self.read.is_empty()
            && progress.worth_parsing(&self.read)
        {
            match h1::parse_request(&mut self.read) {
                Ok(Some(head)) => return self.begin(head),
                Ok(None) => {}
                Err(malformed) => {
                    return self.refuse(Reject::because(Stage::Sanitize, malformed.reason, malformed.what));
                }
            }
        }
        if let Err(step) = self.flush(io, cx) {
            return step;
        }
        self.read_request(io, cx)
    }

    fn read_request(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Step<End<H::Body>> {
        let first = self.read.is_empty();
        match poll_read(io, &mut self.read, cx) {
            Poll::Ready(Ok(count)) if count > 0 => {
                if first {
                    self.read_deadline = None;
                }
                Step::Again
            }
            Poll::Ready(_) => {
                if !first {
                    let what = "the client left within the head of a request";
                    let gone = Reject::because(Stage::Sanitize, Reason::ClientClosed, what);
                    drop(self.handler.refuse(gone, exchange::partial(&self.read)));
                }
                self.close(false)
            }
            Poll::Pending if first => {
                buffers::give_read(mem::take(&mut self.read));
                if self.drain.is_draining() {
                    return self.close(false);
                }
                timer::run(&mut self.read_deadline, self.timeouts.idle);
                Step::Wait
            }
            Poll::Pending => {
                timer::run(&mut self.read_deadline, self.timeouts.head);
                Step::Wait
            }
        }
    }

    /// Writes all there is, or says what to do instead of going on.
    pub(super) fn flush(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Result<(), Step<End<H::Body>>> {
        match self.out.poll_write(io, cx) {
            Poll::Ready(Ok(())) => Ok(()),
            Poll::Ready(Err(_)) => Err(Step::End(None)),
            Poll::Pending => Err(Step::Wait),
        }
    }

    fn begin(&mut self, head: RequestHead) -> Step<End<H::Body>> {
        self.read_deadline = None;
        let (exchange, request) = Exchange::begin(head, &mut self.read);
        self.exchange = exchange;
        self.state = State::Handling(self.handler.handle(request));
        Step::Again
    }

    /// Answers what the handler can't, and lets nothing follow.
    fn refuse(&mut self, reject: Reject) -> Step<End<H::Body>> {
        self.read_deadline = None;
        self.exchange.end_upload(reject.reason);
        let response = self.handler.refuse(reject, exchange::partial(&self.read));
        self.exchange = Exchange::refusal();
        self.respond(response)
    }

    /// `Handling`: until the answer is there, the request body goes to who reads it, or the client is watched.
    fn poll_answer(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Step<End<H::Body>> {
        let State::Handling(answer) = &mut self.state else { return Step::Again };
        self.exchange.connection_looks(true);
        let answer = answer.as_mut().poll(cx);
        self.exchange.connection_looks(false);
        match answer {
            Poll::Ready(response) => self.respond(response),
            Poll::Pending => self.poll_client(io, cx),
        }
    }

    fn respond(&mut self, response: Response<H::Body>) -> Step<End<H::Body>> {
        if !self.exchange.allows(response.status()) {
            if self.exchange.refused {
                return self.close(true);
            }
            let what =
                "the answer switches protocols or is interim, which this request can't be answered with";
            return self.refuse(Reject::because(Stage::Send, Reason::BadResponse, what));
        }
        self.exchange.keep_alive &= !self.drain.is_draining();
        let (encoder, tunnel) = self.exchange.answer(self.out.buffer(), &response);
        self.state = if tunnel {
            State::Tunnelling(Some(Box::new(response)))
        } else {
            State::Responding(response.into_body(), encoder)
        };
        Step::Again
    }

    /// `Responding`: as much as is there goes out in one write; more is taken when that is written.
    fn poll_body(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Step<End<H::Body>> {
        loop {
            if !self.out.has_room() {
                match self.flush(io, cx) {
                    Ok(()) => {}
                    Err(Step::Wait) if self.is_ended() => return self.abort(io, cx),
                    Err(Step::Wait) => return self.poll_client(io, cx),
                    Err(step) => return step,
                }
            }
            let State::Responding(body, encoder) = &mut self.state else { return Step::Again };
            self.exchange.connection_looks(true);
            let frame = Pin::new(body).poll_frame(cx);
            self.exchange.connection_looks(false);
            match frame {
                Poll::Ready(Some(Ok(frame))) if self.exchange.bodiless => drop(frame),
                Poll::Ready(Some(Ok(frame))) => {
                    if self.exchange.half_closed {
                        self.read_deadline = None;
                    }
                    if exchange::write_frame(&mut self.out, encoder, frame).is_err() {
                        return self.abort(io, cx);
                    }
                }
                Poll::Ready(None) if self.exchange.bodiless => return self.finish(),
                Poll::Ready(None) => {
                    if encoder.finish(self.out.buffer(), None).is_err() {
                        return self.abort(io, cx);
                    }
                    return self.finish();
                }
                Poll::Ready(Some(Err(_))) => return self.abort(io, cx),
                Poll::Pending if self.exchange.bodiless => return self.finish(),
                Poll::Pending => return self.poll_client(io, cx),
            }
        }
    }

    /// Whether the answer, which the client does not take at the moment, was ended from elsewhere.
    fn is_ended(&self) -> bool {
        matches!(&self.state, State::Responding(body, _) if self.handler.is_ended(body))
    }

    /// While the handler is busy: reads what the request body asks for, or watches the client.
    fn poll_client(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Step<End<H::Body>> {
        self.exchange.reclaim(&mut self.read);
        if self.exchange.has_upload() {
            return self.poll_upload(io, cx);
        }
        // What comes now belongs to the next request; a buffer of it is enough to see that the client is there.
        while !self.exchange.half_closed && self.read.len() < buffers::READ_CAPACITY {
            match poll_read(io, &mut self.read, cx) {
                Poll::Ready(Ok(0)) if !self.timeouts.half_close.is_zero() => {
                    self.exchange.half_closed = true;
                }
                Poll::Ready(Ok(count)) if count > 0 => {}
                Poll::Ready(_) => return Step::End(None),
                Poll::Pending => break,
            }
        }
        if self.exchange.half_closed {
            timer::run(&mut self.read_deadline, self.timeouts.half_close);
        }
        Step::Wait
    }

    fn poll_upload(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Step<End<H::Body>> {
        if !self.exchange.is_upload_wanted() {
            self.read_deadline = None;
            return Step::Wait;
        }
        if self.exchange.take_continue() && matches!(self.state, State::Handling(_)) {
            self.out.buffer().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        match self.exchange.poll_read(io, cx) {
            Poll::Ready(Ok(count)) if count > 0 => {
                self.read_deadline = None;
                Step::Again
            }
            Poll::Ready(_) => {
                self.exchange.end_upload(Reason::ClientClosed);
                Step::End(None)
            }
            Poll::Pending => {
                timer::run(&mut self.read_deadline, self.timeouts.body);
                Step::Wait
            }
        }
    }

    /// Before waiting: what was gathered goes out, and deadlines are looked at.
    fn wait(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Step<End<H::Body>> {
        let blocked = self.out.is_blocked();
        let written = self.out.poll_write(io, cx);
        if self.out.take_progress() || (written.is_ready() && !self.is_shutting()) {
            self.write_deadline = None;
        }
        match written {
            // What waited for room has it now.
            Poll::Ready(Ok(())) if blocked => return Step::Again,
            Poll::Ready(Ok(())) if !self.is_shutting() => {}
            Poll::Ready(Err(_)) => return Step::End(None),
            _ => timer::run(&mut self.write_deadline, self.timeouts.write),
        }
        self.drain.wake_on_drain(cx);
        let between = matches!(self.state, State::Waiting(_) | State::Discarding { .. });
        if between && self.drain.told() == Word::End {
            return Step::End(None);
        }
        self.exchange.wake_connection_with(cx);
        match timer::earlier(self.read_deadline, self.write_deadline) {
            Some(deadline) if self.timer.has_passed(deadline, cx) => self.too_late(deadline),
            _ => Step::Wait,
        }
    }

    pub(super) fn is_shutting(&self) -> bool {
        matches!(self.state, State::Closing { shut: false, .. })
    }

    /// A deadline passed.
    fn too_late(&mut self, deadline: Instant) -> Step<End<H::Body>> {
        if self.write_deadline.is_some_and(|write| write <= deadline) {
            self.exchange.end_upload(Reason::ClientStalled);
            if let State::Responding(body, _) = &mut self.state {
                self.handler.untaken(body);
            }
            return Step::End(None);
        }
        self.read_deadline = None;
        match &self.state {
            State::Waiting(_) if self.read.is_empty() => self.close(false),
            State::Waiting(_) => self.refuse(Reject::because(
                Stage::Sanitize,
                Reason::ClientStalled,
                "no whole head came in time",
            )),
            State::Handling(_) | State::Responding(..) if self.exchange.is_upload_wanted() => {
                self.exchange.end_upload(Reason::ClientStalled);
                Step::Again
            }
            State::Discarding { .. } => self.close(false),
            _ => Step::End(None),
        }
    }
}

#[cfg(test)]
impl<IO, H: Handler> Connection<IO, H> {
    pub(super) fn holds_no_buffer(&self) -> bool {
        self.read.capacity() == 0 && self.out.holds_no_buffer()
    }
}

impl<IO, H: Handler> Drop for Connection<IO, H> {
    /// Whoever still holds a request body learns that nothing comes.
    fn drop(&mut self) {
        self.exchange.end_upload(Reason::ClientClosed);
    }
}

/// Reads what is there into a buffer from the pool.
pub(super) fn poll_read<IO>(
    io: &mut IO,
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>>
where
    IO: AsyncRead + Unpin,
{
    if buffer.capacity() == 0 {
        *buffer = buffers::take_read();
    } else if buffer.capacity() - buffer.len() < READ_MIN {
        buffer.reserve(buffers::READ_CAPACITY);
    }
    pin!(io.read_buf(buffer)).poll(cx)
}
