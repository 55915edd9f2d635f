//! Answers that the proxy gives by itself: a refused caller learns a status and an opaque record id, nothing else.

use ::http::header::{CONTENT_TYPE, HeaderName, WWW_AUTHENTICATE};
use ::http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::body::Body;
use crate::decision::Reason;
use crate::edits::Answer;
use crate::error::Reject;
use crate::telemetry::Quota;

/// The header that carries the record id.
pub const DECISION_ID: HeaderName = HeaderName::from_static("x-writ-decision-id");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// True for requests whose caller reads `grpc-status` (gRPC over HTTP/2, `doc/PROTOCOL-HTTP2.md`).
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// The answer to a rejected request.
pub fn reply(reject: &Reject, grpc: bool, id: u128) -> Response<Body> {
    let status = reject.status();
    let text = match status {
        // The words that callers of Istio know.
        StatusCode::FORBIDDEN => "RBAC: access denied",
        _ => status.canonical_reason().unwrap_or("refused"),
    };
    let mut response = if grpc {
        let mut response = Response::new(Body::Empty);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response.headers_mut().insert(GRPC_STATUS, HeaderValue::from(u16::from(reject.grpc_status())));
        response.headers_mut().insert(GRPC_MESSAGE, HeaderValue::from_static(text));
        response
    } else {
        let mut response = Response::new(Body::full(text));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge(reject.reason));
        }
        response
    };
    response.headers_mut().insert(DECISION_ID, decision_id(id));
    response
}

/// What a caller without a valid token is asked for (RFC 6750 section 3). Why its token is none is not said.
fn challenge(reason: Reason) -> HeaderValue {
    HeaderValue::from_static(match reason {
        Reason::NoToken => "Bearer",
        _ => "Bearer error=\"invalid_token\"",
    })
}

/// Adds what those who were asked have to tell. A caller of gRPC gets words of it as `grpc-message`.
pub fn tell(answer: &Answer, grpc: bool, response: &mut Response<Body>) {
    if !grpc && !answer.body.is_empty() {
        *response.body_mut() = Body::full(answer.body.clone());
    }
    if grpc && !answer.body.is_empty() {
        let words = answer.body.get(..MAX_GRPC_MESSAGE).unwrap_or(&answer.body);
        let message = percent_encoding::percent_encode(words, GRPC_MESSAGE_BYTES).to_string();
        if let Ok(message) = HeaderValue::try_from(message) {
            response.headers_mut().insert(GRPC_MESSAGE, message);
        }
    }
    for name in answer.headers.keys() {
        if grpc && (*name == CONTENT_TYPE || *name == GRPC_STATUS) {
            continue;
        }
        response.headers_mut().remove(name);
        for value in answer.headers.get_all(name) {
            let _ = response.headers_mut().try_append(name, value.clone());
        }
    }
}

/// Adds what is left of the rate limit that leaves least (draft-ietf-httpapi-ratelimit-headers sections 3 and 4), to what
/// the server may have told of its own.
pub fn tell_quota(quota: Option<&Quota>, headers: &mut HeaderMap) {
    let Some(Quota { policy, remaining, reset_secs }) = quota else { return };
    let name = policy.to_str().ok().and_then(|policy| policy.split(';').next()).unwrap_or_default();
    let limit = match reset_secs {
        Some(seconds) => format!("{name};r={remaining};t={seconds}"),
        None => format!("{name};r={remaining}"),
    };
    if let Ok(limit) = HeaderValue::try_from(limit) {
        // A full map takes no more.
        let _ = headers.try_append(RATE_LIMIT_POLICY, policy.clone());
        let _ = headers.try_append(RATE_LIMIT, limit);
    }
}

/// Bytes of a refusal's body in `grpc-message`.
const MAX_GRPC_MESSAGE: usize = 1024;
/// What `grpc-message` percent-encodes (grpc/grpc `doc/PROTOCOL-HTTP2.md`): all but printable ASCII, and `%`.
const GRPC_MESSAGE_BYTES: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%');

/// A record id as header value.
pub fn decision_id(id: u128) -> HeaderValue {
    let mut buffer = [0; ulid::ULID_LEN];
    let text = ulid::Ulid(id).array_to_str(&mut buffer);
    // A ULID is 26 characters of Crockford's base 32.
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::{Reason, Stage};

    #[test]
    fn a_refusal_names_no_policy() {
        let reject = Reject::because(Stage::Authorize, Reason::MatchedDeny, "AuthorizationPolicy a/b");
        let response = reply(&reject, false, 1);
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()[DECISION_ID], "00000000000000000000000001");
        assert!(!format!("{response:?}").contains("a/b"));
    }

    #[test]
    fn grpc_callers_read_grpc_status() {
        let reject = Reject::new(Stage::Authorize, Reason::NoAllowMatched);
        let response = reply(&reject, true, 1);
        assert_eq!(
            (response.status(), &response.headers()[GRPC_STATUS]),
            (StatusCode::OK, &HeaderValue::from_static("7"))
        );
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
        assert!(is_grpc(&headers));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc-web"));
        assert!(!is_grpc(&headers));
    }
}
