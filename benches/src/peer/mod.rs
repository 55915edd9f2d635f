//! The proxies under comparison, each as the same pair: caller -> outbound -> mutual TLS -> inbound -> application.

mod bare;
mod envoy;
mod writ;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;

use crate::child::Child;
use crate::load::{Protocol, Request, ask};
use crate::world::{World, free_address};

/// Allowed by the policy.
pub const ALLOWED: Request =
    Request { authority: "ratings:9080", path: "/ratings/1", tenant: Some("blue"), token: None };
/// Refused: the header rule does not hold.
const NO_TENANT: Request = Request { tenant: None, ..ALLOWED };
/// Refused: the path rule does not hold.
pub const OTHER_PATH: Request = Request { path: "/admin", ..ALLOWED };
/// Shares of the two versions, in percent.
const WEIGHTS: [u8; 2] = [90, 10];

/// A proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// This project.
    Writ,
    /// Envoy, by a static bootstrap.
    Envoy,
    /// The floor: hyper, rustls, a pool.
    Bare,
}

impl Peer {
    /// As tables name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Writ => "Writ",
            Self::Envoy => "Envoy",
            Self::Bare => "bare hyper",
        }
    }

    /// Whether it decides anything.
    const fn has_policy(self) -> bool {
        !matches!(self, Self::Bare)
    }
}

/// What the pair is set up for.
#[derive(Debug, Clone, Copy)]
pub struct PairSpec {
    /// Spoken on every hop.
    pub protocol: Protocol,
    /// A record of each request to a file, by both proxies.
    pub records: bool,
    /// AuthorizationPolicies at the inbound proxy, the one that allows included. Other peers than Writ have the one.
    pub policies: usize,
    /// Requests carry a token of the end user, about whom policies ask. Of Writ alone.
    pub tokens: bool,
}

impl PairSpec {
    /// A request as it is sent to such a pair.
    pub fn as_sent(self, request: Request, world: &World) -> Request {
        Request { token: self.tokens.then_some(world.issuer.token), ..request }
    }
}

/// Starts a TLS listener of `peer` that asks for no client certificate, and gives session tickets or none.
pub fn server_only(peer: Peer, world: &World, tickets: bool, dir: &Path) -> Result<(Child, SocketAddr)> {
    let listen = free_address(Ipv4Addr::LOCALHOST)?;
    let server = match peer {
        Peer::Writ => writ::start_server_only(world, listen, tickets, dir)?,
        Peer::Envoy => envoy::start_server_only(world, listen, tickets, dir)?,
        Peer::Bare => bare::start_server_only(world, listen, tickets, dir)?,
    };
    Ok((server, listen))
}

/// Addresses of a pair.
#[derive(Debug, Clone, Copy)]
struct Ports {
    outbound: SocketAddr,
    /// Mutual TLS, by version. Addresses differ as those of two pods do.
    inbound: [SocketAddr; 2],
    applications: [SocketAddr; 2],
}

/// A running pair.
#[derive(Debug)]
pub struct Pair {
    /// The caller's proxy.
    pub outbound: Child,
    /// The application's proxy, for both versions.
    pub inbound: Child,
    /// Plaintext, for the caller.
    pub entry: SocketAddr,
    /// Mutual TLS, for the outbound proxy.
    pub mtls_entry: SocketAddr,
    /// Files with a line for each request, when records are on.
    pub records: Vec<PathBuf>,
}

impl Pair {
    /// Starts both proxies of `peer` and sees that they do what the policy says.
    pub async fn start(peer: Peer, world: &World, spec: PairSpec, dir: &Path) -> Result<Self> {
        let ports = Ports {
            outbound: free_address(Ipv4Addr::LOCALHOST)?,
            inbound: [free_address(Ipv4Addr::new(127, 0, 0, 2))?, free_address(Ipv4Addr::new(127, 0, 0, 3))?],
            applications: [world.v1.address, world.v2.address],
        };
        let mut pair = match peer {
            Peer::Writ => writ::start(world, spec, ports, dir)?,
            Peer::Envoy => envoy::start(world, spec, ports, dir)?,
            Peer::Bare => bare::start(world, spec, ports, dir)?,
        };
        pair.until_ready(spec, world).await.with_context(|| format!("{}: start", peer.name()))?;
        if peer.has_policy() {
            pair.check_policy(spec, world).await.with_context(|| format!("{}: policy", peer.name()))?;
        }
        Ok(pair)
    }

    /// The first 200 says that listeners, configuration and both hops are there.
    async fn until_ready(&mut self, spec: PairSpec, world: &World) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let answer = ask(self.entry, spec.protocol, spec.as_sent(ALLOWED, world)).await;
            self.outbound.ensure_running()?;
            self.inbound.ensure_running()?;
            match answer {
                Ok(200) => return Ok(()),
                answer if Instant::now() > deadline => bail!(
                    "not ready after 30 s; last answer: {answer:?}\noutbound log:\n{}\ninbound log:\n{}",
                    self.outbound.log_tail(),
                    self.inbound.log_tail()
                ),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// A proxy that allows everything would win every comparison.
    async fn check_policy(&self, spec: PairSpec, world: &World) -> Result<()> {
        let [allowed, no_tenant, other_path] =
            [ALLOWED, NO_TENANT, OTHER_PATH].map(|each| spec.as_sent(each, world));
        // Without its token.
        let nobody = (ALLOWED, if spec.tokens { 403 } else { 200 });
        for (request, expected) in [(allowed, 200), (no_tenant, 403), (other_path, 403), nobody] {
            let status = ask(self.entry, spec.protocol, request).await?;
            ensure!(status == expected, "{request:?} was answered {status}, the policy says {expected}");
        }
        Ok(())
    }
}
