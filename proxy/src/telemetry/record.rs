//! The record of one request or connection: decision and outcome, emitted exactly once, when it is dropped at the latest.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use smallvec::SmallVec;

use super::Shard;
use super::fragments::{ConfigFragment, ConnectionFragments};
use super::later::Later;
use super::render;
use crate::decision::{Decision, Objects, PolicyRef, Reason, Shadow, Stage};
use crate::edits::{Answer, Edits};
use crate::net::Transferred;

/// Which configuration decided: made once when tables compile, shared by every record that they decide.
#[derive(Debug, Clone, Default)]
pub struct ConfigFacts {
    /// The process's own counter.
    pub version: u64,
    /// Policy digest, `sha256:..`.
    pub digest: String,
    /// `git:..`, when the source knows.
    pub revision: Option<String>,
    /// The last known good snapshot, its source out of reach.
    pub stale: bool,
    /// What policy references name.
    pub objects: Objects,
    /// The facts above as records show them, rendered once. `Default`.
    pub rendered: ConfigFragment,
}

/// What is the same for every request of a connection.
#[derive(Debug)]
pub struct ConnectionFacts {
    /// `inbound`, `outbound` or `gateway`.
    pub side: Side,
    /// The caller.
    pub source: SocketAddr,
    /// For whom the caller speaks, by its PROXY protocol header.
    pub proxied: Option<IpAddr>,
    /// Whether the connection began with one; `None`: that was not looked at.
    pub proxy_header: Option<bool>,
    /// The caller's verified identity, `spiffe://..`.
    pub source_identity: Option<Arc<str>>,
    /// Where it wanted to go: the original destination, else the local address.
    pub destination: SocketAddr,
    /// What the caller's TLS was; `None`: plaintext.
    pub tls: Option<TlsEvidence>,
    /// What proved the caller's identity.
    pub certificate: Option<CertificateEvidence>,
    /// The facts above as records show them, rendered once. `Default`.
    pub rendered: ConnectionFragments,
}

impl ConnectionFacts {
    /// A plaintext connection without an identity; the other fields are set before it is shared.
    pub fn new(side: Side, source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            side,
            source,
            proxied: None,
            proxy_header: None,
            source_identity: None,
            destination,
            tls: None,
            certificate: None,
            rendered: ConnectionFragments::default(),
        }
    }
}

/// Which way a listener faces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// To this workload.
    Inbound,
    /// From this workload.
    Outbound,
    /// Neither: a gateway.
    Gateway,
}

impl Side {
    /// The word in records, metrics and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
            Self::Gateway => "gateway",
        }
    }
}

/// What TLS was agreed, as the `encryption` check's evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsEvidence {
    /// `1.3` or `1.2`.
    pub version: &'static str,
    /// IANA name: `TLS_AES_256_GCM_SHA384`.
    pub suite: &'static str,
    /// `X25519MLKEM768`, ...
    pub group: &'static str,
    /// Approved throughout.
    pub fips: bool,
    /// Server name that the client sent.
    pub sni: Option<Arc<str>>,
}

/// What proved an identity, as the `service-authentication` check's evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateEvidence {
    /// Trust domain whose roots verified it; empty: a server's outside of the mesh, verified by roots of its own.
    pub trust_domain: Arc<str>,
    /// Serial number, lower-case hex.
    pub serial: Arc<str>,
    /// notAfter, seconds since the epoch.
    pub not_after: i64,
}

/// Who the end user is, as the `user-authentication` check's evidence. Claims are no evidence: nobody asked to have them
/// in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserEvidence {
    /// `iss`.
    pub issuer: Box<str>,
    /// `sub`; empty: none.
    pub subject: Box<str>,
    /// `exp`, seconds since the epoch: until when what this user began may go on.
    pub expires: Option<i64>,
}

/// What a request's body and its record share: bytes from the caller, and why its body broke, if it did.
#[derive(Debug, Default)]
pub struct Upload {
    /// Bytes so far.
    pub bytes: Cell<u64>,
    /// Why no more come.
    pub failed: Cell<Option<Reason>>,
    /// Who waits for more.
    pub reader: RefCell<Option<Waker>>,
}

