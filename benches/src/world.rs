//! What all cases share: a scratch directory, the identities, the applications, and where the peers' programs are.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::backend::Backend;
use crate::child::Cores;
use crate::issuer::Issuer;
use crate::peer::Peer;
use crate::pki::Pki;

/// Everything a case starts from.
#[derive(Debug)]
pub struct World {
    /// Who runs where.
    pub cores: Cores,
    /// The identities of both workloads.
    pub pki: Pki,
    /// Who vouches for the end user.
    pub issuer: Issuer,
    /// The application that gets 90 % of the traffic.
    pub v1: Backend,
    /// The application that gets 10 %.
    pub v2: Backend,
    programs: Programs,
    scratch: PathBuf,
    runs: Cell<u32>,
    keep: bool,
}

/// The peers' programs.
#[derive(Debug)]
struct Programs {
    writ: Option<PathBuf>,
    envoy: Option<PathBuf>,
    /// This very program, which carries the bare forwarder.
    own: PathBuf,
}

impl World {
    /// Makes the directory and identities, starts the applications. With `keep`, what the processes wrote stays.
    pub fn create(keep: bool) -> Result<Self> {
        let cores = Cores::claim()?;
        let scratch = std::env::temp_dir().join(format!("writ-compare-{}", std::process::id()));
        if keep {
            eprintln!("what the processes write stays in {}", scratch.display());
        }
        let pki = Pki::create(&scratch.join("identities"))?;
        Ok(Self {
            cores,
            pki,
            issuer: Issuer::create()?,
            v1: Backend::start("v1")?,
            v2: Backend::start("v2")?,
            programs: Programs::find()?,
            scratch,
            runs: Cell::new(1),
            keep,
        })
    }

    /// The program of `peer`, or why there is none.
    pub fn program(&self, peer: Peer) -> Result<&Path> {
        match peer {
            Peer::Writ => self.programs.writ.as_deref().context(
                "there is no `writ` beside this program: start it by `cargo run`, or name the program in WRIT_BINARY",
            ),
            Peer::Envoy => self
                .programs
                .envoy
                .as_deref()
                .context("Envoy was not found: run benches/peers.sh, or name the program in WRIT_ENVOY"),
            Peer::Bare => Ok(&self.programs.own),
        }
    }

    /// What `peer` says of its version.
    pub fn version(&self, peer: Peer) -> Result<String> {
        let versions = match peer {
            Peer::Bare => return Ok("hyper, rustls and a pool; no policy, routes or telemetry".into()),
            Peer::Writ | Peer::Envoy => Command::new(self.program(peer)?).arg("--version").output()?,
        };
        ensure!(versions.status.success(), "{peer:?} --version failed");
        let text = String::from_utf8_lossy(&versions.stdout);
        let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        // Envoy puts its path first.
        Ok(line.rsplit_once("version: ").map_or(line, |(_, version)| version).trim().to_owned())
    }

    /// A new directory for one run of a pair of `peer`.
    pub fn run_directory(&self, peer: Peer) -> Result<PathBuf> {
        let run = self.runs.replace(self.runs.get() + 1);
        let path = self.scratch.join(format!("{run}-{peer:?}").to_lowercase());
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// Removes what a run wrote, unless it is to be kept: logs of a long comparison would fill a disk.
    pub fn discard(&self, directory: &Path) {
        if !self.keep {
            // At worst a few files stay in the temporary directory.
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.discard(&self.scratch);
    }
}

impl Programs {
    fn find() -> Result<Self> {
        let own = std::env::current_exe().context("find this program")?;
        let writ = match std::env::var_os("WRIT_BINARY") {
            Some(named) => PathBuf::from(named),
            None => {
                build_writ(&own)?;
                own.with_file_name("writ")
            }
        };
        let envoy = std::env::var_os("WRIT_ENVOY").map_or_else(|| cache().join("peers/envoy"), PathBuf::from);
        Ok(Self { writ: writ.is_file().then_some(writ), envoy: envoy.is_file().then_some(envoy), own })
    }
}

/// Under `cargo run`: builds `writ` by the profile of this program, beside it, so that what is measured is the source as
/// it stands. Run by itself, this program takes the `writ` that is there.
fn build_writ(own: &Path) -> Result<()> {
    let (Some(cargo), Some(directory)) = (std::env::var_os("CARGO"), own.parent().and_then(Path::file_name))
    else {
        return Ok(());
    };
    let profile = if directory == "debug" { "dev".as_ref() } else { directory };
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--package", "proxy", "--bin", "writ", "--profile"]).arg(profile);
    ensure!(build.status().context("build writ")?.success(), "writ does not build");
    Ok(())
}

/// Where `peers.sh` puts things: `WRIT_CACHE`, else `.cache` in the root of the checkout.
fn cache() -> PathBuf {
    let named = std::env::var_os("WRIT_CACHE").map(PathBuf::from);
    let root = || match std::env::var_os("CARGO_MANIFEST_DIR") {
        Some(package) => Path::new(&package).join(".."),
        None => PathBuf::from("."),
    };
    named.unwrap_or_else(|| root().join(".cache"))
}

/// An address that nobody listens on now. Another process could take it before the peer does; then the peer fails to
/// start and says so.
pub fn free_address(ip: Ipv4Addr) -> Result<SocketAddr> {
    let listener = TcpListener::bind((IpAddr::V4(ip), 0)).context("find a free port")?;
    Ok(listener.local_addr()?)
}
