//! What providers answer, after the wire's form is gone: an allowance with what it changes, or a refusal with its words.

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

use super::edit::QueryEdit;
use crate::edits::{Edit, Edits, is_forbidden_in_request, is_forbidden_in_response};

/// It allows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// What it changes of the request.
    pub request: Edits,
    /// And of its query.
    pub query: Vec<QueryEdit>,
    /// What it changes of the response.
    pub response: Edits,
    /// What it may not change, by name: nothing of it was done.
    pub(super) ignored: Vec<Box<str>>,
    pub(super) metadata: Option<Metadata>,
}

/// It denies.
#[derive(Debug, PartialEq, Eq)]
pub struct Denied {
    /// The caller's status.
    pub status: StatusCode,
    /// Headers for the caller.
    pub headers: HeaderMap,
    /// Body for the caller.
    pub body: Bytes,
    pub(super) metadata: Option<Metadata>,
}

/// Names of ignored changes that are kept.
const MAX_IGNORED: usize = 8;
/// Bytes of a provider's metadata in a record.
const MAX_METADATA: usize = 4096;

/// What a provider wants to be written down.
#[derive(Debug, PartialEq, Eq)]
pub struct Metadata(serde_json::Value);

impl Metadata {
    /// `None`: there is nothing in it.
    pub(super) fn new(value: serde_json::Value) -> Option<Self> {
        let empty = value.as_object().is_some_and(serde_json::Map::is_empty);
        (!empty).then_some(Self(value))
    }

    /// JSON text, bounded.
    pub(super) fn into_json(self) -> Box<str> {
        let text = self.0.to_string();
        if text.len() <= MAX_METADATA {
            return text.into();
        }
        let cut = format!("{}…", &text[..text.floor_char_boundary(MAX_METADATA)]);
        serde_json::Value::String(cut).to_string().into()
    }
}

impl Allowed {
    /// Changes the request, unless it is nothing that a provider may change.
    pub(super) fn edit_request(
        &mut self,
        name: &[u8],
        edit: impl FnOnce(HeaderName) -> Option<Edit>,
    ) -> bool {
        // A pseudo-header is no header name: method, path and authority stay what was asked.
        match HeaderName::from_bytes(name) {
            Ok(name) if !is_forbidden_in_request(&name) => match edit(name) {
                Some(edit) => self.request.0.push(edit),
                None => return false,
            },
            _ => self.ignore(name),
        }
        true
    }

    /// Changes the response, likewise.
    pub(super) fn edit_response(
        &mut self,
        name: &[u8],
        edit: impl FnOnce(HeaderName) -> Option<Edit>,
    ) -> bool {
        match HeaderName::from_bytes(name) {
            Ok(name) if !is_forbidden_in_response(&name) => match edit(name) {
                Some(edit) => self.response.0.push(edit),
                None => return false,
            },
            _ => self.ignore(name),
        }
        true
    }

    fn ignore(&mut self, name: &[u8]) {
        if self.ignored.len() < MAX_IGNORED {
            let name: String = String::from_utf8_lossy(name).chars().take(64).collect();
            self.ignored.push(name.into());
        }
    }
}

impl Denied {
    pub(super) fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: Bytes::new(), metadata: None }
    }

    /// Adds a header for the caller. One that it can't have is left out: it stays a refusal.
    pub(super) fn tell(&mut self, name: HeaderName, value: HeaderValue, append: bool) {
        if is_forbidden_in_response(&name) {
            return;
        }
        if append {
            let _ = self.headers.try_append(name, value);
        } else {
            let _ = self.headers.try_insert(name, value);
        }
    }
}
