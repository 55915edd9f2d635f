//! Rules that do nothing, found by looking at policies beside each other: what can never match, what another rule does
//! already, what is denied whatever allows it, selectors and ports of nobody.
//!
//! Only what is certain is said. For `writ check`: nothing here changes what is in force.

use std::collections::BTreeMap;

use crate::keep::Objects;
use crate::resource::core::{Service, TargetPort};
use crate::resource::mesh::MeshSettings;
use crate::resource::rate_limit::RateLimit;
use crate::resource::security::{AuthorizationPolicy, Scope};
use crate::resource::text::selects;
use crate::resource::{Object, Resource};
use crate::snapshot::{Attribute, AuthorizationAction, AuthorizationRule, Condition, Protocol, ValueMatch};
use crate::verdict::{Diagnostic, Severity, VerdictState};

/// A policy in force.
struct Item<'a> {
    object: &'a Object,
    spec: &'a AuthorizationPolicy,
}

/// Something that policies can be for.
struct Workload<'a> {
    namespace: &'a str,
    labels: BTreeMap<&'a str, &'a str>,
    /// Ports that it declares by name.
    ports: Vec<u16>,
    is_pod: bool,
}

/// Combinations of `from` and `to` of one rule that are looked at; of a rule with more, nothing is said.
const MAX_COMBINATIONS: usize = 64;

/// Everything that can be said of the objects in force.
pub(crate) fn warnings(in_force: &Objects) -> Vec<Diagnostic> {
    let found = Found::new(in_force);
    let mut warnings = Vec::new();
    for item in &found.policies {
        for (number, rule) in item.spec.rules.iter().enumerate() {
            if let Some(why) = found.useless(item, number, rule) {
                warnings.push(item.warn(number, why));
            } else {
                found.service_ports(item, number, rule, &mut warnings);
            }
        }
        warnings.extend(found.selects_nobody(item));
    }
    warnings.extend(found.limits.iter().flat_map(|(object, limit)| found.uncounted(object, limit)));
    warnings
}

struct Found<'a> {
    root_namespace: &'a str,
    policies: Vec<Item<'a>>,
    limits: Vec<(&'a Object, &'a RateLimit)>,
    services: Vec<(&'a Object, &'a Service)>,
    workloads: Vec<Workload<'a>>,
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

impl<'a> Found<'a> {
    fn new(in_force: &'a Objects) -> Self {
        let mut found = Self {
            root_namespace: "istio-system",
            policies: Vec::new(),
            limits: Vec::new(),
            services: Vec::new(),
            workloads: Vec::new(),
        };
        let accepted = in_force.values().filter(|each| each.state != VerdictState::Quarantined);
        for object in accepted.map(|each| &*each.object) {
            let namespace = &*object.meta.namespace;
            let labels = || -> BTreeMap<&str, &str> {
                object.meta.labels.iter().map(|(key, value)| (&**key, &**value)).collect()
            };
            match &object.resource {
                Resource::AuthorizationPolicy(spec) => found.policies.push(Item { object, spec }),
                Resource::RateLimit(spec) => found.limits.push((object, spec)),
                Resource::Service(spec) => found.services.push((object, spec)),
                Resource::MeshSettings(MeshSettings { root_namespace, .. }) => {
                    found.root_namespace = root_namespace;
                }
                Resource::Pod(pod) => {
                    let ports = pod.ports.iter().map(|(_, port)| *port).collect();
                    found.workloads.push(Workload { namespace, labels: labels(), ports, is_pod: true });
                }
                Resource::WorkloadEntry(entry) => {
                    let mut labels = labels();
                    labels.extend(entry.labels.iter().map(|(key, value)| (&**key, &**value)));
                    let ports = entry.ports.values().copied().collect();
                    found.workloads.push(Workload { namespace, labels, ports, is_pod: false });
                }
                _ => {}
            }
        }
        found
    }

