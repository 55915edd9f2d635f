//! `extensionProviders`: external authorization services, by the field names of Istio's MeshConfig, and rate limit services
//! by alike ones.

use std::time::Duration;

use super::super::read::{At, Fields};
use super::super::text;
use crate::snapshot::{
    BodyInCheck, GrpcCheck, HttpCheck, JWT_METADATA, ProviderPhase, ProviderProtocol, ValueMatch,
};

/// A provider as written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Provider {
    pub(crate) name: String,
    /// `None`: it can't be understood, or is of no use to an AuthorizationPolicy.
    pub(crate) asked: Option<Asked>,
    /// `None`: it can't be understood, or is of no use to a RateLimit.
    pub(crate) limiter: Option<Limiter>,
    pub(crate) line: u32,
}

/// A service that counts for all proxies.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Limiter {
    pub(crate) callee: Callee,
    pub(crate) timeout: Duration,
}

/// How a provider is asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    pub(crate) callee: Callee,
    pub(crate) phase: ProviderPhase,
    pub(crate) timeout: Duration,
    pub(crate) fail_open: bool,
    pub(crate) status_on_error: u16,
    pub(crate) body: Option<BodyInCheck>,
    pub(crate) protocol: ProviderProtocol,
}

/// A service of the mesh that proxies call themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Callee {
    /// Of `NAMESPACE/HOST`.
    pub(crate) namespace: Option<String>,
    /// Lower case.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Istio's is ten minutes, for which a provider that hangs would hold every request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Envoy's is 20 ms, which a first connection by TLS may take.
const LIMITER_TIMEOUT: Duration = Duration::from_millis(100);
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of a body that one check may hold.
const MAX_BODY: i64 = 4 << 20;

const PHASES: &[(&str, ProviderPhase)] = &[
    ("before-authentication", ProviderPhase::BeforeAuthentication),
    ("after-authorization", ProviderPhase::AfterAuthorization),
];

const GRPC: &str = "envoyExtAuthzGrpc";
const HTTP: &str = "envoyExtAuthzHttp";
const LIMITER: &str = "envoyRateLimitGrpc";
const COMMON: [&str; 7] = [
    "service",
    "port",
    "timeout",
    "failOpen",
    "statusOnError",
    "includeRequestBodyInCheck",
    "clearRouteCache",
];
/// Not in Istio's MeshConfig, which can't set them; by the names that they have in Envoy.
const GRPC_ONLY: [&str; 3] = ["includePeerCertificate", "metadataContextNamespaces", "contextExtensions"];
const HTTP_ONLY: [&str; 6] = [
    "pathPrefix",
    "includeRequestHeadersInCheck",
    "includeAdditionalHeadersInCheck",
    "headersToUpstreamOnAllow",
    "headersToDownstreamOnDeny",
    "headersToDownstreamOnAllow",
];

/// Reads the list. Kinds of providers that neither an AuthorizationPolicy nor a RateLimit can ask are of no consequence here.
pub(super) fn read(list: At<'_>) -> Vec<Provider> {
    let mut providers: Vec<Provider> = Vec::new();
    for at in list.items() {
        let Some(name) = at.open_fields().and_then(|fields| fields.require("name")) else { continue };
        let Some(text) = name.text() else { continue };
        if providers.iter().any(|known| known.name == text) {
            name.error(format!("a provider {text} is above; names must be unique"));
            continue;
        }
        let is_limiter = at.open_fields().is_some_and(|fields| fields.get(LIMITER).is_some());
        let (asked, limiter) = if is_limiter { (None, limiter(at)) } else { (provider(at), None) };
        providers.push(Provider { name: text, asked, limiter, line: at.line() });
    }
    providers
}

fn limiter(at: At<'_>) -> Option<Limiter> {
    let fields = known(known(at, &["name", LIMITER])?.get(LIMITER)?, &["service", "port", "timeout"])?;
    let (callee, timeout) = (callee(fields), timeout(fields, LIMITER_TIMEOUT));
    Some(Limiter { callee: callee?, timeout: timeout? })
}

