//! Memory: what an idle inbound proxy holds, and what each idle mutual TLS connection adds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::child::{Child, raise_open_files};
use crate::load::{Protocol, encode, exchange};
use crate::peer::{ALLOWED, Pair, PairSpec, Peer};
use crate::world::World;
use crate::{pki, tls};

/// The slope is taken between these, so that what a process needs once does not count.
const FEW: usize = 500;
const MANY: usize = 3_500;
/// Memory is read this long after the last request, when work behind the answers has ended.
const SETTLE: Duration = Duration::from_secs(2);

/// A row for each peer.
pub async fn run(world: &World, peers: &[Peer], title: &str) -> Result<String> {
    raise_open_files(2 * MANY as u64 + 1_000)?;
    let mut text = format!("## {title}\n\n| | idle, MiB | per idle connection, KiB |\n|---|---:|---:|\n");
    for peer in peers {
        let dir = world.run_directory(*peer)?;
        let row = match measure(world, *peer, &dir).await {
            Ok(Memory { idle, per_connection }) => {
                format!("{:.1} | {:.1}", idle / (1024.0 * 1024.0), per_connection / 1024.0)
            }
            Err(error) => format!("failed: {error:#} |"),
        };
        world.discard(&dir);
        eprintln!("  {}: {row}", peer.name());
        text += &format!("| {} | {row} |\n", peer.name());
    }
    text += &format!(
        "\nResident memory of the inbound proxy: after the first requests, and its slope from {FEW} to {MANY} mutual \
         TLS connections that are idle after one HTTP/1.1 request each.\n\n"
    );
    Ok(text)
}

/// Bytes.
struct Memory {
    idle: f64,
    per_connection: f64,
}

async fn measure(world: &World, peer: Peer, dir: &std::path::Path) -> Result<Memory> {
    let spec = PairSpec { protocol: Protocol::Http1, records: true, policies: 1, tokens: false };
    let mut pair = Pair::start(peer, world, spec, dir).await?;
    let idle = settled(&mut pair.inbound).await?;
    let config = tls::client(&world.pki.client, pki::SERVER, Protocol::Http1)?;
    let mut connections = Vec::with_capacity(MANY);
    open(&mut connections, FEW, pair.mtls_entry, &config).await?;
    let few = settled(&mut pair.inbound).await?;
    open(&mut connections, MANY, pair.mtls_entry, &config).await?;
    let many = settled(&mut pair.inbound).await?;
    Ok(Memory { idle, per_connection: (many - few) / (MANY - FEW) as f64 })
}

async fn settled(child: &mut Child) -> Result<f64> {
    tokio::time::sleep(SETTLE).await;
    child.ensure_running()?;
    Ok(child.resident_bytes()? as f64)
}

/// Opens connections up to `count`, one after the other: memory of handshakes side by side is not the question.
async fn open(
    connections: &mut Vec<TlsStream<TcpStream>>,
    count: usize,
    target: SocketAddr,
    config: &Arc<ClientConfig>,
) -> Result<()> {
    let connector = TlsConnector::from(config.clone());
    let request = encode(ALLOWED);
    let mut scratch = Vec::new();
    while connections.len() < count {
        let stream = TcpStream::connect(target).await.context("connect")?;
        stream.set_nodelay(true)?;
        let mut stream =
            connector.connect(ServerName::try_from("mesh.invalid")?, stream).await.context("TLS")?;
        let status = exchange(&mut stream, &request, &mut scratch).await?;
        anyhow::ensure!(status == 200, "connection {} was answered {status}", connections.len() + 1);
        connections.push(stream);
    }
    Ok(())
}
