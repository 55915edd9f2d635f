//! RateLimits: which of them count a request or an opaque connection, and by what.

use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use control_client::snapshot::{self, Attribute, LimiterIndex};
use http::{HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::attributes::{ConnectionAttributes, HeaderText, RequestAttributes, header_text};
use super::condition::{Asked, Condition, RequestTest, TrustDomains, claim, principal, trust_domain};
use super::filters;
use super::rule::Conditions;
use super::services::Backend;
use super::{CompileError, Located};
use crate::decision::PolicyRef;

/// All that are selected for the workload.
#[derive(Debug, Default)]
pub struct RateLimits {
    /// By object and rule.
    rules: Box<[RateLimit]>,
    /// The first object that could not be understood: whatever it selects, which is everything here, is refused.
    pub quarantined: Option<PolicyRef>,
    after_authentication: bool,
}

/// A rule of a RateLimit.
#[derive(Debug)]
pub struct RateLimit {
    /// Which it is.
    pub policy: PolicyRef,
    /// When it is taken.
    pub phase: LimitPhase,
    /// What callers know it by, quoted: an Item of RateLimit headers without its parameters.
    pub name: Box<str>,
    /// Counted here.
    pub local: Option<LocalLimit>,
    /// Counted by a service.
    pub global: Option<GlobalLimit>,
    key: Box<[KeyPart]>,
    conditions: Conditions<Condition>,
    /// It counts opaque connections too: nothing of it is asked of requests.
    counts_connections: bool,
}

/// When a limit is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitPhase {
    /// Before anything costly.
    BeforeAuthentication,
    /// As soon as the end user is known, for whom it asks.
    AfterAuthentication,
}

/// What is counted here.
#[derive(Debug)]
pub struct LocalLimit {
    /// Number of its buckets among those of these tables.
    pub number: u32,
    /// The same only for the same limit, over all versions of the policy.
    pub id: Box<str>,
    /// As written.
    pub rate: snapshot::LocalLimit,
    /// Value of `RateLimit-Policy`.
    pub header: HeaderValue,
}

/// What a service counts.
#[derive(Debug)]
pub struct GlobalLimit {
    /// Which; `None`: nobody is there to be asked.
    pub limiter: Option<LimiterIndex>,
    /// Domain of the question.
    pub domain: Box<str>,
    /// What can't be asked about goes on.
    pub fail_open: bool,
    /// How many it counts as; 0: as the service wants.
    pub hits_addend: u32,
}

/// A service that counts for all proxies.
#[derive(Debug)]
pub struct RateLimiter {
    /// As limits and records name it.
    pub name: Arc<str>,
    /// Where it is; `None`: nowhere, so that what asks it is refused.
    pub backend: Option<Backend>,
    /// For the whole of one question.
    pub timeout: Duration,
}

/// What is still to be asked of requests on one connection, limit by limit: those that can count any.
#[derive(Debug, Default)]
pub struct LimitsOnConnection(Box<[(u32, Conditions<Arc<RequestTest>>)]>);

/// Limits that count one request; each is taken.
pub type Counting<'t> = SmallVec<[&'t RateLimit; 2]>;

/// An attribute of a key.
#[derive(Debug)]
struct KeyPart {
    /// As written: what a service sees as its name.
    name: Box<str>,
    of: KeyOf,
}

#[derive(Debug)]
enum KeyOf {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    SourceIp,
    DestinationIp,
    DestinationPort,
    Sni,
    RemoteIp,
    Host,
    Method,
    Path,
    Header(HeaderName),
    RequestPrincipal,
    Audiences,
    Presenter,
    Claim(Box<[String]>),
}

