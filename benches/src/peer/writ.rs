//! A pair of `writ run --role sidecar`, configured by a directory of resources as a mesh would give them.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Pair, PairSpec, Peer, Ports, WEIGHTS};
use crate::child::Child;
use crate::issuer::{self, Issuer};
use crate::load::Protocol;
use crate::pki::Identity;
use crate::world::{World, free_address};

pub(super) fn start(world: &World, spec: PairSpec, ports: Ports, dir: &Path) -> Result<Pair> {
    let config = dir.join("config");
    std::fs::create_dir_all(&config)?;
    std::fs::write(config.join("services.yaml"), services(spec, ports)).context("write services.yaml")?;
    std::fs::write(config.join("policy.yaml"), policy(spec, &world.issuer)).context("write policy.yaml")?;

    let outbound_address = ports.outbound.to_string();
    let caller = Sidecar {
        name: "writ-outbound",
        workload: "bookinfo/productpage",
        service_account: "productpage",
        labels: "app=productpage",
        identity: &world.pki.client,
        listeners: vec!["--inbound".into(), "off".into(), "--outbound".into(), outbound_address],
    };
    let mut listeners = vec!["--inbound".to_owned(), "off".into(), "--outbound".into(), "off".into()];
    for (listen, application) in ports.inbound.iter().zip(ports.applications) {
        listeners.extend(["--forward".to_owned(), format!("{listen}={application}")]);
    }
    let called = Sidecar {
        name: "writ-inbound",
        workload: "bookinfo/ratings-v1",
        service_account: "ratings",
        labels: "app=ratings",
        identity: &world.pki.server,
        listeners,
    };

    let (inbound, inbound_records) = called.start(world, spec, dir, &config)?;
    let (outbound, outbound_records) = caller.start(world, spec, dir, &config)?;
    let records = [outbound_records, inbound_records].into_iter().flatten().collect();
    Ok(Pair { outbound, inbound, entry: ports.outbound, mtls_entry: ports.inbound[0], records })
}

/// A Gateway with one listener.
pub(super) fn start_server_only(
    world: &World,
    listen: SocketAddr,
    tickets: bool,
    dir: &Path,
) -> Result<Child> {
    let config = dir.join("config");
    std::fs::create_dir_all(&config)?;
    let identity = &world.pki.server;
    let pem = |path: PathBuf| std::fs::read_to_string(path).map(|text| text.replace('\n', "\n    "));
    let (certificate, key) = (pem(identity.certificate())?, pem(identity.key())?);
    let (ip, port, tickets) = (listen.ip(), listen.port(), if tickets { "on" } else { "off" });
    let yaml = format!(
        "apiVersion: v1
kind: Secret
metadata: {{name: front, namespace: bookinfo}}
stringData:
  tls.crt: |
    {certificate}
  tls.key: |
    {key}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: front, namespace: bookinfo}}
spec:
  gatewayClassName: writ
  addresses: [{{value: {ip}}}]
  listeners:
  - name: tls
    port: {port}
    protocol: HTTPS
    tls:
      certificateRefs: [{{name: front}}]
      options: {{writ.dev/session-tickets: '{tickets}'}}
"
    );
    std::fs::write(config.join("gateway.yaml"), yaml)?;
    let mut command = Command::new(world.program(Peer::Writ)?);
    command.args(["run", "--role", "gateway", "--gateway", "bookinfo/front", "--workers", "1"]);
    command.args(["--service-account", "ratings"]).arg("--config").arg(config);
    command.arg("--identity").arg(format!("files:{}", identity.dir.display()));
    command.args(["--admin", "off", "--health", "off", "--metrics", "off", "--record", "off"]);
    Child::start("writ", &mut command, world.cores, &dir.join("writ.log"))
}

/// The command line of one of the two.
struct Sidecar<'a> {
    name: &'static str,
    workload: &'static str,
    service_account: &'static str,
    labels: &'static str,
    identity: &'a Identity,
    listeners: Vec<String>,
}

