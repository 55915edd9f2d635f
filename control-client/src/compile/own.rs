//! The workload that policies are selected for, and which of them do.

use std::collections::{BTreeSet, HashSet};

use super::catalog::{Catalog, Item};
use super::{Findings, Labels, gateway};
use crate::Workload;
use crate::resource::Object;
use crate::resource::core::{EndpointSlice, Service};
use crate::resource::text::selects;
use crate::verdict::LABELS_FLAG;

/// The workload that policies are selected for.
pub(super) struct Own<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// While they are not known: none but the label that names its Gateway.
    pub(super) labels: &'a Labels,
    told: Told,
    /// While they are not known, what may select it fails closed.
    closes: bool,
    pub(super) root_namespace: &'a str,
    /// Services of its namespace whose slices name it.
    sliced: HashSet<&'a str>,
    /// The Gateway of its namespace that it serves, and the class of that.
    pub(super) gateway: Option<(&'a str, Option<&'a str>)>,
}

/// By whom labels are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// A flag, or the Pod or WorkloadEntry.
    Now,
    /// The Pod or WorkloadEntry, when it was last there.
    Before,
    /// Nobody, ever. The label that names the Gateway that it serves is known all the same.
    Never,
}

/// The labels of the workload, and what hangs on them.
#[derive(Debug)]
pub(crate) struct OwnLabels {
    pub(crate) labels: Labels,
    pub(crate) told: Told,
    /// Unless they are told now: what is selected by them, as messages name it.
    pub(crate) select: BTreeSet<String>,
}

impl OwnLabels {
    /// What holds while nobody tells them.
    pub(crate) fn last_known(&self) -> Option<Labels> {
        matches!(self.told, Told::Now | Told::Before).then(|| self.labels.clone())
    }
}

/// How far a policy reaches.
pub(super) enum Reach {
    Elsewhere,
    Here,
    /// Here, because where it was meant for can't be understood.
    HereClosed,
}

impl Reach {
    /// The same of a policy that can't be understood.
    pub(super) fn closed(self) -> Self {
        match self {
            Self::Here => Self::HereClosed,
            other => other,
        }
    }
}

impl<'a> Own<'a> {
    pub(super) fn new(
        catalog: &'a Catalog<'_>,
        workload: &'a Workload,
        (labels, told): (&'a Labels, Told),
        closes: bool,
        root_namespace: &'a str,
    ) -> Self {
        let Workload { namespace, name, .. } = workload;
        let slices = catalog.slices.iter().filter(|slice| slice.namespace() == namespace);
        let names_it = |slice: &&Item<'_, EndpointSlice>| {
            slice.spec.endpoints.iter().any(|endpoint| endpoint.pod.as_deref() == Some(name))
        };
        let sliced = slices.filter(names_it).filter_map(|slice| slice.spec.service.as_deref()).collect();
        let gateway =
            workload.gateway.as_deref().map(|name| (name, gateway::class(catalog, namespace, name)));
        Self { namespace, name, labels, told, closes, root_namespace, sliced, gateway }
    }

    /// Whether policies of a namespace can be for it.
    pub(super) fn is_in_scope(&self, namespace: &str) -> bool {
        namespace == self.root_namespace || namespace == self.namespace
    }

    /// Whether the workload is behind a Service of its namespace, by its selector or else by name in its slices.
    pub(super) fn serves(&self, service: &Service, name: &str) -> bool {
        if service.selector.is_empty() {
            self.sliced.contains(name)
        } else {
            selects(&service.selector, self.labels)
        }
    }

    /// Whether the label that names its Gateway is all that is asked for.
    fn is_known(&self, selector: &Labels) -> bool {
        self.gateway.is_some() && selector.keys().all(|key| key == gateway::NAME_LABEL)
    }

    /// How far an object reaches that is for those with these labels.
    pub(super) fn selected(&self, object: &Object, selector: &Labels, findings: &mut Findings) -> Reach {
        if self.told != Told::Now && !self.is_known(selector) {
            let meta = &object.meta;
            findings.select.insert(format!("{} {}/{}", meta.kind, meta.namespace, meta.name));
        }
        match self.told {
            Told::Never if self.closes && !self.is_known(selector) => {
                let message = format!(
                    "whether it selects {0}/{1} is not known: there is no Pod or WorkloadEntry of that name, and no --labels",
                    self.namespace, self.name
                );
                findings.quarantined(object, LABELS_FLAG, 0, message);
                Reach::HereClosed
            }
            _ if selects(selector, self.labels) => Reach::Here,
            _ => Reach::Elsewhere,
        }
    }
}
