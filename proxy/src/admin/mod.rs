//! Ready, metrics, configuration and attestation, on a thread and runtime of their own, so that neither traffic nor a
//! compile delays an answer. Everything here only reads.

mod answer;
mod readiness;
mod serve;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use serde_json::Value;
use tokio::sync::oneshot;

pub use self::readiness::Readiness;
use crate::telemetry::Telemetry;

/// What is answered from.
#[derive(Clone)]
pub struct AdminState {
    /// `/ready`.
    pub ready: Arc<Readiness>,
    /// `/metrics`, `/config`.
    pub telemetry: Arc<Telemetry>,
    /// `/attestation`: asked of the crypto module for each answer.
    pub attestation: fn() -> Value,
    /// `/explain`, where the role has it.
    pub explain: Option<Explain>,
    /// `/candidate`, where there is one.
    pub candidate: Option<Report>,
}

/// Answers `/candidate`.
pub type Report = Arc<dyn Fn() -> Value + Send + Sync>;

/// Answers `/explain?QUERY`: given the query, the record that would be, or what is wrong with the query.
pub type Explain = Arc<dyn Fn(&str) -> Result<Value, String> + Send + Sync>;

/// What a listener answers. Each answers `/ready` and `/live` too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Everything (15000). Must listen on loopback or a Unix socket.
    Admin,
    /// Health (15021).
    Health,
    /// Metrics (15090).
    Metrics,
}

/// A bound socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpListener),
    /// Unix.
    Unix(UnixListener),
}

impl From<TcpListener> for Socket {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Socket {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

/// Answers on all `listeners` until the handle is stopped or dropped.
///
/// # Errors
/// When the thread or its runtime can't be made, or a socket can't be used.
pub fn start(listeners: Vec<(Socket, Kind)>, state: AdminState) -> io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let listeners = {
        let _context = runtime.enter();
        listeners
            .into_iter()
            .map(|(socket, kind)| Ok((serve::Listener::new(socket)?, kind)))
            .collect::<io::Result<Vec<_>>>()?
    };
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("writ-admin".into())
        .spawn(move || runtime.block_on(serve::until_stopped(listeners, state, stopped)))?;
    Ok(Handle { stop: Some(stop), thread: Some(thread) })
}

/// A running admin thread.
#[derive(Debug)]
pub struct Handle {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Stops answering; open connections are cut.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It ends by itself; a panic in it was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState").field("ready", &self.ready).finish_non_exhaustive()
    }
}
