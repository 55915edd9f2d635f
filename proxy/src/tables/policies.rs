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

/// Enforced and marking rules, each in order.
pub(super) fn in_order<'a>(rules: impl Iterator<Item = &'a Rule>) -> (Vec<Rule>, Vec<Rule>) {
    let marks = |rule: &Rule| rule.label.dry_run || rule.label.action == AuthorizationAction::Audit;
    let (mut marking, mut enforced): (Vec<_>, Vec<_>) = rules.cloned().partition(marks);
    for rules in [&mut enforced, &mut marking] {
        rules.sort_by_key(|rule| (order(rule.label.action), rule.label.policy));
        for (rank, rule) in rules.iter_mut().enumerate() {
            rule.label.rank = rank as u32;
        }
    }
    (enforced, marking)
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