/// What an attribute of a key is, of one request.
enum Value<'a> {
    Absent,
    Text(&'a [u8]),
    Header(HeaderText<'a>),
    /// Texts that only together are the value, with what stands between them.
    Texts(SmallVec<[&'a str; 4]>, &'static str),
    /// Without regard to case.
    Host(SmallVec<[u8; 64]>),
    Address(IpAddr),
    Port(u16),
}

/// Bytes of a value that a service sees.
const MAX_VALUE: usize = 1024;
/// The name of a limit that has none. Its object's is not for callers.
const NAMELESS: &str = "default";

impl RateLimits {
    /// Compiles all objects. One that can't be compiled fails closed, and is told of beside.
    pub(super) fn compile(policy: &snapshot::Policy) -> (Self, Vec<CompileError>) {
        let domains = TrustDomains::new(&policy.mesh);
        let (mut rules, mut quarantined, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        let mut objects: Vec<_> = policy.rate_limits.iter().collect();
        objects.sort_by_key(|each| each.object);
        for object in objects {
            if object.quarantined {
                quarantined.push(PolicyRef::object(object.object));
                continue;
            }
            let compile = |rule| RateLimit::compile(object.object, rule, &domains, policy);
            match object.rules.iter().map(compile).collect::<Result<Vec<_>, _>>() {
                Ok(compiled) => rules.extend(compiled),
                Err(error) => {
                    quarantined.push(PolicyRef::object(object.object));
                    refused.push(error);
                }
            }
        }
        for (number, local) in
            rules.iter_mut().filter_map(|rule: &mut RateLimit| rule.local.as_mut()).enumerate()
        {
            local.number = number as u32;
        }
        let after = rules.iter().any(|rule| rule.phase == LimitPhase::AfterAuthentication);
        let quarantined = quarantined.into_iter().min();
        (Self { rules: rules.into(), quarantined, after_authentication: after }, refused)
    }

    /// Nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.quarantined.is_none()
    }

    /// Whether any has to wait for the end user.
    pub fn ask_for_users(&self) -> bool {
        self.after_authentication
    }

    /// What is counted here, by number.
    pub fn local(&self) -> impl Iterator<Item = (&LocalLimit, bool)> {
        self.rules.iter().filter_map(|rule| rule.local.as_ref().map(|local| (local, !rule.key.is_empty())))
    }

    /// The limits that can count requests of a connection.
    pub fn on(&self, connection: &ConnectionAttributes<'_>) -> LimitsOnConnection {
        let rules = self.rules.iter().zip(0..);
        let left = rules.filter_map(|(rule, at)| Some((at, rule.conditions.on(connection)?)));
        LimitsOnConnection(left.collect())
    }

    /// The limits that count a request and are taken in a phase. `on`: of these tables and its connection.
    pub fn counting(
        &self,
        on: &LimitsOnConnection,
        phase: LimitPhase,
        request: &RequestAttributes<'_>,
    ) -> Counting<'_> {
        let request = Asked::new(request);
        let rules = on.0.iter().map(|(at, conditions)| (&self.rules[*at as usize], conditions));
        let counting = rules.filter(|(rule, conditions)| rule.phase == phase && conditions.hold(&request));
        counting.map(|(rule, _)| rule).collect()
    }

    /// The limits that count an opaque connection: those that ask for nothing of HTTP.
    pub fn counting_connection(&self, connection: &ConnectionAttributes<'_>) -> Counting<'_> {
        let counts = |rule: &&RateLimit| rule.counts_connections && rule.conditions.hold_for_tcp(connection);
        self.rules.iter().filter(counts).collect()
    }
}

impl RateLimit {
    fn compile(
        object: u32,
        rule: &snapshot::RateLimitRule,
        domains: &TrustDomains,
        policy: &snapshot::Policy,
    ) -> Result<Self, CompileError> {
        let objects = &policy.objects;
        let index = rule.matches.index;
        let conditions = Conditions::compile(object, &rule.matches, domains, objects)?;
        let field = |part: &str| format!("spec.rules[{index}].{part}");
        let part =
            |part: &snapshot::KeyPart| KeyPart::compile(part).map_err(|message| (field("key"), message));
        let key = rule.key.iter().map(part).collect::<Result<Box<[_]>, _>>();
        let key = key.or_else(|(field, message)| Err(message).located(object, objects, &field))?;
        let of_user = rule.key.iter().any(snapshot::KeyPart::of_user)
            || conditions.iter().any(|condition| condition.asks_user());
        let of_connections = key.iter().all(|part| part.of.is_of_connections())
            && conditions.iter().all(|condition| condition.for_tcp().is_some());
        let name = rule.name.as_deref().unwrap_or(NAMELESS);
        let limiters = policy.limiters.len();
        if let Some(missing) = rule.global.as_ref().and_then(|global| global.limiter)
            && missing as usize >= limiters
        {
            let message = format!("there is no limiter #{missing}");
            return Err(message).located(object, objects, &field("global"));
        }
        let local = rule.local.map(|rate| {
            let header = format!("\"{name}\";q={};w={}", rate.requests, rate.per.as_secs().max(1));
            let header = HeaderValue::try_from(header).map_err(|error| error.to_string());
            Ok(LocalLimit { number: 0, id: id(object, rule, rate, objects), rate, header: header? })
        });
        Ok(Self {
            policy: PolicyRef::rule(object, index),
            phase: if of_user { LimitPhase::AfterAuthentication } else { LimitPhase::BeforeAuthentication },
            name: format!("\"{name}\"").into(),
            local: local.transpose().located(object, objects, &field("name"))?,
            global: rule.global.as_ref().map(|global| GlobalLimit {
                limiter: global.limiter,
                domain: global.domain.as_str().into(),
                fail_open: global.fail_open,
                hits_addend: global.hits_addend,
            }),
            key,
            conditions,
            counts_connections: of_connections,
        })
    }

    /// Feeds a hasher what tells keys apart. `request`: `None` of an opaque connection.
    pub fn hash(
        &self,
        connection: &ConnectionAttributes<'_>,
        request: Option<&RequestAttributes<'_>>,
        mut hasher: impl Hasher,
    ) -> u64 {
        if self.key.is_empty() {
            return 0;
        }
        self.key.iter().for_each(|part| part.of.value(connection, request).hash(&mut hasher));
        hasher.finish()
    }

    /// The same as a service is told: names and values. An absent value is an empty text there.
    pub fn entries(
        &self,
        connection: &ConnectionAttributes<'_>,
        request: Option<&RequestAttributes<'_>>,
    ) -> Vec<(String, String)> {
        let entry = |part: &KeyPart| {
            let mut text = part.of.value(connection, request).to_text();
            text.truncate(text.floor_char_boundary(MAX_VALUE));
            (part.name.to_string(), text)
        };
        if self.key.is_empty() {
            // A descriptor is never empty: Envoy's name for what is the same for all.
            return vec![("generic_key".into(), self.name.trim_matches('"').into())];
        }
        self.key.iter().map(entry).collect()
    }
}

/// What stays the same while the limit does: where it stands, how it counts, and by what.
fn id(
    object: u32,
    rule: &snapshot::RateLimitRule,
    rate: snapshot::LocalLimit,
    objects: &[snapshot::ObjectRef],
) -> Box<str> {
    let (namespace, name) =
        objects.get(object as usize).map_or(("", ""), |object| (&object.namespace, &object.name));
    let rule_name = match &rule.name {
        Some(name) => format!("rule {name}"),
        None => rule.matches.index.to_string(),
    };
    let key: Vec<&str> = rule.key.iter().map(|part| part.name.as_str()).collect();
    let snapshot::LocalLimit { requests, per, burst } = rate;
    format!("{namespace}/{name}/{rule_name}: {requests} in {per:?}, {burst} at once, by {}", key.join(" "))
        .into()
}

impl RateLimiter {
    pub(super) fn compile(limiter: &snapshot::RateLimiter, backends: &[Backend]) -> Self {
        let backend = limiter.backend.and_then(|index| backends.get(index as usize));
        Self {
            name: limiter.name.as_str().into(),
            backend: backend.map(|backend| backend.speaking(snapshot::Protocol::Grpc)),
            timeout: limiter.timeout,
        }
    }
}

impl KeyPart {
    fn compile(part: &snapshot::KeyPart) -> Result<Self, String> {
        let of = match &part.attribute {
            Attribute::SourcePrincipal => KeyOf::Principal,
            Attribute::SourceNamespace => KeyOf::Namespace,
            Attribute::SourceServiceAccount => KeyOf::ServiceAccount,
            Attribute::SourceTrustDomain => KeyOf::TrustDomain,
            Attribute::SourceIp => KeyOf::SourceIp,
            Attribute::RemoteIp => KeyOf::RemoteIp,
            Attribute::DestinationIp => KeyOf::DestinationIp,
            Attribute::DestinationPort => KeyOf::DestinationPort,
            Attribute::Sni => KeyOf::Sni,
            Attribute::Host => KeyOf::Host,
            Attribute::Method => KeyOf::Method,
            Attribute::Path => KeyOf::Path,
            Attribute::Header(name) => KeyOf::Header(filters::name(name)?),
            Attribute::RequestPrincipal => KeyOf::RequestPrincipal,
            Attribute::RequestAudiences => KeyOf::Audiences,
            Attribute::RequestPresenter => KeyOf::Presenter,
            Attribute::RequestClaim(path) => KeyOf::Claim(path.as_slice().into()),
        };
        Ok(Self { name: part.name.as_str().into(), of })
    }
}

impl KeyOf {
    /// Known of an opaque connection.
    fn is_of_connections(&self) -> bool {
        matches!(
            self,
            Self::Principal
                | Self::Namespace
                | Self::ServiceAccount
                | Self::TrustDomain
                | Self::SourceIp
                | Self::RemoteIp
                | Self::DestinationIp
                | Self::DestinationPort
                | Self::Sni
        )
    }

    fn value<'a>(
        &self,
        connection: &ConnectionAttributes<'a>,
        request: Option<&RequestAttributes<'a>>,
    ) -> Value<'a> {
        let text = |text: Option<&'a str>| text.map_or(Value::Absent, |text| Value::Text(text.as_bytes()));
        let user = request.and_then(|request| request.user);
        match self {
            Self::Principal => text(principal(connection)),
            Self::Namespace => text(kubernetes(connection).map(|(namespace, _)| namespace)),
            Self::ServiceAccount => kubernetes(connection).map_or(Value::Absent, |(namespace, account)| {
                Value::Texts([namespace, account].into_iter().collect(), "/")
            }),
            Self::TrustDomain => text(trust_domain(connection)),
            Self::SourceIp => Value::Address(connection.source_ip.to_canonical()),
            Self::RemoteIp => {
                let remote = request.and_then(|request| request.remote_ip);
                Value::Address(remote.unwrap_or(connection.remote_ip).to_canonical())
            }
            Self::DestinationIp => Value::Address(connection.destination_ip.to_canonical()),
            Self::DestinationPort => Value::Port(connection.destination_port),
            Self::Sni => text(connection.sni),
            Self::Host => request.and_then(|request| request.host).map_or(Value::Absent, |host| {
                let mut host = SmallVec::from_slice(host.as_bytes());
                host.make_ascii_lowercase();
                Value::Host(host)
            }),
            Self::Method => text(request.map(|request| request.method)),
            Self::Path => text(request.map(|request| request.path)),
            Self::Header(name) => {
                let found = request.and_then(|request| header_text(request.headers, name));
                found.map_or(Value::Absent, Value::Header)
            }
            Self::RequestPrincipal => user.map_or(Value::Absent, |user| {
                Value::Texts([&*user.issuer, &*user.subject].into_iter().collect(), "/")
            }),
            Self::Audiences => user.map_or(Value::Absent, |user| {
                Value::Texts(user.audiences.iter().map(String::as_str).collect(), ",")
            }),
            Self::Presenter => text(user.and_then(|user| user.presenter.as_deref())),
            Self::Claim(path) => match user.map(|user| claim(user, path)) {
                Some(texts) if !texts.is_empty() => Value::Texts(texts, ","),
                _ => Value::Absent,
            },
        }
    }
}

