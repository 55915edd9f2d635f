//! TLS, server and client: SPIFFE mutual TLS of the mesh, and TLS from and towards what is outside of it.
//!
//! An idle connection costs some 3 KiB of rustls' state, the peer's certificates among it, and rustls' read buffer. That is
//! 8 KiB and more after a handshake; it shrinks to 4 KiB, and no further, when a read finds nothing. So whoever keeps a
//! connection idle leaves one read pending on it, or polls one before putting it away.

mod client;
mod evidence;
mod failure;
mod gateway;
mod origination;
mod server;
mod verify;

pub use client::{ClientConnected, ClientTls, HopAlpn};
pub use evidence::PeerTls;
pub use failure::refused_by_server;
pub use gateway::GatewayTls;
pub use server::{Accepted, Alpn, ServerTls};

/// Records that wait for a slow peer, per connection: two full ones. rustls' own bound is 64 KiB.
const SEND_BUFFER_BYTES: usize = 32 * 1024;

#[cfg(test)]
mod tests;
