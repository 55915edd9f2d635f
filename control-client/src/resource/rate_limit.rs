//! writ.dev: RateLimit.

use std::time::Duration;

use super::read::{At, Fields};
use super::security::{self, Annotations, Scope, condition};
use super::{Meta, Resource, text};
use crate::resource::mesh::optional;
use crate::snapshot::{Attribute, AuthorizationRule, KeyPart, LocalLimit};

/// A RateLimit.
#[derive(Debug)]
pub(crate) struct RateLimit {
    pub(crate) scope: Scope,
    pub(crate) rules: Vec<Rule>,
}

/// One of its rules.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) matches: AuthorizationRule,
    pub(crate) name: Option<String>,
    pub(crate) key: Vec<KeyPart>,
    pub(crate) local: Option<LocalLimit>,
    pub(crate) global: Option<Global>,
    pub(crate) line: u32,
}

/// `global`.
#[derive(Debug)]
pub(crate) struct Global {
    /// The provider, and the line that names it.
    pub(crate) provider: (String, u32),
    pub(crate) domain: String,
    pub(crate) fail_open: bool,
    /// 0: not said.
    pub(crate) hits_addend: u32,
}

/// Rules of one object.
const MAX_RULES: usize = 256;
/// Attributes of one key.
const MAX_KEY: usize = 8;
const MAX_NAME: usize = 64;
const MAX_COUNT: i64 = 1_000_000_000;
const MAX_PER: Duration = Duration::from_secs(31 * 24 * 3600);
/// Time is counted in nanoseconds: of quicker rates too much would be lost by rounding.
const MAX_PER_SECOND: u64 = 1_000_000;
/// How long a whole burst may take to come back.
const MAX_REFILL: u64 = 366 * 24 * 3600;

/// Reads a RateLimit.
pub(crate) fn rate_limit(meta: &Meta, object: Fields<'_>) -> Resource {
    Annotations::read(object, &[]);
    let mut limit = RateLimit { scope: Scope::All, rules: Vec::new() };
    let spec = object.require("spec");
    match spec.and_then(|at| at.fields(&["selector", "targetRef", "targetRefs", "rules"])) {
        Some(spec) => {
            limit.scope = security::scope(spec);
            if let Some(rules) = spec.require("rules") {
                limit.rules = self::rules(meta, rules);
            }
        }
        None => limit.scope = Scope::Unknown,
    }
    Resource::RateLimit(limit)
}

fn rules(meta: &Meta, list: At<'_>) -> Vec<Rule> {
    if list.items().len() == 0 {
        list.warn_if_good("without rules this object has no effect");
    }
    if list.items().len() > MAX_RULES {
        list.error(format!("more than {MAX_RULES} rules in one object"));
    }
    let mut rules: Vec<Rule> = Vec::new();
    for (index, at) in list.items().take(MAX_RULES).enumerate() {
        let Some(rule) = rule(meta, index, at) else { continue };
        if rule.name.is_some() && rules.iter().any(|known| known.name == rule.name) {
            at.error("a rule of this name is above; names must be unique");
        }
        rules.push(rule);
    }
    rules
}

fn rule(meta: &Meta, index: usize, at: At<'_>) -> Option<Rule> {
    let known = [&security::MATCHING[..], &["name", "key", "local", "global"]].concat();
    let fields = at.fields(&known)?;
    let rule = Rule {
        matches: security::matching(meta, index, at, Some(fields)),
        name: fields.get("name").and_then(name),
        key: fields.get("key").map(key).unwrap_or_default(),
        local: fields.get("local").and_then(local),
        global: fields.get("global").and_then(global),
        line: at.line(),
    };
    if fields.get("local").is_none() && fields.get("global").is_none() {
        at.error("needs `local`, `global` or both: how many requests are too many?");
    }
    Some(rule)
}

impl Rule {
    /// Whether it counts no opaque connection. Those have a remote address.
    pub(crate) fn asks_of_http(&self) -> bool {
        let AuthorizationRule { from, to, when, .. } = &self.matches;
        let conditions = from.iter().chain(to).flatten().chain(when).map(|condition| &condition.attribute);
        let mut attributes = conditions.chain(self.key.iter().map(|part| &part.attribute));
        attributes.any(|attribute| attribute.http_only() && *attribute != Attribute::RemoteIp)
    }
}

/// What can stand in quotes in a header as it is.
fn name(at: At<'_>) -> Option<String> {
    let text = at.text()?;
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if text.len() > MAX_NAME || !text.bytes().all(good) {
        at.error(format!("`{text}` is not a name: at most {MAX_NAME} letters, digits and `-_.`"));
        return None;
    }
    Some(text)
}

fn key(list: At<'_>) -> Vec<KeyPart> {
    if list.items().len() > MAX_KEY {
        list.error(format!("more than {MAX_KEY} attributes"));
    }
    let mut parts: Vec<KeyPart> = Vec::new();
    for at in list.items().take(MAX_KEY) {
        let Some(attribute) = condition::counted_by(at) else { continue };
        if parts.iter().any(|known| known.attribute == attribute) {
            at.error("is in this key already");
            continue;
        }
        if let Some(name) = at.text() {
            parts.push(KeyPart { name, attribute });
        }
    }
    parts
}

