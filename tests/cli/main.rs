//! The `writ` binary by its command line: what it prints, and how it exits. Needs no privileges.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod check;
#[path = "../program.rs"]
mod program;
mod run;
mod usage;

use std::process::Command;

use program::Finished;

/// Runs `writ` with these arguments to its end.
#[track_caller]
pub fn writ(arguments: &[&str]) -> Finished {
    Finished::of(Command::new(program::writ()).args(arguments))
}
