//! HTTP providers: a request like the one in question, whose answer 200 allows (Envoy `ext_authz` with an HTTP service).

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};

use super::answer::{Allowed, Denied};
use super::{Heard, Shown};
use crate::body::Body;
use crate::edits::{Edit, is_forbidden_in_request};
use crate::tables::{Backend, HttpCheck};
use crate::upstream::Upstream;
use crate::upstream::call::{Answer, Unheard, ask as call};

/// With which an HTTP provider removes headers of the request: names, separated by commas.
const TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// Asks, and reads the answer.
pub(super) async fn ask(
    upstream: &Rc<Upstream>,
    backend: &Backend,
    check: &HttpCheck,
    shown: Shown<'_>,
    within: Duration,
) -> Result<Heard, Unheard> {
    let request = question(check, shown)?;
    heard(check, call(upstream, backend, request, within).await?)
}

fn question(check: &HttpCheck, shown: Shown<'_>) -> Result<Request<Body>, Unheard> {
    let path = shown.uri.path_and_query().map_or("/", |target| target.as_str());
    let target = format!("{}{}", check.path_prefix, if path == "*" { "/" } else { path });
    let target: Uri =
        target.parse().map_err(|error| Unheard::NotUnderstood(format!("the target: {error}")))?;
    let mut request = Request::new(Body::full(shown.body.cloned().unwrap_or_default()));
    *request.method_mut() = match shown.method {
        // It would ask the provider for a tunnel.
        &Method::CONNECT => Method::POST,
        method => method.clone(),
    };
    *request.uri_mut() = target;
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    for (name, value) in shown.headers {
        let shows = *name == header::AUTHORIZATION || check.shows(name);
        if shows && !is_forbidden_in_request(name) && *name != header::EXPECT {
            let _ = headers.try_append(name, value.clone());
        }
    }
    for (name, value) in &check.additional_headers {
        headers.insert(name, value.clone());
    }
    let authority = shown.authority.and_then(|authority| HeaderValue::from_str(authority).ok());
    headers.insert(header::HOST, authority.unwrap_or_else(|| check.authority.clone()));
    if shown.body.is_none_or(Bytes::is_empty) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    Ok(request)
}

fn heard(check: &HttpCheck, answer: Answer) -> Result<Heard, Unheard> {
    match answer.head.status {
        StatusCode::OK => Ok(Heard::Allowed(allowed(check, &answer.head.headers))),
        status if status.is_server_error() => {
            Err(Unheard::Unavailable(format!("it answered with HTTP status {status}")))
        }
        status if status.is_informational() => {
            Err(Unheard::NotUnderstood(format!("it answered with HTTP status {status}")))
        }
        status => {
            let mut denied = Denied::new(status);
            // What is too long for a refusal is left out of it.
            denied.body = answer.body.unwrap_or_default();
            for (name, value) in &answer.head.headers {
                let always = [header::LOCATION, header::WWW_AUTHENTICATE, header::CONTENT_TYPE];
                if check.tells(name) || always.contains(name) {
                    denied.tell(name.clone(), value.clone(), true);
                }
            }
            Ok(Heard::Denied(denied))
        }
    }
}

fn allowed(check: &HttpCheck, headers: &HeaderMap) -> Allowed {
    let mut allowed = Allowed::default();
    for name in headers.keys() {
        let mut values = headers.get_all(name).iter();
        if check.takes_upstream(name)
            && let Some(first) = values.next()
        {
            // The first takes the place of what is there, the others stand beside it.
            allowed.edit_request(name.as_str().as_bytes(), |name| Some(Edit::Set(name, first.clone())));
            for value in values {
                allowed
                    .edit_request(name.as_str().as_bytes(), |name| Some(Edit::Append(name, value.clone())));
            }
        }
        if check.takes_downstream(name) {
            for value in headers.get_all(name) {
                allowed
                    .edit_response(name.as_str().as_bytes(), |name| Some(Edit::Append(name, value.clone())));
            }
        }
    }
    let removed = headers.get_all(TO_REMOVE).iter().filter_map(|value| value.to_str().ok());
    for name in removed.flat_map(|names| names.split(',')) {
        let name = name.trim().to_ascii_lowercase();
        allowed.edit_request(name.as_bytes(), |name| Some(Edit::Remove(name)));
    }
    allowed
}
