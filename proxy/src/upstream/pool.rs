//! [`Target`]: what a connection can be reused for, with the connections that are idle or shared there; and the sweeper
//! that closes what stays idle.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::time::Duration;

use rand::RngExt as _;

use super::Upstream;
use super::hop::{HopFacts, HopProtocol, HopTls};
use super::http1::Connection;
use super::http2::Shared;
use super::io::Idleness;
use crate::clock::now;
use crate::decision::Reason;
use crate::identity::Proof;

/// A connection may serve a request exactly when all of this is equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TargetKey {
    pub(super) address: SocketAddr,
    /// Local address to connect from, where it matters.
    pub(super) source: Option<IpAddr>,
    pub(super) tls: HopTls,
    pub(super) protocol: HopProtocol,
}

/// One key with its connections, per worker.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) key: TargetKey,
    /// Idle HTTP/1 connections, the one used last at the end. They hold no buffer and no timer.
    #[expect(clippy::vec_box, reason = "boxed for its whole life, so that it moves as a pointer")]
    idle: RefCell<Vec<Box<Connection>>>,
    /// HTTP/2 connections.
    pub(super) shared: Shared,
}

/// The sweeper looks so many times in an idle timeout.
const TICKS: u32 = 8;

/// From which tick of the sweeper on a connection serves no further request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retires(Option<u32>);

impl Retires {
    pub(super) fn by(self, tick: u32) -> bool {
        self.0.is_some_and(|at| tick.wrapping_sub(at) < u32::MAX / 2)
    }
}

impl Target {
    pub(super) fn new(key: TargetKey) -> Self {
        Self { key, idle: RefCell::default(), shared: Shared::default() }
    }

    fn is_unused(&self) -> bool {
        self.idle.borrow().is_empty() && self.shared.is_empty()
    }
}

impl Upstream {
    pub(super) fn target(&self, key: TargetKey) -> Rc<Target> {
        let mut targets = self.targets.borrow_mut();
        if let Some(target) = targets.get(&key) {
            return Rc::clone(target);
        }
        let target = Rc::new(Target::new(key.clone()));
        targets.insert(key, Rc::clone(&target));
        target
    }

    /// The connection used last that is still good: it is the warmest, and the others get to grow old.
    pub(super) fn checkout(&self, target: &Target) -> Option<Box<Connection>> {
        let mut idle = target.idle.borrow_mut();
        while let Some(mut connection) = idle.pop() {
            self.idle.set(self.idle.get() - 1);
            if connection.io.idleness() == Idleness::Quiet {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for the next request, if it may be and there is room.
    pub(super) fn give_back(self: &Rc<Self>, target: &Target, mut connection: Box<Connection>) {
        let mut idle = target.idle.borrow_mut();
        let room = idle.len() < self.settings.max_idle_per_target && self.idle.get() < self.settings.max_idle;
        let spent = connection.retires.by(self.tick.get()) || connection.facts.belief.lost().is_some();
        if connection.epoch != self.epoch.get() || !room || spent {
            return;
        }
        connection.reused = true;
        connection.idle_since = self.tick.get();
        idle.push(connection);
        self.idle.set(self.idle.get() + 1);
        self.ensure_swept();
    }

    /// Closes what is idle and lets no connection of now serve another request: at drain, and when trust changes.
    pub fn close_idle(&self) {
        self.epoch.set(self.epoch.get().wrapping_add(1));
        for target in self.targets.borrow().values() {
            target.idle.borrow_mut().clear();
            target.shared.retire_all();
        }
        self.idle.set(0);
    }

    /// A connection to a server that proved who it is.
    pub(super) fn believe(&self, facts: &Rc<HopFacts>) {
        let mut believed = self.believed.borrow_mut();
        if believed.len() == believed.capacity() {
            believed.retain(|facts| facts.strong_count() > 0);
        }
        believed.push(Rc::downgrade(facts));
        self.expects_expiry(facts);
    }

    fn expects_expiry(&self, facts: &HopFacts) {
        let expires = facts.proof.as_ref().map(|proof| proof.expires());
        let next = [self.next_expiry.get(), expires.filter(|at| *at >= now())];
        self.next_expiry.set(next.into_iter().flatten().min());
    }

    /// Ends connections whose servers `doubt` no longer believes, for the reason it gives; what is under way on HTTP/1 ends
    /// when it is polled next. True if there were any.
    pub fn disbelieve(&self, doubt: impl Fn(&Proof) -> Option<Reason>) -> bool {
        let mut any = false;
        self.next_expiry.set(None);
        self.believed.borrow_mut().retain(|facts| {
            let Some(facts) = facts.upgrade() else { return false };
            let lost = facts.proof.as_deref().and_then(&doubt);
            match lost {
                Some(reason) => {
                    facts.belief.lose(reason);
                    any = true;
                }
                None => self.expects_expiry(&facts),
            }
            lost.is_none()
        });
        if any {
            let mut left = 0;
            for target in self.targets.borrow().values() {
                let mut idle = target.idle.borrow_mut();
                idle.retain(|connection| connection.facts.belief.lost().is_none());
                left += idle.len();
                target.shared.let_go_of_disbelieved();
            }
            self.idle.set(left);
        }
        any
    }

    /// When the first of them may no longer be believed, whatever else happens: seconds since the epoch.
    pub fn disbelieves_at(&self) -> Option<i64> {
        self.next_expiry.get()
    }

    /// When a connection that is opened now retires.
    pub(super) fn retires(&self) -> Retires {
        let limit = self.settings.max_connection_duration;
        if limit.is_zero() {
            return Retires(None);
        }
        let percent = self.random.borrow_mut().random_range(90..=100);
        let ticks = (limit * percent / 100).as_millis() / self.tick_interval().as_millis();
        Retires(Some(self.tick.get().wrapping_add(u32::try_from(ticks.max(1)).unwrap_or(u32::MAX / 2))))
    }

    fn tick_interval(&self) -> Duration {
        (self.settings.idle_timeout / TICKS).max(Duration::from_millis(1))
    }

    /// Idle HTTP/1 connections of this worker.
    pub fn idle_connections(&self) -> usize {
        self.idle.get()
    }

    /// Starts the sweeper, unless it runs. It ends by itself when there is nothing to sweep.
    pub(super) fn ensure_swept(self: &Rc<Self>) {
        if !self.sweeping.replace(true) {
            tokio::task::spawn_local(sweep(Rc::downgrade(self), self.tick_interval()));
        }
    }

    /// Drops idle connections that are too old or were closed by the server, and targets that are left with none.
    fn sweep_once(&self) {
        let tick = self.tick.get().wrapping_add(1);
        self.tick.set(tick);
        let mut left = 0;
        self.targets.borrow_mut().retain(|_, target| {
            let mut idle = target.idle.borrow_mut();
            idle.retain_mut(|connection| {
                tick.wrapping_sub(connection.idle_since) < TICKS
                    && !connection.retires.by(tick)
                    && connection.io.idleness() == Idleness::Quiet
            });
            left += idle.len();
            drop(idle);
            target.shared.sweep(tick, TICKS);
            Rc::strong_count(target) > 1 || !target.is_unused()
        });
        self.idle.set(left);
    }

    fn has_connections(&self) -> bool {
        self.targets.borrow().values().any(|target| !target.is_unused())
    }
}

async fn sweep(upstream: Weak<Upstream>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(upstream) = upstream.upgrade() else { return };
        upstream.sweep_once();
        if !upstream.has_connections() {
            upstream.sweeping.set(false);
            return;
        }
    }
}
