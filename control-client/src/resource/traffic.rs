//! networking.istio.io: ServiceEntry, WorkloadEntry and DestinationRule.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::read::{At, Fields};
use super::{Meta, Resource, text};
use crate::snapshot::{BackendTls, Protocol};

/// A ServiceEntry.
#[derive(Debug)]
pub(crate) struct ServiceEntry {
    pub(crate) hosts: Vec<String>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ports: Vec<EntryPort>,
    /// MESH_EXTERNAL: not a part of the mesh.
    pub(crate) external: bool,
    pub(crate) resolution: Resolution,
    pub(crate) endpoints: Vec<WorkloadEntry>,
    pub(crate) selector: Option<BTreeMap<String, String>>,
    pub(crate) export_to: ExportTo,
    pub(crate) subject_alt_names: Vec<String>,
}

/// A port of a ServiceEntry.
#[derive(Debug)]
pub(crate) struct EntryPort {
    pub(crate) number: u16,
    pub(crate) name: String,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) target: Option<u16>,
}

/// Where the endpoints of a ServiceEntry come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// The address that the application dialled.
    None,
    Static,
    Dns,
}

/// A WorkloadEntry, also as it stands in a ServiceEntry.
#[derive(Debug)]
pub(crate) struct WorkloadEntry {
    /// `None`: not an address that can be used.
    pub(crate) address: Option<IpAddr>,
    /// By the name of the service's port.
    pub(crate) ports: BTreeMap<String, u16>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) service_account: Option<String>,
    pub(crate) weight: u32,
}

/// Namespaces that see an object; empty is all.
#[derive(Debug, Default)]
pub(crate) struct ExportTo(Vec<String>);

/// A DestinationRule.
#[derive(Debug)]
pub(crate) struct DestinationRule {
    /// As written, in lower case; a short name is looked for in the namespace of the rule.
    pub(crate) host: Option<String>,
    pub(crate) export_to: ExportTo,
    /// Labels of the clients it is for.
    pub(crate) clients: Option<BTreeMap<String, String>>,
    pub(crate) policy: TrafficPolicy,
    /// By service port; such a policy replaces the general one.
    pub(crate) ports: BTreeMap<u16, TrafficPolicy>,
}

/// What of a trafficPolicy is in force.
#[derive(Debug, Default)]
pub(crate) struct TrafficPolicy {
    pub(crate) tls: Tls,
    pub(crate) connect_timeout: Option<Duration>,
}

/// `trafficPolicy.tls`.
#[derive(Debug, Default)]
pub(crate) enum Tls {
    /// Not mentioned.
    #[default]
    Auto,
    Set(BackendTls),
    /// Written and not understood: no connection at all is better than one in the wrong way.
    Unreadable,
}

impl ExportTo {
    pub(crate) fn shows(&self, own: &str, client: &str) -> bool {
        let shows = |to: &String| to == "*" || to == client || (to == "." && own == client);
        self.0.is_empty() || self.0.iter().any(shows)
    }

    fn read(at: Option<At<'_>>) -> Self {
        let items = at.into_iter().flat_map(|at| at.items());
        let namespace = |at: At<'_>| {
            let text = at.text()?;
            if !matches!(text.as_str(), "*" | "." | "~") && !text::is_dns_subdomain(&text) {
                at.error(format!("`{text}` is neither a namespace nor `.`, `*` or `~`"));
            }
            Some(text)
        };
        // Something was written that hides the object: nothing of it must show it to all.
        let mut found: Vec<_> = items.filter_map(namespace).collect();
        if at.is_some() && found.is_empty() {
            found.push("~".into());
        }
        Self(found)
    }
}

const RESOLUTIONS: &[(&str, Resolution)] = &[
    ("NONE", Resolution::None),
    ("STATIC", Resolution::Static),
    ("DNS", Resolution::Dns),
    ("DNS_ROUND_ROBIN", Resolution::Dns),
];

