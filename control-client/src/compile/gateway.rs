//! The Gateway that a proxy serves: its listeners, what they show, and the HTTPRoutes attached to them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::authorization::find;
use super::catalog::{Catalog, Item};
use super::grants::{Grants, Reference};
use super::objects::ObjectTable;
use super::route::{self, References};
use super::tls::Materials;
use super::{Findings, Labels};
use crate::resource::gateway_api::{
    Gateway, HttpRoute, Listener, ParentKind, ParentRef, RouteNamespaces, SecretRef,
};
use crate::resource::security::{Scope, TargetKind};
use crate::resource::text::selects;
use crate::snapshot::{self, GatewayListener, ListenerTls, RouteRule, VirtualHost};

/// The label by which what serves a Gateway is known (Gateway API, GEP-1762).
pub(super) const NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
/// The label by which Kubernetes' controllers name the namespace in its own labels.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// What Gateways and the routes attached to them are made from.
pub(super) struct Parts<'p, 'a> {
    pub(super) catalog: &'p Catalog<'a>,
    pub(super) references: &'p References<'p>,
    pub(super) grants: &'p Grants<'p>,
    pub(super) materials: &'p Materials<'a>,
    /// What was served before: certificates that can't be replaced stay.
    pub(super) before: Option<&'p snapshot::Gateway>,
}

/// Looks at all Gateways and at the routes that name one; what the served one comes to.
pub(super) fn compile<'a>(
    parts: &Parts<'_, 'a>,
    served: Option<(&str, &str)>,
    objects: &mut ObjectTable<'a>,
    findings: &mut Findings,
) -> Option<snapshot::Gateway> {
    let mut compiled = None;
    let mut opened = HashMap::new();
    for item in parts.catalog.gateways.iter().filter(|item| !item.quarantined) {
        let is_served = served == Some((item.namespace(), item.name()));
        let listeners = opened_listeners(item, findings);
        if is_served {
            let gateway = snapshot::Gateway {
                object: objects.number(item.object),
                addresses: item.spec.addresses.clone(),
                listeners: listeners.iter().map(|each| parts.listener(item, each, findings)).collect(),
            };
            compiled = Some(gateway);
        } else {
            for listener in &listeners {
                parts.tls(item, listener, findings);
            }
        }
        opened.insert((item.namespace(), item.name()), listeners);
    }
    let mut routes: BTreeMap<(&str, Option<String>), Vec<RouteRule>> = BTreeMap::new();
    let judged = judged_routes(parts.catalog);
    for item in parts.catalog.routes.iter().filter(|item| !item.quarantined) {
        if judged.contains(&(item.namespace(), item.name())) {
            // The policy says that it is not served.
            continue;
        }
        for parent in item.spec.parents.iter().filter(|parent| parent.kind == ParentKind::Gateway) {
            let gateway = (parent.namespace.as_str(), parent.name.as_str());
            for (listener, host) in parts.attached(item, parent, opened.get(&gateway), findings) {
                if served == Some(gateway) {
                    let rules = route::rules(item, None, parts.references, objects);
                    routes.entry((&listener.name, host)).or_default().extend(rules);
                }
            }
        }
    }
    if let Some(gateway) = &mut compiled {
        for ((listener, hostname), routes) in routes {
            let host = VirtualHost { hostname, routes };
            let to = gateway.listeners.iter_mut().filter(|each| each.name == listener);
            to.for_each(|each| each.hosts.push(host.clone()));
        }
    }
    compiled
}

/// Routes that policies are for, each alone: nobody enforces that yet, so nobody serves them at a Gateway.
fn judged_routes<'c>(catalog: &'c Catalog<'_>) -> HashSet<(&'c str, &'c str)> {
    let authorization = catalog.authorization_policies.iter().filter(|item| !item.spec.dry_run);
    let authorization = authorization.map(|item| (item.namespace(), &item.spec.scope));
    let users = catalog.request_authentications.iter().map(|item| (item.namespace(), &item.spec.scope));
    let limits = catalog.rate_limits.iter().map(|item| (item.namespace(), &item.spec.scope));
    let all = authorization.chain(users).chain(limits);
    all.flat_map(|(namespace, scope)| {
        let targets = match scope {
            Scope::Targets(targets) => targets.as_slice(),
            _ => &[],
        };
        let routes = targets.iter().filter(|target| target.kind == TargetKind::HttpRoute);
        routes.map(move |target| (namespace, target.name.as_str()))
    })
    .collect()
}

