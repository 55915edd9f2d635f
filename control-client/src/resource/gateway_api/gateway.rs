//! Gateway: ports that take requests from outside of the mesh, and the certificates shown there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::read::{At, Fields};
use super::super::{Meta, Resource, text};
use super::GROUP;

/// A Gateway.
#[derive(Debug, Default)]
pub(crate) struct Gateway {
    pub(crate) class: String,
    /// `spec.addresses`; empty: every interface.
    pub(crate) addresses: Vec<IpAddr>,
    /// Those that can be served.
    pub(crate) listeners: Vec<Listener>,
}

/// One of `spec.listeners`.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) name: String,
    /// `None`: any.
    pub(crate) hostname: Option<String>,
    pub(crate) port: u16,
    /// HTTPS: what to show. `None`: HTTP.
    pub(crate) certificates: Option<Vec<SecretRef>>,
    /// HTTPS: whether clients get session tickets.
    pub(crate) tickets: bool,
    /// Namespaces whose routes may be attached.
    pub(crate) namespaces: RouteNamespaces,
    /// Whether HTTPRoutes may.
    pub(crate) takes_http_routes: bool,
    /// Its number in the Gateway.
    pub(crate) index: usize,
    pub(crate) line: u32,
}

/// A Secret with certificate and key.
#[derive(Debug)]
pub(crate) struct SecretRef {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) line: u32,
}

/// `allowedRoutes.namespaces`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum RouteNamespaces {
    All,
    #[default]
    Same,
    None,
    /// Those with these labels.
    Labelled(BTreeMap<String, String>),
}

/// How a listener speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Http,
    Https,
    /// Not served yet.
    Other,
}

/// The one of `tls.options`: `"off"` for no session tickets.
const TICKETS: &str = "writ.dev/session-tickets";

/// Reads a Gateway.
pub(crate) fn gateway(meta: &Meta, object: Fields<'_>) -> Resource {
    let mut gateway = Gateway::default();
    let known = [
        "gatewayClassName",
        "listeners",
        "addresses",
        "infrastructure",
        "allowedListeners",
        "defaultScope",
        "tls",
    ];
    let Some(spec) = object.require("spec").and_then(|at| at.fields(&known)) else {
        return Resource::Gateway(gateway);
    };
    // Labels and annotations of what serves it: whoever deploys that looks at them.
    spec.get("infrastructure").and_then(At::open_fields);
    spec.not_in_force(&["allowedListeners", "defaultScope"]);
    if let Some(tls) = spec.get("tls") {
        tls.error("client certificates at a Gateway are not supported yet");
    }
    gateway.class = spec.require("gatewayClassName").and_then(At::text).unwrap_or_default();
    gateway.addresses =
        spec.get("addresses").into_iter().flat_map(|at| at.items()).filter_map(address).collect();
    if let Some(addresses) =
        spec.get("addresses").filter(|at| at.items().len() > 0 && gateway.addresses.is_empty())
    {
        addresses.error(
            "none of these is one to listen on: write an IPAddress, or leave them out for every interface",
        );
    }
    if let Some(listeners) = spec.require("listeners") {
        let read = listeners.items().enumerate().filter_map(|(index, at)| listener(meta, index, at));
        for listener in read {
            match gateway.listeners.iter().find(|earlier| earlier.name == listener.name) {
                Some(_) => listeners.error(format!("two listeners are called `{}`", listener.name)),
                None => gateway.listeners.push(listener),
            }
        }
    }
    Resource::Gateway(gateway)
}

fn address(at: At<'_>) -> Option<IpAddr> {
    let fields = at.fields(&["type", "value"])?;
    let kind = fields.get("type").map_or(Some("IPAddress"), At::str)?;
    if kind != "IPAddress" {
        at.warn(format!("addresses of type {kind} say nothing of where to listen"));
        return None;
    }
    fields.get("value").and_then(text::ip)
}

