//! [`Place`]: what a request or tunnel has at hand for a change of policy while it is under way.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use control_client::snapshot::OutboundTrafficPolicy;
use http::Method;
use tokio::task::AbortHandle;

use super::{Connection, Live};
use crate::decision::{CheckOutcome, Outcome, PolicyRef, Reason, Stage};
use crate::error::Reject;
use crate::generation::Held;
use crate::identity::Proof;
use crate::jwks::Store;
use crate::jwt::{self, Verified};
use crate::peer::Peer;
use crate::tables::{
    self, CustomPolicies, Forwarders, HeaderNames, KeptHeaders, Reauthorization, RequestAttributes,
    UserAttributes,
};
use crate::telemetry::{ConfigFacts, Cut, Record};

/// What a later policy is to be asked about.
pub enum Asked {
    /// Nothing: who may do what is the server's to decide.
    Nothing,
    /// A request to the application.
    Request(Kept),
    /// An opaque connection to the application, that these CUSTOM policies were asked about.
    Connection(Custom),
    /// What is passed on to an address that no service owns.
    Outside(SocketAddr),
}

/// CUSTOM policies that there were when it was decided; `None`: none.
pub type Custom = Option<Rc<Arc<CustomPolicies>>>;

/// What policies look at of a request, for its whole life. The texts are shared with its record, and of headers only those
/// are here that some policy looked at when it was decided.
pub struct Kept {
    /// Method.
    pub method: Method,
    /// Host as sent.
    pub host: Option<Rc<str>>,
    /// Path as authorized.
    pub path: Rc<str>,
    /// Headers that policies looked at.
    pub headers: KeptHeaders,
    /// Names of the headers that would be there.
    pub names: Rc<Arc<HeaderNames>>,
    /// The caller's address after trusted hops.
    pub remote_ip: Option<IpAddr>,
    /// Whose word was believed about it.
    pub forwarders: Rc<Arc<Forwarders>>,
    /// The verified end user.
    pub user: Option<Rc<Verified>>,
    /// Whether it was asked who the end user is.
    pub asks_users: bool,
    /// CUSTOM policies that it was asked about by.
    pub custom: Custom,
}

/// What serves a request or tunnel under way holds, and asks before it goes on.
pub struct Place {
    live: Rc<Live>,
    key: usize,
}

pin_project_lite::pin_project! {
    /// The future of [`Place::during`].
    #[must_use = "nothing happens until it is polled"]
    pub struct During<'a, F> {
        place: &'a Place,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for During<'_, F> {
    type Output = Result<F::Output, Ended>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.place.look(cx) {
            Ok(()) => this.future.poll(cx).map(Ok),
            Err(ended) => Poll::Ready(Err(ended)),
        }
    }
}

/// What was ended, and why.
#[derive(Debug)]
pub struct Ended {
    /// `policy-changed`, `certificate-revoked` or `credential-expired`.
    pub reason: Reason,
    /// For the operator.
    pub detail: Option<Box<str>>,
    /// By what; `None` once a record says so.
    pub cut: Option<Box<Cut>>,
}

/// A place as the worker sees it.
pub(super) struct Slot {
    connection: Rc<Connection>,
    asked: Asked,
    /// The generation that allowed it last.
    pub(super) number: u64,
    /// Once its answer is on its way.
    record: Option<Box<Record>>,
    waker: Option<Waker>,
    /// What the identity of the server rests on that a tunnel leads to.
    server: Option<Arc<Proof>>,
    /// The task to be dropped instead of woken.
    task: Option<AbortHandle>,
    ended: Option<Ended>,
}

impl Kept {
    /// The client's address as these would have it read; `None`: from what was not kept.
    fn remote_ip_by(&self, forwarders: &Forwarders, peer: &Peer) -> Option<IpAddr> {
        let facts = &*peer.facts;
        let direct = facts.proxied.unwrap_or_else(|| facts.source.ip());
        let reads = |by: &Forwarders| by.reads(facts.source_identity.as_deref(), direct);
        let now = reads(forwarders);
        if now == reads(&self.forwarders) {
            return self.remote_ip;
        }
        now.is_none().then_some(direct)
    }
}

impl Place {
    pub(super) fn new(live: Rc<Live>, key: usize) -> Self {
        Self { live, key }
    }

