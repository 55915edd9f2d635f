//! Bodies: data, chunks, trailers, and every rule that refuses one.

use super::*;

#[test]
fn a_fixed_body_ends_where_it_should() {
    let mut buf = BytesMut::from(&b"helloNEXT"[..]);
    let mut decoder = BodyDecoder::new(BodyLength::Fixed(5));
    assert_eq!(decoder.left(), Some(5));
    assert!(matches!(decoder.decode(&mut buf), Ok(Decoded::Data(data)) if data == "hello"));
    assert!(decoder.is_done());
    assert!(matches!(decoder.decode(&mut buf), Ok(Decoded::End)));
    assert_eq!(&buf[..], b"NEXT");
}

#[test]
fn an_empty_body_needs_no_byte() {
    for length in [BodyLength::None, BodyLength::Fixed(0)] {
        assert!(BodyDecoder::new(length).is_done());
        assert_eq!(body(length, b"NEXT").unwrap(), (vec![], None, true));
    }
}

#[test]
fn chunked_bodies() {
    let long = format!("{:x}\r\n{}\r\n0\r\n\r\n", 5000, "y".repeat(5000));
    let extension = format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(MAX_CHUNK_EXTENSION));
    let cases: &[(&str, &str)] = &[
        ("0\r\n\r\n", ""),
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("5\r\nhello\r\n06\r\n world\r\n000\r\n\r\n", "hello world"),
        ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        ("a;name=value\r\n0123456789\r\n0;last\r\n\r\n", "0123456789"),
        ("1;a=\"b\tc\"\r\nx\r\n0\r\n\r\n", "x"),
        ("0000000000000001\r\nx\r\n0\r\n\r\n", "x"),
        ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
        (&long, &"y".repeat(5000)),
        (&extension, "x"),
    ];
    for (bytes, data) in cases {
        let decoded = body(BodyLength::Chunked, bytes.as_bytes()).unwrap();
        assert_eq!(decoded, (data.as_bytes().to_vec(), None, true), "{bytes:?}");
    }
}

#[test]
fn refused_chunks() {
    let long_extension = format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(MAX_CHUNK_EXTENSION + 1));
    let many_extensions = format!("1;{}\r\nx\r\n", "e".repeat(1000)).repeat(17);
    let refused = [
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\t\r\nhello\r\n0\r\n\r\n",
        "5 ;a\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        ";a\r\nhello\r\n0\r\n\r\n",
        "10000000000000000\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5;a\rhello\r\n0\r\n\r\n",
        "5;a\0\r\nhello\r\n0\r\n\r\n",
        "5;\u{e9}\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        &long_extension,
        &many_extensions,
    ];
    for bytes in refused {
        assert!(body(BodyLength::Chunked, bytes.as_bytes()).is_err(), "{bytes:?}");
    }
}

#[test]
fn a_refused_body_never_ends() {
    for bytes in ["5\r\nhelloX\r\n0\r\n\r\n", "x", "0\r\nHost: a\r\n\r\n"] {
        let mut buf = BytesMut::from(bytes);
        let mut decoder = BodyDecoder::new(BodyLength::Chunked);
        while decoder.decode(&mut buf).is_ok() {}
        assert!(
            !decoder.is_done() && decoder.decode(&mut buf).is_err() && decoder.eof().is_err(),
            "{bytes:?}"
        );
    }
}

#[test]
fn trailers() {
    let (data, trailers, ended) =
        body(BodyLength::Chunked, b"1\r\nx\r\n0\r\nGrpc-Status: 0\r\nA: 1\r\nA: 2\r\n\r\nNEXT").unwrap();
    let trailers = trailers.unwrap();
    assert_eq!((data.as_slice(), ended), (&b"x"[..], true));
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(trailers.get_all("a").iter().count(), 2);

    let long = format!("0\r\nx: {}\r\n\r\n", "v".repeat(MAX_TRAILERS));
    let many = format!("0\r\n{}\r\n", "x: y\r\n".repeat(MAX_TRAILER_FIELDS + 1));
    let refused = [
        "0\r\nContent-Length: 5\r\n\r\n",
        "0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\nHost: a\r\n\r\n",
        "0\r\nAuthorization: a\r\n\r\n",
        "0\r\nConnection: close\r\n\r\n",
        "0\r\nA: 1\n\r\n",
        "0\r\nA: 1\r\n\n",
        "0\r\nA : 1\r\n\r\n",
        "0\r\nA: 1\r\n folded\r\n\r\n",
        "0\r\n A: 1\r\n\r\n",
        "0\r\nA: \0\r\n\r\n",
        "0\r\nGET / HTTP/1.1\r\n\r\n",
        &long,
        &many,
    ];
    for bytes in refused {
        assert!(body(BodyLength::Chunked, bytes.as_bytes()).is_err(), "{bytes:?}");
    }
}

#[test]
fn a_connection_that_ends() {
    for (length, sent, fine) in [
        (BodyLength::UntilClose, "abc", true),
        (BodyLength::Fixed(3), "abc", true),
        (BodyLength::Fixed(4), "abc", false),
        (BodyLength::Chunked, "3\r\nabc\r\n", false),
        (BodyLength::Chunked, "3\r\nabc\r\n0\r\n", false),
        (BodyLength::Chunked, "3\r\nabc\r\n0\r\n\r\n", true),
    ] {
        let mut buf = BytesMut::from(sent);
        let mut decoder = BodyDecoder::new(length);
        while matches!(decoder.decode(&mut buf).unwrap(), Decoded::Data(_)) {}
        assert_eq!(decoder.eof().is_ok(), fine, "{length:?} {sent:?}");
    }
}

#[test]
fn an_encoder_keeps_its_promise() {
    let mut out = Vec::new();
    let mut fixed = BodyEncoder::new(BodyLength::Fixed(5));
    assert!(fixed.frame(3).is_ok() && !fixed.is_whole());
    assert_eq!(fixed.finish(&mut out, None), Err(LengthMismatch));
    assert_eq!(fixed.frame(3).unwrap_err(), LengthMismatch);
    assert!(fixed.frame(2).is_ok() && fixed.is_whole());
    assert_eq!(BodyEncoder::new(BodyLength::None).frame(1).unwrap_err(), LengthMismatch);
    assert!(out.is_empty());

    let mut chunked = BodyEncoder::new(BodyLength::Chunked);
    for (length, prefix) in [(1, "1\r\n"), (0x1f, "1f\r\n"), (usize::MAX, "ffffffffffffffff\r\n")] {
        let frame = chunked.frame(length).unwrap();
        assert_eq!((frame.prefix(), frame.suffix), (prefix.as_bytes(), &b"\r\n"[..]));
    }
    assert!(!chunked.is_whole());
    chunked.finish(&mut out, None).unwrap();
    assert!(chunked.is_whole());
    assert_eq!(out, b"0\r\n\r\n");
}
