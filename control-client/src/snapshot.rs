//! What the accepted resources mean for one workload: plain data, and the contract with the proxy.
//!
//! A [`Snapshot`] has two halves. [`Policy`] is what people wrote, compiled for this workload; the proxy turns it
//! into tables, swapped whole. [`Endpoints`] is who serves each backend now; each set is swapped alone. An update
//! that moves only endpoints carries the very same `Arc<Policy>`, so that nobody recompiles a route for it.

mod authentication;
mod gateway;
mod limits;
mod tls;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use authentication::{
    ClaimHeader, JwtRule, KeyLocation, KeySource, RemoteKeys, RequestAuthentication, TokenLocation,
};
pub use gateway::{Gateway, GatewayListener, ListenerTls, VirtualHost};
pub use limits::{GlobalLimit, KeyPart, LimiterIndex, LocalLimit, RateLimit, RateLimitRule, RateLimiter};
pub use tls::{Pem, PemObject, ServerId, TlsOrigination};

/// Everything one proxy needs, at one version.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// This process's own counter of snapshots, from 1.
    pub version: u64,
    /// Where the intent came from, when the source knows: `git:1c0ffee`.
    pub revision: Option<String>,
    /// The half that people wrote.
    pub policy: Arc<Policy>,
    /// Who serves each backend now.
    pub endpoints: Arc<Endpoints>,
    /// Who is revoked, as far as it is said here.
    pub revocation: RevocationLists,
    /// Digest over endpoints and other live data, `sha256:..`.
    pub runtime_digest: String,
    /// What became of each resource, for `/config`, metrics and the log. Sorted by object.
    pub verdicts: Arc<Vec<crate::verdict::Verdict>>,
    /// The snapshot is the last known good one and its source can't be reached.
    pub stale: bool,
    /// Whether it is all that was written. Another one alone makes no new version.
    pub health: crate::Health,
}

/// Revocation lists that are published in the root namespace, as istiod does: ConfigMap `istio-ca-crl`, key `ca-crl.pem`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RevocationLists {
    /// Nothing is said.
    #[default]
    Absent,
    /// These, PEM; empty: nobody is.
    Lists(PemObject),
    /// Something is said that can't be understood, and nothing was before: what is wrong.
    Unreadable(String),
}

/// The policy half of a snapshot. `PartialEq` decides whether an update recompiles tables.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    /// Digest over the objects a human writes, `sha256:..` (the same for re-ordered, re-commented, re-split copies).
    pub digest: String,
    /// The objects that references in this policy name by index. Sorted by kind, namespace, name.
    pub objects: Vec<ObjectRef>,
    /// Mesh-wide settings.
    pub mesh: Mesh,
    /// Whether plaintext is accepted, by port.
    pub peer_authentication: PeerAuthentication,
    /// Which tokens are asked for, by all that is selected for this workload.
    pub request_authentication: Vec<RequestAuthentication>,
    /// Policies selected for this workload; CUSTOM, AUDIT, DENY and ALLOW in any order.
    pub authorization: Vec<AuthorizationPolicy>,
    /// The workload's own ports, as Services and declarations name them.
    pub inbound_ports: Vec<InboundPort>,
    /// The Gateway that this proxy serves.
    pub gateway: Option<Gateway>,
    /// Services this workload can call.
    pub services: Vec<Service>,
    /// Backends that `gateway`, `services`, `providers` and `limiters` name by index.
    pub backends: Vec<Backend>,
    /// Authorization providers that `authorization` names by index.
    pub providers: Vec<Provider>,
    /// RateLimits selected for this workload, in any order.
    pub rate_limits: Vec<RateLimit>,
    /// Services that `rate_limits` name by index.
    pub limiters: Vec<RateLimiter>,
    /// What is wrong, and where, with those of `objects` that fail closed. For records, never for callers.
    pub problems: BTreeMap<ObjectIndex, String>,
}

/// Index into [`Policy::objects`].
pub type ObjectIndex = u32;
/// Index into [`Policy::backends`].
pub type BackendIndex = u32;
/// Index into [`Policy::providers`].
pub type ProviderIndex = u32;

/// An object as records name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// `AuthorizationPolicy`, `HTTPRoute`, ...
    pub kind: String,
    /// Its namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Object digest, `sha256:..`.
    pub digest: String,
}

