//! Request targets and hosts: one form each, one meaning each (RFC 9112 sections 3.2 and 3.3).

use bytes::Bytes;
use http::{HeaderValue, Method, Uri};

use super::Malformed;

/// The target of a request: origin-form, absolute-form (`http`, `https`), authority-form for CONNECT alone, `*` for OPTIONS alone.
pub(super) fn parse(method: &Method, bytes: Bytes) -> Result<Uri, Malformed> {
    if bytes.iter().any(|&byte| !matches!(byte, 0x21..=0x7e) || byte == b'#') {
        return Err(Malformed::new("the request target has a fragment or characters outside visible ASCII"));
    }
    if method == Method::CONNECT {
        check_authority_form(&bytes)?;
    } else if bytes[..] == b"*"[..] {
        if method != Method::OPTIONS {
            return Err(Malformed::new("the request target `*` is for OPTIONS only"));
        }
    } else if bytes.first() != Some(&b'/') {
        check_absolute_form(&bytes)?;
    }
    Uri::from_maybe_shared(bytes).map_err(|_| Malformed::new("the request target is not a URI"))
}

fn check_authority_form(bytes: &[u8]) -> Result<(), Malformed> {
    let has_port =
        bytes.iter().rposition(|&byte| byte == b':').is_some_and(|colon| !bytes[colon..].contains(&b']'));
    if has_port && is_host(bytes) {
        Ok(())
    } else {
        Err(Malformed::new("the target of CONNECT is not host:port"))
    }
}

fn check_absolute_form(bytes: &[u8]) -> Result<(), Malformed> {
    let authority = authority_of(bytes)
        .ok_or(Malformed::new("the request target is none of origin-form, http:// or https://"))?;
    if is_host(authority) {
        Ok(())
    } else {
        Err(Malformed::new("the host of the request target is not a host with an optional port"))
    }
}

/// The authority within an absolute-form target.
fn authority_of(target: &[u8]) -> Option<&[u8]> {
    let rest = [&b"http://"[..], b"https://"].into_iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    Some(&rest[..end])
}

/// That the Host field is a host, and the same one as in the target if the target names one.
pub(super) fn check_host(target: &Uri, host: &HeaderValue) -> Result<(), Malformed> {
    if !is_host(host.as_bytes()) {
        return Err(Malformed::new("Host is not a host with an optional port"));
    }
    match target.authority() {
        Some(authority) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            Err(Malformed::new("the request target and Host name different hosts"))
        }
        _ => Ok(()),
    }
}

/// `uri-host [ ":" port ]`, without userinfo, percent-encoding and sub-delimiters: names and addresses as they occur.
fn is_host(bytes: &[u8]) -> bool {
    let (host, port) = match bytes.first() {
        Some(b'[') => {
            let Some(end) = bytes.iter().position(|&byte| byte == b']') else { return false };
            let (literal, port) = bytes.split_at(end + 1);
            if !is_ipv6(&literal[1..end]) {
                return false;
            }
            return port.is_empty() || is_port(port);
        }
        _ => bytes.split_at(bytes.iter().position(|&byte| byte == b':').unwrap_or(bytes.len())),
    };
    let is_name = host.iter().all(|&byte| NAME[usize::from(byte)]);
    is_name && matches!(host.len(), 1..=255) && (port.is_empty() || is_port(port))
}

/// Bytes of a host name.
static NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'.' | b'-' | b'_' | b'~');
        byte += 1;
    }
    table
};

fn is_ipv6(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok())
}

/// `":" port`, with a port that exists.
fn is_port(bytes: &[u8]) -> bool {
    let digits = &bytes[1..];
    matches!(digits.len(), 1..=5)
        && bytes[0] == b':'
        && digits.iter().all(u8::is_ascii_digit)
        && digits.iter().fold(0, |port, digit| port * 10 + u32::from(digit - b'0')) <= 65_535
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for good in ["a", "reviews.default:9080", "10.0.0.1:80", "[::1]", "[fe80::1]:443", "a_b.c-d~.", "A:0"]
        {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", "a:", "a:b", "a:65536", "a:000080", "a:-1", "a b", "a,b", "u@a", "a/b", "a%41",
            "[::1", "[::1]x", "[]", "[a]", "::1", "a:1:2", "a;b", "é", "[::1]:", "a\t",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }
}
