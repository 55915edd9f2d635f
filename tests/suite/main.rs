//! End-to-end tests.

mod policy;
