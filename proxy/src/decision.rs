//! The vocabulary of decisions: stages, the five checks, reasons, policy references, and [`Decision`], which every
//! request and connection carries. Imports nothing from above; the words are those of the decision record.

use std::fmt;
use std::sync::Arc;

/// The verbs of the straight line, connection verbs first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Socket accepted.
    Accept,
    /// Protocol recognised.
    Detect,
    /// TLS terminated.
    Terminate,
    /// Connection-level policy.
    Admit,
    /// Request made unambiguous.
    Sanitize,
    /// Route looked up.
    Match,
    /// Rate limits.
    Limit,
    /// End user authenticated.
    Authenticate,
    /// AuthorizationPolicy.
    Authorize,
    /// External provider asked.
    Consult,
    /// Route taken.
    Route,
    /// Backend chosen by weight.
    Split,
    /// Headers edited.
    Rewrite,
    /// Endpoint chosen.
    Pick,
    /// Connected.
    Connect,
    /// Request sent, response head awaited.
    Send,
    /// Bytes flowing.
    Relay,
}

impl Stage {
    /// The word in records, metrics and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Detect => "detect",
            Self::Terminate => "terminate",
            Self::Admit => "admit",
            Self::Sanitize => "sanitize",
            Self::Match => "match",
            Self::Limit => "limit",
            Self::Authenticate => "authenticate",
            Self::Authorize => "authorize",
            Self::Consult => "consult",
            Self::Route => "route",
            Self::Split => "split",
            Self::Rewrite => "rewrite",
            Self::Pick => "pick",
            Self::Connect => "connect",
            Self::Send => "send",
            Self::Relay => "relay",
        }
    }
}

