//! The Writ data plane. `http/pipeline.rs` is the straight line; everything else feeds it.

pub mod admin;
pub mod app;
pub mod body;
pub mod cli;
pub mod conn;
pub mod decision;
pub mod drain;
pub mod error;
pub mod explain;
pub mod generation;
pub mod h1;
pub mod http;
pub mod identity;
pub mod listen;
pub mod net;
pub mod peer;
pub mod reload;
pub mod roles;
pub mod stages;
pub mod tables;
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod worker;
