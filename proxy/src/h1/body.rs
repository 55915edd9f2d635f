//! Bodies, from framed bytes to data and trailers.

use std::mem;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};
use httparse::Status;

use super::{
    BodyLength, MAX_CHUNK_EXTENSION, MAX_CHUNK_EXTENSIONS, MAX_TRAILER_FIELDS, MAX_TRAILERS, Malformed,
};

/// Takes one body off the front of a buffer. A body is over when it said `End`; what is in the buffer then belongs to what follows.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
    extensions: usize,
}

/// What [`BodyDecoder::decode`] found.
#[derive(Debug)]
pub enum Decoded {
    /// A piece of the body, never empty; it shares the buffer's memory.
    Data(Bytes),
    /// Trailer fields; `End` follows.
    Trailers(HeaderMap),
    /// The body is over.
    End,
    /// What is in the buffer is not enough to say more.
    NeedMore,
}

#[derive(Debug)]
enum State {
    Fixed {
        left: u64,
    },
    UntilClose,
    /// At the first digit of a chunk size.
    ChunkStart,
    ChunkSize {
        size: u64,
        digits: u8,
    },
    ChunkExtension {
        size: u64,
        length: usize,
    },
    ChunkSizeLf {
        size: u64,
    },
    ChunkData {
        left: u64,
    },
    ChunkDataCr,
    ChunkDataLf,
    Trailers,
    Done,
    /// Nothing that follows can be told apart any more.
    Broken,
}

impl BodyDecoder {
    /// A decoder for a body of that length.
    pub fn new(length: BodyLength) -> Self {
        let state = match length {
            BodyLength::None | BodyLength::Fixed(0) => State::Done,
            BodyLength::Fixed(left) => State::Fixed { left },
            BodyLength::Chunked => State::ChunkStart,
            BodyLength::UntilClose => State::UntilClose,
        };
        Self { state, extensions: 0 }
    }

