//! Rate limits of the workload, and whom its proxy asks about global ones.

use std::time::Duration;

use super::{Attribute, AuthorizationRule, BackendIndex, ObjectIndex};

/// Index into [`super::Policy::limiters`].
pub type LimiterIndex = u32;

/// One RateLimit selected for the workload.
#[derive(Debug, Clone, PartialEq)]
pub struct RateLimit {
    /// The object.
    pub object: ObjectIndex,
    /// All of them hold; empty: no effect.
    pub rules: Vec<RateLimitRule>,
    /// The object could not be understood: whatever it selects is refused.
    pub quarantined: bool,
}

/// One rule of a RateLimit.
#[derive(Debug, Clone, PartialEq)]
pub struct RateLimitRule {
    /// What it counts, by the conditions of an AuthorizationPolicy's rule, and its number in `spec.rules`.
    pub matches: AuthorizationRule,
    /// `name`: how callers learn of it in `RateLimit` headers; unique in its object.
    pub name: Option<String>,
    /// What has the same values here is counted together; empty: everything is. An absent value is one like any other.
    pub key: Vec<KeyPart>,
    /// Counted by this proxy.
    pub local: Option<LocalLimit>,
    /// Counted by a service.
    pub global: Option<GlobalLimit>,
}

/// An attribute of a key.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyPart {
    /// How users wrote it, and what a service sees as its name: `request.headers[x-tenant]`.
    pub name: String,
    /// What is looked at.
    pub attribute: Attribute,
}

/// So many requests in so much time, spread evenly (GCRA).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LocalLimit {
    /// From 1; at most a million a second.
    pub requests: u32,
    /// Whole seconds, from 1.
    pub per: Duration,
    /// How many may come at once, from 1.
    pub burst: u32,
}

/// A question to a service that counts for all proxies.
#[derive(Debug, Clone, PartialEq)]
pub struct GlobalLimit {
    /// Whom to ask. `None`: there is no such provider, so what the rule matches is refused, whatever `fail_open` says.
    pub limiter: Option<LimiterIndex>,
    /// `RateLimitRequest.domain`.
    pub domain: String,
    /// What can't be asked about goes on. An answer that can't be understood refuses all the same.
    pub fail_open: bool,
    /// `RateLimitRequest.hits_addend`; 0: the service's own default, one.
    pub hits_addend: u32,
}

/// MeshSettings `extensionProviders[].envoyRateLimitGrpc`: `envoy.service.ratelimit.v3.RateLimitService`.
#[derive(Debug, Clone, PartialEq)]
pub struct RateLimiter {
    /// As limits and records name it.
    pub name: String,
    /// Where it is. `None`: no such service or port here.
    pub backend: Option<BackendIndex>,
    /// For connecting, asking and the whole answer.
    pub timeout: Duration,
}

impl KeyPart {
    /// Whether its value is known only once the end user is.
    pub fn of_user(&self) -> bool {
        self.attribute.of_user()
    }
}
