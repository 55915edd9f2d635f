//! What a request keeps for its life, so that policies which come later can be asked about it: of its headers, and by
//! which CUSTOM policies it has been asked about already.

use std::collections::HashSet;

use foldhash::fast::RandomState;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Mesh;
use super::condition::RequestTest;
use crate::decision::Object;

/// Names of the headers that some policy looks at.
#[derive(Debug, Default)]
pub struct HeaderNames(HashSet<HeaderName, RandomState>);

/// Which attributes a request still has.
#[derive(Debug, Clone, Copy)]
pub enum Kept<'a> {
    /// All that these tables look at.
    All,
    /// Of its headers, those of these names.
    Headers(&'a HeaderNames),
}

impl Kept<'_> {
    /// The first header that a rule asks for and that may have been there, unseen.
    pub(super) fn lacks(self, test: &RequestTest) -> Option<&HeaderName> {
        match (self, test) {
            (Self::Headers(names), RequestTest::Header(name, _)) if !names.contains(name) => Some(name),
            _ => None,
        }
    }
}

impl HeaderNames {
    pub(super) fn by<'a>(tests: impl Iterator<Item = &'a RequestTest>) -> Self {
        let header = |test: &'a RequestTest| match test {
            RequestTest::Header(name, _) => Some(name.clone()),
            _ => None,
        };
        Self(tests.filter_map(header).collect())
    }

    /// Whether a header of this name was kept, if there was one.
    pub(super) fn contains(&self, name: &HeaderName) -> bool {
        self.0.contains(name)
    }

    /// Whether all of these were kept where `kept` were.
    pub fn are_within(&self, kept: &Self) -> bool {
        self.0.iter().all(|name| kept.contains(name))
    }

    /// The headers of these names. None costs nothing: no policy looks at a header, or the request has none of those.
    pub fn keep(&self, headers: &HeaderMap) -> KeptHeaders {
        let mut kept = Vec::new();
        let mut keep = |name: &HeaderName| {
            kept.extend(headers.get_all(name).iter().map(|value| (name.clone(), value.clone())));
        };
        if self.0.len() <= headers.keys_len() {
            self.0.iter().for_each(&mut keep);
        } else {
            headers.keys().filter(|name| self.contains(name)).for_each(keep);
        }
        KeptHeaders(kept)
    }
}

/// Headers of one request. A list, not a map: all requests make one, and few are ever asked about again.
#[derive(Debug, Default)]
pub struct KeptHeaders(Vec<(HeaderName, HeaderValue)>);

impl KeptHeaders {
    /// As policies look at them.
    pub fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in &self.0 {
            // Only a map of 32,768 headers can't take another, and these are a part of one.
            let _ = map.try_append(name.clone(), value.clone());
        }
        map
    }
}

/// The CUSTOM policies by which providers are asked. What they matched was asked about when it began, and is not asked
/// again; so a later generation has to know which of its own are others.
#[derive(Debug, PartialEq, Eq)]
pub struct CustomPolicies {
    /// Namespace, name and digest, in order.
    objects: Box<[[String; 3]]>,
    /// What principals mean depends on them: trust domain and aliases.
    trust_domains: Box<[String]>,
}

impl CustomPolicies {
    pub(super) fn of<'a>(objects: impl Iterator<Item = &'a Object>, mesh: &Mesh) -> Self {
        let mut objects: Vec<_> = objects
            .map(|Object { namespace, name, digest, .. }| [namespace, name, digest].map(String::clone))
            .collect();
        objects.sort();
        objects.dedup();
        let aliases = mesh.trust_domain_aliases.iter();
        let trust_domains = std::iter::once(&mesh.trust_domain).chain(aliases).cloned().collect();
        Self { objects: objects.into(), trust_domains }
    }

    /// Whether a policy of `later` is among them, and matches just what it did.
    pub(super) fn have(&self, object: &Object, later: &Self) -> bool {
        let key = [&object.namespace, &object.name, &object.digest];
        let known = self.objects.binary_search_by(|known| known.each_ref().cmp(&key));
        known.is_ok() && self.trust_domains == later.trust_domains
    }
}

#[cfg(test)]
impl HeaderNames {
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a &'static str>) -> Self {
        Self(names.map(|name| HeaderName::from_static(name)).collect())
    }
}
