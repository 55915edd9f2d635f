//! `writ explain`: the record that the proxy would leave for a request, by the same code, without traffic.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use control_client::verdict::Severity;
use control_client::{Loaded, Workload};
use serde_json::Value;

use super::check::{count, counted};
use super::{check, failed, misused, print, run, table};
use crate::explain::{Query, explain};
use crate::generation::Generation;
use crate::jwks;
use crate::reload;
use crate::roles::Role;
use crate::telemetry::{ProxyFacts, Side};
use crate::upstream::Registry;

/// Flags of `writ explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A directory or file of Kubernetes YAML.
    #[arg(long, env = "WRIT_CONFIG", value_name = "DIR")]
    config: PathBuf,
    /// The workload whose proxy decides; default: default/local, or that of the record.
    #[arg(long, env = "WRIT_WORKLOAD", value_name = "NAMESPACE/NAME")]
    workload: Option<String>,
    /// The Gateway whose proxy decides; the side is gateway then, and its namespace and name the workload's unless that is given.
    #[arg(long, env = "WRIT_GATEWAY", value_name = "NAMESPACE/NAME")]
    gateway: Option<String>,
    /// The workload's service account.
    #[arg(long, env = "WRIT_SERVICE_ACCOUNT", value_name = "NAME", default_value = "default")]
    service_account: String,
    /// The workload's labels; default: those of the Pod or WorkloadEntry of this name.
    #[arg(long, env = "WRIT_LABELS", value_name = "KEY=VALUE,..", value_delimiter = ',', value_parser = run::label)]
    labels: Vec<(String, String)>,
    /// The trust domain of the mesh.
    #[arg(long, env = "WRIT_TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// The proxy's side [default: inbound, or gateway with --gateway].
    #[arg(long, value_parser = ["inbound", "outbound", "gateway"])]
    side: Option<String>,
    /// The caller's identity, as if its mutual TLS were verified.
    #[arg(long, value_name = "SPIFFE_ID", conflicts_with = "plaintext")]
    from: Option<String>,
    /// The caller speaks plaintext, which is the default without --from.
    #[arg(long)]
    plaintext: bool,
    /// The request's method [default: GET].
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// The request's URL as the caller writes it, http://HOST[:PORT]/PATH, at a Gateway also https://..
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// A header of the request, NAME=VALUE or NAME: VALUE; may be given several times.
    #[arg(long, value_name = "HEADER")]
    header: Vec<String>,
    /// What is asked about: a request (http) or an opaque connection (tcp, tls) to --destination [default: http].
    #[arg(long, value_parser = ["http", "tcp", "tls"])]
    protocol: Option<String>,
    /// The server name in the caller's ClientHello.
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// The caller's address.
    #[arg(long, value_name = "ADDRESS:PORT")]
    source: Option<String>,
    /// The client that a trusted caller says it asks for (inbound): an address.
    #[arg(long, value_name = "ADDRESS")]
    remote: Option<String>,
    /// The address that the caller connected to [default inbound: the workload's, behind the service that the URL names].
    #[arg(long, value_name = "ADDRESS:PORT")]
    destination: Option<String>,
    /// Records (JSON) of which the first is to take the request from, or - for standard input; flags beside it win.
    #[arg(long, value_name = "FILE")]
    from_record: Option<PathBuf>,
    /// Not the first record, but that of this id, as callers see it in x-writ-decision-id.
    #[arg(long, value_name = "ID", requires = "from_record")]
    id: Option<String>,
    /// Print JSON, as is always done into a pipe or file.
    #[arg(long)]
    json: bool,
    /// A file with the end user's token, sent as Authorization: Bearer; its issuer's keys are fetched.
    #[arg(long, value_name = "FILE")]
    jwt: Option<PathBuf>,
    /// Roots that vouch for the servers of token issuers, a PEM file; default: the system's bundle.
    #[arg(long, env = "WRIT_ISSUER_CA", value_name = "FILE")]
    issuer_ca: Option<PathBuf>,
}

/// Explains, and prints. Exit codes: 0 explained, whatever was decided; 1 failed; 2 wrong usage.
pub fn run(args: Args) -> ExitCode {
    let record = args.from_record.as_deref().map(|path| read_record(path, args.id.as_deref()));
    let record = match record.transpose() {
        Ok(record) => record,
        Err(error) => return misused("explain", &format!("{error:#}")),
    };
    let (workload, query) = match args.question(record.as_ref()) {
        Ok(question) => question,
        Err(wrong) => return misused("explain", &wrong),
    };
    let loaded = match check::load(&args.config, &workload) {
        Ok(loaded) => loaded,
        Err(why) => return misused("explain", &why),
    };
    match args.explain(&workload, loaded, &query, record.as_ref()) {
        Ok(explained) => {
            if let Some(doubt) = text(&explained, "/doubt") {
                eprintln!("writ explain: {doubt}");
            }
            match args.json || !std::io::stdout().is_terminal() {
                true => print(&format!("{explained}\n")),
                false => print(&table::explained(&explained)),
            }
        }
        Err(error) => failed("explain", &error),
    }
}