/// Namespace and service account of an identity `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
fn kubernetes<'a>(connection: &ConnectionAttributes<'a>) -> Option<(&'a str, &'a str)> {
    let (_, path) = principal(connection)?.split_once('/')?;
    path.strip_prefix("ns/")?.split_once("/sa/").filter(|(namespace, account)| {
        !namespace.is_empty() && !namespace.contains('/') && !account.is_empty() && !account.contains('/')
    })
}

impl Value<'_> {
    /// So that no two values feed the same.
    fn hash(&self, hasher: &mut impl Hasher) {
        match self {
            Self::Absent => hasher.write_u8(0),
            Self::Text(text) => write_text(hasher, text),
            Self::Header(text) => write_text(hasher, text.as_bytes()),
            Self::Texts(texts, _) => {
                hasher.write_u8(2);
                hasher.write_usize(texts.len());
                texts.iter().for_each(|text| write_text(hasher, text.as_bytes()));
            }
            Self::Host(host) => write_text(hasher, host),
            Self::Address(IpAddr::V4(address)) => {
                hasher.write_u8(4);
                hasher.write_u32(u32::from(*address));
            }
            Self::Address(IpAddr::V6(address)) => {
                hasher.write_u8(6);
                hasher.write_u128(u128::from(*address));
            }
            Self::Port(port) => hasher.write_u16(*port),
        }
    }

    fn to_text(&self) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self {
            Self::Absent => String::new(),
            Self::Text(bytes) => text(bytes),
            Self::Header(found) => text(found.as_bytes()),
            Self::Host(host) => text(host),
            Self::Texts(texts, between) => texts.join(between),
            Self::Address(address) => address.to_string(),
            Self::Port(port) => port.to_string(),
        }
    }
}

fn write_text(hasher: &mut impl Hasher, text: &[u8]) {
    hasher.write_u8(1);
    hasher.write_usize(text.len());
    hasher.write(text);
}
