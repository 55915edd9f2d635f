//! Rules of an HTTPRoute: matches, filters, backends, timeouts, retries.

use std::time::Duration;

use regex::RegexBuilder;

use super::super::read::{At, Fields};
use super::super::{Meta, text};
use crate::snapshot::{
    HeaderEdit, PathMatch, PathModifier, Redirect, Retry, Rewrite, RouteFilter, RouteMatch, TextMatch,
};

/// Compiled size of one expression; a larger one is a mistake or an attack.
const MAX_REGEX_BYTES: usize = 1 << 20;
/// Retries when the stanza doesn't say how many, as in Istio.
const DEFAULT_ATTEMPTS: u32 = 2;

/// A rule, as far as it can be understood alone.
#[derive(Debug, Default)]
pub(crate) struct Rule {
    pub(crate) line: u32,
    pub(crate) matches: Vec<RouteMatch>,
    pub(crate) filters: Vec<RouteFilter>,
    pub(crate) backends: Vec<BackendRef>,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) backend_timeout: Option<Duration>,
    pub(crate) retry: Option<Retry>,
}

/// A backendRef; whether it can be followed is seen when all objects are there.
#[derive(Debug)]
pub(crate) struct BackendRef {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// `None`: not given.
    pub(crate) port: Option<u16>,
    /// A kind other than Service.
    pub(crate) foreign_kind: Option<String>,
    pub(crate) weight: u32,
    pub(crate) filters: Vec<RouteFilter>,
    /// Its number in the rule.
    pub(crate) index: usize,
    pub(crate) line: u32,
}

/// Reads `spec.rules[]`.
pub(super) fn read(meta: &Meta, at: At<'_>) -> Rule {
    let mut rule = Rule { line: at.line(), ..Rule::default() };
    let known = ["name", "matches", "filters", "backendRefs", "timeouts", "retry", "sessionPersistence"];
    let Some(fields) = at.fields(&known) else { return rule };
    fields.not_in_force(&["sessionPersistence"]);
    rule.matches = list(fields, "matches").filter_map(route_match).collect();
    rule.filters = filters(fields);
    let backends = list(fields, "backendRefs").enumerate();
    rule.backends = backends.filter_map(|(i, at)| backend_ref(meta, &rule.matches, i, at)).collect();
    check_together(fields, &rule.matches, &rule.filters);
    if rule.filters.iter().any(|filter| matches!(filter, RouteFilter::Redirect(_)))
        && !rule.backends.is_empty()
    {
        fields.at().error("a rule that redirects sends nothing to backends: leave out backendRefs");
    }
    if let Some(timeouts) = fields.get("timeouts").and_then(|at| at.fields(&["request", "backendRequest"])) {
        let timeout =
            |name| timeouts.get(name).and_then(text::gateway_duration).filter(|timeout| !timeout.is_zero());
        (rule.request_timeout, rule.backend_timeout) = (timeout("request"), timeout("backendRequest"));
        if let (Some(request), Some(backend)) = (rule.request_timeout, rule.backend_timeout)
            && backend > request
        {
            timeouts.at().error("backendRequest is one attempt and can't be longer than request");
        }
    }
    rule.retry = fields.get("retry").and_then(retry);
    rule
}

/// Filters that can't stand together, or not with these matches.
fn check_together(fields: Fields<'_>, matches: &[RouteMatch], filters: &[RouteFilter]) {
    let redirects = filters.iter().any(|filter| matches!(filter, RouteFilter::Redirect(_)));
    let rewrites = filters.iter().any(|filter| matches!(filter, RouteFilter::Rewrite(_)));
    if redirects && rewrites {
        fields.at().error("RequestRedirect and URLRewrite exclude each other");
    }
    let replaces_prefix = filters.iter().any(|filter| match filter {
        RouteFilter::Redirect(Redirect { path, .. }) | RouteFilter::Rewrite(Rewrite { path, .. }) => {
            matches!(path, Some(PathModifier::Prefix(_)))
        }
        RouteFilter::RequestHeaders(_) | RouteFilter::ResponseHeaders(_) => false,
    });
    let of_one_prefix = match matches {
        // The default match is of prefix `/`.
        [] => true,
        [only] => matches!(only.path, PathMatch::Prefix(_)),
        _ => false,
    };
    if replaces_prefix && !of_one_prefix {
        fields.at().error("ReplacePrefixMatch needs a rule with exactly one match, of a PathPrefix");
    }
}

