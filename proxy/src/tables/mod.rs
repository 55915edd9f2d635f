//! Policy and routes compiled for speed: immutable, pure look-ups.
//!
//! [`Tables`] are a [`snapshot::Policy`] in another form: no answer differs from reading the policy rule by rule, it is
//! only found sooner. They hold ids of live things, never the things, and know neither I/O nor time.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use control_client::snapshot::{self, BackendIndex, LimiterIndex, MtlsMode, Protocol, ProviderIndex};

use crate::decision::{Object, Objects, PolicyRef};

mod admission;
mod atom;
mod attributes;
mod authentication;
mod authorization;
mod by_atom;
mod condition;
mod consider;
mod exclusion;
mod filters;
mod forwarders;
mod gateway;
mod headers;
mod hosts;
mod index;
mod kept;
pub mod normalize;
mod pattern;
mod policies;
mod prefixes;
mod providers;
mod rate_limits;
mod reach;
mod regexes;
mod remainder;
mod routes;
mod rule;
mod services;
mod split;
mod unmatched;

pub use attributes::{ConnectionAttributes, RequestAttributes, UserAttributes, WORD_LISTS};
pub use authentication::{Authentication, Keys, Location, TokenRule};
pub use authorization::{Authorization, Consultations, Reauthorization};
pub use consider::{Considered, NearMiss};
pub use filters::{Filters, HeaderEdit, Redirect};
pub use gateway::{Gateway, GatewayChoice, GatewayListener, GatewayPort};
pub use kept::{CustomPolicies, HeaderNames, Kept, KeptHeaders, Lacking};
pub use pattern::display;
pub use providers::{Consultation, HttpCheck, Provider, ProviderProtocol};
pub use rate_limits::{
    Counting, GlobalLimit, LimitPhase, LimitsOnConnection, LocalLimit, RateLimit, RateLimiter, RateLimits,
};
pub use reach::{Answers, Open, Probe, Probed, Reach, Unknowns, principals_meant};
pub use remainder::Remainder;
pub use routes::{RouteAttributes, RouteChoice, Rule, RuleBackend};
pub use services::{Backend, ServicePort, ServicePortId};
pub use snapshot::{BackendTls, BodyInCheck, ListenerTls, Mesh, ProviderPhase, Retry};
pub use split::{Split, SplitKey, SplitState};
pub use unmatched::Unmatched;

use authorization::Authorizer;
pub use forwarders::Forwarders;
use pattern::Values;
use services::Directory;

/// A backend as the registry of live state knows it: stable over versions of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub u32);

/// One version of the policy, compiled.
#[derive(Debug)]
pub struct Tables {
    objects: Objects,
    mesh: Mesh,
    forwarding_identities: Values,
    forwarders: Arc<Forwarders>,
    default_peer_mode: PeerMode,
    /// Sorted by port.
    peer_modes: Box<[(u16, PeerMode)]>,
    /// Sorted by port.
    inbound_ports: Box<[InboundPort]>,
    authentication: Authentication,
    authorizer: Authorizer,
    refused: Box<[CompileError]>,
    gateway: Option<Gateway>,
    directory: Directory,
    service_ports: Box<[ServicePort]>,
    backends: Box<[Backend]>,
    providers: Box<[Provider]>,
    custom: Option<Arc<CustomPolicies>>,
    rate_limits: RateLimits,
    limiters: Box<[RateLimiter]>,
}

/// Whether plaintext is accepted on a port, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerMode {
    /// What is accepted.
    pub mode: MtlsMode,
    /// The PeerAuthentication that decided; NONE where the default did.
    pub policy: PolicyRef,
    /// That object could not be understood, and fails closed.
    pub quarantined: bool,
}

/// A port of this workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundPort {
    /// The workload's port.
    pub port: u16,
    /// Declared protocol; `None`: detect.
    pub protocol: Option<Protocol>,
    /// `host:port` of the service that has this port as target, as records name it.
    pub service: Option<Arc<str>>,
}

/// Why something does not compile: a mistake that the control client lets pass only by a mistake of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompileError {
    /// `HTTPRoute bookinfo/ratings`; empty where no object is to blame.
    pub object: String,
    /// Where in the object.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for CompileError {}

