//! Heads of requests and responses, from bytes to what they mean.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use httparse::{Error, Header, Status};

use super::{BodyLength, MAX_HEAD, MAX_HEADERS, Malformed, target};

/// The head of a request.
#[derive(Debug)]
pub struct RequestHead {
    /// Method.
    pub method: Method,
    /// Target, in the form it was sent in.
    pub target: Uri,
    /// 1.0 or 1.1.
    pub version: Version,
    /// Fields as sent, framing and hop-by-hop ones among them.
    pub headers: HeaderMap,
    /// How long the body is.
    pub length: BodyLength,
    /// Whether the client lets the connection live on.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// CONNECT, or `Connection: upgrade` with an Upgrade field.
    pub upgrade: bool,
}

/// The head of a response.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status; interim ones (1xx) are for the caller to skip or pass on.
    pub status: StatusCode,
    /// 1.0 or 1.1.
    pub version: Version,
    /// Fields as sent, framing and hop-by-hop ones among them.
    pub headers: HeaderMap,
    /// How long the body is.
    pub length: BodyLength,
    /// Whether the server lets the connection live on.
    pub keep_alive: bool,
    /// 101, or success of CONNECT: what follows is not HTTP.
    pub upgrade: bool,
}

/// Takes the head of a request off the front of `buf`. `None`: it isn't whole yet, and nothing was taken; nor is it of a refused one.
pub fn parse_request(buf: &mut BytesMut) -> Result<Option<RequestHead>, Malformed> {
    let mut spans = [FieldSpan::default(); MAX_HEADERS];
    let (method, target, version, count, end) = {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut []);
        let bytes = within_limit(buf);
        let status = request.parse_with_uninit_headers(bytes, &mut fields);
        let Some(end) = head_end(status, bytes)? else { return Ok(None) };
        let (Some(method), Some(path), Some(minor)) = (request.method, request.path, request.version) else {
            return Ok(None);
        };
        check_request_start(bytes, method)?;
        let method =
            Method::from_bytes(method.as_bytes()).map_err(|_| Malformed::new("the method is not a token"))?;
        let count = locate(bytes, end, request.headers, &mut spans)?;
        (method, Span::of(bytes, path.as_bytes()), version(minor), count, end)
    };
    let head = copied(buf, end);
    let target = target::parse(&method, target.slice(&head))?;
    let (headers, framing) = collect(&head, &spans[..count])?;
    let head = request_head(method, target, version, headers, framing)?;
    // A refused head stays where it was, for the record to tell what it looked like.
    buf.advance(end);
    Ok(Some(head))
}

/// What field values refer to. A copy of some hundred bytes costs less than the pooled buffer that they would pin.
fn copied(buf: &BytesMut, end: usize) -> Bytes {
    Bytes::copy_from_slice(&buf[..end])
}

/// Takes the head of the response to a `method` request off the front of `buf`. `None`: it isn't whole yet, and nothing was taken.
pub fn parse_response(buf: &mut BytesMut, method: &Method) -> Result<Option<ResponseHead>, Malformed> {
    let mut spans = [FieldSpan::default(); MAX_HEADERS];
    let (code, version, count, end) = {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut []);
        let bytes = within_limit(buf);
        if bytes.first().is_some_and(|&first| first != b'H') {
            return Err(Malformed::new("the response does not start with HTTP/1"));
        }
        let status = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            bytes,
            &mut fields,
        );
        let Some(end) = head_end(status, bytes)? else { return Ok(None) };
        let (Some(code), Some(minor)) = (response.code, response.version) else { return Ok(None) };
        (code, version(minor), locate(bytes, end, response.headers, &mut spans)?, end)
    };
    let head = copied(buf, end);
    buf.advance(end);
    let status =
        StatusCode::from_u16(code).map_err(|_| Malformed::new("the status is not between 100 and 999"))?;
    let (headers, framing) = collect(&head, &spans[..count])?;
    response_head(method, status, version, headers, framing).map(Some)
}

/// Tells after each read whether parsing the head again can bring anything, so that a head that comes byte by byte costs time in
/// proportion to its length and not to its square.
#[derive(Debug, Default)]
pub struct HeadProgress {
    seen: usize,
    retry_at: usize,
}

impl HeadProgress {
    /// Whether to parse now: the head may have ended, or so much came that a refusal should not wait for its end. The first time, always.
    pub fn worth_parsing(&mut self, buf: &[u8]) -> bool {
        let parse = buf.len() >= self.retry_at || buf.len() >= MAX_HEAD || self.may_have_ended(buf);
        self.seen = buf.len();
        if parse {
            self.retry_at = buf.len().saturating_mul(2);
        }
        parse
    }

