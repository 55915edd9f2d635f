//! Rules that do nothing, found by looking at policies beside each other: what can never match, what another rule does
//! already, what is denied whatever allows it, selectors and ports of nobody.
//!
//! Only what is certain is said. For `writ check`: nothing here changes what is in force.

mod beside_http;
mod covering;
mod never;
mod peers;
mod places;
mod routes;
mod values;

use std::collections::HashMap;

use covering::Covering;
use places::Places;
use values::{combinations, contradictory};

use crate::keep::Objects;
use crate::resource::mesh;
use crate::resource::rate_limit::RateLimit;
use crate::resource::security::{AuthorizationPolicy, RequestAuthentication, Scope};
use crate::resource::text::selects;
use crate::resource::{Object, Resource};
use crate::snapshot::{
    AuthorizationAction, AuthorizationRule, Condition, PathNormalization, ProviderProtocol,
};
use crate::verdict::{Diagnostic, Severity, VerdictState};

/// A policy in force.
struct Item<'a> {
    object: &'a Object,
    spec: &'a AuthorizationPolicy,
}

/// So many rules are compared with one that they may cover; what more would say is not said.
const MAX_COMPARED: usize = 256;

/// Everything that can be said of the objects in force.
pub(crate) fn warnings(in_force: &Objects) -> Vec<Diagnostic> {
    let found = Found::new(in_force);
    let mut warnings = Vec::new();
    for (at, item) in found.policies.iter().enumerate() {
        let own = Covering::new(item.spec.rules.iter());
        for (number, rule) in item.spec.rules.iter().enumerate() {
            match found.useless(at, &own, number, rule) {
                Some(why) => warnings.push(item.warn(number, why)),
                None => {
                    let ports = found.service_ports(item, rule);
                    let unmet = found.unmet(item, rule);
                    warnings.extend(ports.into_iter().chain(unmet).map(|message| item.warn(number, message)));
                }
            }
        }
        warnings.extend(found.selects_nobody(item));
    }
    warnings.extend(found.beside_http());
    warnings.extend(peers::warnings(in_force, found.root_namespace, &found.places));
    warnings.extend(routes::warnings(in_force));
    warnings.extend(in_force.values().filter_map(|each| found.is_nowhere(&each.object)));
    warnings
}

struct Found<'a> {
    root_namespace: &'a str,
    policies: Vec<Item<'a>>,
    authentications: Vec<(&'a Object, &'a RequestAuthentication)>,
    limits: Vec<(&'a Object, &'a RateLimit)>,
    /// Names of those that are asked by HTTP.
    http_providers: Vec<&'a str>,
    /// All rules of DENY policies in force, and where each is.
    denying: Covering<'a>,
    deny_rules: Vec<(usize, usize)>,
    /// Of rules that are alike, the first.
    alike: HashMap<Alike<'a>, (usize, usize)>,
    places: Places<'a>,
    /// RequestAuthentications, those that fail closed among them.
    asking: Vec<(&'a Object, &'a Scope)>,
    path_normalization: PathNormalization,
}

/// Rules that are equal here do the same.
#[derive(PartialEq, Eq, Hash)]
struct Alike<'a> {
    namespace: &'a str,
    scope: &'a Scope,
    action: AuthorizationAction,
    dry_run: bool,
    rule: [&'a [Vec<Condition>]; 2],
    when: &'a [Condition],
}

impl Item<'_> {
    fn namespace(&self) -> &str {
        &self.object.meta.namespace
    }

    fn name(&self) -> String {
        format!("{} {}/{}", self.object.meta.kind, self.namespace(), self.object.meta.name)
    }

    fn warn(&self, rule: usize, message: String) -> Diagnostic {
        let line = self.spec.rule_lines.get(rule).copied().unwrap_or_default();
        self.object.diagnostic(Severity::Warning, &format!("spec.rules[{rule}]"), line, message)
    }

    /// Whether it is for every workload that the other is for.
    fn is_wherever(&self, other: &Self, root_namespace: &str) -> bool {
        let everywhere = self.namespace() == root_namespace;
        if !everywhere && self.namespace() != other.namespace() {
            return false;
        }
        match (&self.spec.scope, &other.spec.scope) {
            (Scope::All, _) => true,
            (Scope::Labels(wide), Scope::Labels(narrow)) => selects(wide, narrow),
            (wide, narrow) => wide == narrow && self.namespace() == other.namespace(),
        }
    }
}

