//! The straight line of a request. `handle` answers and records; `forward` decides, a line a stage.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;

use ::http::{Method, Request, Response, StatusCode};

use super::consult;
use super::recorded::{RecordedBody, counted, grpc_status};
use super::serve_h1::{CanUpgrade, Partial};
use super::streams::Stream;
use super::{attempt, edge, limit, reply, rewrite, sanitize, vouched};
use control_client::snapshot::BackendIndex;

use crate::body::Body;
use crate::clock;
use crate::decision::{PolicyRef, Reason, Stage};
use crate::error::Reject;
use crate::generation::Held;
use crate::jwt::{Outcome, Tokens, Verified};
use crate::live::{self, Asked, Kept, Place};
use crate::memory::{Memory, Splits};
use crate::peer::Peer;
use crate::sample;
use crate::stages::{self, Application, Target};
use crate::tables::{
    self, Filters, ProviderPhase, RequestAttributes, RouteAttributes, RouteChoice, Rule, ServicePortId,
    UserAttributes,
};
use crate::telemetry::{Record, Side};
use crate::worker::Worker;

/// The straight line as one connection sees it: its worker, its caller, and where its requests want to go.
pub struct Line {
    /// The worker that serves the connection.
    pub worker: Rc<Worker>,
    /// The connection as it is open there.
    pub connection: Rc<live::Connection>,
    /// Who is calling.
    pub peer: Rc<Peer>,
    /// Where requests want to go.
    pub target: Target,
}

/// An answer to come.
pub type Answer = Pin<Box<dyn Future<Output = Response<RecordedBody>>>>;

/// Where a request goes, as decided.
pub enum Chosen<'t> {
    /// The local application, for this end user.
    Application(Application, Option<Rc<Verified>>),
    /// A backend of a service, by a rule's choice or by default; through a Gateway for this end user.
    Backend(&'t tables::Backend, Option<Choice<'t>>, Option<Rc<Verified>>),
    /// An address as it is: a pod's own, or one that no service owns.
    Address(SocketAddr),
}

impl Chosen<'_> {
    /// The end user, where that is known.
    pub fn user(&self) -> Option<&UserAttributes> {
        match self {
            Self::Application(_, user) | Self::Backend(_, _, user) => {
                user.as_deref().map(|user| &*user.attributes)
            }
            Self::Address(_) => None,
        }
    }
}

/// What a rule's split chose.
#[derive(Clone, Copy)]
pub struct Choice<'t> {
    /// The rule.
    pub rule: &'t Rule,
    /// Its backendRef.
    pub backend: &'t tables::RuleBackend,
}

impl<'t> Choice<'t> {
    /// Header edits: the rule's, then the backendRef's.
    pub fn filters(&self) -> [&'t Filters; 2] {
        [&self.rule.filters, &self.backend.filters]
    }
}

impl Line {
    /// The line of a connection.
    pub fn of(worker: &Rc<Worker>, peer: Peer, target: Target) -> Rc<Self> {
        let connection = worker.live.connection(peer, live::Carries::Requests);
        Rc::new(Self { worker: Rc::clone(worker), peer: Rc::clone(&connection.peer), connection, target })
    }

