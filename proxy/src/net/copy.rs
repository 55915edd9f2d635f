//! [`struct@Copy`]: bytes both ways between two connections until both sides have ended, one fails, or nothing moves.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::buffers::Buffer;

/// Copies both ways. Either side may end its half first: the other half goes on, and the end is passed on as a shutdown
/// of writing, so that request-then-EOF protocols work. Dropping it drops both connections.
///
/// What is written is flushed whenever there is nothing more to read, which TLS needs.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Copy<A, B> {
    client: A,
    upstream: B,
    from_client: Direction,
    from_upstream: Direction,
    transferred: Rc<Transferred>,
    idle: Option<Idle>,
    /// The first failure that leaves the other direction something to deliver yet.
    failed: Option<(Side, io::Error)>,
    first_eof: Option<Side>,
}

/// Bytes copied so far, shared with whoever reports them, also after the copy was dropped half-way.
#[derive(Debug, Default)]
pub struct Transferred {
    /// Read from the client.
    pub from_client: Cell<u64>,
    /// Read from the upstream.
    pub from_upstream: Cell<u64>,
}

/// One of the two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that was accepted.
    Client,
    /// The one that was dialled.
    Upstream,
}

/// How a copy ended.
#[derive(Debug)]
pub struct Ended {
    /// In a word.
    pub how: How,
    /// Which side ended its half first, if one did in an orderly way.
    pub first_eof: Option<Side>,
    /// What failed, for the operator.
    pub error: Option<io::Error>,
}

/// How a copy ended, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Both sides ended their half, and all was delivered.
    Complete,
    /// The client's connection failed.
    ClientClosed,
    /// The upstream's connection failed.
    UpstreamReset,
    /// Nothing moved either way for the idle timeout.
    Idle,
}

impl<A, B> Copy<A, B> {
    /// Copies between `client` and `upstream`, counting into `transferred`. `idle`: how long nothing may move.
    pub fn new(client: A, upstream: B, transferred: Rc<Transferred>, idle: Option<Duration>) -> Self {
        Self {
            client,
            upstream,
            from_client: Direction::default(),
            from_upstream: Direction::default(),
            transferred,
            idle: idle.map(Idle::new),
            failed: None,
            first_eof: None,
        }
    }

    /// Both connections, client first: after the end, to pass a reset on as a reset (`SO_LINGER` 0) rather than as the
    /// orderly end that dropping makes of it.
    pub const fn sides(&self) -> (&A, &B) {
        (&self.client, &self.upstream)
    }

    fn end(&mut self, how: How, error: Option<io::Error>) -> Poll<Ended> {
        Poll::Ready(Ended { how, first_eof: self.first_eof, error })
    }

    fn fail(&mut self, side: Side, error: io::Error) -> Poll<Ended> {
        let how = match side {
            Side::Client => How::ClientClosed,
            Side::Upstream => How::UpstreamReset,
        };
        self.end(how, Some(error))
    }
}

impl<A, B> Future for Copy<A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let this = &mut *self;
        let before = this.from_client.moved + this.from_upstream.moved;
        let upward = this.from_client.poll(cx, &mut this.client, &mut this.upstream);
        this.transferred.from_client.set(this.from_client.copied);
        let downward = this.from_upstream.poll(cx, &mut this.upstream, &mut this.client);
        this.transferred.from_upstream.set(this.from_upstream.copied);

        for (result, reader, writer) in
            [(upward, Side::Client, Side::Upstream), (downward, Side::Upstream, Side::Client)]
        {
            match result {
                Progress::Pending => {}
                Progress::Ended => this.first_eof = this.first_eof.or(Some(reader)),
                // What that side sent is delivered already, and it takes nothing more.
                Progress::ReadFailed(error) => return this.fail(reader, error),
                // That side takes nothing more, but may have sent an answer that the other can still get.
                Progress::WriteFailed(error) => this.failed = this.failed.take().or(Some((writer, error))),
            }
        }
        if this.from_client.is_over() && this.from_upstream.is_over() {
            return match this.failed.take() {
                Some((side, error)) => this.fail(side, error),
                None => this.end(How::Complete, None),
            };
        }
        let moved = this.from_client.moved + this.from_upstream.moved != before;
        match &mut this.idle {
            Some(idle) => {
                ready!(idle.poll(cx, moved));
                match this.failed.take() {
                    Some((side, error)) => this.fail(side, error),
                    None => this.end(How::Idle, None),
                }
            }
            None => Poll::Pending,
        }
    }
}

