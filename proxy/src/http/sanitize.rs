//! `sanitize`: one request, one meaning. What later stages look at is exactly what is forwarded.

use std::borrow::Cow;

use ::http::header::{self, HeaderName};
use ::http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use control_client::snapshot::Mesh;

use super::serve_h1::CanUpgrade;
use crate::decision::{Reason, Stage};
use crate::error::Reject;
use crate::h1;
use crate::tables::normalize;

/// Headers of one hop that no `Connection` header has to name (RFC 9110 section 7.6.1 and its predecessors).
const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Makes a request unambiguous, so that what policies match is what is forwarded: its authority agrees with itself and is
/// a plain `HOST[:PORT]` (no trailing dot, no empty port, no escapes, an IPv6 address as RFC 5952 writes it; case is kept
/// and doesn't count), its path is in the one form that [`normalize`] gives it, and headers of the hop it came by are gone.
/// `Upgrade` survives where the connection can be switched ([`CanUpgrade`]).
pub fn request<B>(request: &mut Request<B>, mesh: &Mesh) -> Result<(), Reject> {
    if request.version() == Version::HTTP_2 && request.headers().values().any(h1::is_padded) {
        return Err(malformed("a field value begins or ends with a space or tab"));
    }
    authority_agrees(request)?;
    plain_authority(request)?;
    say_host(request)?;
    normalize_path(request, mesh)?;
    let upgrade = wants_upgrade(request);
    let te_trailers = request.headers().get(header::TE).is_some_and(accepts_trailers);
    strip_hop(request.headers_mut())?;
    join_cookies(request.headers_mut());
    if request.headers_mut().remove(header::TE).is_some() && te_trailers {
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade {
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(header::UPGRADE, protocol);
    }
    Ok(())
}

/// Removes the headers of the upstream hop from a response; a 101 keeps what makes it one.
pub fn response(headers: &mut HeaderMap, switching: bool) {
    let upgrade = if switching { headers.get(header::UPGRADE).cloned() } else { None };
    // A response that names `host` or the like in Connection only loses that header.
    let _ = strip_hop(headers);
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// The authority as sent: `:authority` or the target's, else Host.
pub fn authority<B>(request: &Request<B>) -> Option<&str> {
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers().get(header::HOST).and_then(|host| host.to_str().ok()),
    }
}

/// Host without port, and the port if one is there. `None` for something that is neither a name nor an address.
pub fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':').or(if rest.is_empty() { Some("") } else { None })?)
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, port),
            None => (authority, ""),
        },
    };
    // RFC 3986 section 3.2.2 without escapes: a name that is written in two ways is two names to policies.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:".contains(&byte);
    if host.is_empty() || !host.bytes().all(plain) {
        return None;
    }
    // `parse` alone would take `+80`, and `080` is a second way to write 80.
    let canonical = port.bytes().all(|byte| byte.is_ascii_digit()) && !port.starts_with('0');
    let port = if port.is_empty() { None } else { Some(port.parse().ok().filter(|_| canonical)?) };
    Some((host, port))
}

/// An authority without its port. An IPv6 address keeps its brackets.
pub fn without_port(authority: &str) -> Option<&str> {
    let (host, _) = split_authority(authority)?;
    let brackets = if authority.starts_with('[') { 2 } else { 0 };
    authority.get(..host.len() + brackets)
}

fn malformed(what: &str) -> Reject {
    Reject::because(Stage::Sanitize, Reason::MalformedRequest, what)
}

/// `:authority` (or an absolute target) and Host must say the same (RFC 9113 section 8.3.1, RFC 9112 section 3.2.2).
fn authority_agrees<B>(request: &Request<B>) -> Result<(), Reject> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(malformed("several Host headers"));
    }
    if let Some(authority) = request.uri().authority() {
        if let Some(host) = host
            && !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())
        {
            return Err(malformed("the authority and Host disagree"));
        }
    } else if host.is_none() {
        // HTTP/1.0 does not demand one, but policies that go by it do.
        return Err(malformed("neither an authority nor Host"));
    }
    match authority(request) {
        Some(authority) if authority.contains('@') => Err(malformed("user information in the authority")),
        Some(authority) if split_authority(authority).is_none() => {
            Err(malformed("the authority is not HOST[:PORT]"))
        }
        None if host.is_some() => Err(malformed("Host is not text")),
        _ => Ok(()),
    }
}

