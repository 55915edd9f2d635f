//! Goes through what is open when something changed: in slices, between which the worker serves.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control_client::snapshot::ExpiredCredentials;
use tokio::sync::watch;

use super::place::{Slot, disbelieved, ends_as};
use super::{Connection, Live};
use crate::clock::now;
use crate::decision::{PolicyRef, Reason};
use crate::drain::Word;
use crate::generation::Held;
use crate::identity::Proof;
use crate::tables::HeaderNames;

/// How long the first slices are: what a request may have to wait for one.
const SLICE: Duration = Duration::from_micros(200);
/// A sweep that would take longer takes longer slices, so that what has to go is gone within a second.
const IN_TIME: Duration = Duration::from_millis(300);
/// Looked at between two looks at the clock.
const AT_ONCE: u32 = 8;
/// How often to see what time has done.
const TICK: Duration = Duration::from_millis(500);

impl Live {
    /// Follows policy, trust and time for as long as it is polled. `current` gives the newest generation.
    pub async fn run(self: Rc<Self>, mut moved: watch::Receiver<u64>, current: impl Fn() -> Rc<Held>) {
        self.number.set(current().number);
        let mut trust = self.identity.as_ref().map(|identity| identity.subscribe_trust());
        let mut keys = self.keys.watch();
        loop {
            tokio::select! {
                changed = moved.changed() => if changed.is_err() { return },
                () = moved_trust(&mut trust) => {}
                changed = keys.changed() => match changed {
                    Ok(()) => self.keys_moved.set(true),
                    Err(_) => return,
                },
                () = self.again.notified() => {}
                () = tokio::time::sleep(TICK) => if !self.is_due() { continue },
            }
            let mut round = Round::begin(&self, current());
            self.sweep_connections(&round).await;
            round.keys_moved = self.keys_moved.take();
            round.sent = self.upstream.disbelieve(|proof| round.doubt(proof).map(ends_as));
            self.sweep_places(round, &mut moved, &current).await;
        }
    }

    /// Whether time alone has done something.
    fn is_due(&self) -> bool {
        let expiry = [self.next_expiry.get(), self.upstream.disbelieves_at()];
        let expired = expiry.into_iter().flatten().min().is_some_and(|expiry| expiry < now());
        expired || self.next_old.get().is_some_and(|old| old <= Instant::now())
    }

    /// Tells connections to end whose callers are no longer believed or that would have to begin otherwise by now, and those
    /// to finish that are old.
    async fn sweep_connections(&self, round: &Round<'_>) {
        self.next_expiry.set(None);
        self.next_old.set(None);
        let mut pace = Pace::begin();
        let size = self.connections.borrow().capacity();
        for at in 0..size {
            let connection = self.connections.borrow().get(at).and_then(std::rc::Weak::upgrade);
            if let Some(connection) = connection {
                self.look_at(&connection, round);
            }
            pace.breathe().await;
        }
    }

    fn look_at(&self, connection: &Connection, round: &Round<'_>) {
        let peer = &connection.peer;
        if peer.distrusted().is_some() {
            return;
        }
        if let Some(proof) = peer.proof() {
            if let Some(why) = round.doubt(proof) {
                peer.distrust(why);
                connection.watch.tell(Word::End);
                if connection.busy.get() == 0 {
                    self.shard.cut_off(peer.facts.side, ends_as(why));
                }
                return;
            }
            if proof.expires() >= now() {
                self.expects_expiry(proof.expires());
            }
        }
        if peer.began_otherwise(&round.held).is_some() && connection.watch.told() < Word::End {
            connection.watch.tell(Word::End);
            if connection.busy.get() == 0 {
                self.shard.cut_off(peer.facts.side, Reason::PolicyChanged);
            }
            return;
        }
        match connection.old.get() {
            Some(old) if old <= Instant::now() => {
                connection.old.set(None);
                connection.watch.tell(Word::Finish);
                self.shard.aged(peer.facts.side);
            }
            Some(old) => self.expects_old(old),
            None => {}
        }
    }

    /// Asks the newest policy about everything that an older one allowed, and ends what belongs to those no longer believed.
    async fn sweep_places(
        &self,
        mut round: Round<'_>,
        moved: &mut watch::Receiver<u64>,
        current: &impl Fn() -> Rc<Held>,
    ) {
        let (mut pace, mut asked) = (Pace::begin(), 0);
        // From where it is once around: a policy that changes all the time can't keep the last ones from their turn.
        let mut size = self.places.borrow().capacity();
        let (mut at, mut left) = (0, size);
        while left > 0 {
            at = if at == 0 { size - 1 } else { at - 1 };
            left -= 1;
            asked += u64::from(self.ask(at, &round));
            if pace.breathe().await && moved.has_changed().unwrap_or_default() {
                moved.borrow_and_update();
                let Round { sent, keys_moved, .. } = round;
                round = Round { sent, keys_moved, ..Round::begin(self, current()) };
                size = self.places.borrow().capacity();
                (at, left) = (at.min(size), size);
            }
        }
        self.shard.swept(asked, pace.spent());
    }

