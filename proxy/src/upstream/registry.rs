//! [`Registry`]: who serves each backend now, process-wide, by an id that stays the same over configurations.
//!
//! One small cell a backend, swapped alone: an endpoint that comes or goes touches nothing else. The control thread
//! writes, under a lock; workers load cells and sets without one.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, Guard};
use control_client::snapshot;
use serde::Serialize;

use crate::tables::BackendId;

/// Endpoint sets and their live state. One a process.
#[derive(Debug, Default)]
pub struct Registry {
    /// By [`BackendId`]; `None` where the id is retired. Ids are never given twice.
    cells: ArcSwap<Vec<Option<Arc<BackendCell>>>>,
    /// Every known workload address.
    by_address: ArcSwap<HashMap<IpAddr, Arc<Endpoint>, foldhash::fast::RandomState>>,
    writer: Mutex<Writer>,
}

/// What only the control thread needs.
#[derive(Debug, Default)]
struct Writer {
    ids: HashMap<String, BackendId>,
    latest: snapshot::Endpoints,
}

/// The one cell of a backend.
#[derive(Debug)]
pub(super) struct BackendCell {
    id: String,
    set: ArcSwap<Set>,
    retired: AtomicBool,
}

/// The endpoints of a backend at one moment.
#[derive(Debug, Default)]
pub(super) struct Set {
    source: Option<Arc<snapshot::EndpointSet>>,
    pub(super) endpoints: Vec<Arc<Endpoint>>,
}

/// One endpoint, made ready for use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to connect; from [`Registry::endpoint_at`] the port is 0.
    pub address: SocketAddr,
    /// `namespace/name` of the workload behind it.
    pub workload: Option<Arc<str>>,
    /// It speaks mesh mTLS.
    pub mesh_tls: bool,
    /// `spiffe://..` that it must prove (one); `None`: not known.
    pub identities: Option<Arc<[Arc<str>]>>,
    /// Relative weight, from 1.
    pub weight: u32,
    /// Never plaintext to it.
    pub mtls_required: bool,
}

/// A backend as the admin interface shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackendStatus {
    /// Its stable id.
    pub id: String,
    /// Who serves it.
    pub endpoints: Vec<EndpointStatus>,
}

