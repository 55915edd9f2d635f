//! Detection: a table of first flights, and the rule that how bytes arrive never changes what they are.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::super::client_hello::tests::hello;
use super::*;

const FIRST_BYTE: Duration = Duration::from_millis(100);
const HEAD: Duration = Duration::from_secs(5);

fn tls(sni: &str) -> Detected {
    Detected::Tls(Box::new(ClientHello { sni: Some(sni.into()), understood: true, ..ClientHello::default() }))
}

#[test]
fn first_flights() {
    use Detected::{Http1, Http2, Opaque};
    let table: &[(&[u8], Option<Detected>)] = &[
        (b"GET / HTTP/1.1\r\n", Some(Http1)),
        (b"GET /", Some(Http1)),
        (b"GET http://a/ HTTP/1.1\r\n", Some(Http1)),
        (b"GET hello", None),
        (b"GET", None),
        (b"GET ", None),
        (b"OPTIONS *", Some(Http1)),
        (b"CONNECT a:443", None),
        (b"CONNECT a:443 HTTP/1.1\r\n", Some(Http1)),
        (b"MKCOL /x HTTP/1.0\n", Some(Http1)),
        (b"purge-all /x HTTP/1.1\r", Some(Http1)),
        (b"purge-all /x HTTP/1.1", Some(Http1)),
        (b"purge-all /x HTTP", None),
        (b"GET\t/x", Some(Http1)),
        (b"get /x http/1.1\r\n", Some(Http1)),
        (b"\r\n\nGET / HTTP/1.1", Some(Http1)),
        (b"\r\n", None),
        (b"GET key\r\n", Some(Opaque)),
        (b"get key\r\n", Some(Opaque)),
        (b"EHLO client.example\r\n", Some(Opaque)),
        (b"PING\r\n", Some(Opaque)),
        (b"*1\r\n$4\r\nPING\r\n", Some(Opaque)),
        (b"hello", None),
        (b"hello\n", Some(Opaque)),
        (b"hello\r", None),
        // What a lenient server takes for a request.
        (b" GET / HTTP/1.1\r\n", Some(Http1)),
        (b"\t\x0b \r\n\x1cpurge-all /x HTTP/1.1\r\n", Some(Http1)),
        (b"GET\x0c/admin HTTP/1.1\r\n", Some(Http1)),
        (b"GET\x0bx\x0cHTTP/1.1\r\n", Some(Http1)),
        (b"GET\r/admin", Some(Http1)),
        (b"purge-all\r/x\rHTTP/1.1\r\n", Some(Http1)),
        (b"purge-all\x1f/x\xa0HTTP/1.1\r\n", Some(Http1)),
        (b"purge-all /\0x HTTP/1.1\r\n", Some(Http1)),
        (b" ", None),
        // What none does.
        (b"purge-all x\0 HTTP/1.1\r\n", Some(Opaque)),
        (b"\x01GET / HTTP/1.1\r\n", Some(Opaque)),
        (b"\0GET / HTTP/1.1\r\n", Some(Opaque)),
        (b"GET\0/admin HTTP/1.1\r\n", Some(Opaque)),
        // LDAP, AMQP, MQTT, SOCKS, Cassandra, MongoDB, HL7, STOMP, protobuf: from the bytes that can't wait.
        (b"0\x0c\x02", Some(Opaque)),
        (b"0 \x02", Some(Opaque)),
        (b"AMQP\0", Some(Opaque)),
        (b"\x10\x25\0\x04MQTT", Some(Opaque)),
        (b"\x10\x0c\0", Some(Opaque)),
        (b"\x05\x01\x02", Some(Opaque)),
        (b"\x04\0", Some(Opaque)),
        (b"A\x0d\0\0", Some(Opaque)),
        (b"\x0bMSH|^~\\&", Some(Opaque)),
        (b"CONNECT\n", Some(Opaque)),
        (b"\n$00000000-0000-0000-0000-000000000000\x12", Some(Opaque)),
        (b"\0\0\0\x1d\0\x12", Some(Opaque)),
        (b"PRI * HTTP/2.0", Some(Http2)),
        (b"PRI * HTTP/2", None),
        (b"PRI * HTTP/1.1\r\n", Some(Http1)),
        (b"PRI", None),
        (b"\x16", None),
        (b"\x16\x02", Some(Opaque)),
    ];
    for (bytes, expected) in table {
        assert_eq!(decide(bytes), *expected, "{:?}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(decide(&hello(Some("a.example"), &[], 0, 100)), Some(tls("a.example")));
    // A method may be long: not before all that is waited for is here it counts as one.
    assert_eq!(decide(&[b'a'; MAX_REQUEST_LINE - 1]), None);
    assert_eq!(decide(&[b'a'; MAX_REQUEST_LINE]), Some(Http1));
    let long = [&[b'a'; 100][..], b" /x HTTP/1.1\r\n"].concat();
    assert_eq!(decide(&long), Some(Http1));
    let endless = [&b"FOO "[..], &[b'a'; MAX_REQUEST_LINE], b"\n"].concat();
    assert_eq!(decide(&endless), Some(Http1));
}

#[tokio::test(start_paused = true)]
async fn a_hello_split_into_single_bytes() {
    let bytes = hello(Some("a.example"), &[], 2048, 1000);
    let (mut client, server) = duplex(1);
    let sent = bytes.clone();
    let writer = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client
    });
    let (io, detected) = detect(server, FIRST_BYTE, HEAD).await.unwrap();
    assert_eq!(detected, tls("a.example"));
    assert_eq!(io.prefix(), bytes);
    drop(writer.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_can_be_looked_at_again() {
    let (mut client, server) = duplex(64);
    let (io, detected) = detect(server, FIRST_BYTE, HEAD).await.unwrap();
    assert_eq!(detected, Detected::Silent);
    client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let (prefix, io) = io.into_parts();
    assert!(prefix.is_empty());
    let (mut io, detected) = detect(io, FIRST_BYTE, HEAD).await.unwrap();
    assert_eq!(detected, Detected::Http1);
    client.write_all(b"rest").await.unwrap();
    drop(client);
    let mut all = String::new();
    io.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "GET / HTTP/1.1\r\nrest");
}

#[tokio::test(start_paused = true)]
async fn stalled_clients() {
    for (sent, expected) in [
        (&b"hello"[..], Detected::Stalled),
        (b"PRI * HT", Detected::Stalled),
        (b"\x16\x03\x01\x02", Detected::Tls(Box::default())),
        (b"\x16", Detected::Tls(Box::default())),
    ] {
        let (mut client, server) = duplex(64);
        client.write_all(sent).await.unwrap();
        let began = Instant::now();
        let (io, detected) = detect(server, FIRST_BYTE, HEAD).await.unwrap();
        assert_eq!(detected, expected, "{sent:?}");
        assert_eq!(io.prefix(), sent);
        assert!(began.elapsed() >= HEAD);
    }
}

#[tokio::test(start_paused = true)]
async fn a_drip_does_not_extend_the_head_deadline() {
    let (mut client, server) = duplex(64);
    let drip = tokio::spawn(async move {
        while client.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let began = Instant::now();
    let (_, detected) = detect(server, FIRST_BYTE, HEAD).await.unwrap();
    assert_eq!(detected, Detected::Stalled);
    assert!(began.elapsed() < HEAD + Duration::from_secs(1));
    drip.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn clients_that_leave() {
    for (sent, expected) in [
        (&b""[..], Detected::Closed),
        (b"hello", Detected::Opaque),
        (b"\x16\x03\x01", Detected::Tls(Box::default())),
    ] {
        let (mut client, server) = duplex(64);
        client.write_all(sent).await.unwrap();
        drop(client);
        let (io, detected) = detect(server, FIRST_BYTE, HEAD).await.unwrap();
        assert_eq!(detected, expected, "{sent:?}");
        assert_eq!(io.prefix(), sent);
    }
}

/// First flights of every kind, whole or cut, sometimes with noise behind.
fn flight() -> impl Strategy<Value = Vec<u8>> {
    let request =
        "[ \r\n\x0b]{0,2}[A-Za-z]{1,9}[ \t\x0c\r]{1,2}/?[a-z/ \0]{0,20}([ \x1f]HTTP/1\\.[01])?\r?\n?"
            .prop_map(String::into_bytes);
    let known = prop_oneof![
        Just("GET / HTTP/1.1\r\n\r\n"),
        Just("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        Just("\r\n\r\n")
    ]
    .prop_map(|text| text.as_bytes().to_vec());
    let tls = (0_usize..400, 1_usize..500)
        .prop_map(|(padding, record)| hello(Some("a.example"), &["h2"], padding, record));
    let noise = proptest::collection::vec(any::<u8>(), 0..64);
    let head = prop_oneof![request, known, tls, noise.clone()];
    (head, noise).prop_map(|(head, noise)| [head, noise].concat())
}

proptest! {
    /// Deciding is monotone: once a prefix is decided, more bytes don't change the answer. So no split can.
    #[test]
    fn splitting_never_changes_the_result(bytes in flight()) {
        let whole = decide(&bytes);
        for end in 0..bytes.len() {
            if let Some(early) = decide(&bytes[..end]) {
                prop_assert_eq!(Some(early), whole);
                break;
            }
        }
    }

    #[test]
    fn what_is_read_is_given_back(bytes in flight(), piece in 1_usize..40) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (all, detected) = runtime.block_on(async {
            let (mut client, server) = duplex(piece);
            let writing = async {
                client.write_all(&bytes).await.unwrap();
                drop(client);
            };
            let reading = async {
                let (mut io, detected) = detect(server, FIRST_BYTE, HEAD).await.unwrap();
                let mut all = Vec::new();
                io.read_to_end(&mut all).await.unwrap();
                (all, detected)
            };
            tokio::join!(writing, reading).1
        });
        prop_assert_eq!(&all, &bytes);
        let undecided = if bytes.is_empty() { Detected::Closed } else { Detected::Opaque };
        let expected = decide(&bytes).unwrap_or(match bytes.first() {
            Some(0x16) => Detected::Tls(Box::default()),
            _ => undecided,
        });
        prop_assert_eq!(detected, expected);
    }
}

#[test]
fn the_future_stays_small() {
    let (io, _) = duplex(1);
    let size = size_of_val(&detect(io, FIRST_BYTE, HEAD));
    assert!(size <= 512, "{size}");
}
