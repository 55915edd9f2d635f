//! What a client speaks, from the first bytes that it sends, without making a client wait that expects the server to
//! speak first.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use super::client_hello::{self, MAX_RECORDS, Parsed};
pub use super::client_hello::{AlpnProtocol, ClientHello, MAX_ALPN};
use super::prefixed::Prefixed;

/// What a client speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detected {
    /// A TLS ClientHello, also one that is malformed, cut short or stalled: those have no facts, and a TLS stack is left
    /// to refuse them, so that nothing which began as TLS is ever taken for plaintext.
    Tls(Box<ClientHello>),
    /// An HTTP/1 request line.
    Http1,
    /// The preface of HTTP/2 with prior knowledge.
    Http2,
    /// Bytes that are none of these.
    Opaque,
    /// Bytes that may still become an HTTP request line or preface, and no more came before the deadline. To be refused
    /// (`not-detected`) where rules or routes look at HTTP, else treated as opaque.
    Stalled,
    /// Nothing before the deadline: the client waits for the server. Nothing was read, so that the connection can be
    /// looked at again.
    Silent,
    /// The client left without a byte.
    Closed,
}

/// Reads what the client sends first, as little of it as tells the protocol. All that was read is given back in front of
/// the rest of the connection.
///
/// `first_byte` is how long a silent client is waited for; `head`, how long one that has begun to speak may take until it
/// can be told what it speaks. An error is that of the connection.
pub async fn detect<IO: AsyncRead + Unpin>(
    mut io: IO,
    first_byte: Duration,
    head: Duration,
) -> io::Result<(Prefixed<IO>, Detected)> {
    // Read into in place; grows only as far as `decide` asks for more, which is bounded.
    let mut read = BytesMut::new();
    let mut deadline = Instant::now() + first_byte;
    let detected = loop {
        read.reserve(INITIAL_READ);
        match timeout_at(deadline, io.read_buf(&mut read)).await {
            Err(_elapsed) => break given_up(&read, Detected::Silent, Detected::Stalled),
            Ok(Ok(0)) => break given_up(&read, Detected::Closed, Detected::Opaque),
            Ok(Ok(count)) => {
                if let Some(detected) = decide(&read) {
                    break detected;
                }
                if count == read.len() {
                    deadline = Instant::now() + head;
                }
            }
            Ok(Err(error)) => return Err(error),
        }
    };
    let prefix = if read.is_empty() { Bytes::new() } else { read.freeze() };
    Ok((Prefixed::new(prefix, io), detected))
}

/// Most first flights, a post-quantum ClientHello among them, fit in one read.
const INITIAL_READ: usize = 2048;
/// The longest request line that is waited for. What is longer, and could be one, counts as one: HTTP will refuse it.
const MAX_REQUEST_LINE: usize = 8 * 1024;
/// The part of the HTTP/2 preface (RFC 9113 3.4) that can't be anything else; the codec checks the whole.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// No more bytes will be looked at: those that came don't tell a protocol apart.
fn given_up(read: &[u8], nothing: Detected, undecided: Detected) -> Detected {
    match read {
        [] => nothing,
        [0x16, ..] => Detected::Tls(Box::default()),
        _ => undecided,
    }
}

/// The protocol, as soon as further bytes can't change the answer.
fn decide(bytes: &[u8]) -> Option<Detected> {
    match client_hello::parse(bytes) {
        Parsed::Hello(hello) => Some(Detected::Tls(Box::new(hello))),
        Parsed::More => None,
        Parsed::No => decide_http(bytes),
    }
}

fn decide_http(bytes: &[u8]) -> Option<Detected> {
    if bytes.len() >= PREFACE.len() && bytes.starts_with(PREFACE) {
        return Some(Detected::Http2);
    }
    if PREFACE.starts_with(bytes) {
        return None;
    }
    let bytes = &bytes[..bytes.len().min(MAX_REQUEST_LINE)];
    // Servers skip empty lines before a request (RFC 9112 2.2) and some of them whitespace, so a client must not escape
    // detection by them.
    let line_start = bytes.iter().position(|&byte| byte != b'\n' && !is_space(byte));
    let line = &bytes[line_start.unwrap_or(bytes.len())..];
    match request_line(line) {
        None if bytes.len() == MAX_REQUEST_LINE => Some(Detected::Http1),
        decided => decided,
    }
}

/// Strict about what is opaque, generous about what is HTTP: a server that is lenient must not see as a request what
/// passed here as something else.
fn request_line(line: &[u8]) -> Option<Detected> {
    let method_end = line.iter().position(|&byte| !is_token(byte))?;
    let (method, rest) = line.split_at(method_end);
    if method.is_empty() || !is_space(rest[0]) {
        return Some(Detected::Opaque);
    }
    let first = *rest.iter().find(|&&byte| !is_space(byte))?;
    if METHODS.contains(&method) && matches!(first, b'/' | b'*') {
        return Some(Detected::Http1);
    }
    // Whatever stands in a path, some server takes it; elsewhere a control character is a sign of no text.
    let ends = |byte: u8| byte == b'\n' || first != b'/' && byte.is_ascii_control() && !is_space(byte);
    let line_end = rest.iter().position(|&byte| ends(byte));
    let mut within = rest[..line_end.unwrap_or(rest.len())].windows(1 + HTTP.len());
    if within.any(|window| is_space(window[0]) && window[1..].eq_ignore_ascii_case(HTTP)) {
        return Some(Detected::Http1);
    }
    line_end.map(|_| Detected::Opaque)
}

/// What a request line has before its version number, after whitespace.
const HTTP: &[u8] = b"HTTP/";

/// Methods after which a path can be nothing but HTTP, even before the line is whole.
const METHODS: &[&[u8]] =
    &[b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"PROPFIND", b"QUERY"];

/// `tchar` of RFC 9110 5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// What separates words of a request line to a lenient server: the octets of RFC 9112 section 3, a bare CR among them, and
/// those more at which Python's `split` does (`http.server`).
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c | b'\r' | 0x1c..=0x1f | 0x85 | 0xa0)
}

const _: () = assert!(MAX_REQUEST_LINE <= MAX_RECORDS, "the ClientHello bounds what is read ahead");

#[cfg(test)]
mod tests;
