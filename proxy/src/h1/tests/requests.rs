//! Requests: the accepted forms, and every rule that refuses one.

use super::*;
use crate::decision::Reason::{AmbiguousLength, HeaderTooLarge, MalformedRequest};

#[test]
fn a_request_is_read_and_consumed() {
    let mut buf = BytesMut::from(&b"POST /a?b=c HTTP/1.1\r\nHost: x:80\r\nX-One:  1 \r\nX-One: 2\r\nEmpty:\r\ncontent-length: 3\r\n\r\nabcGET"[..]);
    let head = parse_request(&mut buf).unwrap().unwrap();
    assert_eq!(head.method, Method::POST);
    assert_eq!(head.target, "/a?b=c");
    assert_eq!(head.version, http::Version::HTTP_11);
    assert_eq!(head.length, BodyLength::Fixed(3));
    assert_eq!(head.headers.get_all("x-one").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(head.headers["empty"], "");
    assert!(head.keep_alive && !head.upgrade && !head.expect_continue);
    assert_eq!(&buf[..], b"abcGET");
}

#[test]
fn values_share_one_copy_and_leave_the_buffer_free() {
    let bytes = &b"GET / HTTP/1.1\r\nHost: x\r\nA: value\r\nB: other\r\n\r\n"[..];
    let mut buf = BytesMut::with_capacity(4096);
    buf.extend_from_slice(bytes);
    let head = parse_request(&mut buf).unwrap().unwrap();
    let at = |name| head.headers[name].as_bytes().as_ptr() as usize;
    assert_eq!(at("b") - at("a"), "value\r\nB: ".len());
    assert!(buf.try_reclaim(4096), "nothing of the head refers to the buffer");
}

#[test]
fn accepted_requests() {
    let accepted: &[(&str, BodyLength)] = &[
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", BodyLength::None),
        ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BodyLength::None),
        ("GET / HTTP/1.0\r\n\r\n", BodyLength::None),
        ("GET http://a/x HTTP/1.0\r\n\r\n", BodyLength::None),
        ("GET HTTP://A:80/x HTTP/1.1\r\nHost: a:80\r\n\r\n", BodyLength::None),
        ("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", BodyLength::None),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", BodyLength::None),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", BodyLength::None),
        ("CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n", BodyLength::None),
        ("BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n", BodyLength::None),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", BodyLength::Fixed(0)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 007\r\n\r\n", BodyLength::Fixed(7)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", BodyLength::Chunked),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: \tb\tc\t \r\n\r\n", BodyLength::None),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: caf\u{e9}\r\n\r\n", BodyLength::None),
        ("GET //b HTTP/1.1\r\nHost: a\r\n\r\n", BodyLength::None),
    ];
    for (text, length) in accepted {
        let head = request(text.as_bytes()).unwrap_or_else(|error| panic!("{text:?}: {error}")).unwrap();
        assert_eq!(head.length, *length, "{text:?}");
    }
}