    /// Waits for what a request or tunnel waits for, unless that is ended first.
    pub fn during<F: Future>(&self, future: F) -> During<'_, F> {
        During { place: self, future }
    }

    /// Whether it may go on; if so, the task is woken when it no longer may.
    pub fn look(&self, cx: &Context<'_>) -> Result<(), Ended> {
        self.with_slot(|slot| {
            if let Some(ended) = slot.ended.as_mut() {
                let Ended { reason, detail, cut } = ended;
                return Err(Ended { reason: *reason, detail: detail.take(), cut: cut.take() });
            }
            match &slot.waker {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                _ => slot.waker = Some(cx.waker().clone()),
            }
            Ok(())
        })
        .unwrap_or(Ok(()))
    }

    /// Whether it was ended.
    pub fn is_ended(&self) -> bool {
        self.with_slot(|slot| slot.ended.is_some()).unwrap_or_default()
    }

    /// Leaves the record here, so that it is written when its request is ended, whoever serves it then.
    pub fn hold(&self, record: Box<Record>) {
        record.lies_at(self.key);
        self.with_slot(|slot| slot.record = Some(record));
    }

    /// Names the task that serves a stream of its own: dropping it resets the stream, even one whose client takes nothing.
    pub fn served_by(&self, task: AbortHandle) {
        self.with_slot(|slot| slot.task = Some(task));
    }

    /// Names what the identity of the server rests on, that a tunnel leads to.
    pub fn leads_to(&self, server: Option<Arc<Proof>>) {
        self.with_slot(|slot| slot.server = server);
    }

    /// Takes the record back. `None`: it is written.
    pub fn take(&self) -> Option<Box<Record>> {
        self.with_slot(|slot| slot.record.take()).flatten()
    }

    /// Writes to the record that lies here.
    pub fn write(&self, write: impl FnOnce(&mut Record)) {
        self.with_slot(|slot| slot.record.as_deref_mut().map(write));
    }

    fn with_slot<T>(&self, with: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        self.live.places.borrow_mut().get_mut(self.key).map(with)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A record in it is written after the places are free to be used again.
        let slot = self.live.places.borrow_mut().try_remove(self.key);
        if let Some(slot) = &slot {
            slot.connection.busy.set(slot.connection.busy.get().saturating_sub(1));
        }
        drop(slot);
    }
}

impl Ended {
    /// As a rejection, of what has no answer yet. Its record says by what.
    pub fn reject(self, record: &mut Record) -> Reject {
        record.cut = self.cut;
        Reject { detail: self.detail, ..Reject::new(Stage::Relay, self.reason) }
    }
}

