//! Two versions of the policies of one workload, asked about the same calls.

use std::collections::{BTreeMap, BTreeSet};

use control_client::snapshot::{AuthorizationAction, Policy};

use super::beside::{beside, named, same};
use super::vocabulary::Vocabulary;
use super::words::Dimension;
use crate::decision::{Outcome, PolicyRef};
use crate::tables::{Answers, Open, Probe, Probed, Reach, Unknowns};

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
    /// `unless ..`, `only if ..`, `depends on whether ..`.
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

/// Calls that are tried; where there are more, it is unknown what becomes of them.
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
pub(super) fn compare(old: &Policy, new: &Policy) -> Findings {
    let mut findings = Findings { unknown: beside(old, new), ..Findings::default() };
    if same(old, new) {
        return findings;
    }
    let mut unknowns = Unknowns::default();
    let [before, after] = Reach::both([old, new], &mut unknowns);
    let invalid = invalid(new);
    let known = self::invalid(old);
    let newly = invalid.iter().filter(|each| !known.contains(each));
    findings.warnings.extend(newly.map(|(name, allows)| match allows {
        true => format!("{name} is invalid, so it allows nothing; `writ check` says why"),
        false => {
            format!("{name} is invalid, so everything that it selects is refused; `writ check` says why")
        }
    }));
    let all_is_refused = invalid.iter().any(|(_, allows)| !allows);
    if before.has_allow() && !after.has_allow() && !all_is_refused {
        findings.warnings.push(
            "the last ALLOW policy in force is gone: from now on everything is allowed that no other policy refuses"
                .to_owned(),
        );
    }
    let vocabulary = match Vocabulary::of([old, new]) {
        Ok(vocabulary) => vocabulary,
        Err(what) => {
            findings
                .unknown
                .push(format!("the policies name {what} that overlap in more ways than are tried"));
            return findings;
        }
    };
    let tried = Tried { before, after, unknowns, names: [named(old), named(new)] };
    let too_many = |calls: usize| format!("the policies tell {calls} calls apart, more than are tried");
    if vocabulary.connections() > MAX_CALLS {
        findings.unknown.push(too_many(vocabulary.connections()));
        return findings;
    }
    let alike = alike(&vocabulary, &tried);
    let concerned = Concerned::of(&vocabulary, &tried);
    let calls = alike.len() * concerned.calls();
    if calls > MAX_CALLS {
        findings.unknown.push(too_many(calls));
        return findings;
    }
    findings.changes = changes(&vocabulary, &tried, &concerned, alike);
    findings
}

/// Policies that fail closed, and whether they are ALLOW, which then refuse only what nothing else allows.
fn invalid(policy: &Policy) -> Vec<(String, bool)> {
    let names = named(policy);
    let closed = policy
        .authorization
        .iter()
        .filter(|each| each.quarantined && !each.dry_run && each.action != AuthorizationAction::Audit);
    closed
        .map(|each| {
            let name = names.get(each.object as usize).cloned().unwrap_or_default();
            (name, each.action == AuthorizationAction::Allow)
        })
        .collect()
}

/// Methods and paths, by number, that a call can have of which anything else becomes now.
struct Concerned {
    methods: Vec<usize>,
    paths: Vec<usize>,
}

impl Concerned {
    fn of(vocabulary: &Vocabulary, tried: &Tried) -> Self {
        let of = |dimension: &Dimension, probed: fn(&str) -> Probed<'_>| {
            let texts = dimension.classes.iter().map(|class| &*class.text).enumerate();
            texts.filter(|(_, text)| tried.may_concern(&probed(text))).map(|(number, _)| number).collect()
        };
        Self {
            methods: of(&vocabulary.methods, |text| Probed::Method(text)),
            paths: of(&vocabulary.paths, |text| Probed::Path(text)),
        }
    }

    /// How many calls each connection can make of these.
    fn calls(&self) -> usize {
        // One more for being opaque.
        self.methods.len() * self.paths.len() + 1
    }
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

/// Both versions of what is left open of a call, and what is tried both ways.
struct Cases {
    before: Open,
    after: Open,
    unknowns: Vec<usize>,
    /// There are too many unknowns: of rules that both versions have, only whether they allow is tried, as one more.
    others: Option<Others>,
}

#[derive(Clone, Copy)]
struct Others {
    allow: bool,
    refuse: bool,
}

