//! End-to-end tests.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a failed test")]

mod backend_tls;
mod bounds;
mod candidate;
mod consult;
mod descriptors;
mod drain;
mod enforced;
mod explain;
mod forwarders;
mod gateway;
mod half_open;
mod handshakes;
mod hostile_issuers;
mod http1;
mod http2;
mod identity;
mod istio;
mod jwt;
mod limits;
mod live;
mod live_consult;
mod live_users;
mod policy;
mod records;
mod reload;
mod revocation;
mod rotation;
mod routes;
mod strict_http2;
mod strict_requests;
mod strict_responses;
mod structure;
mod tcp;
mod tunnels;
