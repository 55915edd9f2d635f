//! Small languages inside of fields: names, durations, protocols, selectors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::read::At;
use crate::snapshot::Protocol;

/// The domain of in-cluster service names.
pub(crate) const CLUSTER_DOMAIN: &str = "cluster.local";

/// RFC 1123 subdomain, as Kubernetes names objects.
pub(crate) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

fn is_dns_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !label.is_empty()
        && label.len() <= 63
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// A host name, or with `*.` in front a suffix. Case is dropped.
pub(crate) fn host(at: At<'_>) -> Option<String> {
    let text = at.text()?.to_ascii_lowercase();
    let name = text.strip_prefix("*.").unwrap_or(&text);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if text != "*" && (name.len() > 253 || !name.split('.').all(label)) {
        at.error(format!("`{text}` is not a host name"));
        return None;
    }
    Some(text)
}

/// A header name in lower case.
pub(crate) fn header_name(at: At<'_>) -> Option<String> {
    let text = at.text()?;
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !text.bytes().all(token) {
        at.error(format!("`{text}` is not a header name"));
        return None;
    }
    Some(text.to_ascii_lowercase())
}

/// A header value: no control characters.
pub(crate) fn header_value(at: At<'_>) -> Option<String> {
    let text = at.str()?;
    if text.chars().any(|c| c.is_control() && c != '\t') {
        at.error("a header value has no control characters");
        return None;
    }
    Some(text.to_owned())
}

/// A duration as Gateway API writes it: `1h30m`, `10s`, `500ms`; whole numbers only.
pub(crate) fn gateway_duration(at: At<'_>) -> Option<Duration> {
    let text = at.str()?;
    let found = if text.contains(['.', '-', '+', 'u', 'n']) { None } else { parse_duration(text) };
    if found.is_none() {
        at.error(format!("`{text}` is not a duration such as 10s, 500ms or 1h30m"));
    }
    found
}

/// A duration as Go writes it: `10s`, `1.5s`, `500ms`.
pub(crate) fn go_duration(at: At<'_>) -> Option<Duration> {
    let text = at.str()?;
    let found = parse_duration(text);
    if found.is_none() {
        at.error(format!("`{text}` is not a duration such as 10s or 1.5s"));
    }
    found
}

fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    if rest.is_empty() || rest.len() > 32 {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = tail;
    }
    // Nanoseconds are beyond what a double keeps exactly here; microseconds are not.
    let micros = (total * 1e6).round();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within the bounds just checked"
    )]
    (0.0..1e15).contains(&micros).then(|| Duration::from_micros(micros as u64))
}

/// An address or a range of addresses. IPv4 in IPv6 (`::ffff:10.0.0.0/104`, RFC 4291 section 2.5.5.2) is what it stands
/// for, as addresses of connections are.
pub(crate) fn cidr(at: At<'_>) -> Option<IpNet> {
    let text = at.str()?;
    let found = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let Some(net) = found else {
        at.error(format!("`{text}` is neither an IP address nor a range such as 10.0.0.0/8"));
        return None;
    };
    let IpNet::V6(mapped) = net else { return Some(net) };
    let Some(address) = mapped.addr().to_ipv4_mapped() else { return Some(net) };
    let inner = mapped.prefix_len().checked_sub(MAPPED_PREFIX);
    let inner = inner.and_then(|length| Ipv4Net::new(address, length).ok());
    if inner.is_none() {
        at.error(format!("`{text}` is wider than IPv4 in IPv6, ::ffff:0:0/{MAPPED_PREFIX}, and matches no IPv4 address; write IPv4 ranges as such"));
    }
    inner.map(IpNet::V4)
}

/// Bits of an IPv6 address before the IPv4 address in it.
const MAPPED_PREFIX: u8 = 96;

/// Writes the digits of percent-escapes in upper case, also of one that is cut short.
pub(crate) fn upper_escapes(text: &mut String) {
    let mut digits_left = 0;
    let upper = |character: char| {
        let is_digit = digits_left > 0 && character.is_ascii_hexdigit();
        digits_left = match character {
            '%' => 2,
            _ if is_digit => digits_left - 1,
            _ => 0,
        };
        if is_digit { character.to_ascii_uppercase() } else { character }
    };
    if text.contains('%') {
        *text = text.chars().map(upper).collect();
    }
}

/// An IPv6 address in brackets as RFC 5952 writes it, and what follows it; other hosts stay as they are.
pub(crate) fn plain_literal(host: &str) -> Cow<'_, str> {
    let literal = host.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    match literal.map(|(address, rest)| (address.parse::<Ipv6Addr>(), rest)) {
        Some((Ok(address), rest)) => Cow::Owned(format!("[{address}]{rest}")),
        _ => Cow::Borrowed(host),
    }
}