/// Reads a ServiceEntry.
pub(crate) fn service_entry(_: &Meta, object: Fields<'_>) -> Resource {
    let mut entry = ServiceEntry {
        hosts: Vec::new(),
        addresses: Vec::new(),
        ports: Vec::new(),
        external: true,
        resolution: Resolution::None,
        endpoints: Vec::new(),
        selector: None,
        export_to: ExportTo::default(),
        subject_alt_names: Vec::new(),
    };
    read_service_entry(object, &mut entry);
    Resource::ServiceEntry(entry)
}

fn read_service_entry(object: Fields<'_>, entry: &mut ServiceEntry) -> Option<()> {
    let known = [
        "hosts",
        "addresses",
        "ports",
        "location",
        "resolution",
        "endpoints",
        "workloadSelector",
        "exportTo",
        "subjectAltNames",
    ];
    let spec = object.require("spec")?.fields(&known)?;
    entry.hosts =
        spec.require("hosts").map(|at| at.items().filter_map(text::host).collect()).unwrap_or_default();
    entry.addresses =
        spec.get("addresses").map(|at| at.items().filter_map(address).collect()).unwrap_or_default();
    entry.ports =
        spec.require("ports").map(|at| at.items().filter_map(entry_port).collect()).unwrap_or_default();
    let location =
        spec.get("location").and_then(|at| at.one_of(&[("MESH_EXTERNAL", true), ("MESH_INTERNAL", false)]));
    entry.external = location.unwrap_or(true);
    entry.resolution =
        spec.get("resolution").and_then(|at| at.one_of(RESOLUTIONS)).unwrap_or(Resolution::None);
    entry.export_to = ExportTo::read(spec.get("exportTo"));
    entry.subject_alt_names = spec.get("subjectAltNames").map(At::texts).unwrap_or_default();
    entry.selector = spec.get("workloadSelector").and_then(workload_selector);
    if let Some(list) = spec.get("endpoints") {
        if let Some(at) = spec.get("workloadSelector") {
            at.error("a ServiceEntry has endpoints or a workloadSelector, not both");
        }
        entry.endpoints = list.items().filter_map(workload).collect();
    }
    check_resolution(spec, entry);
    Some(())
}

/// Says at once when nothing could ever be reached.
fn check_resolution(spec: Fields<'_>, entry: &mut ServiceEntry) {
    let at = spec.get("resolution").unwrap_or(spec.at());
    let no_endpoints = spec.get("endpoints").is_none() && entry.selector.is_none();
    match entry.resolution {
        Resolution::Static if no_endpoints => at.error("STATIC needs endpoints or a workloadSelector"),
        Resolution::Dns if no_endpoints => {
            // The hosts are the endpoints.
            for at in spec.get("hosts").into_iter().flat_map(|at| at.items()) {
                entry.endpoints.push(WorkloadEntry {
                    address: literal(at),
                    ports: BTreeMap::new(),
                    labels: BTreeMap::new(),
                    service_account: None,
                    weight: 1,
                });
            }
        }
        Resolution::None if !no_endpoints => {
            at.error("NONE goes where the application dialled; endpoints need STATIC or DNS")
        }
        Resolution::None if entry.addresses.is_empty() => {
            at.error(
                "resolution NONE needs addresses: going where the application dialled is not supported yet",
            );
        }
        _ => {}
    }
}

fn entry_port(at: At<'_>) -> Option<EntryPort> {
    let fields = at.fields(&["number", "name", "protocol", "targetPort"])?;
    let number = fields.require("number")?.port()?;
    let name = fields.require("name")?.text()?;
    let declared = fields.get("protocol").and_then(At::text);
    let protocol =
        declared.as_deref().map_or_else(|| text::protocol(None, &name, number), text::protocol_name);
    let target = fields.get("targetPort").and_then(At::port);
    Some(EntryPort { number, name, protocol, target })
}

