//! Handshakes: what one costs a server, by group, alone and mutual, and mutual with a chain that was never seen before.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use fips::ca::{Authority, Profile};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, NamedGroup, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};
use tokio_rustls::TlsConnector;

use crate::child::Child;
use crate::load::Protocol;
use crate::measure::Timing;
use crate::peer::{self, Pair, PairSpec, Peer};
use crate::report::median;
use crate::scenario::Plan;
use crate::world::World;
use crate::{pki, tls};

/// Handshakes in progress at once.
const CONCURRENT: usize = 8;

/// Who proves what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The server alone, which gives session tickets.
    ServerTickets,
    /// The server alone, without any.
    Server,
    /// Both, by the same certificates every time.
    Mutual,
    /// Both, the client by a certificate of its own for every handshake.
    MutualFresh,
}

/// One row.
#[derive(Debug, Clone, Copy)]
struct Case {
    kind: Kind,
    group: NamedGroup,
    peer: Peer,
}

impl Case {
    fn label(self) -> String {
        let kind = match self.kind {
            Kind::ServerTickets => "server only, with tickets",
            Kind::Server => "server only",
            Kind::Mutual => "mutual, same chain",
            Kind::MutualFresh => "mutual, new chain each",
        };
        format!("{kind} | {:?} | {}", self.group, self.peer.name())
    }
}

/// The figures of one repetition.
#[derive(Debug, Clone, Copy)]
struct Sample {
    cpu_us: f64,
    rate: f64,
    failures: u64,
}

/// Repetition by repetition, case by case; a table with ratios to the peers of the same kind and group.
pub async fn run(world: &World, plan: &Plan, peers: &[Peer], title: &str) -> Result<String> {
    let mut rows = Vec::new();
    for kind in [Kind::ServerTickets, Kind::Server, Kind::Mutual, Kind::MutualFresh] {
        for group in [NamedGroup::X25519, NamedGroup::X25519MLKEM768] {
            rows.extend(peers.iter().map(|peer| (Case { kind, group, peer: *peer }, Ok(Vec::new()))));
        }
    }
    for repetition in 1..=plan.repetitions {
        for (case, result) in &mut rows {
            let Ok(samples) = result else { continue };
            let measured = measure(world, *case, plan.timing).await;
            match &measured {
                Ok(sample) => eprintln!(
                    "  {repetition}/{} {}: {:.1} us CPU/handshake, {:.0}/s",
                    plan.repetitions,
                    case.label(),
                    sample.cpu_us,
                    sample.rate
                ),
                Err(error) => eprintln!("  {repetition}/{} {}: {error:#}", plan.repetitions, case.label()),
            }
            match measured {
                Ok(sample) => samples.push(sample),
                Err(error) => *result = Err(error),
            }
        }
    }
    Ok(table(title, &rows))
}

async fn measure(world: &World, case: Case, timing: Timing) -> Result<Sample> {
    let dir = world.run_directory(case.peer)?;
    let sample = measure_in(world, case, timing, &dir).await;
    world.discard(&dir);
    sample
}

async fn measure_in(world: &World, case: Case, timing: Timing, dir: &Path) -> Result<Sample> {
    let config = config(world, case)?;
    if matches!(case.kind, Kind::Server | Kind::ServerTickets) {
        let tickets = case.kind == Kind::ServerTickets;
        let (mut server, address) = peer::server_only(case.peer, world, tickets, dir)?;
        return load(&mut server, address, &config, timing).await;
    }
    let spec = PairSpec { protocol: Protocol::Http1, records: true, policies: 1, tokens: false };
    let mut pair = Pair::start(case.peer, world, spec, dir).await?;
    load(&mut pair.inbound, pair.mtls_entry, &config, timing).await
}

/// What the client offers: the one group, and whom it proves to be.
fn config(world: &World, case: Case) -> Result<ClientConfig> {
    let mut provider = (*fips::provider()).clone();
    provider.kx_groups.retain(|group| group.name() == case.group);
    ensure!(!provider.kx_groups.is_empty(), "no such group here: {:?}", case.group);
    let mut config = tls::client_by(Arc::new(provider), &world.pki.client, pki::SERVER, Protocol::Http1)?;
    if case.kind == Kind::MutualFresh {
        config.client_auth_cert_resolver = Arc::new(Fresh(world.pki.authority.clone()));
    }
    Ok(config)
}

/// A certificate of the same workload for every handshake, at the cost of the load's core.
#[derive(Debug)]
struct Fresh(Arc<Authority>);

impl Fresh {
    fn issue(&self) -> Result<CertifiedKey> {
        let issued = self.0.issue(&Profile::workload(pki::CLIENT, pki::LIFETIME))?;
        let chain = vec![CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes())?;
        Ok(CertifiedKey::from_der(chain, key, &fips::provider())?)
    }
}

impl ResolvesClientCert for Fresh {
    /// None of it fails but for want of randomness; then the server refuses, and the handshake counts as failed.
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.issue().ok().map(Arc::new)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What the generator has done so far.
#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    failed: AtomicU64,
    stopping: AtomicBool,
}

