//! Paths and hosts of policies and routes in the form that those of requests have when they are matched.

use crate::resource::text::upper_escapes;
use crate::snapshot::{
    Attribute, AuthorizationRule, Condition, PathMatch, PathNormalization, Policy, ValueMatch,
};

/// Writes hosts as [`hosts_without_ports`] says, and the digits of escapes in upper case (RFC 3986 section 6.2.2.1) where normalization does so with requests.
/// Patterns stay as they are.
pub(super) fn apply(policy: &mut Policy) {
    if policy.gateway.is_some() {
        hosts_without_ports(policy);
    }
    if policy.mesh.path_normalization == PathNormalization::None {
        return;
    }
    rules(policy).for_each(paths);
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

/// Which port a caller writes behind a host is its own choice, and no listener of a Gateway looks at it: hosts are compared
/// without, so that none slips by with one.
fn hosts_without_ports(policy: &mut Policy) {
    for value in rules(policy).flat_map(|rule| values(rule, Attribute::Host)) {
        match value {
            ValueMatch::Exact(host) | ValueMatch::Suffix(host) => {
                let without = before_port(host).map(str::to_owned);
                *host = without.unwrap_or_else(|| std::mem::take(host));
            }
            ValueMatch::Prefix(host) => {
                if let Some(whole) = before_port(host) {
                    *value = ValueMatch::Exact(whole.to_owned());
                }
            }
            _ => {}
        }
    }
}

/// A host before the colon of its port, or of the port's beginning.
fn before_port(host: &str) -> Option<&str> {
    let (name, port) = host.rsplit_once(':')?;
    // In brackets a colon is the address's own.
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
    (is_port && !name.is_empty() && (!name.contains(':') || name.ends_with(']'))).then_some(name)
}

/// Rules that look at requests.
fn rules(policy: &mut Policy) -> impl Iterator<Item = &mut AuthorizationRule> {
    let authorization = policy.authorization.iter_mut().flat_map(|each| &mut each.rules);
    let limits = policy.rate_limits.iter_mut().flat_map(|each| &mut each.rules);
    authorization.chain(limits.map(|rule| &mut rule.matches))
}

/// What a rule compares an attribute with.
fn values(rule: &mut AuthorizationRule, attribute: Attribute) -> impl Iterator<Item = &mut ValueMatch> {
    let AuthorizationRule { from, to, when, .. } = rule;
    let conditions = from.iter_mut().chain(to).flatten().chain(when);
    let of_it = conditions.filter(move |condition| condition.attribute == attribute);
    of_it.flat_map(|Condition { values, not_values, .. }| values.iter_mut().chain(not_values))
}

fn paths(rule: &mut AuthorizationRule) {
    for value in values(rule, Attribute::Path) {
        if let ValueMatch::Exact(path)
        | ValueMatch::Prefix(path)
        | ValueMatch::Suffix(path)
        | ValueMatch::PathTemplate(path) = value
        {
            upper_escapes(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_hosts_are_found() {
        for (host, expected) in [
            ("a.test:8080", Some("a.test")),
            ("a.test:", Some("a.test")),
            (".test:1", Some(".test")),
            ("[::1]:80", Some("[::1]")),
            ("a.test", None),
            ("[::1]", None),
            (":80", None),
            ("a.test:x", None),
        ] {
            assert_eq!(before_port(host), expected, "{host}");
        }
    }
}
