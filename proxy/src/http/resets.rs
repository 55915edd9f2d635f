//! Sees the streams that the HTTP/2 library refuses by itself, so that they leave a record like any other request.
//!
//! A request that breaks RFC 9113 section 8 (`connection` headers, CR or LF in a value, a bad pseudo-header) never reaches
//! the service: the library answers `RST_STREAM(PROTOCOL_ERROR)` below it and says nothing. [`Watched`] reads the frame
//! headers of what is written and counts those.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a connection's frames and its requests count between them.
#[derive(Debug, Default)]
pub struct Resets {
    /// Streams reset for breaking the protocol.
    refused: Cell<u32>,
    /// Those that a request of ours knows of, and records.
    recorded: Cell<u32>,
}

impl Resets {
    /// A request learned that its stream was reset for breaking the protocol: its own record says so.
    pub fn recorded(&self) {
        self.recorded.set(self.recorded.get() + 1);
    }

    /// Streams that no request of ours will record. Counts each once; none while a request is under way, which may yet come
    /// to know of one.
    pub fn take_unrecorded(&self, busy: bool) -> u32 {
        if busy {
            return 0;
        }
        let unrecorded = self.refused.get().saturating_sub(self.recorded.get());
        self.refused.set(0);
        self.recorded.set(0);
        unrecorded
    }
}

/// A connection whose written frames are looked at.
pub struct Watched<IO> {
    io: IO,
    frames: Frames,
}

impl<IO> Watched<IO> {
    /// Looks at what is written to `io`.
    pub fn new(io: IO, resets: Rc<Resets>) -> Self {
        Self { io, frames: Frames { resets, head: [0; HEAD + CODE], have: 0, skip: 0 } }
    }
}

/// Length, type, flags and stream (RFC 9113 section 4.1).
const HEAD: usize = 9;
/// The error code of a RST_STREAM (section 6.4).
const CODE: usize = 4;
const RST_STREAM: u8 = 3;
const PROTOCOL_ERROR: [u8; CODE] = [0, 0, 0, 1];

/// Where in the stream of frames the writer is.
struct Frames {
    resets: Rc<Resets>,
    head: [u8; HEAD + CODE],
    /// Bytes of `head` that are here.
    have: usize,
    /// Payload still to pass.
    skip: usize,
}

impl Frames {
    fn written(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let wanted = if self.have >= HEAD { HEAD + CODE } else { HEAD };
            let taken = (wanted - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == wanted {
                self.complete();
            }
        }
    }

    /// A frame's head is here, or a reset's code behind it.
    fn complete(&mut self) {
        let length =
            usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2]);
        if self.head[3] == RST_STREAM && length == CODE {
            if self.have < HEAD + CODE {
                return;
            }
            if self.head[HEAD..] == PROTOCOL_ERROR {
                self.resets.refused.set(self.resets.refused.get() + 1);
            }
        } else {
            self.skip = length;
        }
        self.have = 0;
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = written {
            self.frames.written(&buf[..count]);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(count)) = written {
            let mut left = count;
            for buf in bufs {
                let part = left.min(buf.len());
                self.frames.written(&buf[..part]);
                left -= part;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, payload.len() as u8, kind, 0, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    proptest! {
        #[test]
        fn resets_are_counted_however_the_bytes_are_split(cuts in prop::collection::vec(1usize..20, 0..40)) {
            let mut bytes = Vec::new();
            for frames in [
                frame(0, b"data that looks like \x00\x00\x04\x03"),
                frame(RST_STREAM, &[0, 0, 0, 1]),
                frame(4, &[]),
                frame(RST_STREAM, &[0, 0, 0, 8]),
                frame(RST_STREAM, &[0, 0, 0, 1]),
                frame(1, &[3; 200]),
            ] {
                bytes.extend(frames);
            }
            let resets = Rc::new(Resets::default());
            let mut watched = Watched::new((), Rc::clone(&resets));
            let mut rest = &bytes[..];
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                watched.frames.written(now);
                rest = later;
            }
            watched.frames.written(rest);
            prop_assert_eq!(resets.take_unrecorded(false), 2);
            prop_assert_eq!(resets.take_unrecorded(false), 0);
        }
    }

    #[test]
    fn a_reset_that_a_request_records_is_not_recorded_twice() {
        let resets = Rc::new(Resets::default());
        resets.refused.set(1);
        assert_eq!(resets.take_unrecorded(true), 0, "the request may still learn of it");
        resets.recorded();
        assert_eq!(resets.take_unrecorded(false), 0);
    }
}
