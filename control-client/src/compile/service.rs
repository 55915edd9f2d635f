//! Services and ServiceEntries as hosts with ports, and a backend for each port.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

use super::Findings;
use super::backend_tls::BackendPolicies;
use super::catalog::{Catalog, Item};
use super::destination::{Decided, Rules};
use super::objects::ObjectTable;
use super::peer::PeerPolicies;
use super::route::Attached;
use super::tls::Materials;
use crate::resource::Object;
use crate::resource::core::{self, TargetPort};
use crate::resource::destination::Tls;
use crate::resource::text::CLUSTER_DOMAIN;
use crate::resource::traffic::ServiceEntry;
use crate::snapshot::{Backend, BackendIndex, BackendTls, Protocol, Service, ServicePort};

/// A host that can be called.
#[derive(Debug)]
pub(super) struct Hosted<'a> {
    pub(super) host: String,
    pub(super) addresses: &'a [IpAddr],
    pub(super) ports: Vec<Port<'a>>,
    pub(super) kind: HostKind<'a>,
}

/// A port of a host.
#[derive(Debug)]
pub(super) struct Port<'a> {
    pub(super) number: u16,
    pub(super) name: &'a str,
    pub(super) protocol: Option<Protocol>,
    pub(super) target: Cow<'a, TargetPort>,
    pub(super) backend: BackendIndex,
}

/// What stands behind a host.
#[derive(Debug, Clone, Copy)]
pub(super) enum HostKind<'a> {
    Service(&'a Item<'a, core::Service>),
    Entry(&'a Item<'a, ServiceEntry>),
}

impl<'a> HostKind<'a> {
    pub(super) fn object(self) -> &'a crate::resource::Object {
        match self {
            Self::Service(item) => item.object,
            Self::Entry(item) => item.object,
        }
    }

    pub(super) fn namespace(self) -> &'a str {
        &self.object().meta.namespace
    }

    pub(super) fn name(self) -> &'a str {
        &self.object().meta.name
    }
}

/// All hosts that clients in `namespace` see. Services come first, sorted by namespace and name.
pub(super) fn collect<'a>(
    catalog: &'a Catalog<'a>,
    namespace: &str,
    findings: &mut Findings,
) -> Vec<Hosted<'a>> {
    let services = catalog.services.iter().filter(|item| !item.spec.external_name).map(from_service);
    let mut hosts: Vec<Hosted<'a>> = services.collect();
    let mut by_host: HashMap<String, usize> =
        hosts.iter().enumerate().map(|(index, host)| (host.host.clone(), index)).collect();
    let visible = |item: &&Item<'_, ServiceEntry>| item.spec.export_to.shows(item.namespace(), namespace);
    let mut entries: Vec<_> = catalog.service_entries.iter().filter(visible).collect();
    // Of several entries for one host, the client's own namespace wins, then the oldest.
    entries.sort_by_key(|item| (item.namespace() != namespace, item.object.meta.age()));
    for item in entries {
        for (index, host) in item.spec.hosts.iter().enumerate() {
            match by_host.get(host).map(|first| &hosts[*first]) {
                Some(first) => {
                    let object = &first.kind.object().meta;
                    let message = format!(
                        "{host} already belongs to {} {}/{}, which is in force for it",
                        object.kind, object.namespace, object.name
                    );
                    findings.error(item.object, &format!("spec.hosts[{index}]"), 0, message);
                }
                None => {
                    by_host.insert(host.clone(), hosts.len());
                    hosts.push(from_entry(item, host));
                }
            }
        }
    }
    hosts
}

/// The full host name of a Service.
pub(super) fn service_host(name: &str, namespace: &str) -> String {
    format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}")
}

fn from_service<'a>(item: &'a Item<'a, core::Service>) -> Hosted<'a> {
    let port = |port: &'a core::ServicePort| Port {
        number: port.port,
        name: &port.name,
        protocol: port.protocol,
        target: Cow::Borrowed(&port.target),
        backend: 0,
    };
    Hosted {
        host: service_host(item.name(), item.namespace()),
        addresses: &item.spec.cluster_ips,
        ports: item.spec.ports.iter().map(port).collect(),
        kind: HostKind::Service(item),
    }
}

fn from_entry<'a>(item: &'a Item<'a, ServiceEntry>, host: &str) -> Hosted<'a> {
    let port = |port: &'a crate::resource::traffic::EntryPort| Port {
        number: port.number,
        name: &port.name,
        protocol: port.protocol,
        target: Cow::Owned(TargetPort::Number(port.target.unwrap_or(port.number))),
        backend: 0,
    };
    Hosted {
        host: host.to_owned(),
        addresses: &item.spec.addresses,
        ports: item.spec.ports.iter().map(port).collect(),
        kind: HostKind::Entry(item),
    }
}

