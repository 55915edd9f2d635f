//! Edits of headers that others than routes ask for, and what they have to tell a refused caller.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// One edit of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Beside what is there.
    Append(HeaderName, HeaderValue),
    /// In place of what is there.
    Set(HeaderName, HeaderValue),
    /// If nothing is there.
    AddIfAbsent(HeaderName, HeaderValue),
    /// If something is there, in its place.
    Replace(HeaderName, HeaderValue),
    /// Nothing is there any more.
    Remove(HeaderName),
}

/// Edits, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits(pub Vec<Edit>);

impl Edits {
    /// Edits headers. A full map (32,768 entries) takes no more: what finds no room is left out.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for edit in &self.0 {
            match edit {
                Edit::Append(name, value) => drop(headers.try_append(name, value.clone())),
                Edit::Set(name, value) => drop(headers.try_insert(name, value.clone())),
                Edit::AddIfAbsent(name, value) if !headers.contains_key(name) => {
                    drop(headers.try_insert(name, value.clone()));
                }
                Edit::Replace(name, value) if headers.contains_key(name) => {
                    drop(headers.try_insert(name, value.clone()));
                }
                Edit::AddIfAbsent(..) | Edit::Replace(..) => {}
                Edit::Remove(name) => drop(headers.remove(name)),
            }
        }
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Headers of a request that nobody but the mesh and the codec may change: they say who is asked, who asks, and where the
/// message ends.
pub fn is_forbidden_in_request(name: &HeaderName) -> bool {
    *name == header::HOST
        || name.as_str() == "x-forwarded-client-cert"
        || is_reserved(name)
        || is_framing(name)
}

/// Headers of a response that only the codec and the mesh set.
pub fn is_forbidden_in_response(name: &HeaderName) -> bool {
    is_reserved(name) || is_framing(name)
}

fn is_reserved(name: &HeaderName) -> bool {
    ["x-writ-", "x-envoy-"].iter().any(|prefix| name.as_str().starts_with(prefix))
}

fn is_framing(name: &HeaderName) -> bool {
    const FRAMING: [HeaderName; 7] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::PROXY_AUTHENTICATE,
    ];
    FRAMING.contains(name) || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// What a refused caller is told beside the status and the record's id.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Headers.
    pub headers: HeaderMap,
    /// Body. Empty: the words of the status.
    pub body: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_do_what_they_say() {
        let name = |text: &'static str| HeaderName::from_static(text);
        let value = |text: &'static str| HeaderValue::from_static(text);
        let mut headers = HeaderMap::new();
        headers.insert(name("x-a"), value("1"));
        headers.insert(name("x-b"), value("1"));
        Edits(vec![
            Edit::Append(name("x-a"), value("2")),
            Edit::Set(name("x-b"), value("2")),
            Edit::AddIfAbsent(name("x-b"), value("3")),
            Edit::AddIfAbsent(name("x-c"), value("3")),
            Edit::Replace(name("x-d"), value("4")),
            Edit::Replace(name("x-c"), value("5")),
            Edit::Remove(name("x-e")),
        ])
        .apply(&mut headers);
        assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!((headers["x-b"].as_bytes(), headers["x-c"].as_bytes()), (&b"2"[..], &b"5"[..]));
        assert!(!headers.contains_key("x-d"));
    }
}