fn listener(meta: &Meta, index: usize, at: At<'_>) -> Option<Listener> {
    let fields = at.fields(&["name", "hostname", "port", "protocol", "tls", "allowedRoutes"])?;
    let name = fields.require("name").and_then(At::text);
    let port = fields.require("port").and_then(At::port);
    let protocol = fields.require("protocol").and_then(|at| {
        at.one_of(&[
            ("HTTP", Speaks::Http),
            ("HTTPS", Speaks::Https),
            ("TLS", Speaks::Other),
            ("TCP", Speaks::Other),
            ("UDP", Speaks::Other),
        ])
    });
    let hostname = match fields.get("hostname").map(text::host) {
        Some(None) => return None,
        Some(Some(any)) if any == "*" => None,
        other => other.flatten(),
    };
    let (certificates, tickets) = match (protocol?, fields.get("tls")) {
        (Speaks::Https, Some(tls)) => {
            let (certificates, tickets) = terminated(meta, tls)?;
            (Some(certificates), tickets)
        }
        (Speaks::Https, None) => {
            fields.missing("tls", "is required where the protocol is HTTPS");
            return None;
        }
        (Speaks::Http, Some(tls)) => {
            tls.error("an HTTP listener has no TLS; write protocol: HTTPS");
            return None;
        }
        (Speaks::Http, None) => (None, false),
        (Speaks::Other, _) => {
            at.warn("not served yet: only the protocols HTTP and HTTPS are; this listener is not opened");
            return None;
        }
    };
    let (namespaces, takes_http_routes) = match fields.get("allowedRoutes") {
        Some(at) => allowed_routes(at)?,
        None => (RouteNamespaces::default(), true),
    };
    let (name, port) = (name?, port?);
    Some(Listener {
        name,
        hostname,
        port,
        certificates,
        tickets,
        namespaces,
        takes_http_routes,
        index,
        line: at.line(),
    })
}

/// What TLS that ends here shows, and whether sessions can be resumed.
fn terminated(meta: &Meta, at: At<'_>) -> Option<(Vec<SecretRef>, bool)> {
    let fields = at.fields(&["mode", "certificateRefs", "frontendValidation", "options"])?;
    let mode = fields.get("mode").map_or(Some("Terminate"), |at| {
        at.one_of(&[("Terminate", "Terminate"), ("Passthrough", "Passthrough")])
    })?;
    if mode == "Passthrough" {
        at.error("HTTPS is terminated here; what passes through is protocol: TLS");
        return None;
    }
    if let Some(validation) = fields.get("frontendValidation") {
        validation.error("client certificates at a Gateway are not supported yet");
        return None;
    }
    let tickets = match fields.get("options").map(|at| at.fields(&[TICKETS])) {
        None => true,
        Some(options) => match options?.get(TICKETS) {
            None => true,
            Some(at) => at.one_of(&[("on", true), ("off", false)])?,
        },
    };
    let refs = fields.require("certificateRefs")?;
    let secrets: Vec<_> = refs.items().filter_map(|at| secret_ref(meta, at)).collect();
    if secrets.is_empty() {
        refs.error("must name at least one Secret");
        return None;
    }
    Some((secrets, tickets))
}

fn secret_ref(meta: &Meta, at: At<'_>) -> Option<SecretRef> {
    let fields = at.fields(&["group", "kind", "namespace", "name"])?;
    let group = fields.get("group").map_or(Some(""), At::str)?;
    let kind = fields.get("kind").map_or(Some("Secret"), At::str)?;
    if !matches!(group, "" | "core") || kind != "Secret" {
        at.error("only a Secret, with the certificate under tls.crt and its key under tls.key");
        return None;
    }
    let namespace = match fields.get("namespace") {
        Some(at) => at.text()?,
        None => meta.namespace.clone(),
    };
    Some(SecretRef { namespace, name: fields.require("name")?.text()?, line: at.line() })
}

