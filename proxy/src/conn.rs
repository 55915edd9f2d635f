//! `accept -> detect -> terminate -> admit -> serve`, ending in one match: http or tcp.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use control_client::snapshot::{MtlsMode, Protocol};
use tokio::io::AsyncRead;
use tokio::net::TcpStream;

use crate::decision::{PolicyRef, Reason, Stage};
use crate::drain::{Guard, Phase};
use crate::error::Reject;
use crate::generation::Held;
use crate::http::pipeline::Line;
use crate::http::serve;
use crate::io::{Io, TlsStream};
use crate::live;
use crate::net::{self, Detected, Prefixed};
use crate::peer::Peer;
use crate::roles::{Destination, Listener};
use crate::stages::{self, Application, Target};
use crate::tcp;
use crate::telemetry::{ConnectionFacts, Record, Side};
use crate::tls::{Alpn, PeerTls};
use crate::worker::Worker;

/// What a connection turned out to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carries {
    Http1,
    Http2,
    /// Opaque bytes; `tls` when they began as a ClientHello that is not ours to end.
    Tcp(&'static str),
    /// Nothing yet: the client waits for the server, it seems.
    Silence,
}

/// Serves one accepted connection to its end. Whatever happens, what was asked of it leaves a record.
pub async fn serve(
    worker: Rc<Worker>,
    listener: Listener,
    socket: TcpStream,
    source: SocketAddr,
    guard: Guard,
) {
    let _open = worker.shard.connection(listener.side);
    let arrival = Arrival {
        worker,
        side: listener.side,
        source: net::socket::canonical(source),
        guard,
        proxied: Cell::new(None),
    };
    // Each step is boxed, so that a connection which waits, as most do, holds none but the one it waits in.
    let mut ready = Box::pin(arrival.look(listener, socket)).await;
    while let Some(Ready { io, peer, target, carries }) = ready.take() {
        let worker = &arrival.worker;
        match carries {
            Carries::Http1 => serve::http1(io, Line::of(worker, peer, target)).await,
            Carries::Http2 => Box::pin(serve::http2(io, Line::of(worker, peer, target))).await,
            Carries::Tcp(protocol) => {
                let connection = worker.live.connection(peer, live::Carries::Bytes);
                Box::pin(tcp::serve(io, worker, &connection, target, protocol)).await;
            }
            Carries::Silence => {
                // A client that was taken for silent and speaks is looked at again.
                let silent = Box::pin(tcp::server_first(io, worker, peer, target)).await;
                ready = match (silent, target) {
                    (Some((Io::Plain(io), _)), _) => Box::pin(arrival.look_at(io, target)).await,
                    (Some((Io::Tls(io), peer)), Target::Application(application)) => {
                        Box::pin(arrival.look_within(io, peer, application)).await
                    }
                    _ => None,
                };
            }
        }
    }
}

/// One accepted connection, before it is known what it carries.
struct Arrival {
    worker: Rc<Worker>,
    side: Side,
    source: SocketAddr,
    guard: Guard,
    /// What the PROXY protocol header said, once it was read.
    proxied: Cell<Option<Proxied>>,
}

/// For whom a connection was opened, if its header named someone.
type Proxied = Option<IpAddr>;

/// A connection that can be served.
struct Ready {
    io: Io,
    peer: Peer,
    target: Target,
    carries: Carries,
}

impl Arrival {
    /// Finds out where a connection wants to go, and what it carries. `None`: it was refused, and recorded.
    async fn look(&self, listener: Listener, socket: TcpStream) -> Option<Ready> {
        let original = net::socket::original_dst(&socket);
        let local = socket.local_addr().map_or(listener.address, net::socket::canonical);
        let leads_back = |to| self.worker.own.leads_back(to);
        let target = match (listener.side, listener.destination, original) {
            (Side::Inbound, Destination::Fixed(address), _) => {
                Target::Application(Application { address, intercepted: false })
            }
            (Side::Inbound, Destination::Original, Some(address)) if !leads_back(address) => {
                Target::Application(Application { address, intercepted: true })
            }
            (Side::Outbound, _, Some(address)) if !leads_back(address) => Target::Destination(address),
            (Side::Gateway, ..) => Target::Gateway(local),
            (Side::Outbound, _, None) => Target::Authority(local),
            // Without a destination, or to ourselves.
            (_, _, to) => {
                let why = "not redirected here by interception rules, or to the proxy's own port";
                let facts = self.facts(to.unwrap_or(local), None);
                self.refused(&facts, "tcp", &Reject::because(Stage::Accept, Reason::LoopDetected, why));
                return None;
            }
        };
        self.look_at(Prefixed::new(Bytes::new(), socket), target).await
    }

