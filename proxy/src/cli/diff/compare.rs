//! Two versions of the policies of one workload, asked about the same calls.

use std::collections::{BTreeMap, BTreeSet};

use control_client::snapshot::{self, Policy};

use super::vocabulary::Vocabulary;
use crate::decision::{Outcome, PolicyRef};
use crate::tables::{Open, Probe, Reach, Unknowns};

/// What becomes of some calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Refused before, allowed now.
    Grants,
    /// Allowed before, refused now.
    Takes,
    /// The first, for some of what can't be known.
    MayGrant,
    /// The second.
    MayTake,
    /// Both.
    Mixed,
    /// Depends on more than can be tried.
    Unknown,
}

/// Calls of which the same becomes, by the same rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) kind: Kind,
    /// What decides on it beside, as it was written.
    pub(super) depends_on: Vec<String>,
    /// Which rules decided before and decide now; empty: a default.
    pub(super) before: String,
    pub(super) after: String,
    pub(super) principals: Vec<String>,
    /// Empty: any.
    pub(super) ports: Vec<String>,
    pub(super) calls: Vec<Calls>,
}

/// Methods on paths; an opaque connection has neither.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Calls {
    /// Empty: any.
    pub(super) methods: Vec<String>,
    /// Empty: any.
    pub(super) paths: Vec<String>,
    pub(super) opaque: bool,
}

/// Calls that are tried; more are not told apart.
const MAX_CALLS: usize = 1_000_000;
/// Unknowns that are tried both ways.
const MAX_UNKNOWNS: usize = 10;

/// What a change does to the workloads that policies are for.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) changes: Vec<Change>,
    /// What may not be meant.
    pub(super) warnings: Vec<String>,
    /// What also changed and calls don't show.
    pub(super) unknown: Vec<String>,
}

impl Findings {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.warnings.is_empty() && self.unknown.is_empty()
    }
}

/// What the change does.
pub(super) fn compare(old: &Policy, new: &Policy, callers: &BTreeSet<String>) -> Findings {
    let mut findings = Findings { unknown: beside(old, new), ..Findings::default() };
    if same(old, new) {
        return findings;
    }
    let mut unknowns = Unknowns::default();
    let before = Reach::new(old, &mut unknowns);
    let after = Reach::new(new, &mut unknowns);
    if before.has_allow() && !after.has_allow() {
        findings.warnings.push(
            "the last ALLOW policy in force is gone: from now on everything is allowed that no other policy refuses"
                .to_owned(),
        );
    }
    let vocabulary = Vocabulary::of([old, new], callers);
    if vocabulary.calls() > MAX_CALLS {
        let why = format!("the policies tell {} calls apart, more than are tried", vocabulary.calls());
        findings.unknown.push(why);
        return findings;
    }
    let tried = Tried { before, after, unknowns, names: [named(old), named(new)] };
    findings.changes = Cells::of(&vocabulary, &tried).changes(&vocabulary);
    if findings.changes.is_empty() {
        findings.unknown.push(format!(
            "the policies differ, and not for any of the {} calls that were tried",
            vocabulary.calls()
        ));
    }
    findings
}

/// What decides on access beside the policies that are compared, where it changed.
fn beside(old: &Policy, new: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    let tokens = |policy: &Policy| -> Vec<(String, snapshot::RequestAuthentication)> {
        let each = policy.request_authentication.iter().cloned();
        let named = named(policy);
        each.map(|each| {
            let name = named.get(each.object as usize).cloned().unwrap_or_default();
            (name, snapshot::RequestAuthentication { object: 0, ..each })
        })
        .collect()
    };
    let (before, after) = (tokens(old), tokens(new));
    let differing = before.iter().filter(|each| !after.contains(each));
    let names: BTreeSet<_> =
        differing.chain(after.iter().filter(|each| !before.contains(each))).map(|(name, _)| name).collect();
    found.extend(names.into_iter().map(|name| format!("{name} changes which tokens of end users are taken")));
    let limits = |policy: &Policy| -> Vec<(String, snapshot::RateLimit)> {
        let named = named(policy);
        let each = policy.rate_limits.iter().cloned();
        each.map(|each| {
            let name = named.get(each.object as usize).cloned().unwrap_or_default();
            (name, snapshot::RateLimit { object: 0, ..each })
        })
        .collect()
    };
    let (before, after) = (limits(old), limits(new));
    let differing = before.iter().filter(|each| !after.contains(each));
    let names: BTreeSet<_> =
        differing.chain(after.iter().filter(|each| !before.contains(each))).map(|(name, _)| name).collect();
    found.extend(names.into_iter().map(|name| format!("{name} changes how often something may be done")));
    let (a, b) = (&old.mesh, &new.mesh);
    for (differs, field) in [
        (
            (a.path_normalization, a.ambiguous_paths) != (b.path_normalization, b.ambiguous_paths),
            "pathNormalization: paths are read otherwise",
        ),
        (
            a.trusted_forwarders != b.trusted_forwarders,
            "trustedForwarders: others say whom a request is from",
        ),
        (a.proxy_protocol != b.proxy_protocol, "proxyProtocol: others say whom a connection is from"),
        (a.outbound != b.outbound, "outboundTrafficPolicy: what may be called outside of the mesh"),
        (a.expired_credentials != b.expired_credentials, "expiredCredentials: what stays open"),
    ] {
        if differs {
            found.push(format!("MeshSettings changes {field}"));
        }
    }
    found
}

