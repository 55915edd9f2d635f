//! The steps that requests and opaque connections share, each of which writes down what it decided.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use control_client::snapshot::{BackendTls, OutboundTrafficPolicy};

use crate::decision::{Check, CheckOutcome, CheckResult, Decision, Outcome, PolicyRef, Reason, Stage};
use crate::error::Reject;
use crate::generation::Held;
use crate::jwt::{self, Verified};
use crate::memory::Memory;
use crate::net::socket::to_own_application;
use crate::peer::{self, Peer};
use crate::tables::{Authorization, Consultation, Consultations, RequestAttributes, Unmatched};
use crate::telemetry::{Attempt, Consulted, Later, Marks, Record, Side};
use crate::upstream::{Connected, Hop, HopFacts, HopProtocol, HopTls};
use crate::worker::Worker;

/// Where what arrives on a connection wants to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Inbound: to the local application.
    Application(Application),
    /// Outbound: to this original destination.
    Destination(SocketAddr),
    /// Outbound: to the own address of a workload of the mesh. No routes apply, whatever the authority says.
    Pod(SocketAddr),
    /// Outbound without interception, accepted here: wherever the authority says.
    Authority(SocketAddr),
    /// At a Gateway, accepted here: wherever the routes of this port of it say.
    Gateway(SocketAddr),
}

impl Target {
    /// Where it is; `None`: wherever the authority says.
    pub fn destination(self) -> Option<SocketAddr> {
        match self {
            Self::Application(Application { address, .. })
            | Self::Destination(address)
            | Self::Pod(address) => Some(address),
            Self::Authority(_) | Self::Gateway(_) => None,
        }
    }

    /// Whether who may do what is decided here, by the policies of this proxy.
    pub fn is_decided_here(self) -> bool {
        matches!(self, Self::Application(_) | Self::Gateway(_))
    }
}

/// Where the local application is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Application {
    /// Its address.
    pub address: SocketAddr,
    /// Redirection rules brought the caller here, and would bring us back unless we call from a place of our own.
    pub intercepted: bool,
}

/// For destinations that no backend's settings speak of: Envoy's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What is settled before a request or opaque connection is looked at: inbound, the checks of its connection; outbound,
/// that who may do what is the server's to decide.
pub fn admit(peer: &Peer, held: &Held, record: &mut Record) -> Result<(), Reject> {
    match record.connection.side {
        Side::Outbound => {
            decided_by_server(&mut record.decision);
            Ok(())
        }
        Side::Inbound | Side::Gateway => {
            peer.admission(held).check(&mut record.decision)?;
            let Some(reason) = peer.distrusted() else { return Ok(()) };
            charge(&mut record.decision, Stage::Admit, reason);
            Err(Reject::because(Stage::Admit, reason, "no longer: it was believed when it connected"))
        }
    }
}

/// Writes down who the end user is, then lets the request go on or not.
pub fn authenticate(record: &mut Record, outcome: jwt::Outcome) -> Result<Option<Rc<Verified>>, Reject> {
    authenticated(record, &outcome);
    match outcome {
        jwt::Outcome::NotAsked | jwt::Outcome::NoToken => Ok(None),
        jwt::Outcome::Verified(_, user) => Ok(Some(user)),
        jwt::Outcome::Refused(policy, reason, why) => Err(not_taken(record, policy, reason, &why)),
        jwt::Outcome::Asking(policy, unknown) => {
            Err(not_taken(record, policy, Reason::JwtInvalid, &unknown.why))
        }
    }
}

/// Writes down who the end user is, if nothing is wrong with that.
pub fn authenticated(record: &mut Record, outcome: &jwt::Outcome) -> bool {
    let (result, user) = match outcome {
        jwt::Outcome::NotAsked => (not_required(Reason::NoRequestAuthentication), None),
        jwt::Outcome::NoToken => (not_required(Reason::NoToken), None),
        jwt::Outcome::Verified(policy, user) => {
            (CheckResult::new(CheckOutcome::Pass, Reason::JwtVerified, *policy), Some(user))
        }
        jwt::Outcome::Refused(..) | jwt::Outcome::Asking(..) => return false,
    };
    record.decision.check(Check::UserAuthentication, result);
    record.user = user.map(|user| Rc::clone(&user.evidence));
    true
}

