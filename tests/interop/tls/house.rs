//! The authority, identities and configuration of one test, and the sidecars that live by them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fips::ca::{Authority, Issued, KeyType, Profile};
use serde_json::Value;
use tests::program::{Finished, Program, writ};
use tests::{App, Directory, free_port};

use crate::records::{Records, check, text};

/// Longer than any test.
const LIFETIME: Duration = Duration::from_secs(3600);

/// Everything of one test that lies in files.
pub struct House {
    directory: Directory,
    authority: Authority,
}

/// A certificate, its key and the roots.
#[derive(Clone)]
pub struct Identity {
    /// Holds `tls.crt`, `tls.key` and `ca.crt`.
    pub dir: PathBuf,
}

impl Identity {
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("tls.crt")
    }

    pub fn key(&self) -> PathBuf {
        self.dir.join("tls.key")
    }

    pub fn roots(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }
}

/// The kinds of key that every peer here takes.
pub const KEYS: [KeyType; 3] = [KeyType::P256, KeyType::P384, KeyType::Rsa2048];

/// The SPIFFE id of an account of these tests.
pub fn id(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

impl House {
    pub fn new() -> Self {
        let directory = Directory::new();
        fs::create_dir(directory.path().join("config")).unwrap();
        Self { directory, authority: Authority::generate("cluster.local", LIFETIME).unwrap() }
    }

    /// A file of this test's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a file of resources in place.
    pub fn configure(&self, name: &str, yaml: &str) {
        fs::write(self.file("config").join(name), yaml).unwrap();
    }

    /// An SVID of this mesh for `ns/shop/sa/ACCOUNT`.
    pub fn identity(&self, account: &str, key: KeyType) -> Identity {
        let profile = Profile { key_type: key, ..Profile::workload(id(account), LIFETIME) };
        let issued = self.authority.issue(&profile).unwrap();
        self.write_identity(&format!("{account}-{key:?}"), &issued)
    }

    /// The same id under a root that nobody here has heard of; it trusts this mesh.
    pub fn forged(&self, account: &str) -> Identity {
        let stranger = Authority::generate("cluster.local", LIFETIME).unwrap();
        let issued = stranger.issue(&Profile::workload(id(account), LIFETIME)).unwrap();
        self.write_identity(&format!("{account}-forged"), &issued)
    }

    fn write_identity(&self, name: &str, issued: &Issued) -> Identity {
        let dir = self.file(name);
        fs::create_dir_all(&dir).unwrap();
        let identity = Identity { dir };
        fs::write(identity.certificate(), &issued.certificate_pem).unwrap();
        fs::write(identity.key(), &issued.key_pem).unwrap();
        fs::write(identity.roots(), self.authority.certificate_pem()).unwrap();
        identity
    }

    /// A sidecar in front of an application: it takes mutual TLS only, and allows `caller` only.
    pub fn serving(&self, identity: &Identity, application: SocketAddr) -> Sidecar {
        self.serving_by(writ(), &format!("files:{}", identity.dir.display()), application)
    }

    /// The same by a program of its own and a source of identities.
    pub fn serving_by(&self, program: &Path, identity: &str, application: SocketAddr) -> Sidecar {
        self.configure("policy.yaml", POLICY);
        self.serving_with(program, identity, application, &[])
    }

    /// The same by policies of the test's own, and with further flags.
    pub fn serving_with(
        &self,
        program: &Path,
        identity: &str,
        application: SocketAddr,
        more: &[&str],
    ) -> Sidecar {
        let forward = format!("--forward=127.0.0.1:0={application}");
        let flags = [&["--labels=app=server", "--outbound=off", &forward], more].concat();
        self.sidecar(program, "server", identity, &flags)
    }

    /// A caller's sidecar. `servers` are services by name, each with one endpoint, whose pods have the account `server`.
    pub fn calling(&self, identity: &Identity, servers: &BTreeMap<String, SocketAddr>) -> Sidecar {
        self.calling_by(writ(), &format!("files:{}", identity.dir.display()), servers)
    }

    /// The same by a program of its own and a source of identities.
    pub fn calling_by(
        &self,
        program: &Path,
        identity: &str,
        servers: &BTreeMap<String, SocketAddr>,
    ) -> Sidecar {
        self.calling_as(program, "caller", identity, servers)
    }

    /// The same for an account of its own.
    pub fn calling_as(
        &self,
        program: &Path,
        account: &str,
        identity: &str,
        servers: &BTreeMap<String, SocketAddr>,
    ) -> Sidecar {
        self.configure("servers.yaml", &services(servers));
        self.sidecar(program, account, identity, &["--outbound=127.0.0.1:0"])
    }

    /// A gateway that shows this certificate to everybody.
    pub fn edge(&self, identity: &Identity) -> Sidecar {
        let pem = |path: PathBuf| fs::read_to_string(path).unwrap().replace('\n', "\n    ");
        let (certificate, key, port) = (pem(identity.certificate()), pem(identity.key()), free_port());
        self.configure(
            "edge.yaml",
            &format!(
                "apiVersion: v1
kind: Secret
metadata: {{name: front, namespace: shop}}
stringData:
  tls.crt: |
    {certificate}
  tls.key: |
    {key}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: front, namespace: shop}}
spec:
  gatewayClassName: writ
  addresses: [{{value: 127.0.0.1}}]
  listeners: [{{name: tls, port: {port}, protocol: HTTPS, tls: {{certificateRefs: [{{name: front}}]}}}}]
"
            ),
        );
        self.running(
            "gateway",
            writ(),
            "server",
            &format!("files:{}", identity.dir.display()),
            &["--gateway=shop/front", "--labels=app=front"],
        )
    }

    fn sidecar(&self, program: &Path, account: &str, identity: &str, more: &[&str]) -> Sidecar {
        self.running("sidecar", program, account, identity, more)
    }

    fn running(&self, role: &str, program: &Path, account: &str, identity: &str, more: &[&str]) -> Sidecar {
        let mut run = Command::new(program);
        run.args(["run", "--role", role, "--inbound=off", "--admin=off", "--health=off", "--metrics=off"]);
        run.args(["--workload", &format!("shop/{account}"), "--service-account", account]).args(more);
        run.args(["--workers=1", "--drain=0s", "--lame-duck=0s", "--identity", identity]);
        run.arg("--config").arg(self.file("config"));
        let program = Program::start(&format!("{account}'s {role}"), &mut run);
        let line = program.error_line(|line| line.contains("\"serving\""));
        let serving: Value = serde_json::from_str(&line).unwrap();
        let address = text(&serving, "/listening").trim_matches(['[', ']']).parse().unwrap();
        Sidecar { program, address }
    }
}