fn provider(at: At<'_>) -> Option<Asked> {
    let fields = at.open_fields()?;
    let (grpc, http) = (fields.get(GRPC), fields.get(HTTP));
    if grpc.is_none() && http.is_none() {
        at.warn(format!("asked by nobody: policies ask {GRPC} and {HTTP}, limits {LIMITER}"));
        return None;
    }
    let fields = known(at, &["name", "phase", GRPC, HTTP])?;
    let phase = match fields.get("phase") {
        Some(phase) => phase.one_of(PHASES)?,
        None => ProviderPhase::default(),
    };
    match (grpc, http) {
        (Some(grpc), None) => {
            let names = [&COMMON[..], &GRPC_ONLY].concat();
            asked(known(grpc, &names)?, phase, |fields, _| {
                Some(ProviderProtocol::Grpc(grpc_check(fields, phase)?))
            })
        }
        (None, Some(http)) => {
            let names = [&COMMON[..], &HTTP_ONLY].concat();
            asked(known(http, &names)?, phase, |fields, callee| {
                Some(ProviderProtocol::Http(Box::new(http_check(fields, callee)?)))
            })
        }
        _ => {
            at.error(format!("a provider is one of {GRPC} and {HTTP}"));
            None
        }
    }
}

/// `None` where there is a field that is not understood.
fn known<'a>(at: At<'a>, names: &[&str]) -> Option<Fields<'a>> {
    let fields = at.fields(names)?;
    at.entries().all(|(name, _)| names.contains(&name)).then_some(fields)
}

/// `None` where something is wrong: half a provider must not be asked.
fn asked(
    fields: Fields<'_>,
    phase: ProviderPhase,
    protocol: impl Fn(Fields<'_>, &Callee) -> Option<ProviderProtocol>,
) -> Option<Asked> {
    let callee = callee(fields);
    let timeout = timeout(fields, TIMEOUT);
    let fail_open = optional(fields.get("failOpen"), At::bool, false);
    let status = optional(fields.get("statusOnError"), status, 403);
    let body = match fields.get("includeRequestBodyInCheck") {
        Some(at) => body(at).map(Some),
        None => Some(None),
    };
    // Nothing to choose: a route is always looked up by the headers that are forwarded.
    let route_cache = optional(fields.get("clearRouteCache"), At::bool, true);
    let callee = callee?;
    let protocol = protocol(fields, &callee)?;
    route_cache?;
    Some(Asked {
        callee,
        phase,
        timeout: timeout?,
        fail_open: fail_open?,
        status_on_error: status?,
        body: body?,
        protocol,
    })
}

/// `service: [NAMESPACE/]HOST` and `port`.
pub(crate) fn callee(fields: Fields<'_>) -> Option<Callee> {
    let service = fields.require("service").and_then(service);
    let port = fields.require("port").and_then(At::port);
    let (namespace, host) = service?;
    Some(Callee { namespace, host, port: port? })
}

fn service(at: At<'_>) -> Option<(Option<String>, String)> {
    let text = at.text()?;
    let (namespace, host) = match text.split_once('/') {
        Some((namespace, host)) => (Some(namespace.to_owned()), host),
        None => (None, text.as_str()),
    };
    let bad_namespace = namespace.as_deref().is_some_and(|namespace| !text::is_dns_subdomain(namespace));
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if bad_namespace || !text::is_dns_subdomain(&host) {
        at.error(format!("`{text}` is not [NAMESPACE/]HOST, such as ext-authz.infra.svc.cluster.local"));
        return None;
    }
    Some((namespace, host))
}

/// `timeout`; more than none, and bounded.
pub(crate) fn timeout(fields: Fields<'_>, default: Duration) -> Option<Duration> {
    let Some(at) = fields.get("timeout") else { return Some(default) };
    let timeout = text::go_duration(at)?;
    if timeout.is_zero() || timeout > MAX_TIMEOUT {
        at.error("must be more than 0s, and at most 10m");
        return None;
    }
    Some(timeout)
}

/// The field's value; `default` without it, `None` where it is wrong.
pub(crate) fn optional<'a, T>(
    at: Option<At<'a>>,
    read: impl Fn(At<'a>) -> Option<T>,
    default: T,
) -> Option<T> {
    match at {
        Some(at) => read(at),
        None => Some(default),
    }
}

/// Text, as in MeshConfig.
fn status(at: At<'_>) -> Option<u16> {
    let text = at.str()?;
    match text.parse() {
        Ok(status @ 400..=599) => Some(status),
        _ => {
            at.error(format!("`{text}` is not a status of a refusal, 400 to 599"));
            None
        }
    }
}

fn body(at: At<'_>) -> Option<BodyInCheck> {
    let fields = at.fields(&["maxRequestBytes", "allowPartialMessage", "packAsBytes"])?;
    let max_bytes = fields.require("maxRequestBytes").and_then(|at| at.number(1, MAX_BODY));
    let allow_partial = optional(fields.get("allowPartialMessage"), At::bool, false);
    let as_bytes = optional(fields.get("packAsBytes"), At::bool, false);
    Some(BodyInCheck { max_bytes: max_bytes?, allow_partial: allow_partial?, as_bytes: as_bytes? })
}

fn grpc_check(fields: Fields<'_>, phase: ProviderPhase) -> Option<GrpcCheck> {
    let peer_certificate = optional(fields.get("includePeerCertificate"), At::bool, false);
    let user_claims = match fields.get("metadataContextNamespaces") {
        Some(at) => namespaces(at, phase),
        None => Some(false),
    };
    let context_extensions = match fields.get("contextExtensions") {
        Some(at) => context_extensions(at),
        None => Some(Vec::new()),
    };
    Some(GrpcCheck {
        peer_certificate: peer_certificate?,
        user_claims: user_claims?,
        context_extensions: context_extensions?,
    })
}

/// Whether the claims of users are among them. There is no other namespace to name.
fn namespaces(list: At<'_>, phase: ProviderPhase) -> Option<bool> {
    let read = |at: At<'_>| {
        let known = at.str()? == JWT_METADATA;
        if !known {
            at.error(format!("the only namespace with metadata is {JWT_METADATA}"));
        }
        known.then_some(())
    };
    let read: Option<Vec<()>> = list.items().map(read).collect();
    let asked_for = !read?.is_empty();
    if asked_for && phase == ProviderPhase::BeforeAuthentication {
        list.warn("stays empty: this provider is asked before the end user is known; see `phase`");
    }
    Some(asked_for)
}