    /// The whole life of a request. `forward` decides; this function only answers and records.
    ///
    /// Boxed here, around the request where it lies: as an `async fn` it would hold it twice, and move it as often.
    ///
    /// `stream` is the HTTP/2 stream that it comes by.
    pub fn handle(self: Rc<Self>, mut request: Request<Body>, stream: Option<Rc<Stream>>) -> Answer {
        Box::pin(async move {
            let held = self.worker.current.get();
            let mut record = Record::begin(&self.worker.shard, &held.config, &self.peer.facts);
            asked(&mut record, &request);
            let grpc = reply::is_grpc(request.headers());
            let head = request.method() == Method::HEAD;
            record.upload = counted(request.body_mut(), stream, &held);
            record.begun();
            let (mut response, place) = match self.forward(&held, &mut request, &mut record).await {
                Ok((response, place)) => (response, Some(place)),
                Err(reject) => (refused(&reject, grpc, &mut record), None),
            };
            if head || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
                *response.body_mut() = Body::Empty;
            }
            answered(&mut record, &response);
            // Emitted when the body ends, fails or is dropped.
            response.map(|body| RecordedBody::new(body, record).at(place))
        })
    }

    /// Decides, sends, and gives the response: each stage writes down what it decided before the next one runs.
    async fn forward(
        &self,
        held: &Held,
        request: &mut Request<Body>,
        record: &mut Record,
    ) -> Result<(Response<Body>, Place), Reject> {
        let chosen = match self.decide(held, request, record) {
            Ok(decided) => decided?,
            // Boxed: the other requests must not carry the place of this wait.
            Err(waits) => Box::pin(self.decide_when_answered(waits, held, request, record)).await?,
        };
        let asked = asked_of(&chosen, held, request, record);
        let place = self.worker.live.place(&self.connection, held, asked);
        rewrite::request(&chosen, request, record);
        let switchable = request.extensions().get::<CanUpgrade>().is_some();
        let sending = attempt::send(&self.worker, self.target, &chosen, request, record);
        let sent = place.during(sending).await;
        let mut response = sent.unwrap_or_else(|ended| Err(ended.reject(record)))?;
        final_answer(response.status(), switchable)?;
        rewrite::response(&chosen, record, &mut response);
        Ok((response, place))
    }

    /// Decides, and says so to whoever samples what is decided. `Err`: somebody has to be asked first.
    fn decide<'t>(
        &self,
        held: &'t Held,
        request: &mut Request<Body>,
        record: &mut Record,
    ) -> Result<Result<Chosen<'t>, Reject>, Waits<'t>> {
        let sampler = self.worker.sampler.as_ref();
        let sampled = sampler.and_then(|to| to.request(record, self.target.destination(), request));
        match decide(self, held, request, record) {
            Ok(Decided::Now(chosen)) => Ok(self.decided(Ok(chosen), sampled, record)),
            Err(reject) => Ok(self.decided(Err(reject), sampled, record)),
            Ok(Decided::Asks(whom)) => Err(Waits { whom, sampled }),
        }
    }

    /// Decides with what those say who have to be asked.
    async fn decide_when_answered<'t>(
        &self,
        Waits { whom, sampled }: Waits<'t>,
        held: &'t Held,
        request: &mut Request<Body>,
        record: &mut Record,
    ) -> Result<Chosen<'t>, Reject> {
        let decided = decide_asking(self, whom, held, request, record).await;
        self.decided(decided, sampled, record)
    }

    /// Deciding ends here.
    fn decided<'t>(
        &self,
        decided: Result<Chosen<'t>, Reject>,
        sampled: Option<sample::Chosen>,
        record: &mut Record,
    ) -> Result<Chosen<'t>, Reject> {
        record.policy_us = stages::micros(record.started.elapsed());
        if let (Some(sampler), Some(sampled)) = (&self.worker.sampler, sampled) {
            sampler.decided(sampled, record, decided.as_ref().err());
        }
        decided
    }

    /// The record and answer of what is not a request: a parse error, or a head that never came.
    pub fn refuse(&self, reject: &Reject, partial: Partial) -> Response<RecordedBody> {
        let mut record = self.begin_without_request("HTTP/1.1");
        record.path = partial.path.map(Rc::from);
        record.method = partial.method;
        let response = refused(reject, false, &mut record);
        answered(&mut record, &response);
        response.map(|body| RecordedBody::new(body, record))
    }

    /// The record of an HTTP/2 connection whose client broke the protocol. One that merely left asked nothing that has no
    /// record of its own.
    pub fn broken(&self, error: &hyper::Error) {
        if !error.is_incomplete_message() && io_error(error).is_none() {
            self.malformed_h2(error_chain(error).into());
        }
    }

    /// The record of a request that the HTTP/2 library refused below us (RFC 9113 section 8.1.1).
    pub fn refused_stream(&self) {
        self.malformed_h2("not a request: the stream was reset with PROTOCOL_ERROR".into());
    }

    fn malformed_h2(&self, detail: Box<str>) {
        self.refused_h2(&Reject::because(Stage::Sanitize, Reason::MalformedRequest, detail));
    }

    /// The record of an HTTP/2 connection that is ended for what its client gives up.
    pub fn flooded(&self) {
        let why = "the client resets its requests before an answer: half of 500 or more";
        self.refused_h2(&Reject::because(Stage::Admit, Reason::Overloaded, why));
    }

    fn refused_h2(&self, reject: &Reject) {
        let mut record = self.begin_without_request("HTTP/2");
        stages::ended(reject, &mut record);
    }

    /// A record with what is settled before any request: the checks of the connection.
    fn begin_without_request(&self, protocol: &'static str) -> Box<Record> {
        let held = self.worker.current.get();
        let mut record = Record::begin(&self.worker.shard, &held.config, &self.peer.facts);
        record.protocol = protocol;
        // The connection may have been refused as well; what ends the record is said by who asks for it.
        let _ = stages::admit(&self.peer, &held, &mut record);
        record
    }
}

