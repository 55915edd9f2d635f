//! What policies can be for: workloads and the Services before them, found by their labels.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::resource::core::{Service, TargetPort};
use crate::resource::security::Scope;
use crate::resource::{Object, Resource};
use crate::snapshot::{Attribute, AuthorizationRule, Protocol, ValueMatch};

/// Workloads and Services.
#[derive(Default)]
pub(super) struct Places<'a> {
    workloads: Vec<Workload<'a>>,
    /// By namespace and each label.
    by_label: HashMap<[&'a str; 3], Vec<usize>>,
    services: Vec<(&'a Object, &'a Service)>,
    /// By namespace and the first label that they select by.
    by_selector: HashMap<[&'a str; 3], Vec<usize>>,
    /// Namespaces of which Pods are here.
    with_pods: BTreeSet<&'a str>,
    /// Namespaces in which something is that policies can be for, or that are here themselves.
    inhabited: BTreeSet<&'a str>,
}

struct Workload<'a> {
    labels: BTreeMap<&'a str, &'a str>,
    /// Ports that it declares.
    ports: Vec<u16>,
}

impl<'a> Places<'a> {
    pub(super) fn add(&mut self, object: &'a Object) {
        let namespace = &*object.meta.namespace;
        let own = object.meta.labels.iter();
        self.inhabited.insert(if object.meta.kind == "Namespace" { &object.meta.name } else { namespace });
        match &object.resource {
            Resource::Pod(pod) => {
                self.with_pods.insert(namespace);
                let ports = pod.ports.iter().map(|(_, port)| *port).collect();
                self.add_workload(namespace, own, ports);
            }
            Resource::WorkloadEntry(entry) => {
                let ports = entry.ports.values().copied().collect();
                self.add_workload(namespace, own.chain(&entry.labels), ports);
            }
            Resource::Service(service) => {
                if let Some((key, value)) = service.selector.first_key_value() {
                    let at = self.by_selector.entry([namespace, key, value]).or_default();
                    at.push(self.services.len());
                    self.services.push((object, service));
                }
            }
            _ => {}
        }
    }

    fn add_workload(
        &mut self,
        namespace: &'a str,
        labels: impl Iterator<Item = (&'a String, &'a String)>,
        ports: Vec<u16>,
    ) {
        let labels: BTreeMap<&str, &str> = labels.map(|(key, value)| (&**key, &**value)).collect();
        for (key, value) in &labels {
            self.by_label.entry([namespace, key, value]).or_default().push(self.workloads.len());
        }
        self.workloads.push(Workload { labels, ports });
    }

    /// Whether nothing of a namespace is here, though something of others is.
    pub(super) fn is_empty(&self, namespace: &str) -> bool {
        !self.inhabited.is_empty() && !self.inhabited.contains(namespace)
    }

    /// Whether nobody has these labels; said only of a namespace of which Pods are here: else what runs there is made by
    /// what isn't read, as Deployments are.
    pub(super) fn has_nobody(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        self.with_pods.contains(namespace) && self.selected(namespace, labels).next().is_none()
    }

