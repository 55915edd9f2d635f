//! Which endpoint serves the next request: power of two choices by outstanding requests, weights honoured.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use control_client::snapshot::BackendTls;
use rand::RngExt;
use rand::rngs::SmallRng;
use smallvec::SmallVec;

use super::hop::HopProtocol;
use super::pool::Target;
use super::registry::{BackendCell, Endpoint, Set};

/// A worker's view of one backend: its endpoints with what this worker has outstanding at each.
#[derive(Debug)]
pub(super) struct Balancer {
    cell: Arc<BackendCell>,
    view: RefCell<View>,
}

#[derive(Debug, Default)]
struct View {
    /// What the view was made from.
    set: Arc<Set>,
    members: Vec<Rc<Member>>,
    /// Running sum of weights; empty while all are equal.
    weights: Vec<u64>,
}

/// An endpoint as this worker knows it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) load: Rc<Load>,
    /// Where requests to it go, by the backend's settings; nearly always one.
    routes: RefCell<SmallVec<[Route; 1]>>,
}

#[derive(Debug)]
struct Route {
    tls: BackendTls,
    mtls_required: bool,
    protocol: HopProtocol,
    target: Rc<Target>,
}

/// Requests that this worker has outstanding at an endpoint.
#[derive(Debug, Default)]
pub(super) struct Load(Cell<u32>);

/// Counts one request as outstanding until dropped.
#[derive(Debug)]
pub(super) struct InFlight(Rc<Load>);

impl InFlight {
    pub(super) fn new(load: &Rc<Load>) -> Self {
        load.0.set(load.0.get() + 1);
        Self(Rc::clone(load))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

impl Balancer {
    pub(super) fn new(cell: Arc<BackendCell>) -> Self {
        Self { cell, view: RefCell::default() }
    }

    pub(super) fn is_retired(&self) -> bool {
        self.cell.is_retired()
    }

    /// Chooses an endpoint. One of `avoid` is taken only where there is no other. `None`: there are none at all.
    pub(super) fn choose(&self, random: &mut SmallRng, avoid: &[SocketAddr]) -> Option<Rc<Member>> {
        self.refresh();
        let view = self.view.borrow();
        if avoid.is_empty() {
            return view.choose(random).cloned();
        }
        // A retry: rare, so it may cost a pass over the set.
        let others = view.members.iter().filter(|member| !avoid.contains(&member.endpoint.address));
        let others = View::of(Arc::default(), others.cloned().collect());
        others.choose(random).or_else(|| view.choose(random)).cloned()
    }

    /// Follows the cell. Endpoints that stay keep their load and connections.
    fn refresh(&self) {
        let current = self.cell.load();
        let mut view = self.view.borrow_mut();
        if Arc::ptr_eq(&view.set, &current) {
            return;
        }
        let old = std::mem::take(&mut view.members);
        let mut old = old.into_iter().peekable();
        let members = current.endpoints.iter().map(|endpoint| {
            while old.next_if(|old| old.endpoint.address < endpoint.address).is_some() {}
            match old.peek() {
                Some(same) if Arc::ptr_eq(&same.endpoint, endpoint) => Rc::clone(same),
                Some(moved) if moved.endpoint.address == endpoint.address => {
                    Rc::new(Member::new(endpoint, Rc::clone(&moved.load)))
                }
                _ => Rc::new(Member::new(endpoint, Rc::default())),
            }
        });
        *view = View::of(Arc::clone(&current), members.collect());
    }
}

impl View {
    fn of(set: Arc<Set>, members: Vec<Rc<Member>>) -> Self {
        let weight = |member: &Rc<Member>| u64::from(member.endpoint.weight);
        let equal = members.windows(2).all(|pair| weight(&pair[0]) == weight(&pair[1]));
        let sum = |sum: &mut u64, member: &Rc<Member>| {
            *sum += weight(member);
            Some(*sum)
        };
        let weights = if equal { Vec::new() } else { members.iter().scan(0, sum).collect() };
        Self { set, members, weights }
    }

    /// The less loaded of two drawn by weight.
    fn choose(&self, random: &mut SmallRng) -> Option<&Rc<Member>> {
        match self.members.len() {
            0 => None,
            1 => self.members.first(),
            _ => {
                let (first, second) = self.draw(random);
                let (first, second) = (&self.members[first], &self.members[second]);
                Some(if second.is_less_loaded_than(first) { second } else { first })
            }
        }
    }

    /// Two indices: different ones where weights are equal, else each drawn by weight.
    fn draw(&self, random: &mut SmallRng) -> (usize, usize) {
        let count = self.members.len();
        let Some(total) = self.weights.last() else {
            let first = random.random_range(0..count);
            let second = random.random_range(0..count - 1);
            return (first, if second >= first { second + 1 } else { second });
        };
        let mut by_weight = || {
            let point = random.random_range(0..*total);
            self.weights.partition_point(|sum| *sum <= point)
        };
        (by_weight(), by_weight())
    }
}

impl Member {
    fn new(endpoint: &Arc<Endpoint>, load: Rc<Load>) -> Self {
        Self { endpoint: Arc::clone(endpoint), load, routes: RefCell::default() }
    }

    /// An endpoint of twice the weight may hold twice the requests.
    fn is_less_loaded_than(&self, other: &Self) -> bool {
        let share = |member: &Self, by: &Self| u64::from(member.load.0.get()) * u64::from(by.endpoint.weight);
        share(self, other) < share(other, self)
    }

    /// Where requests go under these settings, decided by `decide` the first time.
    pub(super) fn target<E>(
        &self,
        tls: &BackendTls,
        mtls_required: bool,
        protocol: HopProtocol,
        decide: impl FnOnce() -> Result<Rc<Target>, E>,
    ) -> Result<Rc<Target>, E> {
        let same = |route: &&Route| {
            route.protocol == protocol && route.mtls_required == mtls_required && route.tls == *tls
        };
        if let Some(route) = self.routes.borrow().iter().find(same) {
            return Ok(Rc::clone(&route.target));
        }
        let target = decide()?;
        let mut routes = self.routes.borrow_mut();
        // Settings of a backend change rarely; what is no longer used must not pile up.
        if routes.len() >= MAX_ROUTES {
            routes.remove(0);
        }
        routes.push(Route { tls: tls.clone(), mtls_required, protocol, target: Rc::clone(&target) });
        Ok(target)
    }
}

/// Settings kept per endpoint: two protocols, before and after a change.
const MAX_ROUTES: usize = 4;
