//! Why nothing allowed: the ALLOW policies that came nearest, and the first condition of each that failed.

use std::fmt::Write;

use control_client::snapshot::{self, Attribute, AuthorizationAction, Expires};

use super::attributes::{ConnectionAttributes, RequestAttributes};
use super::condition::{Asked, Condition, TrustDomains, principal, trust_domain};
use super::pattern::display;
use super::policies::Compiled;
use crate::decision::{Objects, PolicyRef};

/// What ALLOW policies missed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Considered {
    /// Nearest first: by conditions passed, then by object.
    pub nearest: Vec<NearMiss>,
    /// How many ALLOW policies there are besides.
    pub others: usize,
}

impl Considered {
    /// `{"policies":[{"kind":..,"namespace":..,"name":..,"rule":0,"failed":".."}],"others":0}`, as records show it.
    pub fn to_json(&self, objects: &Objects) -> serde_json::Value {
        let policies: Vec<_> = self.nearest.iter().map(|near| near.to_json(objects)).collect();
        serde_json::json!({ "policies": policies, "others": self.others })
    }
}

/// An ALLOW policy that did not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearMiss {
    /// Its nearest rule; the object where it has none.
    pub policy: PolicyRef,
    /// The first condition of that rule that failed: `to.paths: /admin is none of [/ratings*]`.
    pub failed: String,
}

impl NearMiss {
    fn to_json(&self, objects: &Objects) -> serde_json::Value {
        let mut value = serde_json::Map::new();
        if let Some(object) = objects.get(self.policy) {
            for (name, text) in
                [("kind", &object.kind), ("namespace", &object.namespace), ("name", &object.name)]
            {
                value.insert(name.into(), text.as_str().into());
            }
        }
        if let Some(rule) = self.policy.rule_index() {
            value.insert("rule".into(), rule.into());
        }
        value.insert("failed".into(), self.failed.as_str().into());
        value.into()
    }
}

/// ALLOW policies in a form that can say why.
#[derive(Debug)]
pub(super) struct Consideration {
    policies: Box<[Policy]>,
}

#[derive(Debug)]
struct Policy {
    policy: PolicyRef,
    quarantined: bool,
    expired: Option<Expires>,
    rules: Box<[Rule]>,
}

#[derive(Debug)]
struct Rule {
    policy: PolicyRef,
    from: Box<[Box<[Named]>]>,
    to: Box<[Box<[Named]>]>,
    when: Box<[Named]>,
}

/// A condition, and what to call it.
#[derive(Debug)]
struct Named {
    condition: Condition,
    /// Its positive values alone, where it has negative ones too.
    positive: Option<Condition>,
    attribute: Attribute,
    field: Box<str>,
    /// As written, shortened.
    values: Box<str>,
    not_values: Box<str>,
}

/// What a request is asked.
struct Question<'a> {
    connection: &'a ConnectionAttributes<'a>,
    request: Option<Asked<'a>>,
}

impl Consideration {
    pub(super) fn compile(policies: &[Compiled<'_>], domains: &TrustDomains) -> Self {
        let policies = policies.iter().map(|each| &*each.policy);
        let mut allowing: Vec<_> =
            policies.filter(|each| each.action == AuthorizationAction::Allow && !each.dry_run).collect();
        allowing.sort_by_key(|each| each.object);
        let policies = allowing.into_iter().map(|each| Policy {
            policy: PolicyRef::object(each.object),
            quarantined: each.quarantined,
            expired: each.expires.filter(|expires| expires.past),
            // All of them have compiled before.
            rules: each
                .rules
                .iter()
                .filter_map(|rule| Rule::compile(each.object, rule, domains).ok())
                .collect(),
        });
        Self { policies: policies.collect() }
    }

    pub(super) fn consider(
        &self,
        connection: &ConnectionAttributes<'_>,
        request: Option<&RequestAttributes<'_>>,
        limit: usize,
    ) -> Considered {
        let question = Question { connection, request: request.map(Asked::new) };
        // Texts are only written for those that are shown.
        let mut misses: Vec<_> = self.policies.iter().filter_map(|policy| policy.miss(&question)).collect();
        misses.sort_by_key(|miss| std::cmp::Reverse(miss.passed));
        let others = misses.len().saturating_sub(limit);
        misses.truncate(limit);
        let nearest = misses.iter().map(|miss| NearMiss {
            policy: miss.policy,
            failed: match miss.failed {
                Failed::Quarantined => {
                    "what the policy says, or for whom, is not understood (see /config), so it allows nothing"
                        .into()
                }
                Failed::Expired(when) => format!("the policy has expired at {when}, so it allows nothing"),
                Failed::NoRules => "the policy has no rules, so it allows nothing".into(),
                Failed::Condition(named) => named.explain(&question),
            },
        });
        Considered { nearest: nearest.collect(), others }
    }
}

struct Miss<'a> {
    policy: PolicyRef,
    passed: usize,
    failed: Failed<'a>,
}