impl Slot {
    pub(super) fn new(connection: Rc<Connection>, held: &Held, asked: Asked) -> Self {
        Self {
            connection,
            asked,
            number: held.number,
            record: None,
            waker: None,
            server: None,
            task: None,
            ended: None,
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended.is_some()
    }

    pub(super) fn record(&self) -> Option<&Record> {
        self.record.as_deref()
    }

    /// Whether either end of it is no longer believed.
    pub(super) fn doubted(&self, doubt: &impl Fn(&Proof) -> Option<Reason>) -> Option<Reason> {
        self.connection.peer.distrusted().or_else(|| self.server.as_deref().and_then(doubt))
    }

    /// Until when the end user is one, seconds since the epoch.
    pub(super) fn user_until(&self) -> Option<i64> {
        match &self.asked {
            Asked::Request(kept) => kept.user.as_ref()?.honoured_until(),
            Asked::Nothing | Asked::Connection(_) | Asked::Outside(_) => None,
        }
    }

    /// Who the end user is by these rules and the keys of now.
    pub(super) fn user(
        &self,
        held: &Held,
        keys: &Store,
    ) -> Result<Option<&UserAttributes>, (PolicyRef, Reason)> {
        match &self.asked {
            Asked::Request(kept) => jwt::standing(held.tables.authentication(), keys, kept.user.as_deref()),
            Asked::Nothing | Asked::Connection(_) | Asked::Outside(_) => Ok(None),
        }
    }

    /// Wakes who serves what is sent to a server, which may no longer be believed.
    pub(super) fn wake_sender(&self) {
        if let (Asked::Nothing | Asked::Outside(_), Some(waker)) = (&self.asked, &self.waker) {
            waker.wake_by_ref();
        }
    }

    /// Asks a later policy. `names_known`: that all headers which it looks at were kept under these names.
    pub(super) fn judge(
        &self,
        held: &Held,
        keys: &Store,
        names_known: impl Fn(&Rc<Arc<HeaderNames>>) -> bool,
    ) -> Option<Ended> {
        let refused = |why, policy| Some(policy_changed(held, Some(why), policy, None));
        let admission = match self.asked {
            Asked::Nothing => return None,
            Asked::Outside(address) => {
                let registry_only = held.tables.mesh().outbound == OutboundTrafficPolicy::RegistryOnly;
                let owned = held.tables.service_by_address(address.ip(), address.port()).is_some();
                let ends = registry_only && !owned;
                return if ends { refused(Reason::UnknownDestination, PolicyRef::NONE) } else { None };
            }
            Asked::Connection(_) | Asked::Request(_) => self.connection.peer.admission(held),
        };
        if let Some(why) = admission.began_otherwise {
            return Some(policy_changed(held, None, PolicyRef::NONE, Some(why.into())));
        }
        for check in [admission.encryption, admission.authentication] {
            if check.outcome == CheckOutcome::Fail {
                return refused(check.reason, check.policy);
            }
        }
        let kept = match &self.asked {
            Asked::Request(kept) => kept,
            Asked::Connection(custom) => {
                let decided = held.tables.authorize_tcp(&admission.remainder);
                if decided.outcome == Outcome::Deny {
                    return refused(decided.reason, decided.policy);
                }
                let asks = held.tables.asks_anew_tcp(&admission.remainder, known_custom(custom));
                return asks.map(|policy| not_asked(held, policy));
            }
            Asked::Nothing | Asked::Outside(_) => return None,
        };
        let remote_ip = kept.remote_ip_by(held.tables.forwarders(), &self.connection.peer);
        let lacks = (!names_known(&kept.names)).then_some(&**kept.names);
        let user = match self.user(held, keys) {
            Ok(user) => user,
            Err((policy, why)) => return refused(why, policy),
        };
        let user_known = kept.asks_users || held.tables.authentication().rules.is_empty();
        let known = tables::Kept { headers: lacks, remote_ip: remote_ip.is_some(), user: user_known };
        let headers = kept.headers.to_map();
        let request = RequestAttributes {
            method: kept.method.as_str(),
            host: kept.host.as_deref(),
            path: &kept.path,
            headers: &headers,
            remote_ip,
            user,
        };
        let reauthorized = match held.tables.reauthorize(&admission.remainder, &request, known) {
            Reauthorization::Allowed => {
                held.tables.asks_anew(&admission.remainder, &request, known, known_custom(&kept.custom))
            }
            refused => refused,
        };
        match reauthorized {
            Reauthorization::Allowed => None,
            Reauthorization::Asks(policy) => Some(not_asked(held, policy)),
            Reauthorization::Refused(why, policy) => refused(why, policy),
            Reauthorization::Unknown(policy, lacking) => {
                let detail = format!("it asks for {lacking}");
                Some(policy_changed(held, None, policy, Some(detail)))
            }
        }
    }

    /// Ends it: what is left is to write the record and to have who serves it let go.
    pub(super) fn end(&mut self, mut ended: Ended) -> Loose {
        let mut record = self.record.take();
        if let Some(record) = &mut record {
            record.ended = Some((Stage::Relay, ended.reason));
            record.detail = ended.detail.clone();
            record.cut = ended.cut.take();
            if let Some(upload) = &record.upload {
                // Nothing more of the request is passed on either.
                upload.fail(ended.reason);
            }
        }
        self.ended = Some(ended);
        // Without a record here its answer has not begun, and who serves it is to give one.
        let task = self.task.take().filter(|_| record.is_some());
        Loose { record, task, waker: self.waker.take() }
    }
}

/// What is left of something that ended. Let go of when the places are free to be used again.
pub(super) struct Loose {
    record: Option<Box<Record>>,
    task: Option<AbortHandle>,
    waker: Option<Waker>,
}

impl Loose {
    pub(super) fn let_go(self) {
        drop(self.record);
        match (self.task, self.waker) {
            (Some(task), _) => task.abort(),
            (None, Some(waker)) => waker.wake(),
            (None, None) => {}
        }
    }
}

/// The end of what belongs to somebody who is no longer believed: for this reason, by this policy, and since when.
pub(super) fn disbelieved(held: &Held, why: Reason, policy: PolicyRef, after: Duration) -> Ended {
    let config = Arc::clone(&held.config);
    let cut = Cut { config, policy, why: Some(why), after };
    Ended { reason: ends_as(why), detail: None, cut: Some(Box::new(cut)) }
}

/// How a request ends whose caller or server is no longer believed.
pub(super) fn ends_as(why: Reason) -> Reason {
    match why {
        // An end user has nothing but the token.
        Reason::Expired | Reason::JwtInvalid | Reason::JwtAudience => Reason::CredentialExpired,
        _ => Reason::CertificateRevoked,
    }
}

fn known_custom(custom: &Custom) -> Option<&CustomPolicies> {
    custom.as_ref().map(|custom| &***custom)
}

/// The end of what a provider would have to be asked about that wasn't: it has begun, and may have sent its body.
fn not_asked(held: &Held, policy: PolicyRef) -> Ended {
    let detail =
        "a CUSTOM policy or its provider, which was another or not there when this began, is to be asked"
            .to_owned();
    policy_changed(held, None, policy, Some(detail))
}

fn policy_changed(held: &Held, why: Option<Reason>, policy: PolicyRef, detail: Option<String>) -> Ended {
    let config: Arc<ConfigFacts> = Arc::clone(&held.config);
    let after = held.published.elapsed();
    let cut = Cut { config, policy, why, after };
    Ended { reason: Reason::PolicyChanged, detail: detail.map(Into::into), cut: Some(Box::new(cut)) }
}
