//! Conditions of AuthorizationPolicy rules: sources, operations and `when`.

use super::super::read::{At, Fields};
use super::super::{Meta, text};
use super::narrowing_list;
use crate::snapshot::{Attribute, Condition, ValueMatch};

/// A field, its negation and what both look at.
type Field = (&'static str, &'static str, Attribute);

const SOURCE: &[Field] = &[
    ("principals", "notPrincipals", Attribute::SourcePrincipal),
    ("requestPrincipals", "notRequestPrincipals", Attribute::RequestPrincipal),
    ("namespaces", "notNamespaces", Attribute::SourceNamespace),
    ("serviceAccounts", "notServiceAccounts", Attribute::SourceServiceAccount),
    ("trustDomains", "notTrustDomains", Attribute::SourceTrustDomain),
    ("ipBlocks", "notIpBlocks", Attribute::SourceIp),
    ("remoteIpBlocks", "notRemoteIpBlocks", Attribute::RemoteIp),
];

const OPERATION: &[Field] = &[
    ("hosts", "notHosts", Attribute::Host),
    ("ports", "notPorts", Attribute::DestinationPort),
    ("methods", "notMethods", Attribute::Method),
    ("paths", "notPaths", Attribute::Path),
];

/// Keys of `when` without brackets.
const KEYS: &[(&str, Attribute)] = &[
    ("source.ip", Attribute::SourceIp),
    ("remote.ip", Attribute::RemoteIp),
    ("source.namespace", Attribute::SourceNamespace),
    ("source.serviceAccount", Attribute::SourceServiceAccount),
    ("source.trustDomain", Attribute::SourceTrustDomain),
    ("source.principal", Attribute::SourcePrincipal),
    ("request.auth.principal", Attribute::RequestPrincipal),
    ("request.auth.audiences", Attribute::RequestAudiences),
    ("request.auth.presenter", Attribute::RequestPresenter),
    ("destination.ip", Attribute::DestinationIp),
    ("destination.port", Attribute::DestinationPort),
    ("connection.sni", Attribute::Sni),
];

/// What else of a request can be counted by.
const OF_REQUESTS: &[(&str, Attribute)] = &[
    ("request.host", Attribute::Host),
    ("request.method", Attribute::Method),
    ("request.path", Attribute::Path),
];

/// `from[]`: the conditions of its source.
pub(super) fn source(meta: &Meta, at: At<'_>) -> Vec<Condition> {
    let Some(source) = at.fields(&["source"]).and_then(|fields| fields.require("source")) else {
        return Vec::new();
    };
    let found = conditions(meta, source, "from", SOURCE);
    let has = |attribute| found.iter().any(|condition| condition.attribute == attribute);
    if has(Attribute::SourceServiceAccount)
        && (has(Attribute::SourcePrincipal) || has(Attribute::SourceNamespace))
    {
        source.error("serviceAccounts can't stand beside principals or namespaces; use several sources");
    }
    found
}

/// `to[]`: the conditions of its operation.
pub(super) fn operation(meta: &Meta, at: At<'_>) -> Vec<Condition> {
    let Some(operation) = at.fields(&["operation"]).and_then(|fields| fields.require("operation")) else {
        return Vec::new();
    };
    conditions(meta, operation, "to", OPERATION)
}

/// `when[]`.
pub(super) fn when(meta: &Meta, at: At<'_>) -> Option<Condition> {
    let fields = at.fields(&["key", "values", "notValues"])?;
    let key_at = fields.require("key")?;
    let key = key_at.str()?;
    let Some(attribute) = attribute(key) else {
        let known: Vec<_> = KEYS.iter().map(|(name, _)| *name).collect();
        key_at.error(format!(
            "unknown key `{key}`; known: request.headers[name], request.auth.claims[name], {}",
            known.join(", ")
        ));
        return None;
    };
    if fields.get_or_null("values").is_none() && fields.get_or_null("notValues").is_none() {
        at.error("needs values or notValues");
    }
    let values = values(meta, fields, "values", &attribute);
    let not_values = self::values(meta, fields, "notValues", &attribute);
    Some(Condition { attribute, field: format!("when[{key}]"), values, not_values })
}