enum Failed<'a> {
    Quarantined,
    Expired(Expires),
    NoRules,
    Condition(&'a Named),
}

impl Policy {
    /// Its nearest rule; `None`: it matches.
    fn miss(&self, question: &Question<'_>) -> Option<Miss<'_>> {
        let mut nearest: Option<(usize, &Named, PolicyRef)> = None;
        for rule in &self.rules {
            let (passed, failed) = rule.asked(question);
            let failed = failed?;
            if nearest.is_none_or(|(most, ..)| passed > most) {
                nearest = Some((passed, failed, rule.policy));
            }
        }
        Some(match nearest {
            Some((passed, named, policy)) => Miss { policy, passed, failed: Failed::Condition(named) },
            None if self.quarantined => Miss { policy: self.policy, passed: 0, failed: Failed::Quarantined },
            None => {
                let failed = self.expired.map_or(Failed::NoRules, Failed::Expired);
                Miss { policy: self.policy, passed: 0, failed }
            }
        })
    }
}

impl Rule {
    fn compile(
        object: u32,
        rule: &snapshot::AuthorizationRule,
        domains: &TrustDomains,
    ) -> Result<Self, String> {
        let clause = |clause: &[snapshot::Condition]| -> Result<Box<[Named]>, String> {
            clause.iter().map(|condition| Named::compile(condition, domains)).collect()
        };
        let clauses = |list: &[Vec<snapshot::Condition>]| -> Result<Box<[_]>, String> {
            list.iter().map(|each| clause(each)).collect()
        };
        Ok(Self {
            policy: PolicyRef::rule(object, rule.index),
            from: clauses(&rule.from)?,
            to: clauses(&rule.to)?,
            when: clause(&rule.when)?,
        })
    }

    /// How many conditions passed, and the first that failed in order of `from`, `to`, `when`.
    fn asked(&self, question: &Question<'_>) -> (usize, Option<&Named>) {
        let (from_passed, from) = nearest_clause(&self.from, question);
        let (to_passed, to) = nearest_clause(&self.to, question);
        let (when_passed, when) = asked(&self.when, question);
        // An opaque connection fails a rule that asks for HTTP anywhere, if only in a clause that it could do without.
        let of_http = || {
            let clauses = self.from.iter().chain(&self.to).chain([&self.when]);
            let mut all = clauses.flatten().filter(|_| question.request.is_none());
            all.find(|named| named.condition.for_tcp().is_none())
        };
        (from_passed + to_passed + when_passed, from.or(to).or(when).or_else(of_http))
    }
}

/// Of ORed clauses, the one that passes most.
fn nearest_clause<'a>(clauses: &'a [Box<[Named]>], question: &Question<'_>) -> (usize, Option<&'a Named>) {
    let asked = clauses.iter().map(|clause| asked(clause, question));
    // The first of equals, and one that holds before any that doesn't.
    let better = |a: &(usize, Option<&Named>), b: &(usize, Option<&Named>)| {
        (a.1.is_none(), a.0) > (b.1.is_none(), b.0)
    };
    asked.reduce(|best, next| if better(&next, &best) { next } else { best }).unwrap_or((0, None))
}

fn asked<'a>(clause: &'a [Named], question: &Question<'_>) -> (usize, Option<&'a Named>) {
    let failed = clause.iter().filter(|named| !named.holds(question)).count();
    (clause.len() - failed, clause.iter().find(|named| !named.holds(question)))
}

/// An opaque connection has nothing of HTTP.
fn holds(condition: &Condition, question: &Question<'_>) -> bool {
    match (condition, &question.request) {
        (Condition::Connection(test), _) => test.holds(question.connection),
        (Condition::Request(test), Some(request)) => test.holds(request),
        (Condition::Request(_), None) => {
            condition.for_tcp().is_some_and(|test| test.holds(question.connection))
        }
    }
}

