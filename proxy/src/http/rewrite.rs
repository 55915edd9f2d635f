//! `rewrite`: header edits of the route, and what the mesh itself adds to a request.

use ::http::{HeaderName, HeaderValue, Request, Response, StatusCode};

use super::pipeline::Chosen;
use super::{reply, sanitize};
use crate::body::Body;
use crate::generation::Held;
use crate::peer::Peer;
use crate::telemetry::Record;

const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Edits a request on its way out.
pub fn request(chosen: &Chosen<'_>, held: &Held, peer: &Peer, request: &mut Request<Body>, record: &Record) {
    match chosen {
        Chosen::Application(..) => forward_client_cert(held, peer, request),
        Chosen::Backend(_, choice) => {
            request.headers_mut().remove(XFCC);
            for filters in choice.iter().flat_map(|choice| choice.filters()) {
                filters.edit_request(request.headers_mut());
            }
            request.headers_mut().insert(reply::DECISION_ID, reply::decision_id(record.id));
        }
        Chosen::Address(_) => {
            request.headers_mut().remove(XFCC);
        }
    }
}

/// Edits a response on its way back.
pub fn response(chosen: &Chosen<'_>, record: &Record, response: &mut Response<Body>) {
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    sanitize::response(response.headers_mut(), switching);
    if let Chosen::Backend(_, Some(choice)) = chosen {
        for filters in choice.filters() {
            filters.edit_response(response.headers_mut());
        }
    }
    // What those who were asked want of it.
    if let Some(asked) = &record.asked {
        asked.additions.apply(response.headers_mut());
        reply::tell_quota(asked.quota.as_ref(), response.headers_mut());
    }
}

/// `x-forwarded-client-cert` says who called: replaced, or appended to when the caller may speak for others.
fn forward_client_cert(held: &Held, peer: &Peer, request: &mut Request<Body>) {
    let headers = request.headers_mut();
    match peer.xfcc() {
        None => {
            headers.remove(XFCC);
        }
        Some(own) if peer.admission(held).forwards && headers.contains_key(XFCC) => {
            let mut value = Vec::new();
            for line in headers.get_all(XFCC) {
                value.extend_from_slice(line.as_bytes());
                value.push(b',');
            }
            value.extend_from_slice(own.as_bytes());
            let value = HeaderValue::from_bytes(&value).unwrap_or_else(|_| own.clone());
            headers.insert(XFCC, value);
        }
        Some(own) => {
            headers.insert(XFCC, own.clone());
        }
    }
}