fn not_taken(record: &mut Record, policy: PolicyRef, reason: Reason, why: &str) -> Reject {
    let failed = CheckResult::new(CheckOutcome::Fail, reason, policy);
    record.decision.check(Check::UserAuthentication, failed);
    record.decision.deny(Stage::Authenticate, reason, policy);
    Reject::because(Stage::Authenticate, reason, why)
}

fn not_required(reason: Reason) -> CheckResult {
    CheckResult::new(CheckOutcome::NotRequired, reason, PolicyRef::NONE)
}

/// So many of the nearest ALLOW policies are named in a record.
const CONSIDERED: usize = 8;

/// Writes an authorization down, then lets what asked for it go on or not.
pub fn authorize(record: &mut Record, authorization: Authorization) -> Result<(), Reject> {
    if !authorization.audit.is_none() || !authorization.shadow.is_empty() {
        let shadow = authorization.shadow.into_boxed_slice();
        record.marks = Some(Box::new(Marks { audit: authorization.audit, shadow }));
    }
    let decision = &mut record.decision;
    decision.check(Check::ServiceAuthorization, authorization.service);
    decision.check(Check::UserAuthorization, authorization.user);
    match authorization.outcome {
        Outcome::Allow => {
            decision.allow(Stage::Authorize, authorization.reason, authorization.policy);
            Ok(())
        }
        Outcome::Deny => {
            decision.deny(Stage::Authorize, authorization.reason, authorization.policy);
            Err(Reject::new(Stage::Authorize, authorization.reason))
        }
    }
}

/// Whether providers may have to be asked; outbound that is the server's to do.
pub fn may_consult(target: Target, held: &Held) -> bool {
    held.tables.consults() && target.is_decided_here()
}

/// Writes down who would be asked.
pub fn would_ask(consultations: &Consultations, held: &Held, record: &mut Record) {
    if consultations.is_empty() {
        return;
    }
    let would = consultations.iter().map(|each| Consulted {
        provider: held.tables.provider(each.provider).name.clone(),
        policy: each.policy,
        outcome: Reason::NotReached,
        us: 0,
        ignored: Box::default(),
        metadata: None,
        detail: Some("not asked: this only explains, as if it allowed".into()),
    });
    record.asked.get_or_insert_default().consulted.extend(would);
}

/// Writes down that a provider's answer, or the want of one, ended a request or connection.
pub fn charge_consultation(record: &mut Record, consultation: Option<&Consultation>, reject: &Reject) {
    let policy = consultation.map_or(PolicyRef::NONE, |each| each.policy);
    let user = consultation.is_some_and(|each| each.user);
    if matches!(reject.reason, Reason::ProviderDenied | Reason::ProviderUnavailable) {
        let check = if user { Check::UserAuthorization } else { Check::ServiceAuthorization };
        record.decision.check(check, CheckResult::new(CheckOutcome::Fail, reject.reason, policy));
    }
    record.decision.deny(reject.stage, reject.reason, policy);
}

/// Where nothing else decided, the provider that allowed last did.
pub fn consulted(record: &mut Record) {
    let Some(asked) = &record.asked else { return };
    let failed_open = |each: &&Consulted| each.outcome == Reason::ProviderUnavailable;
    let allowed = asked.consulted.iter().rfind(|each| !failed_open(each));
    let Some(last) = allowed.or(asked.consulted.last()) else { return };
    let (outcome, reason) = match last.outcome {
        Reason::ProviderUnavailable => (CheckOutcome::NotRequired, Reason::ProviderUnavailable),
        // Explained, it is taken to have allowed.
        _ => (CheckOutcome::Pass, Reason::ProviderAllowed),
    };
    let policy = last.policy;
    if record.decision.reason == Reason::NoPolicy {
        let result = CheckResult::new(outcome, reason, policy);
        record.decision.check(Check::ServiceAuthorization, result);
        record.decision.allow(Stage::Consult, reason, policy);
    }
}

