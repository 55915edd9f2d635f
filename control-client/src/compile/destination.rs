//! DestinationRules: which one is for a service, and what it says.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::catalog::{Catalog, Item};
use super::peer::{PeerPolicies, would_weaken};
use super::service::service_host;
use super::{Findings, Labels};
use crate::resource::Object;
use crate::resource::destination::{DestinationRule, Tls, TlsMode, TlsSettings, TrafficPolicy};
use crate::resource::mesh::MeshSettings;
use crate::resource::text::{CLUSTER_DOMAIN, selects};

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The rules that clients like this workload follow.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    /// Namespace and host, a whole name.
    exact: HashMap<(&'a str, String), &'a Item<'a, DestinationRule>>,
    /// Namespace and what follows the star, longest first.
    wildcards: Vec<(&'a str, &'a str, &'a Item<'a, DestinationRule>)>,
    client_namespace: String,
    root_namespace: String,
}

/// What a backend gets from its rule.
#[derive(Debug)]
pub(super) struct Decided<'a> {
    /// `None`: the rule, if there is one, doesn't speak of TLS.
    pub(super) tls: Option<&'a Tls>,
    pub(super) connect_timeout: Duration,
    pub(super) object: Option<&'a Object>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(
        catalog: &'a Catalog<'a>,
        client_namespace: &str,
        labels: &Labels,
        settings: &MeshSettings,
        peers: &PeerPolicies<'_>,
        findings: &mut Findings,
    ) -> Self {
        let mut rules = Self {
            exact: HashMap::new(),
            wildcards: Vec::new(),
            client_namespace: client_namespace.to_owned(),
            root_namespace: settings.root_namespace.clone(),
        };
        let for_client = |item: &&Item<'a, DestinationRule>| {
            item.spec
                .clients
                .as_ref()
                .is_none_or(|clients| item.namespace() == client_namespace && selects(clients, labels))
        };
        let services: HashSet<(&str, &str)> =
            catalog.services.iter().map(|item| (item.name(), item.namespace())).collect();
        let mut items: Vec<_> = catalog.destination_rules.iter().collect();
        // Whoever it is for, what is ignored is so for everyone.
        if let Some(enforced) = peers.enforces_mtls() {
            let mesh = mesh_hosts(catalog);
            items.retain(|item| !weakens(item, &mesh, &services, enforced, findings));
        }
        items.retain(for_client);
        // A rule for certain clients wins over one for all, then the oldest wins.
        items.sort_by_key(|item| (item.spec.clients.is_none(), item.object.meta.age()));
        for item in items {
            rules.add(item, &services, findings);
        }
        rules.wildcards.sort_by_key(|(_, suffix, _)| std::cmp::Reverse(suffix.len()));
        rules.report_unknown_hosts(catalog, findings);
        rules
    }

    fn add(
        &mut self,
        item: &'a Item<'a, DestinationRule>,
        services: &HashSet<(&str, &str)>,
        findings: &mut Findings,
    ) {
        let Some(host) = &item.spec.host else { return };
        let namespace = item.object.meta.namespace.as_str();
        if let Some(suffix) = host.strip_prefix('*') {
            self.wildcards.push((namespace, suffix, item));
            return;
        }
        let key = (namespace, full_host(host, namespace, services));
        match self.exact.get(&key) {
            Some(first) if first.spec.clients.is_none() == item.spec.clients.is_none() => {
                let message = format!(
                    "DestinationRule {} is older, for the same host, and in force",
                    first.object.meta.name
                );
                findings.error(item.object, "spec.host", 0, message);
            }
            Some(_) => {}
            None => {
                self.exact.insert(key, item);
            }
        }
    }

    /// A rule for nothing is probably a typo.
    fn report_unknown_hosts(&self, catalog: &Catalog<'_>, findings: &mut Findings) {
        let services = catalog.services.iter().map(|item| service_host(item.name(), item.namespace()));
        let entries = catalog.service_entries.iter().flat_map(|item| item.spec.hosts.iter().cloned());
        let known: HashSet<String> = services.chain(entries).collect();
        let mut unknown: Vec<_> = self.exact.iter().filter(|((_, host), _)| !known.contains(host)).collect();
        unknown.sort_by_key(|(key, _)| *key);
        for ((_, host), item) in unknown {
            findings.warn(item.object, "spec.host", 0, format!("no service {host} is known"));
        }
    }

    /// What the rule for this port of this host says: the client's namespace first, then the service's, then the root.
    pub(super) fn decide(&self, host: &str, service_namespace: &str, port: u16) -> Decided<'a> {
        let places = [self.client_namespace.as_str(), service_namespace, self.root_namespace.as_str()];
        let Some(item) = places.iter().find_map(|namespace| self.find(namespace, host)) else {
            return Decided { tls: None, connect_timeout: DEFAULT_CONNECT_TIMEOUT, object: None };
        };
        let policy: &TrafficPolicy = item.spec.ports.get(&port).unwrap_or(&item.spec.policy);
        let tls = Some(&policy.tls).filter(|tls| !matches!(tls, Tls::Auto));
        let connect_timeout = policy.connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT);
        Decided { tls, connect_timeout, object: Some(item.object) }
    }

    fn find(&self, namespace: &str, host: &str) -> Option<&'a Item<'a, DestinationRule>> {
        let shown = |item: &&'a Item<'a, DestinationRule>| {
            item.spec.export_to.shows(item.namespace(), &self.client_namespace)
        };
        let exact = self.exact.get(&(namespace, host.to_owned())).copied().filter(shown);
        exact.or_else(|| {
            let mut matching =
                self.wildcards.iter().filter(|(of, suffix, _)| *of == namespace && host.ends_with(suffix));
            matching.find(|(.., item)| shown(item)).map(|(.., item)| *item)
        })
    }
}

