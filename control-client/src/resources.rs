//! A configuration read once, to be looked at for one workload after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::keep::Files;
use crate::pipeline::Pipeline;
use crate::resource::Resource;
use crate::resource::security::Scope;
use crate::source::dir::Dir;
use crate::{Loaded, Options, Workload};

/// Every resource of a directory or file.
#[derive(Debug)]
pub struct Resources(Files);

/// Workloads that policies can be for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selection {
    /// Their namespace.
    pub namespace: String,
    /// Labels that they have at least.
    pub labels: BTreeMap<String, String>,
}

impl Resources {
    /// Reads a directory or file.
    ///
    /// # Errors
    /// When there is nothing to read at all.
    pub fn read(dir: &Path) -> std::io::Result<Self> {
        Dir::new(dir).read().map(Self)
    }

    /// Reads YAML from memory, as if it were one file.
    pub fn of_yaml(yaml: &str) -> Self {
        let name: Arc<str> = Arc::from("<memory>");
        let file = crate::resource::read_file(&name, yaml);
        Self(Files::from([(name, Arc::new(file))]))
    }

    /// What they mean for a workload.
    pub fn load(&self, workload: &Workload) -> Loaded {
        Pipeline::first(workload.clone(), &self.0, Options::default()).1
    }

    /// The workloads that are here: Pods and WorkloadEntries, with their labels and service accounts.
    pub fn workloads(&self, trust_domain: &str) -> Vec<Workload> {
        let objects = self.0.values().flat_map(|file| &file.objects);
        let workloads = objects.filter_map(|object| {
            let (labels, account) = match &object.resource {
                Resource::Pod(pod) => (object.meta.labels.clone(), pod.service_account.clone()),
                Resource::WorkloadEntry(entry) => {
                    let labels = object.meta.labels.iter().chain(&entry.labels);
                    let labels = labels.map(|(key, value)| (key.clone(), value.clone())).collect();
                    (labels, entry.service_account.clone().unwrap_or_else(|| "default".into()))
                }
                _ => return None,
            };
            Some(Workload {
                namespace: object.meta.namespace.clone(),
                name: object.meta.name.clone(),
                service_account: account,
                labels,
                trust_domain: trust_domain.into(),
                gateway: None,
            })
        });
        workloads.collect()
    }

    /// What the security policies that are here select by namespace and labels.
    pub fn selections(&self) -> BTreeSet<Selection> {
        let objects = self.0.values().flat_map(|file| &file.objects);
        let scopes = objects.filter_map(|object| {
            let scope = match &object.resource {
                Resource::AuthorizationPolicy(policy) => &policy.scope,
                Resource::PeerAuthentication(policy) => &policy.scope,
                Resource::RateLimit(limit) => &limit.scope,
                _ => return None,
            };
            let labels = match scope {
                Scope::Labels(labels) => labels.clone(),
                _ => BTreeMap::new(),
            };
            Some(Selection { namespace: object.meta.namespace.clone(), labels })
        });
        scopes.collect()
    }

    /// The keys of labels by which anything here selects workloads: two workloads of a namespace that agree in these are
    /// under the same policies.
    pub fn selecting_keys(&self) -> BTreeSet<String> {
        let mut keys = BTreeSet::new();
        for object in self.0.values().flat_map(|file| &file.objects) {
            match &object.resource {
                Resource::Service(service) => keys.extend(service.selector.keys().cloned()),
                Resource::ServiceEntry(entry) => {
                    keys.extend(entry.selector.iter().flat_map(BTreeMap::keys).cloned());
                }
                _ => {}
            }
        }
        keys.extend(self.selections().into_iter().flat_map(|selection| selection.labels.into_keys()));
        keys
    }
}
