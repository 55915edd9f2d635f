//! `writ demo`: a small mesh on loopback in one process, nothing installed, no root.
//!
//! A `productpage` calls `ratings`, of which there are two versions, 90/10. Each has a sidecar; between them is mutual
//! TLS under a throw-away authority. What is decided is shown as it is recorded.

mod mesh;
mod show;

use std::process::ExitCode;
use std::time::Duration;

use self::mesh::Mesh;
use self::show::Live;
use super::failed;

/// Flags of `writ demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Send a fixed set of requests, print a table, and exit 0 only if all went as the policies say.
    #[arg(long)]
    once: bool,
    /// Where to send requests to (loopback).
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
}

/// Runs the demo.
pub fn run(args: Args) -> ExitCode {
    let outcome = if args.once { once() } else { live(args.port) };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}

/// The fixed set of requests.
fn once() -> anyhow::Result<bool> {
    let (mesh, mut records) = Mesh::start(0)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let went_well = runtime.block_on(show::fixed_set(&mesh, &mut records));
    mesh.stop()?;
    went_well
}

/// Until Ctrl-C.
fn live(port: u16) -> anyhow::Result<bool> {
    let (mesh, mut records) = Mesh::start(port)?;
    print!("{}", show::invitation(&mesh));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut live = Live::default();
        loop {
            tokio::select! {
                Some(line) = records.recv() => live.show(&line),
                _ = tokio::signal::ctrl_c() => break,
            }
        }
    });
    println!();
    mesh.stop()?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(true)
}
