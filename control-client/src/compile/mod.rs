//! Objects in force + workload -> snapshot.

mod authentication;
mod authorization;
mod backend_tls;
mod catalog;
mod destination;
mod endpoint;
mod gateway;
mod grants;
mod objects;
mod one_form;
mod own;
mod peer;
mod port;
mod problems;
mod provider;
mod rate_limit;
mod route;
mod service;
mod tls;
mod workloads;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::Workload;
use crate::digest;
use crate::keep::{self, InForce};
use crate::resource::mesh::MeshSettings;
use crate::resource::{Key, Object, Resource, data};
use crate::snapshot::{Endpoints, Mesh, PemObject, Policy, RevocationLists};
use crate::verdict::{Diagnostic, Severity, VerdictState};

use catalog::{Catalog, Item};
pub(crate) use own::{OwnLabels, Told};

/// What the objects in force mean for one workload.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) policy: Arc<Policy>,
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) revocation: RevocationLists,
    pub(crate) runtime_digest: String,
    pub(crate) findings: Vec<Finding>,
    pub(crate) own_labels: OwnLabels,
    /// When this has to be compiled again although nothing was written: seconds since the epoch.
    pub(crate) next_expiry: Option<i64>,
}

/// Something wrong that only shows when objects are looked at together.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) diagnostic: Diagnostic,
    /// What becomes of the object for it, if it can't stay as it is.
    pub(crate) becomes: Option<VerdictState>,
}

/// What was compiled before: equal parts stay the very same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Previous {
    pub(crate) policy: Option<Arc<Policy>>,
    pub(crate) endpoints: Arc<Endpoints>,
    /// Of the workload, as somebody last told them. They hold while nobody does.
    pub(crate) labels: Option<Labels>,
}

/// Compiles for one workload. `closes`: what may select it fails closed while its labels are not known. `now` is in
/// seconds since the epoch.
pub(crate) fn compile(
    in_force: &keep::Objects,
    workload: &Workload,
    closes: bool,
    now: i64,
    previous: &Previous,
) -> Compiled {
    let catalog = Catalog::new(in_force);
    let mut findings = Findings::default();
    let settings = mesh_settings(&catalog, &mut findings);
    let workloads = workloads::Workloads::new(&catalog, &workload.trust_domain);
    let (mut labels, told) = match (workloads.labels_of(workload, gateway::NAME_LABEL), &previous.labels) {
        (Some(labels), _) => (labels, Told::Now),
        (None, Some(labels)) => (labels.clone(), Told::Before),
        (None, None) => (Labels::new(), Told::Never),
    };
    if let Some(gateway) = &workload.gateway {
        labels.entry(gateway::NAME_LABEL.to_owned()).or_insert_with(|| gateway.clone());
    }
    let mut objects = objects::ObjectTable::default();

    let peers = peer::PeerPolicies::new(&catalog, &settings.root_namespace, &mut findings);
    let own = own::Own::new(&catalog, workload, (&labels, told), closes, &settings.root_namespace);
    let peer_authentication = peers.snapshot(&own, &mut objects, &mut findings);
    let request_authentication = authentication::select(&catalog, &own, &mut objects, &mut findings);

    let mut hosts = service::collect(&catalog, &workload.namespace, &mut findings);
    let rules =
        destination::Rules::new(&catalog, &workload.namespace, &labels, &settings, &peers, &mut findings);
    let materials = tls::Materials::new(&catalog, &workload.namespace, &settings);
    let tls_policies = backend_tls::BackendPolicies::new(&catalog, &materials, &mut findings);
    let orders = service::Orders { rules: &rules, materials: &materials, policies: &tls_policies };
    let backends = service::backends(&mut hosts, &orders, &peers, &mut objects, &mut findings);
    let providers = provider::compile(&settings, &hosts);
    let provider = |name: &str| provider::find(name, &settings, &providers, &hosts);
    let selected = authorization::select(&catalog, &own, provider, now, &mut objects, &mut findings);
    let limiters = provider::limiters(&settings, &hosts);
    let limiter = |name: &str| provider::find_limiter(name, &settings, &limiters, &hosts);
    let rate_limits = rate_limit::select(&catalog, &own, limiter, &mut objects, &mut findings);
    let grants = grants::Grants::new(&catalog);
    let references = route::References::new(&grants, &hosts);
    let routes = route::attach(&catalog, &references, &workload.namespace, &mut objects, &mut findings);
    let before = previous.policy.as_ref().and_then(|policy| policy.gateway.as_ref());
    let parts = gateway::Parts {
        catalog: &catalog,
        references: &references,
        grants: &grants,
        materials: &materials,
        before,
    };
    let served = workload.gateway.as_deref().map(|name| (workload.namespace.as_str(), name));
    let gateway = gateway::compile(&parts, served, &mut objects, &mut findings);
    let endpoints =
        endpoint::compile(&catalog, &hosts, &workloads, &peers, &workload.trust_domain, &previous.endpoints);
    let inbound_ports = port::inbound(&hosts, &workloads, &own, &catalog);
    let services = service::snapshot(&hosts, routes, &workload.namespace, &mut objects);

    let mut policy = Policy {
        digest: digest::of_set(digests(in_force, false)),
        objects: Vec::new(),
        mesh: mesh(&settings, workload),
        peer_authentication,
        request_authentication,
        authorization: selected.policies,
        inbound_ports,
        gateway,
        services,
        backends,
        providers,
        rate_limits,
        limiters,
        problems: BTreeMap::new(),
    };
    objects.finish(&mut policy);
    policy.problems = problems::of(&policy.objects, in_force, &findings.all);
    one_form::apply(&mut policy);
    Compiled {
        policy: keep_if_equal(policy, previous.policy.as_ref()),
        endpoints,
        revocation: revocation(in_force, &settings.root_namespace),
        runtime_digest: digest::of_set(digests(in_force, true)),
        findings: findings.all,
        own_labels: OwnLabels { labels, told, select: findings.select },
        next_expiry: selected.next_expiry,
    }
}

