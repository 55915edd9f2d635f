//! [`ReadBuffer`]: what was read and not yet understood, in a pooled buffer that is held only while there is something in it.

use std::future::Future;
use std::io;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use crate::h1::buffers;
use crate::upstream::Io;

/// Least room that a read is worth.
const MIN_ROOM: usize = 2 * 1024;
/// Room for the next read of a long body.
const LARGE_ROOM: usize = 64 * 1024;

/// Bytes read ahead.
#[derive(Debug, Default)]
pub(super) struct ReadBuffer(BytesMut);

impl ReadBuffer {
    /// Reads once; 0 is the end. `expected`: how many bytes are known to come, which decides how large a read may be.
    pub(super) fn poll_fill(
        &mut self,
        io: &mut Io,
        expected: Option<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let large = expected.is_some_and(|expected| expected >= LARGE_ROOM as u64);
        if self.capacity() == 0 && !large {
            self.0 = buffers::take_read();
        }
        if self.capacity() - self.len() < MIN_ROOM {
            self.reserve(if large { LARGE_ROOM } else { buffers::READ_CAPACITY });
        }
        let read = pin!(io.read_buf(&mut self.0)).poll(cx);
        if read.is_pending() && self.is_empty() {
            self.give_back();
        }
        read
    }

    fn give_back(&mut self) {
        if self.capacity() > 0 {
            buffers::give_read(mem::take(&mut self.0));
        }
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Deref for ReadBuffer {
    type Target = BytesMut;

    fn deref(&self) -> &BytesMut {
        &self.0
    }
}

impl DerefMut for ReadBuffer {
    fn deref_mut(&mut self) -> &mut BytesMut {
        &mut self.0
    }
}
