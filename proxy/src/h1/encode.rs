//! Heads and bodies, from what they mean to bytes. Framing fields are written here and nowhere else: those in a header map are
//! left out, so that no message can leave with two lengths.

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Method, StatusCode, Uri, Version};

use super::BodyLength;

/// Writes the head of a request: the target in the form its method asks for, then Host (from `headers`, else from the target), the
/// fields but those that are the codec's own, and the framing. With `upgrade`, `connection: upgrade` and the Upgrade field go along.
pub fn encode_request_head(
    out: &mut Vec<u8>,
    method: &Method,
    target: &Uri,
    headers: &HeaderMap,
    length: BodyLength,
    upgrade: bool,
) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    let authority = target.authority().map_or("", |authority| authority.as_str());
    if *method == Method::CONNECT {
        out.extend_from_slice(authority.as_bytes());
    } else {
        out.extend_from_slice(origin_form(target).as_bytes());
    }
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(headers.get(HOST).map_or(authority.as_bytes(), |host| host.as_bytes()));
    out.extend_from_slice(b"\r\n");
    fields(out, headers, upgrade, false);
    framing(out, length);
    if upgrade && *method != Method::CONNECT {
        out.extend_from_slice(b"connection: upgrade\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

fn origin_form(target: &Uri) -> &str {
    target.path_and_query().map_or("/", |target| target.as_str())
}

/// What decides the head of a response beside its status and fields.
#[derive(Debug, Clone, Copy)]
pub struct ResponseFraming {
    /// How long the body is. `None` writes no length, except that the Content-Length of the fields stays with HEAD and 304.
    pub length: BodyLength,
    /// The version that the peer speaks.
    pub peer: Version,
    /// Whether the request was HEAD.
    pub head: bool,
    /// Whether the connection lives on.
    pub keep_alive: bool,
    /// 101: `connection: upgrade` and the Upgrade field go along.
    pub upgrade: bool,
}

/// Writes the head of a response. The version is always 1.1 (RFC 9110 section 6.2); what a 1.0 peer must see differently is.
pub fn encode_response_head(
    out: &mut Vec<u8>,
    status: StatusCode,
    headers: &HeaderMap,
    response: ResponseFraming,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
    let describes_another = response.head || status == StatusCode::NOT_MODIFIED;
    fields(out, headers, response.upgrade, describes_another && response.length == BodyLength::None);
    framing(out, response.length);
    out.extend_from_slice(match response.keep_alive {
        _ if response.upgrade => b"connection: upgrade\r\n\r\n",
        true if response.peer == Version::HTTP_10 => b"connection: keep-alive\r\n\r\n",
        true => b"\r\n",
        false => b"connection: close\r\n\r\n",
    });
}

fn fields(out: &mut Vec<u8>, headers: &HeaderMap, upgrade: bool, keep_content_length: bool) {
    for (name, value) in headers {
        let mine = name == CONTENT_LENGTH && !keep_content_length
            || name == TRANSFER_ENCODING
            || name == CONNECTION
            || name == HOST
            || name == KEEP_ALIVE
            || name == UPGRADE && !upgrade;
        if !mine {
            field(out, name, value.as_bytes());
        }
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

fn field(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    let name = name.as_str().as_bytes();
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn framing(out: &mut Vec<u8>, length: BodyLength) {
    match length {
        BodyLength::None | BodyLength::UntilClose => {}
        BodyLength::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        BodyLength::Fixed(length) => {
            out.extend_from_slice(b"content-length: ");
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Frames one body without copying it: says what to write around each piece of data.
#[derive(Debug)]
pub struct BodyEncoder(Left);

#[derive(Debug)]
enum Left {
    Bytes(u64),
    Chunks,
    Close,
}

/// What goes before and after a piece of data.
#[derive(Debug, Clone, Copy)]
pub struct ChunkFrame {
    prefix: [u8; 18],
    start: u8,
    /// To be written after the data.
    pub suffix: &'static [u8],
}

impl ChunkFrame {
    const BARE: Self = Self { prefix: [0; 18], start: 18, suffix: b"" };

    /// To be written before the data.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix[usize::from(self.start)..]
    }

    fn chunk(length: usize) -> Self {
        let mut frame = Self { prefix: *b"0000000000000000\r\n", start: 16, suffix: b"\r\n" };
        let mut left = length;
        while left > 0 {
            frame.start -= 1;
            frame.prefix[usize::from(frame.start)] = b"0123456789abcdef"[left & 15];
            left >>= 4;
        }
        frame
    }
}

/// More or less data than the head promised: the connection can't be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LengthMismatch;

impl BodyEncoder {
    /// An encoder for a body of that length.
    pub fn new(length: BodyLength) -> Self {
        Self(match length {
            BodyLength::None => Left::Bytes(0),
            BodyLength::Fixed(length) => Left::Bytes(length),
            BodyLength::Chunked => Left::Chunks,
            BodyLength::UntilClose => Left::Close,
        })
    }

    /// What to write around the next `length` bytes of data; `length` is not 0.
    pub fn frame(&mut self, length: usize) -> Result<ChunkFrame, LengthMismatch> {
        match &mut self.0 {
            Left::Bytes(left) => {
                *left = left.checked_sub(length as u64).ok_or(LengthMismatch)?;
                Ok(ChunkFrame::BARE)
            }
            Left::Chunks => Ok(ChunkFrame::chunk(length)),
            Left::Close => Ok(ChunkFrame::BARE),
        }
    }

    /// Whether the body is whole without [`BodyEncoder::finish`] writing anything.
    pub fn is_whole(&self) -> bool {
        matches!(self.0, Left::Bytes(0))
    }

    /// Ends the body. Trailers go along where chunks allow it, and are dropped elsewhere.
    pub fn finish(&mut self, out: &mut Vec<u8>, trailers: Option<&HeaderMap>) -> Result<(), LengthMismatch> {
        match self.0 {
            Left::Bytes(0) | Left::Close => Ok(()),
            Left::Bytes(_) => Err(LengthMismatch),
            Left::Chunks => {
                out.extend_from_slice(b"0\r\n");
                if let Some(trailers) = trailers {
                    fields(out, trailers, false, false);
                }
                out.extend_from_slice(b"\r\n");
                self.0 = Left::Bytes(0);
                Ok(())
            }
        }
    }
}
