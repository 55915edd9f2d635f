//! A provider's edits of the query.

use http::Uri;
use http::uri::PathAndQuery;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// A query parameter to set, or without a value to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryEdit {
    pub(super) name: String,
    pub(super) value: Option<String>,
}

/// What stands for itself everywhere in a URL (RFC 3986 section 2.3).
pub(super) const UNRESERVED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The target with other query parameters. `None`: the result is not a target.
pub fn with_query(uri: &Uri, edits: &[QueryEdit]) -> Option<Uri> {
    let mut pairs: Vec<String> = uri.query().unwrap_or_default().split('&').map(str::to_owned).collect();
    pairs.retain(|pair| !pair.is_empty());
    for QueryEdit { name, value } in edits {
        let is_meant = |pair: &String| {
            let written = pair.split('=').next().unwrap_or_default();
            percent_decode_str(written).eq(name.bytes())
        };
        let at = pairs.iter().position(is_meant);
        pairs.retain(|pair| !is_meant(pair));
        if let Some(value) = value {
            let pair = format!(
                "{}={}",
                utf8_percent_encode(name, UNRESERVED),
                utf8_percent_encode(value, UNRESERVED)
            );
            pairs.insert(at.unwrap_or(pairs.len()).min(pairs.len()), pair);
        }
    }
    let (path, query) = (uri.path(), pairs.join("&"));
    let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_parameters_are_set_and_removed_where_they_stand() {
        let set = |name: &str, value: &str| QueryEdit { name: name.into(), value: Some(value.into()) };
        let remove = |name: &str| QueryEdit { name: name.into(), value: None };
        for (target, edit, expected) in [
            ("/p", set("a", "1"), "/p?a=1"),
            ("/p?a=0&b=2&a=3", set("a", "1"), "/p?a=1&b=2"),
            ("/p?a=0", remove("a"), "/p"),
            ("/p?%61=0&b", remove("a"), "/p?b"),
            ("/p?b=1", set("x y", "a&b=#"), "/p?b=1&x%20y=a%26b%3D%23"),
            ("http://h/p?b=1", set("b", "2"), "http://h/p?b=2"),
        ] {
            let uri: Uri = target.parse().unwrap();
            assert_eq!(with_query(&uri, &[edit]).unwrap().to_string(), expected, "{target}");
        }
    }
}
