//! Header edits of route filters, parsed once.

use control_client::snapshot;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The header edits of one filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderEdit {
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
    remove: Box<[HeaderName]>,
}

/// The filters of a rule or of a backendRef, in listed order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters {
    request: Box<[HeaderEdit]>,
    response: Box<[HeaderEdit]>,
}

impl Filters {
    /// Parses filters; an error names the field within `filters`.
    pub(super) fn compile(filters: &[snapshot::RouteFilter]) -> Result<Self, String> {
        let (mut request, mut response) = (Vec::new(), Vec::new());
        for filter in filters {
            match filter {
                snapshot::RouteFilter::RequestHeaders(edit) => request.push(HeaderEdit::compile(edit)?),
                snapshot::RouteFilter::ResponseHeaders(edit) => response.push(HeaderEdit::compile(edit)?),
            }
        }
        Ok(Self { request: request.into(), response: response.into() })
    }

    /// Edits a request's headers.
    pub fn edit_request(&self, headers: &mut HeaderMap) {
        self.request.iter().for_each(|edit| edit.apply(headers));
    }

    /// Edits a response's headers.
    pub fn edit_response(&self, headers: &mut HeaderMap) {
        self.response.iter().for_each(|edit| edit.apply(headers));
    }

    /// True where there is nothing to do to a response.
    pub fn leave_response(&self) -> bool {
        self.response.is_empty()
    }
}

impl HeaderEdit {
    fn compile(edit: &snapshot::HeaderEdit) -> Result<Self, String> {
        let remove: Result<_, String> = edit.remove.iter().map(|header| name(header)).collect();
        Ok(Self { set: pairs(&edit.set)?, add: pairs(&edit.add)?, remove: remove? })
    }

    fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            // A full map (32,768 entries) takes no more: the header is left out, as there is no room for it.
            let _ = headers.try_append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

fn pairs(pairs: &[(String, String)]) -> Result<Box<[(HeaderName, HeaderValue)]>, String> {
    pairs.iter().map(|(header, value)| Ok((name(header)?, parse_value(header, value)?))).collect()
}

/// Parses a header value; an error names the header.
pub(super) fn parse_value(header: &str, value: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(value)
        .map_err(|_| format!("the value of header {header} has characters no header may have"))
}

/// Parses a header name.
pub(super) fn name(header: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(header.as_bytes()).map_err(|_| format!("{header:?} is no header name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.into(), value.into())
    }

    #[test]
    fn set_add_remove() {
        let edit = snapshot::HeaderEdit {
            set: vec![pair("x-set", "new")],
            add: vec![pair("x-add", "two")],
            remove: vec!["x-gone".into()],
        };
        let filters = Filters::compile(&[snapshot::RouteFilter::RequestHeaders(edit)]).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-set", "old"), ("x-add", "one"), ("x-gone", "x")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        filters.edit_request(&mut headers);
        assert_eq!(headers["x-set"], "new");
        assert_eq!(headers.get_all("x-add").iter().collect::<Vec<_>>(), ["one", "two"]);
        assert!(!headers.contains_key("x-gone"));
        assert!(filters.leave_response());
    }

    #[test]
    fn bad_names_and_values_are_reported() {
        for (set, expected) in [(pair("a b", "x"), "\"a b\""), (pair("x-a", "b\r\nc"), "x-a")] {
            let edit = snapshot::HeaderEdit { set: vec![set], ..Default::default() };
            let error = Filters::compile(&[snapshot::RouteFilter::ResponseHeaders(edit)]).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