    /// Whether an empty line came since the last time; cut as it may be.
    fn may_have_ended(&self, buf: &[u8]) -> bool {
        let new = &buf[self.seen.saturating_sub(3).min(buf.len())..];
        new.windows(3).any(|three| three == b"\n\r\n" || three[1..] == *b"\n\n")
    }
}

/// What may be looked at: never more than the longest head, so that the same bytes mean the same in whatever pieces they come.
fn within_limit(buf: &BytesMut) -> &[u8] {
    &buf[..buf.len().min(MAX_HEAD)]
}

fn head_end(status: Result<Status<usize>, Error>, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    match status {
        Ok(Status::Complete(end)) => Ok(Some(end)),
        Ok(Status::Partial) if bytes.len() >= MAX_HEAD => {
            Err(Malformed::too_large("the head is longer than 60 KiB"))
        }
        Ok(Status::Partial) => Ok(None),
        Err(error) => Err(match error {
            Error::HeaderName => Malformed::new("a field name is not a token directly followed by a colon"),
            Error::HeaderValue => Malformed::new("a field value has control characters"),
            Error::NewLine => Malformed::new("a line does not end in CR LF"),
            Error::Status => Malformed::new("the status line is not one"),
            Error::Token => {
                Malformed::new("the request line has characters that belong to no method or target")
            }
            Error::TooManyHeaders => Malformed::too_large("the head has more than 100 fields"),
            Error::Version => Malformed::new("the version is neither HTTP/1.0 nor HTTP/1.1"),
        }),
    }
}

/// One CRLF before a request is ignored (RFC 9112 section 2.2), more or other ones are not.
fn check_request_start(bytes: &[u8], method: &str) -> Result<(), Malformed> {
    match Span::of(bytes, method.as_bytes()).start {
        0 => Ok(()),
        2 if bytes.starts_with(b"\r\n") => Ok(()),
        _ => Err(Malformed::new("there are empty lines before the request line")),
    }
}

fn version(minor: u8) -> Version {
    if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 }
}

/// A stretch of the head; a head is shorter than 64 KiB.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    start: u16,
    end: u16,
}

impl Span {
    /// Where `part` lies within `whole`, of which it is a part.
    fn of(whole: &[u8], part: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        Self { start: start as u16, end: (start + part.len()) as u16 }
    }

    fn range(self) -> std::ops::Range<usize> {
        usize::from(self.start)..usize::from(self.end)
    }

    fn slice(self, head: &Bytes) -> Bytes {
        head.slice(self.range())
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct FieldSpan {
    name: Span,
    value: Span,
}

/// Writes down where the fields lie, and checks what httparse lets pass: a line end of LF alone. A field name starts where the
/// line before it ended, and neither names nor values can hold CR or LF, so looking before each name and at the end is enough.
fn locate(
    bytes: &[u8],
    end: usize,
    fields: &[Header<'_>],
    spans: &mut [FieldSpan; MAX_HEADERS],
) -> Result<usize, Malformed> {
    const BARE_LF: Malformed = Malformed::new("a line ends in LF without CR");
    for (field, span) in fields.iter().zip(spans.iter_mut()) {
        span.name = Span::of(bytes, field.name.as_bytes());
        // An empty value need not lie in the buffer.
        span.value = if field.value.is_empty() { Span::default() } else { Span::of(bytes, field.value) };
        if !bytes[..usize::from(span.name.start)].ends_with(b"\r\n") {
            return Err(BARE_LF);
        }
    }
    if bytes[..end].ends_with(b"\r\n\r\n") { Ok(fields.len()) } else { Err(BARE_LF) }
}

/// What the fields say about framing, collected in one pass.
#[derive(Debug, Default)]
struct Framing {
    content_length: Option<u64>,
    chunked: bool,
    hosts: u8,
    close: bool,
    keep_alive: bool,
    connection_upgrade: bool,
    upgrade: bool,
    expect_continue: bool,
    expect_other: bool,
}

fn collect(head: &Bytes, spans: &[FieldSpan]) -> Result<(HeaderMap, Framing), Malformed> {
    let mut headers = HeaderMap::with_capacity(spans.len());
    let mut framing = Framing::default();
    for span in spans {
        let name = HeaderName::from_bytes(&head[span.name.range()])
            .map_err(|_| Malformed::new("a field name is not a token"))?;
        let value = HeaderValue::from_maybe_shared(span.value.slice(head))
            .map_err(|_| Malformed::new("a field value has control characters"))?;
        framing.field(&name, value.as_bytes())?;
        headers.append(name, value);
    }
    if framing.chunked && framing.content_length.is_some() {
        return Err(Malformed::length("it has both Content-Length and Transfer-Encoding"));
    }
    Ok((headers, framing))
}

impl Framing {
    fn field(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), Malformed> {
        if name == CONTENT_LENGTH {
            if self.content_length.is_some() {
                return Err(Malformed::length("it has several Content-Length fields"));
            }
            self.content_length = Some(content_length(value)?);
        } else if name == TRANSFER_ENCODING {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed::length("its Transfer-Encoding is not exactly `chunked`"));
            }
            self.chunked = true;
        } else if name == CONNECTION {
            self.connection(value)?;
        } else if name == HOST {
            self.hosts = self.hosts.saturating_add(1);
        } else if name == UPGRADE {
            self.upgrade = true;
        } else if name == EXPECT {
            self.expect_continue |= value.eq_ignore_ascii_case(b"100-continue");
            self.expect_other |= !value.eq_ignore_ascii_case(b"100-continue");
        }
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) -> Result<(), Malformed> {
        for option in value.split(|&byte| byte == b',') {
            let option = option.trim_ascii();
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.connection_upgrade = true;
            } else if [&b"content-length"[..], b"transfer-encoding", b"host"]
                .iter()
                .any(|name| option.eq_ignore_ascii_case(name))
            {
                return Err(Malformed::new("Connection names a field that frames or routes the message"));
            }
        }
        Ok(())
    }

