//! One timer per connection, made when something is first waited for and moved only when it rings or rings too late: a request that
//! finds its bytes there costs no timer at all.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A lazy timer over the deadlines of a connection.
#[derive(Debug, Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Whether `deadline` has passed; if not, the task is woken then at the latest.
    pub(super) fn has_passed(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return true;
            }
            // It rang for an earlier wait that is over.
            sleep.as_mut().reset(deadline);
        }
        false
    }
}

/// Sets a deadline that is not running yet.
pub(super) fn run(deadline: &mut Option<Instant>, timeout: Duration) {
    if deadline.is_none() {
        *deadline = Instant::now().checked_add(timeout);
    }
}

/// The earlier of two.
pub(super) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_timer_rings_at_the_deadline_it_was_last_asked_for() {
        let start = Instant::now();
        let mut timer = Timer::default();
        for (asked, rings) in [(5, 5), (60, 60), (61, 61), (200, 200)] {
            let deadline = start + Duration::from_secs(asked);
            // A later and an earlier question first: neither may change the answer.
            poll_fn(|cx| Poll::Ready(timer.has_passed(deadline + Duration::from_secs(30), cx))).await;
            poll_fn(|cx| if timer.has_passed(deadline, cx) { Poll::Ready(()) } else { Poll::Pending }).await;
            assert_eq!(start.elapsed().as_secs(), rings);
        }
    }
}