/// One way: what was read from one side is written to the other.
#[derive(Debug, Default)]
struct Direction {
    /// Held only while it has something to write.
    buffer: Option<Buffer>,
    state: State,
    /// Bytes read.
    copied: u64,
    /// Bytes read and bytes written: what tells a slow direction from one that stands still.
    moved: u64,
    unflushed: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Reading,
    /// The reader ended; its end is to be passed on.
    ShuttingDown,
    Over,
}

enum Progress {
    Pending,
    /// The reader ended (and the writer may have been told yet or not).
    Ended,
    ReadFailed(io::Error),
    WriteFailed(io::Error),
}

impl Direction {
    fn is_over(&self) -> bool {
        self.state == State::Over
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Progress
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let result = self.advance(cx, reader, writer);
        match &result {
            Progress::WriteFailed(_) => {
                self.state = State::Over;
                self.buffer = None;
            }
            // The last chance for what the writer still holds; a failure changes nothing any more.
            Progress::ReadFailed(_) if self.unflushed => drop(Pin::new(writer).poll_flush(cx)),
            _ => {}
        }
        result
    }

    fn advance<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Progress
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match self.drain(cx, writer) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Progress::WriteFailed(error),
                Poll::Pending => return Progress::Pending,
            }
            match self.state {
                State::Reading => match self.fill(cx, reader) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Progress::ReadFailed(error),
                    Poll::Pending => return self.flush(cx, writer),
                },
                State::ShuttingDown => {
                    return match Pin::new(writer).poll_shutdown(cx) {
                        Poll::Ready(Ok(())) => {
                            self.state = State::Over;
                            Progress::Ended
                        }
                        Poll::Ready(Err(error)) => Progress::WriteFailed(error),
                        Poll::Pending => Progress::Ended,
                    };
                }
                State::Over => return Progress::Pending,
            }
        }
    }

    /// Writes what the buffer has, and gives the buffer back.
    fn drain<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<io::Result<()>> {
        let Some(buffer) = &mut self.buffer else { return Poll::Ready(Ok(())) };
        while !buffer.filled.is_empty() {
            let count = ready!(Pin::new(&mut *writer).poll_write(cx, buffer.pending()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            buffer.filled.start += count;
            self.moved += count as u64;
            self.unflushed = true;
        }
        self.buffer = None;
        Poll::Ready(Ok(()))
    }

    /// Reads into a buffer, keeping it if something came.
    fn fill<R: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, reader: &mut R) -> Poll<io::Result<()>> {
        let mut buffer = Buffer::borrow(self.copied);
        let mut space = ReadBuf::new(buffer.space());
        ready!(Pin::new(reader).poll_read(cx, &mut space))?;
        let count = space.filled().len();
        if count == 0 {
            self.state = State::ShuttingDown;
            return Poll::Ready(Ok(()));
        }
        buffer.filled = 0..count;
        self.buffer = Some(buffer);
        self.copied += count as u64;
        self.moved += count as u64;
        Poll::Ready(Ok(()))
    }

    fn flush<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Progress {
        if self.unflushed {
            match Pin::new(writer).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Progress::WriteFailed(error),
                Poll::Pending => {}
            }
        }
        Progress::Pending
    }
}

/// One timer for the life of the copy, moved only when it fires, not each time that bytes move.
#[derive(Debug)]
struct Idle {
    timeout: Duration,
    last_moved: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    fn new(timeout: Duration) -> Self {
        Self { timeout, last_moved: Instant::now(), timer: Box::pin(tokio::time::sleep(timeout)) }
    }

    /// Ready when nothing has moved for the timeout.
    fn poll(&mut self, cx: &mut Context<'_>, moved: bool) -> Poll<()> {
        if moved {
            self.last_moved = Instant::now();
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let due = self.last_moved + self.timeout;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests;
