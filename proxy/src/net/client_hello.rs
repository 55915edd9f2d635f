//! The TLS ClientHello, read as far as choosing a server needs: server name and application protocols (RFC 8446 4.1.2).
//! Bounded, allocation only for what is kept; a TLS stack validates the rest when the connection is terminated.

use std::sync::Arc;

use smallvec::SmallVec;

/// What a client says about itself before any encryption. A malformed or oversized hello leaves both facts empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Server name, lower case, without the trailing dot; `None` if there is none or it isn't a DNS name.
    pub sni: Option<Arc<str>>,
    /// Application protocols, in the client's order of preference, at most [`MAX_ALPN`].
    pub alpn: SmallVec<[AlpnProtocol; 2]>,
    /// It was there whole and could be read. Else it was malformed, cut short or stalled, and says nothing above.
    pub understood: bool,
}

/// One application protocol name: `h2`, `istio-peer-exchange`.
pub type AlpnProtocol = SmallVec<[u8; 24]>;

impl ClientHello {
    /// Whether the client offers the application protocol.
    pub fn offers(&self, protocol: &[u8]) -> bool {
        self.alpn.iter().any(|offered| offered.as_slice() == protocol)
    }
}

/// The longest handshake message that is waited for. Post-quantum key shares make 2 KiB usual.
pub(super) const MAX_CLIENT_HELLO: usize = 16 * 1024;
/// The most bytes of records that a hello can need: a hello cut into records of one byte is an evasion, not a client,
/// so headers may make up half.
pub(super) const MAX_RECORDS: usize = 2 * MAX_CLIENT_HELLO;
/// The most protocols kept of an offer.
pub const MAX_ALPN: usize = 16;

const RECORD_HANDSHAKE: u8 = 0x16;
const RECORD_HEADER: usize = 5;
const MAX_RECORD: usize = 16 * 1024;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const HANDSHAKE_HEADER: usize = 4;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;

/// What the first bytes of a connection are, seen as TLS.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// Not a TLS handshake.
    No,
    /// May be or is one, and isn't whole.
    More,
    /// A TLS handshake. What can't be parsed or is longer than the bounds has no facts.
    Hello(ClientHello),
}

/// Looks at the first bytes of a connection. The answer for a prefix, unless it is `More`, is that for the whole.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let bytes = &bytes[..bytes.len().min(MAX_RECORDS)];
    // 0x16, legacy version 3.x, and (after the length) the message type tell a ClientHello from everything else.
    match *bytes {
        [RECORD_HANDSHAKE, 3, _, _, _, HANDSHAKE_CLIENT_HELLO, ..] => {}
        [] | [RECORD_HANDSHAKE] => return Parsed::More,
        [RECORD_HANDSHAKE, 3, ..] if bytes.len() <= RECORD_HEADER => return Parsed::More,
        _ => return Parsed::No,
    }
    match reassemble(bytes) {
        Message::Whole(message) => Parsed::Hello(client_hello(message.as_slice()).unwrap_or_default()),
        Message::Partial => Parsed::More,
        Message::Malformed => Parsed::Hello(ClientHello::default()),
    }
}

enum Message<'a> {
    Whole(Body<'a>),
    Partial,
    Malformed,
}

/// The message in place, or joined from several records.
enum Body<'a> {
    InPlace(&'a [u8]),
    Joined(Vec<u8>),
}

impl Body<'_> {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::InPlace(bytes) => bytes,
            Self::Joined(bytes) => bytes,
        }
    }
}

/// The body of the first handshake message, out of one or several records.
fn reassemble(bytes: &[u8]) -> Message<'_> {
    let first = record_payload(bytes);
    if let Some(body) = first.and_then(message_body) {
        return Message::Whole(Body::InPlace(body));
    }
    let mut joined = Vec::new();
    let mut rest = bytes;
    loop {
        match rest {
            [RECORD_HANDSHAKE, 3, _, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if length == 0 || length > MAX_RECORD {
                    return Message::Malformed;
                }
                let end = rest.len().min(RECORD_HEADER + length);
                joined.extend_from_slice(&rest[RECORD_HEADER..end]);
                rest = &rest[end..];
                if declared_length(&joined).is_some_and(|length| length > MAX_CLIENT_HELLO) {
                    return Message::Malformed;
                }
                if let Some(body) = message_body(&joined) {
                    return Message::Whole(Body::Joined(body.to_vec()));
                }
            }
            [] | [RECORD_HANDSHAKE] => return incomplete(bytes),
            [RECORD_HANDSHAKE, 3, ..] => return incomplete(bytes),
            // A fragmented hello may not be interleaved with other record types.
            _ => return Message::Malformed,
        }
    }
}

fn incomplete(bytes: &[u8]) -> Message<'_> {
    if bytes.len() == MAX_RECORDS { Message::Malformed } else { Message::Partial }
}