impl Tables {
    /// Compiles a policy; `backend_ids` are parallel to `policy.backends`. A security object that can't be compiled
    /// fails closed alone, and is named by [`Tables::refused`]; anything else is an error of the whole.
    pub fn compile(policy: &snapshot::Policy, backend_ids: &[BackendId]) -> Result<Self, CompileError> {
        if backend_ids.len() != policy.backends.len() {
            let message = format!("{} ids for {} backends", backend_ids.len(), policy.backends.len());
            return Err(CompileError { object: String::new(), field: "backends".into(), message });
        }
        let mut regexes = regexes::Regexes::default();
        let (directory, service_ports) = compile_services(policy, &mut regexes)?;
        let gateway = policy.gateway.as_ref().map(|each| Gateway::compile(policy, each, &mut regexes));
        let (authorizer, mut refused) = Authorizer::compile(policy);
        let (authentication, unread) = Authentication::compile(policy);
        refused.extend(unread);
        let (rate_limits, unread) = RateLimits::compile(policy);
        refused.extend(unread);
        let mode = |mode: snapshot::PeerMode| PeerMode {
            mode: mode.mode,
            policy: PolicyRef::from_object(mode.object),
            quarantined: mode.quarantined,
        };
        let backends: Box<[Backend]> =
            policy.backends.iter().zip(backend_ids).map(|(b, id)| Backend::compile(b, *id)).collect();
        let mut peer_modes: Vec<_> =
            policy.peer_authentication.ports.iter().map(|(port, each)| (*port, mode(*each))).collect();
        peer_modes.sort_by_key(|(port, _)| *port);
        let mut inbound_ports: Vec<_> = policy.inbound_ports.iter().map(InboundPort::compile).collect();
        inbound_ports.sort_by_key(|each| each.port);
        let objects = Objects(intern_all(policy, &refused));
        let asking = authorizer.consulting().filter_map(|(rule, asked)| Some((objects.get(rule)?, asked)));
        let custom = authorizer.consults().then(|| Arc::new(CustomPolicies::of(asking, policy)));
        Ok(Self {
            objects,
            custom,
            forwarding_identities: Values::of_wildcards(&policy.mesh.forwarding_identities),
            forwarders: Arc::new(Forwarders::compile(&policy.mesh)),
            mesh: policy.mesh.clone(),
            default_peer_mode: mode(policy.peer_authentication.default),
            peer_modes: peer_modes.into(),
            inbound_ports: inbound_ports.into(),
            authentication,
            authorizer,
            refused: refused.into(),
            gateway: gateway.transpose()?,
            directory,
            service_ports,
            providers: compile_providers(policy, &backends)?,
            rate_limits,
            limiters: policy.limiters.iter().map(|each| RateLimiter::compile(each, &backends)).collect(),
            backends,
        })
    }

    /// The security objects that could not be compiled, and why: in force as quarantined ones.
    pub fn refused(&self) -> &[CompileError] {
        &self.refused
    }

    /// What policy references name.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Mesh-wide settings.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Whether what this identity says in `x-forwarded-client-cert` is kept.
    pub fn forwards_client_cert(&self, identity: &str) -> bool {
        self.forwarding_identities.match_text(identity.as_bytes())
    }

    /// Whose word is believed about where a request comes from.
    pub fn forwarders(&self) -> &Arc<Forwarders> {
        &self.forwarders
    }

    /// Whether plaintext is accepted on a port of the workload.
    pub fn peer_mode(&self, port: u16) -> PeerMode {
        match self.peer_modes.binary_search_by_key(&port, |(port, _)| *port) {
            Ok(at) => self.peer_modes[at].1,
            Err(_) => self.default_peer_mode,
        }
    }

    /// What is declared of a port of the workload.
    pub fn inbound_port(&self, port: u16) -> Option<&InboundPort> {
        let at = self.inbound_ports.binary_search_by_key(&port, |each| each.port).ok()?;
        self.inbound_ports.get(at)
    }

    /// What is declared of all ports of the workload, sorted by port.
    pub fn inbound_ports(&self) -> &[InboundPort] {
        &self.inbound_ports
    }