/// Whether access can't differ: objects may have moved in their lists.
fn same(old: &Policy, new: &Policy) -> bool {
    let of = |policy: &Policy| -> Vec<(String, snapshot::AuthorizationPolicy)> {
        let name = |object: u32| named(policy).get(object as usize).cloned().unwrap_or_default();
        let mut all: Vec<_> = policy
            .authorization
            .iter()
            .map(|each| (name(each.object), snapshot::AuthorizationPolicy { object: 0, ..each.clone() }))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let modes = |policy: &Policy| {
        let peers = &policy.peer_authentication;
        let ports: Vec<_> = peers.ports.iter().map(|(port, mode)| (*port, mode.mode)).collect();
        (peers.default.mode, ports)
    };
    let domains =
        |policy: &Policy| (policy.mesh.trust_domain.clone(), policy.mesh.trust_domain_aliases.clone());
    let no_rules = old.authorization.is_empty() && new.authorization.is_empty();
    modes(old) == modes(new) && of(old) == of(new) && (no_rules || domains(old) == domains(new))
}

fn named(policy: &Policy) -> Vec<String> {
    policy
        .objects
        .iter()
        .map(|object| format!("{} {}/{}", object.kind, object.namespace, object.name))
        .collect()
}

struct Tried {
    before: Reach,
    after: Reach,
    unknowns: Unknowns,
    /// By object index.
    names: [Vec<String>; 2],
}

/// What becomes of one call.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Fate {
    kind: Kind,
    depends_on: Vec<String>,
    before: String,
    after: String,
}

impl Tried {
    fn fate(&self, probe: &Probe<'_>) -> Option<Fate> {
        let (before, after) = (self.before.of(probe), self.after.of(probe));
        if before.is_like(&after) {
            return None;
        }
        let open: Vec<usize> = before.unknowns().union(&after.unknowns()).copied().collect();
        if open.len() > MAX_UNKNOWNS {
            return Some(self.unknown(&open));
        }
        let (mut granted, mut taken, mut same) = (None, None, false);
        for case in 0..1u32 << open.len() {
            let truth = |unknown: usize| open.binary_search(&unknown).is_ok_and(|bit| case & (1 << bit) != 0);
            let rulings = (before.under(truth), after.under(truth));
            match (rulings.0.0, rulings.1.0) {
                (Outcome::Deny, Outcome::Allow) => granted = granted.or(Some(rulings)),
                (Outcome::Allow, Outcome::Deny) => taken = taken.or(Some(rulings)),
                _ => same = true,
            }
        }
        let kind = match (&granted, &taken, same) {
            (None, None, _) => return None,
            (Some(_), Some(_), _) => Kind::Mixed,
            (Some(_), None, false) => Kind::Grants,
            (Some(_), None, true) => Kind::MayGrant,
            (None, Some(_), false) => Kind::Takes,
            (None, Some(_), true) => Kind::MayTake,
        };
        let ((_, was), (_, is)) = granted.or(taken)?;
        let depends_on = match kind {
            Kind::Grants | Kind::Takes => Vec::new(),
            _ => self.depends_on(&before, &after, &open),
        };
        Some(Fate { kind, depends_on, before: self.name(0, was), after: self.name(1, is) })
    }

    fn unknown(&self, open: &[usize]) -> Fate {
        let depends_on = open.iter().map(|&unknown| self.unknowns.text(unknown).to_owned()).collect();
        Fate { kind: Kind::Unknown, depends_on, before: String::new(), after: String::new() }
    }

