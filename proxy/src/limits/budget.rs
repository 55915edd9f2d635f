//! [`Budget`]: bytes that all workers together may hold for a purpose.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that may be held.
#[derive(Debug)]
pub struct Budget {
    left: AtomicUsize,
}

/// A part of a budget, given back when dropped.
#[derive(Debug)]
pub struct Reserved {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// So many bytes.
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(bytes) })
    }

    /// Nothing yet, of this budget.
    pub fn open(self: &Arc<Self>) -> Reserved {
        Reserved { budget: Arc::clone(self), bytes: 0 }
    }
}

impl Reserved {
    /// Takes more; false, and nothing changes, where not so much is left.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let take = |left: usize| left.checked_sub(bytes);
        let taken = self.budget.left.try_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        if taken {
            self.bytes += bytes;
        }
        taken
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.left.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_never_overdrawn_and_comes_back() {
        let budget = Budget::new(10);
        let (mut one, mut two) = (budget.open(), budget.open());
        assert!(one.grow(6));
        assert!(!two.grow(5));
        assert!(two.grow(4));
        drop(one);
        assert!(two.grow(6));
        assert!(!two.grow(1));
        drop(two);
        assert!(budget.open().grow(10));
    }
}
