//! One rule of an AuthorizationPolicy, compiled; and what is left of it once the connection is known.

use std::sync::Arc;

use control_client::snapshot::{self, AuthorizationAction, ProviderIndex};

use super::attributes::ConnectionAttributes;
use super::condition::{Asked, Condition, ConnectionTest, RequestTest, TrustDomains};
use super::kept::{Kept, Lacking};
use super::{CompileError, Located};
use crate::decision::PolicyRef;

/// Conditions that are ANDed.
type Clause<C> = Box<[C]>;

/// `(OR over from) AND (OR over to) AND when`; an empty `from` or `to` is satisfied.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Conditions<C> {
    pub(super) from: Box<[Clause<C>]>,
    pub(super) to: Box<[Clause<C>]>,
    pub(super) when: Clause<C>,
}

/// Which rule it is, and what follows from its match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label {
    /// Order of evaluation among all rules: the lowest that matches decides.
    pub(super) rank: u32,
    pub(super) policy: PolicyRef,
    pub(super) action: AuthorizationAction,
    pub(super) dry_run: bool,
    pub(super) quarantined: bool,
    /// Asks for the end user.
    pub(super) user: bool,
    /// Whom a CUSTOM rule asks.
    pub(super) provider: Option<ProviderIndex>,
}

impl Label {
    /// What follows from its match is not known here: a provider has to be asked.
    pub(super) fn consults(&self) -> bool {
        self.provider.is_some() && !self.dry_run && !self.quarantined
    }
}

/// A rule as written.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) label: Label,
    pub(super) conditions: Conditions<Condition>,
}

/// A rule on one connection: what it still asks of requests.
#[derive(Debug, Clone)]
pub(super) struct Residual {
    pub(super) label: Label,
    pub(super) conditions: Conditions<Arc<RequestTest>>,
}

impl Rule {
    pub(super) fn compile(
        policy: &snapshot::AuthorizationPolicy,
        rule: &snapshot::AuthorizationRule,
        domains: &TrustDomains,
        objects: &[snapshot::ObjectRef],
    ) -> Result<Self, CompileError> {
        let conditions = Conditions::compile(policy.object, rule, domains, objects)?;
        let user = conditions.iter().any(Condition::asks_user);
        Ok(Self {
            label: Label {
                rank: 0,
                policy: PolicyRef::rule(policy.object, rule.index),
                action: policy.action,
                dry_run: policy.dry_run,
                quarantined: policy.quarantined,
                user,
                provider: policy.provider.filter(|_| policy.action == AuthorizationAction::Custom),
            },
            conditions,
        })
    }

    /// The rule for opaque connections. What only HTTP has fails an ALLOW rule and is left out of any other.
    pub(super) fn for_tcp(&self) -> Option<Self> {
        let allow = self.label.action == AuthorizationAction::Allow;
        if allow && self.conditions.iter().any(|condition| condition.for_tcp().is_none()) {
            return None;
        }
        let clause = |clause: &Clause<Condition>| -> Clause<Condition> {
            clause.iter().filter_map(|each| each.for_tcp().map(Condition::Connection)).collect()
        };
        let conditions = Conditions {
            from: self.conditions.from.iter().map(clause).collect(),
            to: self.conditions.to.iter().map(clause).collect(),
            when: clause(&self.conditions.when),
        };
        Some(Self { label: Label { user: false, ..self.label }, conditions })
    }

    /// What is left of the rule on a connection; `None`: it can't match there.
    pub(super) fn on(&self, connection: &ConnectionAttributes<'_>) -> Option<Residual> {
        Some(Residual { label: self.label, conditions: self.conditions.on(connection)? })
    }

    /// What it asks of requests.
    pub(super) fn request_tests(&self) -> impl Iterator<Item = &RequestTest> {
        self.conditions.iter().filter_map(|condition| match condition {
            Condition::Request(test) => Some(&**test),
            Condition::Connection(_) => None,
        })
    }

    /// True if no connection answers anything of it.
    pub(super) fn asks_requests_only(&self) -> bool {
        self.conditions.iter().all(|condition| matches!(condition, Condition::Request(_)))
    }

    /// What it asks of connections.
    pub(super) fn connection_tests(&self) -> impl Iterator<Item = &ConnectionTest> {
        self.conditions.iter().filter_map(|condition| match condition {
            Condition::Connection(test) => Some(test),
            Condition::Request(_) => None,
        })
    }
}

/// ORed clauses: those that can still hold. One of them with nothing left to ask satisfies the list.
fn clauses_on(
    clauses: &[Clause<Condition>],
    connection: &ConnectionAttributes<'_>,
) -> Option<Box<[Clause<Arc<RequestTest>>]>> {
    if clauses.is_empty() {
        return Some(Box::default());
    }
    let left: Vec<_> = clauses.iter().filter_map(|clause| clause_on(clause, connection)).collect();
    if left.is_empty() {
        return None;
    }
    if left.iter().any(|clause| clause.is_empty()) {
        return Some(Box::default());
    }
    Some(left.into())
}

fn clause_on(
    clause: &[Condition],
    connection: &ConnectionAttributes<'_>,
) -> Option<Clause<Arc<RequestTest>>> {
    let mut left = Vec::new();
    for condition in clause {
        match condition {
            Condition::Connection(test) if test.holds(connection) => {}
            Condition::Connection(_) => return None,
            Condition::Request(test) => left.push(Arc::clone(test)),
        }
    }
    Some(left.into())
}