impl Upload {
    /// Lets no more come, and tells who waits for it.
    pub fn fail(&self, reason: Reason) {
        self.failed.set(Some(reason));
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// What ended a request or connection that had been allowed.
#[derive(Debug, Clone)]
pub struct Cut {
    /// The configuration that ended it; that which allowed it is its record's.
    pub config: Arc<ConfigFacts>,
    /// The rule or object of that configuration which refuses it now; NONE where no policy does.
    pub policy: PolicyRef,
    /// What a decision of now would give as its reason; `None`: there is none, for want of what a policy asks about.
    pub why: Option<Reason>,
    /// How long the change had been in force.
    pub after: Duration,
}

/// One try to get the request served.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Where to.
    pub endpoint: SocketAddr,
    /// The server's verified identity; outside of the mesh the name that it proved.
    pub identity: Option<Arc<str>>,
    /// TLS of the hop; `None`: plaintext. Outbound this is the `encryption` evidence.
    pub tls: Option<Arc<TlsEvidence>>,
    /// What proved the identity. Outbound this is the `service-authentication` evidence.
    pub certificate: Option<Arc<CertificateEvidence>>,
    /// `None`: it worked.
    pub failed: Option<Reason>,
    /// Microseconds until a response head or the failure.
    pub us: u32,
}

/// What policies said that decide nothing.
#[derive(Debug, Default)]
pub struct Marks {
    /// The AUDIT rule that matched first.
    pub audit: PolicyRef,
    /// What dry-run policies would have done.
    pub shadow: Box<[Shadow]>,
}

/// Who was asked about a request, and what they want its caller to get.
#[derive(Debug, Default)]
pub struct Asked {
    /// Providers, in order.
    pub consulted: Vec<Consulted>,
    /// What they want of the response.
    pub additions: Edits,
    /// What they have to tell a caller that they refused.
    pub answer: Option<Answer>,
    /// Rate limits that services were asked about, or that only would have been taken.
    pub limits: Vec<Limited>,
    /// What the caller is told of the rate limit that leaves it least.
    pub quota: Option<Quota>,
}

impl Asked {
    /// Whether somebody only would have been asked.
    pub fn would_ask(&self) -> bool {
        self.consulted.iter().any(|each| each.outcome == Reason::NotReached)
    }
}

/// What came of one rate limit.
#[derive(Debug)]
pub struct Limited {
    /// Its rule.
    pub policy: PolicyRef,
    /// The service that counts; `None`: this proxy does.
    pub provider: Option<Arc<str>>,
    /// `within-limit`, `limit-exceeded`, `limiter-unavailable`, or `not-reached` where it only would have been taken.
    pub outcome: Reason,
    /// Microseconds until its answer.
    pub us: u32,
    /// Why it could not be asked, or understood.
    pub detail: Option<Box<str>>,
}

/// A rate limit as its caller knows it (draft-ietf-httpapi-ratelimit-headers).
#[derive(Debug, Clone)]
pub struct Quota {
    /// `RateLimit-Policy`: `"name";q=100;w=60`.
    pub policy: http::HeaderValue,
    /// Requests that could follow at once.
    pub remaining: u64,
    /// Seconds until there is one more, or for a service that counts by windows, until the next; `None`: it did not say.
    pub reset_secs: Option<u64>,
}

/// What one provider said.
#[derive(Debug)]
pub struct Consulted {
    /// Its name.
    pub provider: Arc<str>,
    /// The rule by which it was asked.
    pub policy: PolicyRef,
    /// `provider-allowed`, `provider-denied`, `provider-unavailable`, or `not-reached` where it only would have been asked.
    pub outcome: Reason,
    /// Microseconds until its answer.
    pub us: u32,
    /// Headers that it wanted to change and may not.
    pub ignored: Box<[Box<str>]>,
    /// What it wanted to be written down, as JSON.
    pub metadata: Option<Box<str>>,
    /// Why it could not be asked, or understood.
    pub detail: Option<Box<str>>,
}

/// The record of one request (HTTP) or one connection (TCP, refused handshake). Boxed where it travels; dropping it emits it.
#[derive(Debug)]
pub struct Record {
    /// Kept by the worker; where the record goes.
    pub(super) shard: Rc<Shard>,
    /// Its place among the worker's open records.
    pub(super) slot: u32,
    /// Sortable unique id (ULID), as `x-writ-decision-id` shows it.
    pub id: u128,
    /// Wall clock at the start.
    pub time: SystemTime,
    /// Monotonic clock at the start.
    pub started: Instant,
    /// Which configuration decided.
    pub config: Arc<ConfigFacts>,
    /// The caller's connection.
    pub connection: Rc<ConnectionFacts>,
    /// What each stage decided.
    pub decision: Decision,
    /// The end user, by a verified token.
    pub user: Option<Rc<UserEvidence>>,
    /// `host:port` of the service asked for, when known.
    pub service: Option<Arc<str>>,
    /// W3C trace id and span id of the caller, from a valid `traceparent`.
    pub trace: Option<(u128, u64)>,
    /// Record id of the previous hop, believed only from a verified peer.
    pub previous: Option<u128>,
    /// `HTTP/1.1`, `HTTP/2`, `tcp`, `tls`, ...
    pub protocol: &'static str,
    /// Method; empty for connections.
    pub method: Option<http::Method>,
    /// Authority as sent.
    pub authority: Option<Rc<str>>,
    /// Path without query.
    pub path: Option<Rc<str>>,
    /// The client that a trusted caller asks for, if not itself.
    pub remote: Option<Box<IpAddr>>,
    /// Bytes of body from the caller.
    pub request_bytes: u64,
    /// Counts for `request_bytes` while the body is still coming; read at the end.
    pub upload: Option<Rc<Upload>>,
    /// Counts what a tunnel carries while it lasts, on top of the bodies before it.
    pub tunnelled: Option<Rc<Transferred>>,
    /// Status answered; 0: none.
    pub status: u16,
    /// Bytes of body to the caller.
    pub response_bytes: u64,
    /// grpc-status of trailers or head, when there was one.
    pub grpc_status: Option<u16>,
    /// Name of the backend chosen.
    pub backend: Option<Arc<str>>,
    /// Its weight of the sum.
    pub weight: Option<(u32, u32)>,
    /// Tries, in order.
    pub attempts: SmallVec<[Attempt; 1]>,
    /// Microseconds spent deciding.
    pub policy_us: u32,
    /// Microseconds from first send to response head.
    pub upstream_us: u32,
    /// How it ended. `None` until known; a record dropped without it says `client-closed` at `relay`.
    pub ended: Option<(Stage, Reason)>,
    /// For the operator: what failed.
    pub detail: Option<Box<str>>,
    /// By what it was cut, if it was.
    pub cut: Option<Box<Cut>>,
    /// When nothing allowed: the nearest ALLOW policies and what failed first in each.
    pub considered: Option<Later>,
    /// What policies said that decide nothing.
    pub marks: Option<Box<Marks>>,
    /// Who was asked.
    pub asked: Option<Box<Asked>>,
    /// Not to be emitted.
    pub(super) discarded: bool,
}

impl Record {
    /// Whether it was refused because it was the turn of a backend that is not there; others of the split are.
    pub fn was_refused_by_turn(&self) -> bool {
        self.decision.stage == Stage::Split && self.weight.is_some_and(|(weight, sum)| weight < sum)
    }

