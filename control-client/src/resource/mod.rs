//! Kinds as users write them: files to objects, with every mistake reported.

pub(crate) mod core;
pub(crate) mod data;
pub(crate) mod destination;
pub(crate) mod gateway_api;
mod kinds;
pub(crate) mod mesh;
mod metadata;
pub(crate) mod rate_limit;
pub(crate) mod read;
pub(crate) mod security;
pub(crate) mod text;
pub(crate) mod traffic;
pub(crate) mod yaml;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::kinds::{Kind, Reading};
pub(crate) use self::metadata::Meta;
use self::read::{Problem, Reader};
use self::yaml::{Node, Value};
use crate::verdict::{Diagnostic, Severity};

/// What one file holds.
#[derive(Debug, Default)]
pub(crate) struct ParsedFile {
    pub(crate) objects: Vec<Arc<Object>>,
    /// What can't be attributed to an object. Objects of this file that are now missing keep their last good version.
    pub(crate) broken: Vec<Diagnostic>,
    /// Objects that are not read, by `Kind.group`.
    pub(crate) skipped: BTreeMap<String, usize>,
}

/// An object as written.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) meta: Meta,
    /// As much as could be understood of it.
    pub(crate) resource: Resource,
    /// No error refuses it.
    pub(crate) good: bool,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// What an object says.
#[derive(Debug)]
pub(crate) enum Resource {
    Service(core::Service),
    EndpointSlice(core::EndpointSlice),
    Pod(core::Pod),
    Secret(data::Data),
    ConfigMap(data::Data),
    ServiceEntry(traffic::ServiceEntry),
    WorkloadEntry(traffic::WorkloadEntry),
    DestinationRule(destination::DestinationRule),
    Gateway(gateway_api::Gateway),
    HttpRoute(gateway_api::HttpRoute),
    ReferenceGrant(gateway_api::ReferenceGrant),
    BackendTlsPolicy(gateway_api::BackendTlsPolicy),
    PeerAuthentication(security::PeerAuthentication),
    RequestAuthentication(security::RequestAuthentication),
    AuthorizationPolicy(security::AuthorizationPolicy),
    MeshSettings(mesh::MeshSettings),
    RateLimit(rate_limit::RateLimit),
    /// Accepted and of no consequence, or refused altogether.
    Nothing,
}

/// Kind, namespace, name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Object {
    pub(crate) fn key(&self) -> Key {
        let Meta { kind, namespace, name, .. } = &self.meta;
        Key { kind: kind.clone(), namespace: namespace.clone(), name: name.clone() }
    }

    /// Whether it is of a kind that its group, one of policies, does not have.
    pub(crate) fn is_unknown_policy(&self) -> bool {
        let Meta { group, kind, .. } = &self.meta;
        kinds::secures(group) && kinds::find(group, kind).is_none()
    }

    /// A diagnostic about this object, found when it was looked at together with others.
    pub(crate) fn diagnostic(
        &self,
        severity: Severity,
        field: &str,
        line: u32,
        message: String,
    ) -> Diagnostic {
        self.meta.diagnose(Problem { severity, field: field.to_owned(), message, line })
    }
}

/// Documents from which on a file is read by several threads.
const MANY_DOCUMENTS: usize = 512;
/// At most so many: the data plane wants its cores.
const MAX_THREADS: usize = 4;