impl Sidecar<'_> {
    fn start(
        self,
        world: &World,
        spec: PairSpec,
        dir: &Path,
        config: &Path,
    ) -> Result<(Child, Option<PathBuf>)> {
        let records = spec.records.then(|| dir.join(format!("{}.jsonl", self.name)));
        let record =
            records.as_ref().map_or_else(|| "off".to_owned(), |path| format!("file:{}", path.display()));
        let mut command = Command::new(world.program(Peer::Writ)?);
        command.args(["run", "--role", "sidecar", "--workers", "1", "--workload", self.workload]);
        command.args(["--service-account", self.service_account, "--labels", self.labels]);
        command.arg("--config").arg(config);
        command.arg("--identity").arg(format!("files:{}", self.identity.dir.display()));
        command.args(["--admin", "off", "--health", "off", "--record", &record]);
        command.args(["--metrics", &free_address(Ipv4Addr::LOCALHOST)?.to_string()]);
        command.args(self.listeners);
        let log = dir.join(format!("{}.log", self.name));
        Ok((Child::start(self.name, &mut command, world.cores, &log)?, records))
    }
}

/// What exists, and the split.
fn services(spec: PairSpec, ports: Ports) -> String {
    let port_name = match spec.protocol {
        Protocol::Http1 => "http",
        Protocol::Http2 => "http2",
    };
    let [v1, v2] = ports.inbound;
    let [v1_weight, v2_weight] = WEIGHTS;
    let mut yaml = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: ratings, namespace: bookinfo}}
spec:
  clusterIP: 10.96.0.10
  selector: {{app: ratings}}
  ports: [{{name: {port_name}, port: 9080}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: ratings-split, namespace: bookinfo}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: ratings, port: 9080}}]
  rules:
  - backendRefs:
    - {{name: ratings-v1, port: 9080, weight: {v1_weight}}}
    - {{name: ratings-v2, port: 9080, weight: {v2_weight}}}
"
    );
    yaml += &pod("productpage", "productpage", "127.0.0.1");
    yaml += &version("v1", "10.96.0.11", port_name, v1);
    yaml += &version("v2", "10.96.0.12", port_name, v2);
    yaml
}

/// The Service, Pod and EndpointSlice of one version.
fn version(version: &str, cluster_ip: &str, port_name: &str, inbound: SocketAddr) -> String {
    let (ip, port) = (inbound.ip(), inbound.port());
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: ratings-{version}, namespace: bookinfo}}
spec:
  clusterIP: {cluster_ip}
  selector: {{app: ratings, version: {version}}}
  ports: [{{name: {port_name}, port: 9080, targetPort: {port}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: ratings-{version}
  namespace: bookinfo
  labels: {{kubernetes.io/service-name: ratings-{version}}}
addressType: IPv4
ports: [{{name: {port_name}, port: {port}, protocol: TCP}}]
endpoints:
- addresses: [{ip}]
  conditions: {{ready: true}}
  targetRef: {{kind: Pod, name: ratings-{version}, namespace: bookinfo}}
{}",
        pod(&format!("ratings-{version}"), "ratings", &ip.to_string())
    )
}

fn pod(name: &str, account: &str, ip: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: bookinfo
  labels: {{app: {account}, security.istio.io/tlsMode: istio}}
spec: {{serviceAccountName: {account}}}
status: {{podIP: {ip}, phase: Running}}
"
    )
}

