//! AuthorizationPolicies selected for a workload; what can't be understood fails closed.

use super::Findings;
use super::catalog::{Catalog, Item};
use super::objects::ObjectTable;
use super::own::{Own, Reach};
use super::provider::Named;
use crate::resource::Object;
use crate::resource::gateway_api::ParentKind;
use crate::resource::security::{AuthorizationPolicy, Scope, TargetKind, TargetRef};
use crate::snapshot::{self, AuthorizationAction, AuthorizationRule, Condition, Expires, ProviderIndex};
use crate::verdict::EXPIRY_FIELD;

/// The policies of a workload.
pub(super) struct Selected {
    pub(super) policies: Vec<snapshot::AuthorizationPolicy>,
    /// When the next of all policies expires.
    pub(super) next_expiry: Option<i64>,
}

pub(super) fn select<'a>(
    catalog: &Catalog<'a>,
    own: &Own<'_>,
    provider: impl Fn(&str) -> Named,
    now: i64,
    objects: &mut ObjectTable<'a>,
    findings: &mut Findings,
) -> Selected {
    let mut selected = Selected { policies: Vec::new(), next_expiry: None };
    for item in &catalog.authorization_policies {
        let provider = asked(item, &provider, findings);
        let expires = expiry(item, now, &mut selected.next_expiry, findings);
        let closed = match reach(catalog, item.object, &item.spec.scope, own, findings) {
            Reach::Here => item.quarantined,
            Reach::HereClosed => true,
            Reach::Elsewhere => continue,
        };
        selected
            .policies
            .push(snapshot::AuthorizationPolicy { provider, ..policy(item, closed, expires, objects) });
    }
    selected
}

fn policy<'a>(
    item: &Item<'a, AuthorizationPolicy>,
    closed: bool,
    expires: Option<Expires>,
    objects: &mut ObjectTable<'a>,
) -> snapshot::AuthorizationPolicy {
    let action = item.spec.action;
    let expired = expires.is_some_and(|expires| expires.past);
    let rules = match action {
        // An ALLOW that matches nothing still counts, so everything that nothing else allows is denied.
        AuthorizationAction::Allow if closed || expired => Vec::new(),
        AuthorizationAction::Deny | AuthorizationAction::Custom if closed => {
            vec![AuthorizationRule::default()]
        }
        AuthorizationAction::Audit if closed => Vec::new(),
        _ => item.spec.rules.clone(),
    };
    let object = objects.number(item.object);
    snapshot::AuthorizationPolicy {
        object,
        action,
        rules,
        dry_run: item.spec.dry_run,
        quarantined: closed,
        expires,
        provider: None,
    }
}

/// Whom a CUSTOM policy asks.
fn asked(
    item: &Item<'_, AuthorizationPolicy>,
    provider: impl Fn(&str) -> Named,
    findings: &mut Findings,
) -> Option<ProviderIndex> {
    let (name, line) = item.spec.provider.as_ref()?;
    let Named { index, early, problem } = provider(name);
    if let Some(problem) = problem {
        let message = format!("{problem}: what this policy matches is denied");
        findings.error(item.object, "spec.provider.name", *line, message);
    }
    if early && item.spec.rules.iter().any(asks_for_user) {
        let message = format!(
            "provider {name} is asked before the end user is authenticated, so a rule that asks for one matches nothing: \
             give the provider phase: after-authorization"
        );
        findings.warn(item.object, "spec.provider.name", *line, message);
    }
    if item.spec.dry_run {
        let message = "a dry-run CUSTOM policy asks nobody: records say only where it would have (provider-unavailable)";
        findings.warn(item.object, "spec.provider.name", *line, message.into());
    }
    index
}

/// Whether a rule can't match without an end user.
fn asks_for_user(rule: &AuthorizationRule) -> bool {
    let of_user = |condition: &Condition| condition.attribute.of_user() && !condition.values.is_empty();
    let every = |clauses: &[Vec<Condition>]| {
        !clauses.is_empty() && clauses.iter().all(|clause| clause.iter().any(of_user))
    };
    every(&rule.from) || every(&rule.to) || rule.when.iter().any(of_user)
}

/// So long before it expires a policy is warned of.
const NEAR_SECONDS: i64 = 3 * 24 * 3600;

fn expiry(
    item: &Item<'_, AuthorizationPolicy>,
    now: i64,
    next: &mut Option<i64>,
    findings: &mut Findings,
) -> Option<Expires> {
    let at = item.spec.expires.filter(|_| item.spec.action == AuthorizationAction::Allow)?;
    let expires = Expires { at, past: at <= now };
    let mut warn = |message| findings.warn(item.object, EXPIRY_FIELD, 0, message);
    if expires.past {
        warn(format!("has expired at {expires}: it still counts as an ALLOW policy and allows nothing"));
    } else {
        *next = Some(next.map_or(at, |next| next.min(at)));
        if at.saturating_sub(now) <= NEAR_SECONDS {
            warn(format!("expires at {expires}, and from then on allows nothing"));
        }
    }
    Some(expires)
}

