//! `writ check`.
use std::process::ExitCode;
/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {}
/// Runs.
pub fn run(_: Args) -> ExitCode {
    ExitCode::SUCCESS
}