fn list<'a>(fields: Fields<'a>, name: &str) -> impl Iterator<Item = At<'a>> + use<'a> {
    fields.get(name).into_iter().flat_map(|at| at.items())
}

fn route_match(at: At<'_>) -> Option<RouteMatch> {
    let fields = at.fields(&["path", "method", "headers", "queryParams"])?;
    let mut found = RouteMatch::default();
    if let Some(path) = fields.get("path").and_then(path_match) {
        found.path = path;
    }
    let methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    found.method =
        fields.get("method").and_then(|at| at.one_of(&methods.map(|name| (name, name)))).map(str::to_owned);
    for at in list(fields, "headers") {
        add_first(&mut found.headers, named_match(at, text::header_name));
    }
    for at in list(fields, "queryParams") {
        add_first(&mut found.query, named_match(at, |at| at.text()));
    }
    Some(found)
}

/// Of several entries with one name the first counts.
fn add_first(entries: &mut Vec<(String, TextMatch)>, entry: Option<(String, TextMatch)>) {
    if let Some((name, value)) = entry
        && entries.iter().all(|(earlier, _)| *earlier != name)
    {
        entries.push((name, value));
    }
}

#[derive(Clone, Copy, PartialEq)]
enum MatchType {
    Exact,
    Prefix,
    Regex,
}

fn path_match(at: At<'_>) -> Option<PathMatch> {
    let fields = at.fields(&["type", "value"])?;
    let types = [
        ("PathPrefix", MatchType::Prefix),
        ("Exact", MatchType::Exact),
        ("RegularExpression", MatchType::Regex),
    ];
    let kind = fields.get("type").map_or(Some(MatchType::Prefix), |at| at.one_of(&types))?;
    let Some(at) = fields.get("value") else {
        return Some(if kind == MatchType::Exact {
            PathMatch::Exact("/".into())
        } else {
            PathMatch::default()
        });
    };
    let value = at.text()?;
    if kind == MatchType::Regex {
        return regex(at, value).map(PathMatch::Regex);
    }
    let lower = value.to_ascii_lowercase();
    let bad = ["//", "/./", "/../", "%2f", "#", "?"].iter().find(|part| lower.contains(**part));
    if !value.starts_with('/') {
        at.error("a path starts with `/`");
    } else if let Some(part) = bad {
        at.error(format!("a path that is matched can't contain `{part}`"));
    } else if value.ends_with("/.") || value.ends_with("/..") {
        at.error("a path that is matched can't end in `/.` or `/..`");
    }
    Some(if kind == MatchType::Exact { PathMatch::Exact(value) } else { PathMatch::Prefix(value) })
}

fn named_match(at: At<'_>, name: impl Fn(At<'_>) -> Option<String>) -> Option<(String, TextMatch)> {
    let fields = at.fields(&["type", "name", "value"])?;
    let types = [("Exact", MatchType::Exact), ("RegularExpression", MatchType::Regex)];
    let kind = fields.get("type").map_or(Some(MatchType::Exact), |at| at.one_of(&types))?;
    let name = name(fields.require("name")?)?;
    let value_at = fields.require("value")?;
    let value = value_at.text()?;
    let value = match kind {
        MatchType::Regex => TextMatch::Regex(regex(value_at, value)?),
        _ => TextMatch::Exact(value),
    };
    Some((name, value))
}

fn regex(at: At<'_>, text: String) -> Option<String> {
    match RegexBuilder::new(&text).size_limit(MAX_REGEX_BYTES).build() {
        Ok(_) => Some(text),
        Err(error) => {
            let message = error.to_string();
            let last = message.lines().last().unwrap_or_default().trim_start_matches("error: ");
            at.error(format!(
                "not a regular expression (RE2 syntax, without look-around or back-references): {last}"
            ));
            None
        }
    }
}