/// A running proxy.
pub struct Sidecar {
    program: Program,
    /// Of its one listener.
    pub address: SocketAddr,
}

impl Sidecar {
    pub fn records(&self) -> Records<'_> {
        Records::of(&self.program)
    }
}

/// An application, on a thread of its own: these tests wait for programs, not for futures.
pub struct Application {
    app: App,
    _end: tokio::sync::oneshot::Sender<()>,
}

impl Application {
    pub fn start<F: Future<Output = App>>(app: impl FnOnce() -> F + Send + 'static) -> Self {
        let (started, app_of) = std::sync::mpsc::channel();
        let (end, ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let _ = started.send(app().await);
                let _ = ended.await;
            });
        });
        Self { app: app_of.recv().unwrap(), _end: end }
    }
}

impl std::ops::Deref for Application {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

/// What a record says was agreed: version, suite, group.
#[track_caller]
pub fn agreed(record: &Value) -> [&str; 3] {
    let evidence = &check(record, "encryption")["evidence"];
    ["/tls", "/suite", "/group"].map(|name| text(evidence, name))
}

/// curl, with nothing of the host's settings.
pub fn curl(arguments: &[&str]) -> Finished {
    let mut curl = Command::new("curl");
    curl.args(["--disable", "--silent", "--show-error", "--max-time", "20", "--noproxy", "*"]);
    Finished::of(curl.args(arguments))
}

/// Asks for a path, and gives the status.
pub fn status(http2: bool, host: &str, url: &str) -> String {
    let protocol = if http2 { "--http2-prior-knowledge" } else { "--http1.1" };
    let host = format!("Host: {host}");
    curl(&[protocol, "--output", "/dev/null", "--write-out", "%{http_code}", "--header", &host, url]).well()
}

/// The path that a record is of.
pub fn of_path(path: &str) -> impl Fn(&Value) -> bool + '_ {
    move |record| text(record, "/request/path") == path
}

/// Where a peer of this name was installed, or that the test can't run.
pub fn installed(test: &str, path: &str) -> Option<PathBuf> {
    let program = cache().join(path);
    if program.is_file() {
        return Some(program);
    }
    crate::skipped(test, &format!("{path} as tests/peers.sh installs it"));
    None
}

/// Where `tests/peers.sh` puts things.
pub fn cache() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache");
    std::env::var_os("WRIT_CACHE").map_or_else(default, PathBuf::from)
}

fn services(servers: &BTreeMap<String, SocketAddr>) -> String {
    let mut yaml = String::from(
        "apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop, labels: {app: server, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: server}
status: {podIP: 127.0.0.1}
",
    );
    for (name, address) in servers {
        // A service whose name says so speaks HTTP/2 to its endpoints.
        let port_name = if name.contains("h2") { "http2" } else { "http" };
        write!(
            yaml,
            "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{app: server}}
  ports: [{{name: {port_name}, port: 80, targetPort: {port}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: {port_name}, port: {port}}}]
endpoints: [{{addresses: [127.0.0.1], targetRef: {{kind: Pod, name: server, namespace: shop}}}}]
",
            port = address.port()
        )
        .unwrap();
    }
    yaml
}

const POLICY: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/caller]}}]
";
