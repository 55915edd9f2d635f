//! The open records of a worker, so that one that lives long says so: a crash then leaves a trace of it.

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use http::Method;

use super::options::ProxyFragments;
use super::record::{ConnectionFacts, Record, Upload};
use super::render;

/// Open records by slot. A record pays one write at its start and one at its end.
#[derive(Debug)]
pub(super) struct OpenRecords {
    /// Age at which a record says that it is still there, and how often it says so again.
    interval: Duration,
    slots: Vec<Option<OpenRecord>>,
    free: Vec<u32>,
}

/// What is known of a record that is still open: the record itself is its request's alone, until it lies at a place.
#[derive(Debug)]
pub(super) struct OpenRecord {
    pub(super) id: u128,
    time: SystemTime,
    started: Instant,
    connection: Rc<ConnectionFacts>,
    due: Instant,
    request: Option<Begun>,
    /// Where the record lies.
    pub(super) place: Option<usize>,
}

/// A request that has no answer yet. Shared with its record.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) protocol: &'static str,
    pub(super) method: Option<Method>,
    pub(super) authority: Option<Rc<str>>,
    pub(super) path: Option<Rc<str>>,
    pub(super) upload: Option<Rc<Upload>>,
}

impl Begun {
    pub(super) fn of(record: &Record) -> Self {
        Self {
            protocol: record.protocol,
            method: record.method.clone(),
            authority: record.authority.clone(),
            path: record.path.clone(),
            upload: record.upload.clone(),
        }
    }
}

impl OpenRecords {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, slots: Vec::new(), free: Vec::new() }
    }

    pub(super) fn insert(
        &mut self,
        id: u128,
        time: SystemTime,
        started: Instant,
        connection: &Rc<ConnectionFacts>,
    ) -> u32 {
        let (connection, due) = (Rc::clone(connection), started + self.interval);
        let record = Some(OpenRecord { id, time, started, connection, due, request: None, place: None });
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

    pub(super) fn begun(&mut self, slot: u32, request: Begun) {
        if let Some(record) = &mut self.slots[slot as usize] {
            record.request = Some(request);
        }
    }

    pub(super) fn lies_at(&mut self, slot: u32, place: usize) {
        if let Some(record) = &mut self.slots[slot as usize] {
            record.place = Some(place);
        }
    }

    /// Shows each record that is due a line, and makes it due again.
    pub(super) fn overdue(&mut self, now: Instant, mut show: impl FnMut(&OpenRecord)) {
        for record in self.slots.iter_mut().flatten() {
            if record.due <= now {
                record.due = now + self.interval;
                show(record);
            }
        }
    }
}

impl OpenRecord {
    /// Its `progress` line, where the record is out of reach.
    pub(super) fn render(&self, now: Instant, proxy: &ProxyFragments, out: &mut Vec<u8>) {
        render::bare_progress_head(self.id, self.time, &self.connection, proxy, out);
        if let Some(request) = &self.request {
            render::begun(request, out);
        }
        render::progress_tail(self.started, now, out);
    }
}
