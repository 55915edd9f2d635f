//! End-to-end tests.

mod bounds;
mod descriptors;
mod http1;
mod http2;
mod identity;
mod policy;
mod records;
mod routes;
mod strict_http2;
mod strict_requests;
mod strict_responses;
mod tcp;
mod tunnels;
