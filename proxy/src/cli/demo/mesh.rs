//! The demo's parts: an authority, two versions of a service, three sidecars, an edge, and the directory that configures
//! them.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use control_client::Workload;
use fips::ca::{Authority, Profile};
use http::Response;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::sync::{mpsc, oneshot};

use crate::app::{self, Running, Settings};
use crate::identity;
use crate::roles::{Forward, Open, Role};
use crate::telemetry::{DEFAULT_PROGRESS, Sample, Sink};
use crate::worker::Deadlines;

/// The demo at work.
pub struct Mesh {
    /// Where a `productpage` would send its calls: its sidecar's outbound listener.
    pub entrance: SocketAddr,
    /// The inbound listener of the first version's sidecar, to be called past the entrance.
    pub ratings: SocketAddr,
    /// Where the edge takes `https://shop.test`.
    pub edge: SocketAddr,
    directory: Scratch,
    sidecars: Vec<Running>,
    _backends: Vec<oneshot::Sender<()>>,
}

const VERSIONS: [&str; 2] = ["v1", "v2"];
/// Records on their way to the screen.
const RECORDS: usize = 4096;

impl Mesh {
    /// Starts everything; port 0 lets the system choose the entrance's. The receiver gets all records as JSON lines.
    pub fn start(port: u16) -> anyhow::Result<(Self, mpsc::Receiver<String>)> {
        let directory = Scratch::new()?;
        let authority = directory.0.join("authority");
        let config = directory.config();
        std::fs::create_dir(&config).with_context(|| format!("can't make {}", config.display()))?;
        let (sender, records) = mpsc::channel(RECORDS);

        let mut backends = Vec::new();
        let mut inbound = Vec::new();
        for version in VERSIONS {
            let (app, stop) = backend(version)?;
            backends.push(stop);
            inbound.push(Forward { listen: free_port()?, app });
        }
        let listens: Vec<_> = inbound.iter().map(|forward| forward.listen).collect();
        write_config(&config, &listens)?;
        // All of it before the first proxy starts: a request must not come before what allows it is known.
        let edge = free_port()?;
        write_edge(&identity::development_authority(&authority, "cluster.local")?, &config, edge)?;

        let settings = |name: &str, account: &str, labels: &[(&str, &str)]| Settings {
            role: Role::Sidecar,
            config: Some(config.clone()),
            candidate: None,
            config_strict: false,
            workload: Workload {
                namespace: "bookinfo".into(),
                name: name.into(),
                service_account: account.into(),
                labels: labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
                trust_domain: "cluster.local".into(),
                gateway: None,
            },
            identity: Some(identity::Source::Dev(authority.clone())),
            crl: None,
            issuer_ca: None,
            outbound: Open::Off,
            inbound: Open::Off,
            forwards: Vec::new(),
            admin: Open::Off,
            health: Open::Off,
            metrics: Open::Off,
            workers: 1,
            record: Sink::Channel(sender.clone()),
            sample: Sample::ALL,
            progress: DEFAULT_PROGRESS,
            mark: None,
            drain: Duration::from_millis(500),
            lame_duck: Duration::ZERO,
            deadlines: Deadlines::default(),
        };
        let mut sidecars = Vec::new();
        for (version, forward) in VERSIONS.iter().zip(inbound) {
            let name = format!("ratings-{version}");
            let labels = [("app", "ratings"), ("version", version)];
            sidecars.push(app::start(Settings {
                forwards: vec![forward],
                ..settings(&name, "ratings", &labels)
            })?);
        }
        let mut front = settings("front", "front", &[("app", "front")]);
        front.workload.gateway = Some("front".into());
        sidecars.push(app::start(Settings { role: Role::Gateway, ..front })?);
        let entrance = Open::At((Ipv4Addr::LOCALHOST, port).into());
        let caller = settings("productpage", "productpage", &[("app", "productpage")]);
        sidecars.push(app::start(Settings { outbound: entrance, ..caller })?);
        let entrance = sidecars.last().and_then(|sidecar| sidecar.listening().first().copied());
        let mesh = Self {
            entrance: entrance.context("the entrance is not listening")?,
            ratings: listens[0],
            edge,
            directory,
            sidecars,
            _backends: backends,
        };
        Ok((mesh, records))
    }

    /// The configuration that the sidecars follow, to be edited.
    pub fn config(&self) -> PathBuf {
        self.directory.config()
    }

