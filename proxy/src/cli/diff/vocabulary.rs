//! The calls that two policies are asked about: one for each set of patterns of either that a call can match at once.

use std::collections::BTreeSet;

use control_client::snapshot::{
    AmbiguousPaths, Attribute, AuthorizationAction, Condition, PathNormalization, Policy, ValueMatch,
};

use super::classes::Chars::{All, OfSegment, Only};
use super::classes::Step::{Many, One};
use super::classes::{Form, Pattern, Step, Texts};
use super::words::Dimension;
use crate::tables::{display, principals_meant};

/// What calls differ by.
#[derive(Debug)]
pub(super) struct Vocabulary {
    /// With the last `/` of `spiffe://`, as namespaces are looked for. Plaintext is none of them.
    pub(super) identities: Dimension,
    /// The last is one that nobody names.
    pub(super) ports: Vec<(u16, String)>,
    pub(super) methods: Dimension,
    pub(super) paths: Dimension,
}

impl Vocabulary {
    /// `Err`: what patterns overlap in more ways than are tried.
    pub(super) fn of(policies: [&Policy; 2]) -> Result<Self, &'static str> {
        let mut words = Words::default();
        for policy in policies {
            let decide = policy
                .authorization
                .iter()
                .filter(|each| !each.dry_run && each.action != AuthorizationAction::Audit);
            let rules = decide.flat_map(|each| &each.rules);
            rules
                .flat_map(|rule| rule.from.iter().chain(&rule.to).flatten().chain(&rule.when))
                .for_each(|condition| words.add(condition, policy));
            let by_port = &policy.peer_authentication.ports;
            words.ports.extend(by_port.iter().map(|(port, _)| *port));
        }
        let mut ports: Vec<_> = words.ports.iter().map(|port| (*port, port.to_string())).collect();
        if let Some(free) = (1..=u16::MAX).rev().find(|port| !words.ports.contains(port)) {
            ports.push((free, "any other port".into()));
        }
        let empty_segments = policies.iter().any(|policy| has_empty_segments(policy));
        let paths = Texts {
            forms: vec![vec![One(Only('/')), Many(All)], literal("*")],
            never_within: if empty_segments { Vec::new() } else { vec![literal("//")] },
        };
        let methods = Texts { forms: vec![vec![One(OfSegment), Many(OfSegment)]], never_within: Vec::new() };
        let domains = policies.iter().flat_map(|policy| {
            [&policy.mesh.trust_domain].into_iter().chain(&policy.mesh.trust_domain_aliases)
        });
        // A trust domain that is called so is not meant.
        let begin = match domains.into_iter().any(|domain| matches!(&**domain, "ns" | "sa")) {
            true => vec![One(OfSegment)],
            false => Vec::new(),
        };
        let twice = |text| [begin.clone(), literal(text), vec![Many(All)], literal(text)].concat();
        let identities = Texts {
            forms: vec![rooted(&[One(OfSegment)]), rooted(&[One(OfSegment), Many(All), One(OfSegment)])],
            // Nobody is of two namespaces, or two service accounts: what matches each of many would be legion.
            never_within: vec![literal("//"), twice("/ns/"), twice("/sa/")],
        };
        Ok(Self {
            identities: Dimension::of("identity", words.identities, &identities).ok_or("identities")?,
            ports,
            methods: Dimension::of("method", words.methods, &methods).ok_or("methods")?,
            paths: Dimension::of("path", words.paths, &paths).ok_or("paths")?,
        })
    }

    /// How many connections there are.
    pub(super) fn connections(&self) -> usize {
        (self.identities.classes.len() + 1) * self.ports.len()
    }

    /// Identities by number; the number after them: plaintext.
    pub(super) fn principals(&self) -> impl Iterator<Item = Option<String>> {
        (0..=self.identities.classes.len()).map(|number| self.identity(number))
    }

    /// `spiffe://..`; `None`: plaintext.
    pub(super) fn identity(&self, number: usize) -> Option<String> {
        self.identities.classes.get(number).map(|class| format!("spiffe:/{}", class.text))
    }

    /// What to call them together.
    pub(super) fn principal_words(&self, of: &BTreeSet<usize>) -> Vec<String> {
        let plaintext = self.identities.classes.len();
        if of.len() > plaintext {
            return vec!["anybody".into()];
        }
        let identities: BTreeSet<_> = of.iter().copied().filter(|each| *each != plaintext).collect();
        let mut words = self.identities.words(&identities);
        if of.contains(&plaintext) {
            words.push("callers without identity (plaintext)".into());
        }
        words
    }
}

