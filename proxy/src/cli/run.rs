//! `writ run`: the proxy.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use control_client::Workload;

use super::{failed, misused, told_to_stop};
use crate::app::{self, Settings};
use crate::identity::{self, SpiffeId};
use crate::roles::{Forward, Open, Role};
use crate::telemetry::{Sample, Sink};
use crate::worker::Deadlines;

/// Flags of `writ run`; each is also an environment variable.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What this proxy stands for: which listeners it opens.
    #[arg(long, env = "WRIT_ROLE", value_enum, default_value_t = Role::Standalone)]
    role: Role,
    /// A directory or file of Kubernetes YAML, which is watched.
    #[arg(long, env = "WRIT_CONFIG", value_name = "SOURCE")]
    config: Option<ConfigSource>,
    /// A directory or file of YAML as --config, never in force: what it would change of the traffic, `writ admin /candidate` tells.
    #[arg(long, env = "WRIT_CANDIDATE", value_name = "SOURCE")]
    candidate: Option<ConfigSource>,
    /// Refuse the whole configuration for any mistake in it.
    #[arg(long, env = "WRIT_CONFIG_STRICT", value_parser = clap::builder::BoolishValueParser::new())]
    config_strict: bool,
    /// The workload that it stands for [default: default/local, or the Gateway that it serves].
    #[arg(long, env = "WRIT_WORKLOAD", value_name = "NAMESPACE/NAME")]
    workload: Option<String>,
    /// The workload's service account.
    #[arg(long, env = "WRIT_SERVICE_ACCOUNT", value_name = "NAME", default_value = "default")]
    service_account: String,
    /// The workload's labels, by which policies select it; default: those of the Pod or WorkloadEntry of this name. As long
    /// as nobody has said them, what may select it fails closed, and the proxy is not ready.
    #[arg(long, env = "WRIT_LABELS", value_name = "KEY=VALUE,..", value_delimiter = ',', value_parser = label)]
    labels: Vec<(String, String)>,
    /// The Gateway whose listeners a gateway opens.
    #[arg(long, env = "WRIT_GATEWAY", value_name = "NAMESPACE/NAME")]
    gateway: Option<String>,
    /// Where its identity comes from: files:DIR (tls.crt, tls.key and ca.crt, or svid.pem, svid_key.pem and svid_bundle.pem),
    /// spiffe:unix:///PATH for a SPIFFE Workload API (spiffe: alone: SPIFFE_ENDPOINT_SOCKET; ?hint=NAME picks an SVID), or
    /// dev:DIR for a throw-away CA kept there; a sidecar and a gateway need one.
    #[arg(long, env = "WRIT_IDENTITY", value_name = "SOURCE")]
    identity: Option<identity::Source>,
    /// Revocation lists (PEM), followed as they change; a crl.pem beside the certificates of files:DIR is read without asking.
    #[arg(long, env = "WRIT_CRL", value_name = "FILE")]
    crl: Option<PathBuf>,
    /// The trust domain of the mesh.
    #[arg(long, env = "WRIT_TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Roots that vouch for the servers of token issuers, a PEM file; default: the system's bundle.
    #[arg(long, env = "WRIT_ISSUER_CA", value_name = "FILE")]
    issuer_ca: Option<PathBuf>,
    /// Outbound listener: a port (loopback, both families), ADDRESS:PORT, or off.
    #[arg(long, env = "WRIT_OUTBOUND", value_name = "WHERE", default_value = "15001")]
    outbound: Open,
    /// Inbound listener of a sidecar: a port (every interface, both families), ADDRESS:PORT, or off.
    #[arg(long, env = "WRIT_INBOUND", value_name = "WHERE", default_value = "15006")]
    inbound: Open,
    /// Inbound listener without interception, before the application at APP; may be given several times.
    #[arg(long, env = "WRIT_FORWARD", value_name = "LISTEN=APP", value_delimiter = ',')]
    forward: Vec<Forward>,
    /// Admin listener, which shows configuration and decisions: a port (loopback, both families), ADDRESS:PORT on loopback, or off.
    #[arg(long, env = "WRIT_ADMIN", value_name = "WHERE", default_value = "15000")]
    admin: Open,
    /// Health listener: a port (every interface, both families), ADDRESS:PORT, or off.
    #[arg(long, env = "WRIT_HEALTH", value_name = "WHERE", default_value = "15021")]
    health: Open,
    /// Metrics listener: a port (every interface, both families), ADDRESS:PORT, or off.
    #[arg(long, env = "WRIT_METRICS", value_name = "WHERE", default_value = "15090")]
    metrics: Open,
    /// Data threads; default: as many as cores, at most 2 for a sidecar.
    #[arg(long, env = "WRIT_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Where decision records go: off, stdout or file:PATH.
    #[arg(long, env = "WRIT_RECORD", value_name = "SINK", default_value = "stdout")]
    record: Sink,
    /// Share of the records to keep, from 0 to 1; refusals are always kept.
    #[arg(long, env = "WRIT_RECORD_SAMPLE", value_name = "SHARE", default_value = "1")]
    record_sample: Sample,
    /// Age at which a request or tunnel that goes on leaves a `progress` line, and how often it leaves another.
    #[arg(
        long,
        env = "WRIT_RECORD_PROGRESS",
        value_name = "DURATION",
        default_value = "60s",
        value_parser = progress
    )]
    record_progress: Duration,
    /// SO_MARK of the proxy's own connections, for `intercept --mark`; decimal or 0x..
    #[arg(long, env = "WRIT_MARK", value_name = "MARK", value_parser = super::intercept::mark)]
    mark: Option<u32>,
    /// Whether to refuse to start without approved crypto, and any configuration, certificate or token that is not approved.
    #[arg(long, env = "WRIT_FIPS", value_name = "MODE", value_enum, default_value_t = Fips::Off)]
    fips: Fips,
    /// Deadline of a graceful stop, as 500ms, 25s or 2m.
    #[arg(long, env = "WRIT_DRAIN", value_name = "DURATION", default_value = "25s", value_parser = duration)]
    drain: Duration,
    /// Longest life of an HTTP connection, callers' and upstream; each ends between requests at 90 to 100 % of it; 0s: no limit.
    #[arg(
        long,
        env = "WRIT_MAX_CONNECTION_DURATION",
        value_name = "DURATION",
        default_value = "1h",
        value_parser = duration
    )]
    max_connection_duration: Duration,
    /// How long accepting goes on at a stop while readiness already fails.
    #[arg(long, env = "WRIT_LAME_DUCK", value_name = "DURATION", default_value = "5s", value_parser = duration)]
    lame_duck: Duration,
    /// Collector for OTLP (not supported yet).
    #[arg(long, env = "WRIT_OTLP", value_name = "URL", hide = true)]
    otlp: Option<String>,
    /// Directory for the last known good configuration (not supported yet).
    #[arg(long, env = "WRIT_STATE", value_name = "DIR", hide = true)]
    state: Option<PathBuf>,
}

