//! One condition of an AuthorizationPolicy rule, compiled; split by whether the connection alone can answer it.

use std::net::IpAddr;
use std::sync::Arc;

use control_client::snapshot::{self, Attribute, ValueMatch};
use http::HeaderName;
use ipnet::IpNet;
use smallvec::SmallVec;

use super::attributes::{
    ConnectionAttributes, RequestAttributes, UserAttributes, claim_texts, header_text, is_word_list,
};
use super::filters;
use super::pattern::{NamespaceGlob, RequestPrincipal, ServiceAccount, Values, display, wildcard};

/// A condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Condition {
    /// Constant for a connection.
    Connection(ConnectionTest),
    /// To be asked of each request.
    Request(Arc<RequestTest>),
}

/// Positive and negative values: `(is empty OR any of is) AND NOT any of not`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Both<V> {
    pub(super) is: V,
    pub(super) not: V,
}

/// A condition that the connection answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum ConnectionTest {
    Principal(Both<Values>),
    Namespace(Both<Box<[NamespaceGlob]>>),
    ServiceAccount(Both<Box<[ServiceAccount]>>),
    TrustDomain(Both<Values>),
    SourceIp(Both<Box<[IpNet]>>),
    /// Asked of opaque connections; HTTP has it per request.
    RemoteIp(Both<Box<[IpNet]>>),
    DestinationIp(Both<Box<[IpNet]>>),
    DestinationPort(Both<Box<[u16]>>),
    Sni(Both<Values>),
}

/// A condition that only a request answers.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum RequestTest {
    Host(Both<Values>),
    Method(Both<Values>),
    Path(Both<Values>),
    Header(HeaderName, Both<Values>),
    RemoteIp(Both<Box<[IpNet]>>),
    User(UserTest),
}

/// A condition on the end user.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum UserTest {
    Principal(Both<Box<[RequestPrincipal]>>),
    Audiences(Both<Values>),
    Presenter(Both<Values>),
    Claim(Box<[String]>, Both<Values>),
}

impl<V> Both<V> {
    fn compile(
        condition: &snapshot::Condition,
        mut compile: impl FnMut(&[ValueMatch]) -> Result<V, String>,
    ) -> Result<Self, String> {
        Ok(Self { is: compile(&condition.values)?, not: compile(&condition.not_values)? })
    }
}

impl Both<Values> {
    /// An absent attribute matches no value.
    fn hold(&self, text: Option<&[u8]>) -> bool {
        let any = |values: &Values| text.is_some_and(|text| values.match_text(text));
        (self.is.is_empty() || any(&self.is)) && !any(&self.not)
    }

    /// For attributes that are lists: a value matches if it matches any element.
    fn hold_list<'a>(&self, texts: impl Iterator<Item = &'a str> + Clone) -> bool {
        let any = |values: &Values| texts.clone().any(|text| values.match_text(text.as_bytes()));
        (self.is.is_empty() || any(&self.is)) && (self.not.is_empty() || !any(&self.not))
    }
}

impl<T> Both<Box<[T]>> {
    fn hold_by(&self, matches: impl Fn(&T) -> bool) -> bool {
        (self.is.is_empty() || self.is.iter().any(&matches)) && !self.not.iter().any(&matches)
    }
}

impl Condition {
    /// Compiles a condition; `domains` are the trust domains that are ours.
    pub(super) fn compile(condition: &snapshot::Condition, domains: &TrustDomains) -> Result<Self, String> {
        let text = |fold| Both::compile(condition, |values| Values::compile(values, fold));
        let connection = |test| Ok(Self::Connection(test));
        let request = |test| Ok(Self::Request(Arc::new(test)));
        match &condition.attribute {
            Attribute::SourcePrincipal => {
                let expanded = |values: &[ValueMatch]| Values::compile(&domains.expand(values), false);
                connection(ConnectionTest::Principal(Both::compile(condition, expanded)?))
            }
            Attribute::SourceNamespace => {
                connection(ConnectionTest::Namespace(Both::compile(condition, namespaces)?))
            }
            Attribute::SourceServiceAccount => {
                connection(ConnectionTest::ServiceAccount(Both::compile(condition, service_accounts)?))
            }
            Attribute::SourceTrustDomain => connection(ConnectionTest::TrustDomain(text(false)?)),
            Attribute::SourceIp => connection(ConnectionTest::SourceIp(Both::compile(condition, nets)?)),
            Attribute::DestinationIp => {
                connection(ConnectionTest::DestinationIp(Both::compile(condition, nets)?))
            }
            Attribute::DestinationPort => {
                connection(ConnectionTest::DestinationPort(Both::compile(condition, ports)?))
            }
            Attribute::Sni => connection(ConnectionTest::Sni(text(false)?)),
            Attribute::Host => request(RequestTest::Host(text(true)?)),
            Attribute::Method => request(RequestTest::Method(text(false)?)),
            Attribute::Path => request(RequestTest::Path(text(false)?)),
            Attribute::Header(name) => request(RequestTest::Header(filters::name(name)?, text(false)?)),
            Attribute::RemoteIp => request(RequestTest::RemoteIp(Both::compile(condition, nets)?)),
            Attribute::RequestPrincipal => {
                request(RequestTest::User(UserTest::Principal(Both::compile(condition, request_principals)?)))
            }
            Attribute::RequestAudiences => request(RequestTest::User(UserTest::Audiences(text(false)?))),
            Attribute::RequestPresenter => request(RequestTest::User(UserTest::Presenter(text(false)?))),
            Attribute::RequestClaim(path) => {
                request(RequestTest::User(UserTest::Claim(path.as_slice().into(), text(false)?)))
            }
        }
    }

