//! What the proxy of a workload would decide, by the code of `writ explain`, without a proxy.

use std::path::Path;
use std::sync::Arc;

use control_client::{Loaded, Workload};
use proxy::explain::{Query, explain};
use proxy::generation::Generation;
use proxy::jwks;
use proxy::reload;
use proxy::telemetry::ProxyFacts;
use proxy::upstream::Registry;
use serde_json::Value;

use crate::Record;

/// A configuration as the proxy of one workload has it in force.
pub struct Explainer {
    generation: Arc<Generation>,
    registry: Arc<Registry>,
    keys: Arc<jwks::Store>,
    proxy: ProxyFacts,
}

impl Explainer {
    /// Of a directory.
    pub fn of(directory: &Path, workload: &Workload) -> Self {
        Self::loaded(&control_client::load_once(directory, workload), workload)
    }

    /// Of YAML.
    pub fn of_yaml(yaml: &str, workload: &Workload) -> Self {
        Self::loaded(&control_client::load_str(yaml, workload), workload)
    }

    fn loaded(loaded: &Loaded, workload: &Workload) -> Self {
        let registry = Registry::new();
        let generation = Arc::new(reload::first(&loaded.snapshot, &registry).unwrap());
        let proxy = ProxyFacts {
            role: "sidecar".into(),
            workload: format!("{}/{}", workload.namespace, workload.name),
            identity: None,
            version: String::new(),
        };
        Self { generation, registry, keys: jwks::Store::new(jwks::Options::default()), proxy }
    }

    /// Digest of the policy.
    pub fn digest(&self) -> &str {
        &self.generation.config.digest
    }

    /// The tables themselves.
    pub fn tables(&self) -> &proxy::tables::Tables {
        &self.generation.tables
    }

    /// The record that the proxy would leave. Parameters are those of `writ explain`.
    pub fn explain<'p>(&self, parameters: impl IntoIterator<Item = (&'p str, &'p str)>) -> Record {
        let query = Query::parse(parameters).unwrap_or_else(|wrong| panic!("{wrong}"));
        let generation = Arc::clone(&self.generation);
        Record::new(explain(generation, &self.registry, &self.keys, &self.proxy, &query).unwrap())
    }

    /// The record that would be left of what another record is about; `None`: it is about nothing that can be asked.
    pub fn explain_record(&self, record: &Value) -> Option<Record> {
        let parameters = Query::of_record(record);
        let query = Query::parse(parameters.iter().map(|(name, value)| (*name, value.as_str()))).ok()?;
        let generation = Arc::clone(&self.generation);
        Some(Record::new(explain(generation, &self.registry, &self.keys, &self.proxy, &query).unwrap()))
    }
}
