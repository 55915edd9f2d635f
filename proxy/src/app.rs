//! The only wiring: builds what is shared, lists every background task, and stops it all in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use control_client::snapshot::Snapshot;
use control_client::{Source, Status, Workload};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use crate::admin::{self, AdminState, Readiness};
use crate::candidate::{self, Candidate};
use crate::conn;
use crate::drain::{Drain, DrainSignal, Phase};
use crate::explain::{Query, explain};
use crate::generation::{Current, Published};
use crate::identity::{self, Health, Identity, IdentityError, SpiffeId};
use crate::jwks;
use crate::jwt::Tokens;
use crate::limits::{self, Budget};
use crate::listen::{self, Accepted, Handed, Placement, Ports, Standing};
use crate::live::Live;
use crate::memory::Memory;
use crate::net::OwnListeners;
use crate::reload;
use crate::roles::{self, Forward, Open, Role};
use crate::sample::Samples;
use crate::telemetry::{self, ConfigStatus, ProxyFacts, Record, Side, Telemetry};
use crate::threads::Thread;
use crate::tls::{ClientTls, GatewayTls, ServerTls};
use crate::upstream::{self, Registry, Upstream};
use crate::worker::{Deadlines, Worker};

/// What a proxy is told at start. Resources come from its source, never from here.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which listeners it opens.
    pub role: Role,
    /// Where configuration comes from; `None`: no resources.
    pub config: Option<PathBuf>,
    /// A configuration that is never in force, to be asked about a sample of the traffic; `None`: none.
    pub candidate: Option<PathBuf>,
    /// Any diagnostic refuses the whole configuration.
    pub config_strict: bool,
    /// Whom it stands for.
    pub workload: Workload,
    /// Where its identity comes from; `None`: plaintext only.
    pub identity: Option<identity::Source>,
    /// Revocation lists, besides those that may lie beside the certificate.
    pub crl: Option<PathBuf>,
    /// Roots that vouch for the servers of token issuers, PEM; `None`: the system's bundle.
    pub issuer_ca: Option<PathBuf>,
    /// Outbound listener.
    pub outbound: Open,
    /// Inbound listener.
    pub inbound: Open,
    /// Inbound listeners without interception.
    pub forwards: Vec<Forward>,
    /// Admin listener.
    pub admin: Open,
    /// Health listener.
    pub health: Open,
    /// Metrics listener.
    pub metrics: Open,
    /// Data threads.
    pub workers: usize,
    /// Where records go.
    pub record: telemetry::Sink,
    /// Which share of them.
    pub sample: telemetry::Sample,
    /// Age at which the record of what is still open says so, and how often it says so again.
    pub progress: Duration,
    /// `SO_MARK` of the proxy's own sockets.
    pub mark: Option<u32>,
    /// Deadline of a graceful stop.
    pub drain: Duration,
    /// How long accepting goes on while readiness already fails.
    pub lame_duck: Duration,
    /// Deadlines of the data path.
    pub deadlines: Deadlines,
}

/// A proxy at work: its threads, and the way to stop them.
pub struct Running {
    settings: Settings,
    drain: Drain,
    stop: watch::Sender<bool>,
    ready: Arc<Readiness>,
    telemetry: Arc<Telemetry>,
    workers: Vec<Thread>,
    control: Thread,
    admin: admin::Handle,
    listening: Vec<SocketAddr>,
    admin_addresses: Vec<(SocketAddr, admin::Kind)>,
}