fn conditions(meta: &Meta, at: At<'_>, side: &str, known: &[Field]) -> Vec<Condition> {
    let names: Vec<&str> = known.iter().flat_map(|(name, negated, _)| [*name, *negated]).collect();
    let Some(fields) = at.fields(&names) else { return Vec::new() };
    if fields.is_empty() {
        at.error("needs at least one field: leave it out altogether to match anything");
    }
    let condition = |(name, negated, attribute): &Field| {
        let present = |name| fields.get_or_null(name).is_some();
        if !present(name) && !present(negated) {
            return None;
        }
        let values_found = values(meta, fields, name, attribute);
        let not_values = values(meta, fields, negated, attribute);
        let field = format!("{side}.{}", if present(name) { name } else { negated });
        Some(Condition { attribute: attribute.clone(), field, values: values_found, not_values })
    };
    known.iter().filter_map(condition).collect()
}

fn values(meta: &Meta, fields: Fields<'_>, name: &str, attribute: &Attribute) -> Vec<ValueMatch> {
    let Some(list) = narrowing_list(fields, name) else { return Vec::new() };
    list.items().filter_map(|at| value(meta, at, attribute)).collect()
}

fn value(meta: &Meta, at: At<'_>, attribute: &Attribute) -> Option<ValueMatch> {
    let text = at.text()?;
    match attribute {
        Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
            text::cidr(at).map(ValueMatch::Cidr)
        }
        Attribute::DestinationPort => port(at, &text).map(ValueMatch::Port),
        Attribute::SourceNamespace if text.contains('*') => Some(ValueMatch::Glob(text)),
        Attribute::SourceNamespace => Some(ValueMatch::Exact(text)),
        Attribute::SourcePrincipal => Some(source_principal(at, &text)),
        Attribute::SourceServiceAccount => service_account(meta, at, text).map(ValueMatch::Exact),
        Attribute::Method => Some(method(at, &text)),
        Attribute::Path => path(at, text),
        Attribute::Host => Some(host(at, &text)),
        _ => Some(string_match(&text)),
    }
}

/// Istio's string match: a star at the start, else at the end; anywhere else it is literal.
fn string_match(text: &str) -> ValueMatch {
    if text == "*" {
        ValueMatch::Present
    } else if let Some(suffix) = text.strip_prefix('*') {
        ValueMatch::Suffix(suffix.to_owned())
    } else if let Some(prefix) = text.strip_suffix('*') {
        ValueMatch::Prefix(prefix.to_owned())
    } else {
        ValueMatch::Exact(text.to_owned())
    }
}

/// As Istio compares them: without the scheme, so that a value with one is nobody's.
fn source_principal(at: At<'_>, text: &str) -> ValueMatch {
    if let Some(principal) = text.strip_prefix("spiffe://") {
        at.warn(format!("matches nobody: a principal is written without `spiffe://`, as `{principal}`"));
    }
    string_match(text)
}

fn method(at: At<'_>, text: &str) -> ValueMatch {
    const METHODS: [&str; 9] =
        ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];
    if let Some(meant) = METHODS.iter().find(|method| text != **method && method.eq_ignore_ascii_case(text)) {
        at.warn(format!("methods are compared with their letter case; did you mean `{meant}`?"));
    }
    // RFC 9110 section 5.6.2.
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !text.bytes().all(is_token) {
        at.warn(format!("matches no request: `{text}` is not one method"));
    }
    string_match(text)
}

/// As a request names it.
fn host(at: At<'_>, text: &str) -> ValueMatch {
    let without_scheme = text.split_once("://").map_or(text, |(_, rest)| rest);
    let host = without_scheme.split('/').next().unwrap_or_default();
    if host != text {
        at.warn(format!("matches no request: a host is written without scheme and path, as `{host}`"));
    }
    string_match(&text::plain_literal(text))
}

fn port(at: At<'_>, text: &str) -> Option<u16> {
    let found = text.parse::<u16>().ok().filter(|port| *port > 0);
    if found.is_none() {
        at.error(format!("`{text}` is not a port"));
    }
    found
}

