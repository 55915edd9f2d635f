//! The bounded way from the workers to the writer: batches of lines, dropped rather than waited for.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::later::Later;

/// Lines of one worker, ready to be written.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Whole lines.
    pub(super) bytes: Vec<u8>,
    /// How many.
    pub(super) records: u64,
    /// What is to come before the end of some of them, by the place of that end; in order.
    pub(super) considered: Vec<(usize, Later)>,
}

/// What a line ends with.
pub(super) const END: &str = "}\n";

impl Batch {
    /// The line just written is to say what was considered.
    pub(super) fn considers(&mut self, considered: Later) {
        self.considered.push((self.bytes.len() - END.len(), considered));
    }

    /// For the writer: finds out what is to be said, and says it.
    pub(super) fn complete(&mut self) {
        // From the last on, so that the places before stay what they are.
        for (place, considered) in std::mem::take(&mut self.considered).into_iter().rev() {
            let member = format!(r#","considered":{}"#, considered.find_out());
            self.bytes.splice(place..place, member.into_bytes());
        }
    }
}

/// Batches on their way. The lock is taken once a batch, never once a record, and never held while anything is written.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Something for the writer to do.
    ready: Condvar,
    /// A place became free, or everything was written.
    drained: Condvar,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Batch>,
    /// Empty buffers on their way back.
    free: Vec<Vec<u8>>,
    writing: bool,
    reopen: bool,
    closed: bool,
}

/// What the writer is to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Write this, then say [`Queue::written`].
    Write(Batch),
    /// Open the file anew.
    Reopen,
    /// Nothing will come any more.
    Close,
}

/// Empty buffers kept for the next batches.
const FREE: usize = 4;

impl Queue {
    /// A queue of at most `limit` batches.
    pub(super) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), ready: Condvar::new(), drained: Condvar::new(), limit }
    }

    /// Hands a batch over and gets an empty buffer for the next one. A full queue gives the batch back.
    pub(super) fn push(&self, batch: Batch) -> Result<Vec<u8>, Batch> {
        let mut state = self.lock();
        if state.batches.len() >= self.limit || state.closed {
            return Err(batch);
        }
        state.batches.push_back(batch);
        let buffer = state.free.pop().unwrap_or_default();
        drop(state);
        self.ready.notify_one();
        Ok(buffer)
    }

    /// As [`Queue::push`], but waits for a place: for the last batch of a worker that is about to end.
    pub(super) fn push_last(&self, batch: Batch, patience: Duration) -> Result<(), Batch> {
        let state = self.lock();
        let full = |state: &mut State| state.batches.len() >= self.limit && !state.closed;
        let (state, _) =
            self.drained.wait_timeout_while(state, patience, full).unwrap_or_else(PoisonError::into_inner);
        drop(state);
        self.push(batch).map(drop)
    }

    /// For the writer: waits for something to do.
    pub(super) fn next(&self) -> Next {
        let mut state = self.lock();
        loop {
            if let Some(batch) = state.batches.pop_front() {
                state.writing = true;
                return Next::Write(batch);
            }
            if std::mem::take(&mut state.reopen) {
                return Next::Reopen;
            }
            if state.closed {
                return Next::Close;
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// For the writer: a batch is dealt with, its buffer free again.
    pub(super) fn written(&self, mut buffer: Vec<u8>) {
        let mut state = self.lock();
        state.writing = false;
        if state.free.len() < FREE {
            buffer.clear();
            state.free.push(buffer);
        }
        drop(state);
        self.drained.notify_all();
    }

    /// Waits until everything handed over so far and meanwhile is written; false when that took longer than `patience`.
    pub(super) fn drain(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let state = self.lock();
        let busy = |state: &mut State| state.writing || !state.batches.is_empty();
        let remaining = deadline.saturating_duration_since(Instant::now());
        let (_state, timeout) =
            self.drained.wait_timeout_while(state, remaining, busy).unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }

    /// Asks the writer to open its file anew.
    pub(super) fn reopen(&self) {
        self.lock().reopen = true;
        self.ready.notify_one();
    }

    /// Takes nothing more; the writer ends when all is written.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_one();
        self.drained.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(text: &str) -> Batch {
        Batch { bytes: text.into(), records: 1, ..Batch::default() }
    }

    #[test]
    fn a_full_queue_gives_the_batch_back() {
        let queue = Queue::new(2);
        assert!(queue.push(batch("a")).is_ok());
        assert!(queue.push(batch("b")).is_ok());
        assert_eq!(queue.push(batch("c")).unwrap_err().bytes, b"c");
        assert!(!queue.drain(Duration::ZERO));
    }

    #[test]
    fn what_was_considered_ends_its_line() {
        let mut batch = Batch::default();
        for (line, considered) in [(1, Some("[1]")), (2, None), (3, Some("[3]"))] {
            batch.bytes.extend(format!("{{\"line\":{line}{END}").bytes());
            if let Some(considered) = considered {
                batch.considers(Later::new(move || considered.into()));
            }
        }
        batch.complete();
        batch.complete();
        assert_eq!(
            String::from_utf8(batch.bytes).unwrap(),
            "{\"line\":1,\"considered\":[1]}\n{\"line\":2}\n{\"line\":3,\"considered\":[3]}\n"
        );
    }

    #[test]
    fn buffers_come_back() {
        let queue = Queue::new(1);
        queue.push(batch("a")).unwrap();
        let Next::Write(written) = queue.next() else { panic!("nothing to write") };
        let address = written.bytes.as_ptr();
        queue.written(written.bytes);
        let buffer = queue.push(batch("b")).unwrap();
        assert!(buffer.is_empty() && buffer.as_ptr() == address);
    }

    #[test]
    fn a_closed_queue_is_written_to_its_end() {
        let queue = Queue::new(2);
        queue.push(batch("a")).unwrap();
        queue.reopen();
        queue.close();
        assert!(queue.push(batch("b")).is_err());
        assert!(matches!(queue.next(), Next::Write(batch) if batch.bytes == b"a"));
        assert!(!queue.drain(Duration::ZERO), "handed out, but not written");
        queue.written(Vec::new());
        assert!(queue.drain(Duration::ZERO));
        assert!(matches!(queue.next(), Next::Reopen));
        assert!(matches!(queue.next(), Next::Close));
    }

    #[test]
    fn the_last_batch_waits_for_a_place() {
        let queue = Queue::new(1);
        queue.push(batch("a")).unwrap();
        assert!(queue.push_last(batch("b"), Duration::ZERO).is_err());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while let Next::Write(batch) = queue.next() {
                    queue.written(batch.bytes);
                }
            });
            queue.push_last(batch("b"), Duration::from_secs(60)).unwrap();
            assert!(queue.drain(Duration::from_secs(60)));
            queue.close();
        });
    }
}
