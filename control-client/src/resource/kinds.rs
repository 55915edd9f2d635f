//! Which groups and kinds are read, ignored, skipped or refused.

use super::read::{Fields, closest};
use super::{Meta, Resource, core, data, destination, gateway_api, mesh, rate_limit, security, traffic};

/// A kind in a group that is read.
pub(crate) struct Kind {
    group: &'static str,
    pub(crate) name: &'static str,
    /// The one to recommend first.
    pub(crate) versions: &'static [&'static str],
    pub(crate) namespaced: bool,
    /// Live data: not written by people, so no part of the policy digest.
    pub(crate) runtime: bool,
    /// Top-level fields beside apiVersion, kind, metadata and status; the digest covers them.
    pub(crate) fields: &'static [&'static str],
    pub(crate) reading: Reading,
}

/// What is done with a kind.
#[derive(Clone, Copy)]
pub(crate) enum Reading {
    Read(fn(&Meta, Fields<'_>) -> Resource),
    /// Accepted, counted among the objects, of no consequence.
    Ignore,
    /// As if its group were not read.
    Skip,
    /// An error that says what to write instead.
    Refuse(&'static str),
}

const CORE: &str = "";
const DISCOVERY: &str = "discovery.k8s.io";
const ISTIO: &str = "networking.istio.io";
const EXTENSIONS: &str = "extensions.istio.io";
const GATEWAY: &str = "gateway.networking.k8s.io";
const SECURITY: &str = "security.istio.io";
const WRIT: &str = "writ.dev";

const V1: &[&str] = &["v1"];
const ISTIO_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const EXTENSION_VERSIONS: &[&str] = &["v1alpha1"];
const SECURITY_VERSIONS: &[&str] = &["v1", "v1beta1"];
const GATEWAY_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3", "v1alpha2"];
const WRIT_VERSIONS: &[&str] = &["v1alpha1"];
const SPEC: &[&str] = &["spec"];

const NOT_YET: &str = "not supported yet; this object is not in force";
const VIRTUAL_SERVICE: &str =
    "VirtualService is not read; write an HTTPRoute with the Service as its parent instead";
const SIDECAR: &str =
    "Sidecar is not read; limit who sees a service by exportTo on ServiceEntry and DestinationRule instead";
const ENVOY_FILTER: &str =
    "EnvoyFilter is not read and has no replacement: there is no Envoy here; write HTTPRoute filters instead";
const WASM_PLUGIN: &str =
    "WasmPlugin is not read; write an AuthorizationPolicy with action CUSTOM, or HTTPRoute filters, instead";
const ISTIO_GATEWAY: &str =
    "Istio's Gateway is not read; write a Gateway of gateway.networking.k8s.io instead";
const ENDPOINTS: &str = "Endpoints is not read; write an EndpointSlice of discovery.k8s.io/v1 instead";

const fn kind(
    group: &'static str,
    name: &'static str,
    versions: &'static [&'static str],
    reading: Reading,
) -> Kind {
    Kind { group, name, versions, namespaced: true, runtime: false, fields: SPEC, reading }
}

const fn skip(name: &'static str) -> Kind {
    kind(CORE, name, V1, Reading::Skip)
}

const fn with_data(name: &'static str, read: fn(&Meta, Fields<'_>) -> Resource) -> Kind {
    let fields = &["data", "binaryData", "stringData", "type", "immutable"];
    Kind { runtime: true, fields, ..kind(CORE, name, V1, Reading::Read(read)) }
}

static KINDS: &[Kind] = &[
    Kind { namespaced: false, ..kind(CORE, "Namespace", V1, Reading::Ignore) },
    kind(CORE, "Service", V1, Reading::Read(core::service)),
    // Status and labels of a Pod say where it is and what selects it, so its digest covers them.
    Kind { runtime: true, fields: &["spec", "status"], ..kind(CORE, "Pod", V1, Reading::Read(core::pod)) },
    with_data("Secret", data::secret),
    with_data("ConfigMap", data::config_map),
    Kind { runtime: true, fields: &["subsets"], ..kind(CORE, "Endpoints", V1, Reading::Refuse(ENDPOINTS)) },
    skip("Binding"),
    skip("ComponentStatus"),
    skip("Event"),
    skip("LimitRange"),
    skip("Node"),
    skip("PersistentVolume"),
    skip("PersistentVolumeClaim"),
    skip("PodTemplate"),
    skip("ReplicationController"),
    skip("ResourceQuota"),
    skip("ServiceAccount"),
    Kind {
        runtime: true,
        fields: &["addressType", "endpoints", "ports"],
        ..kind(DISCOVERY, "EndpointSlice", V1, Reading::Read(core::endpoint_slice))
    },
    kind(ISTIO, "ServiceEntry", ISTIO_VERSIONS, Reading::Read(traffic::service_entry)),
    kind(ISTIO, "WorkloadEntry", ISTIO_VERSIONS, Reading::Read(traffic::workload_entry)),
    kind(ISTIO, "DestinationRule", ISTIO_VERSIONS, Reading::Read(destination::destination_rule)),
    kind(ISTIO, "VirtualService", ISTIO_VERSIONS, Reading::Refuse(VIRTUAL_SERVICE)),
    kind(ISTIO, "Sidecar", ISTIO_VERSIONS, Reading::Refuse(SIDECAR)),
    kind(ISTIO, "EnvoyFilter", ISTIO_VERSIONS, Reading::Refuse(ENVOY_FILTER)),
    kind(ISTIO, "Gateway", ISTIO_VERSIONS, Reading::Refuse(ISTIO_GATEWAY)),
    kind(ISTIO, "WorkloadGroup", ISTIO_VERSIONS, Reading::Refuse(NOT_YET)),
    kind(ISTIO, "ProxyConfig", ISTIO_VERSIONS, Reading::Refuse(NOT_YET)),
    kind(EXTENSIONS, "WasmPlugin", EXTENSION_VERSIONS, Reading::Refuse(WASM_PLUGIN)),
    kind(GATEWAY, "HTTPRoute", GATEWAY_VERSIONS, Reading::Read(gateway_api::http_route)),
    kind(GATEWAY, "ReferenceGrant", GATEWAY_VERSIONS, Reading::Read(gateway_api::reference_grant)),
    // A proxy is told which Gateway it serves: whose class that is plays no part.
    Kind { namespaced: false, ..kind(GATEWAY, "GatewayClass", GATEWAY_VERSIONS, Reading::Ignore) },
    kind(GATEWAY, "Gateway", GATEWAY_VERSIONS, Reading::Read(gateway_api::gateway)),
    kind(GATEWAY, "GRPCRoute", GATEWAY_VERSIONS, Reading::Refuse(NOT_YET)),
    kind(GATEWAY, "TLSRoute", GATEWAY_VERSIONS, Reading::Refuse(NOT_YET)),
    kind(GATEWAY, "TCPRoute", GATEWAY_VERSIONS, Reading::Refuse(NOT_YET)),
    kind(GATEWAY, "UDPRoute", GATEWAY_VERSIONS, Reading::Refuse(NOT_YET)),
    kind(GATEWAY, "BackendTLSPolicy", GATEWAY_VERSIONS, Reading::Read(gateway_api::backend_tls_policy)),
    kind(GATEWAY, "ListenerSet", GATEWAY_VERSIONS, Reading::Refuse(NOT_YET)),
    kind(SECURITY, "PeerAuthentication", SECURITY_VERSIONS, Reading::Read(security::peer_authentication)),
    kind(SECURITY, "AuthorizationPolicy", SECURITY_VERSIONS, Reading::Read(security::authorization_policy)),
    kind(
        SECURITY,
        "RequestAuthentication",
        SECURITY_VERSIONS,
        Reading::Read(security::request_authentication),
    ),
    Kind {
        namespaced: false,
        ..kind(WRIT, "MeshSettings", WRIT_VERSIONS, Reading::Read(mesh::mesh_settings))
    },
    kind(WRIT, "RateLimit", WRIT_VERSIONS, Reading::Read(rate_limit::rate_limit)),
];

/// Whether objects of this group are read at all.
pub(crate) fn is_read(group: &str) -> bool {
    KINDS.iter().any(|kind| kind.group == group)
}

pub(crate) fn find(group: &str, name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.group == group && kind.name == name)
}

