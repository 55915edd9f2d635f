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

use slab::Slab;
use tokio::sync::Notify;

pub use place::{Asked, Ended, Kept, Place};

use self::place::Slot;
use crate::drain::{DrainSignal, DrainWatch};
use crate::generation::Held;
use crate::peer::Peer;
use crate::telemetry::Shard;

/// What is open on one worker.
pub struct Live {
    shard: Rc<Shard>,
    draining: DrainSignal,
    connections: RefCell<Slab<Weak<Connection>>>,
    places: RefCell<Slab<Slot>>,
    /// The generation that all places are asked about, or were.
    number: Cell<u64>,
    /// A place was taken by a decision of an older generation.
    again: Notify,
}

/// A connection that is served.
pub struct Connection {
    /// Who is calling.
    pub peer: Rc<Peer>,
    /// How it is told to finish.
    pub watch: Rc<DrainWatch>,
    live: Rc<Live>,
    key: usize,
}

impl Live {
    /// With nothing open. Connections are told to finish by `draining`, or one by one.
    pub fn new(shard: Rc<Shard>, draining: DrainSignal) -> Rc<Self> {
        Rc::new(Self {
            shard,
            draining,
            connections: RefCell::default(),
            places: RefCell::default(),
            number: Cell::new(0),
            again: Notify::new(),
        })
    }

    /// A connection that is served from now until the result is dropped.
    pub fn connection(self: &Rc<Self>, peer: Peer) -> Rc<Connection> {
        let (peer, watch) = (Rc::new(peer), Rc::new(self.draining.watch()));
        let mut connections = self.connections.borrow_mut();
        let entry = connections.vacant_entry();
        let connection = Rc::new(Connection { peer, watch, live: Rc::clone(self), key: entry.key() });
        entry.insert(Rc::downgrade(&connection));
        connection
    }

    /// A place for what `held` has allowed on a connection.
    pub fn place(self: &Rc<Self>, connection: &Rc<Connection>, held: &Held, asked: Asked) -> Place {
        if held.number < self.number.get() {
            // Decided before the change, and here only after it.
            self.again.notify_one();
        }
        let slot = Slot::new(Rc::clone(connection), held, asked);
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
