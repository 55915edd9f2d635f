//! TLS, server and client: SPIFFE mutual TLS of the mesh, and TLS towards what is outside of it.

mod client;
mod evidence;
mod failure;
mod origination;
mod server;
mod verify;

pub use client::{ClientConnected, ClientTls, HopAlpn};
pub use evidence::PeerTls;
pub use failure::refused_by_server;
pub use origination::TlsOptions;
pub use server::{Accepted, Alpn, ServerTls};

/// Records that wait for a slow peer, per connection: two full ones. rustls' own bound is 64 KiB.
const SEND_BUFFER_BYTES: usize = 32 * 1024;

#[cfg(test)]
mod tests;