    /// As [`Arrival::look`], of a connection whose target is known.
    async fn look_at(&self, io: Prefixed<TcpStream>, target: Target) -> Option<Ready> {
        match target {
            Target::Application(application) => self.inbound(io, application).await,
            Target::Destination(destination) | Target::Pod(destination) => {
                self.outbound(io, destination).await
            }
            Target::Authority(local) => self.by_authority(io, local).await,
            Target::Gateway(local) => self.at_gateway(io, local).await,
        }
    }

    /// To this workload.
    async fn inbound(&self, mut io: Prefixed<TcpStream>, application: Application) -> Option<Ready> {
        let destination = application.address;
        let held = self.worker.current.get();
        let forwarders = held.tables.forwarders();
        if self.proxied.get().is_none()
            && forwarders.expects_proxy_header(destination.port(), self.source.ip())
        {
            io = Box::pin(self.proxy_header(io, destination)).await?;
        }
        let mode = held.tables.peer_mode(destination.port()).mode;
        let declared = declared(&held, application);
        let first_byte = match (mode, declared) {
            (_, declared) if is_http(declared) => self.worker.deadlines.idle,
            (MtlsMode::Strict, _) => self.worker.deadlines.handshake,
            _ => self.worker.deadlines.detect,
        };
        let facts = self.facts(destination, None);
        let (io, detected) = self.detect(io, first_byte, &facts).await?;
        if let Detected::Tls(hello) = &detected
            && self.terminates(mode, hello, declared)
        {
            return self.terminate(io, application).await;
        }
        let carries = self.carries(&detected, declared, &facts)?;
        // TLS that passes through is the application's own; under STRICT what comes is refused when it is admitted.
        if mode != MtlsMode::Strict && carries != Carries::Tcp("tls") {
            self.worker.shard.plaintext(destination.port());
        }
        let peer = Peer::new(facts, None, None);
        Some(Ready { io: Io::Plain(io), peer, target: Target::Application(application), carries })
    }

    /// Takes the header that a balancer puts in front of what its client sends. `None`: refused, and recorded.
    async fn proxy_header(
        &self,
        io: Prefixed<TcpStream>,
        destination: SocketAddr,
    ) -> Option<Prefixed<TcpStream>> {
        match net::proxy_header(io, self.worker.deadlines.handshake).await {
            Ok((io, proxied)) => {
                self.proxied.set(Some(proxied));
                Some(io)
            }
            Err(error) => {
                let reject = Reject::because(Stage::Detect, Reason::NotDetected, error);
                self.refused(&self.facts(destination, None), "tcp", &reject);
                None
            }
        }
    }

    /// Whether a ClientHello is for this proxy to answer (semantics, PeerAuthentication).
    /// What could not be read might have been: a TLS stack refuses it, and no application gets it as plaintext.
    fn terminates(&self, mode: MtlsMode, hello: &net::ClientHello, declared: Option<Protocol>) -> bool {
        let opaque = is_opaque(declared);
        let mesh = || hello.alpn.iter().any(|protocol| protocol.starts_with(b"istio"));
        self.worker.server_tls.is_some()
            && match mode {
                MtlsMode::Strict => true,
                MtlsMode::Permissive => mesh() || !hello.understood && !opaque,
                MtlsMode::Disable => false,
            }
    }

    /// Ends our own TLS.
    async fn terminate(&self, io: Prefixed<TcpStream>, application: Application) -> Option<Ready> {
        let destination = application.address;
        let tls = self.worker.server_tls.as_ref()?;
        let accepted = match tls.accept(io, self.worker.deadlines.handshake).await {
            Ok(accepted) => accepted,
            Err(reject) => {
                self.refused(&self.facts(destination, None), "tls", &reject);
                return None;
            }
        };
        let own = self.worker.identity.as_ref().map(|identity| identity.id());
        let peer =
            Peer::new(self.facts(destination, Some(&accepted.peer)), own.as_ref(), Some(&accepted.peer));
        let io = Prefixed::new(Bytes::new(), accepted.stream);
        let declared = declared(&self.worker.current.get(), application);
        let carries = match accepted.alpn {
            _ if is_opaque(declared) => Carries::Tcp("tcp"),
            Alpn::Http1 => Carries::Http1,
            Alpn::Http2 => Carries::Http2,
            Alpn::Tcp if !is_http(declared) => Carries::Tcp("tcp"),
            Alpn::None | Alpn::Tcp => return self.look_within(io, peer, application).await,
        };
        Some(Ready { io: Io::Tls(io), peer, target: Target::Application(application), carries })
    }