/// STRICT, the policy that allows, and as many others as asked for: a quarter by principal, a quarter by path prefix, a
/// quarter by header and by what must not be, and a quarter by claims. None of the others matches the request; a scan
/// would have to try them all.
fn policy(spec: PairSpec, issuer: &Issuer) -> String {
    let mut yaml = String::from(
        "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: bookinfo}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ratings-viewer, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: ratings}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/bookinfo/sa/productpage]}}]
    to: [{operation: {methods: [GET], paths: [/ratings/*]}}]
    when:
    - {key: 'request.headers[x-tenant]', values: [blue]}
",
    );
    if spec.tokens {
        yaml += "    - {key: 'request.auth.claims[team]', values: [blue]}\n";
        yaml += &authentication(issuer);
    }
    for number in 1..spec.policies {
        let (action, rule) = match number % 8 {
            0 => (
                "DENY",
                format!("from: [{{source: {{principals: [cluster.local/ns/bookinfo/sa/team-{number}]}}}}]"),
            ),
            4 => (
                "ALLOW",
                format!("from: [{{source: {{principals: [cluster.local/ns/team-{number}/sa/*]}}}}]"),
            ),
            1 => ("DENY", format!("to: [{{operation: {{paths: [/team-{number}/*]}}}}]")),
            5 => ("ALLOW", format!("to: [{{operation: {{paths: [/team-{number}/*]}}}}]")),
            2 => ("DENY", format!("when: [{{key: 'request.headers[x-tenant]', values: [team-{number}]}}]")),
            6 => (
                "DENY",
                format!(
                    "from: [{{source: {{notPrincipals: [cluster.local/ns/bookinfo/*, spare/ns/team-{number}/sa/x]}}}}]"
                ),
            ),
            3 => ("DENY", format!("when: [{{key: 'request.auth.claims[team]', values: [team-{number}]}}]")),
            _ => (
                "ALLOW",
                format!("from: [{{source: {{requestPrincipals: ['{}/team-{number}*']}}}}]", issuer::NAME),
            ),
        };
        // Writing to a String can't fail.
        let _ = write!(
            yaml,
            "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: team-{number}, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  action: {action}
  rules:
  - {rule}
"
        );
    }
    yaml
}

/// Who says who the end user is.
fn authentication(issuer: &Issuer) -> String {
    format!(
        "---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: users, namespace: bookinfo}}
spec:
  selector: {{matchLabels: {{app: ratings}}}}
  jwtRules: [{{issuer: '{}', jwks: '{}'}}]
",
        issuer::NAME,
        issuer.keys
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_policies_are_written_as_asked_for() {
        for policies in [1, 10, 1_000] {
            assert_eq!(written(policies).matches("kind: AuthorizationPolicy").count(), policies);
        }
    }

    /// What the proxies under comparison are given must be what they understand, all of it.
    #[test]
    fn every_object_is_accepted() {
        let address = |ip: [u8; 4], port| SocketAddr::from((ip, port));
        let ports = Ports {
            outbound: address([127, 0, 0, 1], 1),
            inbound: [address([127, 0, 0, 2], 2), address([127, 0, 0, 3], 3)],
            applications: [address([127, 0, 0, 1], 4), address([127, 0, 0, 1], 5)],
        };
        let spec = of(100);
        let ratings = control_client::Workload {
            namespace: "bookinfo".into(),
            name: "ratings-v1".into(),
            service_account: "ratings".into(),
            labels: [("app".to_owned(), "ratings".to_owned())].into(),
            trust_domain: "cluster.local".into(),
            gateway: None,
        };
        let yaml = format!("{}---\n{}", services(spec, ports), written(spec.policies));
        let loaded = control_client::load_str(&yaml, &ratings);
        assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
        assert_eq!(loaded.snapshot.policy.authorization.len(), spec.policies);
    }

    #[test]
    fn a_quarter_is_of_each_kind() {
        let yaml = written(8_001);
        // The policy that allows has one of most.
        assert_eq!(yaml.matches("{principals:").count() - 1, 2_000);
        assert_eq!(yaml.matches("paths:").count() - 1, 2_000);
        assert_eq!(yaml.matches("request.headers").count() - 1, 1_000);
        assert_eq!(yaml.matches("{notPrincipals:").count(), 1_000);
        assert_eq!(yaml.matches("request.auth.claims").count() - 1, 1_000);
        assert_eq!(yaml.matches("{requestPrincipals:").count(), 1_000);
    }

    fn written(policies: usize) -> String {
        policy(of(policies), &Issuer::create().unwrap())
    }

    fn of(policies: usize) -> PairSpec {
        PairSpec { protocol: Protocol::Http2, records: true, policies, tokens: true }
    }
}