/// Reads all objects of a file. `file` is its name in diagnostics.
pub(crate) fn read_file(file: &Arc<str>, text: &str) -> ParsedFile {
    let pieces = yaml::pieces(text);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    if pieces.len() < MANY_DOCUMENTS || threads == 1 {
        return read_pieces(file, &pieces);
    }
    let mut whole = ParsedFile::default();
    std::thread::scope(|scope| {
        let chunks = pieces.chunks(pieces.len().div_ceil(threads));
        let started: Vec<_> = chunks.map(|chunk| scope.spawn(move || read_pieces(file, chunk))).collect();
        for part in started {
            match part.join() {
                Ok(part) => whole.append(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    whole
}

fn read_pieces(file: &Arc<str>, pieces: &[(u32, &str)]) -> ParsedFile {
    let mut parsed = ParsedFile::default();
    for (lines_before, piece) in pieces {
        match yaml::parse(piece, *lines_before) {
            Ok(documents) => {
                documents.iter().for_each(|document| read_document(file, &document.root, &mut parsed))
            }
            Err(error) => {
                let message = format!(
                    "{}; what it holds is not in force, but for objects that were before: they keep their last good version",
                    error.message
                );
                parsed.broken.push(file_diagnostic(file, error.line, message));
            }
        }
    }
    parsed
}

impl ParsedFile {
    fn append(&mut self, other: Self) {
        self.objects.extend(other.objects);
        self.broken.extend(other.broken);
        for (kind, number) in other.skipped {
            *self.skipped.entry(kind).or_default() += number;
        }
    }

    fn skip(&mut self, group: &str, kind: &str) {
        let name = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        *self.skipped.entry(name).or_default() += 1;
    }
}

/// A diagnostic about a file.
pub(crate) fn file_diagnostic(file: &str, line: u32, message: String) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        object: None,
        field: String::new(),
        message,
        file: Some(file.to_owned()),
        line: Some(line),
    }
}

/// One object, or a `List` of them as `kubectl get -o yaml` prints.
fn read_document(file: &Arc<str>, root: &Node, parsed: &mut ParsedFile) {
    let text = |key| root.get(key).and_then(Node::as_str);
    match (&root.value, text("apiVersion"), text("kind")) {
        (Value::Null, ..) => {}
        (Value::Map(_), Some("v1"), Some("List")) => match root.get("items").map(|items| &items.value) {
            Some(Value::List(items)) => items.iter().for_each(|item| read_document(file, item, parsed)),
            _ => parsed.broken.push(file_diagnostic(
                file,
                root.line,
                "items is required (a list); without it nobody knows what is in this List".into(),
            )),
        },
        (Value::Map(_), Some(api_version), Some(kind)) => read_object(file, root, api_version, kind, parsed),
        (Value::Map(_), None, _) => {
            parsed.broken.push(file_diagnostic(file, root.line, no_identity("apiVersion")))
        }
        (Value::Map(_), _, None) => parsed.broken.push(file_diagnostic(file, root.line, no_identity("kind"))),
        _ => parsed.broken.push(file_diagnostic(
            file,
            root.line,
            "expected an object, a mapping with apiVersion and kind".into(),
        )),
    }
}

fn no_identity(field: &str) -> String {
    format!("{field} is required (a string); without it this can't be attributed to an object")
}

fn read_object(file: &Arc<str>, root: &Node, api_version: &str, kind_name: &str, parsed: &mut ParsedFile) {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let meant = match group {
        "" => kinds::group_of(kind_name),
        _ if kinds::is_read(group) => None,
        _ => kinds::misspelt_group(group, kind_name),
    };
    let (written, group) = (group, meant.unwrap_or(group));
    let kind = kinds::find(group, kind_name);
    if !kinds::is_read(group) || kind.is_some_and(|kind| matches!(kind.reading, Reading::Skip)) {
        parsed.skip(group, kind_name);
        return;
    }
    let reader = Reader::new(root);
    let Some(meta) = metadata::read(&reader, file, group, kind_name, kind) else {
        let broken = reader.into_problems().into_iter().map(|problem| {
            let message = format!(
                "{kind_name}: {}: {}; without it this can't be attributed to an object",
                problem.field, problem.message
            );
            file_diagnostic(file, problem.line, message)
        });
        parsed.broken.extend(broken);
        return;
    };
    if let (Some(meant), Some(at)) =
        (meant, reader.at_root().open_fields().and_then(|top| top.get("apiVersion")))
    {
        at.error(match written {
            "" => format!("it names no group; did you mean `{meant}/v1`?"),
            written => format!("group {written} is not read; did you mean `{meant}`?"),
        });
    }
    let resource = read_resource(&reader, &meta, kind, version);
    let good = reader.is_good();
    let diagnostics = reader.into_problems().into_iter().map(|problem| meta.diagnose(problem)).collect();
    parsed.objects.push(Arc::new(Object { meta, resource, good, diagnostics }));
}

fn read_resource(reader: &Reader<'_>, meta: &Meta, kind: Option<&Kind>, version: &str) -> Resource {
    let object = reader.at_root();
    let fields = match object.open_fields() {
        Some(fields) => fields,
        None => return Resource::Nothing,
    };
    let at_kind = fields.get("kind").unwrap_or(object);
    let Some(kind) = kind else {
        at_kind.error(format!("unknown kind; {}", kinds::hint(&meta.group, &meta.kind)));
        return if kinds::secures(&meta.group) { security::unknown(fields) } else { Resource::Nothing };
    };
    if !kind.versions.contains(&version) {
        let at_version = fields.get("apiVersion").unwrap_or(object);
        at_version
            .error(format!("version {version} of {} is not known; use {}", kind.name, kind.versions[0]));
    }
    for entry in reader.duplicate_keys() {
        entry.error("this key is already used above; keys must be unique");
    }
    match kind.reading {
        Reading::Read(read) => {
            let known: Vec<&str> =
                ["apiVersion", "kind", "metadata", "status"].iter().chain(kind.fields).copied().collect();
            object.fields(&known);
            read(meta, fields)
        }
        Reading::Ignore | Reading::Skip => Resource::Nothing,
        Reading::Refuse(why) => {
            at_kind.error(why);
            Resource::Nothing
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The only object of a file, with its diagnostics as `line field: message`.
    pub(crate) fn only(text: &str) -> (Arc<Object>, Vec<String>) {
        let parsed = read_file(&Arc::from("test.yaml"), text);
        assert_eq!(parsed.broken, []);
        assert_eq!(parsed.objects.len(), 1);
        let object = parsed.objects[0].clone();
        let found = object
            .diagnostics
            .iter()
            .map(|d| format!("{} {}: {}", d.line.unwrap(), d.field, d.message))
            .collect();
        (object, found)
    }

    #[test]
    fn groups_that_are_not_read_are_skipped_and_counted() {
        let parsed = read_file(
            &Arc::from("a.yaml"),
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n",
        );
        let skipped: Vec<_> = parsed.skipped.iter().map(|(kind, number)| (kind.as_str(), *number)).collect();
        assert_eq!(skipped, [("Deployment.apps", 1), ("ServiceAccount", 1)]);
        assert_eq!((parsed.objects.len(), parsed.broken.len()), (1, 0));
    }

    #[test]
    fn unknown_and_replaced_kinds_name_what_to_use() {
        let cases = [
            ("v1", "Servce", "1 kind: unknown kind; did you mean `Service`?"),
            (
                "networking.istio.io/v1",
                "AuthorizationPolicy",
                "1 kind: unknown kind; AuthorizationPolicy is of `apiVersion: security.istio.io/v1`",
            ),
            ("v1", "Telephone", "1 kind: unknown kind; known in this group: Namespace, Service"),
            ("security.istio.i/v1", "AuthorizationPolicy", "did you mean `security.istio.io`?"),
            ("networking.istio.io/v1", "VirtualService", "write an HTTPRoute"),
            ("networking.istio.io/v1", "Sidecar", "exportTo"),
            ("networking.istio.io/v1alpha3", "EnvoyFilter", "no replacement"),
            ("extensions.istio.io/v1alpha1", "WasmPlugin", "CUSTOM"),
            ("gateway.networking.k8s.io/v1", "GRPCRoute", "not supported yet"),
            ("security.istio.io/v9", "PeerAuthentication", "use v1"),
        ];
        for (api_version, kind, wanted) in cases {
            let (object, found) =
                only(&format!("kind: {kind}\napiVersion: {api_version}\nmetadata:\n  name: x\n"));
            assert!(!object.good);
            assert!(found.join("\n").contains(wanted), "{kind}: {found:?}");
        }
    }

    #[test]
    fn what_has_no_name_belongs_to_the_file() {
        for text in [
            "kind: Pod\nmetadata: {name: x}\n",
            "apiVersion: v1\nmetadata: {name: x}\n",
            "- 1\n",
            "apiVersion: v1\nkind: Pod\n",
        ] {
            let parsed = read_file(&Arc::from("a.yaml"), text);
            assert_eq!((parsed.broken.len(), parsed.objects.len()), (1, 0), "{text}");
        }
    }

    #[test]
    fn lists_are_unpacked_and_duplicate_keys_are_errors() {
        let parsed = read_file(
            &Arc::from("a.yaml"),
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata:\n    name: a\n    labels: {x: a, x: b}\n",
        );
        let object = &parsed.objects[0];
        assert!(!object.good);
        assert_eq!(object.diagnostics[0].field, "metadata.labels.x");
        assert_eq!(object.diagnostics[0].line, Some(8));
    }

    #[test]
    fn digest_is_of_what_is_written() {
        let digest = |text: &str| only(text).0.meta.digest.clone();
        let policy = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: n, labels: {x: y}}\nspec: {mtls: {mode: STRICT}}\n";
        let same = "# c\nkind: PeerAuthentication\nspec:\n  mtls:\n    mode: 'STRICT'\nmetadata:\n  namespace: n\n  name: a\n  creationTimestamp: null\napiVersion: security.istio.io/v1beta1\n";
        assert_eq!(digest(policy), digest(same));
        assert!(digest(policy).starts_with("sha256:"));
        for other in [
            policy.replace("STRICT", "DISABLE"),
            policy.replace("namespace: n", "namespace: m"),
            policy.replace("name: a", "name: b"),
            policy.replace("labels:", "annotations: {writ.dev/enforced: 'true'}, labels:"),
            policy.replace("labels:", "creationTimestamp: 2024-01-01T00:00:00Z, labels:"),
        ] {
            assert_ne!(digest(policy), digest(&other), "{other}");
        }
        let ignored = policy.replace("labels:", "annotations: {other: 'true'}, labels:");
        assert_eq!(digest(policy), digest(&ignored));
    }
}
