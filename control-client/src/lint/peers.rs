//! PeerAuthentications of which another takes the place, and ports of nobody in them.

use std::collections::BTreeMap;

use super::places::Places;
use crate::keep::{InForce, Objects};
use crate::resource::security::{PeerAuthentication, Scope};
use crate::resource::{Object, Resource};
use crate::verdict::{Diagnostic, Severity, VerdictState};

/// Where two can't be in force together: a namespace, and labels.
type Place<'a> = (&'a str, Vec<(&'a str, &'a str)>);

/// What to say of all PeerAuthentications.
pub(super) fn warnings(in_force: &Objects, root_namespace: &str, places: &Places<'_>) -> Vec<Diagnostic> {
    let mut all: Vec<(&InForce, &PeerAuthentication)> = Vec::new();
    for each in in_force.values() {
        if let Resource::PeerAuthentication(spec) = &each.object.resource {
            all.push((each, spec));
        }
    }
    // As they are chosen: one that fails closed before others, then the oldest.
    all.sort_by_key(|(each, _)| (each.state != VerdictState::Quarantined, each.object.meta.age()));
    let mut warnings = Vec::new();
    let mut chosen: BTreeMap<Place<'_>, &Object> = BTreeMap::new();
    for (each, spec) in all {
        let object: &Object = &each.object;
        let namespace = &*object.meta.namespace;
        let labels = match &spec.scope {
            Scope::All => Vec::new(),
            Scope::Labels(labels) if namespace != root_namespace => {
                warnings.extend(ports_of_nobody(object, spec, places));
                labels.iter().map(|(key, value)| (&**key, &**value)).collect()
            }
            // Told of elsewhere.
            Scope::Labels(_) | Scope::Targets(_) | Scope::Unknown => continue,
        };
        let first = *chosen.entry((namespace, labels)).or_insert(object);
        // What is enforced holds beside others.
        if !std::ptr::eq(first, object) && !spec.enforced {
            warnings.push(not_in_force(object, first));
        }
    }
    warnings
}

fn not_in_force(object: &Object, first: &Object) -> Diagnostic {
    let meta = &first.meta;
    let message = format!(
        "not in force: PeerAuthentication {}/{} ({}:{}) is for the same workloads and comes first, as the oldest does, \
         and without creationTimestamp the first by name",
        meta.namespace, meta.name, meta.file, meta.line
    );
    object.diagnostic(Severity::Warning, "", 0, message)
}

fn ports_of_nobody(object: &Object, spec: &PeerAuthentication, places: &Places<'_>) -> Vec<Diagnostic> {
    let Scope::Labels(labels) = &spec.scope else { return Vec::new() };
    let Some(known) = places.declared_ports(&object.meta.namespace, labels) else { return Vec::new() };
    let unknown = spec.ports.keys().filter(|port| !known.contains(port));
    let warn = |port: &u16| {
        let message = super::places::no_such_port(*port, &known);
        let line = spec.port_lines.get(port).copied().unwrap_or_default();
        object.diagnostic(Severity::Warning, &format!("spec.portLevelMtls.{port}"), line, message)
    };
    unknown.map(warn).collect()
}
