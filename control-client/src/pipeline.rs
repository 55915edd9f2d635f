//! Files -> objects in force -> snapshot, one step after the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::compile::{self, Compiled, Previous, Told};
use crate::health::{self, Health, NotUnderstood};
use crate::keep::{self, Files, InForce};
use crate::resource::Key;
use crate::snapshot::{ObjectRef, Snapshot};
use crate::verdict::{Diagnostic, Verdict, VerdictState};
use crate::{Loaded, Options, Workload};

/// What is known of a configuration, for one workload.
#[derive(Debug)]
pub(crate) struct Pipeline {
    workload: Workload,
    options: Options,
    in_force: keep::Objects,
    previous: Previous,
    verdicts: Arc<Vec<Verdict>>,
    runtime_digest: String,
    /// `None`: nothing was read yet.
    not_understood: Option<NotUnderstood>,
    pub(crate) health: Health,
    version: u64,
    /// The latest time that was seen, in seconds since the epoch. Not kept over a restart.
    clock: i64,
    /// When the snapshot changes although no file does, in seconds since the epoch.
    pub(crate) next_expiry: Option<i64>,
}

/// What an update came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// There is something new.
    New(Box<Loaded>),
    /// All is as before.
    Same,
    /// `strict`, and there are diagnostics: all is as before.
    Refused(Vec<Diagnostic>),
}

impl Pipeline {
    /// Starts from nothing. Diagnostics refuse nothing here: the caller sees them.
    pub(crate) fn first(workload: Workload, files: &Files, options: Options) -> (Self, Loaded) {
        let mut pipeline = Self {
            workload,
            options,
            in_force: keep::Objects::new(),
            previous: Previous::default(),
            verdicts: Arc::default(),
            runtime_digest: String::new(),
            not_understood: None,
            health: Health::Well,
            version: 0,
            clock: i64::MIN,
            next_expiry: None,
        };
        let next = pipeline.next(files);
        let loaded = pipeline.publish(next, files);
        (pipeline, loaded)
    }

    /// Goes from the objects in force to those that `files` put in force.
    pub(crate) fn update(&mut self, files: &Files) -> Outcome {
        let next = self.next(files);
        let mut found = next.verdicts.iter().flat_map(|verdict| &verdict.diagnostics);
        if self.options.strict && found.any(Diagnostic::is_mistake) {
            return Outcome::Refused(diagnostics(&next.verdicts));
        }
        if self.is_same(&next) {
            self.in_force = next.in_force;
            self.not_understood = Some(next.not_understood);
            self.previous.labels = next.compiled.own_labels.last_known();
            self.next_expiry = next.compiled.next_expiry;
            return Outcome::Same;
        }
        Outcome::New(Box::new(self.publish(next, files)))
    }

    fn next(&mut self, files: &Files) -> Next {
        let in_force = keep::update(&self.in_force, files);
        // A clock that is set back revives nothing.
        self.clock = self.clock.max(jiff::Timestamp::now().as_second());
        let compiled =
            compile::compile(&in_force, &self.workload, self.options.inbound, self.clock, &self.previous);
        let verdicts = verdicts(&in_force, files, &compiled);
        let not_understood = NotUnderstood::next(self.not_understood.as_ref(), files);
        let of_labels = match self.options.inbound {
            true => health::of_labels(&compiled.own_labels, &self.workload),
            false => Health::Well,
        };
        let health = Health::of([of_labels, not_understood.health()]);
        Next { in_force, compiled, verdicts, not_understood, health }
    }

    fn is_same(&self, next: &Next) -> bool {
        let before = &self.previous;
        before.policy.as_ref().is_some_and(|policy| Arc::ptr_eq(policy, &next.compiled.policy))
            && Arc::ptr_eq(&before.endpoints, &next.compiled.endpoints)
            && *self.verdicts == next.verdicts
            && self.health == next.health
            && self.runtime_digest == next.compiled.runtime_digest
    }

    fn publish(&mut self, next: Next, files: &Files) -> Loaded {
        let Next { in_force, compiled, verdicts, not_understood, health } = next;
        let diagnostics = diagnostics(&verdicts);
        if *self.verdicts != verdicts {
            self.verdicts = Arc::new(verdicts);
        }
        self.in_force = in_force;
        self.not_understood = Some(not_understood);
        self.health = health;
        self.next_expiry = compiled.next_expiry;
        self.previous = Previous {
            policy: Some(compiled.policy.clone()),
            endpoints: compiled.endpoints.clone(),
            labels: compiled.own_labels.last_known(),
        };
        self.runtime_digest.clone_from(&compiled.runtime_digest);
        self.version += 1;
        let snapshot = Snapshot {
            version: self.version,
            revision: None,
            policy: compiled.policy,
            endpoints: compiled.endpoints,
            revocation: compiled.revocation,
            runtime_digest: compiled.runtime_digest,
            verdicts: self.verdicts.clone(),
            stale: false,
            health: self.health.clone(),
        };
        Loaded {
            snapshot,
            diagnostics,
            objects: self.in_force.len(),
            workload_known: compiled.own_labels.told != Told::Never || compiled.own_labels.select.is_empty(),
            skipped: skipped(files),
        }
    }
}

fn skipped(files: &Files) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for (kind, number) in files.values().flat_map(|file| &file.skipped) {
        *all.entry(kind.clone()).or_default() += number;
    }
    all
}

/// What comes next, before it is decided whether it does.
struct Next {
    in_force: keep::Objects,
    compiled: Compiled,
    verdicts: Vec<Verdict>,
    not_understood: NotUnderstood,
    health: Health,
}

/// One verdict for each object that people write, for each other one with something wrong, and for each file that
/// could not be understood (kind `File`).
fn verdicts(in_force: &keep::Objects, files: &Files, compiled: &Compiled) -> Vec<Verdict> {
    let mut findings: BTreeMap<Key, Vec<&compile::Finding>> = BTreeMap::new();
    for finding in &compiled.findings {
        if let Some((kind, namespace, name)) = finding.diagnostic.object.clone() {
            findings.entry(Key { kind, namespace, name }).or_default().push(finding);
        }
    }
    let of_object = |(key, object): (&Key, &InForce)| {
        let found = findings.get(key).map_or(&[][..], Vec::as_slice);
        if object.object.meta.runtime && found.is_empty() && object.diagnostics.is_empty() {
            return None;
        }
        let becomes = found.iter().find_map(|finding| finding.becomes);
        let found = found.iter().map(|finding| finding.diagnostic.clone());
        Some(Verdict {
            object: object.object.meta.object_ref(),
            state: becomes.unwrap_or(object.state),
            diagnostics: object.diagnostics.iter().cloned().chain(found).collect(),
        })
    };
    let of_file = |(name, file): (&Arc<str>, &Arc<crate::resource::ParsedFile>)| {
        (!file.broken.is_empty()).then(|| Verdict {
            object: ObjectRef {
                kind: "File".into(),
                namespace: String::new(),
                name: name.to_string(),
                digest: String::new(),
            },
            state: VerdictState::Quarantined,
            diagnostics: file.broken.clone(),
        })
    };
    let mut verdicts: Vec<Verdict> = in_force.iter().filter_map(of_object).collect();
    verdicts.extend(files.iter().filter_map(of_file));
    verdicts.sort_by(|a, b| a.object.cmp(&b.object));
    verdicts
}

/// All diagnostics in the order of the files.
fn diagnostics(verdicts: &[Verdict]) -> Vec<Diagnostic> {
    let mut all: Vec<Diagnostic> =
        verdicts.iter().flat_map(|verdict| verdict.diagnostics.iter().cloned()).collect();
    all.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    all
}
