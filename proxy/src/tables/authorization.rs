//! AuthorizationPolicy: what is constant for a connection decided once, the rest for each request.
//!
//! Enforced rules stand in one order: CUSTOM, DENY, ALLOW, and by object and rule within each. The first that matches
//! decides, so that "which policy" has one answer. CUSTOM rules with a provider stand apart: what they match has to be
//! asked about, and a provider is asked once. AUDIT and dry-run rules only mark, in a layer of their own.

use std::sync::{Arc, Mutex, PoisonError};

use control_client::snapshot::{self, AuthorizationAction, AuthorizationPolicy, ProviderIndex};
use smallvec::SmallVec;

use super::CompileError;
use super::admission::{ByIdentity, Layer, Wanted, service_parts};
use super::attributes::{ConnectionAttributes, RequestAttributes};
use super::condition::{Asked, TrustDomains};
use super::consider::{Consideration, Considered};
use super::index::{Next, RuleSet};
use super::kept::{HeaderNames, Kept, Lacking};
use super::policies::{Compiled, Ordered, in_order, understand};
use super::providers::Consultation;
use super::remainder::{LookedAt, Remainder, Remainders};
use super::rule::{Label, Residual, Rule};
use crate::decision::{CheckOutcome, CheckResult, Outcome, PolicyRef, Reason, Shadow};

/// What authorization decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// Whether the request may go on.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// The rule that decided; the object alone where it has no rule to name; NONE where a default decided.
    pub policy: PolicyRef,
    /// The `service-authorization` check.
    pub service: CheckResult,
    /// The `user-authorization` check.
    pub user: CheckResult,
    /// The first AUDIT rule that matched.
    pub audit: PolicyRef,
    /// What dry-run policies would have done.
    pub shadow: SmallVec<[Shadow; 1]>,
}

/// What later policies say of what went on under earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reauthorization {
    /// It may still.
    Allowed,
    /// It may not, for this reason and by this rule.
    Refused(Reason, PolicyRef),
    /// This rule would end it, if this was what it asks for; and that was not kept.
    Unknown(PolicyRef, Lacking),
    /// By this rule a provider would have to be asked that wasn't.
    Asks(PolicyRef),
}

/// Who has to be asked about a request, in order; each provider once, by the first rule that asks it.
pub type Consultations = SmallVec<[Consultation; 2]>;

/// At most so many dry-run policies are named for a request.
const MAX_SHADOW: usize = 8;

/// The policies of one workload.
#[derive(Debug)]
pub(super) struct Authorizer {
    enforced: Layer,
    /// Of what of it all connections share.
    service_parts: RuleSet,
    consulting: Layer,
    /// The rules of `consulting`, and whom each asks.
    custom: Box<[(PolicyRef, ProviderIndex)]>,
    marking: Layer,
    /// Rules as they apply to opaque connections: enforced, consulting and marking.
    tcp: [ByIdentity; 3],
    facts: Facts,
    looked_at: LookedAt,
    header_names: Arc<HeaderNames>,
    consideration: Consideration,
    remainders: Mutex<Remainders>,
}

/// What is true of all requests.
#[derive(Debug, Default)]
struct Facts {
    /// There are ALLOW policies, so what none of them matches is denied.
    has_allow: bool,
    /// The first ALLOW policy that could not be understood.
    quarantined_allow: Option<PolicyRef>,
    /// The first dry-run ALLOW policy.
    shadow_allow: Option<PolicyRef>,
    /// Nobody is asked.
    no_consulting: bool,
    /// Nothing marks.
    no_marks: bool,
}

impl Authorizer {
    /// Compiles the policies. One that can't be understood fails closed alone, and is told of beside.
    pub(super) fn compile(policy: &snapshot::Policy) -> (Self, Vec<CompileError>) {
        let domains = TrustDomains::new(&policy.mesh);
        let (policies, refused) = understand(policy, &domains);
        let Ordered { enforced, consulting, marking } =
            in_order(policies.iter().flat_map(|each| &each.rules));
        let tcp = [tcp_rules(&enforced), tcp_rules(&consulting), tcp_rules(&marking)];
        let facts =
            Facts { no_consulting: consulting.is_empty(), ..Facts::of(&policies, marking.is_empty()) };
        let looked_at = enforced.iter().chain(&consulting).flat_map(Rule::request_tests);
        let header_names = Arc::new(HeaderNames::by(looked_at));
        let (enforced, marking) = (Layer::new(enforced, Wanted::First), Layer::new(marking, Wanted::All));
        let service_parts = service_parts(&enforced.shared);
        let asks = |rule: &Rule| Some((rule.label.policy, rule.label.provider?));
        let custom = consulting.iter().filter_map(asks).collect();
        let consulting = Layer::new(consulting, Wanted::All);
        let tests = [&enforced, &consulting, &marking].into_iter().flat_map(Layer::connection_tests);
        let looked_at = LookedAt::by(tests.chain(tcp.iter().flat_map(ByIdentity::connection_tests)));
        let consideration = Consideration::compile(&policies, &domains);
        let remainders = Mutex::default();
        let authorizer = Self {
            enforced,
            service_parts,
            consulting,
            custom,
            marking,
            tcp,
            facts,
            looked_at,
            header_names,
            consideration,
            remainders,
        };
        (authorizer, refused)
    }

