//! Responses: how long each is, and every rule that refuses one.

use super::*;

#[test]
fn lengths() {
    use BodyLength::{Chunked, Fixed, None, UntilClose};
    // (request, after `HTTP/1.`, length, keep-alive, upgrade)
    let cases: &[(Method, &str, BodyLength, bool, bool)] = &[
        (Method::GET, "1 200 OK\r\nContent-Length: 5", Fixed(5), true, false),
        (Method::GET, "1 200 OK\r\nContent-Length: 0", Fixed(0), true, false),
        (Method::GET, "1 200\r\nContent-Length: 5", Fixed(5), true, false),
        (Method::GET, "1 200 OK\r\nTransfer-Encoding: chunked", Chunked, true, false),
        (Method::GET, "1 200 OK\r\nServer: x", UntilClose, false, false),
        (Method::GET, "0 200 OK\r\nContent-Length: 5", Fixed(5), false, false),
        (Method::GET, "0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive", Fixed(5), true, false),
        (Method::GET, "1 200 OK\r\nContent-Length: 5\r\nConnection: close", Fixed(5), false, false),
        (Method::GET, "1 204 No Content\r\nX: y", None, true, false),
        (Method::GET, "1 204 No Content\r\nContent-Length: 0", None, true, false),
        (Method::GET, "1 304 Not Modified\r\nContent-Length: 99", None, true, false),
        (Method::HEAD, "1 200 OK\r\nContent-Length: 99", None, true, false),
        (Method::HEAD, "1 200 OK\r\nTransfer-Encoding: chunked", None, true, false),
        (Method::HEAD, "1 200 OK\r\nX: y", None, true, false),
        (Method::GET, "1 100 Continue\r\nX: y", None, true, false),
        (Method::GET, "1 103 Early Hints\r\nLink: y", None, true, false),
        (Method::GET, "1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x", None, true, true),
        (Method::CONNECT, "1 200 OK\r\nX: y", None, true, true),
        (Method::CONNECT, "1 200 OK\r\nContent-Length: 0", None, true, true),
        (Method::CONNECT, "1 403 Forbidden\r\nContent-Length: 2", Fixed(2), true, false),
        (Method::GET, "1 999 \r\nContent-Length: 1", Fixed(1), true, false),
    ];
    for (method, text, length, keep_alive, upgrade) in cases {
        let bytes = format!("HTTP/1.{text}\r\n\r\n");
        let head = response_to(method.clone(), bytes.as_bytes())
            .unwrap_or_else(|error| panic!("{bytes:?}: {error}"))
            .unwrap();
        assert_eq!(
            (head.length, head.keep_alive, head.upgrade),
            (*length, *keep_alive, *upgrade),
            "{bytes:?}"
        );
    }
}

#[test]
fn refused_responses() {
    let refused: &[&[u8]] = &[
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n X: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: content-length\r\n\r\n",
    ];
    for bytes in refused {
        assert!(response(bytes).is_err(), "{}: {:?}", bytes.escape_ascii(), response(bytes));
    }
}

#[test]
fn a_response_body_stays_in_the_buffer() {
    let mut buf = BytesMut::from(&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP"[..]);
    let head = parse_response(&mut buf, &Method::GET).unwrap().unwrap();
    assert_eq!(head.headers["content-length"], "2");
    assert_eq!(&buf[..], b"hiHTTP");
}