/// MeshSettings, defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Mesh {
    /// Namespace whose policies apply to the whole mesh. Default `istio-system`.
    pub root_namespace: String,
    /// This proxy's own trust domain.
    pub trust_domain: String,
    /// Other trust domains to be treated as ours.
    pub trust_domain_aliases: Vec<String>,
    /// What happens to outbound traffic that no service owns.
    pub outbound: OutboundTrafficPolicy,
    /// Identities (`spiffe://..`; exact, prefix* or *suffix) whose `x-forwarded-client-cert` is appended to, not replaced.
    pub forwarding_identities: Vec<String>,
    /// Who may say for whom a request comes.
    pub trusted_forwarders: TrustedForwarders,
    /// Who says by the PROXY protocol for whom a connection comes.
    pub proxy_protocol: ProxyProtocol,
    /// Path normalisation before matching.
    pub path_normalization: PathNormalization,
    /// What becomes of a path that could still be read in another way.
    pub ambiguous_paths: AmbiguousPaths,
    /// What becomes of connections whose credential expires.
    pub expired_credentials: ExpiredCredentials,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            root_namespace: "istio-system".into(),
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: Vec::new(),
            outbound: OutboundTrafficPolicy::AllowAny,
            forwarding_identities: Vec::new(),
            trusted_forwarders: TrustedForwarders::default(),
            proxy_protocol: ProxyProtocol::default(),
            path_normalization: PathNormalization::Base,
            ambiguous_paths: AmbiguousPaths::RefuseTraversal,
            expired_credentials: ExpiredCredentials::Cut,
        }
    }
}

/// MeshSettings `outboundTrafficPolicy.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutboundTrafficPolicy {
    /// Unknown destinations are passed on.
    #[default]
    AllowAny,
    /// Unknown destinations are refused.
    RegistryOnly,
}

/// MeshSettings `trustedForwarders`: direct peers whose X-Forwarded-For decides `remote.ip`. Nobody's by default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrustedForwarders {
    /// Verified identities (`spiffe://..`; exact, prefix* or *suffix).
    pub identities: Vec<String>,
    /// Addresses.
    pub ip_blocks: Vec<IpNet>,
    /// As in Istio's `gatewayTopology`: so many proxies in front of the direct peer are trusted as well, whose addresses
    /// stand last in X-Forwarded-For and are passed over. Default 0: the last entry is the client.
    pub num_trusted_proxies: u32,
}

/// MeshSettings `proxyProtocol`: inbound connections that must begin with a PROXY protocol header. None by default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProxyProtocol {
    /// Ports of workloads.
    pub ports: Vec<u16>,
    /// Senders; of others no header is read.
    pub ip_blocks: Vec<IpNet>,
}

/// MeshSettings `expiredCredentials`: of a peer's certificate or an end user's token that expires while a connection,
/// stream or tunnel is open. Revocation always cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExpiredCredentials {
    /// What was opened by it is cut.
    #[default]
    Cut,
    /// What is open may go on; whatever comes next needs a credential that is valid then.
    Keep,
}

/// MeshSettings `pathNormalization.normalization`, Istio's MeshConfig names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PathNormalization {
    /// NONE: matched as received.
    None,
    /// BASE (and DEFAULT): RFC 3986 dot segments, backslash to slash.
    #[default]
    Base,
    /// MERGE_SLASHES: BASE and duplicate slashes merged.
    MergeSlashes,
    /// DECODE_AND_MERGE_SLASHES: `%2F` and `%5C` decoded first.
    DecodeAndMergeSlashes,
}

/// MeshSettings `pathNormalization.ambiguous`: what becomes of a path that another reader than Writ could understand
/// differently even after normalisation. Where a `normalization` is named and this is not, Istio's meaning holds: KEEP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AmbiguousPaths {
    /// KEEP: matched and forwarded as it is, as Istio and Envoy do.
    Keep,
    /// REFUSE_TRAVERSAL: refused where another reading climbs: `/a%2f..%2fb`, `/%252e%252e/b`, `/..;/b`, `/%c0%ae./b`.
    #[default]
    RefuseTraversal,
    /// REFUSE: refused also with an escaped slash or backslash, an empty segment, `;`, or what is escaped twice.
    Refuse,
}

/// The merged PeerAuthentication of the workload.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PeerAuthentication {
    /// For ports not listed below.
    pub default: PeerMode,
    /// `portLevelMtls`, by workload port, merged. Sorted by port.
    pub ports: Vec<(u16, PeerMode)>,
}

