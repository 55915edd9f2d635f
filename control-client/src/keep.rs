//! What is in force of each object: as written, its last good version, or nothing.
//!
//! Verdicts are per object, so that one team's typo can't freeze the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::resource::{Key, Meta, Object, ParsedFile};
use crate::verdict::{Diagnostic, Severity, VerdictState};

/// One object and what is in force of it.
#[derive(Debug, Clone)]
pub(crate) struct InForce {
    /// The version in force; of a quarantined object what could be understood.
    pub(crate) object: Arc<Object>,
    pub(crate) state: VerdictState,
    /// About the version written.
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// Objects in force, by kind, namespace and name.
pub(crate) type Objects = BTreeMap<Key, InForce>;

/// The files of a source, by name.
pub(crate) type Files = BTreeMap<Arc<str>, Arc<ParsedFile>>;

/// What is in force after `files` replaced what was in force `before`.
pub(crate) fn update(before: &Objects, files: &Files) -> Objects {
    let mut now = Objects::new();
    for object in files.values().flat_map(|file| &file.objects) {
        let key = object.key();
        match now.get_mut(&key) {
            Some(first) => report_repeated(first, object),
            None => {
                let judged = judge(version_before(before, &key, object), object);
                now.insert(key, judged);
            }
        }
    }
    let broken: BTreeSet<&str> =
        files.iter().filter(|(_, file)| !file.broken.is_empty()).map(|(name, _)| &**name).collect();
    // A directory that can't be looked into is broken with all that was read in it.
    let is_broken = |file: &str| {
        let above = file.match_indices('/').map(|(end, _)| &file[..end]);
        above.chain([file]).any(|name| broken.contains(name))
    };
    for (key, old) in before.iter().filter(|(_, old)| is_broken(&old.object.meta.file)) {
        now.entry(key.clone()).or_insert_with(|| keep_through_broken_file(old));
    }
    now
}

/// What there was before of an object. Of a policy whose kind is misspelt now, that is the one of its name.
fn version_before<'b>(before: &'b Objects, key: &Key, object: &Object) -> Option<&'b InForce> {
    let same = before.get(key);
    if same.is_some() || !object.is_unknown_policy() {
        return same;
    }
    let Meta { group, namespace, name, .. } = &object.meta;
    before.values().find(|old| {
        let meta = &old.object.meta;
        (&meta.group, &meta.namespace, &meta.name) == (group, namespace, name)
    })
}

fn judge(before: Option<&InForce>, object: &Arc<Object>) -> InForce {
    let diagnostics = object.diagnostics.clone();
    if object.good {
        return InForce { object: object.clone(), state: VerdictState::Accepted, diagnostics };
    }
    match before.filter(|old| old.state != VerdictState::Quarantined) {
        Some(old) => InForce { object: old.object.clone(), state: VerdictState::KeptLastGood, diagnostics },
        None => InForce { object: object.clone(), state: VerdictState::Quarantined, diagnostics },
    }
}

/// Nobody can say which of two was meant; both are named and the first stays.
fn report_repeated(first: &mut InForce, second: &Object) {
    let place = |meta: &Meta| format!("{}:{}", meta.file, meta.line);
    let first_meta = &first.object.meta;
    let at_first = format!("written again in {}; this one is in force", place(&second.meta));
    let at_second = format!("already written in {}; this one is not in force", place(first_meta));
    let error = |object: &Object, message| object.diagnostic(Severity::Error, "", 0, message);
    let reports = [error(&first.object, at_first), error(second, at_second)];
    first.diagnostics.extend(reports);
}

