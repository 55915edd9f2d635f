//! Rules of HTTPRoutes that no request reaches, or that lead nowhere.

use crate::keep::Objects;
use crate::resource::gateway_api::{HttpRoute, Rule};
use crate::resource::{Object, Resource};
use crate::snapshot::{PathMatch, RouteFilter, RouteMatch};
use crate::verdict::{Diagnostic, Severity, VerdictState};

/// So many matches of one route are compared with each other; of a route with more, nothing is said of them.
const MAX_MATCHES: usize = 256;

/// What to say of all routes.
pub(super) fn warnings(in_force: &Objects) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    for each in in_force.values().filter(|each| each.state != VerdictState::Quarantined) {
        if let Resource::HttpRoute(route) = &each.object.resource {
            warnings.extend(never_taken(&each.object, route));
            warnings.extend(weightless(&each.object, route));
        }
    }
    warnings
}

/// Of two equal matches the earlier takes the request.
fn never_taken(object: &Object, route: &HttpRoute) -> Vec<Diagnostic> {
    if route.rules.iter().map(|rule| rule.matches.len()).sum::<usize>() > MAX_MATCHES {
        return Vec::new();
    }
    let mut warnings = Vec::new();
    let mut before: Vec<(usize, RouteMatch)> = Vec::new();
    for (number, rule) in route.rules.iter().enumerate() {
        let own = matches(rule);
        let taken = |each: &RouteMatch| before.iter().find(|(_, other)| other == each).map(|(rule, _)| *rule);
        let by: Option<Vec<usize>> = own.iter().map(taken).collect();
        if let Some(first) = by.as_ref().and_then(|by| by.first()) {
            warnings.push(warn(
                object,
                number,
                rule.line,
                format!("never taken: rules[{first}] matches the same before"),
            ));
        }
        before.extend(own.into_iter().map(|each| (number, each)));
    }
    warnings
}

fn weightless(object: &Object, route: &HttpRoute) -> Vec<Diagnostic> {
    let rules = route.rules.iter().enumerate();
    let without = rules.filter(|(_, rule)| {
        !rule.backends.is_empty()
            && rule.backends.iter().all(|backend| backend.weight == 0)
            && !rule.filters.iter().any(|filter| matches!(filter, RouteFilter::Redirect(_)))
    });
    let message = "all its backendRefs have weight 0: what it matches is answered with 500";
    without.map(|(number, rule)| warn(object, number, rule.line, message.into())).collect()
}

/// What a rule matches, a prefix without its last `/`, which says nothing.
fn matches(rule: &Rule) -> Vec<RouteMatch> {
    if rule.matches.is_empty() {
        return matches(&Rule { matches: vec![RouteMatch::default()], ..Rule::default() });
    }
    let mut all = rule.matches.clone();
    for each in &mut all {
        if let PathMatch::Prefix(path) = &mut each.path {
            path.truncate(path.trim_end_matches('/').len());
        }
    }
    all
}

fn warn(object: &Object, number: usize, line: u32, message: String) -> Diagnostic {
    object.diagnostic(Severity::Warning, &format!("spec.rules[{number}]"), line, message)
}
