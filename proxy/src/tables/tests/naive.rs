//! The naive twin: reads the policy rule by rule, in the order and with the regular expressions that Istio renders.
//! Shares no code with the tables but the words of the result.

use std::cell::RefCell;
use std::collections::HashMap;

use control_client::snapshot::*;
use regex::Regex;
use smallvec::SmallVec;

use crate::decision::Shadow;
use crate::decision::{CheckOutcome, CheckResult, Outcome, PolicyRef, Reason};
use crate::tables::{Authorization, ConnectionAttributes, RequestAttributes};

/// A connection, and the request on it unless it is opaque.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) policy: &'a Policy,
    pub(super) connection: &'a ConnectionAttributes<'a>,
    pub(super) request: Option<&'a RequestAttributes<'a>>,
}

impl Call<'_> {
    pub(super) fn authorize(self) -> Authorization {
        let mut policies: Vec<_> = self.policy.authorization.iter().collect();
        policies.sort_by_key(|each| each.object);
        let mut authorization = self.enforce(&policies);
        let matched = |each: &&AuthorizationPolicy| self.first_match(each).map(|rule| reference(each, rule));
        let audits =
            policies.iter().filter(|each| each.action == AuthorizationAction::Audit && !each.dry_run);
        authorization.audit = audits.filter_map(matched).min().unwrap_or(PolicyRef::NONE);
        authorization.shadow = self.shadow(&policies);
        authorization
    }

    fn enforce(self, policies: &[&AuthorizationPolicy]) -> Authorization {
        use AuthorizationAction::{Allow, Custom, Deny};
        for action in [Custom, Deny, Allow] {
            for policy in policies.iter().filter(|each| each.action == action && !each.dry_run) {
                if let Some(rule) = self.first_match(policy) {
                    return by_rule(policy, rule, self.request.is_some() && has_user(rule));
                }
            }
        }
        let allow = || policies.iter().filter(|each| each.action == Allow && !each.dry_run);
        if allow().next().is_none() {
            let check = |reason| CheckResult::new(CheckOutcome::NotRequired, reason, PolicyRef::NONE);
            let (service, user) = (check(Reason::NoPolicy), check(Reason::NoUserCondition));
            return result(Outcome::Allow, Reason::NoPolicy, PolicyRef::NONE, service, user);
        }
        let (reason, by) = match allow().find(|each| each.quarantined) {
            Some(policy) => (Reason::QuarantinedPolicy, PolicyRef::object(policy.object)),
            None => (Reason::NoAllowMatched, PolicyRef::NONE),
        };
        let fail = CheckResult::new(CheckOutcome::Fail, reason, by);
        let mut parts = allow().flat_map(|each| each.rules.iter().map(move |rule| (each, rule)));
        let service_part = parts.find(|(each, rule)| {
            self.request.is_some() && has_user(rule) && self.matches(each.action, &without_user(rule))
        });
        let (service, user) = match service_part {
            Some((policy, rule)) => {
                let part = reference(policy, rule);
                (CheckResult::new(CheckOutcome::Pass, Reason::MatchedAllow, part), fail)
            }
            None => (fail, CheckResult::NOT_REACHED),
        };
        result(Outcome::Deny, reason, by, service, user)
    }

    /// After a refusal by nobody: the ALLOW policies with the most conditions that hold in one rule, each with the field
    /// of the first that does not; and how many more there are.
    pub(super) fn considered(self, limit: usize) -> (Vec<(PolicyRef, Option<String>)>, usize) {
        let mut policies: Vec<_> = self.policy.authorization.iter().collect();
        policies.retain(|each| each.action == AuthorizationAction::Allow && !each.dry_run);
        policies.sort_by_key(|each| each.object);
        let mut misses: Vec<_> = policies
            .iter()
            .map(|policy| {
                let rules = policy.rules.iter().map(|rule| (self.passed(rule), rule));
                // The first of those that are equally near.
                match rules.rev().max_by_key(|((passed, _), _)| *passed) {
                    Some(((passed, failed), rule)) => (passed, reference(policy, rule), Some(failed)),
                    None => (0, PolicyRef::object(policy.object), None),
                }
            })
            .collect();
        misses.sort_by_key(|(passed, ..)| usize::MAX - passed);
        let others = misses.len().saturating_sub(limit);
        misses.truncate(limit);
        (misses.into_iter().map(|(_, policy, failed)| (policy, failed)).collect(), others)
    }

    /// How many conditions of a rule that does not match hold, and the field of the first that does not.
    fn passed(self, rule: &AuthorizationRule) -> (usize, String) {
        // An opaque connection has nothing of HTTP to hold.
        let holds = |condition: &Condition| {
            !(self.request.is_none() && http_only(condition)) && self.holds(condition)
        };
        let clause = |clause: &Vec<Condition>| {
            let failed: Vec<_> = clause.iter().filter(|condition| !holds(condition)).collect();
            (clause.len() - failed.len(), failed.first().map(|condition| condition.field.clone()))
        };
        let nearest = |clauses: &Vec<Vec<Condition>>| {
            let asked: Vec<_> = clauses.iter().map(clause).collect();
            let whole = asked.iter().filter(|(_, failed)| failed.is_none());
            let parts = asked.iter().filter(|(_, failed)| failed.is_some());
            let most = |of: Vec<&(usize, Option<String>)>| {
                of.into_iter().rev().max_by_key(|(passed, _)| *passed).cloned()
            };
            most(whole.collect()).or_else(|| most(parts.collect())).unwrap_or((0, None))
        };
        let (from, to, when) = (nearest(&rule.from), nearest(&rule.to), clause(&rule.when));
        // Where nothing else fails, what an opaque connection lacks does.
        let all = || rule.from.iter().chain(&rule.to).chain([&rule.when]).flatten();
        let of_http =
            || all().find(|condition| http_only(condition)).map(|condition| condition.field.clone());
        (from.0 + to.0 + when.0, from.1.or(to.1).or(when.1).or_else(of_http).unwrap())
    }

    fn shadow(self, policies: &[&AuthorizationPolicy]) -> SmallVec<[Shadow; 1]> {
        use AuthorizationAction::{Allow, Audit, Custom, Deny};
        let mut shadow = SmallVec::new();
        for action in [Custom, Audit, Deny, Allow] {
            for policy in policies.iter().filter(|each| each.action == action && each.dry_run) {
                let (outcome, reason) = match action {
                    Custom => (Outcome::Deny, Reason::ProviderUnavailable),
                    Deny => (Outcome::Deny, Reason::MatchedDeny),
                    Allow | Audit => (Outcome::Allow, Reason::MatchedAllow),
                };
                if let Some(rule) = self.first_match(policy) {
                    shadow.push(Shadow { policy: reference(policy, rule), outcome, reason });
                }
            }
        }
        let mut allow = policies.iter().filter(|each| each.action == Allow && each.dry_run);
        if let Some(first) = allow.next()
            && !policies
                .iter()
                .any(|each| each.action == Allow && each.dry_run && self.first_match(each).is_some())
        {
            let (outcome, reason) = (Outcome::Deny, Reason::NoAllowMatched);
            shadow.insert(0, Shadow { policy: PolicyRef::object(first.object), outcome, reason });
        }
        shadow.truncate(8);
        shadow
    }

    fn first_match(self, policy: &AuthorizationPolicy) -> Option<&AuthorizationRule> {
        policy.rules.iter().find(|rule| self.matches(policy.action, rule))
    }

    fn matches(self, action: AuthorizationAction, rule: &AuthorizationRule) -> bool {
        let all = || rule.from.iter().chain(&rule.to).flatten().chain(&rule.when);
        if self.request.is_none() && action == AuthorizationAction::Allow && all().any(http_only) {
            return false;
        }
        let clause = |clause: &Vec<Condition>| clause.iter().all(|condition| self.holds(condition));
        (rule.from.is_empty() || rule.from.iter().any(clause))
            && (rule.to.is_empty() || rule.to.iter().any(clause))
            && clause(&rule.when)
    }

    fn holds(self, condition: &Condition) -> bool {
        if self.request.is_none() && http_only(condition) {
            return true;
        }
        let any = |values: &[ValueMatch]| values.iter().any(|value| self.value(&condition.attribute, value));
        (condition.values.is_empty() || any(&condition.values)) && !any(&condition.not_values)
    }

    fn value(self, attribute: &Attribute, value: &ValueMatch) -> bool {
        let connection = self.connection;
        let request = self.request;
        let user = request.and_then(|request| request.user);
        let identity = connection.source_identity;
        let text = |text: Option<String>| text.is_some_and(|text| string_match(&written(value), &text));
        let texts = |list: Vec<String>| list.into_iter().any(|each| text(Some(each)));
        match attribute {
            Attribute::SourcePrincipal => identity.is_some_and(|id| self.principal(&written(value), id)),
            Attribute::SourceNamespace => identity.is_some_and(|id| {
                regex(&format!(".*/ns/{}/.*", quoted(&written(value)).replace(r"\*", ".*")), id)
            }),
            Attribute::SourceServiceAccount => identity.is_some_and(|id| {
                let written = written(value);
                let (namespace, account) = written.split_once('/').unwrap();
                let (namespace, account) = (quoted(namespace), quoted(account));
                regex(&format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{account}(/.+)?"), id)
            }),
            Attribute::SourceTrustDomain => {
                text(identity.map(|id| id["spiffe://".len()..].split('/').next().unwrap().to_owned()))
            }
            Attribute::SourceIp => within(value, connection.source_ip),
            Attribute::RemoteIp => match request {
                Some(request) => request.remote_ip.is_some_and(|address| within(value, address)),
                None => within(value, connection.remote_ip),
            },
            Attribute::DestinationIp => within(value, connection.destination_ip),
            Attribute::DestinationPort => *value == ValueMatch::Port(connection.destination_port),
            Attribute::Sni => text(connection.sni.map(str::to_owned)),
            Attribute::Host => request
                .and_then(|request| request.host)
                .is_some_and(|host| string_match(&written(value).to_lowercase(), &host.to_lowercase())),
            Attribute::Method => text(request.map(|request| request.method.to_owned())),
            Attribute::Path => request.is_some_and(|request| match value {
                ValueMatch::PathTemplate(template) => {
                    let glob = quoted(template).replace(r"\{\*\}", "[^/]+").replace(r"\{\*\*\}", ".*");
                    regex(&glob, request.path)
                }
                value => string_match(&written(value), request.path),
            }),
            Attribute::Header(name) => text(request.and_then(|request| {
                let lines: Vec<_> =
                    request.headers.get_all(name).iter().map(|line| line.to_str().unwrap()).collect();
                (!lines.is_empty()).then(|| lines.join(","))
            })),
            Attribute::RequestPrincipal => {
                user.is_some_and(|user| request_principal(&written(value), &user.issuer, &user.subject))
            }
            Attribute::RequestAudiences => texts(user.map(|user| user.audiences.clone()).unwrap_or_default()),
            Attribute::RequestPresenter => text(user.and_then(|user| user.presenter.clone())),
            Attribute::RequestClaim(path) => texts(user.map_or(Vec::new(), |user| {
                let mut found = serde_json::Value::Object(user.claims.clone());
                for key in path {
                    found = found.get(key).cloned().unwrap_or_default();
                }
                match found {
                    serde_json::Value::String(text) if path == &["scope"] => {
                        text.split_whitespace().map(str::to_owned).collect()
                    }
                    serde_json::Value::String(text) => vec![text],
                    serde_json::Value::Array(list) => {
                        list.iter().filter_map(|each| each.as_str().map(str::to_owned)).collect()
                    }
                    _ => Vec::new(),
                }
            })),
        }
    }

    /// Istio's `ReplaceTrustDomainAliases`, then the form's own meaning.
    fn principal(self, pattern: &str, identity: &str) -> bool {
        let identity = &identity["spiffe://".len()..];
        let parts: Vec<_> = pattern.split('/').collect();
        let mesh = &self.policy.mesh;
        let ours: Vec<_> = std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases).collect();
        if parts.len() != 5 || parts[0] == "*" {
            return string_match(pattern, identity);
        }
        if parts[0] != "cluster.local" && !ours.iter().any(|domain| string_match(parts[0], domain)) {
            return string_match(pattern, identity);
        }
        ours.iter().any(|domain| {
            let covered = parts[0].starts_with('*') && domain.ends_with(&parts[0][1..]);
            let rest = parts[1..].join("/");
            let expanded = if covered { pattern.to_owned() } else { format!("{domain}/{rest}") };
            string_match(&expanded, identity)
        })
    }
}

