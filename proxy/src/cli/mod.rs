//! One file per subcommand.

pub mod admin;
pub mod attest;
pub mod check;
pub mod demo;
pub mod diff;
pub mod explain;
pub mod intercept;
pub mod run;
pub mod table;

use std::io::{self, IsTerminal, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// A mesh proxy that names the policy behind every decision.
///
/// Writ stands beside a workload, carries its traffic over mutual TLS, decides who may do what, and leaves one record a
/// request that says which policy decided, and why.
#[derive(Debug, Parser)]
#[command(name = "writ", version, max_term_width = 110, arg_required_else_help = true)]
#[command(after_help = "\
Start here:
  writ demo              a small mesh on loopback, nothing to install
  writ check DIR         what a proxy makes of Kubernetes YAML in DIR
  writ run --config DIR  a local proxy that follows DIR

Exit codes: 0 well, 1 failed, 2 wrong usage.
Every flag of `run` is also an environment variable: --record = WRIT_RECORD.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a small mesh on loopback and show its decisions live.
    Demo(demo::Args),
    /// Run the proxy.
    Run(Box<run::Args>),
    /// List everything wrong with a configuration, as the proxy would compile it.
    Check(check::Args),
    /// Show the record that the proxy would leave for a request, without sending one.
    Explain(Box<explain::Args>),
    /// Say what access a change of configuration grants or takes: who may do what.
    Diff(diff::Args),
    /// Install, verify or remove redirection rules in this network namespace.
    Intercept(intercept::Args),
    /// Show what crypto this binary runs.
    Attest(attest::Args),
    /// Ask a running proxy about itself.
    Admin(admin::Args),
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    // The demo shows what its three sidecars would each say.
    log(if matches!(command, Command::Demo(_)) { "off" } else { "info" });
    match command {
        Command::Demo(args) => demo::run(args),
        Command::Run(args) => run::run(*args),
        Command::Check(args) => check::run(args),
        Command::Explain(args) => explain::run(*args),
        Command::Diff(args) => diff::run(args),
        Command::Intercept(args) => intercept::run(args),
        Command::Attest(args) => attest::run(args),
        Command::Admin(args) => admin::run(&args),
    }
}

/// The program's own log: standard error, `WRIT_LOG` as filter; JSON when nobody looks.
fn log(default: &str) {
    let filter = EnvFilter::try_from_env("WRIT_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    if io::stderr().is_terminal() {
        log.with_ansi(colours(&io::stderr())).compact().init();
    } else {
        log.json().flatten_event(true).init();
    }
}

/// Says what failed, as every command does, and gives the exit code for it.
pub fn failed(command: &str, error: &anyhow::Error) -> ExitCode {
    eprintln!("writ {command}: {error:#}");
    ExitCode::FAILURE
}

/// Says how a command was used wrongly, a path that is not there among it, and gives the exit code for it.
pub fn misused(command: &str, wrong: &str) -> ExitCode {
    eprintln!("writ {command}: {wrong}");
    ExitCode::from(2)
}

/// Prints a command's result. A reader that has gone away (`| head`) is told by the exit code alone.
pub fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Whether to write in colours: on a terminal, unless `NO_COLOR` is set and not empty (no-color.org).
pub fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Waits for SIGTERM or Ctrl-C.
pub async fn told_to_stop() -> io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted,
    }
}
