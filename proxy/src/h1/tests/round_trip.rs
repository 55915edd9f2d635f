//! What is written reads the same.

use http::{HeaderMap, HeaderValue, StatusCode, Uri, Version};

use super::*;

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(*name, HeaderValue::from_static(value));
    }
    map
}

const GETS: ResponseFraming = ResponseFraming {
    length: BodyLength::None,
    peer: Version::HTTP_11,
    head: false,
    keep_alive: true,
    upgrade: false,
};

fn request_text(
    method: Method,
    target: &'static str,
    fields: &HeaderMap,
    length: BodyLength,
    upgrade: bool,
) -> String {
    let mut out = Vec::new();
    encode_request_head(&mut out, &method, &Uri::from_static(target), fields, length, upgrade);
    String::from_utf8(out).unwrap()
}

fn response_text(status: u16, fields: &HeaderMap, framing: ResponseFraming) -> String {
    let mut out = Vec::new();
    encode_response_head(&mut out, StatusCode::from_u16(status).unwrap(), fields, framing);
    String::from_utf8(out).unwrap()
}

#[test]
fn request_heads() {
    let none = HeaderMap::new();
    let cases = [
        (Method::GET, "http://a/b?c", BodyLength::None, "GET /b?c HTTP/1.1\r\nhost: a\r\n\r\n"),
        (Method::GET, "http://a", BodyLength::None, "GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
        (Method::OPTIONS, "*", BodyLength::None, "OPTIONS * HTTP/1.1\r\nhost: \r\n\r\n"),
        (Method::CONNECT, "a:443", BodyLength::None, "CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n"),
        (
            Method::POST,
            "http://a/",
            BodyLength::Fixed(7),
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 7\r\n\r\n",
        ),
        (
            Method::POST,
            "http://a/",
            BodyLength::Chunked,
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
        ),
    ];
    for (method, target, length, text) in cases {
        assert_eq!(request_text(method, target, &none, length, false), text);
    }
}

#[test]
fn framing_fields_are_the_codecs_own() {
    let fields = headers(&[
        ("host", "right"),
        ("content-length", "1"),
        ("transfer-encoding", "chunked"),
        ("connection", "x"),
        ("keep-alive", "5"),
        ("upgrade", "websocket"),
        ("kept", "1"),
    ]);
    assert_eq!(
        request_text(Method::GET, "http://wrong/", &fields, BodyLength::Fixed(2), false),
        "GET / HTTP/1.1\r\nhost: right\r\nkept: 1\r\ncontent-length: 2\r\n\r\n"
    );
    assert_eq!(
        request_text(Method::GET, "/", &fields, BodyLength::None, true),
        "GET / HTTP/1.1\r\nhost: right\r\nupgrade: websocket\r\nkept: 1\r\nconnection: upgrade\r\n\r\n"
    );
    assert_eq!(
        response_text(200, &fields, ResponseFraming { length: BodyLength::Fixed(3), ..GETS }),
        "HTTP/1.1 200 OK\r\nkept: 1\r\ncontent-length: 3\r\n\r\n"
    );
    assert_eq!(
        response_text(101, &fields, ResponseFraming { upgrade: true, ..GETS }),
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nkept: 1\r\nconnection: upgrade\r\n\r\n"
    );
}

#[test]
fn response_heads() {
    let none = HeaderMap::new();
    let length = headers(&[("content-length", "99")]);
    let fixed = ResponseFraming { length: BodyLength::Fixed(1), ..GETS };
    let cases = [
        (200, &none, fixed, "200 OK\r\ncontent-length: 1\r\n\r\n"),
        (599, &none, fixed, "599 \r\ncontent-length: 1\r\n\r\n"),
        (204, &length, GETS, "204 No Content\r\n\r\n"),
        (304, &length, GETS, "304 Not Modified\r\ncontent-length: 99\r\n\r\n"),
        (200, &length, ResponseFraming { head: true, ..GETS }, "200 OK\r\ncontent-length: 99\r\n\r\n"),
        (
            200,
            &none,
            ResponseFraming { length: BodyLength::UntilClose, keep_alive: false, ..GETS },
            "200 OK\r\nconnection: close\r\n\r\n",
        ),
        (
            200,
            &none,
            ResponseFraming { peer: Version::HTTP_10, ..fixed },
            "200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\n",
        ),
    ];
    for (status, fields, framing, text) in cases {
        assert_eq!(response_text(status, fields, framing), format!("HTTP/1.1 {text}"));
    }
}

#[test]
fn what_is_written_is_read() {
    let mut fields = headers(&[("a", "1"), ("a", "2"), ("empty", "")]);
    fields.insert("x", HeaderValue::from_bytes("caf\u{e9}".as_bytes()).unwrap());
    let mut expected = fields.clone();
    expected.insert("host", HeaderValue::from_static("h:1"));
    for length in [BodyLength::None, BodyLength::Fixed(0), BodyLength::Fixed(u64::MAX), BodyLength::Chunked] {
        let text = request_text(Method::PUT, "http://h:1/p?q", &fields, length, false);
        let mut head = request(text.as_bytes()).unwrap().unwrap();
        head.headers.remove("content-length");
        head.headers.remove("transfer-encoding");
        assert_eq!((head.method, head.target, head.length), (Method::PUT, Uri::from_static("/p?q"), length));
        assert_eq!(head.headers, expected);
    }
    for length in [BodyLength::Fixed(0), BodyLength::Fixed(9), BodyLength::Chunked, BodyLength::UntilClose] {
        for keep_alive in [true, false] {
            let text = response_text(200, &fields, ResponseFraming { length, keep_alive, ..GETS });
            let head = response(text.as_bytes()).unwrap().unwrap();
            assert_eq!((head.status, head.length), (StatusCode::OK, length));
            assert_eq!(head.keep_alive, keep_alive && length != BodyLength::UntilClose);
        }
    }
}

#[test]
fn chunks_with_trailers() {
    let mut out = Vec::new();
    let mut encoder = BodyEncoder::new(BodyLength::Chunked);
    for data in ["hello", " ", "world"] {
        let frame = encoder.frame(data.len()).unwrap();
        out.extend_from_slice(frame.prefix());
        out.extend_from_slice(data.as_bytes());
        out.extend_from_slice(frame.suffix);
    }
    let sent = headers(&[("grpc-status", "0"), ("content-length", "666")]);
    encoder.finish(&mut out, Some(&sent)).unwrap();
    let (data, trailers, ended) = body(BodyLength::Chunked, &out).unwrap();
    assert_eq!((data.as_slice(), ended), (&b"hello world"[..], true));
    assert_eq!(trailers.unwrap(), headers(&[("grpc-status", "0")]));
}
