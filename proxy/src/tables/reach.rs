//! What policies decide about calls of which only some attributes are known: identity, port, method and path. What they ask
//! beside that stays open, by name.
//!
//! For `writ diff`, which asks two configurations about the same calls. Nothing of it serves traffic.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use control_client::snapshot::{self, AuthorizationAction, MtlsMode};
use http::HeaderMap;

use super::attributes::{ConnectionAttributes, RequestAttributes};
use super::condition::{Asked, Condition, ConnectionTest, RequestTest, TrustDomains};
use super::pattern::display;
use super::policies::{in_order, understand};
use super::rule::{Conditions, Rule};
use crate::decision::{Outcome, PolicyRef};

/// A call, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    /// `spiffe://..`; `None`: plaintext.
    pub identity: Option<&'a str>,
    /// The workload's port.
    pub port: u16,
    /// Method and path; `None`: an opaque connection.
    pub request: Option<(&'a str, &'a str)>,
}

/// What a connection answers of all that policies ask of one. Connections with the same answers are alike to them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answers {
    /// Refused before any rule, by this.
    shut_out: Option<PolicyRef>,
    /// In order of the conditions.
    holding: Vec<bool>,
}

/// What can't be known of a call, numbered; shared by all that are compared.
#[derive(Debug, Default)]
pub struct Unknowns {
    numbers: HashMap<Unknown, usize>,
    texts: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Unknown {
    Condition(Condition),
    /// That the provider of a CUSTOM policy, by the policy's name, allows.
    Provider(String),
}

impl Unknowns {
    /// How an unknown was written: `when[request.headers[x]] is one of [a]`.
    pub fn text(&self, number: usize) -> &str {
        self.texts.get(number).map_or("", String::as_str)
    }

    fn number(&mut self, unknown: Unknown, text: impl FnOnce() -> String) -> usize {
        let next = self.texts.len();
        let number = *self.numbers.entry(unknown).or_insert(next);
        if number == next {
            self.texts.push(text());
        }
        number
    }
}

/// The policies of one workload.
#[derive(Debug)]
pub struct Reach {
    peers: snapshot::PeerAuthentication,
    rules: Vec<Numbered>,
    opaque: Vec<Numbered>,
    has_allow: bool,
}

/// A rule whose open conditions have numbers.
#[derive(Debug)]
struct Numbered {
    policy: PolicyRef,
    action: AuthorizationAction,
    /// That the provider allows.
    provider: Option<usize>,
    conditions: Conditions<Part>,
}

#[derive(Debug)]
enum Part {
    Known(Condition),
    Open(usize),
}

impl Reach {
    /// Of a policy. Dry-run and AUDIT rules decide nothing.
    pub fn new(policy: &snapshot::Policy, unknowns: &mut Unknowns) -> Self {
        let domains = TrustDomains::new(&policy.mesh);
        let (compiled, _) = understand(policy, &domains);
        let written = written(policy, &domains);
        let ordered = in_order(compiled.iter().flat_map(|each| &each.rules));
        let rules: Vec<_> = ordered.consulting.into_iter().chain(ordered.enforced).collect();
        let mut numbered = |rules: Vec<Rule>| -> Vec<Numbered> {
            rules.iter().map(|rule| Numbered::new(rule, &policy.objects, &written, unknowns)).collect()
        };
        let opaque = numbered(rules.iter().filter_map(Rule::for_tcp).collect());
        let has_allow =
            |each: &snapshot::AuthorizationPolicy| each.action == AuthorizationAction::Allow && !each.dry_run;
        Self {
            peers: policy.peer_authentication.clone(),
            rules: numbered(rules),
            opaque,
            has_allow: policy.authorization.iter().any(has_allow),
        }
    }

    /// Whether some ALLOW policy is in force, so that what none of them matches is refused.
    pub fn has_allow(&self) -> bool {
        self.has_allow
    }

    /// What the connection of a call answers.
    pub fn answers(&self, probe: &Probe<'_>) -> Answers {
        // Those for opaque connections ask for nothing that these don't.
        let parts = self.rules.iter().flat_map(|rule| {
            let Conditions { from, to, when } = &rule.conditions;
            from.iter().chain(to).chain([when]).flatten()
        });
        let answer = |part: &Part| match part {
            Part::Known(condition @ Condition::Connection(_)) => Some(holds(condition, probe)),
            Part::Known(Condition::Request(_)) | Part::Open(_) => None,
        };
        Answers { shut_out: self.shut_out(probe), holding: parts.filter_map(answer).collect() }
    }