fn keep_if_equal(policy: Policy, previous: Option<&Arc<Policy>>) -> Arc<Policy> {
    match previous {
        Some(previous) if **previous == policy => previous.clone(),
        _ => Arc::new(policy),
    }
}

/// Of the versions in force. One that is quarantined does not mean what is written, so it has another.
fn digests(in_force: &keep::Objects, runtime: bool) -> impl Iterator<Item = Cow<'_, str>> {
    let of_side = in_force.values().filter(move |object| object.object.meta.runtime == runtime);
    of_side.map(|InForce { object, state, .. }| match state {
        VerdictState::Quarantined => format!("quarantined {}", object.meta.digest).into(),
        _ => object.meta.digest.as_str().into(),
    })
}

/// The settings in force: the oldest object, and nothing of the others.
fn mesh_settings(catalog: &Catalog<'_>, findings: &mut Findings) -> MeshSettings {
    let mut all: Vec<&Item<'_, MeshSettings>> = catalog.mesh_settings.iter().collect();
    all.sort_by_key(|item| item.object.meta.age());
    let Some((first, others)) = all.split_first() else {
        return MeshSettings::default();
    };
    for other in others {
        let name = &first.object.meta.name;
        findings.error(
            other.object,
            "",
            0,
            format!("MeshSettings {name} is older and in force; there can be only one"),
        );
    }
    first.spec.clone()
}

fn revocation(in_force: &keep::Objects, root_namespace: &str) -> RevocationLists {
    let key = Key {
        kind: "ConfigMap".into(),
        namespace: root_namespace.into(),
        name: data::REVOCATION_LISTS.into(),
    };
    let Some(found) = in_force.get(&key) else { return RevocationLists::Absent };
    match &found.object.resource {
        Resource::ConfigMap(map) if found.state != VerdictState::Quarantined => {
            let text = map.first(&[data::REVOCATION_LISTS_KEY]).map_or("", |value| &value.text);
            RevocationLists::Lists(PemObject::new(format!("ConfigMap {root_namespace}/{}", key.name), text))
        }
        _ => {
            let why = found.diagnostics.first().map_or_else(String::new, |found| found.unrated().to_string());
            RevocationLists::Unreadable(why)
        }
    }
}

fn mesh(settings: &MeshSettings, workload: &Workload) -> Mesh {
    Mesh {
        root_namespace: settings.root_namespace.clone(),
        trust_domain: workload.trust_domain.clone(),
        trust_domain_aliases: settings.trust_domain_aliases.clone(),
        outbound: settings.outbound,
        forwarding_identities: settings.forwarding_identities.clone(),
        trusted_forwarders: settings.trusted_forwarders.clone(),
        proxy_protocol: settings.proxy_protocol.clone(),
        path_normalization: settings.path_normalization,
        expired_credentials: settings.expired_credentials,
        ambiguous_paths: settings.ambiguous_paths,
    }
}

/// Collects findings.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    all: Vec<Finding>,
    /// What is for the workload or not by labels of it that nobody tells now.
    select: BTreeSet<String>,
}

impl Findings {
    fn error(&mut self, object: &Object, field: &str, line: u32, message: String) {
        self.push(object.diagnostic(Severity::Error, field, line, message), None);
    }

    /// What is found once for each backend is told once.
    fn error_once(&mut self, object: &Object, field: &str, line: u32, message: String) {
        self.push_once(object.diagnostic(Severity::Error, field, line, message), None);
    }

    /// The same of an object of which nothing is used.
    fn quarantined_once(&mut self, object: &Object, field: &str, line: u32, message: String) {
        let diagnostic = object.diagnostic(Severity::Error, field, line, message);
        self.push_once(diagnostic, Some(VerdictState::Quarantined));
    }

    fn push_once(&mut self, diagnostic: Diagnostic, becomes: Option<VerdictState>) {
        if !self.all.iter().any(|finding| finding.diagnostic == diagnostic) {
            self.push(diagnostic, becomes);
        }
    }

    fn warn(&mut self, object: &Object, field: &str, line: u32, message: String) {
        self.push(object.diagnostic(Severity::Warning, field, line, message), None);
    }

    /// The object would weaken an enforced one.
    fn ignored(&mut self, object: &Object, field: &str, message: String) {
        self.push(object.diagnostic(Severity::Error, field, 0, message), Some(VerdictState::Ignored));
    }

    /// The object fails closed.
    fn quarantined(&mut self, object: &Object, field: &str, line: u32, message: String) {
        self.push(object.diagnostic(Severity::Error, field, line, message), Some(VerdictState::Quarantined));
    }

    fn push(&mut self, diagnostic: Diagnostic, becomes: Option<VerdictState>) {
        self.all.push(Finding { diagnostic, becomes });
    }
}

/// Labels of something.
type Labels = BTreeMap<String, String>;

#[cfg(test)]
mod tests;