    /// For an opaque connection; `None`: only HTTP has the attribute.
    pub(super) fn for_tcp(&self) -> Option<ConnectionTest> {
        match self {
            Self::Connection(test) => Some(test.clone()),
            Self::Request(test) => match &**test {
                RequestTest::RemoteIp(nets) => Some(ConnectionTest::RemoteIp(nets.clone())),
                _ => None,
            },
        }
    }
}

fn namespaces(values: &[ValueMatch]) -> Result<Box<[NamespaceGlob]>, String> {
    let glob = |value: &ValueMatch| match value {
        ValueMatch::Cidr(_) | ValueMatch::Port(_) | ValueMatch::PathTemplate(_) => {
            Err(format!("{} is no namespace", display(value)))
        }
        value => Ok(NamespaceGlob::new(&display(value))),
    };
    values.iter().map(glob).collect()
}

fn service_accounts(values: &[ValueMatch]) -> Result<Box<[ServiceAccount]>, String> {
    let account = |value: &ValueMatch| match value {
        ValueMatch::Exact(text) => ServiceAccount::parse(text),
        value => Err(format!("{} is no service account: it takes no wildcard", display(value))),
    };
    values.iter().map(account).collect()
}

fn request_principals(values: &[ValueMatch]) -> Result<Box<[RequestPrincipal]>, String> {
    values.iter().map(RequestPrincipal::compile).collect()
}

fn nets(values: &[ValueMatch]) -> Result<Box<[IpNet]>, String> {
    let net = |value: &ValueMatch| match value {
        ValueMatch::Cidr(net) => Ok(*net),
        value => Err(format!("{} is no address block", display(value))),
    };
    values.iter().map(net).collect()
}

fn ports(values: &[ValueMatch]) -> Result<Box<[u16]>, String> {
    let port = |value: &ValueMatch| match value {
        ValueMatch::Port(port) => Ok(*port),
        value => Err(format!("{} is no port", display(value))),
    };
    values.iter().map(port).collect()
}

/// The trust domains that are ours (Istio `trustdomain.Bundle`).
pub(super) struct TrustDomains(Vec<String>);

/// In a policy: the local trust domain and its aliases, whatever their names.
const LOCAL: &str = "cluster.local";

impl TrustDomains {
    pub(super) fn new(mesh: &snapshot::Mesh) -> Self {
        Self(std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases).cloned().collect())
    }

    /// A principal of one of our domains stands for the same one in each of them.
    fn expand(&self, values: &[ValueMatch]) -> Vec<ValueMatch> {
        values.iter().flat_map(|value| self.expand_one(value)).collect()
    }

    pub(super) fn expand_one(&self, value: &ValueMatch) -> Vec<ValueMatch> {
        let text = display(value);
        // Only `<trust domain>/ns/<namespace>/sa/<account>` names a trust domain.
        let Some((domain, path)) = text.split_once('/') else { return vec![value.clone()] };
        if *value == ValueMatch::Present || path.split('/').count() != 4 || domain == "*" {
            return vec![value.clone()];
        }
        if domain != LOCAL && !self.0.iter().any(|ours| either_way(domain, ours)) {
            return vec![value.clone()];
        }
        let mut expanded: Vec<ValueMatch> = Vec::new();
        for ours in &self.0 {
            // `*-td/ns/..` already covers the domains that end so.
            let covered = domain.strip_prefix('*').is_some_and(|suffix| ours.ends_with(suffix));
            let each = if covered { value.clone() } else { wildcard(&format!("{ours}/{path}")) };
            if !expanded.contains(&each) {
                expanded.push(each);
            }
        }
        expanded
    }
}

/// Equal, or one a `*` form of the other.
fn either_way(a: &str, b: &str) -> bool {
    let covers = |pattern: &str, text: &str| {
        pattern == text
            || pattern.strip_suffix('*').is_some_and(|prefix| text.starts_with(prefix))
            || pattern.strip_prefix('*').is_some_and(|suffix| text.ends_with(suffix))
    };
    covers(a, b) || covers(b, a)
}

