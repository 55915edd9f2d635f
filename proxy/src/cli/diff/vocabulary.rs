//! The calls that two policies are asked about: each value that either names, one that only its pattern matches, and one
//! that nobody names.

use std::collections::{BTreeMap, BTreeSet};

use control_client::snapshot::{Attribute, Condition, Policy, ValueMatch};

/// A value, and how to call it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) shown: String,
}

/// The values of each dimension. The last of each is what nobody names.
#[derive(Debug)]
pub(super) struct Vocabulary {
    /// `spiffe://..`; `None`: plaintext.
    pub(super) principals: Vec<(Option<String>, String)>,
    pub(super) ports: Vec<(u16, String)>,
    pub(super) methods: Vec<Word>,
    pub(super) paths: Vec<Word>,
}

/// Stands for any text where a pattern leaves it open. No policy is likely to name it.
const ANY: &str = "~~";

impl Vocabulary {
    pub(super) fn of(policies: [&Policy; 2], callers: &BTreeSet<String>) -> Self {
        let trust_domain = &policies[0].mesh.trust_domain;
        let mut words = Words { trust_domain, ..Words::default() };
        for caller in callers {
            words.principal(caller.clone(), caller.clone());
        }
        for policy in policies {
            let authorization = policy.authorization.iter().filter(|each| !each.dry_run);
            let rules = authorization.flat_map(|each| &each.rules);
            rules
                .flat_map(|rule| rule.from.iter().chain(&rule.to).flatten().chain(&rule.when))
                .for_each(|condition| words.add(condition));
            let by_port = &policy.peer_authentication.ports;
            words.ports.extend(by_port.iter().map(|(port, _)| *port));
        }
        let aliases = policies.map(|policy| &policy.mesh.trust_domain_aliases);
        if aliases[0] != aliases[1] {
            words.add_aliases(aliases.into_iter().flatten());
        }
        words.finish()
    }

    /// How many calls there are.
    pub(super) fn calls(&self) -> usize {
        // One more for opaque connections.
        self.principals.len() * self.ports.len() * (self.methods.len() * self.paths.len() + 1)
    }
}

#[derive(Default)]
struct Words<'a> {
    trust_domain: &'a str,
    /// By identity.
    principals: BTreeMap<String, String>,
    ports: BTreeSet<u16>,
    methods: BTreeSet<Word>,
    paths: BTreeSet<Word>,
    path_prefixes: BTreeSet<String>,
    path_suffixes: BTreeSet<String>,
}