/// An endpoint as the admin interface shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndpointStatus {
    /// Where it is.
    pub address: SocketAddr,
    /// `namespace/name`.
    pub workload: Option<Arc<str>>,
    /// It speaks mesh mTLS.
    pub mesh_tls: bool,
    /// What it must prove.
    pub identity: Option<Arc<str>>,
    /// Relative weight.
    pub weight: u32,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The ids of `backends`, in their order: the same as before for a backend seen before, new for others.
    pub fn intern(&self, backends: &[snapshot::Backend]) -> Vec<BackendId> {
        let mut writer = self.writer();
        let mut cells: Option<Vec<_>> = None;
        let mut ids = Vec::with_capacity(backends.len());
        for backend in backends {
            if let Some(id) = writer.ids.get(&backend.id) {
                ids.push(*id);
                continue;
            }
            let cells = cells.get_or_insert_with(|| self.cells.load().as_ref().clone());
            let id = BackendId(u32::try_from(cells.len()).unwrap_or(u32::MAX));
            let set = Set::follow(&Set::default(), writer.latest.by_backend.get(&backend.id));
            cells.push(Some(Arc::new(BackendCell {
                id: backend.id.clone(),
                set: ArcSwap::from_pointee(set),
                retired: AtomicBool::new(false),
            })));
            writer.ids.insert(backend.id.clone(), id);
            ids.push(id);
        }
        if let Some(cells) = cells {
            self.cells.store(Arc::new(cells));
        }
        ids
    }

    /// Takes over who serves what. Only the sets that changed are swapped.
    pub fn update(&self, endpoints: &snapshot::Endpoints) {
        let mut writer = self.writer();
        for cell in self.cells.load().iter().flatten() {
            cell.follow(endpoints.by_backend.get(&cell.id));
        }
        let old = self.by_address.load();
        if !Arc::ptr_eq(&endpoints.by_address, &writer.latest.by_address) {
            let kept = |known: &snapshot::Endpoint, ip| match old.get(ip) {
                Some(old) if old.is(known) => Arc::clone(old),
                _ => Arc::new(Endpoint::from(known)),
            };
            let fresh = endpoints.by_address.iter().map(|(ip, known)| (*ip, kept(known, ip))).collect();
            self.by_address.store(Arc::new(fresh));
        }
        writer.latest = endpoints.clone();
    }

    /// Forgets every backend but `live`. Called after the tables that name `live` are the only ones.
    pub fn retire(&self, live: &[BackendId]) {
        let mut writer = self.writer();
        let mut cells = self.cells.load().as_ref().clone();
        let mut keep = vec![false; cells.len()];
        for id in live {
            if let Some(keep) = keep.get_mut(id.0 as usize) {
                *keep = true;
            }
        }
        for (slot, _) in cells.iter_mut().zip(keep).filter(|(slot, keep)| !keep && slot.is_some()) {
            if let Some(cell) = slot.take() {
                cell.retired.store(true, Ordering::Release);
                writer.ids.remove(&cell.id);
            }
        }
        self.cells.store(Arc::new(cells));
    }

    /// The workload at an address, whichever backend it serves.
    pub fn endpoint_at(&self, ip: IpAddr) -> Option<Arc<Endpoint>> {
        self.by_address.load().get(&ip.to_canonical()).cloned()
    }

    /// The address of a workload, `namespace/name`: of several the first.
    pub fn address_of(&self, workload: &str) -> Option<IpAddr> {
        let known = self.by_address.load();
        let of_it = known.iter().filter(|(_, endpoint)| endpoint.workload.as_deref() == Some(workload));
        of_it.map(|(address, _)| *address).min()
    }

    /// A backend with its endpoints.
    pub fn served(&self, id: BackendId) -> Option<BackendStatus> {
        self.cell(id).map(|cell| cell.status())
    }

    /// Every backend with its endpoints, sorted by id.
    pub fn status(&self) -> Vec<BackendStatus> {
        let mut status: Vec<_> = self.cells.load().iter().flatten().map(|cell| cell.status()).collect();
        status.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        status
    }

    /// The cell of a backend, for a worker to keep.
    pub(super) fn cell(&self, id: BackendId) -> Option<Arc<BackendCell>> {
        self.cells.load().get(id.0 as usize).cloned().flatten()
    }

    /// A panic while writing can't leave a cell half written: each is swapped whole.
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BackendCell {
    pub(super) fn load(&self) -> Guard<Arc<Set>> {
        self.set.load()
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    fn follow(&self, source: Option<&Arc<snapshot::EndpointSet>>) {
        let old = self.set.load();
        let same = match (&old.source, source) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new) || old == new,
            (old, new) => old.is_none() && new.is_none(),
        };
        if !same {
            self.set.store(Arc::new(Set::follow(&old, source)));
        }
    }

    fn status(&self) -> BackendStatus {
        let show = |endpoint: &Arc<Endpoint>| EndpointStatus {
            address: endpoint.address,
            workload: endpoint.workload.clone(),
            mesh_tls: endpoint.mesh_tls,
            identity: endpoint.identities.as_ref().and_then(|identities| identities.first().cloned()),
            weight: endpoint.weight,
        };
        BackendStatus { id: self.id.clone(), endpoints: self.load().endpoints.iter().map(show).collect() }
    }
}

impl Set {
    /// The set of `source`; endpoints that did not change keep their `Arc`.
    fn follow(old: &Self, source: Option<&Arc<snapshot::EndpointSet>>) -> Self {
        let Some(source) = source else { return Self::default() };
        let mut before = old.endpoints.iter().peekable();
        let endpoints = source.endpoints.iter().map(|new| {
            // Both are sorted by address, so that one pass finds the old ones.
            while before.next_if(|old| old.address < new.address).is_some() {}
            match before.peek() {
                Some(old) if old.is(new) => Arc::clone(old),
                _ => Arc::new(Endpoint::from(new)),
            }
        });
        Self { endpoints: endpoints.collect(), source: Some(Arc::clone(source)) }
    }
}

impl Endpoint {
    fn is(&self, other: &snapshot::Endpoint) -> bool {
        self.address == other.address
            && self.workload.as_deref() == other.workload.as_deref()
            && self.mesh_tls == other.mesh_tls
            && self.identities.as_deref().map(|identities| &*identities[0]) == other.identity.as_deref()
            && self.weight == other.weight.max(1)
            && self.mtls_required == other.mtls_required
    }
}

impl From<&snapshot::Endpoint> for Endpoint {
    fn from(endpoint: &snapshot::Endpoint) -> Self {
        Self {
            address: endpoint.address,
            workload: endpoint.workload.as_deref().map(Arc::from),
            mesh_tls: endpoint.mesh_tls,
            identities: endpoint.identity.as_deref().map(|identity| Arc::from([Arc::from(identity)])),
            weight: endpoint.weight.max(1),
            mtls_required: endpoint.mtls_required,
        }
    }
}
