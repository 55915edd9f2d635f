//! Goes through what is open when something changed: in slices, between which the worker serves.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Live;
use crate::generation::Held;
use crate::tables::HeaderNames;

/// How long the first slices are: what a request may have to wait for one.
const SLICE: Duration = Duration::from_micros(200);
/// A sweep that would take longer takes longer slices, so that what has to go is gone within a second.
const IN_TIME: Duration = Duration::from_millis(300);
/// Looked at between two looks at the clock.
const AT_ONCE: usize = 8;

impl Live {
    /// Follows the generations of policy for as long as it is polled. `current` gives the newest.
    pub async fn run(self: Rc<Self>, mut moved: watch::Receiver<u64>, current: impl Fn() -> Rc<Held>) {
        self.number.set(current().number);
        loop {
            tokio::select! {
                changed = moved.changed() => if changed.is_err() { return },
                () = self.again.notified() => {}
            }
            self.sweep(&mut moved, &current).await;
        }
    }

    /// Asks the newest policy about everything that an older one allowed.
    async fn sweep(&self, moved: &mut watch::Receiver<u64>, current: &impl Fn() -> Rc<Held>) {
        let (began, mut spent, mut asked) = (Instant::now(), Duration::ZERO, 0);
        let mut round = Round::begin(self, current());
        let mut at = 0;
        // From where it is once around: a policy that changes all the time can't keep the last ones from their turn.
        let mut size = self.places.borrow().capacity();
        let mut left = size;
        while left > 0 {
            let slice = Instant::now();
            while left > 0 {
                for _ in 0..AT_ONCE.min(left) {
                    at = if at == 0 { size - 1 } else { at - 1 };
                    asked += u64::from(self.ask(at, &round));
                    left -= 1;
                }
                if slice.elapsed() >= slice_after(began.elapsed()) {
                    break;
                }
            }
            spent += slice.elapsed();
            if left > 0 {
                tokio::task::yield_now().await;
            }
            if moved.has_changed().unwrap_or_default() {
                moved.borrow_and_update();
                round = Round::begin(self, current());
                size = self.places.borrow().capacity();
                left = size;
            }
        }
        self.shard.swept(asked, spent);
    }

    /// Asks about one place; whether there was anything to ask.
    fn ask(&self, at: usize, round: &Round) -> bool {
        let mut places = self.places.borrow_mut();
        let Some(slot) = places.get_mut(at) else { return false };
        if slot.number >= round.held.number || slot.is_ended() {
            return false;
        }
        slot.number = round.held.number;
        let Some(ended) = slot.judge(&round.held, |names| round.knows(names)) else { return true };
        let loose = slot.end(ended);
        drop(places);
        loose.let_go();
        true
    }
}

/// How long a slice may be when the sweep has taken so long.
fn slice_after(taken: Duration) -> Duration {
    let late = taken.as_millis() / IN_TIME.as_millis();
    SLICE * 5u32.saturating_pow(u32::try_from(late).unwrap_or(u32::MAX).min(3))
}

type Names = Rc<Arc<HeaderNames>>;

/// One generation, and what is known of others beside it.
struct Round {
    held: Rc<Held>,
    /// Names that were looked at last, and whether they cover those of this generation: nearly all places share one.
    seen: RefCell<Option<(Names, bool)>>,
}

impl Round {
    fn begin(live: &Live, held: Rc<Held>) -> Self {
        live.number.set(held.number);
        Self { held, seen: RefCell::default() }
    }

    /// Whether all headers that this generation looks at were kept where these were.
    fn knows(&self, names: &Names) -> bool {
        let mut seen = self.seen.borrow_mut();
        match &*seen {
            Some((last, known)) if Rc::ptr_eq(last, names) => *known,
            _ => {
                let known = self.held.tables.header_names().are_within(names);
                *seen = Some((Rc::clone(names), known));
                known
            }
        }
    }
}
