//! What is wrong with objects that fail closed, for the records of what they refuse.

use std::collections::BTreeMap;

use super::Finding;
use crate::keep;
use crate::resource::Key;
use crate::snapshot::{ObjectIndex, ObjectRef};
use crate::verdict::{Diagnostic, Severity, VerdictState};

/// The first error of each of these objects of which nothing is in force.
pub(super) fn of(
    objects: &[ObjectRef],
    in_force: &keep::Objects,
    findings: &[Finding],
) -> BTreeMap<ObjectIndex, String> {
    let first = |object: &ObjectRef| -> Option<&Diagnostic> {
        let ObjectRef { kind, namespace, name, .. } = object;
        let key = Key { kind: kind.clone(), namespace: namespace.clone(), name: name.clone() };
        let written = in_force.get(&key)?;
        let of_it = |found: &&Finding| {
            found.becomes == Some(VerdictState::Quarantined)
                && found
                    .diagnostic
                    .object
                    .as_ref()
                    .is_some_and(|(a, b, c)| (a, b, c) == (kind, namespace, name))
        };
        let together = || findings.iter().find(of_it).map(|found| &found.diagnostic);
        match written.state {
            VerdictState::Quarantined => {
                written.diagnostics.iter().find(|found| found.severity == Severity::Error)
            }
            _ => together(),
        }
    };
    let numbered = (0..).zip(objects);
    numbered.filter_map(|(number, object)| Some((number, first(object)?.placed()))).collect()
}
