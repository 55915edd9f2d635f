//! `writ demo`: a small mesh on loopback in one process, nothing installed, no root.
//!
//! A `productpage` calls `ratings`, of which there are two versions, 90/10. Each has a sidecar; between them is mutual
//! TLS under a throw-away authority. An edge takes HTTPS from outside. What is decided is shown as it is recorded.

mod follow;
mod mesh;
mod once;
mod show;

use std::io;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use self::follow::Configuration;
use self::mesh::Mesh;
use self::show::Live;
use super::{failed, told_to_stop};

/// Flags of `writ demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Send a fixed set of requests, print a table, and exit 0 only if all went as the policies say.
    #[arg(long)]
    once: bool,
    /// Port on loopback to send requests to.
    #[arg(long, value_name = "N", default_value_t = 8080, conflicts_with = "once")]
    port: u16,
}

/// Runs the demo.
pub fn run(args: Args) -> ExitCode {
    let outcome = if args.once { once() } else { live(args.port) };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // A reader that has gone away (`| head`) is told by the exit code alone.
        Err(error) if is_broken_pipe(&error) => ExitCode::FAILURE,
        Err(error) => failed("demo", &error),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The fixed set of requests.
fn once() -> anyhow::Result<bool> {
    let (mesh, mut records) = Mesh::start(0)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let went_well = runtime.block_on(once::fixed_set(&mesh, &mut records, &mut io::stdout()));
    mesh.stop()?;
    went_well
}

/// Until Ctrl-C, or until nobody reads any more.
fn live(port: u16) -> anyhow::Result<bool> {
    let (mesh, mut records) =
        Mesh::start(port).context("the demo does not start (--port chooses another port)")?;
    let (mut configuration, follow) = Configuration::follow(mesh.config())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shown = runtime.block_on(async {
        let mut live = Live::begin(&mesh, io::stdout())?;
        let (mut follow, mut stop) = (std::pin::pin!(follow), std::pin::pin!(told_to_stop()));
        // A terminal that is closed.
        let mut hangup = signal(SignalKind::hangup())?;
        loop {
            tokio::select! {
                Some(line) = records.recv() => live.decision(&line)?,
                changes = configuration.changed() => live.configuration(&changes)?,
                () = &mut follow => return Ok(()),
                told = &mut stop => return told,
                _ = hangup.recv() => return Ok(()),
            }
        }
    });
    mesh.stop()?;
    shown?;
    Ok(true)
}