/// When nothing allowed: which ALLOW policies came nearest, unless too many were told so lately. To read them all is work
/// for whoever writes the record; here what they are to be asked about is copied. `request`: of HTTP.
pub fn consider(
    peer: &Peer,
    held: &Held,
    memory: &Memory,
    authorization: &Authorization,
    request: Option<&RequestAttributes<'_>>,
) -> Option<Later> {
    let tell = authorization.reason == Reason::NoAllowMatched
        && memory.considered.allows(peer.facts.source_identity.as_ref());
    tell.then(|| {
        let unmatched = Unmatched::of(&peer::attributes(&peer.facts), request);
        let generation = held.share();
        Later::new(move || {
            let near = unmatched.consider(&generation.tables, CONSIDERED);
            near.to_json(generation.tables.objects()).to_string()
        })
    })
}

/// Outbound, the authorization and user checks are the server's.
fn decided_by_server(decision: &mut Decision) {
    let server = CheckResult::new(CheckOutcome::NotApplicable, Reason::DecidedByServer, PolicyRef::NONE);
    for check in [Check::ServiceAuthorization, Check::UserAuthentication, Check::UserAuthorization] {
        decision.check(check, server);
    }
}

/// Outbound to what no service owns: passed on under ALLOW_ANY.
pub fn unknown(
    address: Option<SocketAddr>,
    held: &Held,
    decision: &mut Decision,
) -> Result<SocketAddr, Reject> {
    match (address, held.tables.mesh().outbound) {
        (Some(address), OutboundTrafficPolicy::AllowAny) => {
            decision.allow(Stage::Route, Reason::NoPolicy, PolicyRef::NONE);
            Ok(address)
        }
        (_, policy) => {
            decision.deny(Stage::Route, Reason::UnknownDestination, PolicyRef::NONE);
            let why = match policy {
                OutboundTrafficPolicy::AllowAny => "no service has this authority or address and port",
                OutboundTrafficPolicy::RegistryOnly => {
                    "no service owns it, and outboundTrafficPolicy is REGISTRY_ONLY"
                }
            };
            Err(Reject::because(Stage::Route, Reason::UnknownDestination, why))
        }
    }
}

/// Outbound to a workload's own address: known, and no route's to decide.
pub fn to_pod(decision: &mut Decision, address: SocketAddr) -> SocketAddr {
    decision.allow(Stage::Route, Reason::DecidedByServer, PolicyRef::NONE);
    address
}

/// The hop to the local application.
pub fn to_application(worker: &Worker, application: Application, protocol: HopProtocol) -> Hop {
    let Application { address, intercepted } = application;
    let source = intercepted.then(|| to_own_application(address.ip()));
    worker.upstream.hop_from(source, address, HopTls::Plaintext, protocol, CONNECT_TIMEOUT)
}

/// The hop to an address as it is: a pod keeps its identity check though no routes apply. An authority may name our own
/// listeners as well as any other address.
pub fn to_address(worker: &Worker, address: SocketAddr, protocol: HopProtocol) -> Result<Hop, Reject> {
    if worker.own.leads_back(address) {
        return Err(to_itself(address));
    }
    let tls = match worker.registry.endpoint_at(address.ip()) {
        Some(endpoint) => HopTls::decide(&BackendTls::Auto, endpoint.mtls_required, &endpoint)?,
        None => HopTls::Plaintext,
    };
    Ok(worker.upstream.hop_to(address, tls, protocol, CONNECT_TIMEOUT))
}

/// Why nothing is sent to an address of this proxy's own.
pub fn to_itself(address: SocketAddr) -> Reject {
    Reject::because(Stage::Pick, Reason::LoopDetected, format_args!("{address} is this proxy itself"))
}

/// Opens a connection of its own to a hop, as the one try of a tunnel.
pub async fn connect(worker: &Worker, hop: &Hop, record: &mut Record) -> Result<Connected, Reject> {
    let started = Instant::now();
    attempting(record, hop);
    let outcome = worker.upstream.connect(hop).await;
    record.upstream_us = micros(started.elapsed());
    let facts = outcome.as_ref().ok().map(|connected| &*connected.facts);
    attempted(record, facts, outcome.as_ref().err(), record.upstream_us);
    outcome
}