/// An IP address.
pub(crate) fn ip(at: At<'_>) -> Option<IpAddr> {
    let text = at.str()?;
    let found = text.parse::<IpAddr>().ok();
    if found.is_none() {
        at.error(format!("`{text}` is not an IP address"));
    }
    found
}

/// `selector: {matchLabels: {..}}`. `None`: can't be understood.
pub(crate) fn selector(at: At<'_>) -> Option<BTreeMap<String, String>> {
    let fields = at.fields(&["matchLabels"])?;
    let Some(labels) = fields.get("matchLabels") else { return Some(BTreeMap::new()) };
    let found = labels.string_map();
    let mut understood = true;
    for (key, value) in labels.entries() {
        if key.is_empty() {
            value.error("a label needs a name");
            understood = false;
        }
        if key.contains('*') || found.get(key).is_some_and(|text| text.contains('*')) {
            value.error("labels are compared exactly; `*` means nothing here");
            understood = false;
        }
        understood &= found.contains_key(key);
    }
    understood.then_some(found)
}

/// Whether all of `selector` is in `labels`.
pub(crate) fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The protocol of a port, found as Istio finds it: appProtocol, else the name's first word, else a few known ports.
pub(crate) fn protocol(app_protocol: Option<&str>, name: &str, port: u16) -> Option<Protocol> {
    if let Some(declared) = app_protocol {
        return match declared {
            "kubernetes.io/h2c" => Some(Protocol::Http2),
            "kubernetes.io/ws" => Some(Protocol::Http1),
            "kubernetes.io/wss" => Some(Protocol::Tls),
            other => protocol_name(other),
        };
    }
    let first_word = if name.to_ascii_lowercase().starts_with("grpc-web") {
        "grpc-web"
    } else {
        name.split('-').next().unwrap_or("")
    };
    protocol_name(first_word).or(match port {
        // SMTP, DNS, MySQL, MongoDB: the server speaks first, or nobody speaks HTTP.
        25 | 53 | 3306 | 27017 => Some(Protocol::Tcp),
        _ => None,
    })
}

/// A protocol by its name, in any case.
pub(crate) fn protocol_name(name: &str) -> Option<Protocol> {
    match name.to_ascii_lowercase().as_str() {
        "http" | "http1" | "http_proxy" => Some(Protocol::Http1),
        "http2" | "h2c" => Some(Protocol::Http2),
        "grpc" | "grpc-web" => Some(Protocol::Grpc),
        "tcp" | "mongo" | "redis" | "mysql" => Some(Protocol::Tcp),
        "https" | "tls" => Some(Protocol::Tls),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let ms = |text| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(ms("10s"), Some(10_000));
        assert_eq!(ms("1h30m"), Some(5_400_000));
        assert_eq!(ms("1.5s"), Some(1500));
        assert_eq!(ms("0s"), Some(0));
        assert_eq!(ms("2s500ms"), Some(2500));
        for bad in ["", "10", "s", "10x", "-1s", "1..2s", "99999999999999h", "1s "] {
            assert_eq!(ms(bad), None, "{bad}");
        }
    }

    #[test]
    fn one_form() {
        for (written, plain) in [
            ("/caf%c3%a9/%2fabc", "/caf%C3%A9/%2Fabc"),
            ("/a%c", "/a%C"),
            ("/a%zza%%cd", "/a%zza%%CD"),
            ("/abc", "/abc"),
        ] {
            let mut text = written.to_owned();
            upper_escapes(&mut text);
            assert_eq!(text, plain);
        }
        for (written, plain) in [
            ("[0:0:0:0:0:0:0:1]:80", "[::1]:80"),
            ("[2001:DB8::0]", "[2001:db8::]"),
            ("[x]:80", "[x]:80"),
            ("ratings:*", "ratings:*"),
        ] {
            assert_eq!(plain_literal(written), plain);
        }
    }

    #[test]
    fn protocols_as_istio_finds_them() {
        use Protocol::{Grpc, Http1, Http2, Tcp, Tls};
        let cases = [
            (None, "http", 80, Some(Http1)),
            (None, "http-web", 80, Some(Http1)),
            (None, "HTTP2-x", 80, Some(Http2)),
            (None, "grpc-web-x", 80, Some(Grpc)),
            (None, "https-x", 443, Some(Tls)),
            (None, "httpx", 80, None),
            (None, "", 3306, Some(Tcp)),
            (None, "", 80, None),
            (Some("kubernetes.io/h2c"), "tcp", 80, Some(Http2)),
            (Some("redis"), "http", 80, Some(Tcp)),
            (Some("example.com/x"), "http", 80, None),
        ];
        for (app, name, port, wanted) in cases {
            assert_eq!(protocol(app, name, port), wanted, "{app:?} {name} {port}");
        }
    }
}
