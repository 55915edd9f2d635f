//! Times as certificates, tokens and policies have them: whole seconds since the epoch. And moments to measure from.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Seconds since the epoch; 0 before it.
pub fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The same of now.
pub fn now() -> i64 {
    seconds(SystemTime::now())
}

/// A moment to measure from, exact to a few milliseconds, for where nearly nobody ever asks: it costs a few nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Moment(Duration);

impl Moment {
    /// This one.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::MonotonicCoarse);
        // The clock begins at zero, and has less than a billion nanoseconds a second.
        Self(Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32))
    }

    /// How long ago it was.
    pub fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}
