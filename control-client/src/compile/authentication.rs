//! RequestAuthentications selected for a workload: all of them, since Istio merges none.

use super::Findings;
use super::authorization::reach;
use super::catalog::Catalog;
use super::objects::ObjectTable;
use super::own::{Own, Reach};
use crate::snapshot::RequestAuthentication;

pub(super) fn select<'a>(
    catalog: &Catalog<'a>,
    own: &Own<'_>,
    objects: &mut ObjectTable<'a>,
    findings: &mut Findings,
) -> Vec<RequestAuthentication> {
    let mut selected = Vec::new();
    for item in &catalog.request_authentications {
        let quarantined = match reach(catalog, item.object, &item.spec.scope, own, findings) {
            Reach::Here => item.quarantined,
            Reach::HereClosed => true,
            Reach::Elsewhere => continue,
        };
        let (object, rules) = (objects.number(item.object), item.spec.rules.clone());
        selected.push(RequestAuthentication { object, rules, quarantined });
    }
    selected
}
