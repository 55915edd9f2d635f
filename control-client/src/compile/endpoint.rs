//! Who serves each backend, and whose address is whose.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::catalog::{Catalog, Item};
use super::peer::PeerPolicies;
use super::service::{HostKind, Hosted, Port};
use super::workloads::{self, Known, Workloads};
use crate::resource::core::{self, EndpointSlice, SliceEndpoint};
use crate::resource::traffic::{Resolution, ServiceEntry, WorkloadEntry};
use crate::snapshot::{Endpoint, EndpointSet, Endpoints};

/// Compiles all sets; those equal to the ones before stay the very same.
pub(super) fn compile(
    catalog: &Catalog<'_>,
    hosts: &[Hosted<'_>],
    workloads: &Workloads<'_>,
    peers: &PeerPolicies<'_>,
    trust_domain: &str,
    previous: &Arc<Endpoints>,
) -> Arc<Endpoints> {
    let mut slices: HashMap<(&str, &str), Vec<&Item<'_, EndpointSlice>>> = HashMap::new();
    for slice in &catalog.slices {
        if let Some(service) = &slice.spec.service {
            slices.entry((slice.namespace(), service)).or_default().push(slice);
        }
    }
    let sources = Sources { slices, workloads, peers, trust_domain };
    let mut by_backend = BTreeMap::new();
    for host in hosts {
        for (port, set) in host.ports.iter().zip(sources.sets(host)) {
            let id = format!("{}:{}", host.host, port.number);
            let set = match previous.by_backend.get(&id) {
                Some(before) if **before == set => before.clone(),
                _ => Arc::new(set),
            };
            by_backend.insert(id, set);
        }
    }
    let by_address = sources.by_address();
    let by_address =
        if *previous.by_address == by_address { previous.by_address.clone() } else { Arc::new(by_address) };
    let all_kept = Arc::ptr_eq(&by_address, &previous.by_address)
        && by_backend.len() == previous.by_backend.len()
        && by_backend
            .iter()
            .all(|(id, set)| previous.by_backend.get(id).is_some_and(|before| Arc::ptr_eq(before, set)));
    if all_kept { previous.clone() } else { Arc::new(Endpoints { by_backend, by_address }) }
}

struct Sources<'s, 'a> {
    slices: HashMap<(&'s str, &'s str), Vec<&'s Item<'a, EndpointSlice>>>,
    workloads: &'s Workloads<'a>,
    peers: &'s PeerPolicies<'a>,
    trust_domain: &'s str,
}

impl Sources<'_, '_> {
    /// The sets of a host's ports, in their order.
    fn sets(&self, host: &Hosted<'_>) -> Vec<EndpointSet> {
        let set = |port: &Port<'_>| {
            let mut endpoints = match host.kind {
                HostKind::Service(item) => self.of_service(item, host, port),
                HostKind::Entry(item) => self.of_entry(item, port),
            };
            endpoints.sort_by_key(|endpoint| endpoint.address);
            endpoints.dedup_by_key(|endpoint| endpoint.address);
            EndpointSet { endpoints }
        };
        host.ports.iter().map(set).collect()
    }

    /// From its slices; where there are none (a directory without a control plane), from its selector.
    fn of_service(
        &self,
        item: &Item<'_, core::Service>,
        host: &Hosted<'_>,
        port: &Port<'_>,
    ) -> Vec<Endpoint> {
        let (service, namespace) = (item.spec, item.namespace());
        let slices = self.slices.get(&(namespace, item.name())).map_or(&[][..], Vec::as_slice);
        let mut endpoints = Vec::new();
        for slice in slices {
            let named = slice.spec.ports.iter().find(|(name, _)| name == port.name);
            let only =
                || slice.spec.ports.first().filter(|(name, _)| name.is_empty() && host.ports.len() == 1);
            let Some((_, number)) = named.or_else(only) else { continue };
            for endpoint in
                slice.spec.endpoints.iter().filter(|endpoint| endpoint.ready || service.publish_not_ready)
            {
                endpoints.extend(
                    endpoint
                        .addresses
                        .iter()
                        .map(|ip| self.slice_endpoint(namespace, endpoint, *ip, *number)),
                );
            }
        }
        for workload in self.workloads.select(namespace, &service.selector) {
            let is_pod = matches!(workload.kind, workloads::WorkloadKind::Pod(_));
            if is_pod && (!slices.is_empty() || !(workload.ready || service.publish_not_ready)) {
                continue;
            }
            endpoints.extend(self.of_workload(workload, port));
        }
        endpoints
    }

    fn of_entry(&self, item: &Item<'_, ServiceEntry>, port: &Port<'_>) -> Vec<Endpoint> {
        let (entry, namespace) = (item.spec, item.namespace());
        if let Some(selector) = &entry.selector {
            let selected = self.workloads.select(namespace, selector);
            return selected
                .iter()
                .filter(|found| found.ready)
                .flat_map(|found| self.of_workload(found, port))
                .collect();
        }
        if entry.resolution == Resolution::None {
            let endpoint = |ip: &IpAddr| unknown_endpoint(SocketAddr::new(*ip, port.number), false);
            return entry.addresses.iter().map(endpoint).collect();
        }
        entry.endpoints.iter().filter_map(|endpoint| self.inline_endpoint(item, endpoint, port)).collect()
    }

    fn inline_endpoint(
        &self,
        item: &Item<'_, ServiceEntry>,
        endpoint: &WorkloadEntry,
        port: &Port<'_>,
    ) -> Option<Endpoint> {
        let number = match (endpoint.ports.get(port.name), port.target.as_ref()) {
            (Some(number), _) | (None, core::TargetPort::Number(number)) => *number,
            (None, core::TargetPort::Name(_)) => return None,
        };
        let account = endpoint.service_account.as_deref();
        Some(Endpoint {
            address: SocketAddr::new(endpoint.address?, number),
            workload: None,
            mesh_tls: workloads::speaks_mesh_tls(&endpoint.labels),
            identity: account
                .map(|account| workloads::identity(self.trust_domain, item.namespace(), account)),
            weight: endpoint.weight,
            mtls_required: !item.spec.external
                && self.peers.merge(item.namespace(), &endpoint.labels).is_strict(number),
        })
    }

    fn of_workload(&self, workload: &Known<'_>, port: &Port<'_>) -> Vec<Endpoint> {
        let Some(number) = workload.port(port.name, &port.target) else { return Vec::new() };
        workload.addresses.iter().map(|ip| self.known_endpoint(workload, *ip, number)).collect()
    }

    /// Joined to its Pod by name, else by address; whom neither names is unknown.
    fn slice_endpoint(&self, namespace: &str, endpoint: &SliceEndpoint, ip: IpAddr, port: u16) -> Endpoint {
        let workload = match &endpoint.pod {
            Some(name) => self.workloads.pod(namespace, name),
            None => self.workloads.at(ip),
        };
        match workload {
            Some(workload) => self.known_endpoint(workload, ip, port),
            None => {
                let strict = self.peers.merge(namespace, &super::Labels::new()).is_strict(port);
                unknown_endpoint(SocketAddr::new(ip, port), strict)
            }
        }
    }

    fn known_endpoint(&self, workload: &Known<'_>, ip: IpAddr, port: u16) -> Endpoint {
        Endpoint {
            address: SocketAddr::new(ip, port),
            workload: Some(workload.full_name()),
            mesh_tls: workload.mesh_tls,
            identity: workload.identity.clone(),
            weight: workload.weight,
            mtls_required: self.peers.merge(workload.namespace, &workload.labels).is_strict(port),
        }
    }

    /// Loopback is everyone's own, and a node's address says nothing about a Pod. A shared address is kept without an
    /// identity, so that nobody is taken for another.
    fn by_address(&self) -> BTreeMap<IpAddr, Endpoint> {
        let mut found: BTreeMap<IpAddr, Endpoint> = BTreeMap::new();
        for workload in &self.workloads.all {
            for ip in workload.addresses.iter().filter(|ip| !ip.is_loopback()) {
                let shared = self.workloads.is_shared(*ip);
                if !shared && self.workloads.at(*ip).is_none() {
                    continue;
                }
                let merged = self.peers.merge(workload.namespace, &workload.labels);
                let endpoint = found.entry(*ip).or_insert_with(|| Endpoint {
                    address: SocketAddr::new(*ip, 0),
                    workload: (!shared).then(|| workload.full_name()),
                    mesh_tls: workload.mesh_tls,
                    identity: workload.identity.clone().filter(|_| !shared),
                    weight: 1,
                    mtls_required: false,
                });
                endpoint.mesh_tls |= workload.mesh_tls;
                endpoint.mtls_required |= merged.is_strict_by_default();
            }
        }
        found
    }
}

fn unknown_endpoint(address: SocketAddr, mtls_required: bool) -> Endpoint {
    Endpoint { address, workload: None, mesh_tls: false, identity: None, weight: 1, mtls_required }
}