    /// Finds out what a connection carries within our TLS, of whose protocol the handshake said nothing.
    async fn look_within(
        &self,
        io: Prefixed<TlsStream>,
        peer: Peer,
        application: Application,
    ) -> Option<Ready> {
        let declared = declared(&self.worker.current.get(), application);
        let deadlines = &self.worker.deadlines;
        let first_byte = if is_http(declared) { deadlines.idle } else { deadlines.detect };
        let (io, detected) = self.detect(io, first_byte, &peer.facts).await?;
        let carries = self.carries(&detected, declared, &peer.facts)?;
        Some(Ready { io: Io::Tls(io), peer, target: Target::Application(application), carries })
    }

    /// From this workload, to where it wanted to go.
    async fn outbound(&self, io: Prefixed<TcpStream>, destination: SocketAddr) -> Option<Ready> {
        let held = self.worker.current.get();
        let service = held.tables.service_by_address(destination.ip(), destination.port());
        let port = service.map(|id| held.tables.service_port(id));
        let declared = port.and_then(|port| port.protocol);
        let routed = port.is_some_and(|port| port.has_routes());
        let peer = Peer::new(self.facts(destination, None), None, None);
        let is_pod = || self.worker.registry.endpoint_at(destination.ip()).is_some_and(|it| it.mesh_tls);
        let target = match service {
            None if is_pod() => Target::Pod(destination),
            _ => Target::Destination(destination),
        };
        let server_first = !routed && self.worker.memory.server_first.believes(destination);
        if is_opaque(declared) || server_first {
            return Some(Ready { io: Io::Plain(io), peer, target, carries: Carries::Tcp("tcp") });
        }
        let deadlines = &self.worker.deadlines;
        let first_byte = if is_http(declared) { deadlines.idle } else { deadlines.detect };
        let (io, detected) = self.detect(io, first_byte, &peer.facts).await?;
        let carries = self.carries(&detected, declared, &peer.facts)?;
        Some(Ready { io: Io::Plain(io), peer, target, carries })
    }

    /// From this workload without interception: HTTP, to wherever its authority says.
    async fn by_authority(&self, io: Prefixed<TcpStream>, local: SocketAddr) -> Option<Ready> {
        let peer = Peer::new(self.facts(local, None), None, None);
        let (io, detected) = self.detect(io, self.worker.deadlines.idle, &peer.facts).await?;
        let carries = match detected {
            Detected::Http1 => Carries::Http1,
            Detected::Http2 => Carries::Http2,
            _ => {
                let why = "without interception only HTTP can be routed, by its authority";
                self.refused(&peer.facts, "tcp", &Reject::because(Stage::Detect, Reason::NotDetected, why));
                return None;
            }
        };
        Some(Ready { io: Io::Plain(io), peer, target: Target::Authority(local), carries })
    }

    /// From outside of the mesh, to a port of the Gateway.
    async fn at_gateway(&self, mut io: Prefixed<TcpStream>, local: SocketAddr) -> Option<Ready> {
        let held = self.worker.current.get();
        if held.tables.forwarders().expects_proxy_header(local.port(), self.source.ip()) {
            io = Box::pin(self.proxy_header(io, local)).await?;
        }
        let target = Target::Gateway(local);
        if !held.tables.gateway_port(local.port()).is_some_and(|port| port.tls) {
            let facts = self.facts(local, None);
            let (io, detected) = self.detect(io, self.worker.deadlines.idle, &facts).await?;
            let carries = self.carries(&detected, Some(Protocol::Http1), &facts)?;
            return Some(Ready { io: Io::Plain(io), peer: Peer::new(facts, None, None), target, carries });
        }
        let choose = |name: &str| held.tables.gateway_port(local.port())?.listener(name)?.tls.clone();
        let tls = &self.worker.gateway_tls;
        let accepted = match tls.accept(io, self.worker.deadlines.handshake, choose).await {
            Ok(accepted) => accepted,
            Err(reject) => {
                self.refused(&self.facts(local, None), "tls", &reject);
                return None;
            }
        };
        drop(held);
        let facts = self.facts(local, Some(&accepted.peer));
        let io = Prefixed::new(Bytes::new(), accepted.stream);
        let (io, carries) = match accepted.alpn {
            Alpn::Http1 => (io, Carries::Http1),
            Alpn::Http2 => (io, Carries::Http2),
            Alpn::None | Alpn::Tcp => {
                let (io, detected) = self.detect(io, self.worker.deadlines.idle, &facts).await?;
                (io, self.carries(&detected, Some(Protocol::Http1), &facts)?)
            }
        };
        Some(Ready { io: Io::Tls(io), peer: Peer::new(facts, None, Some(&accepted.peer)), target, carries })
    }

