//! One request and its answer, as the connection sees them: what was asked, how the answer is framed, and whether another may follow.

use std::io;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Frame;
use tokio::io::AsyncRead;

use super::Partial;
use super::connection;
use super::ending::DISCARD_MAX;
use super::outgoing::Outgoing;
use super::upload::{SharedUpload, Upload};
use crate::body::Body;
use crate::decision::Reason;
use crate::h1::{self, BodyEncoder, BodyLength, LengthMismatch, Malformed, RequestHead, ResponseFraming};

/// In the extensions of a request that may be answered with 101, or with success to CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CanUpgrade;

/// What the connection has to remember of a request until the next.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// The request body, until the last of it was taken.
    upload: Option<SharedUpload>,
    head: bool,
    connect: bool,
    old: bool,
    upgrade: bool,
    /// Nothing was understood of what the client sent.
    pub(super) refused: bool,
    /// Another request may follow.
    pub(super) keep_alive: bool,
    /// The answer has no body, whatever the handler gives.
    pub(super) bodiless: bool,
    /// The client closed its sending side.
    pub(super) half_closed: bool,
}

impl Exchange {
    /// The request of a head, with the body that begins in `read`.
    pub(super) fn begin(head: RequestHead, read: &mut BytesMut) -> (Self, Request<Body>) {
        let mut exchange = Self {
            upload: None,
            head: head.method == Method::HEAD,
            connect: head.method == Method::CONNECT,
            old: head.version == Version::HTTP_10,
            upgrade: head.upgrade && head.length.is_empty(),
            keep_alive: head.keep_alive,
            ..Self::default()
        };
        let body = exchange.body(&head, read);
        let mut request = Request::new(body);
        *request.method_mut() = head.method;
        *request.uri_mut() = head.target;
        *request.version_mut() = head.version;
        *request.headers_mut() = head.headers;
        if exchange.upgrade {
            request.extensions_mut().insert(CanUpgrade);
        }
        (exchange, request)
    }

    /// What answers bytes that are not a request.
    pub(super) fn refusal() -> Self {
        Self { refused: true, ..Self::default() }
    }

    fn body(&mut self, head: &RequestHead, read: &mut BytesMut) -> Body {
        match head.length {
            BodyLength::None | BodyLength::Fixed(0) => Body::Empty,
            BodyLength::Fixed(length) if length <= read.len() as u64 => {
                Body::full(h1::take(read, length as usize))
            }
            length => {
                let (upload, body) = Upload::new(length, head.expect_continue, std::mem::take(read));
                self.upload = Some(upload);
                body
            }
        }
    }

    /// Whether the request can be answered with that status: an interim one is no answer, and a switch must be asked for.
    pub(super) fn allows(&self, status: StatusCode) -> bool {
        match status {
            StatusCode::SWITCHING_PROTOCOLS => self.upgrade && !self.connect,
            _ => !status.is_informational(),
        }
    }

    /// Writes the head of the answer. What encodes its body, and whether a tunnel follows instead of one.
    pub(super) fn answer<B>(&mut self, out: &mut Vec<u8>, response: &Response<B>) -> (BodyEncoder, bool)
    where
        B: http_body::Body,
    {
        let status = response.status();
        let switch = status == StatusCode::SWITCHING_PROTOCOLS;
        let tunnel = switch || self.connect && status.is_success();
        self.bodiless = self.head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = if tunnel { BodyLength::None } else { self.length(response) };
        self.keep_alive &=
            length != BodyLength::UntilClose && !wants_close(response.headers()) && !self.spoils_connection();
        let framing = ResponseFraming {
            length,
            peer: if self.old { Version::HTTP_10 } else { Version::HTTP_11 },
            head: self.head,
            keep_alive: self.keep_alive || tunnel,
            upgrade: switch,
        };
        h1::encode_response_head(out, status, response.headers(), framing);
        (BodyEncoder::new(length), tunnel)
    }