/// `name` means the policy's namespace; wildcards are not taken.
fn service_account(meta: &Meta, at: At<'_>, text: String) -> Option<String> {
    if text.contains('*') || text.matches('/').count() > 1 || text.starts_with('/') || text.ends_with('/') {
        at.error("serviceAccounts are `name` or `namespace/name`, without wildcards");
        return None;
    }
    Some(if text.contains('/') { text } else { format!("{}/{text}", meta.namespace) })
}

/// Why no request has such a path.
fn no_path(text: &str) -> Option<String> {
    if text.contains("://") {
        return Some("a path is written without scheme and host".into());
    }
    if text.contains('?') {
        return Some("paths are looked at without the query".into());
    }
    if text.contains('#') {
        return Some("no request has a `#` in its path".into());
    }
    (!text.starts_with(['/', '*', '{'])).then(|| format!("paths begin with `/`; did you mean `/{text}`?"))
}

/// `{*}` is one segment, `{**}` any number; a brace anywhere else is a mistake.
fn path(at: At<'_>, text: String) -> Option<ValueMatch> {
    if let Some(why) = no_path(&text) {
        at.warn(format!("matches no request: {why}"));
    }
    if !text.contains(['{', '}']) {
        return Some(string_match(&text));
    }
    let mut rest_seen = false;
    for segment in text.trim_matches('/').split('/') {
        match segment {
            "{*}" | "{**}" if rest_seen => {
                at.error("{**} must be the last of the templates in a path");
                return None;
            }
            "{*}" => {}
            "{**}" => rest_seen = true,
            other if other.contains(['{', '}', '*']) => {
                at.error(format!(
                    "segment `{other}`: a path template has {{*}} and {{**}} as whole segments only"
                ));
                return None;
            }
            _ => {}
        }
    }
    Some(ValueMatch::PathTemplate(text))
}

/// An attribute to count by: every key of `when`, and host, method and path.
pub(crate) fn counted_by(at: At<'_>) -> Option<Attribute> {
    let name = at.str()?;
    let of_requests = || OF_REQUESTS.iter().find(|(known, _)| *known == name).map(|(_, found)| found.clone());
    let found = attribute(name).or_else(of_requests);
    if found.is_none() {
        let known: Vec<_> = KEYS.iter().chain(OF_REQUESTS).map(|(name, _)| *name).collect();
        at.error(format!(
            "unknown attribute `{name}`; known: request.headers[name], request.auth.claims[name], {}",
            known.join(", ")
        ));
    }
    found
}

fn attribute(key: &str) -> Option<Attribute> {
    if let Some((_, attribute)) = KEYS.iter().find(|(name, _)| *name == key) {
        return Some(attribute.clone());
    }
    if let Some(rest) = key.strip_prefix("request.headers") {
        let [name] = brackets(rest)?.try_into().ok()?;
        return Some(Attribute::Header(name.to_ascii_lowercase()));
    }
    brackets(key.strip_prefix("request.auth.claims")?).map(Attribute::RequestClaim)
}

