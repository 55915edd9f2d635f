//! Shared harness of the end-to-end tests: a mesh of real proxies in this process, applications that answer or misbehave,
//! clients that speak bytes, and the records that everything leaves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a harness has nobody to report to: what fails here is a failed test"
)]

mod agent;
mod app;
mod client;
mod cluster;
mod credentials;
mod directory;
mod explainer;
mod h2_client;
mod h2_frames;
mod issuer;
mod maker;
mod pki;
pub mod program;
pub mod protobuf;
mod records;
mod reply;
mod world;

pub use agent::Agent;
pub use app::{App, Log, Seen, request_head};
pub use client::{Client, TlsClient};
pub use cluster::Server;
pub use credentials::Credentials;
pub use directory::Directory;
pub use explainer::Explainer;
pub use h2_client::{H2Client, H2Reply, H2Stream, request};
pub use h2_frames::H2Frames;
pub use issuer::{Instead, Issuer};
pub use maker::{Maker, pem, signed_by_sha1};
pub use pki::{Caller, Pki};
pub use records::{Record, Records};
pub use reply::Reply;
pub use world::{Mesh, World};

use std::future::Future;
use std::time::Duration;

/// What takes longer will never come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A port of loopback that nobody listens on now, for what must be told one.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Waits for what must come, and fails the test when it does not.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come within {PATIENCE:?}"),
    }
}
