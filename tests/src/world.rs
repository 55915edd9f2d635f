//! A mesh of real proxies in this process: a caller's sidecar, and one for each server.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use control_client::Workload;
use proxy::app::{self, Running, Settings};
use proxy::identity;
use proxy::roles::{Forward, Open, Role};
use proxy::telemetry::{DEFAULT_PROGRESS, Sample, Sink};
use proxy::worker::Deadlines;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::records::{Gathering, Tap};
use crate::{
    Agent, Client, Credentials, Directory, Explainer, Pki, Record, Records, Reply, Server, cluster, soon,
};

/// A mesh as it is to be.
pub struct World {
    services: Vec<String>,
    servers: Vec<Server>,
    documents: Vec<String>,
    candidate: Option<String>,
    issuer_ca: Option<PathBuf>,
    deadlines: Deadlines,
    drain: Duration,
    progress: Duration,
    workers: usize,
    tap: Option<Tap>,
    files: bool,
    agent: bool,
    gateway: bool,
}

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Records on their way to the test. More than a test leaves at once.
const RECORDS: usize = 1 << 16;
/// So many records of a mesh are compared with what is explained of them.
const EXPLAINED: usize = 300;

impl World {
    /// With the caller's sidecar alone.
    pub fn new() -> Self {
        Self {
            services: Vec::new(),
            servers: Vec::new(),
            documents: Vec::new(),
            candidate: None,
            issuer_ca: None,
            deadlines: Deadlines::default(),
            drain: Duration::ZERO,
            progress: DEFAULT_PROGRESS,
            workers: 1,
            tap: None,
            files: false,
            agent: false,
            gateway: false,
        }
    }

    /// With a server.
    pub fn server(mut self, server: Server) -> Self {
        self.servers.push(server);
        self
    }

    /// With a service that has no instance of its own.
    pub fn service(mut self, name: &str) -> Self {
        self.services.push(name.into());
        self
    }

    /// With resources, in a file of their own.
    pub fn policy(mut self, yaml: &str) -> Self {
        self.documents.push(yaml.into());
        self
    }

    /// With a candidate of these resources beside the cluster's own, which is never in force.
    pub fn candidate(self, yaml: &str) -> Self {
        Self { candidate: Some(yaml.into()), ..self }
    }

    /// With an issuer whose server the proxies know.
    pub fn issuer(self, issuer: &crate::Issuer) -> Self {
        Self { issuer_ca: Some(issuer.authority()), ..self }
    }

    /// With other deadlines.
    pub fn deadlines(self, deadlines: Deadlines) -> Self {
        Self { deadlines, ..self }
    }

    /// With so much time to stop.
    pub fn drain(self, drain: Duration) -> Self {
        Self { drain, ..self }
    }

    /// With `progress` lines of what is so old.
    pub fn progress(self, progress: Duration) -> Self {
        Self { progress, ..self }
    }

    /// With so many data threads a proxy.
    pub fn workers(self, workers: usize) -> Self {
        Self { workers, ..self }
    }

    /// With identities in files, which a test can replace: see [`Mesh::credentials`].
    pub fn with_files(self) -> Self {
        Self { files: true, ..self }
    }

    /// With identities of a SPIFFE Workload API: see [`Mesh::agent`].
    pub fn with_agent(self) -> Self {
        Self { agent: true, ..self }
    }

    /// With a proxy that serves Gateway `bookinfo/front`, which a policy is to describe: see [`crate::free_port`].
    pub fn with_gateway(self) -> Self {
        Self { gateway: true, ..self }
    }

    /// Looks at each record as it comes, and keeps none: for more of them than fit.
    pub fn tap(self, tap: impl FnMut(&Record) + Send + 'static) -> Self {
        Self { tap: Some(Box::new(tap)), ..self }
    }

    /// Starts it.
    pub async fn start(self) -> Mesh {
        self.try_start().await.unwrap()
    }

    /// The same where a proxy may refuse to start.
    pub async fn try_start(self) -> anyhow::Result<Mesh> {
        // Starting takes a moment that applications of this runtime should not lose.
        tokio::task::spawn_blocking(move || self.start_blocking()).await.unwrap()
    }

