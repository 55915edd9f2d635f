//! Paths of policies and routes in the form that paths of requests have when they are matched.

use crate::resource::text::upper_escapes;
use crate::snapshot::{
    Attribute, AuthorizationRule, Condition, PathMatch, PathNormalization, Policy, ValueMatch,
};

/// Writes the digits of escapes in upper case (RFC 3986 section 6.2.2.1) where normalization does so with requests.
/// Patterns stay as they are.
pub(super) fn apply(policy: &mut Policy) {
    if policy.mesh.path_normalization == PathNormalization::None {
        return;
    }
    let authorization = policy.authorization.iter_mut().flat_map(|each| &mut each.rules);
    let limits = policy.rate_limits.iter_mut().flat_map(|each| &mut each.rules);
    for rule in authorization.chain(limits.map(|rule| &mut rule.matches)) {
        paths(rule);
    }
    let ports = policy.services.iter_mut().flat_map(|service| &mut service.ports);
    let listeners = policy.gateway.iter_mut().flat_map(|gateway| &mut gateway.listeners);
    let hosts = listeners.flat_map(|listener| &mut listener.hosts);
    let rules = ports.flat_map(|port| &mut port.routes).chain(hosts.flat_map(|host| &mut host.routes));
    let matches = rules.flat_map(|rule| &mut rule.matches);
    for each in matches {
        if let PathMatch::Exact(path) | PathMatch::Prefix(path) = &mut each.path {
            upper_escapes(path);
        }
    }
}

fn paths(rule: &mut AuthorizationRule) {
    let AuthorizationRule { from, to, when, .. } = rule;
    let conditions = from.iter_mut().chain(to).flatten().chain(when);
    for condition in conditions.filter(|condition| condition.attribute == Attribute::Path) {
        let Condition { values, not_values, .. } = condition;
        for value in values.iter_mut().chain(not_values) {
            if let ValueMatch::Exact(path)
            | ValueMatch::Prefix(path)
            | ValueMatch::Suffix(path)
            | ValueMatch::PathTemplate(path) = value
            {
                upper_escapes(path);
            }
        }
    }
}