impl Args {
    /// Who is asked, and what.
    fn question(&self, record: Option<&Value>) -> Result<(Workload, Query), String> {
        let of_record = record.and_then(|record| text(record, "/proxy/workload"));
        let mut parameters = self.parameters(record);
        if self.gateway.is_some() && self.side.is_none() {
            parameters.retain(|(name, _)| *name != "side");
            parameters.push(("side", "gateway".into()));
        }
        let at_gateway = parameters.iter().any(|(name, side)| *name == "side" && side == "gateway");
        // A proxy is called as the Gateway that it serves, unless it was told otherwise.
        let gateway = self.gateway.as_deref().or(of_record.filter(|_| at_gateway));
        if at_gateway && gateway.is_none() {
            return Err("--side gateway needs --gateway NAMESPACE/NAME".into());
        }
        let name = self.workload.as_deref().or(of_record).or(gateway).unwrap_or("default/local");
        let (account, labels) = (self.service_account.clone(), self.labels.clone());
        let workload = run::workload(name, gateway, account, labels, self.trust_domain.clone())?;
        if let Some(token) = self.jwt.as_deref().map(read_token).transpose()? {
            parameters.push(("header", format!("authorization=Bearer {token}")));
        }
        let given = |wanted: &str| parameters.iter().any(|(name, _)| *name == wanted);
        if record.is_some() && !given("url") && !given("protocol") {
            return Err("the record is not one of a request or an opaque connection; give --url".into());
        }
        let pairs = parameters.iter().map(|(name, value)| (*name, value.as_str()));
        // What is wrong begins with the parameter's name, which is the flag's.
        let query = Query::parse(pairs).map_err(|wrong| format!("--{wrong}"))?;
        Ok((workload, query))
    }

    /// The record's; those of flags win.
    fn parameters(&self, record: Option<&Value>) -> Vec<(&'static str, String)> {
        let mut parameters = record.map(Query::of_record).unwrap_or_default();
        let flags = [
            ("side", &self.side),
            ("from", &self.from),
            ("method", &self.method),
            ("url", &self.url),
            ("protocol", &self.protocol),
            ("sni", &self.sni),
            ("source", &self.source),
            ("remote", &self.remote),
            ("destination", &self.destination),
        ];
        for (name, value) in flags {
            if let Some(value) = value {
                parameters.retain(|(given, _)| *given != name);
                parameters.push((name, value.clone()));
            }
        }
        if self.plaintext {
            parameters.retain(|(name, _)| *name != "from");
        }
        parameters.extend(self.header.iter().map(|header| ("header", header.clone())));
        parameters
    }

    fn explain(
        &self,
        workload: &Workload,
        loaded: Loaded,
        query: &Query,
        record: Option<&Value>,
    ) -> anyhow::Result<Value> {
        for doubt in self.doubts(workload, query.side, &loaded, record) {
            eprintln!("writ explain: {doubt}");
        }
        let registry = Registry::new();
        let generation = reload::first(&loaded.snapshot, &registry)?;
        let proxy = ProxyFacts {
            role: if workload.gateway.is_some() { Role::Gateway } else { Role::Sidecar }.as_str().into(),
            workload: format!("{}/{}", workload.namespace, workload.name),
            identity: None,
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let keys = self.keys(&generation)?;
        explain(Arc::new(generation), &registry, &keys, &proxy, query).map_err(anyhow::Error::msg)
    }

    /// The keys of the issuers whose tokens are asked for, if there is a token that could need them.
    fn keys(&self, generation: &Generation) -> anyhow::Result<Arc<jwks::Store>> {
        let keys = jwks::Store::new(jwks::Options { authority: self.issuer_ca.clone(), mark: None });
        if self.jwt.is_some() || !self.header.is_empty() {
            keys.follow(generation.tables.authentication().remote_keys());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(keys.fetch_all());
        }
        Ok(keys)
    }

    /// Why the answer may not be the one that was sought.
    fn doubts(
        &self,
        workload: &Workload,
        side: Side,
        loaded: &Loaded,
        record: Option<&Value>,
    ) -> Vec<String> {
        let mut doubts = Vec::new();
        if !loaded.diagnostics.is_empty() {
            doubts.push(format!(
                "the configuration has {} and {}; `writ check {}` lists them",
                counted(count(loaded, Severity::Error), "error"),
                counted(count(loaded, Severity::Warning), "warning"),
                self.config.display(),
            ));
        }
        if side == Side::Inbound && !loaded.workload_known {
            doubts.push(format!(
                "policies with a selector are left out: there is no Pod or WorkloadEntry {}/{}, and no --labels \
                 (a proxy that knows no more refuses what they could)",
                workload.namespace, workload.name
            ));
        }
        let digest = record.and_then(|record| text(record, "/config/digest"));
        if digest.is_some_and(|digest| digest != loaded.snapshot.policy.digest) {
            doubts.push("the record was left under another configuration than this one".into());
        }
        doubts
    }
}

fn read_token(path: &Path) -> Result<String, String> {
    let read = std::fs::read_to_string(path).map_err(|error| format!("--jwt {}: {error}", path.display()))?;
    let token = read.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "--jwt {}: not a token, which is one word of base64url and dots",
            path.display()
        ));
    }
    Ok(token.to_owned())
}

/// The first record of a file, or that of an id.
fn read_record(path: &Path, id: Option<&str>) -> anyhow::Result<Value> {
    let name = path.display();
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin().read_to_string(&mut text),
        _ => std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text)),
    };
    read.with_context(|| format!("can't read {name}"))?;
    for record in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
        let record =
            record.with_context(|| format!("{name} holds something else than records, which are JSON"))?;
        if id.is_none_or(|id| self::text(&record, "/id") == Some(id)) {
            return Ok(record);
        }
    }
    match id {
        Some(id) => anyhow::bail!("{name} holds no record of id {id}"),
        None => anyhow::bail!("{name} holds no record"),
    }
}

fn text<'r>(record: &'r Value, pointer: &str) -> Option<&'r str> {
    record.pointer(pointer).and_then(Value::as_str)
}