/// Starts a proxy: when this returns, its listeners are bound and its first configuration is in force.
pub fn start(settings: Settings) -> anyhow::Result<Running> {
    let attestation = fips::install();
    let own_id = SpiffeId::for_workload(
        &settings.workload.trust_domain,
        &settings.workload.namespace,
        &settings.workload.service_account,
    )
    .context("the workload's own identity")?;
    let identity = match &settings.identity {
        Some(source) => Some(
            Identity::load(
                source.clone(),
                &settings.workload.trust_domain,
                Some(own_id),
                settings.crl.clone(),
            )
            .map_err(|error| match error {
                IdentityError::Lists { .. } => error.into(),
                error => anyhow::Error::new(error).context(format!("can't load an identity from {source}")),
            })?,
        ),
        None => None,
    };
    let listeners = roles::listeners(settings.role, settings.outbound, settings.inbound, &settings.forwards);
    let options = control_client::Options {
        strict: settings.config_strict,
        // The listeners of a gateway come with its configuration.
        inbound: settings.role == Role::Gateway || listeners.iter().any(|at| at.side == Side::Inbound),
    };
    let configuration = Configuration::start(&settings, options.clone())?;
    let registry = Registry::new();
    let generation = reload::first(&configuration.first, &registry)?;
    let status = reload::status_of(&configuration.first, &generation, None);
    let issuers = jwks::Options { authority: settings.issuer_ca.clone(), mark: settings.mark };
    let keys = jwks::Store::new(issuers.clone());
    keys.follow(generation.tables.authentication().remote_keys());
    let published = Published::new(generation);
    let proxy = ProxyFacts {
        role: settings.role.as_str().into(),
        workload: format!("{}/{}", settings.workload.namespace, settings.workload.name),
        identity: identity.as_ref().map(|identity| identity.id().as_str().to_owned()),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let telemetry = Telemetry::start(telemetry::Options {
        proxy: proxy.clone(),
        sink: settings.record.clone(),
        sample: settings.sample,
        progress: settings.progress,
    })
    .context("can't open the record sink")?;
    telemetry.set_config(status);
    telemetry.set_issuers(Arc::clone(&keys));
    let candidate = match &settings.candidate {
        Some(source) => {
            let options = control_client::Options { strict: false, ..options };
            let (workload, counts) = (&settings.workload, telemetry.candidate());
            let started = candidate::start(source, workload, options, &proxy, issuers.clone(), counts);
            Some(started.context("--candidate")?)
        }
        None => None,
    };
    if let Some(identity) = &identity {
        identity.set_lists(&configuration.first.revocation).context("can't tell who is revoked")?;
        identity.set_aliases(&published.load().tables.mesh().trust_domain_aliases);
        telemetry.set_identity(Arc::clone(identity));
    }

    let (listeners, sockets) = listen::bind(listeners)?;
    let mut listening: Vec<_> = listeners.iter().map(|listener| listener.address).collect();
    let Admin { handle: admin, addresses: admin_addresses, ready } = start_admin(
        &settings,
        &telemetry,
        Arc::clone(&published),
        Arc::clone(&registry),
        Arc::clone(&keys),
        proxy,
        candidate.as_ref().map(|started| Arc::clone(&started.candidate)),
    )?;

    tell_config(&configuration.first.health, &ready);
    let drain = Drain::default();
    let (stop, stopping) = watch::channel(false);
    let (placement, inboxes) = Placement::new(settings.workers);
    let own_ports = listening.iter().chain(admin_addresses.iter().map(|(address, _)| address));
    let own = Arc::new(OwnListeners::new(own_ports.map(SocketAddr::port)));
    let shared = Shared {
        published: Arc::clone(&published),
        registry: Arc::clone(&registry),
        keys: Arc::clone(&keys),
        telemetry: Arc::clone(&telemetry),
        samples: candidate.as_ref().map(|started| started.samples.clone()),
        identity: identity.clone(),
        server_tls: identity.clone().map(ServerTls::mesh),
        client_tls: Arc::new(ClientTls::new(identity.clone())),
        gateway_tls: Arc::default(),
        held_bodies: Budget::new(limits::MAX_HELD_BODIES),
        own: Arc::clone(&own),
        placement: Arc::clone(&placement),
        drain: drain.clone(),
        deadlines: settings.deadlines,
        mark: settings.mark,
    };
    let mut workers = Vec::new();
    for (index, inbox) in inboxes.into_iter().enumerate() {
        let (shared, stopping) = (shared.clone(), stopping.clone());
        workers.push(Thread::start(&format!("worker-{index}"), &ready, move |runtime| {
            shared.work(runtime, index, inbox, stopping);
        })?);
    }
    // Nobody ever closes these.
    let (_, closed) = watch::channel(false);
    for (listener, socket) in listeners.into_iter().zip(&sockets) {
        placement.open(listener, socket, &closed)?;
    }
    drop(sockets);
    let ports = (settings.role == Role::Gateway).then(|| {
        let mut ports = Ports::new(placement, own);
        tell_ports(&ready, &settings.workload, ports.follow(published.load().tables.gateway()));
        listening.extend(ports.addresses());
        ports
    });
    let control = {
        let (telemetry, tell) = (Arc::clone(&telemetry), Arc::clone(&ready));
        let ports = ports.map(|ports| {
            let (tell, workload) = (Arc::clone(&ready), settings.workload.clone());
            ports.run(Arc::clone(&published), move |standing| tell_ports(&tell, &workload, standing))
        });
        Thread::start("control", &ready, move |runtime| {
            let configured =
                control(configuration, published, registry, keys, identity, telemetry, tell, stopping);
            runtime.block_on(async {
                candidate.into_iter().for_each(keep_candidate);
                ports.into_iter().for_each(|running| keep("the listeners of the Gateway", running));
                configured.await;
            });
        })?
    };
    fips::require_live()?;
    for condition in ["listeners", "identity"] {
        ready.ready(condition);
    }
    tracing::info!(
        role = settings.role.as_str(),
        workers = settings.workers,
        listening = ?listening,
        admin = ?admin_addresses.iter().map(|(address, _)| address).collect::<Vec<_>>(),
        crypto = %attestation,
        fips = attestation.fips,
        validation = attestation.statement,
        "serving"
    );
    Ok(Running {
        settings,
        drain,
        stop,
        ready,
        telemetry,
        workers,
        control,
        admin,
        listening,
        admin_addresses,
    })
}

/// For threads to end that are told to.
const LAST_MOMENT: Duration = Duration::from_secs(3);

impl Running {
    /// Where the data listeners are, in the order of the role's list.
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// Where admin, health and metrics are.
    pub fn admin(&self) -> &[(SocketAddr, admin::Kind)] {
        &self.admin_addresses
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.drain.open()
    }

    /// Stops: readiness fails first and accepting goes on for the lame-duck time; then connections finish or, after the
    /// deadline, are cut; at last everything recorded is written. Returns how many connections were cut.
    pub fn stop(self) -> anyhow::Result<usize> {
        self.stop_unless(std::future::pending())
    }

    /// The same, but cuts what is left as soon as `hurried` resolves.
    pub fn stop_unless(self, hurried: impl Future<Output = ()>) -> anyhow::Result<usize> {
        self.ready.not_ready("listeners", "draining");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let cut = runtime.block_on(async {
            let lame_duck = self.settings.lame_duck.min(self.settings.drain);
            let gracefully = async {
                tokio::time::sleep(lame_duck).await;
                self.drain.drain(self.settings.drain - lame_duck).await
            };
            tokio::select! {
                cut = gracefully => cut,
                () = hurried => self.drain.drain(Duration::ZERO).await,
            }
        });
        self.stop.send_replace(true);
        // One that no longer listens must not keep the process from its end.
        let deadline = Instant::now() + LAST_MOMENT;
        let mut ended = Ok(());
        for thread in self.workers.into_iter().chain([self.control]) {
            ended = thread.ended_by(deadline).and(ended);
        }
        self.admin.stop();
        let written = self.telemetry.shutdown(Duration::from_secs(5));
        ended?;
        anyhow::ensure!(written, "records were left unwritten");
        Ok(cut)
    }
}

/// The source of configuration at work.
struct Configuration {
    /// What came first. A newer one may already be there.
    first: Arc<Snapshot>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    status: Status,
    follow: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Keeps the channel of a proxy without a source open.
    _none: Option<watch::Sender<Arc<Snapshot>>>,
}

impl Configuration {
    fn start(settings: &Settings, options: control_client::Options) -> anyhow::Result<Self> {
        let Some(path) = &settings.config else {
            tracing::warn!("no --config: there are no services to route to and no policies to enforce");
            let first = Arc::new(control_client::load_str("", &settings.workload).snapshot);
            let (sender, snapshots) = watch::channel(Arc::clone(&first));
            let follow = Box::pin(std::future::pending());
            return Ok(Self { first, snapshots, status: Status::default(), follow, _none: Some(sender) });
        };
        let (snapshots, status, follow) =
            control_client::start(Source::Dir(path.clone()), settings.workload.clone(), options)?;
        let first = Arc::clone(&snapshots.borrow());
        Ok(Self { first, snapshots, status, follow: Box::pin(follow), _none: None })
    }
}

/// Everything that runs on the control thread.
#[expect(clippy::too_many_arguments, reason = "everything that the thread works on")]
async fn control(
    configuration: Configuration,
    published: Arc<Published>,
    registry: Arc<Registry>,
    keys: Arc<jwks::Store>,
    identity: Option<Arc<Identity>>,
    telemetry: Arc<Telemetry>,
    ready: Arc<Readiness>,
    mut stopping: watch::Receiver<bool>,
) {
    let Configuration { first, snapshots, status, follow, _none } = configuration;
    let told = Arc::clone(&ready);
    let report = move |status: ConfigStatus| {
        // How something stands that was rejected says nothing of what is in force.
        if status.rejected.is_none() {
            tell_config(&status.health, &told);
        }
        telemetry.set_config(status);
    };
    let revocation = snapshots.clone();
    keep("the source of configuration", follow);
    let in_force = Arc::clone(&first.policy);
    let aliases = Arc::clone(&published);
    keep("reload", reload::run(snapshots, in_force, published, registry, Arc::clone(&keys), status, report));
    keep("fetching the keys of token issuers", keys.run());
    if let Some(identity) = identity {
        keep("renewal of the identity", Arc::clone(&identity).watch());
        keep("trust domain aliases", follow_aliases(Arc::clone(&identity), aliases));
        keep("revocation lists of the configuration", follow_revocation(Arc::clone(&identity), revocation));
        keep("readiness of the identity", async move { tell_readiness(&identity, &ready).await });
    }
    // Only the runtime's end stops them.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Beside what is in force, and without effect on it.
fn keep_candidate(candidate: candidate::Started) {
    keep("the source of the candidate", candidate.follow);
    keep("the candidate", candidate.look);
    keep("fetching the keys that the candidate names", candidate.fetch);
}

/// Runs a background task. None is meant to end; if one does, the others and the data path go on with what they have.
fn keep(name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    let running = tokio::spawn(task);
    tokio::spawn(async move {
        match running.await {
            Ok(()) => tracing::error!("{name} ended; restart this proxy"),
            Err(failed) => tracing::error!(%failed, "{name} failed; restart this proxy"),
        }
    });
}

/// The identity treats as its own the trust domains that MeshSettings say.
async fn follow_aliases(identity: Arc<Identity>, published: Arc<Published>) {
    let mut moved = published.watch();
    loop {
        identity.set_aliases(&published.load().tables.mesh().trust_domain_aliases);
        if moved.changed().await.is_err() {
            return;
        }
    }
}

/// The identity believes nobody whom the configuration calls revoked.
async fn follow_revocation(identity: Arc<Identity>, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut seen = None;
    loop {
        let revocation = snapshots.borrow_and_update().revocation.clone();
        if seen.as_ref() != Some(&revocation) {
            let (identity, lists) = (Arc::clone(&identity), revocation.clone());
            // Reading long lists takes its time. The outcome is logged and kept.
            let _ = tokio::task::spawn_blocking(move || identity.set_lists(&lists).map(drop)).await;
            seen = Some(revocation);
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

/// Says how the configuration in force stands.
fn tell_config(health: &control_client::Health, ready: &Readiness) {
    match health {
        control_client::Health::Well => ready.ready("config"),
        control_client::Health::Degraded(why) => ready.degraded("config", why),
        control_client::Health::Failing(why) => ready.not_ready("config", why),
    }
}

/// Says how the identity stands: degraded while it serves but is not renewed, not ready when it can serve no longer.
async fn tell_readiness(identity: &Identity, ready: &Readiness) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        match identity.health(SystemTime::now()) {
            Health::Well => ready.ready("identity"),
            Health::Degraded(why) => ready.degraded("identity", why),
            Health::Failing(why) => ready.not_ready("identity", why),
        }
    }
}

/// Says how the ports of the Gateway stand.
fn tell_ports(ready: &Readiness, workload: &Workload, standing: Standing) {
    let gateway = format!("{}/{}", workload.namespace, workload.gateway.as_deref().unwrap_or_default());
    match standing {
        Standing::Open => ready.ready("gateway"),
        Standing::Partly(why) => ready.degraded("gateway", format!("{gateway}: {why}")),
        Standing::Closed(why) => ready.not_ready("gateway", format!("{gateway}: {why}")),
    }
}

/// What every worker is given.
#[derive(Clone)]
struct Shared {
    published: Arc<Published>,
    registry: Arc<Registry>,
    keys: Arc<jwks::Store>,
    telemetry: Arc<Telemetry>,
    samples: Option<Samples>,
    identity: Option<Arc<Identity>>,
    server_tls: Option<Arc<ServerTls>>,
    client_tls: Arc<ClientTls>,
    gateway_tls: Arc<GatewayTls>,
    held_bodies: Arc<Budget>,
    own: Arc<OwnListeners>,
    placement: Arc<Placement>,
    drain: Drain,
    deadlines: Deadlines,
    mark: Option<u32>,
}

impl Shared {
    /// A worker's life: accept and serve.
    fn work(
        self,
        runtime: &Runtime,
        index: usize,
        mut inbox: mpsc::UnboundedReceiver<Handed>,
        mut stopping: watch::Receiver<bool>,
    ) {
        if let Err(error) = fips::warm() {
            // The first handshake will meet the same failure and say so.
            tracing::error!(%error, "this worker's random generator does not start");
        }
        let local = LocalSet::new();
        local.block_on(runtime, async {
            let worker = self.worker();
            let live = Rc::clone(&worker.live);
            let look = move |place: usize, show: &mut dyn FnMut(&Record)| live.look(place, show);
            let shard = tokio::task::spawn_local(Rc::clone(&worker.shard).run(look));
            let serve = self.server(Rc::clone(&worker));
            tokio::task::spawn_local({
                let (mut phase, signal) = (self.drain.watch(), worker.draining.clone());
                async move {
                    let _ = phase.wait_for(|phase| *phase >= Phase::Draining).await;
                    signal.start();
                }
            });
            tokio::task::spawn_local(Rc::clone(&worker.live).run(self.published.watch(), {
                let worker = Rc::clone(&worker);
                move || worker.current.get()
            }));
            if let Some(identity) = &self.identity {
                tokio::task::spawn_local(renew_pools(identity.subscribe(), Rc::clone(&worker.upstream)));
            }
            let mut phase = self.drain.watch();
            loop {
                tokio::select! {
                    Some(handed) = inbox.recv() => match handed {
                        Handed::Connection(Accepted { socket, source, listener, occupied }) => {
                            if let Ok(socket) = TcpStream::from_std(socket) {
                                serve(socket, source, listener, occupied);
                            }
                        }
                        Handed::Listener(opened) => {
                            let (placement, phase) = (Arc::clone(&self.placement), self.drain.watch());
                            let serve = Rc::clone(&serve);
                            tokio::task::spawn_local(listen::accept(opened, index, placement, phase, serve));
                        }
                    },
                    _ = stopping.wait_for(|stop| *stop) => break,
                    _ = phase.wait_for(|phase| *phase == Phase::Cut) => break,
                }
            }
            shard.abort();
            // What is still open is cut when this returns, and its records say so.
            worker.shard.cut();
        });
    }

    fn worker(&self) -> Rc<Worker> {
        let max_connection_duration = self.deadlines.max_connection_duration;
        let settings =
            upstream::Settings { mark: self.mark, max_connection_duration, ..upstream::Settings::default() };
        let upstream = Upstream::new(Arc::clone(&self.registry), Arc::clone(&self.client_tls), settings);
        let (shard, draining) = (self.telemetry.shard(), DrainSignal::new());
        Rc::new(Worker {
            current: Current::new(Arc::clone(&self.published)),
            live: Live::new(
                Rc::clone(&shard),
                draining.clone(),
                self.identity.clone(),
                Arc::clone(&self.keys),
                Rc::clone(&upstream),
                max_connection_duration,
            ),
            shard,
            upstream,
            registry: Arc::clone(&self.registry),
            memory: Memory::default(),
            sampler: self.samples.as_ref().map(Samples::sampler),
            tokens: Tokens::new(Arc::clone(&self.keys)),
            held_bodies: Arc::clone(&self.held_bodies),
            identity: self.identity.clone(),
            server_tls: self.server_tls.clone(),
            gateway_tls: Arc::clone(&self.gateway_tls),
            own: Arc::clone(&self.own),
            deadlines: self.deadlines,
            http1: Rc::new(self.deadlines.http1()),
            draining,
        })
    }

    /// Serves accepted sockets, each in a task of its own that its guard accounts for.
    fn server(&self, worker: Rc<Worker>) -> Rc<listen::Serve> {
        let drain = self.drain.clone();
        Rc::new(move |socket, source, listener, occupied| {
            let guard = drain.guard();
            let worker = Rc::clone(&worker);
            tokio::task::spawn_local(async move {
                let _occupied = occupied;
                conn::serve(worker, listener, socket, source, guard).await;
            });
        })
    }
}

/// A connection proven with an identity that was replaced serves no further request.
async fn renew_pools(mut generation: watch::Receiver<u64>, upstream: Rc<Upstream>) {
    while generation.changed().await.is_ok() {
        upstream.close_idle();
    }
}

/// The admin side at work.
struct Admin {
    handle: admin::Handle,
    addresses: Vec<(SocketAddr, admin::Kind)>,
    ready: Arc<Readiness>,
}

fn start_admin(
    settings: &Settings,
    telemetry: &Arc<Telemetry>,
    published: Arc<Published>,
    registry: Arc<Registry>,
    keys: Arc<jwks::Store>,
    proxy: ProxyFacts,
    candidate: Option<Arc<Candidate>>,
) -> anyhow::Result<Admin> {
    let ready = Arc::new(Readiness::new(&["config", "listeners", "identity"]));
    let wanted = [
        ("--admin", settings.admin.addresses(true), admin::Kind::Admin),
        ("--health", settings.health.addresses(false), admin::Kind::Health),
        ("--metrics", settings.metrics.addresses(false), admin::Kind::Metrics),
    ];
    let mut sockets = Vec::new();
    let mut addresses = Vec::new();
    for (flag, wanted, kind) in wanted {
        for address in wanted {
            if let Some(socket) = listen::bind_one(flag, address)? {
                addresses.push((socket.local_addr()?, kind));
                sockets.push((admin::Socket::Tcp(socket), kind));
            }
        }
    }
    let state = AdminState {
        ready: Arc::clone(&ready),
        telemetry: Arc::clone(telemetry),
        attestation: || serde_json::json!(fips::attest()),
        explain: Some(explaining(published, registry, keys, proxy)),
        candidate: candidate.map(|candidate| -> admin::Report { Arc::new(move || candidate.to_json()) }),
    };
    Ok(Admin { handle: admin::start(sockets, state)?, addresses, ready })
}

/// `/explain?side=..&from=..&url=..`: parameters as `writ explain` has flags, percent-encoded.
fn explaining(
    published: Arc<Published>,
    registry: Arc<Registry>,
    keys: Arc<jwks::Store>,
    proxy: ProxyFacts,
) -> admin::Explain {
    Arc::new(move |query| {
        let decoded: Vec<_> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name, percent_encoding::percent_decode_str(value).decode_utf8_lossy()))
            .collect();
        let query = Query::parse(decoded.iter().map(|(name, value)| (*name, value.as_ref())))?;
        explain(published.load(), &registry, &keys, &proxy, &query)
    })
}