#[test]
fn refused_requests() {
    let refused: &[(&[u8], Reason)] = &[
        // Length, read two ways.
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            AmbiguousLength,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            AmbiguousLength,
        ),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \xb2\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 000000000000000000005\r\n\r\n", AmbiguousLength),
        // Transfer codings.
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", AmbiguousLength),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            AmbiguousLength,
        ),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", AmbiguousLength),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", AmbiguousLength),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 1\r\n\r\n", AmbiguousLength),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nTransfer-Encoding: chunked\r\n\r\n", AmbiguousLength),
        // Line ends and white space.
        (b"GET / HTTP/1.1\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\nY: c\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.0\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.0\r\n\n", MalformedRequest),
        (b"GET / HTTP/1.0\n\n", MalformedRequest),
        (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\rHost: a\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", MalformedRequest),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", MalformedRequest),
        // Characters.
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x7fc\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX(Y): b\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\xc3\xa9: b\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\nnocolon\r\n\r\n", MalformedRequest),
        (b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"G\xc3\x89T / HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"/ HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        // Versions.
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", MalformedRequest),
        (b"GET / http/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET /\r\n\r\n", MalformedRequest),
        // Targets.
        (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", MalformedRequest),
        (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET http://u@a/ HTTP/1.1\r\nHost: u@a\r\n\r\n", MalformedRequest),
        (b"GET http://a\\b/ HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"CONNECT [::1] HTTP/1.1\r\nHost: [::1]\r\n\r\n", MalformedRequest),
        (b"CONNECT http://a:1/ HTTP/1.1\r\nHost: a:1\r\n\r\n", MalformedRequest),
        (b"CONNECT a:443/x HTTP/1.1\r\nHost: a:443\r\n\r\n", MalformedRequest),
        // Hosts.
        (b"GET / HTTP/1.1\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", MalformedRequest),
        (b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", MalformedRequest),
        (b"GET http://a/ HTTP/1.1\r\n\r\n", MalformedRequest),
        (b"GET http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n", MalformedRequest),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", MalformedRequest),
        // Connection options that would take away what frames or routes the message; expectations that can't be met.
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, Content-Length\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n", MalformedRequest),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n", MalformedRequest),
    ];
    for (bytes, reason) in refused {
        match request(bytes) {
            Err(malformed) => assert_eq!(malformed.reason, *reason, "{}", bytes.escape_ascii()),
            Ok(head) => panic!("{} was read as {head:?}", bytes.escape_ascii()),
        }
    }
}

#[test]
fn nothing_is_taken_of_half_a_head() {
    let whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for end in 0..whole.len() {
        let mut buf = BytesMut::from(&whole[..end]);
        assert!(parse_request(&mut buf).unwrap().is_none(), "{end}");
        assert_eq!(buf.len(), end);
    }
}

#[test]
fn limits() {
    let with_fields = |count: usize| {
        let mut text = String::from("GET / HTTP/1.1\r\nHost: a\r\n");
        (1..count).for_each(|n| text.push_str(&format!("x-{n}: {n}\r\n")));
        text + "\r\n"
    };
    assert_eq!(request(with_fields(MAX_HEADERS).as_bytes()).unwrap().unwrap().headers.len(), MAX_HEADERS);
    assert_eq!(request(with_fields(MAX_HEADERS + 1).as_bytes()).unwrap_err().reason, HeaderTooLarge);

    let of_length = |length: usize| {
        let start = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
        format!("{start}{}\r\n\r\n", "x".repeat(length - start.len() - 4))
    };
    assert!(request(of_length(MAX_HEAD).as_bytes()).unwrap().is_some());
    assert_eq!(request(of_length(MAX_HEAD + 1).as_bytes()).unwrap_err().reason, HeaderTooLarge);
    let target = format!("GET /{} HTTP/1.1\r\n", "x".repeat(MAX_HEAD));
    assert_eq!(request(target.as_bytes()).unwrap_err().reason, HeaderTooLarge);
}

#[test]
fn keep_alive_upgrade_and_expectation() {
    // (after the request line and Host, keep-alive, upgrade, expect)
    let cases = [
        ("HTTP/1.1", "", true, false, false),
        ("HTTP/1.1", "Connection: close\r\n", false, false, false),
        ("HTTP/1.1", "Connection: keep-alive, CLOSE\r\n", false, false, false),
        ("HTTP/1.1", "Connection: x\r\nConnection: close\r\n", false, false, false),
        ("HTTP/1.0", "", false, false, false),
        ("HTTP/1.0", "Connection: Keep-Alive\r\n", true, false, false),
        ("HTTP/1.0", "Connection: keep-alive, close\r\n", false, false, false),
        ("HTTP/1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n", true, true, false),
        ("HTTP/1.1", "Connection: keep-alive,upgrade\r\nUpgrade: websocket\r\n", true, true, false),
        ("HTTP/1.1", "Upgrade: websocket\r\n", true, false, false),
        ("HTTP/1.1", "Connection: upgrade\r\n", true, false, false),
        ("HTTP/1.0", "Connection: upgrade\r\nUpgrade: websocket\r\n", false, false, false),
        ("HTTP/1.1", "Expect: 100-Continue\r\n", true, false, true),
        ("HTTP/1.0", "Expect: 100-continue\r\n", false, false, false),
    ];
    for (version, fields, keep_alive, upgrade, expect) in cases {
        let text = format!("GET / {version}\r\nHost: a\r\n{fields}\r\n");
        let head = request(text.as_bytes()).unwrap().unwrap();
        assert_eq!(
            (head.keep_alive, head.upgrade, head.expect_continue),
            (keep_alive, upgrade, expect),
            "{text:?}"
        );
    }
    assert!(request(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n").unwrap().unwrap().upgrade);
}

#[test]
fn a_head_that_drips_is_parsed_rarely() {
    let whole = [&b"GET / HTTP/1.1\r\nHost: a\r\nX: "[..], &[b'x'; 20_000], b"\r\n\r\n"].concat();
    let mut progress = HeadProgress::default();
    let parsed: Vec<_> = (1..=whole.len()).filter(|&end| progress.worth_parsing(&whole[..end])).collect();
    assert!(parsed.len() < 20, "{parsed:?}");
    assert_eq!(parsed.last(), Some(&whole.len()));
}