    pub(super) fn admit(&self, connection: &ConnectionAttributes<'_>) -> Arc<Remainder> {
        let connection = self.looked_at.of(connection);
        if let Some(known) = self.remainders().get(&connection) {
            return known;
        }
        // Not under the lock: two connections may do the same work, but none waits.
        let attributes = connection.attributes();
        let rules = [&self.enforced, &self.consulting, &self.marking].map(|layer| layer.on(&attributes));
        let remainder = Arc::new(Remainder::new(connection, rules));
        self.remainders().keep(&remainder);
        remainder
    }

    pub(super) fn authorize(&self, remainder: &Remainder, request: &RequestAttributes<'_>) -> Authorization {
        let request = Asked::new(request);
        let mut search = Search::default();
        let mut look = |rule: &Residual| search.look_at(rule, rule.matches(&request));
        remainder.enforced.visit(&request, &mut look);
        self.enforced.shared.visit(&request, &mut look);
        let mut authorization = self.facts.conclude(search.first, || self.service_part(remainder, &request));
        if !self.facts.no_marks {
            let mut marks = Marks::default();
            let mut mark = |rule: &Residual| marks.look_at(&rule.label, rule.matches(&request));
            remainder.marking.visit(&request, &mut mark);
            self.marking.shared.visit(&request, &mut mark);
            self.facts.mark(&mut authorization, marks);
        }
        authorization
    }

    /// The first ALLOW rule of which only the user part failed, when no rule has matched.
    fn service_part(&self, remainder: &Remainder, request: &Asked<'_>) -> Option<Label> {
        let mut search = Search::default();
        let mut look = |part: &Residual| search.look_at(part, part.matches(request));
        remainder.service_parts().visit(request, &mut look);
        self.service_parts.visit(request, &mut look);
        search.first
    }

    pub(super) fn header_names(&self) -> &Arc<HeaderNames> {
        &self.header_names
    }

    /// What was not kept may have been anything.
    pub(super) fn reauthorize(
        &self,
        remainder: &Remainder,
        request: &RequestAttributes<'_>,
        kept: Kept<'_>,
    ) -> Reauthorization {
        let request = Asked::new(request);
        let mut search = Search::default();
        let mut look = |rule: &Residual| match rule.lacks(kept) {
            Some(_) if !rule.is_met_if(false, &request, kept) => Next::More,
            Some(_) => search.look_at(rule, true),
            None => search.look_at(rule, rule.matches(&request)),
        };
        remainder.enforced.visit(&request, &mut look);
        self.enforced.shared.visit(&request, &mut look);
        let decided = self.facts.conclude(search.first, || None);
        if decided.outcome == Outcome::Deny {
            return Reauthorization::Refused(decided.reason, decided.policy);
        }
        if kept.is_all() {
            return Reauthorization::Allowed;
        }
        // The index finds rules by what is there; these may match by what was.
        let rules = remainder.enforced.rules().iter().chain(self.enforced.shared.rules());
        let before = |rule: &&Residual| search.first.is_none_or(|first| rule.label.rank < first.rank);
        let ends = |rule: &&Residual| consequence(rule.label.action).0 == Outcome::Deny;
        for rule in rules.filter(before).filter(ends) {
            if let Some(lacking) = rule.lacks(kept)
                && rule.is_met_if(true, &request, kept)
            {
                return Reauthorization::Unknown(rule.label.policy, lacking);
            }
        }
        Reauthorization::Allowed
    }

    /// The rules by which somebody is asked, and who.
    pub(super) fn consulting(&self) -> impl Iterator<Item = (PolicyRef, ProviderIndex)> {
        self.custom.iter().copied()
    }

    /// Whether anybody is ever asked.
    pub(super) fn consults(&self) -> bool {
        !self.facts.no_consulting
    }

    pub(super) fn consult(&self, remainder: &Remainder, request: &RequestAttributes<'_>) -> Consultations {
        let request = Asked::new(request);
        let mut matched = SmallVec::<[Label; 2]>::new();
        let mut look_at = |rule: &Residual| {
            if rule.matches(&request) {
                matched.push(rule.label);
            }
            Next::More
        };
        remainder.consulting.visit(&request, &mut look_at);
        self.consulting.shared.visit(&request, &mut look_at);
        matched.sort_unstable_by_key(|rule| rule.rank);
        once_each(matched.iter())
    }

