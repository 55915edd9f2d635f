//! Binds listeners and accepts on every worker, also when descriptors run out; a socket goes to the least loaded worker.

mod ports;

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

pub use self::ports::{Ports, Standing};
use crate::drain::Phase;
use crate::net::socket;
use crate::roles::Listener;

/// Longest pause after an accept that failed for want of descriptors or memory.
const BACK_OFF_MAX: Duration = Duration::from_millis(250);
const BACK_OFF_MIN: Duration = Duration::from_millis(5);
/// A worker keeps what it accepted unless another has this many connections fewer.
const SLACK: usize = 1;

/// What a worker is handed.
pub enum Handed {
    /// A socket to serve.
    Connection(Accepted),
    /// A listener to accept on.
    Listener(Opened),
}

/// A listener on its way to a worker.
pub struct Opened {
    /// What it is.
    pub listener: Listener,
    /// Not yet registered with a runtime.
    pub socket: std::net::TcpListener,
    /// Accepting ends when this becomes true.
    pub closed: watch::Receiver<bool>,
}

/// An accepted socket on its way to the worker that will serve it.
pub struct Accepted {
    /// Not yet registered with a runtime.
    pub socket: std::net::TcpStream,
    /// The caller.
    pub source: SocketAddr,
    /// By which it came.
    pub listener: Listener,
    /// Its share of that worker's load.
    pub occupied: Occupied,
}

/// Serves an accepted socket of a listener, in a task of its own.
pub type Serve = dyn Fn(TcpStream, SocketAddr, Listener, Occupied);

/// How many connections each worker serves, and the way to hand it one more.
pub struct Placement {
    workers: Vec<(AtomicUsize, mpsc::UnboundedSender<Handed>)>,
}

impl Placement {
    /// For `workers` workers; the receivers, in their order.
    pub fn new(workers: usize) -> (Arc<Self>, Vec<mpsc::UnboundedReceiver<Handed>>) {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::unbounded_channel()).unzip();
        let workers = senders.into_iter().map(|sender| (AtomicUsize::new(0), sender)).collect();
        (Arc::new(Self { workers }), receivers)
    }

    /// Has every worker accept on a socket until `closed` becomes true; a sender of it that is gone closes nothing.
    pub fn open(
        &self,
        listener: Listener,
        socket: &std::net::TcpListener,
        closed: &watch::Receiver<bool>,
    ) -> io::Result<()> {
        for (_, worker) in &self.workers {
            let opened = Opened { listener, socket: socket.try_clone()?, closed: closed.clone() };
            // The receiver lives as long as its worker; if it is gone the process is stopping.
            let _ = worker.send(Handed::Listener(opened));
        }
        Ok(())
    }

    /// The worker that should serve the next socket accepted by `own`.
    fn least_loaded(&self, own: usize) -> usize {
        let load = |worker: usize| self.workers[worker].0.load(Ordering::Relaxed);
        let least = (0..self.workers.len()).min_by_key(|&worker| load(worker)).unwrap_or(own);
        if load(own) > load(least) + SLACK { least } else { own }
    }

    /// Counts one more connection on a worker for as long as the result lives.
    pub fn occupy(self: &Arc<Self>, worker: usize) -> Occupied {
        self.workers[worker].0.fetch_add(1, Ordering::Relaxed);
        Occupied { placement: Arc::clone(self), worker }
    }
}

/// A connection's share of its worker's load.
pub struct Occupied {
    placement: Arc<Placement>,
    worker: usize,
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.placement.workers[self.worker].0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Binds a role's listeners. Where the host lacks an address family, its half of a port is left out.
pub fn bind(wanted: Vec<Listener>) -> anyhow::Result<(Vec<Listener>, Vec<std::net::TcpListener>)> {
    let (mut listeners, mut sockets) = (Vec::new(), Vec::new());
    for listener in wanted {
        if let Some(socket) = bind_one(listener.flag(), listener.address)? {
            // Port 0 has become a real one.
            listeners.push(Listener { address: socket.local_addr()?, ..listener });
            sockets.push(socket);
        }
    }
    Ok((listeners, sockets))
}

/// Binds one address, which `flag` gave; `None` if the host has no such address family.
pub fn bind_one(flag: &str, address: SocketAddr) -> anyhow::Result<Option<std::net::TcpListener>> {
    match socket::listen(address, socket::ListenOptions::default()) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if address.is_ipv6() && lacks_family(&error) => {
            tracing::warn!(%address, %error, "no IPv6 here: not listening on it");
            Ok(None)
        }
        Err(error) => {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => "; another process is there: stop it, or choose another port",
                io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
                io::ErrorKind::AddrNotAvailable => "; the host has no such address",
                _ => "",
            };
            Err(anyhow::anyhow!("{flag}: can't listen on {address}: {error}{hint}"))
        }
    }
}

fn lacks_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL))
}

const EAFNOSUPPORT: i32 = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
const EADDRNOTAVAIL: i32 = rustix::io::Errno::ADDRNOTAVAIL.raw_os_error();

/// Accepts on one listener, on one worker, until it is closed or the drain begins.
/// `serve` is called on this worker; sockets for other workers go through `placement`.
pub async fn accept(
    Opened { listener, socket, closed }: Opened,
    worker: usize,
    placement: Arc<Placement>,
    mut phase: watch::Receiver<Phase>,
    serve: Rc<Serve>,
) {
    let socket = match TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(%error, "a listener can't be used by this worker"),
    };
    let back_off = Cell::new(BACK_OFF_MIN);
    let mut closing = pin!(becomes_true(closed));
    loop {
        let accepted = tokio::select! {
            biased;
            // First, so that a flood of connections does not keep the drain from being seen.
            _ = phase.wait_for(|phase| *phase >= Phase::Draining) => return,
            () = &mut closing => return,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((socket, source)) => {
                back_off.set(BACK_OFF_MIN);
                let to = placement.least_loaded(worker);
                let occupied = placement.occupy(to);
                if to == worker {
                    serve(socket, source, listener, occupied);
                } else if let Ok(socket) = socket.into_std() {
                    // The receiver lives as long as its worker; if it is gone the process is stopping.
                    let accepted = Accepted { socket, source, listener, occupied };
                    let _ = placement.workers[to].1.send(Handed::Connection(accepted));
                }
            }
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                // Descriptors or memory ran out. Open connections go on, and closing ones give descriptors back.
                if back_off.get() == BACK_OFF_MIN {
                    tracing::warn!(%error, "accept failed; trying again (raise the limit of open files?)");
                }
                tokio::time::sleep(back_off.get()).await;
                back_off.set((back_off.get() * 2).min(BACK_OFF_MAX));
            }
        }
    }
}

/// Resolves when it does; never, if nobody is left to say so.
async fn becomes_true(mut said: watch::Receiver<bool>) {
    if said.wait_for(|said| *said).await.is_err() {
        std::future::pending().await
    }
}

/// Errors of the connection that was about to be accepted, not of the listener (accept(2), "Error handling").
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::PermissionDenied
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_goes_to_the_least_loaded_but_stays_where_loads_are_alike() {
        let (placement, _inboxes) = Placement::new(3);
        assert_eq!(placement.least_loaded(2), 2);
        let first = placement.occupy(2);
        assert_eq!(placement.least_loaded(2), 2, "one connection more is no reason to move");
        let second = placement.occupy(2);
        let third = placement.occupy(0);
        assert_eq!(placement.least_loaded(2), 1);
        assert_eq!(placement.least_loaded(0), 0);
        drop((first, second, third));
        assert_eq!(placement.least_loaded(2), 2, "what ended counts no more");
    }
}
