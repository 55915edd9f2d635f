//! Kubernetes' own kinds: Service, EndpointSlice, Pod.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::read::{At, Fields};
use super::{Meta, Resource, text};
use crate::snapshot::Protocol;

/// A v1 Service.
#[derive(Debug, Default)]
pub(crate) struct Service {
    pub(crate) cluster_ips: Vec<IpAddr>,
    /// Another DNS name; such a service has no endpoints here.
    pub(crate) external_name: bool,
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) publish_not_ready: bool,
}

/// A TCP port of a Service.
#[derive(Debug)]
pub(crate) struct ServicePort {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) target: TargetPort,
    pub(crate) protocol: Option<Protocol>,
}

/// `targetPort`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TargetPort {
    Number(u16),
    /// Of a container port.
    Name(String),
}

/// A discovery.k8s.io/v1 EndpointSlice.
#[derive(Debug, Default)]
pub(crate) struct EndpointSlice {
    /// Name of its Service, in the same namespace.
    pub(crate) service: Option<String>,
    /// Name and number.
    pub(crate) ports: Vec<(String, u16)>,
    pub(crate) endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of a slice.
#[derive(Debug)]
pub(crate) struct SliceEndpoint {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ready: bool,
    /// Name of the Pod it is said to be.
    pub(crate) pod: Option<String>,
}

/// What counts of a v1 Pod.
#[derive(Debug, Default)]
pub(crate) struct Pod {
    pub(crate) service_account: String,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) ready: bool,
    /// Its addresses are the node's.
    pub(crate) host_network: bool,
    /// Container ports, with their names; one without has the empty one, by which nothing is found.
    pub(crate) ports: Vec<(String, u16)>,
}

const SERVICE_FIELDS: &[&str] = &[
    "type",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "ports",
    "selector",
    "externalName",
    "sessionAffinity",
    "sessionAffinityConfig",
    "externalIPs",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "loadBalancerClass",
    "externalTrafficPolicy",
    "internalTrafficPolicy",
    "healthCheckNodePort",
    "publishNotReadyAddresses",
    "allocateLoadBalancerNodePorts",
    "trafficDistribution",
];

/// Reads a Service.
pub(crate) fn service(_: &Meta, object: Fields<'_>) -> Resource {
    Resource::Service(read_service(object).unwrap_or_default())
}

fn read_service(object: Fields<'_>) -> Option<Service> {
    let spec = object.require("spec")?.fields(SERVICE_FIELDS)?;
    let mut service = Service::default();
    if let Some(kind) = spec.get("type") {
        let types =
            [("ClusterIP", false), ("NodePort", false), ("LoadBalancer", false), ("ExternalName", true)];
        service.external_name = kind.one_of(&types).unwrap_or_default();
        if service.external_name {
            kind.warn("ExternalName is not followed; write a ServiceEntry for the name instead");
        }
    }
    let addresses =
        spec.get("clusterIPs").map(|at| at.items().collect()).or_else(|| Some(vec![spec.get("clusterIP")?]));
    for at in addresses.unwrap_or_default() {
        if !matches!(at.node.as_str(), Some("None" | "")) {
            service.cluster_ips.extend(text::ip(at));
        }
    }
    service.selector = spec.get("selector").map(At::string_map).unwrap_or_default();
    service.publish_not_ready = spec.get("publishNotReadyAddresses").and_then(At::bool).unwrap_or_default();
    if let Some(ports) = spec.get("ports") {
        let several = ports.items().len() > 1;
        service.ports = ports.items().filter_map(|at| service_port(at, several)).collect();
        reject_repeated(ports, &service.ports);
    }
    Some(service)
}

/// `None` for what is not TCP, too.
fn service_port(at: At<'_>, several: bool) -> Option<ServicePort> {
    let fields = at.fields(&["name", "port", "protocol", "targetPort", "appProtocol", "nodePort"])?;
    let transport =
        fields.get("protocol").map(|at| at.one_of(&[("TCP", true), ("UDP", false), ("SCTP", false)]));
    let name = fields.get("name").and_then(At::str).unwrap_or_default().to_owned();
    if several && name.is_empty() {
        fields.missing("name", "is required where a Service has several ports");
    }
    let port = fields.require("port")?.port()?;
    let target = match fields.get("targetPort") {
        Some(at) if at.node.as_str().is_some_and(|name| !name.is_empty()) => TargetPort::Name(at.text()?),
        Some(at) => TargetPort::Number(at.port()?),
        None => TargetPort::Number(port),
    };
    let app_protocol = fields.get("appProtocol").and_then(At::str);
    let protocol = text::protocol(app_protocol, &name, port);
    (transport != Some(Some(false))).then_some(ServicePort { name, port, target, protocol })
}

fn reject_repeated(at: At<'_>, ports: &[ServicePort]) {
    let mut numbers: Vec<u16> = ports.iter().map(|port| port.port).collect();
    numbers.sort_unstable();
    if let Some(pair) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
        at.error(format!("port {} is listed twice", pair[0]));
    }
}