/// `[a][b]` as `a`, `b`.
fn brackets(text: &str) -> Option<Vec<String>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let names: Vec<String> = inner.split("][").map(str::to_owned).collect();
    names.iter().all(|name| !name.is_empty() && !name.contains(['[', ']'])).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::super::super::Resource;
    use super::super::super::tests::only;
    use super::*;

    #[test]
    fn a_full_rule() {
        let (object, found) = only(
            r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: httpbin-1, namespace: foo}
spec:
  selector: {matchLabels: {app: httpbin}}
  rules:
  - from:
    - source:
        principals: ["principal", "prefix-*", "*-suffix", "*"]
        namespaces: ["ns", "ns-*"]
        ipBlocks: ["1.2.3.4", "5.6.0.0/16", "::ffff:10.0.0.0/104", "::ffff:1.2.3.4", "2001:db8::/32"]
        notPrincipals: ["not"]
    - source: {serviceAccounts: ["my-ns/my-sa", "sa-only"]}
    to:
    - operation:
        hosts: ["exact.com", "*.suffix.com"]
        ports: ["80"]
        paths: ["/exact", "/prefix/*", "/path/{*}/x", "/{**}/y"]
        notMethods: ["POST"]
    when:
    - {key: "request.headers[X-Header]", values: ["a*b"]}
    - {key: "request.auth.claims[nested1][nested2]", notValues: ["*"]}
"#,
        );
        assert_eq!(found, [] as [String; 0]);
        let Resource::AuthorizationPolicy(policy) = &object.resource else { panic!() };
        let rule = &policy.rules[0];
        let exact = |text: &str| ValueMatch::Exact(text.into());
        assert_eq!(
            rule.from[0][0],
            Condition {
                attribute: Attribute::SourcePrincipal,
                field: "from.principals".into(),
                values: vec![
                    exact("principal"),
                    ValueMatch::Prefix("prefix-".into()),
                    ValueMatch::Suffix("-suffix".into()),
                    ValueMatch::Present
                ],
                not_values: vec![exact("not")],
            }
        );
        assert_eq!(rule.from[0][1].values, [exact("ns"), ValueMatch::Glob("ns-*".into())]);
        let net = |text: &str| ValueMatch::Cidr(text.parse().unwrap());
        let nets = ["1.2.3.4/32", "5.6.0.0/16", "10.0.0.0/8", "1.2.3.4/32", "2001:db8::/32"];
        assert_eq!(rule.from[0][2].values, nets.map(net));
        assert_eq!(rule.from[1][0].values, [exact("my-ns/my-sa"), exact("foo/sa-only")]);
        assert_eq!(rule.to[0][1].values, [ValueMatch::Port(80)]);
        assert_eq!(rule.to[0][2].field, "to.notMethods");
        assert_eq!(rule.to[0][3].values[2], ValueMatch::PathTemplate("/path/{*}/x".into()));
        assert_eq!(rule.when[0].attribute, Attribute::Header("x-header".into()));
        assert_eq!(rule.when[0].values, [exact("a*b")]);
        assert_eq!(rule.when[1].attribute, Attribute::RequestClaim(vec!["nested1".into(), "nested2".into()]));
    }

    #[test]
    fn what_can_match_nobody_is_warned_of() {
        let (object, found) = only(
            r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: a}
spec:
  rules:
  - from: [{source: {notPrincipals: ["spiffe://cluster.local/ns/a/sa/b"]}}]
    to: [{operation: {methods: [get, GET, purge]}}]
  - to:
    - operation:
        methods: ["GET, PUT", "P*"]
        hosts: ["http://ratings", "ratings:9080", "*.example.com"]
        paths: ["ratings/*", "http://ratings/a", "/a?b=c", "/a#b", "*.json", "/", "*"]
"#,
        );
        assert!(object.good);
        assert!(
            found[0].ends_with("a principal is written without `spiffe://`, as `cluster.local/ns/a/sa/b`")
        );
        assert!(found[1].ends_with("did you mean `GET`?"), "{found:?}");
        for (found, why) in found[2..].iter().zip([
            "hosts[0]: matches no request: a host is written without scheme and path, as `ratings`",
            "methods[0]: matches no request: `GET, PUT` is not one method",
            "paths[0]: matches no request: paths begin with `/`; did you mean `/ratings/*`?",
            "paths[1]: matches no request: a path is written without scheme and host",
            "paths[2]: matches no request: paths are looked at without the query",
            "paths[3]: matches no request: no request has a `#` in its path",
        ]) {
            assert!(found.ends_with(why), "{found}");
        }
        assert_eq!(found.len(), 8, "{found:?}");
    }

    #[test]
    fn stars() {
        assert_eq!(string_match("*a*"), ValueMatch::Suffix("a*".into()));
        assert_eq!(string_match("a*b"), ValueMatch::Exact("a*b".into()));
    }

    #[test]
    fn keys() {
        for bad in [
            "request.headers",
            "request.headers[]",
            "request.headers[a][b]",
            "request.auth.claims",
            "request.auth.claims[a",
            "source.port",
            "",
        ] {
            assert_eq!(attribute(bad), None, "{bad}");
        }
    }
}