    fn shut_out(&self, probe: &Probe<'_>) -> Option<PolicyRef> {
        let modes = &self.peers.ports;
        let mode =
            modes.iter().find(|(port, _)| *port == probe.port).map_or(self.peers.default, |(_, mode)| *mode);
        let refused = match mode.mode {
            MtlsMode::Strict => probe.identity.is_none(),
            MtlsMode::Disable => probe.identity.is_some(),
            MtlsMode::Permissive => false,
        };
        refused.then(|| PolicyRef::from_object(mode.object))
    }

    /// What is left open of a call.
    pub fn of(&self, probe: &Probe<'_>) -> Open {
        if let Some(policy) = self.shut_out(probe) {
            return Open { shut_out: Some(policy), rules: Vec::new(), has_allow: true };
        }
        let rules = if probe.request.is_some() { &self.rules } else { &self.opaque };
        let rules = rules.iter().filter_map(|rule| rule.of(probe)).collect();
        Open { shut_out: None, rules, has_allow: self.has_allow }
    }
}

/// The principals that one of a policy stands for: the same in each trust domain that is ours.
pub fn principals_meant(
    mesh: &snapshot::Mesh,
    principal: &snapshot::ValueMatch,
) -> Vec<snapshot::ValueMatch> {
    TrustDomains::new(mesh).expand_one(principal)
}

/// Conditions as they were written.
fn written(policy: &snapshot::Policy, domains: &TrustDomains) -> HashMap<Condition, String> {
    let rules = policy.authorization.iter().flat_map(|each| &each.rules);
    let conditions = rules.flat_map(|rule| rule.from.iter().chain(&rule.to).flatten().chain(&rule.when));
    let texts = conditions.filter_map(|condition| {
        let list =
            |values: &[snapshot::ValueMatch]| values.iter().map(display).collect::<Vec<_>>().join(", ");
        let (is, not) = (list(&condition.values), list(&condition.not_values));
        let text = match (is.is_empty(), not.is_empty()) {
            (_, true) => format!("{} is one of [{is}]", condition.field),
            (true, false) => format!("{} is none of [{not}]", condition.field),
            (false, false) => format!("{} is one of [{is}] and none of [{not}]", condition.field),
        };
        Some((Condition::compile(condition, domains).ok()?, text))
    });
    texts.collect()
}

impl Numbered {
    fn new(
        rule: &Rule,
        objects: &[snapshot::ObjectRef],
        written: &HashMap<Condition, String>,
        unknowns: &mut Unknowns,
    ) -> Self {
        let mut part = |condition: &Condition| match known(condition) {
            true => Part::Known(condition.clone()),
            false => {
                let text = || match written.get(condition) {
                    Some(text) => text.clone(),
                    // What a rule of HTTP asks of an opaque connection.
                    None => "the caller's address".into(),
                };
                Part::Open(unknowns.number(Unknown::Condition(condition.clone()), text))
            }
        };
        let conditions = Conditions {
            from: rule.conditions.from.iter().map(|clause| clause.iter().map(&mut part).collect()).collect(),
            to: rule.conditions.to.iter().map(|clause| clause.iter().map(&mut part).collect()).collect(),
            when: rule.conditions.when.iter().map(&mut part).collect(),
        };
        let provider = rule.label.consults().then(|| {
            let object = rule.label.policy.object_index().and_then(|object| objects.get(object as usize));
            let name =
                object.map_or_else(String::new, |object| format!("{}/{}", object.namespace, object.name));
            let text = format!("the provider of {name} allows");
            unknowns.number(Unknown::Provider(name), || text)
        });
        Self { policy: rule.label.policy, action: rule.label.action, provider, conditions }
    }

