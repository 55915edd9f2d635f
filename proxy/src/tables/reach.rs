//! What policies decide about calls of which only some attributes are known: identity, port, method and path. What they ask
//! beside that stays open, by name.
//!
//! For `writ diff`, which asks two configurations about the same calls. Nothing of it serves traffic.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
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
    /// Those that are true before a time, in order of it.
    before: BTreeMap<i64, usize>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Unknown {
    Condition(Condition),
    /// That the provider of a CUSTOM policy, by the policy's name, allows.
    Provider(String),
    /// That it is before a time (seconds since the epoch), up to which an ALLOW policy allows.
    Before(i64),
}

impl Unknowns {
    /// How an unknown was written: `when[request.headers[x]] is one of [a]`.
    pub fn text(&self, number: usize) -> &str {
        self.texts.get(number).map_or("", String::as_str)
    }

    /// Whether these can be true and false as they are: what is before a time is before every later one.
    pub fn are_possible(&self, truth: impl Fn(usize) -> Option<bool>) -> bool {
        let known = self.before.values().filter_map(|unknown| truth(*unknown));
        known.is_sorted()
    }

    fn before(&mut self, expires: snapshot::Expires) -> usize {
        let number = self.number(Unknown::Before(expires.at), || format!("it is before {expires}"));
        self.before.insert(expires.at, number);
        number
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
    says: Says,
    /// The version that this one is compared with has it too.
    is_in_both: bool,
}

/// All that a rule decides by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Says {
    action: AuthorizationAction,
    /// That the provider allows.
    provider: Option<usize>,
    conditions: Conditions<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Part {
    Known(Condition),
    Open(usize),
}

impl Reach {
    /// Of a policy. Dry-run and AUDIT rules decide nothing.
    fn new(policy: &snapshot::Policy, unknowns: &mut Unknowns) -> Self {
        let domains = TrustDomains::new(&policy.mesh);
        let (compiled, _) = understand(policy, &domains);
        let written = written(policy, &domains);
        let ordered = in_order(compiled.iter().flat_map(|each| &each.rules));
        let rules: Vec<_> = ordered.consulting.into_iter().chain(ordered.enforced).collect();
        let ends: HashMap<u32, snapshot::Expires> =
            policy.authorization.iter().filter_map(|each| Some((each.object, each.expires?))).collect();
        let mut numbered = |rules: Vec<Rule>| -> Vec<Numbered> {
            let ends_of = |rule: &Rule| ends.get(&rule.label.policy.object_index()?).copied();
            let numbered = |rule| Numbered::new(rule, ends_of(rule), &policy.objects, &written, unknowns);
            rules.iter().map(numbered).collect()
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

    /// Of two versions of a policy.
    pub fn both(versions: [&snapshot::Policy; 2], unknowns: &mut Unknowns) -> [Self; 2] {
        let [mut old, mut new] = versions.map(|policy| Self::new(policy, unknowns));
        mark(&mut old.rules, &mut new.rules);
        mark(&mut old.opaque, &mut new.opaque);
        [old, new]
    }

    /// Whether more than rules differs: then any call may be concerned.
    pub fn differs_beside_rules(&self, other: &Self) -> bool {
        let modes = |peers: &snapshot::PeerAuthentication| {
            let ports: Vec<_> = peers.ports.iter().map(|(port, mode)| (*port, mode.mode)).collect();
            (peers.default.mode, ports)
        };
        self.has_allow != other.has_allow || modes(&self.peers) != modes(&other.peers)
    }

    /// Whether a call of which only this is known may be one that a rule decides about which is not in both versions.
    pub fn concerns(&self, known: &Probed<'_>) -> bool {
        let own = self.rules.iter().chain(&self.opaque).filter(|rule| !rule.is_in_both);
        own.into_iter().any(|rule| rule.says.may_match(known))
    }

    /// Whether some ALLOW policy is in force, so that what none of them matches is refused.
    pub fn has_allow(&self) -> bool {
        self.has_allow
    }

    /// What the connection of a call answers.
    pub fn answers(&self, probe: &Probe<'_>) -> Answers {
        // Those for opaque connections ask for nothing that these don't.
        let parts = self.rules.iter().flat_map(|rule| {
            let Conditions { from, to, when } = &rule.says.conditions;
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

/// Marks the rules that are in both lists.
fn mark(old: &mut [Numbered], new: &mut [Numbered]) {
    let before: HashSet<Says> = old.iter().map(|rule| rule.says.clone()).collect();
    let after: HashSet<&Says> = new.iter().map(|rule| &rule.says).collect();
    old.iter_mut().for_each(|rule| rule.is_in_both = after.contains(&rule.says));
    new.iter_mut().for_each(|rule| rule.is_in_both = before.contains(&rule.says));
}

/// Part of a call.
#[derive(Debug, Clone, Copy)]
pub enum Probed<'a> {
    /// Its connection.
    Connection(Option<&'a str>, u16),
    /// Its method.
    Method(&'a str),
    /// Its path.
    Path(&'a str),
}

impl Probed<'_> {
    /// Whether a condition holds, if this is all that it asks of.
    fn may_hold(&self, condition: &Condition) -> bool {
        let (nobody, nothing) = (None, 0);
        match (self, condition) {
            (&Self::Connection(identity, port), Condition::Connection(_)) => {
                holds(condition, &Probe { identity, port, request: None })
            }
            (&Self::Method(method), Condition::Request(test)) if matches!(**test, RequestTest::Method(_)) => {
                holds(condition, &Probe { identity: nobody, port: nothing, request: Some((method, "/")) })
            }
            (&Self::Path(path), Condition::Request(test)) if matches!(**test, RequestTest::Path(_)) => {
                holds(condition, &Probe { identity: nobody, port: nothing, request: Some(("GET", path)) })
            }
            _ => true,
        }
    }
}

impl Says {
    fn may_match(&self, known: &Probed<'_>) -> bool {
        let may_hold = |part: &Part| match part {
            Part::Known(condition) => known.may_hold(condition),
            Part::Open(_) => true,
        };
        let any = |clauses: &[Box<[Part]>]| {
            clauses.is_empty() || clauses.iter().any(|clause| clause.iter().all(may_hold))
        };
        let Conditions { from, to, when } = &self.conditions;
        any(from) && any(to) && when.iter().all(may_hold)
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
        ends: Option<snapshot::Expires>,
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
        let conditions = match ends {
            Some(ends) => {
                let when = conditions.when.into_iter().chain([Part::Open(unknowns.before(ends))]);
                Conditions { when: when.collect(), ..conditions }
            }
            None => conditions,
        };
        let provider = rule.label.consults().then(|| {
            let object = rule.label.policy.object_index().and_then(|object| objects.get(object as usize));
            let name =
                object.map_or_else(String::new, |object| format!("{}/{}", object.namespace, object.name));
            let text = format!("the provider of {name} allows");
            unknowns.number(Unknown::Provider(name), || text)
        });
        let says = Says { action: rule.label.action, provider, conditions };
        Self { policy: rule.label.policy, says, is_in_both: false }
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
        let Says { action, provider, conditions } = &self.says;
        Some(OpenRule {
            policy: self.policy,
            action: *action,
            provider: *provider,
            from: clauses(&conditions.from)?,
            to: clauses(&conditions.to)?,
            when: clause(&conditions.when)?,
            is_in_both: self.is_in_both,
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
    is_in_both: bool,
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

    /// What those of its rules depend on that are not in both versions.
    pub fn own_unknowns(&self) -> BTreeSet<usize> {
        self.rules.iter().filter(|rule| !rule.is_in_both).flat_map(OpenRule::unknowns).collect()
    }

    /// Whether rules of both versions may allow it, or refuse it; what they depend on is not told apart.
    pub fn others_may(&self, allow: bool) -> bool {
        let open = self.rules.iter().filter(|rule| rule.is_in_both && rule.unknowns().next().is_some());
        open.into_iter().any(|rule| (rule.action == AuthorizationAction::Allow) == allow)
    }

    /// Whether the call may go on, and which rule says so (NONE: a default), if this is true of the unknowns.
    pub fn under(&self, truth: impl Fn(usize) -> bool) -> (Outcome, PolicyRef) {
        self.first(|rule| rule.matches(&truth), &truth)
    }

    /// The same, where rules of both versions that depend on anything allow or not, as they are told, and refuse nothing.
    pub fn under_own(&self, others_allow: bool, truth: impl Fn(usize) -> bool) -> (Outcome, PolicyRef) {
        let matches = |rule: &OpenRule| match rule.is_in_both && rule.unknowns().next().is_some() {
            true => others_allow && rule.action == AuthorizationAction::Allow,
            false => rule.matches(&truth),
        };
        self.first(matches, &truth)
    }

    fn first(
        &self,
        matches: impl Fn(&OpenRule) -> bool,
        truth: &impl Fn(usize) -> bool,
    ) -> (Outcome, PolicyRef) {
        if let Some(policy) = self.shut_out {
            return (Outcome::Deny, policy);
        }
        for rule in self.rules.iter().filter(|rule| matches(rule)) {
            match rule.action {
                AuthorizationAction::Custom if rule.provider.is_some_and(truth) => {}
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
