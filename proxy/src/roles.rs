//! Roles are lists of listeners: data, not copies of code.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::telemetry::Side;

/// What the proxy stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Role {
    /// Stand beside one workload: outbound and inbound.
    Sidecar,
    /// Stand at the edge: the listeners and routes of a Gateway.
    Gateway,
    /// Serve local work: outbound by authority on loopback, and forwards.
    Standalone,
}

impl Role {
    /// The word in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Gateway => "gateway",
            Self::Standalone => "standalone",
        }
    }
}

/// An address, a side, and how the destination of an accepted connection is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    /// Which way it faces.
    pub side: Side,
    /// Where its connections want to go.
    pub destination: Destination,
}

impl Listener {
    /// The flag or object that asked for it.
    pub const fn flag(&self) -> &'static str {
        match (self.destination, self.side) {
            (Destination::Fixed(_), _) => "--forward",
            (Destination::Routed, _) => "Gateway",
            (Destination::Original, Side::Outbound) => "--outbound",
            (Destination::Original, _) => "--inbound",
        }
    }
}

/// How the destination of an accepted connection is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// By redirection rules: SO_ORIGINAL_DST. Inbound, a connection without one is refused; outbound it is routed by authority.
    Original,
    /// Always this address: `--forward LISTEN=APP`.
    Fixed(SocketAddr),
    /// By the routes of a Gateway.
    Routed,
}

/// `--forward LISTEN=APP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The local application.
    pub app: SocketAddr,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (listen, app) =
            text.split_once('=').ok_or("expected LISTEN=APP, for instance 0.0.0.0:19080=127.0.0.1:9080")?;
        let parse = |text: &str| {
            text.parse::<SocketAddr>().map_err(|error| format!("{text:?} is not an ADDRESS:PORT: {error}"))
        };
        Ok(Self { listen: parse(listen)?, app: parse(app)? })
    }
}

/// `--outbound`, `--inbound`, ...: a port (on both families), an address, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// Closed.
    Off,
    /// A port on IPv4 and IPv6: loopback or any, as the listener's kind says.
    Port(u16),
    /// Just here.
    At(SocketAddr),
}

impl FromStr for Open {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        if let Ok(port) = text.parse() {
            return Ok(Self::Port(port));
        }
        text.parse()
            .map(Self::At)
            .map_err(|_| format!("{text:?} is neither a port, nor ADDRESS:PORT, nor `off`"))
    }
}

impl Open {
    /// The addresses to bind, on loopback or on every interface.
    pub fn addresses(self, loopback: bool) -> Vec<SocketAddr> {
        match self {
            Self::Off => Vec::new(),
            Self::At(address) => vec![address],
            Self::Port(port) if loopback => {
                vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
            }
            // One socket takes both families (`net::socket::listen`).
            Self::Port(port) => vec![(Ipv6Addr::UNSPECIFIED, port).into()],
        }
    }
}

/// The listeners of a role.
pub fn listeners(role: Role, outbound: Open, inbound: Open, forwards: &[Forward]) -> Vec<Listener> {
    let mut listeners = Vec::new();
    let mut add = |addresses: Vec<SocketAddr>, side| {
        for address in addresses {
            listeners.push(Listener { address, side, destination: Destination::Original });
        }
    };
    match role {
        Role::Sidecar => {
            add(outbound.addresses(true), Side::Outbound);
            add(inbound.addresses(false), Side::Inbound);
        }
        Role::Standalone => add(outbound.addresses(true), Side::Outbound),
        // They come and go with the Gateway's own: `listen::Ports`.
        Role::Gateway => {}
    }
    listeners.extend(forwards.iter().map(|forward| Listener {
        address: forward.listen,
        side: Side::Inbound,
        destination: Destination::Fixed(forward.app),
    }));
    listeners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_listens_on_both_families() {
        let listeners = listeners(Role::Sidecar, Open::Port(15001), Open::Port(15006), &[]);
        let addresses: Vec<_> = listeners.iter().map(|l| l.address.to_string()).collect();
        assert_eq!(addresses, ["127.0.0.1:15001", "[::1]:15001", "[::]:15006"]);
    }

    #[test]
    fn forwards_and_ports_are_read() {
        let forward: Forward = "0.0.0.0:19080=127.0.0.1:9080".parse().unwrap();
        assert_eq!(forward.app, "127.0.0.1:9080".parse().unwrap());
        assert!("19080".parse::<Forward>().unwrap_err().contains("LISTEN=APP"));
        assert_eq!("off".parse(), Ok(Open::Off));
        assert!("http".parse::<Open>().is_err());
    }
}
