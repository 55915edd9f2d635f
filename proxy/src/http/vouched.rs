//! What only the mesh may say of a caller: taken out of what callers send before anybody looks at it, and said anew.
//!
//! Policies, limits, providers and the application all see the same.

use ::http::{HeaderMap, HeaderName, HeaderValue, Request, header};

use crate::generation::Held;
use crate::h1;
use crate::peer::Peer;
use crate::stages::Target;
use crate::tables::HeaderNames;
use crate::telemetry::ConnectionFacts;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// What says how a request came to a Gateway. Those who are not trusted to speak for others say none of it but whom it is for:
/// X-Forwarded-For is read from its end, where the Gateway writes whom it saw. Written with underscores nobody says it.
static FORWARDED: [HeaderName; 5] = [
    X_FORWARDED_FOR,
    X_FORWARDED_PROTO,
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    header::FORWARDED,
];
/// Prefixes that only proxies of the mesh may set.
const RESERVED: [&str; 2] = ["x-writ-", "x-envoy-"];

/// Takes from a request what its caller may not say, and says who it is (`x-forwarded-client-cert`) where it goes to the
/// local application.
pub fn request<B>(peer: &Peer, target: Target, held: &Held, request: &mut Request<B>) {
    let headers = request.headers_mut();
    let (outputs, asked): (&[HeaderName], _) = match target.is_decided_here() {
        true => (&held.tables.authentication().outputs, Some(&**held.header_names)),
        // They are the server's to set, and to ask for.
        false => (&[], None),
    };
    outputs.iter().for_each(|output| drop(headers.remove(output)));
    let forwarded: &[HeaderName] = if let Target::Gateway(_) = target { &FORWARDED } else { &[] };
    strip(headers, |name, _| {
        reserved(name) || is_twin(name, outputs, asked) || is_twin(name, forwarded, None)
    });
    match target {
        Target::Application(_) => client_cert(peer, held, headers),
        Target::Gateway(_) => {
            headers.remove(XFCC);
            if !peer.admission(held).speaks_for {
                let others = FORWARDED.iter().filter(|name| **name != X_FORWARDED_FOR);
                others.for_each(|name| drop(headers.remove(name)));
            }
        }
        Target::Destination(_) | Target::Pod(_) | Target::Authority(_) => drop(headers.remove(XFCC)),
    }
}

/// What a Gateway says of where a request comes from: the address of its client, behind what is there, and by what it came.
pub fn came_by(connection: &ConnectionFacts, headers: &mut HeaderMap) {
    let client = connection.proxied.unwrap_or_else(|| connection.source.ip()).to_canonical();
    let mut all = Vec::new();
    for line in headers.get_all(X_FORWARDED_FOR) {
        all.extend_from_slice(line.as_bytes());
        all.extend_from_slice(b", ");
    }
    all.extend_from_slice(client.to_string().as_bytes());
    if let Ok(all) = HeaderValue::from_bytes(&all) {
        headers.insert(X_FORWARDED_FOR, all);
    }
    if !headers.contains_key(X_FORWARDED_PROTO) {
        let scheme = if connection.tls.is_some() { "https" } else { "http" };
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
}

/// As [`request`], of a request's trailers, which some servers merge into its headers; with what no trailer may be (RFC 9110
/// section 6.5.1), and headers that policies ask for, who have decided by then.
pub fn trailers(held: &Held, trailers: &mut HeaderMap) {
    let outputs = &held.tables.authentication().outputs;
    let asked = &**held.header_names;
    strip(trailers, |name, value| {
        let says_who = |name: &str| name == XFCC.as_str() || name == header::FORWARDED.as_str();
        let forwarded = |name: &str| name.starts_with("x-forwarded-") || says_who(name);
        reserved(name)
            || forwarded(name.as_str())
            || h1::is_forbidden_trailer(name)
            || outputs.contains(name)
            || asked.contains(name)
            || is_twin(name, outputs, Some(asked))
            || h1::is_padded(value)
    });
}

fn reserved(name: &HeaderName) -> bool {
    RESERVED.iter().any(|prefix| name.as_str().starts_with(prefix))
}

/// Whether it is one of those, or of those that policies ask for, written with underscores: gateways of CGI and its kin
/// can't tell them apart.
fn is_twin(name: &HeaderName, outputs: &[HeaderName], asked: Option<&HeaderNames>) -> bool {
    if !name.as_str().contains('_') {
        return false;
    }
    let dashed = name.as_str().replace('_', "-");
    RESERVED.iter().any(|prefix| dashed.starts_with(prefix))
        || dashed == XFCC.as_str()
        || outputs.iter().any(|output| output.as_str().replace('_', "-") == dashed)
        || asked.is_some_and(|asked| !asked.contains(name) && asked.have_twin(&dashed))
}

fn strip(headers: &mut HeaderMap, goes: impl Fn(&HeaderName, &HeaderValue) -> bool) {
    let gone = |(name, value): &(&HeaderName, &HeaderValue)| goes(name, value);
    if headers.iter().any(|field| gone(&field)) {
        let names: Vec<_> = headers.iter().filter(gone).map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| drop(headers.remove(name)));
    }
}

/// Replaced, or appended to when the caller may speak for others.
fn client_cert(peer: &Peer, held: &Held, headers: &mut HeaderMap) {
    match peer.xfcc() {
        None => drop(headers.remove(XFCC)),
        Some(own) if headers.contains_key(XFCC) && peer.admission(held).forwards => {
            let mut value = Vec::new();
            for line in headers.get_all(XFCC) {
                value.extend_from_slice(line.as_bytes());
                value.push(b',');
            }
            value.extend_from_slice(own.as_bytes());
            let value = HeaderValue::from_bytes(&value).unwrap_or_else(|_| own.clone());
            headers.insert(XFCC, value);
        }
        Some(own) => drop(headers.insert(XFCC, own.clone())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::reload::tests::generation_of;

    #[test]
    fn trailers_say_nothing_of_the_caller() {
        let held = Held::of(Arc::new(generation_of(1, "")));
        let names = [
            "x-forwarded-client-cert",
            "x_forwarded_client_cert",
            "x-forwarded-for",
            "forwarded",
            "x-writ-decision-id",
            "authorization",
            "host",
            "grpc-status",
            "x-checksum",
        ];
        let one = HeaderValue::from_static("1");
        let mut map = HeaderMap::from_iter(names.map(|name| (HeaderName::from_static(name), one.clone())));
        trailers(&held, &mut map);
        let mut left: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["grpc-status", "x-checksum"]);
    }

    #[test]
    fn twins_by_underscores_are_known() {
        let outputs = [HeaderName::from_static("x-user"), HeaderName::from_static("a_b")];
        let twin = |name: &'static str| is_twin(&HeaderName::from_static(name), &outputs, None);
        for name in ["x_forwarded_client_cert", "x-forwarded_client-cert", "x_writ_id", "x_envoy-a", "x_user"]
        {
            assert!(twin(name), "{name}");
        }
        // An output of that very name is taken out as one, and set anew.
        assert!(twin("a_b"));
        for name in ["x-user", "x_users", "my_header", "xforwarded_client_cert"] {
            assert!(!twin(name), "{name}");
        }
    }
}
