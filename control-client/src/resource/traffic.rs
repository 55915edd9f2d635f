//! networking.istio.io: ServiceEntry and WorkloadEntry.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::read::{At, Fields};
use super::{Meta, Resource, text};
use crate::snapshot::Protocol;

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

impl ExportTo {
    pub(crate) fn shows(&self, own: &str, client: &str) -> bool {
        let shows = |to: &String| to == "*" || to == client || (to == "." && own == client);
        self.0.is_empty() || self.0.iter().any(shows)
    }

    pub(super) fn read(at: Option<At<'_>>) -> Self {
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
        spec.require("hosts").map(|at| at.items().filter_map(entry_host).collect()).unwrap_or_default();
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

fn entry_host(at: At<'_>) -> Option<String> {
    let host = text::host(at)?;
    if host == "*" {
        at.error(
            "every host is too many: MeshSettings outboundTrafficPolicy says what becomes of unknown ones",
        );
        return None;
    }
    Some(host)
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

#[cfg(test)]
mod tests {
    use super::super::tests::only;

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
            ("{hosts: ['*'], ports: [{number: 80, name: http}], addresses: [10.0.0.1]}", "every host"),
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
}