/// The key of our own, under which a provider learns by which policy it is asked.
const POLICY: &str = "policy";

fn context_extensions(at: At<'_>) -> Option<Vec<(String, String)>> {
    let read = at.entries().map(|(key, at)| {
        if key == POLICY {
            at.error("is set by the proxy: to the policy that asks, as NAMESPACE/NAME");
            return None;
        }
        Some((key.to_owned(), at.str()?.to_owned()))
    });
    let read: Vec<_> = read.collect();
    read.into_iter().collect()
}

fn http_check(fields: Fields<'_>, callee: &Callee) -> Option<HttpCheck> {
    let names = |field| match fields.get(field) {
        Some(list) => header_patterns(list),
        None => Some(Vec::new()),
    };
    let prefix = match fields.get("pathPrefix") {
        Some(at) => path_prefix(at),
        None => Some(String::new()),
    };
    let additional = match fields.get("includeAdditionalHeadersInCheck") {
        Some(at) => additional_headers(at),
        None => Some(Vec::new()),
    };
    Some(HttpCheck {
        authority: format!("{}:{}", callee.host, callee.port),
        path_prefix: prefix?,
        request_headers: names("includeRequestHeadersInCheck")?,
        additional_headers: additional?,
        upstream_on_allow: names("headersToUpstreamOnAllow")?,
        downstream_on_deny: names("headersToDownstreamOnDeny")?,
        downstream_on_allow: names("headersToDownstreamOnAllow")?,
    })
}

