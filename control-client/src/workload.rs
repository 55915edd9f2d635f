//! The workload a proxy stands for.

use std::collections::BTreeMap;

/// What selects policies for one proxy, and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its name, usually the Pod's.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// Its labels. Empty: those of the Pod or WorkloadEntry of this namespace and name, if the source has one.
    pub labels: BTreeMap<String, String>,
    /// Its trust domain.
    pub trust_domain: String,
    /// The Gateway of its namespace that it serves, by name.
    pub gateway: Option<String>,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            namespace: "default".into(),
            name: "local".into(),
            service_account: "default".into(),
            labels: BTreeMap::new(),
            trust_domain: "cluster.local".into(),
            gateway: None,
        }
    }
}