/// A mode and the object that set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerMode {
    /// What is accepted.
    pub mode: MtlsMode,
    /// The PeerAuthentication that decided; `None` where Istio's default (PERMISSIVE) did.
    pub object: Option<ObjectIndex>,
    /// The object was quarantined and fails closed (STRICT).
    pub quarantined: bool,
}

/// PeerAuthentication `mtls.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MtlsMode {
    /// Plaintext and mTLS.
    #[default]
    Permissive,
    /// mTLS only.
    Strict,
    /// Plaintext only.
    Disable,
}

/// One AuthorizationPolicy selected for the workload.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthorizationPolicy {
    /// The object.
    pub object: ObjectIndex,
    /// `spec.action`.
    pub action: AuthorizationAction,
    /// ORed. Empty: an ALLOW that matches nothing and still counts; a DENY without effect.
    pub rules: Vec<AuthorizationRule>,
    /// `istio.io/dry-run: "true"`: shadow only, counts for nothing.
    pub dry_run: bool,
    /// The object could not be understood and fails closed: an ALLOW here has no rules, a DENY one rule that always matches.
    pub quarantined: bool,
    /// `writ.dev/expires-at` of an ALLOW policy.
    pub expires: Option<Expires>,
    /// Whom a CUSTOM policy asks. `None`: no such provider, so what the policy matches is denied.
    pub provider: Option<ProviderIndex>,
}

/// When an ALLOW policy ends to allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expires {
    /// Seconds since the epoch.
    pub at: i64,
    /// It has: the policy has no rules any more, and still counts.
    pub past: bool,
}

impl std::fmt::Display for Expires {
    /// The time as annotations have it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match jiff::Timestamp::from_second(self.at) {
            Ok(time) => time.fmt(f),
            Err(_) => write!(f, "{} s", self.at),
        }
    }
}

/// AuthorizationPolicy `spec.action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthorizationAction {
    /// Allow when matched.
    Allow,
    /// Deny when matched.
    Deny,
    /// Only marks.
    Audit,
    /// Ask [`AuthorizationPolicy::provider`]; without one what it matches is denied.
    Custom,
}

/// MeshSettings `extensionProviders[]`: an external authorization service.
#[derive(Debug, Clone, PartialEq)]
pub struct Provider {
    /// As policies and records name it.
    pub name: String,
    /// Where it is. `None`: no such service or port here, so what asks it is denied, whatever `fail_open` says.
    pub backend: Option<BackendIndex>,
    /// When it is asked.
    pub phase: ProviderPhase,
    /// For connecting, asking and the whole answer.
    pub timeout: Duration,
    /// What can't be asked about is allowed. An answer that can't be understood is refused all the same.
    pub fail_open: bool,
    /// Status of a refusal because it can't be asked. Default 403.
    pub status_on_error: u16,
    /// How much of request bodies it sees. `None`: nothing.
    pub body: Option<BodyInCheck>,
    /// What it speaks.
    pub protocol: ProviderProtocol,
}

/// When a provider is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProviderPhase {
    /// Before the end user is authenticated, as in Istio.
    #[default]
    BeforeAuthentication,
    /// Last, and only about what everything else allows.
    AfterAuthorization,
}

/// `includeRequestBodyInCheck`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyInCheck {
    /// At most so many bytes.
    pub max_bytes: u32,
    /// A longer body is shown by its beginning. Else the request is refused (413).
    pub allow_partial: bool,
    /// gRPC: as `raw_body`.
    pub as_bytes: bool,
}

/// What a provider speaks.
#[derive(Debug, Clone, PartialEq)]
pub enum ProviderProtocol {
    /// `envoy.service.auth.v3.Authorization/Check`.
    Grpc(GrpcCheck),
    /// A request like the one in question; 200 allows.
    Http(Box<HttpCheck>),
}

/// What a gRPC provider is told beyond the request itself, by the names of Envoy's `ext_authz`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GrpcCheck {
    /// `includePeerCertificate`: the caller's certificate.
    pub peer_certificate: bool,
    /// `metadataContextNamespaces` has [`JWT_METADATA`]: all claims of the verified token.
    pub user_claims: bool,
    /// `contextExtensions`.
    pub context_extensions: Vec<(String, String)>,
}

/// The namespace in which Envoy and Istio keep what a verified token claims, under `payload`.
pub const JWT_METADATA: &str = "envoy.filters.http.jwt_authn";