impl ConnectionTest {
    pub(super) fn holds(&self, connection: &ConnectionAttributes<'_>) -> bool {
        let identity = connection.source_identity;
        match self {
            Self::Principal(both) => both.hold(principal(connection).map(str::as_bytes)),
            Self::Namespace(both) => both.hold_by(|glob| identity.is_some_and(|id| glob.matches(id))),
            Self::ServiceAccount(both) => {
                both.hold_by(|account| principal(connection).is_some_and(|id| account.matches(id)))
            }
            Self::TrustDomain(both) => both.hold(trust_domain(connection).map(str::as_bytes)),
            Self::SourceIp(both) => both.hold_by(|net| net.contains(&connection.source_ip.to_canonical())),
            Self::RemoteIp(both) => both.hold_by(|net| net.contains(&connection.remote_ip.to_canonical())),
            Self::DestinationIp(both) => {
                both.hold_by(|net| net.contains(&connection.destination_ip.to_canonical()))
            }
            Self::DestinationPort(both) => both.hold_by(|port| *port == connection.destination_port),
            Self::Sni(both) => both.hold(connection.sni.map(str::as_bytes)),
        }
    }
}

/// The URI SAN without `spiffe://`.
pub(super) fn principal<'a>(connection: &ConnectionAttributes<'a>) -> Option<&'a str> {
    connection.source_identity.map(|identity| identity.strip_prefix("spiffe://").unwrap_or(identity))
}

pub(super) fn trust_domain<'a>(connection: &ConnectionAttributes<'a>) -> Option<&'a str> {
    principal(connection).map(|principal| principal.split_once('/').map_or(principal, |(domain, _)| domain))
}

/// A request as conditions ask it: attributes, and the host in lower case.
pub(super) struct Asked<'a> {
    pub(super) attributes: &'a RequestAttributes<'a>,
    host: Host<'a>,
}

enum Host<'a> {
    Absent,
    AsSent(&'a [u8]),
    Lowered(SmallVec<[u8; 64]>),
}

impl<'a> Asked<'a> {
    pub(super) fn new(attributes: &'a RequestAttributes<'a>) -> Self {
        let host = match attributes.host.map(str::as_bytes) {
            None => Host::Absent,
            Some(host) if !host.iter().any(u8::is_ascii_uppercase) => Host::AsSent(host),
            Some(host) => {
                let mut lowered = SmallVec::from_slice(host);
                lowered.make_ascii_lowercase();
                Host::Lowered(lowered)
            }
        };
        Self { attributes, host }
    }

    pub(super) fn host(&self) -> Option<&[u8]> {
        match &self.host {
            Host::Absent => None,
            Host::AsSent(host) => Some(host),
            Host::Lowered(host) => Some(host),
        }
    }

    pub(super) fn remote_ip(&self) -> Option<IpAddr> {
        self.attributes.remote_ip.map(|address| address.to_canonical())
    }
}

impl RequestTest {
    /// True for conditions on the end user: what is charged to `user-authorization`.
    pub(super) fn asks_user(&self) -> bool {
        matches!(self, Self::User(_))
    }

    pub(super) fn holds(&self, request: &Asked<'_>) -> bool {
        match self {
            Self::Host(both) => both.hold(request.host()),
            Self::Method(both) => both.hold(Some(request.attributes.method.as_bytes())),
            Self::Path(both) => both.hold(Some(request.attributes.path.as_bytes())),
            Self::Header(name, both) => match header_text(request.attributes.headers, name) {
                Some(text) => both.hold(Some(text.as_bytes())),
                None => both.hold(None),
            },
            Self::RemoteIp(both) => {
                let remote = request.remote_ip();
                both.hold_by(|net| remote.is_some_and(|address| net.contains(&address)))
            }
            Self::User(test) => test.holds(request.attributes.user),
        }
    }
}

impl UserTest {
    fn holds(&self, user: Option<&UserAttributes>) -> bool {
        match self {
            Self::Principal(both) => {
                both.hold_by(|principal| user.is_some_and(|u| principal.matches(&u.issuer, &u.subject)))
            }
            Self::Audiences(both) => {
                both.hold_list(user.into_iter().flat_map(|user| user.audiences.iter().map(String::as_str)))
            }
            Self::Presenter(both) => {
                both.hold(user.and_then(|user| user.presenter.as_deref()).map(str::as_bytes))
            }
            Self::Claim(path, both) => {
                let values = user.map(|user| claim(user, path)).unwrap_or_default();
                both.hold_list(values.iter().copied())
            }
        }
    }
}

/// The texts of a claim.
pub(super) fn claim<'a>(user: &'a UserAttributes, path: &[String]) -> SmallVec<[&'a str; 4]> {
    let Some((first, nested)) = path.split_first() else { return SmallVec::new() };
    let found = user.claims.get(first);
    let found = nested.iter().fold(found, |value, key| value?.as_object()?.get(key));
    found.map_or_else(SmallVec::new, |value| claim_texts(value, nested.is_empty() && is_word_list(first)))
}
