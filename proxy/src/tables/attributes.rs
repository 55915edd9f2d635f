//! What policies look at: the attributes of a connection, of a request on it, and of the user behind the request.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use serde_json::Value;
use smallvec::SmallVec;

/// What is constant for a connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionAttributes<'a> {
    /// The caller's verified identity, `spiffe://..`; `None`: plaintext, or TLS without a mesh identity.
    pub source_identity: Option<&'a str>,
    /// The direct peer.
    pub source_ip: IpAddr,
    /// For whom it connects, if its PROXY protocol header is believed; else the direct peer. Of an opaque connection only:
    /// a request may come from yet elsewhere ([`RequestAttributes::remote_ip`]).
    pub remote_ip: IpAddr,
    /// Where the caller connected to.
    pub destination_ip: IpAddr,
    /// The workload's port, not the service's.
    pub destination_port: u16,
    /// Server name of the ClientHello.
    pub sni: Option<&'a str>,
}

/// What a request adds, after `sanitize`.
#[derive(Debug, Clone, Copy)]
pub struct RequestAttributes<'a> {
    /// Case-sensitive.
    pub method: &'a str,
    /// Host as sent, with its port if it has one.
    pub host: Option<&'a str>,
    /// Normalised, without query.
    pub path: &'a str,
    /// As forwarded.
    pub headers: &'a HeaderMap,
    /// The caller's address after trusted hops; `None`: the direct peer, which the caller of the tables then puts here
    /// if policies are to see it.
    pub remote_ip: Option<IpAddr>,
    /// The verified end user; `None`: no valid token.
    pub user: Option<&'a UserAttributes>,
}

/// A verified token, as conditions see it.
#[derive(Debug, Clone, Default)]
pub struct UserAttributes {
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
    /// `aud`, as a list.
    pub audiences: Vec<String>,
    /// `azp`.
    pub presenter: Option<String>,
    /// All claims of the payload.
    pub claims: serde_json::Map<String, serde_json::Value>,
}

/// A header's value as policies see it: that of the only line, or all lines joined with `,` as Envoy joins them.
pub(super) enum HeaderText<'a> {
    /// One line.
    Line(&'a [u8]),
    /// Several, joined.
    Joined(SmallVec<[u8; 128]>),
}

impl HeaderText<'_> {
    /// The bytes to match.
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Line(line) => line,
            Self::Joined(joined) => joined,
        }
    }
}

/// The value of a header; `None`: absent.
pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<HeaderText<'a>> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?.as_bytes();
    let Some(second) = lines.next() else { return Some(HeaderText::Line(first)) };
    let mut joined = SmallVec::from_slice(first);
    for line in std::iter::once(second).chain(lines) {
        joined.push(b',');
        joined.extend_from_slice(line.as_bytes());
    }
    Some(HeaderText::Joined(joined))
}

/// Claims whose strings are lists of words (RFC 8693 section 4.2; Envoy's `space_delimited_claims` as Istio sets it).
pub const WORD_LISTS: [&str; 2] = ["scope", "permission"];

/// Whether the strings of a claim that is not nested are lists of words.
pub(super) fn is_word_list(name: &str) -> bool {
    WORD_LISTS.contains(&name)
}

/// The texts of a claim: itself, its words, or the texts in its list.
pub(super) fn claim_texts(value: &Value, is_word_list: bool) -> SmallVec<[&str; 4]> {
    match value {
        Value::String(words) if is_word_list => words.split(' ').filter(|word| !word.is_empty()).collect(),
        Value::String(text) => SmallVec::from_slice(&[&**text]),
        Value::Array(elements) => elements.iter().filter_map(Value::as_str).collect(),
        _ => SmallVec::new(),
    }
}