/// A name with a dot at its end, and one with a colon and nothing after it, are names that no policy lists, of servers
/// that some policy does. Both lose what says nothing.
fn plain_authority<B>(request: &mut Request<B>) -> Result<(), Reject> {
    let plain = |authority: &str| {
        let (host, port) = split_authority(authority)?;
        if authority.starts_with('[') {
            // RFC 5952: an address that is written in several ways would be several hosts.
            let literal = format!("[{}]", host.parse::<std::net::Ipv6Addr>().ok()?);
            let plain = port.map_or_else(|| literal.clone(), |port| format!("{literal}:{port}"));
            return Some((plain != authority).then_some(plain));
        }
        let trimmed = host.strip_suffix('.').unwrap_or(host);
        if trimmed.is_empty() || trimmed.ends_with('.') {
            return None;
        }
        let untouched = trimmed.len() == host.len() && !authority.ends_with(':');
        Some((!untouched).then(|| match port {
            Some(port) => format!("{trimmed}:{port}"),
            None => trimmed.to_owned(),
        }))
    };
    let Some(sent) = authority(request) else { return Ok(()) };
    let plain = plain(sent).ok_or_else(|| malformed("the authority is not HOST[:PORT]"))?;
    let Some(plain) = plain else { return Ok(()) };
    let unusable = |_| malformed("the authority is not HOST[:PORT]");
    if request.headers().contains_key(header::HOST) {
        let value = HeaderValue::from_str(&plain).map_err(|_| malformed("Host is not text"))?;
        request.headers_mut().insert(header::HOST, value);
    }
    if request.uri().authority().is_some() {
        let mut parts = request.uri().clone().into_parts();
        parts.authority = Some(plain.parse().map_err(unusable)?);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| malformed("the target is not a URI"))?;
    }
    Ok(())
}

/// HTTP/2 says it once, as `:authority`. Who looks at header `host` finds it there too, as in Envoy.
fn say_host<B>(request: &mut Request<B>) -> Result<(), Reject> {
    if request.method() == Method::CONNECT || request.headers().contains_key(header::HOST) {
        return Ok(());
    }
    let Some(authority) = request.uri().authority() else { return Ok(()) };
    let host =
        HeaderValue::from_str(authority.as_str()).map_err(|_| malformed("the authority is not text"))?;
    request.headers_mut().insert(header::HOST, host);
    Ok(())
}

fn normalize_path<B>(request: &mut Request<B>, mesh: &Mesh) -> Result<(), Reject> {
    let uri = request.uri();
    if request.method() == Method::CONNECT {
        return Ok(());
    }
    if uri.path() == "*" {
        // RFC 9113 section 8.3.1, as RFC 9112 section 3.2.4.
        let fits = request.method() == Method::OPTIONS;
        return if fits { Ok(()) } else { Err(malformed("the target `*` is for OPTIONS only")) };
    }
    // HTTP/1 can't even say it, and it would be a second way to write what is escaped.
    if uri.path_and_query().is_some_and(|target| !target.as_str().is_ascii()) {
        return Err(malformed("the path has characters that are not ASCII; they must be escaped"));
    }
    let refused = |error| Reject::because(Stage::Sanitize, Reason::MalformedRequest, error);
    let normal = normalize::path(uri.path(), mesh.path_normalization).map_err(refused)?;
    normalize::unambiguous(&normal, mesh.ambiguous_paths).map_err(refused)?;
    // An absolute target without a path means the path `/` (RFC 9110 section 4.2.3); a `:path` begins with one (RFC 9113
    // section 8.3.1).
    let pathless = uri.path_and_query().is_some_and(|target| target.as_str().starts_with('?'));
    if pathless && request.version() == Version::HTTP_2 {
        return Err(malformed("the path does not begin with /"));
    }
    if !pathless && matches!(normal, Cow::Borrowed(_)) {
        return Ok(());
    }
    let path_and_query = match uri.query() {
        Some(query) => format!("{normal}?{query}"),
        None => normal.into_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query =
        Some(path_and_query.parse().map_err(|_| malformed("the path is not one after normalisation"))?);
    *request.uri_mut() =
        Uri::from_parts(parts).map_err(|_| malformed("the target is not a URI after normalisation"))?;
    Ok(())
}

/// The protocol to upgrade to, of a request whose connection can be switched; others lose the field, which a server may
/// ignore anyway (RFC 9110 section 7.8), so that no server switches what the caller's side can't.
fn wants_upgrade<B>(request: &Request<B>) -> Option<HeaderValue> {
    request.extensions().get::<CanUpgrade>().filter(|_| request.method() != Method::CONNECT)?;
    let mut protocols = request.headers().get_all(header::UPGRADE).iter();
    let protocol = protocols.next().filter(|_| protocols.next().is_none())?;
    // h2c by Upgrade would hide the requests after the first from policy: not offered, as in Envoy and hyper.
    let hides = |offer: &[u8]| {
        offer.split(|&byte| byte == b',').any(|each| each.trim_ascii().eq_ignore_ascii_case(b"h2c"))
    };
    (!hides(protocol.as_bytes())).then(|| protocol.clone())
}

fn accepts_trailers(te: &HeaderValue) -> bool {
    te.to_str().is_ok_and(|text| {
        tokens(text)
            .any(|token| token.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case("trailers")))
    })
}