/// The group that was meant where one is not read, but nearly the name of one that has this kind.
pub(crate) fn misspelt_group(group: &str, name: &str) -> Option<&'static str> {
    let with_kind = KINDS.iter().filter(|kind| kind.name == name && !kind.group.is_empty());
    closest(group, &with_kind.map(|kind| kind.group).collect::<Vec<_>>())
}

/// The group of a kind that is written without one.
pub(crate) fn group_of(name: &str) -> Option<&'static str> {
    if find("", name).is_some() {
        return None;
    }
    KINDS.iter().find(|kind| kind.name == name).map(|kind| kind.group)
}

/// What to write instead of a kind that its group does not have.
pub(crate) fn hint(group: &str, name: &str) -> String {
    let of_group = KINDS.iter().filter(|kind| kind.group == group && !matches!(kind.reading, Reading::Skip));
    let known: Vec<_> = of_group.map(|kind| kind.name).collect();
    let elsewhere = KINDS.iter().find(|kind| kind.name == name && !matches!(kind.reading, Reading::Skip));
    match (elsewhere, closest(name, &known)) {
        (Some(kind), _) => format!("{name} is of `apiVersion: {}`", kind.api_version()),
        (None, Some(meant)) => format!("did you mean `{meant}`?"),
        (None, None) => format!("known in this group: {}", known.join(", ")),
    }
}

impl Kind {
    fn api_version(&self) -> String {
        let version = self.versions.first().copied().unwrap_or_default();
        if self.group.is_empty() { version.into() } else { format!("{}/{version}", self.group) }
    }
}

/// Whether what this group has are policies, so that what can't be understood there has to fail closed.
pub(crate) fn secures(group: &str) -> bool {
    group == SECURITY
}
