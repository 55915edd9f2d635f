//! The HTTP/1 codec: strict on both sides, without I/O, shared by the server and the upstream client.
//!
//! Whatever two readers could understand differently is refused and never repaired, in requests and in responses
//! alike: a proxy that guesses is how requests get smuggled past its policy (RFC 9112 section 11.2).

mod body;
pub mod buffers;
mod encode;
mod head;
mod target;
#[cfg(test)]
mod tests;
mod timeouts;

use std::fmt;

use http::HeaderValue;

pub use body::{BodyDecoder, Decoded, is_forbidden_trailer, take};
pub use encode::{
    BodyEncoder, ChunkFrame, LengthMismatch, ResponseFraming, encode_request_head, encode_response_head,
};
pub use head::{HeadProgress, RequestHead, ResponseHead, parse_request, parse_response};
pub use timeouts::Timeouts;

use crate::decision::Reason;

/// Longest head, in bytes: Envoy's default.
pub const MAX_HEAD: usize = 60 * 1024;
/// Most header fields in a head: Envoy's default.
pub const MAX_HEADERS: usize = 100;
/// Longest trailer section, in bytes.
pub const MAX_TRAILERS: usize = 8 * 1024;
/// Most trailer fields.
pub const MAX_TRAILER_FIELDS: usize = 32;
/// Longest extension of one chunk, in bytes.
pub const MAX_CHUNK_EXTENSION: usize = 1024;
/// Longest extensions of one body together, in bytes.
pub const MAX_CHUNK_EXTENSIONS: usize = 16 * 1024;

/// Whether it begins or ends with a space or tab. HTTP/1 has no such values, and HTTP/2 may not: who reads it in HTTP/1 reads
/// another one (RFC 9113 section 8.2.1).
pub fn is_padded(value: &HeaderValue) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let bytes = value.as_bytes();
    blank(bytes.first()) || blank(bytes.last())
}

/// How long a body is, as its head says (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none, and no length is stated.
    None,
    /// So many bytes; `content-length: 0` is `Fixed(0)`.
    Fixed(u64),
    /// As many as its chunks say.
    Chunked,
    /// Everything until the sender closes; responses only.
    UntilClose,
}

impl BodyLength {
    /// Whether no byte of body follows the head.
    pub const fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Fixed(0))
    }
}

/// A message that is not one, or not one with a single meaning. The connection it came on can't be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// `malformed-request`, `ambiguous-length` or `header-too-large`; for a response the caller says `bad-response`.
    pub reason: Reason,
    /// Which rule it breaks, for the operator.
    pub what: &'static str,
}

impl Malformed {
    pub(crate) const fn new(what: &'static str) -> Self {
        Self { reason: Reason::MalformedRequest, what }
    }
    pub(crate) const fn length(what: &'static str) -> Self {
        Self { reason: Reason::AmbiguousLength, what }
    }
    pub(crate) const fn too_large(what: &'static str) -> Self {
        Self { reason: Reason::HeaderTooLarge, what }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

impl std::error::Error for Malformed {}