fn io_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e std::io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref() {
            return Some(io);
        }
        if let Some(io) = error.downcast_ref::<h2::Error>().and_then(h2::Error::get_io) {
            return Some(io);
        }
        next = error.source();
    }
    None
}

fn error_chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", error_chain(source)),
        None => error.to_string(),
    }
}

impl super::serve_h1::Handler for Rc<Line> {
    type Body = RecordedBody;

    fn handle(&self, request: Request<Body>) -> Answer {
        Line::handle(Rc::clone(self), request, None)
    }

    fn refuse(&self, reject: Reject, partial: Partial) -> Response<RecordedBody> {
        Line::refuse(self, &reject, partial)
    }

    fn is_ended(&self, body: &RecordedBody) -> bool {
        body.is_ended()
    }

    fn untaken(&self, body: &mut RecordedBody) {
        body.untaken();
    }
}

/// What deciding comes to.
enum Decided<'t> {
    /// Nobody had to be asked.
    Now(Chosen<'t>),
    /// Somebody has to.
    Asks(Whom<'t>),
}

/// Who has to be asked before a request can be decided.
enum Whom<'t> {
    /// Services that count, by RateLimits.
    Limiters(Vec<limit::Question<'t>>),
    /// A provider, by a CUSTOM policy.
    Provider,
    /// An issuer, where a token is signed by a key that is not known.
    Issuer(Outcome),
    /// Services that count for this user.
    LimitersOfUser(Outcome, Vec<limit::Question<'t>>),
}

/// A decision that waits.
struct Waits<'t> {
    whom: Whom<'t>,
    sampled: Option<sample::Chosen>,
}

/// Every decision about a request, up to where nothing more can be decided without asking; `explain` runs the same, but asks
/// nobody.
fn decide<'t>(
    line: &Line,
    held: &'t Held,
    request: &mut Request<Body>,
    record: &mut Record,
) -> Result<Decided<'t>, Reject> {
    enter(&line.peer, line.target, held, request, record)?;
    let questions = limit::before_authentication(line, held, request, record)?;
    if !questions.is_empty() {
        return Ok(Decided::Asks(Whom::Limiters(questions)));
    }
    if stages::may_consult(line.target, held) {
        return Ok(Decided::Asks(Whom::Provider));
    }
    let user = user(line.target, held, &line.worker.tokens, request, record);
    if matches!(user, Outcome::Asking(..)) {
        return Ok(Decided::Asks(Whom::Issuer(user)));
    }
    let questions = limit::after_authentication(line, &user, held, request, record)?;
    if !questions.is_empty() {
        return Ok(Decided::Asks(Whom::LimitersOfUser(user, questions)));
    }
    choose(&line.peer, line.target, held, user, request, record, &line.worker.memory).map(Decided::Now)
}