    /// Which tokens are asked for.
    pub fn authentication(&self) -> &Authentication {
        &self.authentication
    }

    /// The authorization rules that can still match on this connection. Alike connections share one; it is valid for
    /// the tables that gave it, and for no others.
    pub fn admit(&self, connection: &ConnectionAttributes<'_>) -> Arc<Remainder> {
        self.authorizer.admit(connection)
    }

    /// Whether a request may go on.
    pub fn authorize(&self, remainder: &Remainder, request: &RequestAttributes<'_>) -> Authorization {
        self.authorizer.authorize(remainder, request)
    }

    /// Whether an opaque connection may go on, once those who have to be asked have allowed it. As in Istio, an ALLOW rule
    /// that asks for something of HTTP matches nothing, and any other rule matches without what it asks of HTTP.
    pub fn authorize_tcp<'r>(&self, remainder: &'r Remainder) -> &'r Authorization {
        &self.authorizer.opaque(remainder).0
    }

    /// Who has to be asked about an opaque connection, whatever the phase.
    pub fn consult_tcp<'r>(&self, remainder: &'r Remainder) -> &'r Consultations {
        &self.authorizer.opaque(remainder).1
    }

    /// Whether anybody is ever asked about anything.
    pub fn consults(&self) -> bool {
        self.authorizer.consults()
    }

    /// Who has to be asked about a request in a phase.
    pub fn consult(
        &self,
        phase: ProviderPhase,
        remainder: &Remainder,
        request: &RequestAttributes<'_>,
    ) -> Consultations {
        let mut consultations = self.authorizer.consult(remainder, request);
        consultations.retain(|each| self.provider(each.provider).phase == phase);
        consultations
    }

    /// The provider of an index that these tables gave.
    ///
    /// # Panics
    /// With an index of other tables that had more providers.
    pub fn provider(&self, index: ProviderIndex) -> &Provider {
        &self.providers[index as usize]
    }

    /// How much is too much.
    pub fn rate_limits(&self) -> &RateLimits {
        &self.rate_limits
    }

    /// The service of an index that these tables gave.
    ///
    /// # Panics
    /// With an index of other tables that had more of them.
    pub fn limiter(&self, index: LimiterIndex) -> &RateLimiter {
        &self.limiters[index as usize]
    }

    /// Whether a request that went on under other tables may still do so. `kept`: what `request` still has.
    pub fn reauthorize(
        &self,
        remainder: &Remainder,
        request: &RequestAttributes<'_>,
        kept: Kept<'_>,
    ) -> Reauthorization {
        self.authorizer.reauthorize(remainder, request, kept)
    }

    /// Whether a provider would have to be asked about a request that went on under other tables, by a CUSTOM policy that
    /// is not among those `known` then. `kept`: as of [`Tables::reauthorize`].
    pub fn asks_anew(
        &self,
        remainder: &Remainder,
        request: &RequestAttributes<'_>,
        kept: Kept<'_>,
        known: Option<&CustomPolicies>,
    ) -> Reauthorization {
        if !self.has_new_custom(known) {
            return Reauthorization::Allowed;
        }
        // Who is asked before the user is known never sees one.
        let early = (RequestAttributes { user: None, ..*request }, Kept { user: true, ..kept });
        for (phase, (request, kept)) in [
            (ProviderPhase::BeforeAuthentication, early),
            (ProviderPhase::AfterAuthorization, (*request, kept)),
        ] {
            let is_new = |policy, provider| {
                self.provider(provider).phase == phase && self.is_new_custom(policy, known)
            };
            let reauthorization = self.authorizer.asks_anew(remainder, &request, kept, is_new);
            if reauthorization != Reauthorization::Allowed {
                return reauthorization;
            }
        }
        Reauthorization::Allowed
    }

    /// The same of an opaque connection: the rule, if there is one.
    pub fn asks_anew_tcp(&self, remainder: &Remainder, known: Option<&CustomPolicies>) -> Option<PolicyRef> {
        if !self.has_new_custom(known) {
            return None;
        }
        let new = |each: &&Consultation| self.is_new_custom(each.policy, known);
        self.consult_tcp(remainder).iter().find(new).map(|each| each.policy)
    }

    fn has_new_custom(&self, known: Option<&CustomPolicies>) -> bool {
        self.custom.as_deref().is_some_and(|custom| known != Some(custom))
    }

    fn is_new_custom(&self, policy: PolicyRef, known: Option<&CustomPolicies>) -> bool {
        let (Some(custom), Some(object)) = (&self.custom, self.objects.get(policy)) else { return true };
        !known.is_some_and(|known| known.have(object, custom))
    }

    /// The CUSTOM policies by which providers are asked; `None`: there are none.
    pub fn custom(&self) -> Option<&Arc<CustomPolicies>> {
        self.custom.as_ref()
    }

    /// Names of the headers that authorization looks at: what a request has to keep for [`Tables::reauthorize`].
    pub fn header_names(&self) -> &Arc<HeaderNames> {
        self.authorizer.header_names()
    }

    /// After a `no-allow-matched`: the `limit` ALLOW policies that came nearest, and what failed first in each. Reads
    /// every rule: off the hot path, and not more often than the caller's budget for it allows.
    pub fn consider(
        &self,
        connection: &ConnectionAttributes<'_>,
        request: Option<&RequestAttributes<'_>>,
        limit: usize,
    ) -> Considered {
        self.authorizer.consider(connection, request, limit)
    }

    /// The Gateway that this proxy serves.
    pub fn gateway(&self) -> Option<&Gateway> {
        self.gateway.as_ref()
    }

    /// A port of that Gateway; `None`: no listener has it (any more).
    pub fn gateway_port(&self, port: u16) -> Option<&GatewayPort> {
        self.gateway.as_ref()?.port(port)
    }

    /// The service port that owns a virtual address.
    pub fn service_by_address(&self, address: IpAddr, port: u16) -> Option<ServicePortId> {
        self.directory.by_address(address, port)
    }

    /// Whether a service owns a virtual address, by whichever port.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.directory.has_address(address)
    }

    /// The service port that a host name (without port) means; exact names before `*.` suffixes, longest first.
    pub fn service_by_authority(&self, host: &str, port: u16) -> Option<ServicePortId> {
        self.directory.by_authority(host, port)
    }

    /// That a service is called so, and what ports it has instead of this one.
    pub fn lacks_port(&self, host: &str, port: u16) -> Option<String> {
        let ports = self.directory.ports_of(host);
        let first = self.service_port(*ports.first()?);
        let name = match self.objects.get(first.object) {
            Some(Object { namespace, name, .. }) => format!("{namespace}/{name}"),
            None => host.to_owned(),
        };
        let ports: Vec<_> = ports.iter().map(|id| self.service_port(*id).port.to_string()).collect();
        Some(format!("{name} has no port {port}, only {}", ports.join(", ")))
    }

    /// What an id of these tables stands for.
    ///
    /// # Panics
    /// With an id of other tables that had more service ports.
    pub fn service_port(&self, id: ServicePortId) -> &ServicePort {
        &self.service_ports[id.0 as usize]
    }

    /// All service ports.
    pub fn service_ports(&self) -> &[ServicePort] {
        &self.service_ports
    }

    /// The backends that the routes of a service port name.
    pub fn routed_backends(&self, id: ServicePortId) -> impl Iterator<Item = BackendIndex> {
        self.service_port(id).routes.backends()
    }

    /// Where a request to a service port goes.
    pub fn match_route(&self, id: ServicePortId, request: &RouteAttributes<'_>) -> RouteChoice<'_> {
        let service_port = self.service_port(id);
        if service_port.routes.is_empty() {
            return RouteChoice::Default(service_port.backend);
        }
        service_port.routes.find(request).map_or(RouteChoice::NoRoute, RouteChoice::Rule)
    }

    /// The backend of an index that these tables gave.
    ///
    /// # Panics
    /// With an index of other tables that had more backends.
    pub fn backend(&self, index: BackendIndex) -> &Backend {
        &self.backends[index as usize]
    }

    /// All backends: what live state has to be kept for.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }
}

