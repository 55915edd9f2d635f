//! A trust domain by SPIRE: a server, its agent, and who is registered.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tests::program::{Finished, Program, writ};

use crate::tls::house::{House, installed};

/// SPIRE's programs, or that the test can't run.
pub fn spire(test: &str) -> Option<PathBuf> {
    installed(test, "spire/bin/spire-server")?;
    installed(test, "spire/bin/spire-agent")?.parent().map(Path::to_owned)
}

/// A running trust domain.
pub struct Domain {
    pub name: &'static str,
    programs: PathBuf,
    home: PathBuf,
    /// Where other domains fetch this one's bundle.
    bundle_port: u16,
    _server: Program,
    agent: Option<Program>,
}

impl Domain {
    /// Starts a server. SVIDs are valid for `ttl_seconds`; agents renew them at half of that.
    pub fn start(programs: &Path, house: &House, name: &'static str, ttl_seconds: u64) -> Self {
        let home = house.file(name);
        fs::create_dir(&home).unwrap();
        let [port, bundle_port] = [free_port(), free_port()];
        let at = home.display();
        let server = format!(
            r#"
server {{
  bind_address = "127.0.0.1"
  bind_port = "{port}"
  socket_path = "{at}/server.sock"
  trust_domain = "{name}"
  data_dir = "{at}/server"
  default_x509_svid_ttl = "{ttl_seconds}s"
  agent_ttl = "1h"
  federation {{ bundle_endpoint {{ address = "127.0.0.1" port = {bundle_port} profile "https_spiffe" {{}} }} }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{at}/server.sqlite3" }} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
}}
"#
        );
        // Keys on disk, so that a restart needs no second token.
        let agent = format!(
            r#"
agent {{
  data_dir = "{at}/agent"
  server_address = "127.0.0.1"
  server_port = "{port}"
  socket_path = "{at}/agent.sock"
  trust_bundle_path = "{at}/bundle.pem"
  trust_domain = "{name}"
  experimental {{ sync_interval = "1s" }}
}}
plugins {{
  KeyManager "disk" {{ plugin_data {{ directory = "{at}/agent" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{ discover_workload_path = true }} }}
}}
"#
        );
        fs::write(home.join("server.conf"), server).unwrap();
        fs::write(home.join("agent.conf"), agent).unwrap();
        fs::create_dir(home.join("agent")).unwrap();
        let mut run = Command::new(programs.join("spire-server"));
        run.args(["run", "-config"]).arg(home.join("server.conf"));
        let server = Program::start(&format!("spire-server of {name}"), &mut run);
        server.line(|line| line.contains("Starting Server APIs") && line.contains("network=unix"));
        Self { name, programs: programs.to_owned(), home, bundle_port, _server: server, agent: None }
    }

    /// Attests the node by a join token, and starts its agent.
    pub fn start_agent(&mut self) {
        fs::write(self.home.join("bundle.pem"), self.bundle("pem")).unwrap();
        let said = self.ask(&["token", "generate", "-spiffeID", &self.node(), "-ttl", "600"]);
        let token = said.split_whitespace().last().unwrap();
        self.agent = Some(self.run_agent(&["-joinToken", token]));
    }

    /// Ends the agent; what it has issued goes on being valid.
    pub fn stop_agent(&mut self) {
        self.agent.take().unwrap().stop(Signal::TERM);
    }

    /// Starts it again, by what it has on disk.
    pub fn restart_agent(&mut self) {
        self.agent = Some(self.run_agent(&[]));
    }

    fn run_agent(&self, more: &[&str]) -> Program {
        let mut run = Command::new(self.programs.join("spire-agent"));
        run.args(["run", "-config"]).arg(self.home.join("agent.conf")).args(more);
        let agent = Program::start(&format!("spire-agent of {}", self.name), &mut run);
        agent.line(|line| line.contains("Starting Workload and SDS APIs"));
        agent
    }

    /// The socket of the Workload API.
    pub fn socket(&self) -> PathBuf {
        self.home.join("agent.sock")
    }

    /// The SPIFFE id of an account.
    pub fn id(&self, account: &str) -> String {
        format!("spiffe://{}/ns/shop/sa/{account}", self.name)
    }

    /// Registers a program of this user as the workload of an account; gives the entry.
    pub fn register(&self, account: &str, program: &Path) -> String {
        let path = format!("unix:path:{}", program.display());
        let user = format!("unix:uid:{}", rustix::process::geteuid().as_raw());
        let (id, node) = (self.id(account), self.node());
        let said = self.ask(&[
            "entry",
            "create",
            "-spiffeID",
            &id,
            "-parentID",
            &node,
            "-selector",
            &path,
            "-selector",
            &user,
        ]);
        let line = said.lines().find(|line| line.starts_with("Entry ID")).unwrap();
        line.split_whitespace().last().unwrap().to_owned()
    }

    /// Trusts another domain from now on, whose bundle is fetched from its own server, and tells the workload of an entry.
    pub fn federate(&self, other: &Self, entry: &str, account: &str, program: &Path) {
        let bundle = self.home.join(format!("{}.json", other.name));
        fs::write(&bundle, other.bundle("spiffe")).unwrap();
        let (server, url) = (
            format!("spiffe://{}/spire/server", other.name),
            format!("https://127.0.0.1:{}", other.bundle_port),
        );
        self.ask(&[
            "federation",
            "create",
            "-trustDomain",
            other.name,
            "-bundleEndpointURL",
            &url,
            "-bundleEndpointProfile",
            "https_spiffe",
            "-endpointSpiffeID",
            &server,
            "-trustDomainBundleFormat",
            "spiffe",
            "-trustDomainBundlePath",
            bundle.to_str().unwrap(),
        ]);
        let path = format!("unix:path:{}", program.display());
        let user = format!("unix:uid:{}", rustix::process::geteuid().as_raw());
        let (id, node, with) = (self.id(account), self.node(), format!("spiffe://{}", other.name));
        self.ask(&[
            "entry",
            "update",
            "-entryID",
            entry,
            "-spiffeID",
            &id,
            "-parentID",
            &node,
            "-selector",
            &path,
            "-selector",
            &user,
            "-federatesWith",
            &with,
        ]);
    }

    /// The roots, as `pem` or `spiffe`.
    pub fn bundle(&self, format: &str) -> String {
        self.ask(&["bundle", "show", "-format", format])
    }

    fn node(&self) -> String {
        format!("spiffe://{}/node", self.name)
    }

    /// Commands of two words; each wants to know the server's socket.
    fn ask(&self, command: &[&str]) -> String {
        let mut ask = Command::new(self.programs.join("spire-server"));
        let (name, options) = command.split_at(2);
        ask.args(name).arg("-socketPath").arg(self.home.join("server.sock")).args(options);
        Finished::of(&mut ask).well()
    }
}

/// The `writ` binary under a path of its own, by which it is attested.
pub fn workload(house: &House, account: &str) -> PathBuf {
    let path = house.file(&format!("writ-{account}"));
    fs::copy(writ(), &path).unwrap();
    fs::canonicalize(path).unwrap()
}

/// SPIRE and OPA take no port 0. Whoever else takes this one in between makes the test fail, and say why.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