    /// Why a rule changes nothing.
    fn useless(&self, item: &Item<'_>, number: usize, rule: &AuthorizationRule) -> Option<String> {
        let combinations = combinations(rule)?;
        if let Some(why) = contradictory(&combinations) {
            // Of an opaque connection any but ALLOW asks less.
            let what = match item.spec.action {
                AuthorizationAction::Allow => "can never match",
                _ => "can match no request",
            };
            return Some(format!("{what}: {why}"));
        }
        let repeated = self.repeated(item, number, rule, &combinations);
        if repeated.is_some() || item.spec.action != AuthorizationAction::Allow || item.spec.dry_run {
            return repeated;
        }
        let mut denying = self.policies.iter().filter(|other| {
            other.spec.action == AuthorizationAction::Deny
                && !other.spec.dry_run
                && other.is_wherever(item, self.root_namespace)
        });
        denying.find_map(|other| {
            let denies = other.spec.rules.iter().position(|deny| covers(deny, &combinations))?;
            Some(format!("allows nothing: {} rule {denies} denies all that it matches", other.name()))
        })
    }

    /// What does the same already: a rule of the same policy, or an equal one of an equal policy.
    fn repeated(
        &self,
        item: &Item<'_>,
        number: usize,
        rule: &AuthorizationRule,
        combinations: &[Vec<&Condition>],
    ) -> Option<String> {
        let wider = item.spec.rules.iter().enumerate().find(|(other, wide)| {
            *other != number
                && covers(wide, combinations)
                // Of two that match the same, the later one is told of.
                && (*other < number || self::combinations(wide).is_none_or(|wide| !covers(rule, &wide)))
        });
        if let Some((other, _)) = wider {
            return Some(format!("changes nothing: rules[{other}] matches all that it matches"));
        }
        let before = self.policies.iter().take_while(|other| !std::ptr::eq(other.object, item.object));
        let mut alike = before.filter(|other| {
            (other.spec.action, other.spec.dry_run, &other.spec.scope)
                == (item.spec.action, item.spec.dry_run, &item.spec.scope)
                && item.spec.action != AuthorizationAction::Custom
                && other.namespace() == item.namespace()
                && other.spec.expires.is_none()
        });
        alike.find_map(|other| {
            let same =
                other.spec.rules.iter().position(|same| {
                    (&same.from, &same.to, &same.when) == (&rule.from, &rule.to, &rule.when)
                })?;
            Some(format!("changes nothing: {} rule {same} is the same", other.name()))
        })
    }

    /// `ports` are the workload's: one that only a Service has matches nothing.
    fn service_ports(
        &self,
        item: &Item<'_>,
        number: usize,
        rule: &AuthorizationRule,
        warnings: &mut Vec<Diagnostic>,
    ) {
        let Scope::Labels(labels) = &item.spec.scope else { return };
        if item.namespace() == self.root_namespace {
            return;
        }
        let selected: Vec<_> = self.selected(item.namespace(), labels).collect();
        let behind = |service: &Service| {
            !service.selector.is_empty() && selected.iter().any(|workload| workload.has(&service.selector))
        };
        let services: Vec<_> = self
            .services
            .iter()
            .filter(|(object, service)| object.meta.namespace == item.namespace() && behind(service))
            .collect();
        let targets: Option<Vec<u16>> = services
            .iter()
            .flat_map(|(_, service)| &service.ports)
            .map(|port| match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(_) => None,
            })
            .collect();
        // A name may stand for any number.
        let Some(targets) = targets else { return };
        let conditions = rule.to.iter().flatten().chain(&rule.when);
        let ports = conditions.filter(|condition| condition.attribute == Attribute::DestinationPort);
        for port in ports.flat_map(|condition| &condition.values) {
            let ValueMatch::Port(port) = port else { continue };
            let declared = selected.iter().any(|workload| workload.ports.contains(port));
            if declared || targets.contains(port) {
                continue;
            }
            let owner = services.iter().find_map(|(object, service)| {
                let of_service = service.ports.iter().find(|each| each.port == *port)?;
                Some((object, of_service))
            });
            if let Some((object, of_service)) = owner
                && let TargetPort::Number(target) = of_service.target
            {
                let message = format!(
                    "{port} is the port of Service {}; policies look at the workload's, which is {target} there",
                    object.meta.name
                );
                warnings.push(item.warn(number, message));
            }
        }
    }

    /// Only where Pods of the namespace are here: else what runs there is made by what isn't read, as Deployments are.
    fn selects_nobody(&self, item: &Item<'_>) -> Option<Diagnostic> {
        let Scope::Labels(labels) = &item.spec.scope else { return None };
        if item.namespace() == self.root_namespace {
            return None;
        }
        let is_here = |workload: &Workload<'_>| workload.is_pod && workload.namespace == item.namespace();
        if !self.workloads.iter().any(is_here) || self.selected(item.namespace(), labels).next().is_some() {
            return None;
        }
        let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        let message = format!("no Pod or WorkloadEntry that is here has {}", labels.join(", "));
        Some(item.object.diagnostic(Severity::Warning, "spec.selector", 0, message))
    }

    /// Rules that ask for something of HTTP, where a Service declares that what it sends is opaque.
    fn uncounted(&self, object: &Object, limit: &RateLimit) -> Vec<Diagnostic> {
        let Scope::Labels(labels) = &limit.scope else { return Vec::new() };
        let namespace = object.meta.namespace.as_str();
        let selected: Vec<_> = self.selected(namespace, labels).collect();
        let is_behind = |service: &Service| {
            !service.selector.is_empty() && selected.iter().any(|workload| workload.has(&service.selector))
        };
        let services = self.services.iter().filter(|(service, _)| service.meta.namespace == namespace);
        let mut opaque = services.filter(|(_, service)| is_behind(service)).filter_map(|(service, spec)| {
            let is_opaque = |port: &&crate::resource::core::ServicePort| {
                matches!(port.protocol, Some(Protocol::Tcp | Protocol::Tls))
            };
            Some((&service.meta.name, spec.ports.iter().find(is_opaque)?.port))
        });
        let Some((service, port)) = opaque.next() else { return Vec::new() };
        let rules = limit.rules.iter().enumerate().filter(|(_, rule)| rule.asks_of_http());
        let warn = |(number, rule): (usize, &crate::resource::rate_limit::Rule)| {
            let message = format!(
                "asks for something of HTTP, so that no connection to port {port} of Service {service} is counted: it is opaque"
            );
            object.diagnostic(Severity::Warning, &format!("spec.rules[{number}]"), rule.line, message)
        };
        rules.map(warn).collect()
    }

    fn selected(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> impl Iterator<Item = &Workload<'a>> {
        self.workloads.iter().filter(move |workload| workload.namespace == namespace && workload.has(labels))
    }
}

