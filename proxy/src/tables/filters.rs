//! Filters of routes, parsed once: header edits, redirects and rewrites.

use control_client::snapshot;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header};

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
    rewrite: Option<Box<Rewrite>>,
    redirect: Option<Box<Redirect>>,
}

/// Where callers are sent instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    scheme: Option<Box<str>>,
    hostname: Option<Box<str>>,
    path: Option<PathModifier>,
    port: Option<u16>,
    /// Of the answer.
    pub status: StatusCode,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rewrite {
    hostname: Option<HeaderValue>,
    path: Option<PathModifier>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PathModifier {
    Full(Box<str>),
    /// In place of so many bytes of a path.
    Prefix(usize, Box<str>),
}

impl Filters {
    /// Parses filters; an error names the field within `filters`. `prefix`: what paths that get here begin with.
    pub(super) fn compile(filters: &[snapshot::RouteFilter], prefix: &str) -> Result<Self, String> {
        let (mut request, mut response) = (Vec::new(), Vec::new());
        let (mut rewrite, mut redirect) = (None, None);
        for filter in filters {
            match filter {
                snapshot::RouteFilter::RequestHeaders(edit) => request.push(HeaderEdit::compile(edit)?),
                snapshot::RouteFilter::ResponseHeaders(edit) => response.push(HeaderEdit::compile(edit)?),
                snapshot::RouteFilter::Rewrite(each) => {
                    rewrite = Some(Box::new(Rewrite::compile(each, prefix)?))
                }
                snapshot::RouteFilter::Redirect(each) => {
                    redirect = Some(Box::new(Redirect::compile(each, prefix)?));
                }
            }
        }
        Ok(Self { request: request.into(), response: response.into(), rewrite, redirect })
    }

    /// Edits a request's headers, its host and path.
    pub fn edit_request<B>(&self, request: &mut Request<B>) {
        self.request.iter().for_each(|edit| edit.apply(request.headers_mut()));
        let Some(rewrite) = &self.rewrite else { return };
        if let Some(hostname) = &rewrite.hostname {
            request.headers_mut().insert(header::HOST, hostname.clone());
        }
        if let Some(path) = &rewrite.path
            && let Some(uri) = path.applied(request.uri())
        {
            *request.uri_mut() = uri;
        }
    }

    /// Where a request is sent instead of to a backend.
    pub fn redirect(&self) -> Option<&Redirect> {
        self.redirect.as_deref()
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

impl Redirect {
    fn compile(redirect: &snapshot::Redirect, prefix: &str) -> Result<Self, String> {
        Ok(Self {
            scheme: redirect.scheme.as_deref().map(Into::into),
            hostname: redirect.hostname.as_deref().map(Into::into),
            path: redirect.path.as_ref().map(|path| PathModifier::compile(path, prefix)),
            port: redirect.port,
            status: StatusCode::from_u16(redirect.status).map_err(|error| error.to_string())?,
        })
    }

    /// Where to look instead of at `target`, which was asked of `host` by `scheme` at `port` (Gateway API,
    /// `HTTPRequestRedirectFilter`).
    pub fn location(&self, scheme: &str, host: &str, port: u16, target: &Uri) -> String {
        let port = match (self.port, &self.scheme) {
            (Some(port), _) => Some(port),
            (None, Some(_)) => None,
            (None, None) => Some(port),
        };
        let scheme = self.scheme.as_deref().unwrap_or(scheme);
        let well_known = if scheme == "https" { 443 } else { 80 };
        let host = self.hostname.as_deref().unwrap_or(host);
        let mut location = format!("{scheme}://{host}");
        if let Some(port) = port.filter(|port| *port != well_known) {
            location.push_str(&format!(":{port}"));
        }
        match &self.path {
            Some(path) => location.push_str(&path.of(target.path())),
            None => location.push_str(target.path()),
        }
        if let Some(query) = target.query() {
            location.push('?');
            location.push_str(query);
        }
        location
    }
}

impl Rewrite {
    fn compile(rewrite: &snapshot::Rewrite, prefix: &str) -> Result<Self, String> {
        let hostname = rewrite.hostname.as_deref().map(|host| parse_value("host", host));
        Ok(Self {
            hostname: hostname.transpose()?,
            path: rewrite.path.as_ref().map(|path| PathModifier::compile(path, prefix)),
        })
    }
}

impl PathModifier {
    fn compile(path: &snapshot::PathModifier, prefix: &str) -> Self {
        match path {
            snapshot::PathModifier::Full(path) => Self::Full(path.as_str().into()),
            snapshot::PathModifier::Prefix(path) => Self::Prefix(trimmed(prefix).len(), trimmed(path).into()),
        }
    }

    /// A path, replaced (Gateway API, the table of `HTTPPathModifier.replacePrefixMatch`).
    fn of(&self, path: &str) -> String {
        let replaced = match self {
            Self::Full(path) => path.to_string(),
            Self::Prefix(matched, instead) => {
                format!("{instead}{}", path.get(*matched..).unwrap_or_default())
            }
        };
        if replaced.is_empty() { "/".to_owned() } else { replaced }
    }

    fn applied(&self, uri: &Uri) -> Option<Uri> {
        let mut path = self.of(uri.path());
        if let Some(query) = uri.query() {
            path.push('?');
            path.push_str(query);
        }
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(path.try_into().ok()?);
        Uri::from_parts(parts).ok()
    }
}

fn trimmed(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
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
        let filters = Filters::compile(&[snapshot::RouteFilter::RequestHeaders(edit)], "/").unwrap();
        let mut request = Request::new(());
        let headers = request.headers_mut();
        for (name, value) in [("x-set", "old"), ("x-add", "one"), ("x-gone", "x")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        filters.edit_request(&mut request);
        let headers = request.headers();
        assert_eq!(headers["x-set"], "new");
        assert_eq!(headers.get_all("x-add").iter().collect::<Vec<_>>(), ["one", "two"]);
        assert!(!headers.contains_key("x-gone"));
        assert!(filters.leave_response());
    }

    #[test]
    fn bad_names_and_values_are_reported() {
        for (set, expected) in [(pair("a b", "x"), "\"a b\""), (pair("x-a", "b\r\nc"), "x-a")] {
            let edit = snapshot::HeaderEdit { set: vec![set], ..Default::default() };
            let error = Filters::compile(&[snapshot::RouteFilter::ResponseHeaders(edit)], "/").unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
    #[test]
    fn paths_are_replaced_as_gateway_api_says() {
        for (path, matched, instead, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
        ] {
            let modifier = PathModifier::compile(&snapshot::PathModifier::Prefix(instead.into()), matched);
            assert_eq!(modifier.of(path), expected, "{path} {matched} {instead}");
        }
        let rewrite = snapshot::Rewrite {
            hostname: Some("b.test".into()),
            path: Some(snapshot::PathModifier::Full("/all".into())),
        };
        let filters = Filters::compile(&[snapshot::RouteFilter::Rewrite(rewrite)], "/").unwrap();
        let mut request = Request::get("http://a.test/one?x=y").body(()).unwrap();
        filters.edit_request(&mut request);
        assert_eq!(
            (request.uri().to_string().as_str(), &request.headers()["host"]),
            ("http://a.test/all?x=y", &HeaderValue::from_static("b.test"))
        );
    }

    #[test]
    fn redirects_say_scheme_host_port_and_path() {
        let asked = snapshot::Redirect { scheme: None, hostname: None, path: None, port: None, status: 302 };
        let https = snapshot::Redirect { scheme: Some("https".into()), ..asked.clone() };
        let location = |redirect: snapshot::Redirect, port: u16| {
            let uri: Uri = "/a/b?c=d".parse().unwrap();
            Redirect::compile(&redirect, "/a").unwrap().location("http", "a.test", port, &uri)
        };
        assert_eq!(location(asked.clone(), 80), "http://a.test/a/b?c=d");
        assert_eq!(location(asked.clone(), 8080), "http://a.test:8080/a/b?c=d");
        assert_eq!(location(https.clone(), 8080), "https://a.test/a/b?c=d");
        assert_eq!(
            location(snapshot::Redirect { port: Some(8443), ..https.clone() }, 80),
            "https://a.test:8443/a/b?c=d"
        );
        let elsewhere = snapshot::Redirect {
            hostname: Some("b.test".into()),
            path: Some(snapshot::PathModifier::Prefix("/new".into())),
            ..https
        };
        assert_eq!(location(elsewhere, 80), "https://b.test/new/b?c=d");
    }
}
