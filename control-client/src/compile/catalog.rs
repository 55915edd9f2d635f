//! The objects in force, by kind.

use crate::keep::Objects;
use crate::resource::{
    Object, Resource, core, data, destination, gateway_api, mesh, rate_limit, security, traffic,
};
use crate::verdict::VerdictState;

/// One object of a kind.
#[derive(Debug)]
pub(super) struct Item<'a, T> {
    pub(super) object: &'a Object,
    pub(super) spec: &'a T,
    /// Nothing of it is in force; security objects fail closed.
    pub(super) quarantined: bool,
}

/// All objects of the kinds that mean something, each list sorted by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Catalog<'a> {
    /// By name.
    pub(super) namespaces: Vec<&'a Object>,
    pub(super) services: Vec<Item<'a, core::Service>>,
    pub(super) slices: Vec<Item<'a, core::EndpointSlice>>,
    pub(super) pods: Vec<Item<'a, core::Pod>>,
    pub(super) secrets: Vec<Item<'a, data::Data>>,
    pub(super) config_maps: Vec<Item<'a, data::Data>>,
    pub(super) service_entries: Vec<Item<'a, traffic::ServiceEntry>>,
    pub(super) workload_entries: Vec<Item<'a, traffic::WorkloadEntry>>,
    pub(super) destination_rules: Vec<Item<'a, destination::DestinationRule>>,
    pub(super) gateways: Vec<Item<'a, gateway_api::Gateway>>,
    pub(super) routes: Vec<Item<'a, gateway_api::HttpRoute>>,
    pub(super) grants: Vec<Item<'a, gateway_api::ReferenceGrant>>,
    pub(super) backend_tls_policies: Vec<Item<'a, gateway_api::BackendTlsPolicy>>,
    pub(super) peer_authentications: Vec<Item<'a, security::PeerAuthentication>>,
    pub(super) request_authentications: Vec<Item<'a, security::RequestAuthentication>>,
    pub(super) authorization_policies: Vec<Item<'a, security::AuthorizationPolicy>>,
    pub(super) rate_limits: Vec<Item<'a, rate_limit::RateLimit>>,
    pub(super) mesh_settings: Vec<Item<'a, mesh::MeshSettings>>,
}

impl<T> Item<'_, T> {
    pub(super) fn namespace(&self) -> &str {
        &self.object.meta.namespace
    }

    pub(super) fn name(&self) -> &str {
        &self.object.meta.name
    }
}

impl<'a> Catalog<'a> {
    pub(super) fn new(objects: &'a Objects) -> Self {
        let mut all = Self::default();
        for in_force in objects.values() {
            all.add(&in_force.object, in_force.state == VerdictState::Quarantined);
        }
        all
    }

    fn add(&mut self, object: &'a Object, quarantined: bool) {
        match &object.resource {
            // Security and traffic policy fail closed by what could be understood of them.
            Resource::PeerAuthentication(spec) => {
                self.peer_authentications.push(Item { object, spec, quarantined })
            }
            Resource::RequestAuthentication(spec) => {
                self.request_authentications.push(Item { object, spec, quarantined })
            }
            Resource::AuthorizationPolicy(spec) => {
                self.authorization_policies.push(Item { object, spec, quarantined })
            }
            Resource::RateLimit(spec) => self.rate_limits.push(Item { object, spec, quarantined }),
            Resource::DestinationRule(spec) => {
                self.destination_rules.push(Item { object, spec, quarantined })
            }
            Resource::MeshSettings(spec) => self.mesh_settings.push(Item { object, spec, quarantined }),
            Resource::BackendTlsPolicy(spec) => {
                self.backend_tls_policies.push(Item { object, spec, quarantined })
            }
            Resource::Gateway(spec) => self.gateways.push(Item { object, spec, quarantined }),
            Resource::HttpRoute(spec) => self.routes.push(Item { object, spec, quarantined }),
            _ if quarantined => {}
            Resource::Service(spec) => self.services.push(Item { object, spec, quarantined }),
            Resource::EndpointSlice(spec) => self.slices.push(Item { object, spec, quarantined }),
            Resource::Secret(spec) => self.secrets.push(Item { object, spec, quarantined }),
            Resource::ConfigMap(spec) => self.config_maps.push(Item { object, spec, quarantined }),
            Resource::Pod(spec) => self.pods.push(Item { object, spec, quarantined }),
            Resource::ServiceEntry(spec) => self.service_entries.push(Item { object, spec, quarantined }),
            Resource::WorkloadEntry(spec) => self.workload_entries.push(Item { object, spec, quarantined }),
            Resource::ReferenceGrant(spec) => self.grants.push(Item { object, spec, quarantined }),
            Resource::Nothing if object.meta.kind == "Namespace" => self.namespaces.push(object),
            Resource::Nothing => {}
        }
    }
}