impl<'a> Item<'a> {
    fn alike(&self, rule: &'a AuthorizationRule) -> Alike<'a> {
        Alike {
            namespace: &self.object.meta.namespace,
            scope: &self.spec.scope,
            action: self.spec.action,
            dry_run: self.spec.dry_run,
            rule: [&rule.from, &rule.to],
            when: &rule.when,
        }
    }
}

impl<'a> Found<'a> {
    fn new(in_force: &'a Objects) -> Self {
        let (mut root_namespace, mut places) = ("istio-system", Places::default());
        let (mut policies, mut limits) = (Vec::new(), Vec::new());
        let (mut authentications, mut http_providers) = (Vec::new(), Vec::new());
        let mut path_normalization = PathNormalization::default();
        let mut asking = Vec::new();
        for each in in_force.values() {
            if let Resource::RequestAuthentication(spec) = &each.object.resource {
                asking.push((&*each.object, &spec.scope));
            }
        }
        let accepted = in_force.values().filter(|each| each.state != VerdictState::Quarantined);
        for object in accepted.map(|each| &*each.object) {
            match &object.resource {
                Resource::AuthorizationPolicy(spec) => policies.push(Item { object, spec }),
                Resource::RateLimit(spec) => limits.push((object, spec)),
                Resource::RequestAuthentication(spec) => authentications.push((object, spec)),
                Resource::MeshSettings(settings) => {
                    root_namespace = &settings.root_namespace;
                    path_normalization = settings.path_normalization;
                    http_providers = settings.providers.iter().filter_map(by_http).collect();
                }
                Resource::PeerAuthentication(_) => {}
                _ => places.add(object),
            }
        }
        let (mut deny_rules, mut alike) = (Vec::new(), HashMap::new());
        for (at, item) in policies.iter().enumerate() {
            let rules = item.spec.rules.iter().enumerate();
            if item.spec.action == AuthorizationAction::Deny && !item.spec.dry_run {
                deny_rules.extend(rules.clone().map(|(number, _)| (at, number)));
            }
            if item.spec.action != AuthorizationAction::Custom && item.spec.expires.is_none() {
                for (number, rule) in rules {
                    alike.entry(item.alike(rule)).or_insert((at, number));
                }
            }
        }
        let rule_at = |&(at, number): &(usize, usize)| {
            let item: &Item<'a> = &policies[at];
            &item.spec.rules[number]
        };
        let denying = Covering::new(deny_rules.iter().map(rule_at));
        Self {
            root_namespace,
            policies,
            authentications,
            limits,
            http_providers,
            denying,
            deny_rules,
            alike,
            places,
            asking,
            path_normalization,
        }
    }

    /// Why a rule changes nothing. `own`: the rules of its policy.
    fn useless(
        &self,
        at: usize,
        own: &Covering<'a>,
        number: usize,
        rule: &'a AuthorizationRule,
    ) -> Option<String> {
        let item = &self.policies[at];
        let combinations = combinations(rule)?;
        if let Some(why) = contradictory(&combinations) {
            // Of an opaque connection any but ALLOW asks less.
            let what = match item.spec.action {
                AuthorizationAction::Allow => "can never match",
                _ => "can match no request",
            };
            return Some(format!("{what}: {why}"));
        }
        let repeated = within_policy(own, number, &combinations).or_else(|| self.repeated(at, rule));
        if repeated.is_some() || item.spec.action != AuthorizationAction::Allow || item.spec.dry_run {
            return repeated;
        }
        let candidates = self.denying.candidates(&combinations).into_iter().take(MAX_COMPARED);
        let mut denying = candidates.filter_map(|deny| Some((deny, *self.deny_rules.get(deny as usize)?)));
        denying.find_map(|(deny, (other, denies))| {
            let other = &self.policies[other];
            let all =
                other.is_wherever(item, self.root_namespace) && self.denying.covers(deny, &combinations);
            all.then(|| format!("allows nothing: {} rule {denies} denies all that it matches", other.name()))
        })
    }

    /// An equal rule of an equal policy.
    fn repeated(&self, at: usize, rule: &'a AuthorizationRule) -> Option<String> {
        let &(other, same) = self.alike.get(&self.policies[at].alike(rule))?;
        let other = (other < at).then(|| &self.policies[other])?;
        Some(format!("changes nothing: {} rule {same} is the same", other.name()))
    }

    /// Ports that no workload has but a Service, and what to say of each.
    fn service_ports(&self, item: &Item<'_>, rule: &AuthorizationRule) -> Vec<String> {
        match &item.spec.scope {
            Scope::Labels(labels) if item.namespace() != self.root_namespace => {
                self.places.service_ports(item.namespace(), labels, rule)
            }
            _ => Vec::new(),
        }
    }

    /// A policy in a namespace of nobody, as one whose name is misspelt.
    fn is_nowhere(&self, object: &Object) -> Option<Diagnostic> {
        let namespace = &*object.meta.namespace;
        let is_policy = matches!(
            object.resource,
            Resource::AuthorizationPolicy(_)
                | Resource::PeerAuthentication(_)
                | Resource::RequestAuthentication(_)
                | Resource::RateLimit(_)
        );
        if !is_policy || namespace == self.root_namespace || !self.places.is_empty(namespace) {
            return None;
        }
        let message = format!("nothing else that is here is in namespace {namespace}, so this is for nobody");
        Some(object.diagnostic(Severity::Warning, "metadata.namespace", 0, message))
    }

    fn selects_nobody(&self, item: &Item<'_>) -> Option<Diagnostic> {
        let Scope::Labels(labels) = &item.spec.scope else { return None };
        if item.namespace() == self.root_namespace || !self.places.has_nobody(item.namespace(), labels) {
            return None;
        }
        let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        let message = format!("no Pod or WorkloadEntry that is here has {}", labels.join(", "));
        Some(item.object.diagnostic(Severity::Warning, "spec.selector", 0, message))
    }
}

/// Its name, if it is asked by HTTP.
fn by_http(provider: &mesh::Provider) -> Option<&str> {
    let protocol = &provider.asked.as_ref()?.protocol;
    matches!(protocol, ProviderProtocol::Http(_)).then_some(&provider.name)
}

/// Another rule of the same policy that does the same already.
fn within_policy(own: &Covering<'_>, number: usize, combinations: &[Vec<&Condition>]) -> Option<String> {
    let number = u32::try_from(number).ok()?;
    let other = own.candidates(combinations).into_iter().take(MAX_COMPARED).find(|&other| {
        other != number
            && own.covers(other, combinations)
            // Of two that match the same, the later one is told of.
            && (other < number || !own.covers(number, own.ways(other)))
    })?;
    Some(format!("changes nothing: rules[{other}] matches all that it matches"))
}

#[cfg(test)]
mod tests;