/// Who says how backends are reached.
pub(super) struct Orders<'o, 'a> {
    pub(super) rules: &'o Rules<'a>,
    pub(super) policies: &'o BackendPolicies<'a>,
    pub(super) materials: &'o Materials<'a>,
}

impl<'a> Orders<'_, 'a> {
    /// TLS to a port, and the object that orders it: a DestinationRule before a BackendTLSPolicy.
    fn tls(
        &self,
        decided: &Decided<'a>,
        host: &Hosted<'a>,
        port: &Port<'a>,
        findings: &mut Findings,
    ) -> (BackendTls, Option<&'a Object>) {
        match (decided.tls, decided.object, host.kind) {
            (Some(Tls::Set(tls)), Some(object), kind) => {
                let entry_names = match kind {
                    HostKind::Entry(item) => item.spec.subject_alt_names.as_slice(),
                    HostKind::Service(_) => &[],
                };
                let tls = self.materials.of_rule(tls, object, &host.host, entry_names, findings);
                (tls, Some(object))
            }
            (Some(Tls::Unreadable), Some(object), _) => {
                let meta = &object.meta;
                let why = format!(
                    "trafficPolicy of DestinationRule {}/{} can't be understood",
                    meta.namespace, meta.name
                );
                (BackendTls::Unusable { why, not_approved: false }, Some(object))
            }
            (_, object, HostKind::Service(item)) => {
                match self.policies.decide(item.namespace(), item.name(), port.name) {
                    Some((tls, object)) => (tls.clone(), Some(*object)),
                    None => (BackendTls::Auto, object),
                }
            }
            (_, object, HostKind::Entry(_)) => (BackendTls::Auto, object),
        }
    }
}

/// One backend for each port of each host.
pub(super) fn backends<'a>(
    hosts: &mut [Hosted<'a>],
    orders: &Orders<'_, 'a>,
    peers: &PeerPolicies<'a>,
    objects: &mut ObjectTable<'a>,
    findings: &mut Findings,
) -> Vec<Backend> {
    let mut backends = Vec::new();
    let mut strict: HashMap<&str, bool> = HashMap::new();
    for host in hosts {
        let namespace = host.kind.namespace();
        let external = matches!(host.kind, HostKind::Entry(item) if item.spec.external);
        let mtls_required =
            !external && *strict.entry(namespace).or_insert_with(|| peers.all_strict(namespace));
        let short = match host.kind {
            HostKind::Service(item) => format!("{}.{namespace}", item.name()),
            HostKind::Entry(_) => host.host.clone(),
        };
        for index in 0..host.ports.len() {
            let decided = orders.rules.decide(&host.host, namespace, host.ports[index].number);
            let (tls, object) = orders.tls(&decided, host, &host.ports[index], findings);
            let port = &mut host.ports[index];
            port.backend = BackendIndex::try_from(backends.len()).unwrap_or(BackendIndex::MAX);
            backends.push(Backend {
                id: format!("{}:{}", host.host, port.number),
                name: format!("{short}:{}", port.number),
                protocol: port.protocol,
                tls,
                object: object.map(|object| objects.number(object)),
                mtls_required,
                connect_timeout: decided.connect_timeout,
            });
        }
    }
    backends
}

/// The services, as the proxy gets them.
pub(super) fn snapshot<'a>(
    hosts: &[Hosted<'a>],
    mut routes: Attached,
    client_namespace: &str,
    objects: &mut ObjectTable<'a>,
) -> Vec<Service> {
    let service = |host: &Hosted<'a>| {
        let port = |port: &Port<'a>| ServicePort {
            port: port.number,
            protocol: port.protocol,
            routes: routes.remove(&port.backend).unwrap_or_default(),
            backend: port.backend,
        };
        Service {
            host: host.host.clone(),
            names: names(host, client_namespace),
            addresses: host.addresses.to_vec(),
            object: Some(objects.number(host.kind.object())),
            ports: host.ports.iter().map(port).collect(),
        }
    };
    hosts.iter().map(service).collect()
}

fn names(host: &Hosted<'_>, client_namespace: &str) -> Vec<String> {
    let HostKind::Service(item) = host.kind else { return vec![host.host.clone()] };
    let (name, namespace) = (item.name(), item.namespace());
    let mut names = Vec::with_capacity(4);
    if namespace == client_namespace {
        names.push(name.to_owned());
    }
    names.push(format!("{name}.{namespace}"));
    names.push(format!("{name}.{namespace}.svc"));
    names.push(host.host.clone());
    names
}
