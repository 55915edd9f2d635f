//! What a cluster would know of a mesh, as YAML: services, pods, and who is where.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::App;

/// One instance of a service: an application, and the sidecar in front of it.
#[derive(Debug, Clone)]
pub struct Server {
    pub(crate) name: String,
    pub(crate) label: String,
    pub(crate) account: String,
    /// The account that its sidecar proves, if not its own.
    pub(crate) proves: Option<String>,
    pub(crate) app: SocketAddr,
    /// Name of its port, which declares the protocol as in Istio.
    pub(crate) port_name: String,
    pub(crate) sidecar: bool,
    pub(crate) labelled: bool,
}

impl Server {
    /// A service of this name with one instance, whose port declares no protocol.
    pub fn new(name: &str, app: &App) -> Self {
        Self {
            name: name.into(),
            label: name.into(),
            account: name.into(),
            proves: None,
            app: app.address(),
            port_name: "port".into(),
            sidecar: true,
            labelled: true,
        }
    }

    /// Labelled `app: LABEL`, and with the service account of that name.
    pub fn of(self, label: &str) -> Self {
        Self { label: label.into(), account: label.into(), ..self }
    }

    /// Its port is named so: `http`, `http2`, `grpc`, `tcp`.
    pub fn port_name(self, name: &str) -> Self {
        Self { port_name: name.into(), ..self }
    }

    /// Its sidecar has the certificate of another account.
    pub fn proving(self, account: &str) -> Self {
        Self { proves: Some(account.into()), ..self }
    }

    /// It has no sidecar: callers meet the application itself.
    pub fn without_sidecar(self) -> Self {
        Self { sidecar: false, labelled: false, ..self }
    }

    /// It has a sidecar that the cluster does not know of.
    pub fn unlabelled(self) -> Self {
        Self { labelled: false, ..self }
    }
}

/// What exists.
pub(crate) fn services(names: &[String], servers: &[Server]) -> String {
    let mut yaml = String::new();
    for name in names {
        service(&mut yaml, name, name, "port", 9080);
    }
    for server in servers {
        service(&mut yaml, &server.name, &server.label, &server.port_name, server.app.port());
        pod(&mut yaml, server);
    }
    yaml
}

/// Who is where.
pub(crate) fn endpoints<'s>(located: impl IntoIterator<Item = (&'s Server, SocketAddr)>) -> String {
    let mut yaml = String::new();
    // A slice has one set of ports for all of its endpoints, so each gets one of its own.
    for (number, (server, address)) in located.into_iter().enumerate() {
        let (name, port_name) = (&server.name, &server.port_name);
        write!(
            yaml,
            "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-{number}, namespace: bookinfo, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: {port_name}, port: {port}}}]
endpoints:
- addresses: [{ip}]
  targetRef: {{kind: Pod, name: {name}, namespace: bookinfo}}
---
",
            ip = address.ip(),
            port = address.port()
        )
        .unwrap();
    }
    yaml
}

fn service(yaml: &mut String, name: &str, app: &str, port_name: &str, target: u16) {
    write!(
        yaml,
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: bookinfo}}
spec:
  selector: {{app: {app}}}
  ports: [{{name: {port_name}, port: 9080, targetPort: {target}}}]
---
"
    )
    .unwrap();
}

fn pod(yaml: &mut String, server: &Server) {
    let tls = if server.labelled { ", security.istio.io/tlsMode: istio" } else { "" };
    let (name, label, account) = (&server.name, &server.label, &server.account);
    write!(
        yaml,
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: bookinfo, labels: {{app: {label}, version: {name}{tls}}}}}
spec: {{serviceAccountName: {account}}}
status: {{podIP: 127.0.0.1}}
---
"
    )
    .unwrap();
}