    /// Whether the body is over.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Bytes still to come, where the head said how many.
    pub fn left(&self) -> Option<u64> {
        match self.state {
            State::Fixed { left } => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// The next part of the body. After an error the connection is unusable.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, Malformed> {
        loop {
            match &mut self.state {
                State::Done => return Ok(Decoded::End),
                State::Broken => return Err(Malformed::length("the body is malformed")),
                State::Trailers => {
                    let Some(trailers) = take_trailers(buf)? else { return Ok(Decoded::NeedMore) };
                    self.state = State::Done;
                    if !trailers.is_empty() {
                        return Ok(Decoded::Trailers(trailers));
                    }
                }
                _ if buf.is_empty() => return Ok(Decoded::NeedMore),
                State::UntilClose => return Ok(Decoded::Data(buf.split().freeze())),
                State::Fixed { left } => {
                    let data = take_data(left, buf);
                    if *left == 0 {
                        self.state = State::Done;
                    }
                    return Ok(Decoded::Data(data));
                }
                State::ChunkData { left } => {
                    let data = take_data(left, buf);
                    if *left == 0 {
                        self.state = State::ChunkDataCr;
                    }
                    return Ok(Decoded::Data(data));
                }
                _ => {
                    let byte = buf.get_u8();
                    self.framing_byte(byte)?;
                }
            }
        }
    }

    /// That the sender closed: the end of a body that is delimited by it, an error for any other that isn't over.
    pub fn eof(&mut self) -> Result<(), Malformed> {
        match mem::replace(&mut self.state, State::Broken) {
            State::Done | State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(Malformed::length("the connection ended before the body did")),
        }
    }

    /// One byte between the data of two chunks.
    fn framing_byte(&mut self, byte: u8) -> Result<(), Malformed> {
        self.state = match (mem::replace(&mut self.state, State::Broken), byte) {
            (State::ChunkStart, _) => State::ChunkSize { size: hex_digit(byte)?, digits: 1 },
            (State::ChunkSize { size, .. }, b'\r') => State::ChunkSizeLf { size },
            (State::ChunkSize { size, .. }, b';') => State::ChunkExtension { size, length: 0 },
            (State::ChunkSize { size, digits }, _) => {
                let digit = hex_digit(byte)?;
                if digits == 16 {
                    return Err(Malformed::length("a chunk size has more than 16 digits"));
                }
                State::ChunkSize { size: size << 4 | digit, digits: digits + 1 }
            }
            (State::ChunkExtension { size, .. }, b'\r') => State::ChunkSizeLf { size },
            (State::ChunkExtension { size, length }, b'\t' | b' '..=b'~') => {
                self.extensions += 1;
                if length == MAX_CHUNK_EXTENSION || self.extensions > MAX_CHUNK_EXTENSIONS {
                    return Err(Malformed::new("the chunk extensions are too long"));
                }
                State::ChunkExtension { size, length: length + 1 }
            }
            (State::ChunkExtension { .. }, _) => {
                return Err(Malformed::length(
                    "a chunk extension has control characters or does not end in CR LF",
                ));
            }
            (State::ChunkSizeLf { size: 0 }, b'\n') => State::Trailers,
            (State::ChunkSizeLf { size }, b'\n') => State::ChunkData { left: size },
            (State::ChunkDataCr, b'\r') => State::ChunkDataLf,
            (State::ChunkDataLf, b'\n') => State::ChunkStart,
            _ => return Err(Malformed::length("a chunk does not end in CR LF")),
        };
        Ok(())
    }
}

fn take_data(left: &mut u64, buf: &mut BytesMut) -> Bytes {
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
    *left -= length as u64;
    take(buf, length)
}

/// Takes bytes off the front. Few are copied, so that the pooled buffer they came in is free for the next read; many are not.
pub fn take(buf: &mut BytesMut, length: usize) -> Bytes {
    if length <= COPIED {
        let bytes = Bytes::copy_from_slice(&buf[..length]);
        buf.advance(length);
        bytes
    } else {
        buf.split_to(length).freeze()
    }
}

/// Bytes whose copy costs less than a new read buffer.
const COPIED: usize = 4 * 1024;

fn hex_digit(byte: u8) -> Result<u64, Malformed> {
    match byte {
        b'0'..=b'9' => Ok(u64::from(byte - b'0')),
        b'a'..=b'f' => Ok(u64::from(byte - b'a') + 10),
        b'A'..=b'F' => Ok(u64::from(byte - b'A') + 10),
        _ => Err(Malformed::length("a chunk size is not a hexadecimal number directly followed by CR LF")),
    }
}

/// The trailer section with the line that ends it. `None`: it isn't whole yet.
fn take_trailers(buf: &mut BytesMut) -> Result<Option<HeaderMap>, Malformed> {
    if buf.starts_with(b"\r\n") {
        buf.advance(2);
        return Ok(Some(HeaderMap::new()));
    }
    let mut trailers = HeaderMap::new();
    let end = {
        let bytes = &buf[..buf.len().min(MAX_TRAILERS)];
        let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
        let (end, fields) = match httparse::parse_headers(bytes, &mut fields) {
            Ok(Status::Complete(parsed)) => parsed,
            Ok(Status::Partial) if bytes.len() < MAX_TRAILERS => return Ok(None),
            Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(TRAILERS_TOO_LONG),
            Err(_) => return Err(Malformed::new("a trailer is not a field")),
        };
        if has_bare_lf(&bytes[..end]) {
            return Err(Malformed::new("a trailer ends in LF without CR"));
        }
        for field in fields {
            let (name, value) = trailer(field)?;
            trailers.append(name, value);
        }
        end
    };
    buf.advance(end);
    Ok(Some(trailers))
}

const TRAILERS_TOO_LONG: Malformed =
    Malformed::too_large("the trailers are longer than 8 KiB or more than 32");

fn has_bare_lf(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'\n') || bytes.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r')
}

fn trailer(field: &httparse::Header<'_>) -> Result<(HeaderName, HeaderValue), Malformed> {
    let name = HeaderName::from_bytes(field.name.as_bytes())
        .map_err(|_| Malformed::new("a trailer is not a field"))?;
    if is_forbidden_trailer(&name) {
        return Err(Malformed::new("a trailer frames, routes or authenticates the message"));
    }
    let value = HeaderValue::from_bytes(field.value)
        .map_err(|_| Malformed::new("a trailer has control characters"))?;
    Ok((name, value))
}

/// Whether it says how a message is framed, routed or authenticated, which a trailer may not.
pub fn is_forbidden_trailer(name: &HeaderName) -> bool {
    FORBIDDEN_TRAILERS.contains(name)
}

/// Fields that change how a message is read or where it goes (RFC 9110 section 6.5.1).
static FORBIDDEN_TRAILERS: [HeaderName; 18] = [
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::HOST,
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::EXPECT,
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_RANGE,
    header::MAX_FORWARDS,
    header::LOCATION,
];