/// By the rules for opaque connections; the remote address is one that these have.
fn http_only(condition: &Condition) -> bool {
    !matches!(
        condition.attribute,
        Attribute::SourcePrincipal
            | Attribute::SourceNamespace
            | Attribute::SourceServiceAccount
            | Attribute::SourceTrustDomain
            | Attribute::SourceIp
            | Attribute::RemoteIp
            | Attribute::DestinationIp
            | Attribute::DestinationPort
            | Attribute::Sni
    )
}

fn asks_user(condition: &Condition) -> bool {
    matches!(
        condition.attribute,
        Attribute::RequestPrincipal
            | Attribute::RequestAudiences
            | Attribute::RequestPresenter
            | Attribute::RequestClaim(_)
    )
}

fn has_user(rule: &AuthorizationRule) -> bool {
    rule.from.iter().chain(&rule.to).flatten().chain(&rule.when).any(asks_user)
}

fn without_user(rule: &AuthorizationRule) -> AuthorizationRule {
    let mut rule = rule.clone();
    for clause in rule.from.iter_mut().chain(&mut rule.to).chain([&mut rule.when]) {
        clause.retain(|condition| !asks_user(condition));
    }
    rule
}

fn reference(policy: &AuthorizationPolicy, rule: &AuthorizationRule) -> PolicyRef {
    PolicyRef::rule(policy.object, rule.index)
}