/// What an HTTP provider gets and gives. Header names in lower case.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HttpCheck {
    /// `host:port` for the authority where the request has none.
    pub authority: String,
    /// Before the path of the request.
    pub path_prefix: String,
    /// Request headers that it gets, beside Host and Authorization.
    pub request_headers: Vec<ValueMatch>,
    /// Headers that it gets besides.
    pub additional_headers: Vec<(String, String)>,
    /// Headers of its answer that replace the request's, when it allows.
    pub upstream_on_allow: Vec<ValueMatch>,
    /// Headers of its answer that the caller gets, when it denies. Empty: all.
    pub downstream_on_deny: Vec<ValueMatch>,
    /// Headers of its answer that the response gets, when it allows.
    pub downstream_on_allow: Vec<ValueMatch>,
}

/// `(OR over from) AND (OR over to) AND (AND over when)`; an empty list is "any".
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AuthorizationRule {
    /// Its number in `spec.rules`, from 0, as records name it.
    pub index: u16,
    /// `from[].source`: conditions of one source are ANDed, sources ORed.
    pub from: Vec<Vec<Condition>>,
    /// `to[].operation`: likewise.
    pub to: Vec<Vec<Condition>>,
    /// `when[]`, ANDed.
    pub when: Vec<Condition>,
}

/// One attribute against positive and negative values:
/// `(values empty OR any value matches) AND NOT(any not_value matches)`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Condition {
    /// What is looked at.
    pub attribute: Attribute,
    /// How users wrote it, for diagnostics and `considered`: `to.paths`, `when[request.headers[x-a]]`.
    pub field: String,
    /// ORed.
    pub values: Vec<ValueMatch>,
    /// ORed, then negated. An absent attribute matches no value.
    pub not_values: Vec<ValueMatch>,
}

/// An attribute of AuthorizationPolicy conditions (Istio names in comments).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Attribute {
    /// `principals`, `source.principal`: the URI SAN without `spiffe://`.
    SourcePrincipal,
    /// `namespaces`, `source.namespace`.
    SourceNamespace,
    /// `serviceAccounts`, `source.serviceAccount`; values are `namespace/name`.
    SourceServiceAccount,
    /// `trustDomains`, `source.trustDomain`.
    SourceTrustDomain,
    /// `ipBlocks`, `source.ip`: the direct peer.
    SourceIp,
    /// `remoteIpBlocks`, `remote.ip`: after trusted hops.
    RemoteIp,
    /// `requestPrincipals`, `request.auth.principal`.
    RequestPrincipal,
    /// `request.auth.audiences`.
    RequestAudiences,
    /// `request.auth.presenter`.
    RequestPresenter,
    /// `request.auth.claims[a][b]`.
    RequestClaim(Vec<String>),
    /// `hosts`: compared without case, port included as sent.
    Host,
    /// `methods`.
    Method,
    /// `paths`: without query, normalised.
    Path,
    /// `request.headers[name]`, name in lower case.
    Header(String),
    /// `ports`, `destination.port`: the workload's port.
    DestinationPort,
    /// `destination.ip`.
    DestinationIp,
    /// `connection.sni`.
    Sni,
}

impl Attribute {
    /// True for what only a token says.
    pub fn of_user(&self) -> bool {
        matches!(
            self,
            Self::RequestPrincipal | Self::RequestAudiences | Self::RequestPresenter | Self::RequestClaim(_)
        )
    }

    /// True when only an HTTP request has this attribute (see semantics: TCP rules).
    pub fn http_only(&self) -> bool {
        matches!(
            self,
            Self::Host
                | Self::Method
                | Self::Path
                | Self::Header(_)
                | Self::RemoteIp
                | Self::RequestPrincipal
                | Self::RequestAudiences
                | Self::RequestPresenter
                | Self::RequestClaim(_)
        )
    }
}

/// One value of a condition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ValueMatch {
    /// `abc`.
    Exact(String),
    /// `abc*`.
    Prefix(String),
    /// `*abc`.
    Suffix(String),
    /// `*`: present and not empty.
    Present,
    /// `namespaces` with `*` anywhere: the namespace against this pattern, where each `*` is `.*`.
    Glob(String),
    /// Paths with `{*}` (one segment) or `{**}` (the rest), parsed by the proxy.
    PathTemplate(String),
    /// IP attributes.
    Cidr(IpNet),
    /// Port attributes.
    Port(u16),
}

