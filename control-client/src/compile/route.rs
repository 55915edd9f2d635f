//! HTTPRoutes with a Service as parent (GAMMA): which rules a client in a namespace follows; and what routes refer to.

use std::collections::HashMap;

use super::Findings;
use super::catalog::{Catalog, Item};
use super::grants::{Grants, Reference};
use super::objects::ObjectTable;
use super::service::{HostKind, Hosted};
use crate::resource::gateway_api::{BackendRef, HttpRoute, ParentKind, ParentRef, Rule};
use crate::snapshot::{BackendIndex, RouteRule, WeightedBackend};

/// Rules by the backend of the port that they are attached to.
pub(super) type Attached = HashMap<BackendIndex, Vec<RouteRule>>;

/// Rules of one port: those of the service's own namespace, and those of the client's.
#[derive(Default)]
struct Sets {
    producer: Vec<RouteRule>,
    consumer: Vec<RouteRule>,
}

/// The rules that clients in `client_namespace` follow.
pub(super) fn attach<'a>(
    catalog: &Catalog<'a>,
    references: &References<'_>,
    client_namespace: &str,
    objects: &mut ObjectTable<'a>,
    findings: &mut Findings,
) -> Attached {
    let mut sets: HashMap<BackendIndex, Sets> = HashMap::new();
    for item in &catalog.routes {
        if item.quarantined {
            let message = "no rule of it is in force: requests to its parents go where they went without it";
            findings.warn(item.object, "", 0, message.into());
            continue;
        }
        references.check(item, findings);
        for parent in item.spec.parents.iter().filter(|parent| parent.kind == ParentKind::Service) {
            let producer = item.namespace() == parent.namespace;
            let followed = producer || item.namespace() == client_namespace;
            for backend in references.parent_ports(item, parent, findings) {
                if !followed {
                    continue;
                }
                let rules = rules(item, Some(parent), references, objects);
                let set = sets.entry(backend).or_default();
                if producer { set.producer.extend(rules) } else { set.consumer.extend(rules) }
            }
        }
    }
    // A consumer's routes replace the producer's; they are never merged.
    let chosen = |set: Sets| if set.consumer.is_empty() { set.producer } else { set.consumer };
    sets.into_iter().map(|(backend, set)| (backend, chosen(set))).collect()
}

/// The rules of a route. `parent`: the Service that it is attached to.
pub(super) fn rules<'a>(
    item: &Item<'a, HttpRoute>,
    parent: Option<&ParentRef>,
    references: &References<'_>,
    objects: &mut ObjectTable<'a>,
) -> Vec<RouteRule> {
    let object = objects.number(item.object);
    let rule = |(index, rule): (usize, &Rule)| RouteRule {
        object,
        rule: u16::try_from(index).unwrap_or(u16::MAX),
        created: item.object.meta.created,
        matches: rule.matches.clone(),
        filters: rule.filters.clone(),
        backends: rule.backends.iter().map(|backend| references.weighted(item, parent, backend)).collect(),
        request_timeout: rule.request_timeout,
        backend_timeout: rule.backend_timeout,
        retry: rule.retry.clone(),
    };
    item.spec.rules.iter().enumerate().map(rule).collect()
}

/// What routes can refer to.
pub(super) struct References<'h> {
    services: HashMap<(&'h str, &'h str), &'h Hosted<'h>>,
    grants: &'h Grants<'h>,
}

impl<'h> References<'h> {
    pub(super) fn new(grants: &'h Grants<'h>, hosts: &'h [Hosted<'_>]) -> Self {
        let services = hosts.iter().filter(|host| matches!(host.kind, HostKind::Service(_)));
        Self {
            services: services.map(|host| ((host.kind.namespace(), host.kind.name()), host)).collect(),
            grants,
        }
    }

    /// The ports of its parent that a route is attached to, by their backends.
    fn parent_ports(
        &self,
        item: &Item<'_, HttpRoute>,
        parent: &ParentRef,
        findings: &mut Findings,
    ) -> Vec<BackendIndex> {
        let field = format!("spec.parentRefs[{}]", parent.index);
        let (namespace, name) = (parent.namespace.as_str(), parent.name.as_str());
        let Some(host) = self.services.get(&(namespace, name)) else {
            let message = format!("no Service {namespace}/{name}; the route is not attached to it");
            findings.error(item.object, &field, parent.line, message);
            return Vec::new();
        };
        let wanted = |port: &&super::service::Port<'_>| {
            parent.port.is_none_or(|number| number == port.number)
                && parent.section.as_ref().is_none_or(|section| section == port.name)
        };
        let ports: Vec<_> = host.ports.iter().filter(wanted).map(|port| port.backend).collect();
        if ports.is_empty() {
            let numbers: Vec<_> = host.ports.iter().map(|port| port.number.to_string()).collect();
            let message = format!("Service {namespace}/{name} has no such port, only {}", numbers.join(", "));
            findings.error(item.object, &field, parent.line, message);
        }
        ports
    }

    /// Reports every backendRef that can't be followed, whoever follows the route.
    fn check(&self, item: &Item<'_, HttpRoute>, findings: &mut Findings) {
        for (number, rule) in item.spec.rules.iter().enumerate() {
            for backend in &rule.backends {
                let own =
                    |parent: &&ParentRef| parent.kind == ParentKind::Service && is_parent(parent, backend);
                let parent = item.spec.parents.iter().find(own);
                if let Err(why) = self.resolve(item, parent, backend) {
                    let field = format!("spec.rules[{number}].backendRefs[{}]", backend.index);
                    let message =
                        format!("{why}; it keeps its share of the requests and answers them with 500");
                    findings.error(item.object, &field, backend.line, message);
                }
            }
        }
    }

    fn weighted(
        &self,
        item: &Item<'_, HttpRoute>,
        parent: Option<&ParentRef>,
        backend: &BackendRef,
    ) -> WeightedBackend {
        let mut name = backend.name.clone();
        if backend.namespace != item.namespace() {
            name = format!("{name}.{}", backend.namespace);
        }
        if let Some(port) = backend.port {
            name = format!("{name}:{port}");
        }
        WeightedBackend {
            backend: self.resolve(item, parent, backend).ok(),
            name,
            weight: backend.weight,
            filters: backend.filters.clone(),
        }
    }

    fn resolve(
        &self,
        item: &Item<'_, HttpRoute>,
        parent: Option<&ParentRef>,
        backend: &BackendRef,
    ) -> Result<BackendIndex, String> {
        if let Some(kind) = &backend.foreign_kind {
            return Err(format!("{kind} can't be a backend; known: Service"));
        }
        let (namespace, name) = (backend.namespace.as_str(), backend.name.as_str());
        // Who may call the parent may be sent to the parent.
        let granted = parent.is_some_and(|parent| is_parent(parent, backend))
            || self.grants.allow(Reference::RouteToService, item.namespace(), namespace, name);
        if !granted {
            return Err(format!(
                "no ReferenceGrant in {namespace} lets an HTTPRoute of {} refer to Service {name}",
                item.namespace()
            ));
        }
        let Some(host) = self.services.get(&(namespace, name)) else {
            return Err(format!("no Service {namespace}/{name}"));
        };
        let Some(number) = backend.port else {
            return Err("port is required for a Service".into());
        };
        let port = host.ports.iter().find(|port| port.number == number);
        port.map(|port| port.backend)
            .ok_or_else(|| format!("Service {namespace}/{name} has no port {number}"))
    }
}

fn is_parent(parent: &ParentRef, backend: &BackendRef) -> bool {
    parent.namespace == backend.namespace && parent.name == backend.name
}