    fn keep_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep_alive)
    }
}

/// Digits, and not more than a u64 holds.
fn content_length(value: &[u8]) -> Result<u64, Malformed> {
    const BAD: Malformed = Malformed::length("its Content-Length is not a number");
    if value.is_empty() || value.len() > 20 {
        return Err(BAD);
    }
    value.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0')).ok_or(BAD)?;
        sum.checked_mul(10).and_then(|sum| sum.checked_add(digit)).ok_or(BAD)
    })
}

fn request_head(
    method: Method,
    target: Uri,
    version: Version,
    headers: HeaderMap,
    framing: Framing,
) -> Result<RequestHead, Malformed> {
    match (framing.hosts, headers.get(HOST)) {
        (1, Some(host)) => target::check_host(&target, host)?,
        (0, _) if version == Version::HTTP_10 => {}
        (0, _) => return Err(Malformed::new("it has no Host")),
        _ => return Err(Malformed::new("it has several Host fields")),
    }
    if framing.expect_other {
        return Err(Malformed::new("Expect is not `100-continue`"));
    }
    let connect = method == Method::CONNECT;
    if connect && (framing.chunked || framing.content_length.is_some()) {
        return Err(Malformed::length("CONNECT has no body, but this one states its length"));
    }
    if framing.chunked && version == Version::HTTP_10 {
        return Err(Malformed::length("HTTP/1.0 has no Transfer-Encoding"));
    }
    Ok(RequestHead {
        length: match framing.content_length {
            _ if framing.chunked => BodyLength::Chunked,
            Some(length) => BodyLength::Fixed(length),
            None => BodyLength::None,
        },
        keep_alive: framing.keep_alive(version),
        expect_continue: framing.expect_continue && version == Version::HTTP_11,
        upgrade: connect || (framing.connection_upgrade && framing.upgrade && version == Version::HTTP_11),
        method,
        target,
        version,
        headers,
    })
}

fn response_head(
    method: &Method,
    status: StatusCode,
    version: Version,
    headers: HeaderMap,
    framing: Framing,
) -> Result<ResponseHead, Malformed> {
    if framing.chunked && version == Version::HTTP_10 {
        return Err(Malformed::length("HTTP/1.0 has no Transfer-Encoding"));
    }
    let tunnel = method == Method::CONNECT && status.is_success();
    let never_a_body = status.is_informational() || status == StatusCode::NO_CONTENT || tunnel;
    if never_a_body && (framing.chunked || framing.content_length.is_some_and(|length| length > 0)) {
        return Err(Malformed::length("it states the length of a body that such a response never has"));
    }
    let length = if never_a_body || *method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        BodyLength::None
    } else {
        match framing.content_length {
            _ if framing.chunked => BodyLength::Chunked,
            Some(length) => BodyLength::Fixed(length),
            None => BodyLength::UntilClose,
        }
    };
    Ok(ResponseHead {
        upgrade: tunnel || status == StatusCode::SWITCHING_PROTOCOLS,
        keep_alive: length != BodyLength::UntilClose && framing.keep_alive(version),
        status,
        version,
        headers,
        length,
    })
}