impl Cases {
    /// `Err`: too many, and which.
    fn of(before: Open, after: Open) -> Result<Self, Vec<usize>> {
        let all: Vec<usize> = before.unknowns().union(&after.unknowns()).copied().collect();
        if all.len() <= MAX_UNKNOWNS {
            return Ok(Self { before, after, unknowns: all, others: None });
        }
        let unknowns: Vec<usize> = before.own_unknowns().union(&after.own_unknowns()).copied().collect();
        if unknowns.len() > MAX_UNKNOWNS {
            return Err(unknowns);
        }
        let may = |allow| before.others_may(allow) || after.others_may(allow);
        let others = Some(Others { allow: may(true), refuse: may(false) });
        Ok(Self { before, after, unknowns, others })
    }

    /// How many bits tell them apart.
    fn bits(&self) -> usize {
        self.unknowns.len() + usize::from(self.others.is_some_and(|others| others.allow))
    }

    /// What both versions rule in each case; `None`: it can't be.
    fn rulings(&self, unknowns: &Unknowns) -> Vec<Option<[(Outcome, PolicyRef); 2]>> {
        let ruling = |case: u32| {
            let found = |unknown: usize| self.unknowns.binary_search(&unknown).ok();
            let possible = unknowns.are_possible(|unknown| found(unknown).map(|bit| case & (1 << bit) != 0));
            possible.then(|| self.ruling(case))
        };
        (0..1u32 << self.bits()).map(ruling).collect()
    }

    fn ruling(&self, case: u32) -> [(Outcome, PolicyRef); 2] {
        let bit = |bit: usize| case & (1 << bit) != 0;
        let truth = |unknown: usize| self.unknowns.binary_search(&unknown).is_ok_and(bit);
        [&self.before, &self.after].map(|open| match self.others {
            None => open.under(truth),
            Some(others) => open.under_own(others.allow && bit(self.unknowns.len()), truth),
        })
    }
}

impl Tried {
    /// Whether anything else may become of a call of which only this is known.
    fn may_concern(&self, known: &Probed<'_>) -> bool {
        self.before.differs_beside_rules(&self.after)
            || self.before.concerns(known)
            || self.after.concerns(known)
    }

    fn fate(&self, probe: &Probe<'_>) -> Option<Fate> {
        let (before, after) = (self.before.of(probe), self.after.of(probe));
        if before.is_like(&after) {
            return None;
        }
        let cases = match Cases::of(before, after) {
            Ok(cases) => cases,
            Err(open) => return Some(self.unknown(&open)),
        };
        let (mut granted, mut taken) = (None, None);
        let mut same = cases.others.is_some_and(|others| others.refuse);
        let all = cases.rulings(&self.unknowns);
        for [was, is] in all.iter().flatten() {
            let rulings = (*was, *is);
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
            _ => self.depends_on(&cases, &all),
        };
        Some(Fate { kind, depends_on, before: self.name(0, was), after: self.name(1, is) })
    }

    fn unknown(&self, open: &[usize]) -> Fate {
        let depends_on = open
            .iter()
            .map(|&unknown| format!("depends on whether {}", self.unknowns.text(unknown)))
            .collect();
        Fate { kind: Kind::Unknown, depends_on, before: String::new(), after: String::new() }
    }