/// `--config`.
#[derive(Debug, Clone)]
struct ConfigSource(PathBuf);

impl FromStr for ConfigSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((scheme @ ("kubernetes" | "ads"), _)) => {
                Err(format!("{scheme}: is not supported yet as a source; use a directory or file"))
            }
            _ => Ok(Self(text.into())),
        }
    }
}

/// `--fips`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fips {
    /// Whatever crypto this binary has.
    Off,
    /// Only what is approved, throughout.
    Required,
}

impl Fips {
    /// From here on the process takes approved crypto only, if that is asked for.
    pub fn enforce(self) -> anyhow::Result<()> {
        match self {
            Self::Off => Ok(()),
            Self::Required => fips::require().map_err(|why| anyhow::anyhow!("{why}; see `writ attest`")),
        }
    }
}

/// Runs the proxy until it is told to stop.
pub fn run(args: Args) -> ExitCode {
    let fips = args.fips;
    let settings = match args.settings() {
        Ok(settings) => settings,
        Err(wrong) => return misused("run", &wrong),
    };
    match fips.enforce().and_then(|()| app::start(settings)).and_then(until_told) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed("run", &error),
    }
}

fn until_told(running: app::Running) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(told_to_stop())?;
    tracing::info!(open = running.open(), "stopping");
    // A second word is meant: whatever is left is cut.
    let cut = running.stop_unless(async {
        if told_to_stop().await.is_err() {
            std::future::pending().await
        }
    })?;
    tracing::info!(cut, "stopped");
    Ok(())
}

impl Args {
    /// What is to come fails, rather than being passed over in silence.
    fn supported(&self) -> Result<(), String> {
        let absent = [("--otlp", self.otlp.is_some()), ("--state", self.state.is_some())];
        match absent.iter().find(|(_, asked_for)| *asked_for) {
            Some((what, _)) => Err(format!("{what} is not supported yet")),
            None => Ok(()),
        }
    }

    /// What is followed has to be there when it begins.
    fn paths_are_there(&self) -> Result<(), String> {
        let source = |source: &'_ Option<ConfigSource>| source.as_ref().map(|source| source.0.clone());
        let identity = match &self.identity {
            Some(identity::Source::Files(dir)) => Some(dir.clone()),
            _ => None,
        };
        for (flag, path) in [
            ("--config", source(&self.config)),
            ("--candidate", source(&self.candidate)),
            ("--identity", identity),
            ("--crl", self.crl.clone()),
            ("--issuer-ca", self.issuer_ca.clone()),
        ] {
            let Some(path) = path else { continue };
            std::fs::metadata(&path)
                .map_err(|error| format!("{flag}: can't read {}: {error}", path.display()))?;
        }
        Ok(())
    }

