//! What is on its way to the client: small pieces gathered in one buffer, large ones passed by without copying.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use crate::h1::{ChunkFrame, buffers};

/// A piece of body up to this many bytes is copied beside its head; a larger one is written from where it is.
const COPY_MAX: usize = 4 * 1024;
/// With so much gathered, what is there is written before more is taken.
const GATHER_MAX: usize = 16 * 1024;

/// The write side of a connection. Holds no buffer while there is nothing to write.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    gathered: Vec<u8>,
    written: usize,
    data: Bytes,
    suffix: &'static [u8],
    unflushed: bool,
    blocked: bool,
    progressed: bool,
}

impl Outgoing {
    /// Whether more may be given.
    pub(super) fn has_room(&self) -> bool {
        self.data.is_empty() && self.suffix.is_empty() && self.gathered.len() < GATHER_MAX
    }

    /// Whether nothing waits to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.gathered.len() == self.written && self.data.is_empty() && self.suffix.is_empty()
    }

    /// Where heads, chunk frames and other small things go. Only while there is room.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        if self.gathered.capacity() == 0 {
            self.gathered = buffers::take_write();
        }
        &mut self.gathered
    }

    /// A piece of body in its frame. Only while there is room.
    pub(super) fn push(&mut self, data: Bytes, frame: ChunkFrame) {
        let buffer = self.buffer();
        buffer.extend_from_slice(frame.prefix());
        if data.len() <= COPY_MAX {
            buffer.extend_from_slice(&data);
            buffer.extend_from_slice(frame.suffix);
        } else {
            self.data = data;
            self.suffix = frame.suffix;
        }
    }

    /// Whether the last write could not go on.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether anything was written since the last time this was asked.
    pub(super) fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progressed)
    }

    /// Writes all there is. Ready when it is with the kernel, and then the buffer is given back.
    pub(super) fn poll_write<IO>(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        IO: AsyncWrite + Unpin,
    {
        let written = self.poll_write_all(io, cx);
        self.blocked = written.is_pending();
        written
    }

    fn poll_write_all<IO>(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        IO: AsyncWrite + Unpin,
    {
        while !self.is_empty() {
            let sent = ready!(self.poll_write_once(io, cx))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.progressed = true;
            self.advance(sent);
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        if self.gathered.capacity() > 0 {
            self.written = 0;
            buffers::give_write(std::mem::take(&mut self.gathered));
        }
        Poll::Ready(Ok(()))
    }

    #[cfg(test)]
    pub(super) fn holds_no_buffer(&self) -> bool {
        self.is_empty() && self.gathered.capacity() == 0
    }

    fn poll_write_once<IO>(&self, io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<usize>>
    where
        IO: AsyncWrite + Unpin,
    {
        let gathered = &self.gathered[self.written..];
        if self.data.is_empty() && self.suffix.is_empty() {
            return Pin::new(io).poll_write(cx, gathered);
        }
        let slices = [IoSlice::new(gathered), IoSlice::new(&self.data), IoSlice::new(self.suffix)];
        let first = if gathered.is_empty() { 1 } else { 0 };
        Pin::new(io).poll_write_vectored(cx, &slices[first..])
    }

    fn advance(&mut self, mut sent: usize) {
        let gathered = sent.min(self.gathered.len() - self.written);
        self.written += gathered;
        sent -= gathered;
        let data = sent.min(self.data.len());
        self.data.advance(data);
        sent -= data;
        self.suffix = &self.suffix[sent.min(self.suffix.len())..];
        if self.data.is_empty() {
            self.data = Bytes::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::h1::{BodyEncoder, BodyLength};

    #[tokio::test]
    async fn small_pieces_leave_in_one_write_and_large_ones_in_order() {
        let mut encoder = BodyEncoder::new(BodyLength::Chunked);
        let mut out = Outgoing::default();
        out.buffer().extend_from_slice(b"head;");
        out.push(Bytes::from_static(b"small"), encoder.frame(5).unwrap());
        assert!(out.has_room());
        let large = Bytes::from(vec![b'x'; COPY_MAX + 1]);
        out.push(large.clone(), encoder.frame(large.len()).unwrap());
        assert!(!out.has_room() && out.data.as_ptr() == large.as_ptr(), "copied");

        // A pipe narrower than what goes through it: every partial write counts.
        let (mut near, mut far) = tokio::io::duplex(100);
        let write = async {
            poll_fn(|cx| out.poll_write(&mut near, cx)).await.unwrap();
            drop(near);
        };
        let mut read = Vec::new();
        let (_, length) = tokio::join!(write, far.read_to_end(&mut read));
        let expected = [b"head;5\r\nsmall\r\n1001\r\n".as_slice(), &large, b"\r\n"].concat();
        assert_eq!((length.unwrap(), &read), (expected.len(), &expected));
        assert!(out.holds_no_buffer(), "a buffer was kept");
    }
}