    /// Whether a rule that `is_new` asks a provider about what went on without it.
    pub(super) fn asks_anew(
        &self,
        remainder: &Remainder,
        request: &RequestAttributes<'_>,
        kept: Kept<'_>,
        is_new: impl Fn(PolicyRef, ProviderIndex) -> bool,
    ) -> Reauthorization {
        let request = Asked::new(request);
        // All are looked at, beside the index: it finds rules by what is there, and some may match by what was.
        let rules = remainder.consulting.rules().iter().chain(self.consulting.shared.rules());
        let new = rules
            .filter(|rule| rule.label.provider.is_some_and(|provider| is_new(rule.label.policy, provider)));
        let matching = new.filter_map(|rule| match rule.lacks(kept) {
            Some(lacking) => {
                let may = rule.is_met_if(true, &request, kept);
                may.then_some((rule.label, Reauthorization::Unknown(rule.label.policy, lacking)))
            }
            None => {
                let asks = Reauthorization::Asks(rule.label.policy);
                rule.matches(&request).then_some((rule.label, asks))
            }
        });
        let first = matching.min_by_key(|(label, _)| label.rank);
        first.map_or(Reauthorization::Allowed, |(_, reauthorization)| reauthorization)
    }

    /// What is decided about an opaque connection, and who has to be asked before it is.
    pub(super) fn opaque<'r>(&self, remainder: &'r Remainder) -> &'r (Authorization, Consultations) {
        remainder.tcp.get_or_init(|| self.decide_tcp(&remainder.connection.attributes()))
    }

    fn decide_tcp(&self, connection: &ConnectionAttributes<'_>) -> (Authorization, Consultations) {
        let [enforced, consulting, marking] = &self.tcp;
        // Nothing is left to ask of what can match.
        let first = enforced.on(connection).first().map(|rule| rule.label);
        let mut authorization = self.facts.conclude(first, || None);
        if !marking.is_empty() || self.facts.shadow_allow.is_some() {
            let mut marks = Marks::default();
            for rule in marking.on(connection) {
                marks.look_at(&rule.label, true);
            }
            self.facts.mark(&mut authorization, marks);
        }
        let consulting = consulting.on(connection);
        (authorization, once_each(consulting.iter().map(|rule| &rule.label)))
    }

    pub(super) fn consider(
        &self,
        connection: &ConnectionAttributes<'_>,
        request: Option<&RequestAttributes<'_>>,
        limit: usize,
    ) -> Considered {
        self.consideration.consider(connection, request, limit)
    }

    fn remainders(&self) -> std::sync::MutexGuard<'_, Remainders> {
        // What a panic may leave behind is a cache with an entry more or less.
        self.remainders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tcp_rules(rules: &[Rule]) -> ByIdentity {
    ByIdentity::new(rules.iter().filter_map(Rule::for_tcp).collect())
}

/// The first rule by which each provider is asked, of rules in order.
fn once_each<'a>(rules: impl Iterator<Item = &'a Label>) -> Consultations {
    let mut consultations = Consultations::new();
    for rule in rules {
        let Some(provider) = rule.provider else { continue };
        if !consultations.iter().any(|known| known.provider == provider) {
            consultations.push(Consultation { provider, policy: rule.policy, user: rule.user });
        }
    }
    consultations
}

/// The first rule that matches, as far as looked.
#[derive(Default)]
struct Search {
    first: Option<Label>,
}

impl Search {
    fn look_at(&mut self, rule: &Residual, matches: bool) -> Next {
        if self.first.is_some_and(|first| first.rank <= rule.label.rank) {
            return Next::Enough;
        }
        if matches {
            self.first = Some(rule.label);
            return Next::Enough;
        }
        Next::More
    }
}

/// All marking rules that match.
#[derive(Default)]
struct Marks {
    audit: Option<Label>,
    shadow: SmallVec<[Label; 4]>,
}

impl Marks {
    fn look_at(&mut self, label: &Label, matches: bool) -> Next {
        if matches {
            if label.dry_run {
                self.shadow.push(*label);
            } else if self.audit.is_none_or(|audit| label.rank < audit.rank) {
                self.audit = Some(*label);
            }
        }
        Next::More
    }
}

