//! Which service a destination is: by virtual address, or by the name in an authority; and the backends behind services.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use control_client::snapshot::{self, BackendIndex, BackendTls, Protocol};
use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::BackendId;
use super::hosts::Hosts;
use super::routes::Routes;
use crate::decision::PolicyRef;

/// A port of a service; cheap to copy, valid for the tables that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServicePortId(pub(super) u32);

/// A port of a service that this workload can call.
#[derive(Debug)]
pub struct ServicePort {
    /// `host:port`, as records name it.
    pub name: Arc<str>,
    /// The service's port.
    pub port: u16,
    /// Declared protocol; `None`: detect.
    pub protocol: Option<Protocol>,
    /// Where traffic goes without routes, and for TCP.
    pub backend: BackendIndex,
    /// The object behind the service, for records of a default route.
    pub object: PolicyRef,
    pub(super) routes: Routes,
}

impl ServicePort {
    /// True where routes decide: what none of them matches is `no-route`.
    pub fn has_routes(&self) -> bool {
        !self.routes.is_empty()
    }
}

/// Where traffic is sent.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Registry id: its endpoints and live state are found by it.
    pub id: BackendId,
    /// As records and metrics name it.
    pub name: Arc<str>,
    /// Protocol the backend is known to speak; `None`: that of the request.
    pub protocol: Option<Protocol>,
    /// How TLS to it is decided.
    pub tls: BackendTls,
    /// Never plaintext to it.
    pub mtls_required: bool,
    /// Time to connect, TLS handshake not included.
    pub connect_timeout: Duration,
    /// The DestinationRule that decided, if any.
    pub object: PolicyRef,
}

impl Backend {
    pub(super) fn compile(backend: &snapshot::Backend, id: BackendId) -> Self {
        Self {
            id,
            name: backend.name.as_str().into(),
            protocol: backend.protocol,
            tls: backend.tls.clone(),
            mtls_required: backend.mtls_required,
            connect_timeout: backend.connect_timeout,
            object: PolicyRef::from_object(backend.object),
        }
    }

    /// The same backend for a call of the proxy's own, which knows what it speaks. HTTP/2 that the backend declares can
    /// carry any HTTP.
    pub(super) fn speaking(&self, protocol: Protocol) -> Self {
        let protocol = match (self.protocol, protocol) {
            (Some(Protocol::Http2 | Protocol::Grpc), Protocol::Http1) => Protocol::Http2,
            _ => protocol,
        };
        Self { protocol: Some(protocol), ..self.clone() }
    }
}

/// Ports of a service by number.
type Ports = SmallVec<[(u16, ServicePortId); 2]>;

/// Addresses and names of services. Where two services claim the same, the first in the snapshot has it.
#[derive(Debug, Default)]
pub(super) struct Directory {
    by_address: HashMap<IpAddr, Ports, RandomState>,
    by_name: Hosts<Ports>,
}

impl Directory {
    /// Adds a service's addresses and names for one of its ports.
    pub(super) fn add(&mut self, service: &snapshot::Service, port: u16, id: ServicePortId) {
        let add = |ports: &mut Ports| {
            if !ports.iter().any(|(known, _)| *known == port) {
                ports.push((port, id));
            }
        };
        for address in &service.addresses {
            add(self.by_address.entry(address.to_canonical()).or_default());
        }
        for name in service.names.iter().chain([&service.host]) {
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            add(self.by_name.entry(Some(&name)));
        }
    }

    pub(super) fn by_address(&self, address: IpAddr, port: u16) -> Option<ServicePortId> {
        let ports = self.by_address.get(&address.to_canonical())?;
        ports.iter().find(|(known, _)| *known == port).map(|(_, id)| *id)
    }

    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        self.by_address.contains_key(&address.to_canonical())
    }

    /// All ports of the service of a name.
    pub(super) fn ports_of(&self, host: &str) -> Vec<ServicePortId> {
        let ids = |ports: &Ports| Some(ports.iter().map(|(_, id)| *id).collect());
        self.by_name.find(host, ids).unwrap_or_default()
    }

    /// Exact name first, then the longest suffix that has this port; case and one trailing dot don't count.
    pub(super) fn by_authority(&self, host: &str, port: u16) -> Option<ServicePortId> {
        let of_port = |ports: &Ports| ports.iter().find(|(known, _)| *known == port).map(|(_, id)| *id);
        self.by_name.find(host, of_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(host: &str, names: &[&str], addresses: &[&str]) -> snapshot::Service {
        snapshot::Service {
            host: host.into(),
            names: names.iter().map(|name| (*name).into()).collect(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            object: None,
            ports: Vec::new(),
        }
    }

    #[test]
    fn names() {
        let mut directory = Directory::default();
        directory.add(&service("a.ns.svc.cluster.local", &["a", "a.ns"], &[]), 80, ServicePortId(0));
        directory.add(&service("a.ns.svc.cluster.local", &["a", "a.ns"], &[]), 90, ServicePortId(1));
        directory.add(&service("*.example.com", &["*.example.com"], &[]), 80, ServicePortId(2));
        directory.add(&service("*.b.example.com", &[], &[]), 80, ServicePortId(3));
        directory.add(&service("x.b.example.com", &[], &[]), 81, ServicePortId(4));
        directory.add(&service("a.ns", &["a.ns"], &[]), 80, ServicePortId(5));
        let long = "a".repeat(300);
        for (host, port, expected) in [
            ("a", 80, Some(0)),
            ("A.Ns", 80, Some(0)),
            ("a.ns.svc.cluster.local.", 80, Some(0)),
            ("a.ns", 90, Some(1)),
            ("a", 81, None),
            ("x.example.com", 80, Some(2)),
            ("x.y.example.com", 80, Some(2)),
            ("x.B.example.com", 80, Some(3)),
            ("x.b.example.com", 81, Some(4)),
            ("example.com", 80, None),
            (".example.com", 80, None),
            ("x.example.com", 443, None),
            ("", 80, None),
            (".", 80, None),
            (&long, 80, None),
        ] {
            let found = directory.by_authority(host, port).map(|id| id.0);
            assert_eq!(found, expected, "{host}:{port}");
        }
    }

    #[test]
    fn addresses() {
        let mut directory = Directory::default();
        directory.add(&service("a", &[], &["10.0.0.1", "fd00::1"]), 80, ServicePortId(0));
        for (address, port, expected) in [
            ("10.0.0.1", 80, Some(ServicePortId(0))),
            ("::ffff:10.0.0.1", 80, Some(ServicePortId(0))),
            ("fd00::1", 80, Some(ServicePortId(0))),
            ("10.0.0.1", 81, None),
            ("10.0.0.2", 80, None),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(directory.by_address(address, port), expected, "{address}:{port}");
            assert!(expected.is_none() || directory.has_address(address));
        }
    }
}