/// The decisions that are left, in their order, with what those say who are asked.
async fn decide_asking<'t>(
    line: &Line,
    whom: Whom<'t>,
    held: &'t Held,
    request: &mut Request<Body>,
    record: &mut Record,
) -> Result<Chosen<'t>, Reject> {
    let tokens = &line.worker.tokens;
    let consults = stages::may_consult(line.target, held);
    let (mut user, questions) = match whom {
        Whom::Issuer(asking) => (asking, None),
        Whom::LimitersOfUser(user, questions) => (user, Some(questions)),
        earlier @ (Whom::Limiters(_) | Whom::Provider) => {
            if let Whom::Limiters(questions) = earlier {
                limit::ask(line, questions, held, request, record).await?;
            }
            if consults {
                let phase = ProviderPhase::BeforeAuthentication;
                consult::request(phase, line, None, held, request, record).await?;
            }
            (self::user(line.target, held, tokens, request, record), None)
        }
    };
    if let Outcome::Asking(_, unknown) = user {
        unknown.refetch.done().await;
        user = self::user(line.target, held, tokens, request, record);
    }
    let questions = match questions {
        Some(questions) => questions,
        None => limit::after_authentication(line, &user, held, request, record)?,
    };
    limit::ask(line, questions, held, request, record).await?;
    let chosen = choose(&line.peer, line.target, held, user, request, record, &line.worker.memory)?;
    if consults {
        consult_last(line, chosen.user(), held, request, record).await?;
    }
    Ok(chosen)
}

/// What comes before anything is asked about the request: the connection's checks, and one meaning.
pub fn enter(
    peer: &Peer,
    target: Target,
    held: &Held,
    request: &mut Request<Body>,
    record: &mut Record,
) -> Result<(), Reject> {
    stages::admit(peer, held, record)?;
    sanitize::request(request, held.tables.mesh())?;
    vouched::request(peer, target, held, request);
    if let Target::Application(_) = target {
        let port = held.tables.inbound_port(record.connection.destination.port());
        record.service = port.and_then(|port| port.service.clone());
    }
    if target.is_decided_here() {
        record.remote = remote(peer, held, request).map(Box::new);
    }
    Ok(())
}

/// Providers that are asked last, about what everything else allows.
async fn consult_last(
    line: &Line,
    user: Option<&UserAttributes>,
    held: &Held,
    request: &mut Request<Body>,
    record: &mut Record,
) -> Result<(), Reject> {
    let phase = ProviderPhase::AfterAuthorization;
    if consult::request(phase, line, user, held, request, record).await? {
        // What is forwarded is what was authorized: a provider can't loosen what others deny.
        authorize(&line.peer, held, user, request, record, &line.worker.memory)?;
    }
    stages::consulted(record);
    Ok(())
}

/// Who the end user is; outbound that is the server's to ask.
pub fn user(
    target: Target,
    held: &Held,
    tokens: &Tokens,
    request: &mut Request<Body>,
    record: &Record,
) -> Outcome {
    let rules = held.tables.authentication();
    if rules.is_empty() || !target.is_decided_here() {
        return Outcome::NotAsked;
    }
    tokens.authenticate(rules, request, clock::seconds(record.time))
}

/// Every other decision about a request, without any I/O.
pub fn choose<'t>(
    peer: &Peer,
    target: Target,
    held: &'t Held,
    user: Outcome,
    request: &Request<Body>,
    record: &mut Record,
    memory: &Memory,
) -> Result<Chosen<'t>, Reject> {
    match target {
        Target::Application(application) => inbound(peer, application, held, user, request, record, memory),
        Target::Destination(address) => outbound(Some(address), held, request, record, &memory.splits),
        Target::Pod(address) => Ok(Chosen::Address(stages::to_pod(&mut record.decision, address))),
        Target::Authority(_) => outbound(None, held, request, record, &memory.splits),
        Target::Gateway(local) => edge::choose(peer, local.port(), held, user, request, record, memory),
    }
}

/// To the local application, whose policies decide.
fn inbound<'t>(
    peer: &Peer,
    application: Application,
    held: &'t Held,
    user: Outcome,
    request: &Request<Body>,
    record: &mut Record,
    memory: &Memory,
) -> Result<Chosen<'t>, Reject> {
    let user = authorize_user(peer, held, user, request, record, memory)?;
    if request.method() == Method::CONNECT {
        return Err(Reject::because(Stage::Route, Reason::NoRoute, "CONNECT to a workload"));
    }
    Ok(Chosen::Application(application, user))
}