    /// Begins a record, before anything can fail. From here on a drop at any point emits it.
    pub fn begin(
        shard: &Rc<Shard>,
        config: &Arc<ConfigFacts>,
        connection: &Rc<ConnectionFacts>,
    ) -> Box<Self> {
        let (time, started) = (SystemTime::now(), Instant::now());
        let id = shard.next_id(time);
        Box::new(Self {
            slot: shard.opened(id, time, started, connection),
            shard: Rc::clone(shard),
            id,
            time,
            started,
            config: Arc::clone(config),
            connection: Rc::clone(connection),
            decision: Decision::default(),
            user: None,
            service: None,
            trace: None,
            previous: None,
            protocol: "",
            method: None,
            authority: None,
            path: None,
            remote: connection.proxied.map(Box::new),
            request_bytes: 0,
            upload: None,
            tunnelled: None,
            status: 0,
            response_bytes: 0,
            grpc_status: None,
            backend: None,
            weight: None,
            attempts: SmallVec::new(),
            policy_us: 0,
            upstream_us: 0,
            ended: None,
            considered: None,
            marks: None,
            asked: None,
            discarded: false,
            detail: None,
            cut: None,
        })
    }

    /// The line that this record would be by now, without its line end: what `writ explain` shows.
    pub fn render(&self) -> String {
        render::text(self, self.shard.proxy())
    }

    /// The id as callers see it (`x-writ-decision-id`): ULID text.
    pub fn id_text(&self) -> String {
        ulid::Ulid(self.id).to_string()
    }

    /// Writes down what a provider said, and counts it: a stream may go on for long.
    pub fn consulted(&mut self, consulted: Consulted) {
        self.shard.consulted(&self.config, &consulted);
        self.asked.get_or_insert_default().consulted.push(consulted);
    }

    /// What is asked is known: for its `progress` lines until it lies at a place.
    pub fn begun(&self) {
        self.shard.begun(self);
    }

    /// Where it lies from now on: there its `progress` lines find it.
    pub fn lies_at(&self, place: usize) {
        self.shard.lies_at(self, place);
    }

    /// Forgets the record: what it was begun for turned out to be the beginning of something else.
    pub fn discard(mut self: Box<Self>) {
        self.discarded = true;
    }

    /// Bytes from and to the caller by now.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let uploaded = self.upload.as_ref().map_or(self.request_bytes, |upload| upload.bytes.get());
        match &self.tunnelled {
            None => (uploaded, self.response_bytes),
            Some(tunnelled) => {
                (uploaded + tunnelled.from_client.get(), self.response_bytes + tunnelled.from_upstream.get())
            }
        }
    }

    /// The same as durations within a record are kept, saturating after an hour.
    pub fn age(&self) -> u32 {
        u32::try_from(self.elapsed_us()).unwrap_or(u32::MAX)
    }

    /// Time since the start, in microseconds.
    pub fn elapsed_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.discarded {
            return self.shard.forget(self);
        }
        (self.request_bytes, self.response_bytes) = self.bytes();
        self.tunnelled = None;
        let left = match self.upload.take().and_then(|upload| upload.failed.get()) {
            _ if self.shard.is_cut() => Reason::DrainDeadline,
            Some(reason) => reason,
            None => Reason::ClientClosed,
        };
        self.ended.get_or_insert((Stage::Relay, left));
        let considered = self.considered.take();
        self.shard.emit(self, considered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_stays_small() {
        assert!(size_of::<Record>() <= 560, "{}", size_of::<Record>());
    }
}