/// What is there of the first record's payload.
fn record_payload(bytes: &[u8]) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes([*bytes.get(3)?, *bytes.get(4)?]));
    let payload = bytes.get(RECORD_HEADER..)?;
    (length <= MAX_RECORD).then(|| &payload[..payload.len().min(length)])
}

/// The body of the message that `handshake` begins with, if it is whole and within bounds.
fn message_body(handshake: &[u8]) -> Option<&[u8]> {
    let length = declared_length(handshake).filter(|&length| length <= MAX_CLIENT_HELLO)?;
    handshake.get(HANDSHAKE_HEADER..HANDSHAKE_HEADER + length)
}

fn declared_length(handshake: &[u8]) -> Option<usize> {
    match *handshake {
        [_, high, middle, low, ..] => {
            Some(usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low))
        }
        _ => None,
    }
}

/// `None` if any length on the way to the extensions, or in the two that matter, is wrong.
fn client_hello(body: &[u8]) -> Option<ClientHello> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?; // legacy version, random
    reader.vector_u8()?; // legacy session id
    reader.vector_u16()?; // cipher suites
    reader.vector_u8()?; // compression methods
    let mut hello = ClientHello { understood: true, ..ClientHello::default() };
    if reader.0.is_empty() {
        return Some(hello); // TLS 1.2 and before may leave out extensions
    }
    let mut extensions = Reader(reader.vector_u16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = Reader(extensions.vector_u16()?);
        match kind {
            EXTENSION_SERVER_NAME => hello.sni = server_name(content)?,
            EXTENSION_ALPN => hello.alpn = alpn(content)?,
            _ => {}
        }
    }
    Some(hello)
}

/// RFC 6066 section 3. Names of other types than host_name were never defined; the first host_name counts.
fn server_name(mut extension: Reader<'_>) -> Option<Option<Arc<str>>> {
    const HOST_NAME: u8 = 0;
    let mut names = Reader(extension.vector_u16()?);
    while !names.0.is_empty() {
        let kind = names.u8()?;
        let name = names.vector_u16()?;
        if kind == HOST_NAME {
            return Some(dns_name(name));
        }
    }
    Some(None)
}

fn dns_name(name: &[u8]) -> Option<Arc<str>> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 253 || !name.iter().all(allowed) {
        return None;
    }
    let name = std::str::from_utf8(name).ok()?;
    Some(name.to_ascii_lowercase().into())
}

/// RFC 7301 section 3.1.
fn alpn(mut extension: Reader<'_>) -> Option<SmallVec<[AlpnProtocol; 2]>> {
    let mut names = Reader(extension.vector_u16()?);
    let mut protocols = SmallVec::new();
    while !names.0.is_empty() {
        let name = names.vector_u8().filter(|name| !name.is_empty())?;
        if protocols.len() < MAX_ALPN {
            protocols.push(AlpnProtocol::from_slice(name));
        }
    }
    Some(protocols)
}