    /// The root that vouches for the edge, PEM.
    pub fn roots(&self) -> PathBuf {
        self.directory.0.join("authority").join("ca.crt")
    }

    /// Stops everything and removes what was written.
    pub fn stop(self) -> anyhow::Result<()> {
        let stopping: Vec<_> =
            self.sidecars.into_iter().map(|sidecar| std::thread::spawn(move || sidecar.stop())).collect();
        for stopped in stopping {
            stopped.join().map_err(|_| anyhow::anyhow!("a sidecar panicked"))??;
        }
        Ok(())
    }
}

/// A directory for keys and configuration: the user's alone, and removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("writ-demo-{}", std::process::id()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("can't make {}", path.display()))?;
        Ok(Self(path))
    }

    fn config(&self) -> PathBuf {
        self.0.join("config")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed is left to whoever clears temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A service that says which version of it answers.
fn backend(version: &'static str) -> anyhow::Result<(SocketAddr, oneshot::Sender<()>)> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let (stop, mut stopped) = oneshot::channel::<()>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name(format!("ratings-{version}")).spawn(move || {
        runtime.block_on(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            loop {
                let socket = tokio::select! {
                    accepted = listener.accept() => accepted.map(|(socket, _)| socket),
                    _ = &mut stopped => return,
                };
                if let Ok(socket) = socket {
                    tokio::spawn(answer(socket, version));
                }
            }
        });
    })?;
    Ok((address, stop))
}

async fn answer(socket: tokio::net::TcpStream, version: &'static str) {
    let service =
        hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| async move {
            let id = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let body = serde_json::json!({ "id": id, "version": version, "stars": 5 }).to_string() + "\n";
            let mut response = Response::new(Full::new(Bytes::from(body)));
            response
                .headers_mut()
                .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
            Ok::<_, std::convert::Infallible>(response)
        });
    // A caller that leaves is its own affair.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}

/// A port nobody listens on now. The sidecar takes it a moment later; a race would be reported when it binds.
fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// For so long the certificate of the edge is good.
const EDGE_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The Gateway, and the certificate that it shows.
fn write_edge(authority: &Authority, directory: &Path, edge: SocketAddr) -> anyhow::Result<()> {
    let issued = authority.issue(&Profile::server(&["shop.test"], EDGE_LIFETIME))?;
    let block = |pem: &str| pem.replace('\n', "\n    ");
    let gateway = format!(
        "# Where the edge listens, and what it shows.
apiVersion: v1
kind: Secret
metadata: {{name: shop, namespace: bookinfo}}
type: kubernetes.io/tls
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
  - {{name: shop, port: {port}, protocol: HTTPS, hostname: shop.test, tls: {{certificateRefs: [{{name: shop}}]}}}}
",
        certificate = block(&issued.certificate_pem),
        key = block(&issued.key_pem),
        ip = edge.ip(),
        port = edge.port(),
    );
    std::fs::write(directory.join("gateway.yaml"), gateway)?;
    std::fs::write(directory.join("edge.yaml"), include_str!("edge.yaml"))?;
    Ok(())
}

/// What a person writes, and what a cluster would know: where the versions are.
fn write_config(directory: &Path, ratings: &[SocketAddr]) -> anyhow::Result<()> {
    let mut cluster = String::from("# What a cluster would know: who is where.\n");
    for (version, address) in VERSIONS.iter().zip(ratings) {
        write!(
            cluster,
            r#"apiVersion: v1
kind: Pod
metadata:
  name: ratings-{version}
  namespace: bookinfo
  labels: {{app: ratings, version: {version}, security.istio.io/tlsMode: istio}}
spec: {{serviceAccountName: ratings}}
status: {{podIP: 127.0.0.1}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: ratings-{version}, namespace: bookinfo, labels: {{kubernetes.io/service-name: ratings-{version}}}}}
addressType: IPv4
ports: [{{name: http, port: {port}}}]
endpoints:
- addresses: [127.0.0.1]
  targetRef: {{kind: Pod, name: ratings-{version}, namespace: bookinfo}}
---
"#,
            port = address.port()
        )?;
    }
    std::fs::write(directory.join("cluster.yaml"), cluster)?;
    std::fs::write(directory.join("policy.yaml"), include_str!("config.yaml"))?;
    Ok(())
}
