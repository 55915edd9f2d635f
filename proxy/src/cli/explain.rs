//! `writ explain`: the record that the proxy would leave for a request, by the same code, without traffic.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use control_client::Workload;
use serde_json::Value;

use super::failed;
use crate::explain::{Query, explain};
use crate::reload;
use crate::telemetry::ProxyFacts;
use crate::upstream::Registry;

/// Flags of `writ explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration: a directory or file of YAML.
    #[arg(long, env = "WRIT_CONFIG", value_name = "DIR")]
    config: PathBuf,
    /// Whose proxy decides.
    #[arg(long, env = "WRIT_WORKLOAD", value_name = "NAMESPACE/NAME", default_value = "default/local")]
    workload: String,
    /// Its service account.
    #[arg(long, env = "WRIT_SERVICE_ACCOUNT", value_name = "NAME", default_value = "default")]
    service_account: String,
    /// Its labels; default: those of the Pod or WorkloadEntry of this name in the configuration.
    #[arg(long, env = "WRIT_LABELS", value_name = "KEY=VALUE,..", value_delimiter = ',', value_parser = super::run::label)]
    labels: Option<Vec<(String, String)>>,
    /// The trust domain of the mesh.
    #[arg(long, env = "WRIT_TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Which of its sides [default: inbound].
    #[arg(long, value_parser = ["inbound", "outbound"])]
    side: Option<String>,
    /// The caller: a verified mTLS peer.
    #[arg(long, value_name = "SPIFFE_ID", conflicts_with = "plaintext")]
    from: Option<String>,
    /// The caller has no identity.
    #[arg(long)]
    plaintext: bool,
    /// Method [default: GET].
    #[arg(long)]
    method: Option<String>,
    /// http://HOST[:PORT]/PATH; inbound, the port is the workload's.
    #[arg(long)]
    url: Option<String>,
    /// A header; may be given several times.
    #[arg(long, value_name = "NAME=VALUE")]
    header: Vec<String>,
    /// Server name of the ClientHello.
    #[arg(long)]
    sni: Option<String>,
    /// The caller's address.
    #[arg(long, value_name = "ADDRESS:PORT")]
    source: Option<String>,
    /// Where the caller connected to.
    #[arg(long, value_name = "ADDRESS:PORT")]
    destination: Option<String>,
    /// Take the request from a record (a JSON line); flags given beside it win.
    #[arg(long, value_name = "FILE")]
    from_record: Option<PathBuf>,
    /// JSON, also on a terminal.
    #[arg(long)]
    json: bool,
}

/// Explains, and prints.
pub fn run(args: Args) -> ExitCode {
    let json = args.json || !std::io::stdout().is_terminal();
    match args.explain() {
        Ok(record) => {
            if json {
                println!("{record}");
            } else {
                print!("{}", super::table::explained(&record));
            }
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

impl Args {
    fn explain(&self) -> anyhow::Result<Value> {
        let workload = self.workload()?;
        let record = match &self.from_record {
            Some(path) => Some(read_record(path)?),
            None => None,
        };
        let mut parameters = record.as_ref().map(from_record).unwrap_or_default();
        let mut set = |name: &str, value: &Option<String>| {
            if let Some(value) = value {
                parameters.retain(|(given, _)| given != name);
                parameters.push((name.into(), value.clone()));
            }
        };
        set("from", &self.from);
        set("url", &self.url);
        set("sni", &self.sni);
        set("source", &self.source);
        set("destination", &self.destination);
        set("side", &self.side);
        set("method", &self.method);
        if self.plaintext {
            parameters.retain(|(name, _)| name != "from");
        }
        parameters.extend(self.header.iter().map(|header| ("header".to_owned(), header.clone())));
        let pairs = parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let query = Query::parse(pairs).map_err(anyhow::Error::msg)?;

        let loaded = control_client::load_once(&self.config, &workload);
        for diagnostic in &loaded.diagnostics {
            eprintln!("{diagnostic}");
        }
        let registry = Registry::new();
        let generation = reload::first(&loaded.snapshot, &registry)?;
        let proxy = ProxyFacts {
            role: "sidecar".into(),
            workload: self.workload.clone(),
            identity: None,
            version: env!("CARGO_PKG_VERSION").into(),
        };
        explain(Arc::new(generation), &registry, &proxy, &query).map_err(anyhow::Error::msg)
    }

    fn workload(&self) -> anyhow::Result<Workload> {
        let (namespace, name) =
            self.workload.split_once('/').context("--workload: expected NAMESPACE/NAME")?;
        let workload = Workload {
            namespace: namespace.into(),
            name: name.into(),
            service_account: self.service_account.clone(),
            // None given: those of the Pod or WorkloadEntry of this name.
            labels: self.labels.iter().flatten().cloned().collect(),
            trust_domain: self.trust_domain.clone(),
        };
        Ok(workload)
    }
}

fn read_record(path: &std::path::Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    let line = text.lines().find(|line| !line.trim().is_empty()).context("the file holds no record")?;
    serde_json::from_str(line).with_context(|| format!("{} does not hold a JSON record", path.display()))
}

/// The parameters of the request that a record is about. Headers are not in records: give them as flags.
fn from_record(record: &Value) -> Vec<(String, String)> {
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let mut parameters = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            parameters.push((name.to_owned(), value));
        }
    };
    add("side", text("/proxy/side"));
    add("from", text("/source/identity"));
    add("source", text("/source/address"));
    // Outbound, a destination on loopback is the proxy's own listener: the authority alone decided.
    let listener = |address: &str| {
        text("/proxy/side").as_deref() == Some("outbound")
            && address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
    };
    add("destination", text("/destination/address").filter(|address| !listener(address)));
    add("method", text("/request/method"));
    let authority = text("/request/authority").or_else(|| text("/destination/address"));
    add(
        "url",
        authority.zip(text("/request/path")).map(|(authority, path)| format!("http://{authority}{path}")),
    );
    parameters
}
