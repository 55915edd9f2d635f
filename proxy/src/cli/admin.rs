//! `writ admin`.