/// Who the end user is, where that is known and may do what is asked, by the policies of the workload.
pub(super) fn authorize_user(
    peer: &Peer,
    held: &Held,
    user: Outcome,
    request: &Request<Body>,
    record: &mut Record,
    memory: &Memory,
) -> Result<Option<Rc<Verified>>, Reject> {
    let user = stages::authenticate(record, user)?;
    let attributes = user.as_deref().map(|user| &*user.attributes);
    authorize(peer, held, attributes, request, record, memory)?;
    Ok(user)
}

/// Who may do what, by the policies of the workload.
fn authorize(
    peer: &Peer,
    held: &Held,
    user: Option<&UserAttributes>,
    request: &Request<Body>,
    record: &mut Record,
    memory: &Memory,
) -> Result<(), Reject> {
    let attributes = attributes(request, record, user);
    let authorization = held.tables.authorize(&peer.admission(held).remainder, &attributes);
    record.considered = stages::consider(peer, held, memory, &authorization, Some(&attributes));
    stages::authorize(record, authorization)
}

/// What authorization looks at, of a request.
pub fn attributes<'r>(
    request: &'r Request<Body>,
    record: &Record,
    user: Option<&'r UserAttributes>,
) -> RequestAttributes<'r> {
    RequestAttributes {
        method: request.method().as_str(),
        host: host(request, record.connection.side),
        path: request.uri().path(),
        headers: request.headers(),
        remote_ip: Some(record.remote.as_deref().copied().unwrap_or(record.connection.source.ip())),
        user,
    }
}

/// The host that policies look at. At a Gateway that is without the port, which is the caller's choice.
fn host(request: &Request<Body>, side: Side) -> Option<&str> {
    let authority = sanitize::authority(request)?;
    match side {
        Side::Gateway => sanitize::without_port(authority),
        Side::Inbound | Side::Outbound => Some(authority),
    }
}

/// What later policies are to be asked of a request that goes on.
fn asked_of(chosen: &Chosen<'_>, held: &Held, request: &Request<Body>, record: &Record) -> Asked {
    match (chosen, record.connection.side) {
        (Chosen::Application(_, user), _) | (Chosen::Backend(_, _, user), Side::Gateway) => {
            let attributes = attributes(request, record, chosen.user());
            Asked::Request(Kept { user: user.clone(), ..kept(&attributes, held, record) })
        }
        // No service owns it, unless it is a workload's own.
        (Chosen::Address(address), _) if record.decision.reason == Reason::NoPolicy => {
            Asked::Outside(*address)
        }
        (Chosen::Address(_) | Chosen::Backend(..), _) => Asked::Nothing,
    }
}

/// What of a request later policies may look at. Its texts are those of the record, where they are the same.
fn kept(attributes: &RequestAttributes<'_>, held: &Held, record: &Record) -> Kept {
    let shared = |text: &str, known: Option<&Rc<str>>| match known {
        Some(known) if **known == *text => Rc::clone(known),
        _ => text.into(),
    };
    Kept {
        method: record.method.clone().unwrap_or_default(),
        host: attributes.host.map(|host| shared(host, record.authority.as_ref())),
        path: shared(attributes.path, record.path.as_ref()),
        headers: held.header_names.keep(attributes.headers),
        names: Rc::clone(&held.header_names),
        remote_ip: attributes.remote_ip,
        forwarders: Rc::clone(&held.forwarders),
        user: None,
        asks_users: !held.tables.authentication().rules.is_empty(),
        custom: held.custom.clone(),
    }
}

/// The client behind a caller whose word about it is believed; `None`: the caller is the client.
fn remote(peer: &Peer, held: &Held, request: &Request<Body>) -> Option<IpAddr> {
    let forwarded = || held.tables.forwarders().client(request.headers());
    let forwarded = if peer.admission(held).speaks_for { forwarded() } else { None };
    forwarded.or(peer.facts.proxied)
}