/// Reads an EndpointSlice.
pub(crate) fn endpoint_slice(meta: &Meta, object: Fields<'_>) -> Resource {
    let service = meta.labels.get("kubernetes.io/service-name").cloned();
    if service.is_none() {
        object.at().warn("has no label kubernetes.io/service-name, so it belongs to no Service");
    }
    let mut slice = EndpointSlice { service, ..EndpointSlice::default() };
    let kinds = [("IPv4", true), ("IPv6", true), ("FQDN", false)];
    let address_type = object.require("addressType");
    if address_type.and_then(|at| at.one_of(&kinds)) == Some(false) {
        object.at().warn("names as endpoints are not followed; write a ServiceEntry instead");
        return Resource::EndpointSlice(slice);
    }
    if let Some(ports) = object.get("ports") {
        slice.ports = ports.items().filter_map(slice_port).collect();
    }
    if let Some(endpoints) = object.get("endpoints") {
        slice.endpoints = endpoints.items().filter_map(slice_endpoint).collect();
    }
    Resource::EndpointSlice(slice)
}

fn slice_port(at: At<'_>) -> Option<(String, u16)> {
    let fields = at.fields(&["name", "port", "protocol", "appProtocol"])?;
    let tcp = fields.get("protocol").is_none_or(|at| at.node.as_str() == Some("TCP"));
    let name = fields.get("name").and_then(At::str).unwrap_or_default().to_owned();
    let port = fields.get("port")?.port()?;
    tcp.then_some((name, port))
}

fn slice_endpoint(at: At<'_>) -> Option<SliceEndpoint> {
    let known = [
        "addresses",
        "conditions",
        "hostname",
        "targetRef",
        "nodeName",
        "zone",
        "hints",
        "deprecatedTopology",
    ];
    let fields = at.fields(&known)?;
    let addresses = fields.require("addresses")?.items().filter_map(text::ip).collect();
    let conditions = fields.get("conditions").and_then(|at| at.fields(&["ready", "serving", "terminating"]));
    let ready =
        conditions.and_then(|conditions| conditions.get("ready")).is_none_or(|at| at.bool() == Some(true));
    let target = fields.get("targetRef").and_then(At::open_fields);
    let is_pod = |target: &Fields<'_>| target.get("kind").and_then(|at| at.node.as_str()) == Some("Pod");
    let pod = target.filter(is_pod).and_then(|target| target.get("name")).and_then(At::text);
    Some(SliceEndpoint { addresses, ready, pod })
}

/// Reads a Pod. Machines write most of it, so only what is used is looked at and unknown fields are no mistake.
pub(crate) fn pod(_: &Meta, object: Fields<'_>) -> Resource {
    let mut pod = Pod { service_account: "default".into(), ready: true, ..Pod::default() };
    if let Some(spec) = object.get("spec").and_then(At::open_fields) {
        let account = spec.get("serviceAccountName").or_else(|| spec.get("serviceAccount"));
        pod.service_account = account.and_then(At::text).unwrap_or(pod.service_account);
        pod.host_network = spec.get("hostNetwork").and_then(At::bool).unwrap_or_default();
        // Sidecar containers are init containers that stay, and may serve ports as well.
        for list in ["containers", "initContainers"] {
            let containers = spec.get(list).map(|at| at.items()).into_iter().flatten();
            pod.ports.extend(containers.filter_map(At::open_fields).flat_map(container_ports));
        }
    }
    if let Some(status) = object.get("status").and_then(At::open_fields) {
        pod.ips.extend(status.get("podIP").and_then(text::ip));
        for at in status.get("podIPs").map(|at| at.items()).into_iter().flatten() {
            pod.ips.extend(at.open_fields().and_then(|fields| fields.get("ip")).and_then(text::ip));
        }
        pod.ips.sort_unstable();
        pod.ips.dedup();
        let finished =
            matches!(status.get("phase").and_then(|at| at.node.as_str()), Some("Succeeded" | "Failed"));
        let conditions = status.get("conditions").map(|at| at.items()).into_iter().flatten();
        pod.ready = !finished && !conditions.filter_map(At::open_fields).any(not_ready);
    }
    Resource::Pod(pod)
}

fn container_ports(container: Fields<'_>) -> Vec<(String, u16)> {
    let ports = container.get("ports").map(|at| at.items()).into_iter().flatten();
    let named = |at: At<'_>| {
        let fields = at.open_fields()?;
        let name = fields.get("name").map_or(Some(String::new()), At::text)?;
        Some((name, fields.get("containerPort")?.port()?))
    };
    ports.filter_map(named).collect()
}

fn not_ready(condition: Fields<'_>) -> bool {
    let text = |name| condition.get(name).and_then(|at| at.node.as_str());
    text("type") == Some("Ready") && text("status") != Some("True")
}