/// The listeners that can be open beside each other: of two that can't, the first is.
fn opened_listeners<'a>(item: &Item<'a, Gateway>, findings: &mut Findings) -> Vec<&'a Listener> {
    let mut opened: Vec<&'a Listener> = Vec::new();
    for listener in &item.spec.listeners {
        let on_port = || opened.iter().filter(|each| each.port == listener.port);
        let other_protocol =
            on_port().find(|each| each.certificates.is_some() != listener.certificates.is_some());
        let same_host = on_port().find(|each| each.hostname == listener.hostname);
        let conflict = match (other_protocol, same_host) {
            (Some(other), _) => format!(
                "port {} speaks another protocol for listener {}; this listener is not opened",
                listener.port, other.name
            ),
            (None, Some(same)) => format!(
                "listener {} has this port and host name already; this listener is not opened",
                same.name
            ),
            (None, None) => {
                opened.push(listener);
                continue;
            }
        };
        findings.error(item.object, &format!("spec.listeners[{}]", listener.index), listener.line, conflict);
    }
    opened
}

impl<'a> Parts<'_, 'a> {
    fn listener(
        &self,
        item: &Item<'a, Gateway>,
        listener: &Listener,
        findings: &mut Findings,
    ) -> GatewayListener {
        GatewayListener {
            name: listener.name.clone(),
            port: listener.port,
            hostname: listener.hostname.clone(),
            tls: self.tls(item, listener, findings).map(Arc::new),
            hosts: Vec::new(),
        }
    }

    /// What a listener shows; `None`: it has no TLS.
    fn tls(
        &self,
        item: &Item<'a, Gateway>,
        listener: &Listener,
        findings: &mut Findings,
    ) -> Option<ListenerTls> {
        let secrets = listener.certificates.as_ref()?;
        let mut pairs = Vec::new();
        let mut first_flaw = None;
        for (index, secret) in secrets.iter().enumerate() {
            match self.pair(item, secret, findings) {
                Ok(pair) => pairs.push(pair),
                Err(mut why) => {
                    if let Some(before) = self.pair_before(item, listener, secret) {
                        pairs.push(before);
                        why += "; the one before stays in use";
                    }
                    let field = format!("spec.listeners[{}].tls.certificateRefs[{index}]", listener.index);
                    findings.error_once(item.object, &field, secret.line, why.clone());
                    first_flaw.get_or_insert(why);
                }
            }
        }
        Some(match first_flaw {
            Some(why) if pairs.is_empty() => ListenerTls::Unusable(why),
            _ => ListenerTls::Certificates { pairs, tickets: listener.tickets },
        })
    }

    fn pair(
        &self,
        item: &Item<'a, Gateway>,
        secret: &SecretRef,
        findings: &mut Findings,
    ) -> Result<(snapshot::PemObject, snapshot::PemObject), String> {
        let SecretRef { namespace, name, .. } = secret;
        if !self.grants.allow(Reference::GatewayToSecret, item.namespace(), namespace, name) {
            return Err(format!(
                "no ReferenceGrant in {namespace} lets a Gateway of {} refer to Secret {name}",
                item.namespace()
            ));
        }
        self.materials.pair(namespace, name, findings)
    }

    /// The pair of a Secret that this listener showed before, if it may still refer to that.
    fn pair_before(
        &self,
        item: &Item<'a, Gateway>,
        listener: &Listener,
        secret: &SecretRef,
    ) -> Option<(snapshot::PemObject, snapshot::PemObject)> {
        let SecretRef { namespace, name, .. } = secret;
        if !self.grants.allow(Reference::GatewayToSecret, item.namespace(), namespace, name) {
            return None;
        }
        let name = Materials::pair_names(namespace, name).0;
        let listeners = self.before.into_iter().flat_map(|gateway| &gateway.listeners);
        let listeners = listeners.filter(|each| each.name == listener.name);
        let pairs = listeners.filter_map(|listener| match listener.tls.as_deref() {
            Some(ListenerTls::Certificates { pairs, .. }) => Some(pairs),
            _ => None,
        });
        pairs.flatten().find(|(certificate, _)| certificate.name() == name).cloned()
    }

    /// The listeners that a route is attached to by one of its parents, each with a host. If there are none, it is said why.
    fn attached<'l>(
        &self,
        item: &Item<'a, HttpRoute>,
        parent: &ParentRef,
        listeners: Option<&Vec<&'l Listener>>,
        findings: &mut Findings,
    ) -> Vec<(&'l Listener, Option<String>)> {
        let mut attached = Vec::new();
        let why = match listeners {
            None => format!("no Gateway {}/{}", parent.namespace, parent.name),
            Some(listeners) => {
                let wanted = |listener: &&&Listener| {
                    parent.port.is_none_or(|port| port == listener.port)
                        && parent.section.as_ref().is_none_or(|section| *section == listener.name)
                };
                let mut why = None;
                for &listener in listeners.iter().filter(wanted) {
                    match self.hosts(item, parent, listener) {
                        Ok(hosts) => attached.extend(hosts.into_iter().map(|host| (listener, host))),
                        Err(refused) => why = why.or(Some(refused)),
                    }
                }
                why.unwrap_or_else(|| {
                    let names: Vec<_> = listeners.iter().map(|each| &*each.name).collect();
                    format!(
                        "Gateway {}/{} has no such listener, only {}",
                        parent.namespace,
                        parent.name,
                        names.join(", ")
                    )
                })
            }
        };
        if attached.is_empty() {
            let field = format!("spec.parentRefs[{}]", parent.index);
            findings.error(
                item.object,
                &field,
                parent.line,
                format!("{why}; the route is not attached to it"),
            );
        }
        attached
    }

    /// The hosts that a route has at a listener; why it has none there.
    fn hosts(
        &self,
        item: &Item<'a, HttpRoute>,
        parent: &ParentRef,
        listener: &Listener,
    ) -> Result<Vec<Option<String>>, String> {
        if !listener.takes_http_routes {
            return Err(format!("listener {} takes no HTTPRoutes (allowedRoutes.kinds)", listener.name));
        }
        let allowed = match &listener.namespaces {
            RouteNamespaces::All => true,
            RouteNamespaces::None => false,
            RouteNamespaces::Same => item.namespace() == parent.namespace,
            RouteNamespaces::Labelled(labels) => selects(labels, &self.labels_of(item.namespace())),
        };
        if !allowed {
            return Err(format!(
                "listener {} takes no routes of namespace {} (allowedRoutes.namespaces)",
                listener.name,
                item.namespace()
            ));
        }
        let own = listener.hostname.as_deref();
        if item.spec.hostnames.is_empty() {
            return Ok(vec![own.map(str::to_owned)]);
        }
        let wanted = item.spec.hostnames.iter().map(|name| Some(name.as_str()).filter(|name| *name != "*"));
        let mut hosts: Vec<_> = wanted
            .filter_map(|wanted| intersection(own, wanted))
            .map(|host| host.map(str::to_owned))
            .collect();
        hosts.sort();
        hosts.dedup();
        if hosts.is_empty() {
            return Err(format!(
                "none of its hostnames is one of listener {}, which has {}",
                listener.name,
                own.unwrap_or("any")
            ));
        }
        Ok(hosts)
    }

    fn labels_of(&self, namespace: &str) -> Cow<'a, Labels> {
        let object = self.catalog.namespaces.iter().find(|object| object.meta.name == namespace);
        let mut labels = object.map_or_else(Cow::default, |object| Cow::Borrowed(&object.meta.labels));
        if !labels.contains_key(NAMESPACE_NAME) {
            labels.to_mut().insert(NAMESPACE_NAME.to_owned(), namespace.to_owned());
        }
        labels
    }
}