/// Declares [`Reason`] with its words, in one place.
macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)*) => {
        /// Why a check, a decision or an end came out as it did: the tables of the decision record.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason, in order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// The word in records, metrics and documents.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

reasons! {
    // encryption
    /// Mesh mTLS with a verified peer.
    Mtls = "mtls",
    /// TLS without a mesh identity.
    Tls = "tls",
    /// Plaintext, and policy permits it.
    PlaintextPermitted = "plaintext-permitted",
    /// Plaintext where STRICT demands mTLS.
    PlaintextUnderStrict = "plaintext-under-strict",
    /// Encrypted, but not by approved crypto where FIPS is required.
    NotFips = "not-fips",
    /// The server must have mTLS and can't.
    MtlsUnavailable = "mtls-unavailable",
    // service-authentication
    /// X.509-SVID verified.
    SvidVerified = "svid-verified",
    /// A server outside of the mesh proved the name expected of it.
    NameVerified = "name-verified",
    /// No known root signed it.
    UntrustedRoot = "untrusted-root",
    /// A valid identity, but not the expected one.
    IdentityMismatch = "identity-mismatch",
    /// After notAfter.
    Expired = "expired",
    /// Before notBefore.
    NotYetValid = "not-yet-valid",
    /// On a revocation list.
    Revoked = "revoked",
    /// None was given.
    NoIdentity = "no-identity",
    /// Not an X.509-SVID; the detail says why.
    BadCertificate = "bad-certificate",
    // user-authentication
    /// Token verified.
    JwtVerified = "jwt-verified",
    /// None was given.
    NoToken = "no-token",
    /// Not valid; the detail says why.
    JwtInvalid = "jwt-invalid",
    /// For another audience.
    JwtAudience = "jwt-audience",
    /// Nothing asks for one.
    NoRequestAuthentication = "no-request-authentication",
    // service- and user-authorization
    /// An ALLOW rule matched.
    MatchedAllow = "matched-allow",
    /// A DENY rule matched.
    MatchedDeny = "matched-deny",
    /// ALLOW policies are there and none matched.
    NoAllowMatched = "no-allow-matched",
    /// Nothing decided.
    NoPolicy = "no-policy",
    /// No rule asks for the user.
    NoUserCondition = "no-user-condition",
    /// An external provider allowed.
    ProviderAllowed = "provider-allowed",
    /// An external provider denied.
    ProviderDenied = "provider-denied",
    /// No answer from the provider, or none that can be understood.
    ProviderUnavailable = "provider-unavailable",
    /// A provider has to see the whole body, and it is longer than that provider sees.
    BodyTooLarge = "body-too-large",
    /// A policy that could not be understood, or of which nobody can tell whether it selects the workload, fails closed.
    QuarantinedPolicy = "quarantined-policy",
    /// Outbound: the server's proxy decides.
    DecidedByServer = "decided-by-server",
    /// The stage before it ended the request.
    NotReached = "not-reached",
    // detect, terminate, admit
    /// No protocol was recognised where one is required.
    NotDetected = "not-detected",
    /// TLS handshake failed; the detail says why.
    HandshakeFailed = "handshake-failed",
    /// To the proxy itself.
    LoopDetected = "loop-detected",
    /// A bound of the proxy was reached.
    Overloaded = "overloaded",
    // sanitize
    /// Not a request, or not one with a single meaning.
    MalformedRequest = "malformed-request",
    /// Its length can be read two ways.
    AmbiguousLength = "ambiguous-length",
    /// Head larger than the limit.
    HeaderTooLarge = "header-too-large",
    // limit
    /// A service that was asked has no objection.
    WithinLimit = "within-limit",
    /// A RateLimit refused.
    LimitExceeded = "limit-exceeded",
    /// No answer from the service that counts, or none that can be understood.
    LimiterUnavailable = "limiter-unavailable",
    // route
    /// No route matches.
    NoRoute = "no-route",
    /// SNI and authority select different listeners.
    Misdirected = "misdirected",
    /// The chosen backendRef is invalid.
    InvalidBackend = "invalid-backend",
    /// Answered by a redirect.
    Redirected = "redirected",
    /// Answered by an injected fault.
    FaultInjected = "fault-injected",
    /// Outbound to a destination no service owns, under REGISTRY_ONLY.
    UnknownDestination = "unknown-destination",
    // pick
    /// The backend has no endpoint.
    NoEndpoints = "no-endpoints",
    /// All are ejected.
    EjectedAll = "ejected-all",
    /// A breaker is open.
    BreakerOpen = "breaker-open",
    // connect, send
    /// Refused or unreachable.
    ConnectRefused = "connect-refused",
    /// No answer in time.
    ConnectTimeout = "connect-timeout",
    /// TLS to the endpoint failed; the detail says why.
    TlsFailed = "tls-failed",
    /// Connection lost before a response head.
    ResetBeforeResponse = "reset-before-response",
    /// A pooled connection was closed by the server as the request was sent.
    IdleRace = "idle-race",
    /// Last of several attempts failed.
    RetriesExhausted = "retries-exhausted",
    /// `timeouts.request` passed.
    RequestTimeout = "request-timeout",
    /// `timeouts.backendRequest` passed.
    BackendTimeout = "backend-timeout",
    /// The response is not one with a single meaning.
    BadResponse = "bad-response",
    // relay
    /// Ended as it should.
    Complete = "complete",
    /// The client left.
    ClientClosed = "client-closed",
    /// The client stalled past a deadline.
    ClientStalled = "client-stalled",
    /// The server left.
    UpstreamReset = "upstream-reset",
    /// A change of policy cut it.
    PolicyChanged = "policy-changed",
    /// Revocation cut it.
    CertificateRevoked = "certificate-revoked",
    /// Expiry cut it.
    CredentialExpired = "credential-expired",
    /// The drain deadline cut it.
    DrainDeadline = "drain-deadline",
}

/// The five checks of NIST SP 800-207A, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Check {
    /// Was the hop encrypted as policy demands.
    Encryption,
    /// Who is the calling workload.
    ServiceAuthentication,
    /// May that workload do this.
    ServiceAuthorization,
    /// Who is the end user.
    UserAuthentication,
    /// May that user do this.
    UserAuthorization,
}

impl Check {
    /// In record order.
    pub const ALL: [Self; 5] = [
        Self::Encryption,
        Self::ServiceAuthentication,
        Self::ServiceAuthorization,
        Self::UserAuthentication,
        Self::UserAuthorization,
    ];
    /// The word in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Encryption => "encryption",
            Self::ServiceAuthentication => "service-authentication",
            Self::ServiceAuthorization => "service-authorization",
            Self::UserAuthentication => "user-authentication",
            Self::UserAuthorization => "user-authorization",
        }
    }
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckOutcome {
    /// Passed.
    Pass,
    /// Failed: the request is refused.
    Fail,
    /// Nothing asks for it.
    NotRequired,
    /// Not this side's to decide.
    NotApplicable,
    /// Ended before.
    NotReached,
}

impl CheckOutcome {
    /// The word in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::NotRequired => "not-required",
            Self::NotApplicable => "not-applicable",
            Self::NotReached => "not-reached",
        }
    }
}

/// A policy object and rule, by index into the [`Objects`] of the tables that decided.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyRef {
    object: u32,
    rule: u16,
}

impl PolicyRef {
    /// A default decided: records leave `policy` out.
    pub const NONE: Self = Self { object: u32::MAX, rule: u16::MAX };

