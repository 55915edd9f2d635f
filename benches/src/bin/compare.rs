//! `compare`: Writ beside other proxies in one run; see `--help`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use benches::bare::{self, Forward};
use benches::measure::Timing;
use benches::peer::Peer;
use benches::scenario::{self, Plan, Scenario};
use benches::world::World;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Writ beside Envoy and a bare hyper forwarder: CPU per request, latency, memory, and their ratios.
///
/// Each proxy is one process with one worker on one core; load and applications share another core. A peer that is
/// not installed is named and left out (`benches/peers.sh` installs them). Absolute figures of a shared machine mean
/// nothing elsewhere; the ratios of one run are the result.
#[derive(Debug, Parser)]
#[command(name = "compare", subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    compare: Compare,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The bare forwarder itself, as the comparison starts it.
    #[command(hide = true)]
    Bare(Forward),
}

#[derive(Debug, Args)]
struct Compare {
    /// What to measure; repeatable. Default: all.
    #[arg(long)]
    scenario: Vec<Scenario>,
    /// Which proxies; repeatable. Default: all that are installed.
    #[arg(long)]
    peer: Vec<Peer>,
    /// Measured time of one repetition.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Load before the measured time.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Repetitions of each case, in turn with the others; figures are medians.
    #[arg(long, default_value_t = 5)]
    reps: usize,
    /// Also writes the tables to this file.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Keeps configuration, logs and records of every run, and says where.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if let Some(Command::Bare(forward)) = cli.command {
        return bare::run(&forward);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(async {
        // Leaving by an error drops, and so ends, every process that was started.
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            result = compare(cli.compare) => result,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    }))
}

async fn compare(options: Compare) -> Result<()> {
    let timing = Timing {
        warm_up: Duration::try_from_secs_f64(options.warm_up).context("--warm-up")?,
        measured: Duration::try_from_secs_f64(options.seconds).context("--seconds")?,
    };
    let plan =
        Plan { scenarios: options.scenario, peers: options.peer, timing, repetitions: options.reps.max(1) };
    let world = World::create(options.keep)?;
    let report = scenario::run(&world, &plan).await?;
    println!("{report}");
    if let Some(path) = options.markdown {
        std::fs::write(&path, report).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