fn tokens(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|token| !token.is_empty())
}

fn strip_hop(headers: &mut HeaderMap) -> Result<(), Reject> {
    let mut host_named = false;
    if headers.contains_key(header::CONNECTION) {
        let named: smallvec::SmallVec<[HeaderName; 4]> = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
            .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
            .collect();
        for name in named {
            match name {
                header::HOST => host_named = true,
                // Framing is the codec's; TE is decided by the caller.
                header::CONTENT_LENGTH | header::TE => {}
                name => {
                    headers.remove(name);
                }
            }
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    if host_named { Err(malformed("Connection names Host")) } else { Ok(()) }
}

/// HTTP/2 may send a cookie a field, and HTTP/1 knows only one field of them all (RFC 9113 section 8.2.3): joined here, so
/// that policies see what an HTTP/1 server will.
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(_)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in headers.get_all(header::COOKIE).iter().skip(1) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    // Valid values joined by a valid separator are a valid value.
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sanitized(builder: ::http::request::Builder) -> Result<Request<()>, Reject> {
        let mut r = builder.body(()).unwrap();
        request(&mut r, &Mesh::default()).map(|()| r)
    }

    #[test]
    fn the_authority_must_agree_with_host() {
        let get = |uri: &str, host: &str| {
            sanitized(Request::get(uri).version(Version::HTTP_2).header("host", host))
        };
        assert!(get("http://ratings:9080/", "ratings:9080").is_ok());
        assert!(get("http://ratings:9080/", "Ratings:9080").is_ok());
        assert_eq!(get("http://ratings:9080/", "admin").unwrap_err().reason, Reason::MalformedRequest);
        assert!(get("http://a@ratings/", "a@ratings").is_err());
        assert!(get("/", "a@ratings").is_err());
        assert!(sanitized(Request::get("/").version(Version::HTTP_11)).is_err());
        assert!(sanitized(Request::get("/").version(Version::HTTP_10)).is_err());
        assert!(sanitized(Request::get("/").header("host", "a").header("host", "a")).is_err());
        assert!(sanitized(Request::get("/").header("host", "a:99999")).is_err());
    }

    #[test]
    fn a_target_without_a_path_means_the_root() {
        let get = |version| Request::get("http://a?x=1").header("host", "a").version(version);
        assert_eq!(sanitized(get(Version::HTTP_11)).unwrap().uri(), "http://a/?x=1");
        let refused = sanitized(get(Version::HTTP_2)).unwrap_err();
        assert_eq!(refused.detail.as_deref(), Some("the path does not begin with /"));
    }

    #[test]
    fn headers_of_the_hop_go_and_those_of_the_message_stay() {
        let r = sanitized(
            Request::get("/")
                .header("host", "a")
                .header("connection", "close, X-Hop")
                .header("x-hop", "1")
                .header("keep-alive", "timeout=5")
                .header("te", "trailers, deflate")
                .header("x-kept", "1"),
        )
        .unwrap();
        let mut names: Vec<_> = r.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["host", "te", "x-kept"]);
        assert_eq!(r.headers()["te"], "trailers");
    }

    #[test]
    fn a_field_of_the_hop_is_known_beside_what_is_no_name() {
        let connection = HeaderValue::from_bytes(b"close, \xe9, X-Hop").unwrap();
        let r = Request::get("/").header("host", "a").header("connection", connection).header("x-hop", "1");
        assert!(sanitized(r).unwrap().headers().get("x-hop").is_none());
    }

    #[test]
    fn a_padded_value_is_none_of_http2() {
        let one = |value| Request::get("http://a/").version(Version::HTTP_2).header("x-a", value);
        for padded in [" 1", "1 ", "\t1", "1\t", " "] {
            assert_eq!(sanitized(one(padded)).unwrap_err().reason, Reason::MalformedRequest, "{padded:?}");
        }
        assert!(sanitized(one("1 1")).is_ok() && sanitized(one("")).is_ok());
    }

    #[test]
    fn an_upgrade_survives_and_h2c_does_not() {
        let asking = |to: &str| {
            Request::get("/").header("host", "a").header("connection", "Upgrade").header("upgrade", to)
        };
        let upgrade = |to: &str| sanitized(asking(to).extension(CanUpgrade)).unwrap();
        assert_eq!(upgrade("websocket").headers()["connection"], "upgrade");
        for hidden in ["h2c", "H2C", "websocket, h2c"] {
            assert!(upgrade(hidden).headers().get("upgrade").is_none(), "{hidden}");
        }
        let bound = sanitized(asking("websocket")).unwrap();
        assert!(bound.headers().get("upgrade").is_none(), "the connection can't be switched");
    }

    #[test]
    fn cookies_become_one_field() {
        let r = Request::get("http://a/").version(Version::HTTP_2);
        let r = sanitized(r.header("cookie", "a=1").header("cookie", "b=2").header("cookie", "c=3")).unwrap();
        assert_eq!(r.headers().get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }

    #[test]
    fn what_is_forwarded_is_what_is_matched() {
        let r = sanitized(Request::get("/a/../admin?x=/../").header("host", "a")).unwrap();
        assert_eq!(r.uri(), "/admin?x=/../");
    }

    #[test]
    fn what_http2_calls_authority_is_header_host_too() {
        let h2 = |target: &str| Request::builder().version(Version::HTTP_2).uri(target);
        let r = sanitized(h2("http://Admin.internal.:80/x")).unwrap();
        assert_eq!(r.headers()["host"], "Admin.internal:80");
    }

    #[test]
    fn an_asterisk_is_for_options_only() {
        let asterisk = |method: &str| Request::builder().method(method).uri("*").header("host", "a");
        assert!(sanitized(asterisk("OPTIONS")).is_ok());
        assert_eq!(sanitized(asterisk("GET")).unwrap_err().reason, Reason::MalformedRequest);
    }

    #[test]
    fn an_authority_has_one_form() {
        for (sent, forwarded) in [
            ("ratings", Some("ratings")),
            ("Ratings:9080", Some("Ratings:9080")),
            ("ratings.", Some("ratings")),
            ("ratings.:9080", Some("ratings:9080")),
            ("ratings:", Some("ratings")),
            ("[::1]:", Some("[::1]")),
            ("[::1]:80", Some("[::1]:80")),
            ("[0:0:0:0:0:0:0:1]", Some("[::1]")),
            ("[2001:DB8:0::1]:80", Some("[2001:db8::1]:80")),
            ("[::ffff:7f00:1]:80", Some("[::ffff:127.0.0.1]:80")),
            ("[v1.a]", None),
            ("[a]", None),
            ("[::1].", None),
            ("ratings..", None),
            (".", None),
            ("ratings:080", None),
            ("ratings:+80", None),
            ("ratings:0", None),
            ("r%61tings", None),
            ("rat ings", None),
            ("rat/ings", None),
            ("r\\atings", None),
        ] {
            let r = sanitized(Request::get("/").header("host", sent));
            let host = r.as_ref().ok().map(|r| r.headers()["host"].to_str().unwrap());
            assert_eq!(host, forwarded, "{sent}");
        }
        let r = sanitized(Request::get("http://Ratings.:9080/a?b").version(Version::HTTP_2)).unwrap();
        assert_eq!(r.uri(), "http://Ratings:9080/a?b");
    }

    #[test]
    fn an_escape_has_one_form_and_is_the_only_one() {
        for (sent, forwarded) in [
            ("/caf%c3%a9?q=%c3%a9", Some("/caf%C3%A9?q=%c3%a9")),
            ("/caf%C3%A9", Some("/caf%C3%A9")),
            ("/café", None),
            ("/a?q=é", None),
        ] {
            let r = sanitized(Request::get(sent).version(Version::HTTP_2).header("host", "a"));
            assert_eq!(r.ok().map(|r| r.uri().to_string()).as_deref(), forwarded, "{sent}");
        }
    }

    #[test]
    fn a_path_that_climbs_to_another_reader_is_refused() {
        for path in ["/a%2f..%2fadmin", "/%252e%252e/admin", "/..;/admin", "/a/%c0%ae%c0%ae/admin"] {
            let refused = sanitized(Request::get(path).header("host", "a")).unwrap_err();
            assert_eq!(refused.reason, Reason::MalformedRequest, "{path}");
            assert!(refused.detail.unwrap().contains("pathNormalization"), "{path}");
        }
    }

    #[test]
    fn authorities_split() {
        assert_eq!(split_authority("a:80"), Some(("a", Some(80))));
        assert_eq!(split_authority("[::1]:80"), Some(("::1", Some(80))));
        assert_eq!(split_authority("[::1]"), Some(("::1", None)));
        assert_eq!(split_authority("[::1]x"), None);
        assert_eq!(split_authority("a:x"), None);
    }
}
