//! Calls of the proxy's own: one question to a service of the mesh and its whole answer, bounded in time and size.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderName, TE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, response};
use http_body_util::{BodyExt as _, Limited};
use tokio::time::timeout;

use super::Upstream;
use super::hop::HopProtocol;
use crate::body::Body;
use crate::tables::Backend;

/// Bytes of an answer's body, and of its trailers, beyond which nobody reads on.
pub const MAX_ANSWER: usize = 256 * 1024;

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    /// Its head.
    pub head: response::Parts,
    /// Its body; `None`: longer than [`MAX_ANSWER`].
    pub body: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

/// Why there is no answer to act on.
#[derive(Debug, PartialEq, Eq)]
pub enum Unheard {
    /// None came, or one that says that the service is out of order.
    Unavailable(String),
    /// One came that is not an answer to the question.
    NotUnderstood(String),
}

impl Unheard {
    /// For the operator.
    pub fn detail(&self) -> &str {
        match self {
            Self::Unavailable(detail) | Self::NotUnderstood(detail) => detail,
        }
    }
}

/// Asks over HTTP. `within` is for everything: connecting, sending, and the whole answer.
pub async fn ask(
    upstream: &Rc<Upstream>,
    backend: &Backend,
    request: Request<Body>,
    within: Duration,
) -> Result<Answer, Unheard> {
    match timeout(within, exchange(upstream, backend, request)).await {
        Ok(answer) => answer,
        Err(_) => Err(Unheard::Unavailable(format!("{} did not answer in {within:?}", backend.name))),
    }
}

async fn exchange(
    upstream: &Rc<Upstream>,
    backend: &Backend,
    mut request: Request<Body>,
) -> Result<Answer, Unheard> {
    let unavailable =
        |reject: crate::error::Reject| Unheard::Unavailable(format!("{}: {reject}", backend.name));
    let mut tried = Vec::new();
    let response = loop {
        let hop = upstream.pick(backend, HopProtocol::Http1, &tried).map_err(unavailable)?;
        match upstream.send(&hop, &mut request).await {
            Ok(sent) => break sent.response,
            // Another endpoint may be there where one is not.
            Err(failed) if failed.whole && failed.reject.before_request() && tried.is_empty() => {
                tried.push(hop.address());
            }
            Err(failed) => return Err(unavailable(failed.reject)),
        }
    };
    let (head, body) = response.into_parts();
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(collected) => {
            let trailers = collected.trailers().cloned();
            Ok(Answer { head, body: Some(collected.to_bytes()), trailers })
        }
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Ok(Answer { head, body: None, trailers: None })
        }
        Err(error) => Err(Unheard::Unavailable(format!("{}: {error}", backend.name))),
    }
}

/// Asks a unary gRPC method (grpc/grpc `doc/PROTOCOL-HTTP2.md`); `path` is `/PACKAGE.SERVICE/METHOD`.
pub async fn ask_grpc<Q: prost::Message, A: prost::Message + Default>(
    upstream: &Rc<Upstream>,
    backend: &Backend,
    path: &'static str,
    question: &Q,
    within: Duration,
) -> Result<A, Unheard> {
    let request = grpc_request(&backend.name, path, question, within)?;
    let answer = ask(upstream, backend, request, within).await?;
    let name = &backend.name;
    let not_understood = |what: &str| Unheard::NotUnderstood(format!("{name}: {what}"));
    let status = answer.head.status;
    if status != StatusCode::OK {
        let detail = format!("{name}: HTTP status {status} from what should speak gRPC");
        return Err(if status.is_server_error() {
            Unheard::Unavailable(detail)
        } else {
            Unheard::NotUnderstood(detail)
        });
    }
    let body = answer.body.as_deref().ok_or_else(|| not_understood("the answer is longer than 256 KiB"))?;
    let told = |name: &HeaderName| {
        let of_trailers = answer.trailers.as_ref().and_then(|trailers| trailers.get(name));
        of_trailers.or_else(|| answer.head.headers.get(name)).and_then(|value| value.to_str().ok())
    };
    match told(&GRPC_STATUS) {
        Some("0") => {}
        Some(code) => {
            let said: String = told(&GRPC_MESSAGE).unwrap_or_default().chars().take(MAX_SAID).collect();
            return Err(Unheard::Unavailable(format!("{name}: grpc-status {code} {said}")));
        }
        None => return Err(not_understood("an answer without grpc-status")),
    }
    let message = message(body).ok_or_else(|| not_understood("not one whole uncompressed gRPC message"))?;
    A::decode(message).map_err(|error| not_understood(&error.to_string()))
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Characters of a service's own words in a record.
const MAX_SAID: usize = 200;

fn grpc_request(
    authority: &str,
    path: &'static str,
    question: &impl prost::Message,
    within: Duration,
) -> Result<Request<Body>, Unheard> {
    let length = question.encoded_len();
    let mut body = BytesMut::with_capacity(5 + length);
    body.put_u8(0);
    let prefix =
        u32::try_from(length).map_err(|_| Unheard::Unavailable("the question is too long".into()))?;
    body.put_u32(prefix);
    // The buffer grows, so there always is room.
    let _ = question.encode(&mut body);
    let uri = Uri::builder().scheme("http").authority(authority_of(authority)).path_and_query(path).build();
    let mut request = Request::new(Body::full(body.freeze()));
    *request.uri_mut() = uri.map_err(|error| Unheard::Unavailable(error.to_string()))?;
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    // At most eight digits.
    let millis = within.as_millis().clamp(1, 99_999_999);
    if let Ok(value) = HeaderValue::try_from(format!("{millis}m")) {
        headers.insert(GRPC_TIMEOUT, value);
    }
    Ok(request)
}

/// `HOST:PORT` of a backend's name, which may say more: `HOST:PORT/SUBSET`.
fn authority_of(name: &str) -> &str {
    name.split('/').next().unwrap_or(name)
}

/// The bytes of the only message of a body.
fn message(mut body: &[u8]) -> Option<&[u8]> {
    let compressed = body.try_get_u8().ok()? != 0;
    let length = body.try_get_u32().ok()? as usize;
    (!compressed && body.len() == length).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_one_whole_message_or_none() {
        assert_eq!(message(&[0, 0, 0, 0, 0]), Some(&[][..]));
        assert_eq!(message(&[0, 0, 0, 0, 2, 8, 1]), Some(&[8, 1][..]));
        for bad in [
            &[][..],
            &[0, 0, 0],
            &[1, 0, 0, 0, 0],
            &[0, 0, 0, 0, 2, 8],
            &[0, 0, 0, 0, 1, 8, 1],
            &[0, 255, 255, 255, 255, 8],
        ] {
            assert_eq!(message(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_question_is_a_grpc_request() {
        let message = String::from("x");
        let request =
            grpc_request("opa.infra:9191", "/a.B/C", &message, Duration::from_millis(1500)).unwrap();
        assert_eq!(request.uri(), "http://opa.infra:9191/a.B/C");
        assert_eq!(request.headers()["grpc-timeout"], "1500m");
        let Body::Full(Some(body)) = request.body() else { panic!() };
        assert_eq!(&body[..5], [0, 0, 0, 0, 3]);
    }
}
