//! The PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`): from whom a connection came to a balancer.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::prefixed::Prefixed;

/// The longest header of version 1, its end of line included (section 2.1).
const MAX_V1: usize = 107;
/// The longest header of version 2 that is read: addresses take 52 bytes, the rest is left to extensions.
const MAX_V2: usize = 4096;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Of version 2: signature, version and command, family, length.
const FIXED: usize = 16;

/// Why no header was taken.
#[derive(Debug)]
pub enum ProxyHeaderError {
    /// What came is none.
    NotOne(&'static str),
    /// None came in time.
    Stalled,
    /// The connection failed or ended.
    Lost(io::Error),
}

impl fmt::Display for ProxyHeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOne(why) => write!(f, "no PROXY protocol header: {why}"),
            Self::Stalled => f.write_str("no PROXY protocol header came in time"),
            Self::Lost(error) => write!(f, "no PROXY protocol header: {error}"),
        }
    }
}

impl std::error::Error for ProxyHeaderError {}

/// Reads the header that must stand at the beginning of a connection, within `deadline`. Gives the connection without it,
/// and who the sender says is behind it; `None`: itself (its health checks, or a family without addresses).
pub async fn proxy_header<IO: AsyncRead + Unpin>(
    mut io: Prefixed<IO>,
    deadline: Duration,
) -> Result<(Prefixed<IO>, Option<IpAddr>), ProxyHeaderError> {
    let mut read = BytesMut::with_capacity(FIXED);
    let reading = async {
        loop {
            match parse(&read) {
                Parsed::Header { length, source } => return Ok((length, source)),
                Parsed::Not(why) => return Err(ProxyHeaderError::NotOne(why)),
                Parsed::More => {}
            }
            match io.read_buf(&mut read).await {
                Ok(0) => return Err(ProxyHeaderError::Lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(ProxyHeaderError::Lost(error)),
            }
        }
    };
    let found = tokio::time::timeout(deadline, reading).await;
    let (length, source) = found.unwrap_or(Err(ProxyHeaderError::Stalled))?;
    let rest = read.split_off(length).freeze();
    Ok((io.unread(rest), source))
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// So many bytes of it.
    Header {
        length: usize,
        source: Option<IpAddr>,
    },
    More,
    Not(&'static str),
}

fn parse(bytes: &[u8]) -> Parsed {
    let begins = |wanted: &[u8]| bytes.iter().zip(wanted).all(|(byte, wanted)| byte == wanted);
    if begins(SIGNATURE) {
        return parse_v2(bytes);
    }
    if begins(b"PROXY ") {
        return parse_v1(bytes);
    }
    Parsed::Not("other bytes")
}

fn parse_v1(bytes: &[u8]) -> Parsed {
    let line = &bytes[..bytes.len().min(MAX_V1)];
    let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
        return if line.len() == MAX_V1 { Parsed::Not("a line without an end") } else { Parsed::More };
    };
    let Ok(text) = std::str::from_utf8(&line[..end]) else { return Parsed::Not("a line that is not ASCII") };
    let length = end + 2;
    let fields: Vec<&str> = text.split(' ').collect();
    match fields[..] {
        // What follows UNKNOWN is to be ignored (section 2.1).
        ["PROXY", "UNKNOWN", ..] => Parsed::Header { length, source: None },
        ["PROXY", "TCP4", from, to, from_port, to_port] => {
            let addresses = (from.parse::<Ipv4Addr>(), to.parse::<Ipv4Addr>());
            match (addresses, is_port(from_port) && is_port(to_port)) {
                ((Ok(from), Ok(_)), true) => Parsed::Header { length, source: Some(from.into()) },
                _ => Parsed::Not("addresses that are none"),
            }
        }
        ["PROXY", "TCP6", from, to, from_port, to_port] => {
            let addresses = (from.parse::<Ipv6Addr>(), to.parse::<Ipv6Addr>());
            match (addresses, is_port(from_port) && is_port(to_port)) {
                ((Ok(from), Ok(_)), true) => Parsed::Header { length, source: Some(from.into()) },
                _ => Parsed::Not("addresses that are none"),
            }
        }
        _ => Parsed::Not("a line of another form"),
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn parse_v2(bytes: &[u8]) -> Parsed {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else { return Parsed::More };
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if FIXED + length > MAX_V2 {
        return Parsed::Not("a header of over 4096 bytes");
    }
    let Some(body) = rest.get(..length) else { return Parsed::More };
    let header = |source| Parsed::Header { length: FIXED + length, source };
    match (fixed[12], fixed[13]) {
        // LOCAL: the sender speaks for itself, whatever follows (section 2.2).
        (0x20, _) => header(None),
        (0x21, 0x11) => match body.first_chunk::<12>() {
            Some(&[a, b, c, d, ..]) => header(Some(Ipv4Addr::new(a, b, c, d).into())),
            None => Parsed::Not("addresses cut short"),
        },
        (0x21, 0x21) => match (body.first_chunk::<16>(), body.len() >= 36) {
            (Some(from), true) => header(Some(Ipv6Addr::from(*from).into())),
            _ => Parsed::Not("addresses cut short"),
        },
        // Unspecified, or a Unix socket.
        (0x21, 0x00 | 0x31) => header(None),
        (0x21, _) => Parsed::Not("a family that is no stream"),
        _ => Parsed::Not("another version or command"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    fn tcp6() -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        [&address("2001:db8::1")[..], &address("2001:db8::2"), &[0, 1, 0, 2]].concat()
    }

    #[test]
    fn headers() {
        let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 91], b"\r\n".to_vec()].concat();
        let cases: Vec<(Vec<u8>, Option<&str>)> = vec![
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 1 65535\r\n".to_vec(), Some("192.0.2.1")),
            (b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n".to_vec(), Some("2001:db8::1")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (long, None),
            (v2(0x21, 0x11, &[192, 0, 2, 1, 10, 0, 0, 1, 0, 1, 0, 2]), Some("192.0.2.1")),
            (v2(0x21, 0x11, &[192, 0, 2, 1, 10, 0, 0, 1, 0, 1, 0, 2, 4, 0, 1, 0]), Some("192.0.2.1")),
            (v2(0x21, 0x21, &tcp6()), Some("2001:db8::1")),
            (v2(0x20, 0x11, &[]), None),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ];
        for (header, source) in cases {
            let source = source.map(|source| source.parse().unwrap());
            let length = header.len();
            assert_eq!(parse(&header), Parsed::Header { length, source }, "{header:?}");
            for cut in 0..length {
                assert_eq!(parse(&header[..cut]), Parsed::More, "{cut} of {header:?}");
            }
            let followed = [&header[..], b"GET / HTTP/1.1"].concat();
            assert_eq!(parse(&followed), Parsed::Header { length, source });
        }
    }

    #[test]
    fn what_is_no_header() {
        for bytes in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1\r\n".to_vec(),
            b"PROXY TCP4  192.0.2.1 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 ::1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 +1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1 65536\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1  2\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 10.0.0.1 1 2\r\n".to_vec(),
            b"PROXY \xff\r\n".to_vec(),
            [b"PROXY ".to_vec(), vec![b'x'; MAX_V1]].concat(),
            v2(0x11, 0x11, &[0; 12]),
            v2(0x22, 0x11, &[0; 12]),
            v2(0x21, 0x12, &[0; 12]),
            v2(0x21, 0x11, &[0; 11]),
            v2(0x21, 0x21, &[0; 35]),
            v2(0x21, 0x00, &[0; MAX_V2]),
        ] {
            assert!(matches!(parse(&bytes), Parsed::Not(_)), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn what_follows_is_given_back() {
        let (near, mut far) = tokio::io::duplex(1024);
        far.write_all(b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2\r\nGET ").await.unwrap();
        let (mut near, source) =
            proxy_header(Prefixed::new(&b""[..], near), Duration::from_secs(20)).await.unwrap();
        assert_eq!(source, Some([192, 0, 2, 1].into()));
        far.write_all(b"/ HTTP").await.unwrap();
        let mut rest = [0; 10];
        near.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"GET / HTTP");
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_not_waited_for_for_ever() {
        let (near, _far) = tokio::io::duplex(1024);
        let stalled = proxy_header(Prefixed::new(&b"PROX"[..], near), Duration::from_secs(1)).await;
        assert!(matches!(stalled, Err(ProxyHeaderError::Stalled)));
        let (near, _) = tokio::io::duplex(1024);
        let gone = proxy_header(Prefixed::new(&b"PROX"[..], near), Duration::from_secs(1)).await;
        assert!(matches!(gone, Err(ProxyHeaderError::Lost(_))));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_nothing_grows(start in 0usize..3, bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let all = [[&SIGNATURE[..], b"PROXY ", b""][start], &bytes].concat();
            match parse(&all) {
                Parsed::More => prop_assert!(all.len() < MAX_V2),
                Parsed::Header { length, .. } => prop_assert!(length <= all.len()),
                Parsed::Not(_) => {}
            }
        }
    }
}