    /// Asks about one place; whether the policy was asked.
    fn ask(&self, at: usize, round: &Round<'_>) -> bool {
        let mut places = self.places.borrow_mut();
        let Some(slot) = places.get_mut(at) else { return false };
        if slot.is_ended() {
            return false;
        }
        if round.sent {
            slot.wake_sender();
        }
        let mut asked = false;
        let mut ended = slot
            .doubted(&|proof| round.doubt(proof))
            .or_else(|| self.outlived(slot, round))
            .map(|why| disbelieved(&round.held, why, PolicyRef::NONE, round.since.elapsed()));
        if ended.is_none() && slot.number < round.held.number {
            slot.number = round.held.number;
            ended = slot.judge(&round.held, &self.keys, |names| round.knows(names));
            asked = true;
        } else if ended.is_none() && round.keys_moved {
            let user = slot.user(&round.held, &self.keys);
            ended =
                user.err().map(|(policy, why)| disbelieved(&round.held, why, policy, round.since.elapsed()));
        }
        if let Some(ended) = ended {
            let loose = slot.end(ended);
            drop(places);
            loose.let_go();
        }
        asked
    }

    /// Whether the end user's token has expired; if not, when to ask again.
    fn outlived(&self, slot: &Slot, round: &Round<'_>) -> Option<Reason> {
        let until = slot.user_until()?;
        if until >= now() {
            self.expects_expiry(until);
            return None;
        }
        (!round.keeps_expired()).then_some(Reason::Expired)
    }
}

/// Resolves when roots, revocation lists or aliases changed; never without an identity.
async fn moved_trust(trust: &mut Option<watch::Receiver<u64>>) {
    let gone = match trust {
        Some(trust) => trust.changed().await.is_err(),
        None => true,
    };
    if gone {
        std::future::pending().await
    }
}

/// Keeps a sweep from holding up the worker.
struct Pace {
    began: Instant,
    slice: Instant,
    looked: u32,
    spent: Duration,
}

impl Pace {
    fn begin() -> Self {
        let now = Instant::now();
        Self { began: now, slice: now, looked: 0, spent: Duration::ZERO }
    }

    /// Lets others run if it is their turn; whether it was.
    async fn breathe(&mut self) -> bool {
        self.looked = self.looked.wrapping_add(1);
        if !self.looked.is_multiple_of(AT_ONCE) || self.slice.elapsed() < slice_after(self.began.elapsed()) {
            return false;
        }
        self.spent += self.slice.elapsed();
        tokio::task::yield_now().await;
        self.slice = Instant::now();
        true
    }

    fn spent(&self) -> Duration {
        self.spent + self.slice.elapsed()
    }
}

/// How long a slice may be when the sweep has taken so long.
fn slice_after(taken: Duration) -> Duration {
    let late = taken.as_millis() / IN_TIME.as_millis();
    SLICE * 5u32.saturating_pow(u32::try_from(late).unwrap_or(u32::MAX).min(3))
}

type Names = Rc<Arc<HeaderNames>>;

/// One generation, what is known of others beside it, and who is believed.
struct Round<'l> {
    live: &'l Live,
    held: Rc<Held>,
    since: Instant,
    /// Some server that requests are sent to is no longer believed.
    sent: bool,
    /// Keys that prove end users have changed.
    keys_moved: bool,
    /// Names that were looked at last, and whether they cover those of this generation: nearly all places share one.
    seen: RefCell<Option<(Names, bool)>>,
}

impl<'l> Round<'l> {
    fn begin(live: &'l Live, held: Rc<Held>) -> Self {
        live.number.set(held.number);
        Self { live, held, since: Instant::now(), sent: false, keys_moved: false, seen: RefCell::default() }
    }

    /// Why what was proven once no longer counts.
    fn doubt(&self, proof: &Proof) -> Option<Reason> {
        self.live.doubt(proof).filter(|why| *why != Reason::Expired || !self.keeps_expired())
    }

    fn keeps_expired(&self) -> bool {
        self.held.tables.mesh().expired_credentials == ExpiredCredentials::Keep
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_grow_with_the_time_that_a_sweep_takes() {
        let slices = [0, 299, 300, 600, 900, 100_000].map(|ms| slice_after(Duration::from_millis(ms)));
        assert_eq!(slices.map(|slice| slice.as_micros()), [200, 200, 1_000, 5_000, 25_000, 25_000]);
    }
}