async fn load(
    server: &mut Child,
    address: SocketAddr,
    config: &ClientConfig,
    timing: Timing,
) -> Result<Sample> {
    until_ready(server, address, config).await?;
    let counts = Arc::new(Counts::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("load".into()).spawn({
        let (counts, config) = (counts.clone(), config.clone());
        move || LocalSet::new().block_on(&runtime, generate(address, config, counts))
    })?;
    tokio::time::sleep(timing.warm_up).await;
    let reading = |server: &Child| -> Result<_> {
        Ok((server.cpu_time()?, counts.done.load(Ordering::Relaxed), std::time::Instant::now()))
    };
    let before = reading(server)?;
    tokio::time::sleep(timing.measured).await;
    let after = reading(server)?;
    counts.stopping.store(true, Ordering::Relaxed);
    thread.join().map_err(|_| anyhow!("the load generator panicked"))?;
    server.ensure_running()?;
    let handshakes = (after.1 - before.1) as f64;
    ensure!(handshakes > 0.0, "no handshake was completed");
    Ok(Sample {
        cpu_us: (after.0 - before.0).as_secs_f64() * 1e6 / handshakes,
        rate: handshakes / (after.2 - before.2).as_secs_f64(),
        failures: counts.failed.load(Ordering::Relaxed),
    })
}

async fn until_ready(server: &mut Child, address: SocketAddr, config: &ClientConfig) -> Result<()> {
    let connector = TlsConnector::from(Arc::new(config.clone()));
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        match shake_hands(address, &connector).await {
            Ok(()) => return Ok(()),
            Err(error) if std::time::Instant::now() > deadline => {
                return Err(error.context(format!("not ready after 30 s\n{}", server.log_tail())));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        server.ensure_running()?;
    }
}

async fn generate(address: SocketAddr, config: ClientConfig, counts: Arc<Counts>) {
    let connector = TlsConnector::from(Arc::new(config));
    let one_after_the_other = |connector: TlsConnector, counts: Arc<Counts>| async move {
        while !counts.stopping.load(Ordering::Relaxed) {
            match shake_hands(address, &connector).await {
                Ok(()) => counts.done.fetch_add(1, Ordering::Relaxed),
                Err(_) => counts.failed.fetch_add(1, Ordering::Relaxed),
            };
        }
    };
    let all: Vec<_> = (0..CONCURRENT)
        .map(|_| spawn_local(one_after_the_other(connector.clone(), counts.clone())))
        .collect();
    for one in all {
        // A panic would show as a generator that did nothing.
        let _ = one.await;
    }
}

/// Connects, shakes hands, says goodbye, and waits for the server's: by then it has verified what it was shown, which a
/// client of TLS 1.3 is not told otherwise.
async fn shake_hands(address: SocketAddr, connector: &TlsConnector) -> Result<()> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    stream.set_nodelay(true)?;
    let mut stream = connector.connect(ServerName::try_from("mesh.invalid")?, stream).await?;
    stream.shutdown().await?;
    let mut rest = Vec::new();
    // A refusal is an error here. Some servers end without a goodbye of their own.
    match stream.read_to_end(&mut rest).await {
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => Err(error.into()),
        _ => Ok(()),
    }
}

fn table(title: &str, rows: &[(Case, Result<Vec<Sample>>)]) -> String {
    let cpu = |samples: &[Sample]| median(samples, |sample| sample.cpu_us);
    let of = |like: Case, peer: Peer| {
        rows.iter().find_map(|(case, result)| match result {
            Ok(samples) if (case.kind, case.group, case.peer) == (like.kind, like.group, peer) => {
                Some(cpu(samples))
            }
            _ => None,
        })
    };
    let mut text = format!(
        "## {title}\n\n| who proves | group | | CPU us/handshake | spread | handshakes/s | failed | x Envoy | x bare hyper |\n\
         |---|---|---|---:|---:|---:|---:|---:|---:|\n"
    );
    for (case, result) in rows {
        let Ok(samples) = result else {
            text += &format!("| {} | failed |\n", case.label());
            continue;
        };
        let ratio =
            |peer| of(*case, peer).map_or(String::new(), |other| format!("{:.2}", cpu(samples) / other));
        let least = samples.iter().map(|sample| sample.cpu_us).fold(f64::INFINITY, f64::min);
        let most = samples.iter().map(|sample| sample.cpu_us).fold(0.0, f64::max);
        text += &format!(
            "| {} | {:.1} | {least:.1} to {most:.1} | {:.0} | {} | {} | {} |\n",
            case.label(),
            cpu(samples),
            median(samples, |sample| sample.rate),
            samples.iter().map(|sample| sample.failures).sum::<u64>(),
            ratio(Peer::Envoy),
            ratio(Peer::Bare),
        );
    }
    text + &format!(
        "\nTLS 1.3 over fresh connections, {CONCURRENT} at a time, by ECDSA P-256 certificates; CPU of the server from accept to \
         close, no request. No session is resumed; with tickets means as each gives them by default: Envoy two, Writ one (and so \
         the bare server); mutual TLS has none. A new chain each time finds no cache of verified chains warm.\n\n"
    )
}