impl Workload<'_> {
    fn has(&self, selector: &BTreeMap<String, String>) -> bool {
        selector.iter().all(|(key, value)| self.labels.get(&**key) == Some(&&**value))
    }
}

/// Each way for a rule to match: one `from`, one `to`, and all of `when`. `None`: too many.
fn combinations(rule: &AuthorizationRule) -> Option<Vec<Vec<&Condition>>> {
    let one_of = |clauses: &'_ [Vec<Condition>]| clauses.len().max(1);
    if one_of(&rule.from) * one_of(&rule.to) > MAX_COMBINATIONS {
        return None;
    }
    let none: &[Condition] = &[];
    let mut all = Vec::new();
    for from in 0..one_of(&rule.from) {
        for to in 0..one_of(&rule.to) {
            let from = rule.from.get(from).map_or(none, Vec::as_slice);
            let to = rule.to.get(to).map_or(none, Vec::as_slice);
            all.push(from.iter().chain(to).chain(&rule.when).collect());
        }
    }
    Some(all)
}

/// Why none of the ways can be met; `None`: one may be.
fn contradictory(combinations: &[Vec<&Condition>]) -> Option<String> {
    let mut why = None;
    for conditions in combinations {
        why = Some(contradiction(conditions)?);
    }
    why
}

fn contradiction(conditions: &[&Condition]) -> Option<String> {
    for (at, condition) in conditions.iter().enumerate() {
        let excluded = |value: &ValueMatch| {
            // Positive and negative values of one source or operation are two conditions of one attribute.
            let same = conditions.iter().filter(|other| other.attribute == condition.attribute);
            let mut not = same.flat_map(|other| &other.not_values);
            not.any(|not| is_within(&condition.attribute, value, not))
        };
        if !condition.values.is_empty() && condition.values.iter().all(excluded) {
            return Some(format!("all values of {} are excluded as well", condition.field));
        }
        for other in &conditions[at + 1..] {
            let both = other.attribute == condition.attribute
                && has_one_value(&condition.attribute)
                && !condition.values.is_empty()
                && !other.values.is_empty();
            let apart = |value: &ValueMatch| {
                other
                    .values
                    .iter()
                    .all(|value_of_other| are_apart(&condition.attribute, value, value_of_other))
            };
            if both && condition.values.iter().all(apart) {
                return Some(format!("{} and {} have no value in common", condition.field, other.field));
            }
        }
    }
    None
}