/// The file can't be read now: its objects stay as they were, good or not.
fn keep_through_broken_file(old: &InForce) -> InForce {
    let mut kept = old.clone();
    if kept.state == VerdictState::Accepted {
        kept.state = VerdictState::KeptLastGood;
        kept.diagnostics = vec![old.object.diagnostic(
            Severity::Error,
            "",
            0,
            "its file can't be read at the moment; the last good version stays in force".into(),
        )];
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource;

    fn files(texts: &[(&str, &str)]) -> Files {
        texts
            .iter()
            .map(|(name, text)| (Arc::from(*name), Arc::new(resource::read_file(&Arc::from(*name), text))))
            .collect()
    }

    fn states(objects: &Objects) -> Vec<(String, VerdictState, usize)> {
        objects
            .iter()
            .map(|(key, object)| (key.name.clone(), object.state, object.diagnostics.len()))
            .collect()
    }

    fn policy(name: &str, mode: &str) -> String {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}}}\nspec: {{mtls: {{mode: {mode}}}}}\n---\n"
        )
    }

    use VerdictState::{Accepted, KeptLastGood, Quarantined};

    #[test]
    fn a_bad_update_keeps_the_last_good_version_and_a_bad_new_object_has_none() {
        let first = update(&Objects::new(), &files(&[("a", &policy("a", "STRICT"))]));
        let second = update(&first, &files(&[("a", &(policy("a", "STRIKT") + &policy("b", "STRIKT")))]));
        assert_eq!(states(&second), [("a".into(), KeptLastGood, 1), ("b".into(), Quarantined, 1)]);
        let key = first.keys().next().unwrap();
        assert_eq!(second[key].object.meta.digest, first[key].object.meta.digest);
        // Still bad: still the last good version, not the last version.
        let third = update(&second, &files(&[("a", &(policy("a", "X") + &policy("b", "X")))]));
        assert_eq!(third[key].object.meta.digest, first[key].object.meta.digest);
        assert_eq!(states(&third)[1].1, Quarantined);
        let healed = update(&third, &files(&[("a", &(policy("a", "DISABLE") + &policy("b", "STRICT")))]));
        assert_eq!(states(&healed), [("a".into(), Accepted, 0), ("b".into(), Accepted, 0)]);
        assert_eq!(update(&healed, &files(&[])).len(), 0);
    }

    #[test]
    fn a_policy_whose_group_is_left_out_keeps_its_last_good_version_or_has_none() {
        let good = policy("a", "STRICT");
        for left_out in ["v1", "security.istio.io"] {
            let bad = good.replace("security.istio.io/v1", left_out);
            let first = update(&Objects::new(), &files(&[("f", &good)]));
            let kept = update(&first, &files(&[("f", &bad)]));
            assert_eq!(
                kept.values().map(|each| each.state).collect::<Vec<_>>(),
                [KeptLastGood],
                "{left_out}"
            );
            let fresh = update(&Objects::new(), &files(&[("f", &bad)]));
            assert_eq!(fresh.values().next().unwrap().state, Quarantined, "{left_out}");
            assert!(fresh.values().next().unwrap().object.meta.group == "security.istio.io");
        }
    }

    #[test]
    fn a_directory_that_can_not_be_looked_into_keeps_what_was_in_it() {
        let first = update(
            &Objects::new(),
            &files(&[("c/team/a", &policy("a", "STRICT")), ("c/teams", &policy("b", "STRICT"))]),
        );
        let second = update(&first, &files(&[("c/team", "a: [\n")]));
        assert_eq!(states(&second), [("a".into(), KeptLastGood, 1)]);
    }

    #[test]
    fn what_can_not_be_attributed_keeps_the_objects_of_its_file() {
        let good = policy("a", "STRICT");
        let list = |items: &str| {
            format!(
                "apiVersion: v1\nkind: List\n{items}:\n- {}",
                good.trim_end_matches("---\n").replace('\n', "\n  ")
            )
        };
        let numbered =
            |namespace: &str| good.replace("{name: a}", &format!("{{name: a, namespace: {namespace}}}"));
        for (before, after) in [(list("items"), list("item")), (numbered("'123'"), numbered("123"))] {
            let first = update(&Objects::new(), &files(&[("f", &before)]));
            assert_eq!(states(&first), [("a".into(), Accepted, 0)], "{before}");
            let second = update(&first, &files(&[("f", &after)]));
            assert_eq!(states(&second), [("a".into(), KeptLastGood, 1)], "{after}");
        }
    }

    #[test]
    fn a_file_that_is_not_yaml_keeps_its_objects() {
        let first = update(
            &Objects::new(),
            &files(&[("a", &(policy("a", "STRICT") + &policy("b", "X"))), ("c", &policy("c", "STRICT"))]),
        );
        let second = update(&first, &files(&[("a", "a: [\n")]));
        assert_eq!(states(&second), [("a".into(), KeptLastGood, 1), ("b".into(), Quarantined, 1)]);
        // Other documents of the file go on as they are.
        let third = update(&second, &files(&[("a", &format!("{}b: [", policy("a", "DISABLE")))]));
        assert_eq!(states(&third), [("a".into(), Accepted, 0), ("b".into(), Quarantined, 1)]);
    }

    #[test]
    fn a_policy_whose_kind_or_group_is_misspelt_keeps_its_last_good_version() {
        let good = policy("a", "STRICT");
        let first = update(&Objects::new(), &files(&[("a", &good)]));
        let digest = |objects: &Objects| objects.values().next().unwrap().object.meta.digest.clone();
        for slip in [good.replace("PeerAuth", "PearAuth"), good.replace("istio.io", "istio.i")] {
            let now = update(&first, &files(&[("a", &slip)]));
            assert_eq!((states(&now), digest(&now)), (vec![("a".into(), KeptLastGood, 1)], digest(&first)));
            let later = update(&now, &files(&[("a", &slip)]));
            assert_eq!((states(&later), digest(&later)), (states(&now), digest(&first)), "{slip}");
            assert_eq!(states(&update(&Objects::new(), &files(&[("a", &slip)])))[0].1, Quarantined);
        }
    }

    #[test]
    fn of_two_with_one_name_both_are_reported_and_the_first_is_kept() {
        let now =
            update(&Objects::new(), &files(&[("a", &policy("a", "STRICT")), ("b", &policy("a", "DISABLE"))]));
        assert_eq!(states(&now), [("a".into(), Accepted, 2)]);
        let object = now.values().next().unwrap();
        let files: Vec<_> = object.diagnostics.iter().map(|d| d.file.as_deref().unwrap()).collect();
        assert_eq!(files, ["a", "b"]);
        assert_eq!(&*object.object.meta.file, "a");
    }
}
