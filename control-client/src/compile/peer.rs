//! PeerAuthentication merged for a workload, as Istio's ComposePeerAuthentication does, and the enforced floor.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::catalog::{Catalog, Item};
use super::objects::ObjectTable;
use super::own::{Own, Reach};
use super::{Findings, Labels};
use crate::resource::Object;
use crate::resource::security::{PeerAuthentication, Scope};
use crate::resource::text::selects;
use crate::snapshot::{self, MtlsMode, PeerMode};

/// All PeerAuthentications, ready to be merged for any workload.
#[derive(Debug)]
pub(super) struct PeerPolicies<'a> {
    /// What every merge begins with: nothing that is kept demands less.
    floor: Option<Floor<'a>>,
    mesh: Option<Level<'a>>,
    namespaces: HashMap<&'a str, Level<'a>>,
    /// With a selector, oldest first, by one label of the selector.
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<&'a Item<'a, PeerAuthentication>>>,
    /// Namespaces where some workload or port may ask for less than mTLS.
    weakened: HashSet<&'a str>,
    /// Those whose selector can't be understood: they cover their namespace.
    blind: HashMap<&'a str, Level<'a>>,
}

/// What one level says.
#[derive(Debug, Clone, Copy)]
struct Level<'a> {
    object: &'a Object,
    spec: &'a PeerAuthentication,
    quarantined: bool,
}

/// The merged modes of a workload.
#[derive(Debug)]
pub(super) struct Merged<'a> {
    default: Mode<'a>,
    ports: Vec<(u16, Mode<'a>)>,
}

/// A mode and who set it.
#[derive(Debug, Clone, Copy)]
struct Mode<'a> {
    mode: MtlsMode,
    object: Option<&'a Object>,
    quarantined: bool,
}

impl<'a> PeerPolicies<'a> {
    pub(super) fn new(catalog: &'a Catalog<'a>, root: &str, findings: &mut Findings) -> Self {
        let mut items: Vec<&Item<'a, PeerAuthentication>> = catalog.peer_authentications.iter().collect();
        items.sort_by_key(|item| item.object.meta.age());
        let floor = enforced(&items, root, findings);
        items.retain(|item| floor.as_ref().is_none_or(|floor| floor.leaves(item, root, findings)));
        let mut all = Self {
            floor,
            mesh: None,
            namespaces: HashMap::new(),
            by_label: HashMap::new(),
            weakened: HashSet::new(),
            blind: HashMap::new(),
        };
        for item in items {
            all.add(item, root, findings);
        }
        all
    }