/// Whether policies see `//` in paths.
fn has_empty_segments(policy: &Policy) -> bool {
    let merged = matches!(
        policy.mesh.path_normalization,
        PathNormalization::MergeSlashes | PathNormalization::DecodeAndMergeSlashes
    );
    !merged && policy.mesh.ambiguous_paths != AmbiguousPaths::Refuse
}

#[derive(Default)]
struct Words {
    identities: BTreeSet<Pattern>,
    ports: BTreeSet<u16>,
    methods: BTreeSet<Pattern>,
    paths: BTreeSet<Pattern>,
}

impl Words {
    fn add(&mut self, condition: &Condition, policy: &Policy) {
        let values = || condition.values.iter().chain(&condition.not_values);
        let plain = |value: &ValueMatch| Pattern { shown: display(value), forms: vec![form(value)] };
        match &condition.attribute {
            Attribute::SourcePrincipal => {
                let meant = values().flat_map(|value| principals_meant(&policy.mesh, value));
                self.identities.extend(
                    meant.map(|value| Pattern { shown: display(&value), forms: vec![rooted(&form(&value))] }),
                );
            }
            Attribute::SourceNamespace => self.identities.extend(values().map(namespace)),
            Attribute::SourceServiceAccount => self.identities.extend(values().map(service_account)),
            Attribute::SourceTrustDomain => self.identities.extend(values().map(trust_domain)),
            Attribute::DestinationPort => self.ports.extend(values().filter_map(|value| match value {
                ValueMatch::Port(port) => Some(*port),
                _ => None,
            })),
            Attribute::Method => self.methods.extend(values().map(plain)),
            Attribute::Path => self.paths.extend(values().map(plain)),
            _ => {}
        }
    }
}

/// The texts that a value matches.
fn form(value: &ValueMatch) -> Form {
    match value {
        ValueMatch::Prefix(prefix) => [literal(prefix), vec![Many(All)]].concat(),
        ValueMatch::Suffix(suffix) => [vec![Many(All)], literal(suffix)].concat(),
        ValueMatch::Present => vec![One(All), Many(All)],
        ValueMatch::PathTemplate(template) => of_template(template),
        value => literal(&display(value)),
    }
}

fn literal(text: &str) -> Form {
    text.chars().map(|char| One(Only(char))).collect()
}

fn of_template(template: &str) -> Form {
    let segment = |segment: &str| match segment.strip_suffix('/').unwrap_or(segment) {
        "{*}" => vec![One(OfSegment), Many(OfSegment)],
        "{**}" => vec![Many(All)],
        segment => literal(segment),
    };
    let with_slash =
        |text: &str| [segment(text), literal(if text.ends_with('/') { "/" } else { "" })].concat();
    template.split_inclusive('/').flat_map(with_slash).collect()
}

/// Of an identity, without the scheme.
fn rooted(form: &[Step]) -> Form {
    [&[One(Only('/'))], form].concat()
}

/// `*/ns/<pattern>/*`
fn namespace(value: &ValueMatch) -> Pattern {
    let pattern = display(value);
    let pieces: Vec<Form> = format!("*/ns/{pattern}/*").split('*').map(literal).collect();
    Pattern { shown: format!("namespace {pattern}"), forms: vec![pieces.join(&Many(All))] }
}

/// `.+/ns/<namespace>/(.+/|)sa/<name>(/.+)?`
fn service_account(value: &ValueMatch) -> Pattern {
    let name = display(value);
    let (namespace, account) = name.split_once('/').unwrap_or((&name, ""));
    let some = vec![One(All), Many(All)];
    let begin = rooted(&[some.clone(), literal(&format!("/ns/{namespace}/"))].concat());
    let account = literal(&format!("sa/{account}"));
    let (inner, tail) = ([some.clone(), literal("/")].concat(), [literal("/"), some].concat());
    let forms = vec![
        [begin.clone(), account.clone()].concat(),
        [begin.clone(), account.clone(), tail.clone()].concat(),
        [begin.clone(), inner.clone(), account.clone()].concat(),
        [begin, inner, account, tail].concat(),
    ];
    Pattern { shown: format!("service account {name}"), forms }
}

/// Whatever stands before the first `/`.
fn trust_domain(value: &ValueMatch) -> Pattern {
    let within = |step| match step {
        One(All) => One(OfSegment),
        Many(All) => Many(OfSegment),
        step => step,
    };
    let domain: Form = form(value).into_iter().map(within).collect();
    let and_path = [domain.clone(), literal("/"), vec![Many(All)]].concat();
    Pattern {
        shown: format!("trust domain {}", display(value)),
        forms: vec![rooted(&domain), rooted(&and_path)],
    }
}
