//! The `writ` binary.

use std::process::ExitCode;

// Huge pages are off: an idle proxy would hold several for little.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    proxy::cli::main()
}
