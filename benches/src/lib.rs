//! Harness of the comparison: Writ beside other proxies, in one run, on one machine.
//!
//! Every proxy process has one worker and is pinned to one core; the load generator and the applications behind the
//! proxies share another. What counts is CPU per request and its ratio to a peer of the same run: absolute figures
//! of a shared machine mean nothing elsewhere. Cases are measured in turn, repetition by repetition, so that a busy
//! minute of the machine falls on all of them, and each figure is the median of its repetitions.

pub mod backend;
pub mod bare;
pub mod child;
pub mod handshake;
pub mod histogram;
pub mod idle;
pub mod issuer;
pub mod load;
pub mod measure;
pub mod peer;
pub mod pki;
pub mod report;
pub mod scenario;
pub mod tls;
pub mod world;
