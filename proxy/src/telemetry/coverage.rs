//! Coverage: which rules in force anything ever met, and what no policy decided. What `/coverage` and its metrics say.

use std::collections::HashMap;
use std::sync::Arc;

use control_client::snapshot::{ObjectIndex, Policy};
use serde_json::{Value, json};

use super::cells::{Cells, NoPolicy, PolicyName};
use super::status::ConfigStatus;

/// The rules in force and how often each was met since the proxy started, under whatever configuration.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    pub(super) rules: Vec<RuleHits>,
}

/// A rule of an AuthorizationPolicy, RateLimit or HTTPRoute.
#[derive(Debug)]
pub(super) struct RuleHits {
    pub(super) policy: PolicyName,
    /// Requests and connections that it decided, routed or (AUDIT, dry run) marked. An AuthorizationPolicy rule that
    /// matches what another one decides before it is not met. A RateLimit's are those that it refused.
    pub(super) hits: u64,
}

impl Coverage {
    pub(super) fn of(config: &ConfigStatus, workers: &[Arc<Cells>]) -> Self {
        let Some(policy) = &config.policy else { return Self::default() };
        let hits = hits(workers);
        let rules = rules(policy)
            .map(|policy| RuleHits { hits: hits.get(&policy).copied().unwrap_or_default(), policy });
        Self { rules: rules.collect() }
    }

    /// As `/coverage` shows it: what was never met first.
    pub(super) fn to_json(&self, config: &ConfigStatus, workers: &[Arc<Cells>]) -> Value {
        let (never, met): (Vec<_>, Vec<_>) = self.rules.iter().partition(|rule| rule.hits == 0);
        let named = |rule: &&RuleHits| {
            let PolicyName { kind, namespace, name, rule: number } = &rule.policy;
            json!({ "kind": kind, "namespace": namespace, "name": name, "rule": number })
        };
        let counted = |rule: &&RuleHits| {
            let mut named = named(rule);
            named["hits"] = rule.hits.into();
            named
        };
        json!({
            "version": config.version,
            "digest": config.digest,
            "never_hit": never.iter().map(named).collect::<Vec<_>>(),
            "hit": met.iter().map(counted).collect::<Vec<_>>(),
            "no_policy": no_policy(workers),
        })
    }
}

/// Every rule in force, in the order of its objects.
fn rules(policy: &Policy) -> impl Iterator<Item = PolicyName> {
    let authorization = policy
        .authorization
        .iter()
        .flat_map(|each| each.rules.iter().map(move |rule| (each.object, rule.index)));
    let limits = policy
        .rate_limits
        .iter()
        .flat_map(|each| each.rules.iter().map(move |rule| (each.object, rule.matches.index)));
    let ports = policy.services.iter().flat_map(|service| &service.ports);
    let routes = ports.flat_map(|port| port.routes.iter().map(|rule| (rule.object, rule.rule)));
    let mut all: Vec<(ObjectIndex, u16)> = authorization.chain(limits).chain(routes).collect();
    // A route may have several services as parents.
    all.sort_unstable();
    all.dedup();
    all.into_iter().filter_map(|(object, rule)| {
        let object = policy.objects.get(object as usize)?;
        Some(PolicyName {
            kind: object.kind.clone(),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            rule: Some(rule),
        })
    })
}

fn hits(workers: &[Arc<Cells>]) -> HashMap<PolicyName, u64> {
    const ROUTE: &str = "HTTPRoute";
    let mut hits = HashMap::new();
    let mut add = |policy: Option<PolicyName>, count: u64| {
        if let Some(policy) = policy {
            *hits.entry(policy).or_default() += count;
        }
    };
    for cells in workers {
        for (traffic, cell) in cells.traffic.all() {
            add(traffic.route, cell.count.value());
        }
        for (verdict, count) in cells.verdicts.all() {
            // What a route decided is counted as its traffic.
            add(verdict.policy.filter(|policy| policy.kind != ROUTE), count.value());
        }
        for (mark, count) in cells.marks.all() {
            add(Some(mark.policy), count.value());
        }
    }
    hits
}

fn no_policy(workers: &[Arc<Cells>]) -> Vec<Value> {
    let mut counts: HashMap<NoPolicy, u64> = HashMap::new();
    for (uncovered, count) in workers.iter().flat_map(|cells| cells.no_policy.all()) {
        *counts.entry(uncovered).or_default() += count.value();
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|a, b| (a.0.side, &a.0.service).cmp(&(b.0.side, &b.0.service)));
    let shown = counts.into_iter().map(|(NoPolicy { side, service }, count)| {
        let mut shown = json!({ "side": side.as_str(), "count": count });
        if let Some(service) = service {
            shown["service"] = (*service).into();
        }
        shown
    });
    shown.collect()
}
