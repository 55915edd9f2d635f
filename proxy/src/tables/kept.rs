//! What a request keeps for its life, so that policies which come later can be asked about it: of its headers, and by
//! which CUSTOM policies whom has been asked about it already.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use control_client::snapshot::{Policy, Provider, ProviderIndex};
use foldhash::fast::RandomState;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::condition::RequestTest;
use crate::decision::Object;

/// Names of the headers that some policy looks at.
#[derive(Debug, Default)]
pub struct HeaderNames(HashSet<HeaderName, RandomState>);

/// Which attributes a request still has.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// Of its headers, those of these names; `None`: all that these tables look at.
    pub headers: Option<&'a HeaderNames>,
    /// Its client's address, as it would be read by now.
    pub remote_ip: bool,
    /// Whether it has an end user.
    pub user: bool,
}

/// What a rule asks for of a request that no longer has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lacking {
    /// A header of this name.
    Header(HeaderName),
    /// Its client's address.
    RemoteIp,
    /// Its end user.
    User,
}

impl Kept<'_> {
    /// All that these tables look at.
    pub const ALL: Self = Self { headers: None, remote_ip: true, user: true };

    /// Whether a test asks for what may have been there, unseen.
    pub(super) fn lacks(self, test: &RequestTest) -> Option<Lacking> {
        match test {
            RequestTest::Header(name, _) if self.headers.is_some_and(|names| !names.contains(name)) => {
                Some(Lacking::Header(name.clone()))
            }
            RequestTest::RemoteIp(_) if !self.remote_ip => Some(Lacking::RemoteIp),
            RequestTest::User(_) if !self.user => Some(Lacking::User),
            _ => None,
        }
    }

    pub(super) fn is_all(self) -> bool {
        self.headers.is_none() && self.remote_ip && self.user
    }
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header {name}, which was not kept"),
            Self::RemoteIp => f.write_str("the client's address, which would be read from elsewhere by now"),
            Self::User => f.write_str("the end user, whom nobody asked for when this began"),
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
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.0.contains(name)
    }

    /// Whether one of them would be called so, were its underscores dashes.
    pub fn have_twin(&self, dashed: &str) -> bool {
        self.0.iter().any(|name| name.as_str().replace('_', "-") == dashed)
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
/// again; so a later generation has to know which of its own are others, or ask others.
#[derive(Debug, PartialEq)]
pub struct CustomPolicies {
    /// In order.
    objects: Box<[Asking]>,
    /// What principals mean depends on them: trust domain and aliases.
    trust_domains: Box<[String]>,
}

/// A policy and whom it asks.
#[derive(Debug, PartialEq)]
struct Asking {
    /// Namespace, name and digest.
    object: [String; 3],
    provider: Arc<Asked>,
}

/// What a provider's answers depend on: its definition and where it is.
#[derive(Debug, PartialEq)]
struct Asked {
    definition: Provider,
    backend: Option<String>,
}

impl Asked {
    fn of(provider: &Provider, policy: &Policy) -> Arc<Self> {
        let backend = provider.backend.and_then(|backend| policy.backends.get(backend as usize));
        // Neither an index nor how long an answer may take is part of the answer.
        let (none, timeout, status_on_error) = (None, Duration::ZERO, 0);
        let definition = Provider { backend: none, timeout, status_on_error, ..provider.clone() };
        Arc::new(Self { definition, backend: backend.map(|backend| backend.id.clone()) })
    }
}

impl CustomPolicies {
    /// Of the objects of a policy, and whom each asks.
    pub(super) fn of<'a>(
        objects: impl Iterator<Item = (&'a Object, ProviderIndex)>,
        policy: &Policy,
    ) -> Self {
        let providers: Vec<_> = policy.providers.iter().map(|each| Asked::of(each, policy)).collect();
        let mut objects: Vec<_> = objects
            .filter_map(|(Object { namespace, name, digest, .. }, provider)| {
                let provider = providers.get(provider as usize).map(Arc::clone)?;
                Some(Asking { object: [namespace, name, digest].map(String::clone), provider })
            })
            .collect();
        objects.sort_by(|a, b| a.object.cmp(&b.object));
        objects.dedup_by(|a, b| a.object == b.object);
        let aliases = policy.mesh.trust_domain_aliases.iter();
        let trust_domains = std::iter::once(&policy.mesh.trust_domain).chain(aliases).cloned().collect();
        Self { objects: objects.into(), trust_domains }
    }

    /// Whether a policy of `later` is among them, matches just what it did, and asks whom it did.
    pub(super) fn have(&self, object: &Object, later: &Self) -> bool {
        let (known, asks) = (self.provider(object), later.provider(object));
        known.is_some() && known == asks && self.trust_domains == later.trust_domains
    }

    fn provider(&self, object: &Object) -> Option<&Asked> {
        let key = [&object.namespace, &object.name, &object.digest];
        let at = self.objects.binary_search_by(|known| known.object.each_ref().cmp(&key)).ok()?;
        Some(&self.objects[at].provider)
    }
}

#[cfg(test)]
impl HeaderNames {
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a &'static str>) -> Self {
        Self(names.map(|name| HeaderName::from_static(name)).collect())
    }
}
