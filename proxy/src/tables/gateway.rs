//! The Gateway that this proxy serves: its ports, their listeners, and the routes of each.

use std::net::IpAddr;
use std::sync::Arc;

use control_client::snapshot::{self, ListenerTls};

use super::hosts::Hosts;
use super::regexes::Regexes;
use super::routes::{RouteAttributes, Routes, Rule};
use super::{CompileError, known_backend};
use crate::decision::PolicyRef;

/// A Gateway.
#[derive(Debug)]
pub struct Gateway {
    /// The object.
    pub policy: PolicyRef,
    /// Where to listen; empty: on every interface.
    pub addresses: Box<[IpAddr]>,
    /// Sorted by port.
    pub ports: Box<[GatewayPort]>,
}

/// A port of a Gateway, with one listener or more.
#[derive(Debug)]
pub struct GatewayPort {
    /// Its number.
    pub port: u16,
    /// Whether connections begin with TLS that ends here.
    pub tls: bool,
    listeners: Hosts<Option<GatewayListener>>,
}

/// What is served by one name.
#[derive(Debug)]
pub struct GatewayListener {
    /// `gateway.namespace/listener`, as records name what was asked.
    pub name: Arc<str>,
    /// Nothing that it serves is behind it: it only says where to look instead.
    pub only_redirects: bool,
    /// What it shows; `None`: plaintext.
    pub tls: Option<Arc<ListenerTls>>,
    hosts: Hosts<Routes>,
}

/// Where a request to a Gateway goes.
#[derive(Debug, Clone, Copy)]
pub enum GatewayChoice<'t> {
    /// By a rule of a route.
    Rule(&'t GatewayListener, &'t Rule),
    /// The listener has no route for it; `None`: no listener is for this host.
    NoRoute(Option<&'t GatewayListener>),
    /// The server name of the connection chose one listener, and the host would choose another.
    Misdirected(&'t GatewayListener),
}

impl Gateway {
    pub(super) fn compile(
        policy: &snapshot::Policy,
        gateway: &snapshot::Gateway,
        regexes: &mut Regexes,
    ) -> Result<Self, CompileError> {
        let mut numbers: Vec<u16> = gateway.listeners.iter().map(|each| each.port).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut port = |port: u16| {
            let mut compiled = GatewayPort { port, tls: false, listeners: Hosts::default() };
            for each in gateway.listeners.iter().filter(|each| each.port == port) {
                let listener = GatewayListener::compile(policy, gateway, each, regexes)?;
                compiled.tls |= listener.tls.is_some();
                *compiled.listeners.entry(each.hostname.as_deref()) = Some(listener);
            }
            Ok(compiled)
        };
        Ok(Self {
            policy: PolicyRef::from_object(Some(gateway.object)),
            addresses: gateway.addresses.as_slice().into(),
            ports: numbers.into_iter().map(&mut port).collect::<Result<_, CompileError>>()?,
        })
    }

    /// A port, if there is a listener of it.
    pub fn port(&self, port: u16) -> Option<&GatewayPort> {
        let at = self.ports.binary_search_by_key(&port, |each| each.port).ok()?;
        self.ports.get(at)
    }
}

impl GatewayPort {
    /// The listener for a name: the server name of a ClientHello, or the host of a request in plaintext.
    pub fn listener(&self, name: &str) -> Option<&GatewayListener> {
        self.listeners.find(name, Option::as_ref)
    }

    /// Where a request goes. `server_name`: of the TLS that it came by.
    pub fn route(
        &self,
        server_name: Option<&str>,
        host: &str,
        request: &RouteAttributes<'_>,
    ) -> GatewayChoice<'_> {
        let by_host = self.listener(host);
        let listener = match self.tls {
            false => by_host,
            true => self.listener(server_name.unwrap_or_default()),
        };
        let Some(listener) = listener else { return GatewayChoice::NoRoute(None) };
        // A connection is for the names of its listener alone (RFC 9110 section 7.4, RFC 9113 section 9.1.2).
        if by_host.is_some_and(|by_host| !std::ptr::eq(by_host, listener)) {
            return GatewayChoice::Misdirected(listener);
        }
        let rule = listener.hosts.find(host, |routes| routes.find(request));
        rule.map_or(GatewayChoice::NoRoute(Some(listener)), |rule| GatewayChoice::Rule(listener, rule))
    }
}

impl GatewayListener {
    fn compile(
        policy: &snapshot::Policy,
        gateway: &snapshot::Gateway,
        listener: &snapshot::GatewayListener,
        regexes: &mut Regexes,
    ) -> Result<Self, CompileError> {
        let object = policy.objects.get(gateway.object as usize);
        let name = match object {
            Some(object) => format!("{}.{}/{}", object.name, object.namespace, listener.name),
            None => listener.name.clone(),
        };
        let mut hosts = Hosts::default();
        let mut only_redirects = !listener.hosts.is_empty();
        for host in &listener.hosts {
            for backend in host.routes.iter().flat_map(|rule| &rule.backends).filter_map(|each| each.backend)
            {
                known_backend(policy, backend, &name)?;
            }
            let routes = Routes::compile(&name, &host.routes, &policy.objects, regexes)?;
            only_redirects &= routes.only_redirect();
            *hosts.entry(host.hostname.as_deref()) = routes;
        }
        Ok(Self { name: name.into(), only_redirects, tls: listener.tls.clone(), hosts })
    }
}