    /// What the client speaks; `None` when it left, or the drain began before it spoke.
    async fn detect<IO: AsyncRead + Unpin>(
        &self,
        io: Prefixed<IO>,
        first_byte: Duration,
        facts: &Rc<ConnectionFacts>,
    ) -> Option<(Prefixed<IO>, Detected)> {
        let looked = tokio::select! {
            looked = net::detect(io, first_byte, self.worker.deadlines.handshake) => looked,
            () = self.guard.reached(Phase::Draining) => return None,
        };
        match looked {
            Ok((_, Detected::Closed)) => {
                let gone =
                    Reject::because(Stage::Detect, Reason::ClientClosed, "the client left without a byte");
                self.refused(facts, "tcp", &gone);
                None
            }
            Ok((io, detected)) => Some((io.flatten(), detected)),
            Err(error) => {
                let gone = Reject::because(Stage::Detect, Reason::ClientClosed, error);
                self.refused(facts, "tcp", &gone);
                None
            }
        }
    }

    /// What to serve; `None` after a refusal.
    fn carries(
        &self,
        detected: &Detected,
        declared: Option<Protocol>,
        facts: &Rc<ConnectionFacts>,
    ) -> Option<Carries> {
        let (http, opaque) = (is_http(declared), is_opaque(declared));
        let (reason, why) = match detected {
            Detected::Http1 if !opaque => return Some(Carries::Http1),
            Detected::Http2 if !opaque => return Some(Carries::Http2),
            Detected::Silent if !http => return Some(Carries::Silence),
            Detected::Tls(_) if !http => return Some(Carries::Tcp("tls")),
            Detected::Http1 | Detected::Http2 | Detected::Opaque if !http => {
                return Some(Carries::Tcp("tcp"));
            }
            Detected::Stalled if opaque => return Some(Carries::Tcp("tcp")),
            Detected::Stalled => (Reason::NotDetected, "began like HTTP and stalled"),
            Detected::Silent => (Reason::ClientStalled, "no request came"),
            _ => (Reason::NotDetected, "the port is declared to speak HTTP, and this is not"),
        };
        self.refused(facts, "tcp", &Reject::because(Stage::Detect, reason, why));
        None
    }

    fn facts(&self, destination: SocketAddr, tls: Option<&PeerTls>) -> Rc<ConnectionFacts> {
        Rc::new(ConnectionFacts {
            proxied: self.proxied.get().flatten(),
            proxy_header: (self.side != Side::Outbound).then(|| self.proxied.get().is_some()),
            source_identity: tls.and_then(|tls| tls.identity.as_ref()).map(|id| id.to_shared()),
            tls: tls.map(|tls| tls.evidence.clone()),
            certificate: tls.and_then(|tls| tls.certificate.clone()),
            ..ConnectionFacts::new(self.side, self.source, destination)
        })
    }

    /// The record of a connection that ended before it was served.
    fn refused(&self, facts: &Rc<ConnectionFacts>, protocol: &'static str, reject: &Reject) {
        let held: Rc<Held> = self.worker.current.get();
        let mut record = Record::begin(&self.worker.shard, &held.config, facts);
        record.protocol = protocol;
        if self.side == Side::Outbound || facts.tls.is_some() {
            // What is settled by now; before a handshake, nothing is about the caller.
            let _ = stages::admit(&Peer::new(Rc::clone(facts), None, None), &held, &mut record);
        }
        record.decision.deny(reject.stage, reject.reason, PolicyRef::NONE);
        stages::charge(&mut record.decision, reject.stage, reject.reason);
        record.ended = Some((reject.stage, reject.reason));
        record.detail = reject.detail.clone();
    }
}

/// What the port of an application is declared to speak.
fn declared(held: &Held, application: Application) -> Option<Protocol> {
    held.tables.inbound_port(application.address.port()).and_then(|port| port.protocol)
}

fn is_opaque(declared: Option<Protocol>) -> bool {
    matches!(declared, Some(Protocol::Tcp | Protocol::Tls))
}

fn is_http(declared: Option<Protocol>) -> bool {
    matches!(declared, Some(Protocol::Http1 | Protocol::Http2 | Protocol::Grpc))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_size<A, B, C, D, E, F>(_: impl FnOnce(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    /// What every connection costs, the one that sleeps among them. The numbers change on purpose only.
    #[test]
    fn a_connection_stays_small() {
        let size = future_size(serve);
        assert!(size <= 1536, "{size}");
    }
}
