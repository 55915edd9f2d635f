//! How an exchange ends, and how a connection does: in order, broken off, in a tunnel, or with a client that still sends.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::Handler;
use super::connection::{Connection, End, State, Step, poll_read};
use super::exchange::Exchange;
use super::timer;
use crate::decision::Reason;
use crate::h1::HeadProgress;

/// So much of a request body that nobody wants is read to keep its connection.
pub(super) const DISCARD_MAX: u64 = 64 * 1024;
/// So much is read of a client that still sends after the connection was closed, so that it gets to see the answer.
const LINGER_MAX: usize = 256 * 1024;
/// How long that may take.
const LINGER: Duration = Duration::from_secs(2);

impl<IO, H> Connection<IO, H>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    /// The answer broke off: the client gets what there is, and no end that would make it look whole.
    pub(super) fn abort(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Step<End<H::Body>> {
        let _ = self.out.poll_write(io, cx);
        Step::End(None)
    }

    /// The answer is complete: what comes next.
    pub(super) fn finish(&mut self) -> Step<End<H::Body>> {
        self.read_deadline = None;
        self.exchange.reclaim(&mut self.read);
        let unread = self.exchange.has_upload();
        if !self.exchange.keep_alive || self.exchange.spoils_connection() {
            return self.close(unread || self.exchange.refused || !self.read.is_empty());
        }
        self.exchange.end_upload(Reason::ClientClosed);
        self.state = if unread {
            State::Discarding { left: DISCARD_MAX }
        } else {
            State::Waiting(HeadProgress::default())
        };
        Step::Again
    }

    /// `Discarding`: what is left of the request is taken off the connection, if it isn't much.
    pub(super) fn poll_discard(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Step<End<H::Body>> {
        let State::Discarding { left } = &mut self.state else { return Step::Again };
        match self.exchange.discard() {
            Poll::Ready(Ok(Some(count))) => match left.checked_sub(count as u64) {
                Some(rest) => {
                    *left = rest;
                    Step::Again
                }
                None => self.close(true),
            },
            Poll::Ready(Ok(None)) => self.finish(),
            Poll::Ready(Err(_)) => self.close(true),
            Poll::Pending => match self.exchange.poll_read(io, cx) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.read_deadline = None;
                    Step::Again
                }
                Poll::Ready(_) => self.close(false),
                Poll::Pending => {
                    timer::run(&mut self.read_deadline, self.timeouts.body);
                    Step::Wait
                }
            },
        }
    }

    /// `Tunnelling`: HTTP ends when the client has the head.
    pub(super) fn poll_tunnel(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Step<End<H::Body>> {
        let State::Tunnelling(response) = &mut self.state else { return Step::Again };
        let response = response.take();
        match self.flush(io, cx) {
            Ok(()) => Step::End(response),
            Err(step) => {
                self.state = State::Tunnelling(response);
                step
            }
        }
    }

    pub(super) fn close(&mut self, linger: bool) -> Step<End<H::Body>> {
        self.read_deadline = None;
        self.exchange.end_upload(Reason::ClientClosed);
        self.exchange = Exchange::default();
        self.state = State::Closing { shut: false, linger: linger.then_some(LINGER_MAX) };
        Step::Again
    }

    /// `Closing`: the answer out, our side shut, and then, if the client may still be sending, its bytes taken until it saw that:
    /// closing over unread bytes would reset the connection and take the answer away.
    pub(super) fn poll_close(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Step<End<H::Body>> {
        if self.is_shutting()
            && let Err(step) = self.flush(io, cx)
        {
            return step;
        }
        let State::Closing { shut, linger } = &mut self.state else { return Step::Again };
        if !*shut {
            match Pin::new(&mut *io).poll_shutdown(cx) {
                Poll::Ready(Ok(())) => *shut = true,
                Poll::Ready(Err(_)) => return Step::End(None),
                Poll::Pending => return Step::Wait,
            }
        }
        let Some(left) = linger else { return Step::End(None) };
        loop {
            self.read.clear();
            match poll_read(io, &mut self.read, cx) {
                Poll::Ready(Ok(count)) if count > 0 && count < *left => *left -= count,
                Poll::Ready(_) => return Step::End(None),
                Poll::Pending => {
                    timer::run(&mut self.read_deadline, LINGER);
                    return Step::Wait;
                }
            }
        }
    }
}