fn local(at: At<'_>) -> Option<LocalLimit> {
    let fields = at.fields(&["requests", "per", "burst"])?;
    let requests: Option<u32> = fields.require("requests").and_then(|at| at.number(1, MAX_COUNT));
    let per = fields.require("per").and_then(per);
    let burst = match fields.get("burst") {
        Some(at) => at.number(1, MAX_COUNT),
        None => requests,
    };
    let (requests, per, burst) = (requests?, per?, burst?);
    if u64::from(requests) > per.as_secs() * MAX_PER_SECOND {
        at.error(format!("more than {MAX_PER_SECOND} requests a second can't be counted here"));
        return None;
    }
    // Less than 2^30 and less than 2^22.
    if u64::from(burst) * per.as_secs() / u64::from(requests) > MAX_REFILL {
        at.error("at this rate such a burst would take more than a year to come back");
        return None;
    }
    Some(LocalLimit { requests, per, burst })
}

/// Headers tell of windows in whole seconds.
fn per(at: At<'_>) -> Option<Duration> {
    let per = text::go_duration(at)?;
    if per.subsec_nanos() != 0 || per.is_zero() || per > MAX_PER {
        at.error("must be whole seconds, from 1s to 744h");
        return None;
    }
    Some(per)
}

fn global(at: At<'_>) -> Option<Global> {
    let fields = at.fields(&["provider", "domain", "failOpen", "hitsAddend"])?;
    let provider = fields.require("provider").and_then(|at| Some((at.text()?, at.line())));
    let domain = fields.require("domain").and_then(At::text);
    let fail_open = optional(fields.get("failOpen"), At::bool, false);
    let hits = optional(fields.get("hitsAddend"), |at| at.number(1, MAX_COUNT), 0);
    Some(Global { provider: provider?, domain: domain?, fail_open: fail_open?, hits_addend: hits? })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Object;
    use super::super::tests::only;
    use super::*;

    fn read(spec: &str) -> (Arc<Object>, Vec<String>) {
        only(&format!(
            "apiVersion: writ.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: r, namespace: foo}}\nspec:\n{spec}\n"
        ))
    }

    #[test]
    fn all_fields() {
        let (object, found) = read(
            "  selector: {matchLabels: {app: a}}
  rules:
  - name: per-tenant
    to: [{operation: {paths: ['/search*']}}]
    key: [source.principal, 'request.headers[X-Tenant]', 'request.auth.claims[org][id]', request.path]
    local: {requests: 100, per: 1m, burst: 20}
    global: {provider: limiter, domain: search, failOpen: true, hitsAddend: 2}
  - local: {requests: 10, per: 1s}",
        );
        assert_eq!(found, [""; 0]);
        let Resource::RateLimit(limit) = &object.resource else { panic!("{object:?}") };
        let rule = &limit.rules[0];
        assert_eq!((rule.name.as_deref(), rule.matches.to.len()), (Some("per-tenant"), 1));
        let claim = Attribute::RequestClaim(vec!["org".into(), "id".into()]);
        let key: Vec<_> = rule.key.iter().map(|part| part.attribute.clone()).collect();
        assert_eq!(
            key,
            [Attribute::SourcePrincipal, Attribute::Header("x-tenant".into()), claim, Attribute::Path]
        );
        assert_eq!(rule.key[1].name, "request.headers[X-Tenant]");
        assert_eq!(rule.local, Some(LocalLimit { requests: 100, per: Duration::from_secs(60), burst: 20 }));
        let global = rule.global.as_ref().unwrap();
        assert_eq!((global.provider.0.as_str(), global.domain.as_str()), ("limiter", "search"));
        assert_eq!((global.fail_open, global.hits_addend), (true, 2));
        let rest = &limit.rules[1];
        assert_eq!((rest.matches.index, rest.local.map(|local| local.burst)), (1, Some(10)));
    }

    #[test]
    fn mistakes() {
        let rule = |rule: &str| format!("  rules: [{rule}]");
        let local = |local: &str| rule(&format!("{{local: {local}}}"));
        let global = |global: &str| rule(&format!("{{global: {global}}}"));
        for (spec, wanted) in [
            ("  {}".into(), "spec.rules: is required"),
            (rule("{}"), "needs `local`"),
            (rule("{key: [source.port], local: {requests: 1, per: 1s}}"), "unknown attribute `source.port`"),
            (rule("{key: [source.ip, source.ip], local: {requests: 1, per: 1s}}"), "in this key already"),
            (rule("{keys: [], local: {requests: 1, per: 1s}}"), "did you mean `key`?"),
            (rule("{name: 'a\"b', local: {requests: 1, per: 1s}}"), "is not a name"),
            (rule("{to: [], local: {requests: 1, per: 1s}}"), "must not be empty"),
            (
                rule("{name: a, local: {requests: 1, per: 1s}}, {name: a, local: {requests: 1, per: 1s}}"),
                "names must be unique",
            ),
            (local("{requests: 1}"), "per: is required"),
            (local("{per: 1s}"), "requests: is required"),
            (local("{requests: 0, per: 1s}"), "out of range"),
            (local("{requests: 1, per: 0s}"), "whole seconds"),
            (local("{requests: 1, per: 1500ms}"), "whole seconds"),
            (local("{requests: 1, per: 800h}"), "744h"),
            (local("{requests: 1000001, per: 1s}"), "can't be counted"),
            (local("{requests: 1, per: 744h, burst: 100}"), "more than a year"),
            (local("{requests: 1, per: 1s, burst: 0}"), "out of range"),
            (global("{domain: a}"), "provider: is required"),
            (global("{provider: a}"), "domain: is required"),
            (global("{provider: a, domain: a, failOpen: 'no'}"), "true or false"),
            (global("{provider: a, domain: a, timeout: 1s}"), "unknown field"),
            ("  rules: [{local: {requests: 1, per: 1s}}]\n  selector: {matchLabels: 1}".into(), "a mapping"),
        ] {
            let (object, found) = read(&spec);
            assert!(!object.good, "{spec}");
            assert!(found.join("\n").contains(wanted), "{spec}: {found:?}");
        }
    }
}