impl Facts {
    fn of(policies: &[Compiled<'_>], no_rule_marks: bool) -> Self {
        let allow = |dry_run| {
            let policies = policies.iter().map(|each| &*each.policy);
            policies.filter(move |each| each.action == AuthorizationAction::Allow && each.dry_run == dry_run)
        };
        let first = |policies: &mut dyn Iterator<Item = &AuthorizationPolicy>| {
            policies.map(|each| each.object).min().map(PolicyRef::object)
        };
        let shadow_allow = first(&mut allow(true));
        Self {
            has_allow: allow(false).next().is_some(),
            quarantined_allow: first(&mut allow(false).filter(|each| each.quarantined)),
            no_consulting: true,
            no_marks: no_rule_marks && shadow_allow.is_none(),
            shadow_allow,
        }
    }

    /// `service_part`: the first ALLOW rule of which only the user part failed.
    fn conclude(&self, first: Option<Label>, service_part: impl FnOnce() -> Option<Label>) -> Authorization {
        match first {
            Some(rule) => by_rule(&rule),
            None if !self.has_allow => no_policy(),
            None => self.nothing_allowed(service_part()),
        }
    }

    /// A quarantined ALLOW might have allowed it: then that is what the operator has to know.
    fn nothing_allowed(&self, service_part: Option<Label>) -> Authorization {
        let (reason, policy) = match self.quarantined_allow {
            Some(object) => (Reason::QuarantinedPolicy, object),
            None => (Reason::NoAllowMatched, PolicyRef::NONE),
        };
        let failed = CheckResult::new(CheckOutcome::Fail, reason, policy);
        let (service, user) = match service_part {
            Some(rule) => (CheckResult::new(CheckOutcome::Pass, Reason::MatchedAllow, rule.policy), failed),
            None => (failed, CheckResult::NOT_REACHED),
        };
        decided(Outcome::Deny, reason, policy, service, user)
    }

    /// Adds what marking rules say.
    fn mark(&self, authorization: &mut Authorization, mut marks: Marks) {
        authorization.audit = marks.audit.map_or(PolicyRef::NONE, |rule| rule.policy);
        marks.shadow.sort_unstable_by_key(|rule| rule.rank);
        let same_object = |a: &mut Label, b: &mut Label| a.policy.object_index() == b.policy.object_index();
        marks.shadow.dedup_by(same_object);
        let allowed = marks.shadow.iter().any(|rule| rule.action == AuthorizationAction::Allow);
        let matched = marks.shadow.iter().map(|rule| {
            let (outcome, reason) = consequence(rule.action);
            Shadow { policy: rule.policy, outcome, reason }
        });
        let unmatched = self.shadow_allow.filter(|_| !allowed).map(|policy| Shadow {
            policy,
            outcome: Outcome::Deny,
            reason: Reason::NoAllowMatched,
        });
        authorization.shadow = unmatched.into_iter().chain(matched).take(MAX_SHADOW).collect();
    }
}

/// What the match of an enforced rule leads to. A CUSTOM rule is among them only if there is nobody to ask.
fn consequence(action: AuthorizationAction) -> (Outcome, Reason) {
    match action {
        AuthorizationAction::Custom => (Outcome::Deny, Reason::ProviderUnavailable),
        AuthorizationAction::Deny => (Outcome::Deny, Reason::MatchedDeny),
        AuthorizationAction::Allow | AuthorizationAction::Audit => (Outcome::Allow, Reason::MatchedAllow),
    }
}

fn by_rule(rule: &Label) -> Authorization {
    let (outcome, mut reason) = consequence(rule.action);
    if rule.quarantined {
        reason = Reason::QuarantinedPolicy;
    }
    let result = |check| CheckResult::new(check, reason, rule.policy);
    let no_user = CheckResult::new(CheckOutcome::NotRequired, Reason::NoUserCondition, PolicyRef::NONE);
    let (service, user) = match (outcome, rule.user) {
        (Outcome::Allow, false) => (result(CheckOutcome::Pass), no_user),
        // A rule on the user is one on the caller too.
        (Outcome::Allow, true) => (result(CheckOutcome::Pass), result(CheckOutcome::Pass)),
        (Outcome::Deny, false) => (result(CheckOutcome::Fail), CheckResult::NOT_REACHED),
        (Outcome::Deny, true) => (CheckResult::NOT_REACHED, result(CheckOutcome::Fail)),
    };
    decided(outcome, reason, rule.policy, service, user)
}

fn no_policy() -> Authorization {
    let result = |reason| CheckResult::new(CheckOutcome::NotRequired, reason, PolicyRef::NONE);
    let (service, user) = (result(Reason::NoPolicy), result(Reason::NoUserCondition));
    decided(Outcome::Allow, Reason::NoPolicy, PolicyRef::NONE, service, user)
}

fn decided(
    outcome: Outcome,
    reason: Reason,
    policy: PolicyRef,
    service: CheckResult,
    user: CheckResult,
) -> Authorization {
    Authorization { outcome, reason, policy, service, user, audit: PolicyRef::NONE, shadow: SmallVec::new() }
}
