//! One generation of configuration as the workers hold it: published by `reload`, read by everyone else.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::limits::InForce;
use crate::tables::{CustomPolicies, Forwarders, HeaderNames, Tables};
use crate::telemetry::ConfigFacts;

/// Tables and what records say about them. Immutable; swapped whole.
pub struct Generation {
    /// Counts publications, from 1.
    pub number: u64,
    /// Policy and routes.
    pub tables: Tables,
    /// What the rate limits of the tables have counted.
    pub limits: InForce,
    /// How records name this configuration.
    pub config: ConfigFacts,
    /// When it came into force.
    pub published: Instant,
}

/// Where the current generation is found. Only `reload` publishes.
pub struct Published {
    number: AtomicU64,
    current: ArcSwap<Generation>,
    moved: watch::Sender<u64>,
}

impl Published {
    /// Starts with a first generation.
    pub fn new(first: Generation) -> Arc<Self> {
        Arc::new(Self {
            number: AtomicU64::new(first.number),
            moved: watch::Sender::new(first.number),
            current: ArcSwap::from_pointee(first),
        })
    }

    /// Makes `next` the current one and gives the one it replaced, so that its memory is freed off the workers.
    pub(crate) fn publish(&self, mut next: Generation) -> Arc<Generation> {
        next.published = Instant::now();
        let number = next.number;
        let old = self.current.swap(Arc::new(next));
        self.number.store(number, Ordering::Release);
        self.moved.send_replace(number);
        old
    }

    /// Tells of each publication: for those who have nothing to ask and must let go of what they hold.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// The current one.
    pub fn load(&self) -> Arc<Generation> {
        self.current.load_full()
    }
}

/// A generation as one worker holds it: a request holds one of these from its first line to its record.
pub struct Held {
    generation: Arc<Generation>,
    /// The worker's own copy, so that records of two workers share no reference count.
    pub config: Arc<ConfigFacts>,
    /// Names of the headers that a request has to keep; the worker's own, for the same reason.
    pub header_names: Rc<Arc<HeaderNames>>,
    /// Whose word is believed about where a request comes from, likewise.
    pub forwarders: Rc<Arc<Forwarders>>,
    /// CUSTOM policies by which providers are asked, likewise. `None`: there are none.
    pub custom: Option<Rc<Arc<CustomPolicies>>>,
}

impl Held {
    /// Holds a generation.
    pub fn of(generation: Arc<Generation>) -> Rc<Self> {
        let config = Arc::new(generation.config.clone());
        let header_names = Rc::new(Arc::clone(generation.tables.header_names()));
        let forwarders = Rc::new(Arc::clone(generation.tables.forwarders()));
        let custom = generation.tables.custom().map(|custom| Rc::new(Arc::clone(custom)));
        Rc::new(Self { generation, config, header_names, forwarders, custom })
    }

    /// The same generation, for another thread.
    pub fn share(&self) -> Arc<Generation> {
        Arc::clone(&self.generation)
    }
}

impl Deref for Held {
    type Target = Generation;
    fn deref(&self) -> &Generation {
        &self.generation
    }
}

/// A worker's view of [`Published`]: a plain `Rc`, refreshed when the number moved.
pub struct Current {
    published: Arc<Published>,
    number: Cell<u64>,
    held: RefCell<Rc<Held>>,
}

impl Current {
    /// The view of one worker.
    pub fn new(published: Arc<Published>) -> Self {
        let held = Held::of(published.load());
        Self { published, number: Cell::new(held.number), held: RefCell::new(held) }
    }

    /// What to decide by from here on. One load when nothing changed.
    pub fn get(&self) -> Rc<Held> {
        if self.published.number.load(Ordering::Acquire) != self.number.get() {
            let held = Held::of(self.published.load());
            self.number.set(held.number);
            *self.held.borrow_mut() = held;
        }
        Rc::clone(&self.held.borrow())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reload::tests::generation_of;

    #[test]
    fn a_worker_sees_what_is_published_and_lets_go_of_what_was() {
        let published = Published::new(generation_of(1, ""));
        let current = Current::new(Arc::clone(&published));
        let under_way = current.get();
        assert!(Rc::ptr_eq(&under_way, &current.get()), "nothing changed, nothing is made anew");

        let old = published.publish(generation_of(2, ""));
        assert_eq!((under_way.number, current.get().number), (1, 2));
        assert_eq!(Arc::strong_count(&old), 2, "the request under way keeps its generation");
        drop(under_way);
        assert_eq!(Arc::strong_count(&old), 1);
    }
}