    /// The workloads with these labels, of which there is at least one.
    fn selected<'s>(
        &'s self,
        namespace: &'s str,
        labels: &'s BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'s Workload<'a>> {
        let with = |(key, value): (&'s String, &'s String)| {
            self.by_label.get(&[namespace, &**key, &**value]).map_or(&[][..], Vec::as_slice)
        };
        let fewest = labels.iter().map(with).min_by_key(|with| with.len()).unwrap_or_default();
        fewest.iter().map(|&at| &self.workloads[at]).filter(|workload| workload.has(labels))
    }

    /// `ports` are the workload's: one that only a Service has matches nothing. What to say of each such port of a rule.
    pub(super) fn service_ports(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        rule: &AuthorizationRule,
    ) -> Vec<String> {
        let conditions = rule.to.iter().flatten().chain(&rule.when);
        let ports = conditions.filter(|condition| condition.attribute == Attribute::DestinationPort);
        let ports: Vec<u16> = ports
            .flat_map(|condition| &condition.values)
            .filter_map(|value| if let ValueMatch::Port(port) = value { Some(*port) } else { None })
            .collect();
        if ports.is_empty() {
            return Vec::new();
        }
        let selected: Vec<_> = self.selected(namespace, labels).collect();
        let services = self.before(namespace, &selected);
        let targets: Option<Vec<u16>> = services
            .iter()
            .flat_map(|(_, service)| &service.ports)
            .map(|port| match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(_) => None,
            })
            .collect();
        // A name may stand for any number.
        let Some(targets) = targets else { return Vec::new() };
        let declared = |port: &u16| selected.iter().any(|workload| workload.ports.contains(port));
        let all = declared_by_all(&selected).map(|ports| ports.into_iter().chain(targets.clone()).collect());
        let of_nobody = |port: u16| all.as_ref().map(|known| no_such_port(port, known));
        let of_service = |port: u16| {
            let (object, found) = services.iter().find_map(|(object, service)| {
                Some((object, service.ports.iter().find(|each| each.port == port)?))
            })?;
            let TargetPort::Number(target) = found.target else { return None };
            Some(format!(
                "{port} is the port of Service {}; policies look at the workload's, which is {target} there",
                object.meta.name
            ))
        };
        let unmatched = ports.into_iter().filter(|port| !declared(port) && !targets.contains(port));
        unmatched.filter_map(|port| of_service(port).or_else(|| of_nobody(port))).collect()
    }

    /// All ports of the workloads with these labels, if each of them says which it has.
    pub(super) fn declared_ports(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Option<BTreeSet<u16>> {
        let selected: Vec<_> = self.selected(namespace, labels).collect();
        let mut all = declared_by_all(&selected)?;
        for (_, service) in self.before(namespace, &selected) {
            all.extend(service.ports.iter().filter_map(|port| match port.target {
                TargetPort::Number(number) => Some(number),
                // One of those that are declared.
                TargetPort::Name(_) => None,
            }));
        }
        Some(all)
    }

    /// Name and port of the first Service with such a port before workloads that are in scope. `namespace`: `None` is all.
    pub(super) fn port_before(
        &self,
        namespace: Option<&str>,
        scope: &Scope,
        is_such: impl Fn(Option<Protocol>) -> bool,
    ) -> Option<(&'a str, u16)> {
        let port = |(object, service): (&'a Object, &'a Service)| {
            Some((&*object.meta.name, service.ports.iter().find(|port| is_such(port.protocol))?.port))
        };
        match (namespace, scope) {
            (Some(namespace), Scope::Labels(labels)) => {
                let selected: Vec<_> = self.selected(namespace, labels).collect();
                self.before(namespace, &selected).into_iter().find_map(port)
            }
            (_, Scope::All | Scope::Labels(_)) => {
                let in_scope = |workload: &Workload<'_>| match scope {
                    Scope::Labels(labels) => workload.has(labels),
                    _ => true,
                };
                self.services.iter().find_map(|&(object, service)| {
                    let found = port((object, service))?;
                    let of = &*object.meta.namespace;
                    let leads_here = namespace.is_none_or(|wanted| wanted == of)
                        && self.selected(of, &service.selector).any(in_scope);
                    leads_here.then_some(found)
                })
            }
            (_, Scope::Targets(_) | Scope::Unknown) => None,
        }
    }

    /// The Services before some of these workloads, in order.
    fn before(&self, namespace: &str, workloads: &[&Workload<'_>]) -> Vec<(&'a Object, &'a Service)> {
        let mut found = BTreeSet::new();
        for workload in workloads {
            let with = workload
                .labels
                .iter()
                .filter_map(|(key, value)| self.by_selector.get(&[namespace, key, value]));
            found.extend(with.flatten().filter(|&&at| workload.has(&self.services[at].1.selector)));
        }
        found.into_iter().map(|&at| self.services[at]).collect()
    }
}

/// A workload may listen where it doesn't say so, so one that says nothing may listen anywhere.
fn declared_by_all(workloads: &[&Workload<'_>]) -> Option<BTreeSet<u16>> {
    let all_say = !workloads.is_empty() && workloads.iter().all(|workload| !workload.ports.is_empty());
    all_say.then(|| workloads.iter().flat_map(|workload| &workload.ports).copied().collect())
}

/// What to say of a port that none of `known` is.
pub(super) fn no_such_port(port: u16, known: &BTreeSet<u16>) -> String {
    let known: Vec<String> = known.iter().map(u16::to_string).collect();
    format!("no workload that this selects declares port {port}; known: {}", known.join(", "))
}

impl Workload<'_> {
    fn has(&self, selector: &BTreeMap<String, String>) -> bool {
        selector.iter().all(|(key, value)| self.labels.get(&**key) == Some(&&**value))
    }
}
