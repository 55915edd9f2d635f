//! Process-wide bounds on what callers may take up.

mod budget;

pub use self::budget::{Budget, Reserved};

/// Bytes of request bodies that a process holds for providers to see.
pub const MAX_HELD_BODIES: usize = 64 << 20;
