//! Sources of configuration. All of them yield files of objects.

pub(crate) mod dir;
pub(crate) mod watch;
