//! RateLimits selected for a workload; what can't be understood refuses all that it selects.

use super::Findings;
use super::authorization::reach;
use super::catalog::{Catalog, Item};
use super::objects::ObjectTable;
use super::own::{Own, Reach};
use super::provider::NamedLimiter;
use crate::resource::rate_limit::{self, RateLimit};
use crate::snapshot::{self, GlobalLimit};

pub(super) fn select<'a>(
    catalog: &Catalog<'a>,
    own: &Own<'_>,
    limiter: impl Fn(&str) -> NamedLimiter,
    objects: &mut ObjectTable<'a>,
    findings: &mut Findings,
) -> Vec<snapshot::RateLimit> {
    let mut selected = Vec::new();
    for item in &catalog.rate_limits {
        // Its mistakes are told whether it is for this workload or not.
        let rules = rules(item, &limiter, findings);
        let quarantined = match reach(catalog, item.object, &item.spec.scope, own, findings) {
            Reach::Here => item.quarantined,
            Reach::HereClosed => true,
            Reach::Elsewhere => continue,
        };
        let rules = if quarantined { Vec::new() } else { rules };
        selected.push(snapshot::RateLimit { object: objects.number(item.object), rules, quarantined });
    }
    selected
}

fn rules(
    item: &Item<'_, RateLimit>,
    limiter: impl Fn(&str) -> NamedLimiter,
    findings: &mut Findings,
) -> Vec<snapshot::RateLimitRule> {
    let rule = |(number, rule): (usize, &rate_limit::Rule)| snapshot::RateLimitRule {
        matches: rule.matches.clone(),
        name: rule.name.clone(),
        key: rule.key.clone(),
        local: rule.local,
        global: rule.global.as_ref().map(|global| {
            let (name, line) = &global.provider;
            let NamedLimiter { index, problem } = limiter(name);
            if let Some(problem) = problem {
                let field = format!("spec.rules[{number}].global.provider");
                let message = format!("{problem}: what this rule matches is refused");
                findings.error(item.object, &field, *line, message);
            }
            GlobalLimit {
                limiter: index,
                domain: global.domain.clone(),
                fail_open: global.fail_open,
                hits_addend: global.hits_addend,
            }
        }),
    };
    item.spec.rules.iter().enumerate().map(rule).collect()
}
