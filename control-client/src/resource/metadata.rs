//! Metadata of an object: what it is called, how old it is, its digest.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::kinds::Kind;
use super::read::{At, Fields, Problem, Reader};
use super::text;
use crate::digest;
use crate::snapshot::ObjectRef;
use crate::verdict::Diagnostic;

/// What every object has.
#[derive(Debug)]
pub(crate) struct Meta {
    pub(crate) group: String,
    pub(crate) kind: String,
    /// Empty for cluster-scoped kinds.
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Seconds since the epoch.
    pub(crate) created: Option<i64>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Only those that mean something.
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) digest: String,
    /// Live data, not written by people.
    pub(crate) runtime: bool,
    pub(crate) file: Arc<str>,
    pub(crate) line: u32,
}

/// Fields of Kubernetes' ObjectMeta.
const KNOWN: &[&str] = &[
    "name",
    "namespace",
    "labels",
    "annotations",
    "creationTimestamp",
    "generateName",
    "uid",
    "resourceVersion",
    "generation",
    "managedFields",
    "ownerReferences",
    "finalizers",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

const EXPIRES_AT: &str = "writ.dev/expires-at";

/// Reads metadata and makes the digest. `None` when the object has no name that could be reported.
pub(crate) fn read(
    reader: &Reader<'_>,
    file: &Arc<str>,
    group: &str,
    kind_name: &str,
    kind: Option<&'static Kind>,
) -> Option<Meta> {
    let object = reader.at_root();
    let top = object.open_fields()?;
    let metadata = top.require("metadata")?.fields(KNOWN)?;
    let name = metadata.require("name")?;
    let name_text = name.text()?;
    if !text::is_dns_subdomain(&name_text) {
        name.error(format!("`{name_text}` is not a name: lower-case letters, digits, `-` and `.`"));
    }
    let namespaced = kind.is_none_or(|kind| kind.namespaced);
    let namespace = match metadata.get("namespace") {
        Some(at) => at.text()?,
        None if namespaced => "default".to_owned(),
        None => String::new(),
    };
    let (created, created_text) = metadata.get("creationTimestamp").map_or((None, None), created);
    let labels = metadata.get("labels").map(At::string_map).unwrap_or_default();
    // Kinds with annotations of their own know this one, or refuse it themselves.
    if let Some(kind) = kind
        && !["AuthorizationPolicy", "PeerAuthentication"].contains(&kind_name)
        && !kind.runtime
        && let Some(at) =
            metadata.get("annotations").and_then(At::open_fields).and_then(|at| at.get(EXPIRES_AT))
    {
        at.error("only an ALLOW AuthorizationPolicy can expire");
    }
    let annotations = metadata.get("annotations").map(At::string_map).unwrap_or_default();
    let annotations = annotations.into_iter().filter(|(key, _)| digest::annotation_counts(key)).collect();
    let mut meta = Meta {
        group: group.to_owned(),
        kind: kind_name.to_owned(),
        namespace,
        name: name_text,
        created,
        labels,
        annotations,
        digest: String::new(),
        runtime: kind.is_some_and(|kind| kind.runtime),
        file: file.clone(),
        line: object.line(),
    };
    meta.digest = digest_of(&meta, created_text, kind, top, metadata);
    Some(meta)
}

impl Meta {
    pub(crate) fn object_ref(&self) -> ObjectRef {
        ObjectRef {
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            digest: self.digest.clone(),
        }
    }

    pub(crate) fn diagnose(&self, problem: Problem) -> Diagnostic {
        Diagnostic {
            severity: problem.severity,
            object: Some((self.kind.clone(), self.namespace.clone(), self.name.clone())),
            field: problem.field,
            message: problem.message,
            file: Some(self.file.to_string()),
            line: Some(if problem.line == 0 { self.line } else { problem.line }),
        }
    }

    /// For "oldest first": creation time, then namespace and name; objects without a time come last.
    pub(crate) fn age(&self) -> (bool, Option<i64>, &str, &str) {
        (self.created.is_none(), self.created, &self.namespace, &self.name)
    }
}

fn created(at: At<'_>) -> (Option<i64>, Option<&str>) {
    let Some(written) = at.str() else { return (None, None) };
    match written.parse::<jiff::Timestamp>() {
        Ok(time) => (Some(time.as_second()), Some(written)),
        Err(_) => {
            at.error("not a time such as 2026-01-31T12:00:00Z");
            (None, Some(written))
        }
    }
}

fn digest_of(
    meta: &Meta,
    created: Option<&str>,
    kind: Option<&'static Kind>,
    top: Fields<'_>,
    metadata: Fields<'_>,
) -> String {
    let identity = digest::Identity {
        group: &meta.group,
        kind: &meta.kind,
        namespace: &meta.namespace,
        name: &meta.name,
        created,
        annotations: meta.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
    };
    let names = kind.map_or(&["spec"][..], |kind| kind.fields);
    let mut fields: Vec<_> = names.iter().filter_map(|name| Some((*name, top.get(name)?.node))).collect();
    // Live objects are selected by their labels, and nobody reviews them.
    if meta.runtime
        && let Some(labels) = metadata.get("labels")
    {
        fields.push(("labels", labels.node));
    }
    digest::object(&identity, &fields)
}
