//! Buffers for copying, lent by the worker: a connection holds one only while it has bytes that it can't write yet.

use std::cell::RefCell;
use std::ops::Range;

/// Sizes of buffers, in the order in which a busy direction of a tunnel grows through them.
const SIZES: [usize; 3] = [1024, 16 * 1024, 256 * 1024];
/// How many bytes a direction has copied before it gets the next size. Most connections carry little and many stall with
/// a full buffer; few carry much, and those save system calls.
const GROW_AFTER: [u64; 2] = [128 * 1024, 10 * 1024 * 1024];
/// Spare buffers kept by a thread, of each size. A worker polls one tunnel at a time, so one or two are in use unless
/// writers are slow.
const SPARE: usize = 4;

thread_local! {
    static POOL: RefCell<[Vec<Box<[u8]>>; SIZES.len()]> = const { RefCell::new([Vec::new(), Vec::new(), Vec::new()]) };
}

/// A lent buffer, given back on drop, and which part of it is to be written yet.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Box<[u8]>,
    pub(super) filled: Range<usize>,
}

impl Buffer {
    /// A buffer as large as suits a direction that has copied so many bytes.
    pub(super) fn borrow(copied: u64) -> Self {
        let class = GROW_AFTER.iter().take_while(|&&after| copied >= after).count();
        let spare = POOL.with_borrow_mut(|pool| pool[class].pop());
        let memory = spare.unwrap_or_else(|| vec![0; SIZES[class]].into_boxed_slice());
        Self { memory, filled: 0..0 }
    }

    /// What is to be written.
    pub(super) fn pending(&self) -> &[u8] {
        &self.memory[self.filled.clone()]
    }

    /// All of the memory, to read into.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.memory
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        let Some(class) = SIZES.iter().position(|&size| size == memory.len()) else { return };
        // The thread may be ending and its pool gone already: then the memory just goes too.
        let _ = POOL.try_with(|pool| {
            let spare = &mut pool.borrow_mut()[class];
            if spare.len() < SPARE {
                spare.push(memory);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_grow_with_what_was_copied() {
        let size = |copied| Buffer::borrow(copied).space().len();
        assert_eq!(size(0), 1024);
        assert_eq!(size(128 * 1024 - 1), 1024);
        assert_eq!(size(128 * 1024), 16 * 1024);
        assert_eq!(size(10 * 1024 * 1024), 256 * 1024);
        assert_eq!(size(u64::MAX), 256 * 1024);
    }

    #[test]
    fn returned_buffers_are_lent_again_up_to_a_bound() {
        let mut lent: Vec<Buffer> = (0..2 * SPARE).map(|_| Buffer::borrow(0)).collect();
        let last = lent[0].space().as_ptr();
        drop(lent.remove(0));
        assert_eq!(Buffer::borrow(0).space().as_ptr(), last);
        drop(lent);
        assert_eq!(POOL.with_borrow(|pool| pool[0].len()), SPARE);
    }
}
