//! Which rules can still match on a connection: rules on connections, found by the identity they ask for.

use std::collections::HashMap;
use std::hash::BuildHasher;

use control_client::snapshot::AuthorizationAction;
use foldhash::fast::RandomState;

use super::attributes::ConnectionAttributes;
use super::condition::{Condition, ConnectionTest, principal};
use super::index::RuleSet;
use super::rule::{Conditions, Residual, Rule};

/// Rules, in two parts: what requests alone answer, filed once; the rest, looked at when a connection is admitted.
#[derive(Debug)]
pub(super) struct Layer {
    wanted: Wanted,
    /// Shared by all connections.
    pub(super) shared: RuleSet,
    connected: ByIdentity,
}

/// Which of the rules that match are of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The first: it decides.
    First,
    /// All: each marks.
    All,
}

/// Rules that ask something of the connection, sorted by rank.
#[derive(Debug, Default)]
pub(super) struct ByIdentity {
    rules: Box<[Rule]>,
    /// Rules that only one of these principals can match.
    principals: HashMap<Box<[u8]>, Vec<u32>, RandomState>,
    /// Rules that only an identity with `/ns/<namespace>/` in it can match.
    namespaces: HashMap<Box<str>, Vec<u32>, RandomState>,
    rest: Vec<u32>,
}

impl Layer {
    /// Compiles rules, sorted by rank.
    pub(super) fn new(rules: Vec<Rule>, wanted: Wanted) -> Self {
        let (alone, connected): (Vec<_>, Vec<_>) = rules.into_iter().partition(Rule::asks_requests_only);
        // They ask nothing of it, so any connection will do.
        let alone = alone.iter().filter_map(|rule| rule.on(&ANY_CONNECTION)).collect();
        let shared = RuleSet::new(reachable(alone, wanted));
        Self { wanted, shared, connected: ByIdentity::new(connected) }
    }

    /// The rules of this connection alone.
    pub(super) fn on(&self, connection: &ConnectionAttributes<'_>) -> RuleSet {
        RuleSet::new(reachable(self.connected.on(connection), self.wanted))
    }

    /// What the rules ask of connections.
    pub(super) fn connection_tests(&self) -> impl Iterator<Item = &ConnectionTest> {
        self.connected.connection_tests()
    }
}

/// The ALLOW rules of a set without what they ask of the end user: what else is needed to match one of them.
pub(super) fn service_parts(rules: &RuleSet) -> RuleSet {
    let asks_user = |rule: &&Residual| rule.label.user && rule.label.action == AuthorizationAction::Allow;
    let parts = rules.rules().iter().filter(asks_user).map(Residual::service_part);
    RuleSet::new(reachable(parts.collect(), Wanted::First))
}

const ANY_CONNECTION: ConnectionAttributes<'static> = ConnectionAttributes {
    source_identity: None,
    source_ip: std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
    remote_ip: std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
    destination_ip: std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
    destination_port: 0,
    sni: None,
};

/// Leaves out the rules that can't be the first to match: those after one that always does, and repetitions.
fn reachable(mut rules: Vec<Residual>, wanted: Wanted) -> Vec<Residual> {
    if wanted == Wanted::All {
        return rules;
    }
    if let Some(always) = rules.iter().position(|rule| rule.conditions.is_empty()) {
        rules.truncate(always + 1);
    }
    if rules.len() < 2 {
        return rules;
    }
    let hasher = RandomState::default();
    let mut seen: HashMap<u64, Vec<usize>, RandomState> = HashMap::default();
    let mut kept: Vec<Residual> = Vec::with_capacity(rules.len());
    for rule in rules {
        let alike = seen.entry(hasher.hash_one(&rule.conditions)).or_default();
        let repeats = |at: &usize| {
            let earlier = &kept[*at];
            earlier.label.action == rule.label.action && earlier.conditions == rule.conditions
        };
        if !alike.iter().any(repeats) {
            alike.push(kept.len());
            kept.push(rule);
        }
    }
    kept
}

/// A part of an identity that a rule can't match without.
enum Key<'a> {
    Principal(&'a [u8]),
    Namespace(&'a str),
}

impl ByIdentity {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        let mut by_identity = Self::default();
        for (index, rule) in rules.iter().enumerate() {
            let index = index as u32;
            match keys(&rule.conditions) {
                Some(keys) => keys.into_iter().for_each(|key| match key {
                    Key::Principal(name) => {
                        by_identity.principals.entry(name.into()).or_default().push(index)
                    }
                    Key::Namespace(name) => {
                        by_identity.namespaces.entry(name.into()).or_default().push(index)
                    }
                }),
                None => by_identity.rest.push(index),
            }
        }
        Self { rules: rules.into(), ..by_identity }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub(super) fn connection_tests(&self) -> impl Iterator<Item = &ConnectionTest> {
        self.rules.iter().flat_map(Rule::connection_tests)
    }

    /// What is left of the rules that can match, by rank.
    pub(super) fn on(&self, connection: &ConnectionAttributes<'_>) -> Vec<Residual> {
        let mut candidates = self.rest.clone();
        if let Some(principal) = principal(connection) {
            candidates.extend(self.principals.get(principal.as_bytes()).into_iter().flatten());
            for namespace in namespaces(connection.source_identity.unwrap_or_default()) {
                candidates.extend(self.namespaces.get(namespace).into_iter().flatten());
            }
        }
        candidates.sort_unstable();
        candidates.dedup();
        candidates.iter().filter_map(|&index| self.rules[index as usize].on(connection)).collect()
    }
}

/// Every `x` of `/ns/x/` in an identity.
fn namespaces(identity: &str) -> impl Iterator<Item = &str> {
    let found = identity.match_indices("/ns/").filter_map(|(at, separator)| {
        let after = &identity[at + separator.len()..];
        after.find('/').map(|end| &after[..end])
    });
    found.into_iter()
}

/// What one of which an identity must have to match; `None`: any identity may.
fn keys(conditions: &Conditions<Condition>) -> Option<Vec<Key<'_>>> {
    if let Some(keys) = conditions.when.iter().find_map(keys_of) {
        return Some(keys);
    }
    if conditions.from.is_empty() {
        return None;
    }
    let of_clauses: Option<Vec<_>> =
        conditions.from.iter().map(|clause| clause.iter().find_map(keys_of)).collect();
    of_clauses.map(|lists| lists.into_iter().flatten().collect())
}

fn keys_of(condition: &Condition) -> Option<Vec<Key<'_>>> {
    let Condition::Connection(test) = condition else { return None };
    let keys: Vec<_> = match test {
        ConnectionTest::Principal(both) if both.is.other.is_empty() => {
            both.is.exact.iter().map(|name| Key::Principal(name)).collect()
        }
        ConnectionTest::Namespace(both) => {
            both.is.iter().map(|glob| glob.exact().map(Key::Namespace)).collect::<Option<_>>()?
        }
        ConnectionTest::ServiceAccount(both) => {
            both.is.iter().map(|account| Key::Namespace(account.namespace())).collect()
        }
        _ => return None,
    };
    (!keys.is_empty()).then_some(keys)
}