/// Takes from the front; `None` when there isn't enough.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector_u8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }

    fn vector_u16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A ClientHello in records of at most `record` bytes, with `padding` bytes of an extension between.
    pub(in crate::net) fn hello(sni: Option<&str>, alpn: &[&str], padding: usize, record: usize) -> Vec<u8> {
        fn vector_u16(content: &[u8]) -> Vec<u8> {
            [&u16::try_from(content.len()).unwrap().to_be_bytes(), content].concat()
        }
        let mut extensions = [&[0xfd, 0x00][..], &vector_u16(&vec![7; padding])].concat();
        if let Some(name) = sni {
            let entry = [&[0][..], &vector_u16(name.as_bytes())].concat();
            extensions.extend([&[0, 0][..], &vector_u16(&vector_u16(&entry))].concat());
        }
        if !alpn.is_empty() {
            let names: Vec<u8> = alpn
                .iter()
                .flat_map(|p| [&[u8::try_from(p.len()).unwrap()], p.as_bytes()].concat())
                .collect();
            extensions.extend([&[0, 16][..], &vector_u16(&vector_u16(&names))].concat());
        }
        let body =
            [&[3, 3][..], &[9; 32], &[0], &vector_u16(&[0x13, 0x01]), &[1, 0], &vector_u16(&extensions)]
                .concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let message = [&[HANDSHAKE_CLIENT_HELLO][..], &length[1..], &body].concat();
        message
            .chunks(record)
            .flat_map(|chunk| [&[RECORD_HANDSHAKE, 3, 1][..], &vector_u16(chunk)].concat())
            .collect()
    }

    fn facts(bytes: &[u8]) -> ClientHello {
        match parse(bytes) {
            Parsed::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_found() {
        let hello = facts(&hello(Some("Reviews.Default.SVC."), &["h2", "istio-peer-exchange"], 0, 16_384));
        assert_eq!(hello.sni.as_deref(), Some("reviews.default.svc"));
        assert!(hello.offers(b"h2") && hello.offers(b"istio-peer-exchange") && !hello.offers(b"http/1.1"));
    }

    /// Sent by `openssl s_client -servername reviews.default.svc.cluster.local -alpn h2,http/1.1` (OpenSSL 3.0).
    const OPENSSL: &str = "\
        160301014e0100014a0303c242d09ae4e04841b38bf546adcab8655a4d7055ad56f5a4b26500bfe9d79f4a203b3d0c8d6eb1\
        65fb9b20086c6940bb786027b699c50010729201198905a3d147003e130213031301c02cc030009fcca9cca8ccaac02bc02f\
        009ec024c028006bc023c0270067c00ac0140039c009c0130033009d009c003d003c0035002f00ff010000c3000000260024\
        000021726576696577732e64656661756c742e7376632e636c75737465722e6c6f63616c000b000403000102000a00040002\
        001d002300000010000e000c02683208687474702f312e310016000000170000000d002a0028040305030603080708080809\
        080a080b080408050806040105010601030303010302040205020602002b0009080304030303020301002d00020101003300\
        260024001d00204d74f020b8f9c319b783e1a184bb39b8b11211d54a1cbb539d66ab22fec18e09";

    #[test]
    fn a_real_hello() {
        let bytes: Vec<u8> = (0..OPENSSL.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&OPENSSL[at..at + 2], 16).unwrap())
            .collect();
        let hello = facts(&bytes);
        assert_eq!(hello.sni.as_deref(), Some("reviews.default.svc.cluster.local"));
        let alpn: Vec<&[u8]> = hello.alpn.iter().map(|protocol| protocol.as_slice()).collect();
        assert_eq!(alpn, [&b"h2"[..], b"http/1.1"]);
    }

    #[test]
    fn istio_passthrough_names_are_names() {
        let name = "outbound_.443_._.reviews.default.svc.cluster.local";
        assert_eq!(facts(&hello(Some(name), &[], 0, 500)).sni.as_deref(), Some(name));
    }

    #[test]
    fn fragmented_and_large_hellos() {
        for (padding, record) in [(0, 1), (0, 3), (2048, 700), (15_000, 16_384), (15_000, 5_000)] {
            let bytes = hello(Some("a.example"), &["h2"], padding, record);
            assert_eq!(facts(&bytes).sni.as_deref(), Some("a.example"), "{padding} in {record}");
        }
    }

    #[test]
    fn oversized_or_malformed_hello_is_tls_without_facts() {
        let table: [&[u8]; 5] = [
            &[0x16, 3, 1, 0, 10, 1, 0xff, 0xff, 0xff, 0], // a message of 16 MiB
            &[0x16, 3, 1, 0xff, 0xff, 1, 0, 0, 1],        // a record over its limit
            &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 3],           // too short to be a hello
            &[0x16, 3, 1, 0, 1, 1, 0x17, 3, 3, 0, 1, 0],  // interleaved record type
            &[0x16, 3, 1, 0, 1, 1, 0x16, 3, 3, 0, 0, 0x16, 3], // empty record
        ];
        for bytes in table {
            assert_eq!(parse(bytes), Parsed::Hello(ClientHello::default()), "{bytes:?}");
        }
        let address = hello(Some("10.0.0.1:80"), &["h2"], 0, 16_384);
        assert_eq!(facts(&address).sni, None);
        assert!(facts(&address).offers(b"h2"));
    }

    #[test]
    fn other_protocols_are_not_tls() {
        for bytes in [&b"GET / HTTP/1.1"[..], &[0x16, 2], &[0x16, 3, 1, 0, 5, 2], &[0x17, 3, 3], &[0x15, 3]] {
            assert_eq!(parse(bytes), Parsed::No, "{bytes:?}");
        }
    }

    #[test]
    fn every_proper_prefix_wants_more() {
        let bytes = hello(Some("a.example"), &["h2"], 300, 100);
        let whole = parse(&bytes);
        let first = (0..=bytes.len()).find(|&end| parse(&bytes[..end]) != Parsed::More).unwrap();
        assert_eq!(first, bytes.len());
        assert_eq!(parse(&[&bytes[..], b"more"].concat()), whole);
    }

    proptest! {
        #[test]
        fn mutated_hellos_never_panic_and_stay_stable(
            index in 0_usize..400, value: u8, padding in 0_usize..200, record in 1_usize..300, cut in 0_usize..600,
        ) {
            let mut bytes = hello(Some("a.example"), &["h2", "http/1.1"], padding, record);
            let index = index % bytes.len();
            bytes[index] = value;
            let early = parse(&bytes[..cut.min(bytes.len())]);
            if early != Parsed::More {
                prop_assert_eq!(early, parse(&bytes));
            }
        }
    }
}