fn by_rule(policy: &AuthorizationPolicy, rule: &AuthorizationRule, user: bool) -> Authorization {
    let by = reference(policy, rule);
    let (outcome, reason) = match policy.action {
        AuthorizationAction::Allow | AuthorizationAction::Audit => (Outcome::Allow, Reason::MatchedAllow),
        AuthorizationAction::Deny => (Outcome::Deny, Reason::MatchedDeny),
        AuthorizationAction::Custom => (Outcome::Deny, Reason::ProviderUnavailable),
    };
    let reason = if policy.quarantined { Reason::QuarantinedPolicy } else { reason };
    let check = |outcome| CheckResult::new(outcome, reason, by);
    let (service, user) = match (outcome, user) {
        (Outcome::Allow, true) => (check(CheckOutcome::Pass), check(CheckOutcome::Pass)),
        (Outcome::Allow, false) => (
            check(CheckOutcome::Pass),
            CheckResult::new(CheckOutcome::NotRequired, Reason::NoUserCondition, PolicyRef::NONE),
        ),
        (Outcome::Deny, true) => (CheckResult::NOT_REACHED, check(CheckOutcome::Fail)),
        (Outcome::Deny, false) => (check(CheckOutcome::Fail), CheckResult::NOT_REACHED),
    };
    result(outcome, reason, by, service, user)
}