fn path_prefix(at: At<'_>) -> Option<String> {
    let text = at.str()?;
    let good = |b: u8| b.is_ascii_graphic() && !b"?#\\%".contains(&b);
    if !text.is_empty() && (!text.starts_with('/') || !text.bytes().all(good)) {
        at.error(format!("`{text}` is not the beginning of a path, such as /check"));
        return None;
    }
    Some(text.trim_end_matches('/').to_owned())
}

/// Header names: exact, `prefix*` or `*suffix`; in lower case.
fn header_patterns(list: At<'_>) -> Option<Vec<ValueMatch>> {
    let read = |at: At<'_>| {
        let text = at.text()?.to_ascii_lowercase();
        let token = |name: &str| !name.is_empty() && name.bytes().all(is_token);
        let matched = match (text.strip_suffix('*'), text.strip_prefix('*')) {
            (Some(prefix), _) if token(prefix) => ValueMatch::Prefix(prefix.to_owned()),
            (_, Some(suffix)) if token(suffix) => ValueMatch::Suffix(suffix.to_owned()),
            (None, None) if token(&text) => ValueMatch::Exact(text),
            _ => {
                at.error(format!("`{text}` is not a header name, NAME* or *NAME"));
                return None;
            }
        };
        Some(matched)
    };
    let read: Vec<_> = list.items().map(read).collect();
    read.into_iter().collect()
}

/// What a header name consists of here: a star of its own would be a pattern.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&byte)
}

