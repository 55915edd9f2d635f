//! The ports of a Gateway: opened and closed as its listeners come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{Placement, bind_one};
use crate::generation::Published;
use crate::net::OwnListeners;
use crate::roles::{Destination, Listener};
use crate::tables::Gateway;
use crate::telemetry::Side;

/// How soon a port that can't be opened is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The open ports of the Gateway that this proxy serves.
pub struct Ports {
    placement: Arc<Placement>,
    own: Arc<OwnListeners>,
    /// Each with what closes it.
    open: BTreeMap<SocketAddr, watch::Sender<bool>>,
    /// What can't be opened, and why.
    failed: BTreeMap<SocketAddr, String>,
}

/// How the ports stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// All are open.
    Open,
    /// Some are, and why others are not.
    Partly(String),
    /// None is, and why.
    Closed(String),
}

impl Ports {
    /// None yet. `placement` hands them to the workers, `own` knows them as this proxy's.
    pub fn new(placement: Arc<Placement>, own: Arc<OwnListeners>) -> Self {
        Self { placement, own, open: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// Opens what is not open yet, and closes what `gateway` has no more.
    pub fn follow(&mut self, gateway: Option<&Gateway>) -> Standing {
        let wanted = gateway.map(addresses).unwrap_or_default();
        self.open.retain(|address, close| {
            let stays = wanted.contains(address);
            if !stays {
                // Its connections go on to their next request, which is told.
                close.send_replace(true);
                self.own.close(address.port());
                tracing::info!(%address, "a port of the Gateway is closed");
            }
            stays
        });
        let before = std::mem::take(&mut self.failed);
        for address in
            wanted.into_iter().filter(|address| !self.open.contains_key(address)).collect::<Vec<_>>()
        {
            match self.open(address) {
                Ok(close) => {
                    tracing::info!(%address, "a port of the Gateway is open");
                    self.open.insert(address, close);
                }
                Err(error) => {
                    let why = error.to_string();
                    if before.get(&address) != Some(&why) {
                        tracing::error!("{why}");
                    }
                    self.failed.insert(address, why);
                }
            }
        }
        let failed = self.failed.values().cloned().collect::<Vec<_>>().join("; ");
        match (gateway, self.open.is_empty()) {
            (None, _) => Standing::Closed("the configuration has no such Gateway".into()),
            (Some(_), true) if failed.is_empty() => {
                Standing::Closed("it has no listener that can be served".into())
            }
            (Some(_), true) => Standing::Closed(failed),
            (Some(_), false) if failed.is_empty() => Standing::Open,
            (Some(_), false) => Standing::Partly(failed),
        }
    }

    /// Where they are.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.open.keys().copied()
    }

    /// Follows what is published; `tell` hears how the ports stand.
    pub async fn run(mut self, published: Arc<Published>, tell: impl Fn(Standing)) {
        let mut moved = published.watch();
        loop {
            tell(self.follow(published.load().tables.gateway()));
            tokio::select! {
                changed = moved.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if !self.failed.is_empty() => {}
            }
        }
    }

    fn open(&self, address: SocketAddr) -> anyhow::Result<watch::Sender<bool>> {
        let listener = Listener { address, side: Side::Gateway, destination: Destination::Routed };
        let Some(socket) = bind_one(listener.flag(), address)? else {
            anyhow::bail!("{}: no IPv6 here, so nothing listens on {address}", listener.flag());
        };
        let (close, closed) = watch::channel(false);
        self.placement.open(listener, &socket, &closed)?;
        self.own.open(address.port());
        Ok(close)
    }
}

fn addresses(gateway: &Gateway) -> BTreeSet<SocketAddr> {
    let any = [IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    // One socket takes both families (`net::socket::listen`).
    let addresses = if gateway.addresses.is_empty() { &any[..] } else { &gateway.addresses };
    let of_port = |port: u16| addresses.iter().map(move |address| SocketAddr::new(*address, port));
    gateway.ports.iter().flat_map(|each| of_port(each.port)).collect()
}
