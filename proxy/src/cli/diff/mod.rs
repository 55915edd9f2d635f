//! `writ diff`: what access a change of configuration grants or takes, in words: who may do what, not which lines moved.

mod compare;
mod show;
mod vocabulary;

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use control_client::verdict::Severity;
use control_client::{Loaded, Resources, Selection, Workload};

use super::check::{count, counted};
use super::print;
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
        (Err(why), _) | (_, Err(why)) => {
            eprintln!("writ diff: {why}");
            return ExitCode::from(2);
        }
    };
    let nobody = Workload { trust_domain: args.trust_domain.clone(), ..Workload::default() };
    for (path, resources) in [(&args.old, &old), (&args.new, &new)] {
        let loaded = resources.load(&nobody);
        // Without anything in it, it is a mistaken path; to be compared with that would say the wrong thing.
        if loaded.objects == 0 {
            eprintln!("writ diff: {} holds no objects", path.display());
            return ExitCode::from(2);
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
        let callers = callers(old, new, trust_domain);
        for (selection, names) in groups(old, new, trust_domain) {
            let workload = Workload {
                namespace: selection.namespace.clone(),
                // A name of none of them: what is selected by name alone differs among them.
                name: names.iter().next().cloned().unwrap_or_else(|| "any".into()),
                service_account: "default".into(),
                labels: selection.labels.clone(),
                trust_domain: trust_domain.into(),
            };
            let (before, after) = (old.load(&workload), new.load(&workload));
            let found = compare(&before.snapshot.policy, &after.snapshot.policy, &callers);
            if !found.is_empty() {
                workloads.push(WorkloadDiff { selection, names, found });
            }
        }
        Self { workloads, objects: objects(old, new) }
    }

    fn does(&self, what: FailOn) -> bool {
        let any = |kinds: &[Kind]| {
            let mut changes = self.workloads.iter().flat_map(|each| &each.found.changes);
            changes.any(|change| kinds.contains(&change.kind))
        };
        let unknown =
            any(&[Kind::Unknown]) || self.workloads.iter().any(|each| !each.found.unknown.is_empty());
        match what {
            FailOn::Grants => unknown || any(&[Kind::Grants, Kind::MayGrant, Kind::Mixed]),
            FailOn::Takes => unknown || any(&[Kind::Takes, Kind::MayTake, Kind::Mixed]),
            FailOn::Unknown => unknown,
            FailOn::Warnings => self.workloads.iter().any(|each| !each.found.warnings.is_empty()),
        }
    }
}

/// Who calls: the service accounts of every workload.
fn callers(old: &Resources, new: &Resources, trust_domain: &str) -> BTreeSet<String> {
    let workloads = old.workloads(trust_domain).into_iter().chain(new.workloads(trust_domain));
    workloads
        .map(|workload| format!("{trust_domain}/ns/{}/sa/{}", workload.namespace, workload.service_account))
        .collect()
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
mod tests {
    use super::*;
    use crate::cli::table::Paint;

    const CLUSTER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: ratings-v1, namespace: bookinfo, labels: {app: ratings, pod-template-hash: a1}}
spec: {serviceAccountName: ratings}
---
apiVersion: v1
kind: Pod
metadata: {name: ratings-v2, namespace: bookinfo, labels: {app: ratings, pod-template-hash: b2}}
spec: {serviceAccountName: ratings}
---
apiVersion: v1
kind: Pod
metadata: {name: productpage, namespace: bookinfo, labels: {app: productpage}}
spec: {serviceAccountName: productpage}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews, namespace: bookinfo, labels: {app: reviews}}
spec: {serviceAccountName: reviews}
---
";
    const VIEWER: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: viewer, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/bookinfo/sa/productpage]}}]
    to: [{operation: {methods: [GET], paths: ['/ratings/*']}}]
