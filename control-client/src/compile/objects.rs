//! Numbers the objects that a policy names.

use std::collections::HashMap;

use crate::resource::Object;
use crate::snapshot::{ObjectIndex, Policy};

/// Hands out numbers; `finish` sorts the objects and renumbers.
#[derive(Debug, Default)]
pub(super) struct ObjectTable<'a> {
    /// By address: an object in force lives in one place while it is compiled.
    numbers: HashMap<*const Object, ObjectIndex>,
    objects: Vec<&'a Object>,
}

impl<'a> ObjectTable<'a> {
    pub(super) fn number(&mut self, object: &'a Object) -> ObjectIndex {
        *self.numbers.entry(object).or_insert_with(|| {
            self.objects.push(object);
            // More than four thousand million objects do not fit into memory.
            ObjectIndex::try_from(self.objects.len() - 1).unwrap_or(ObjectIndex::MAX)
        })
    }

    /// Writes the objects into `policy`, sorted, and corrects every number in it.
    pub(super) fn finish(self, policy: &mut Policy) {
        let mut order: Vec<usize> = (0..self.objects.len()).collect();
        order.sort_by_key(|number| {
            let meta = &self.objects[*number].meta;
            (&meta.kind, &meta.namespace, &meta.name)
        });
        let mut renumbered = vec![0; order.len()];
        for (new, old) in order.iter().enumerate() {
            renumbered[*old] = ObjectIndex::try_from(new).unwrap_or(ObjectIndex::MAX);
        }
        policy.objects = order.iter().map(|number| self.objects[*number].meta.object_ref()).collect();
        for index in indexes(policy) {
            *index = renumbered[*index as usize];
        }
    }
}

/// Every place of a policy that names an object.
fn indexes(policy: &mut Policy) -> impl Iterator<Item = &mut ObjectIndex> {
    let modes = std::iter::once(&mut policy.peer_authentication.default)
        .chain(policy.peer_authentication.ports.iter_mut().map(|(_, mode)| mode));
    let services = policy.services.iter_mut().flat_map(|service| {
        let rules = service.ports.iter_mut().flat_map(|port| port.routes.iter_mut());
        service.object.iter_mut().chain(rules.map(|rule| &mut rule.object))
    });
    let gateways = policy.gateway.iter_mut().flat_map(|gateway| {
        let hosts = gateway.listeners.iter_mut().flat_map(|listener| listener.hosts.iter_mut());
        let rules = hosts.flat_map(|host| host.routes.iter_mut());
        std::iter::once(&mut gateway.object).chain(rules.map(|rule| &mut rule.object))
    });
    modes
        .filter_map(|mode| mode.object.as_mut())
        .chain(policy.request_authentication.iter_mut().map(|each| &mut each.object))
        .chain(policy.authorization.iter_mut().map(|policy| &mut policy.object))
        .chain(policy.rate_limits.iter_mut().map(|limit| &mut limit.object))
        .chain(services)
        .chain(gateways)
        .chain(policy.backends.iter_mut().filter_map(|backend| backend.object.as_mut()))
}
