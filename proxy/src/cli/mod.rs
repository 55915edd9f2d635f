//! One file per subcommand.

pub mod admin;
pub mod attest;
pub mod check;
pub mod demo;
pub mod explain;
pub mod intercept;
pub mod run;
pub mod table;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// A mesh proxy that names the policy behind every decision.
///
/// Writ stands beside a workload (or at the edge), carries its traffic over mutual TLS, decides who may do what, and
/// leaves one record a request that says which policy decided, and why.
#[derive(Debug, Parser)]
#[command(name = "writ", version, max_term_width = 110, arg_required_else_help = true)]
#[command(after_help = "\
Start here:
  writ demo                         everything on loopback: services, two sidecars, policies; nothing to install
  writ check DIR                    what a proxy would make of a directory of resources
  writ run --config DIR             a local proxy; resources are Kubernetes YAML (Gateway API, Istio security)

Exit codes: 0 well, 1 failed, 2 wrong usage. Every flag of `run` is also an environment variable: --record = WRIT_RECORD.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Try it: a small mesh on loopback, its decisions shown live.
    Demo(demo::Args),
    /// The proxy.
    Run(Box<run::Args>),
    /// Compile a configuration as the proxy would, and list everything wrong with it.
    Check(check::Args),
    /// The record that the proxy would leave for a request, without sending one.
    Explain(Box<explain::Args>),
    /// Redirection rules in the current network namespace.
    Intercept(intercept::Args),
    /// What crypto this binary runs.
    Attest(attest::Args),
    /// Ask a running proxy.
    Admin(admin::Args),
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    // The demo's own table is what its user came for.
    log(if matches!(command, Command::Demo(_)) { "error" } else { "info" });
    match command {
        Command::Demo(args) => demo::run(args),
        Command::Run(args) => run::run(*args),
        Command::Check(args) => check::run(args),
        Command::Explain(args) => explain::run(*args),
        Command::Intercept(args) => intercept::run(args),
        Command::Attest(args) => attest::run(args),
        Command::Admin(args) => admin::run(&args),
    }
}

/// The program's own log: standard error, `WRIT_LOG` as filter; JSON when nobody looks.
fn log(default: &str) {
    let filter = EnvFilter::try_from_env("WRIT_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let terminal = std::io::stderr().is_terminal();
    if terminal {
        log.with_ansi(std::env::var_os("NO_COLOR").is_none()).compact().init();
    } else {
        log.json().flatten_event(true).init();
    }
}

/// Says what failed, as every command does, and gives the exit code for it.
pub fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("writ: {error:#}");
    ExitCode::FAILURE
}