/// The narrower of two host names of which one covers the other; `None` as a name is any. `*.` covers one label or more
/// (Gateway API, `HTTPRouteSpec.hostnames`).
fn intersection<'h>(one: Option<&'h str>, other: Option<&'h str>) -> Option<Option<&'h str>> {
    match (one, other) {
        (None, name) | (name, None) => Some(name),
        (Some(one), Some(other)) if covers(one, other) => Some(Some(other)),
        (Some(one), Some(other)) if covers(other, one) => Some(Some(one)),
        _ => None,
    }
}

fn covers(wide: &str, narrow: &str) -> bool {
    match wide.strip_prefix('*') {
        Some(suffix) => {
            narrow.strip_prefix('*').unwrap_or(narrow).ends_with(suffix) && narrow.len() >= wide.len()
        }
        None => wide == narrow,
    }
}

/// The class of a Gateway.
pub(super) fn class<'c>(catalog: &'c Catalog<'_>, namespace: &str, name: &str) -> Option<&'c str> {
    find(&catalog.gateways, namespace, name).map(|item| item.spec.class.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_of_two_names_counts() {
        for (one, other, expected) in [
            (None, None, Some(None)),
            (None, Some("a.b"), Some(Some("a.b"))),
            (Some("*.b"), None, Some(Some("*.b"))),
            (Some("a.b"), Some("a.b"), Some(Some("a.b"))),
            (Some("*.b"), Some("a.b"), Some(Some("a.b"))),
            (Some("a.b"), Some("*.b"), Some(Some("a.b"))),
            (Some("*.b"), Some("x.a.b"), Some(Some("x.a.b"))),
            (Some("*.b"), Some("*.a.b"), Some(Some("*.a.b"))),
            (Some("*.a.b"), Some("*.b"), Some(Some("*.a.b"))),
            (Some("*.b"), Some("b"), None),
            (Some("*.b"), Some("ab"), None),
            (Some("*.b"), Some("*.cb"), None),
            (Some("a.b"), Some("c.b"), None),
        ] {
            assert_eq!(intersection(one, other), expected, "{one:?} {other:?}");
        }
    }
}
