//! Who is calling, as verified on this connection, and what follows from it under one generation of policy.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use control_client::snapshot::MtlsMode;
use http::HeaderValue;

use crate::decision::{Check, CheckOutcome, CheckResult, Decision, PolicyRef, Reason, Stage};
use crate::error::Reject;
use crate::generation::Held;
use crate::identity::{Proof, SpiffeId};
use crate::tables::{ConnectionAttributes, LimitsOnConnection, PeerMode, Remainder};
use crate::telemetry::{ConnectionFacts, Side};
use crate::tls::PeerTls;

/// The caller of one connection.
pub struct Peer {
    /// What records say about the connection.
    pub facts: Rc<ConnectionFacts>,
    /// `x-forwarded-client-cert` element for this caller; `None`: plaintext.
    xfcc: Option<HeaderValue>,
    admission: RefCell<Option<Rc<Admission>>>,
    /// What its identity rests on.
    proof: Option<Arc<Proof>>,
    /// Why it is no longer believed.
    distrusted: Cell<Option<Reason>>,
}

/// What is constant for a connection under one generation: decided once, looked at by each request.
pub struct Admission {
    generation: u64,
    /// Was the hop encrypted as policy demands.
    pub encryption: CheckResult,
    /// Who is the caller, proven how.
    pub authentication: CheckResult,
    /// The authorization rules that can still match.
    pub remainder: Arc<Remainder>,
    /// The rate limits that can count requests.
    pub limits: LimitsOnConnection,
    /// The caller may speak for others in `x-forwarded-client-cert`.
    pub forwards: bool,
    /// The caller may say by X-Forwarded-For for whom it asks.
    pub speaks_for: bool,
    /// Why the connection says nothing that counts about where it comes from: it began before that was read otherwise.
    pub began_otherwise: Option<&'static str>,
}

impl Peer {
    /// A caller; `own` is this proxy's identity, `tls` what the handshake proved.
    pub fn new(facts: Rc<ConnectionFacts>, own: Option<&SpiffeId>, tls: Option<&PeerTls>) -> Self {
        let xfcc = tls.and_then(|tls| xfcc(own, tls));
        let proof = tls.and_then(|tls| tls.proof.clone());
        Self { facts, xfcc, admission: RefCell::new(None), proof, distrusted: Cell::new(None) }
    }

    /// The admission under `held`; computed again only when the generation moved.
    pub fn admission(&self, held: &Held) -> Rc<Admission> {
        if let Some(admission) = &*self.admission.borrow()
            && admission.generation == held.number
        {
            return Rc::clone(admission);
        }
        let admission = Rc::new(admit(&self.facts, held));
        *self.admission.borrow_mut() = Some(Rc::clone(&admission));
        admission
    }

    /// As [`Admission::began_otherwise`].
    pub fn began_otherwise(&self, held: &Held) -> Option<&'static str> {
        began_otherwise(&self.facts, held)
    }

    /// What its identity rests on; `None`: it has none.
    pub fn proof(&self) -> Option<&Proof> {
        self.proof.as_deref()
    }

    /// From here on it is not who it was, for this reason of `service-authentication`.
    pub fn distrust(&self, reason: Reason) {
        self.distrusted.set(Some(reason));
    }

    /// Why it is no longer believed; `None`: it is.
    pub fn distrusted(&self) -> Option<Reason> {
        self.distrusted.get()
    }

    /// This caller's `x-forwarded-client-cert` element.
    pub fn xfcc(&self) -> Option<&HeaderValue> {
        self.xfcc.as_ref()
    }
}

impl Admission {
    /// Writes the connection's checks down, and refuses what policy does not accept.
    pub fn check(&self, decision: &mut Decision) -> Result<(), Reject> {
        if let Some(why) = self.began_otherwise {
            decision.deny(Stage::Admit, Reason::PolicyChanged, PolicyRef::NONE);
            return Err(Reject::because(Stage::Admit, Reason::PolicyChanged, why));
        }
        for (check, result) in
            [(Check::Encryption, self.encryption), (Check::ServiceAuthentication, self.authentication)]
        {
            decision.check(check, result);
            if result.outcome == CheckOutcome::Fail {
                decision.deny(Stage::Admit, result.reason, result.policy);
                return Err(Reject::new(Stage::Admit, result.reason));
            }
        }
        Ok(())
    }
}