/// Whether a rule matches whatever the others' ways match. It does so condition by condition, so that this holds also of
/// opaque connections, of which rules ask less.
fn covers(wide: &AuthorizationRule, narrow: &[Vec<&Condition>]) -> bool {
    let Some(ways) = combinations(wide) else { return false };
    let implied =
        |condition: &Condition, given: &[&Condition]| given.iter().any(|given| implies(given, condition));
    narrow.iter().all(|given| ways.iter().any(|way| way.iter().all(|condition| implied(condition, given))))
}

/// Whether what meets the one condition meets the other.
fn implies(given: &Condition, wanted: &Condition) -> bool {
    if given.attribute != wanted.attribute {
        return false;
    }
    let attribute = &given.attribute;
    let within =
        |value: &ValueMatch, list: &[ValueMatch]| list.iter().any(|wide| is_within(attribute, value, wide));
    let positive = wanted.values.is_empty()
        || (!given.values.is_empty() && given.values.iter().all(|value| within(value, &wanted.values)));
    let negative = wanted.not_values.iter().all(|not| {
        let apart = !given.values.is_empty()
            && has_one_value(attribute)
            && given.values.iter().all(|value| are_apart(attribute, value, not));
        apart || within(not, &given.not_values)
    });
    positive && negative
}

/// Attributes that are one text, address or number, and not a list of them.
fn has_one_value(attribute: &Attribute) -> bool {
    !matches!(
        attribute,
        Attribute::RequestAudiences | Attribute::RequestClaim(_) | Attribute::SourceNamespace
    )
}

/// Whether the wide value matches whatever the narrow one matches.
fn is_within(attribute: &Attribute, narrow: &ValueMatch, wide: &ValueMatch) -> bool {
    use ValueMatch::{Cidr, Exact, PathTemplate, Prefix, Suffix};
    if narrow == wide {
        return true;
    }
    if let (Cidr(narrow), Cidr(wide)) = (narrow, wide) {
        return wide.contains(narrow);
    }
    if !is_plain_text(attribute) {
        return false;
    }
    let fold = |text: &str| match attribute {
        Attribute::Host => text.to_ascii_lowercase(),
        _ => text.to_owned(),
    };
    match (narrow, wide) {
        (Exact(text), ValueMatch::Present) => !text.is_empty(),
        (Prefix(text) | Suffix(text), ValueMatch::Present) => !text.is_empty(),
        (PathTemplate(_), ValueMatch::Present) => true,
        (Exact(text), Exact(other)) => fold(text) == fold(other),
        (Exact(text) | Prefix(text), Prefix(prefix)) => fold(text).starts_with(&fold(prefix)),
        (Exact(text) | Suffix(text), Suffix(suffix)) => fold(text).ends_with(&fold(suffix)),
        (PathTemplate(template), Prefix(prefix)) => {
            template.split('{').next().is_some_and(|literal| literal.starts_with(&**prefix))
        }
        _ => false,
    }
}

/// Whether no text, address or number matches both.
fn are_apart(attribute: &Attribute, a: &ValueMatch, b: &ValueMatch) -> bool {
    use ValueMatch::{Cidr, Exact, Port, Prefix, Suffix};
    match (a, b) {
        (Port(a), Port(b)) => return a != b,
        (Cidr(a), Cidr(b)) => return !a.contains(b) && !b.contains(a),
        _ => {}
    }
    if !is_plain_text(attribute) {
        return false;
    }
    let fold = |text: &str| match attribute {
        Attribute::Host => text.to_ascii_lowercase(),
        _ => text.to_owned(),
    };
    match (a, b) {
        (Exact(a), Exact(b)) => fold(a) != fold(b),
        (Exact(text), Prefix(prefix)) | (Prefix(prefix), Exact(text)) => {
            !fold(text).starts_with(&fold(prefix))
        }
        (Exact(text), Suffix(suffix)) | (Suffix(suffix), Exact(text)) => !fold(text).ends_with(&fold(suffix)),
        (Prefix(a), Prefix(b)) => {
            let (a, b) = (fold(a), fold(b));
            !a.starts_with(&b) && !b.starts_with(&a)
        }
        _ => false,
    }
}

