//! The `writ` binary by its command line: what it prints, and how it exits. Needs no privileges.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod check;
mod readme;
mod run;
mod usage;

use std::process::Command;

use tests::program::Finished;

/// Runs `writ` with these arguments to its end.
#[track_caller]
pub fn writ(arguments: &[&str]) -> Finished {
    Finished::of(Command::new(tests::program::writ()).args(arguments))
}
