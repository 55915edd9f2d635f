//! AuthorizationPolicies compiled one by one, so that a mistake in one is that one's alone; and the order of all rules.

use std::borrow::Cow;

use control_client::snapshot::{self, AuthorizationAction, AuthorizationPolicy};

use super::CompileError;
use super::condition::TrustDomains;
use super::rule::Rule;

/// A policy and its rules, compiled.
pub(super) struct Compiled<'a> {
    pub(super) policy: Cow<'a, AuthorizationPolicy>,
    pub(super) rules: Vec<Rule>,
}

/// Compiles each policy; one that can't be is quarantined, as the control client does with what it can't read.
pub(super) fn understand<'a>(
    policy: &'a snapshot::Policy,
    domains: &TrustDomains,
) -> (Vec<Compiled<'a>>, Vec<CompileError>) {
    let mut refused = Vec::new();
    let compile = |each: &AuthorizationPolicy| -> Result<Vec<Rule>, CompileError> {
        each.rules.iter().map(|rule| Rule::compile(each, rule, domains, &policy.objects)).collect()
    };
    let policies = policy.authorization.iter().map(|each| match compile(each) {
        Ok(rules) => Compiled { policy: Cow::Borrowed(each), rules },
        Err(error) => {
            refused.push(error);
            let quarantined = quarantined(each);
            // It asks nothing any more that could fail again.
            let rules = compile(&quarantined).unwrap_or_default();
            Compiled { policy: Cow::Owned(quarantined), rules }
        }
    });
    (policies.collect(), refused)
}

/// What is in force of a policy that can't be understood: an ALLOW allows nothing, any other covers everything.
fn quarantined(policy: &AuthorizationPolicy) -> AuthorizationPolicy {
    let rules = match policy.action {
        AuthorizationAction::Allow => Vec::new(),
        _ => vec![snapshot::AuthorizationRule::default()],
    };
    AuthorizationPolicy { rules, quarantined: true, ..policy.clone() }
}

/// Rules by what follows from their match, each in order.
pub(super) struct Ordered {
    /// They decide.
    pub(super) enforced: Vec<Rule>,
    /// A provider is asked.
    pub(super) consulting: Vec<Rule>,
    /// Nothing is decided.
    pub(super) marking: Vec<Rule>,
}

/// All rules in order.
pub(super) fn in_order<'a>(rules: impl Iterator<Item = &'a Rule>) -> Ordered {
    let marks = |rule: &Rule| rule.label.dry_run || rule.label.action == AuthorizationAction::Audit;
    let (marking, deciding): (Vec<_>, Vec<_>) = rules.cloned().partition(marks);
    let (consulting, enforced) = deciding.into_iter().partition(|rule| rule.label.consults());
    let mut ordered = Ordered { enforced, consulting, marking };
    for rules in [&mut ordered.enforced, &mut ordered.consulting, &mut ordered.marking] {
        rules.sort_by_key(|rule| (order(rule.label.action), rule.label.policy));
        for (rank, rule) in rules.iter_mut().enumerate() {
            rule.label.rank = rank as u32;
        }
    }
    ordered
}

/// Istio's order of evaluation.
fn order(action: AuthorizationAction) -> u8 {
    match action {
        AuthorizationAction::Custom => 0,
        AuthorizationAction::Audit => 1,
        AuthorizationAction::Deny => 2,
        AuthorizationAction::Allow => 3,
    }
}