    /// The object that demands mTLS of everyone in the mesh, whatever others say.
    pub(super) fn enforces_mtls(&self) -> Option<&'a Object> {
        self.floor.as_ref().filter(|floor| floor.mode == MtlsMode::Strict).map(|floor| floor.object)
    }

    fn add(&mut self, item: &'a Item<'a, PeerAuthentication>, root: &str, findings: &mut Findings) {
        let namespace = item.object.meta.namespace.as_str();
        let level = Level { object: item.object, spec: item.spec, quarantined: item.quarantined };
        match &item.spec.scope {
            Scope::All if namespace == root => oldest_or_closed(self.mesh.get_or_insert(level), level),
            // A bad selector in the root namespace: what it was to cover may be anything of the mesh.
            Scope::Unknown | Scope::Targets(_) if namespace == root => {
                oldest_or_closed(self.mesh.get_or_insert(level), level);
            }
            Scope::All => oldest_or_closed(self.namespaces.entry(namespace).or_insert(level), level),
            Scope::Unknown | Scope::Targets(_) => {
                self.blind.entry(namespace).or_insert(level);
            }
            // As in Istio.
            Scope::Labels(_) if namespace == root => {
                let message = "has no effect in the root namespace: leave the selector out to speak for the mesh, or write the \
                     object into the namespace of the workloads";
                findings.warn(item.object, "spec.selector", 0, message.into());
            }
            Scope::Labels(labels) => {
                if self.may_weaken(item) {
                    self.weakened.insert(namespace);
                }
                if let Some((key, value)) = labels.first_key_value() {
                    self.by_label.entry((namespace, key, value)).or_default().push(item);
                }
            }
        }
    }

    /// The merge for one workload.
    pub(super) fn merge(&self, namespace: &str, labels: &Labels) -> Merged<'a> {
        let chosen = self.workload_level(namespace, labels, |_| true);
        let merged = self.merge_with(namespace, chosen);
        let weakens =
            |spec: &PeerAuthentication| self.floor.as_ref().is_some_and(|floor| floor.is_weakened_by(spec));
        if !chosen.is_some_and(|level| !level.quarantined && weakens(level.spec)) {
            return merged;
        }
        // What is left of an object that is ignored in part makes nothing weaker than it is without it.
        let without = self.workload_level(namespace, labels, |item| item.quarantined || !weakens(item.spec));
        merged.or_stricter(&self.merge_with(namespace, without))
    }

    fn merge_with(&self, namespace: &str, workload: Option<Level<'a>>) -> Merged<'a> {
        let levels = [self.mesh, self.namespaces.get(namespace).copied(), workload];
        let mut default = match &self.floor {
            Some(floor) => {
                Mode { mode: floor.mode, object: Some(floor.object), quarantined: floor.quarantined }
            }
            None => Mode { mode: MtlsMode::Permissive, object: None, quarantined: false },
        };
        for level in levels.into_iter().flatten() {
            if level.quarantined {
                default = Mode { mode: MtlsMode::Strict, object: Some(level.object), quarantined: true };
            } else if let Some(mode) = self.allowed(level.spec.mode) {
                default = Mode { mode, object: Some(level.object), quarantined: false };
            }
        }
        let ports = match workload {
            Some(level) if !level.quarantined => {
                let port = |(port, mode): (&u16, &Option<MtlsMode>)| match self.allowed(*mode) {
                    Some(mode) => (*port, Mode { mode, object: Some(level.object), quarantined: false }),
                    None => (*port, default),
                };
                level.spec.ports.iter().map(port).collect()
            }
            _ => Vec::new(),
        };
        Merged { default, ports }
    }

    /// What is said, unless it is less than is enforced.
    fn allowed(&self, mode: Option<MtlsMode>) -> Option<MtlsMode> {
        mode.filter(|mode| self.floor.as_ref().is_none_or(|floor| !floor.is_above(*mode)))
    }

    fn may_weaken(&self, item: &Item<'_, PeerAuthentication>) -> bool {
        let weak = |mode: Option<MtlsMode>| self.allowed(mode).is_some_and(|mode| mode != MtlsMode::Strict);
        !item.quarantined && (weak(item.spec.mode) || item.spec.ports.values().copied().any(weak))
    }

    fn workload_level(
        &self,
        namespace: &str,
        labels: &Labels,
        counts: impl Fn(&Item<'_, PeerAuthentication>) -> bool,
    ) -> Option<Level<'a>> {
        if let Some(level) = self.blind.get(namespace) {
            return Some(*level);
        }
        let candidates = labels
            .iter()
            .filter_map(|(key, value)| self.by_label.get(&(namespace, key.as_str(), value.as_str())));
        let matching = candidates.flatten().filter(|item| match &item.spec.scope {
            Scope::Labels(selector) => selects(selector, labels) && counts(item),
            _ => false,
        });
        // A quarantined one closes, whatever its age.
        let chosen = matching.min_by_key(|item| (!item.quarantined, item.object.meta.age()))?;
        Some(Level { object: chosen.object, spec: chosen.spec, quarantined: chosen.quarantined })
    }

    /// The merge for the proxy's own workload, as it gets it.
    pub(super) fn snapshot(
        &self,
        own: &Own<'_>,
        objects: &mut ObjectTable<'a>,
        findings: &mut Findings,
    ) -> snapshot::PeerAuthentication {
        let merged = match self.closed_for(own, findings) {
            Some(object) => {
                let closed = Mode { mode: MtlsMode::Strict, object: Some(object), quarantined: true };
                Merged { default: closed, ports: Vec::new() }
            }
            None => self.merge(own.namespace, own.labels),
        };
        let mut mode = |mode: &Mode<'a>| PeerMode {
            mode: mode.mode,
            object: mode.object.map(|object| objects.number(object)),
            quarantined: mode.quarantined,
        };
        snapshot::PeerAuthentication {
            default: mode(&merged.default),
            ports: merged.ports.iter().map(|(port, set)| (*port, mode(set))).collect(),
        }
    }

    /// The oldest object of which nobody can tell whether it is for the workload.
    fn closed_for(&self, own: &Own<'_>, findings: &mut Findings) -> Option<&'a Object> {
        let near = self.by_label.iter().filter(|((namespace, ..), _)| *namespace == own.namespace);
        let mut closed: Vec<&Object> = Vec::new();
        for item in near.flat_map(|(_, items)| items) {
            if let Scope::Labels(selector) = &item.spec.scope
                && matches!(own.selected(item.object, selector, findings), Reach::HereClosed)
            {
                closed.push(item.object);
            }
        }
        closed.into_iter().min_by_key(|object| object.meta.age())
    }

    /// Whether every workload of the namespace demands mTLS on every port, whoever it is.
    pub(super) fn all_strict(&self, namespace: &str) -> bool {
        self.merge(namespace, &Labels::new()).is_strict_by_default() && !self.weakened.contains(namespace)
    }
}