    /// Those unknowns that make a difference to the difference.
    fn depends_on(&self, before: &Open, after: &Open, open: &[usize]) -> Vec<String> {
        let differs = |case: u32| {
            let truth = |unknown: usize| open.binary_search(&unknown).is_ok_and(|bit| case & (1 << bit) != 0);
            (before.under(truth).0, after.under(truth).0)
        };
        let matters = |bit: &usize| {
            (0..1u32 << open.len()).any(|case| {
                let other = case ^ (1 << bit);
                let (a, b) = (differs(case), differs(other));
                a != b && (a.0 != a.1 || b.0 != b.1)
            })
        };
        let bits = (0..open.len()).filter(matters);
        bits.map(|bit| self.unknowns.text(open[bit]).to_owned()).collect()
    }

    fn name(&self, version: usize, policy: PolicyRef) -> String {
        let object = policy.object_index().and_then(|object| self.names[version].get(object as usize));
        match (object, policy.rule_index()) {
            (None, _) => String::new(),
            (Some(object), None) => object.clone(),
            (Some(object), Some(rule)) => format!("{object} rule {rule}"),
        }
    }
}

/// Calls by what becomes of them: fate, principal and port, to (method, path), by number; `None`: opaque.
type Call = Option<(usize, usize)>;
struct Cells(BTreeMap<(Fate, usize), BTreeMap<usize, BTreeSet<Call>>>);

impl Cells {
    fn of(vocabulary: &Vocabulary, tried: &Tried) -> Self {
        let mut cells: BTreeMap<(Fate, usize), BTreeMap<usize, BTreeSet<Call>>> = BTreeMap::new();
        for (principal, (identity, _)) in vocabulary.principals.iter().enumerate() {
            for (port_number, (port, _)) in vocabulary.ports.iter().enumerate() {
                let probe = |request| Probe { identity: identity.as_deref(), port: *port, request };
                let mut try_it = |request, call: Call| {
                    if let Some(fate) = tried.fate(&probe(request)) {
                        let ports = cells.entry((fate, principal)).or_default();
                        ports.entry(port_number).or_default().insert(call);
                    }
                };
                try_it(None, None);
                for (method, method_word) in vocabulary.methods.iter().enumerate() {
                    for (path, path_word) in vocabulary.paths.iter().enumerate() {
                        try_it(Some((&*method_word.text, &*path_word.text)), Some((method, path)));
                    }
                }
            }
        }
        Self(cells)
    }

    /// In few words: ports, then principals, of which the same becomes are told together.
    fn changes(self, vocabulary: &Vocabulary) -> Vec<Change> {
        let mut alike: BTreeMap<(Fate, Vec<usize>, BTreeSet<Call>), Vec<usize>> = BTreeMap::new();
        for ((fate, principal), ports) in self.0 {
            let mut by_calls: BTreeMap<BTreeSet<Call>, Vec<usize>> = BTreeMap::new();
            for (port, calls) in ports {
                by_calls.entry(calls).or_default().push(port);
            }
            for (calls, ports) in by_calls {
                alike.entry((fate.clone(), ports, calls)).or_default().push(principal);
            }
        }
        let mut changes: Vec<_> = alike
            .into_iter()
            .map(|((fate, ports, calls), principals)| {
                let all_ports = ports.len() == vocabulary.ports.len();
                let port = |port: &usize| vocabulary.ports[*port].1.clone();
                Change {
                    kind: fate.kind,
                    depends_on: fate.depends_on,
                    before: fate.before,
                    after: fate.after,
                    principals: principals.iter().map(|at| vocabulary.principals[*at].1.clone()).collect(),
                    ports: if all_ports { Vec::new() } else { ports.iter().map(port).collect() },
                    calls: grouped(&calls, vocabulary),
                }
            })
            .collect();
        changes.sort_by_key(|change| change.kind);
        changes
    }
}

/// Paths with the same methods together.
fn grouped(calls: &BTreeSet<Call>, vocabulary: &Vocabulary) -> Vec<Calls> {
    let mut methods_of: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (method, path) in calls.iter().flatten() {
        methods_of.entry(*path).or_default().push(*method);
    }
    let mut paths_of: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
    for (path, methods) in methods_of {
        paths_of.entry(methods).or_default().push(path);
    }
    let some = |numbers: &[usize], of: &[super::vocabulary::Word]| -> Vec<String> {
        if numbers.len() == of.len() {
            return Vec::new();
        }
        numbers.iter().map(|number| of[*number].shown.clone()).collect()
    };
    let mut grouped: Vec<_> = paths_of
        .into_iter()
        .map(|(methods, paths)| Calls {
            methods: some(&methods, &vocabulary.methods),
            paths: some(&paths, &vocabulary.paths),
            opaque: false,
        })
        .collect();
    if calls.contains(&None) {
        grouped.push(Calls { methods: Vec::new(), paths: Vec::new(), opaque: true });
    }
    grouped
}