/// Of long lists of values, so many are shown.
const MAX_VALUES: usize = 8;
/// Of a long text of the request, so many characters.
const MAX_TEXT: usize = 128;

impl Named {
    fn compile(condition: &snapshot::Condition, domains: &TrustDomains) -> Result<Self, String> {
        let list = |values: &[snapshot::ValueMatch]| -> Box<str> {
            let mut shown: Vec<_> = values.iter().take(MAX_VALUES).map(display).collect();
            if values.len() > MAX_VALUES {
                shown.push(format!("and {} more", values.len() - MAX_VALUES));
            }
            shown.join(", ").into()
        };
        let positive = snapshot::Condition { not_values: Vec::new(), ..condition.clone() };
        let both = !condition.values.is_empty() && !condition.not_values.is_empty();
        Ok(Self {
            condition: Condition::compile(condition, domains)?,
            positive: both.then(|| Condition::compile(&positive, domains)).transpose()?,
            attribute: condition.attribute.clone(),
            field: condition.field.as_str().into(),
            values: list(&condition.values),
            not_values: list(&condition.not_values),
        })
    }

    fn holds(&self, question: &Question<'_>) -> bool {
        holds(&self.condition, question)
    }

    /// Why it failed. What a header or claim holds, or has to hold, is never shown.
    fn explain(&self, question: &Question<'_>) -> String {
        let mut text = format!("{}: ", self.field);
        if question.request.is_none() && self.condition.for_tcp().is_none() {
            text.push_str("only HTTP requests have it, so the rule matches no opaque connection");
            return text;
        }
        let (is, none, excluded) = match self.shown(question) {
            Shown::Secret => {
                text.push_str("what was sent, which is not shown, does not match");
                return text;
            }
            Shown::NotSent(why) => {
                text.push_str(why);
                return text;
            }
            Shown::Absent => ("nothing was given".into(), &self.values, &self.not_values),
            Shown::Text(shown) => (shown, &self.values, &self.not_values),
        };
        text.push_str(&is);
        // Writing to a String can't fail.
        let _ = if self.fails_positively(question) {
            write!(text, " is none of [{none}]")
        } else {
            write!(text, " is excluded by [{excluded}]")
        };
        text
    }

    /// True if no positive value matched; false if a negative one did.
    fn fails_positively(&self, question: &Question<'_>) -> bool {
        match &self.positive {
            Some(positive) => !holds(positive, question),
            None => !self.values.is_empty(),
        }
    }

    fn shown(&self, question: &Question<'_>) -> Shown {
        let connection = question.connection;
        let request = question.request.as_ref();
        let shown = match &self.attribute {
            Attribute::SourcePrincipal | Attribute::SourceNamespace | Attribute::SourceServiceAccount => {
                principal(connection).map(shorten)
            }
            Attribute::SourceTrustDomain => trust_domain(connection).map(shorten),
            Attribute::SourceIp => Some(connection.source_ip.to_canonical().to_string()),
            Attribute::DestinationIp => Some(connection.destination_ip.to_canonical().to_string()),
            Attribute::DestinationPort => Some(connection.destination_port.to_string()),
            Attribute::Sni => connection.sni.map(shorten),
            Attribute::Host => request.and_then(|request| request.attributes.host).map(shorten),
            Attribute::Method => request.map(|request| shorten(request.attributes.method)),
            Attribute::Path => request.map(|request| shorten(request.attributes.path)),
            Attribute::RemoteIp => match request {
                Some(request) => request.remote_ip().map(|address| address.to_string()),
                None => Some(connection.remote_ip.to_canonical().to_string()),
            },
            Attribute::Header(name) => {
                let sent = request.is_some_and(|request| request.attributes.headers.contains_key(name));
                return if sent { Shown::Secret } else { Shown::NotSent("it was not sent") };
            }
            Attribute::RequestPrincipal
            | Attribute::RequestAudiences
            | Attribute::RequestPresenter
            | Attribute::RequestClaim(_) => {
                let verified = request.is_some_and(|request| request.attributes.user.is_some());
                return if verified { Shown::Secret } else { Shown::NotSent("no verified token came along") };
            }
        };
        shown.map_or(Shown::Absent, Shown::Text)
    }
}

enum Shown {
    Text(String),
    Absent,
    Secret,
    /// Why there is nothing to show.
    NotSent(&'static str),
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into(),
    }
}