/// A port of this workload.
#[derive(Debug, Clone, PartialEq)]
pub struct InboundPort {
    /// The workload's port.
    pub port: u16,
    /// Declared protocol; `None`: detect.
    pub protocol: Option<Protocol>,
    /// `host:port` of the first Service (by name) that has this port as target, as records name it.
    pub service: Option<String>,
}

/// A declared protocol (`appProtocol`, else the port name's first word).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// `http`, `http1`, `http-web`.
    Http1,
    /// `http2`, `h2c`, `kubernetes.io/h2c`.
    Http2,
    /// `grpc`, `grpc-web`: HTTP/2.
    Grpc,
    /// `tcp` and server-speaks-first protocols (`mysql`, `redis`, `mongo`): opaque.
    Tcp,
    /// `https`, `tls`: opaque here, carried as it is.
    Tls,
}

/// A service this workload can call (Service or ServiceEntry), seen from this workload's namespace.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Full host name: `ratings.bookinfo.svc.cluster.local`, or a ServiceEntry host. Lower case.
    pub host: String,
    /// Every name it answers to in an authority, lower case, without port: `ratings`, `ratings.bookinfo`, ...
    /// A leading `*.` is a suffix match (ServiceEntry).
    pub names: Vec<String>,
    /// Virtual addresses; empty for headless services.
    pub addresses: Vec<IpAddr>,
    /// Kind, namespace and name of the object behind it, for records of a default route.
    pub object: Option<ObjectIndex>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServicePort {
    /// The service's port (not the workload's).
    pub port: u16,
    /// Declared protocol; `None`: detect.
    pub protocol: Option<Protocol>,
    /// The rules of all routes attached to this port, in no particular order: the proxy sorts by precedence.
    /// Empty: everything goes to `backend`. Not empty and none matches: `no-route`.
    pub routes: Vec<RouteRule>,
    /// Where traffic goes when there are no routes, and for TCP.
    pub backend: BackendIndex,
}

/// One rule of one HTTPRoute (later GRPCRoute).
#[derive(Debug, Clone, PartialEq)]
pub struct RouteRule {
    /// The route.
    pub object: ObjectIndex,
    /// The rule's number in the route, from 0.
    pub rule: u16,
    /// Creation time of the route, seconds since the epoch, for precedence; `None` sorts last.
    pub created: Option<i64>,
    /// ORed; empty means the default match, PathPrefix `/`.
    pub matches: Vec<RouteMatch>,
    /// Applied before sending.
    pub filters: Vec<RouteFilter>,
    /// Weighted choice.
    pub backends: Vec<WeightedBackend>,
    /// `timeouts.request`; `None`: no limit.
    pub request_timeout: Option<Duration>,
    /// `timeouts.backendRequest`; `None`: no limit.
    pub backend_timeout: Option<Duration>,
    /// `retry`.
    pub retry: Option<Retry>,
}

/// Conditions of one match, ANDed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RouteMatch {
    /// Default: prefix `/`.
    pub path: PathMatch,
    /// Exact method.
    pub method: Option<String>,
    /// Header conditions: lower-case name, value. First entry of a name only.
    pub headers: Vec<(String, TextMatch)>,
    /// Query conditions. First entry of a name only.
    pub query: Vec<(String, TextMatch)>,
}

/// HTTPRoute path match.
#[derive(Debug, Clone, PartialEq)]
pub enum PathMatch {
    /// Whole path.
    Exact(String),
    /// By segments, trailing `/` ignored.
    Prefix(String),
    /// RE2-like, whole path; compiles (checked by the control client).
    Regex(String),
}

impl Default for PathMatch {
    fn default() -> Self {
        Self::Prefix("/".into())
    }
}

/// Header or query value match.
#[derive(Debug, Clone, PartialEq)]
pub enum TextMatch {
    /// Equal.
    Exact(String),
    /// Whole value; compiles.
    Regex(String),
}

/// A filter of a rule, in listed order.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteFilter {
    /// RequestHeaderModifier.
    RequestHeaders(HeaderEdit),
    /// ResponseHeaderModifier.
    ResponseHeaders(HeaderEdit),
    /// RequestRedirect: of rules alone, and of such as have no backends.
    Redirect(Redirect),
    /// URLRewrite.
    Rewrite(Rewrite),
}

