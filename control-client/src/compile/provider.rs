//! Which backends authorization providers and rate limiters are: services that proxies call themselves.

use super::service::{HostKind, Hosted};
use crate::resource::mesh::{Callee, MeshSettings};
use crate::snapshot::{BackendIndex, LimiterIndex, Provider, ProviderIndex, ProviderPhase, RateLimiter};

/// The providers that policies can ask, in the order of MeshSettings.
pub(super) fn compile(settings: &MeshSettings, hosts: &[Hosted<'_>]) -> Vec<Provider> {
    let asked = settings.providers.iter().filter_map(|each| Some((&each.name, each.asked.as_ref()?)));
    let compile = |(name, asked): (&String, &crate::resource::mesh::Asked)| Provider {
        name: name.clone(),
        backend: backend(&asked.callee, hosts).ok(),
        phase: asked.phase,
        timeout: asked.timeout,
        fail_open: asked.fail_open,
        status_on_error: asked.status_on_error,
        body: asked.body,
        protocol: asked.protocol.clone(),
    };
    asked.map(compile).collect()
}

/// The provider that a policy names.
pub(super) struct Named {
    /// `None`: there is nobody to ask.
    pub(super) index: Option<ProviderIndex>,
    /// It is asked before the end user is authenticated.
    pub(super) early: bool,
    /// Why the policy can't ask it.
    pub(super) problem: Option<String>,
}

/// The provider of a name.
pub(super) fn find(
    name: &str,
    settings: &MeshSettings,
    providers: &[Provider],
    hosts: &[Hosted<'_>],
) -> Named {
    let nobody = |problem| Named { index: None, early: false, problem: Some(problem) };
    let Some(written) = settings.providers.iter().find(|each| each.name == name) else {
        return nobody(format!("no provider {name} in MeshSettings spec.extensionProviders"));
    };
    let Some(asked) = &written.asked else {
        let line = written.line;
        return nobody(format!("provider {name} (line {line} of MeshSettings) can't be asked"));
    };
    let index = providers.iter().position(|each| each.name == name);
    let index = index.and_then(|index| ProviderIndex::try_from(index).ok());
    let early = asked.phase == ProviderPhase::BeforeAuthentication;
    let problem = backend(&asked.callee, hosts).err().map(|why| format!("provider {name}: {why}"));
    Named { index, early, problem }
}

/// The services that limits can ask, in the order of MeshSettings.
pub(super) fn limiters(settings: &MeshSettings, hosts: &[Hosted<'_>]) -> Vec<RateLimiter> {
    let limiters = settings.providers.iter().filter_map(|each| Some((&each.name, each.limiter.as_ref()?)));
    let compile = |(name, limiter): (&String, &crate::resource::mesh::Limiter)| RateLimiter {
        name: name.clone(),
        backend: backend(&limiter.callee, hosts).ok(),
        timeout: limiter.timeout,
    };
    limiters.map(compile).collect()
}

/// The service that a limit names.
pub(super) struct NamedLimiter {
    /// `None`: there is nobody to ask.
    pub(super) index: Option<LimiterIndex>,
    /// Why the limit can't ask it.
    pub(super) problem: Option<String>,
}

/// The service of a name.
pub(super) fn find_limiter(
    name: &str,
    settings: &MeshSettings,
    limiters: &[RateLimiter],
    hosts: &[Hosted<'_>],
) -> NamedLimiter {
    let nobody = |problem| NamedLimiter { index: None, problem: Some(problem) };
    let Some(written) = settings.providers.iter().find(|each| each.name == name) else {
        return nobody(format!("no provider {name} in MeshSettings spec.extensionProviders"));
    };
    let Some(limiter) = &written.limiter else {
        let line = written.line;
        return nobody(format!("provider {name} (line {line} of MeshSettings) is no rate limit service"));
    };
    let index = limiters.iter().position(|each| each.name == name);
    let index = index.and_then(|index| LimiterIndex::try_from(index).ok());
    let problem = backend(&limiter.callee, hosts).err().map(|why| format!("provider {name}: {why}"));
    NamedLimiter { index, problem }
}

/// The backend of a service that a proxy calls itself, or why there is none.
pub(super) fn backend(callee: &Callee, hosts: &[Hosted<'_>]) -> Result<BackendIndex, String> {
    let Callee { namespace, host, port } = callee;
    let is_meant = |each: &&Hosted<'_>| {
        let of_namespace = namespace.as_deref().is_none_or(|wanted| each.kind.namespace() == wanted);
        of_namespace && (each.host == *host || short_name(each).is_some_and(|name| name == *host))
    };
    let Some(found) = hosts.iter().find(is_meant) else {
        return Err(format!("no Service or ServiceEntry {host} that is visible here"));
    };
    match found.ports.iter().find(|each| each.number == *port) {
        Some(port) => Ok(port.backend),
        None => Err(format!("{host} has no port {port}")),
    }
}

/// `NAME.NAMESPACE` of a Service.
fn short_name(host: &Hosted<'_>) -> Option<String> {
    match host.kind {
        HostKind::Service(item) => Some(format!("{}.{}", item.name(), item.namespace())),
        HostKind::Entry(_) => None,
    }
}
