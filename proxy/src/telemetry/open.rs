//! The open records of a worker, so that one that lives long says so: a crash then leaves a trace of it.

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use super::options::ProxyFragments;
use super::record::ConnectionFacts;
use super::render;

/// Open records by slot. A record pays one write at its start and one at its end.
#[derive(Debug, Default)]
pub(super) struct OpenRecords {
    slots: Vec<Option<OpenRecord>>,
    free: Vec<u32>,
}

/// What is known of a record that is still open: the record itself is its request's alone.
#[derive(Debug)]
pub(super) struct OpenRecord {
    id: u128,
    time: SystemTime,
    started: Instant,
    connection: Rc<ConnectionFacts>,
    due: Instant,
    /// The line as of the last checkpoint, without its end.
    head: Option<Box<[u8]>>,
}

impl OpenRecords {
    pub(super) fn insert(
        &mut self,
        id: u128,
        time: SystemTime,
        started: Instant,
        connection: &Rc<ConnectionFacts>,
    ) -> u32 {
        let due = started + PROGRESS_INTERVAL;
        let record =
            Some(OpenRecord { id, time, started, connection: Rc::clone(connection), due, head: None });
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = record;
            return slot;
        }
        self.slots.push(record);
        (self.slots.len() - 1) as u32
    }

    pub(super) fn remove(&mut self, slot: u32) {
        self.slots[slot as usize] = None;
        self.free.push(slot);
    }

    pub(super) fn checkpoint(&mut self, slot: u32, head: Box<[u8]>) {
        if let Some(record) = &mut self.slots[slot as usize] {
            record.head = Some(head);
        }
    }

    /// Shows each record that is due a line, and makes it due again.
    pub(super) fn overdue(&mut self, now: Instant, mut show: impl FnMut(&OpenRecord)) {
        for record in self.slots.iter_mut().flatten() {
            if record.due <= now {
                record.due = now + PROGRESS_INTERVAL;
                show(record);
            }
        }
    }
}

impl OpenRecord {
    /// Its `progress` line.
    pub(super) fn render(&self, now: Instant, proxy: &ProxyFragments, out: &mut Vec<u8>) {
        match &self.head {
            Some(head) => out.extend_from_slice(head),
            None => render::bare_progress_head(self.id, self.time, &self.connection, proxy, out),
        }
        render::progress_tail(self.started, now, out);
    }
}

/// Age at which a record says that it is still there, and how often it says so again.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(60);
