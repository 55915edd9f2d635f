//! Sources of configuration -> intent -> snapshot. Knows no data path.

pub mod snapshot;
pub mod verdict;
