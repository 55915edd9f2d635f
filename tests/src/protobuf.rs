//! Protocol buffers as bytes: enough to play a gRPC service that knows nothing of the proxy's own messages.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};

use crate::{App, Seen};

/// A message being written.
#[derive(Debug, Clone, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// With a number.
    pub fn number(mut self, tag: u32, value: u64) -> Self {
        self.varint(u64::from(tag) << 3);
        self.varint(value);
        self
    }

    /// With a text.
    pub fn text(self, tag: u32, text: &str) -> Self {
        self.bytes(tag, text.as_bytes())
    }

    /// With a message in it.
    pub fn message(self, tag: u32, message: Self) -> Self {
        self.bytes(tag, &message.0)
    }

    /// With bytes.
    pub fn bytes(mut self, tag: u32, bytes: &[u8]) -> Self {
        self.varint(u64::from(tag) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    /// Behind the flag and length that gRPC puts before a message.
    pub fn framed(&self) -> Bytes {
        let mut framed = BytesMut::with_capacity(5 + self.0.len());
        framed.put_u8(0);
        framed.put_u32(self.0.len() as u32);
        framed.put_slice(&self.0);
        framed.freeze()
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// The fields of a message that have one tag, each as its bytes; numbers are left out.
pub fn fields(mut message: &[u8], tag: u32) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        match key & 7 {
            0 => drop(varint(&mut message)),
            1 => message = &message[8..],
            2 => {
                let length = varint(&mut message) as usize;
                let (bytes, rest) = message.split_at(length);
                if key >> 3 == u64::from(tag) {
                    found.push(bytes);
                }
                message = rest;
            }
            5 => message = &message[4..],
            other => panic!("wire type {other}"),
        }
    }
    found
}

/// The text at a path of tags, or nothing.
pub fn text(message: &[u8], path: &[u32]) -> String {
    let mut at = message;
    for tag in path {
        match fields(at, *tag).first() {
            Some(bytes) => at = bytes,
            None => return String::new(),
        }
    }
    String::from_utf8(at.to_vec()).unwrap()
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
        shift += 7;
    }
}

impl App {
    /// gRPC over HTTP/2: answers each question with a message, and `grpc-status: 0` behind it.
    pub async fn grpc(answer: impl Fn(&[u8]) -> Message + Send + Sync + Clone + 'static) -> Self {
        Self::answering_with(move |seen| {
            let body = answer(question(seen)).framed();
            let trailers =
                HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
            (grpc(body), Some(trailers))
        })
        .await
    }
}

/// A response of gRPC with this body.
pub fn grpc(body: Bytes) -> Response<Bytes> {
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

/// The message of a unary question.
pub fn question(seen: &Seen) -> &[u8] {
    assert_eq!(seen.head.headers["content-type"], "application/grpc");
    assert_eq!(seen.head.headers["te"], "trailers");
    assert_eq!(seen.body[..5], [&[0][..], &(seen.body.len() as u32 - 5).to_be_bytes()].concat());
    &seen.body[5..]
}
