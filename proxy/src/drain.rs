//! A guard per connection: stop is graceful at first, then forced.

mod signal;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

pub use signal::{DrainSignal, DrainWatch, Word};

/// How far the stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Serving,
    /// No new work: idle connections close, busy ones finish what they have.
    Draining,
    /// The deadline passed: what is left is cut and recorded as `drain-deadline`.
    Cut,
}

/// Tells connections to stop and waits for them.
#[derive(Clone)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    open: Arc<Open>,
}

#[derive(Default)]
struct Open {
    count: AtomicUsize,
    none_left: Notify,
}

impl Default for Drain {
    fn default() -> Self {
        Self { phase: watch::Sender::new(Phase::Serving), open: Arc::default() }
    }
}

impl Drain {
    /// A guard for one connection or long task.
    pub fn guard(&self) -> Guard {
        self.open.count.fetch_add(1, Ordering::Relaxed);
        Guard { phase: self.phase.subscribe(), open: Arc::clone(&self.open) }
    }

    /// Where the stop stands, to watch without holding it up.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.open.count.load(Ordering::Relaxed)
    }

    /// Asks all to finish, waits until they have or `deadline` passes, then cuts. Returns how many were cut.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.phase.send_replace(Phase::Draining);
        if tokio::time::timeout(deadline, self.none_left()).await.is_ok() {
            return 0;
        }
        let cut = self.open();
        self.phase.send_replace(Phase::Cut);
        // Workers drop what they have and write its records: that takes no waiting for anybody.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.none_left()).await;
        cut
    }

    async fn none_left(&self) {
        loop {
            let notified = self.open.none_left.notified();
            if self.open() == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// Held for as long as a connection lives.
pub struct Guard {
    phase: watch::Receiver<Phase>,
    open: Arc<Open>,
}

impl Guard {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Resolves when the phase is `at_least`. A `Drain` that is gone counts as cut.
    pub async fn reached(&self, at_least: Phase) {
        let mut phase = self.phase.clone();
        let _ = phase.wait_for(|phase| *phase >= at_least).await;
    }

    /// The receiver itself, for parts that watch it their own way.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.open.count.fetch_sub(1, Ordering::Release) == 1 {
            self.open.none_left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_guards_and_no_longer() {
        let drain = Drain::default();
        let guard = drain.guard();
        let waiting = tokio::spawn({
            let drain = drain.clone();
            async move { drain.drain(Duration::from_secs(25)).await }
        });
        guard.reached(Phase::Draining).await;
        drop(guard);
        assert_eq!(waiting.await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_is_cut() {
        let drain = Drain::default();
        let guard = drain.guard();
        let cut = tokio::spawn(async move {
            guard.reached(Phase::Cut).await;
        });
        assert_eq!(drain.drain(Duration::from_secs(25)).await, 1);
        cut.await.unwrap();
    }
}
