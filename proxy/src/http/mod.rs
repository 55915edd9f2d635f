//! The straight line of a request.

pub mod serve_h1;