/// The attributes that authorization looks at, of a connection.
pub fn attributes(facts: &ConnectionFacts) -> ConnectionAttributes<'_> {
    ConnectionAttributes {
        source_identity: facts.source_identity.as_deref(),
        source_ip: facts.source.ip().to_canonical(),
        remote_ip: facts.proxied.unwrap_or(facts.source.ip()).to_canonical(),
        destination_ip: facts.destination.ip().to_canonical(),
        destination_port: facts.destination.port(),
        sni: facts.tls.as_ref().and_then(|tls| tls.sni.as_deref()),
    }
}

fn admit(facts: &ConnectionFacts, held: &Held) -> Admission {
    let mode = peer_mode(facts, held);
    let attributes = attributes(facts);
    let forwards = facts.source_identity.as_deref().is_some_and(|id| held.tables.forwards_client_cert(id));
    Admission {
        generation: held.number,
        encryption: encryption(mode, facts),
        authentication: match &facts.source_identity {
            Some(_) => CheckResult::new(CheckOutcome::Pass, Reason::SvidVerified, PolicyRef::NONE),
            None => CheckResult::new(CheckOutcome::NotRequired, Reason::NoIdentity, PolicyRef::NONE),
        },
        remainder: held.tables.admit(&attributes),
        limits: held.tables.rate_limits().on(&attributes),
        forwards,
        speaks_for: held
            .tables
            .forwarders()
            .trusts(facts.source_identity.as_deref(), facts.proxied.unwrap_or_else(|| facts.source.ip())),
        began_otherwise: began_otherwise(facts, held),
    }
}

/// What is accepted of a caller. At a Gateway the listener says so.
fn peer_mode(facts: &ConnectionFacts, held: &Held) -> PeerMode {
    match (facts.side, held.tables.gateway()) {
        (Side::Gateway, Some(gateway)) => {
            PeerMode { mode: MtlsMode::Disable, policy: gateway.policy, quarantined: false }
        }
        _ => held.tables.peer_mode(facts.destination.port()),
    }
}

/// A connection keeps how it began: with a PROXY protocol header, or without; at a Gateway also with TLS, or without.
fn began_otherwise(facts: &ConnectionFacts, held: &Held) -> Option<&'static str> {
    if facts.side == Side::Gateway {
        match held.tables.gateway_port(facts.destination.port()) {
            None => return Some("no listener of the Gateway has this port any more"),
            Some(port) if port.tls && facts.tls.is_none() => {
                return Some("the connection began in plaintext, and its port asks for TLS by now");
            }
            Some(port) if !port.tls && facts.tls.is_some() => {
                return Some("the connection began with TLS, which its port has none of by now");
            }
            Some(_) => {}
        }
    }
    let expects = held.tables.forwarders().expects_proxy_header(facts.destination.port(), facts.source.ip());
    match (facts.proxy_header?, expects) {
        (true, false) => {
            Some("the connection began with a PROXY protocol header, which nobody is to send by now")
        }
        (false, true) => {
            Some("the connection began without the PROXY protocol header that is expected by now")
        }
        _ => None,
    }
}

/// The encryption check of an inbound connection (PeerAuthentication).
fn encryption(mode: PeerMode, facts: &ConnectionFacts) -> CheckResult {
    let pass = |reason| CheckResult::new(CheckOutcome::Pass, reason, mode.policy);
    match (mode.mode, facts.source_identity.is_some()) {
        (_, true) => pass(Reason::Mtls),
        (MtlsMode::Strict, false) if mode.quarantined => {
            CheckResult::new(CheckOutcome::Fail, Reason::QuarantinedPolicy, mode.policy)
        }
        (MtlsMode::Strict, false) => {
            CheckResult::new(CheckOutcome::Fail, Reason::PlaintextUnderStrict, mode.policy)
        }
        (MtlsMode::Permissive | MtlsMode::Disable, false) if facts.tls.is_some() => pass(Reason::Tls),
        (MtlsMode::Permissive | MtlsMode::Disable, false) => pass(Reason::PlaintextPermitted),
    }
}

/// Envoy's `x-forwarded-client-cert` element. SPIFFE IDs hold no character that needs quotes; a subject may.
fn xfcc(own: Option<&SpiffeId>, tls: &PeerTls) -> Option<HeaderValue> {
    let mut value = String::new();
    if let Some(own) = own {
        value.push_str(&format!("By={};", own.as_str()));
    }
    value.push_str("Hash=");
    for byte in tls.fingerprint? {
        value.push_str(&format!("{byte:02x}"));
    }
    let subject = tls.subject.replace('\\', "\\\\").replace('"', "\\\"");
    value.push_str(&format!(";Subject=\"{subject}\""));
    if let Some(identity) = &tls.identity {
        value.push_str(&format!(";URI={}", identity.as_str()));
    }
    HeaderValue::from_str(&value).ok()
}
