//! Process-wide bounds on what callers may take up.

mod buckets;
mod budget;
mod in_force;

pub use self::buckets::{Buckets, Now, Rate, Taken};
pub use self::budget::{Budget, Reserved};
pub use self::in_force::{InForce, Wanted};

/// Bytes of request bodies that a process holds for providers to see.
pub const MAX_HELD_BODIES: usize = 64 << 20;
