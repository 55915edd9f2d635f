//! gateway.networking.k8s.io: Gateway, HTTPRoute, BackendTLSPolicy and ReferenceGrant.

mod backend_tls;
mod gateway;
mod rule;

pub(crate) use self::backend_tls::{BackendTlsPolicy, Roots, ServiceTarget, backend_tls_policy};
pub(crate) use self::gateway::{Gateway, Listener, RouteNamespaces, SecretRef, gateway};
pub(crate) use self::rule::{BackendRef, Rule};
use super::read::{At, Fields};
use super::{Meta, Resource};

/// An HTTPRoute.
#[derive(Debug, Default)]
pub(crate) struct HttpRoute {
    pub(crate) parents: Vec<ParentRef>,
    /// For parents that are Gateways; where the parent is a Service, that is the host. Empty: those of the listener.
    pub(crate) hostnames: Vec<String>,
    pub(crate) rules: Vec<Rule>,
}

/// A parent of a route.
#[derive(Debug)]
pub(crate) struct ParentRef {
    pub(crate) kind: ParentKind,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) port: Option<u16>,
    /// Name of a port, or of a listener.
    pub(crate) section: Option<String>,
    /// Its number in the route.
    pub(crate) index: usize,
    pub(crate) line: u32,
}

/// What a route is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ParentKind {
    Service,
    Gateway,
}

/// A ReferenceGrant: objects of `from` may refer to objects of `to` in its namespace.
#[derive(Debug, Default)]
pub(crate) struct ReferenceGrant {
    /// Namespaces whose HTTPRoutes are granted.
    pub(crate) from_http_routes: Vec<String>,
    /// Namespaces whose Gateways are.
    pub(crate) from_gateways: Vec<String>,
    /// Services granted; `None` is all of them.
    pub(crate) to_services: Vec<Option<String>>,
    /// Secrets granted, likewise.
    pub(crate) to_secrets: Vec<Option<String>>,
}

const GROUP: &str = "gateway.networking.k8s.io";

/// Reads an HTTPRoute.
pub(crate) fn http_route(meta: &Meta, object: Fields<'_>) -> Resource {
    let mut route = HttpRoute::default();
    let spec = object
        .require("spec")
        .and_then(|at| at.fields(&["parentRefs", "hostnames", "rules", "useDefaultGateways"]));
    let Some(spec) = spec else { return Resource::HttpRoute(route) };
    spec.not_in_force(&["useDefaultGateways"]);
    match spec.get("parentRefs") {
        Some(list) => {
            route.parents = list.items().enumerate().filter_map(|(i, at)| parent_ref(meta, i, at)).collect()
        }
        None => spec.at().warn("without parentRefs this route is attached to nothing"),
    }
    if let Some(hostnames) = spec.get("hostnames") {
        route.hostnames = hostnames.items().filter_map(super::text::host).collect();
        if !route.parents.is_empty() && route.parents.iter().all(|parent| parent.kind == ParentKind::Service)
        {
            hostnames.warn("not looked at where the parent is a Service: the Service is the host");
        }
    }
    match spec.get("rules") {
        Some(list) => route.rules = list.items().map(|at| rule::read(meta, at)).collect(),
        None => spec.at().warn("without rules every request to the parents is answered with 500"),
    }
    if route.rules.is_empty() {
        // Gateway API's default: one rule that matches everything and has no backend.
        route.rules.push(Rule::default());
    }
    Resource::HttpRoute(route)
}

fn parent_ref(meta: &Meta, index: usize, at: At<'_>) -> Option<ParentRef> {
    let fields = at.fields(&["group", "kind", "namespace", "name", "sectionName", "port"])?;
    let group = fields.get("group").map_or(Some(GROUP), At::str)?;
    let kind_text = fields.get("kind").map_or(Some("Gateway"), At::str)?;
    let kind = match (group, kind_text) {
        ("" | "core", "Service") => ParentKind::Service,
        (GROUP, "Gateway") => ParentKind::Gateway,
        (GROUP, "Service") => {
            at.error("a Service as parent needs `group: \"\"`");
            return None;
        }
        (group, kind) => {
            at.error(format!(
                "{kind} of group `{group}` can't be a parent; known: Gateway, and Service of group \"\""
            ));
            return None;
        }
    };
    let namespace = match fields.get("namespace") {
        Some(at) => at.text()?,
        None => meta.namespace.clone(),
    };
    Some(ParentRef {
        kind,
        namespace,
        name: fields.require("name")?.text()?,
        port: match fields.get("port") {
            Some(at) => Some(at.port()?),
            None => None,
        },
        section: fields.get("sectionName").and_then(At::text),
        index,
        line: at.line(),
    })
}

/// Reads a ReferenceGrant.
pub(crate) fn reference_grant(_: &Meta, object: Fields<'_>) -> Resource {
    let mut grant = ReferenceGrant::default();
    let Some(spec) = object.require("spec").and_then(|at| at.fields(&["from", "to"])) else {
        return Resource::ReferenceGrant(grant);
    };
    for at in spec.require("from").into_iter().flat_map(|at| at.items()) {
        let Some(fields) = at.fields(&["group", "kind", "namespace"]) else { continue };
        let (group, kind) = group_kind(fields);
        let Some(namespace) = fields.require("namespace").and_then(At::text) else { continue };
        match (group, kind) {
            (Some(GROUP), Some("HTTPRoute")) => grant.from_http_routes.push(namespace),
            (Some(GROUP), Some("Gateway")) => grant.from_gateways.push(namespace),
            _ => {}
        }
    }
    for at in spec.require("to").into_iter().flat_map(|at| at.items()) {
        let Some(fields) = at.fields(&["group", "kind", "name"]) else { continue };
        let (group, kind) = group_kind(fields);
        let name = fields.get("name").map(At::text);
        // A name that can't be read grants nothing.
        match (group, kind) {
            _ if name == Some(None) => {}
            (Some(""), Some("Service")) => grant.to_services.push(name.flatten()),
            (Some(""), Some("Secret")) => grant.to_secrets.push(name.flatten()),
            _ => {}
        }
    }
    Resource::ReferenceGrant(grant)
}

fn group_kind<'a>(fields: Fields<'a>) -> (Option<&'a str>, Option<&'a str>) {
    // Not `require`'s notion of text: the core group is the empty string.
    (fields.require("group").and_then(At::str), fields.require("kind").and_then(At::str))
}
