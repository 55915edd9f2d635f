//! The `writ` binary.
fn main() {}