    fn length<B: http_body::Body>(&self, response: &Response<B>) -> BodyLength {
        let exact = response.body().size_hint().exact();
        let stated = || {
            let value = response.headers().get(CONTENT_LENGTH)?.to_str().ok()?;
            value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok())?
        };
        if self.bodiless {
            // The length that the body would have had; none is known of an empty one.
            return match exact {
                Some(length) if self.head && length > 0 => BodyLength::Fixed(length),
                _ => BodyLength::None,
            };
        }
        match exact.or_else(stated) {
            Some(length) => BodyLength::Fixed(length),
            None if self.old => BodyLength::UntilClose,
            None => BodyLength::Chunked,
        }
    }

    /// Whether the rest of the request body keeps another request from following.
    pub(super) fn spoils_connection(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.borrow().ends_connection(DISCARD_MAX))
    }

    /// Takes the read buffer back from an upload that is over.
    pub(super) fn reclaim(&mut self, read: &mut BytesMut) {
        if let Some(upload) = self.upload.take_if(|upload| upload.borrow().is_done()) {
            *read = std::mem::take(&mut upload.borrow_mut().buffer);
        }
    }

    /// Whether the request body isn't over yet.
    pub(super) fn has_upload(&self) -> bool {
        self.upload.is_some()
    }

    /// Whether somebody waits for the next bytes of the request body.
    pub(super) fn is_upload_wanted(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.borrow().is_wanted())
    }

    /// Whether `100 Continue` is due.
    pub(super) fn take_continue(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.borrow_mut().take_continue())
    }

    /// That the handler is being polled, or was.
    pub(super) fn connection_looks(&self, looks: bool) {
        if let Some(upload) = &self.upload {
            upload.borrow_mut().connection_looks(looks);
        }
    }

    /// Whom to wake when the request body is polled.
    pub(super) fn wake_connection_with(&self, cx: &Context<'_>) {
        if let Some(upload) = &self.upload {
            upload.borrow_mut().wake_connection_with(cx);
        }
    }

    /// Reads more of the request body, and wakes who waits for it.
    pub(super) fn poll_read<IO>(&self, io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<usize>>
    where
        IO: AsyncRead + Unpin,
    {
        let Some(upload) = &self.upload else { return Poll::Pending };
        let mut upload = upload.borrow_mut();
        let read = connection::poll_read(io, &mut upload.buffer, cx);
        if matches!(read, Poll::Ready(Ok(count)) if count > 0) {
            upload.arrived(cx);
        }
        read
    }

    /// Takes the next bytes of a body that nobody reads; how many, or `None` at its end.
    pub(super) fn discard(&self) -> Poll<Result<Option<usize>, Malformed>> {
        match &self.upload {
            Some(upload) => upload.borrow_mut().discard(),
            None => Poll::Ready(Ok(None)),
        }
    }

    /// That nothing more of the request body comes, and why.
    pub(super) fn end_upload(&self, reason: Reason) {
        if let Some(upload) = &self.upload {
            upload.borrow_mut().end(reason);
        }
    }
}

/// Whether the handler asks for the connection to end.
fn wants_close(headers: &HeaderMap) -> bool {
    headers.get_all(CONNECTION).iter().any(|value| {
        value
            .as_bytes()
            .split(|&byte| byte == b',')
            .any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}

/// Writes a piece of an answer's body, or its trailers.
pub(super) fn write_frame(
    out: &mut Outgoing,
    encoder: &mut BodyEncoder,
    frame: Frame<Bytes>,
) -> Result<(), LengthMismatch> {
    match frame.into_data() {
        Ok(data) if data.is_empty() => Ok(()),
        Ok(data) => {
            let around = encoder.frame(data.len())?;
            out.push(data, around);
            Ok(())
        }
        Err(frame) => match frame.into_trailers() {
            Ok(trailers) => encoder.finish(out.buffer(), Some(&trailers)),
            Err(_) => Ok(()),
        },
    }
}

/// What can be told of a request that was refused: the start of its first line, as far as that looks like one.
pub(super) fn partial(read: &[u8]) -> Partial {
    const METHOD_MAX: usize = 32;
    const PATH_MAX: usize = 1024;
    let line = read.strip_prefix(b"\r\n").unwrap_or(read);
    let mut words = line.splitn(3, |byte| matches!(byte, b' ' | b'\r' | b'\n'));
    let method =
        words.next().filter(|word| word.len() <= METHOD_MAX).and_then(|word| Method::from_bytes(word).ok());
    let path = words.next().filter(|_| method.is_some()).and_then(|word| {
        let path = word.split(|&byte| byte == b'?').next()?;
        let text = std::str::from_utf8(&path[..path.len().min(PATH_MAX)]).ok()?;
        text.bytes().all(|byte| byte.is_ascii_graphic()).then(|| text.into())
    });
    Partial { method, path }
}