fn filters(fields: Fields<'_>) -> Vec<RouteFilter> {
    let mut found: Vec<RouteFilter> = Vec::new();
    for at in list(fields, "filters") {
        let Some(filter) = filter(at) else { continue };
        if found.iter().any(|earlier| std::mem::discriminant(earlier) == std::mem::discriminant(&filter)) {
            at.error("a filter of this type is already listed; each may be used once");
        }
        found.push(filter);
    }
    found
}

fn filter(at: At<'_>) -> Option<RouteFilter> {
    const LATER: &[&str] = &["RequestMirror", "CORS", "ExternalAuth", "ExtensionRef"];
    let known = [
        "type",
        "requestHeaderModifier",
        "responseHeaderModifier",
        "requestRedirect",
        "urlRewrite",
        "requestMirror",
        "cors",
        "externalAuth",
        "extensionRef",
    ];
    let fields = at.fields(&known)?;
    let kind = fields.require("type")?;
    match kind.str()? {
        "RequestHeaderModifier" => {
            header_edit(fields, "requestHeaderModifier").map(RouteFilter::RequestHeaders)
        }
        "ResponseHeaderModifier" => {
            header_edit(fields, "responseHeaderModifier").map(RouteFilter::ResponseHeaders)
        }
        "RequestRedirect" => redirect(fields.require("requestRedirect")?).map(RouteFilter::Redirect),
        "URLRewrite" => rewrite(fields.require("urlRewrite")?).map(RouteFilter::Rewrite),
        other if LATER.contains(&other) => {
            kind.error(format!("filter {other} is not supported yet"));
            None
        }
        other => {
            let supported = "RequestHeaderModifier, ResponseHeaderModifier, RequestRedirect, URLRewrite";
            kind.error(format!(
                "unknown filter `{other}`; supported: {supported}; not yet: {}",
                LATER.join(", ")
            ));
            None
        }
    }
}

fn header_edit(fields: Fields<'_>, name: &str) -> Option<HeaderEdit> {
    let fields = fields.require(name)?.fields(&["set", "add", "remove"])?;
    let pair = |at: At<'_>| {
        let fields = at.fields(&["name", "value"])?;
        Some((editable(fields.require("name")?)?, text::header_value(fields.require("value")?)?))
    };
    Some(HeaderEdit {
        set: list(fields, "set").filter_map(pair).collect(),
        add: list(fields, "add").filter_map(pair).collect(),
        remove: list(fields, "remove").filter_map(editable).collect(),
    })
}

/// The name of a header that routes may edit: not one by which proxies say who calls, or where a message ends.
fn editable(at: At<'_>) -> Option<String> {
    const FRAMING: [&str; 10] = [
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let name = text::header_name(at)?;
    let dashed = name.replace('_', "-");
    let says_who = dashed == "x-forwarded-client-cert"
        || ["x-writ-", "x-envoy-"].iter().any(|prefix| dashed.starts_with(prefix));
    if says_who {
        at.error(format!("{name} is for proxies of the mesh to set"));
    } else if name == "host" {
        at.error("URLRewrite with a hostname changes the host");
    } else if FRAMING.contains(&name.as_str()) {
        at.error(format!("{name} belongs to one connection: no route may edit it"));
    } else {
        return Some(name);
    }
    None
}

fn redirect(at: At<'_>) -> Option<Redirect> {
    let fields = at.fields(&["scheme", "hostname", "path", "port", "statusCode"])?;
    let statuses = [301, 302, 303, 307, 308];
    let status = fields.get("statusCode").map_or(Some(302), |at| {
        let status: u16 = at.number(300, 399)?;
        if !statuses.contains(&status) {
            at.error("a redirect has status 301, 302, 303, 307 or 308");
        }
        Some(status)
    })?;
    let scheme = fields.get("scheme").map(|at| at.one_of(&[("http", "http"), ("https", "https")]));
    Some(Redirect {
        scheme: scheme.flatten().map(str::to_owned),
        hostname: fields.get("hostname").and_then(plain_hostname),
        path: fields.get("path").and_then(path_modifier),
        port: fields.get("port").and_then(At::port),
        status,
    })
}

fn rewrite(at: At<'_>) -> Option<Rewrite> {
    let fields = at.fields(&["hostname", "path"])?;
    Some(Rewrite {
        hostname: fields.get("hostname").and_then(plain_hostname),
        path: fields.get("path").and_then(path_modifier),
    })
}

/// A host name without a wildcard.
fn plain_hostname(at: At<'_>) -> Option<String> {
    let host = text::host(at)?;
    if host.starts_with('*') {
        at.error("one host name, without `*`");
        return None;
    }
    Some(host)
}

fn path_modifier(at: At<'_>) -> Option<PathModifier> {
    let fields = at.fields(&["type", "replaceFullPath", "replacePrefixMatch"])?;
    let types = [("ReplaceFullPath", "replaceFullPath"), ("ReplacePrefixMatch", "replacePrefixMatch")];
    let wanted = fields.require("type")?.one_of(&types)?;
    for (_, other) in types.iter().filter(|(_, name)| *name != wanted) {
        if let Some(at) = fields.get(other) {
            at.error(format!("does not belong to this type, `{wanted}` does"));
        }
    }
    let value = fields.require(wanted)?;
    let path = value.str()?;
    let plain =
        |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'"' | b'<' | b'>' | b'\\');
    if !path.bytes().all(plain) {
        value.error("not a path: escape what is no plain character, and leave out query and fragment");
    } else if !path.is_empty() && !path.starts_with('/') || wanted == "replaceFullPath" && path.is_empty() {
        value.error("a path starts with `/`");
    }
    Some(match wanted {
        "replaceFullPath" => PathModifier::Full(path.to_owned()),
        _ => PathModifier::Prefix(path.to_owned()),
    })
}