impl Words<'_> {
    fn principal(&mut self, principal: String, shown: String) {
        // What stands for itself is called by its name, whatever else stands for it.
        let named = principal == shown;
        let known = self.principals.entry(principal).or_insert_with(|| shown.clone());
        if named {
            *known = shown;
        }
    }

    fn add(&mut self, condition: &Condition) {
        for value in condition.values.iter().chain(&condition.not_values) {
            match &condition.attribute {
                Attribute::SourcePrincipal => self.add_principal(value),
                Attribute::SourceNamespace => self.add_namespace(value),
                Attribute::SourceServiceAccount => {
                    if let Some((namespace, account)) = text(value).split_once('/') {
                        let principal = format!("{}/ns/{namespace}/sa/{account}", self.trust_domain);
                        self.principal(principal.clone(), principal);
                    }
                }
                Attribute::SourceTrustDomain => {
                    let domain = stands_for(value, "");
                    let shown = format!("identities of trust domain {}", text(value));
                    self.principal(format!("{domain}/ns/{ANY}/sa/{ANY}"), shown);
                }
                Attribute::DestinationPort => {
                    if let ValueMatch::Port(port) = value {
                        self.ports.insert(*port);
                    }
                }
                Attribute::Method => {
                    let text = stands_for(value, "");
                    self.methods.insert(Word { text, shown: shown(value) });
                }
                Attribute::Path => self.add_path(value),
                _ => {}
            }
        }
    }

    fn add_principal(&mut self, value: &ValueMatch) {
        match value {
            ValueMatch::Present => {}
            ValueMatch::Exact(text) => {
                let ours = text.strip_prefix("cluster.local/");
                let principal =
                    ours.map_or_else(|| text.clone(), |rest| format!("{}/{rest}", self.trust_domain));
                self.principal(principal.clone(), principal);
            }
            value => {
                let text = stands_for(value, "");
                self.principal(text, format!("other identities like {}", shown(value)));
            }
        }
    }

    fn add_namespace(&mut self, value: &ValueMatch) {
        let pattern = text(value);
        if pattern == "*" {
            return;
        }
        let principal = format!("{}/ns/{}/sa/{ANY}", self.trust_domain, pattern.replace('*', ANY));
        self.principal(principal, format!("other service accounts of namespace {pattern}"));
    }

    /// Trust domains that become ours, or no longer are: each identity of ours, of theirs.
    fn add_aliases<'a>(&mut self, aliases: impl Iterator<Item = &'a String>) {
        let ours = format!("{}/", self.trust_domain);
        let ours: Vec<_> = self.principals.keys().filter_map(|name| name.strip_prefix(&ours)).collect();
        let ours: Vec<_> = ours.into_iter().filter(|rest| !rest.contains(ANY)).map(str::to_owned).collect();
        for alias in aliases {
            for rest in &ours {
                let principal = format!("{alias}/{rest}");
                self.principal(principal.clone(), principal);
            }
            let shown = format!("other identities of trust domain {alias}");
            self.principal(format!("{alias}/ns/{ANY}/sa/{ANY}"), shown);
        }
    }

    fn add_path(&mut self, value: &ValueMatch) {
        match value {
            ValueMatch::Present => return,
            ValueMatch::Prefix(prefix) => drop(self.path_prefixes.insert(prefix.clone())),
            ValueMatch::Suffix(suffix) => drop(self.path_suffixes.insert(suffix.clone())),
            _ => {}
        }
        self.paths.insert(Word { text: stands_for(value, "/"), shown: shown(value) });
    }

    fn finish(mut self) -> Vocabulary {
        // What a prefix and a suffix have in common. Beyond this many, what such pairs decide is not told apart.
        const PAIRS: usize = 16;
        if self.path_prefixes.len() <= PAIRS && self.path_suffixes.len() <= PAIRS {
            for prefix in &self.path_prefixes {
                for suffix in &self.path_suffixes {
                    let shown = format!("{prefix}*{suffix}");
                    self.paths.insert(Word { text: format!("{prefix}{ANY}{suffix}"), shown });
                }
            }
        }
        let identity = |(principal, shown): (String, String)| (Some(format!("spiffe://{principal}")), shown);
        let other = format!("{}/ns/{ANY}/sa/{ANY}", self.trust_domain);
        self.principals.remove(&other);
        let mut principals: Vec<_> = self.principals.into_iter().map(identity).collect();
        principals.push(identity((other, "any other identity".into())));
        principals.push((None, "callers without identity (plaintext)".into()));
        let mut ports: Vec<_> = self.ports.iter().map(|port| (*port, port.to_string())).collect();
        // A port that nobody names: the highest that is free.
        if let Some(free) = (1..=u16::MAX).rev().find(|port| !self.ports.contains(port)) {
            ports.push((free, "any other port".into()));
        }
        let mut methods: Vec<_> = self.methods.into_iter().collect();
        methods.push(Word { text: format!("{ANY}OTHER"), shown: "any other method".into() });
        let mut paths: Vec<_> = self.paths.into_iter().collect();
        paths.push(Word { text: format!("/{ANY}"), shown: "any other path".into() });
        paths.dedup_by(|a, b| a.text == b.text);
        Vocabulary { principals, ports, methods, paths }
    }
}

/// A text that the value matches, and hardly another.
fn stands_for(value: &ValueMatch, root: &str) -> String {
    match value {
        ValueMatch::Prefix(prefix) => format!("{prefix}{ANY}"),
        ValueMatch::Suffix(suffix) => format!("{root}{ANY}{suffix}"),
        ValueMatch::Present => format!("{root}{ANY}"),
        ValueMatch::PathTemplate(template) => {
            template.replace("{**}", &format!("{ANY}/{ANY}")).replace("{*}", ANY)
        }
        value => text(value),
    }
}

fn shown(value: &ValueMatch) -> String {
    match value {
        ValueMatch::Present => "any other".into(),
        value => text(value),
    }
}

fn text(value: &ValueMatch) -> String {
    match value {
        ValueMatch::Exact(text) | ValueMatch::Glob(text) | ValueMatch::PathTemplate(text) => text.clone(),
        ValueMatch::Prefix(text) => format!("{text}*"),
        ValueMatch::Suffix(text) => format!("*{text}"),
        ValueMatch::Present => "*".into(),
        ValueMatch::Cidr(net) => net.to_string(),
        ValueMatch::Port(port) => port.to_string(),
    }
}
