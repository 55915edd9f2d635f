//! RequestAuthentications selected for a workload: all of them, since Istio merges none.

use super::Findings;
use super::authorization::{Own, Reach, reach};
use super::catalog::Catalog;
use super::objects::ObjectTable;
use crate::resource::mesh::MeshSettings;
use crate::snapshot::RequestAuthentication;

pub(super) fn select<'a>(
    catalog: &Catalog<'a>,
    settings: &MeshSettings,
    own: &Own<'_>,
    objects: &mut ObjectTable<'a>,
    findings: &mut Findings,
) -> Vec<RequestAuthentication> {
    let mut selected = Vec::new();
    for item in &catalog.request_authentications {
        let in_scope = item.namespace() == settings.root_namespace || item.namespace() == own.namespace;
        let quarantined = match reach(catalog, item.object, &item.spec.scope, own, findings) {
            Reach::Here if in_scope => item.quarantined,
            Reach::HereClosed if in_scope => true,
            _ => continue,
        };
        let (object, rules) = (objects.number(item.object), item.spec.rules.clone());
        selected.push(RequestAuthentication { object, rules, quarantined });
    }
    selected
}
