//! End-to-end tests.

mod identity;
mod policy;
mod routes;