/// To a service: which route, which backend. Who may do what is the server's side to decide.
fn outbound<'t>(
    address: Option<SocketAddr>,
    held: &'t Held,
    request: &Request<Body>,
    record: &mut Record,
    splits: &Splits,
) -> Result<Chosen<'t>, Reject> {
    let Some(id) = service(address, held, request) else {
        return unknown(address, held, request, record);
    };
    let port = held.tables.service_port(id);
    record.service = Some(port.name.clone());
    if request.method() == Method::CONNECT && address.is_none() {
        // What is inside a tunnel is not ours to match.
        return Ok(to_backend(port.backend, held, record));
    }
    match held.tables.match_route(id, &route_attributes(request)) {
        RouteChoice::Rule(rule) => {
            if let Some(redirect) = rule.filters.redirect() {
                return Err(edge::redirected(rule, redirect, request, record));
            }
            record.decision.allow(Stage::Route, Reason::DecidedByServer, rule.policy);
            let (backend, choice) = split(rule, held, record, splits)?;
            Ok(Chosen::Backend(backend, Some(choice), None))
        }
        RouteChoice::Default(backend) => Ok(to_backend(backend, held, record)),
        RouteChoice::NoRoute => {
            record.decision.deny(Stage::Route, Reason::NoRoute, PolicyRef::NONE);
            Err(Reject::new(Stage::Route, Reason::NoRoute))
        }
    }
}

/// What routes look at, of a request.
pub(super) fn route_attributes(request: &Request<Body>) -> RouteAttributes<'_> {
    RouteAttributes {
        method: request.method(),
        path: request.uri().path(),
        query: request.uri().query(),
        headers: request.headers(),
    }
}

/// To the service's own backend: no route decides.
fn to_backend<'t>(backend: BackendIndex, held: &'t Held, record: &mut Record) -> Chosen<'t> {
    record.decision.allow(Stage::Route, Reason::DecidedByServer, PolicyRef::NONE);
    let backend = held.tables.backend(backend);
    record.backend = Some(backend.name.clone());
    Chosen::Backend(backend, None, None)
}

/// The service port that an address, or else an authority, names.
fn service(address: Option<SocketAddr>, held: &Held, request: &Request<Body>) -> Option<ServicePortId> {
    if let Some(address) = address
        && let Some(id) = held.tables.service_by_address(address.ip().to_canonical(), address.port())
    {
        return Some(id);
    }
    let (host, port) = sanitize::split_authority(sanitize::authority(request)?)?;
    // Behind an address that no service owns, the authority counts only if the port is that service's.
    let port = address.map(|address| address.port()).or(port).unwrap_or(80);
    let by_name = held.tables.service_by_authority(host, port);
    by_name.or_else(|| {
        // Who goes by the authority alone goes to a service by its address as well.
        let literal = if address.is_none() { host.parse().ok() } else { None };
        held.tables.service_by_address(literal?, port)
    })
}

/// The backend whose turn it is.
pub(super) fn split<'t>(
    rule: &'t Rule,
    held: &'t Held,
    record: &mut Record,
    splits: &Splits,
) -> Result<(&'t tables::Backend, Choice<'t>), Reject> {
    record.decision.route = rule.policy;
    let Some(choice) = splits.choose(rule) else {
        let names: Vec<&str> = rule.backends.iter().map(|backend| &*backend.name).collect();
        let why = match names.is_empty() {
            true => "the rule has no backendRef".to_owned(),
            false => format!("no backendRef has a weight of more than 0: {}", names.join(", ")),
        };
        return Err(nowhere(rule, why, record));
    };
    let chosen = &rule.backends[choice];
    record.weight = Some((chosen.weight, u32::try_from(rule.split.total()).unwrap_or(u32::MAX)));
    record.backend = Some(chosen.name.clone());
    match chosen.backend {
        Some(index) => Ok((held.tables.backend(index), Choice { rule, backend: chosen })),
        None => Err(nowhere(rule, format_args!("backendRef {} does not resolve", chosen.name), record)),
    }
}

/// A rule whose turn goes to no backend refuses, as one that is not there does.
pub(super) fn nowhere(rule: &Rule, why: impl fmt::Display, record: &mut Record) -> Reject {
    record.decision.deny(Stage::Split, Reason::InvalidBackend, rule.policy);
    Reject::because(Stage::Split, Reason::InvalidBackend, why)
}