    fn start_blocking(mut self) -> anyhow::Result<Mesh> {
        let pki = Pki::new();
        let agent = self.agent.then(|| {
            let servers = self.servers.iter().map(|server| workload(server).service_account);
            Agent::start(&pki, &servers.chain([caller().service_account]).collect::<Vec<_>>())
        });
        let config = Directory::new();
        config.write("cluster.yaml", &cluster::services(&self.services, &self.servers));
        for (number, document) in self.documents.iter().enumerate() {
            config.write(&format!("policy-{number}.yaml"), document);
        }
        let candidate = Directory::new();
        candidate.write("cluster.yaml", &cluster::services(&self.services, &self.servers));
        candidate.write("candidate.yaml", self.candidate.as_deref().unwrap_or_default());
        let (sender, records) = mpsc::channel(RECORDS);
        let tap = self.tap.take();
        let mut credentials = HashMap::new();
        let mut settings = |workload: Workload| {
            let identity = if let Some(agent) = &agent {
                agent.source()
            } else if self.files {
                let files = pki.credentials(&workload.service_account);
                let source = files.source();
                credentials.insert(workload.name.clone(), files);
                source
            } else {
                pki.source()
            };
            let crl = Some(pki.list_path());
            Settings { crl, ..self.settings(workload, &config, &candidate, identity, sender.clone()) }
        };

        let mut sidecars = Vec::new();
        let mut located = Vec::new();
        for server in &self.servers {
            let mut at = server.app;
            if server.sidecar {
                let forwards = vec![Forward { listen: ANY_PORT, app: server.app }];
                let sidecar = app::start(Settings { forwards, ..settings(workload(server)) })?;
                at = sidecar.listening()[0];
                sidecars.push((server.name.clone(), sidecar));
            }
            located.push((server.clone(), at));
        }
        config.write("endpoints.yaml", &cluster::endpoints(located.iter().map(|(server, at)| (server, *at))));
        if self.gateway {
            let front = Settings { role: Role::Gateway, ..settings(front()) };
            sidecars.push((FRONT.to_owned(), app::start(front)?));
        }
        let caller = Settings { outbound: Open::At(ANY_PORT), ..settings(caller()) };
        let caller = app::start(caller)?;
        Ok(Mesh {
            entrance: caller.listening()[0],
            caller: Some(caller),
            sidecars,
            located,
            documents: self.documents,
            config,
            _candidate: candidate,
            pki,
            credentials,
            agent,
            records: Some(Gathering::start(records, tap)),
        })
    }