impl<'a> Merged<'a> {
    /// Whether plaintext to this port is refused.
    pub(super) fn is_strict(&self, port: u16) -> bool {
        self.of(port).mode == MtlsMode::Strict
    }

    /// Of each port the stricter mode of both.
    fn or_stricter(self, other: &Self) -> Self {
        let ports: BTreeSet<u16> = self.ports.iter().chain(&other.ports).map(|(port, _)| *port).collect();
        let ports = ports.into_iter().map(|port| (port, self.of(port).or_stricter(other.of(port))));
        Self { ports: ports.collect(), default: self.default.or_stricter(other.default) }
    }

    /// Whether plaintext is refused on ports not listed.
    pub(super) fn is_strict_by_default(&self) -> bool {
        self.default.mode == MtlsMode::Strict
    }

    fn of(&self, port: u16) -> Mode<'a> {
        let of_port = self.ports.iter().find(|(number, _)| *number == port);
        of_port.map_or(self.default, |(_, mode)| *mode)
    }
}

impl Mode<'_> {
    fn or_stricter(self, other: Self) -> Self {
        if strength(other.mode) > strength(self.mode) { other } else { self }
    }
}

/// Oldest first is how items come, so the first stays, unless a later one can't be understood.
fn oldest_or_closed<'a>(chosen: &mut Level<'a>, level: Level<'a>) {
    if level.quarantined && !chosen.quarantined {
        *chosen = level;
    }
}

/// The enforced object that demands most.
#[derive(Debug)]
struct Floor<'a> {
    object: &'a Object,
    mode: MtlsMode,
    quarantined: bool,
}

fn enforced<'a>(
    items: &[&'a Item<'a, PeerAuthentication>],
    root: &str,
    findings: &mut Findings,
) -> Option<Floor<'a>> {
    let mut floor: Option<Floor<'a>> = None;
    for item in items.iter().filter(|item| item.spec.enforced) {
        let field = "metadata.annotations[writ.dev/enforced]";
        if item.namespace() != root {
            let message = format!(
                "only in the root namespace, {root}, can a PeerAuthentication be enforced; this annotation does nothing"
            );
            findings.error(item.object, field, 0, message);
            continue;
        }
        let mode = match item.spec.mode {
            _ if item.quarantined => MtlsMode::Strict,
            Some(mode) => mode,
            None => {
                findings.warn(
                    item.object,
                    field,
                    0,
                    "spec.mtls.mode is not set, so nothing is enforced".into(),
                );
                continue;
            }
        };
        if floor.as_ref().is_none_or(|floor| strength(mode) > strength(floor.mode)) {
            floor = Some(Floor { object: item.object, mode, quarantined: item.quarantined });
        }
    }
    floor
}

fn strength(mode: MtlsMode) -> u8 {
    match mode {
        MtlsMode::Disable => 0,
        MtlsMode::Permissive => 1,
        MtlsMode::Strict => 2,
    }
}

impl Floor<'_> {
    fn is_above(&self, mode: MtlsMode) -> bool {
        strength(mode) < strength(self.mode)
    }

    fn is_weakened_by(&self, spec: &PeerAuthentication) -> bool {
        spec.mode.iter().chain(spec.ports.values().flatten()).any(|mode| self.is_above(*mode))
    }

    /// Whether anything is left of an object without the fields that ask for less. They are reported.
    fn leaves(&self, item: &Item<'_, PeerAuthentication>, root: &str, findings: &mut Findings) -> bool {
        // A selector in the root namespace has no effect, so it weakens nothing.
        let without_effect = item.namespace() == root && matches!(item.spec.scope, Scope::Labels(_));
        if item.quarantined || without_effect || std::ptr::eq(item.object, self.object) {
            return true;
        }
        let PeerAuthentication { mode, ports, .. } = item.spec;
        let ports = ports.iter().map(|(port, mode)| (format!("spec.portLevelMtls.{port}.mode"), *mode));
        let fields = std::iter::once(("spec.mtls.mode".to_owned(), *mode)).chain(ports);
        let said = fields.filter_map(|(field, mode)| Some((field, mode?)));
        let (weaker, left): (Vec<_>, Vec<_>) = said.partition(|(_, mode)| self.is_above(*mode));
        for (field, _) in &weaker {
            let ignored = if left.is_empty() { "this object" } else { "this field" };
            findings.ignored(item.object, field, would_weaken(self.object, ignored));
        }
        weaker.is_empty() || !left.is_empty()
    }
}

/// Why something is ignored: it asks for less than `enforced` demands.
pub(super) fn would_weaken(enforced: &Object, ignored: &str) -> String {
    let meta = &enforced.meta;
    format!(
        "would weaken PeerAuthentication {}/{}, which is enforced; {ignored} is ignored",
        meta.namespace, meta.name
    )
}
