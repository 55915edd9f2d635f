//! Finds what is filed under header names and values, in time that does not grow with what is filed.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use http::{HeaderMap, HeaderName};

use super::attributes::header_text;

/// Values filed under a header's exact value, or under its mere presence.
#[derive(Debug)]
pub(super) struct HeaderIndex<V> {
    names: HashMap<HeaderName, Filed<V>, RandomState>,
}

#[derive(Debug)]
struct Filed<V> {
    exact: HashMap<Box<[u8]>, V, RandomState>,
    present: Option<V>,
}

impl<V> Default for HeaderIndex<V> {
    fn default() -> Self {
        Self { names: HashMap::default() }
    }
}

impl<V> HeaderIndex<V> {
    /// Files `value`; `exact: None` files it under the header's presence.
    pub(super) fn insert(&mut self, name: HeaderName, exact: Option<&[u8]>, value: V) {
        let filed =
            self.names.entry(name).or_insert_with(|| Filed { exact: HashMap::default(), present: None });
        match exact {
            Some(text) => drop(filed.exact.insert(text.into(), value)),
            None => filed.present = Some(value),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Calls `visit` with everything filed under what `headers` hold. Walks the names filed or the headers sent,
    /// whichever are fewer.
    pub(super) fn visit<'a>(&'a self, headers: &HeaderMap, mut visit: impl FnMut(&'a V)) {
        if self.names.len() <= headers.keys_len() {
            for (name, filed) in &self.names {
                filed.visit(headers, name, &mut visit);
            }
        } else {
            for name in headers.keys() {
                if let Some(filed) = self.names.get(name) {
                    filed.visit(headers, name, &mut visit);
                }
            }
        }
    }
}

impl<V> Filed<V> {
    fn visit<'a>(&'a self, headers: &HeaderMap, name: &HeaderName, visit: &mut impl FnMut(&'a V)) {
        let Some(text) = header_text(headers, name) else { return };
        if let Some(value) = self.exact.get(text.as_bytes()) {
            visit(value);
        }
        if let Some(value) = &self.present {
            visit(value);
        }
    }
}