/// A destination that no service owns.
fn unknown<'t>(
    address: Option<SocketAddr>,
    held: &Held,
    request: &Request<Body>,
    record: &mut Record,
) -> Result<Chosen<'t>, Reject> {
    let literal = || {
        let (host, port) = sanitize::split_authority(sanitize::authority(request)?)?;
        let ip = host.parse::<IpAddr>().ok()?.to_canonical();
        // What nobody vouches for is not sent to a service by another of its ports.
        (!held.tables.has_address(ip)).then(|| SocketAddr::new(ip, port.unwrap_or(80)))
    };
    let known = stages::unknown(address.or_else(literal), held, &mut record.decision);
    known.map(Chosen::Address).map_err(|reject| {
        let named = sanitize::authority(request).and_then(sanitize::split_authority);
        let other_ports = named.and_then(|(host, port)| {
            let port = address.map(|address| address.port()).or(port).unwrap_or(80);
            held.tables.lacks_port(host, port)
        });
        match other_ports {
            Some(why) => Reject::because(reject.stage, reject.reason, why),
            None => reject,
        }
    })
}

/// What was asked, before anything can fail.
pub fn asked(record: &mut Record, request: &Request<Body>) {
    record.protocol = match request.version() {
        ::http::Version::HTTP_2 => "HTTP/2",
        ::http::Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    };
    record.method = Some(request.method().clone());
    record.authority = sanitize::authority(request).map(Into::into);
    record.path = Some(request.uri().path().into());
    if let Body::Full(Some(bytes)) = request.body() {
        record.request_bytes = bytes.len() as u64;
    }
    trace(record, request);
}

/// The caller's trace, from a valid W3C `traceparent`; the previous hop's record, from a verified peer.
fn trace(record: &mut Record, request: &Request<Body>) {
    if let Some(parent) = request.headers().get("traceparent").and_then(|value| value.to_str().ok()) {
        record.trace = traceparent(parent);
    }
    if record.connection.side == Side::Inbound && record.connection.source_identity.is_some() {
        record.previous = request
            .headers()
            .get(reply::DECISION_ID)
            .and_then(|id| id.to_str().ok())
            .and_then(|id| ulid::Ulid::from_string(id).ok())
            .map(|id| id.0);
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, ids not zero (W3C Trace Context section 3.2).
fn traceparent(text: &str) -> Option<(u128, u64)> {
    if !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-')) {
        return None;
    }
    let mut fields = text.split('-');
    let (version, trace, span, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if (version.len(), trace.len(), span.len(), flags.len()) != (2, 32, 16, 2) || version == "ff" {
        return None;
    }
    let ids = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
    (ids.0 != 0 && ids.1 != 0).then_some(ids)
}

/// The answer to a rejection, written down.
pub fn refused(reject: &Reject, grpc: bool, record: &mut Record) -> Response<Body> {
    stages::ended(reject, record);
    let mut response = reply::reply(reject, grpc, record.id);
    if let Some(asked) = record.asked.as_deref_mut() {
        if let Some(answer) = asked.answer.take() {
            reply::tell(&answer, grpc, &mut response);
        }
        reply::tell_quota(asked.quota.as_ref(), response.headers_mut());
    }
    response
}

/// An interim response is no answer, and a switch of protocols is one only where the caller's connection can be switched.
fn final_answer(status: StatusCode, switchable: bool) -> Result<(), Reject> {
    if status.is_informational() && !(switchable && status == StatusCode::SWITCHING_PROTOCOLS) {
        let why = format_args!("the response has status {status}, which answers no such request");
        return Err(Reject::because(Stage::Send, Reason::BadResponse, why));
    }
    Ok(())
}

fn answered(record: &mut Record, response: &Response<Body>) {
    record.status = response.status().as_u16();
    record.grpc_status = grpc_status(response.headers());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_must_be_whole() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(
            traceparent(good),
            Some((0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7))
        );
        for bad in [
            "",
            "00-1-1-1",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        ] {
            assert_eq!(traceparent(bad), None, "{bad}");
        }
    }

    fn future_size<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// With the request that it works on this stays below one KiB, up to which the allocator is quickest.
    #[test]
    fn a_request_under_way_stays_small() {
        let size = future_size(Line::forward);
        assert!(size <= 640, "{size}");
    }
}
