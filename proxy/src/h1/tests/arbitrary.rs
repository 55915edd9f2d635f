//! Arbitrary bytes in arbitrary pieces: never a panic, never another meaning because of where a piece ended.

use proptest::prelude::*;

use super::*;

/// What a connection's bytes mean: messages in order, and the error that ends them.
#[derive(Debug, PartialEq, Default)]
struct Meaning {
    messages: Vec<(String, BodyLength, Vec<u8>, Option<usize>)>,
    error: Option<Malformed>,
    half: bool,
}

/// Reads a stream of requests that arrives in pieces, as the server does.
fn read(pieces: &[&[u8]]) -> Meaning {
    let mut meaning = Meaning::default();
    let mut buf = BytesMut::new();
    let mut progress = HeadProgress::default();
    let mut open: Option<BodyDecoder> = None;
    for piece in pieces {
        buf.extend_from_slice(piece);
        if let Err(error) = advance(&mut meaning, &mut buf, &mut progress, &mut open) {
            meaning.error = Some(error);
            return meaning;
        }
    }
    // The last bytes may not have been worth a try; the end is.
    if open.is_none() {
        match parse_request(&mut buf) {
            Err(error) => meaning.error = Some(error),
            Ok(head) => assert!(head.is_none(), "a whole head was not tried"),
        }
    }
    meaning.half = meaning.error.is_none() && (open.is_some() || !buf.is_empty());
    meaning
}

fn advance(
    meaning: &mut Meaning,
    buf: &mut BytesMut,
    progress: &mut HeadProgress,
    open: &mut Option<BodyDecoder>,
) -> Result<(), Malformed> {
    loop {
        if let Some(decoder) = open {
            let (.., data, trailers) = meaning.messages.last_mut().unwrap();
            match decoder.decode(buf)? {
                Decoded::Data(piece) => data.extend_from_slice(&piece),
                Decoded::Trailers(fields) => *trailers = Some(fields.len()),
                Decoded::NeedMore => return Ok(()),
                Decoded::End => *open = None,
            }
            continue;
        }
        if !progress.worth_parsing(buf) {
            return Ok(());
        }
        let Some(head) = parse_request(buf)? else { return Ok(()) };
        *progress = HeadProgress::default();
        let facts = format!("{} {} {:?} {:?}", head.method, head.target, head.headers, head.keep_alive);
        meaning.messages.push((facts, head.length, Vec::new(), None));
        *open = Some(BodyDecoder::new(head.length));
    }
}

/// Bytes that get past the first checks more often than noise does.
fn nearly_http() -> impl Strategy<Value = Vec<u8>> {
    const TOKENS: [&[u8]; 22] = [
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"POST /p HTTP/1.1\r\nHost: a\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
        b"X: y\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"abc",
        b"3\r\nabc\r\n",
        b"1;x=y\r\nz\r\n",
        b"0\r\n\r\n",
        b"0\r\nT: v\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"\0",
        b"\xff",
        b":",
    ];
    let token = proptest::sample::select(&TOKENS[..]);
    proptest::collection::vec(token, 0..24).prop_map(|tokens| tokens.concat())
}

fn pieces(bytes: &[u8], cuts: Vec<usize>) -> Vec<&[u8]> {
    let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn splitting_never_changes_the_meaning(bytes in nearly_http(), cuts in proptest::collection::vec(any::<usize>(), 0..12)) {
        let whole = read(&[&bytes]);
        prop_assert_eq!(&whole, &read(&pieces(&bytes, cuts)));
        let single: Vec<_> = bytes.chunks(1).collect();
        prop_assert_eq!(&whole, &read(&single));
    }

    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), fixed in 0u64..200) {
        let _ = read(&[&bytes]);
        let _ = response(&bytes);
        for length in [BodyLength::Fixed(fixed), BodyLength::Chunked, BodyLength::UntilClose] {
            if let Ok((data, ..)) = body(length, &bytes) {
                prop_assert!(data.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn accepted_requests_survive_a_hop(bytes in nearly_http()) {
        let Ok(Some(head)) = request(&bytes) else { return Ok(()) };
        let mut out = Vec::new();
        encode_request_head(&mut out, &head.method, &head.target, &head.headers, head.length, head.upgrade);
        let again = request(&out).unwrap().unwrap();
        prop_assert_eq!((again.method, again.length), (head.method, head.length));
    }
}

/// Messages that have smuggled requests past real proxies: each is refused, or holds exactly the stated number of requests.
#[test]
fn smuggling_corpus() {
    let corpus: &[(&str, Option<usize>)] = &[
        // CL.TE and TE.CL
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED",
            None,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nSMUGGLED\r\n0\r\n\r\n",
            None,
        ),
        // TE.TE obfuscations
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", None),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", None),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
            None,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            None,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", None),
        ("POST / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", None),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", None),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", None),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer\x00-Encoding: chunked\r\n\r\n0\r\n\r\n", None),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", None),
        // Chunks
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\nxx\r\n0\r\n\r\n", None),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;\nxx\r\n0\r\n\r\n", None),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxx0\r\n\r\n", None),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n100000000000000000\r\nxx\r\n0\r\n\r\n",
            None,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 9\r\n\r\n",
            None,
        ),
        // Lengths
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 44\r\n\r\nGET / HTTP/1.1\r\n",
            None,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6 6\r\n\r\nabcdef", None),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +6\r\n\r\nabcdef", None),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length\r\n: 6\r\n\r\nabcdef", None),
        // Hosts and targets
        ("GET http://evil/ HTTP/1.1\r\nHost: good\r\n\r\n", None),
        ("GET / HTTP/1.1\r\nHost: good\r\nHost: evil\r\n\r\n", None),
        ("GET / HTTP/1.1\r\nHost: good\r\n\tevil: x\r\n\r\n", None),
        // CL.0: the body is the body, whatever it looks like.
        (
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 27\r\n\r\nGET /admin HTTP/1.1\r\nX: y\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            Some(2),
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nGET /\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            Some(2),
        ),
    ];
    for (text, requests) in corpus {
        let meaning = read(&[text.as_bytes()]);
        match requests {
            None => assert!(meaning.error.is_some(), "{text:?} was read as {meaning:?}"),
            Some(count) => assert_eq!((meaning.messages.len(), &meaning.error), (*count, &None), "{text:?}"),
        }
    }
}

/// Every single-byte change of a few good streams: no panic, and the same meaning in one piece as in many.
#[test]
fn mutated_corpus() {
    let seeds: [&[u8]; 3] = [
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: b\r\n\r\n",
        b"PUT /b HTTP/1.1\r\nHost: [::1]:80\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nT: v\r\n\r\n",
        b"GET http://a/ HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    ];
    let bytes = [0, b'\t', b'\n', b'\r', b' ', b',', b'0', b':', b';', b'A', b'#', 0x7f, 0x80, 0xff];
    for seed in seeds {
        for at in 0..seed.len() {
            for byte in bytes {
                let mut changed = seed.to_vec();
                changed[at] = byte;
                let single: Vec<_> = changed.chunks(1).collect();
                assert_eq!(read(&[&changed]), read(&single), "{}", changed.escape_ascii());
            }
        }
    }
}