impl<C> Conditions<C> {
    /// All conditions, wherever they stand.
    pub(super) fn iter(&self) -> impl Iterator<Item = &C> {
        self.from.iter().chain(&self.to).flatten().chain(&self.when)
    }

    /// The conditions that must hold whatever else does: `when`, and the clause of a list that has no other.
    pub(super) fn required(&self) -> impl Iterator<Item = &C> {
        let only = |clauses: &'_ [Clause<C>]| (clauses.len() == 1).then_some(0);
        let (from, to) = (only(&self.from), only(&self.to));
        let from = from.into_iter().flat_map(|at| &self.from[at]);
        let to = to.into_iter().flat_map(|at| &self.to[at]);
        from.chain(to).chain(&self.when)
    }

    /// True if nothing is asked.
    pub(super) fn is_empty(&self) -> bool {
        self.from.is_empty() && self.to.is_empty() && self.when.is_empty()
    }
}

impl Conditions<Condition> {
    pub(super) fn compile(
        object: u32,
        rule: &snapshot::AuthorizationRule,
        domains: &TrustDomains,
        objects: &[snapshot::ObjectRef],
    ) -> Result<Self, CompileError> {
        let clause = |conditions: &[snapshot::Condition]| -> Result<Clause<Condition>, CompileError> {
            let compile = |condition: &snapshot::Condition| {
                let field = || format!("spec.rules[{}].{}", rule.index, condition.field);
                Condition::compile(condition, domains).map_err(|error| (field(), error))
            };
            let compiled = conditions.iter().map(compile);
            compiled.map(|each| each.or_else(|(field, e)| Err(e).located(object, objects, &field))).collect()
        };
        let clauses = |list: &[Vec<snapshot::Condition>]| -> Result<Box<[_]>, CompileError> {
            list.iter().map(|each| clause(each)).collect()
        };
        Ok(Self { from: clauses(&rule.from)?, to: clauses(&rule.to)?, when: clause(&rule.when)? })
    }

    /// What is left on a connection; `None`: they can't hold there.
    pub(super) fn on(&self, connection: &ConnectionAttributes<'_>) -> Option<Conditions<Arc<RequestTest>>> {
        Some(Conditions {
            from: clauses_on(&self.from, connection)?,
            to: clauses_on(&self.to, connection)?,
            when: clause_on(&self.when, connection)?,
        })
    }

    /// Whether they hold of an opaque connection; what only HTTP has does not.
    pub(super) fn hold_for_tcp(&self, connection: &ConnectionAttributes<'_>) -> bool {
        let holds = |condition: &Condition| condition.for_tcp().is_some_and(|test| test.holds(connection));
        let any = |clauses: &[Clause<Condition>]| {
            clauses.is_empty() || clauses.iter().any(|clause| clause.iter().all(holds))
        };
        any(&self.from) && any(&self.to) && self.when.iter().all(holds)
    }
}

impl Conditions<Arc<RequestTest>> {
    /// Whether they hold of a request.
    pub(super) fn hold(&self, request: &Asked<'_>) -> bool {
        self.hold_by(|test| test.holds(request))
    }

    fn hold_by(&self, holds: impl Fn(&Arc<RequestTest>) -> bool) -> bool {
        let all = |clause: &Clause<Arc<RequestTest>>| clause.iter().all(&holds);
        let any = |clauses: &[Clause<_>]| clauses.is_empty() || clauses.iter().any(all);
        all(&self.when) && any(&self.to) && any(&self.from)
    }
}

impl Condition {
    pub(super) fn asks_user(&self) -> bool {
        matches!(self, Self::Request(test) if test.asks_user())
    }
}

impl Residual {
    /// The first that it asks for and that was not kept.
    pub(super) fn lacks(&self, kept: Kept<'_>) -> Option<Lacking> {
        self.conditions.iter().find_map(|test| kept.lacks(test))
    }

    /// Whether the request meets it if what was not kept is all as it asks (`assumed`), or none of it.
    pub(super) fn is_met_if(&self, assumed: bool, request: &Asked<'_>, kept: Kept<'_>) -> bool {
        self.conditions.hold_by(|test| match kept.lacks(test) {
            Some(_) => assumed,
            None => test.holds(request),
        })
    }

    /// Asks the request.
    pub(super) fn matches(&self, request: &Asked<'_>) -> bool {
        self.conditions.hold(request)
    }

    /// What it asks beside the end user.
    pub(super) fn service_part(&self) -> Self {
        let clause = |clause: &Clause<Arc<RequestTest>>| -> Clause<Arc<RequestTest>> {
            clause.iter().filter(|test| !test.asks_user()).cloned().collect()
        };
        let clauses = |clauses: &[Clause<_>]| -> Box<[_]> {
            let left: Box<[_]> = clauses.iter().map(clause).collect();
            // One of them with nothing left to ask satisfies the list.
            if left.iter().any(|clause| clause.is_empty()) { Box::default() } else { left }
        };
        let Conditions { from, to, when } = &self.conditions;
        Self {
            label: self.label,
            conditions: Conditions { from: clauses(from), to: clauses(to), when: clause(when) },
        }
    }
}
