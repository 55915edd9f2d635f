//! The workload's own ports, as Services name them.

use std::collections::BTreeMap;

use super::catalog::Catalog;
use super::own::Own;
use super::service::{HostKind, Hosted, Port};
use super::workloads::Workloads;
use crate::resource::core::TargetPort;
use crate::resource::text::selects;
use crate::snapshot::InboundPort;

/// Ports that a Service or ServiceEntry leads to, sorted; of several services the first by name is told.
pub(super) fn inbound(
    hosts: &[Hosted<'_>],
    workloads: &Workloads<'_>,
    own: &Own<'_>,
    catalog: &Catalog<'_>,
) -> Vec<InboundPort> {
    let mut ports: BTreeMap<u16, InboundPort> = BTreeMap::new();
    for host in hosts.iter().filter(|host| host.kind.namespace() == own.namespace && leads_here(host, own)) {
        for port in &host.ports {
            let Some(number) = workload_port(port, host, workloads, own, catalog) else { continue };
            let service = Some(format!("{}:{}", host.host, port.number));
            ports.entry(number).or_insert(InboundPort { port: number, protocol: port.protocol, service });
        }
    }
    ports.into_values().collect()
}

fn leads_here(host: &Hosted<'_>, own: &Own<'_>) -> bool {
    match host.kind {
        HostKind::Service(item) => own.serves(item.spec, item.name()),
        HostKind::Entry(item) => {
            item.spec.selector.as_ref().is_some_and(|selector| selects(selector, own.labels))
        }
    }
}

/// The number behind a service's port: of the workload itself, else as the slices or another workload like it say.
fn workload_port(
    port: &Port<'_>,
    host: &Hosted<'_>,
    workloads: &Workloads<'_>,
    own: &Own<'_>,
    catalog: &Catalog<'_>,
) -> Option<u16> {
    let pod = workloads.pod(own.namespace, own.name).and_then(|pod| pod.port(port.name, &port.target));
    if pod.is_some() {
        return pod;
    }
    if let TargetPort::Number(number) = port.target.as_ref() {
        return Some(*number);
    }
    let slices = catalog.slices.iter().filter(|slice| slice.namespace() == own.namespace);
    let mut of_service = slices.filter(|slice| slice.spec.service.as_deref() == Some(host.kind.name()));
    of_service
        .find_map(|slice| {
            slice.spec.ports.iter().find(|(name, _)| name == port.name).map(|(_, number)| *number)
        })
        .or_else(|| {
            let alike = workloads.select(own.namespace, own.labels);
            alike.iter().find_map(|workload| workload.port(port.name, &port.target))
        })
}