/// Attributes whose values mean what they say: a principal's trust domain stands for others as well.
fn is_plain_text(attribute: &Attribute) -> bool {
    matches!(
        attribute,
        Attribute::Host | Attribute::Method | Attribute::Path | Attribute::Header(_) | Attribute::Sni
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::keep::{self, Files};
    use crate::resource;

    /// `LINE FIELD: MESSAGE` of each warning.
    fn warned(yaml: &str) -> Vec<String> {
        let name: Arc<str> = Arc::from("test");
        let file = resource::read_file(&name, yaml);
        assert!(file.objects.iter().all(|object| object.good), "{:?}", file.objects);
        let in_force = keep::update(&Objects::new(), &Files::from([(name, Arc::new(file))]));
        let shown = |found: Diagnostic| {
            let (line, field) = (found.line.unwrap(), found.field);
            format!("{line} {field}: {}", found.message)
        };
        warnings(&in_force).into_iter().map(shown).collect()
    }

    fn policy(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: foo}}\nspec:\n{spec}\n---\n"
        )
    }

    #[test]
    fn what_can_never_match() {
        for (rule, why) in [
            (
                "{to: [{operation: {methods: [GET], notMethods: [GET]}}]}",
                "all values of to.methods are excluded",
            ),
            (
                "{to: [{operation: {paths: [/a/b], notPaths: ['/a*']}}]}",
                "all values of to.paths are excluded",
            ),
            (
                "{to: [{operation: {ports: ['80']}}], when: [{key: destination.port, values: ['90']}]}",
                "no value in common",
            ),
            (
                "{from: [{source: {ipBlocks: [10.0.0.0/8]}}], when: [{key: source.ip, values: [192.0.2.1]}]}",
                "no value in common",
            ),
            ("{when: [{key: 'request.headers[a]', values: [x], notValues: ['*']}]}", "are excluded"),
        ] {
            let found = warned(&policy("p", &format!("  rules:\n  - {rule}")));
            assert!(
                found.len() == 1 && found[0].starts_with("6 spec.rules[0]: can never match"),
                "{rule}: {found:?}"
            );
            assert!(found[0].contains(why), "{rule}: {found:?}");
        }
    }

    #[test]
    fn a_deny_rule_that_no_request_meets_may_still_refuse_opaque_connections() {
        const NONE: &str = "to: [{operation: {methods: [GET], notMethods: [GET]}}]";
        let found = warned(&policy("p", &format!("  action: DENY\n  rules:\n  - {NONE}")));
        assert!(found.len() == 1 && found[0].contains("can match no request"), "{found:?}");
        // One of its ways can't be met by a request; of a connection it refuses all, the other rule only what 80 gets.
        let some = format!(
            "  action: DENY\n  rules:\n  - to: [{{operation: {{ports: ['80']}}}}]\n  - {}",
            NONE.replace("]}}]", "]}}, {operation: {ports: ['80'], methods: [GET]}}]")
        );
        assert_eq!(warned(&policy("p", &some)), [""; 0]);
    }

    #[test]
    fn what_another_rule_does_already() {
        let inside = policy(
            "p",
            "  rules:\n  - to: [{operation: {paths: ['/a*']}}]\n  - to: [{operation: {paths: [/a/b], methods: [GET]}}]",
        );
        assert_eq!(
            warned(&inside),
            ["7 spec.rules[1]: changes nothing: rules[0] matches all that it matches"]
        );
        let twice = policy("a", "  rules: [{to: [{operation: {methods: [GET]}}]}]")
            + &policy("b", "  rules: [{to: [{operation: {methods: [GET]}}]}]");
        let found = warned(&twice);
        assert!(
            found.len() == 1 && found[0].contains("AuthorizationPolicy foo/a rule 0 is the same"),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_denied_whatever_allows_it() {
        let allow = "  selector: {matchLabels: {app: a}}\n  rules:\n  - from: [{source: {namespaces: [bar]}}]\n    to: [{operation: {paths: [/admin/x, '/admin/y/*']}}]";
        let deny = |spec: &str| policy("d", &format!("  action: DENY\n{spec}"));
        let found =
            warned(&(policy("a", allow) + &deny("  rules: [{to: [{operation: {paths: ['/admin/*']}}]}]")));
        assert_eq!(
            found,
            ["7 spec.rules[0]: allows nothing: AuthorizationPolicy foo/d rule 0 denies all that it matches"]
        );
        for narrower in [
            "  rules: [{to: [{operation: {paths: ['/admin/x*']}}]}]",
            "  rules: [{to: [{operation: {paths: ['/admin/*'], notPaths: [/admin/x]}}]}]",
            "  rules: [{from: [{source: {namespaces: [other]}}]}]",
            "  rules: [{to: [{operation: {paths: ['/admin/*'], methods: [GET]}}]}]",
            "  selector: {matchLabels: {app: b}}\n  rules: [{}]",
        ] {
            assert_eq!(warned(&(policy("a", allow) + &deny(narrower))), [""; 0], "{narrower}");
        }
    }

    #[test]
    fn what_is_not_certain_is_not_said() {
        for spec in [
            // The same claim may hold both.
            "  rules: [{when: [{key: 'request.auth.claims[a]', values: [x]}, {key: 'request.auth.claims[a]', values: [y]}]}]",
            // Another trust domain may be ours as well.
            "  rules:\n  - from: [{source: {principals: ['cluster.local/ns/a/sa/b']}}]\n  - from: [{source: {principals: ['cluster.local/*']}}]",
            "  rules:\n  - to: [{operation: {paths: ['/a/{*}']}}]\n  - to: [{operation: {paths: ['/a/b']}}]",
            "  rules:\n  - to: [{operation: {methods: [GET]}}]\n  - from: [{source: {namespaces: [a]}}]",
            "  selector: {matchLabels: {app: a}}\n  rules: [{}]",
        ] {
            assert_eq!(warned(&policy("p", spec)), [""; 0], "{spec}");
        }
    }

    #[test]
    fn selectors_and_ports_of_nobody() {
        const CLUSTER: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a-1, namespace: foo, labels: {app: a}}\nspec: {serviceAccountName: a}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: foo}\nspec: {selector: {app: a}, ports: [{port: 80, targetPort: 8080}]}\n---\n";
        let of = |label: &str, port: &str| {
            let spec = format!(
                "  selector: {{matchLabels: {{app: {label}}}}}\n  rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]"
            );
            warned(&(CLUSTER.to_owned() + &policy("p", &spec)))
        };
        assert_eq!(of("a", "8080"), [""; 0]);
        assert_eq!(of("a", "9999"), [""; 0], "a workload may listen where no Service sends");
        let found = of("a", "80");
        assert!(
            found[0].ends_with(
                "80 is the port of Service a; policies look at the workload's, which is 8080 there"
            ),
            "{found:?}"
        );
        let found = of("b", "8080");
        assert!(
            found[0].ends_with("spec.selector: no Pod or WorkloadEntry that is here has app: b"),
            "{found:?}"
        );
        assert_eq!((found.len(), of("a", "80").len()), (1, 1));
        // What a Deployment makes isn't read.
        let entry = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: foo}\nspec: {address: 192.0.2.1, labels: {app: vm}}\n---\n";
        let made = policy("p", "  selector: {matchLabels: {app: made}}\n  rules: [{}]");
        assert_eq!(warned(&(entry.to_owned() + &made)), [""; 0]);
    }

    #[test]
    fn limits_of_requests_count_no_opaque_connections() {
        let cluster = |name: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: a-1, namespace: foo, labels: {{app: a}}}}\nspec: {{serviceAccountName: a}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: foo}}\nspec: {{selector: {{app: a}}, ports: [{{name: {name}, port: 80}}]}}\n---\n"
            )
        };
        let limit = |rule: &str| {
            format!(
                "apiVersion: writ.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: r, namespace: foo}}\nspec:\n  selector: {{matchLabels: {{app: a}}}}\n  rules:\n  - {{{rule}, local: {{requests: 1, per: 1s}}}}\n"
            )
        };
        let by_path = limit("key: [source.ip, request.path]");
        let found = warned(&(cluster("tcp-db") + &by_path));
        assert!(
            found.len() == 1 && found[0].contains("spec.rules[0]: asks for something of HTTP"),
            "{found:?}"
        );
        assert_eq!(warned(&(cluster("http") + &by_path)), [""; 0]);
        for rule in ["key: [source.ip]", "key: [remote.ip], when: [{key: source.namespace, values: [b]}]"] {
            assert_eq!(warned(&(cluster("tcp-db") + &limit(rule))), [""; 0], "{rule}");
        }
    }
}