/// Hosts whose endpoints are workloads of the mesh.
fn mesh_hosts(catalog: &Catalog<'_>) -> Vec<String> {
    let services = catalog.services.iter().map(|item| service_host(item.name(), item.namespace()));
    let entries = catalog.service_entries.iter().filter(|item| !item.spec.external);
    services.chain(entries.flat_map(|item| item.spec.hosts.iter().cloned())).collect()
}

/// Reports a rule that turns TLS off towards workloads of a mesh where mTLS is enforced.
fn weakens(
    item: &Item<'_, DestinationRule>,
    mesh: &[String],
    services: &HashSet<(&str, &str)>,
    enforced: &Object,
    findings: &mut Findings,
) -> bool {
    let off =
        |policy: &TrafficPolicy| matches!(policy.tls, Tls::Set(TlsSettings { mode: TlsMode::Disable, .. }));
    let port = item.spec.ports.iter().find(|(_, policy)| off(policy));
    let field = match port {
        _ if off(&item.spec.policy) => "spec.trafficPolicy.tls.mode",
        Some(_) => "spec.trafficPolicy.portLevelSettings",
        None => return false,
    };
    let Some(host) = &item.spec.host else { return false };
    let in_mesh = match host.strip_prefix('*') {
        Some(suffix) => mesh.iter().any(|known| known.ends_with(suffix)),
        None => {
            let host = full_host(host, item.namespace(), services);
            mesh.contains(&host)
        }
    };
    if in_mesh {
        findings.ignored(item.object, field, would_weaken(enforced, "this object"));
    }
    in_mesh
}

fn full_host(host: &str, namespace: &str, services: &HashSet<(&str, &str)>) -> String {
    match host.split_once('.') {
        None => service_host(host, namespace),
        Some(_) if host.ends_with(".svc") => format!("{host}.{CLUSTER_DOMAIN}"),
        Some(name) if services.contains(&name) => format!("{host}.svc.{CLUSTER_DOMAIN}"),
        Some(_) => host.to_owned(),
    }
}
