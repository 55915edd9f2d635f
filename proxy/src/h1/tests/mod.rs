//! The codec, rule by rule: what is read, what is refused, that pieces don't matter, and that what is written reads the same.

mod arbitrary;
mod bodies;
mod requests;
mod responses;
mod round_trip;

use bytes::BytesMut;
use http::Method;

use super::*;

fn request(bytes: &[u8]) -> Result<Option<RequestHead>, Malformed> {
    parse_request(&mut BytesMut::from(bytes))
}

fn response_to(method: Method, bytes: &[u8]) -> Result<Option<ResponseHead>, Malformed> {
    parse_response(&mut BytesMut::from(bytes), &method)
}

fn response(bytes: &[u8]) -> Result<Option<ResponseHead>, Malformed> {
    response_to(Method::GET, bytes)
}

/// A whole body, decoded from as much as there is.
fn body(length: BodyLength, bytes: &[u8]) -> Result<(Vec<u8>, Option<http::HeaderMap>, bool), Malformed> {
    let mut buf = BytesMut::from(bytes);
    let mut decoder = BodyDecoder::new(length);
    let (mut data, mut trailers) = (Vec::new(), None);
    loop {
        match decoder.decode(&mut buf)? {
            Decoded::Data(piece) => data.extend_from_slice(&piece),
            Decoded::Trailers(fields) => trailers = Some(fields),
            Decoded::End => return Ok((data, trailers, true)),
            Decoded::NeedMore => return Ok((data, trailers, false)),
        }
    }
}
