//! What a record tells beside its decision that is found out only when it is written, by the thread that writes.

use std::fmt;

/// JSON that is yet to be found out.
pub struct Later(Box<dyn FnOnce() -> String + Send>);

impl Later {
    /// `find_out` gives JSON, on the thread that writes records; never, where nothing writes any.
    pub fn new(find_out: impl FnOnce() -> String + Send + 'static) -> Self {
        Self(Box::new(find_out))
    }

    pub(super) fn find_out(self) -> String {
        self.0()
    }
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Later")
    }
}