    fn settings(
        &self,
        workload: Workload,
        config: &Directory,
        candidate: &Directory,
        identity: identity::Source,
        records: mpsc::Sender<String>,
    ) -> Settings {
        Settings {
            role: Role::Sidecar,
            config: Some(config.path().to_owned()),
            candidate: self.candidate.is_some().then(|| candidate.path().to_owned()),
            config_strict: false,
            workload,
            identity: Some(identity),
            crl: None,
            issuer_ca: self.issuer_ca.clone(),
            outbound: Open::Off,
            inbound: Open::Off,
            forwards: Vec::new(),
            admin: Open::At(ANY_PORT),
            health: Open::Off,
            metrics: Open::Off,
            workers: self.workers,
            record: Sink::Channel(records),
            sample: Sample::ALL,
            progress: self.progress,
            mark: None,
            drain: self.drain,
            lame_duck: Duration::ZERO,
            deadlines: self.deadlines,
        }
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// How often a proxy took another identity, as its metrics tell.
async fn rotations(sidecar: &Running) -> u64 {
    let metrics = ask_admin_text(sidecar, "/metrics").await;
    let count = metrics.lines().find_map(|line| line.strip_prefix("writ_identity_rotations_total "));
    count.expect("rotations are counted").parse().unwrap()
}

fn workload(server: &Server) -> Workload {
    Workload {
        namespace: "bookinfo".into(),
        name: server.name.clone(),
        service_account: server.proves.clone().unwrap_or_else(|| server.account.clone()),
        labels: [("app".into(), server.label.clone()), ("version".into(), server.name.clone())].into(),
        trust_domain: "cluster.local".into(),
        gateway: None,
    }
}

const FRONT: &str = "front";

fn front() -> Workload {
    Workload {
        namespace: "bookinfo".into(),
        name: FRONT.into(),
        service_account: FRONT.into(),
        labels: [("gateway.networking.k8s.io/gateway-name".into(), FRONT.into())].into(),
        trust_domain: "cluster.local".into(),
        gateway: Some(FRONT.into()),
    }
}

fn caller() -> Workload {
    Workload {
        namespace: "bookinfo".into(),
        name: "productpage".into(),
        service_account: "productpage".into(),
        labels: [("app".into(), "productpage".into())].into(),
        trust_domain: "cluster.local".into(),
        gateway: None,
    }
}

/// A mesh at work. Dropping it stops it; [`Mesh::stop`] also gives its records.
pub struct Mesh {
    /// The outbound listener of the caller's sidecar.
    pub entrance: SocketAddr,
    /// The authority of its identities.
    pub pki: Pki,
    caller: Option<Running>,
    sidecars: Vec<(String, Running)>,
    located: Vec<(Server, SocketAddr)>,
    documents: Vec<String>,
    config: Directory,
    _candidate: Directory,
    credentials: HashMap<String, Credentials>,
    agent: Option<Agent>,
    records: Option<Gathering>,
}

impl Mesh {
    /// A connection to the caller's sidecar.
    pub async fn client(&self) -> Client {
        Client::connect(self.entrance).await
    }

    /// GET of a path of `ratings:9080` through the caller's sidecar, on a connection of its own.
    pub async fn get(&self, path: &str) -> Reply {
        self.client().await.get(path, "").await
    }

    /// The inbound listener of a server's sidecar.
    pub fn inbound(&self, server: &str) -> SocketAddr {
        let located = self.located.iter().find(|(known, _)| known.name == server);
        located.unwrap_or_else(|| panic!("no server {server}")).1
    }

    /// The configuration that all proxies follow.
    pub fn config(&self) -> &Directory {
        &self.config
    }

    /// Where the configuration is.
    pub fn config_path(&self) -> PathBuf {
        Path::to_owned(self.config.path())
    }

    /// The file that says who is where, with other addresses for a server.
    pub fn endpoints_with(&self, server: &str, addresses: &[SocketAddr]) -> String {
        let others = self.located.iter().filter(|(known, _)| known.name != server);
        let moved = self.located.iter().filter(|(known, _)| known.name == server);
        let moved = moved.flat_map(|(known, _)| addresses.iter().map(move |address| (known, *address)));
        cluster::endpoints(others.map(|(known, at)| (known, *at)).chain(moved))
    }

    /// What a server's sidecar answers at an admin path, as soon as it is as asked.
    pub async fn admin_says(&self, server: &str, path: &str, asked: impl Fn(&Value) -> bool) -> Value {
        let sidecar = self.sidecars.iter().find(|(name, _)| name == server).map(|(_, sidecar)| sidecar);
        let sidecar = sidecar.unwrap_or_else(|| panic!("no sidecar of {server}"));
        soon(path, async {
            let mut interval = tokio::time::interval(Duration::from_millis(20));
            loop {
                let said = ask_admin(sidecar, path).await;
                if asked(&said) {
                    return said;
                }
                interval.tick().await;
            }
        })
        .await
    }

    /// What a server's sidecar, or `front`, says of whether it is ready.
    pub async fn ready(&self, server: &str) -> String {
        let sidecar = self.sidecars.iter().find(|(name, _)| name == server).map(|(_, sidecar)| sidecar);
        ask_admin_text(sidecar.unwrap_or_else(|| panic!("no sidecar of {server}")), "/ready").await
    }

    /// Waits until every proxy's `/config` is as asked.
    pub async fn config_is(&self, what: &str, asked: impl Fn(&Value) -> bool) {
        let sidecars = self.sidecars.iter().map(|(_, sidecar)| sidecar).chain(&self.caller);
        soon(what, async {
            for sidecar in sidecars {
                // Asking again is the only way to learn that it changed.
                let mut interval = tokio::time::interval(Duration::from_millis(20));
                while !asked(&ask_admin(sidecar, "/config").await) {
                    interval.tick().await;
                }
            }
        })
        .await;
    }

    /// What the proxy that left a record explains of the same request. Headers are not in records.
    pub async fn explain(&self, record: &Record, headers: &[(&str, &str)]) -> Record {
        let mut query = format!(
            "side={}&method={}&url=http://{}{}",
            record.side(),
            record.text("/request/method"),
            record.text("/request/authority"),
            record.path()
        );
        if record.side() == "inbound" {
            query.push_str(&format!("&destination={}", record.text("/destination/address")));
        }
        match record.text("/source/identity") {
            "" => {}
            identity => query.push_str(&format!("&from={identity}")),
        }
        for (name, value) in headers {
            query.push_str(&format!("&header={name}%3D{value}"));
        }
        let left_by = |name: &str| record.text("/proxy/workload") == format!("bookinfo/{name}");
        let sidecar = self.sidecars.iter().find(|(name, _)| left_by(name)).map(|(_, sidecar)| sidecar);
        let sidecar = sidecar.or(self.caller.as_ref()).expect("the proxy that left the record");
        Record::new(ask_admin(sidecar, &format!("/explain?{query}")).await)
    }

    /// The files of a proxy's identity, of a mesh [`World::with_files`]: of a server's by its name, of the caller's sidecar
    /// by `productpage`.
    pub fn credentials(&self, name: &str) -> &Credentials {
        self.credentials.get(name).unwrap_or_else(|| panic!("no files of {name}"))
    }

    /// The Workload API of a mesh [`World::with_agent`].
    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("a mesh that has one")
    }

    /// Replaces the files of every identity by `issue`, and waits until each proxy has taken them.
    pub async fn renew(&self, renew: impl Fn(&Credentials)) {
        let sidecars = || {
            let servers = self.sidecars.iter().map(|(name, sidecar)| (name.as_str(), sidecar));
            servers.chain(self.caller.iter().map(|caller| ("productpage", caller)))
        };
        let mut before = Vec::new();
        for (_, sidecar) in sidecars() {
            before.push(rotations(sidecar).await);
        }
        sidecars().for_each(|(name, _)| renew(self.credentials(name)));
        soon("the renewal", async {
            for ((_, sidecar), before) in sidecars().zip(before) {
                while rotations(sidecar).await == before {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        })
        .await;
    }

    /// What a server's sidecar counted, as Prometheus text.
    pub async fn metrics(&self, server: &str) -> String {
        let (_, sidecar) =
            self.sidecars.iter().find(|(name, _)| name == server).expect("a sidecar of that name");
        ask_admin_text(sidecar, "/metrics").await
    }

    /// Stops one server's sidecar; how many connections were cut.
    pub async fn stop_server(&mut self, server: &str) -> usize {
        let at = self.sidecars.iter().position(|(name, _)| name == server).expect("a sidecar of that name");
        let (_, sidecar) = self.sidecars.swap_remove(at);
        soon("the stop", tokio::task::spawn_blocking(|| sidecar.stop())).await.unwrap().unwrap()
    }

    /// Connections that the proxies have open.
    pub fn open(&self) -> usize {
        let sidecars = self.sidecars.iter().map(|(_, sidecar)| sidecar.open());
        sidecars.chain(self.caller.as_ref().map(Running::open)).sum()
    }

    /// The first record that is as asked, as soon as it is there.
    pub async fn record(&self, what: &str, asked: impl Fn(&Record) -> bool) -> Record {
        self.records.as_ref().unwrap().wait_for(what, asked).await
    }

    /// The first `progress` line that is as asked, likewise.
    pub async fn progress(&self, what: &str, asked: impl Fn(&Record) -> bool) -> Record {
        self.records.as_ref().unwrap().wait_for_progress(what, asked).await
    }

    /// Stops all proxies and gives every record that they left.
    pub async fn stop(self) -> Records {
        self.stop_counting().await.0
    }

    /// The same, with how many connections were cut.
    pub async fn stop_counting(mut self) -> (Records, usize) {
        let stopped = tokio::task::spawn_blocking(move || {
            let cut = self.stop_blocking();
            let records = self.records.take().unwrap().finish();
            self.assert_explained(&records);
            (records, cut)
        });
        soon("the stop", stopped).await.unwrap()
    }

    /// What `writ explain` says of each record is what the record says, as long as the configuration is the one that
    /// decided. Headers and queries are not in records, so where policies look at them, an answer may differ.
    fn assert_explained(&self, records: &Records) {
        let names = |name: &str| format!("bookinfo/{name}");
        let servers = self.located.iter().map(|(server, _)| workload(server));
        let workloads = servers.chain([caller(), front()]).map(|workload| (names(&workload.name), workload));
        let mut explainers = HashMap::new();
        for (name, workload) in workloads {
            explainers.entry(name).or_insert_with(|| Explainer::of(self.config.path(), &workload));
        }
        let looks_at_more = ["request.headers", "headers:", "queryParams", "jwtRules"]
            .iter()
            .any(|word| self.documents.iter().any(|document| document.contains(word)));
        for record in records.all().iter().take(EXPLAINED) {
            let explainer = &explainers[record.text("/proxy/workload")];
            // Under one digest a policy holds until it expires, and then no more.
            let decided_otherwise = record.text("/config/digest") != explainer.digest()
                || record.text("/ended/reason") == "policy-changed";
            if decided_otherwise || !record.decided_by_policy() {
                continue;
            }
            if let Some(explained) = explainer.explain_record(record.json()) {
                let differs = record.differs(&explained);
                // Whose turn it is decides whether a split leads anywhere.
                let by_turn = [record, &explained].iter().any(|each| each.text("/decision/stage") == "split");
                assert!(
                    differs.is_none() || looks_at_more || by_turn,
                    "{differs:?}: {record:?}\n{explained:?}"
                );
            }
        }
    }

    fn stop_blocking(&mut self) -> usize {
        let caller = self.caller.take();
        let running = caller.into_iter().chain(self.sidecars.drain(..).map(|(_, sidecar)| sidecar));
        let stopping: Vec<_> = running.map(|proxy| std::thread::spawn(|| proxy.stop())).collect();
        stopping.into_iter().map(|stopped| stopped.join().unwrap().unwrap()).sum()
    }
}

async fn ask_admin(sidecar: &Running, path: &str) -> Value {
    let text = ask_admin_text(sidecar, path).await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
}

async fn ask_admin_text(sidecar: &Running, path: &str) -> String {
    let mut admin = Client::connect(sidecar.admin()[0].0).await;
    admin.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await;
    admin.reply().await.text().to_owned()
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop_blocking();
        }
    }
}