fn result(
    outcome: Outcome,
    reason: Reason,
    policy: PolicyRef,
    service: CheckResult,
    user: CheckResult,
) -> Authorization {
    Authorization { outcome, reason, policy, service, user, audit: PolicyRef::NONE, shadow: SmallVec::new() }
}

fn written(value: &ValueMatch) -> String {
    match value {
        ValueMatch::Exact(text) | ValueMatch::Glob(text) | ValueMatch::PathTemplate(text) => text.clone(),
        ValueMatch::Prefix(text) => format!("{text}*"),
        ValueMatch::Suffix(text) => format!("*{text}"),
        ValueMatch::Present => "*".into(),
        ValueMatch::Cidr(_) | ValueMatch::Port(_) => panic!("no text"),
    }
}

fn string_match(pattern: &str, text: &str) -> bool {
    if pattern == "*" {
        !text.is_empty()
    } else if let Some(suffix) = pattern.strip_prefix('*') {
        text.ends_with(suffix)
    } else if let Some(prefix) = pattern.strip_suffix('*') {
        text.starts_with(prefix)
    } else {
        text == pattern
    }
}

/// Istio's `requestPrincipalGenerator`: issuer and subject apart, split at the last `/`.
fn request_principal(pattern: &str, issuer: &str, subject: &str) -> bool {
    let both = |is: &str, sub: &str| string_match(is, issuer) && string_match(sub, subject);
    match pattern.rsplit_once('/') {
        _ if pattern == "*" => both("*", "*"),
        Some((is, sub)) if pattern.starts_with('*') => string_match(is, issuer) && sub == subject,
        Some((is, sub)) if pattern.ends_with('*') => is == issuer && string_match(sub, subject),
        Some((is, sub)) => is == issuer && sub == subject,
        None if pattern.starts_with('*') => both("*", pattern),
        None if pattern.ends_with('*') => both(pattern, "*"),
        None => issuer == pattern && subject.is_empty(),
    }
}

fn within(value: &ValueMatch, address: std::net::IpAddr) -> bool {
    matches!(value, ValueMatch::Cidr(net) if net.contains(&address))
}

fn quoted(text: &str) -> String {
    regex::escape(text)
}

/// Whole match; compiled patterns are kept, since the same few come again and again.
fn regex(pattern: &str, text: &str) -> bool {
    thread_local!(static KNOWN: RefCell<HashMap<String, Regex>> = RefCell::default());
    KNOWN.with_borrow_mut(|known| {
        let compile = || Regex::new(&format!("^(?:{pattern})$")).unwrap();
        known.entry(pattern.into()).or_insert_with(compile).is_match(text)
    })
}
