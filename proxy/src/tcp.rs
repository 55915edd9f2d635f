//! Opaque TCP: authorized by the rules that need no request, sent to one endpoint, recorded once.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::consult;
use crate::decision::{PolicyRef, Reason, Stage};
use crate::error::Reject;
use crate::generation::Held;
use crate::io::Io;
use crate::jwt;
use crate::limit::{self, Counted};
use crate::live::{self, Asked};
use crate::memory::Memory;
use crate::net::Prefixed;
use crate::peer::{self, Peer};
use crate::stages::{self, Application, Target};
use crate::tables::{Backend, Counting, LimitPhase};
use crate::telemetry::Record;
use crate::tunnel;
use crate::upstream::{Connected, HopProtocol};
use crate::worker::Worker;

/// Serves a connection of bytes that are not ours to read. `protocol` is how the record names it: `tcp` or `tls`.
pub async fn serve(
    io: Io,
    worker: &Worker,
    connection: &Rc<live::Connection>,
    target: Target,
    protocol: &'static str,
) {
    let held = worker.current.get();
    let peer = &connection.peer;
    let mut record = Record::begin(&worker.shard, &held.config, &peer.facts);
    record.protocol = protocol;
    match Box::pin(open(worker, peer, target, &held, &mut record)).await {
        Ok(Connected { io: server, facts }) => {
            let place = worker.live.place(connection, &held, asked(target, &held, &record));
            place.leads_to(facts.proof.clone());
            drop((held, facts));
            tunnel::run(io, server, record, place, worker.deadlines.idle).await;
        }
        Err(reject) => stages::ended(&reject, &mut record),
    }
}

/// What later policies are to be asked of a connection that goes on.
fn asked(target: Target, held: &Held, record: &Record) -> Asked {
    match target {
        Target::Application(_) => Asked::Connection(held.custom.clone()),
        Target::Destination(address) if record.decision.reason == Reason::NoPolicy => Asked::Outside(address),
        Target::Destination(_) | Target::Pod(_) | Target::Authority(_) | Target::Gateway(_) => Asked::Nothing,
    }
}

/// Serves a client that has not spoken: connects, and waits for either side. Gives the connection back when the client
/// turns out to speak first after all, so that a slow ClientHello or request is never taken for opaque bytes.
pub async fn server_first(mut io: Io, worker: &Worker, peer: Peer, target: Target) -> Option<(Io, Peer)> {
    let held = worker.current.get();
    let mut record = Record::begin(&worker.shard, &held.config, &peer.facts);
    record.protocol = "tcp";
    let (mut server, proof) = match Box::pin(open(worker, &peer, target, &held, &mut record)).await {
        Ok(Connected { io, facts }) => (io, facts.proof.clone()),
        Err(reject) => {
            return refused_in_silence(io, worker, record, &reject).await.map(|io| (io, peer));
        }
    };
    let connection = worker.live.connection(peer, live::Carries::Bytes);
    let place = worker.live.place(&connection, &held, asked(target, &held, &record));
    place.leads_to(proof);
    drop(held);
    let (mut from_client, mut from_server) = (BytesMut::new(), BytesMut::new());
    let first = async {
        tokio::select! {
            biased;
            read = read_some(&mut server, &mut from_server) => First::Server(read),
            read = read_some(&mut io, &mut from_client) => First::Client(read),
        }
    };
    let waited = match place.during(timeout(worker.deadlines.idle, first)).await {
        Ok(waited) => waited,
        Err(ended) => {
            let reject = ended.reject(&mut record);
            stages::ended(&reject, &mut record);
            return None;
        }
    };
    match waited {
        Err(_) => {
            record.ended = Some((Stage::Relay, Reason::ClientStalled));
            return None;
        }
        Ok(First::Client(Ok(1..))) => {
            record.discard();
            drop(place);
            let peer = live::Connection::into_peer(connection)?;
            return Some((io.unread(from_client.freeze()), peer));
        }
        Ok(First::Server(Ok(1..))) => {
            if let Target::Destination(destination) | Target::Pod(destination) = target {
                worker.memory.server_first.note(destination);
            }
        }
        // One of them ended its half, or is gone, without a byte: the other may still have something to say.
        Ok(First::Client(_) | First::Server(_)) => {}
    }
    let server = Prefixed::new(from_server.freeze(), server);
    tunnel::run(io, server, record, place, worker.deadlines.idle).await;
    None
}

/// Who spoke first, or left.
enum First {
    Client(io::Result<usize>),
    Server(io::Result<usize>),
}

/// A silent client that may not go on as it is gets the time of a handshake to say who it is.
async fn refused_in_silence(
    mut io: Io,
    worker: &Worker,
    mut record: Box<Record>,
    reject: &Reject,
) -> Option<Io> {
    let mut from_client = BytesMut::new();
    match timeout(worker.deadlines.handshake, read_some(&mut io, &mut from_client)).await {
        Ok(Ok(1..)) => {
            record.discard();
            Some(io.unread(from_client.freeze()))
        }
        _ => {
            stages::ended(reject, &mut record);
            None
        }
    }
}

/// More than fits waits in the kernel.
const FIRST_BYTES: usize = 2048;

async fn read_some<IO: AsyncRead + Unpin>(io: &mut IO, into: &mut BytesMut) -> io::Result<usize> {
    into.reserve(FIRST_BYTES);
    io.read_buf(into).await
}

/// Where an opaque connection goes, as decided.
pub enum Chosen<'t> {
    /// The local application.
    Application(Application),
    /// The backend of the service that owns the address.
    Backend(&'t Backend),
    /// An address as it is: a pod's own, or one that no service owns.
    Address(SocketAddr),
}

