//! The mesh that traffic tests send through: three pods with sidecars behind real redirection rules, and a machine
//! without one, all on one wire. Addresses and policies are in `mesh.yaml`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::Directory;
use tests::program::{Finished, Program, beside, writ};

use crate::namespace::{Namespace, Wire};
use crate::records::Records;

/// The user that proxies run as where rules go by user.
const PROXY_UID: u32 = 1337;
/// The mark of their connections where rules go by mark.
const PROXY_MARK: u32 = 0x539;
/// Whoever else: the applications.
pub const APPLICATION_UID: u32 = 1000;

/// Which rules a pod has, and who its proxy says it is.
pub struct PodOptions {
    pub backend: &'static str,
    pub by_mark: bool,
    pub service_account: Option<&'static str>,
    pub rules: &'static [&'static str],
}

impl Default for PodOptions {
    fn default() -> Self {
        Self { backend: "nft", by_mark: false, service_account: None, rules: &[] }
    }
}

/// A wire, a configuration, a certificate authority, and the pods that were started.
pub struct Mesh {
    pub wire: Wire,
    directory: Directory,
    writ: PathBuf,
}

impl Mesh {
    pub fn new() -> Self {
        let directory = Directory::new();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(directory.path().join("config")).unwrap();
        fs::write(directory.path().join("config/mesh.yaml"), include_str!("mesh.yaml")).unwrap();
        // Where the proxy's user reaches it, wherever this build lies.
        let own = directory.path().join("writ");
        fs::hard_link(writ(), &own).or_else(|_| fs::copy(writ(), &own).map(drop)).unwrap();
        let authority = directory.path().join("authority");
        fs::create_dir(&authority).unwrap();
        chown(&authority, Some(PROXY_UID), Some(PROXY_UID)).unwrap();
        Self { wire: Wire::new(), directory, writ: own }
    }

    /// The pod that calls.
    pub fn client(&self, options: PodOptions) -> Pod {
        self.pod("client", "client", 10, "app=client", options)
    }

    /// Version 1 of ratings.
    pub fn v1(&self, options: PodOptions) -> Pod {
        self.pod("ratings-v1", "ratings", 21, "app=ratings,version=v1", options)
    }

    /// Version 2 of ratings.
    pub fn v2(&self, options: PodOptions) -> Pod {
        self.pod("ratings-v2", "ratings", 22, "app=ratings,version=v2", options)
    }

    /// A machine without a sidecar: 10.77.0.66, fd77::66.
    pub fn outsider(&self) -> Namespace {
        self.wire.machine("outsider", 66)
    }

    /// A file of this test's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The binary, where every user can run it.
    pub fn writ(&self) -> &Path {
        &self.writ
    }

    fn pod(&self, name: &str, account: &str, number: u8, labels: &str, options: PodOptions) -> Pod {
        // The names of links are short.
        let machine = self.wire.machine(name.trim_start_matches("ratings-"), number);
        let identity = if options.by_mark { "--mark=0x539" } else { "--uid=1337" };
        let mut install = machine.command(&self.writ);
        install.args(["intercept", "install", "--backend", options.backend, identity]).args(options.rules);
        Finished::of(&mut install).well();

        let mut run = if options.by_mark {
            let mut run = machine.command(&self.writ);
            run.args(["run", "--mark", &PROXY_MARK.to_string()]);
            run
        } else {
            let mut run = machine.command_as(PROXY_UID, &self.writ);
            run.arg("run");
            run
        };
        run.args(["--role=sidecar", "--record=stdout", "--lame-duck=0s", "--labels", labels]);
        run.args(["--workload", &format!("bookinfo/{name}")]);
        run.args(["--service-account", options.service_account.unwrap_or(account)]);
        run.arg("--config").arg(self.directory.path().join("config"));
        run.arg("--identity").arg(format!("dev:{}", self.directory.path().join("authority").display()));
        let sidecar = Program::start(name, &mut run);
        sidecar.error_line(|line| line.contains("\"serving\""));
        Pod { applications: Vec::new(), sidecar, machine }
    }
}

/// A network namespace with redirection rules, a sidecar and applications.
pub struct Pod {
    applications: Vec<Program>,
    pub sidecar: Program,
    pub machine: Namespace,
}

impl Pod {
    /// Starts a plain server (`servers.py`): `http`, `echo` or `banner`.
    pub fn serving(mut self, kind: &str, port: u16, name: &str) -> Self {
        self.applications.push(serve(&self.machine, kind, port, name));
        self
    }

    pub fn records(&self) -> Records<'_> {
        Records::of(&self.sidecar)
    }

    /// curl, as an application's user.
    pub fn curl(&self) -> Command {
        curl(self.machine.command_as(APPLICATION_UID, "curl"))
    }
}

/// Starts a plain server (`servers.py`) on a machine.
pub fn serve(machine: &Namespace, kind: &str, port: u16, name: &str) -> Program {
    let mut server = machine.command("python3");
    server.arg(beside("interop/servers.py")).args([kind, &port.to_string(), name]);
    let server = Program::start(name, &mut server);
    server.line(|line| line == "ready");
    server
}

/// curl as scripts use it, with the names of `mesh.yaml`, and nothing of the host's settings.
pub fn curl(mut curl: Command) -> Command {
    curl.args(["--disable", "--silent", "--show-error", "--max-time", "60", "--noproxy", "*"]);
    for (name, number) in [("ratings", 10), ("ratings-v1", 11), ("ratings-v2", 12)] {
        curl.args(["--resolve", &format!("{name}:9080:10.96.0.{number},[fd96::{number}]")]);
    }
    curl
}
