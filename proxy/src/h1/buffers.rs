//! Read and write buffers of this worker, lent while a connection has something in them and given back when it has not.
//!
//! A connection that waits holds none of them: that is what keeps an idle connection small.

use std::cell::RefCell;

use bytes::BytesMut;

/// Capacity of a pooled read buffer.
pub const READ_CAPACITY: usize = 16 * 1024;
/// Capacity of a pooled write buffer.
pub const WRITE_CAPACITY: usize = 16 * 1024;
/// Buffers of each kind that a worker keeps for the next connection.
const KEPT: usize = 32;

struct Pool {
    read: Vec<BytesMut>,
    write: Vec<Vec<u8>>,
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { read: Vec::new(), write: Vec::new() }) };
}

/// An empty read buffer with room for [`READ_CAPACITY`] bytes.
pub fn take_read() -> BytesMut {
    POOL.with_borrow_mut(|pool| pool.read.pop()).unwrap_or_else(|| BytesMut::with_capacity(READ_CAPACITY))
}

/// Gives a read buffer back; what it holds is discarded. One that is still referenced by a header or a piece of a body is freed
/// with it instead.
pub fn give_read(mut buffer: BytesMut) {
    buffer.clear();
    if buffer.capacity() < READ_CAPACITY && !buffer.try_reclaim(READ_CAPACITY) {
        return;
    }
    if buffer.capacity() > 2 * READ_CAPACITY {
        return;
    }
    POOL.with_borrow_mut(|pool| {
        if pool.read.len() < KEPT {
            pool.read.push(buffer);
        }
    });
}

/// An empty write buffer.
pub fn take_write() -> Vec<u8> {
    POOL.with_borrow_mut(|pool| pool.write.pop()).unwrap_or_else(|| Vec::with_capacity(WRITE_CAPACITY))
}

/// Gives a write buffer back; what it holds is discarded.
pub fn give_write(mut buffer: Vec<u8>) {
    buffer.clear();
    if buffer.capacity() < WRITE_CAPACITY || buffer.capacity() > 4 * WRITE_CAPACITY {
        return;
    }
    POOL.with_borrow_mut(|pool| {
        if pool.write.len() < KEPT {
            pool.write.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_with_its_memory() {
        let mut buffer = take_read();
        buffer.extend_from_slice(b"head and rest");
        let memory = buffer.as_ptr();
        let head = buffer.split_to(4).freeze();
        drop(head);
        give_read(buffer);
        let again = take_read();
        assert!(again.is_empty() && again.capacity() >= READ_CAPACITY);
        assert_eq!(again.as_ptr(), memory);
    }

    #[test]
    fn a_referenced_buffer_is_not_lent_again() {
        let mut buffer = take_read();
        buffer.extend_from_slice(b"kept");
        let memory = buffer.as_ptr();
        let kept = buffer.split_to(4).freeze();
        give_read(buffer);
        assert_ne!(take_read().as_ptr(), memory);
        assert_eq!(&kept[..], b"kept");
    }

    #[test]
    fn the_pool_is_bounded() {
        let many: Vec<_> = (0..2 * KEPT).map(|_| take_write()).collect();
        many.into_iter().for_each(give_write);
        assert_eq!(POOL.with_borrow(|pool| pool.write.len()), KEPT);
    }
}