    fn settings(self) -> Result<Settings, String> {
        self.supported()?;
        if self.crl.is_some() && self.identity.is_none() {
            return Err("--crl needs --identity: without one no caller's certificate is looked at".into());
        }
        self.paths_are_there()?;
        let gateway = match (self.role, &self.gateway) {
            (Role::Gateway, None) => return Err("--role gateway needs --gateway NAMESPACE/NAME".into()),
            (Role::Sidecar | Role::Standalone, Some(_)) => {
                return Err("--gateway is for --role gateway".into());
            }
            (_, gateway) => gateway.as_deref(),
        };
        let name = self.workload.as_deref().or(gateway).unwrap_or("default/local");
        let workload = workload(name, gateway, self.service_account, self.labels, self.trust_domain)?;
        if self.role != Role::Standalone && self.identity.is_none() {
            let role = self.role.as_str();
            return Err(format!(
                "--role {role} needs --identity (files:DIR, spiffe:unix:///PATH, or dev:DIR for a throw-away CA)"
            ));
        }
        if let Open::At(address) = self.admin
            && !address.ip().to_canonical().is_loopback()
        {
            return Err(format!(
                "--admin {address}: shows configuration and decisions, so it listens on loopback only; give a port or \
                 127.0.0.1:PORT, and --health or --metrics for what other hosts may ask"
            ));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let default = if self.role == Role::Sidecar { cores.min(2) } else { cores };
        Ok(Settings {
            role: self.role,
            config: self.config.map(|source| source.0),
            candidate: self.candidate.map(|source| source.0),
            config_strict: self.config_strict,
            workload,
            identity: self.identity,
            crl: self.crl,
            issuer_ca: self.issuer_ca,
            outbound: self.outbound,
            inbound: self.inbound,
            forwards: self.forward,
            admin: self.admin,
            health: self.health,
            metrics: self.metrics,
            workers: self.workers.map_or(default, usize::from),
            record: self.record,
            sample: self.record_sample,
            progress: self.record_progress,
            mark: self.mark,
            drain: self.drain,
            lame_duck: self.lame_duck,
            deadlines: Deadlines {
                max_connection_duration: self.max_connection_duration,
                ..Deadlines::default()
            },
        })
    }
}

/// The workload that flags describe.
pub fn workload(
    name: &str,
    gateway: Option<&str>,
    service_account: String,
    labels: Vec<(String, String)>,
    trust_domain: String,
) -> Result<Workload, String> {
    let (namespace, name) = split_name(name)
        .ok_or_else(|| format!("--workload {name:?}: expected NAMESPACE/NAME, as bookinfo/ratings-v1"))?;
    let gateway = match gateway.map(|gateway| (gateway, split_name(gateway))) {
        None => None,
        Some((_, Some((of, gateway)))) if of == namespace => Some(gateway.to_owned()),
        Some((gateway, Some(_))) => {
            return Err(format!("--gateway {gateway} is not of the namespace of --workload, {namespace}"));
        }
        Some((gateway, None)) => return Err(format!("--gateway {gateway:?}: expected NAMESPACE/NAME")),
    };
    SpiffeId::for_workload(&trust_domain, namespace, &service_account).map_err(|error| {
        format!("--workload, --service-account and --trust-domain make no SPIFFE id: {error}")
    })?;
    Ok(Workload {
        namespace: namespace.into(),
        name: name.into(),
        service_account,
        labels: labels.into_iter().collect(),
        trust_domain,
        gateway,
    })
}

/// `NAMESPACE/NAME`.
fn split_name(text: &str) -> Option<(&str, &str)> {
    let parts = text.split_once('/')?;
    let is_name = |name: &str| !name.is_empty() && !name.contains('/');
    (is_name(parts.0) && is_name(parts.1)).then_some(parts)
}

/// `KEY=VALUE`.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.into(), value.into()))
}

/// A duration in which something can happen.
fn progress(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration < Duration::from_secs(1) { Err("at least 1s".into()) } else { Ok(duration) }
}

/// `25s`, `500ms`, `2m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| format!("{text:?}: expected a number and ms, s, m or h"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "h" => Ok(Duration::from_secs(number.checked_mul(3600).ok_or("longer than any wait")?)),
        "m" => Ok(Duration::from_secs(number.checked_mul(60).ok_or("longer than any wait")?)),
        _ => Err(format!("{text:?}: expected a number and ms, s, m or h")),
    }
}