/// Writes a try into the record as it begins. If nothing more is heard of it, its client has left.
pub fn attempting(record: &mut Record, hop: &Hop) {
    let (endpoint, failed) = (hop.address(), Some(Reason::ClientClosed));
    record.attempts.push(Attempt { endpoint, identity: None, tls: None, certificate: None, failed, us: 0 });
}

/// Writes down what the try that began last came to: what is known of its connection, if there was one, and why it
/// failed, if it did. Outbound, what it proved about the hop is written into the checks as well.
pub fn attempted(record: &mut Record, facts: Option<&HopFacts>, failed: Option<&Reject>, us: u32) {
    if let Some(attempt) = record.attempts.last_mut() {
        attempt.identity = facts.and_then(|facts| facts.identity.clone().or_else(|| facts.name.clone()));
        attempt.tls = facts.and_then(|facts| facts.tls.clone());
        attempt.certificate = facts.and_then(|facts| facts.certificate.clone());
        attempt.failed = failed.map(|reject| reject.reason);
        attempt.us = us;
    }
    if record.connection.side == Side::Outbound {
        if let Some(facts) = facts {
            prove_hop(&mut record.decision, facts);
        }
        if let Some(reject) = failed {
            charge_hop(&mut record.decision, reject);
        }
    }
}

/// Writes down that a deadline of the whole ended the try under way, if one was.
pub fn overtaken(record: &mut Record, reason: Reason, us: u32) {
    if let Some(attempt) = record.attempts.last_mut().filter(|each| each.failed == Some(Reason::ClientClosed))
    {
        (attempt.failed, attempt.us) = (Some(reason), us);
    }
}

/// Outbound, `encryption` and `service-authentication` speak of the hop to the server.
fn prove_hop(decision: &mut Decision, facts: &HopFacts) {
    let (encryption, authentication) = match (&facts.identity, &facts.tls) {
        (Some(_), _) => (Reason::Mtls, (CheckOutcome::Pass, Reason::SvidVerified)),
        (None, Some(_)) if facts.name.is_some() => (Reason::Tls, (CheckOutcome::Pass, Reason::NameVerified)),
        (None, Some(_)) => (Reason::Tls, (CheckOutcome::NotRequired, Reason::NoIdentity)),
        (None, None) => (Reason::PlaintextPermitted, (CheckOutcome::NotRequired, Reason::NoIdentity)),
    };
    decision.check(Check::Encryption, CheckResult::new(CheckOutcome::Pass, encryption, PolicyRef::NONE));
    decision.check(
        Check::ServiceAuthentication,
        CheckResult::new(authentication.0, authentication.1, PolicyRef::NONE),
    );
}

/// Writes down how a request or connection ended that can't go on.
pub fn ended(reject: &Reject, record: &mut Record) {
    record.ended = Some((reject.stage, reject.reason));
    record.detail = reject.detail.clone();
    if record.decision.stage == Stage::Accept {
        // Nothing had decided yet: what ended it did.
        record.decision.deny(reject.stage, reject.reason, PolicyRef::NONE);
    }
}

/// Charges what failed on the way to the server to the check it failed.
pub fn charge_hop(decision: &mut Decision, reject: &Reject) {
    charge(decision, reject.stage, reject.reason);
}

/// Charges a failure to the check that its reason belongs to; other reasons are no check's.
pub fn charge(decision: &mut Decision, stage: Stage, reason: Reason) {
    let check = match reason {
        Reason::PlaintextUnderStrict | Reason::NotFips | Reason::MtlsUnavailable => Check::Encryption,
        Reason::UntrustedRoot
        | Reason::IdentityMismatch
        | Reason::Expired
        | Reason::NotYetValid
        | Reason::Revoked
        | Reason::NoIdentity
        | Reason::BadCertificate => Check::ServiceAuthentication,
        _ => return,
    };
    decision.check(check, CheckResult::new(CheckOutcome::Fail, reason, PolicyRef::NONE));
    decision.deny(stage, reason, PolicyRef::NONE);
}

/// Microseconds, saturating.
pub fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
