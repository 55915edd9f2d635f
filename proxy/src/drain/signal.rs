//! The word to finish, from a worker to its connections: without locks, and at the cost of one slot per connection.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

/// Told once, heard by every connection of the worker.
#[derive(Debug, Clone, Default)]
pub struct DrainSignal(Rc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    draining: Cell<bool>,
    /// One slot per watch; `None` is free.
    wakers: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<u32>>,
}

impl DrainSignal {
    /// A signal that was not given yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal: idle connections close now, busy ones after their answer.
    pub fn start(&self) {
        self.0.draining.set(true);
        // Taken out first: a waker may run code that watches or stops watching.
        let wakers: Vec<_> = self.0.wakers.borrow_mut().iter_mut().filter_map(Option::take).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether it was given.
    pub fn is_draining(&self) -> bool {
        self.0.draining.get()
    }

    /// A place to be woken from.
    pub fn watch(&self) -> DrainWatch {
        let slot = self.0.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut wakers = self.0.wakers.borrow_mut();
            wakers.push(None);
            wakers.len() as u32 - 1
        });
        DrainWatch { signal: self.clone(), slot, told: Cell::default() }
    }
}

/// What a connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Word {
    /// Nothing.
    #[default]
    GoOn,
    /// To take no further request, and to end after those under way.
    Finish,
    /// To end now, saying good-bye if that takes no waiting.
    End,
}

/// A connection's place at the signal, where it can also be told alone.
#[derive(Debug)]
pub struct DrainWatch {
    signal: DrainSignal,
    slot: u32,
    told: Cell<Word>,
}

impl DrainWatch {
    /// What this connection was told, or all were.
    pub fn told(&self) -> Word {
        let all = if self.signal.is_draining() { Word::Finish } else { Word::GoOn };
        self.told.get().max(all)
    }

    /// Tells this connection alone, and wakes its task.
    pub fn tell(&self, word: Word) {
        if word > self.told.replace(word.max(self.told.get())) {
            let mut wakers = self.signal.0.wakers.borrow_mut();
            let waker = wakers.get_mut(self.slot as usize).and_then(Option::take);
            drop(wakers);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Whether it is to finish.
    pub fn is_draining(&self) -> bool {
        self.told() >= Word::Finish
    }

    /// Wakes this task when there is something to be told.
    pub fn wake_on_drain(&self, cx: &Context<'_>) {
        let mut wakers = self.signal.0.wakers.borrow_mut();
        if let Some(place) = wakers.get_mut(self.slot as usize) {
            match place {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                _ => *place = Some(cx.waker().clone()),
            }
        }
    }
}

impl Drop for DrainWatch {
    fn drop(&mut self) {
        if let Some(place) = self.signal.0.wakers.borrow_mut().get_mut(self.slot as usize) {
            *place = None;
        }
        self.signal.0.free.borrow_mut().push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn every_watch_is_woken_once_and_slots_are_reused() {
        let signal = DrainSignal::new();
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let cx = Context::from_waker(&waker);
        let (first, second) = (signal.watch(), signal.watch());
        drop(first);
        let third = signal.watch();
        assert_eq!((second.slot, third.slot), (1, 0));
        for watch in [&second, &third] {
            watch.wake_on_drain(&cx);
            watch.wake_on_drain(&cx);
        }
        signal.start();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        assert!(second.is_draining() && signal.is_draining());
    }
}