";

    fn diff(old: &str, new: &str) -> Diff {
        let read = |policies: &str| Resources::of_yaml(&format!("{CLUSTER}{policies}"));
        Diff::of(&read(old), &read(new), "cluster.local")
    }

    /// The only workloads that anything changes for, in JSON.
    #[track_caller]
    fn only(diff: &Diff) -> serde_json::Value {
        let json = diff.to_json();
        let workloads = json["workloads"].as_array().unwrap();
        assert_eq!(workloads.len(), 1, "{json:#}");
        workloads[0].clone()
    }

    #[test]
    fn a_caller_more_is_a_grant_in_words() {
        let new = VIEWER.replace("sa/productpage]", "sa/productpage, cluster.local/ns/bookinfo/sa/reviews]");
        let diff = diff(VIEWER, &new);
        let text = diff.to_text(Paint::plain());
        assert_eq!(
            text,
            "bookinfo app=ratings (ratings-v1, ratings-v2)
  grants cluster.local/ns/bookinfo/sa/reviews
    GET /ratings/*
    now by AuthorizationPolicy bookinfo/viewer rule 0

changed: AuthorizationPolicy bookinfo/viewer
"
        );
        assert!(diff.does(FailOn::Grants) && !diff.does(FailOn::Takes) && !diff.does(FailOn::Warnings));
        let back = only(&super::Diff::of(
            &Resources::of_yaml(&format!("{CLUSTER}{new}")),
            &Resources::of_yaml(&format!("{CLUSTER}{VIEWER}")),
            "cluster.local",
        ));
        assert_eq!(back["changes"][0]["change"], "takes");
        assert_eq!(back["changes"][0]["before"], "AuthorizationPolicy bookinfo/viewer rule 0");
    }

    #[test]
    fn lines_that_move_change_nothing() {
        let again = "# The same, said otherwise.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: bookinfo, name: viewer}
spec:
  rules:
  - to: [{operation: {paths: ['/ratings/*', /ratings/1], methods: [GET]}}]
    from: [{source: {principals: [cluster.local/ns/bookinfo/sa/productpage]}}]
  selector: {matchLabels: {app: ratings}}
";
        let diff = diff(VIEWER, again);
        let found = only(&diff);
        assert_eq!(found["changes"], serde_json::json!([]));
        assert!(found["unknown"][0].as_str().unwrap().contains("not for any of the"), "{found:#}");
        assert_eq!(diff.objects[2], ["AuthorizationPolicy bookinfo/viewer"]);
    }

    #[test]
    fn a_deny_takes_also_what_is_opaque() {
        let new = format!(
            "{VIEWER}---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: embargo, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  action: DENY
  rules: [{{to: [{{operation: {{paths: [/x]}}}}]}}]
"
        );
        let found = only(&diff(VIEWER, &new));
        let [taken] = found["changes"].as_array().unwrap().as_slice() else { panic!("{found:#}") };
        assert_eq!(
            (&taken["change"], &taken["after"]),
            (&"takes".into(), &"AuthorizationPolicy bookinfo/embargo rule 0".into())
        );
        assert_eq!(taken["calls"], serde_json::json!([{ "paths": ["/x"] }, { "opaque": true }]));
    }

    #[test]
    fn what_hangs_on_a_header_is_a_maybe_and_says_so() {
        let new = VIEWER.replace(
            "['/ratings/*']}}]",
            "['/ratings/*']}}]\n    when: [{key: 'request.headers[x-a]', values: [b]}]",
        );
        let found = only(&diff(VIEWER, &new));
        let [change] = found["changes"].as_array().unwrap().as_slice() else { panic!("{found:#}") };
        assert_eq!(change["change"], "may-take");
        assert_eq!(change["depends_on"], serde_json::json!(["when[request.headers[x-a]] is one of [b]"]));
        assert_eq!(change["principals"], serde_json::json!(["cluster.local/ns/bookinfo/sa/productpage"]));
    }

    #[test]
    fn the_last_allow_is_warned_of() {
        let found = diff(VIEWER, "");
        assert!(only(&found)["warnings"][0].as_str().unwrap().contains("the last ALLOW"));
        assert!(found.does(FailOn::Warnings) && found.does(FailOn::Grants) && !found.does(FailOn::Takes));
        let dry_run =
            VIEWER.replace("name: viewer,", "annotations: {istio.io/dry-run: 'true'}, name: viewer,");
        assert!(diff(VIEWER, &dry_run).does(FailOn::Warnings));
    }

    #[test]
    fn another_trust_domain_that_becomes_ours_is_a_grant() {
        let settings = "---
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {name: mesh}
spec: {trustDomainAliases: [old.example]}
";
        let found = only(&diff(VIEWER, &format!("{VIEWER}{settings}")));
        let [grant] = found["changes"].as_array().unwrap().as_slice() else { panic!("{found:#}") };
        assert_eq!(
            (&grant["change"], &grant["principals"]),
            (&"grants".into(), &serde_json::json!(["old.example/ns/bookinfo/sa/productpage"]))
        );
    }

    #[test]
    fn what_calls_do_not_show_is_said_to_be_unknown() {
        let settings = "---
apiVersion: writ.dev/v1alpha1
kind: MeshSettings
metadata: {name: mesh}
spec: {pathNormalization: {normalization: NONE}}
";
        let tokens = "---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  jwtRules: [{issuer: users.example, jwksUri: 'https://users.example/keys'}]
";
        let limits = "---
apiVersion: writ.dev/v1alpha1
kind: RateLimit
metadata: {name: calls, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  rules: [{local: {requests: 1, per: 1s}}]
";
        for (with, what) in [
            (settings, "MeshSettings changes path"),
            (tokens, "RequestAuthentication bookinfo/users"),
            (limits, "RateLimit bookinfo/calls changes how often"),
        ] {
            let diff = diff(VIEWER, &format!("{VIEWER}{with}"));
            assert!(diff.does(FailOn::Unknown) && diff.does(FailOn::Grants));
            let json = diff.to_json();
            assert!(json["workloads"][0]["unknown"][0].as_str().unwrap().contains(what), "{json:#}");
        }
    }

    #[test]
    fn strict_shuts_out_those_without_identity() {
        let strict = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
";
        let found = diff("", strict);
        assert_eq!(
            found.workloads.len(),
            2,
            "those of bookinfo are alike; and whatever is beside the policy"
        );
        for workload in &found.workloads {
            let [taken] = workload.found.changes.as_slice() else { panic!("{:#}", found.to_json()) };
            assert_eq!((taken.kind, taken.principals.len()), (Kind::Takes, 1));
            assert_eq!(taken.after, "PeerAuthentication istio-system/default");
        }
    }
}