/// RequestRedirect: where to look instead. What is not said stays as it was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// A host name.
    pub hostname: Option<String>,
    /// The path.
    pub path: Option<PathModifier>,
    /// `None`: the well-known port of `scheme`, or else the port that was asked.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// URLRewrite: what a backend is asked instead.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rewrite {
    /// A host name.
    pub hostname: Option<String>,
    /// The path.
    pub path: Option<PathModifier>,
}

/// How a path is replaced; the query stays.
#[derive(Debug, Clone, PartialEq)]
pub enum PathModifier {
    /// ReplaceFullPath.
    Full(String),
    /// ReplacePrefixMatch: of a rule whose only match is a PathPrefix.
    Prefix(String),
}

/// set, add, remove; names in lower case.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeaderEdit {
    /// Replace or create.
    pub set: Vec<(String, String)>,
    /// Append.
    pub add: Vec<(String, String)>,
    /// Delete.
    pub remove: Vec<String>,
}

/// One backendRef of a rule.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedBackend {
    /// `None`: an invalid reference, which keeps its share and answers 500.
    pub backend: Option<BackendIndex>,
    /// As the user named it, for records: `ratings-v2:9080`.
    pub name: String,
    /// Share = weight / sum. 0: none.
    pub weight: u32,
    /// Filters of this backendRef.
    pub filters: Vec<RouteFilter>,
}

/// HTTPRoute `retry`.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Number of retries beyond the first attempt.
    pub attempts: u32,
    /// Response codes that are retried.
    pub codes: Vec<u16>,
    /// Minimum wait between attempts.
    pub backoff: Option<Duration>,
}

/// Where traffic is sent. Its endpoints are found by `id` in [`Endpoints`].
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    /// Stable over versions: `ratings.bookinfo.svc.cluster.local:9080`, `..:9080/v2` for a subset.
    pub id: String,
    /// As records and metrics name it: `ratings.bookinfo:9080`; `ratings.bookinfo:9080/v2` for a subset.
    pub name: String,
    /// Protocol the backend is known to speak; `None`: that of the request.
    pub protocol: Option<Protocol>,
    /// How TLS to it is decided.
    pub tls: BackendTls,
    /// The DestinationRule or BackendTLSPolicy that decided `tls`, if any.
    pub object: Option<ObjectIndex>,
    /// The destination's effective PeerAuthentication is STRICT (or enforced): never plaintext to it.
    pub mtls_required: bool,
    /// DestinationRule `connectionPool.tcp.connectTimeout`. Default 10 s.
    pub connect_timeout: Duration,
}

/// TLS to a backend.
#[derive(Debug, Clone, PartialEq)]
pub enum BackendTls {
    /// Mesh mTLS to endpoints that speak it ([`Endpoint::mesh_tls`]), plaintext to others.
    Auto,
    /// DISABLE.
    Plaintext,
    /// ISTIO_MUTUAL: mesh mTLS to every endpoint.
    Mesh {
        /// `subjectAltNames`; empty: the endpoint's service account.
        sans: Vec<String>,
    },
    /// SIMPLE, MUTUAL or a BackendTLSPolicy: the server must prove one of some names.
    Tls(Arc<TlsOrigination>),
    /// TLS is ordered in a way that can't be followed: nothing is sent.
    Unusable {
        /// Which object can't be followed, and why.
        why: String,
        /// It is not approved where approved crypto is required.
        not_approved: bool,
    },
}

/// Endpoint sets by backend id. Sets that did not change keep their `Arc`.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    /// By [`Backend::id`].
    pub by_backend: BTreeMap<String, Arc<EndpointSet>>,
    /// Every known workload address, for traffic sent straight to a pod IP: its ports' service, TLS and identity.
    pub by_address: Arc<BTreeMap<IpAddr, Endpoint>>,
}

/// Who serves a backend now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EndpointSet {
    /// Ready endpoints, sorted by address.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Where to connect. In `by_address` the port is 0.
    pub address: SocketAddr,
    /// Name of the workload behind it, `namespace/name`, when known.
    pub workload: Option<String>,
    /// Labelled `security.istio.io/tlsMode: istio`.
    pub mesh_tls: bool,
    /// `spiffe://..` expected of the server; `None`: unknown, so mesh mTLS to it is refused.
    pub identity: Option<String>,
    /// Relative load-balancing weight, from 1.
    pub weight: u32,
    /// The workload's effective PeerAuthentication on this port is STRICT: never plaintext to it.
    pub mtls_required: bool,
}
