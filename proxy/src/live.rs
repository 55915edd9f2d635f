//! What is open on one worker, so that a change reaches it: each connection, and each request and tunnel with what
//! policies look at of it.
//!
//! Who serves a request holds its [`Place`], and asks it before going on. When the policy changes, [`Live::run`] goes
//! through the places in slices of bounded time, asks the new policy about each, and ends what it no longer allows: the
//! record is written there and then, and the task that serves it is woken to let go. So a client that takes nothing, and
//! a server that says nothing, keep nothing alive.

mod place;
mod sweep;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::sync::Notify;

pub use place::{Asked, Custom, Ended, Kept, Place};

use self::place::Slot;
use crate::decision::Reason;
use crate::drain::{DrainSignal, DrainWatch};
use crate::generation::Held;
use crate::identity::{Identity, Proof};
use crate::jwks::Store;
use crate::peer::Peer;
use crate::telemetry::{Record, Shard};
use crate::upstream::Upstream;

/// What is open on one worker.
pub struct Live {
    shard: Rc<Shard>,
    draining: DrainSignal,
    /// Says who is believed.
    identity: Option<Arc<Identity>>,
    /// Proves end users.
    keys: Arc<Store>,
    upstream: Rc<Upstream>,
    /// Longest life of an HTTP connection.
    max_duration: Option<Duration>,
    connections: RefCell<Slab<Weak<Connection>>>,
    places: RefCell<Slab<Slot>>,
    /// The generation that all places are asked about, or were.
    number: Cell<u64>,
    /// When the next connection of now is old enough, or its caller's certificate has expired (seconds since the epoch).
    next_old: Cell<Option<Instant>>,
    next_expiry: Cell<Option<i64>>,
    /// End users have to be asked about again, though the policy has not changed.
    keys_moved: Cell<bool>,
    /// Something came that does not wait for the next change.
    again: Notify,
}

/// A connection that is served.
pub struct Connection {
    /// Who is calling.
    pub peer: Rc<Peer>,
    /// How it is told to finish.
    pub watch: Rc<DrainWatch>,
    /// When it is told so for its age.
    old: Cell<Option<Instant>>,
    /// Requests and tunnels under way.
    busy: Cell<usize>,
    live: Rc<Live>,
    key: usize,
}

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// Requests: it can end between two, and does when it is old.
    Requests,
    /// Bytes that only their ends understand: no age is reason to end them.
    Bytes,
}

impl Live {
    /// With nothing open. Connections are told to finish by `draining`, or one by one. `max_duration`: zero is no limit.
    pub fn new(
        shard: Rc<Shard>,
        draining: DrainSignal,
        identity: Option<Arc<Identity>>,
        keys: Arc<Store>,
        upstream: Rc<Upstream>,
        max_duration: Duration,
    ) -> Rc<Self> {
        Rc::new(Self {
            shard,
            draining,
            identity,
            keys,
            upstream,
            max_duration: (!max_duration.is_zero()).then_some(max_duration),
            next_old: Cell::new(None),
            next_expiry: Cell::new(None),
            connections: RefCell::default(),
            places: RefCell::default(),
            number: Cell::new(0),
            keys_moved: Cell::new(false),
            again: Notify::new(),
        })
    }

    /// A connection that is served from now until the result is dropped.
    pub fn connection(self: &Rc<Self>, peer: Peer, carries: Carries) -> Rc<Connection> {
        let (peer, watch) = (Rc::new(peer), Rc::new(self.draining.watch()));
        let old = self.max_duration.filter(|_| carries == Carries::Requests).map(|limit| {
            // So that connections which were opened together do not all come back together.
            Instant::now() + limit.mul_f64(1.0 - 0.1 * rand::random::<f64>())
        });
        let mut connections = self.connections.borrow_mut();
        let entry = connections.vacant_entry();
        let key = entry.key();
        let (old, busy) = (Cell::new(old), Cell::new(0));
        let connection = Rc::new(Connection { peer, watch, old, busy, live: Rc::clone(self), key });
        entry.insert(Rc::downgrade(&connection));
        drop(connections);
        self.expect(&connection);
        connection
    }

    /// Waits for what time does to a connection.
    fn expect(&self, connection: &Connection) {
        if let Some(old) = connection.old.get() {
            self.expects_old(old);
        }
        if let Some(proof) = connection.peer.proof() {
            self.expects_expiry(proof.expires());
            if self.doubt(proof).is_some() {
                // Trust has changed since its handshake.
                self.again.notify_one();
            }
        }
    }

    fn expects_old(&self, at: Instant) {
        self.next_old.set(Some(self.next_old.get().map_or(at, |next| next.min(at))));
    }

    fn expects_expiry(&self, at: i64) {
        self.next_expiry.set(Some(self.next_expiry.get().map_or(at, |next| next.min(at))));
    }

    /// Why what was proven once is no longer believed.
    fn doubt(&self, proof: &Proof) -> Option<Reason> {
        match self.identity.as_ref()?.still_trusted(proof) {
            // A clock that was set back makes nobody another.
            Ok(()) | Err(Reason::NotYetValid) => None,
            Err(reason) => Some(reason),
        }
    }

    /// Shows the record that lies at a place, if one does.
    pub fn look(&self, place: usize, show: &mut dyn FnMut(&Record)) {
        if let Some(record) = self.places.borrow().get(place).and_then(Slot::record) {
            show(record);
        }
    }

    /// A place for what `held` has allowed on a connection.
    pub fn place(self: &Rc<Self>, connection: &Rc<Connection>, held: &Held, asked: Asked) -> Place {
        if held.number < self.number.get() {
            // Decided before the change, and here only after it.
            self.again.notify_one();
        }
        connection.busy.set(connection.busy.get() + 1);
        let slot = Slot::new(Rc::clone(connection), held, asked);
        if connection.peer.distrusted().is_some() {
            // The sweep that found out came before it had a place.
            self.again.notify_one();
        }
        if slot.user(held, &self.keys).is_err() {
            // The keys have changed since its user's token was verified.
            self.keys_moved.set(true);
            self.again.notify_one();
        }
        if let Some(until) = slot.user_until() {
            self.expects_expiry(until);
        }
        let key = self.places.borrow_mut().insert(slot);
        Place::new(Rc::clone(self), key)
    }
}

impl Connection {
    /// Who is calling, when the connection turns out to carry something else. `None`: something of it is still under way.
    pub fn into_peer(this: Rc<Self>) -> Option<Peer> {
        let peer = Rc::clone(&this.peer);
        drop(this);
        Rc::into_inner(peer)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.live.connections.borrow_mut().try_remove(self.key);
    }
}