    /// The object as a whole.
    pub const fn object(object: u32) -> Self {
        Self { object, rule: u16::MAX }
    }
    /// The object if there is one.
    pub fn from_object(object: Option<u32>) -> Self {
        object.map_or(Self::NONE, Self::object)
    }
    /// A rule of the object.
    pub const fn rule(object: u32, rule: u16) -> Self {
        Self { object, rule }
    }
    /// Index of the object, if any.
    pub fn object_index(self) -> Option<u32> {
        (self.object != u32::MAX).then_some(self.object)
    }
    /// Number of the rule, if any.
    pub fn rule_index(self) -> Option<u16> {
        (self.rule != u16::MAX).then_some(self.rule)
    }
    /// True for [`PolicyRef::NONE`].
    pub fn is_none(self) -> bool {
        self.object == u32::MAX
    }
}

impl Default for PolicyRef {
    fn default() -> Self {
        Self::NONE
    }
}

impl fmt::Debug for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.object_index(), self.rule_index()) {
            (None, _) => f.write_str("none"),
            (Some(object), None) => write!(f, "#{object}"),
            (Some(object), Some(rule)) => write!(f, "#{object}.{rule}"),
        }
    }
}

/// The objects that policy references name, interned when tables compile.
#[derive(Debug, Clone, Default)]
pub struct Objects(pub Arc<[Object]>);

/// An interned object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// `AuthorizationPolicy`, ...
    pub kind: String,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `sha256:..`.
    pub digest: String,
    /// `"kind":"..","namespace":"..","name":".."`: JSON, escaped, ready to copy.
    pub json: String,
    /// What is wrong with it, where it fails closed.
    pub problem: Option<Box<str>>,
}

impl Objects {
    /// The object of a reference.
    pub fn get(&self, policy: PolicyRef) -> Option<&Object> {
        self.0.get(policy.object_index()? as usize)
    }
}

/// One check as decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckResult {
    /// How it came out.
    pub outcome: CheckOutcome,
    /// Why.
    pub reason: Reason,
    /// Which policy decided; NONE where a default did.
    pub policy: PolicyRef,
}

impl CheckResult {
    /// Not looked at yet.
    pub const NOT_REACHED: Self =
        Self { outcome: CheckOutcome::NotReached, reason: Reason::NotReached, policy: PolicyRef::NONE };

    /// A result.
    pub const fn new(outcome: CheckOutcome, reason: Reason, policy: PolicyRef) -> Self {
        Self { outcome, reason, policy }
    }
}

/// Whether the request may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// It may.
    Allow,
    /// It may not.
    Deny,
}

impl Outcome {
    /// The word in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// Which policy decided, and why: what each stage wrote down. It stays true whatever happens afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Allowed or not.
    pub outcome: Outcome,
    /// The stage that decided.
    pub stage: Stage,
    /// Why.
    pub reason: Reason,
    /// By which policy.
    pub policy: PolicyRef,
    /// The five checks, by `Check as usize`.
    pub checks: [CheckResult; 5],
    /// The route that matched.
    pub route: PolicyRef,
}

impl Default for Decision {
    /// Nothing was decided: what a request looks like that ends before any policy saw it.
    fn default() -> Self {
        Self {
            outcome: Outcome::Deny,
            stage: Stage::Accept,
            reason: Reason::NotReached,
            policy: PolicyRef::NONE,
            checks: [CheckResult::NOT_REACHED; 5],
            route: PolicyRef::NONE,
        }
    }
}

impl Decision {
    /// Writes a check down.
    pub fn check(&mut self, check: Check, result: CheckResult) {
        self.checks[check as usize] = result;
    }

    /// The result of a check.
    pub fn result(&self, check: Check) -> CheckResult {
        self.checks[check as usize]
    }

    /// Writes down which stage decided that the request goes on.
    pub fn allow(&mut self, stage: Stage, reason: Reason, policy: PolicyRef) {
        self.outcome = Outcome::Allow;
        (self.stage, self.reason, self.policy) = (stage, reason, policy);
    }

    /// Writes down which stage decided that it does not.
    pub fn deny(&mut self, stage: Stage, reason: Reason, policy: PolicyRef) {
        self.outcome = Outcome::Deny;
        (self.stage, self.reason, self.policy) = (stage, reason, policy);
    }
}

/// What a dry-run policy would have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shadow {
    /// The rule that matched; for a dry-run ALLOW none of whose rules did, the object.
    pub policy: PolicyRef,
    /// Allowed or denied.
    pub outcome: Outcome,
    /// `matched-allow`, `matched-deny`, `provider-unavailable` or `no-allow-matched`.
    pub reason: Reason,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_stays_small() {
        assert_eq!(size_of::<PolicyRef>(), 8);
        assert!(size_of::<Decision>() <= 96, "{}", size_of::<Decision>());
    }

    #[test]
    fn words_are_unique() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
