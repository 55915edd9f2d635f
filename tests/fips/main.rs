//! `--fips required` at the certified flavour: what is not approved is refused alone, by name, and the rest is served. A program
//! of its own, because what is required is required of the whole process.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod objects;
mod own;
mod peers;

use tests::World;

/// A mesh that takes approved crypto only.
fn world() -> World {
    fips::require().unwrap();
    World::new()
}