impl InboundPort {
    fn compile(port: &snapshot::InboundPort) -> Self {
        Self { port: port.port, protocol: port.protocol, service: port.service.as_deref().map(Arc::from) }
    }
}

fn compile_services(
    policy: &snapshot::Policy,
    regexes: &mut regexes::Regexes,
) -> Result<(Directory, Box<[ServicePort]>), CompileError> {
    let mut directory = Directory::default();
    let mut ports = Vec::new();
    for service in &policy.services {
        for port in &service.ports {
            let name = format!("{}:{}", service.host, port.port);
            directory.add(service, port.port, ServicePortId(ports.len() as u32));
            known_backend(policy, port.backend, &name)?;
            for backend in port.routes.iter().flat_map(|rule| &rule.backends).filter_map(|each| each.backend)
            {
                known_backend(policy, backend, &name)?;
            }
            ports.push(ServicePort {
                port: port.port,
                protocol: port.protocol,
                backend: port.backend,
                object: PolicyRef::from_object(service.object),
                routes: routes::Routes::compile(&name, &port.routes, &policy.objects, regexes)?,
                name: name.into(),
            });
        }
    }
    Ok((directory, ports.into()))
}

/// A policy must not name a provider that is not there.
fn compile_providers(
    policy: &snapshot::Policy,
    backends: &[Backend],
) -> Result<Box<[Provider]>, CompileError> {
    let wrong = |field: String, message: String| CompileError { object: String::new(), field, message };
    let named = policy.authorization.iter().filter_map(|each| each.provider);
    if let Some(missing) = named.max().filter(|&index| index as usize >= policy.providers.len()) {
        return Err(wrong("authorization".into(), format!("there is no provider #{missing}")));
    }
    let compile = |(index, provider)| {
        Provider::compile(provider, backends).map_err(|message| wrong(format!("providers[{index}]"), message))
    };
    policy.providers.iter().enumerate().map(compile).collect()
}

