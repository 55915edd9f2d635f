//! Policies that judge nothing but HTTP, where a Service lets through what is not HTTP.

use super::Found;
use crate::resource::Object;
use crate::resource::rate_limit::{RateLimit, Rule};
use crate::resource::security::{AuthorizationPolicy, Scope};
use crate::snapshot::Protocol;
use crate::verdict::{Diagnostic, Severity};

/// Why it is let through, and what to do.
const UNDECLARED: &str = "that declares no protocol; name it after one (`http-..`) or set its appProtocol";

impl<'a> Found<'a> {
    /// What the policies in force do not decide.
    pub(super) fn beside_http(&self) -> impl Iterator<Item = Diagnostic> {
        let tokens = self.authentications.iter().filter_map(|(object, spec)| {
            let (service, port) = self.port_before(object, &spec.scope, |protocol| protocol.is_none())?;
            let message = format!(
                "asks for tokens of nothing but HTTP: what else is sent to port {port} of Service {service} has none, \
                 {UNDECLARED}"
            );
            Some(object.diagnostic(Severity::Warning, "spec", 0, message))
        });
        let providers = self.policies.iter().filter_map(|item| self.unasked(item.object, item.spec));
        let limits = self.limits.iter().flat_map(|(object, limit)| self.uncounted(object, limit));
        tokens.chain(providers).chain(limits)
    }

    /// A CUSTOM policy whose provider is asked by HTTP.
    fn unasked(&self, object: &Object, policy: &AuthorizationPolicy) -> Option<Diagnostic> {
        let (provider, line) = policy.provider.as_ref()?;
        if !self.http_providers.contains(&&**provider) {
            return None;
        }
        let (service, port) = self.port_before(object, &policy.scope, |protocol| protocol.is_none())?;
        let message = format!(
            "provider {provider} is asked about nothing but HTTP: what else is sent to port {port} of Service \
             {service} passes, {UNDECLARED}"
        );
        Some(object.diagnostic(Severity::Warning, "spec.provider.name", *line, message))
    }

    /// Rules that ask for something of HTTP.
    fn uncounted(&self, object: &Object, limit: &RateLimit) -> Vec<Diagnostic> {
        if !limit.rules.iter().any(Rule::asks_of_http) {
            return Vec::new();
        }
        let is_opaque = |protocol| matches!(protocol, Some(Protocol::Tcp | Protocol::Tls));
        let opaque = self.port_before(object, &limit.scope, is_opaque).map(|(service, port)| {
            format!("no connection to port {port} of Service {service} is counted: it is opaque")
        });
        let undeclared = || {
            let (service, port) = self.port_before(object, &limit.scope, |protocol| protocol.is_none())?;
            Some(format!(
                "nothing else that is sent to port {port} of Service {service} is counted, {UNDECLARED}"
            ))
        };
        let Some(why) = opaque.or_else(undeclared) else { return Vec::new() };
        let rules = limit.rules.iter().enumerate().filter(|(_, rule)| rule.asks_of_http());
        let warn = |(number, rule): (usize, &Rule)| {
            let message = format!("asks for something of HTTP, so that {why}");
            object.diagnostic(Severity::Warning, &format!("spec.rules[{number}]"), rule.line, message)
        };
        rules.map(warn).collect()
    }

    /// Name and port of the first Service with such a port before what an object is for.
    fn port_before(
        &self,
        object: &Object,
        scope: &Scope,
        is_such: impl Fn(Option<Protocol>) -> bool,
    ) -> Option<(&'a str, u16)> {
        let namespace = object.meta.namespace.as_str();
        let namespace = (namespace != self.root_namespace).then_some(namespace);
        self.places.port_before(namespace, scope, is_such)
    }
}
