//! `writ diff`: what access a change of configuration grants or takes, in words: who may do what, not which lines moved.

mod beside;
mod classes;
mod compare;
mod show;
mod vocabulary;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use control_client::verdict::Severity;
use control_client::{Loaded, Resources, Selection, Workload};

use super::check::{count, counted};
use super::{misused, print};
use compare::{Findings, Kind, compare};

/// Flags of `writ diff`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration as it is: a directory or file of Kubernetes YAML.
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// The configuration as it is to be.
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// The trust domain of the mesh.
    #[arg(long, env = "WRIT_TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Fail where the change does so: grants, takes, unknown or warnings; may be given several times.
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',')]
    fail_on: Vec<FailOn>,
    /// Print JSON, as is always done into a pipe or file.
    #[arg(long)]
    json: bool,
}

/// `--fail-on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FailOn {
    /// Somebody may do more, or might, or it can't be told.
    Grants,
    /// Somebody may do less, or might, or it can't be told.
    Takes,
    /// It can't be told.
    Unknown,
    /// There are warnings.
    Warnings,
}

/// Exit codes: 0 compared, 1 failed or as `--fail-on` says, 2 if there is nothing to compare.
pub fn run(args: Args) -> ExitCode {
    let read = |path: &Path| {
        let read = Resources::read(path);
        read.map_err(|error| format!("can't read {}: {error}", path.display()))
    };
    let (old, new) = match (read(&args.old), read(&args.new)) {
        (Ok(old), Ok(new)) => (old, new),
        (Err(why), _) | (_, Err(why)) => return misused("diff", &why),
    };
    let nobody = Workload { trust_domain: args.trust_domain.clone(), ..Workload::default() };
    for (path, resources) in [(&args.old, &old), (&args.new, &new)] {
        let loaded = resources.load(&nobody);
        // Without anything in it, it is a mistaken path; to be compared with that would say the wrong thing.
        if loaded.objects == 0 {
            return misused("diff", &format!("{} holds no objects", path.display()));
        }
        doubt(path, &loaded);
    }
    let diff = Diff::of(&old, &new, &args.trust_domain);
    let printed = match args.json || !std::io::stdout().is_terminal() {
        true => print(&format!("{:#}\n", diff.to_json())),
        false => print(&diff.to_text(super::table::Paint::stdout())),
    };
    if args.fail_on.iter().any(|what| diff.does(*what)) { ExitCode::FAILURE } else { printed }
}

/// What fails closed is compared as that, which may not be what was meant.
fn doubt(path: &Path, loaded: &Loaded) {
    let errors = count(loaded, Severity::Error);
    if errors > 0 {
        eprintln!(
            "writ diff: {} has {}, and what is wrong fails closed; `writ check` lists them",
            path.display(),
            counted(errors, "error")
        );
    }
}

/// What a change does.
struct Diff {
    workloads: Vec<WorkloadDiff>,
    /// Objects that people write: added, removed, changed.
    objects: [Vec<String>; 3],
}

/// What it does to workloads that are under the same policies.
struct WorkloadDiff {
    selection: Selection,
    /// Names of those that are here.
    names: BTreeSet<String>,
    found: Findings,
}

impl Diff {
    fn of(old: &Resources, new: &Resources, trust_domain: &str) -> Self {
        let mut workloads = Vec::new();
        for (selection, names) in groups(old, new, trust_domain) {
            let workload = Workload {
                namespace: selection.namespace.clone(),
                // A name of none of them: what is selected by name alone differs among them.
                name: names.iter().next().cloned().unwrap_or_else(|| "any".into()),
                service_account: "default".into(),
                labels: selection.labels.clone(),
                trust_domain: trust_domain.into(),
                gateway: None,
            };
            let (before, after) = (old.load(&workload), new.load(&workload));
            let found = compare(&before.snapshot.policy, &after.snapshot.policy);
            if !found.is_empty() {
                workloads.push(WorkloadDiff { selection, names, found });
            }
        }
        Self { workloads, objects: objects(old, new) }
    }

    fn does(&self, what: FailOn) -> bool {
        self.workloads.iter().any(|each| each.found.say(what))
    }
}

impl Findings {
    /// Whether they are such as `--fail-on` names.
    fn say(&self, what: FailOn) -> bool {
        let any = |kinds: &[Kind]| self.changes.iter().any(|change| kinds.contains(&change.kind));
        let unknown = any(&[Kind::Unknown]) || !self.unknown.is_empty();
        match what {
            FailOn::Grants => unknown || any(&[Kind::Grants, Kind::MayGrant, Kind::Mixed]),
            FailOn::Takes => unknown || any(&[Kind::Takes, Kind::MayTake, Kind::Mixed]),
            FailOn::Unknown => unknown,
            FailOn::Warnings => !self.warnings.is_empty(),
        }
    }
}

/// Workloads by what selects them, with their names; and what policies select beside them, without any.
fn groups(old: &Resources, new: &Resources, trust_domain: &str) -> BTreeMap<Selection, BTreeSet<String>> {
    let mut keys = old.selecting_keys();
    keys.extend(new.selecting_keys());
    let mut groups: BTreeMap<Selection, BTreeSet<String>> = BTreeMap::new();
    for workload in old.workloads(trust_domain).into_iter().chain(new.workloads(trust_domain)) {
        let labels = workload.labels.into_iter().filter(|(key, _)| keys.contains(key)).collect();
        let selection = Selection { namespace: workload.namespace, labels };
        groups.entry(selection).or_default().insert(workload.name);
    }
    for selection in old.selections().into_iter().chain(new.selections()) {
        let found = groups.keys().any(|group| {
            group.namespace == selection.namespace
                && selection.labels.iter().all(|(key, value)| group.labels.get(key) == Some(value))
        });
        if !found {
            groups.entry(selection).or_default();
        }
    }
    groups
}

/// Objects that people write, by whether they came, went or changed.
fn objects(old: &Resources, new: &Resources) -> [Vec<String>; 3] {
    let digests = |resources: &Resources| -> BTreeMap<String, String> {
        let verdicts = resources.load(&Workload::default()).snapshot.verdicts;
        let objects = verdicts.iter().map(|verdict| &verdict.object).filter(|object| object.kind != "File");
        objects
            .map(|object| {
                (format!("{} {}/{}", object.kind, object.namespace, object.name), object.digest.clone())
            })
            .collect()
    };
    let (before, after) = (digests(old), digests(new));
    let only = |of: &BTreeMap<String, String>, not: &BTreeMap<String, String>| {
        of.keys().filter(|name| !not.contains_key(*name)).cloned().collect()
    };
    let changed = |(name, digest): (&String, &String)| {
        before.get(name).is_some_and(|before| before != digest).then(|| name.clone())
    };
    [only(&after, &before), only(&before, &after), after.iter().filter_map(changed).collect()]
}

#[cfg(test)]
mod tests;
