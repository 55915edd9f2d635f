//! [`Prefixed`]: a connection of which some bytes were already read, given back before the rest.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads yield the prefix first, then what the connection has; writes go straight through. Once the prefix is read its
/// buffer is gone and a read costs one comparison more than the bare connection's.
#[derive(Debug)]
pub struct Prefixed<IO> {
    prefix: Bytes,
    io: IO,
}

impl<IO> Prefixed<IO> {
    /// A connection of which `prefix` was read.
    pub fn new(prefix: impl Into<Bytes>, io: IO) -> Self {
        Self { prefix: prefix.into(), io }
    }

    /// What was read ahead and nobody has taken yet.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// The connection, beside its prefix: reading from it directly would skip the prefix.
    pub const fn get_ref(&self) -> &IO {
        &self.io
    }

    /// The remaining prefix and the connection.
    pub fn into_parts(self) -> (Bytes, IO) {
        (self.prefix, self.io)
    }

    /// Puts bytes back in front of all that is to be read.
    pub fn unread(self, bytes: Bytes) -> Self {
        Self { prefix: join(bytes, self.prefix), io: self.io }
    }
}

impl<IO> Prefixed<Prefixed<IO>> {
    /// The same bytes in the same order, in one layer.
    pub fn flatten(self) -> Prefixed<IO> {
        self.io.unread(self.prefix)
    }
}

fn join(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (_, true) => first,
        (true, false) => second,
        (false, false) => [first, second].concat().into(),
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prefixed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let count = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..count]);
        self.prefix.advance(count);
        if self.prefix.is_empty() {
            // An empty slice would still own the buffer that it points into.
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Prefixed<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
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
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn prefix_comes_first_and_its_buffer_goes() {
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(b"world").await.unwrap();
        let mut near = Prefixed::new(&b"hello "[..], near);
        let mut buf = [0; 4];
        near.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"hell");
        assert_eq!(near.prefix(), b"o ");
        let mut rest = [0; 7];
        near.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"o world");
        assert!(near.into_parts().0.is_empty());
    }

    #[tokio::test]
    async fn writes_pass() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Prefixed::new(&b"unread"[..], near);
        near.write_all(b"out").await.unwrap();
        near.shutdown().await.unwrap();
        let mut out = String::new();
        far.read_to_string(&mut out).await.unwrap();
        assert_eq!(out, "out");
    }
}
