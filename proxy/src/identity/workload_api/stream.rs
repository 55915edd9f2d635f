//! One call of `FetchX509SVID`, whose answers come for as long as the agent has new ones (grpc/grpc `doc/PROTOCOL-HTTP2.md`).

use std::fmt::Write as _;
use std::path::Path;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::net::UnixStream;

use super::messages::X509SvidResponse;

const METHOD: &str = "http://localhost/SpiffeWorkloadAPI/FetchX509SVID";
/// What tells a Workload API that nobody was tricked into asking it (SPIFFE Workload Endpoint, section 6.1).
const SECURITY_HEADER: (&str, &str) = ("workload.spiffe.io", "true");
/// A message without fields, behind its flag and length.
const EMPTY_MESSAGE: &[u8] = &[0; PREFIX_BYTES];
const PREFIX_BYTES: usize = 5;
/// More than any answer has: its revocation lists may be long.
const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// gRPC's PERMISSION_DENIED, by which a Workload API says that it knows no identity for who asks.
const PERMISSION_DENIED: &str = "7";
pub(super) const NO_IDENTITY: &str =
    "it issues this process no identity; does a registration entry select it?";

/// Why there is no answer, for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(String);

/// Answers as they come.
pub(super) struct Stream {
    body: Incoming,
    /// What has come of the next answer.
    read: BytesMut,
    /// Keeps the connection open.
    _sender: http2::SendRequest<Full<Bytes>>,
}

impl Stream {
    /// Connects, asks, and waits for the head of the answers.
    pub(super) async fn open(path: &Path) -> Result<Self, Refused> {
        let socket = UnixStream::connect(path).await;
        let socket = socket.map_err(|error| Refused(format!("{}: {error}", path.display())))?;
        let connected = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await;
        let (mut sender, connection) = connected.map_err(|error| Refused(told(&error)))?;
        // Ends when nobody asks or listens any more.
        tokio::spawn(connection);
        let request = Request::post(METHOD)
            .version(Version::HTTP_2)
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .header(USER_AGENT, concat!("writ/", env!("CARGO_PKG_VERSION")))
            .header(SECURITY_HEADER.0, SECURITY_HEADER.1)
            .body(Full::new(Bytes::from_static(EMPTY_MESSAGE)))
            .map_err(|error| Refused(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| Refused(told(&error)))?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(Refused(format!("HTTP status {} from what should speak gRPC", head.status)));
        }
        // Who has nothing to say says so in the head.
        status(&head.headers)?;
        Ok(Self { body, read: BytesMut::new(), _sender: sender })
    }

    /// The next answer; `None`: there will be no more.
    pub(super) async fn next(&mut self) -> Result<Option<X509SvidResponse>, Refused> {
        loop {
            if let Some(message) = self.message()? {
                let answer = X509SvidResponse::decode(message);
                return answer
                    .map(Some)
                    .map_err(|error| Refused(format!("its answer can't be read: {error}")));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            match frame.map_err(|error| Refused(told(&error)))?.into_data() {
                Ok(data) => self.read.extend_from_slice(&data),
                Err(frame) => status(&frame.into_trailers().unwrap_or_default())?,
            }
        }
    }

    /// The message that has come whole.
    fn message(&mut self) -> Result<Option<Bytes>, Refused> {
        let [compressed, a, b, c, d, ..] = *self.read else { return Ok(None) };
        if compressed != 0 {
            return Err(Refused("its answer is compressed, which was not asked for".to_owned()));
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > MAX_MESSAGE_BYTES {
            return Err(Refused(format!("an answer of {length} bytes; {MAX_MESSAGE_BYTES} at most")));
        }
        if self.read.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        self.read.advance(PREFIX_BYTES);
        Ok(Some(self.read.split_to(length).freeze()))
    }
}

/// What an answer's end, or a head without one, says.
fn status(headers: &HeaderMap) -> Result<(), Refused> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(PERMISSION_DENIED) => Err(Refused(NO_IDENTITY.to_owned())),
        Some(code) => {
            let message = text("grpc-message").unwrap_or_default();
            Err(Refused(format!("gRPC status {code:.8}: {message:.200}")))
        }
    }
}

/// The error with its causes.
fn told(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            let _ = write!(text, ": {next_text}");
        }
        cause = next.source();
    }
    text
}
