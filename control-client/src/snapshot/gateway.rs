//! A Gateway as the proxy that serves it gets it.

use std::net::IpAddr;
use std::sync::Arc;

use super::{ObjectIndex, PemObject, RouteRule};

/// The Gateway that this proxy serves.
#[derive(Debug, Clone, PartialEq)]
pub struct Gateway {
    /// The object.
    pub object: ObjectIndex,
    /// `spec.addresses`: where to listen; empty: on every interface.
    pub addresses: Vec<IpAddr>,
    /// Listeners of one port agree in whether they have TLS, and no two of them have the same host name.
    pub listeners: Vec<GatewayListener>,
}

/// One of `spec.listeners`, with what is attached to it.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewayListener {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// The server name (HTTPS) or host (HTTP) that it is for: lower case, `*.` in front for a suffix; `None`: any.
    pub hostname: Option<String>,
    /// HTTPS. `None`: HTTP.
    pub tls: Option<Arc<ListenerTls>>,
    /// Routes by host. Names are all different.
    pub hosts: Vec<VirtualHost>,
}

/// What a listener shows that terminates TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenerTls {
    /// A certificate.
    Certificates {
        /// Certificate with intermediates, and its key. Never empty: a client gets the first that fits what it asks for.
        pairs: Vec<(PemObject, PemObject)>,
        /// Whether clients get tickets, by which they resume a session.
        tickets: bool,
    },
    /// None that can be used, and why: handshakes are refused.
    Unusable(String),
}

/// What is attached to a listener for one host.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualHost {
    /// As [`GatewayListener::hostname`]; never wider than that.
    pub hostname: Option<String>,
    /// In no particular order: the proxy sorts by precedence.
    pub routes: Vec<RouteRule>,
}