fn known_backend(
    policy: &snapshot::Policy,
    backend: BackendIndex,
    service: &str,
) -> Result<(), CompileError> {
    if (backend as usize) < policy.backends.len() {
        return Ok(());
    }
    let message = format!("{service} names backend #{backend}, which is not there");
    Err(CompileError { object: String::new(), field: "services".into(), message })
}

/// What references name, until when it holds, and what is wrong with it.
fn intern_all(policy: &snapshot::Policy, refused: &[CompileError]) -> Arc<[Object]> {
    let mut objects: Vec<_> = policy.objects.iter().map(intern).collect();
    for (number, object) in objects.iter_mut().enumerate() {
        let is_it = |error: &&CompileError| {
            error.object == format!("{} {}/{}", object.kind, object.namespace, object.name)
        };
        let unread = refused.iter().find(is_it);
        let unread = unread.map(|error| format!("{}: {}", error.field, error.message));
        let found = u32::try_from(number).ok().and_then(|number| policy.problems.get(&number).cloned());
        object.problem = found.or(unread).map(String::into);
    }
    for each in &policy.authorization {
        if let (Some(expires), Some(object)) = (each.expires, objects.get_mut(each.object as usize)) {
            object.json.push_str(&format!(r#","expires_at":"{expires}""#));
        }
    }
    objects.into()
}

/// An object as records name it, its JSON escaped once.
fn intern(object: &snapshot::ObjectRef) -> Object {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let json = format!(
        "\"kind\":{},\"namespace\":{},\"name\":{}",
        quoted(&object.kind),
        quoted(&object.namespace),
        quoted(&object.name)
    );
    Object {
        kind: object.kind.clone(),
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        digest: object.digest.clone(),
        json,
        problem: None,
    }
}

/// Says of a plain message which object and field it is about.
trait Located<T> {
    /// `objects` are those that `object` is an index into.
    fn located(self, object: u32, objects: &[snapshot::ObjectRef], field: &str) -> Result<T, CompileError>;
}

impl<T> Located<T> for Result<T, String> {
    fn located(self, object: u32, objects: &[snapshot::ObjectRef], field: &str) -> Result<T, CompileError> {
        self.map_err(|message| {
            let object = objects.get(object as usize).map_or_else(
                || format!("object #{object}"),
                |object| format!("{} {}/{}", object.kind, object.namespace, object.name),
            );
            CompileError { object, field: field.into(), message }
        })
    }
}

#[cfg(test)]
mod tests;
