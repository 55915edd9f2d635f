//! ReferenceGrants: who may refer to objects of another namespace.

use std::collections::HashSet;

use super::catalog::Catalog;

/// Who refers to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reference {
    /// An HTTPRoute to a Service.
    RouteToService,
    /// A Gateway to a Secret.
    GatewayToSecret,
}

/// Every grant there is.
#[derive(Debug, Default)]
pub(super) struct Grants<'a>(
    /// From namespace, to namespace, name of the object or all.
    HashSet<(Reference, &'a str, &'a str, Option<&'a str>)>,
);

impl<'a> Grants<'a> {
    pub(super) fn new(catalog: &'a Catalog<'_>) -> Self {
        let mut all = HashSet::new();
        for grant in &catalog.grants {
            let spec = grant.spec;
            for (reference, from, to) in [
                (Reference::RouteToService, &spec.from_http_routes, &spec.to_services),
                (Reference::GatewayToSecret, &spec.from_gateways, &spec.to_secrets),
            ] {
                for from in from {
                    all.extend(
                        to.iter().map(|to| (reference, from.as_str(), grant.namespace(), to.as_deref())),
                    );
                }
            }
        }
        Self(all)
    }

    /// Whether an object of `from` may refer to the one called `name` in `to`.
    pub(super) fn allow(&self, reference: Reference, from: &str, to: &str, name: &str) -> bool {
        from == to
            || self.0.contains(&(reference, from, to, None))
            || self.0.contains(&(reference, from, to, Some(name)))
    }
}