/// How far an object of this scope reaches.
pub(super) fn reach(
    catalog: &Catalog<'_>,
    object: &Object,
    scope: &Scope,
    own: &Own<'_>,
    findings: &mut Findings,
) -> Reach {
    let in_scope = own.is_in_scope(&object.meta.namespace);
    let reach = match scope {
        Scope::All => Reach::Here,
        Scope::Unknown => Reach::HereClosed,
        Scope::Labels(selector) if in_scope => own.selected(object, selector, findings),
        Scope::Labels(_) => Reach::Elsewhere,
        Scope::Targets(targets) => {
            let mut widest = Reach::Elsewhere;
            for (index, target) in targets.iter().enumerate() {
                match target_reach(catalog, object, index, target, own, findings) {
                    Reach::Elsewhere => {}
                    Reach::HereClosed => widest = Reach::HereClosed,
                    Reach::Here if matches!(widest, Reach::Elsewhere) => widest = Reach::Here,
                    Reach::Here => {}
                }
            }
            widest
        }
    };
    // Of others, only what is wrong with them is told.
    if in_scope { reach } else { Reach::Elsewhere }
}

fn target_reach(
    catalog: &Catalog<'_>,
    object: &Object,
    index: usize,
    target: &TargetRef,
    own: &Own<'_>,
    findings: &mut Findings,
) -> Reach {
    let field = format!("spec.targetRefs[{index}]");
    let namespace = object.meta.namespace.as_str();
    let is_near = namespace == own.namespace;
    let here = |here| if here && is_near { Reach::Here } else { Reach::Elsewhere };
    let mut missing = |kind: &str| {
        let message = format!("no {kind} {}/{}; this target covers nothing", namespace, target.name);
        findings.error(object, &field, target.line, message);
        Reach::Elsewhere
    };
    match target.kind {
        TargetKind::Gateway if find(&catalog.gateways, namespace, &target.name).is_none() => {
            missing("Gateway")
        }
        TargetKind::Gateway => here(own.gateway.is_some_and(|(name, _)| name == target.name)),
        TargetKind::GatewayClass if namespace != own.root_namespace => {
            let message =
                format!("a policy for a GatewayClass is one of the root namespace, {}", own.root_namespace);
            findings.quarantined(object, &field, target.line, message);
            here(own.gateway.is_some_and(|(_, class)| class == Some(&target.name))).closed()
        }
        TargetKind::GatewayClass if own.gateway.is_some_and(|(_, class)| class == Some(&target.name)) => {
            Reach::Here
        }
        TargetKind::GatewayClass if !catalog.gateways.iter().any(|each| each.spec.class == target.name) => {
            let message = format!("no Gateway has class {}; this target covers nothing", target.name);
            findings.error(object, &field, target.line, message);
            Reach::Elsewhere
        }
        TargetKind::GatewayClass => Reach::Elsewhere,
        TargetKind::Service => match find(&catalog.services, namespace, &target.name) {
            Some(service) if is_near && !service.spec.selector.is_empty() => {
                own.selected(object, &service.spec.selector, findings)
            }
            Some(service) => here(own.serves(service.spec, &target.name)),
            None => missing("Service"),
        },
        TargetKind::ServiceEntry => match find(&catalog.service_entries, namespace, &target.name) {
            Some(entry) => match &entry.spec.selector {
                Some(selector) if is_near => own.selected(object, selector, findings),
                _ => Reach::Elsewhere,
            },
            None => missing("ServiceEntry"),
        },
        TargetKind::HttpRoute => match find(&catalog.routes, namespace, &target.name) {
            Some(route) if route.spec.parents.iter().all(|parent| parent.kind == ParentKind::Gateway) => {
                let message = "a policy for one HTTPRoute of a Gateway is not supported yet, so that route is not served; target the \
                     Gateway instead";
                findings.quarantined(object, &field, target.line, message.into());
                Reach::Elsewhere
            }
            Some(_) => {
                let message = "an HTTPRoute with a Service as parent is followed by clients, who can't be trusted to authorize \
                     themselves; target the Service instead (until then this policy fails closed for its namespace)";
                findings.quarantined(object, &field, target.line, message.into());
                Reach::HereClosed
            }
            None => missing("HTTPRoute"),
        },
    }
}

/// Lists of a catalog are sorted by namespace and name.
pub(super) fn find<'c, 'a, T>(
    items: &'c [Item<'a, T>],
    namespace: &str,
    name: &str,
) -> Option<&'c Item<'a, T>> {
    let index =
        items.binary_search_by(|item| (item.namespace(), item.name()).cmp(&(namespace, name))).ok()?;
    items.get(index)
}
