//! `writ run`: the proxy.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use control_client::Workload;

use super::failed;
use crate::app::{self, Settings};
use crate::identity;
use crate::roles::{Forward, Open, Role};
use crate::telemetry::{Sample, Sink};
use crate::worker::Deadlines;

/// Flags of `writ run`; each is also an environment variable.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which listeners to open.
    #[arg(long, env = "WRIT_ROLE", value_enum, default_value_t = Role::Standalone)]
    role: Role,
    /// A directory or file of YAML; watched.
    #[arg(long, env = "WRIT_CONFIG", value_name = "SOURCE")]
    config: Option<PathBuf>,
    /// Any diagnostic refuses the whole configuration.
    #[arg(long, env = "WRIT_CONFIG_STRICT")]
    config_strict: bool,
    /// The workload that this proxy stands for.
    #[arg(long, env = "WRIT_WORKLOAD", value_name = "NAMESPACE/NAME", default_value = "default/local")]
    workload: String,
    /// Its service account.
    #[arg(long, env = "WRIT_SERVICE_ACCOUNT", value_name = "NAME", default_value = "default")]
    service_account: String,
    /// Its labels, which select policies.
    #[arg(long, env = "WRIT_LABELS", value_name = "KEY=VALUE,..", value_delimiter = ',', value_parser = label)]
    labels: Vec<(String, String)>,
    /// The Gateway that a gateway serves.
    #[arg(long, env = "WRIT_GATEWAY", value_name = "NAMESPACE/NAME")]
    gateway: Option<String>,
    /// Where this proxy's identity comes from: files:DIR, dev:DIR (a throw-away CA), spiffe:unix:///path.
    #[arg(long, env = "WRIT_IDENTITY", value_name = "SOURCE")]
    identity: Option<identity::Source>,
    /// The trust domain of this mesh.
    #[arg(long, env = "WRIT_TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Outbound listener: a port (loopback, both families), ADDRESS:PORT, or off.
    #[arg(long, env = "WRIT_OUTBOUND", value_name = "WHERE", default_value = "15001")]
    outbound: Open,
    /// Inbound listener: a port (every interface, both families), ADDRESS:PORT, or off.
    #[arg(long, env = "WRIT_INBOUND", value_name = "WHERE", default_value = "15006")]
    inbound: Open,
    /// Inbound without interception; may be given several times.
    #[arg(long, env = "WRIT_FORWARD", value_name = "LISTEN=APP", value_delimiter = ',')]
    forward: Vec<Forward>,
    /// Admin listener (loopback; only reads).
    #[arg(long, env = "WRIT_ADMIN", value_name = "WHERE", default_value = "15000")]
    admin: Open,
    /// Health listener.
    #[arg(long, env = "WRIT_HEALTH", value_name = "WHERE", default_value = "15021")]
    health: Open,
    /// Metrics listener.
    #[arg(long, env = "WRIT_METRICS", value_name = "WHERE", default_value = "15090")]
    metrics: Open,
    /// Data threads; default: cores, at most 2 for a sidecar.
    #[arg(long, env = "WRIT_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Where decision records go: off, stdout, file:PATH.
    #[arg(long, env = "WRIT_RECORD", value_name = "SINK", default_value = "stdout")]
    record: Sink,
    /// Keep all refusals and this share of the rest, from 0 to 1.
    #[arg(long, env = "WRIT_RECORD_SAMPLE", value_name = "SHARE", default_value = "1")]
    record_sample: Sample,
    /// Socket mark of the proxy's own connections, for interception rules that go by mark.
    #[arg(long, env = "WRIT_MARK", value_name = "N")]
    mark: Option<u32>,
    /// Refuse to start, or to accept a configuration, that is not FIPS throughout.
    #[arg(long, env = "WRIT_FIPS", value_enum, default_value_t = Fips::Off)]
    fips: Fips,
    /// Deadline of a graceful stop.
    #[arg(long, env = "WRIT_DRAIN", value_name = "DURATION", default_value = "25s", value_parser = duration)]
    drain: Duration,
    /// How long accepting goes on at a stop while readiness already fails.
    #[arg(long, env = "WRIT_LAME_DUCK", value_name = "DURATION", default_value = "5s", value_parser = duration)]
    lame_duck: Duration,
}

/// `--fips`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Fips {
    /// Whatever crypto this binary has.
    Off,
    /// Approved crypto only.
    Required,
}

/// Runs the proxy until it is told to stop.
pub fn run(args: Args) -> ExitCode {
    let settings = match args.settings() {
        Ok(settings) => settings,
        Err(wrong) => {
            eprintln!("writ run: {wrong}");
            return ExitCode::from(2);
        }
    };
    match app::start(settings).and_then(until_told) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn until_told(running: app::Running) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        anyhow::Ok(())
    })?;
    tracing::info!(open = running.open(), "stopping");
    let cut = running.stop()?;
    tracing::info!(cut, "stopped");
    Ok(())
}

impl Args {
    fn settings(self) -> Result<Settings, String> {
        let (namespace, name) = self
            .workload
            .split_once('/')
            .ok_or_else(|| format!("--workload {:?}: expected NAMESPACE/NAME", self.workload))?;
        if self.role == Role::Gateway {
            return Err("--role gateway is not supported yet".into());
        }
        if self.role == Role::Sidecar && self.identity.is_none() {
            return Err("--role sidecar needs --identity (files:DIR, or dev:DIR for a throw-away CA)".into());
        }
        if self.fips == Fips::Required {
            let attestation = fips::install();
            if !attestation.fips {
                return Err(format!("--fips required, but this binary runs {attestation}"));
            }
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let default = if self.role == Role::Sidecar { cores.min(2) } else { cores };
        Ok(Settings {
            role: self.role,
            config: self.config,
            config_strict: self.config_strict,
            workload: Workload {
                namespace: namespace.into(),
                name: name.into(),
                service_account: self.service_account,
                labels: self.labels.into_iter().collect(),
                trust_domain: self.trust_domain,
            },
            identity: self.identity,
            outbound: self.outbound,
            inbound: self.inbound,
            forwards: self.forward,
            admin: self.admin,
            health: self.health,
            metrics: self.metrics,
            workers: self.workers.map_or(default, usize::from),
            record: self.record,
            sample: self.record_sample,
            mark: self.mark,
            drain: self.drain,
            lame_duck: self.lame_duck,
            deadlines: Deadlines::default(),
        })
    }
}

/// `KEY=VALUE`.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.into(), value.into()))
}

/// `25s`, `500ms`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| format!("{text:?}: expected a number and ms, s or m"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.checked_mul(60).ok_or("longer than any wait")?)),
        _ => Err(format!("{text:?}: expected a number and ms, s or m")),
    }
}
