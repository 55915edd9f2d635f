//! Which BackendTLSPolicy is for which port of which Service.

use std::collections::HashMap;

use super::Findings;
use super::authorization::find;
use super::catalog::{Catalog, Item};
use super::tls::Materials;
use crate::resource::Object;
use crate::resource::gateway_api::{BackendTlsPolicy, ServiceTarget};
use crate::snapshot::BackendTls;

/// What each policy orders, by what it is for.
#[derive(Debug, Default)]
pub(super) struct BackendPolicies<'a> {
    /// Namespace and name of a Service, and the name of a port or none for all.
    by_target: HashMap<(&'a str, &'a str, Option<&'a str>), Ordered<'a>>,
    /// Those whose targets can't be understood: they cover their namespace.
    blind: HashMap<&'a str, Ordered<'a>>,
}

type Ordered<'a> = (BackendTls, &'a Object);

impl<'a> BackendPolicies<'a> {
    pub(super) fn new(catalog: &'a Catalog<'a>, materials: &Materials<'_>, findings: &mut Findings) -> Self {
        let mut all = Self::default();
        let mut items: Vec<&Item<'a, BackendTlsPolicy>> = catalog.backend_tls_policies.iter().collect();
        // Of two for one target the older is in force (Gateway API, GEP-713).
        items.sort_by_key(|item| item.object.meta.age());
        for item in items {
            let tls = materials.of_policy(item, findings);
            let namespace = item.object.meta.namespace.as_str();
            match &item.spec.targets {
                None => {
                    all.blind.entry(namespace).or_insert((tls, item.object));
                }
                Some(targets) => {
                    for (index, target) in targets.iter().enumerate() {
                        all.add(catalog, item, index, target, &tls, findings);
                    }
                }
            }
        }
        all
    }

    fn add(
        &mut self,
        catalog: &Catalog<'_>,
        item: &'a Item<'a, BackendTlsPolicy>,
        index: usize,
        target: &'a ServiceTarget,
        tls: &BackendTls,
        findings: &mut Findings,
    ) {
        let namespace = item.object.meta.namespace.as_str();
        let mut report = |message: String| {
            findings.error(item.object, &format!("spec.targetRefs[{index}]"), target.line, message);
        };
        let section = target.section.as_deref();
        match find(&catalog.services, namespace, &target.service) {
            None => {
                return report(format!(
                    "no Service {namespace}/{}; this target covers nothing",
                    target.service
                ));
            }
            Some(service)
                if section.is_some_and(|name| service.spec.ports.iter().all(|port| port.name != name)) =>
            {
                return report(format!(
                    "Service {namespace}/{} has no port named {}; this target covers nothing",
                    target.service,
                    section.unwrap_or_default()
                ));
            }
            Some(_) => {}
        }
        let key = (namespace, target.service.as_str(), section);
        match self.by_target.get(&key) {
            Some((_, first)) => report(format!(
                "BackendTLSPolicy {} is older, for the same target, and in force",
                first.meta.name
            )),
            None => {
                self.by_target.insert(key, (tls.clone(), item.object));
            }
        }
    }

    /// What is ordered for a port of a Service: for the port itself before all of the Service's.
    pub(super) fn decide(&self, namespace: &'a str, service: &'a str, port: &'a str) -> Option<&Ordered<'a>> {
        if let Some(blind) = self.blind.get(namespace) {
            return Some(blind);
        }
        let of_port = self.by_target.get(&(namespace, service, Some(port)));
        of_port.or_else(|| self.by_target.get(&(namespace, service, None)))
    }
}