/// Decides about a connection as a whole, and opens the way to the server if it may go on.
async fn open(
    worker: &Worker,
    peer: &Peer,
    target: Target,
    held: &Held,
    record: &mut Record,
) -> Result<Connected, Reject> {
    let sampled = worker.sampler.as_ref().and_then(|to| to.opaque(record, target.destination()));
    let decided = decide(worker, peer, target, held, record).await;
    if let (Some(sampler), Some(sampled)) = (&worker.sampler, sampled) {
        sampler.decided(sampled, record, decided.as_ref().err());
    }
    let hop = match decided? {
        Chosen::Application(application) => Ok(stages::to_application(worker, application, HopProtocol::Tcp)),
        Chosen::Backend(backend) => worker.upstream.pick(backend, HopProtocol::Tcp, &[]),
        Chosen::Address(address) => stages::to_address(worker, address, HopProtocol::Tcp),
    };
    let hop = hop.inspect_err(|reject| stages::charge_hop(&mut record.decision, reject))?;
    stages::connect(worker, &hop, record).await
}

/// Every decision about an opaque connection. Nothing is awaited but providers that have to be asked.
async fn decide<'t>(
    worker: &Worker,
    peer: &Peer,
    target: Target,
    held: &'t Held,
    record: &mut Record,
) -> Result<Chosen<'t>, Reject> {
    stages::admit(peer, held, record)?;
    let limits = limits(peer, target, held, record)?;
    let questions = limit::take(held, &limits, &counted(peer), record)?;
    if !questions.is_empty() {
        Box::pin(limit::ask(worker, held, questions, record)).await?;
    }
    if stages::may_consult(target, held) {
        Box::pin(consult(worker, peer, held, record)).await?;
    }
    choose(peer, target, held, record, &worker.memory)
}

/// The same, but nobody is asked: who would be is written down, and taken to allow it.
pub fn explain(peer: &Peer, target: Target, held: &Held, record: &mut Record) -> Result<(), Reject> {
    stages::admit(peer, held, record)?;
    limit::would_take(held, &limits(peer, target, held, record)?, record);
    if stages::may_consult(target, held) {
        stages::would_ask(held.tables.consult_tcp(&peer.admission(held).remainder), held, record);
    }
    choose(peer, target, held, record, &Memory::default()).map(|_| ())
}

/// Rate limits that count an opaque connection, whatever their phase: no user is known.
fn limits<'t>(
    peer: &Peer,
    target: Target,
    held: &'t Held,
    record: &mut Record,
) -> Result<Counting<'t>, Reject> {
    match target {
        Target::Application(_) if !held.tables.rate_limits().is_empty() => {
            limit::counting(LimitPhase::BeforeAuthentication, peer, held, &counted(peer), record)
        }
        _ => Ok(Counting::new()),
    }
}

fn counted(peer: &Peer) -> Counted<'_> {
    Counted { connection: peer::attributes(&peer.facts), request: None }
}

/// Providers asked about an opaque connection, whatever their phase: nothing of it is theirs to change, and no user is
/// known.
async fn consult(worker: &Worker, peer: &Peer, held: &Held, record: &mut Record) -> Result<(), Reject> {
    let admission = peer.admission(held);
    let caller = consult::Caller { peer, user: None };
    for consultation in held.tables.consult_tcp(&admission.remainder) {
        let provider = held.tables.provider(consultation.provider);
        if let Err(reject) = consult::ask(worker, provider, consultation, caller, None, record).await {
            stages::charge_consultation(record, Some(consultation), &reject);
            return Err(reject);
        }
    }
    Ok(())
}

/// Every other decision about an opaque connection, without any I/O.
fn choose<'t>(
    peer: &Peer,
    target: Target,
    held: &'t Held,
    record: &mut Record,
    memory: &Memory,
) -> Result<Chosen<'t>, Reject> {
    match target {
        Target::Application(application) => {
            authorize(peer, held, memory, record)?;
            stages::consulted(record);
            Ok(Chosen::Application(application))
        }
        Target::Destination(address) => route(address, held, record),
        Target::Pod(address) => Ok(Chosen::Address(stages::to_pod(&mut record.decision, address))),
        // Neither has opaque connections.
        Target::Authority(_) | Target::Gateway(_) => {
            Err(Reject::because(Stage::Route, Reason::NotDetected, "opaque bytes without a destination"))
        }
    }
}

/// The checks of an opaque connection to the application.
fn authorize(peer: &Peer, held: &Held, memory: &Memory, record: &mut Record) -> Result<(), Reject> {
    let port = record.connection.destination.port();
    record.service = held.tables.inbound_port(port).and_then(|port| port.service.clone());
    // A token is of a request; an opaque connection has none.
    stages::authenticate(record, jwt::Outcome::NotAsked)?;
    let admission = peer.admission(held);
    let authorization = held.tables.authorize_tcp(&admission.remainder);
    record.considered = stages::consider(peer, held, memory, authorization, None);
    stages::authorize(record, authorization.clone())
}

/// To the backend of the service that owns the address, or to the address as it is.
fn route<'t>(address: SocketAddr, held: &'t Held, record: &mut Record) -> Result<Chosen<'t>, Reject> {
    let Some(id) = held.tables.service_by_address(address.ip(), address.port()) else {
        return stages::unknown(Some(address), held, &mut record.decision).map(Chosen::Address);
    };
    let port = held.tables.service_port(id);
    let backend = held.tables.backend(port.backend);
    record.service = Some(port.name.clone());
    record.backend = Some(backend.name.clone());
    record.decision.allow(Stage::Route, Reason::DecidedByServer, PolicyRef::NONE);
    Ok(Chosen::Backend(backend))
}