    /// Those unknowns that make a difference to the difference, and how, where it is only there if they are true or false.
    fn depends_on(&self, cases: &Cases, rulings: &[Option<[(Outcome, PolicyRef); 2]>]) -> Vec<String> {
        let outcomes = |case: usize| Some(rulings.get(case)?.as_ref()?.map(|(outcome, _)| outcome));
        let matters = |bit: &usize| {
            (0..rulings.len()).any(|case| match (outcomes(case), outcomes(case ^ (1 << bit))) {
                (Some(a), Some(b)) => a != b && (a[0] != a[1] || b[0] != b[1]),
                _ => false,
            })
        };
        let text = |bit: usize| match cases.unknowns.get(bit) {
            Some(&unknown) => self.unknowns.text(unknown).to_owned(),
            None => "other rules allow it as well".to_owned(),
        };
        let differs = |case: &usize| outcomes(*case).is_some_and(|[was, is]| was != is);
        let differing: Vec<usize> = (0..rulings.len()).filter(differs).collect();
        let is = |bit: usize, truth: bool| differing.iter().all(|case| (case & (1 << bit) != 0) == truth);
        let how = |bit: usize| match (is(bit, true), is(bit, false)) {
            (true, _) => "only if",
            (_, true) => "unless",
            _ => "depends on whether",
        };
        let phrase = |bit: usize| format!("{} {}", how(bit), text(bit));
        let mut texts: Vec<_> = (0..cases.bits()).filter(matters).map(phrase).collect();
        if cases.others.is_some_and(|others| others.refuse) {
            texts.push("unless other rules refuse it".to_owned());
        }
        texts
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

/// Connections that are alike to the policies of both versions: principal and port, by number.
type Connections = Vec<(usize, usize)>;

/// Method and path, by number; `None`: opaque.
type Call = Option<(usize, usize)>;

/// Connections of whose calls anything else may become now, by what they answer.
fn alike(vocabulary: &Vocabulary, tried: &Tried) -> Vec<Connections> {
    let mut alike: BTreeMap<[Answers; 2], Connections> = BTreeMap::new();
    for (principal, identity) in vocabulary.principals().enumerate() {
        for (port_number, (port, _)) in vocabulary.ports.iter().enumerate() {
            if !tried.may_concern(&Probed::Connection(identity.as_deref(), *port)) {
                continue;
            }
            let probe = Probe { identity: identity.as_deref(), port: *port, request: None };
            let answers = [&tried.before, &tried.after].map(|reach| reach.answers(&probe));
            alike.entry(answers).or_default().push((principal, port_number));
        }
    }
    alike.into_values().collect()
}

/// In few words: ports, then principals, of which the same becomes are told together.
fn changes(
    vocabulary: &Vocabulary,
    tried: &Tried,
    concerned: &Concerned,
    alike: Vec<Connections>,
) -> Vec<Change> {
    let mut connections: BTreeMap<(Fate, BTreeSet<Call>), Connections> = BTreeMap::new();
    for group in alike {
        let Some(&one) = group.first() else { continue };
        for (fate, calls) in fates(vocabulary, tried, concerned, one) {
            connections.entry((fate, calls)).or_default().extend(&group);
        }
    }
    let mut changes = Vec::new();
    for ((fate, calls), connections) in connections {
        let mut ports_of: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (principal, port) in connections {
            ports_of.entry(principal).or_default().insert(port);
        }
        let mut principals_of: BTreeMap<BTreeSet<usize>, BTreeSet<usize>> = BTreeMap::new();
        for (principal, ports) in ports_of {
            principals_of.entry(ports).or_default().insert(principal);
        }
        for (ports, principals) in principals_of {
            let all_ports = ports.len() == vocabulary.ports.len();
            let port = |port: &usize| vocabulary.ports[*port].1.clone();
            changes.push(Change {
                kind: fate.kind,
                depends_on: fate.depends_on.clone(),
                before: fate.before.clone(),
                after: fate.after.clone(),
                principals: vocabulary.principal_words(&principals),
                ports: if all_ports { Vec::new() } else { ports.iter().map(port).collect() },
                calls: grouped(&calls, vocabulary),
            });
        }
    }
    changes.sort_by_key(|change| change.kind);
    changes
}

/// What becomes of all calls on a connection.
fn fates(
    vocabulary: &Vocabulary,
    tried: &Tried,
    concerned: &Concerned,
    (principal, port): (usize, usize),
) -> BTreeMap<Fate, BTreeSet<Call>> {
    let identity = vocabulary.identity(principal);
    let (port, _) = vocabulary.ports[port];
    let mut fates: BTreeMap<Fate, BTreeSet<Call>> = BTreeMap::new();
    let mut try_it = |request, call: Call| {
        if let Some(fate) = tried.fate(&Probe { identity: identity.as_deref(), port, request }) {
            fates.entry(fate).or_default().insert(call);
        }
    };
    try_it(None, None);
    for &method in &concerned.methods {
        for &path in &concerned.paths {
            let texts = (&*vocabulary.methods.classes[method].text, &*vocabulary.paths.classes[path].text);
            try_it(Some(texts), Some((method, path)));
        }
    }
    fates
}

/// Paths with the same methods together.
fn grouped(calls: &BTreeSet<Call>, vocabulary: &Vocabulary) -> Vec<Calls> {
    let mut methods_of: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (method, path) in calls.iter().flatten() {
        methods_of.entry(*path).or_default().insert(*method);
    }
    let mut paths_of: BTreeMap<BTreeSet<usize>, BTreeSet<usize>> = BTreeMap::new();
    for (path, methods) in methods_of {
        paths_of.entry(methods).or_default().insert(path);
    }
    let some = |of: &BTreeSet<usize>, dimension: &Dimension| {
        if of.len() == dimension.classes.len() { Vec::new() } else { dimension.words(of) }
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