fn allowed_routes(at: At<'_>) -> Option<(RouteNamespaces, bool)> {
    #[derive(Clone, Copy)]
    enum From {
        All,
        Same,
        None,
        Selector,
    }
    let fields = at.fields(&["namespaces", "kinds"])?;
    let namespaces = match fields.get("namespaces") {
        None => RouteNamespaces::default(),
        Some(at) => {
            let fields = at.fields(&["from", "selector"])?;
            let choices = [
                ("All", From::All),
                ("Same", From::Same),
                ("None", From::None),
                ("Selector", From::Selector),
            ];
            match fields.get("from").map_or(Some(From::Same), |at| at.one_of(&choices))? {
                From::All => RouteNamespaces::All,
                From::Same => RouteNamespaces::Same,
                From::None => RouteNamespaces::None,
                From::Selector => {
                    RouteNamespaces::Labelled(fields.require("selector").and_then(text::selector)?)
                }
            }
        }
    };
    let takes_http_routes = match fields.get("kinds") {
        None => true,
        Some(kinds) => {
            let mut takes = false;
            for at in kinds.items() {
                let kind = at.fields(&["group", "kind"])?;
                let group = kind.get("group").map_or(Some(GROUP), At::str)?;
                takes |= group == GROUP && kind.require("kind").and_then(At::str)? == "HTTPRoute";
            }
            takes
        }
    };
    Some((namespaces, takes_http_routes))
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::only;
    use super::*;

    fn read(spec: &str) -> (bool, Gateway, Vec<String>) {
        let (object, found) = only(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: n}}\nspec: {spec}\n"
        ));
        let good = object.good;
        match std::sync::Arc::into_inner(object).map(|object| object.resource) {
            Some(Resource::Gateway(gateway)) => (good, gateway, found),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn listeners_and_what_they_allow() {
        let (good, gateway, found) = read(
            "{gatewayClassName: writ, addresses: [{value: 127.0.0.1}], listeners: [\
             {name: web, port: 80, protocol: HTTP, hostname: '*.example.com'},\
             {name: tls, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}, {name: d, namespace: m}]},\
              allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {a: b}}}, kinds: [{kind: GRPCRoute}]}}]}",
        );
        assert!(good, "{found:?}");
        assert_eq!(gateway.addresses, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        let [web, tls] = gateway.listeners.as_slice() else { panic!("{gateway:?}") };
        assert_eq!(
            (web.name.as_str(), web.port, web.hostname.as_deref()),
            ("web", 80, Some("*.example.com"))
        );
        assert!(web.certificates.is_none() && web.takes_http_routes);
        assert_eq!(web.namespaces, RouteNamespaces::Same);
        let secrets = tls.certificates.as_ref().unwrap();
        let names: Vec<_> =
            secrets.iter().map(|each| (each.namespace.as_str(), each.name.as_str())).collect();
        assert_eq!(names, [("n", "c"), ("m", "d")]);
        assert!(matches!(&tls.namespaces, RouteNamespaces::Labelled(labels) if labels["a"] == "b"));
        assert!(!tls.takes_http_routes);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            ("{name: a, port: 0, protocol: HTTP}", "out of range"),
            ("{name: a, port: 443, protocol: HTTPS}", "tls: is required"),
            ("{name: a, port: 443, protocol: HTTPS, tls: {}}", "certificateRefs: is required"),
            ("{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: []}}", "at least one"),
            ("{name: a, port: 443, protocol: HTTPS, tls: {mode: Passthrough}}", "protocol: TLS"),
            ("{name: a, port: 443, protocol: HTTPS, tls: {options: {a: b}}}", "unknown field"),
            (
                "{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{kind: ConfigMap, name: c}]}}",
                "only a Secret",
            ),
            (
                "{name: a, port: 80, protocol: HTTP, tls: {certificateRefs: [{name: c}]}}",
                "write protocol: HTTPS",
            ),
            ("{name: a, port: 80, protocol: http}", "unknown value"),
            ("{name: a, port: 80, protocol: HTTP, hostname: 'a_b!'}", "not a host name"),
            (
                "{name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector}}}",
                "selector: is required",
            ),
            ("{name: a, port: 80, protocol: HTTP}, {name: a, port: 81, protocol: HTTP}", "two listeners"),
        ];
        for (listeners, wanted) in cases {
            let (good, _, found) = read(&format!("{{gatewayClassName: writ, listeners: [{listeners}]}}"));
            assert!(!good, "{listeners}");
            assert!(found.join("\n").contains(wanted), "{listeners}: {found:?}");
        }
        let (good, gateway, found) =
            read("{gatewayClassName: writ, listeners: [{name: a, port: 90, protocol: TCP}]}");
        assert!(good && gateway.listeners.is_empty() && found[0].contains("not served yet"), "{found:?}");
    }
}
