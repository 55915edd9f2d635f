//! End-to-end tests.

mod http1;
mod http2;
mod identity;
mod policy;
mod routes;
mod tcp;
mod tunnels;
