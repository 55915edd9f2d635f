//! Pods and WorkloadEntries: who they are and how they are found.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

use super::Labels;
use super::catalog::Catalog;
use crate::Workload;
use crate::resource::core::{Pod, TargetPort};
use crate::resource::text::selects;
use crate::resource::traffic::WorkloadEntry;

/// Everything that can serve, with indexes.
#[derive(Debug)]
pub(super) struct Workloads<'a> {
    pub(super) all: Vec<Known<'a>>,
    pods_by_name: HashMap<(&'a str, &'a str), usize>,
    entries_by_name: HashMap<(&'a str, &'a str), usize>,
    /// `None`: several workloads share the address, so it says nothing.
    by_address: HashMap<IpAddr, Option<usize>>,
    by_label: HashMap<(&'a str, String, String), Vec<usize>>,
}

/// A Pod or WorkloadEntry.
#[derive(Debug)]
pub(super) struct Known<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) labels: Cow<'a, Labels>,
    /// `spiffe://..`.
    pub(super) identity: Option<String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) mesh_tls: bool,
    pub(super) ready: bool,
    pub(super) weight: u32,
    pub(super) kind: WorkloadKind<'a>,
}

/// Which of the two.
#[derive(Debug, Clone, Copy)]
pub(super) enum WorkloadKind<'a> {
    Pod(&'a Pod),
    Entry(&'a WorkloadEntry),
}

/// Whether these are labels of a workload that has a mesh proxy before it.
pub(super) fn speaks_mesh_tls(labels: &Labels) -> bool {
    labels.get("security.istio.io/tlsMode").is_some_and(|mode| mode == "istio")
}

/// The identity of a service account.
pub(super) fn identity(trust_domain: &str, namespace: &str, account: &str) -> String {
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}")
}

impl<'a> Workloads<'a> {
    pub(super) fn new(catalog: &Catalog<'a>, trust_domain: &str) -> Self {
        let pods = catalog.pods.iter().map(|item| {
            let meta = &item.object.meta;
            Known {
                namespace: &meta.namespace,
                name: &meta.name,
                labels: Cow::Borrowed(&meta.labels),
                identity: Some(identity(trust_domain, &meta.namespace, &item.spec.service_account)),
                addresses: item.spec.ips.clone(),
                mesh_tls: speaks_mesh_tls(&meta.labels),
                ready: item.spec.ready,
                weight: 1,
                kind: WorkloadKind::Pod(item.spec),
            }
        });
        let entries = catalog.workload_entries.iter().map(|item| {
            let meta = &item.object.meta;
            let mut labels = meta.labels.clone();
            labels.extend(item.spec.labels.clone());
            let account = item.spec.service_account.as_deref();
            Known {
                namespace: &meta.namespace,
                name: &meta.name,
                identity: account.map(|account| identity(trust_domain, &meta.namespace, account)),
                addresses: item.spec.address.into_iter().collect(),
                mesh_tls: speaks_mesh_tls(&labels),
                labels: Cow::Owned(labels),
                ready: true,
                weight: item.spec.weight,
                kind: WorkloadKind::Entry(item.spec),
            }
        });
        let mut found = Self {
            all: pods.chain(entries).collect(),
            pods_by_name: HashMap::new(),
            entries_by_name: HashMap::new(),
            by_address: HashMap::new(),
            by_label: HashMap::new(),
        };
        found.index();
        found
    }

    fn index(&mut self) {
        for (number, workload) in self.all.iter().enumerate() {
            let by_name = match workload.kind {
                WorkloadKind::Pod(_) => &mut self.pods_by_name,
                WorkloadKind::Entry(_) => &mut self.entries_by_name,
            };
            by_name.insert((workload.namespace, workload.name), number);
            // A node's address is not the Pod's own.
            if !matches!(workload.kind, WorkloadKind::Pod(pod) if pod.host_network) {
                for address in &workload.addresses {
                    self.by_address.entry(*address).and_modify(|first| *first = None).or_insert(Some(number));
                }
            }
            for (key, value) in workload.labels.iter() {
                let pair = (workload.namespace, key.clone(), value.clone());
                self.by_label.entry(pair).or_default().push(number);
            }
        }
    }

    pub(super) fn pod(&self, namespace: &str, name: &str) -> Option<&Known<'a>> {
        self.pods_by_name.get(&(namespace, name)).map(|number| &self.all[*number])
    }

    /// The only workload with this address.
    pub(super) fn at(&self, address: IpAddr) -> Option<&Known<'a>> {
        self.by_address.get(&address).copied().flatten().map(|number| &self.all[number])
    }

    /// Whether several workloads have this address.
    pub(super) fn is_shared(&self, address: IpAddr) -> bool {
        self.by_address.get(&address) == Some(&None)
    }

    /// Workloads of a namespace with all these labels; an empty selector selects none.
    pub(super) fn select(&self, namespace: &str, selector: &Labels) -> Vec<&Known<'a>> {
        let candidates = |(key, value): (&String, &String)| {
            // Looked up by the rarest label, so that many services over many workloads stay cheap.
            self.by_label.get(&(namespace, key.clone(), value.clone())).map_or(&[][..], Vec::as_slice)
        };
        let rarest = selector.iter().map(candidates).min_by_key(|found| found.len()).unwrap_or_default();
        let found = rarest.iter().map(|number| &self.all[*number]);
        found.filter(|workload| selects(selector, &workload.labels)).collect()
    }

    /// The labels given, else those of the object of this name, else those of a Pod that is labelled as serving the same
    /// Gateway (`gateway_label`); `None`: there is none.
    pub(super) fn labels_of(&self, workload: &Workload, gateway_label: &str) -> Option<Labels> {
        if !workload.labels.is_empty() {
            return Some(workload.labels.clone());
        }
        let name = (workload.namespace.as_str(), workload.name.as_str());
        let number = self.pods_by_name.get(&name).or_else(|| self.entries_by_name.get(&name));
        let serving = workload.gateway.as_ref().and_then(|gateway| {
            let pair = (name.0, gateway_label.to_owned(), gateway.clone());
            self.by_label.get(&pair)?.first()
        });
        let number = number.or(serving);
        number.map(|number| self.all[*number].labels.clone().into_owned())
    }
}

impl Known<'_> {
    /// `namespace/name`.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The port behind a service's port of this name and target.
    pub(super) fn port(&self, port_name: &str, target: &TargetPort) -> Option<u16> {
        match (self.kind, target) {
            (WorkloadKind::Entry(entry), _) if entry.ports.contains_key(port_name) => {
                entry.ports.get(port_name).copied()
            }
            (_, TargetPort::Number(number)) => Some(*number),
            (WorkloadKind::Pod(pod), TargetPort::Name(name)) => {
                pod.ports.iter().find(|(port, _)| port == name).map(|(_, number)| *number)
            }
            (WorkloadKind::Entry(entry), TargetPort::Name(name)) => entry.ports.get(name).copied(),
        }
    }
}