    /// What is left of it; `None`: it can't match.
    fn of(&self, probe: &Probe<'_>) -> Option<OpenRule> {
        let clause = |clause: &[Part]| -> Option<Vec<usize>> {
            let mut open = Vec::new();
            for part in clause {
                match part {
                    Part::Known(condition) if holds(condition, probe) => {}
                    Part::Known(_) => return None,
                    Part::Open(number) => open.push(*number),
                }
            }
            open.sort_unstable();
            open.dedup();
            Some(open)
        };
        let clauses = |clauses: &[Box<[Part]>]| -> Option<Vec<Vec<usize>>> {
            let left: Vec<_> = clauses.iter().filter_map(|each| clause(each)).collect();
            match (clauses.is_empty(), left.is_empty()) {
                (false, true) => None,
                _ if left.iter().any(Vec::is_empty) => Some(Vec::new()),
                _ => Some(left),
            }
        };
        Some(OpenRule {
            policy: self.policy,
            action: self.action,
            provider: self.provider,
            from: clauses(&self.conditions.from)?,
            to: clauses(&self.conditions.to)?,
            when: clause(&self.conditions.when)?,
        })
    }
}

/// Whether a probe answers it.
fn known(condition: &Condition) -> bool {
    match condition {
        Condition::Connection(test) => !matches!(
            test,
            ConnectionTest::SourceIp(_)
                | ConnectionTest::RemoteIp(_)
                | ConnectionTest::DestinationIp(_)
                | ConnectionTest::Sni(_)
        ),
        Condition::Request(test) => matches!(**test, RequestTest::Method(_) | RequestTest::Path(_)),
    }
}

fn holds(condition: &Condition, probe: &Probe<'_>) -> bool {
    const NOT_KNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    match condition {
        Condition::Connection(test) => test.holds(&ConnectionAttributes {
            source_identity: probe.identity,
            source_ip: NOT_KNOWN,
            remote_ip: NOT_KNOWN,
            destination_ip: NOT_KNOWN,
            destination_port: probe.port,
            sni: None,
        }),
        Condition::Request(test) => probe.request.is_some_and(|(method, path)| {
            let (host, remote_ip, user) = (None, None, None);
            let headers = &HeaderMap::new();
            test.holds(&Asked::new(&RequestAttributes { method, host, path, headers, remote_ip, user }))
        }),
    }
}

/// What policies still ask about a call. Two that are equal decide alike, but for the policies that they name.
#[derive(Debug)]
pub struct Open {
    /// Refused before any rule, by this.
    shut_out: Option<PolicyRef>,
    /// In order of evaluation.
    rules: Vec<OpenRule>,
    has_allow: bool,
}

#[derive(Debug)]
struct OpenRule {
    policy: PolicyRef,
    action: AuthorizationAction,
    provider: Option<usize>,
    from: Vec<Vec<usize>>,
    to: Vec<Vec<usize>>,
    when: Vec<usize>,
}

impl OpenRule {
    fn unknowns(&self) -> impl Iterator<Item = usize> {
        let clauses = self.from.iter().chain(&self.to).flatten().chain(&self.when);
        clauses.copied().chain(self.provider)
    }

    fn matches(&self, truth: &impl Fn(usize) -> bool) -> bool {
        let clause = |clause: &Vec<usize>| clause.iter().all(|&unknown| truth(unknown));
        let any = |clauses: &Vec<Vec<usize>>| clauses.is_empty() || clauses.iter().any(clause);
        any(&self.from) && any(&self.to) && clause(&self.when)
    }
}

impl Open {
    /// What it depends on.
    pub fn unknowns(&self) -> BTreeSet<usize> {
        self.rules.iter().flat_map(OpenRule::unknowns).collect()
    }

    /// Whether the call may go on, and which rule says so (NONE: a default), if this is true of the unknowns.
    pub fn under(&self, truth: impl Fn(usize) -> bool) -> (Outcome, PolicyRef) {
        if let Some(policy) = self.shut_out {
            return (Outcome::Deny, policy);
        }
        for rule in self.rules.iter().filter(|rule| rule.matches(&truth)) {
            match rule.action {
                AuthorizationAction::Custom if rule.provider.is_some_and(&truth) => {}
                AuthorizationAction::Custom | AuthorizationAction::Deny => {
                    return (Outcome::Deny, rule.policy);
                }
                AuthorizationAction::Allow => return (Outcome::Allow, rule.policy),
                AuthorizationAction::Audit => {}
            }
        }
        let outcome = if self.has_allow { Outcome::Deny } else { Outcome::Allow };
        (outcome, PolicyRef::NONE)
    }

    /// Whether the two decide alike whatever the unknowns are, as far as their form shows.
    pub fn is_like(&self, other: &Self) -> bool {
        let alike = |(a, b): (&OpenRule, &OpenRule)| {
            (a.action, a.provider, &a.from, &a.to, &a.when) == (b.action, b.provider, &b.from, &b.to, &b.when)
        };
        self.shut_out.is_some() == other.shut_out.is_some()
            && self.has_allow == other.has_allow
            && self.rules.len() == other.rules.len()
            && self.rules.iter().zip(&other.rules).all(alike)
    }
}