/// A virtual address. A range of one address is as good.
fn address(at: At<'_>) -> Option<IpAddr> {
    let range = text::cidr(at)?;
    if range.prefix_len() != range.max_prefix_len() {
        at.error("ranges of addresses are not supported yet; list the addresses");
        return None;
    }
    Some(range.addr())
}

/// An endpoint's address: names other than `localhost` are not resolved.
fn literal(at: At<'_>) -> Option<IpAddr> {
    let text = at.str()?;
    let found = if text == "localhost" { Some(IpAddr::V4(Ipv4Addr::LOCALHOST)) } else { text.parse().ok() };
    if found.is_none() {
        at.error(format!("`{text}` is not an IP address; names other than localhost are not resolved yet"));
    }
    found
}

fn workload_selector(at: At<'_>) -> Option<BTreeMap<String, String>> {
    Some(at.fields(&["labels"])?.require("labels")?.string_map())
}

/// Reads a WorkloadEntry.
pub(crate) fn workload_entry(_: &Meta, object: Fields<'_>) -> Resource {
    object.require("spec").and_then(workload).map_or(Resource::Nothing, Resource::WorkloadEntry)
}

fn workload(at: At<'_>) -> Option<WorkloadEntry> {
    let fields =
        at.fields(&["address", "ports", "labels", "network", "locality", "weight", "serviceAccount"])?;
    fields.not_in_force(&["network", "locality"]);
    let port = |(name, at): (&str, At<'_>)| Some((name.to_owned(), at.port()?));
    Some(WorkloadEntry {
        address: fields.require("address").and_then(literal),
        ports: fields.get("ports").map(|at| at.entries().filter_map(port).collect()).unwrap_or_default(),
        labels: fields.get("labels").map(At::string_map).unwrap_or_default(),
        service_account: fields.get("serviceAccount").and_then(At::text),
        weight: fields.get("weight").and_then(|at| at.number(0, 1_000_000)).unwrap_or(1).max(1),
    })
}

/// Reads a DestinationRule.
pub(crate) fn destination_rule(_: &Meta, object: Fields<'_>) -> Resource {
    let mut rule = DestinationRule {
        host: None,
        export_to: ExportTo::default(),
        clients: None,
        policy: TrafficPolicy::default(),
        ports: BTreeMap::new(),
    };
    read_destination_rule(object, &mut rule);
    Resource::DestinationRule(rule)
}

fn read_destination_rule(object: Fields<'_>, rule: &mut DestinationRule) -> Option<()> {
    let spec = object.require("spec")?.fields(&[
        "host",
        "trafficPolicy",
        "subsets",
        "exportTo",
        "workloadSelector",
    ])?;
    rule.host = spec.require("host").and_then(text::host);
    rule.export_to = ExportTo::read(spec.get("exportTo"));
    rule.clients = spec.get("workloadSelector").and_then(text::selector);
    if let Some(subsets) = spec.get("subsets") {
        subsets.items().for_each(|at| {
            subset(at);
        });
        subsets
            .warn("accepted, not in force yet: an HTTPRoute names Services, so give each version a Service");
    }
    let Some(at) = spec.get("trafficPolicy") else { return Some(()) };
    let known = [
        "tls",
        "connectionPool",
        "loadBalancer",
        "outlierDetection",
        "portLevelSettings",
        "tunnel",
        "proxyProtocol",
        "retryBudget",
    ];
    let Some(fields) = at.fields(&known) else {
        rule.policy.tls = Tls::Unreadable;
        return None;
    };
    fields.not_in_force(&["tunnel", "proxyProtocol", "retryBudget"]);
    rule.policy = traffic_policy(fields);
    for at in fields.get("portLevelSettings").into_iter().flat_map(|at| at.items()) {
        let Some(fields) = at.fields(&["port", "tls", "connectionPool", "loadBalancer", "outlierDetection"])
        else {
            continue;
        };
        let policy = traffic_policy(fields);
        let port = fields.require("port").and_then(|at| at.fields(&["number"])?.require("number")?.port());
        if let Some(port) = port {
            rule.ports.insert(port, policy);
        }
    }
    Some(())
}

fn subset(at: At<'_>) -> Option<()> {
    let fields = at.fields(&["name", "labels", "trafficPolicy"])?;
    fields.require("name")?.text();
    fields.get("labels").map(At::string_map);
    Some(())
}

fn traffic_policy(fields: Fields<'_>) -> TrafficPolicy {
    fields.not_in_force(&["loadBalancer", "outlierDetection"]);
    let mut policy = TrafficPolicy::default();
    if let Some(at) = fields.get("tls") {
        policy.tls = tls(at).map_or(Tls::Unreadable, Tls::Set);
    }
    if let Some(pool) = fields.get("connectionPool").and_then(|at| at.fields(&["tcp", "http"])) {
        pool.not_in_force(&["http"]);
        let known =
            ["connectTimeout", "maxConnections", "tcpKeepalive", "maxConnectionDuration", "idleTimeout"];
        if let Some(tcp) = pool.get("tcp").and_then(|at| at.fields(&known)) {
            tcp.not_in_force(&known[1..]);
            policy.connect_timeout = tcp.get("connectTimeout").and_then(connect_timeout);
        }
    }
    policy
}

fn connect_timeout(at: At<'_>) -> Option<Duration> {
    let timeout = text::go_duration(at)?;
    if timeout.is_zero() {
        at.error("must be longer than nothing");
        return None;
    }
    Some(timeout)
}

#[derive(Clone, Copy, PartialEq)]
enum TlsMode {
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

/// `None` when any field of it is wrong.
fn tls(at: At<'_>) -> Option<BackendTls> {
    let known = [
        "mode",
        "clientCertificate",
        "privateKey",
        "caCertificates",
        "credentialName",
        "subjectAltNames",
        "sni",
        "insecureSkipVerify",
        "caCrl",
    ];
    let fields = at.fields(&known)?;
    let modes = [
        ("DISABLE", TlsMode::Disable),
        ("SIMPLE", TlsMode::Simple),
        ("MUTUAL", TlsMode::Mutual),
        ("ISTIO_MUTUAL", TlsMode::IstioMutual),
    ];
    // Istio's default, DISABLE, is too quiet for a field left out.
    let mode = fields.require("mode").and_then(|at| at.one_of(&modes));
    let mut refused = false;
    for name in ["credentialName", "caCrl"] {
        if let Some(at) = fields.get(name) {
            at.error("not supported yet; name files instead");
            refused = true;
        }
    }
    if let Some(at) = fields.get("insecureSkipVerify")
        && at.bool() != Some(false)
    {
        at.error("not supported: a server that nobody verified could be anyone");
        refused = true;
    }
    let client =
        (fields.get("clientCertificate").and_then(At::text), fields.get("privateKey").and_then(At::text));
    let ca_file = fields.get("caCertificates").and_then(At::text);
    let sans = fields.get("subjectAltNames").map(At::texts).unwrap_or_default();
    let sni = fields.get("sni").and_then(At::text);
    let mode = mode.filter(|_| !refused)?;
    if matches!(mode, TlsMode::Simple | TlsMode::Mutual) && ca_file.is_none() {
        at.warn("without caCertificates no server can be verified (Writ carries no system roots): connections are refused");
    }
    match (mode, client) {
        (TlsMode::Disable, _) => Some(BackendTls::Plaintext),
        (TlsMode::IstioMutual, (None, None)) if ca_file.is_none() => Some(BackendTls::Mesh { sans }),
        (TlsMode::IstioMutual, _) => {
            at.error("ISTIO_MUTUAL uses the workload's own certificate; name no files");
            None
        }
        (TlsMode::Simple, _) => Some(BackendTls::Tls { sni, sans, ca_file, client_files: None }),
        (TlsMode::Mutual, (Some(certificate), Some(key))) => {
            Some(BackendTls::Tls { sni, sans, ca_file, client_files: Some((certificate, key)) })
        }
        (TlsMode::Mutual, _) => {
            at.error("MUTUAL needs clientCertificate and privateKey");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::only;
    use super::*;

    fn read(kind: &str, spec: &str) -> (std::sync::Arc<super::super::Object>, Vec<String>) {
        only(&format!(
            "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: x, namespace: n}}\nspec: {spec}\n"
        ))
    }

    #[test]
    fn service_entries() {
        let good = [
            "{hosts: [a.example], ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 10.0.0.1}]}",
            "{hosts: [localhost], ports: [{number: 80, name: x, protocol: HTTP}], resolution: DNS}",
            "{hosts: ['*.a.example'], addresses: [10.0.0.1/32], ports: [{number: 80, name: http}]}",
            "{hosts: [a], ports: [{number: 80, name: http}], resolution: STATIC, workloadSelector: {labels: {a: b}}, exportTo: ['.']}",
        ];
        for spec in good {
            let (object, found) = read("ServiceEntry", spec);
            assert!(object.good, "{spec}: {found:?}");
        }
        let bad = [
            ("{ports: [{number: 80, name: http}]}", "spec.hosts: is required"),
            ("{hosts: [a.example], ports: [{number: 80, name: http}], resolution: DNS}", "not resolved yet"),
            ("{hosts: [a.example], ports: [{number: 80, name: http}], addresses: [10.0.0.0/8]}", "ranges"),
            ("{hosts: [a.example], ports: [{number: 80, name: http}], resolution: STATIC}", "STATIC needs"),
            (
                "{hosts: [a.example], ports: [{number: 0, name: http}], resolution: STATIC, endpoints: []}",
                "out of range",
            ),
            ("{hosts: [a b], ports: [{number: 1, name: http}], addresses: [10.0.0.1]}", "not a host name"),
            (
                "{hosts: [a], ports: [{number: 1, name: http}], addresses: [10.0.0.1], exportTo: ['a b']}",
                "neither a namespace",
            ),
        ];
        for (spec, wanted) in bad {
            let (object, found) = read("ServiceEntry", spec);
            assert!(!object.good, "{spec}");
            assert!(found.join("\n").contains(wanted), "{spec}: {found:?}");
        }
    }

    #[test]
    fn destination_rules() {
        let tls = |spec: &str| match read("DestinationRule", spec) {
            (object, found) => match &object.resource {
                Resource::DestinationRule(rule) => (object.good, format!("{:?}", rule.policy.tls), found),
                _ => panic!(),
            },
        };
        assert!(tls("{host: a, trafficPolicy: {tls: {mode: DISABLE}}}").1.contains("Plaintext"));
        assert!(
            tls("{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, subjectAltNames: [x]}}}")
                .1
                .contains("Mesh")
        );
        let (good, _, found) = tls("{host: a, trafficPolicy: {tls: {mode: SIMPLE}}}");
        assert!(good && found.len() == 1, "{found:?}");
        for spec in [
            "{host: a, trafficPolicy: {tls: {mode: SIMPEL}}}",
            "{host: a, trafficPolicy: {tls: {}}}",
            "{host: a, trafficPolicy: {tls: {mode: MUTUAL}}}",
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}}",
            "{host: a, trafficPolicy: 1}",
        ] {
            let (good, tls, _) = tls(spec);
            assert!(!good && tls == "Unreadable", "{spec}: {tls}");
        }
    }

    #[test]
    fn what_is_not_in_force_is_said() {
        let (object, found) = read(
            "DestinationRule",
            "{host: a, trafficPolicy: {loadBalancer: {simple: RANDOM}, outlierDetection: {}, connectionPool: {tcp: {connectTimeout: 1.5s, maxConnections: 3}, http: {}}}, subsets: [{name: v1, labels: {v: '1'}}]}",
        );
        assert!(object.good);
        assert_eq!(found.len(), 5, "{found:?}");
        let Resource::DestinationRule(rule) = &object.resource else { panic!() };
        assert_eq!(rule.policy.connect_timeout, Some(Duration::from_millis(1500)));
    }
}