fn backend_ref(meta: &Meta, matches: &[RouteMatch], index: usize, at: At<'_>) -> Option<BackendRef> {
    let fields = at.fields(&["group", "kind", "name", "namespace", "port", "weight", "filters"])?;
    let group = fields.get("group").map_or(Some(""), At::str)?;
    let kind = fields.get("kind").map_or(Some("Service"), At::str)?;
    let foreign = !(matches!(group, "" | "core") && kind == "Service");
    let namespace = match fields.get("namespace") {
        Some(at) => at.text()?,
        None => meta.namespace.clone(),
    };
    let port = match fields.get("port") {
        Some(at) => Some(at.port()?),
        None => None,
    };
    let filters = filters(fields);
    if filters.iter().any(|filter| matches!(filter, RouteFilter::Redirect(_))) {
        fields.at().error("a rule redirects, not a backendRef");
    }
    check_together(fields, matches, &filters);
    Some(BackendRef {
        namespace,
        name: fields.require("name")?.text()?,
        port,
        foreign_kind: foreign.then(|| format!("{kind} of group `{group}`")),
        weight: fields.get("weight").map_or(Some(1), |at| at.number(0, 1_000_000))?,
        filters,
        index,
        line: at.line(),
    })
}

fn retry(at: At<'_>) -> Option<Retry> {
    let fields = at.fields(&["codes", "attempts", "backoff"])?;
    Some(Retry {
        attempts: fields.get("attempts").map_or(Some(DEFAULT_ATTEMPTS), |at| at.number(0, 1000))?,
        codes: list(fields, "codes").filter_map(|at| at.number(400, 599)).collect(),
        backoff: fields.get("backoff").and_then(text::gateway_duration),
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::only;
    use super::super::super::{Object, Resource};
    use super::*;

    fn route(rules: &str) -> (std::sync::Arc<Object>, Vec<String>) {
        only(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: n}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: s}}]\n  rules:\n{rules}"
        ))
    }

    #[test]
    fn a_full_rule() {
        let (object, found) = route(
            "  - matches:\n    - path: {type: Exact, value: /a}\n      method: GET\n      headers: [{name: X-A, value: '1'}, {name: x-a, value: '2'}]\n      queryParams: [{type: RegularExpression, name: q, value: 'a+'}]\n    filters:\n    - type: RequestHeaderModifier\n      requestHeaderModifier: {set: [{name: X-B, value: b}], add: [], remove: [X-C]}\n    backendRefs: [{name: a, port: 80, weight: 9}, {name: b, port: 80}]\n    timeouts: {request: 10s, backendRequest: 1s}\n    retry: {codes: [503], backoff: 100ms}\n",
        );
        assert_eq!(found, [] as [String; 0]);
        let Resource::HttpRoute(route) = &object.resource else { panic!() };
        let rule = &route.rules[0];
        assert_eq!(rule.matches[0].headers, [("x-a".into(), TextMatch::Exact("1".into()))]);
        assert_eq!(rule.matches[0].path, PathMatch::Exact("/a".into()));
        assert_eq!(
            rule.retry,
            Some(Retry { attempts: 2, codes: vec![503], backoff: Some(Duration::from_millis(100)) })
        );
        assert_eq!(rule.backends[0].weight, 9);
        assert_eq!(rule.backends[1].weight, 1);
        assert_eq!(rule.request_timeout, Some(Duration::from_secs(10)));
    }

    #[test]
    fn zero_disables_a_timeout() {
        let (object, _) = route("  - timeouts: {request: 0s, backendRequest: 5s}\n");
        let Resource::HttpRoute(route) = &object.resource else { panic!() };
        assert!(object.good);
        assert_eq!(route.rules[0].request_timeout, None);
    }

    #[test]
    fn wrong_rules() {
        let cases = [
            ("  - matches: [{path: {value: a}}]\n", "starts with"),
            ("  - matches: [{path: {value: /a//b}}]\n", "can't contain"),
            ("  - matches: [{path: {type: RegularExpression, value: 'a('}}]\n", "not a regular expression"),
            ("  - matches: [{path: {type: RegularExpression, value: '(?=a)'}}]\n", "look-around"),
            ("  - matches: [{method: get}]\n", "unknown value"),
            (
                "  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X_Forwarded-Client-Cert, value: a}]}}]\n",
                "for proxies of the mesh",
            ),
            (
                "  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [Host]}}]\n",
                "URLRewrite",
            ),
            ("  - filters: [{type: RequestMirror, requestMirror: {}}]\n", "not supported yet"),
            ("  - filters: [{type: RequestRedirect, requestRedirect: {statusCode: 304}}]\n", "301, 302"),
            ("  - filters: [{type: RequestRedirect, requestRedirect: {hostname: '*.a'}}]\n", "without `*`"),
            (
                "  - filters: [{type: RequestRedirect, requestRedirect: {}}]\n    backendRefs: [{name: a, port: 80}]\n",
                "leave out backendRefs",
            ),
            (
                "  - filters: [{type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, urlRewrite: {}}]\n",
                "exclude each other",
            ),
            (
                "  - matches: [{path: {type: Exact, value: /a}}]\n    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]\n",
                "exactly one match",
            ),
            (
                "  - filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: b}}}]\n",
                "starts with",
            ),
            (
                "  - filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: '/b?c'}}}]\n",
                "leave out query",
            ),
            (
                "  - backendRefs: [{name: a, port: 80, filters: [{type: RequestRedirect, requestRedirect: {}}]}]\n",
                "not a backendRef",
            ),
            ("  - filters: [{type: RequestHeaderModifier}]\n", "requestHeaderModifier: is required"),
            (
                "  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: 'a b', value: c}]}}]\n",
                "not a header name",
            ),
            (
                "  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: \"x\\ny\"}]}}]\n",
                "control",
            ),
            ("  - backendRefs: [{name: a, port: 80, weight: -1}]\n", "out of range"),
            ("  - timeouts: {request: 1s, backendRequest: 2s}\n", "longer"),
            ("  - timeouts: {request: 1.5s}\n", "not a duration"),
            ("  - retry: {codes: [200]}\n", "out of range"),
            ("  - backendRef: []\n", "did you mean `backendRefs`"),
        ];
        for (rules, wanted) in cases {
            let (object, found) = route(rules);
            assert!(!object.good, "{rules}");
            assert!(found.join("\n").contains(wanted), "{rules}: {found:?}");
        }
    }

    #[test]
    fn both_header_filters_may_stand_together_and_none_twice() {
        let one = "{type: RequestHeaderModifier, requestHeaderModifier: {remove: [a]}}";
        let other = "{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [a]}}";
        assert!(route(&format!("  - filters: [{one}, {other}]\n")).0.good);
        assert!(!route(&format!("  - filters: [{one}, {one}]\n")).0.good);
    }
}
