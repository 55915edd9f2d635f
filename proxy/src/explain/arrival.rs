//! Where a request arrives at its workload, when only its URL is known: callers name the port of a service, policies that of
//! the workload.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::Uri;

use crate::tables::{ServicePortId, Tables};
use crate::upstream::Registry;

/// Where a request arrives.
pub(super) struct Arrival {
    /// The workload's address, or loopback where that is not known, and its port.
    pub(super) address: SocketAddr,
    /// Why this may not be what was meant.
    pub(super) doubt: Option<String>,
}

/// By the service that the URL names, and by the routes of that service; else the URL's port is the workload's.
pub(super) fn of(url: &Uri, tables: &Tables, registry: &Registry, workload: &str) -> Arrival {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_u16().unwrap_or(80);
    let literal = host.parse::<IpAddr>().ok();
    let service = match literal {
        Some(address) => tables.service_by_address(address, port),
        None => tables.service_by_authority(host, port),
    };
    let here = registry.address_of(workload).or(literal).unwrap_or(Ipv4Addr::LOCALHOST.into());
    let led = service.map(|service| led_to(service, tables, registry, workload, here)).unwrap_or_default();
    if let Some(first) = led.first() {
        let mut ports: Vec<String> = led.iter().map(|address| address.port().to_string()).collect();
        ports.dedup();
        let doubt = (ports.len() > 1).then(|| {
            format!("{host}:{port} leads to ports {} of {workload}; the first is meant", ports.join(", "))
        });
        return Arrival { address: *first, doubt };
    }
    let known: Vec<u16> = tables.inbound_ports().iter().map(|known| known.port).collect();
    let doubt = (!known.is_empty() && !known.contains(&port)).then(|| {
        let known: Vec<String> = known.iter().map(u16::to_string).collect();
        format!("{workload} has no port {port}; known: {}", known.join(", "))
    });
    Arrival { address: SocketAddr::new(here, port), doubt }
}

/// The addresses of a workload that requests to a service are sent to: by its routes; where none leads here, straight.
fn led_to(
    service: ServicePortId,
    tables: &Tables,
    registry: &Registry,
    workload: &str,
    here: IpAddr,
) -> Vec<SocketAddr> {
    let routed = tables.routed_backends(service);
    let own = std::iter::once(tables.service_port(service).backend);
    let of = |backend| {
        let Some(served) = registry.served(tables.backend(backend).id) else { return Vec::new() };
        let ours = served.endpoints.iter().filter(|endpoint| endpoint.workload.as_deref() == Some(workload));
        let mut addresses: Vec<SocketAddr> = ours.map(|endpoint| endpoint.address).collect();
        if addresses.is_empty() {
            // Not ready, or known by its labels alone.
            let ports = tables.inbound_ports().iter();
            let named = ports.filter(|port| port.service.as_deref() == Some(&*served.id));
            addresses.extend(named.map(|port| SocketAddr::new(here, port.port)));
        }
        addresses
    };
    let by_routes: Vec<SocketAddr> = routed.flat_map(of).collect();
    if by_routes.is_empty() { own.flat_map(of).collect() } else { by_routes }
}