fn additional_headers(at: At<'_>) -> Option<Vec<(String, String)>> {
    let read = at.entries().map(|(name, at)| {
        let name = name.to_ascii_lowercase();
        if name.is_empty() || !name.bytes().all(is_token) || name == "host" || name == "content-length" {
            at.error(format!("`{name}` is not a header that can be added"));
            return None;
        }
        Some((name, text::header_value(at)?))
    });
    let read: Vec<_> = read.collect();
    read.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::Resource;
    use super::super::super::tests::only;
    use super::*;

    fn providers(list: &str) -> (Vec<Provider>, Vec<String>) {
        let (object, found) = only(&format!(
            "apiVersion: writ.dev/v1alpha1\nkind: MeshSettings\nmetadata: {{name: mesh}}\nspec: {{extensionProviders: {list}}}\n"
        ));
        let Resource::MeshSettings(settings) = &object.resource else { panic!("{object:?}") };
        (settings.providers.clone(), found)
    }

    #[test]
    fn all_fields() {
        let (providers, found) = providers(
            "[{name: opa, phase: after-authorization, envoyExtAuthzGrpc: {service: infra/opa.infra.svc.cluster.local, port: 9191, timeout: 1.5s, \
             statusOnError: '503', includeRequestBodyInCheck: {maxRequestBytes: 1024, allowPartialMessage: true, packAsBytes: true}, \
             includePeerCertificate: true, metadataContextNamespaces: [envoy.filters.http.jwt_authn], contextExtensions: {tier: gold}}}, \
             {name: web, envoyExtAuthzHttp: {service: Auth.example.com, port: 80, pathPrefix: /check/, includeRequestHeadersInCheck: [Cookie, x-a*, '*-b'], \
             includeAdditionalHeadersInCheck: {X-From: mesh}, headersToUpstreamOnAllow: [x-user], headersToDownstreamOnDeny: [set-cookie], headersToDownstreamOnAllow: [x-c]}}, \
             {name: trace, zipkin: {service: z, port: 1}}, {name: limiter, envoyRateLimitGrpc: {service: limiter.infra, port: 8081, timeout: 20ms}}]",
        );
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("asked by nobody"), "{found:?}");
        let opa = providers[0].asked.as_ref().unwrap();
        assert_eq!(opa.callee.namespace.as_deref(), Some("infra"));
        assert_eq!((opa.phase, opa.status_on_error), (ProviderPhase::AfterAuthorization, 503));
        assert_eq!((opa.timeout, opa.fail_open), (Duration::from_millis(1500), false));
        assert_eq!(opa.body, Some(BodyInCheck { max_bytes: 1024, allow_partial: true, as_bytes: true }));
        let told = GrpcCheck {
            peer_certificate: true,
            user_claims: true,
            context_extensions: vec![("tier".into(), "gold".into())],
        };
        assert_eq!(opa.protocol, ProviderProtocol::Grpc(told));
        let web = providers[1].asked.as_ref().unwrap();
        assert_eq!((web.phase, web.timeout), (ProviderPhase::BeforeAuthentication, TIMEOUT));
        let ProviderProtocol::Http(check) = &web.protocol else { panic!() };
        assert_eq!((check.authority.as_str(), check.path_prefix.as_str()), ("auth.example.com:80", "/check"));
        assert_eq!(
            check.request_headers,
            [
                ValueMatch::Exact("cookie".into()),
                ValueMatch::Prefix("x-a".into()),
                ValueMatch::Suffix("-b".into())
            ]
        );
        assert_eq!(check.additional_headers, [("x-from".to_owned(), "mesh".to_owned())]);
        assert_eq!(providers[2].asked, None);
        let limiter = providers[3].limiter.as_ref().unwrap();
        assert_eq!((limiter.callee.port, limiter.timeout), (8081, Duration::from_millis(20)));
    }

    #[test]
    fn a_provider_with_a_mistake_is_never_asked_by_half() {
        let grpc =
            |fields: &str| format!("[{{name: a, envoyExtAuthzGrpc: {{service: a.b, port: 1{fields}}}}}]");
        let http =
            |fields: &str| format!("[{{name: a, envoyExtAuthzHttp: {{service: a.b, port: 1{fields}}}}}]");
        let cases = [
            (grpc(", failOpen: 'yes'"), "true or false"),
            (grpc(", timeout: 0s"), "more than 0s"),
            (grpc(", timeout: 1h"), "10m"),
            (grpc(", statusOnError: '200'"), "400 to 599"),
            (grpc(", includeRequestBodyInCheck: {}"), "is required"),
            (grpc(", includeRequestBodyInCheck: {maxRequestBytes: 99999999}"), "out of range"),
            (grpc(", pathPrefix: /x"), "unknown field"),
            (grpc(", includePeerCertificate: 1"), "true or false"),
            (grpc(", metadataContextNamespaces: [envoy.filters.http.rbac]"), "the only namespace"),
            (grpc(", contextExtensions: {policy: a}"), "set by the proxy"),
            (grpc(", contextExtensions: {a: 1}"), "a string"),
            (http(", includePeerCertificate: true"), "unknown field"),
            (http(", pathPrefix: x"), "beginning of a path"),
            (http(", headersToUpstreamOnAllow: ['*']"), "not a header name"),
            (http(", headersToUpstreamOnAllow: ['a b']"), "not a header name"),
            (http(", includeAdditionalHeadersInCheck: {host: a}"), "can be added"),
            ("[{name: a, envoyExtAuthzGrpc: {port: 1}}]".into(), "service: is required"),
            ("[{name: a, envoyRateLimitGrpc: {service: a, port: 1, failOpen: true}}]".into(), "unknown field"),
            ("[{name: a, phase: x, envoyRateLimitGrpc: {service: a, port: 1}}]".into(), "unknown field"),
            ("[{name: a, envoyExtAuthzGrpc: {service: a_b/c, port: 1}}]".into(), "[NAMESPACE/]HOST"),
            ("[{name: a, phase: later, envoyExtAuthzGrpc: {service: a, port: 1}}]".into(), "unknown value"),
            (
                "[{name: a, envoyExtAuthzGrpc: {service: a, port: 1}, envoyExtAuthzHttp: {service: a, port: 1}}]".into(),
                "one of",
            ),
        ];
        for (list, wanted) in cases {
            let (providers, found) = providers(&list);
            assert!(found.iter().any(|text| text.contains(wanted)), "{list}: {found:?}");
            assert_eq!((&providers[0].asked, &providers[0].limiter), (&None, &None), "{list}");
        }
        let (providers, found) = providers("[{name: a, zipkin: {}}, {name: a, zipkin: {}}]");
        assert_eq!(providers.len(), 1);
        assert!(found.iter().any(|text| text.contains("unique")), "{found:?}");
    }
}
